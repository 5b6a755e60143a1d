"""Deleting trees of any depth and width, and nothing but these trees."""

from __future__ import annotations

import errno
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._system import kernel as _kernel
from atomik._tree import delete
from atomik._tree.walk import HELD
from tests.support.lab import linux, namespace
from tests.support.lab.mounting import attached
from tests.support.lab.mounts import mounted
from tests.support.trees import (
    DEEP,
    Before,
    Raise,
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
    remove_deep,
    tree_with_mount,
)
from tests.support.users import NOBODY, as_user, root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Directory]:
    """The test's folder, held."""
    with held(tmp_path) as folder:
        yield folder


@pytest.fixture
def mounted_inside() -> Iterator[tuple[Directory, Path, Path]]:
    """(the folder that holds "tree", it, a mount point inside with an odd name and a file on the mount)."""
    with tree_with_mount() as found:
        yield found


def test_delete_missing(here: Directory) -> None:
    """A missing place is not an error."""
    delete.delete_tree(Place(here, "missing"))


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "fifo"])
def test_delete_single(here: Directory, tmp_path: Path, kind: str) -> None:
    """What is not a folder is unlinked; a link is never followed."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "kept").touch()
    victim = tmp_path / "victim"
    if kind == "fifo":
        os.mkfifo(victim)
    elif kind == "file":
        victim.touch()
    else:
        victim.symlink_to("target" if kind == "link" else "nowhere")
    delete.delete_tree(Place(here, "victim"))
    assert not os.path.lexists(victim)
    assert (tmp_path / "target" / "kept").exists()


@pytest.mark.parametrize("openat2", [True, False])
def test_delete_tree(here: Directory, tmp_path: Path, openat2: bool) -> None:
    """A tree of every kind goes, with and without openat2; what its links point at stays; progress counts all."""
    make_small(tmp_path / "tree")
    (tmp_path / "outside").touch()
    seen: list[int] = []
    before = descriptors()
    with kernel(_kernel.port if openat2 else Without("open_beneath", errno.ENOSYS)):
        delete.delete_tree(Place(here, "tree"), seen.append)
    assert os.listdir(tmp_path) == ["outside"]
    assert sum(seen) == 11
    assert descriptors() == before


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory."""
    with in_memory() as path:
        yield path


@pytest.mark.sweep
@pytest.mark.parametrize("openat2", [True, False])
def test_delete_deep(memory: Path, openat2: bool) -> None:
    """5,000 levels go with a fixed number of descriptors and no recursion."""
    make_deep(memory / "deep", DEEP)
    here = Directory.open(str(memory))
    seen: list[int] = []
    with kernel(_kernel.port if openat2 else Without("open_beneath", errno.EPERM)), few_descriptors(HELD + 5):
        delete.delete_tree(Place(here, "deep"), seen.append)
    here.close()
    assert os.listdir(memory) == []
    assert sum(seen) == 2 * DEEP + 1


