"""Many open files synced at once, by threads: each once, the first error counts, and nobody is left at work."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import pytest

from atomik._system import kernel as _kernel
from atomik._tree import sync
from tests.support.trees import Without, kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MANY = 4 * sync.FEW


@pytest.fixture
def fds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Many open files, on a filesystem where threads are worth it."""
    monkeypatch.setattr(sync, "_is_btrfs", lambda _: False)
    opened = [os.open(tmp_path / f"{number}", os.O_CREAT | os.O_RDWR) for number in range(MANY)]
    yield opened
    for fd in opened:
        os.close(fd)


class Syncing(_kernel.Kernel):
    """Notes each fsync and its thread, then does something."""

    def __init__(self, work: Callable[[int], None] = lambda _: None) -> None:
        self.synced: list[int] = []
        self.threads: set[int] = set()
        self.work = work

    def fsync(self, fd: int) -> None:
        """Note and do."""
        self.synced.append(fd)
        self.threads.add(threading.get_ident())
        self.work(fd)


@pytest.mark.parametrize("count", [0, 1, 2, sync.FEW - 1, sync.FEW, MANY])
def test_each_once(fds: list[int], count: int) -> None:
    """Every file is synced once, whatever their number; threads only for many."""
    met = threading.Event()  # two threads: each has a file

    def meet(_: int) -> None:
        if len(noting.threads) > 1:
            met.set()
        if count >= sync.FEW:
            met.wait(60)
            met.set()  # none of the others shall wait as well

    threads = threading.active_count()
    with kernel(Syncing(meet)) as noting:
        assert isinstance(noting, Syncing)
        assert sync.sync_files(fds[:count]) is None
    assert sorted(noting.synced) == fds[:count]
    if count < sync.FEW:
        assert len(noting.threads) == min(count, 1)
    else:
        assert 1 < len(noting.threads) <= sync.THREADS
    assert threading.active_count() == threads


@pytest.mark.parametrize("where", [0, 1, MANY // 2, MANY - 1])
def test_a_failure(fds: list[int], where: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that failed is named, no file is synced twice, and what was not begun is left."""

    class Failing(Syncing):
        def fsync(self, fd: int) -> None:
            super().fsync(fd)
            if fd == fds[where]:
                raise OSError(errno.EIO, "broken")
            if fds.index(fd) > where:  # begun before the failure was known
                known.wait(60)

    class Left(deque[tuple[int, int]]):
        def clear(self) -> None:
            super().clear()
            known.set()

    known, threads = threading.Event(), threading.active_count()
    monkeypatch.setattr(sync, "deque", Left)
    with kernel(Failing()) as noting:
        failed = sync.sync_files(fds)
        assert failed is not None
        assert (failed[0], failed[1].errno, _kernel.errno_of(failed[1])) == (where, errno.EIO, errno.EIO)
    assert isinstance(noting, Syncing)
    assert len(noting.synced) == len(set(noting.synced))
    assert where == MANY - 1 or len(noting.synced) < MANY
    assert threading.active_count() == threads


def test_all_fail(fds: list[int]) -> None:
    """One error is enough."""
    threads = threading.active_count()
    with kernel(Without("fsync", errno.ENOSPC)):
        failed = sync.sync_files(fds)
    assert failed is not None
    assert failed[1].errno == errno.ENOSPC
    assert threading.active_count() == threads


@pytest.mark.parametrize("exception", [KeyboardInterrupt(), TimeoutError(errno.EIO, "alarm")])
def test_interrupt(fds: list[int], exception: BaseException) -> None:
    """What a signal handler raises goes on unchanged, twice in a row too, after all threads have ended."""

    came: list[int] = []
    twice = threading.Event()

    def handler(*_: object) -> None:
        came.append(1)
        if len(came) == 2:
            twice.set()
        if len(came) <= 2:
            raise exception

    def slow(_: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert twice.wait(60)
        elif not came:
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            twice.wait(60)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with kernel(Syncing(slow)) as noting:
            with pytest.raises(type(exception)) as caught:
                sync.sync_files(fds)
            assert caught.value is exception
            assert len(came) >= 2
            assert isinstance(noting, Syncing)
            ended = len(noting.synced)
            assert not any(thread.is_alive() for thread in threading.enumerate() if thread.name == "atomik-sync")
            time.sleep(0.1)
            assert len(noting.synced) == ended < MANY
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("exception", [RuntimeError("of a handler"), IndexError()])
def test_a_handlers_exception_while_threads_are_started(
    fds: list[int], monkeypatch: pytest.MonkeyPatch, exception: Exception
) -> None:
    """It does not say that there are no more threads, and goes on (I13)."""

    def start(_: threading.Thread) -> None:
        raise exception

    monkeypatch.setattr(threading.Thread, "start", start)
    with kernel(Syncing()), pytest.raises(type(exception)) as caught:
        sync.sync_files(fds)
    assert caught.value is exception


def test_an_unexpected_exception_in_a_thread(fds: list[int]) -> None:
    """What is not an answer of the kernel is raised by the caller's thread."""

    struck, threads = threading.Event(), threading.active_count()

    def strike(_: int) -> None:
        if threading.current_thread() is threading.main_thread():
            assert struck.wait(60)
        else:
            struck.set()
            raise MemoryError("no")

    with kernel(Syncing(strike)), pytest.raises(MemoryError):
        sync.sync_files(fds)
    assert threading.active_count() == threads


def test_without_threads(fds: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, as when the interpreter ends, the caller's thread does it all."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with kernel(Syncing()) as noting:
        assert sync.sync_files(fds) is None
    assert isinstance(noting, Syncing)
    assert sorted(noting.synced) == fds
