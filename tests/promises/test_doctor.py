"""P9: what the doctor says is what happens when a user's program runs there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from atomik._api import trials
from atomik._folder import filesystem
from atomik._system.kernel import Kernel, libc
from tests.support import landlock
from tests.support.kernels import Faulty, installed
from tests.support.lab import mounts as lab
from tests.support.lab.need import need
from tests.support.seccomp import CALLS, needs_seccomp, refuse
from tests.support.state import in_child
from tests.support.trees import mounts

if TYPE_CHECKING:
    from collections.abc import Callable

needs_landlock = pytest.mark.skipif(landlock.version() < 2, reason="needs Landlock with REFER (Linux 5.19)")


def answers(folder: Path) -> dict[str, str]:
    """What the doctor says of each promise."""
    return {promise.name: promise.holds for promise in atomik.probe(folder).promises}


def _group(folder: Path, other: Path) -> None:
    with atomik.transaction(overwrite=True) as tx:
        tx.file(folder / "one").write("new")
        tx.file(other / "two").write("new")


def happens(folder: Path) -> dict[str, bool]:
    """What works for a user's program in a folder: a refusal leaves everything as it was, and anything else is a fault."""
    found = {}
    inner = folder / "inner"
    inner.mkdir(exist_ok=True)
    programs: dict[str, Callable[[], object]] = {
        "create": lambda: atomik.file(folder / "new").commit(),
        "overwrite": lambda: atomik.file(folder / "one", overwrite=True).commit(),
        "create folder": lambda: atomik.folder(folder / "site").commit(),
        "overwrite folder": lambda: atomik.folder(inner, overwrite=True).commit(),
        "group": lambda: _group(folder, folder),
    }
    for name, program in programs.items():
        (folder / "one").write_text("old")
        (folder / "two").write_text("old")
        try:
            program()
            found[name] = True
        except errors.AtomikError:
            found[name] = False
            assert (folder / "one").read_text() == (folder / "two").read_text() == "old", name
    assert not [name for name in os.listdir(folder) if name.startswith(".atomik")]
    return found


def agree(said: dict[str, str], did: dict[str, bool]) -> None:
    """The doctor's word against what happened."""
    assert "unknown" not in said.values(), said
    folders = did["create folder"] and did["overwrite folder"]
    assert (said["P1"] == "yes") == (did["overwrite"] and folders), (said, did)
    assert (said["P1"] in ("yes", "files", "single files")) == did["overwrite"], (said, did)
    assert (said["P2"] != "no") == did["create"], (said, did)
    assert (said["P3"] == "yes") == did["group"], (said, did)
    assert (said["P4"] in ("yes", "one folder")) == did["group"], (said, did)
    assert said["P9"] == "yes", said
    assert said["P10"] == "yes", said


@pytest.mark.sweep
@needs_seccomp
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EACCES])
@pytest.mark.parametrize("call", CALLS)
def test_seccomp(tmp_path: Path, call: str, number: int) -> None:
    """Each call refused by a filter: the doctor answers, and is right."""

    def ask() -> tuple[dict[str, str], dict[str, bool]]:
        libc()
        filesystem.forget()
        refuse(number, call)
        return answers(tmp_path), happens(tmp_path)

    said, did = in_child(ask)
    agree(said, did)
    assert (said["P6"] == "no") == (call == "flock")
    assert did["create"]


@needs_landlock
@pytest.mark.parametrize("closed", [None, "/proc"])
@pytest.mark.parametrize("refer", [True, False])
def test_landlock(tmp_path: Path, refer: bool, closed: str | None) -> None:
    """A sandbox that forbids renaming from one folder to another, and one that closes /proc."""

    def ask() -> tuple[dict[str, str], dict[str, bool], str]:
        filesystem.forget()
        landlock.enter(refer=refer, closed=closed)
        can = atomik.probe(tmp_path)
        reason = next(promise.reason for promise in can.promises if promise.name == "P1")
        return answers(tmp_path), happens(tmp_path), reason

    said, did, reason = in_child(ask)
    if closed and said["P5"] == "unknown":  # on overlayfs /proc says what a power cut takes
        said["P5"] = "yes"
    agree(said, did)
    assert did["create folder"] == refer
    assert refer or "Landlock" in reason


