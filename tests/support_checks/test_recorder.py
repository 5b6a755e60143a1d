"""The recorder on real filesystems: it catches what a power cut would break, and nothing else."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.lab import disks, linux, namespace
from tests.support.lab.crash_images import CrashImages
from tests.support.lab.need import need
from tests.support.lab.recorder import Flush, Mark, Recording, Write, missing_recorder, recording

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.sweep]

KINDS = ("ext4", "xfs", "btrfs")
OLD = b"old " * 3000
NEW = b"new!" * 3000


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    need(missing_recorder(), disks.missing_disk(name))
    return name


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write(path: Path, content: bytes, *, synced: bool) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if synced:
            os.fsync(file.fileno())


def right(folder: Path) -> None:
    write(folder / "staged", NEW, synced=True)
    (folder / "staged").rename(folder / "x")
    sync(folder)


def without_file_sync(folder: Path) -> None:
    write(folder / "staged", NEW, synced=False)
    (folder / "staged").rename(folder / "x")
    sync(folder)


def exchange_without_file_sync(folder: Path) -> None:
    write(folder / "staged", NEW, synced=False)
    linux.renameat2(folder / "staged", folder / "x", linux.RENAME_EXCHANGE)
    sync(folder)


def without_folder_sync(folder: Path) -> None:
    write(folder / "staged", NEW, synced=True)
    (folder / "staged").rename(folder / "x")


def record(kind: str, replace: Callable[[Path], None]) -> Recording:
    with recording(kind) as tape:
        write(tape.folder / "x", OLD, synced=True)
        tape.start()
        replace(tape.folder)
        tape.mark("replaced")
        # Noise, so that the journal goes on while what was not synced is still in memory.
        write(tape.folder / "noise", b"noise" * 1000, synced=True)
    return tape


def violations(tape: Recording) -> tuple[int, list[str]]:
    """How many states there were, and those in which "x" is not what was promised."""
    images, count, wrong = CrashImages.of(tape), 0, []
    for state in images.states(seed=20240607):
        count += 1
        with images.mounted(state) as folder:
            path = folder / "x"
            content = path.read_bytes() if path.exists() else None
        allowed = (NEW,) if "replaced" in state.marks else (OLD, NEW)
        if content not in allowed:
            wrong.append(state.label)
    return count, wrong


def test_the_right_sequence_passes_in_every_state(kind: str) -> None:
    """fsync, rename, fsync of the folder: old or new in each crash state, and new once it has returned."""
    count, wrong = violations(record(kind, right))
    assert count >= 10
    assert wrong == []


@pytest.mark.parametrize(
    ("kind", "replace"),
    [
        ("xfs", without_file_sync),
        ("btrfs", without_file_sync),
        ("ext4", exchange_without_file_sync),
        ("xfs", exchange_without_file_sync),
        ("btrfs", exchange_without_file_sync),
        ("ext4", without_folder_sync),
        ("xfs", without_folder_sync),
        ("btrfs", without_folder_sync),
    ],
    indirect=["kind"],
)
def test_a_missing_sync_is_caught(kind: str, replace: Callable[[Path], None]) -> None:
    """Without one of its syncs, the same replacement breaks its promise in at least one crash state."""
    _, wrong = violations(record(kind, replace))
    assert wrong


def test_a_mark_stands_after_what_was_synced_before_it(kind: str) -> None:
    """The log has the file's data, then a flush, then the mark; and marks in the order of the program."""
    with recording(kind) as tape:
        tape.start()
        write(tape.folder / "x", NEW, synced=True)
        tape.mark("synced")
        child = os.fork()
        if child == 0:
            tape.mark("from a child")
            os._exit(0)
        os.waitpid(child, 0)
        tape.mark("last")
    start = [event for event in tape.events if isinstance(event, Mark)]
    assert [mark.text for mark in start[1:]] == ["synced", "from a child", "last"]
    before = tape.events[: tape.events.index(Mark("synced"))]
    data = next(n for n, event in enumerate(before) if isinstance(event, Write) and NEW[:512] in bytes(event.data))
    assert any(isinstance(event, Flush) for event in before[data:])


def test_a_failed_write_shows_once_at_fsync(kind: str) -> None:
    """A disk that refuses the data gives EIO at fsync; a second fsync of the file says that all is well."""
    with recording(kind) as tape, (tape.folder / "x").open("wb") as file:
        with tape.recorder.failing_writes(b"BBBB"):
            file.write(b"B" * 65536)
            file.flush()
            with pytest.raises(OSError, match="Input/output") as caught:
                os.fsync(file.fileno())
            assert caught.value.errno == errno.EIO
        os.fsync(file.fileno())


def test_states_can_be_built_in_any_order(kind: str) -> None:
    """Going back in the log gives the same disk as the first time."""
    images = CrashImages.of(record(kind, right))
    states = list(images.states(seed=1))
    first, again = (namespace.scratch("compare") / name for name in ("first", "again"))
    images.build(states[0], first)
    images.build(states[-1], again)
    images.build(states[0], again)
    assert first.read_bytes() == again.read_bytes()


def test_a_recovery_can_be_recorded_in_its_turn(kind: str) -> None:
    """A recording that begins at a crash state sees that state's files, and is cut like any other."""
    images = CrashImages.of(record(kind, right))
    *_, last = images.states(seed=1)
    image = namespace.scratch("crashed") / "disk.img"
    images.build(last, image)
    with recording(kind, image=image) as tape:
        assert (tape.folder / "x").read_bytes() == NEW
        tape.start()
        write(tape.folder / "y", OLD, synced=True)
        sync(tape.folder)
        tape.mark("recovered")
    second = CrashImages.of(tape)
    for state in second.states(seed=1):
        with second.mounted(state) as folder:
            assert (folder / "x").read_bytes() == NEW
            if "recovered" in state.marks:
                assert (folder / "y").read_bytes() == OLD
