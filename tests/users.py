"""Do something as another user, in a child process, and hear what came of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 65534


def root(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs root; skipped elsewhere."""
    why = "needs root to give files away and to become another user"
    return pytest.mark.root(pytest.mark.skipif(os.geteuid() != 0, reason=why)(test))


def as_user(uid: int, work: Callable[[], object], groups: tuple[int, ...] = ()) -> str:
    """The repr of what `work` returns in a forked child that has become `uid`, or of what it raised."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(list(groups))
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
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
