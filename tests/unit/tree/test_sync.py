"""Making trees of any depth and width durable."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from atomik import errors
from atomik._folder.filesystem import BTRFS
from atomik._folder.place import Place
from atomik._system import kernel as _kernel
from atomik._tree import delete, sync
from atomik._tree.walk import HELD
from tests.support.lab.mounts import mounted
from tests.support.trees import (
    DEEP,
    Before,
    Without,
    descriptors,
    few_descriptors,
    held,
    in_memory,
    kernel,
    make_deep,
    make_small,
    make_wide,
    mounts,
    tree_with_mount,
)
from tests.support.users import NOBODY, as_user, root

if TYPE_CHECKING:
    from collections.abc import Iterator


class Syncs(_kernel.Kernel):
    """Notes what is synced, by path, and how many descriptors are open then."""

    def __init__(self) -> None:
        self.synced: list[str] = []
        self.begun: list[str] = []

    def fsync(self, fd: int) -> None:
        """Note and do."""
        self.synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        super().fsync(fd)

    def start_writeback(self, fd: int) -> None:
        """Note and do."""
        self.begun.append(os.readlink(f"/proc/self/fd/{fd}"))
        super().start_writeback(fd)


@pytest.mark.parametrize("openat2", [True, False])
def test_sync(tmp_path: Path, openat2: bool) -> None:
    """Every regular file and every folder is synced once, folders after the folders in them, and nothing else."""
    top = tmp_path / "tree"
    make_small(top)
    noting = Syncs()
    if not openat2:
        noting.__dict__["open_beneath"] = Without("open_beneath", errno.ENOSYS).open_beneath
    before = descriptors()
    with kernel(noting), held(top) as folder:
        count = sync.sync_tree(folder)
    files = [p for p in top.rglob("*") if p.is_file() and not p.is_symlink()]
    folders = [top / "sub" / "empty", top / "sub", top]
    assert sorted(noting.synced) == sorted(str(p) for p in files + folders)
    assert [p for p in noting.synced if Path(p) in folders] == [str(p) for p in folders]
    assert sorted(noting.begun) == sorted(str(p) for p in files)
    assert count == len(noting.synced)
    assert descriptors() == before


def test_sync_begins_all_before_it_waits(tmp_path: Path) -> None:
    """Writeback of all files of a batch is under way before the first fsync."""
    make_wide(tmp_path / "tree", sync.BATCH)
    order: list[str] = []
    with kernel(Before("start_writeback", 0, lambda: order.append("begin"), every=True)) as noting:
        real = noting.fsync

        def fsync(fd: int) -> None:
            order.append("wait")
            real(fd)

        noting.__dict__["fsync"] = fsync
        with held(tmp_path / "tree") as folder:
            assert sync.sync_tree(folder) == sync.BATCH + 1
    assert order == ["begin"] * sync.BATCH + ["wait"] * (sync.BATCH + 1)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory."""
    with in_memory() as path:
        yield path


@pytest.mark.sweep
def test_sync_deep(memory: Path) -> None:
    """5,000 levels with a fixed number of descriptors."""
    make_deep(memory / "deep", DEEP)

    class Free(_kernel.Kernel):
        def fsync(self, fd: int) -> None:
            """Only counted, because 10,000 real ones would not show more."""
            os.fstat(fd)

    with held(memory / "deep") as folder, held(memory) as parent:
        with kernel(Free()), few_descriptors(HELD + sync.BATCH + 5):
            assert sync.sync_tree(folder) == 2 * DEEP + 1
        delete.delete_tree(Place(parent, "deep"))


