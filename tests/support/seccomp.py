"""A real seccomp filter, as container runtimes install them: chosen system calls are answered with an errno.

It can never be taken off again, so it belongs into a forked child (`tests.support.state.in_child`)::

    in_child(lambda: (refuse(errno.EPERM, "renameat2"), publish()))
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

import pytest

from atomik._system import machine

_LOAD, _IF_EQUAL, _IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000
_O_TMPFILE = 0x400000  # without the bit of O_DIRECTORY
_HERE = machine.interface(os.uname().machine, struct.calcsize("P"))

#: The numbers of the calls that nothing in atomik has to know.
_NAMES = (
    "linkat", "syncfs", "flock", "utimensat", "openat", "unshare", "inotify_init1", "mount", "mkdirat", "unlinkat",
    "newfstatat", "fcntl", "getdents64", "pread64", "pwrite64", "lseek", "fsync", "renameat", "fstatfs", "ioctl",
    "copy_file_range", "clock_nanosleep", "getrandom",
)  # fmt: skip
_OTHERS = {
    "x86_64": dict(zip(
        _NAMES, (265, 306, 73, 280, 257, 272, 294, 165, 258, 263, 262, 72, 217, 17, 18, 8, 74, 264, 138, 16, 326, 230, 318),
        strict=True,
    )),
    "generic": dict(zip(
        _NAMES, (37, 267, 32, 88, 56, 97, 26, 40, 34, 35, 79, 25, 61, 67, 68, 62, 82, 38, 44, 29, 285, 115, 278), strict=True,
    )),
}  # fmt: skip

needs_seccomp = pytest.mark.skipif(
    _HERE not in _OTHERS or platform.python_implementation() != "CPython", reason="no numbers for this machine"
)

#: What sandboxes refuse, as `refuse` names it.
CALLS = (
    "statx", "openat2", "renameat2", "O_TMPFILE", "linkat", "syncfs", "flock", "listxattrat", "utimensat",
    "name_to_handle_at", "fchmodat2",
)  # fmt: skip


def refuse(number: int, *calls: str) -> None:
    """Answer the calls with `number` from now on, in this process and its children, forever; 0: as if they were done."""
    code = [(_LOAD, 0, 0, 0)]
    for call in calls:
        if call == "O_TMPFILE":  # openat(2) with the flag in its third argument
            code += [
                (_IF_EQUAL, 0, 3, _OTHERS[str(_HERE)]["openat"]),
                (_LOAD, 0, 0, 32),
                (_IF_SET, 0, 1, _O_TMPFILE),
                (_RETURN, 0, 0, _ERRNO | number),
                (_LOAD, 0, 0, 0),
            ]
        else:
            known = _OTHERS[str(_HERE)].get(call) or machine.number(call, _HERE)
            assert known is not None, call
            code += [(_IF_EQUAL, 0, 1, known), (_RETURN, 0, 0, _ERRNO | number)]
    code.append((_RETURN, 0, 0, _ALLOW))
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, struct.pack("@HP", len(code), ctypes.addressof(program))):
        raise OSError(ctypes.get_errno(), f"no seccomp here ({errno.errorcode[ctypes.get_errno()]})")
