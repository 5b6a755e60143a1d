"""What a container's filter refuses: the next way serves, or the error names the sandbox."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import atomik
from atomik import _hidden_names, errors
from atomik._folder import filesystem
from atomik._folder.directory import Directory
from atomik._folder.place import Place, chmod, link, rename_back
from atomik._system import kernel
from tests.support import landlock
from tests.support.seccomp import CALLS, needs_seccomp, refuse
from tests.support.state import _load_everything, in_child
from tests.support.users import no_root

pytestmark = needs_seccomp

REFUSED = [errno.EPERM, errno.ENOSYS, errno.EACCES]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Directory]:
    (tmp_path / "file").write_text("content")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    directory = Directory.open(str(tmp_path))
    yield directory
    directory.close()


def behind(number: int, *calls: str, do: Callable[[], None]) -> None:
    """Do it in a child in which the calls are refused."""

    def sandboxed() -> None:
        refuse(number, *calls)
        filesystem.forget()  # what the parent found out before holds no longer
        do()

    _load_everything()
    in_child(sandboxed)


@pytest.mark.parametrize("number", REFUSED)
@pytest.mark.parametrize("call", CALLS)
def test_a_folder_is_opened_and_asked(here: Directory, number: int, call: str) -> None:
    """Whatever single call is missing: names, identities, the mount, attributes, the way back to it."""
    before = kernel.port.statx(here.fd, "file")

    def ask() -> None:
        again = Directory.open(here.path)
        assert again.key == here.key
        assert again.mount, "the mount is known all the same"
        assert again.fs.name == here.fs.name
        assert (again.exists("file"), again.exists("link"), again.exists("none")) == (True, True, False)
        found = kernel.port.statx(again.fd, "file")
        assert (found.mode, found.ino, found.uid, found.nlink, found.dev) == (
            before.mode, before.ino, before.uid, before.nlink, before.dev,
        )  # fmt: skip
        assert again.identity("file") != again.identity("folder")
        assert again.identity("none") is None
        assert not kernel.port.has_xattrs("file", again.fd)
        assert again.still_there()
        assert kernel.port.statx(again.fd, "folder").mount == again.mount
        with pytest.raises(FileNotFoundError):
            kernel.port.statx(again.fd, "none")
        again.close()

    behind(number, call, do=ask)


@pytest.mark.parametrize("number", REFUSED)
def test_all_of_them_at_once(here: Directory, number: int) -> None:
    """And /proc/self/fdinfo still tells the mount."""

    def ask() -> None:
        again = Directory.open(here.path)
        assert again.mount
        assert kernel.port.statx(again.fd, "folder").mount == again.mount
        rename_back(Place(again, "file"), Place(again, "other"), folder=False)
        assert sorted(os.listdir(again.path)) == ["folder", "link", "other"]

    behind(number, *CALLS, do=ask)


@pytest.mark.parametrize(("call", "number"), list(zip(kernel._NEEDED, REFUSED * 4, strict=False)))
def test_what_everything_needs_is_refused_before_anything_is_made(here: Directory, number: int, call: str) -> None:
    """The error names the call, nothing is left, and the doctor says the same."""

    def try_it() -> None:
        for write in (lambda: atomik.write_text(here.child("new"), "new"), lambda: _group(here)):
            with pytest.raises(errors.UnsupportedFilesystemError, match=f"seccomp filter refuses {call}") as caught:
                write()
            assert caught.value.filename == here.path
        can = atomik.probe(here.path)
        said = {promise.name: (promise.holds, promise.reason) for promise in can.promises}
        assert {name: holds for name, (holds, _) in said.items() if name in ("P1", "P2", "P3", "P4")} == dict.fromkeys(
            ("P1", "P2", "P3", "P4"), "no"
        )
        assert f"refuses {call}" in said["P1"][1]
        assert said["P9"][0] == "yes"
        assert (can.tmpfile, can.exchange) == (None, None)

    behind(number, call, *["renameat2"] * (call == "renameat"), do=try_it)
    assert sorted(os.listdir(here.path)) == ["file", "folder", "link"]


_LEAVES = pytest.mark.leftovers("what a sandbox keeps from being removed")


# --- Landlock ----------------------------------------------------------------------------------------------------------
def _file(here: Directory) -> None:
    atomik.write_text(here.child("new"), "new")


def _overwrite(here: Directory) -> None:
    atomik.write_text(here.child("file"), "new", overwrite=True)


def _folder(here: Directory) -> None:
    with atomik.folder(here.child("new")) as new:
        (new / "x").touch()


def _path(here: Directory) -> None:
    with atomik.path(here.child("new")) as new:
        new.touch()


def _move(here: Directory) -> None:
    with atomik.transaction() as tx:
        tx.move(here.child("file"), here.child("new"))


def _resumed(here: Directory) -> None:
    with atomik.folder(here.child("new"), resume=True) as new:
        (new / "x").touch()


#: the right that is missing → what works nevertheless, and what the errors of the others say
_LANDLOCK: dict[str, tuple[set[Callable[[Directory], None]], str]] = {
    "REMOVE_FILE": ({_file}, "make and remove files here"),
    "REMOVE_DIR": ({_file, _overwrite}, "make and remove folders here.*which has to stay"),
    "MAKE_DIR": ({_file, _overwrite}, "make folders here.*LANDLOCK_ACCESS_FS_MAKE_DIR"),
}


@pytest.mark.parametrize("right", ["REMOVE_FILE", pytest.param("REMOVE_DIR", marks=_LEAVES), "MAKE_DIR"])
def test_landlock_without_a_right(here: Directory, right: str) -> None:
    """What is staged could not be made, or not be removed: refused by name, before anything is made.  That folders cannot be
    removed shows only when there is one of ours: it stays, and the error names it."""
    if landlock.version() < 3:
        pytest.skip("needs Landlock")
    works, said = _LANDLOCK[right]

    def try_it() -> None:
        landlock.enter(right)
        filesystem.forget()
        before, old = set(os.listdir(here.path)), Path(here.child("file")).read_bytes()
        for work in (_overwrite, _group, _folder, _path, _move, _resumed, _file):
            if work in works:
                work(here)
                continue
            with pytest.raises(errors.AccessDeniedError, match=said) as caught:
                work(here)
            assert caught.value.filename == here.path
            left = set(os.listdir(here.path)) - before
            assert all(name in str(caught.value) for name in left)
            assert bool(left) == (right == "REMOVE_DIR")
            before |= left
            assert Path(here.child("file")).read_bytes() == (b"new" if _overwrite in works else old)
        can = atomik.probe(here.path)
        promises = {promise.name: promise.holds for promise in can.promises}
        assert promises["P4"] == "no"
        assert promises["P9"] == ("no" if right == "REMOVE_DIR" else "unknown")
        assert "sandbox" in can.promises[3].reason
        assert (right == "REMOVE_DIR") == bool(set(os.listdir(here.path)) - before - {"new"})

    _load_everything()
    in_child(try_it)


def _group(here: Directory) -> None:
    with atomik.transaction(overwrite=True) as tx:
        tx.file(here.child("file")).write("never")
        tx.remove(here.child("folder"))


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
@pytest.mark.parametrize("call", ["renameat", "fstatfs", "ioctl", "copy_file_range", "clock_nanosleep"])
def test_what_another_call_does_as_well(here: Directory, number: int, call: str) -> None:
    """A plain rename by renameat2(2), copies by reading, waiting by futex(2); an unknown filesystem is tried."""

    def try_it() -> None:
        with atomik.update(here.child("file")) as f:
            assert f.read() == "content"
            f.write(" and more")
        with atomik.path(here.child("new")) as name:
            Path(name).write_text("new")
        with pytest.raises(KeyError), atomik.transaction(overwrite=True, progress=_stop) as tx:
            tx.file(here.child("file")).write("never")
            tx.remove(here.child("folder"))
        with atomik.folder(here.child("folder"), overwrite=True, copy=True) as copy:
            (copy / "x").touch()
        kernel.port.rename("new", here.fd, "renamed", here.fd, 0)
        with pytest.raises(FileNotFoundError):
            kernel.port.rename("none", here.fd, "other", here.fd, 0)

    behind(number, call, do=try_it)
    assert sorted(os.listdir(here.path)) == ["file", "folder", "link", "renamed"]
    assert os.listdir(here.child("folder")) == ["x"]
    assert Path(here.child("file")).read_text() == "content and more"


@pytest.mark.parametrize("number", REFUSED)
def test_random_numbers(here: Directory, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has them as well; where that is missing too, the error says so, with the path, and nothing is left."""

    def try_it() -> None:
        _hidden_names._random.clear()
        _overwrite(here)
        _group(here)
        monkeypatch.setattr(_hidden_names, "_DEVICE", "/missing")
        _hidden_names._random.clear()
        if number != errno.EACCES:  # with EACCES os.urandom reads the device
            return
        for work in (_folder, _move, _overwrite):
            with pytest.raises(errors.AtomikOSError, match=r"refuses getrandom.*allow one of the two") as caught:
                work(here)
            assert str(caught.value.filename).startswith(here.path)

    Path(here.child("file")).write_text("old")
    behind(number, "getrandom", do=try_it)
    assert Path(here.child("file")).read_text() == "never"


