"""``resume=True``: what was staged is there for the next run, and for nobody else."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

import atomik
from atomik import errors
from atomik._protocol import resumable
from tests.support.kernels import Acting, Faulty, installed
from tests.support.state import NOBODY, in_child, left_in
from tests.support.users import needs_root

if TYPE_CHECKING:
    from collections.abc import Callable


class Stopped(Exception):
    """What stops a job."""


def stopped(make: Callable[..., object], *arguments: object, **options: object) -> Path:
    """A job that makes a part and is stopped; the path at which it worked."""
    output = make(*arguments, resume=True, **options)
    with suppress(Stopped), output as new:  # type: ignore[attr-defined]
        assert not new.resumed
        new.mkdir(exist_ok=True)
        (new / "part").write_text("done")
        raise Stopped
    return Path(new)


def discard() -> None:
    atomik.recover(".", discard=True)


@pytest.mark.parametrize("make", [atomik.folder, atomik.path], ids=["folder", "path"])
def test_an_exception_leaves_it_for_the_next_run(folder: Path, make: Callable[..., atomik.Output[Path]]) -> None:
    """The path is the same, with what was written, and `resumed` says so; after the commit nothing is left."""
    before = stopped(make, "ds")
    assert not os.path.lexists("ds")
    with structlog.testing.capture_logs() as events, make("ds", resume=True) as new:
        assert (new.resumed, Path(new)) == (True, before)
        assert (new / "part").read_text() == "done"
        (new / "last").write_text("done")
    assert [(event["path"], event["log_level"]) for event in events if event["event"] == "item.resumed"] == [
        (str(folder / "ds"), "info")
    ]
    assert sorted(os.listdir("ds")) == ["last", "part"]
    assert not left_in(folder)
    with make("ds", resume=True, overwrite=True) as new:
        assert not new.resumed, "it was published, so there is nothing to go on with"
        if make is atomik.path:
            new.mkdir()
    assert os.listdir("ds") == []


def test_a_file(folder: Path) -> None:
    """A program's file, half written."""
    with suppress(Stopped), atomik.path("data.bin", resume=True) as name:
        name.write_bytes(b"half")
        raise Stopped
    with atomik.path("data.bin", resume=True) as name:
        assert name.resumed
        with name.open("ab") as f:
            f.write(b" and half")
    assert Path("data.bin").read_bytes() == b"half and half"


def test_a_killed_process(folder: Path) -> None:
    """SIGKILL, and the lock goes with the process."""
    child = os.fork()
    if not child:
        with atomik.folder("ds", resume=True) as new:
            (new / "part").write_text("done")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    with atomik.folder("ds", resume=True) as new:
        assert new.resumed
    assert os.listdir("ds") == ["part"]


