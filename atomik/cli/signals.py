"""Signals that end ``atomik``: nothing is half done, in any phase.

::

    staging        the handler raises `Stopped`; the transaction is aborted
    the child      the signal is passed to the child; when that has ended the transaction is aborted, whatever its exit code
    the commit     the handler raises `Stopped`; the core rolls back, or finishes when the commit mark is written

`Stopped` is raised at most once, so that the way back is not interrupted again.  A signal that was ignored when we were
started (nohup, a shell's background job) stays ignored, by us and by the child.  When we are killed with SIGKILL, the
kernel ends the child, and `atomik recover` removes what was staged.
"""

from __future__ import annotations

import contextlib

from atomik.flags import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator
    from types import FrameType, TracebackType
    from typing import Any, Self

    from atomik._api.transaction import Transaction
else:
    import _signal as signal  # `signal` makes enumerations of all its numbers, which takes longer than the rest of this room

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Stopped(SystemExit):
    """A signal ended us; the exit code is 128 + its number, as a shell gives it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
        self.outcome = "nothing was changed"

    def __str__(self) -> str:
        import signal  # for its names

        return f"stopped by {signal.Signals(self.number).name}; {self.outcome}"


class Signals:
    """The signals that end us, caught from entry to exit; while ``armed``, the first one raises `Stopped`."""

    def __init__(self) -> None:
        self.armed: bool = False
        self.number: int | None = None
        self.caught: list[int] = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        self._before: list[tuple[int, Any]] = []

    def __enter__(self) -> Self:
        for number in self.caught:
            self._before.append((number, signal.signal(number, self._arrived)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  a handler gets the frame
        first, self.number = self.number is None, self.number or number
        if self.armed and first:
            raise Stopped(number)

    def arm(self) -> None:
        """From now on a signal raises; one that came before does it now."""
        self.armed = True
        self.check()

    def check(self) -> None:
        """Raise for a signal that was only noted."""
        if self.number is not None:
            raise Stopped(self.number)


@contextlib.contextmanager
def stoppable(outcome: str) -> Iterator[None]:
    """A signal that ends the program raises `Stopped` in the block, once, with `outcome` as its message."""
    with Signals() as signals:
        try:
            signals.arm()
            yield
        except Stopped as exc:
            exc.outcome = outcome
            raise
        finally:
            signals.armed = False


def guarded(signals: Signals, tx: Transaction, work: Any) -> Any:
    """Call ``work()``, which ends with the commit; the transaction is over afterwards, whatever happens.

    Two levels, because a signal may come anywhere: once the outer one is reached, no handler raises any more.
    """
    try:
        try:
            signals.arm()
            return work()
        except Stopped as exc:
            if tx.state is State.COMMITTED:
                exc.outcome = "everything had been published before"
            raise
        finally:
            signals.armed = False
    finally:
        if tx.state is State.OPEN:
            tx.abort()