def _stop(phase: str, done: int, _: int) -> None:
    if phase == "swapping" and done == 1:
        raise KeyError


def test_syncs_that_are_answered_and_not_made(here: Directory) -> None:
    """As systemd-nspawn --suppress-sync does: nobody is refused, but P5 is a no."""

    def try_it() -> None:
        atomik.write_text(here.child("new"), "new")
        said = atomik.probe(here.path).promises[4]
        assert (said.holds, said.reason) == ("no", "a seccomp filter answers fsync without syncing")

    behind(0, "fsync", do=try_it)


@pytest.mark.parametrize("number", REFUSED)
def test_handles_are_refused_later(here: Directory, number: int) -> None:
    """A filter that is entered after the filesystem was asked: identities are inode numbers from then on."""
    before = here.identity("file")

    def ask() -> None:
        assert here.identity("none") is None
        assert here.identity("file") not in (None, before)
        assert here.identity("file") == here.identity("file") != here.identity("folder")
        assert here.fs.handle_flags is None
        with atomik.file(here.child("file"), overwrite=True) as f:
            f.write("new")
        with atomik.transaction() as tx:
            tx.remove(here.child("file"))
            tx.symlink(here.child("second"), "nowhere")
        assert sorted(os.listdir(here.path)) == ["folder", "link", "second"]

    def sandboxed() -> None:
        refuse(number, "name_to_handle_at")
        ask()

    assert before is not None
    assert before.startswith(b"h"), "this filesystem has handles"
    in_child(sandboxed)


