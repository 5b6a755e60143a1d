"""A private mount namespace and a private scratch disk in memory, gone when the process is gone.

Order of calls: ask :func:`missing_root` and skip when it gives a reason; then
:func:`enter` (every part of the lab calls it by itself); then :func:`scratch`
for a fresh folder of one's own.

What can be relied on: nothing the lab mounts is seen outside this process and
its children. Scratch files live in a tmpfs that is mounted in that namespace
alone, so even SIGKILL frees them, and with them mounts and loop devices; all
that can stay is one empty folder, which the next lab process removes.

What can go wrong: a thread started before :func:`enter` stays in the old
namespace and sees none of the mounts, so call it from the main thread, early. A
child process that outlives its parent keeps the namespace alive: start children
with :func:`tests.support.lab.linux.die_with` or wait for them.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import weakref
from collections import Counter
from pathlib import Path
from typing import ClassVar

from tests.support.lab import linux

_PREFIX = "atomik-lab-"
_CAP_SYS_ADMIN = 21
_ESCAPED = re.compile(r"\\([0-7]{3})")


class _Private:
    """What this process knows about its namespace; empty until :func:`enter`."""

    pid: int | None = None
    root: Path | None = None
    hold: int | None = None
    foreign: ClassVar[Counter[str]] = Counter()


def have_root() -> bool:
    """Whether this process may mount: effective uid 0 with CAP_SYS_ADMIN, outside of a user namespace."""
    return missing_root() is None


def missing_root() -> str | None:
    """Why mounts cannot be made here, as a reason to skip; None when they can."""
    if os.geteuid() != 0:
        return "needs root for mounts"
    if not _effective_capabilities() >> _CAP_SYS_ADMIN & 1:
        return "needs CAP_SYS_ADMIN for mounts (an unprivileged container?)"
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        return "needs root outside of a user namespace for mounts"
    return None


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def enter() -> Path:
    """Enter the private mount namespace, once per process, and return the root of its scratch disk.

    Forked children share their parent's namespace and scratch disk, and calling
    this in them changes nothing. Raises PermissionError without the privilege.
    """
    if _Private.root is not None:
        return _Private.root
    _sweep()
    linux.unshare_mounts()
    # Systemd shares "/" with everybody: without this our mounts would show on the host.
    linux.mount("none", "/", "none", linux.MS_REC | linux.MS_PRIVATE)
    _Private.foreign = Counter(mount_points())
    root, _Private.hold = _held_folder()
    linux.mount("atomik-lab", root, "tmpfs", 0, "mode=755,size=8g")
    _Private.pid, _Private.root = os.getpid(), root
    atexit.register(_leave)
    return root


def scratch(name: str) -> Path:
    """A fresh empty folder on the scratch disk; its name starts with ``name``."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=enter()))
    folder.chmod(0o755)
    return folder


def remove_with(owner: object, folder: Path) -> None:
    """Delete a scratch folder when ``owner`` is no longer referenced in this process."""
    weakref.finalize(owner, _remove, folder, os.getpid()).atexit = False


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def mount_points() -> list[str]:
    """Every mount point of this process's namespace, in mount order (a later one may be on an earlier)."""
    lines = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).splitlines()
    return [_ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), line.split(" ")[4]) for line in lines]


def lab_mounts() -> list[str]:
    """The mount points made since :func:`enter`, in mount order; the scratch disk itself is the first."""
    seen = _Private.foreign.copy()
    ours = []
    for point in mount_points():
        if seen[point]:
            seen[point] -= 1
        else:
            ours.append(point)
    return ours


def mounts_outside() -> str:
    """The mounts of process 1, which never entered; nothing where that is this process itself, or shows them to nobody."""
    if os.getpid() == 1:
        return ""
    with contextlib.suppress(PermissionError):
        return Path("/proc/1/mountinfo").read_text()
    return ""


def drop_inherited_mounts() -> None:
    """In a forked server: leave the shared namespace and let go of all the lab's mounts.

    A server whose namespace held a copy of a mount would keep it busy after its
    owner detached it, and one that is on the server's own files could never
    end: to unmount it, the kernel would have to ask the dying server.
    Files that the server holds open stay usable.
    """
    linux.unshare_mounts()
    for point in reversed(lab_mounts()):
        linux.umount(point, linux.MNT_DETACH)


def _leave() -> None:
    """At a normal end: let go of whatever is mounted, so that the folder can be removed."""
    if _Private.pid != os.getpid() or _Private.root is None:
        return  # a forked child: the mounts are its parent's
    for point in reversed(lab_mounts()):
        with contextlib.suppress(OSError):
            linux.umount(point, linux.MNT_DETACH)
    with contextlib.suppress(OSError):
        _Private.root.rmdir()


def _held_folder() -> tuple[Path, int]:
    """An empty folder to mount the scratch disk on, and the descriptor whose flock says that we live."""
    for _ in range(100):
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            return folder, _lock(folder)
        # Swept away by another lab process before it was locked: once more.
    raise RuntimeError("other lab processes keep removing this one's folder")


def _lock(folder: Path) -> int:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()
    except OSError:
        os.close(fd)
        raise
    return fd


def _sweep() -> None:
    """Remove the empty folders of lab processes that were killed.

    Only unlocked ones: removing a folder detaches what another namespace has mounted on it.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            fd = _lock(folder)
            try:
                folder.rmdir()
            finally:
                os.close(fd)
