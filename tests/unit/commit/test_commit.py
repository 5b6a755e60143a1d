"""The commit of one item, and of several, in circumstances that hardly ever come together."""

from __future__ import annotations

import errno
import gc
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

import atomik
from atomik import errors
from atomik._commit import commit as _commit
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._protocol import publish as _publish
from atomik._protocol import undo as _undo
from atomik._protocol.step import Step, Undone
from atomik._staging.intake import RETAINED
from atomik._system import kernel as _kernel
from tests.support.kernels import Acting, Answer, Call, Faulty, Poor, Watching, installed
from tests.support.state import left_in, tree


def overwrite(path: str = "x") -> None:
    with atomik.file(path, overwrite=True) as f:
        f.write("new")


def theirs(path: str = "x") -> None:
    Path("theirs").write_text("theirs")
    os.rename("theirs", path)


class Once:
    """Does something at the first call that qualifies."""

    def __init__(self, action: Any) -> None:
        self.action, self.done = action, False

    def __call__(self, call: Call) -> None:
        if not self.done:
            self.done = True
            self.action()


def test_others_that_create_and_remove_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An overwrite that never meets the same thing twice gives up with a conflict, and nothing is left."""
    monkeypatch.setattr(_commit, "_ATTEMPTS", 5)

    def flip(call: Call) -> None:
        if os.path.exists("x"):
            os.unlink("x")
        else:
            Path("x").touch()

    Path("x").touch()
    kernel = Acting("rename link_fd", flip, when=lambda call: any(path.endswith("/x") for path in call.paths))
    with installed(kernel), pytest.raises(errors.ConflictError, match="keep creating and removing"):
        overwrite()
    assert kernel.acted >= 5
    assert set(os.listdir()) <= {"x"}


@pytest.mark.parametrize("name", ["x", "d"])
def test_an_exchange_that_did_nothing(folder: Path, name: str) -> None:
    """A trusted filesystem that reports success and does nothing is detected after the exchange."""

    class Idle(Watching):
        def around(self, call: Call, go: Any) -> Any:
            return None if call.args[4] == _kernel.EXCHANGE else go()

    Path("x").write_text("old")
    Path("d").mkdir()
    before = tree(".")
    with installed(Idle({"rename"})), pytest.raises(errors.AtomikOSError):
        if name == "x":
            with atomik.transaction(overwrite=True) as tx:
                tx.file("x").write("new")
                tx.file("y")
        else:
            with atomik.folder("d", overwrite=True) as d:
                (d / "new").touch()
    assert tree(".") == before


def test_one_item_in_doubt(folder: Path) -> None:
    """When even the undo of one item fails, the error names the destination and where the original is."""
    Path("x").write_text("old")

    def interrupt(call: Call) -> BaseException | int | None:
        if call.name == "fsync" and os.path.isdir(call.paths[0]):
            return KeyboardInterrupt()
        return errno.EIO if call.name == "rename" and kernel.struck else None

    kernel = Faulty(interrupt)
    with installed(kernel), pytest.raises((errors.RollbackError, KeyboardInterrupt)) as caught:
        overwrite()
    if isinstance(caught.value, errors.RollbackError):
        assert caught.value.filename == str(folder / "x")
        assert "undoing it" in str(caught.value)
    atomik.recover(".")
    assert Path("x").read_text() in ("old", "new")
    assert os.listdir() == ["x"] or not left_in(folder)


def test_a_staged_link_removed_by_others(folder: Path) -> None:
    """The content of a slot is gone at the commit: a conflict, and nothing is published."""
    tx = atomik.transaction()
    tx.symlink("link", "x")
    tx.file("y")
    for name in left_in(folder):
        if os.path.islink(name):
            os.unlink(name)
    with pytest.raises(errors.ConflictError, match="removed"):
        tx.commit()
    assert os.listdir() == []


def test_content_changed_at_the_last_moment_behind_equal_times(folder: Path) -> None:
    """The digest is compared again with what was displaced."""
    Path("x").write_text("old")
    seen = atomik.observe("x", digest=True)

    def change() -> None:
        times = os.stat("x")
        with open("x", "r+") as f:
            f.write("OLD")
        os.utime("x", ns=(times.st_atime_ns, times.st_mtime_ns))

    wanted = pytest.raises(errors.ConflictError, match="content was changed")
    with installed(Acting("rename", Once(change))), wanted, atomik.file("x", expect=seen) as f:
        f.write("new")
    assert Path("x").read_text() == "OLD"


@pytest.fixture
def here(folder: Path) -> Any:
    directory = Directory.open(str(folder))
    yield directory
    directory.close()


def step(here: Directory, op: str, **more: Any) -> Step:
    dest, slot = Place(here, "dest"), Place(here, "slot")
    return Step(op, "file", dest, slot, slot.identity(), dest.identity(), **more)


def test_replaced_right_after_it_was_published(here: Directory) -> None:
    """I4: another program's object in the place of ours is a conflict."""
    Path("slot").write_text("new")
    Path("dest").write_text("old")
    kernel = Acting("rename", Once(lambda: theirs("dest")), after=True)
    with installed(kernel), pytest.raises(errors.ConflictError, match="right after"):
        published = step(here, "replace")
        _publish.publish(published)
        _publish.check(published)
    assert Path("dest").read_text() == "theirs"


