"""Whether a mount lies in a folder."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from atomik._folder.directory import Directory
from atomik._folder.mounts import has_foreign_mount
from atomik._folder.place import Place
from atomik._tree import delete
from tests.support.lab.mounting import attached
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
        assert has_foreign_mount(Place(folder, name)) is None
    assert has_foreign_mount(Place(folder, "tree")) == str(point)
    with held(point.parent) as above:
        assert has_foreign_mount(Place(above, point.name)) == str(point)
    with held(point) as on_it:
        assert has_foreign_mount(Place(on_it, "kept")) is None


@mounts
def test_hidden_mount_is_not_seen(mounted_inside: tuple[Directory, Path, Path]) -> None:
    """A mount that another mount on the way hides is not in the tree that one sees."""
    _, home, point = mounted_inside
    with attached("tmpfs", home, "tmpfs", 0, "size=1m"), held(home) as folder:
        (home / "tree").mkdir()
        assert has_foreign_mount(Place(folder, "tree")) is None
        point.mkdir(parents=True)
        # The path is there now, and nothing is mounted on it that could be seen.
        assert has_foreign_mount(Place(folder, "tree")) is None


def test_no_proc(tmp_path: Path) -> None:
    """Without /proc nothing is known of mounts, and deleting works."""
    make_small(tmp_path / "tree")
    with kernel(Without("readlink", errno.ENOENT)), held(tmp_path) as here:
        assert has_foreign_mount(Place(here, "tree")) is None
        delete.delete_tree(Place(here, "tree"))
    assert os.listdir(tmp_path) == []
