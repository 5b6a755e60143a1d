"""What a signal handler raises inside a system call is not an answer of the kernel, whatever its class (I13).

At every call of every operation on trees: the exception goes on unchanged, and no descriptor stays open.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._system import kernel as _kernel
from atomik._tree import compare, delete, sync
from atomik._tree.clone import clone, copy_entry
from atomik._tree.fingerprint import fingerprint
from atomik._tree.metadata import Metadata, apply
from tests.support.trees import descriptors, kernel, make_small
from tests.support.users import no_root

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.sweep

EXCEPTIONS = (
    TimeoutError(errno.ETIMEDOUT, "alarm"),
    FileNotFoundError(errno.ENOENT, "alarm"),
    PermissionError(errno.EACCES, "alarm"),
    OSError(errno.EPERM, "alarm"),
    OSError(errno.EINVAL, "alarm"),
    IsADirectoryError(errno.EISDIR, "alarm"),
    errors.AccessDeniedError(errno.EACCES, "alarm"),
    errors.MountPointError(errno.EBUSY, "alarm"),
    KeyboardInterrupt(),
)


def _handler(exception: BaseException) -> None:
    raise exception


class Alarm(_kernel.Kernel):
    """A handler that raises before the n-th call, except for close(2), which closes whatever is raised."""

    def __init__(self, at: int, exception: BaseException) -> None:
        self.left, self.exception = at, exception
        for name in vars(_kernel.Kernel):
            if not name.startswith("_") and name != "close":
                setattr(self, name, self._alarmed(getattr(_kernel.port, name)))

    def _alarmed(self, real: Callable[..., Any]) -> Callable[..., Any]:
        # A function of its own: for `kernel.errno_of` only what a replaced method itself raises is the kernel's.
        def call(*args: object) -> object:
            below = sys._getframe(1).f_code.co_filename  # the calls of the room below are tested there
            self.left -= "/_tree/" in below
            if self.left == 0 and "/_tree/" in below:
                _handler(self.exception)
            return real(*args)

        return call


def _copy(here: Directory) -> None:
    copy_entry(Place(here, "tree"), Place(here, "new"))


def _clone(here: Directory) -> None:
    os.mkdir("new", dir_fd=here.fd)
    with closing(Directory.open("tree", here.fd)) as one, closing(Directory.open("new", here.fd)) as other:
        clone(one, other)


def _sync(here: Directory) -> None:
    sync.sync_tree(here)


def _delete(here: Directory) -> None:
    delete.delete_tree(Place(here, "tree"))


def _compare(here: Directory) -> None:
    compare.same(Place(here, "tree"), Place(here, "twin"))


def _fingerprint(here: Directory) -> None:
    fingerprint(here, digest=True)


def _metadata(here: Directory) -> None:
    found = Metadata.of(Place(here, "model"))
    fd = os.open("file", os.O_RDWR, dir_fd=here.fd)
    try:
        apply(fd, found, "all")
    finally:
        os.close(fd)


@pytest.mark.parametrize("exception", EXCEPTIONS, ids=lambda exc: f"{type(exc).__name__}-{getattr(exc, 'errno', '')}")
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("work", [_copy, _clone, _sync, _delete, _compare, _fingerprint, _metadata])
def test_it_goes_on(tmp_path: Path, work: Callable[[Directory], None], step: int, exception: BaseException) -> None:
    """Every call of the port in turn; in a plain run one in five, others for each class."""
    top = tmp_path / "top"
    for number in range(1 + EXCEPTIONS.index(exception) % step, 2000, step):
        _prepare(top)
        fd = os.open(top, os.O_RDONLY)
        here = Directory(str(top), fd)
        before = descriptors()
        caught: BaseException | None = None
        with kernel(Alarm(number, exception)) as alarm:
            try:
                work(here)
            except BaseException as exc:
                caught = exc
        assert descriptors() == before, number
        here.close()
        shutil.rmtree(top)
        assert isinstance(alarm, Alarm)
        if alarm.left > 0:
            assert number > 5
            return
        assert caught is exception, number
    pytest.fail("the work never came to an end")


def _prepare(top: Path) -> None:
    top.mkdir()
    make_small(top / "tree")
    if not no_root():
        os.chown(top / "tree" / "file", 1000, 1000)
    shutil.copytree(top / "tree", top / "twin", symlinks=True, ignore=lambda *_: ["fifo"])
    os.mkfifo(top / "twin" / "fifo")
    for name in ("model", "file"):
        (top / name).touch()
    (top / "model").chmod(0o640)
    try:
        os.setxattr(top / "model", "user.colour", b"blue")
    except OSError:
        pass
