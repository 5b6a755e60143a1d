"""``{picture} NAME``: put ``pictures/NAME.svg`` into the page itself, so that it follows the page's light or dark theme.

The content of the directive is the caption.  Where there is no HTML, the picture's description stands for it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

FOLDER = Path(__file__).resolve().parent.parent / "pictures"


class Picture(SphinxDirective):
    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        path = FOLDER / f"{self.arguments[0]}.svg"
        self.env.note_dependency(str(path))
        svg = path.read_text(encoding="utf-8")
        described = re.search(r"<desc[^>]*>(.*?)</desc>", svg, re.DOTALL)
        figure = nodes.container(classes=["picture"])
        figure += nodes.raw("", f'<div class="picture-scroll">{svg}</div>', format="html")
        if self.content:
            caption = nodes.container(classes=["picture-caption"])
            self.state.nested_parse(self.content, self.content_offset, caption)
            figure += caption
        if self.env.app.builder.format != "html" and described:
            return [nodes.paragraph(text=described[1])]
        return [figure]


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True}
