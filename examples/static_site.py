"""Rebuild one page of a static site, and publish the whole site only if it really changed.

    python examples/static_site.py [FOLDER]

``copy=True`` starts from what is there (sharing its blocks where the filesystem can), so a build that changes one
page does not have to draw the others.  ``if_changed=True`` does nothing if the result is the same, so that caches and
watchers are not woken needlessly.
"""

from __future__ import annotations

import html
import sys
from pathlib import Path

import atomik


def render(title: str, text: str) -> str:
    return f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><p>{html.escape(text)}</p>\n"


def build(site: Path, pages: dict[str, str], *, copy: bool = True) -> str:
    """Draw `pages`, from a copy of the present site or from nothing; returns what happened to the site."""
    with atomik.transaction(overwrite=True) as tx:
        with tx.folder(site, copy=copy, if_changed=True) as new:
            for name, text in pages.items():
                (new / f"{name}.html").write_text(render(name, text))
        return tx.commit().items[0].op


def main() -> None:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "public")
    first = build(site, {"index": "Welcome", "about": "<Nobody> & friends"}, copy=False)
    again = build(site, {"index": "Welcome"})
    news = build(site, {"news": "A third page"})
    assert (again, news) == ("unchanged", "replace"), (again, news)
    print(f"built: {first}; the same again: {again}; a new page: {news}")
    print("pages:", ", ".join(sorted(path.name for path in site.iterdir())))


if __name__ == "__main__":
    main()
