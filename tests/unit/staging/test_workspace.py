"""Held folders, private folders and slots: made once, private, locked, and gone at the end."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from atomik._folder import filesystem as _filesystem
from atomik._folder.directory import Directory
from atomik._folder.paths import split
from atomik._folder.place import Place
from atomik._protocol.private_folder import PrivateFolder
from atomik._staging.workspace import Workspace
from atomik._system import kernel as _kernel
from tests.support.kernels import Acting, Faulty, Recording, installed
from tests.support.state import descriptors, tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def here(folder: Path) -> Iterator[Directory]:
    directory = Directory.open(str(folder))
    yield directory
    directory.close()


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    made = Workspace()
    yield made
    assert made.release(keep_parents=False) == []


@pytest.mark.parametrize(
    ("path", "is_folder", "expected"),
    [
        ("/a/b", False, ("/a", "b")),
        ("/a", False, ("/", "a")),
        ("/a/b//", True, ("/a", "b")),
        ("//a", True, ("/", "a")),
        ("/a/../b", False, ("/a/..", "b")),
        ("/a/./b", False, ("/a/.", "b")),
    ],
)
def test_split(path: str, is_folder: bool, expected: tuple[str, str]) -> None:
    """Nothing is folded away, because ".." after a symlink is another folder."""
    assert split(path, folder=is_folder) == expected


def test_dotdot_behind_a_symlink(folder: Path) -> None:
    """``link/..`` is the folder above the link's target, as for every system call."""
    Path("elsewhere/deep").mkdir(parents=True)
    Path("link").symlink_to("elsewhere/deep")
    with atomik.file("link/../x") as f:
        f.write("1")
    assert sorted(os.listdir("elsewhere")) == ["deep", "x"]


def test_one_folder_is_held_once(folder: Path, workspace: Workspace) -> None:
    """However it is spelled."""
    Path("d").mkdir()
    Path("link").symlink_to("d")
    before = descriptors()
    first = workspace.directory(str(folder / "d"))
    for spelling in ("d/", "./d", "link", "d/../link"):
        assert workspace.directory(os.path.join(folder, spelling)) is first
    assert len(descriptors()) == len(before) + 1


def private(here: Directory) -> PrivateFolder:
    made = PrivateFolder(here, "0" * 16)
    made.make()
    return made


NAME = f".atomik-{'0' * 16}"


