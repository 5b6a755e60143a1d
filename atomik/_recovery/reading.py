"""A reader that never sees half of a transaction."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from atomik import errors
from atomik._folder.directory import Directory
from atomik._hidden_names import JOURNAL_NAME

from . import unfinished_journal as _wait_or_recover


@contextmanager
def reading(*folders: str | os.PathLike[str], lock_timeout: float = 60.0) -> Iterator[None]:
    """Hold transactions off while the block reads from `folders` (P6).

    >>> with atomik.reading("out"):
    ...     model, index = load("out/model.bin"), load("out/index.json")

    :param folders: str or path objects: the folders that hold the destinations (their parents).  Shared locks: readers do
        not stop each other.
    :param float lock_timeout: seconds to wait for a transaction in the middle of its commit.
    :returns: a context manager that gives nothing.
    :raises atomik.errors.MissingPathError, atomik.errors.WrongKindError, atomik.errors.AccessDeniedError: a folder cannot
        be opened.
    :raises atomik.errors.LockTimeoutError: a transaction held a folder for longer.
    :raises atomik.errors.JournalError, atomik.errors.RollbackError: a dead transaction's journal lies there and could
        not be recovered.

    Guarantee: inside the block every transaction of several items in these folders is wholly visible or not at all; what a
    dead one left is recovered first.  One-item writes are atomic by themselves and are not held off.  Limit: programs that
    write without atomik are not held off either.  Source: flock(2); the lock goes with the process.
    """
    held: list[Directory] = []
    deadline = time.monotonic() + lock_timeout
    try:
        while True:
            held.extend(_open(os.path.join(os.getcwd(), os.fsdecode(folder))) for folder in folders)
            _lock_shared(sorted(held, key=lambda d: d.key), lock_timeout, deadline)
            moved = next((directory for directory in held if not directory.still_there()), None)
            if moved is None:
                break
            if time.monotonic() >= deadline:
                text = f"the folder was published anew again and again for {lock_timeout:g} s; raise lock_timeout"
                errors.fail(errors.LockTimeoutError, errno.ETIMEDOUT, text, moved.path)
            _close(held)  # published anew while we waited: the lock belongs on what is there now
        yield
    finally:
        _close(held)


def _open(path: str) -> Directory:
    try:
        return Directory.open(path)
    except OSError as exc:
        raise errors.system_error(exc, "cannot read from the folder", path) from exc


def _close(held: list[Directory]) -> None:
    while held:
        held.pop().close()


def _lock_shared(ordered: list[Directory], timeout: float, deadline: float) -> None:
    """Shared locks in the global order (I8); a journal found under them is a dead transaction's."""
    while True:
        for directory in ordered:
            directory.lock(timeout, deadline, shared=True)
        hot = next((directory for directory in ordered if directory.exists(JOURNAL_NAME)), None)
        if hot is None:
            return
        for directory in ordered:
            directory.unlock()
        _wait_or_recover.wait_or_recover(hot, max(0.0, deadline - time.monotonic()))
