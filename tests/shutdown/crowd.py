"""A crowd of processes that publish generation after generation, and say so when one is committed.

A *generation* is four outputs of different kinds in two folders, all with the same text in them.  `seen` is what they
show; `whole` says whether that is one generation.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from attrs import define, field

import atomik
from tests.support.lab import linux


def publish(root: Path, text: str, *, durable: bool) -> None:
    """One generation: a file, a folder with a link in it, a symlink, and a file by name."""
    with atomik.transaction(overwrite=True, durable=durable) as tx:
        tx.file(root / "a" / "file").write(text)
        folder = tx.folder(root / "b" / "folder")
        (folder / "leaf").write_text(text)
        (folder / "link").symlink_to(text)
        tx.symlink(root / "a" / "link", text)
        tx.path(root / "b" / "named").write_text(text)


def prepare(root: Path, text: str) -> None:
    """The folders, and the generation that is there before."""
    (root / "a").mkdir(parents=True)
    (root / "b").mkdir()
    publish(root, text, durable=True)


def seen(root: Path) -> list[str]:
    """What the outputs say."""
    return [
        (root / "a" / "file").read_text(),
        (root / "b" / "folder" / "leaf").read_text(),
        os.readlink(root / "b" / "folder" / "link"),
        os.readlink(root / "a" / "link"),
        (root / "b" / "named").read_text(),
    ]


def whole(root: Path) -> str:
    """The generation that is there; AssertionError when it is half of one."""
    found = seen(root)
    assert len(set(found)) == 1, f"half of one, half of another: {found}"
    return found[0]


def recover(root: Path) -> None:
    """Recover, and check that nothing is left over and nothing more has to be done."""
    atomik.recover(root / "a", root / "b", lock_timeout=10)
    left = [name for folder in ("a", "b") for name in os.listdir(root / folder) if name.startswith(".atomik")]
    assert not left, left
    assert not atomik.recover(root / "b", root / "a", lock_timeout=10).items


@define
class Member:
    """One process, publishing in `root`; ``told`` is the last generation whose commit had returned."""

    root: Path
    durable: bool
    label: str
    pid: int = field(init=False)
    pipe: int = field(init=False)
    told: int = field(default=-1, init=False)
    _rest: bytes = field(default=b"", init=False)

    def __attrs_post_init__(self) -> None:
        self.pipe, writer = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(writer)
        os.close(writer)

    def _live(self, writer: int) -> None:
        try:
            linux.die_with_parent()
            for generation in range(1_000_000):
                publish(self.root, f"{self.label}.{generation}", durable=self.durable)
                os.write(writer, f"{generation}\n".encode())
        except BaseException:  # the filesystem went away under it: what is on disk will say what that means
            pass
        finally:
            os._exit(1)

    def listen(self) -> None:
        """Read what it has reported so far, without waiting."""
        while select.select([self.pipe], [], [], 0)[0]:
            data = os.read(self.pipe, 65536)
            if not data:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            if lines:
                self.told = int(lines[-1])

    def wait_for(self, more: int) -> None:
        """Wait until it has reported `more` further generations (or is dead)."""
        goal = self.told + more
        while self.told < goal:
            ready, _, _ = select.select([self.pipe], [], [], 20)
            before = self.told
            self.listen()
            if not ready or self.told == before:
                return

    def kill(self) -> None:
        """SIGKILL it, and read what it had reported."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.listen()
        os.close(self.pipe)


@contextlib.contextmanager
def crowd(roots: list[Path], *, durable: bool) -> Iterator[list[Member]]:
    """One process for each root (several may share one); all dead at the end of the block."""
    members: list[Member] = []
    try:
        for number, root in enumerate(roots):
            members.append(Member(root, durable, str(number)))
        yield members
    finally:
        for member in members:
            member.kill()


def idle(rng: random.Random, longest: float) -> None:
    """Let some random time go by, so that the crash comes at any moment: this waits for nothing."""
    select.select([], [], [], rng.random() * longest)
