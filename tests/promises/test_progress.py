"""Progress: what `progress=` is told, and what a failing callback does."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

import atomik
from atomik import errors

if TYPE_CHECKING:
    from pathlib import Path

Told = list[tuple[str, int, int]]


def fill(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}").write_text("x")


@pytest.mark.parametrize(("ground", "barriers"), [("no_log", 3), ("one_log", 2)])
def test_the_phases_of_a_transaction_are_told(
    tmp_path: Path, request: pytest.FixtureRequest, ground: str, barriers: int
) -> None:
    """Cloning, syncing, swapping and cleaning are reported, each with a number that only grows."""
    request.getfixturevalue(ground)
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
    assert [event for event in told if event[0] == "syncing"] == [
        ("syncing", done, barriers) for done in range(barriers + 1)
    ]
    assert [event for event in told if event[0] == "cloning"][-1] == ("cloning", 30, 30)
    assert max(done for name, done, _ in told if name == "cleaning") >= 30


def test_one_item_tells_its_two_barriers(tmp_path: Path) -> None:
    """A write of one output reports two barriers."""
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


#: what the callback may raise, or a signal handler while it runs, of every kind that others raise too
RAISED = (
    LookupError("x"),
    BrokenPipeError(errno.EPIPE, "broken pipe"),
    FileNotFoundError(errno.ENOENT, "of the handler"),
    errors.ConflictError(errno.EBUSY, "of another transaction"),
    KeyboardInterrupt(),
)


@pytest.mark.parametrize("exception", RAISED, ids=repr)
@pytest.mark.parametrize("phase", ["syncing", "cleaning"])
def test_what_arrives_behind_the_mark_goes_on(tmp_path: Path, phase: str, exception: BaseException) -> None:
    """It reaches the caller, like whatever a handler raises there: everything is new, and nothing is left (I13)."""
    fill(tmp_path / "site", 3)

    def fail(name: str, done: int, total: int) -> None:
        if name == phase and (name == "cleaning" or done == total):
            raise exception

    tx = atomik.transaction(overwrite=True, progress=fail)
    with pytest.raises(type(exception)) as caught, tx:
        (tx.folder(tmp_path / "site") / "new").write_text("x")
        tx.write_text(tmp_path / "index", "x")
    assert caught.value is exception
    assert tx.state is atomik.State.COMMITTED
    assert tx.receipt is not None
    assert tx.receipt.leftovers == ()
    assert sorted(os.listdir(tmp_path)) == ["index", "site"]
    assert os.listdir(tmp_path / "site") == ["new"]
    assert atomik.recover(tmp_path) == atomik.RecoveryReport(())


@pytest.mark.parametrize("exception", RAISED, ids=repr)
def test_what_arrives_behind_one_output_goes_on(tmp_path: Path, exception: BaseException) -> None:
    """Its last report comes after its last sync."""

    def fail(name: str, done: int, total: int) -> None:
        if done == total:
            raise exception

    output = atomik.file(tmp_path / "a", progress=fail)
    with pytest.raises(type(exception)) as caught, output as f:
        f.write("x")
    assert caught.value is exception
    assert output.receipt is not None
    assert (tmp_path / "a").read_text() == "x"


@pytest.mark.parametrize("durable", [True, False])
def test_a_callback_in_c_is_the_programs_too(tmp_path: Path, *, durable: bool) -> None:
    """Its OSError has no frame of its own, and is no answer of the kernel to a call of ours; without syncs it comes in the
    clean-up."""
    fill(tmp_path / "site", 3)
    tx = atomik.transaction(overwrite=True, durable=durable, progress=os.open)
    with pytest.raises(OSError, match="No such file") as caught, tx:
        (tx.folder(tmp_path / "site") / "new").write_text("x")
    assert caught.value.filename == ("syncing" if durable else "cleaning")
    assert type(caught.value) is FileNotFoundError
    assert tx.state is (atomik.State.ABORTED if durable else atomik.State.COMMITTED)
    assert os.listdir(tmp_path) == ["site"]
    assert len(os.listdir(tmp_path / "site")) == (3 if durable else 1)
