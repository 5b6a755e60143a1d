"""Trees compared with themselves, later: every change shows, and nothing else does."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from atomik import errors
from atomik._folder.directory import Directory
from atomik._tree.fingerprint import fingerprint, first_difference
from tests.support.state import tick
from tests.support.trees import (
    Before,
    Without,
    descriptors,
    few_descriptors,
    held,
    in_memory,
    kernel,
    make_deep,
    make_small,
    mounts,
    tree_with_mount,
)
from tests.support.users import NOBODY, as_user, root

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def of(path: Path, **options: bool) -> bytes:
    """The value."""
    with held(path) as folder:
        return fingerprint(folder, **options)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree with every kind of object."""
    make_small(tmp_path / "tree")
    (tmp_path / "tree" / "sub" / "deeper").mkdir()
    (tmp_path / "tree" / "sub" / "deeper" / "page").write_text("v1")
    for path in (tmp_path / "tree").rglob("*"):  # long ago, so that no test depends on the tick of the clock
        os.utime(path, ns=(10**18, 10**18), follow_symlinks=False)
    tick(tmp_path)
    return tmp_path / "tree"


def same_size(path: Path) -> None:
    """A change in place that keeps the size, and the mtime."""
    path.write_text("v2")
    os.utime(path, ns=(10**18, 10**18))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "edit": (lambda top: (top / "sub" / "deeper" / "page").write_text("longer"), "sub/deeper/page"),
    "edit with the old time": (lambda top: same_size(top / "sub" / "deeper" / "page"), "sub/deeper/page"),
    "replace": (lambda top: (top / "sub" / "file").rename(top / "sub" / "deeper" / "page"), "sub/deeper/page"),
    "new": (lambda top: (top / "sub" / "new").touch(), "sub/new"),
    "new folder": (lambda top: (top / "sub" / "other").mkdir(), "sub/other"),
    "removed": (lambda top: (top / "sub" / "deeper" / "page").unlink(), "sub/deeper"),
    "removed folder": (lambda top: (top / "sub" / "empty").rmdir(), "sub/empty"),
    "mode": (lambda top: (top / "sub" / "deeper" / "page").chmod(0o604), "sub/deeper/page"),
    "mode of a folder": (lambda top: (top / "sub" / "deeper").chmod(0o701), "sub/deeper"),
    "mode of the top": (lambda top: top.chmod(0o701), ""),
    "link": (lambda top: ((top / "up").unlink(), (top / "up").symlink_to("x")), "up"),
    "renamed": (lambda top: (top / "fifo").rename(top / "pipe"), "pipe"),
}


@pytest.mark.parametrize("digest", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows(tree: Path, change: str, digest: bool) -> None:
    """Every change is seen, and where it was."""
    work, where = CHANGES[change]
    folders: dict[str, bytes] = {}
    with held(tree) as folder:
        before = fingerprint(folder, digest=digest, folders=folders)
        assert fingerprint(folder, digest=digest) == before
        assert first_difference(folder, folders, digest=digest) is None
        work(tree)
        assert fingerprint(folder, digest=digest) != before
        found = first_difference(folder, folders, digest=digest)
    assert found == where or (change == "replace" and found in ("sub", where))


def test_with_digest_the_times_are_not_needed(tree: Path) -> None:
    """With `digest`, content that changes while size and times stay (as in one tick of the clock) shows."""
    frozen = os.lstat(tree / "sub" / "deeper" / "page")

    class Frozen(Before):
        def lstat(self, name: str, dir_fd: int | None) -> os.stat_result:
            return frozen if name == "page" else super().lstat(name, dir_fd)

    with kernel(Frozen("unlink", 0, lambda: None)):
        plain, full = of(tree), of(tree, digest=True)
        (tree / "sub" / "deeper" / "page").write_text("v2")
        assert of(tree) == plain
        assert of(tree, digest=True) != full


@pytest.mark.parametrize("digest", [False, True])
def test_what_does_not_show(tree: Path, tmp_path: Path, digest: bool) -> None:
    """Reading, moving the tree away and back, and atomik's own names in it leave the value as it is."""
    before = of(tree, digest=digest)
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.read_bytes()
    (tmp_path / "elsewhere").mkdir()
    tree.rename(tmp_path / "elsewhere" / "tree")
    assert of(tmp_path / "elsewhere" / "tree", digest=digest) == before
    top = tmp_path / "elsewhere" / "tree"
    times = top.stat()
    (top / ".atomik-0123").mkdir()
    os.utime(top, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert of(top, digest=digest) == before
    (top / ".atomik-0123").rmdir()


def test_vanishing(tree: Path) -> None:
    """What goes while it is read makes another value, no error; and no descriptor stays open."""
    before, opened = of(tree, digest=True), descriptors()
    with kernel(Before("lstat", 1, (tree / "dangling").unlink)):
        assert of(tree, digest=True) != before
    with kernel(Before("open", 2, (tree / "sub" / "file").unlink)):
        of(tree, digest=True)
    with kernel(Before("open_beneath", 3, (tree / "sub" / "empty").rmdir)):
        of(tree, digest=True)
    assert descriptors() == opened


def test_failing(tree: Path) -> None:
    """Failing calls are errors with their path."""
    for name in ("lstat", "open_beneath", "scandir", "pread"):
        with (
            kernel(Without(name, errno.EIO)),
            held_quietly(tree) as folder,
            pytest.raises(errors.AtomikOSError) as caught,
        ):
            fingerprint(folder, digest=True)
        assert caught.value.errno == errno.EIO
        assert str(tree) in str(caught.value.filename)


def held_quietly(path: Path) -> closing[Directory]:
    """Held by descriptor, so that a failing open_beneath strikes the walk and not the test."""
    return closing(Directory(str(path), os.open(path, os.O_RDONLY)))


@root
def test_unreadable(tmp_path: Path) -> None:
    """A folder, and with `digest` a file, that may not be read is an error."""
    tmp_path.chmod(0o755)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "secret").touch()
    (tmp_path / "sub" / "secret").chmod(0o600)

    def attempt(digest: bool) -> object:
        try:
            return len(fingerprint(folder, digest=digest))
        except errors.AccessDeniedError as exc:
            return os.path.basename(exc.filename)

    with held(tmp_path) as folder:
        assert as_user(NOBODY, lambda: (attempt(False), attempt(True))) == repr((32, "secret"))
        (tmp_path / "sub").chmod(0o700)
        assert as_user(NOBODY, lambda: (attempt(False), attempt(True))) == repr(("sub", "sub"))


@pytest.mark.sweep
def test_deep() -> None:
    """2,000 levels with a fixed number of descriptors; the path of a difference at the bottom."""
    with in_memory() as memory:
        make_deep(memory / "deep", 2000)
        folders: dict[str, bytes] = {}
        with held(memory / "deep") as folder, few_descriptors(20):
            before = fingerprint(folder, folders=folders)
            assert len(folders) == 2001
            assert first_difference(folder, folders) is None
            assert fingerprint(folder) == before


@mounts
def test_mount() -> None:
    """A mount in the tree is not crossed: its name counts, what is on it does not."""
    with tree_with_mount() as (_, home, point):
        before = of(home / "tree", digest=True)
        (point / "more").touch()
        assert of(home / "tree", digest=True) == before
