"""A name in a held folder."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place, delete_file
from tests.support.kernels import Faulty, installed

if TYPE_CHECKING:
    from pathlib import Path


def test_open(tmp_path: Path) -> None:
    """The folder at the name, known by its path, and closed at the end of a block; never through a link."""
    (tmp_path / "folder/inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to("folder")
    with closing(Directory.open(str(tmp_path))) as top:
        with Place(top, "folder").open() as folder:
            assert (folder.path, folder.names()) == (str(tmp_path / "folder"), ["inside"])
            fd = folder.fd
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        with pytest.raises(NotADirectoryError):
            Place(top, "link").open()


def test_delete_file(tmp_path: Path) -> None:
    """A file goes, a folder and nothing are left alone, and an error names the path."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with closing(Directory.open(str(tmp_path))) as top:
        for name in ("file", "folder", "missing"):
            delete_file(Place(top, name))
        assert os.listdir(tmp_path) == ["folder"]
        with installed(Faulty.every("unlink", errno.EBUSY)), pytest.raises(errors.MountPointError) as caught:
            delete_file(Place(top, "file"))
    assert caught.value.filename == str(tmp_path / "file")
