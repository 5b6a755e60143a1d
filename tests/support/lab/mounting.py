"""Mount, unmount and look: the small steps from which :mod:`tests.support.lab.mounts` is built.

:func:`attached` is the one place that lets go of mounts. What is still busy when
its block ends is detached nevertheless, and reported, because it means that the code
under test has left a file open.
"""

from __future__ import annotations

import contextlib
import errno
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.lab import linux

if TYPE_CHECKING:
    from collections.abc import Iterator

_BUSY_WAITS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.3, *[1] * 30)


class StillInUseError(RuntimeError):
    """A mount was busy when its time was over: a descriptor or working folder was left in it."""


@contextlib.contextmanager
def attached(source: linux.StrPath, point: Path, fstype: str, flags: int = 0, options: str = "") -> Iterator[Path]:
    """Have ``source`` mounted on ``point`` for the length of the block.

    Raises StillInUseError at the end if files there are still open (unless the
    block raises something of its own); the mount is gone in any case.
    """
    linux.mount(source, point, fstype, flags, options)
    try:
        yield point
    except BaseException:
        detach(point)
        raise
    unmount(point)


def unmount(point: Path) -> None:
    """Unmount ``point``; if it stays busy, detach it and raise StillInUseError with the open files' names.

    Waits for the kernel to finish off processes that were just killed: as long as nobody can be seen to use it, 30 s.
    """
    for wait in _BUSY_WAITS:
        try:
            linux.umount(point)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if wait == 1 and _open_below(point):
                break
            time.sleep(wait)
        else:
            return
    open_files = _open_below(point)
    linux.umount(point, linux.MNT_DETACH)
    raise StillInUseError(f"{point} was still in use when it was to be unmounted: {open_files or 'unknown by whom'}")


def detach(point: Path) -> None:
    """Take ``point`` out of the tree at once, used or not; nothing happens if it is not mounted."""
    with contextlib.suppress(OSError):
        linux.umount(point, linux.MNT_DETACH)


def remount(point: Path, *, read_only: bool, superblock: bool = False) -> None:
    """Make the mount at ``point`` read-only or writable.

    By default only this mount; with ``superblock=True`` the filesystem itself,
    everywhere it is mounted. OSError (EBUSY) while a file is open for writing there.
    """
    flags = linux.MS_REMOUNT | (linux.MS_RDONLY if read_only else 0) | (0 if superblock else linux.MS_BIND)
    linux.mount("none", point, "none", flags)


@contextlib.contextmanager
def read_only(point: Path, *, superblock: bool = False) -> Iterator[None]:
    """Have the mount at ``point`` read-only for the length of the block; see :func:`remount`."""
    remount(point, read_only=True, superblock=superblock)
    try:
        yield
    finally:
        remount(point, read_only=False, superblock=superblock)


def _open_below(point: Path) -> list[str]:
    """Files that any process has open, works in or maps below ``point``, as "pid: path"."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for link in (process / "cwd", *(process / "fd").iterdir()):
                with contextlib.suppress(OSError):
                    target = link.readlink()
                    if target.is_relative_to(point):
                        found.append(f"{process.name}: {target}")
    return found
