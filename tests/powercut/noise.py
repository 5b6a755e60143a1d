"""What other programs do in the meantime: kernels that sync something between atomik's own calls.

A missing barrier often does not show, because the next sync carries the forgotten change along.  It shows when something
else becomes durable in between, so a noise kernel acts right before each rename, each write of the journal and each
unlink.  "sync" makes everything durable before the first swap, so that what follows is logged by itself.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.powercut.histories import PREFIX
from tests.support.kernels import Acting, Call, installed
from tests.support.lab import linux

NOISES = (
    "quiet",
    "file",
    "syncfs",
    "folders",
    "parents",
    "private folders",
    "sync",
    "sync+file",
    "sync+parents",
    "sync+private folders",
)
"""The names `noise` knows; "random:SEED" is one more."""

_WHERE = "rename link_fd link pwrite unlink rmdir"


def is_swap(call: Call) -> bool:
    """Whether a rename or link changes a destination: one of its names is outside atomik's own."""
    return call.name in ("rename", "link_fd", "link") and any(
        f"/{PREFIX}" not in path and path.startswith("/") and "(deleted)" not in path for path in call.paths
    )


class Neighbour:
    """Another program on the same filesystem.  It syncs, and never touches what is atomik's."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.random = random.Random(name)
        self.swaps = 0
        self.at_once, _, self.what = name.rpartition("+") if "+" in name else ("", "", name)
        if name == "sync":
            self.at_once, self.what = "sync", "quiet"

    def __call__(self, call: Call) -> None:
        """Act before this call."""
        if is_swap(call):
            self.swaps += 1
            if self.swaps == 1 and self.at_once:
                linux.sync_filesystem(self.root)
                return
        if self.what.startswith("random"):
            self._something()
        else:
            self._do(self.what)

    def _something(self) -> None:
        if self.random.random() < 0.3:
            self._do(self.random.choice(("file", "file", "parents", "private folders", "one", "one", "syncfs")))

    def _do(self, what: str) -> None:
        actions: dict[str, Callable[[], None]] = {
            "quiet": lambda: None,
            "file": self._file,
            "syncfs": lambda: linux.sync_filesystem(self.root),
            "folders": lambda: self._folders(lambda name: True),
            "parents": lambda: self._folders(lambda name: PREFIX not in name),
            "private folders": lambda: self._folders(lambda name: PREFIX in name),
            "one": self._one,
        }
        actions[what]()

    def _file(self) -> None:
        fd = os.open(self.root.parent / "neighbour", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, b"noise" * 200)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _names(self) -> list[Path]:
        above = [Path(where, name) for where, names, _ in os.walk(self.root) for name in names]
        return [self.root, *sorted(path for path in above if not path.is_symlink())]

    def _folders(self, chosen: Callable[[str], bool]) -> None:
        for path in self._names():
            if chosen(path.name):
                _fsync(path)

    def _one(self) -> None:
        _fsync(self.random.choice(self._names()))


def _fsync(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def noise(root: Path, name: str) -> Iterator[Neighbour]:
    """Have a neighbour of this name at work on the filesystem of `root` for the length of the block."""
    neighbour = Neighbour(root, name)
    if name == "quiet":
        yield neighbour
        return
    with installed(Acting(_WHERE, neighbour)):
        yield neighbour
