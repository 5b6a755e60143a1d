"""A Landlock sandbox (landlock(7)), for a forked child: it can never be left again."""

from __future__ import annotations

import ctypes
import os
import struct

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_REFER = 1 << 13
#: LANDLOCK_ACCESS_FS_…
RIGHTS = {"REMOVE_DIR": 1 << 4, "REMOVE_FILE": 1 << 5, "MAKE_DIR": 1 << 7, "MAKE_REG": 1 << 8, "REFER": _REFER}
_HANDLED = (1 << 14) - 1


def version() -> int:
    """The version of Landlock here; 0 or less where there is none."""
    return int(ctypes.CDLL(None).syscall(_CREATE, None, ctypes.c_size_t(0), 1))


def enter(*without: str, refer: bool = True, closed: str | None = None) -> None:
    """Allow everything below / from now on, but the rights `without` and renaming between folders unless `refer`, and nothing
    below `closed`."""
    libc = ctypes.CDLL(None, use_errno=True)
    rules = libc.syscall(_CREATE, struct.pack("=Q", _HANDLED), ctypes.c_size_t(8), 0)
    allowed = _HANDLED if refer else _HANDLED & ~_REFER
    for right in without:
        allowed &= ~RIGHTS[right]
    tops = ["/"] if closed is None else [f"/{name}" for name in os.listdir("/") if f"/{name}" != closed]
    for top in tops:
        if os.path.isdir(top) and not os.path.islink(top):
            fd = os.open(top, os.O_PATH)
            libc.syscall(_ADD, rules, 1, struct.pack("=Qi", allowed, fd), 0)
            os.close(fd)
    if libc.prctl(38, 1, 0, 0, 0) or libc.syscall(_RESTRICT, rules, 0):
        raise OSError(ctypes.get_errno(), "no Landlock here")
