"""Deep and wide trees, whole and through the public interface: no recursion limit, no descriptor runs out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atomik
from tests.support.state import left_in
from tests.support.trees import few_descriptors, in_memory, make_deep, make_wide

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, in memory if possible, because it is about shapes and not about disks."""
    with in_memory() as place:
        monkeypatch.chdir(place)
        yield place


def _depth(top: Path) -> int:
    """How many nested folders "d" there are below `top`, each with a file next to the next folder."""
    fd, depth = os.open(top, os.O_RDONLY), 0
    try:
        while "d" in (names := os.listdir(fd)):
            assert "file" in names
            below = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd, depth = below, depth + 1
        return depth
    finally:
        os.close(fd)


@pytest.mark.sweep
@pytest.mark.parametrize("levels", [1500, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_deep_tree_is_published_copied_replaced_moved_and_removed(folder: Path, levels: int) -> None:
    """Deeper than the recursion limit, with at most 40 descriptors."""
    with few_descriptors(40):
        with atomik.path("site") as name:
            make_deep(name, levels)
        with atomik.folder("site", overwrite=True, copy=True, backup="site.old") as new:
            (new / "new").write_text("new")
        assert (_depth(folder / "site"), _depth(folder / "site.old")) == (levels, levels)
        with atomik.transaction() as tx:
            tx.move("site.old", "moved")
        with atomik.folder("site", overwrite=True) as new:
            (new / "new").write_text("new")
        with atomik.transaction() as tx:
            tx.remove("moved")
        assert sorted(os.listdir(folder)) == ["site"]
        assert os.listdir(folder / "site") == ["new"]
        with pytest.raises(KeyError), atomik.path("site", overwrite=True) as name:
            make_deep(name, levels)
            raise KeyError
    assert not left_in(folder)


def _wide(folder: Path, entries: int) -> None:
    with few_descriptors(160):
        with atomik.path("site") as name:
            make_wide(name, entries)
        with atomik.folder("site", overwrite=True, copy=True) as new:
            (new / "file-0").write_text("new")
        assert len(os.listdir(folder / "site")) == entries
        with atomik.folder("site", overwrite=True) as new:
            (new / "only").write_text("new")
        assert os.listdir(folder / "site") == ["only"]
    assert not left_in(folder)


@pytest.mark.sweep
def test_a_wide_folder(folder: Path) -> None:
    """10,000 entries: published, copied, replaced."""
    _wide(folder, 10_000)


@pytest.mark.slow
def test_a_wider_folder(folder: Path) -> None:
    """The same with 100,000."""
    _wide(folder, 100_000)


@pytest.mark.slow
def test_a_transaction_of_many_files(folder: Path) -> None:
    """10,000 files in one transaction hold a few descriptors, and are published, or abandoned, all together."""
    with few_descriptors(60):
        with pytest.raises(KeyError), atomik.transaction() as tx:
            _many(tx, 10_000)
            raise KeyError
        assert os.listdir(folder) == []
        with atomik.transaction() as tx:
            _many(tx, 10_000)
    assert len(os.listdir(folder)) == 10_000
    shutil.rmtree(folder)
    folder.mkdir()


def _many(tx: atomik.Transaction, count: int) -> None:
    for number in range(count):
        with tx.file(f"file-{number}") as f:
            f.write("x")
