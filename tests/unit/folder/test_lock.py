"""Locks: one order for all, a bound on waiting, nothing that outlives its owner, and no lock where none is needed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from atomik._folder import lock
from atomik._folder.directory import Directory
from atomik._system import kernel
from atomik._system.forked import guarded
from tests.crash.deaths import die_at
from tests.support.kernels import Acting, Faulty, Recording, installed
from tests.support.state import in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def pair(folder: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        (folder / name).mkdir()
    return folder / "a", folder / "b"


@pytest.fixture
def stranger(folder: Path) -> Iterator[int]:
    """Someone who has never heard of atomik holds a lock on the folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield fd
    os.close(fd)


def publish(*folders: Path, timeout: float = 60.0) -> None:
    with atomik.transaction(overwrite=True, durable=False, lock_timeout=timeout) as tx:
        for folder in folders:
            tx.file(folder / "one").write(str(os.getpid()))
            tx.file(folder / "two").write(str(os.getpid()))


def test_the_wait_is_bounded_and_the_folder_named(folder: Path, stranger: int) -> None:
    """LockTimeoutError, a TimeoutError, with the folder that was held; nothing was changed, nothing is left."""
    with pytest.raises(errors.LockTimeoutError, match=r"held the folder for 0\.05 s") as caught:
        publish(folder, timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.errno, caught.value.filename) == (errno.ETIMEDOUT, str(folder))
    assert os.listdir(folder) == []


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
def test_no_time_at_all(timeout: float) -> None:
    """What is not a time is refused at once; with NaN no deadline would ever pass."""
    with pytest.raises(ValueError, match="cannot be negative"):
        atomik.transaction(lock_timeout=timeout)


def test_no_wait_when_none_is_wanted(folder: Path) -> None:
    """lock_timeout=0 takes a free lock nevertheless."""
    publish(folder, timeout=0.0)
    assert len(os.listdir(folder)) == 2


