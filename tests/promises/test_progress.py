"""Progress: what `progress=` is told, and what a failing callback does."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

import atomik

if TYPE_CHECKING:
    from pathlib import Path

Told = list[tuple[str, int, int]]


def fill(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}").write_text("x")


def test_the_phases_of_a_transaction_are_told(tmp_path: Path) -> None:
    """Cloning, syncing, swapping and cleaning are reported, each with a number that only grows."""
    fill(tmp_path / "site", 30)
    told: Told = []
    with atomik.transaction(overwrite=True, progress=lambda *event: told.append(event)) as tx:
        tx.folder(tmp_path / "site", copy=True)
        tx.file(tmp_path / "index").write("x")
    for phase in ("cloning", "syncing", "swapping", "cleaning"):
        numbers = [done for name, done, _ in told if name == phase]
        assert numbers == sorted(numbers), phase
        assert numbers, phase
        assert [event for event in told if event[0] == phase][-1] == (phase, numbers[-1], numbers[-1]), phase
    assert ("swapping", 2, 2) in told
    assert [event for event in told if event[0] == "syncing"] == [("syncing", done, 3) for done in range(4)]
    assert [event for event in told if event[0] == "cloning"][-1] == ("cloning", 30, 30)
    assert max(done for name, done, _ in told if name == "cleaning") >= 30


def test_one_item_tells_its_two_barriers(tmp_path: Path) -> None:
    """A one-item write has two barriers to tell of."""
    told: Told = []
    with atomik.file(tmp_path / "a", progress=lambda *event: told.append(event)) as f:
        f.write("x")
    assert told == [("syncing", 0, 2), ("syncing", 1, 2), ("syncing", 2, 2)]


@pytest.mark.parametrize("phase", ["syncing", "swapping"])
def test_a_callback_that_fails_before_the_mark_rolls_back(tmp_path: Path, phase: str) -> None:
    """An exception out of the callback aborts, and goes on unchanged."""
    (tmp_path / "b").write_text("old")

    def fail(name: str, done: int, total: int) -> None:
        if name == phase and done < total:
            raise LookupError(name)

    with (
        pytest.raises(LookupError),
        atomik.transaction(overwrite=True, progress=fail) as tx,
    ):
        tx.file(tmp_path / "a").write("new")
        tx.file(tmp_path / "b").write("new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").read_text() == "old"


def test_a_callback_that_fails_with_an_oserror_is_no_failed_sync(tmp_path: Path) -> None:
    """One output, visible already, and the callback's pipe is broken: rolled back, its error goes on unchanged."""
    (tmp_path / "a").write_text("old")

    def fail(name: str, done: int, total: int) -> None:
        if name == "syncing" and done:
            raise BrokenPipeError(errno.EPIPE, "broken pipe")

    with pytest.raises(BrokenPipeError), atomik.file(tmp_path / "a", "w", True, progress=fail) as f:
        f.write("new")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("a", "old")]


def test_recovering_reaches_its_total(tmp_path: Path) -> None:
    """In folders."""
    told: Told = []
    (tmp_path / "a").mkdir()
    atomik.recover(tmp_path, tmp_path / "a", progress=lambda *event: told.append(event))
    assert told == [("recovering", 1, 2), ("recovering", 2, 2)]


def test_a_callback_that_fails_behind_the_mark_fails_nothing(tmp_path: Path) -> None:
    """The last report of a phase may come after the commit point."""

    def fail(name: str, done: int, total: int) -> None:
        if (name, done) == ("syncing", total):
            raise LookupError(name)

    with atomik.file(tmp_path / "a", progress=fail) as f:
        f.write("x")
    assert (tmp_path / "a").read_text() == "x"


def test_a_callback_that_fails_while_cleaning_fails_nothing(tmp_path: Path) -> None:
    """After the commit point a failing callback is not a failure of the commit."""
    fill(tmp_path / "site", 3)

    def fail(name: str, done: int, total: int) -> None:
        if name == "cleaning":
            raise LookupError(name)

    with atomik.folder(tmp_path / "site", overwrite=True, progress=fail) as site:
        (site / "new").write_text("x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["site"]
    assert [entry.name for entry in (tmp_path / "site").iterdir()] == ["new"]
