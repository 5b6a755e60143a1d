"""Trees to test with, and kernels that fail or are raced at a chosen call."""

from __future__ import annotations

import itertools
import os
import resource
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from atomik._folder.directory import Directory
from atomik._system import kernel as _kernel
from tests.support.lab import namespace
from tests.support.lab.mounting import attached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEEP = 5000


def mounts(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that mounts; skipped where that is not allowed."""
    why = namespace.missing_root()
    return pytest.mark.root(pytest.mark.skipif(why is not None, reason=str(why))(test))


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder in memory if there is one: for trees that are deep rather than on a disk, which makes them slowly."""
    shared = "/dev/shm"
    path = Path(tempfile.mkdtemp(prefix="tree-", dir=shared if os.access(shared, os.W_OK) else None))
    try:
        yield path
    finally:
        remove_deep(path)


def remove_deep(top: Path) -> None:
    """Remove a tree of any depth: what is in a folder is hoisted to the top, where the next round finds it.

    shutil.rmtree recurses, so what a failing test leaves of a deep tree would end in a RecursionError that hides why.
    """
    fd, number = os.open(top, os.O_RDONLY), 0
    try:
        while names := os.listdir(fd):
            for name in names:
                if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=fd)
                    continue
                os.chmod(name, 0o700, dir_fd=fd)
                below = os.open(name, os.O_RDONLY, dir_fd=fd)
                for inner in os.listdir(below):
                    number += 1
                    if stat.S_ISDIR(os.stat(inner, dir_fd=below, follow_symlinks=False).st_mode):
                        os.chmod(inner, 0o700, dir_fd=below)  # or its owner may not move it elsewhere
                    os.rename(inner, f".hoisted-{number}", src_dir_fd=below, dst_dir_fd=fd)
                os.close(below)
                os.rmdir(name, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(top)


@contextmanager
def held(path: Path) -> Iterator[Directory]:
    """A folder, held."""
    folder = Directory.open(str(path))
    try:
        yield folder
    finally:
        folder.close()


@contextmanager
def kernel(instead: _kernel.Kernel) -> Iterator[_kernel.Kernel]:
    """Another kernel for a while."""
    before = _kernel.install(instead)
    try:
        yield instead
    finally:
        _kernel.install(before)


def make_deep(top: Path, levels: int) -> None:
    """A chain of folders, each with one file next to the next folder."""
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def make_wide(top: Path, files: int) -> None:
    """One folder with many empty files."""
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for number in range(files):
        os.close(os.open(f"file-{number}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def make_small(top: Path) -> None:
    """Every kind of object, two levels deep, with odd names."""
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "file").write_text("content")
    (top / "sub" / "file").write_text("more")
    (top / "sub" / os.fsdecode(b"n\xff\n")).write_text("odd")
    (top / ("x" * 255)).touch()
    (top / "dangling").symlink_to("nowhere")
    (top / "up").symlink_to("..")
    os.mkfifo(top / "fifo")
    os.link(top / "file", top / "sub" / "link")


@contextmanager
def few_descriptors(count: int) -> Iterator[None]:
    """At most `count` descriptors more than are open now: the holes between those count as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = {int(name) for name in os.listdir("/proc/self/fd")}
    opened = {fd for fd in opened if os.path.lexists(f"/proc/self/fd/{fd}")}  # without the one that listed them
    free = itertools.islice((fd for fd in itertools.count() if fd not in opened), count)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def descriptors() -> int:
    """How many are open."""
    return len(os.listdir("/proc/self/fd"))


class Without(_kernel.Kernel):
    """A kernel in which one call always fails."""

    def __init__(self, name: str, number: int) -> None:
        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        setattr(self, name, fail)


class Before(_kernel.Kernel):
    """Does something before the n-th call of one name."""

    def __init__(self, name: str, at: int, work: Callable[[], object], every: bool = False) -> None:
        count = 0
        real = getattr(super(), name)

        def call(*args: object) -> object:
            nonlocal count
            count += 1
            if count == at or every:
                work()
            return real(*args)

        setattr(self, name, call)


class Raise(_kernel.Kernel):
    """Raises an error when called; a kernel, so that it counts as the kernel's answer (`kernel.errno_of`)."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


@contextmanager
def tree_with_mount() -> Iterator[tuple[Directory, Path, Path]]:
    """(the folder that holds "tree", it, a mount point inside with an odd name and a file on the mount)."""
    home = namespace.scratch("tree")
    point = home / "tree" / "a" / "m\\ n\tt\n#"
    point.mkdir(parents=True)
    (home / "tree" / "before").touch()
    with attached("tmpfs", point, "tmpfs", 0, "size=1m"):
        (point / "kept").touch()
        with held(home) as folder:
            yield folder, home, point
