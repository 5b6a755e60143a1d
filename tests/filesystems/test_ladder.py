"""The ladder: which method serves where, that lower ones keep the promises, and that one mount's poverty stays its own.

Most of this runs anywhere, on a kernel that says EINVAL where a poorer filesystem would.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

import atomik
from atomik import errors
from atomik._folder import filesystem as _filesystem
from atomik.testing import CrashPoint, crash_points
from tests.filesystems.grounds import Lacking, forgetful, no_exchange, no_flags, no_links, no_tmpfile
from tests.filesystems.scenarios import look
from tests.support.kernels import Acting, Faulty, every_call, installed
from tests.support.lab import mounts
from tests.support.lab.need import need
from tests.support.state import left_in

LACKS: dict[str, tuple[tuple[str, Any], ...]] = {
    "no flags": (("rename", no_flags),),
    "no flags, no O_TMPFILE": (("rename", no_flags), ("open_tmpfile", no_tmpfile)),
    "no exchange": (("rename", no_exchange),),
    "no links, no exchange": (("rename", no_exchange), ("link link_fd", no_links), ("open_tmpfile", no_tmpfile)),
    "no links": (("link link_fd", no_links),),
}


@contextlib.contextmanager
def lacking(what: str) -> Iterator[None]:
    """A kernel that lacks something, and nothing remembered of it afterwards."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(forgetful())
        for among, lack in LACKS[what]:
            stack.enter_context(installed(Lacking(lack, among)))
        yield


def publish(allow_gap: bool = False) -> atomik.Receipt:
    """Three items in one folder: replace, create, remove."""
    with atomik.transaction(overwrite=True, durable=False) as tx:
        with tx.file("report", allow_gap=allow_gap) as f:
            f.write("new report")
        with tx.file("model", allow_gap=allow_gap) as f:
            f.write("new model")
        tx.remove("obsolete")
    assert tx.receipt is not None
    return tx.receipt


def publish_folder() -> atomik.Receipt:
    """A folder is replaced and one created, by the weaker method."""
    with atomik.transaction(overwrite=True, durable=False) as tx:
        (tx.folder("site", allow_gap=True) / "index").write_text("new index")
        (tx.folder("plots", allow_gap=True) / "loss").write_text("new plot")
    assert tx.receipt is not None
    return tx.receipt


