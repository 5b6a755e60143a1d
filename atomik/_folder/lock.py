"""The flock(2) of a held folder: bounded waiting, fairness, and no waiting for oneself.

`lock`, `try_lock` and `unlock` are methods of `Directory`; they live here because locks are a subject of their own::

    folder.lock(60.0)                        # exclusive; LockTimeoutError after 60 s, None waits for ever
    folder.lock(60.0, deadline, shared=True) # several folders that share the time: deadline = deadline_of(60.0)
    folder.try_lock(shared=True)             # only if that needs no waiting
    folder.unlock()

**Waiting for oneself.**  flock(2) belongs to the open file description, so a thread that opens a folder twice can wait
for its own lock: a signal handler that publishes while its own thread commits, or a publication inside ``reading`` of the
same folder.  A table of all locks that this process holds, with the thread that took each, finds that out at once
(EDEADLK).  The limit: a lock that one thread takes and another gives back counts for the one that took it.

**Fairness.**  flock(2) has no queue.  A writer that waits announces itself (`Kernel.announce_writer`), and

* a reader that comes later gives way, until the writer had its turn or `GIVE_WAY` is over (the reader may be one for
  whose end the writer waits);
* a process that has taken the lock again and again for `TURN` seconds gives way in the same manner.

**Time** is CLOCK_MONOTONIC, read by clock_gettime(2): libraries that freeze time for tests patch `time.monotonic` in every
module.  Where even that clock stands still, the time slept counts.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import time
from _thread import get_ident
from typing import TYPE_CHECKING

from atomik import errors
from atomik._system import forked, kernel

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Lockable(Protocol):
        """What a lock needs to know of a folder: a `Directory`."""

        fd: int
        path: str
        place_key: tuple[int, int, int]


_TRY_SHARED, _TRY_EXCLUSIVE = fcntl.LOCK_SH | fcntl.LOCK_NB, fcntl.LOCK_EX | fcntl.LOCK_NB

#: Seconds for which a newcomer lets a waiting writer go first.
GIVE_WAY = 1.0

#: Seconds for which one process may take the lock again and again before it looks whether another one waits.
TURN = 0.05

_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.02

#: folder -> when this process's present run of exclusive locks on it began
_turns: dict[tuple[int, int, int], float] = {}
#: thread -> what it calls while it waits for a lock; an exception of that ends the waiting
while_waiting: dict[int, Callable[[], None]] = {}
_TURNS = 256


def now(read: Callable[[int], float] = time.clock_gettime, clock: int = time.CLOCK_MONOTONIC) -> float:
    """Seconds of the clock that deadlines are in, which nobody patches."""
    return read(clock)


def deadline_of(timeout: float | None) -> float:
    """The moment at which `timeout` seconds are over; never, for None."""
    return math.inf if timeout is None else now() + timeout


def try_lock(self: Lockable, *, shared: bool = False) -> bool:
    """Take the lock if that needs no waiting."""
    fd = self.fd
    # Before the call: a signal handler, or a fork in it, may come right behind it.
    forked.guarded[fd] = self.place_key, get_ident(), shared
    try:
        kernel.port.flock(fd, _TRY_SHARED if shared else _TRY_EXCLUSIVE)
    except OSError as exc:
        number = kernel.errno_of(exc)
        if number is not None:
            forked.guarded[fd] = None
        refuse_sandbox(number, self.path)
        if number != errno.EWOULDBLOCK:
            raise
        return False
    return True


def refuse_sandbox(number: int | None, path: str) -> None:
    """The error for locks that a sandbox refuses; `number` is the errno of flock(2)."""
    if number in kernel.SANDBOXED and (why := kernel.sandboxed("flock")):
        text = f"cannot lock the folder: {why}; allow flock there"
        errors.fail(errors.UnsupportedFilesystemError, errno.ENOSYS, text, path)


def unlock(self: Lockable) -> None:
    """Let go of the lock."""
    fd = self.fd
    kernel.port.flock(fd, fcntl.LOCK_UN)
    held = forked.guarded.get(fd)
    if held is not None:
        forked.guarded[fd] = None
        if not held[2]:
            _end_turn(held[0])


def closing(fd: int) -> None:
    """The descriptor is about to be closed, and its lock gone."""
    held = forked.guarded.pop(fd, None)
    if held is not None and not held[2]:
        _end_turn(held[0])


def _end_turn(key: tuple[int, int, int]) -> None:
    if key not in _turns:
        if len(_turns) >= _TURNS:
            _turns.clear()
        _turns[key] = now()


def lock(self: Lockable, timeout: float | None, deadline: float | None = None, *, shared: bool = False) -> None:
    """Take the folder's lock within `timeout` seconds, or before `deadline` when several folders share the time; None
    waits for ever.

    Raises `LockTimeoutError`: ETIMEDOUT when somebody else held it all the time, EDEADLK at once when this thread does.
    """
    polite = not _holds(self, shared=True) if shared else _had_its_turn(self)
    if try_lock(self, shared=shared):
        if not polite or not _writer_is_waiting(self.fd):
            return
        unlock(self)
    _wait(self, timeout, deadline_of(timeout) if deadline is None else deadline, shared=shared, polite=polite)


def _wait(self: Lockable, timeout: float | None, deadline: float, *, shared: bool, polite: bool) -> None:
    """Poll until the lock is ours.  While `polite`, a free lock is left to a writer that waits."""
    gives_way_until = now() + GIVE_WAY
    pause, still, announced = _FIRST_PAUSE, 0.0, False
    try:
        while True:
            if try_lock(self, shared=shared):
                if not polite or now() + still >= min(gives_way_until, deadline) or not _writer_is_waiting(self.fd):
                    return
                unlock(self)
            else:
                refuse_own(self, shared=shared)
                ask_whether_to_wait()
                if now() + still >= deadline:
                    text = f"another transaction, or another program's flock, held the folder for {timeout:g} s"
                    text += "; wait, or raise lock_timeout"
                    errors.fail(errors.LockTimeoutError, errno.ETIMEDOUT, text, self.path)
                polite = False  # somebody has his turn, so the next one is ours
                if not shared and not announced:
                    announced = True
                    _announce_writer(self.fd, waiting=True)
            # Random, so that several waiters do not keep step with each other.
            still += _sleep(max(0.0, min(deadline - now() - still, pause * (0.5 + os.urandom(1)[0] / 256))))
            pause = min(pause * 2, _LONGEST_PAUSE)
    finally:
        if announced:
            _announce_writer(self.fd, waiting=False)


def ask_whether_to_wait() -> None:
    """Call what this thread left in `while_waiting`, which may raise."""
    ask = while_waiting.get(get_ident())
    if ask is not None:
        ask()


def _sleep(seconds: float) -> float:
    """Sleep; the seconds that the clock did not notice."""
    before = now()
    time.sleep(seconds)
    return seconds if now() == before else 0.0


def _holds(self: Lockable, *, shared: bool) -> bool:
    """Whether this thread holds the same folder's lock through another descriptor."""
    key, me, own = self.place_key[:2], get_ident(), self.fd
    return any(
        held is not None and held[1] == me and fd != own and held[0][:2] == key and held[2] == shared
        for fd, held in list(forked.guarded.items())
    )


def refuse_own(self: Lockable, *, shared: bool) -> None:
    """Raise for a lock that only this thread could give back."""
    for mine in (False,) if shared else (False, True):
        if _holds(self, shared=mine):
            what = "is reading it (atomik.reading)" if mine else "is committing to it"
            text = (
                f"this thread {what} at this moment, and would wait for itself; publish after that has ended, for example "
                "by setting a flag in the signal handler"
            )
            errors.fail(errors.LockTimeoutError, errno.EDEADLK, text, self.path)


def _had_its_turn(self: Lockable) -> bool:
    """Whether this process has had the lock, with interruptions, for a whole `TURN`."""
    began = _turns.get(self.place_key)
    if began is None or now() - began < TURN:
        return False
    _turns.pop(self.place_key, None)
    return True


def _announce_writer(fd: int, *, waiting: bool) -> None:
    """Tell newcomers that a writer waits, or not any more.  Where that cannot be told, luck decides."""
    try:
        kernel.port.announce_writer(fd, waiting)
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


os.register_at_fork(after_in_child=_turns.clear)
