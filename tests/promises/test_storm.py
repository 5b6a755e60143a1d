"""Any exception, from anywhere, at any line: all old or all new, nothing left or locked, and the caller gets it (P3-P5)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik._system import kernel as _kernel
from tests.support.state import in_child, left_in
from tests.support.storm import SCENES, Blow, Field, Struck, Trial, pairs, singles, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

pytestmark = [
    pytest.mark.sweep,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


def _calm(trials: Iterable[Trial], at_least: int = 1) -> None:
    tried, wrong = 0, []
    for trial in trials:
        tried += 1
        if trial.problems:
            wrong.append(str(trial))
    assert not wrong, "\n".join(wrong[:20])
    assert tried >= at_least


@pytest.fixture
def ground(folder: Path) -> Field:
    return Field(folder)


@pytest.mark.parametrize("name", SCENES)
def test_one_exception(ground: Field, name: str) -> None:
    """At every so manieth line and call, each class in turn."""
    scene = SCENES[name]
    _calm(singles(ground, scene, step=ground.known(scene)[2] // 35), at_least=30)


@pytest.mark.parametrize("name", SCENES)
def test_two_exceptions(ground: Field, name: str) -> None:
    """A second one while the first is being handled."""
    scene = SCENES[name]
    _calm(pairs(ground, scene, step=ground.known(scene)[2] // 4, second=101))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_one_exception_everywhere(ground: Field, name: str) -> None:
    """At every line, and before and after every call."""
    _calm(singles(ground, SCENES[name]), at_least=500)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_two_exceptions_everywhere(ground: Field, name: str) -> None:
    """At every line, and a second one at every so manieth later."""
    _calm(pairs(ground, SCENES[name], step=1, second=37))


def _under_timers(folder: Path) -> list[str]:
    return [str(trial) for trial in timed(Field(folder), 3, seed=1) if trial.problems]


def test_real_timers(folder: Path) -> None:
    """The same with setitimer(2), for some seconds; ``python -m tests.support.storm --minutes 10`` for longer."""
    assert in_child(_under_timers, folder) == []


def test_what_only_the_end_of_the_object_cleans_up(ground: Field) -> None:
    """An exception in the very first bytecode of the block's end leaves the transaction open: nothing is published, and
    nothing is left once the object is gone."""
    opened = [trial for trial in singles(ground, SCENES["new file"]) if trial.open]
    assert opened, "no such moment: say so in docs/explanation/guarantees.md"
    assert not [str(trial) for trial in opened if trial.problems]


class _Ringing(_kernel.Kernel):
    """Sends itself a signal right after the first call of one name."""

    def __init__(self, name: str, when: Callable[..., bool] = lambda *args: True) -> None:
        def ringing(*args: Any) -> Any:
            result = getattr(real, name)(*args)
            if when(*args) and not self.rung:
                self.rung = True
                signal.raise_signal(signal.SIGALRM)
            return result

        real = _kernel.Kernel()
        self.rung = False
        setattr(self, name, ringing)


def _ring(name: str, handler: Callable[..., Any], work: Callable[[], Any], **how: Any) -> BaseException | None:
    before, kernel = signal.signal(signal.SIGALRM, handler), _kernel.install(_Ringing(name, **how))
    try:
        work()
    except BaseException as exc:
        return exc
    finally:
        _kernel.install(kernel)
        signal.signal(signal.SIGALRM, before)
    return None


@pytest.mark.parametrize(("call", "overwrite"), [("rename", True), ("link_fd", True), ("link_fd", False)])
def test_a_time_limit_is_not_the_kernels_answer(folder: Path, call: str, overwrite: bool) -> None:
    """A TimeoutError of signal.alarm, during the call that publishes, reaches the caller."""
    if overwrite:
        Path("f").write_text("OLD")
    late = TimeoutError("time limit")

    def limit(*_: object) -> None:
        raise late

    def write() -> None:
        with atomik.file("f", overwrite=overwrite) as file:
            file.write("NEW")

    assert _ring(call, limit, write) is late
    assert (Path("f").read_text() if overwrite else os.path.lexists("f")) in ("OLD", False)
    assert not left_in(folder)


@pytest.mark.parametrize(
    ("ground", "call", "is_mark"),
    [
        ("no_log", "pwrite", lambda fd, data, at: at > 0),
        ("one_log", "link", lambda src, src_fd, dst, dst_fd: dst.endswith("-committed")),
    ],
)
def test_an_exception_at_the_mark(
    folder: Path, request: pytest.FixtureRequest, ground: str, call: str, is_mark: Callable[..., bool]
) -> None:
    """What the caller sees after the mark stays: nothing undoes it later."""
    request.getfixturevalue(ground)
    for name in "ab":
        Path(name).write_text("OLD")

    def limit(*_: object) -> None:
        raise Struck

    def write() -> None:
        with atomik.transaction(overwrite=True) as tx:
            tx.file("a").write("NEW")
            tx.file("b").write("NEW")

    assert isinstance(_ring(call, limit, write, when=is_mark), Struck)
    seen = [Path(name).read_text() for name in "ab"]
    assert seen in (["OLD", "OLD"], ["NEW", "NEW"])
    assert atomik.recover(".").items == ()
    assert [Path(name).read_text() for name in "ab"] == seen


def test_a_handler_that_publishes_itself(folder: Path) -> None:
    """It gets an error at once: its own thread holds the folder."""
    said: list[tuple[type[BaseException] | None, float]] = []

    def save(*_: object) -> None:
        started, failure = time.monotonic(), None
        try:
            with atomik.file("checkpoint", overwrite=True, lock_timeout=120) as file:
                file.write("saved")
        except atomik.errors.AtomikError as exc:
            failure = type(exc)
        said.append((failure, time.monotonic() - started))

    def write() -> None:
        with atomik.transaction() as tx:
            tx.file("a").write("1")
            tx.file("b").write("2")

    assert _ring("rename", save, write) is None
    assert said[0][0] is atomik.errors.LockTimeoutError
    assert said[0][1] < 60
    assert Path("b").read_text() == "2"


def test_a_second_interrupt_during_the_rollback(ground: Field) -> None:
    """Ctrl-C twice, wherever the second one comes: never a mixture."""
    scene = SCENES["group"]
    points = ground.known(scene)[2]
    for at in range(points // 2, points, 211):
        for later in range(1, 400, 83):
            trial = ground.run(scene, Blow(at, KeyboardInterrupt()), Blow(later, KeyboardInterrupt()))
            assert not trial.problems, str(trial)
