"""Nothing is deleted, copied or read across a mount, also where the kernel tells no mount ids (before Linux 5.8)."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

import atomik
from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._system import kernel as _kernel
from atomik._tree.clone import clone
from atomik._tree.delete import delete_tree
from atomik._tree.sync import sync_tree
from tests.support.lab import namespace
from tests.support.trees import descriptors, kernel, mounts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from atomik._system.libc import Status


class Old(_kernel.Kernel):
    """Linux 5.4 without openat2(2), and without a table of mounts to be warned by; `told`: handles or fdinfo tell mounts."""

    def __init__(self, told: bool) -> None:
        self.told = told

    def open_beneath(self, path: str, flags: int, dir_fd: int, resolve: int) -> int:
        """Not there."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def statx(self, fd: int, name: str = "") -> Status:
        """Perhaps without the id of the mount."""
        found = super().statx(fd, name)
        return found if self.told else found.on_mount(0)

    def open(self, path: str, flags: int, dir_fd: int | None = None) -> int:
        """Without the table of mounts."""
        if path == "/proc/self/mountinfo":
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return super().open(path, flags, dir_fd)


@contextmanager
def bound() -> Iterator[tuple[Path, Path]]:
    """(home, the folder that is bind-mounted from the same filesystem at home/site/uploads)."""
    home = namespace.scratch("bind")
    uploads, point = home / "uploads", home / "site" / "uploads"
    point.mkdir(parents=True)
    uploads.mkdir()
    (uploads / "picture").write_text("the only copy")
    subprocess.run(["mount", "--bind", uploads, point], check=True)
    try:
        yield home, uploads
    finally:
        subprocess.run(["umount", point], check=True)


@mounts
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("work", ["delete", "clone", "sync"])
def test_bind_mount(work: str, told: bool) -> None:
    """A bind mount of the same filesystem is refused; where nothing tells one folder's mount, every folder is."""
    with bound() as (home, uploads), kernel(Old(told)):
        before = descriptors()
        (home / "copy").mkdir()
        with closing(Directory.open(str(home))) as here, closing(Directory.open("site", here.fd)) as site:
            site.path = str(home / "site")
            with closing(Directory.open("copy", here.fd)) as copy, pytest.raises(errors.MountPointError) as caught:
                if work == "delete":
                    delete_tree(Place(here, "site"))
                elif work == "clone":
                    clone(site, copy)
                else:
                    sync_tree(site)
        assert caught.value.filename == str(home / "site" / "uploads") or (work == "delete" and not told)
        assert os.listdir(uploads) == ["picture"]
        assert descriptors() == before


@mounts
def test_without_a_mount(tmp_path: Path) -> None:
    """A tree without mounts is deleted on such a kernel as on any other."""
    (tmp_path / "site" / "a" / "b").mkdir(parents=True)
    (tmp_path / "site" / "a" / "b" / "c").touch()
    with kernel(Old(told=True)), closing(Directory.open(str(tmp_path))) as here:
        delete_tree(Place(here, "site"))
    assert os.listdir(tmp_path) == []


@mounts
def test_replaced_without_the_table_of_mounts() -> None:
    """In a sandbox that closes /proc/self/mountinfo a folder with a mount inside is refused nevertheless, and untouched."""
    with bound() as (home, uploads), kernel(Old(told=True)):
        with pytest.raises(errors.MountPointError) as caught, atomik.folder(home / "site", overwrite=True) as new:
            (new / "page").write_text("new")
        assert caught.value.filename == str(home / "site" / "uploads")
        assert os.listdir(uploads) == ["picture"]
        assert sorted(os.listdir(home)) == ["site", "uploads"]
        atomik.folder(home / "other", overwrite=True).commit()
        atomik.folder(home / "other", overwrite=True).commit()
