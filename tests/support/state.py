"""What a test looks at and compares: trees, descriptors, children, names of ours; and work done in a child process."""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import pickle
import pkgutil
import stat
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import atomik

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 65534


def descriptors() -> dict[int, str]:
    """The open descriptors of this process, and where each leads; of a device the number, for its path may be of another
    mount namespace."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists them
            status, target = os.fstat(int(name)), os.readlink(f"/proc/self/fd/{name}")
            found[int(name)] = f"device {status.st_rdev}" if stat.S_ISCHR(status.st_mode) else target
    return found


def child_processes() -> set[str]:
    """The ids of this process's children."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            found.update((task / "children").read_text().split())
    return found


def left_in(top: Path) -> list[str]:
    """Every name of atomik's anywhere below `top`."""
    return sorted(
        os.path.join(where, name)
        for where, folders, files in os.walk(top)
        for name in (*folders, *files)
        if name.startswith(".atomik")
    )


def tree(top: Path | str) -> dict[str, Any]:
    """What is below `top`, to compare: type, mode, owner and content of everything, except for times and inodes."""
    found: dict[str, Any] = {}
    for where, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(where, name)
            stat = path.lstat()
            content: Any = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            found[str(path.relative_to(top))] = (oct(stat.st_mode), stat.st_uid, stat.st_gid, content)
    return dict(sorted(found.items()))  # folders list their names in an order of their own


def identity(path: Path | str) -> tuple[int, int, int]:
    """What any change of a file changes: its inode and its times, except for the one that reading sets."""
    found = os.lstat(path)
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def in_child(function: Callable[..., Any], *args: Any, become: int | None = None) -> Any:
    """Run `function` in a forked child and return its result; an exception of its own is raised here.

    With `become`, the child first gives up root for that user and group id, and all other groups.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os._exit(_child(writer, function, args, become))
    os.close(writer)
    return _answer(pid, reader)


def _answer(pid: int, reader: int) -> Any:
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with status {status}"
    good, value = pickle.loads(data)
    if not good:
        raise value
    return value


def _child(writer: int, function: Callable[..., Any], args: tuple[Any, ...], become: int | None) -> int:
    try:
        if become is not None:
            _load_everything()
            os.setgroups([])
            os.setresgid(become, become, become)
            os.setresuid(become, become, become)
        answer = (True, function(*args))
    except BaseException as exc:
        answer = (False, exc)
    try:
        data = pickle.dumps(answer)
    except Exception as exc:  # noqa: BLE001  whatever it is: it must not come out of the fork as a second parent
        data = pickle.dumps((False, AssertionError(f"cannot send {answer!r}: {exc!r}")))
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(data)
    return 0


def _load_everything() -> None:
    """What the library loads only when it is needed may lie where another user cannot read it."""
    for module in pkgutil.walk_packages(atomik.__path__, "atomik."):
        if "fsspec" not in module.name and module.name != "atomik.__main__":
            importlib.import_module(module.name)


def in_children(*work: Callable[[], Any]) -> list[Any]:
    """Run each in a forked child of its own, all at the same time; their results in the same order."""
    started = []
    for function in work:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os._exit(_child(writer, function, (), None))
        os.close(writer)
        started.append((pid, reader))
    return _answers(started)


def _answers(started: list[tuple[int, int]]) -> list[Any]:
    """The answer of each child; all are waited for before an exception of one of them is raised."""
    answers: list[Any] = []
    failed: list[BaseException] = []
    for pid, reader in started:
        try:
            answers.append(_answer(pid, reader))
        except BaseException as exc:
            failed.append(exc)
    if len(failed) > 1:
        raise BaseExceptionGroup("several children failed", failed)
    if failed:
        raise failed[0]
    return answers


def eventually(true: Callable[[], object], seconds: float = 60.0) -> bool:
    """Whether it becomes true: asked again and again, for far longer than a busy machine needs."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def tick(folder: Path) -> None:
    """Wait until the filesystem's clock has gone on: what changes from now on has another ctime than what is there."""
    scratch = folder / "tick"
    scratch.touch()
    before = scratch.stat().st_ctime_ns

    def ticked() -> bool:
        scratch.chmod(0o600)
        return scratch.stat().st_ctime_ns > before

    try:
        assert eventually(ticked), "the clock of the filesystem stands still"
    finally:
        scratch.unlink()


class Rounds:
    """A meeting point of processes: each says which round it is in, and waits for the others.

    Waiting spins first, so that all go on at nearly the same moment; then it sleeps, so that the process that is
    waited for gets the processor, however low its priority.
    """

    PATIENCE = 120.0  # seconds, after which a process counts as dead

    def __init__(self, members: int) -> None:
        self._shared = mmap.mmap(-1, 8 * members)
        self._members = members

    def meet(self, member: int, number: int) -> None:
        """Return when all members have come to round `number` (from 1)."""
        self.say(member, number)
        for other in range(self._members):
            self.wait(other, number)

    def wait(self, other: int, number: int) -> None:
        """Return when `other` has come to round `number`."""
        deadline = time.monotonic() + self.PATIENCE
        turns = 0
        while self.of(other) < number:
            turns += 1
            if turns < 200:
                os.sched_yield()
            elif time.monotonic() < deadline:
                time.sleep(0.0005)
            else:
                raise TimeoutError(f"process {other} never came to round {number}: it is in round {self.of(other)}")

    def say(self, member: int, number: int) -> None:
        """Set the round without waiting."""
        struct.pack_into("q", self._shared, 8 * member, number)

    def of(self, member: int) -> int:
        """The round that a member is in."""
        return int(struct.unpack_from("q", self._shared, 8 * member)[0])
