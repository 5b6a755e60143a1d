"""A recovery is interrupted by an exception of any class, at every system call and at every line (P4, I13).

The exception goes on unchanged, no descriptor or lock stays behind, and the next recovery goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import signal
import sys
import time
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik._recovery import leftovers, recover, takeover, unfinished_journal
from tests.crash.deaths import die_at
from tests.support.kernels import ALL, Acting, installed
from tests.support.state import descriptors, left_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType

pytestmark = pytest.mark.sweep

KINDS: tuple[Callable[[], BaseException], ...] = (
    KeyboardInterrupt,
    SystemExit,
    lambda: TimeoutError("from a handler"),
    lambda: FileNotFoundError(errno.ENOENT, "from a handler", "nothing"),
    lambda: RuntimeError("from a handler"),
)


def publish(folder: Path) -> None:
    with atomik.transaction(overwrite=True, durable=False) as tx:
        tx.file(folder / "a" / "one").write("new")
        tx.file(folder / "b" / "two").write("new")
        (tx.folder(folder / "b" / "set") / "f").write_text("new")
        tx.remove(folder / "a" / "gone")


def build(folder: Path, committed: bool) -> None:
    """A transaction in two folders died after its third swap, or after its mark."""
    for name in ("a/one", "b/two", "b/set/f", "a/gone"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    if committed:
        die_at(lambda: publish(folder), "pwrite", 2)
    else:
        die_at(lambda: publish(folder), "rename", 3)


def check(folder: Path, committed: bool, what: str) -> None:
    recovered = atomik.recover(folder / "a", folder / "b", lock_timeout=0.5)
    assert recovered.clean, f"{what}: {recovered}"
    texts = {(folder / name).read_text() for name in ("a/one", "b/two", "b/set/f")}
    assert texts == {"new" if committed else "old"}, what
    assert (folder / "a" / "gone").exists() != committed, what
    assert not left_in(folder), what


#: calls that make a descriptor: an exception right after one comes before anybody knows its number
_OPENING = frozenset({"open", "open_beneath", "create", "open_tmpfile", "scandir"})


@pytest.mark.filterwarnings("ignore:unclosed scandir iterator", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("committed", [False, True], ids=["undo", "finish"])
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_at_every_call(folder: Path, committed: bool, after: bool, step: int) -> None:
    """Calls that change something, and those that only ask; one in five in a plain run."""
    number = 0
    for number in range(1, 2_000, step):
        build(folder, committed)
        if not interrupt(folder, {number}, committed, after=after):
            break
    assert number > 20


@pytest.mark.filterwarnings("ignore:unclosed scandir iterator", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("committed", [False, True], ids=["undo", "finish"])
@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_twice(folder: Path, committed: bool, step: int) -> None:
    """A second exception comes while the first is on its way out: before one of the next calls."""
    struck = 0
    for first in range(1, 2_000):
        for more in range(1 + first % step, 12, step):
            build(folder, committed)
            struck = interrupt(folder, {first, first + more}, committed, after=False)
            if struck < 2:
                break
        if not struck:
            break
    assert first > 30


def interrupt(folder: Path, numbers: set[int], committed: bool, *, after: bool) -> int:
    """Recover with an exception at each of these calls; recover again; how many of them came."""
    raised: list[BaseException] = []
    calls: list[str] = []

    def due(call: Any) -> bool:
        calls.append(call.name)
        return len(calls) in numbers

    def strike(_: Any) -> None:
        raised.append(KINDS[(sum(numbers) + len(raised)) % len(KINDS)]())
        raise raised[-1]

    before = descriptors()
    among = ALL - {"close"} - (_OPENING if after else set())
    with installed(Acting(" ".join(among), strike, when=due, after=after)):
        caught = raised_by(lambda: atomik.recover(folder / "a", folder / "b", lock_timeout=0.5))
    what = f"calls {sorted(numbers)} ({[calls[at - 1] for at in sorted(numbers) if at <= len(calls)]}), {raised!r}"
    assert (caught is None) == (not raised), f"{what}: {caught!r}"
    assert caught is None or any(caught is each for each in raised), f"{what}: {caught!r}"
    gc.collect()
    assert descriptors() == before, what
    check(folder, committed, what)
    return len(raised)


@pytest.mark.filterwarnings("ignore:unclosed scandir iterator", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("committed", [False, True], ids=["undo", "finish"])
def test_by_a_timer(folder: Path, committed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real signals, at moments that nobody chose.  A descriptor that open(2) returned this very moment may stay open; it has
    no lock, or the recovery behind it would not get one.  What arrives as Python enters a ``__del__`` is told by Python alone
    (sys.unraisablehook).
    """
    rng, came = random.Random(7), 0
    swallowed: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: swallowed.append(told.exc_value))
    kinds = cycle(KINDS)
    raised: list[BaseException] = []

    def handler(*_: object) -> None:
        raised.append(next(kinds)())
        raise raised[-1]

    before, before_handler = descriptors(), signal.signal(signal.SIGALRM, handler)
    try:
        ends = time.monotonic() + 4
        while time.monotonic() < ends or came < 6:
            build(folder, committed)
            raised.clear()
            caught = raised_by(lambda: timed(folder, rng.uniform(0.00005, 0.004)))
            assert [caught] == raised or not (raised or caught) or raised == swallowed[-1:], (caught, raised)
            came += len(raised)
            check(folder, committed, f"{raised!r}")
            for fd in descriptors().keys() - before.keys():
                with contextlib.suppress(OSError):  # the one that lists them
                    os.close(fd)
    finally:
        signal.signal(signal.SIGALRM, before_handler)


def timed(folder: Path, seconds: float) -> None:
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        atomik.recover(folder / "a", folder / "b", lock_timeout=0.5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def raised_by(function: Callable[[], object]) -> BaseException | None:
    try:
        function()
    except BaseException as exc:
        exc.__traceback__ = None
        return exc
    return None


@pytest.mark.parametrize("committed", [False, True], ids=["undo", "finish"])
def test_at_every_line(folder: Path, committed: bool) -> None:
    """Lines of the room itself; a line in the middle of giving something back is one of them."""
    files = {module.__file__ for module in (leftovers, recover, takeover, unfinished_journal)}
    kinds = cycle(KINDS)
    step = 23
    for number in range(1, 5_000, step):
        build(folder, committed)
        raised, lines = next(kinds)(), [0]

        def trace(
            frame: FrameType,
            event: str,
            _: Any,
            number: int = number,
            lines: list[int] = lines,
            raised: BaseException = raised,
        ) -> Any:
            if frame.f_code.co_filename not in files:
                return None
            if event == "line":
                lines[0] += 1
                if lines[0] == number:
                    sys.settrace(None)
                    raise raised
            return trace

        before = descriptors()
        traced = sys.gettrace()
        sys.settrace(trace)
        try:
            caught = raised_by(lambda: atomik.recover(folder / "a", folder / "b", lock_timeout=0.5))
        finally:
            sys.settrace(traced)
        if lines[0] < number:
            break
        assert caught is raised, f"line {number}: {caught!r}"
        gc.collect()
        assert descriptors() == before, f"line {number}, {raised!r}"
        check(folder, committed, f"line {number}, {raised!r}")
    assert number > 200
