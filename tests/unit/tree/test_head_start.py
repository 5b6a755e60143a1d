"""Syncs in a thread while a copy is being made: enough of them, one at a time, and nothing depends on them."""

from __future__ import annotations

import errno
import os
import threading
from _thread import start_new_thread
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik._folder.directory import Directory
from atomik._system import kernel as _kernel
from atomik._tree import sync
from atomik._tree.sync import ENOUGH, HeadStart
from tests.support.trees import descriptors, held, kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Syncing(_kernel.Kernel):
    """Notes the descriptor and the thread of each syncfs, then does something instead."""

    begun = threading.Event()

    def __init__(self, work: Callable[[], None] = lambda: None) -> None:
        self.synced: list[tuple[int, bool]] = []
        self.work = work

    def syncfs(self, fd: int) -> None:
        """Note and do."""
        beside = threading.get_native_id() != os.getpid()
        self.synced.append((fd, beside))
        if beside:
            self.begun.set()
            self.work()


@pytest.fixture(autouse=True)
def _promptly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread begins at once; one that has not begun before the end of the block does nothing."""

    def start(work: Callable[[], None], arguments: tuple[()]) -> None:
        Syncing.begun.clear()
        start_new_thread(work, arguments)
        assert Syncing.begun.wait(60)

    monkeypatch.setattr(sync, "start_new_thread", start)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Directory]:
    """An open folder; afterwards there are no more threads than before."""
    before = len(os.listdir("/proc/self/task"))
    with held(tmp_path) as opened:
        yield opened
    assert len(os.listdir("/proc/self/task")) <= before


def test_it_syncs_when_there_is_enough(folder: Directory) -> None:
    """Few objects are not worth a sync; each time that there are many, one begins, in another thread."""
    with kernel(Syncing()) as noting:
        with HeadStart(folder) as ahead:
            ahead.more(ENOUGH - 1)
        assert noting.synced == []
        for _ in range(2):
            with HeadStart(folder) as ahead:
                ahead.more(ENOUGH - 1)
                ahead.more(1)
    assert noting.synced == [(folder.fd, True)] * 2


def test_one_at_a_time(folder: Directory) -> None:
    """While one is under way no other begins, and the end of the block waits for it."""
    go, ended = threading.Event(), []

    def work() -> None:
        assert go.wait(60)
        ended.append(True)

    with kernel(Syncing(work)) as noting, HeadStart(folder) as ahead:
        for _ in range(5):
            ahead.more(ENOUGH)
        go.set()
    assert len(noting.synced) == len(ended) == 1


def test_its_errors_are_not_ours(folder: Directory) -> None:
    """Whatever the kernel says, B1 hears again; anything else is raised at the end, and stops further syncs."""

    def broken() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    class Failing(Syncing):
        def syncfs(self, fd: int) -> None:
            super().syncfs(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with kernel(Failing()) as noting, HeadStart(folder) as ahead:
        ahead.more(ENOUGH)
    assert len(noting.synced) == 1
    with kernel(Syncing(broken)), pytest.raises(OSError, match=os.strerror(errno.EIO)), HeadStart(folder) as ahead:
        ahead.more(ENOUGH)


def test_no_more_threads(folder: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is no head start."""

    def full(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(sync, "start_new_thread", full)
    with kernel(Syncing()) as noting, HeadStart(folder) as ahead:
        ahead.more(ENOUGH)
    assert noting.synced == []


def test_a_handlers_error_while_a_thread_is_started(folder: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on, and is not taken for the word that there are no more threads (I13)."""

    def interrupted(*_: object) -> None:
        raise RuntimeError("the handler's")

    monkeypatch.setattr(sync, "start_new_thread", interrupted)
    with pytest.raises(RuntimeError, match="the handler's"), HeadStart(folder) as start:
        start.more(ENOUGH)


def test_too_late(folder: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that comes to run only after the end does nothing: the descriptor may be closed by then."""
    late: list[Callable[[], None]] = []
    monkeypatch.setattr(sync, "start_new_thread", lambda work, _: late.append(work))
    with kernel(Syncing()) as noting:
        with HeadStart(folder) as ahead:
            ahead.more(ENOUGH)
        late[0]()
    assert noting.synced == []


def test_interrupted_while_it_waits(folder: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the end is raised when the thread has ended."""
    go, ended = threading.Event(), []

    def work() -> None:
        assert go.wait(60)
        ended.append(True)

    def interrupted(_: float) -> None:
        if not go.is_set():
            go.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(_kernel, "sleep", interrupted)
    with kernel(Syncing(work)), pytest.raises(KeyboardInterrupt), HeadStart(folder) as ahead:
        ahead.more(ENOUGH)
    assert ended == [True]


@pytest.mark.parametrize("durable", [True, False, "fsync"])
def test_a_large_copy(tmp_path: Path, durable: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What starts as a copy is synced while it is made, if one syncfs will make it durable, and through another descriptor
    than that one, which therefore reports all errors (I9)."""
    monkeypatch.setattr(sync, "ENOUGH", 2)
    (tmp_path / "site" / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c", "sub/d"):
        (tmp_path / "site" / name).write_text(name)
    with Directory.open(str(tmp_path)) as opened:
        whole = opened.fs.syncfs and durable is True
    before = descriptors()
    with (
        kernel(Syncing()) as noting,
        atomik.folder(tmp_path / "site", overwrite=True, copy=True, durable=durable) as new,
    ):
        (new / "e").touch()
    ahead, later = ({fd for fd, beside in noting.synced if beside is kind} for kind in (True, False))
    assert (bool(ahead), bool(later)) == (whole, whole)
    assert not ahead & later
    assert descriptors() == before
