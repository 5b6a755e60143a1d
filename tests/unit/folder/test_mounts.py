"""Whether a mount is in a folder."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from atomik._folder.directory import Directory
from atomik._folder.mounts import mount_at_or_below, mount_of, same_mount, why_exdev
from atomik._folder.place import Place
from atomik._system import kernel as kernel_module
from atomik._tree import delete
from tests.support.lab import mounts as lab_mounts
from tests.support.lab.mounting import attached
from tests.support.seccomp import needs_seccomp, refuse
from tests.support.state import in_child
from tests.support.trees import Without, held, kernel, make_small, mounts, tree_with_mount

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def mounted_inside() -> Iterator[tuple[Directory, Path, Path]]:
    """(the folder that holds "tree", it, a mount point inside with an odd name and a file on the mount)."""
    with tree_with_mount() as found:
        yield found


@mounts
def test_mount_is_seen(mounted_inside: tuple[Directory, Path, Path]) -> None:
    """A mount on or below a place is named; places beside it, with longer and shorter names, have none."""
    folder, home, point = mounted_inside
    for name in ("tre", "tree2"):
        (home / name).mkdir()
        assert mount_at_or_below(folder, name) is None
    assert mount_at_or_below(folder, "tree") == str(point)
    with held(point.parent) as above:
        assert mount_at_or_below(above, point.name) == str(point)
    with held(point) as on_it:
        assert mount_at_or_below(on_it, "kept") is None


@mounts
def test_hidden_mount_is_not_seen(mounted_inside: tuple[Directory, Path, Path]) -> None:
    """A mount that another mount on the way hides is not in the tree that a program sees."""
    _, home, point = mounted_inside
    with attached("tmpfs", home, "tmpfs", 0, "size=1m"), held(home) as folder:
        (home / "tree").mkdir()
        assert mount_at_or_below(folder, "tree") is None
        point.mkdir(parents=True)
        # The path is there now, and nothing is mounted on it that could be seen.
        assert mount_at_or_below(folder, "tree") is None


def test_no_proc(tmp_path: Path) -> None:
    """Without /proc nothing is known of mounts, and deleting works."""
    make_small(tmp_path / "tree")
    with kernel(Without("readlink", errno.ENOENT)), held(tmp_path) as here:
        assert mount_at_or_below(here, "tree") is None
        delete.delete_tree(Place(here, "tree"))
    assert os.listdir(tmp_path) == []


#: What a kernel lacks: (calls, errno).  4.18 and 5.4 have neither openat2 nor mount ids in statx.
_KERNELS = [
    (("statx", "openat2"), errno.ENOSYS),
    (("statx", "openat2"), errno.EPERM),
    (("statx", "openat2", "name_to_handle_at"), errno.EPERM),
]


@mounts
@needs_seccomp
@pytest.mark.parametrize(("calls", "number"), _KERNELS)
def test_mounts_are_told_apart_without_statx(
    mounted_inside: tuple[Directory, Path, Path], calls: tuple[str, ...], number: int
) -> None:
    """By name_to_handle_at(2) or fdinfo: also a bind mount of the same filesystem."""
    _, home, _ = mounted_inside
    (home / "source").mkdir()
    (home / "source" / "kept").touch()
    (home / "tree" / "bound").mkdir()

    def ask() -> None:
        kernel_module.libc()
        refuse(number, *calls)
        with held(home) as folder:
            assert folder.mount
            for name, same in (("tree", True), ("tree/bound", False), ("tree/a", True)):
                assert same_mount(kernel_module.port.statx(folder.fd, name), folder) is same, name
            with held(home / "tree") as tree:
                assert mount_at_or_below(tree, "bound") == str(home / "tree" / "bound")
                assert mount_of(tree)[0] == mount_of(folder)[0]
            with held(home / "tree" / "bound") as bound:
                assert mount_of(bound)[0] == str(home / "tree" / "bound")
                assert mount_of(bound)[1] == mount_of(folder_of(home))[1]

    with lab_mounts.bind(home / "source", home / "tree" / "bound"):
        in_child(ask)


def folder_of(path: Path) -> Directory:
    """Held until the child ends."""
    return Directory.open(str(path))


def test_unknown_mounts_are_never_equal(tmp_path: Path) -> None:
    """If mounts cannot be found out, deleting is refused."""
    with held(tmp_path) as one, held(tmp_path) as other:
        assert same_mount(one, other)
        one.mount = other.mount = 0
        assert not same_mount(one, other)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EPERM])
def test_mountinfo_may_be_closed(tmp_path: Path, number: int) -> None:
    """By Landlock or AppArmor, as well as missing: then the type is not known, and no error comes of it."""

    class Closed(kernel_module.Kernel):
        def open(self, path: str, flags: int, dir_fd: int | None = None) -> int:
            if path == "/proc/self/mountinfo":
                raise OSError(number, os.strerror(number))
            return super().open(path, flags, dir_fd)

    with held(tmp_path) as here, kernel(Closed()):
        assert mount_at_or_below(here, "x") is None
        assert mount_of(here)[1] == ""


def test_why_two_folders_are_apart(tmp_path: Path) -> None:
    """EXDEV on one mount is a sandbox, an overlay or a project; else the mounts or filesystems are named."""
    with held(tmp_path) as one, held(tmp_path) as other:
        assert "Landlock" in why_exdev(one, other)
        other.mount += 1
        assert "different mounts" in why_exdev(one, other)
        other.dev += 1
        assert "different filesystems" in why_exdev(one, other)
