"""The few Linux calls the lab needs and Python 3.11 does not offer, as typed functions that raise OSError.

Nothing here knows what it is used for. The lab has bindings of its own, and not
those of the library under test, so that a fault there cannot hide itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CLONE_NEWNS = 0x00020000

MS_RDONLY = 1
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

UMOUNT_NOW = 0
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

AT_FDCWD = -100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)

StrPath = str | os.PathLike[str]


def _check(result: int, *names: StrPath) -> None:
    """Raise the OSError of the last libc call when its ``result`` says that it failed."""
    if result < 0:
        code = ctypes.get_errno()
        shown = " -> ".join(os.fspath(name) for name in names if os.fspath(name))
        raise OSError(code, os.strerror(code), shown or None)


def mount(source: StrPath, target: StrPath, fstype: str, flags: int = 0, options: str = "") -> None:
    """mount(2). ``options`` is the comma-separated string of the filesystem itself."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            fstype.encode(),
            flags,
            options.encode() or None,
        ),
        source,
        target,
    )


def umount(target: StrPath, flags: int = UMOUNT_NOW) -> None:
    """umount2(2); never follows a symlink at ``target``."""
    _check(_libc.umount2(os.fsencode(target), flags | UMOUNT_NOFOLLOW), target)


def unshare_mounts() -> None:
    """Give the calling thread (and its later children) a mount namespace of its own."""
    _check(_libc.unshare(CLONE_NEWNS))


def die_with_parent() -> None:
    """Have the kernel SIGKILL this process when the thread that started it ends (PR_SET_PDEATHSIG).

    Survives execve, is cleared by fork, and is ignored for set-user-ID programs.
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))


def be_dumpable() -> None:
    """Let the programs of this user look at this process in /proc again, after it has changed its user (PR_SET_DUMPABLE)."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))


def die_with(parent: int) -> Callable[[], None]:
    """A ``preexec_fn`` for subprocess: the program dies with process ``parent``, however that one ends.

    Covers the gap between fork and prctl, too: whoever was orphaned in it ends at once.
    """

    def tie() -> None:
        die_with_parent()
        if os.getppid() != parent:
            os._exit(1)

    return tie


def renameat2(
    source: StrPath | bytes,
    target: StrPath | bytes,
    flags: int,
    *,
    source_folder: int = AT_FDCWD,
    target_folder: int = AT_FDCWD,
) -> None:
    """renameat2(2); relative names are taken from the open folders, by default from the working folder."""
    _check(
        _libc.renameat2(source_folder, os.fsencode(source), target_folder, os.fsencode(target), flags),
        os.fsdecode(source),
        os.fsdecode(target),
    )


def syncfs(fd: int) -> None:
    """Write out everything dirty on the filesystem that holds the open file ``fd``."""
    _check(_libc.syncfs(fd))


def sync_filesystem(path: StrPath) -> None:
    """:func:`syncfs` for the filesystem that holds ``path``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syncfs(fd)
    finally:
        os.close(fd)