def test_replaced_while_a_lower_method_is_at_work(here: Directory) -> None:
    """The link method looks again before it renames; their version is kept, and no twin."""
    Path("slot").write_text("new")
    Path("dest").write_text("old")
    kernel = Acting("link", Once(lambda: theirs("dest")))
    wanted = pytest.raises(errors.ConflictError, match="replaced in the meantime")
    with installed(Poor("noreplace", "exchange")), installed(kernel), wanted:
        published = step(here, "replace")
        _publish.publish(published)
        _publish.check(published)
    assert Path("dest").read_text() == "theirs"
    assert sorted(os.listdir()) == ["dest", "slot"]


def test_one_item_replaced_while_a_lower_method_is_at_work(folder: Path) -> None:
    """The same for one item: it looks again, and the last writer wins."""
    Path("x").write_text("old")
    kernel = Acting("link", Once(theirs))
    with installed(Poor("noreplace", "exchange")), installed(kernel):
        overwrite()
    assert Path("x").read_text() == "new"
    assert os.listdir() == ["x"]


def test_undo_of_what_others_removed(here: Directory) -> None:
    """A new object that someone removes at the last moment needs no undo."""
    Path("slot").write_text("new")
    made = step(here, "create")
    _publish.publish(made)
    with installed(Acting("rename", Once(lambda: os.unlink("dest")))):
        assert _undo.undo(made) is Undone.UNTOUCHED
    assert os.listdir() == []


def test_undo_of_a_removal_that_others_made(here: Directory) -> None:
    """What another program removed is not brought back."""
    Path("dest").write_text("old")
    made = step(here, "remove")
    os.rename("dest", "elsewhere")
    assert _undo.undo(made) is Undone.FOREIGN
    assert os.listdir() == ["elsewhere"]


def test_undo_of_a_method_with_a_gap_in_between(here: Directory) -> None:
    """The empty folder that reserved the name is removed; one with something in it is kept."""
    os.mkdir("slot")
    made = Step(
        "create", "folder", Place(here, "dest"), Place(here, "slot"), Place(here, "slot").identity(), allow_gap=True
    )
    os.mkdir("dest")
    assert _undo.undo(made) is Undone.UNDONE
    assert os.listdir() == ["slot"]
    os.mkdir("dest")
    Path("dest/theirs").touch()
    assert _undo.undo(made) is Undone.FOREIGN
    assert os.listdir("dest") == ["theirs"]


def test_spilling_fails(folder: Path) -> None:
    """A sealed file that cannot get its slot spoils the transaction with a typed error, and is staged again."""
    with atomik.transaction() as tx:
        for number in range(RETAINED):
            with tx.file(f"f{number}"):
                pass
        wanted = pytest.raises(errors.AtomikOSError, match="free some space")
        with installed(Faulty.every("link_fd", errno.ENOSPC)), wanted, tx.file("last"):
            pass
        with pytest.raises(errors.TransactionStateError, match="f0"):
            tx.commit()
        tx.file("f0").write("again")
    assert len(os.listdir()) == RETAINED + 1
    assert Path("f0").read_text() == "again"


