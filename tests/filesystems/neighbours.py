"""A folder shared with another user, and what that user does there."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attrs import define

from tests.support.users import as_executed, needs_root

#: Two users without any privilege; the suite itself runs as root, or these tests are skipped.
STRANGER, VICTIM = 64001, 64002

root = needs_root


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Be another user for a moment: for what is done between two calls of the same process."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        as_executed()  # programs that this process starts use its /proc


@define
class Shared:
    """``base``: the stranger's folder, open to all; ``inner``: a folder in it, the stranger's too; ``outside``: a folder
    that the stranger cannot touch, and would like to."""

    base: Path
    inner: Path
    outside: Path

    def untouched(self) -> dict[str, tuple[Any, ...]]:
        """Everything about the outside: names, inodes, modes, owners, contents, and the ctimes that any change sets."""
        found = {}
        for where, folders, files in os.walk(self.outside):
            for name in (".", *folders, *files):
                path = Path(where, name)
                status = path.lstat()
                content = path.read_bytes() if path.is_file() else None
                found[str(path)] = (status.st_ino, status.st_mode, status.st_uid, status.st_ctime_ns, content)
        return found


@contextlib.contextmanager
def shared(owner: int = 0) -> Iterator[Shared]:
    """Such a place; the outside belongs to `owner`."""
    home = Path(tempfile.mkdtemp(prefix="atomik-shared-"))
    home.chmod(0o755)
    base, outside = home / "base", home / "outside"
    base.mkdir()
    (base / "inner").mkdir()
    (outside / "empty").mkdir(parents=True)
    for name in ("out", "secret", "report"):
        (outside / name).write_text(f"outside {name}")
        (outside / name).chmod(0o640)
    for path in (base, base / "inner"):
        os.chown(path, STRANGER, STRANGER)
        path.chmod(0o777)
    for path in (outside, *outside.iterdir()):
        os.chown(path, owner, owner)
    try:
        yield Shared(base, base / "inner", outside)
    finally:
        shutil.rmtree(home)


# --- attacks: each is one thing that the stranger does, at one moment --------------------------------------------------
Attack = Callable[[Shared], None]


def parent_for_link(place: Shared) -> None:
    """The parent makes room for a link to the outside."""
    place.inner.rename(_aside(place))
    place.inner.symlink_to(place.outside)


def parent_for_folder(place: Shared) -> None:
    """The parent makes room for another folder, whose entries lead outside."""
    place.inner.rename(_aside(place))
    place.inner.mkdir()
    place.inner.chmod(0o777)
    (place.inner / "out").symlink_to(place.outside / "out")
    (place.inner / "report").symlink_to(place.outside)


def ours_for_links(place: Shared) -> None:
    """Whatever of atomik's is left around makes room for a link to the outside."""
    for path in _ours(place):
        path.rename(_beside(path))
        path.symlink_to(place.outside / "secret" if path.name.count("-") > 1 else place.outside)


def ours_for_folders(place: Shared) -> None:
    """… for a folder that the stranger can read."""
    for path in _ours(place):
        path.rename(_beside(path))
        path.mkdir()
        path.chmod(0o777)


def ours_for_ways(place: Shared) -> None:
    """… for a folder in which every name that atomik has given out leads outside."""
    for path in _ours(place):
        path.rename(_beside(path))
        path.mkdir()
        for number in range(4):
            (path / f"{path.name}-{number}").symlink_to(place.outside)


def destination_for_link(place: Shared) -> None:
    """The destination becomes a link to the outside."""
    for name in ("out", "report"):
        _clear(place.inner / name)
        (place.inner / name).symlink_to(place.outside / name)


def destination_for_fifo(place: Shared) -> None:
    """The destination becomes a FIFO that nobody reads."""
    _clear(place.inner / "out")
    os.mkfifo(place.inner / "out")


def destination_for_folder(place: Shared) -> None:
    """The destination becomes a folder with a link in it."""
    _clear(place.inner / "out")
    (place.inner / "out").mkdir()
    (place.inner / "out" / "way").symlink_to(place.outside)


def back(place: Shared) -> None:
    """The parent is as it was."""
    _clear(place.inner)
    place.inner.mkdir()
    place.inner.chmod(0o777)


ATTACKS: tuple[Attack, ...] = (
    parent_for_link, parent_for_folder, ours_for_links, ours_for_folders, ours_for_ways, destination_for_link,
    destination_for_fifo, destination_for_folder,
)  # fmt: skip


def _aside(place: Shared) -> Path:
    return place.base / f"aside-{random.getrandbits(64):x}"


def _beside(path: Path) -> Path:
    """In the same folder, because a folder that its user may not write to cannot be moved to another."""
    return path.with_name(f"aside-{random.getrandbits(64):x}")


def _ours(place: Shared) -> list[Path]:
    return [path for folder in (place.base, place.inner) for path in folder.glob(".atomik-*") if not path.is_symlink()]


def _clear(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.rename(path.parents[1] / f"aside-{random.getrandbits(64):x}")


@contextlib.contextmanager
def racing(place: Shared, seed: int) -> Iterator[None]:
    """The stranger, in a process of his own, attacks as fast as he can."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _attack_for_ever(place, seed, writer)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"!", "the stranger did not begin"
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


def _attack_for_ever(place: Shared, seed: int, writer: int) -> None:
    try:
        os.setgroups([])
        os.setresgid(STRANGER, STRANGER, STRANGER)
        os.setresuid(STRANGER, STRANGER, STRANGER)
        dice = random.Random(seed)
        os.write(writer, b"!")
        while True:
            for attack in (dice.choice(ATTACKS), dice.choice(ATTACKS), back):
                with contextlib.suppress(OSError):
                    attack(place)
            if not dice.randrange(64):  # keep the folder small
                for path in place.base.rglob("aside-*"):
                    shutil.rmtree(
                        path, ignore_errors=True
                    ) if path.is_dir() and not path.is_symlink() else path.unlink()
    finally:
        os._exit(1)
