"""`recover`: what it finds, what it does, what it says, and what it refuses to guess.

That it may be killed at every call is proved in tests/crash; hostile folders in tests/promises/test_hostile.py.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atomik
from atomik import _hidden_names, errors
from atomik._hidden_names import JOURNAL_NAME
from atomik._system import forked as _forked
from atomik._system.kernel import MUTATING
from tests.crash.deaths import die_at
from tests.support.kernels import ALL, Acting, Call, Faulty, Recording, Watching, installed
from tests.support.lab import mounting, mounts, namespace
from tests.support.lab.need import need
from tests.support.state import left_in, tree


@pytest.fixture
def pair(folder: Path) -> tuple[Path, Path]:
    """Two folders, each with an old file."""
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "x").write_text("old")
    return folder / "a", folder / "b"


def publish(*folders: Path, text: str = "new") -> None:
    with atomik.transaction(overwrite=True) as tx:
        for folder in folders:
            tx.file(folder / "x").write(text)
        tx.file(folders[0] / "y").write(text)


def hot(*folders: Path, swaps: int = 1) -> None:
    """A transaction over these folders died after this many swaps."""
    die_at(lambda: publish(*folders), "rename", swaps)


def contents(*folders: Path) -> list[str]:
    return [(folder / "x").read_text() for folder in folders]


def actions(report: atomik.RecoveryReport) -> list[tuple[str, str]]:
    return [(os.path.basename(item.path), item.action) for item in report.items]


# --- what it does ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("before", ["nothing", "file"])
def test_a_folder_that_was_made_by_what_is_undone(folder: Path, before: str) -> None:
    """It was passed because it was there; that the recovery takes it away is not a failure."""
    if before == "file":
        Path("new").write_text("old")

    def job() -> None:
        with atomik.transaction() as tx:
            tx.remove("new", missing_ok=True)
            tx.folder("new")
            tx.write_text("other", "")

    die_at(job, "rename", 1)
    assert Path("new").is_dir()
    assert atomik.recover(".", "new").clean
    assert [path.name for path in folder.iterdir()] == ["new"] * (before == "file")
    with pytest.raises(errors.AtomikOSError):
        atomik.recover("new")


def test_nothing_to_recover(folder: Path) -> None:
    """An ordinary folder gives an empty report."""
    report = atomik.recover(folder)
    assert report.items == ()
    assert report.clean
    assert str(report) == "nothing to recover"


@pytest.mark.parametrize("start", [0, 1])
def test_the_other_parents_are_found_from_any_one(pair: tuple[Path, Path], start: int) -> None:
    """All come back, whichever folder recovery is called for, and each item is reported."""
    hot(*pair, swaps=2)
    assert contents(*pair) == ["new", "new"]
    report = atomik.recover(pair[start])
    assert contents(*pair) == ["old", "old"]
    assert actions(report) == [("y", "untouched"), ("x", "undone"), ("x", "undone")]
    assert report.clean
    assert not left_in(pair[0].parent)


def test_a_committed_transaction_is_finished(pair: tuple[Path, Path]) -> None:
    """Its mark was durable, so the new version stays, and what was displaced goes."""
    die_at(lambda: publish(*pair), "pwrite", 2)
    assert left_in(pair[0].parent)
    report = atomik.recover(pair[1])
    assert contents(*pair) == ["new", "new"]
    assert {action for _, action in actions(report)} == {"finished"}
    assert not left_in(pair[0].parent)


def test_what_was_staged_and_never_committed_is_removed(folder: Path) -> None:
    """The private folder of a dead process is found by its free lock."""

    def stage() -> None:
        tx = atomik.transaction()
        (tx.folder(folder / "set") / "f").write_text("staged")
        tx.file(folder / "x").write("staged")
        atomik._system.kernel.port.unlink("no such file", 0)  # type: ignore[attr-defined]

    die_at(stage, "unlink", after=False)
    (left,) = left_in(folder)[:1]
    report = atomik.recover(folder)
    assert [(item.path, item.action) for item in report.items] == [(left, "removed")]
    assert os.listdir(folder) == []


def test_the_slot_of_a_killed_one_item_write_is_removed(folder: Path) -> None:
    """Whether it holds the staged or the displaced version."""
    for when, content in ((False, "old"), (True, "new")):
        (folder / "x").write_text("old")

        def write() -> None:
            with atomik.file(folder / "x", overwrite=True) as f:
                f.write("new")

        die_at(write, "rename", after=when)
        assert [path.name[:8] for path in folder.iterdir() if path.name != "x"] == [".atomik-"]
        (item,) = atomik.recover(folder).items
        assert (item.action, item.detail) == ("removed", "left by a write of a single output")
        assert [path.read_text() for path in folder.iterdir()] == [content]


def test_the_living_are_left_alone(folder: Path) -> None:
    """Recovery of a folder in which a transaction is being staged reports it and touches nothing."""
    with atomik.transaction() as tx:
        (tx.folder(folder / "set") / "f").write_text("staged")
        (item,) = atomik.recover(folder).items
        assert (item.action, item.txid) == ("live", tx.txid)
    assert (folder / "set" / "f").read_text() == "staged"


def test_it_is_idempotent(pair: tuple[Path, Path]) -> None:
    """A second call finds nothing."""
    hot(*pair)
    atomik.recover(*pair)
    assert atomik.recover(*pair).items == ()


def test_a_dry_run_changes_nothing(pair: tuple[Path, Path]) -> None:
    """It names the journal and what it is about."""
    hot(*pair)
    before = left_in(pair[0].parent)
    report = atomik.recover(*pair, dry_run=True)
    assert left_in(pair[0].parent) == before
    assert contents(*pair) == ["new", "old"]
    assert [action for _, action in actions(report)] == ["hot", "hot"], "each folder's journal once"
    assert report.clean, "nothing in it wants attention"
    assert report.items[0].detail == "replace x; replace x; create y"
    atomik.recover(*pair)


class ReadOnly(Watching):
    """A filesystem that is mounted read-only: whatever would change it, or opens something for that, is refused."""

    def __init__(self) -> None:
        super().__init__(ALL)
        self.refused: list[Call] = []

    def around(self, call: Call, go: Callable[[], Any]) -> Any:
        """Refuse it; locks are in memory."""
        writes = call.name in MUTATING - {"flock"} or (call.name == "open" and call.args[1] & (os.O_WRONLY | os.O_RDWR))
        if not writes:
            return go()
        self.refused.append(call)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def _something_of_each_kind(pair: tuple[Path, Path]) -> None:
    """What a folder may hold of ours: a hot journal, one that others may write to, private folders, slots, kept originals."""

    def stage() -> None:
        with atomik.transaction() as tx:
            (tx.folder(pair[0] / "set") / "f").write_text("staged")
            (tx.folder(pair[0] / "kept", resume=True) / "f").write_text("staged")
            tx.symlink(pair[0] / "link", "x")

    die_at(stage, "symlink", 1)
    hot(*pair)
    below = pair[0] / "below"
    below.mkdir()
    (below / JOURNAL_NAME).write_bytes((pair[0] / JOURNAL_NAME).read_bytes())
    (below / JOURNAL_NAME).chmod(0o602)
    for number, mode in enumerate((0o700, 0o755)):
        private = below / _hidden_names.private_folder_name(f"{number:016x}")
        private.mkdir(mode)
        (private / _hidden_names.slot_name(f"{number:016x}", "0")).touch()
    for number in range(2, 4):
        slot = _hidden_names.slot_name(f"{number:016x}", "0")
        (below / (slot if number == 2 else _hidden_names.kept_name(slot))).touch()


@pytest.mark.leftovers("some of each kind")
def test_a_dry_run_writes_nothing(pair: tuple[Path, Path]) -> None:
    """Not even a file to find out whether an owner and a mode mean anything, and it opens nothing for writing."""
    _something_of_each_kind(pair)
    before = tree(pair[0].parent)
    with installed(ReadOnly()) as kernel:
        report = atomik.recover(*pair, recursive=True, dry_run=True)
    assert kernel.refused == []
    assert tree(pair[0].parent) == before
    found = sorted(action for _, action in actions(report))
    assert found == "abandoned abandoned hot hot kept left left resumable slot".split()
    (doubtful,) = (item for item in report.items if item.detail.startswith("others may write"))
    assert "only a recovery finds out" in doubtful.detail


@pytest.mark.root
@pytest.mark.leftovers("some of each kind")
def test_a_dry_run_of_a_mount_that_is_read_only(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """It says the same as on one that can be written to; a recovery says why it cannot be."""
    need(namespace.missing_root())
    _something_of_each_kind(pair)
    expected = [(item.action, item.detail) for item in atomik.recover(*pair, recursive=True, dry_run=True).items]
    with mounts.bind(pair[0].parent, tmp_path / "mount") as mount, mounting.read_only(mount):
        report = atomik.recover(mount / "a", mount / "b", recursive=True, dry_run=True)
        with pytest.raises(errors.AtomikOSError, match="Read-only file system"):
            atomik.recover(mount / "b")
    assert [(item.action, item.detail) for item in report.items] == expected


def test_it_is_logged(pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    """The same as the report, as events."""
    hot(*pair)
    with caplog.at_level(logging.INFO, "atomik"):
        atomik.recover(pair[0])
    told = [record.getMessage() for record in caplog.records]
    assert sum("recovery.undone" in line for line in told) == 1
    assert sum("recovery.untouched" in line for line in told) == 2


@pytest.mark.leftovers("some of each kind")
def test_a_dry_run_is_no_event(pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    """Nothing happened; what a recovery does and finds is logged, each item of its report."""
    _something_of_each_kind(pair)
    with caplog.at_level(logging.DEBUG, "atomik"):
        assert atomik.recover(*pair, recursive=True, dry_run=True).kept
        assert not caplog.records
        torn = pair[0] / "below" / JOURNAL_NAME
        torn.write_bytes(b"")
        torn.chmod(0o600)
        report = atomik.recover(*pair, recursive=True)
    told = {(record.path, record.event.removeprefix("recovery.")) for record in caplog.records}  # type: ignore[attr-defined]
    assert told == {(item.path, item.action) for item in report.items}
    assert {"kept", "left", "removed", "resumable", "undone", "untouched"} == {action for _, action in told}
    assert (str(torn), "removed") in told


@pytest.mark.parametrize("calls_atomik", [False, True])
@pytest.mark.parametrize("call", ["rename", "unlink", "fsync"])
def test_an_error_of_atomik_that_a_signal_handler_raises(
    pair: tuple[Path, Path], call: str, calls_atomik: bool
) -> None:
    """It is not a failure of the folder, but goes on at once, without a report (I13)."""
    hot(*pair, swaps=2)
    raised = errors.LockTimeoutError(errno.ETIMEDOUT, "of another folder")

    def handler(_: object) -> None:
        if calls_atomik:
            atomik.recover(pair[0] / "missing")
        raise raised

    with installed(Acting(call, handler)), pytest.raises(errors.AtomikOSError) as caught:
        atomik.recover(*pair)
    if calls_atomik:
        assert caught.value.filename == str(pair[0] / "missing")
    else:
        assert caught.value is raised
        assert raised.report is None
    assert atomik.recover(*pair).clean
    assert contents(*pair) == ["old", "old"]


def test_progress_is_told(pair: tuple[Path, Path]) -> None:
    """Folder by folder."""
    told: list[tuple[str, int, int]] = []
    atomik.recover(*pair, progress=lambda *args: told.append(args))
    assert told == [("recovering", 1, 2), ("recovering", 2, 2)]


# --- by itself -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("what", ["transaction", "one item", "reader"])
def test_it_happens_by_itself(pair: tuple[Path, Path], start: int, what: str) -> None:
    """A hot journal is recovered first, in all folders, by everybody who finds it."""
    hot(*pair, swaps=2)
    place = pair[start]
    if what == "transaction":
        with atomik.transaction() as tx:
            tx.symlink(place / "p", "q")
            tx.symlink(place / "q", "p")
    elif what == "one item":
        with atomik.file(place / "p") as f:
            f.write("1")
    else:
        with atomik.reading(place):
            assert contents(place) == ["old"]
    assert contents(*pair) == ["old", "old"]
    atomik.recover(*pair)


# --- strangers -------------------------------------------------------------------------------------------------------
@pytest.fixture
def stranger(pair: tuple[Path, Path]) -> tuple[Path, Path]:
    """A transaction died after all its swaps, and then someone replaced one of its files."""
    hot(*pair, swaps=3)
    (pair[0] / "theirs").write_text("theirs")
    (pair[0] / "theirs").rename(pair[0] / "x")
    return pair


def test_a_strangers_object_stays_and_the_original_is_kept(stranger: tuple[Path, Path]) -> None:
    """I4: the other items are undone, the displaced original is in its slot, and the journal stops nobody."""
    report = atomik.recover(stranger[0])
    assert contents(*stranger) == ["theirs", "old"]
    assert ("x", "foreign") in actions(report)
    assert not report.clean
    (kept,) = report.kept
    assert Path(kept.detail.removeprefix("the displaced original is at ")).read_text() == "old"
    assert not [path for path in left_in(stranger[0].parent) if path.endswith(JOURNAL_NAME)]
    publish(*stranger, text="newer")
    assert contents(*stranger) == ["newer", "newer"]
    atomik.recover(*stranger, discard=True)


def test_what_is_kept_is_told_until_it_is_discarded(stranger: tuple[Path, Path]) -> None:
    """Each recovery reports it again; discard=True deletes it."""
    for _ in range(3):
        assert len(atomik.recover(*stranger).kept) == 1
    assert {action for _, action in actions(atomik.recover(*stranger, dry_run=True))} == {"kept"}
    report = atomik.recover(*stranger, discard=True)
    assert ("x", "discarded") in actions(report)
    assert contents(*stranger) == ["theirs", "old"]
    assert not left_in(stranger[0].parent)


def test_what_came_between_look_and_swap_returns_after_a_death(folder: Path) -> None:
    """We displaced a stranger's object, and died before it could be given back: recovery gives it back."""
    (folder / "x").write_text("old")

    def raced() -> None:
        def theirs(_: object) -> None:
            (folder / "theirs").write_text("theirs")
            (folder / "theirs").rename(folder / "x")

        with installed(Acting("rename", theirs, when=lambda call: "x" in (call.args[0], call.args[2]))):
            publish(folder)

    die_at(raced, "rename")
    assert contents(folder) == ["new"]
    report = atomik.recover(folder)
    assert contents(folder) == ["theirs"]
    assert ("x", "foreign") in actions(report)
    assert os.listdir(folder) == ["x"]


