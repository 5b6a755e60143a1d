"""`reading`: a reader that never sees half of a transaction."""

from __future__ import annotations

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atomik
from atomik import errors
from atomik._folder import lock as _lock
from atomik._hidden_names import JOURNAL_NAME
from atomik._system import kernel as _kernel
from tests.crash.deaths import die_at
from tests.support.kernels import Acting, Faulty, installed
from tests.support.state import eventually, in_child

if TYPE_CHECKING:
    from collections.abc import Callable


def publish(folder: Path, text: str = "new", timeout: float = 60.0) -> None:
    with atomik.transaction(overwrite=True, lock_timeout=timeout) as tx:
        tx.file(folder / "one").write(text)
        tx.file(folder / "two").write(text)


def look(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in ("one", "two")}


def refused(action: Callable[[], object]) -> str:
    try:
        action()
    except errors.LockTimeoutError as exc:
        return str(exc.filename)
    return "allowed"


def test_a_transaction_waits_for_its_readers(folder: Path) -> None:
    """While someone reads, nothing of several items is published."""
    with atomik.reading(folder):
        assert in_child(lambda: refused(lambda: publish(folder, timeout=0.05))) == str(folder)
    publish(folder)


def test_a_reader_waits_for_the_end_of_a_commit(folder: Path) -> None:
    """In the middle of the swaps, no reader comes in."""
    answers: list[str] = []

    def read() -> None:
        with atomik.reading(folder, lock_timeout=0.05):
            pass

    with installed(Acting("rename", lambda _: answers.append(in_child(lambda: refused(read))))):
        publish(folder)
    assert answers == [str(folder)] * 2


def test_readers_do_not_stop_each_other(folder: Path) -> None:
    """Their locks are shared."""
    with atomik.reading(folder), atomik.reading(folder, folder):
        assert in_child(lambda: refused(lambda: atomik.reading(folder, lock_timeout=0.05).__enter__())) == "allowed"


def test_one_item_writes_are_not_held_off(folder: Path) -> None:
    """They are atomic by themselves."""
    (folder / "one").write_text("old")
    with atomik.reading(folder), atomik.file(folder / "one", overwrite=True, lock_timeout=0.0) as f:
        f.write("new")
    assert (folder / "one").read_text() == "new"


def writer_is_waiting(folder: Path) -> bool:
    """Whether a writer waits for the folder."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        return _kernel.Kernel().writer_is_waiting(fd)
    finally:
        os.close(fd)


def until(condition: Callable[[], bool]) -> None:
    assert eventually(condition)


def test_a_reader_that_comes_later_gives_way_to_a_waiting_writer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise readers whose locks overlap would keep it out forever."""
    monkeypatch.setattr(_lock, "GIVE_WAY", 30.0)
    publish(folder, "old")
    seen: list[set[str]] = []

    def read() -> None:
        with atomik.reading(folder):
            seen.append(look(folder))

    with ThreadPoolExecutor() as pool:
        with atomik.reading(folder):
            writer = pool.submit(publish, folder)
            until(lambda: writer_is_waiting(folder))
            reader = pool.submit(read)
            time.sleep(0.05)
            assert not seen
        writer.result(30)
        reader.result(30)
    assert seen == [{"new"}]
    assert not writer_is_waiting(folder)


def test_overlapping_readers_do_not_starve_a_writer(folder: Path) -> None:
    """Three that read all the time: every transaction gets its turn."""
    publish(folder, "old")
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            with atomik.reading(folder):
                time.sleep(0.002)

    with ThreadPoolExecutor() as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for number in range(20):
                publish(folder, str(number), timeout=60.0)
        finally:
            done.set()
        for reader in readers:
            reader.result(30)


def test_reading_in_reading_ends_although_a_writer_waits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the outer one, which will not end before the inner one: so giving way has an end."""
    monkeypatch.setattr(_lock, "GIVE_WAY", 0.05)
    publish(folder, "old")
    with ThreadPoolExecutor() as pool:
        with atomik.reading(folder):
            writer = pool.submit(publish, folder)
            until(lambda: writer_is_waiting(folder))
            with atomik.reading(folder):
                assert look(folder) == {"old"}
        writer.result(30)
    assert look(folder) == {"new"}


def test_a_dead_writer_is_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sign that it waited went with it."""
    monkeypatch.setattr(_lock, "GIVE_WAY", 120.0)
    publish(folder, "old")
    with atomik.reading(folder):
        die_at(lambda: publish(folder), "announce_writer")
        started = time.monotonic()
        with atomik.reading(folder):
            assert look(folder) == {"old"}
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("call", ["announce_writer", "writer_is_waiting"])
def test_where_nobody_can_tell_that_he_waits(folder: Path, call: str) -> None:
    """A filesystem that refuses such locks (ENOLCK): then it is as luck will have it, and nothing fails."""
    publish(folder, "old")
    broken = Faulty.every(call, errno.ENOLCK)
    with installed(broken), ThreadPoolExecutor() as pool:
        with atomik.reading(folder):
            writer = pool.submit(publish, folder)
            until(lambda: broken.struck or writer_is_waiting(folder))
            with atomik.reading(folder):
                assert look(folder) == {"old"}
        writer.result(30)
    assert broken.struck
    assert look(folder) == {"new"}


