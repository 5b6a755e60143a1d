"""Nothing is deleted, copied or read across a mount, also where the kernel tells no mount ids (before Linux 5.8)."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

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
    """Linux 5.4: neither openat2(2) nor mount ids in statx(2); and no table of mounts to be warned by."""

    def __init__(self, fdinfo: bool) -> None:
        self.fdinfo = fdinfo

    def open_beneath(self, path: str, flags: int, dir_fd: int, resolve: int) -> int:
        """Not there."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def statx(self, fd: int, name: str = "") -> Status:
        """Without the id of the mount."""
        return super().statx(fd, name)._replace(mount=0)

    def open(self, path: str, flags: int, dir_fd: int | None = None) -> int:
        """Without some files of /proc."""
        if path == "/proc/self/mountinfo" or (not self.fdinfo and path.startswith("/proc/self/fdinfo")):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return super().open(path, flags, dir_fd)


@contextmanager
def bound() -> Iterator[tuple[Path, Path]]:
    """(home, the folder behind a bind mount of the same filesystem in home/site/uploads)."""
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
@pytest.mark.parametrize("fdinfo", [True, False])
@pytest.mark.parametrize("work", ["delete", "clone", "sync"])
def test_bind_mount(work: str, fdinfo: bool) -> None:
    """A bind mount of the same filesystem is refused; where nothing tells one folder's mount, every folder is."""
    with bound() as (home, uploads), kernel(Old(fdinfo)):
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
        assert caught.value.filename == str(home / "site" / "uploads") or (work == "delete" and not fdinfo)
        assert os.listdir(uploads) == ["picture"]
        assert descriptors() == before


@mounts
def test_without_a_mount(tmp_path: Path) -> None:
    """A tree without mounts is deleted on such a kernel as on any other."""
    (tmp_path / "site" / "a" / "b").mkdir(parents=True)
    (tmp_path / "site" / "a" / "b" / "c").touch()
    with kernel(Old(fdinfo=True)), closing(Directory.open(str(tmp_path))) as here:
        delete_tree(Place(here, "site"))
    assert os.listdir(tmp_path) == []