def test_what_came_between_look_and_removal_returns_after_a_death(folder: Path) -> None:
    """The same for a removal, which took a stranger's object away."""
    (folder / "x").write_text("old")

    def raced() -> None:
        def theirs(_: object) -> None:
            (folder / "theirs").write_text("theirs")
            (folder / "theirs").rename(folder / "x")

        with installed(Acting("rename", theirs, when=lambda call: call.args[0] == "x")), atomik.transaction() as tx:
            tx.remove(folder / "x")
            tx.symlink(folder / "y", "x")

    die_at(raced, "rename")
    assert os.listdir(folder) != ["x"]
    atomik.recover(folder)
    assert contents(folder) == ["theirs"]
    assert os.listdir(folder) == ["x"]


def test_a_file_that_somebody_made_before_we_swapped_is_none_of_our_business(pair: tuple[Path, Path]) -> None:
    """Died before the swaps; another program published there since: nothing to report as foreign."""
    die_at(lambda: publish(*pair), "rename", after=False)
    (pair[0] / "theirs").write_text("theirs")
    (pair[0] / "theirs").rename(pair[0] / "x")
    report = atomik.recover(*pair)
    assert {action for _, action in actions(report)} == {"untouched"}
    assert report.clean
    assert contents(*pair) == ["theirs", "old"]


