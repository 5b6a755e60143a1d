"""Is there a mount in a folder that is about to be displaced, copied or deleted?

A folder with a mount inside cannot be renamed away (EBUSY in this namespace), and what is mounted there is not part of it.
The table of mounts, /proc/self/mountinfo (proc_pid_mountinfo(5)), shows that before anything is touched.
"""

from __future__ import annotations

import errno
import os

from atomik._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from atomik._system.libc import Status

    from .directory import Directory

_ESCAPES = ((b"\\", b"\\134"), (b" ", b"\\040"), (b"\t", b"\\011"), (b"\n", b"\\012"))


def mount_at_or_below(
    directory: Directory, name: str = "", otherwise: Callable[[], str | None] | None = None
) -> str | None:
    """The path of a mount at or below a name in a folder, or without a name below the folder itself, in this process's mount
    namespace; None if there is none.

    Where /proc is missing, or a sandbox forbids it, the table of mounts cannot be read, and `otherwise` is asked; without
    that the answer is None, for code that compares the mounts of what it opens (`same_mount`).
    """
    try:
        here = os.fsencode(directory.real_path())
        table = _mount_table()
    except OSError as exc:
        if kernel.errno_of(exc) not in kernel.NO_PROC:
            raise
        return None if otherwise is None else otherwise()
    top = (here.rstrip(b"/") + b"/" + os.fsencode(name)).rstrip(b"/") if name else here.rstrip(b"/")
    shown = b" " + _escaped(top)
    if shown + b"/" not in table and (not name or shown + b" " not in table):
        return None  # the common case, without parsing
    for line in table.splitlines():
        point = _unescaped(line.split(b" ", 5)[4])
        if (point.startswith(top + b"/") or (name and point == top)) and _visible(directory, point):
            return os.fsdecode(point)
    return None


def mount_of(directory: Directory) -> tuple[str, str, str]:
    """(mount point, type of the filesystem, its options) of a folder's mount; type and options are "" where /proc does not
    tell."""
    point, up = directory.real_path(), ".."
    while point != "/" and same_mount(kernel.port.statx(directory.fd, up), directory):
        point, up = os.path.dirname(point), up + "/.."
    kind = options = ""
    for line in _lines_of_the_table():
        before, _, after = line.partition(b" - ")
        if _unescaped(before.split(b" ", 5)[4]) == os.fsencode(point):
            kind, _, options = (os.fsdecode(word) for word in after.split(b" ", 2))  # the last one is on top
    return point, kind, options


def same_mount(one: Directory | Status, other: Directory | Status) -> bool:
    """Whether two objects are certainly on one mount: if the mount ids cannot be found out, the answer is no."""
    return one.mount == other.mount != 0


def why_exdev(one: Directory, other: Directory) -> str:
    """What EXDEV between two folders means, for an error."""
    if one.dev != other.dev:
        return "they are on different filesystems"
    if one.mount and other.mount and one.mount != other.mount:
        return "they are on different mounts of one filesystem"
    return (
        "they are on one filesystem, so the cause is a sandbox that forbids renaming between folders (Landlock without "
        "REFER), the lower layer of an overlay, another project id (XFS, ext4), or another encryption key"
    )


def _lines_of_the_table() -> list[bytes]:
    try:
        return _mount_table().splitlines()
    except OSError as exc:
        if kernel.errno_of(exc) not in kernel.NO_PROC:
            raise
        return []


def _escaped(point: bytes) -> bytes:
    for char, octal in _ESCAPES:
        point = point.replace(char, octal)
    return point


def _unescaped(shown: bytes) -> bytes:
    first, *parts = shown.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts)


def _mount_table() -> bytes:
    port = kernel.port
    fd = port.open("/proc/self/mountinfo", os.O_RDONLY)
    try:
        table = b""
        while more := port.pread(fd, 1 << 16, len(table)):
            table += more
        return table
    finally:
        port.close(fd)


def _visible(directory: Directory, point: bytes) -> bool:
    """Whether the mount point is seen from here, and not hidden below another mount on the way to it."""
    port = kernel.port
    try:
        fd = port.open(os.fsdecode(point), os.O_PATH | os.O_NOFOLLOW)
    except OSError as exc:
        number = kernel.errno_of(exc)
        if number is None:
            raise
        return (
            number != errno.ENOENT
        )  # it cannot be looked up (no search permission, a dead server): better too careful
    try:
        return not same_mount(port.statx(fd), directory)
    finally:
        port.close(fd)