def test_one_of_two_folders_held(pair: tuple[Path, Path]) -> None:
    """The one that is held is named, and the other is free again."""
    fd = os.open(pair[1], os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(errors.LockTimeoutError) as caught:
            publish(*pair, timeout=0.05)
        assert caught.value.filename == str(pair[1])
        publish(pair[0], timeout=0.0)
    finally:
        os.close(fd)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_strangers_lock_does_not_stop_one_item(folder: Path, stranger: int, overwrite: bool) -> None:
    """One item is one step, and needs no lock: new, overwritten, new folder, removal, link.  Only what displaces a folder
    waits, for readers of it and of its parent must see one version (P6)."""
    if overwrite:
        publish_one(folder)
        with pytest.raises(errors.LockTimeoutError), atomik.folder(folder / "set", overwrite=True, lock_timeout=0.0):
            pass
        with atomik.file(folder / "file", overwrite=True, lock_timeout=0.0) as f:
            f.write("2")
    else:
        publish_one(folder, lock_timeout=0.0)
    with atomik.transaction(lock_timeout=0.0) as tx:
        tx.remove(folder / "file")
    with atomik.transaction(lock_timeout=0.0) as tx:
        tx.symlink(folder / "link", "set")
    assert sorted(os.listdir(folder)) == ["link", "set"]


def publish_one(folder: Path, **options: object) -> None:
    with atomik.file(folder / "file", **options) as f:  # type: ignore[call-overload]
        f.write("1")
    with atomik.folder(folder / "set", **options) as path:  # type: ignore[arg-type]
        (path / "x").write_text("1")


def test_the_order_is_the_same_whatever_the_order_of_the_items(pair: tuple[Path, Path]) -> None:
    """I8: by device and inode."""
    orders = []
    for folders in (pair, pair[::-1]):
        with installed(Recording({"flock"})) as kernel:
            publish(*folders)
        orders.append([call.paths[0] for call in kernel.calls if call.args[1] == fcntl.LOCK_EX | fcntl.LOCK_NB][:2])
    assert orders[0] == orders[1] == sorted(map(str, pair), key=lambda path: os.stat(path).st_ino)


def test_user_code_never_waits_with_a_lock_held(folder: Path) -> None:
    """I8: while items are staged, others may publish in the folder."""
    with atomik.transaction() as tx:
        tx.file(folder / "slow").write("…")
        in_child(lambda: publish(folder, timeout=0.0))
        (tx.folder(folder / "set") / "x").write_text("…")
        in_child(lambda: publish(folder, timeout=0.0))


def in_loop(folders: tuple[Path, ...], rounds: int) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for _ in range(rounds):
                publish(*folders, timeout=30.0)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return pid


@pytest.mark.parametrize("rounds", [50, pytest.param(200, marks=pytest.mark.sweep)])
def test_two_in_opposite_order_never_wait_for_each_other_for_ever(pair: tuple[Path, Path], rounds: int) -> None:
    """Many rounds over the same two folders, named in opposite order."""
    children = [in_loop(pair, rounds), in_loop(pair[::-1], rounds)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def test_threads_in_opposite_order(pair: tuple[Path, Path]) -> None:
    """The same within one process."""
    failed: list[BaseException] = []

    def loop(folders: tuple[Path, ...]) -> None:
        try:
            for _ in range(40):
                publish(*folders, timeout=30.0)
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=loop, args=(folders,)) for folders in (pair, pair[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_no_lock_outlives_its_owner(folder: Path) -> None:
    """A killed transaction's locks are free at once."""
    die_at(lambda: publish(folder), "rename")
    publish(folder, timeout=0.0)
    atomik.recover(folder, lock_timeout=0.0)


def forked(action: Callable[[], object]) -> tuple[int, int]:
    """A child that does nothing, and lives until the pipe is closed: (its id, the pipe)."""
    reader, writer = os.pipe()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.write(tell, b"x")
        os.read(reader, 1)
        os._exit(0)
    assert os.read(told, 1) == b"x"
    for fd in (reader, told, tell):
        os.close(fd)
    action()
    return child, writer


@pytest.mark.parametrize("call", ["rename", "pwrite", "unlink", "fsync"])
def test_a_child_forked_in_a_commit_keeps_no_lock(folder: Path, call: str) -> None:
    """Its owner dies, and its journal is free to be recovered, although a child lives on with copies of everything."""
    reader, writer = os.pipe()
    told, tell = os.pipe()

    def fork_and_die(_: object) -> None:
        if os.fork() == 0:
            os.close(writer)
            os.write(tell, b"x")  # it has begun its own life
            os.read(reader, 1)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    owner = os.fork()
    if owner == 0:
        with installed(Acting(call, fork_and_die, after=True)), atomik.transaction(overwrite=True) as tx:
            tx.file(folder / "one").write("new")
            tx.file(folder / "two").write("new")
        os._exit(1)
    os.waitpid(owner, 0)
    try:
        assert os.read(told, 1) == b"x"
        atomik.recover(folder, lock_timeout=0.0)
        assert len(os.listdir(folder)) in (0, 2)
        assert not [name for name in os.listdir(folder) if name.startswith(".atomik")]
        publish(folder, timeout=0.0)
    finally:
        for fd in (reader, writer, told, tell):
            os.close(fd)


def test_a_child_forked_in_a_recovery_keeps_no_lock(folder: Path) -> None:
    """The same during a recovery: a thread may fork at any moment."""
    die_at(lambda: publish(folder), "rename")
    children: list[tuple[int, int]] = []
    with installed(Acting("rename", lambda _: children.append(forked(lambda: None)))):
        atomik.recover(folder)
    try:
        publish(folder, timeout=0.0)
    finally:
        for _, pipe in children:  # all of them first: the later children hold those of the earlier ones
            os.close(pipe)
        for child, _ in children:
            os.waitpid(child, 0)
    assert children


def test_a_living_owners_journal_is_waited_for(folder: Path) -> None:
    """If there is the journal of a commit under way, the other waits, and says who is at work when it takes too long."""
    answers: list[str] = []

    def meet(_: object) -> None:
        def attempt() -> str:
            try:
                with atomik.file(folder / "other", lock_timeout=0.05) as f:
                    f.write("1")
            except errors.LockTimeoutError as exc:
                return str(exc)
            return "allowed"

        answers.append(in_child(attempt))

    with installed(Acting("rename", meet)):
        publish(folder)
    assert all("a transaction is still running in the folder after 0.05 s" in answer for answer in answers)
    assert answers


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Directory, Directory]]:
    """One folder, opened twice."""
    one, other = Directory.open(str(tmp_path)), Directory.open(str(tmp_path))
    yield one, other
    one.close()
    other.close()
    assert not guarded


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
    waiting.join(60)
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
    assert 0.3 <= lock.now() - start < 60


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
    waiting.join(60)
    assert failed == [errno.ETIMEDOUT]


def test_a_greedy_writer_lets_others_have_their_turn(tmp_path: Path) -> None:
    """A process that takes the lock again and again keeps nobody out for long."""
    directory, parent = Directory.open(str(tmp_path)), os.getpid()
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        greedy = Directory.open(str(tmp_path))
        while os.getppid() == parent:
            greedy.lock(None)
            os.write(tell, b"x") if tell >= 0 else None
            tell = -1
            time.sleep(0.002)
            greedy.unlock()
        os._exit(0)
    waited = []
    os.close(tell)
    try:
        assert os.read(ready, 1) == b"x"
        for _ in range(10):
            start = lock.now()
            directory.lock(60)
            waited.append(lock.now() - start)
            directory.unlock()
            time.sleep(0.01)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        directory.close()
        os.close(ready)
    assert max(waited) < 30, waited


def in_line(path: Path, order: list[str], name: str) -> threading.Thread:
    """A writer in a thread that waits for the folder's lock; back when it has its ticket."""
    taken = threading.Event()

    def wait() -> None:
        directory = Directory.open(str(path))
        lock.while_waiting[threading.get_ident()] = taken.set
        try:
            directory.lock(30)
            order.append(name)
        finally:
            del lock.while_waiting[threading.get_ident()]
            directory.close()

    thread = threading.Thread(target=wait)
    thread.start()
    assert taken.wait(30)
    return thread


def test_writers_have_their_turn_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    """And one that had the lock gets in line again, behind those who wait."""
    directory, order = Directory.open(str(tmp_path)), list[str]()
    directory.lock(0)
    threads = [in_line(tmp_path, order, name) for name in "abcd"]
    directory.unlock()
    directory.lock(30)
    order.append("again")
    directory.close()
    for thread in threads:
        thread.join()
    assert order == [*"abcd", "again"]


@contextlib.contextmanager
def waiting_child(path: Path) -> Iterator[int]:
    """A process that waits in line for the lock, stopped."""
    child = os.fork()
    if not child:
        lock.while_waiting[threading.get_ident()] = lambda: os.kill(os.getpid(), signal.SIGSTOP)
        Directory.open(str(path)).lock(None)
        os._exit(0)
    try:
        os.waitpid(child, os.WUNTRACED)
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_one_that_does_not_take_its_turn_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process, or anybody who may read the folder, holds a writer up for a moment, and only once."""
    directory = Directory.open(str(tmp_path))
    directory.lock(0)
    with waiting_child(tmp_path):
        directory.unlock()
        monkeypatch.setattr(lock, "PATIENCE", 0.05)
        start = lock.now()
        directory.lock(30)
        assert lock.now() - start >= 0.05
        directory.unlock()
        monkeypatch.setattr(lock, "PATIENCE", 60.0)
        directory.lock(30)  # LockTimeoutError if it waited once more
        directory.unlock()
    directory.close()


def test_a_dead_waiter_is_not_in_line_any_more(tmp_path: Path) -> None:
    """Its ticket went with it."""
    directory = Directory.open(str(tmp_path))
    directory.lock(0)
    with waiting_child(tmp_path):
        assert kernel.port.writer_is_waiting(directory.fd)
    assert not kernel.port.writer_is_waiting(directory.fd)
    directory.close()


def test_without_time_to_wait_nobody_is_waited_for(tmp_path: Path) -> None:
    """lock_timeout=0 takes a free lock although another one is in line."""
    directory = Directory.open(str(tmp_path))
    directory.lock(0)
    with waiting_child(tmp_path):
        directory.unlock()
        directory.lock(0)
    directory.close()


@pytest.mark.parametrize("call", ["announce_writer", "earlier"])
def test_without_tickets_luck_decides(two: tuple[Directory, Directory], call: str) -> None:
    """NFS: waiting cannot be announced, and everybody still gets the lock."""
    two[0].lock(0)
    with installed(Faulty.every(call, errno.ENOLCK)) as kernel:
        waiting = threading.Thread(target=two[1].lock, args=(30,))
        waiting.start()
        while not kernel.struck:
            time.sleep(0.001)
        two[0].unlock()
        waiting.join(30)
    assert not waiting.is_alive()


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


def test_a_lock_is_known_for_as_long_as_it_is_held(tmp_path: Path) -> None:
    """A signal handler may run wherever a function begins or has returned: while the folder is closed, too, it must be told
    that its own thread holds the lock, and a child that is forked there must not keep it."""
    folder, unknown = Directory.open(str(tmp_path)), list[str]()
    folder.lock(1.0)
    fd = folder.fd

    def look(frame: Any, event: str, arg: Any) -> None:
        held = os.path.exists(f"/proc/self/fdinfo/{fd}") and "lock:" in Path(f"/proc/self/fdinfo/{fd}").read_text()
        if held and event != "c_call" and fd not in guarded:
            unknown.append(f"{event} {frame.f_lineno} {arg}")

    assert "lock:" in Path(f"/proc/self/fdinfo/{fd}").read_text()
    sys.setprofile(look)
    try:
        folder.close()
    finally:
        sys.setprofile(None)
    assert unknown == []
    assert fd not in guarded