@pytest.mark.sweep
@pytest.mark.parametrize("files", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
@mounts
def test_sync_wide(files: int) -> None:
    """A very wide folder is synced with a fixed number of descriptors."""
    with mounted("tmpfs", size=256 << 20) as place:
        make_wide(place.folder / "wide", files)
        with held(place.folder / "wide") as folder, few_descriptors(sync.BATCH + 5):
            assert sync.sync_tree(folder) == files + 1


def test_sync_with_few_descriptors(tmp_path: Path) -> None:
    """When the process runs out of descriptors, smaller batches do."""
    make_wide(tmp_path / "tree", 300)
    with held(tmp_path / "tree") as folder, few_descriptors(20):
        assert sync.sync_tree(folder) == 301


@root
def test_sync_unreadable(tmp_path: Path) -> None:
    """Files and folders that their owner may not read are synced, and have their modes again afterwards."""
    tmp_path.chmod(0o755)
    top = tmp_path / "tree"
    for name in ("none", "write", "search", "list", "plain"):
        (top / name).mkdir(parents=True)
        (top / name / "file").write_text("x")
    (top / "write" / "file").chmod(0o200)
    (top / "none" / "file").chmod(0o000)
    modes = {"none": 0o000, "write": 0o200, "search": 0o100, "list": 0o400, "plain": 0o755}
    for path in [top, *top.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    for name, bits in modes.items():
        (top / name).chmod(bits)
    noting = Syncs()
    with kernel(noting), held(top) as folder:
        assert as_user(NOBODY, lambda: (sync.sync_tree(folder), len(noting.synced))) == repr((11, 11))
    assert {name: stat.S_IMODE((top / name).stat().st_mode) for name in modes} == modes
    assert stat.S_IMODE((top / "write" / "file").stat().st_mode) == 0o200
    assert stat.S_IMODE((top / "none" / "file").stat().st_mode) == 0o000


@root
def test_sync_of_another_owner(tmp_path: Path) -> None:
    """A file that cannot be read in any way is an error with its path."""
    tmp_path.chmod(0o755)
    top = tmp_path / "tree"
    top.mkdir()
    (top / "secret").touch()
    (top / "secret").chmod(0o600)

    def attempt() -> object:
        with pytest.raises(errors.AccessDeniedError) as caught:
            sync.sync_tree(folder)
        return caught.value.filename

    with held(top) as folder:
        assert as_user(NOBODY, attempt) == repr(str(top / "secret"))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EINVAL])
def test_sync_failing_file(tmp_path: Path, number: int) -> None:
    """A failing fsync of a file names it, whatever the errno, and leaves no descriptor."""
    (tmp_path / "file").write_text("x")

    class FailingFiles(_kernel.Kernel):
        def fsync(self, fd: int) -> None:
            """Folders well, files not."""
            if stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(number, os.strerror(number))

    before = descriptors()
    with kernel(FailingFiles()), held(tmp_path) as folder, pytest.raises(errors.AtomikOSError) as caught:
        sync.sync_tree(folder)
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "file"))
    assert descriptors() == before


def test_sync_folder_that_cannot(tmp_path: Path) -> None:
    """Folders that cannot be synced are passed over (EINVAL), failing ones are not (EIO)."""
    (tmp_path / "sub").mkdir()
    with held(tmp_path) as folder:
        with kernel(Without("fsync", errno.EINVAL)):
            assert sync.sync_tree(folder) == 2
        with kernel(Without("fsync", errno.EIO)), pytest.raises(errors.AtomikOSError) as caught:
            sync.sync_tree(folder)
    assert caught.value.filename == str(tmp_path / "sub")


def test_sync_without_head_start(tmp_path: Path) -> None:
    """Where writeback cannot be started ahead, fsync does all."""
    make_small(tmp_path / "tree")
    with kernel(Without("start_writeback", errno.ENOSYS)), held(tmp_path / "tree") as folder:
        assert sync.sync_tree(folder) == 8


def test_sync_what_vanishes(tmp_path: Path) -> None:
    """A file or folder that is removed in the meantime needs no sync."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "file").touch()
    with held(tmp_path) as folder:
        with kernel(Before("open", 1, (tmp_path / "file").unlink)):
            assert sync.sync_tree(folder) == 2
        with kernel(Before("open_beneath", 1, (tmp_path / "sub").rmdir)):
            assert sync.sync_tree(folder) == 1


@mounts
def test_sync_refuses_a_mount() -> None:
    """A mount in the tree is an error: what is on it is not ours to sync."""
    with tree_with_mount() as (_, home, point):
        with held(home / "tree") as folder, pytest.raises(errors.MountPointError, match="mount") as caught:
            sync.sync_tree(folder)
        assert caught.value.filename == str(point)


@pytest.mark.parametrize("magic", [BTRFS, 0xEF53])
def test_threads_where_they_help(folder: Path, monkeypatch: pytest.MonkeyPatch, magic: int) -> None:
    """Many files are synced by several threads, except on btrfs."""
    monkeypatch.setattr(_kernel.Kernel, "filesystem_magic", lambda self, fd: magic)
    started: list[int] = []
    monkeypatch.setattr(sync._Work, "start", lambda self, count: started.append(count))
    fds = [os.open(folder / str(number), os.O_CREAT | os.O_WRONLY) for number in range(sync.FEW)]
    try:
        assert sync.sync_files(fds) is None
    finally:
        for fd in fds:
            os.close(fd)
    assert started == ([] if magic == BTRFS else [sync.THREADS - 1])
