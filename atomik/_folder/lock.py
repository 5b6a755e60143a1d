"""The flock(2) of a held folder: bounded waiting, fairness, and no waiting for oneself.

`lock`, `try_lock` and `unlock` are methods of `Directory`; they live here because locks are a subject of their own::

    folder.lock(60.0)                        # exclusive; LockTimeoutError after 60 s, None waits as long as it takes
    folder.lock(60.0, deadline, shared=True) # several folders that share the time: deadline = deadline_of(60.0)
    folder.try_lock(shared=True)             # only if that needs no waiting
    folder.unlock()

**Waiting for oneself.**  flock(2) belongs to the open file description, so a thread that opens a folder twice can wait
for its own lock: a signal handler that publishes while its own thread commits, or a publication inside ``reading`` of the
same folder.  A table of all locks that this process holds, with the thread that took each, detects that at once
(EDEADLK).  The limit: a lock that one thread takes and another releases counts for the one that took it.

**Fairness.**  flock(2) has no queue.  A writer that waits takes a *ticket*, the moment at which it came, and announces it
(`Kernel.announce_writer`); the sign goes with its descriptor, however it dies.

* A writer leaves a free lock to those with an earlier ticket, and one that comes while others wait gets in line.  The first
  in line checks often; the others check less often, the more are before them.  If a writer does not take its turn (it was
  stopped, or is not atomik: everyone who may read the folder can announce a ticket), it is passed over after `PATIENCE`
  seconds, and from then on by this process.
* A reader that comes later gives way, until a writer had its turn or `GIVE_WAY` is over (the reader may be one for whose end
  the writer waits).

Where tickets cannot be announced (NFS, Linux before 3.15), every writer is first in line, and luck decides.

**Time** is CLOCK_MONOTONIC, read by clock_gettime(2): libraries that freeze time for tests patch `time.monotonic` in every
module.  If even that clock stops, the time slept counts.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from _thread import get_ident

from atomik import errors
from atomik._hidden_names import random_bytes
from atomik._system import forked, kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, Protocol

    class Lockable(Protocol):
        """What a lock needs to know of a folder: a `Directory`."""

        fd: int
        path: str
        place_key: tuple[int, int, int]


_TRY_SHARED, _TRY_EXCLUSIVE = fcntl.LOCK_SH | fcntl.LOCK_NB, fcntl.LOCK_EX | fcntl.LOCK_NB

#: errno values of a filesystem or a kernel without locks (NFS without lockd: ENOLCK), or of a sandbox
NO_LOCKS = kernel.SANDBOXED | {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOLCK}

#: Seconds for which a newcomer lets a waiting writer go first.
GIVE_WAY = 1.0

#: Seconds for which an earlier ticket may stay unused before another waiter tries the lock.
PATIENCE = 0.25

#: Seconds between two attempts of the first in line, at the beginning and at most; the longer it waits, the longer it pauses.
_PAUSE, _LONGEST_PAUSE = 0.0003, 0.02
#: At most this many waiters before us are counted.
_COUNTED = 8

#: folder -> tickets before this one are not waited for: their owners did not take the lock when it was free
_passed_over: dict[tuple[int, int, int], int] = {}
#: thread -> what it calls while it waits for a lock; an exception of that ends the waiting
while_waiting: dict[int, Callable[[], None]] = {}
_FOLDERS = 256

_NEVER = float("inf")


def now(read: Callable[[int], float] = time.clock_gettime, clock: int = time.CLOCK_MONOTONIC) -> float:
    """Seconds of the clock of all deadlines, which test tools do not patch."""
    return read(clock)


def deadline_of(timeout: float | None) -> float:
    """The moment at which `timeout` seconds are over; never, for None."""
    return _NEVER if timeout is None else now() + timeout


def try_lock(self: Lockable, *, shared: bool = False) -> bool:
    """Take the lock if that needs no waiting."""
    fd = self.fd
    # Before the call: a signal handler, or a fork in it, may come right after it.
    forked.guarded[fd] = self.place_key, get_ident(), shared
    try:
        kernel.port.flock(fd, _TRY_SHARED if shared else _TRY_EXCLUSIVE)
    except OSError as exc:
        number = kernel.errno_of(exc)
        if number is not None:
            forked.guarded[fd] = None
        refuse_without_locks(number, self.path)
        if number != errno.EWOULDBLOCK:
            raise
        return False
    return True


def refuse_without_locks(number: int | None, path: str) -> None:
    """The error where a sandbox or the filesystem has no locks; `number` is the errno of flock(2)."""
    if number is None or number not in NO_LOCKS:
        return
    if number in kernel.SANDBOXED and (why := kernel.sandboxed("flock")):
        text = f"cannot lock the folder: {why}; allow flock there"
        errors.fail(errors.UnsupportedFilesystemError, errno.ENOSYS, text, path)
    text = f"the filesystem cannot lock the folder: {os.strerror(number)}; mount it with locks, or write elsewhere"
    errors.fail(errors.UnsupportedFilesystemError, number, text, path)


def unlock(self: Lockable) -> None:
    fd = self.fd
    kernel.port.flock(fd, fcntl.LOCK_UN)
    if forked.guarded.get(fd) is not None:
        forked.guarded[fd] = None


def lock(self: Lockable, timeout: float | None, deadline: float | None = None, *, shared: bool = False) -> None:
    """Take the folder's lock within `timeout` seconds, or before `deadline` when several folders share the time; None
    waits forever.

    Raises `LockTimeoutError`: ETIMEDOUT if another holder kept it all the time, EDEADLK at once if this thread holds it.
    """
    deadline = deadline_of(timeout) if deadline is None else deadline
    if not shared:
        if _earlier(self, 0) is not None or not try_lock(self):
            _wait_in_line(self, timeout, deadline)
        return
    polite = not _holds(self, shared=True)
    if try_lock(self, shared=True):
        if not polite or not _writer_is_waiting(self.fd):
            return
        unlock(self)
    _wait_to_read(self, timeout, deadline, polite=polite)


def _wait_in_line(self: Lockable, timeout: float | None, deadline: float) -> None:
    """Poll until the lock is ours, and no writer with an earlier ticket waits for it."""
    forked.guarded.setdefault(self.fd, None)  # a forked child must not keep the ticket
    ticket = max(1, int(now() * 1e6))
    began = since = now()
    still, first = 0.0, None
    try:
        _announce_writer(self.fd, ticket)
        while True:
            moment = now() + still
            before = _earlier(self, ticket)
            if before != first:
                first, since = before, moment
            out_of_patience = moment - since >= PATIENCE
            if (before is None or out_of_patience or moment >= deadline) and try_lock(self):
                if before is not None and out_of_patience:
                    _pass_over(self, before)
                return
            refuse_own(self, shared=False)
            ask_whether_to_wait()
            if moment >= deadline:
                _time_is_over(self, timeout)
            still += _pause(self, ticket, moment, since if before is None else began, deadline)
    finally:
        _announce_writer(self.fd, 0)


def _wait_to_read(self: Lockable, timeout: float | None, deadline: float, *, polite: bool) -> None:
    """Poll until the lock is ours.  While `polite`, a free lock is left to a writer that waits."""
    began, still = now(), 0.0
    while True:
        moment = now() + still
        if try_lock(self, shared=True):
            if not polite or moment >= min(began + GIVE_WAY, deadline) or not _writer_is_waiting(self.fd):
                return
            unlock(self)
        else:
            refuse_own(self, shared=True)
            ask_whether_to_wait()
            if moment >= deadline:
                _time_is_over(self, timeout)
            polite = False  # another waiter has its turn, so the next one is ours
        still += _pause(self, 0, moment, began, deadline)


def _time_is_over(self: Lockable, timeout: float | None) -> NoReturn:
    text = f"another transaction, or another program's flock, held the folder for {timeout:g} s"
    errors.fail(errors.LockTimeoutError, errno.ETIMEDOUT, f"{text}; wait, or raise lock_timeout", self.path)


def _pause(self: Lockable, ticket: int, moment: float, since: float, deadline: float) -> float:
    """Sleep, the longer the more are before us and the longer it has lasted; the seconds that the clock did not notice."""
    pause = max(_PAUSE * (1 + _how_many(self, ticket)), (moment - since) / 8)
    # Random, so that several waiters do not keep step with each other.
    wanted = min(pause, _LONGEST_PAUSE) * (0.5 + random_bytes(1)[0] / 256)
    return _sleep(max(0.0, min(deadline - moment, wanted)))


def ask_whether_to_wait() -> None:
    """Call what this thread left in `while_waiting`, which may raise."""
    ask = while_waiting.get(get_ident())
    if ask is not None:
        ask()


def _sleep(seconds: float) -> float:
    """Sleep; the seconds that the clock did not notice."""
    before = now()
    kernel.sleep(seconds)
    return seconds if now() == before else 0.0


def _holds(self: Lockable, *, shared: bool) -> bool:
    """Whether this thread holds the same folder's lock through another descriptor."""
    key, me, own = self.place_key[:2], get_ident(), self.fd
    return any(
        held is not None and held[1] == me and fd != own and held[0][:2] == key and held[2] == shared
        for fd, held in list(forked.guarded.items())
    )