def prepare(folder: Path) -> None:
    """What is there before."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    (folder / "report").write_text("old report")
    (folder / "obsolete").write_text("old obsolete")
    (folder / "site").mkdir()
    (folder / "site" / "index").write_text("old index")


@pytest.mark.sweep
@pytest.mark.parametrize(
    "what", ["no flags", pytest.param("no flags, no O_TMPFILE", marks=pytest.mark.filesystems), "no exchange"]
)
def test_lower_rungs_survive_death_at_every_call(folder: Path, what: str) -> None:
    """Killed before or after any call on the link method, recovery brings all old or all new, and nothing is left."""
    _every_death(folder, what, publish)


@pytest.mark.sweep
@pytest.mark.parametrize("what", ["no flags", pytest.param("no links, no exchange", marks=pytest.mark.filesystems)])
def test_the_weaker_rung_survives_death_at_every_call(folder: Path, what: str) -> None:
    """Weaker is about the moment of the swap: after a crash it is all or nothing like the others, folders too."""
    _every_death(folder, what, publish_folder)
    _every_death(folder, what, lambda: publish(allow_gap=True))


def _every_death(folder: Path, what: str, work: Any) -> None:
    with lacking(what):
        prepare(folder)
        old = look(folder)
        work()
        new = look(folder)
        assert old != new

        def check(point: CrashPoint) -> None:
            atomik.recover(folder)
            found = look(folder)
            assert found in (old, new), found
            assert not point.returned or found == new
            assert not left_in(folder)

        assert crash_points(work, check, prepare=lambda: prepare(folder)) > 40


@pytest.mark.parametrize("what", ["no flags", "no exchange"])
def test_one_file_on_the_link_rung_survives_death_at_every_call(folder: Path, what: str) -> None:
    """A one-item overwrite without a journal: old or new at every point, and recovery removes the rest."""

    def work() -> None:
        with atomik.file("report", overwrite=True, durable=False) as f:
            f.write("new report")

    with lacking(what):

        def check(point: CrashPoint) -> None:
            assert (folder / "report").read_text() in ("old report", "new report")
            atomik.recover(folder)
            assert (folder / "report").read_text() == ("new report" if point.returned else look(folder)["report"])
            assert not left_in(folder)

        assert crash_points(work, check, prepare=lambda: prepare(folder)) > 10


@pytest.mark.sweep
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("what", ["no flags", "no exchange"])
def test_lower_rungs_roll_back_from_every_failure(folder: Path, what: str, number: int) -> None:
    """Whichever call fails, everything is as it was, or (after the mark) everything is new."""
    with lacking(what):
        prepare(folder)
        old = look(folder)
        publish()
        new = look(folder)
        for point in every_call(number):
            prepare(folder)
            with installed(point.kernel):
                try:
                    publish()
                except errors.AtomikError:
                    expected = old
                else:
                    expected = new
            assert {k: v for k, v in look(folder).items() if ".atomik" not in k} == expected, point.kernel.struck
            atomik.recover(folder)


def test_no_missing_moment_on_the_link_rung(folder: Path) -> None:
    """While a file is overwritten by links, it is there before every call, old or new (P1)."""
    with lacking("no flags"):
        prepare(folder)
        seen = set()
        look_on = Acting("rename link unlink link_fd", lambda call: seen.add((folder / "report").read_text()))
        with installed(look_on), atomik.file("report", overwrite=True) as f:
            f.write("new report")
        assert seen == {"old report", "new report"}


def test_links_never_replace_a_stranger(folder: Path) -> None:
    """Without flags, a file that appears at the last moment is not replaced (P2)."""
    with lacking("no flags, no O_TMPFILE"):
        rival = Acting(
            "link link_fd", lambda _: (folder / "new").write_text("theirs"), when=lambda call: "new" in call.args
        )
        with installed(rival), pytest.raises(errors.FileAlreadyExistsError), atomik.file("new") as f:
            f.write("ours")
    assert rival.acted == 1
    assert (folder / "new").read_text() == "theirs"


def test_a_replacement_between_look_and_link_is_seen(folder: Path) -> None:
    """What replaces the destination before it was linked away is neither lost nor overwritten in a transaction."""
    with lacking("no flags"):
        prepare(folder)
        before = look(folder)

        def replace(call: Any) -> None:
            (folder / "theirs").write_text("theirs")
            (folder / "theirs").rename(folder / "report")

        rival = Acting("link", replace, when=lambda call: call.args[0] == "report")
        with installed(rival), pytest.raises(errors.ConflictError):
            publish()
        assert rival.acted == 1
        assert look(folder) == {**before, "report": "theirs"}


def test_folders_are_refused_when_staged_on_unknown_filesystems(folder: Path) -> None:
    """Not after two hours of computing: a filesystem that is not known is tried when the folder is staged."""
    with lacking("no flags"), untrusted():
        with pytest.raises(errors.UnsupportedFilesystemError, match="allow_gap=True") as caught:
            atomik.folder("plots")
        assert caught.value.filename == str(folder / "plots")
    assert look(folder) == {}


@contextlib.contextmanager
def untrusted() -> Iterator[None]:
    """Have every filesystem count as one that atomik does not know."""
    known = _filesystem._KNOWN.copy()
    _filesystem._KNOWN.clear()
    _filesystem.forget()
    try:
        yield
    finally:
        _filesystem._KNOWN.update(known)


def test_one_overwrite_without_links_and_flags_is_a_rename(folder: Path) -> None:
    """exFAT: one file is overwritten by a plain rename; several, which could not be undone, are refused."""
    with lacking("no links, no exchange"):
        prepare(folder)
        out = atomik.file("report", overwrite=True)
        with out as f:
            f.write("new report")
        assert out.receipt is not None
        assert out.receipt.items[0].method == "rename"
        assert (folder / "report").read_text() == "new report"
        before = look(folder)
        with pytest.raises(errors.UnsupportedFilesystemError, match="allow_gap=True"):
            publish()
        assert look(folder) == before
        assert {item.method for item in publish(allow_gap=True).items} == {"gap", "renameat2"}


def test_the_rung_is_told(folder: Path) -> None:
    """Receipt and log name the method that really served."""
    with lacking("no flags"):
        prepare(folder)
        with structlog.testing.capture_logs() as log:
            receipt = publish()
        told = [event["method"] for event in log if event["event"] == "item.swapped"]
        assert told == [item.method for item in receipt.items] == ["link", "link", "link"]
        with structlog.testing.capture_logs() as log:
            receipt = publish_folder()
        told = [event["method"] for event in log if event["event"] == "item.swapped"]
        assert told == [item.method for item in receipt.items] == ["gap", "gap"]


def test_weaker_is_never_taken_where_better_serves(folder: Path) -> None:
    """allow_gap=True is a permission and no wish: a filesystem with the flags uses them."""
    prepare(folder)
    assert {item.method for item in publish_folder().items} == {"renameat2"}


def test_the_missing_flag_is_asked_for_once(folder: Path) -> None:
    """On a filesystem that had to be tried, the second overwrite goes to its method directly."""
    with lacking("no exchange"), untrusted():
        prepare(folder)
        with installed(Acting("rename", lambda call: None, when=lambda call: call.args[4] == 2)) as kernel:
            for _ in range(2):
                with atomik.file("report", overwrite=True) as f:
                    f.write("new")
        assert kernel.acted == 1


@pytest.mark.root
@pytest.mark.filesystems
def test_one_mounts_poverty_is_its_own() -> None:
    """After a FUSE server without flags, another server and the disk below still use theirs."""
    need(mounts.missing("fuse-rejects"), mounts.missing("ext4"))
    with mounts.mounted("fuse-rejects") as poor, mounts.mounted("fuse-honours") as rich, mounts.mounted("ext4") as disk:
        for _ in range(2):
            rungs = []
            for place in (poor, rich, disk):
                out = atomik.file(place.folder / "f", overwrite=True)
                with out as f:
                    f.write("x")
                assert out.receipt is not None
                rungs.append(out.receipt.items[0].method)
        assert rungs == ["link", "renameat2", "renameat2"]


@pytest.mark.root
@pytest.mark.filesystems
def test_death_at_every_call_on_a_server_without_flags() -> None:
    """The link method on a real FUSE server: killed anywhere, recovery brings all old or all new."""
    need(mounts.missing("fuse-rejects"))
    with mounts.mounted("fuse-rejects") as place, contextlib.chdir(place.folder):
        prepare(place.folder)
        old = look(place.folder)
        publish()
        new = look(place.folder)

        def check(point: CrashPoint) -> None:
            atomik.recover(place.folder)
            assert look(place.folder) == (new if point.returned else look(place.folder))
            assert look(place.folder) in (old, new)
            assert not left_in(place.folder)

        assert crash_points(publish, check, prepare=lambda: prepare(place.folder), step=2) > 20


def test_a_failing_flag_is_no_missing_flag(folder: Path) -> None:
    """EIO of an exchange is an error, and no reason to go down the ladder."""
    prepare(folder)
    out = atomik.file("report", overwrite=True)
    with installed(Faulty.every("rename", errno.EIO)), pytest.raises(errors.CommitError) as caught, out as f:
        f.write("new")
    assert caught.value.errno == errno.EIO
    assert (folder / "report").read_text() == "old report"
