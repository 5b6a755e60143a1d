"""Replace a configuration by a rendered Jinja template, safely.  Needs jinja2.

    python examples/jinja_config.py [FILE]

If someone changes the configuration while the template is rendered, `atomik.update` fails and does not overwrite the
change.  A mistake in the template fails before anything is touched.  ``backup=`` keeps the previous configuration.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jinja2

import atomik

TEMPLATE = """\
# rendered, do not edit
{% for host in hosts -%}
server {{ host }}:{{ port }}
{% endfor -%}
"""


def render_into(path: Path, template: str, **values: object) -> None:
    """Replace the configuration by the rendered template; the previous one is kept as FILE.bak."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    with atomik.update(path, backup=f"{path.name}.bak") as file:
        text = environment.from_string(template).render(current=file.read(), **values)
        file.seek(0)
        file.truncate()
        file.write(text)


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "upstream.conf")
    with atomik.file(path, overwrite=True) as file:
        file.write("server old:80\n")
    try:
        render_into(path, TEMPLATE, hosts=["one", "two"])  # port is missing
    except jinja2.UndefinedError as exc:
        assert path.read_text() == "server old:80\n", "a broken template changed the configuration"
        print(f"nothing changed: {exc}")
    render_into(path, TEMPLATE, hosts=["one", "two"], port=8080)
    print(path.read_text(), end="")


if __name__ == "__main__":
    main()