def test_a_second_job_is_told_who_has_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not after hours; a forked child that outlives the job does not hold it."""
    monkeypatch.setattr(resumable, "_MOMENT", 0.05)
    with suppress(Stopped), atomik.folder("ds", resume=True) as new:
        (new / "part").write_text("done")
        with pytest.raises(errors.ConflictError, match=rf"another job( \(process {os.getpid()}\))? .*ds") as refused:
            atomik.folder("ds", resume=True)
        assert (refused.value.errno, refused.value.filename) == (errno.EBUSY, str(folder / "ds"))
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        raise Stopped
    with atomik.folder("ds", resume=True) as new:
        assert new.resumed
    os.close(reader)
    os.close(writer)
    os.waitpid(child, 0)


def test_a_transaction_that_fails_keeps_it(folder: Path) -> None:
    """Also after the first swap, and what was sealed already."""
    Path("ds").mkdir()
    Path("ds", "old").touch()
    for make in ("folder", "path"):
        with pytest.raises(errors.FileAlreadyExistsError), atomik.transaction() as tx:
            new = getattr(tx, make)("ds", True, resume=True)
            new.mkdir(exist_ok=True)
            (new / "part").write_text("done")
            tx.file("other").write("new")
            Path("other").write_text("theirs")
        assert (os.listdir("ds"), Path("other").read_text()) == (["old"], "theirs")
        with atomik.transaction(overwrite=True) as tx:
            new = getattr(tx, make)("ds", resume=True)
            assert (new.resumed, os.listdir(new)) == (True, ["part"])
            tx.drop("ds")
        Path("other").unlink()
    assert not left_in(folder)


def test_abort_keeps_and_drop_deletes(folder: Path) -> None:
    """An abort keeps what was computed; `drop` says that it deletes."""
    tx = atomik.transaction()
    (tx.folder("ds", resume=True) / "part").touch()
    tx.abort()
    with atomik.transaction() as tx:
        assert tx.folder("ds", resume=True).resumed
        tx.drop("ds")
        assert not tx.folder("ds", resume=True).resumed
    assert os.listdir() == ["ds"]


def test_an_output_whose_block_failed_can_be_staged_again(folder: Path) -> None:
    """In the same transaction, which holds its lock already."""
    with atomik.transaction() as tx:
        with suppress(Stopped), tx.folder("ds", resume=True) as new:
            (new / "part").touch()
            raise Stopped
        with tx.folder("ds", resume=True) as new:
            assert new.resumed
    assert os.listdir("ds") == ["part"]


def test_nothing_staged_leaves_nothing(folder: Path) -> None:
    """An empty folder is not worth keeping."""
    for make in (atomik.folder, atomik.path):
        with suppress(Stopped), make("ds", resume=True):
            raise Stopped
        assert os.listdir() == []


def test_recover_lists_it_and_leaves_it_alone(folder: Path) -> None:
    """It is nothing that wants attention; only ``discard=True`` deletes it."""
    at = stopped(atomik.folder, "ds").parent
    for options in ({"dry_run": True}, {}):
        report = atomik.recover(".", **options)  # type: ignore[arg-type]
        assert [(item.action, item.path) for item in report.items] == [("resumable", str(at))]
        assert report.clean
        assert "'ds'" in report.items[0].detail
        assert (at.is_dir(), "resume-ds" in at.name) == (True, True)
    assert [item.action for item in atomik.recover(".", discard=True).items] == ["discarded"]
    assert os.listdir() == []


def test_recover_leaves_a_job_alone(folder: Path) -> None:
    """While it is at work, ``discard=True`` does not touch it either."""
    with atomik.folder("ds", resume=True) as new:
        (new / "part").touch()
        assert [item.action for item in atomik.recover(".", discard=True).items] == ["live"]
    assert os.listdir("ds") == ["part"]


def test_it_belongs_to_the_folder_not_to_its_path(folder: Path) -> None:
    """A renamed parent keeps it; what was moved here from another folder is not taken for ours."""
    os.mkdir("a")
    os.mkdir("b")
    at = stopped(atomik.folder, "a/ds").parent
    os.rename("a", "c")
    with suppress(Stopped), atomik.folder("c/ds", resume=True) as new:
        assert new.resumed
        raise Stopped
    os.rename(Path("c", at.name), Path("b", at.name))
    with atomik.folder("b/ds", resume=True) as new:
        assert not new.resumed
    atomik.recover("b", discard=True)


def test_with_tmp_dir(folder: Path) -> None:
    """It is there, apart from that of a destination of the same name elsewhere."""
    for name in ("a", "b", "tmp"):
        os.mkdir(name)
    stopped(atomik.folder, "a/ds", tmp_dir="tmp")
    with atomik.folder("b/ds", tmp_dir="tmp", resume=True) as new:
        assert not new.resumed
    with atomik.folder("a/ds", tmp_dir="tmp", resume=True) as new:
        assert new.resumed
    assert (os.listdir("tmp"), os.listdir("a/ds")) == ([], ["part"])


def test_base_is_copied_once_and_completely(folder: Path) -> None:
    """A clone that was stopped half-way is begun again."""
    os.mkdir("base")
    for name in ("one", "two"):
        Path("base", name).write_text(name)
    with pytest.raises(errors.AtomikError), installed(Faulty.every("futime", errno.EIO)):
        atomik.folder("ds", base="base", resume=True)
    with suppress(Stopped), atomik.folder("ds", base="base", resume=True) as new:
        assert (new.resumed, sorted(os.listdir(new))) == (False, ["one", "two"])
        (new / "one").unlink()
        raise Stopped
    with atomik.folder("ds", base="base", resume=True) as new:
        assert (new.resumed, os.listdir(new)) == (True, ["two"])


def test_what_makes_no_sense(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"copy=True.*resume=True"):
        atomik.folder("ds", copy=True, resume=True)
    with pytest.raises(errors.WrongKindError, match=r"path\(\)"):
        stopped(atomik.path, "ds")
        atomik.folder("ds", resume=True)
    with pytest.raises(errors.DuplicateDestinationError, match="resume=True"), atomik.transaction(overwrite=True) as tx:
        tx.folder("two")
        tx.folder("two", resume=True)
    discard()


@pytest.mark.parametrize("what", ["open", "link", "file"])
def test_what_others_may_have_put_there_is_not_trusted(folder: Path, what: str) -> None:
    """A folder that others may enter, a link, a file: refused by name, and left as it is."""
    at = stopped(atomik.folder, "ds").parent
    os.rename(at, "aside")
    if what == "open":
        shutil.copytree("aside", at)
        at.chmod(0o750)
    elif what == "link":
        at.symlink_to("aside")
    else:
        at.touch()
    inode = at.lstat().st_ino
    with pytest.raises(errors.ConflictError, match="cannot be trusted") as refused:
        atomik.folder("ds", resume=True)
    assert refused.value.filename2 == str(at)
    assert at.lstat().st_ino == inode
    shutil.rmtree("aside")
    shutil.rmtree(at) if at.is_dir() and not at.is_symlink() else at.unlink()


@needs_root
def test_another_users(open_folder: Path) -> None:
    """Root does not continue a user's, nor a user root's; recover says whose it is."""

    def job() -> str:
        try:
            stopped(atomik.folder, open_folder / "ds")
        except errors.ConflictError as exc:
            return str(exc)
        return ""

    assert in_child(job, become=NOBODY) == ""
    assert f"belongs to user {NOBODY}" in job()
    report = atomik.recover(open_folder, discard=True)
    assert [(item.action, f"user {NOBODY}" in item.detail) for item in report.items] == [("left", True)]
    in_child(lambda: atomik.recover(open_folder, discard=True), become=NOBODY)
    in_child(job)
    assert "belongs to user 0" in in_child(job, become=NOBODY)
    atomik.recover(open_folder, discard=True)


@needs_root
def test_a_folder_that_cannot_leave_its_parent_is_refused_early(open_folder: Path) -> None:
    """Before hours of computing; what is staged must stay writable, too."""

    def job() -> None:
        os.chdir(open_folder)
        os.mkdir("ds")
        os.chmod("ds", 0o555)
        with pytest.raises(errors.AccessDeniedError, match="resume=True"):
            atomik.folder("ds", True, resume=True)
        with pytest.raises(ValueError, match="resume=True"):
            atomik.folder("new", resume=True, permissions=0o555)
        with pytest.raises(errors.AccessDeniedError), atomik.folder("new", resume=True) as new:
            (new / "part").touch()
            os.chmod(new, 0o555)
        with atomik.folder("new", resume=True) as new:
            assert new.resumed
            (new / "more").touch()
        os.chmod("ds", 0o755)

    in_child(job, become=NOBODY)
    assert sorted(os.listdir(open_folder / "new")) == ["more", "part"]


@pytest.mark.leftovers("an original that has no place to go back to")
def test_a_displaced_original_is_never_taken_for_what_was_staged(folder: Path) -> None:
    """Someone published there in the middle: the original stays where the output was staged until it is discarded."""
    Path("ds").mkdir()
    Path("ds", "old").touch()

    def interfere(_: object) -> None:
        if Path("ds", "part").exists():
            os.rename("ds", "ours")
            os.mkdir("ds")

    with (
        installed(Acting("rename", interfere, after=True)),
        pytest.raises(errors.ConflictError),
        atomik.folder("ds", overwrite=True, resume=True) as new,
    ):
        (new / "part").touch()
    assert os.listdir("ds") == []
    with pytest.raises(errors.ConflictError, match="could not be brought back"):
        atomik.folder("ds", overwrite=True, resume=True)
    assert [item.action for item in atomik.recover(".").kept]
    atomik.recover(".", discard=True)
    with atomik.folder("ds", overwrite=True, resume=True) as new:
        assert not new.resumed
