"""``async with``: a transaction ends in a worker thread, while the event loop goes on.

Staging is the same as without ``async``.  The end of the block runs all of `Transaction.__exit__` in one new thread, because
the transaction's lock and the table of folder locks identify their owner by its thread; the waiting task holds nothing.

**Cancellation.**  A thread cannot be stopped from outside, so the task sets a flag, and the commit checks it where it can
still roll back: while it waits for a lock, and wherever it reports progress before the mark.  After the mark it runs to its
end.  In both cases the task waits until the thread has ended, and then raises the cancellation.  A block that is left by an
exception is aborted in the same way, and a cancellation does not stop that.

What leaves destinations in another state than "as they were" or "all new and durable" (`RollbackError`,
`DurabilityError`) is raised instead of the cancellation, which is its ``__context__``: a
program that only learns "cancelled" would not check.

The thread is not a daemon thread: an interpreter that ends, for example after a second Ctrl-C, waits for it.

asyncio is used if it runs the task, trio if that does.  Neither is imported before.  anyio runs on both; if it
is imported, its shield keeps it from delivering the same cancellation again and again while the task waits.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading

from atomik import _events, _progress, errors  # noqa: F401  loaded before the commit needs it (I14)
from atomik._folder import lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType, TracebackType
    from typing import Any

    from atomik._staging.options import Progress

    from .transaction import Transaction

#: phases after which a commit can still be rolled back
_BEFORE_THE_MARK = ("syncing", "swapping")


class Stopped(BaseException):
    """Raised in the worker instead of the task's cancellation; nobody else sees it."""

    def __str__(self) -> str:
        return "the task was cancelled"


class Ending:
    """One end of a transaction, in its thread.  `leave` is the ``__exit__`` to run there."""

    def __init__(self, transaction: Transaction, leave: Callable[..., None]) -> None:
        self._transaction, self._leave = transaction, leave
        self._stop = False
        self._failure: BaseException | None = None
        self._caller: FrameType | None = None

    async def run(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and raise what the caller should see."""
        loop = running()
        self._caller = _events.caller()
        if kind is None:
            try:
                await loop.checkpoint()
            except BaseException as cancelled:  # cancelled already: as if by the block's last line
                await self._finish(loop, type(cancelled), cancelled, cancelled.__traceback__)
                raise
        await self._finish(loop, kind, exc, trace)

    async def _finish(self, loop: _Asyncio | _Trio, *left_by: Any) -> None:
        """Start the thread and wait for its end, whatever arrives."""
        done = loop.event()
        context = contextvars.copy_context()  # what structlog bound for this task is bound there, too
        thread = threading.Thread(target=context.run, args=(self._work, left_by, done.set), name="atomik commit")
        thread.start()
        cancelled: BaseException | None = None
        if left_by[0] is None:
            try:
                await done.wait()
            except BaseException as arrived:  # noqa: BLE001  goes on at the end
                self._stop, cancelled = True, arrived
                if isinstance(arrived, GeneratorExit):  # nothing runs the loop any more
                    thread.join()
                    raise
        again = await loop.shielded(done)
        thread.join()  # it has nothing more to do
        failure, self._failure = self._failure, None
        if failure is not None and (cancelled is None or isinstance(failure, _TELLS_MORE)):
            raise failure
        if (cancelled := cancelled or again) is not None:
            raise cancelled

    def _work(self, left_by: tuple[Any, ...], done: Callable[[], None]) -> None:
        """The thread."""
        me = threading.get_ident()
        intake = self._transaction._intake
        progress = intake.progress
        _events.called_by[me] = self._caller
        if left_by[0] is None:
            lock.while_waiting[me] = self._check
            intake.progress = self._checking(progress)
        try:
            self._leave(*left_by)
        except Stopped:
            pass  # rolled back, and the task knows why
        except BaseException as failure:  # noqa: BLE001  raised in the task
            self._failure = failure
        finally:
            intake.progress = progress
            lock.while_waiting.pop(me, None)
            _events.called_by.pop(me, None)
            done()

    def _check(self) -> None:
        if self._stop:
            raise Stopped

    def _checking(self, progress: Progress | None) -> Progress:
        """The user's progress function; before each call it is checked whether the task was cancelled."""

        def checking(phase: str, done: int, total: int) -> None:
            if phase in _BEFORE_THE_MARK and not (phase == "syncing" and done == total):
                self._check()
            if progress is not None:
                progress(phase, done, total)

        return checking


#: says more than "as it was", and so more than a cancellation does
_TELLS_MORE = (errors.RollbackError, errors.DurabilityError)


# --- event loops -----------------------------------------------------------------------------------------------------
class _Asyncio:
    """The loop that runs this task."""

    def __init__(self) -> None:
        import asyncio

        self._asyncio = asyncio
        self._loop = asyncio.get_running_loop()

    async def checkpoint(self) -> None:
        await self._asyncio.sleep(0)

    def event(self) -> _AsyncioEvent:
        return _AsyncioEvent(self._loop)

    async def shielded(self, done: Any) -> BaseException | None:
        """Wait to the end; return a cancellation that came in between."""
        anyio = sys.modules.get("anyio")
        cancelled: BaseException | None = None
        while not done.is_set():
            try:
                with contextlib.nullcontext() if anyio is None else anyio.CancelScope(shield=True):
                    await done.wait()
            except self._asyncio.CancelledError as arrived:
                cancelled = arrived
        return cancelled


class _AsyncioEvent:
    """Set by a thread, waited for by a task."""

    def __init__(self, loop: Any) -> None:
        import asyncio

        self._loop = loop
        self._event = asyncio.Event()

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed, and nothing waits
            self._loop.call_soon_threadsafe(self._event.set)

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self) -> Awaitable[object]:
        return self._event.wait()


class _Trio:
    """The trio that runs this task."""

    def __init__(self, trio: Any) -> None:
        self._trio = trio

    async def checkpoint(self) -> None:
        await self._trio.lowlevel.checkpoint()

    def event(self) -> _TrioEvent:
        return _TrioEvent(self._trio)

    async def shielded(self, done: Any) -> BaseException | None:
        """Wait to the end."""
        with self._trio.CancelScope(shield=True):
            await done.wait()
        return None


class _TrioEvent:
    """Set by a thread, waited for by a task."""

    def __init__(self, trio: Any) -> None:
        self._trio, self._event = trio, trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def set(self) -> None:
        with contextlib.suppress(self._trio.RunFinishedError):
            self._token.run_sync_soon(self._event.set)

    def wait(self) -> Awaitable[None]:
        return self._event.wait()  # type: ignore[no-any-return]


def running() -> _Asyncio | _Trio:
    """The loop that runs this task; RuntimeError if it is neither of these two."""
    trio = sys.modules.get("trio")
    if trio is not None:
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            pass
        else:
            return _Trio(trio)
    return _Asyncio()
