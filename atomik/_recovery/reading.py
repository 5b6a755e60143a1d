"""A reader that never sees half of a transaction."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from atomik import errors
from atomik._folder.directory import Directory, open_as_given
from atomik._folder.lock import deadline_of, now
from atomik._protocol.locks import close_all, lock_all
from atomik._system import kernel

from .unfinished_journal import wait_or_recover


@contextmanager
def reading(*folders: str | os.PathLike[str], lock_timeout: float | None = 60.0) -> Iterator[None]:
    """Keep transactions out while the block reads from `folders` (P6).

    >>> with atomik.reading("out"):
    ...     model, index = load("out/model.bin"), load("out/index.json")

    :param folders: str or path objects: the folders that hold the destinations (their parents), or folders that are
        published as a whole.  The locks are shared: readers do not stop each other.
    :param float lock_timeout: seconds to wait for a transaction in the middle of its commit.
    :returns: a context manager.
    :raises atomik.errors.MissingPathError, atomik.errors.WrongKindError, atomik.errors.AccessDeniedError: a folder cannot
        be opened.
    :raises atomik.errors.LockTimeoutError: a transaction held a folder for longer.
    :raises atomik.errors.JournalError, atomik.errors.UndecidedError, atomik.errors.RollbackError: there is a dead
        transaction's journal that could not be recovered.

    Guarantee: inside the block, every transaction of several items in these folders is either completely visible or not at
    all, and neither the folders nor a folder in them is replaced.  What a dead transaction left is recovered first.  A single
    file is atomic by itself and does not wait.  Limit: programs that write without atomik do not wait either.  Source:
    flock(2); the lock ends with the process.
    """
    held: list[Directory] = []
    deadline = deadline_of(lock_timeout)
    try:
        try:
            with kernel.typed("cannot lock for reading", os.fsdecode(folders[0]) if folders else ""):
                while not _locked(held, folders, lock_timeout, deadline):
                    close_all(held)
                    held.clear()
            yield
        finally:
            close_all(held)
    finally:  # again, for something may have arrived on the way in: no lock waits for the end of a traceback
        close_all(held)


def _locked(
    held: list[Directory], folders: tuple[str | os.PathLike[str], ...], timeout: float | None, deadline: float
) -> bool:
    """Open the folders into `held` and lock them; False to open them again, because one was recovered or replaced."""
    held.extend(open_as_given(folder, "cannot read from the folder") for folder in folders)
    unfinished = lock_all(held, timeout, deadline, shared=True)
    if unfinished is not None:  # nobody can commit there under our lock, so its owner is dead
        wait_or_recover(unfinished, None if timeout is None else max(0.0, deadline - now()))
        return False
    moved = next((directory for directory in held if not directory.still_there()), None)
    if moved is not None and now() >= deadline:
        text = f"the folder was replaced again and again for {timeout:g} s; raise lock_timeout"
        errors.fail(errors.LockTimeoutError, errno.ETIMEDOUT, text, moved.path)
    return moved is None  # else the lock belongs on the folder that is there now
