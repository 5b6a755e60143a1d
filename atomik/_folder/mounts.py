"""Is there a mount in a folder that is about to be displaced, copied or deleted?

A folder with a mount inside cannot be renamed away (EBUSY in this namespace), and what is mounted there belongs to
somebody else.  The table of mounts, /proc/self/mountinfo (proc_pid_mountinfo(5)), tells before anything is touched.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from atomik._system import kernel

if TYPE_CHECKING:
    from .directory import Directory
    from .place import Place

_TO_ESCAPE = re.compile(rb"[ \t\n\\]")
_ESCAPED = re.compile(rb"\\([0-7]{3})")


def has_foreign_mount(place: Place) -> str | None:
    """The path of a mount that lies on or below `place`, in this process's mount namespace; None when there is none.

    Where /proc is missing nothing is known, and the answer is None.
    """
    return mount_at_or_below(place.directory, place.name)


def mount_at_or_below(directory: Directory, name: str = "") -> str | None:
    """The same for a name in a folder, or for what lies below the folder itself when there is no name."""
    try:
        here = os.fsencode(directory.real_path())
        table = _mount_table()
    except FileNotFoundError:
        return None
    top = (here.rstrip(b"/") + b"/" + os.fsencode(name)).rstrip(b"/") if name else here.rstrip(b"/")
    shown = b" " + _TO_ESCAPE.sub(lambda char: b"\\%03o" % ord(char[0]), top)
    if shown + b"/" not in table and (not name or shown + b" " not in table):
        return None  # the common case, without parsing
    for line in table.splitlines():
        point = _ESCAPED.sub(lambda octal: bytes([int(octal[1], 8)]), line.split(b" ", 5)[4])
        if (point.startswith(top + b"/") or (name and point == top)) and _visible(directory, point):
            return os.fsdecode(point)
    return None


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
    except FileNotFoundError:
        return False
    except OSError:  # nobody can look (no search permission, a dead server): better too careful
        return True
    try:
        found = port.statx(fd)
        return (found.dev, found.mount) != (directory.dev, directory.mount)
    finally:
        port.close(fd)