def refuse_own(self: Lockable, *, shared: bool) -> None:
    """Raise for a lock that only this thread could release."""
    for mine in (False,) if shared else (False, True):
        if _holds(self, shared=mine):
            what = "is reading it (atomik.reading)" if mine else "is committing to it"
            text = (
                f"this thread {what} at this moment, and would wait for itself; publish after that has ended, for example "
                "by setting a flag in the signal handler"
            )
            errors.fail(errors.LockTimeoutError, errno.EDEADLK, text, self.path)


def _announce_writer(fd: int, ticket: int) -> None:
    """Tell others since when a writer waits, or (0) not any more.  Where that cannot be told, luck decides."""
    try:
        kernel.port.announce_writer(fd, ticket)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise


def _writer_is_waiting(fd: int) -> bool:
    try:
        return kernel.port.writer_is_waiting(fd)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return False


def _earlier(self: Lockable, ticket: int, first: int = 0) -> int | None:
    """A ticket that comes before `ticket` (0: any), from `first` on, and was not passed over."""
    try:
        return kernel.port.earlier(self.fd, max(first, _passed_over.get(self.place_key, 0)), ticket)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return None


def _how_many(self: Lockable, ticket: int) -> int:
    """How many are before us in line, up to `_COUNTED`."""
    count, at = 0, 0
    while ticket and count < _COUNTED and (before := _earlier(self, ticket, at)) is not None:
        count, at = count + 1, before + 1
    return count


def _pass_over(self: Lockable, ticket: int) -> None:
    if len(_passed_over) >= _FOLDERS:
        _passed_over.clear()
    _passed_over[self.place_key] = ticket + 1


os.register_at_fork(after_in_child=_passed_over.clear)
