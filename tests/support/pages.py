"""Figures of real runs, written into the documentation between two comments, so that nobody copies a number by hand."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def fill(name: str, text: str, page: str = "explanation/how-we-know.md") -> None:
    """Replace what is between ``<!-- NAME: … -->`` and ``<!-- end of NAME -->`` of a page."""
    path = DOCS / page
    path.write_text(filled(path.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def filled(page: str, name: str, text: str) -> str:
    """The page's text with that."""
    pattern = rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end of {name} -->)"
    page, found = re.subn(pattern, lambda match: match[1] + text + match[2], page, flags=re.DOTALL)
    assert found == 1, f"the page has no place for {name}"
    return page