@mounts
@pytest.mark.parametrize(
    "kind", ["tmpfs", "ext4", "overlay-redirect-on", "fuse-honours", "fuse-rejects", "fuse-ignores", "vfat"]
)
def test_grounds(kind: str) -> None:
    """Real filesystems."""
    need(lab.missing(kind))
    with lab.mounted(kind) as place:
        agree(
            {**answers(place.folder)} | ({"P3": "new", "P4": "no"} if kind == "fuse-ignores" else {}),
            happens(place.folder),
        )


@mounts
def test_what_a_power_cut_takes() -> None:
    """P5: an overlay that ignores syncs, and one whose upper layer lives in memory; on a disk it holds."""
    need(lab.missing("overlay-redirect-on"))
    with lab.mounted("tmpfs") as memory, lab.overlay(redirect_dir=True, base=memory.folder) as place:
        can = atomik.probe(place.folder)
        assert (can.volatile, answers(place.folder)["P5"]) == ("the upper layer of the overlay lives in memory", "no")
    with lab.mounted("ext4") as disk:
        with lab.overlay(redirect_dir=True, base=disk.folder, options="volatile") as place:
            assert answers(place.folder)["P5"] == "no"
            assert "volatile" in str(atomik.probe(place.folder).volatile)
        for name in ("lower", "upper", "workdir", "merged"):
            subprocess.run(["rm", "-rf", disk.folder / name], check=True)
        with lab.overlay(redirect_dir=True, base=disk.folder) as place:
            assert answers(place.folder)["P5"] == "yes"


@mounts
@pytest.mark.root
@pytest.mark.filesystems
def test_a_device_s_cache() -> None:
    """With nobarrier a sync ends in the cache of the device, and P5 depends on that."""
    need(lab.missing("ext4"))
    with lab.mounted("ext4", options="nobarrier") as place:
        said = atomik.probe(place.folder).promises[4]
    assert said.holds == "yes"
    assert "nobarrier" in said.reason


def test_what_lies_below_may_be_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the upper layer has no path: then nobody can tell, and that is said."""
    need(lab.missing("overlay-redirect-on"))
    monkeypatch.setattr("atomik._api.probe._upper_in_memory", lambda options: False)
    with lab.mounted("tmpfs") as memory, lab.overlay(redirect_dir=True, base=memory.folder) as place:
        assert answers(place.folder)["P5"] == "unknown"


@pytest.mark.parametrize("call", ["setxattr", "symlink", "clone", "fsync", "rename"])
def test_what_cannot_be_found_out_is_unknown(folder: Path, call: str) -> None:
    """A failure of the moment is not an answer: the ability is None, the reason is given, also as JSON; nothing is raised."""
    with installed(Faulty.every(call, errno.EIO)):
        can = atomik.probe(folder)
    filesystem.forget()
    assert can.unknown
    assert {getattr(can, name, None) for name in can.unknown} == {None}
    assert "Input/output error" in json.dumps(can.as_dict()["unknown"])
    assert "unknown" in str(can)
    assert os.listdir(folder) == []


def test_the_trials_notice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that comes out wrong is a no, with what was found."""

    class Deaf(Kernel):
        def pread(self, fd: int, count: int, at: int) -> bytes:  # type: ignore[override]
            return b"else" if count == 100 else os.pread(fd, count, at)

    with installed(Deaf()):
        can = atomik.probe(folder)
    assert {promise.holds for promise in can.promises if promise.name in ("P1", "P2", "P3", "P4")} <= {"no", "new"}
    assert any("else" in promise.reason for promise in can.promises)