@pytest.mark.parametrize("files", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
@mounts
def test_delete_wide(files: int) -> None:
    """A folder of very many files goes, and progress says how many."""
    with mounted("tmpfs", size=256 << 20) as place, held(place.folder) as folder:
        make_wide(place.folder / "wide", files)
        seen: list[int] = []
        delete.delete_tree(Place(folder, "wide"), seen.append)
        assert os.listdir(place.folder) == []
        assert sum(seen) == files + 1


def test_delete_bushy(here: Directory, tmp_path: Path) -> None:
    """Folders next to deep chains are found again after levels were let go."""
    top = tmp_path / "tree"
    top.mkdir()
    for number in range(3):
        make_deep(top / f"chain-{number}", 2 * HELD)
        make_deep(top / "chain-0" / "/".join("d" * HELD) / f"more-{number}", HELD)
    delete.delete_tree(Place(here, "tree"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("bits", [0o000, 0o100, 0o300, 0o400, 0o500, 0o555])
@root
def test_delete_locked_folders(tmp_path: Path, bits: int) -> None:
    """The owner's folders go whatever their permissions, at every level."""
    tmp_path.chmod(0o755)
    top = tmp_path / "parent"
    make_small(top / "tree")
    make_deep(top / "tree" / "chain", HELD + 8)
    for folder, _, _ in os.walk(top):
        os.chown(folder, NOBODY, NOBODY)
    for folder, _, _ in os.walk(top / "tree", topdown=False):
        os.chmod(folder, bits)
    with held(top) as folder:
        assert as_user(NOBODY, lambda: delete.delete_tree(Place(folder, "tree"))) == "None"
    assert os.listdir(top) == []


@root
def test_delete_of_another_owner(tmp_path: Path) -> None:
    """What belongs to another user is an error with its path, and stays."""
    tmp_path.chmod(0o777)
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "file").touch()

    def attempt() -> object:
        with pytest.raises(errors.AccessDeniedError) as caught:
            delete.delete_tree(Place(folder, "tree"))
        return caught.value.errno, caught.value.filename

    with held(tmp_path) as folder:
        said = as_user(NOBODY, attempt)
    assert said == repr((errno.EACCES, str(tmp_path / "tree" / "sub" / "file")))
    assert (tmp_path / "tree" / "sub" / "file").exists()


def test_delete_what_appears(here: Directory, tmp_path: Path) -> None:
    """An entry that someone adds while the folder is removed is removed too."""
    make_small(tmp_path / "tree")
    late = tmp_path / "tree" / "sub" / "late"
    with kernel(Before("rmdir", 2, late.mkdir)):
        delete.delete_tree(Place(here, "tree"))
    assert os.listdir(tmp_path) == []


def test_delete_gives_up(here: Directory, tmp_path: Path) -> None:
    """If someone keeps adding entries, it gives up: ENOTEMPTY with the path."""
    (tmp_path / "tree").mkdir()
    with (
        kernel(Before("rmdir", 0, (tmp_path / "tree" / "late").touch, every=True)),
        pytest.raises(errors.AtomikOSError, match=re.escape(str(tmp_path / "tree"))) as caught,
    ):
        delete.delete_tree(Place(here, "tree"))
    assert caught.value.errno == errno.ENOTEMPTY


@pytest.mark.parametrize("openat2", [True, False])
@pytest.mark.parametrize("top", [True, False])
def test_delete_never_follows_a_swapped_link(here: Directory, tmp_path: Path, openat2: bool, top: bool) -> None:
    """A folder that is replaced by a link just before it is entered: what the link points at stays."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "kept").touch()
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    victim = tmp_path / "tree" if top else tmp_path / "tree" / "sub"

    def swap() -> None:
        victim.rename(tmp_path / "away")
        victim.symlink_to(tmp_path / "precious")

    opener = "open_beneath" if openat2 else "open"
    # Without openat2 the table of mounts is opened first.
    attack = Before(opener, (1 if top else 2) + (not openat2), swap)
    if not openat2:
        attack.__dict__["open_beneath"] = Without("open_beneath", errno.ENOSYS).open_beneath
    with kernel(attack):
        if top:
            with pytest.raises(errors.ConflictError, match=re.escape(str(victim))):
                delete.delete_tree(Place(here, "tree"))
        else:
            delete.delete_tree(Place(here, "tree"))
            assert not (tmp_path / "tree").exists()
    assert (tmp_path / "precious" / "kept").exists()
    assert (tmp_path / "away").exists()


def test_delete_notices_a_moved_folder(here: Directory, tmp_path: Path) -> None:
    """A folder that is moved elsewhere while we are far below it: nothing next to its new place is touched."""
    make_deep(tmp_path / "tree", 3 * HELD)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()

    def move() -> None:
        (tmp_path / "tree" / "/".join("d" * HELD)).rename(elsewhere / "moved")

    before = descriptors()
    with kernel(Before("rmdir", 1, move)), pytest.raises(errors.ConflictError, match="moved"):
        delete.delete_tree(Place(here, "tree"))
    assert (elsewhere / "kept").exists()
    assert descriptors() == before


def test_delete_becomes_a_folder(here: Directory, tmp_path: Path) -> None:
    """A file that became a folder since it was listed goes as well."""
    (tmp_path / "tree").mkdir()
    victim = tmp_path / "tree" / "file"
    victim.touch()

    def swap() -> None:
        victim.unlink()
        victim.mkdir()

    with kernel(Before("unlink", 2, swap)):
        delete.delete_tree(Place(here, "tree"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["unlink", "rmdir", "open_beneath", "scandir"])
def test_delete_failing(here: Directory, tmp_path: Path, call: str) -> None:
    """A failing call becomes an error with a path below the tree's, and no descriptor stays open."""
    make_small(tmp_path / "tree")
    work = Raise(errno.EIO)
    before = descriptors()
    with kernel(Before(call, 2, work)), pytest.raises(errors.AtomikOSError) as caught:
        delete.delete_tree(Place(here, "tree"))
    assert caught.value.errno == errno.EIO
    assert str(caught.value.filename).startswith(str(tmp_path / "tree"))
    assert descriptors() == before


@mounts
def test_delete_refuses_a_mount(mounted_inside: tuple[Directory, Path, Path]) -> None:
    """A tree with a mount in it is refused before anything is deleted."""
    folder, home, point = mounted_inside
    with pytest.raises(errors.MountPointError) as caught:
        delete.delete_tree(Place(folder, "tree"))
    assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, str(point))
    assert (home / "tree" / "before").exists()
    assert (point / "kept").exists()


@pytest.mark.parametrize("openat2", [True, False])
@mounts
def test_delete_stops_at_a_late_mount(mounted_inside: tuple[Directory, Path, Path], openat2: bool) -> None:
    """A mount that the table did not show yet is not entered; the error names it."""
    folder, _, point = mounted_inside
    blind = Without("readlink", errno.ENOENT)
    if not openat2:
        blind.__dict__["open_beneath"] = Without("open_beneath", errno.ENOSYS).open_beneath
    with kernel(blind), pytest.raises(errors.MountPointError) as caught:
        delete.delete_tree(Place(folder, "tree"))
    assert caught.value.filename == str(point)
    assert (point / "kept").exists()


@mounts
def test_delete_refuses_a_bound_file() -> None:
    """A file on which another one is mounted cannot go, and the other one stays."""
    home = namespace.scratch("tree")
    (home / "tree").mkdir()
    (home / "origin").write_text("kept")
    point = home / "tree" / "file"
    point.touch()
    with attached(home / "origin", point, "none", linux.MS_BIND), held(home) as folder:
        with pytest.raises(errors.MountPointError, match=re.escape(str(point))):
            delete.delete_tree(Place(folder, "tree"))
        with pytest.raises(errors.MountPointError, match=re.escape(str(point))), held(home / "tree") as tree:
            delete.delete_tree(Place(tree, "file"))
    assert (home / "origin").read_text() == "kept"


def test_concurrent_deletes(here: Directory, tmp_path: Path) -> None:
    """Two deletions of one tree at once do not disturb each other."""
    for _ in range(5):
        (tmp_path / "tree").mkdir()
        for number in range(5):
            make_wide(tmp_path / "tree" / str(number), 50)
        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(delete.delete_tree, Place(here, "tree")) for _ in range(2)]:
                done.result()
        assert os.listdir(tmp_path) == []


def test_few_descriptors_counts_the_holes() -> None:
    """The limit of the tests here is exact: descriptors that were closed before give no additional room."""
    opened = [os.open("/", os.O_PATH) for _ in range(9)]
    for fd in opened[:-1]:
        os.close(fd)
    more: list[int] = []
    try:
        with few_descriptors(5), pytest.raises(OSError, match="Too many open files"):
            for _ in range(20):
                more.append(os.open("/", os.O_PATH))
        assert len(more) == 5
    finally:
        for fd in [*more, opened[-1]]:
            os.close(fd)


def test_what_a_failing_test_leaves_of_a_deep_tree_goes(memory: Path) -> None:
    """The scratch folder is removed whatever its depth and permissions, links not followed."""
    top = memory / "left"
    make_deep(top, DEEP)
    make_small(top / "small")
    (memory / "kept").mkdir()
    (memory / "kept" / "file").touch()
    (top / "link").symlink_to(memory / "kept")
    (top / "small" / "sub").chmod(0)
    remove_deep(top)
    assert os.listdir(memory) == ["kept"]
    assert os.listdir(memory / "kept") == ["file"]
