"""All locks of a transaction at once: in order, or none; and none beside an unfinished journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from atomik import errors
from atomik._folder.directory import Directory
from atomik._hidden_names import JOURNAL_NAME
from atomik._protocol.locks import close_all, lock_all, unlock_all
from tests.support.kernels import Acting, Faulty, Recording, installed
from tests.support.state import in_child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def three(folder: Path) -> Iterator[list[Directory]]:
    for name in ("c", "a", "b"):
        (folder / name).mkdir()
    held = [Directory.open(str(folder / name)) for name in ("c", "a", "b")]
    yield held
    close_all(held)


def free(directory: Directory, *, shared: bool = False) -> bool:
    """Whether another process could lock the folder now."""

    def attempt() -> bool:
        with_own = Directory.open(directory.path)
        try:
            return with_own.try_lock(shared=shared)
        finally:
            with_own.close()

    return in_child(attempt)


def test_all_are_locked_in_one_order(three: list[Directory]) -> None:
    """By (st_dev, st_ino), so two transactions cannot wait for each other (I8)."""
    with installed(Recording({"flock"})) as kernel:
        assert lock_all(three, 0.0) is None
    assert [call.args[0] for call in kernel.calls] == [d.fd for d in sorted(three, key=lambda d: d.key)]
    assert not any(free(directory) for directory in three)
    unlock_all(three)
    assert all(free(directory) for directory in three)


def test_shared_locks_admit_readers(three: list[Directory]) -> None:
    """And no writer."""
    assert lock_all(three, 0.0, shared=True) is None
    assert free(three[0], shared=True)
    assert not free(three[0])


def test_a_folder_that_is_held_twice_is_locked_once(three: list[Directory]) -> None:
    """A second lock of our own would wait for the first."""
    again = Directory.open(three[0].path)
    try:
        assert lock_all([*three, again], 0.0) is None
    finally:
        again.close()


def test_a_journal_gives_all_locks_up(three: list[Directory], folder: Path) -> None:
    """The folder is returned, and a recovery of the journal can take the locks."""
    (folder / "a" / JOURNAL_NAME).write_text("")
    assert lock_all(three, 0.0) is three[1]
    assert all(free(directory) for directory in three)
    (folder / "a" / JOURNAL_NAME).unlink()


def test_a_timeout_gives_all_locks_up(three: list[Directory]) -> None:
    """Those that were taken already."""
    last = max(three, key=lambda d: d.key)
    other = Directory.open(last.path)
    other.lock(0.0)
    try:
        with pytest.raises(errors.LockTimeoutError) as caught:
            lock_all(three, 0.01)
        assert caught.value.filename == last.path
        assert all(free(directory) for directory in three if directory is not last)
    finally:
        other.close()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TimeoutError, ValueError])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_exception_while_unlocking_keeps_no_lock(
    three: list[Directory], kind: type[BaseException], nth: int
) -> None:
    """Whatever a signal handler raises, it goes on, and every lock is gone."""
    assert lock_all(three, 0.0) is None
    seen: list[int] = []

    def strike(_: object) -> None:
        seen.append(1)
        if len(seen) == nth:
            raise kind

    with installed(Acting("flock", strike)), pytest.raises(kind):
        unlock_all(three)
    assert all(free(directory) for directory in three)


def test_an_unlock_that_fails_is_no_error(three: list[Directory]) -> None:
    """The lock goes with the descriptor anyway."""
    assert lock_all(three, 0.0) is None
    with installed(Faulty.every("flock", 5)):
        unlock_all(three)


def test_two_exceptions_keep_no_lock(three: list[Directory], monkeypatch: pytest.MonkeyPatch) -> None:
    """A second exception, while the first is handled, does not leave a folder open, and the first one's object is alive."""
    blows = [TimeoutError("first"), KeyboardInterrupt("second")]
    close = Directory.close

    def struck(self: Directory) -> None:
        if blows:
            raise blows.pop(0)
        close(self)

    assert lock_all(three, 0.0) is None
    paths = [directory.path for directory in three]
    monkeypatch.setattr(Directory, "close", struck)
    with pytest.raises(KeyboardInterrupt) as caught:
        close_all(three)
    assert isinstance(caught.value.__context__, TimeoutError)
    assert [directory.fd for directory in three] == [-1, -1, -1]
    monkeypatch.undo()
    again = [Directory.open(path) for path in paths]
    assert all(free(directory) for directory in again)
    close_all(again)
