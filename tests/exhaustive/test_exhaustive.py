"""The exhaustive exploration for a few transactions; and it catches the library when a barrier or a rule is taken out."""

from __future__ import annotations

import stat
from collections.abc import Callable

import pytest

from tests.exhaustive.crashes import Cut, key_of
from tests.exhaustive.explore import Explorer, Known, Violation
from tests.exhaustive.memory import ROOT, Bytes, Disk, Made, MemoryKernel, Names, Sync
from tests.exhaustive.transactions import Case, cases


@pytest.mark.parametrize("names", [("create",), ("replace",), ("folder",), ("exchange",), ("folder-to-file",)])
def test_one_item(names: tuple[str, ...]) -> None:
    """Every crash of it, and every crash of each recovery."""
    counts = Explorer(Case(names)).explore()
    assert counts.refused or (counts.disks and counts.kills)


@pytest.mark.sweep
@pytest.mark.parametrize(
    "skip",
    [
        lambda kernel, ino: kernel.disk.data.get(ino, b"").startswith(b"AtmK"),
        lambda kernel, ino: stat.S_ISDIR(kernel.disk.made[ino].mode),
        lambda kernel, ino: True,
    ],
    ids=["the journal's", "the folders'", "all"],
)
def test_a_missing_sync_is_found(skip: Callable[[MemoryKernel, int], bool]) -> None:
    """A transaction that leaves those syncs out breaks a promise on one of its disks."""

    def mutant(kernel: MemoryKernel, recovering: bool) -> None:
        kernel.skip = skip if not recovering else None

    with pytest.raises(Violation):
        Explorer(Case(("replace", "remove")), mutant).explore()


def test_what_is_known_may_be_shared() -> None:
    """The disks that syncfs leaves are among those of fsync, so none of them is recovered again."""
    known = Known()
    first, again = (Explorer(Case(("replace",), how), known=known).explore() for how in ("fsync", "syncfs"))
    assert first.disks
    assert (again.disks, again.kills) == (0, Explorer(Case(("replace",), "syncfs")).explore().kills)


@pytest.mark.sweep
@pytest.mark.parametrize("case", cases(1), ids=str)
def test_every_operation(case: Case) -> None:
    """Alone, with each way to sync."""
    Explorer(case).explore()


@pytest.mark.sweep
@pytest.mark.parametrize(
    "names",
    [
        ("replace", "remove"),
        ("folder", "exchange"),
        ("remove", "file-to-folder"),
        ("move", "move-over"),
        ("link", "backup"),
    ],
    ids=" + ".join,
)
def test_two_items(names: tuple[str, ...]) -> None:
    """Some pairs; ``python -m tests.exhaustive`` does all, and all of three."""
    counts = Explorer(Case(names)).explore()
    assert counts.crashes > 150


def test_what_was_not_synced_may_be_missing() -> None:
    """Of two names and the bytes behind one of them, every part that a disk may keep."""
    made = {ROOT: Made(0o40755), 2: Made(0o100600), 3: Made(0o100600)}
    cut = Cut(Disk(made=made))
    log = [Names((((ROOT, "x"), 2),)), Bytes(2, 0, b"AtmK"), Names((((ROOT, "y"), 3),))]
    found = {key_of(disk) for record in log for disk in cut.after(record, made)}
    # x: absent; there and empty, whole, or zeros; each without y and with it; but nothing at all is not new.
    assert len(found) == 7
    assert list(cut.after(Sync(ROOT), made)) == []
    assert {frozenset(disk.tree().items()) for disk in cut.everything()} == {
        frozenset({("x", data), ("y", b"")}) for data in (b"", b"AtmK", bytes(4))
    }


def test_changes_of_one_entry_come_in_order() -> None:
    """A name that was made and renamed is never seen to be made again, and an exchange is whole or not at all."""
    made = {ROOT: Made(0o40755), 2: Made(0o40755), 3: Made(0o100600), 4: Made(0o100600)}
    cut = Cut(Disk({(ROOT, "d"): 2, (ROOT, "x"): 3, (2, "y"): 4}, made=made))
    swap = Names((((ROOT, "x"), 4), ((2, "y"), 3)))
    gone = Names((((2, "y"), None),))
    assert [dict(disk.names) for disk in cut.after(swap, made)] == [{(ROOT, "d"): 2, (ROOT, "x"): 4, (2, "y"): 3}]
    assert [dict(disk.names) for disk in cut.after(gone, made)] == [{(ROOT, "d"): 2, (ROOT, "x"): 4}]
    assert len(list(cut.everything())) == 3


def test_a_file_between_folders_may_have_both_names() -> None:
    """When only the new folder was synced; not when the old one was."""
    made = {ROOT: Made(0o40755), 2: Made(0o40755), 3: Made(0o100600)}
    cut = Cut(Disk({(ROOT, "d"): 2, (ROOT, "x"): 3}, made=made))
    list(cut.after(Names((((ROOT, "x"), None), ((2, "y"), 3)), ROOT, 2), made))
    assert [dict(disk.names) for disk in cut.after(Sync(2), made)] == [{(ROOT, "d"): 2, (ROOT, "x"): 3, (2, "y"): 3}]
    assert list(cut.after(Sync(ROOT), made)) == []
    assert [dict(disk.names) for disk in cut.everything()] == [{(ROOT, "d"): 2, (2, "y"): 3}]