def test_what_the_dead_left_is_recovered_first(folder: Path) -> None:
    """The block sees everything old."""
    for name in ("one", "two"):
        (folder / name).write_text("old")
    die_at(lambda: publish(folder), "rename")
    with atomik.reading(folder):
        assert [(folder / name).read_text() for name in ("one", "two")] == ["old", "old"]


@pytest.mark.leftovers("a journal that is none")
def test_a_journal_that_cannot_be_trusted_is_an_error(folder: Path) -> None:
    """The block is not entered."""
    (folder / JOURNAL_NAME).symlink_to("elsewhere")
    with pytest.raises(errors.JournalError), atomik.reading(folder):
        pytest.fail("it was entered")


def test_a_failed_recovery_is_an_error_of_ours(folder: Path) -> None:
    """Nothing but AtomikError comes out."""
    die_at(lambda: publish(folder), "rename")
    with installed(Faulty.every("fsync", errno.EIO)), pytest.raises(errors.RollbackError), atomik.reading(folder):
        pytest.fail("it was entered")
    atomik.recover(folder)


def test_it_locks_what_stands_at_the_path_now(folder: Path) -> None:
    """The folder was replaced between the check and the lock: the lock is on the new one."""
    for name in ("set", "newer"):
        (folder / name).mkdir()
        (folder / name / "one").write_text(name)
    exchanged: list[int] = []

    def exchange(_: object) -> None:
        if not exchanged:
            exchanged.append(1)
            atomik.swap(folder / "set", folder / "newer")

    with installed(Acting("flock", exchange)), atomik.reading(folder / "set"):
        assert (folder / "set" / "one").read_text() == "newer"
        assert in_child(lambda: refused(lambda: publish(folder / "set", timeout=0.05))) != "allowed"
    publish(folder / "newer")


def test_no_time_is_left_to_lock_what_stands_there_now(folder: Path) -> None:
    """A lock on a folder that is not at the path any more would promise nothing: the block is not entered."""
    for name in ("set", "newer"):
        (folder / name).mkdir()

    def exchange(_: object) -> None:
        atomik.rename.swap(folder / "set", folder / "newer")

    late = atomik.reading(folder / "set", lock_timeout=0.0)
    with installed(Acting("flock", exchange)), pytest.raises(errors.LockTimeoutError) as caught, late:
        pytest.fail("it was entered")
    assert caught.value.filename == str(folder / "set")
    for name in ("set", "newer"):
        publish(folder / name, timeout=0.0)


def test_the_locks_go_when_the_block_is_left(folder: Path) -> None:
    """Whatever happens in it."""
    with pytest.raises(ZeroDivisionError), atomik.reading(folder):
        _ = 1 / 0
    publish(folder, timeout=0.0)


def test_a_missing_folder_is_named(folder: Path) -> None:
    """And nothing stays locked."""
    with pytest.raises(errors.MissingPathError) as caught, atomik.reading(folder, folder / "none"):
        pytest.fail("it was entered")
    assert caught.value.filename == str(folder / "none")
    publish(folder, timeout=0.0)


def test_relative_paths_and_bytes(folder: Path) -> None:
    """Any kind of path is accepted."""
    with atomik.reading(".", os.fsencode(folder)):  # type: ignore[arg-type]
        assert in_child(lambda: refused(lambda: publish(folder, timeout=0.05))) == str(folder)


def test_a_forked_child_keeps_no_lock(folder: Path) -> None:
    """The lock is the reader's, not that of a child that outlives the block."""
    reader, writer = os.pipe()
    told, tell = os.pipe()
    with atomik.reading(folder):
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.write(tell, b"x")  # it has begun its own life
            os.read(reader, 1)  # which lasts until the parent lets it go
            os._exit(0)
        assert os.read(told, 1) == b"x"
    for fd in (reader, told, tell):
        os.close(fd)
    try:
        publish(folder, timeout=0.0)
    finally:
        os.close(writer)
        os.waitpid(child, 0)
