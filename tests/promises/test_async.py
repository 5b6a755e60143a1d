"""``async with``: the loop goes on, and a cancellation at any moment leaves everything old or everything new."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import State, errors
from tests.support.kernels import Call, Watching, installed
from tests.support.state import left_in

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

Tx = atomik.Transaction


class Held(Watching):
    """Counts the calls of the thread that commits, and holds it before the one with this number until it is let go."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.calls, self.passed = at, 0, False
        self.reached, self.go = threading.Event(), threading.Event()

    def around(self, call: Call, go: Callable[[], Any]) -> Any:
        if threading.current_thread().name == "atomik commit":
            self.calls += 1
            if self.calls == self.at:
                self.reached.set()
                assert self.go.wait(60)
        return go()


def stage(tx: Tx, folder: Path) -> None:
    """A file that replaces one, a new one, and a folder."""
    tx.file(folder / "a").write("new")
    tx.file(folder / "b").write("new")
    (tx.folder(folder / "c") / "page").write_text("new")


def there(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


OLD = {"a": "old", "c/page": "old"}
NEW = {"a": "new", "b": "new", "c/page": "new"}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "c").mkdir()
    (tmp_path / "a").write_text("old")
    (tmp_path / "c" / "page").write_text("old")
    return tmp_path


def test_every_door_opens_with_async(tmp_path: Path) -> None:
    """file, folder, path, update and transaction publish at the end of an asynchronous block."""

    async def main() -> None:
        async with atomik.file(tmp_path / "file") as f:
            f.write("1")
        async with atomik.folder(tmp_path / "folder") as folder:
            (folder / "x").write_text("2")
        async with atomik.path(tmp_path / "path.txt") as name:
            name.write_text("3")
        async with atomik.update(tmp_path / "file") as f:
            assert f.read() == "1"
            f.write("4")
        async with atomik.transaction() as tx:
            tx.file(tmp_path / "more").write("5")
        assert tx.state is State.COMMITTED

    asyncio.run(main())
    assert there(tmp_path) == {"file": "14", "folder/x": "2", "path.txt": "3", "more": "5"}


def test_an_exception_in_the_block_aborts(old: Path) -> None:
    """The block's own exception goes on unchanged, and everything is as it was."""
    mine = LookupError("mine")

    async def main() -> None:
        async with atomik.transaction(overwrite=True) as tx:
            stage(tx, old)
            raise mine

    with pytest.raises(LookupError) as caught:
        asyncio.run(main())
    assert caught.value is mine
    assert there(old) == OLD
    assert left_in(old) == []


def test_a_failure_of_the_commit_is_raised_in_the_task(old: Path) -> None:
    """As without ``async``: the same error, with everything as it was."""

    async def main() -> None:
        async with atomik.transaction() as tx:
            tx.file(old / "b").write("new")
            tx.file(old / "d").write("new")
            (old / "d").write_text("theirs")

    with pytest.raises(errors.FileAlreadyExistsError):
        asyncio.run(main())
    assert there(old) == {**OLD, "d": "theirs"}


def test_the_loop_goes_on(old: Path) -> None:
    """While the commit is held in a system call, other tasks run."""
    held = Held(3)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while not held.reached.is_set():
            await asyncio.sleep(0.001)
        for _ in range(5):
            await asyncio.sleep(0.001)
            ticks += 1
        held.go.set()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(tick())
            async with atomik.transaction(overwrite=True) as tx:
                stage(tx, old)

    with installed(held):
        asyncio.run(main())
    assert ticks == 5
    assert there(old) == NEW