@needs_seccomp
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_where_nobody_can_watch(tmp_path: Path, number: int) -> None:
    """P10 is tried with inotify on the spot; where that is refused, nobody knows, and the reason is given."""

    def ask() -> list[tuple[str, str]]:
        libc()
        refuse(number, "inotify_init1")
        return [(promise.holds, promise.reason) for promise in atomik.probe(tmp_path).promises]

    *others, (holds, reason) = in_child(ask)
    assert "unknown" not in [holds for holds, _ in others]
    assert (holds, reason) == ("unknown", f"no inotify(7) here ({os.strerror(number)})")


def test_watchers_are_told_in_time(folder: Path) -> None:
    """P10: a file that came by link(2) and was not announced is a no."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atomik._protocol.publish._announce", lambda fd, name: None)
        said = atomik.probe(folder).promises[-1]
    assert (said.holds, said.reason) == ("no", "the last event of a file is neither MOVED_TO nor CLOSE_WRITE")


@pytest.mark.parametrize("leave", [".atomik-journal", "a"])
def test_a_refusal_that_leaves_something(folder: Path, monkeypatch: pytest.MonkeyPatch, leave: str) -> None:
    """P9: what is refused must leave everything as it was."""

    def refuse_late(fresh: Any) -> str:
        trials._put(fresh(), leave, b"new")
        raise errors.UnsupportedFilesystemError(errno.EOPNOTSUPP, "refused; go elsewhere", str(folder))

    monkeypatch.setitem(trials.TRIALS, "overwrite", refuse_late)
    said = {promise.name: promise for promise in atomik.probe(folder).promises}
    assert (said["P9"].holds, said["P1"].holds) == ("no", "new")
    assert said["P9"].reason.startswith(f"overwrite: {leave} ")


@pytest.mark.parametrize(
    "exc",
    [TimeoutError(errno.ETIMEDOUT, "handler"), pytest.param(KeyboardInterrupt(), marks=pytest.mark.sweep)],
    ids=lambda exc: type(exc).__name__,
)
def test_interrupted(folder: Path, exc: BaseException) -> None:
    """An exception of a signal handler, of whatever class, goes on unchanged; nothing is left."""

    def fail(fresh: Any) -> str:
        fresh()
        raise exc

    for name in trials.TRIALS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(trials.TRIALS, name, fail)
            with pytest.raises(type(exc)) as caught:
                atomik.probe(folder)
        assert caught.value is exc
    assert os.listdir(folder) == []


def test_the_command_line_says_the_same(folder: Path) -> None:
    """``atomik doctor --json`` has what `probe` returns, and whether ``run --in`` works, with and without a layer."""
    environment = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}
    command = [sys.executable, "-m", "atomik", "doctor", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    (said,) = json.loads(done.stdout)["folders"]
    assert said.pop("run_in").keys() == said.pop("changes_only").keys() == {"works", "reason"}
    assert said == json.loads(json.dumps(atomik.probe(folder).as_dict()))


def _alarm() -> None:
    raise BlockingIOError(errno.EAGAIN, "alarm")


class Alarmed(Kernel):
    """A signal handler raises while locks are tried."""

    def flock(self, fd: int, operation: int) -> None:  # type: ignore[override]
        """Take the lock of the private folder, and no other."""
        if operation & fcntl.LOCK_NB:
            _alarm()
        super().flock(fd, operation)


def test_an_exception_while_locks_are_tried_goes_on(tmp_path: Path) -> None:
    """It does not make a yes of "flock" (I13)."""
    with installed(Alarmed()), pytest.raises(BlockingIOError, match="alarm"):
        atomik.probe(tmp_path)
    assert not os.listdir(tmp_path)


def test_what_is_made_cannot_be_removed(tmp_path: Path) -> None:
    """A sandbox that refuses to remove folders (Landlock without REMOVE_DIR): P9 is a no, and the doctor does not fail."""
    with installed(Faulty.every("rmdir", errno.EACCES)):
        said = {promise.name: promise for promise in atomik.probe(tmp_path).promises}
    assert said["P9"].holds == "no"
    assert "cannot be removed: Permission denied" in said["P9"].reason
    atomik.recover(tmp_path)
    assert os.listdir(tmp_path) == []


def test_files_that_chmod_cannot_narrow(tmp_path: Path) -> None:
    """A server that refuses chmod: overwriting works, but not of what is closed to others, and both are said."""
    before = os.umask(0o022)
    try:
        with installed(Faulty.every("fchmod chmod fchmodat2", errno.EPERM)):
            said = {promise.name: promise for promise in atomik.probe(tmp_path).promises}
            atomik.write_text(tmp_path / "open", "old")
            atomik.write_text(tmp_path / "open", "new", overwrite=True)
            atomik.write_text(tmp_path / "asked", "new", permissions=0o600)
            os.close(os.open(tmp_path / "closed", os.O_CREAT, 0o600))
            with pytest.raises(errors.AccessDeniedError, match="cannot narrow"):
                atomik.write_text(tmp_path / "closed", "never", overwrite=True)
    finally:
        os.umask(before)
    assert [said[name].holds for name in ("P1", "P3", "P4", "P8")] == ["yes"] * 4
    assert "fewer permissions" in said["P1"].reason
    assert (tmp_path / "asked").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "closed").read_text() == ""


def test_a_staged_path_may_be_impossible(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others could redirect a path, and there is no /proc: `paths` is a no."""
    monkeypatch.setattr("atomik._protocol.private_folder.is_private", lambda *_: False)
    with installed(Faulty.every("stat", errno.ENOENT)):
        can = atomik.probe(folder)
    assert can.paths is False
    assert atomik.probe(folder).paths is True


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_filesystem_without_locks(folder: Path, number: int) -> None:
    """NFS without lockd: single files that need no lock are written, the rest is refused by name, and P6 is a no."""
    with installed(Faulty.every("flock", number)):
        can = atomik.probe(folder)
        happened = happens(folder)
        with pytest.raises(errors.UnsupportedFilesystemError, match="the filesystem cannot lock the folder"):
            _group(folder, folder)
    agree({promise.name: promise.holds for promise in can.promises}, happened)
    assert can.flock is False
    assert can.promises[5].holds == "no"
    assert os.strerror(number) in can.promises[5].reason