def test_ctrl_c_right_behind_the_commit_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new version is in place and durable; what it displaced is deleted nevertheless."""
    displaced_in = _commit.Commit.displaced_in

    def interrupted(self: _commit.Commit) -> object:
        if interrupts:
            raise interrupts.pop()
        return displaced_in(self)

    monkeypatch.setattr(_commit.Commit, "displaced_in", interrupted)
    Path("x").write_text("old")
    interrupts = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt), atomik.file("x", overwrite=True) as f:
        f.write("new")
    Path("d").mkdir()
    monkeypatch.setattr(_kernel.Kernel, "may_write", lambda *_: False)  # so its slot is beside it
    interrupts = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt), atomik.folder("d", overwrite=True) as d:
        (d / "y").touch()
    assert Path("x").read_text() == "new"
    assert os.listdir("d") == ["y"]
    assert sorted(os.listdir()) == ["d", "x"]


def test_what_fails_every_time_does_not_hang_the_program(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end is started again after every interrupt, but not forever; the rest is removed with the transaction object."""

    def interrupted(self: _commit.Commit) -> None:
        raise KeyboardInterrupt

    Path("x").write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr(_commit.Commit, "_delete_siblings", interrupted)
        output = atomik.file("x", overwrite=True)
        output.output.write("new")
        with pytest.raises(KeyboardInterrupt):
            output.commit()
    assert Path("x").read_text() == "new"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del output
        gc.collect()
    assert Path("x").read_text() == "new"
    atomik.recover(".")
    assert os.listdir() == ["x"]


@pytest.mark.parametrize(("load", "low", "high"), [(0.0, 0.0, 0.005), (4.0, 0.03, 0.04), (1000.0, 0.09, 0.1)])
def test_readers_of_a_displaced_folder_get_longer_where_processors_are_scarce(
    folder: Path, monkeypatch: pytest.MonkeyPatch, load: float, low: float, high: float
) -> None:
    """One that opened it right before the swap may have to wait for its turn to list it; but there is a bound."""
    monkeypatch.setattr(os, "getloadavg", lambda: (load * (os.cpu_count() or 1), 0.0, 0.0))
    waits: list[float] = []
    monkeypatch.setattr(_commit.time, "sleep", waits.append)
    Path("d").mkdir()
    with atomik.folder("d", overwrite=True, durable=False):
        pass
    assert low <= sum(waits) <= high
    assert os.listdir("d") == []


def test_a_newcomer_among_many_is_found_before_anything_is_swapped(folder: Path) -> None:
    """The listing under the lock shows what came to a destination since it was staged."""
    swaps = Acting("rename", lambda call: None)
    with installed(swaps), pytest.raises(errors.FileAlreadyExistsError) as caught, atomik.transaction() as tx:
        for number in range(20):
            tx.file(f"f{number}").write("ours")
        theirs("f13")
    assert caught.value.filename == str(folder / "f13")
    assert (swaps.acted, os.listdir(), Path("f13").read_text()) == (0, ["f13"], "theirs")


def test_a_newcomer_behind_the_listing_is_found_by_the_swap(folder: Path) -> None:
    """What someone publishes between the listing and the swap is kept, and the other items are undone (P2, P3)."""
    come = Acting("rename", Once(lambda: theirs("f13")))
    with installed(come), pytest.raises(errors.FileAlreadyExistsError) as caught, atomik.transaction() as tx:
        for number in range(20):
            tx.file(f"f{number}").write("ours")
    assert caught.value.filename == str(folder / "f13")
    assert (os.listdir(), Path("f13").read_text()) == (["f13"], "theirs")


@pytest.mark.parametrize("group", [False, True])
def test_a_destination_that_went_and_came_again(folder: Path, group: bool) -> None:
    """The kernel found nothing to exchange with, and by now something is there again: one output is published all
    the same, a group says what happened."""
    Path("x").write_text("old")

    def come_and_go() -> None:
        os.unlink("x")
        theirs()
        raise Answer(errno.ENOENT)

    with installed(Acting("rename", Once(come_and_go))):
        if not group:
            overwrite()
        else:
            with (
                pytest.raises(errors.ConflictError, match="removed in the meantime"),
                atomik.transaction(overwrite=True) as tx,
            ):
                tx.file("x").write("new")
                tx.file("y").write("new")
    assert {name: Path(name).read_text() for name in os.listdir()} == {"x": "theirs" if group else "new"}