def test_events_name_the_code_that_called(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not the thread's: file and function are those of the task."""

    async def main() -> None:
        async with atomik.transaction() as tx:
            tx.file(tmp_path / "a").write("x")

    with caplog.at_level(logging.DEBUG, "atomik"):
        asyncio.run(main())
    assert [record.event for record in caplog.records][-1] == "transaction.committed"  # type: ignore[attr-defined]
    assert {(record.filename, record.funcName) for record in caplog.records} == {(Path(__file__).name, "main")}


def test_no_loop_is_an_error_at_the_beginning(tmp_path: Path) -> None:
    """If neither asyncio nor trio runs the coroutine, nothing is begun, because it could not be ended."""
    tx = atomik.transaction()

    async def main() -> None:
        async with tx:
            tx.file(tmp_path / "a").write("x")

    with pytest.raises(RuntimeError, match="no running event loop"):
        main().send(None)
    tx.abort()


# --- cancelled -----------------------------------------------------------------------------------------------------
BACKENDS = [
    "asyncio",
    *(
        pytest.param(name, marks=pytest.mark.skipif(not find_spec(name), reason=f"needs {name}"))
        for name in ("anyio", "trio")
    ),
]


def run(backend: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it as plain asyncio, under anyio on asyncio, or under trio."""
    if backend == "asyncio":
        asyncio.run(main())
        return
    import anyio

    anyio.run(main, backend="trio" if backend == "trio" else "asyncio")


async def cancelled_once(backend: str, reached: threading.Event, go: threading.Event, work: Any) -> bool:
    """Run `work`, and cancel it once `reached`; only then `go` is set.  Whether it was cancelled."""
    if backend == "asyncio":
        task = asyncio.create_task(work())
        while not reached.is_set() and not task.done():
            await asyncio.sleep(0.0005)
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        go.set()
        await asyncio.wait([task])
        return task.cancelled() or bool(task.result())
    import anyio

    async with anyio.create_task_group() as group:

        async def cancel() -> None:
            while not reached.is_set():
                await anyio.sleep(0.0005)
            scope.cancel()
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            go.set()

        with anyio.CancelScope() as scope:
            group.start_soon(cancel)
            await work()
        if not scope.cancelled_caught:
            reached.set()
    return scope.cancelled_caught


@pytest.mark.sweep
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("durable", [True, False], ids=["durable", "not"])
def test_cancelled_at_every_call_of_the_commit(tmp_path: Path, backend: str, durable: bool) -> None:
    """Before the mark: all old.  Behind it: all new.  The cancellation goes on in both cases, when nothing is at work."""
    seen = {State.ABORTED: 0, State.COMMITTED: 0}
    for number in range(1, 200):
        folder = tmp_path / str(number)
        (folder / "c").mkdir(parents=True)
        (folder / "a").write_text("old")
        (folder / "c" / "page").write_text("old")
        held, tx = Held(number), atomik.transaction(overwrite=True, durable=durable)

        async def work(tx: Tx = tx, folder: Path = folder) -> None:
            async with tx:
                stage(tx, folder)

        caught: list[bool] = []

        async def main(held: Held = held, work: Any = work, caught: list[bool] = caught) -> None:
            caught.append(await cancelled_once(backend, held.reached, held.go, work))

        with installed(held):
            run(backend, main)
        assert there(folder) == (NEW if tx.state is State.COMMITTED else OLD), number
        assert left_in(folder) == []
        if held.calls < number:
            break
        assert caught == [True], number
        seen[tx.state] += 1
    assert seen[State.ABORTED] > 5
    assert seen[State.COMMITTED] > 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancelled_while_it_waits_for_a_lock(old: Path, backend: str) -> None:
    """Someone else holds the folder, forever: a cancellation ends the waiting at once."""
    fd = os.open(old, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    tx = atomik.transaction(overwrite=True, lock_timeout=None)
    held = Held(1)
    held.go.set()

    async def work() -> None:
        async with tx:
            stage(tx, old)

    async def main() -> None:
        assert await cancelled_once(backend, held.reached, held.go, work)

    try:
        with installed(held):
            run(backend, main)
    finally:
        os.close(fd)
    assert tx.state is State.ABORTED
    assert there(old) == OLD
    assert left_in(old) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancelled_in_the_block(old: Path, backend: str) -> None:
    """A cancellation by the block's own await aborts; so does one that nobody has awaited yet when the block ends."""
    tried = 0

    async def main() -> None:
        nonlocal tried
        if backend == "asyncio":
            me = asyncio.current_task()
            assert me is not None
            for awaiting in (True, False):
                tx = atomik.transaction(overwrite=True)
                with pytest.raises(asyncio.CancelledError):
                    async with tx:
                        stage(tx, old)
                        me.cancel()
                        if awaiting:
                            await asyncio.sleep(0)
                me.uncancel()
                assert tx.state is State.ABORTED
                tried += 1
            return
        import anyio

        for awaiting in (True, False):
            tx = atomik.transaction(overwrite=True)
            with anyio.CancelScope() as scope:
                async with tx:
                    stage(tx, old)
                    scope.cancel()
                    if awaiting:
                        await anyio.lowlevel.checkpoint()
            assert scope.cancelled_caught
            assert tx.state is State.ABORTED
            tried += 1

    run(backend, main)
    assert tried == 2
    assert there(old) == OLD
    assert left_in(old) == []


def test_a_timeout_rolls_back(old: Path) -> None:
    """asyncio.timeout() around a commit that waits for someone's lock: TimeoutError, everything as it was."""
    fd = os.open(old, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)

    async def main() -> None:
        async with asyncio.timeout(0.05), atomik.transaction(overwrite=True) as tx:
            stage(tx, old)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    os.close(fd)
    assert there(old) == OLD


def test_a_sibling_that_fails_cancels_in_a_task_group(old: Path) -> None:
    """A TaskGroup cancels the commit when a sibling fails: rolled back, and the group tells the sibling's error alone."""
    held = Held(4)

    async def fail() -> None:
        while not held.reached.is_set():
            await asyncio.sleep(0.001)
        raise LookupError("mine")

    async def let_go(cancelled: asyncio.Task[None]) -> None:
        while not cancelled.cancelling():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        held.go.set()

    async def publish() -> None:
        async with atomik.transaction(overwrite=True) as tx:
            stage(tx, old)

    async def main() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                letting_go = asyncio.create_task(let_go(group.create_task(publish())))
        finally:
            await letting_go

    with installed(held), pytest.raises(ExceptionGroup) as caught:
        asyncio.run(main())
    assert [type(each) for each in caught.value.exceptions] == [LookupError]
    assert there(old) == OLD
    assert left_in(old) == []


def test_in_doubt_is_told_in_place_of_the_cancellation(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback that fails is more than "cancelled" tells."""
    held = Held(1)

    def doubt(self: Tx, *left_by: object) -> None:
        self.abort()
        held.reached.set()
        assert held.go.wait(60)
        raise errors.RollbackError(5, "in doubt", "a")

    async def main() -> None:
        monkeypatch.setattr(Tx, "__exit__", doubt)

        async def work() -> None:
            async with atomik.transaction(overwrite=True) as tx:
                stage(tx, old)

        task = asyncio.create_task(work())
        while not held.reached.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0)
        held.go.set()
        with pytest.raises(errors.RollbackError) as caught:
            await task
        assert isinstance(caught.value.__context__, asyncio.CancelledError | type(None))

    asyncio.run(main())


INTERRUPTED = """\
import asyncio, os, pathlib, signal, sys, time
import atomik
folder, phase, often = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def progress(name, done, total):
    if (name, done) == ("swapping", 1):
        for _ in range(often):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
async def main():
    async with atomik.transaction(overwrite=True, progress=progress) as tx:
        tx.file(folder / "a").write("new")
        tx.file(folder / "b").write("new")
asyncio.run(main())
"""


@pytest.mark.parametrize("often", [1, 2])
def test_ctrl_c_lets_the_worker_end(tmp_path: Path, often: int) -> None:
    """Ctrl-C in the loop's thread, also a second one: the worker brings everything to its end before the program ends."""
    (tmp_path / "a").write_text("old")
    command = [sys.executable, "-c", INTERRUPTED, tmp_path, "swapping", str(often)]
    environment = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert there(tmp_path) in ({"a": "old"}, {"a": "new", "b": "new"})
    assert left_in(tmp_path) == []
