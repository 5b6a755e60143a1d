"""`atomik.testing`: the crash points that users get for their own code."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atomik
from atomik import testing
from atomik.testing import CrashPoint, crash_points, recorded
from tests.support.state import child_processes, descriptors

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def prepare(folder: Path) -> Callable[[], None]:
    def fresh() -> None:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in ("model", "config"):
            (folder / name).write_text("old")

    return fresh


def publish(folder: Path) -> None:
    with atomik.transaction(overwrite=True) as tx:
        for name in ("model", "config"):
            tx.file(folder / name).write("new")


@pytest.mark.sweep
def test_it_proves_a_transaction(folder: Path, prepare: Callable[[], None]) -> None:
    """The example of the documentation: every point is all old or all new, and the last one is new."""
    points: list[CrashPoint] = []

    def check(point: CrashPoint) -> None:
        points.append(point)
        atomik.recover(folder)
        found = {(folder / name).read_text() for name in ("model", "config")}
        assert len(found) == 1
        assert not point.returned or found == {"new"}

    assert crash_points(lambda: publish(folder), check, prepare=prepare) == len(points) > 20
    assert [point.returned for point in points] == [False] * (len(points) - 1) + [True]
    assert [point.number for point in points[:4]] == [1, 1, 2, 2]
    assert {point.when for point in points} == {"before", "after"}


def test_it_finds_what_is_no_transaction(folder: Path, prepare: Callable[[], None]) -> None:
    """Two one-item writes are not one transaction: the enumerator catches that, and names the point."""

    def one_by_one() -> None:
        for name in ("model", "config"):
            with atomik.file(folder / name, overwrite=True) as f:
                f.write("new")

    def check(point: CrashPoint) -> None:
        atomik.recover(folder)
        assert len({(folder / name).read_text() for name in ("model", "config")}) == 1

    with pytest.raises(AssertionError) as caught:
        crash_points(one_by_one, check, prepare=prepare)
    (note,) = (note for note in caught.value.__notes__ if note.startswith("crashed"))
    assert "(rename)" in note
    atomik.recover(folder)


def test_points_can_be_left_out(folder: Path, prepare: Callable[[], None]) -> None:
    """first and step save time, and keep the end; at each point all is old or all is new."""
    points: list[CrashPoint] = []

    def check(point: CrashPoint) -> None:
        points.append(point)
        atomik.recover(folder)
        found = {(folder / name).read_text() for name in ("model", "config")}
        assert len(found) == 1
        assert not point.returned or found == {"new"}

    count = crash_points(lambda: publish(folder), check, prepare=prepare, first=3, step=4)
    assert sorted({point.number for point in points})[:3] == [3, 7, 11]
    assert count == len(points)
    assert points[-1].returned


@pytest.mark.parametrize("wrong", [{"first": 0}, {"step": 0}, {"step": -1}])
def test_points_that_never_come(wrong: dict[str, int]) -> None:
    """A count that would prove nothing, or never end, is refused."""
    with pytest.raises(ValueError, match="counted from 1"):
        crash_points(lambda: None, lambda point: None, **wrong)


def test_a_function_that_fails_by_itself_is_an_error(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its traceback is shown; it must not look like a proof."""
    with pytest.raises(AssertionError, match="the function failed by itself"):
        crash_points(lambda: (folder / "none").read_text(), lambda point: None)
    assert "FileNotFoundError" in capfd.readouterr().err


def test_a_function_that_writes_nothing_has_one_point(folder: Path) -> None:
    """The end."""
    points: list[CrashPoint] = []
    assert crash_points(lambda: None, points.append) == 1
    assert str(points[0]) == "at the end"


def test_a_point_reads_well() -> None:
    """It says where."""
    assert str(CrashPoint(7, "rename", "after", returned=False)) == "after call 7 (rename)"


def test_nothing_of_it_stays_in_this_process(folder: Path, prepare: Callable[[], None]) -> None:
    """Changes of the function to memory are the child's, and no child, descriptor or kernel is left."""
    before, children, changed = descriptors(), child_processes(), []
    crash_points(lambda: changed.append(1), lambda point: None)
    assert not changed
    assert descriptors() == before
    assert child_processes() <= children
    assert type(atomik._system.kernel.port) is atomik._system.kernel.Kernel  # type: ignore[attr-defined]


def test_it_never_returns_into_the_callers_stack(folder: Path) -> None:
    """A function that leaves by SystemExit does not run the test's own clean-up in the child."""
    mark = folder / "cleaned up"
    with pytest.raises(AssertionError, match="failed by itself"):
        try:
            crash_points(lambda: os._exit(3), lambda point: None)
        finally:
            assert not mark.exists()
            mark.write_text("once")
    assert mark.exists()


@pytest.mark.usefixtures("no_log")
def test_calls_are_recorded(folder: Path) -> None:
    """`recorded` shows what a function asked of the kernel, here, alive, and then puts the former kernel back."""
    calls = recorded(lambda: publish(folder))
    names = [name for name, _ in calls]
    assert names.count("pwrite") == 2
    assert ("rename", calls[names.index("rename")][1]) in calls
    assert (folder / "model").read_text() == "new"
    assert type(atomik._system.kernel.port) is atomik._system.kernel.Kernel  # type: ignore[attr-defined]


def test_all_of_it_is_exported() -> None:
    """What the documentation names."""
    assert testing.__all__ == ["CrashPoint", "crash_points", "recorded"]
