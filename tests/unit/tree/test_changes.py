"""What a program changed in a clone."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from atomik._system import kernel as _kernel
from atomik._tree.changes import Change, changes, counts, manifest
from tests.support.kernels import installed
from tests.support.trees import held

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def original(tmp_path: Path) -> Path:
    top = tmp_path / "original"
    (top / "d/e").mkdir(parents=True)
    for name in ("a", "b", "d/x", "d/e/y"):
        (top / name).write_text(name)
    os.symlink("a", top / "l")
    os.mkfifo(top / "p")
    shutil.copytree(top, tmp_path / "clone", symlinks=True, copy_function=shutil.copy2, ignore=lambda *_: ["p"])
    os.mkfifo(tmp_path / "clone/p")
    return top


def told(original: Path, work: Callable[[Path], object]) -> list[str]:
    """What is said after `work` was done in the clone."""
    clone = original.parent / "clone"
    with held(clone) as new, held(original) as old:
        before = manifest(new)
        work(clone)
        return [str(change) for change in changes(before, new, old)]


def replace(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


def link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("work", "wanted"),
    [
        (lambda top: None, []),
        (lambda top: (top / "a").write_text("A"), ["M a"]),
        (lambda top: replace(top / "a", "A"), ["M a"]),
        (lambda top: replace(top / "a", "a"), []),
        (lambda top: os.utime(top / "a"), []),
        (lambda top: (top / "a").chmod(0o600), ["M a"]),
        (lambda top: (top / "d").chmod(0o700), ["M d/"]),
        (lambda top: top.chmod(0o700), ["M ./"]),
        (lambda top: os.setxattr(top / "a", "user.x", b"1"), ["M a"]),
        (lambda top: link(top / "l", "b"), ["M l"]),
        (lambda top: link(top / "l", "a"), []),
        (lambda top: link(top / "a", "b"), ["M a"]),
        (lambda top: (top / "a").unlink(), ["- a"]),
        (lambda top: shutil.rmtree(top / "d"), ["- d/", "- d/e/", "- d/e/y", "- d/x"]),
        (lambda top: (top / "n").mkdir(), ["+ n/"]),
        (lambda top: (top / "a").rename(top / "d/z"), ["R a -> d/z"]),
        (lambda top: (top / "d").rename(top / "z"), ["R d/ -> z/"]),
        (lambda top: ((top / "d").rename(top / "z"), (top / "z/x").rename(top / "w")), ["R d/x -> w", "+ z/", "- d/"]),
        (lambda top: ((top / "a").unlink(), (top / "b").rename(top / "a")), ["M a", "- b"]),
        (lambda top: os.link(top / "a", top / "h"), ["+ h"]),
    ],
)  # fmt: skip
def test_said(original: Path, work: Callable[[Path], object], wanted: list[str]) -> None:
    """Names and kinds; times alone, or the same content in a new file, are not a change."""
    found = told(original, work)
    assert set(wanted) <= set(found)
    if len(wanted) < 3 or wanted[0].startswith("- d"):
        assert sorted(found) == sorted(wanted)


def test_counts() -> None:
    """Of each kind; none is left out."""
    assert counts([Change("+", "a"), Change("R", "b", "c"), Change("+", "d")]) == {
        "new": 2, "removed": 0, "changed": 0, "renamed": 1,
    }  # fmt: skip


def _alarm() -> None:
    raise OSError(errno.EIO, "alarm")


class Alarmed(_kernel.Kernel):
    """A signal handler raises while attributes are listed."""

    def listxattr(self, fd: int) -> list[str]:  # type: ignore[override]
        """Never returns."""
        _alarm()
        return []


def test_an_exception_while_attributes_are_read_goes_on(tmp_path: Path) -> None:
    """It says nothing about the attributes (I13)."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with held(tmp_path / "new") as new, held(tmp_path / "old") as old:
        before = manifest(new)
        (tmp_path / "new/file").write_text("!!!")
        with installed(Alarmed()), pytest.raises(OSError, match="alarm"):
            changes(before, new, old)