@pytest.mark.usefixtures("no_log")
def test_files_cannot_be_synced(folder: Path) -> None:
    """A filesystem that answers fsync of files with EINVAL: P5 is a no, and durable outputs are refused."""

    def no_sync(call: Any) -> int | None:
        return None if stat.S_ISDIR(os.fstat(call.args[0]).st_mode) else errno.EINVAL

    with installed(Faulty(no_sync, {"fsync", "fdatasync"})):
        said = atomik.probe(folder).promises[4]
        with pytest.raises(errors.CommitError, match="Invalid argument"):
            atomik.write_text(folder / "new", "never")
        atomik.write_text(folder / "new", "new", durable=False)
    assert (said.holds, said.reason) == ("no", "files cannot be synced, so durable=True is refused")
    assert os.listdir(folder) == ["new"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ERANGE, errno.EMLINK])
def test_links_are_refused_by_any_errno(folder: Path, number: int) -> None:
    """AppArmor without the permission to link, CryFS, rclone: an unnamed file gets a name another way."""
    with installed(Faulty.every("link link_fd", number)):
        can = atomik.probe(folder)
        happened = happens(folder)
        filesystem.forget()
        atomik.write_text(folder / "first", "new")
    agree({promise.name: promise.holds for promise in can.promises}, happened)
    assert happened["create"]
    assert happened["overwrite"]
    assert (folder / "first").read_text() == "new"