# --- the tree moved --------------------------------------------------------------------------------------------------
def test_the_tree_may_be_renamed(pair: tuple[Path, Path]) -> None:
    """Folders are found relative to each other, and known by their identity."""
    hot(*pair, swaps=2)
    top = pair[0].parent
    moved = top.rename(top.with_name("moved"))
    atomik.recover(moved / "b")
    assert contents(moved / "a", moved / "b") == ["old", "old"]
    assert not left_in(moved)
    moved.rename(top)


@pytest.mark.parametrize("what", ["transaction", "single", "reading", "recover"])
def test_one_parent_of_a_committed_transaction_may_be_renamed(pair: tuple[Path, Path], what: str) -> None:
    """A transaction that finds its journal there continues; the rest is settled from the other parent."""
    die_at(lambda: publish(*pair), "pwrite", 2)
    a = pair[0].rename(pair[0].with_name("renamed"))
    if what == "transaction":
        publish(a, text="newer")
    elif what == "single":
        with atomik.file(a / "z", lock_timeout=1) as f:
            f.write("newer")
    elif what == "reading":
        with atomik.reading(a, lock_timeout=1):
            assert (a / "x").read_text() == "new"
    else:
        assert ("x", "finished") in actions(atomik.recover(a))
    assert not left_in(a)
    atomik.recover(pair[1])
    assert contents(pair[1]) == ["new"]
    assert not left_in(pair[0].parent)


