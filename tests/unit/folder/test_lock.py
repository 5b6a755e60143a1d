"""Locks on folders: no waiting for oneself, deadlines that keep their time, turns for all."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atomik import errors
from atomik._folder import lock
from atomik._folder.directory import Directory


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Directory, Directory]]:
    """One folder, opened twice."""
    one, other = Directory.open(str(tmp_path)), Directory.open(str(tmp_path))
    yield one, other
    one.close()
    other.close()
    assert not lock._held


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_a_thread_never_waits_for_itself(two: tuple[Directory, Directory], first: bool, second: bool) -> None:
    """Two shared locks go together; every other pair is refused at once, with the folder and the cause."""
    two[0].lock(60, shared=first)
    if first and second:
        two[1].lock(60, shared=True)
        return
    with pytest.raises(errors.LockTimeoutError, match="reading" if first else "committing") as caught:
        two[1].lock(None, shared=second)
    assert (caught.value.errno, caught.value.filename) == (errno.EDEADLK, two[0].path)
    two[0].unlock()
    two[1].lock(0, shared=second)


def test_a_handler_is_told_at_once(two: tuple[Directory, Directory]) -> None:
    """A signal handler that wants what its own thread holds does not wait."""
    said: list[int | None] = []

    def handler(*_: object) -> None:
        try:
            two[1].lock(None)
        except errors.LockTimeoutError as exc:
            said.append(exc.errno)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        two[0].lock(0)
        os.kill(os.getpid(), signal.SIGUSR1)
        two[0].unlock()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert said == [errno.EDEADLK]


def test_another_thread_is_waited_for(two: tuple[Directory, Directory]) -> None:
    """It can give the lock back; with None as long as it takes."""
    two[0].lock(0)
    waiting = threading.Thread(target=two[1].lock, args=(None,))
    waiting.start()
    time.sleep(0.1)
    assert waiting.is_alive()
    two[0].unlock()
    waiting.join(5)
    assert not waiting.is_alive()


def test_a_forked_child_holds_nothing(two: tuple[Directory, Directory]) -> None:
    """What its parent holds is another process's lock: it is waited for, and not called its own."""
    two[0].lock(0)
    child = os.fork()
    if not child:
        try:
            Directory.open(two[0].path).lock(0.01)
        except errors.LockTimeoutError as exc:
            os._exit(exc.errno or 0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.ETIMEDOUT


def frozen() -> float:
    return 1.0


def jumping() -> float:
    return os.urandom(1)[0] * 1e6


@pytest.mark.parametrize("clock", [frozen, jumping])
@pytest.mark.parametrize("shared", [True, False])
def test_the_timeout_keeps_its_time(
    two: tuple[Directory, Directory], monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float], shared: bool
) -> None:
    """A clock patched as freezegun does it, in every module that has it, neither stretches nor ends the wait."""
    real = {id(getattr(time, name)) for name in ("monotonic", "time", "perf_counter")}
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if id(value) in real:
                monkeypatch.setattr(module, name, clock)
    _wait_and_measure(two, shared)


@pytest.mark.parametrize("shared", [True, False])
def test_the_timeout_keeps_its_time_under_freezegun(two: tuple[Directory, Directory], shared: bool) -> None:
    """The same with the real thing, where it is installed."""
    freezegun = pytest.importorskip("freezegun")
    with freezegun.freeze_time("2001-01-01"):
        _wait_and_measure(two, shared)


def _wait_and_measure(two: tuple[Directory, Directory], shared: bool) -> None:
    failed: list[int | None] = []

    def wait() -> None:
        try:
            two[1].lock(0.3, shared=shared)
        except errors.LockTimeoutError as exc:
            failed.append(exc.errno)

    two[0].lock(0)
    start = lock.now()
    waiting = threading.Thread(target=wait)
    waiting.start()
    waiting.join()
    assert failed == [errno.ETIMEDOUT]
    assert 0.3 <= lock.now() - start < 3


def test_where_every_clock_stands_still_the_sleep_counts(
    two: tuple[Directory, Directory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """libfaketime freezes clock_gettime(2) as well."""
    monkeypatch.setattr(lock, "now", lambda: 7.0)
    two[0].lock(0)
    failed: list[int | None] = []

    def wait() -> None:
        try:
            two[1].lock(0.1)
        except errors.LockTimeoutError as exc:
            failed.append(exc.errno)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(10)
    assert failed == [errno.ETIMEDOUT]


def test_a_greedy_writer_lets_others_have_their_turn(tmp_path: Path) -> None:
    """A process that takes the lock again and again keeps nobody out for long."""
    directory = Directory.open(str(tmp_path))
    child = os.fork()
    if not child:
        greedy = Directory.open(str(tmp_path))
        while os.getppid() != 1:
            greedy.lock(None)
            time.sleep(0.002)
            greedy.unlock()
        os._exit(0)
    waited = []
    try:
        time.sleep(0.2)
        for _ in range(10):
            start = lock.now()
            directory.lock(20)
            waited.append(lock.now() - start)
            directory.unlock()
            time.sleep(0.01)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        directory.close()
    assert max(waited) < 2, waited


def test_a_handlers_exception_is_not_the_kernels_no(two: tuple[Directory, Directory]) -> None:
    """BlockingIOError from a signal handler passes, and the lock that was taken goes with the descriptor (I13)."""

    class Interrupted(Exception):
        pass

    def handler(*_: object) -> None:
        raise BlockingIOError(errno.EWOULDBLOCK, "not the kernel") from Interrupted()

    before = signal.signal(signal.SIGUSR1, handler)
    real = lock.kernel.port.flock
    try:
        lock.kernel.port.flock = lambda fd, how: (real(fd, how), os.kill(os.getpid(), signal.SIGUSR1))[0]
        with pytest.raises(BlockingIOError, match="not the kernel"):
            two[0].try_lock()
    finally:
        del lock.kernel.port.flock
        signal.signal(signal.SIGUSR1, before)
