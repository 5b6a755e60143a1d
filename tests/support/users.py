"""Do something as another user, in a child process, and hear what came of it."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NOBODY = 65534


def root(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs root; skipped elsewhere."""
    why = "needs root to give files away and to become another user"
    return pytest.mark.root(pytest.mark.skipif(os.geteuid() != 0, reason=why)(test))


def as_user(uid: int, work: Callable[[], object], groups: tuple[int, ...] = ()) -> str:
    """The repr of what `work` returns in a forked child that has become `uid`, or of what it raised."""

    def become() -> None:
        os.setgroups(list(groups))
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)

    return _in_child(become, work)


#: numbers of capabilities(7)
CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETFCAP = 0, 1, 2, 3, 4, 31


def without(capabilities: Iterable[int], work: Callable[[], object]) -> str:
    """The same in a child that has given up some capabilities for good."""
    return _in_child(lambda: _drop(capabilities), work)


def _drop(capabilities: Iterable[int]) -> None:
    """capset(2): permitted and effective without these, nothing inheritable."""
    with open("/proc/self/status") as file:
        kept = next(int(line.split()[1], 16) for line in file if line.startswith("CapPrm"))
    for number in capabilities:
        kept &= ~(1 << number)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def _in_child(become: Callable[[], None], work: Callable[[], object]) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            become()
            said = repr(work())
        except BaseException as exc:
            said = repr(exc)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(child, 0)
    return said