def test_one_parent_of_an_unfinished_transaction_may_be_renamed(pair: tuple[Path, Path]) -> None:
    """From it the others are found; it is found from none of them, and that changes nothing."""
    hot(*pair, swaps=3)
    a = pair[0].rename(pair[0].with_name("renamed"))
    with pytest.raises(errors.RollbackError, match="put it back"):
        atomik.recover(pair[1])
    assert contents(a, pair[1]) == ["new", "new"]
    report = atomik.recover(a)
    assert actions(report) == [("y", "undone"), ("x", "undone"), ("x", "undone")]
    assert contents(a, pair[1]) == ["old", "old"]
    assert not left_in(pair[0].parent)


@pytest.mark.root
@pytest.mark.filesystems
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_the_disk_may_be_mounted_elsewhere(kind: str) -> None:
    """A remount changes st_dev and the path, and not the identities."""
    need(mounts.missing(kind))
    with mounts.mounted(kind) as place:
        assert place.disk is not None
        for name in ("a", "b"):
            (place.folder / name).mkdir()
            (place.folder / name / "x").write_text("old")
        hot(place.folder / "a", place.folder / "b", swaps=2)
        with place.disk.mounted_again() as root:
            again = root / place.folder.relative_to(place.root)
            atomik.recover(again / "b")
            assert contents(again / "a", again / "b") == ["old", "old"]
        hot(place.folder / "a", place.folder / "b", swaps=2)
        place.disk.unmount()
        place.disk.mount()
        atomik.recover(place.folder / "b")
        assert contents(place.folder / "a", place.folder / "b") == ["old", "old"]
        assert not left_in(place.folder)


