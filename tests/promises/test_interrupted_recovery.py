"""A recovery is interrupted by an exception of any class, at every system call and at every line (P4, I13).

The exception goes on unchanged, no descriptor or lock stays behind, and the next recovery goes on from there.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
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
    """A transaction in two folders died behind its third swap, or behind its mark."""
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


#: calls that make a descriptor, which is lost when the exception comes before Python has its number
_OPENING = frozenset({"open", "open_beneath", "create", "open_tmpfile", "scandir"})


@pytest.mark.filterwarnings("ignore:unclosed scandir iterator", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("committed", [False, True], ids=["undo", "finish"])
def test_at_every_call(folder: Path, committed: bool, after: bool) -> None:
    """Calls that change something, and those that only ask."""
    kinds = cycle(KINDS)
    for number in range(1, 2_000):
        build(folder, committed)
        raised, calls = next(kinds)(), []

        def due(call: Any, number: int = number, calls: list[str] = calls) -> bool:
            calls.append(call.name)
            return len(calls) == number

        def strike(_: Any, raised: BaseException = raised) -> None:
            raise raised

        before = descriptors()
        with installed(Acting(" ".join(ALL - {"close"}), strike, when=due, after=after)) as kernel:
            caught = raised_by(lambda: atomik.recover(folder / "a", folder / "b", lock_timeout=0.5))
        if not kernel.acted:
            break
        what = f"call {number} ({calls[number - 1]}), {raised!r}"
        assert caught is raised, f"{what}: {caught!r}"
        if not (after and calls[number - 1] in _OPENING):
            assert descriptors() == before, what
        check(folder, committed, what)
        close_lost(before)
    assert number > 30


def close_lost(before: dict[int, str]) -> None:
    """Close descriptors whose numbers Python never had, or that a line in the middle of giving back did not close."""
    for fd in descriptors().keys() - before.keys():
        with contextlib.suppress(OSError):
            os.close(fd)


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
        check(folder, committed, f"line {number}, {raised!r}")
        close_lost(before)
    assert number > 200
