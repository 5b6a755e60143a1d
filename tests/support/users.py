"""Do something as another user, in a child process, and hear what came of it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NOBODY = 65534

#: numbers of capabilities(7)
CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, SYS_ADMIN, MKNOD, SETFCAP = (
    0, 1, 2, 3, 4, 6, 7, 21, 27, 31,
)  # fmt: skip
_PR_SET_DUMPABLE = 4


# --- what this process may do -----------------------------------------------------------------------------------------
# User 0 of a container has few capabilities, and user 0 of a user namespace may have no other users.
def no_root() -> str | None:
    """Why this process is no root that can give files away and become another user, as a reason to skip; None if it is."""
    if os.geteuid() != 0:
        return "needs root to give files away and to become another user"
    if any(not has_capability(number) for number in (CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID)):
        return "this root lacks the capabilities to give files away and to become another user"
    if _alone():
        return "this user namespace has no other users"
    return None


def no_admin() -> str | None:
    """Why this process cannot do what the kernel allows only CAP_SYS_ADMIN outside of a user namespace (``trusted.*``
    attributes, redirects of overlayfs), as a reason to skip; None if it can."""
    if os.geteuid() != 0 or not has_capability(SYS_ADMIN) or _in_user_namespace():
        return "needs root with CAP_SYS_ADMIN, outside of a user namespace"
    return None


def no_devices() -> str | None:
    """Why this process can make no devices, as a reason to skip; None if it can."""
    if not has_capability(MKNOD) or _in_user_namespace():
        return "needs root to make a device, outside of a user namespace"
    return None


def known(uid: int) -> int:
    """For ACLs: this user id, or that of this process where no other exists (a user namespace)."""
    return os.geteuid() if _alone() else uid


def has_capability(number: int) -> bool:
    """Whether it is in the effective set."""
    return bool(_capabilities("CapEff") >> number & 1)


def _capabilities(which: str) -> int:
    return next(int(line.split()[1], 16) for line in _told("status") if line.startswith(which))


def _alone() -> bool:
    """Whether most users have no id in this user namespace."""
    return any(sum(int(line.split()[2]) for line in _told(f"{kind}_map")) <= NOBODY for kind in ("uid", "gid"))


def _in_user_namespace() -> bool:
    return [line.split() for line in _told("uid_map")] != [["0", "0", "4294967295"]]


def _told(name: str) -> list[str]:
    return Path("/proc/self", name).read_text().splitlines()


needs_root = pytest.mark.skipif(no_root() is not None, reason=str(no_root()))


def root(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs root; skipped elsewhere."""
    return pytest.mark.root(needs_root(test))


# --- another user ----------------------------------------------------------------------------------------------------
def as_executed() -> None:
    """What exec(2) brings a process that has become another user: others of that user may look into its /proc again."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def as_user(uid: int, work: Callable[[], object], groups: tuple[int, ...] = ()) -> str:
    """The repr of what `work` returns in a forked child that has become `uid`, or of what it raised."""

    def become() -> None:
        os.setgroups(list(groups))
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)

    return _in_child(become, work)


def without(capabilities: Iterable[int], work: Callable[[], object]) -> str:
    """The same in a child that has given up some capabilities for good."""
    return _in_child(lambda: _drop(capabilities), work)


def _drop(capabilities: Iterable[int]) -> None:
    """capset(2): permitted and effective without these, nothing inheritable."""
    kept = _capabilities("CapPrm")
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