@pytest.mark.parametrize("number", REFUSED)
def test_renameat2(here: Directory, number: int) -> None:
    """Without flags renameat(2) does it; with flags the error names the sandbox, and reads as a missing call does."""

    def try_it() -> None:
        with pytest.raises(OSError, match="sandbox or seccomp filter refuses renameat2") as caught:
            kernel.port.rename("file", here.fd, "new", here.fd, kernel.NOREPLACE)
        assert caught.value.errno == errno.ENOSYS
        kernel.port.rename("file", here.fd, "new", here.fd, 0)
        assert here.exists("new")

    behind(number, "renameat2", do=try_it)


def test_a_no_about_one_file_stays_what_it_is(here: Directory) -> None:
    """EPERM of a sticky or immutable folder is not blamed on a sandbox."""
    assert kernel.sandboxed("renameat2") is None

    def try_it() -> None:
        os.chmod(here.path, 0o555)
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(PermissionError, match="Permission denied"):
            kernel.port.rename("file", here.fd, "new", here.fd, kernel.NOREPLACE)

    if why := no_root():
        pytest.skip(why)
    in_child(try_it)


@pytest.mark.parametrize("number", REFUSED)
def test_o_tmpfile_and_linkat(here: Directory, number: int) -> None:
    """Both read as missing, so that a named file is written instead."""

    def tmpfile() -> None:
        with pytest.raises(OSError, match="O_TMPFILE") as caught:
            kernel.port.open_tmpfile(here.fd, os.O_RDWR, 0o600)
        assert caught.value.errno == errno.ENOSYS

    def linkat() -> None:
        assert not link(Place(here, "file"), Place(here, "second"))
        fd = kernel.port.open_tmpfile(here.fd, os.O_RDWR, 0o600)
        with pytest.raises(OSError, match="linkat") as caught:
            kernel.port.link_fd(fd, "second", here.fd)
        assert caught.value.errno == errno.ENOSYS

    if number != errno.ENOSYS:
        behind(number, "O_TMPFILE", do=tmpfile)
    behind(number, "linkat", do=linkat)


@pytest.mark.parametrize("number", REFUSED)
def test_syncfs_and_flock(here: Directory, number: int) -> None:
    """What has no second way is refused by name."""

    def try_them() -> None:
        with pytest.raises(OSError, match="syncfs"):
            kernel.port.syncfs(here.fd)
        with pytest.raises(errors.AtomikOSError, match="flock") as caught:
            here.lock(5)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSYS, here.path)
        with pytest.raises(errors.AtomikOSError, match="flock"):
            here.try_lock()

    behind(number, "syncfs", "flock", do=try_them)
    assert fcntl.flock(here.fd, fcntl.LOCK_EX | fcntl.LOCK_NB) is None


@pytest.mark.parametrize("number", REFUSED)
def test_chmod_without_proc(here: Directory, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc and fchmodat2(2) a folder is opened for it; for a file the error says what is missing."""

    def no_proc(path: str, mode: int) -> None:
        raise FileNotFoundError(errno.ENOENT, "no /proc", path)

    monkeypatch.setattr(kernel.port, "chmod", no_proc, raising=False)

    def try_it() -> None:
        for name, works in (("folder", True), ("file", False)):
            path_fd = kernel.port.open(name, os.O_PATH | os.O_NOFOLLOW, here.fd)
            if works:
                chmod(path_fd, 0o711, name)
                assert os.stat(here.child(name)).st_mode & 0o7777 == 0o711
            else:
                with pytest.raises(errors.AtomikOSError, match="mount /proc"):
                    chmod(path_fd, 0o711, name)

    behind(number, "fchmodat2", do=try_it)


@pytest.mark.parametrize("call", sorted(kernel._HARMLESS))
def test_what_a_handler_raises_while_a_sandbox_is_asked(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing about the sandbox, and goes on (I13)."""

    def handler(_: object) -> None:
        raise PermissionError(errno.EPERM, "from a handler")

    monkeypatch.setitem(kernel._HARMLESS, call, handler)
    kernel.refused_calls.cache_clear()
    with pytest.raises(PermissionError, match="from a handler"):
        kernel.sandboxed(call)
    if call in kernel._NEEDED:
        with pytest.raises(PermissionError, match="from a handler"):
            kernel.refused_calls()
    monkeypatch.undo()
    assert kernel.sandboxed(call) is None
