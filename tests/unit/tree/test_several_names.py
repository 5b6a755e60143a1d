"""Files with several names: what a layer says about them.  The layers here are made by hand, as overlayfs makes them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from atomik._tree.layer import USER, Layer
from atomik._tree.several_names import Names
from tests.support.trees import held

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def names(tmp_path: Path) -> Iterator[Names]:
    """A layer over a folder with the file ``a``, which has the other names ``sub/a`` and ``deep/er/a``, and with ``z``."""
    for name in ("lower/sub", "lower/deep/er", "upper"):
        (tmp_path / name).mkdir(parents=True)
    for name in "az":
        (tmp_path / "lower" / name).write_text(name)
    for name in ("sub/a", "deep/er/a"):
        os.link(tmp_path / "lower/a", tmp_path / "lower" / name)
    with held(tmp_path / "upper") as upper, held(tmp_path / "lower") as lower:
        yield Names(Layer(upper, lower, USER))


def put(top: Path, name: str, text: str | None = None, **marks: bytes) -> None:
    """A file, or without text a folder, in the upper layer."""
    path = top / "upper" / name
    if text is None:
        path.mkdir(exist_ok=True)
    else:
        path.write_text(text)
    for mark, value in marks.items():
        os.setxattr(path, USER + mark, value)


def test_replaced_or_changed(tmp_path: Path, names: Names) -> None:
    """In a folder into which nothing was copied a file was replaced; in another one it may have been changed."""
    put(tmp_path, "a", "new")
    put(tmp_path, "z", "one name only")
    put(tmp_path, "sub")
    put(tmp_path, "sub/a", "new")
    assert names.copied() == ({}, {"a", "sub/a"})
    put(tmp_path, "sub", impure=b"y")
    found = (tmp_path / "lower/a").stat()
    key = found.st_dev, found.st_ino
    assert names.copied() == ({"sub/a": key}, {"a"})
    assert sorted(names.of({key})) == [(key, "a"), (key, "deep/er/a"), (key, "sub/a")]
    assert list(names.of(set())) == []


def test_in_a_folder_that_went(tmp_path: Path, names: Names) -> None:
    """Its mark went with it: a file in it was removed, unless a new file looks like it."""
    put(tmp_path, "deep", opaque=b"y")
    put(tmp_path, "n", "a")
    assert names.copied() == ({}, {"deep/er/a"})
    found = (tmp_path / "lower/a").stat()
    os.utime(tmp_path / "upper/n", ns=(0, found.st_mtime_ns))
    assert names.copied() == ({"deep/er/a": (found.st_dev, found.st_ino)}, set())


def test_where_it_was_seen(tmp_path: Path, names: Names) -> None:
    """At its own name, unless the layer has something there or above; and in renamed folders, also in folders in these."""
    assert names.shown_at("deep/er/a") == ["deep/er/a"]
    put(tmp_path, "deep", "a file instead")
    put(tmp_path, "n")
    put(tmp_path, "n/d", redirect=b"/deep")
    put(tmp_path, "n/d/er2", redirect=b"er")
    put(tmp_path, "sub")
    again = Names(names.layer)
    assert again.shown_at("deep/er/a") == ["n/d/er/a", "n/d/er2/a"]
    put(tmp_path, "n/d/er", opaque=b"y")
    put(tmp_path, "n/d/er2/a", "new")
    assert again.shown_at("deep/er/a") == []
    assert again.shown_at("sub/a") == ["sub/a"]
    put(tmp_path, "sub/a", "new")
    assert again.shown_at("sub/a") == []