def test_a_missing_parent_is_an_error_until_it_is_back(pair: tuple[Path, Path]) -> None:
    """Nothing is undone by halves: the journal stays, and says what is missing."""
    hot(*pair, swaps=2)
    away = pair[1].rename(pair[1].with_name("away"))
    with pytest.raises(errors.RollbackError, match=r"put it back, or give up its part with recover\(discard=True\)"):
        atomik.recover(pair[0])
    assert contents(pair[0], away) == ["new", "new"]
    with pytest.raises(errors.RollbackError):
        publish(pair[0], text="newer")
    away.rename(pair[1])
    atomik.recover(pair[0])
    assert contents(*pair) == ["old", "old"]
    assert not left_in(pair[0].parent)


def test_a_missing_parent_can_be_given_up(pair: tuple[Path, Path]) -> None:
    """discard=True undoes what is there."""
    hot(*pair, swaps=2)
    shutil.rmtree(pair[1])
    report = atomik.recover(pair[0], discard=True)
    assert contents(pair[0]) == ["old"]
    assert ("x", "unreachable") in actions(report)
    assert not left_in(pair[0].parent)


def test_a_folder_that_went_with_a_rolled_back_transaction_is_not_missed(pair: tuple[Path, Path]) -> None:
    """After a power cut the journal may linger in one folder, while one that the transaction had made is gone already."""

    def fail(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("swapping", total):
            raise KeyError

    def job() -> None:
        with contextlib.suppress(KeyError), atomik.transaction(overwrite=True, progress=fail) as tx:
            tx.file(pair[0] / "x").write("new")
            tx.file(pair[1] / "made" / "y", parents=True).write("new")

    die_at(job, "unlink", after=False)
    assert (pair[0] / ".atomik-journal").exists()
    shutil.rmtree(pair[1] / "made")
    report = atomik.recover(pair[0])
    assert report.clean
    assert contents(pair[0]) == ["old"]
    assert not left_in(pair[0].parent)


def test_another_folder_in_the_place_of_a_parent_is_not_touched(pair: tuple[Path, Path]) -> None:
    """The path leads somewhere, but not to the folder that took part."""
    hot(*pair, swaps=2)
    pair[1].rename(pair[1].with_name("away"))
    pair[1].mkdir()
    (pair[1] / "x").write_text("innocent")
    with pytest.raises(errors.RollbackError):
        atomik.recover(pair[0])
    assert contents(pair[1]) == ["innocent"]
    shutil.rmtree(pair[1])
    pair[1].with_name("away").rename(pair[1])
    atomik.recover(*pair)


def test_a_lost_claim_is_an_error_and_not_half_an_undo(pair: tuple[Path, Path]) -> None:
    """Someone moved atomik's folder, and in it the originals: nothing is undone before it is back."""
    hot(*pair, swaps=2)
    (private_folder,) = (path for path in pair[1].iterdir() if path.is_dir())
    private_folder.rename(pair[1].parent / "elsewhere")
    with pytest.raises(errors.RollbackError):
        atomik.recover(pair[0])
    assert contents(*pair) == ["new", "new"]
    (pair[1].parent / "elsewhere").rename(private_folder)
    atomik.recover(pair[0])
    assert contents(*pair) == ["old", "old"]
    assert not left_in(pair[0].parent)


def test_giving_a_part_up_never_deletes_what_was_moved(pair: tuple[Path, Path]) -> None:
    """The source's folder is gone: the object stays where the move had brought it."""
    (pair[0] / "only").write_text("the only copy")

    def move() -> None:
        with atomik.transaction() as tx:
            tx.move(pair[0] / "only", pair[1] / "copy")
            tx.file(pair[1] / "new").write("new")

    die_at(move, "rename", 3)
    shutil.rmtree(pair[0])
    atomik.recover(pair[1], discard=True)
    assert (pair[1] / "copy").read_text() == "the only copy"
    assert not (pair[1] / "new").exists()
    assert not left_in(pair[1])


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.leftovers("a copy that is refused")
def test_a_copied_tree_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A backup holds the journal of folders that are not the copied ones; nothing is touched."""
    hot(*pair, swaps=2)
    copy = tmp_path / "copy"
    shutil.copytree(pair[0].parent, copy, symlinks=True)
    before = left_in(copy)
    for start in ("a", "b"):
        with pytest.raises(errors.JournalError, match="copied here, or restored from a backup"):
            atomik.recover(copy / start)
    assert contents(copy / "a", copy / "b") == ["new", "new"]
    assert left_in(copy) == before
    atomik.recover(*pair)


@pytest.mark.leftovers("a copy that is refused")
def test_a_copied_journal_is_refused_in_its_own_folder(folder: Path) -> None:
    """It is out of date: the transaction has been committed since."""
    (folder / "x").write_text("old")
    saved: list[bytes] = []
    with installed(Acting("rename", lambda _: saved.append((folder / JOURNAL_NAME).read_bytes()))):
        publish(folder)
    (folder / JOURNAL_NAME).write_bytes(saved[0])
    (folder / JOURNAL_NAME).chmod(0o600)
    with pytest.raises(errors.JournalError, match="is a copy"):
        atomik.recover(folder)
    assert contents(folder) == ["new"]


@pytest.mark.parametrize("change", [20, 100, -1])
@pytest.mark.usefixtures("no_log")
def test_a_damaged_journal_is_refused_and_nothing_touched(pair: tuple[Path, Path], change: int) -> None:
    """It is neither undone nor dropped, because it is unknown what was swapped."""
    hot(*pair, swaps=2)
    journal = pair[0] / JOURNAL_NAME
    good = journal.read_bytes()
    bad = bytearray(good)
    bad[change] ^= 0x10 if bad[change] != 0x10 else 0x01  # not to zero, which at the end is what a power cut leaves
    journal.write_bytes(bad)
    for action in (atomik.recover, publish, lambda folder: atomik.reading(folder).__enter__()):
        with pytest.raises(errors.JournalError, match="nothing was touched"):
            action(pair[0])
    assert contents(*pair) == ["new", "new"]
    journal.write_bytes(good)
    atomik.recover(*pair)
    assert contents(*pair) == ["old", "old"]


def test_a_newer_journal_is_refused(pair: tuple[Path, Path]) -> None:
    """Never guessed at."""
    hot(*pair)
    journal = pair[0] / JOURNAL_NAME
    good = journal.read_bytes()
    journal.write_bytes(good[:4] + b"\3" + good[5:])
    with pytest.raises(errors.JournalError, match="format version 3"):
        atomik.recover(pair[0])
    journal.write_bytes(good)
    atomik.recover(*pair)


def test_a_torn_journal_is_dropped(pair: tuple[Path, Path]) -> None:
    """Its intent was never durable, so there was no swap: everything is as it was, and the private folders go."""
    die_at(lambda: publish(*pair), "rename", after=False)
    journal = pair[0] / JOURNAL_NAME
    os.truncate(journal, journal.stat().st_size - 70)
    report = atomik.recover(*pair)
    assert contents(*pair) == ["old", "old"]
    assert (JOURNAL_NAME, "removed") in actions(report)
    assert not left_in(pair[0].parent)


# --- failures --------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("no_log")
def test_after_a_failed_mark_recovery_finishes(pair: tuple[Path, Path]) -> None:
    """DurabilityError: everything is new, the journal stays; recovery writes the mark again, durably, and finishes."""
    marked: list[int] = []

    def at_the_mark(call: object) -> int | None:
        if call.name == "pwrite":  # type: ignore[attr-defined]
            marked.append(1)
        return 5 if len(marked) == 2 and call.name == "fsync" else None  # type: ignore[attr-defined]

    with installed(Faulty(at_the_mark)), pytest.raises(errors.DurabilityError) as caught:
        publish(*pair)
    assert caught.value.errno == 5
    assert contents(*pair) == ["new", "new"]
    assert (pair[0] / JOURNAL_NAME).exists()
    with installed(Recording({"pwrite", "fsync"})) as kernel:
        atomik.recover(pair[1])
    assert kernel.names()[-2:] == ["pwrite", "fsync"], "a fresh mark, and its own sync"
    assert contents(*pair) == ["new", "new"]
    assert not left_in(pair[0].parent)


def test_a_failed_undo_leaves_the_journal(pair: tuple[Path, Path]) -> None:
    """RollbackError of a living transaction: in doubt, until recovery decides."""

    def third_and_later(call: object) -> int | None:
        swaps.append(1)
        return 5 if len(swaps) > 2 else None

    swaps: list[int] = []
    with installed(Faulty(third_and_later, {"rename"})), pytest.raises(errors.RollbackError, match="the journal stays"):
        publish(*pair)
    assert contents(*pair) == ["new", "new"]
    atomik.recover(pair[0])
    assert contents(*pair) == ["old", "old"]
    assert not left_in(pair[0].parent)


def test_a_recovery_that_fails_says_so_and_can_be_repeated(pair: tuple[Path, Path]) -> None:
    """RollbackError with the errno; the journal is still there."""
    hot(*pair, swaps=2)
    for call in ("rename", "fsync", "pwrite"):
        with installed(Faulty.every(call, 28)), pytest.raises(errors.RollbackError) as caught:
            atomik.recover(pair[0])
        assert caught.value.errno == 28
        assert (pair[0] / JOURNAL_NAME).exists()
    atomik.recover(pair[0])
    assert contents(*pair) == ["old", "old"]
    assert not left_in(pair[0].parent)


def test_what_cannot_be_cleaned_up_stops_nobody(pair: tuple[Path, Path]) -> None:
    """A failure after the outcome is reported, and left for another time."""
    hot(*pair)
    with installed(Faulty.every("rmdir", 16)), atomik.reading(pair[0]):
        assert contents(*pair) == ["old", "old"]
    assert left_in(pair[0].parent)
    atomik.recover(*pair)
    assert not left_in(pair[0].parent)


def test_errors_name_the_folder(folder: Path) -> None:
    """One that is not there."""
    with pytest.raises(errors.MissingPathError) as caught:
        atomik.recover(folder / "none")
    assert caught.value.filename == str(folder / "none")


def test_openat2_may_be_missing(pair: tuple[Path, Path]) -> None:
    """Before Linux 5.6, or under a seccomp filter, plain opening is enough: the identity is what is trusted."""
    for number in (38, 1):
        hot(*pair, swaps=2)
        with installed(Faulty.every("open_beneath", number)):
            atomik.recover(pair[0])
        assert contents(*pair) == ["old", "old"]


def test_no_lock_is_kept(pair: tuple[Path, Path]) -> None:
    """Nor a descriptor, whatever happened."""
    hot(*pair)
    atomik.recover(*pair)
    assert not _forked.guarded


def test_a_report_reads_well(pair: tuple[Path, Path]) -> None:
    """One line an item."""
    hot(*pair)
    lines = str(atomik.recover(pair[0])).splitlines()
    assert lines == [f"untouched: {pair[0]}/y", f"untouched: {pair[1]}/x", f"undone: {pair[0]}/x"]


def test_what_a_rollback_cannot_bring_back_is_kept(pair: tuple[Path, Path]) -> None:
    """A stranger publishes in the middle, and something fails: their version is kept, and the original is in its slot."""
    swaps: list[int] = []

    def theirs(call: object) -> int | None:
        swaps.append(1)
        if len(swaps) == 2:
            (pair[0] / "theirs").write_text("theirs")
            os.rename(pair[0] / "theirs", pair[0] / "x")
            return 5
        return None

    with installed(Faulty(theirs, {"rename"})), pytest.raises(errors.CommitError) as caught:  # noqa: SIM117
        with atomik.transaction(overwrite=True) as tx:
            for folder in pair:
                tx.file(folder / "x").write("new")
    assert not [path for path in left_in(pair[0].parent) if path.endswith(JOURNAL_NAME)], "it stops nobody"
    assert contents(*pair) == ["theirs", "old"]
    assert "their version is kept" in caught.value.__cause__.__notes__[0]  # type: ignore[union-attr]
    (kept,) = atomik.recover(*pair).kept
    assert Path(kept.detail.removeprefix("the displaced original is at ")).read_text() == "old"
    atomik.recover(*pair, discard=True)
    assert not left_in(pair[0].parent)


@pytest.mark.parametrize("gap", range(1, 4))
def test_two_interrupts_in_a_row_leave_it_to_recovery(pair: tuple[Path, Path], gap: int) -> None:
    """Ctrl-C in the swaps, and another one in the rollback: nothing is deleted that recovery needs."""
    calls: list[str] = []

    def twice(call: object) -> BaseException | None:
        calls.append(call.name)  # type: ignore[attr-defined]
        since = len(calls) - calls.index("rename") if "rename" in calls else 0
        return KeyboardInterrupt() if since in (2, 2 + gap) else None

    with installed(Faulty(twice, {"rename", "handle", "fsync", "pwrite"})), pytest.raises(KeyboardInterrupt):
        publish(*pair)
    atomik.recover(*pair)
    assert contents(*pair) == ["old", "old"]
    assert not left_in(pair[0].parent)
