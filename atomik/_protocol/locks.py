"""The locks on all folders of a transaction, taken together.

::

    unfinished = lock_all(parents, timeout)      # None: every lock is held
    if unfinished is not None:                   # no lock is held: settle the journal in that folder, then lock again
        wait_or_recover(unfinished, …)
    …
    unlock_all(parents)

Locks are taken in one global order, by (st_dev, st_ino) (I8).  A journal that is found under the locks belongs to a dead
owner, or to one that uses other locks; recovering it takes locks of its own, so ours are released first.
"""

from __future__ import annotations

import operator

from atomik._folder.directory import Directory
from atomik._folder.lock import deadline_of
from atomik._hidden_names import JOURNAL_NAME
from atomik._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: the order of locks (I8): by (st_dev, st_ino), and the mount id, which decides nothing about a lock
order = operator.attrgetter("place_key")


def in_order(directories: Iterable[Directory]) -> list[Directory]:
    """The folders in the order of locks (I8), each once: a second lock on the same folder would wait for the first."""
    return sorted({directory.place_key[:2]: directory for directory in directories}.values(), key=order)


def lock_all(
    directories: Iterable[Directory], timeout: float | None, deadline: float | None = None, *, shared: bool = False
) -> Directory | None:
    """Lock every folder.  None when all locks are held; else the folder with an unfinished journal, with no lock held.

    Raises `LockTimeoutError` after `timeout` seconds (or at `deadline`), with no lock held.
    """
    ordered = in_order(directories)
    deadline = deadline_of(timeout) if deadline is None else deadline
    try:
        for directory in ordered:
            directory.lock(timeout, deadline, shared=shared)
        for directory in ordered:
            if directory.exists(JOURNAL_NAME):
                unlock_all(ordered)
                return directory
    except BaseException:
        unlock_all(ordered)
        raise
    return None


def unlock_all(directories: Iterable[Directory]) -> None:
    """Release every lock.  A failure is no reason to keep the others, and the lock ends with the descriptor anyway."""
    for_each(directories, _unlock)


def close_all(directories: Iterable[Directory]) -> None:
    """Close every folder, which gives up its lock."""
    for_each(directories, _close)


def for_each(directories: Iterable[Directory], action: Callable[[Directory], None]) -> None:
    """Do it to each of them, last first, even if an exception arrives, and a second one while the first is handled; the
    exception is raised at the end.  `action` must be harmless when it is repeated."""
    left = list(directories)
    try:
        try:
            _each(left, action)
        finally:
            if left:
                _each(left, action)
    finally:
        if left:
            _each(left, action)


def _each(left: list[Directory], action: Callable[[Directory], None]) -> None:
    while left:
        action(left[-1])
        left.pop()


def _unlock(directory: Directory) -> None:
    if directory.fd >= 0:
        try:
            directory.unlock()
        except OSError as exc:
            if kernel.errno_of(exc) is None:
                raise


def _close(directory: Directory) -> None:
    try:
        directory.close()
    except OSError as exc:
        if kernel.errno_of(exc) is None:  # close(2) fails for what the barriers have said before
            raise
