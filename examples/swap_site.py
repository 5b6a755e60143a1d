"""Replace a whole web site at once, keep the old one, and go back.

    python examples/swap_site.py [FOLDER]

A non-empty folder is exchanged by one rename: no visitor sees the site missing, or old pages among new ones.  ``backup=``
keeps the previous version under another name, and `atomik.swap` brings it back in one step.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import atomik


def deploy(site: Path, version: str, pages: int) -> None:
    """Publish `pages` pages of one version; the previous version is kept as SITE.previous."""
    keep = f"{site.name}.previous" if site.exists() else None
    with atomik.folder(site, overwrite=True, backup=keep) as new:
        for number in range(pages):
            (new / f"page-{number}.html").write_text(f"<p>version {version}</p>\n")


class Visitor(threading.Thread):
    """Reads the site again and again; every time it must find one complete version."""

    def __init__(self, site: Path) -> None:
        super().__init__()
        self.site = site
        self.bad: list[str] = []
        self.here, self.gone = threading.Event(), threading.Event()

    def run(self) -> None:
        while not self.gone.is_set():
            try:
                found = self.site.joinpath("page-0.html").read_text()
            except OSError as exc:
                found = str(exc)
            if found not in ("<p>version one</p>\n", "<p>version two</p>\n"):
                self.bad.append(found)
            self.here.set()


def main() -> None:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "site")
    deploy(site, "one", pages=3)
    visitor = Visitor(site)
    visitor.start()
    visitor.here.wait()
    try:
        deploy(site, "two", pages=5)
        assert len(list(site.iterdir())) == 5
        previous = site.with_name(f"{site.name}.previous")
        atomik.swap(site, previous)  # version two has a mistake: back, in one step
    finally:
        visitor.gone.set()
        visitor.join()
    assert not visitor.bad, f"a visitor saw something else: {visitor.bad[0]!r}"
    assert "one" in (site / "page-0.html").read_text()
    assert "two" in (previous / "page-0.html").read_text()
    print(f"{site} shows version one again, {previous} holds version two; no visitor saw anything between")


if __name__ == "__main__":
    main()
