"""Draw all pictures: ``python docs/pictures/build.py`` writes them, ``--check`` only says which are out of date."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import barriers  # noqa: E402
import commit  # noqa: E402
import exchange  # noqa: E402
import ladder  # noqa: E402
import powercut  # noqa: E402
import states  # noqa: E402


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = []
    for module in (states, exchange, barriers, ladder, commit, powercut):
        for picture in module.draw():
            path, drawn = HERE / f"{picture.name}.svg", picture.svg()
            if not path.exists() or path.read_text(encoding="utf-8") != drawn:
                stale.append(path.name)
                if not check:
                    path.write_text(drawn, encoding="utf-8")
    if stale:
        print("out of date:" if check else "drawn:", *stale)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