def test_private_folder(here: Directory, folder: Path) -> None:
    """Mode 0700 whatever the umask, locked for as long as it lives, and gone afterwards."""
    before = os.umask(0)
    try:
        private_folder = private(here)
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / NAME).stat().st_mode) == 0o700
    fd = os.open(folder / NAME, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    private_folder.dissolve()
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    assert os.listdir() == []


def test_private_folder_taken_away_while_it_is_made(here: Directory) -> None:
    """A recovery that removes it between mkdir and flock is not an error: it is made again."""
    for call in ("open", "flock"):
        once = [True]
        kernel = Acting(call, lambda _: os.rmdir(NAME), when=lambda _, once=once: bool(once) and once.pop())  # type: ignore[misc]
        with installed(kernel):
            private_folder = private(here)
        assert kernel.acted == 1
        private_folder.dissolve()
    assert os.listdir() == []


def test_private_folder_taken_away_for_ever(here: Directory) -> None:
    """It gives up with a conflict, and leaves nothing."""
    with (
        installed(Acting("flock", lambda _: os.rmdir(NAME))),
        pytest.raises(errors.ConflictError, match="keeps removing"),
    ):
        private(here)
    assert os.listdir() == []


def test_a_stranger_took_our_name(here: Directory) -> None:
    """Nobody guesses 64 random bits; if the name is taken nevertheless, it is left alone."""
    os.mkdir(NAME)
    Path(NAME, "theirs").touch()
    made = PrivateFolder(here, "0" * 16)
    with pytest.raises(FileExistsError):
        made.make()
    made.dissolve()
    assert os.listdir(NAME) == ["theirs"]
    Path(NAME, "theirs").unlink()
    os.rmdir(NAME)


def test_what_strangers_put_into_a_private_folder_stays(folder: Path) -> None:
    """I6: only our own names are deleted; the commit does not fail for it, and says what is left."""
    tx = atomik.transaction()
    staged = tx.folder("d")
    private_folder = staged.parent
    (private_folder / "theirs").write_text("theirs")
    receipt = tx.commit()
    assert len(receipt.leftovers) == 1
    assert str(private_folder) in receipt.leftovers[0]
    assert (private_folder / "theirs").read_text() == "theirs"
    (private_folder / "theirs").unlink()
    private_folder.rmdir()


def test_staged_content_removed_by_others(folder: Path) -> None:
    """Who removes what was staged gets an error at the commit, and nothing is published."""
    for others in (0, 1):
        tx = atomik.transaction()
        staged = tx.folder("d")
        for _ in range(others):
            tx.file("x")
        os.rmdir(staged)
        with pytest.raises(errors.AtomikOSError):
            tx.commit()
        assert os.listdir() == []


def test_slots_are_never_used_twice(folder: Path, workspace: Workspace) -> None:
    directory = workspace.directory(str(folder))
    names = {workspace.slot(directory).name for _ in range(50)} | {workspace.sibling(directory).name for _ in range(50)}
    assert len(names) == 100
    assert max(map(len, names)) <= 32
    assert len(workspace.private_folders) == 1


def test_two_transactions_do_not_share_names(folder: Path) -> None:
    assert len({Workspace().txid for _ in range(100)}) == 100


def test_made_parents_in_a_race(folder: Path) -> None:
    """Someone makes the same folder at the same moment: their version is kept when ours is given up."""
    kernel = Acting("mkdir", lambda call: os.mkdir("a"), when=lambda call: call.paths[0].endswith("/a"))
    with pytest.raises(ZeroDivisionError), installed(kernel), atomik.file("a/b/c", parents=True):
        raise ZeroDivisionError
    assert tree(".").keys() == {"a"}


def test_many_destinations_are_fast_to_check(folder: Path) -> None:
    """The rules between destinations cost a number of calls that grows with the items, not with their square."""

    def calls(count: int) -> int:
        for number in range(count):
            os.makedirs(f"{count}/{number}", exist_ok=True)
        with installed(Recording()) as kernel, atomik.transaction(overwrite=True) as tx:
            for number in range(count):
                tx.folder(f"{count}/{number}")
            staged = len(kernel.calls)
            tx.abort()
        return staged

    assert calls(40) < 4.2 * calls(10)


# --- a folder and its identities ---------------------------------------------------------------------------------------
def no_handles() -> Faulty:
    return Faulty.every("handle", errno.EOPNOTSUPP)


@pytest.mark.parametrize("kernel", [Recording, no_handles], ids=["handles", "inodes"])
def test_identity(here: Directory, kernel: Callable[[], Any]) -> None:
    """The same object has the same token under every name, and none where nothing is."""
    _filesystem.forget()
    Path("a").touch()
    Path("b").touch()
    os.link("a", "hard")
    with installed(kernel()):
        fresh = Directory.open(here.path)
        tokens = {name: fresh.identity(name) for name in ("a", "b", "hard", "missing")}
        own = fresh.identity("")
        fresh.close()
    assert tokens["a"] == tokens["hard"] != tokens["b"]
    assert tokens["missing"] is None
    assert own not in tokens.values()
    _filesystem.forget()


def test_a_transaction_without_handles(folder: Path) -> None:
    """Where the filesystem has no handles, inode numbers do."""
    _filesystem.forget()
    Path("a").write_text("old")
    with installed(no_handles()), atomik.transaction(overwrite=True) as tx:
        tx.file("a").write("new")
        tx.folder("d")
        tx.symlink("l", "x")
    assert sorted(os.listdir()) == ["a", "d", "l"]
    assert Path("a").read_text() == "new"


def test_still_there(folder: Path) -> None:
    """Whether the path still leads to the folder that was opened."""
    Path("d").mkdir()
    directory = Directory.open(str(folder / "d"))
    assert directory.still_there()
    os.rename("d", "e")
    assert not directory.still_there()
    Path("d").mkdir()
    assert not directory.still_there()
    os.rmdir("d")
    Path("d").touch()
    assert not directory.still_there()
    os.unlink("d")
    os.rename("e", "d")
    assert directory.still_there()
    directory.close()
    directory.close()


def test_place(here: Directory) -> None:
    Path("x").touch()
    place = Place(here, "x")
    assert str(place) == os.path.join(here.path, "x")
    assert place.fd == here.fd
    assert place.stat() is not None
    assert Place(here, "missing").stat() is None


def test_locks(folder: Path, here: Directory) -> None:
    """Exclusive against everybody, shared against exclusive only."""
    other = Directory.open(str(folder))
    here.lock(0, shared=True)
    assert other.try_lock(shared=True)
    assert not other.try_lock()
    other.unlock()
    here.unlock()
    assert other.try_lock()
    with pytest.raises(errors.LockTimeoutError) as caught:
        here.lock(0)
    assert caught.value.errno == errno.EDEADLK, "it is this thread's own lock"
    with ThreadPoolExecutor() as pool, pytest.raises(errors.LockTimeoutError) as caught:
        pool.submit(here.lock, 0).result()
    assert caught.value.errno == errno.ETIMEDOUT
    other.close()
    here.lock(0)


def test_filesystems_are_remembered_by_mount(folder: Path) -> None:
    """Asked once per mount, where the kernel has ids that are never reused."""
    _filesystem.forget()
    with installed(Recording({"filesystem_magic"})) as kernel:
        for _ in range(3):
            directory = Directory.open(str(folder))
            assert directory.fs.name
            assert directory.fs is directory.fs
            unique = _kernel.port.statx(directory.fd).unique_mount
            directory.close()
    assert len(kernel.calls) == (1 if unique else 3)
