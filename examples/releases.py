"""Releases behind a link: publish one, switch to it, keep the last five, go back; each in one transaction.

    python examples/releases.py [FOLDER]          # default: ./app

    app/releases/0001 …        each release in a folder of its own, which never changes again
    app/current                a symbolic link to one of them

A deployment is one transaction: it publishes the new folder, switches the link, and removes the oldest release.  If any of it
fails, or the machine crashes, everything is as it was.  To go back, switch the link.  A server that serves ``current``
follows the link at each request.
"""

from __future__ import annotations

import functools
import http.server
import os
import sys
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import atomik

if TYPE_CHECKING:
    from collections.abc import Callable

KEEP = 5


def releases(app: Path) -> list[str]:
    """The names of the releases, the oldest first."""
    return sorted(os.listdir(app / "releases"))


def current(app: Path) -> str:
    return os.path.basename(os.readlink(app / "current"))


def deploy(app: Path, build: Callable[[Path], object]) -> str:
    """Publish a release and switch to it; its name."""
    (app / "releases").mkdir(parents=True, exist_ok=True)
    atomik.recover(app / "releases")  # what a deployment that was killed has left is no release
    old = releases(app)
    name = f"{int(old[-1]) + 1 if old else 1:04}"
    with atomik.transaction() as tx:
        with tx.folder(app / "releases" / name) as new:
            build(new)
        tx.symlink(app / "current", f"releases/{name}", overwrite=True)
        for gone in old[: 1 - KEEP]:
            tx.remove(app / "releases" / gone)
    return name


def go_back(app: Path) -> str:
    """Switch to the release before the current one; its name.  Nobody switches meanwhile without it being seen."""
    seen = atomik.observe(app / "current")
    before = [name for name in releases(app) if name < current(app)]
    if not before:
        raise SystemExit("there is no release before this one")
    with atomik.transaction() as tx:
        tx.symlink(app / "current", f"releases/{before[-1]}", overwrite=True, expect=seen)
    return before[-1]


# --- the proof --------------------------------------------------------------------------------------------------------
class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def visit(address: str, gone: threading.Event, seen: list[str]) -> None:
    """Read the page again and again, whose lines must all say one version."""
    while not gone.is_set():
        with urllib.request.urlopen(f"{address}/index.html", timeout=30) as answer:
            seen += set(answer.read().decode().split())


def main() -> None:
    app = Path(sys.argv[1] if len(sys.argv) > 1 else "app").absolute()

    def page(version: str) -> Callable[[Path], object]:
        return lambda new: (new / "index.html").write_text(f"{version}\n" * 1000)

    deploy(app, page("first"))
    handler = functools.partial(Handler, directory=str(app / "current"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        gone, seen = threading.Event(), list[str]()
        visitor = threading.Thread(target=visit, args=(f"http://127.0.0.1:{server.server_port}", gone, seen))
        visitor.start()
        try:
            names = [deploy(app, page(f"version{number}")) for number in range(7)]
            assert releases(app) == names[-KEEP:]
            print(f"seven deployments later there are {', '.join(releases(app))}, and {current(app)} is served")
            print(f"back to {go_back(app)}, whose successor stays for a second try")
            assert current(app) == names[-2]

            def broken(new: Path) -> None:
                (new / "index.html").write_text("half a page")
                raise ValueError("the template has a mistake")

            try:
                deploy(app, broken)
            except ValueError as exc:
                print(f"a deployment failed ({exc}): {current(app)} is still served, and nothing of it is left")
            assert releases(app) == names[-KEEP:]
        finally:
            gone.set()
            visitor.join()
            server.shutdown()
    assert all(word == "first" or word.startswith("version") for word in seen), "a visitor saw something else"


if __name__ == "__main__":
    main()
