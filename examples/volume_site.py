"""Publish into a folder that has to stay: a container's volume, a mount point, the working directory of a server.

    python examples/volume_site.py [FOLDER]          # default: ./volume

A server has the folder as its working directory, as in a container where the folder is a volume.  Such a folder cannot be
exchanged for another one; and if it were, the server would stay in the old one.  With ``in_place=True`` the folder itself
stays.  The new site is built inside it, in a private folder, and its entries are swapped by one transaction: all or nothing,
even after a crash.  For other observers the change is not one instant, but new pages come before old ones are removed, and a
program that reads inside `atomik.reading` sees one version.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import atomik

_SERVER = """
import http.server, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass
with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
"""


def deploy(volume: Path, version: str) -> atomik.Receipt:
    """Publish the pages of one version; each asks for a file that only this version has."""
    output = atomik.folder(volume, overwrite=True, in_place=True)
    with output as new:
        (new / "index.html").write_text(f"style-{version}.css")
        (new / f"style-{version}.css").write_text(f"/* {version} */")
        (new / "news").mkdir()
        for number in range(20):
            (new / "news" / f"{number}.html").write_text(f"news of {version}")
    assert output.receipt is not None
    return output.receipt


class Visitor(threading.Thread):
    """Asks for the first page and for what it refers to, all the time."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address, self.seen, self.bad = address, set[str](), list[str]()
        self.gone = threading.Event()

    def get(self, page: str) -> str:
        with urllib.request.urlopen(self.address + page, timeout=30) as answer:
            return str(answer.read().decode())

    def run(self) -> None:
        while not self.gone.is_set():
            try:
                self.seen.add(self.get("index.html"))
            except OSError as exc:
                self.bad.append(str(exc))


def main() -> None:
    volume = Path(sys.argv[1] if len(sys.argv) > 1 else "volume").absolute()
    volume.mkdir(exist_ok=True)
    deploy(volume, "one")
    inode = volume.stat().st_ino
    server = subprocess.Popen([sys.executable, "-c", _SERVER], cwd=volume, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        visitor = Visitor(f"http://127.0.0.1:{server.stdout.readline().strip()}/")
        visitor.start()
        for number in range(5):
            receipt = deploy(volume, f"two-{number}")
            with atomik.reading(volume):  # one version, as long as the block lasts
                assert (volume / (volume / "index.html").read_text()).exists()
        visitor.gone.set()
        visitor.join()
        assert visitor.get((volume / "index.html").read_text()) == "/* two-4 */"
    finally:
        server.terminate()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()
    assert not visitor.bad, visitor.bad[0]
    assert volume.stat().st_ino == inode
    print("\n".join(f"{item.op} {Path(item.path).name}" for item in receipt.items))
    print("the server never left its folder, and no visitor missed the first page")


if __name__ == "__main__":
    main()
