"""The transaction: states, order, ending, what a fork and the garbage collector do to it."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import State, errors
from tests.support.kernels import Acting, Answer, Faulty, Poor, Recording, installed
from tests.support.state import in_child, left_in, tree

if TYPE_CHECKING:
    from collections.abc import Callable


def names(receipt: atomik.Receipt) -> list[str]:
    return [os.path.basename(item.path) for item in receipt.items]


def test_leaving_the_block_well_commits(folder: Path) -> None:
    """Everything is there, and nothing was before the end of the block."""
    with atomik.transaction() as tx:
        with tx.file("a") as f:
            f.write("a")
        tx.file("b", "wb").write(b"b")
        (tx.folder("c") / "d").write_text("d")
        tx.path("e.txt").write_text("e")
        tx.symlink("f", "a")
        assert tx.state is State.OPEN
        assert [name for name in os.listdir() if not name.startswith(".atomik-")] == []
    assert tx.state is State.COMMITTED
    assert {name: value[3] for name, value in tree(folder).items()} == {
        "a": b"a", "b": b"b", "c": None, "c/d": b"d", "e.txt": b"e", "f": "a",
    }  # fmt: skip


@pytest.mark.usefixtures("no_log")
def test_explicit_commit_returns_the_receipt(folder: Path) -> None:
    """commit() says what was done; tx.receipt keeps it."""
    Path("a").write_text("old")
    tx = atomik.transaction(overwrite=True)
    assert tx.receipt is None
    tx.file("a").write("new")
    tx.symlink("b", "a")
    receipt = tx.commit()
    assert receipt is tx.receipt
    assert receipt.txid == tx.txid
    assert receipt.durable
    assert receipt.barriers == 3
    assert receipt.leftovers == ()
    assert 0 < receipt.visible <= receipt.duration
    first, second = receipt.items
    assert (first.path, first.kind, first.op, first.method, first.replaced) == (
        str(folder / "a"), "file", "replace", "renameat2", True,
    )  # fmt: skip
    assert (second.kind, second.op, second.replaced) == ("symlink", "create", False)


def test_commit_inside_the_block(folder: Path) -> None:
    """Having ended it, the block's end does nothing more."""
    with atomik.transaction() as tx:
        tx.file("a")
        tx.commit()
    assert tx.state is State.COMMITTED
    with atomik.transaction() as tx:
        tx.file("b")
        tx.abort()
        tx.abort()
    assert tx.state is State.ABORTED
    assert os.listdir() == ["a"]


def test_committing_twice(folder: Path) -> None:
    tx = atomik.transaction()
    tx.file("a")
    tx.commit()
    with pytest.raises(errors.TransactionStateError, match="committed"):
        tx.commit()
    with pytest.raises(errors.TransactionStateError, match="committed"):
        tx.abort()


def test_empty_transaction(folder: Path) -> None:
    """Nothing staged is nothing published, without a single system call."""
    with installed(Recording()) as kernel:
        receipt = atomik.transaction().commit()
    assert kernel.calls == []
    assert receipt.items == ()


def test_order_is_as_staged(folder: Path) -> None:
    """Items are swapped as they were staged, and the receipt is in that order."""
    wanted = ["c", "a", "d", "b"]
    with installed(Recording({"rename"})) as kernel, atomik.transaction() as tx:
        for name in wanted:
            tx.file(name)
    assert [os.path.basename(call.paths[1]) for call in kernel.calls] == wanted
    assert tx.receipt is not None
    assert names(tx.receipt) == wanted


def test_order_can_be_given(folder: Path) -> None:
    """Lower order first, ties as staged; rollback runs the other way round."""
    with installed(Recording({"rename"})) as kernel, atomik.transaction() as tx:
        tx.file("manifest", order=9)
        tx.file("b")
        tx.folder("c", order=-1)
        tx.symlink("d", "x", order=9)
        assert [item.path[-1] for item in tx.items] == ["c", "b", "t", "d"]
    wanted = ["c", "b", "manifest", "d"]
    assert [os.path.basename(call.paths[1]) for call in kernel.calls] == wanted

    def fail(call: Any) -> None:
        if call.paths[1].endswith("/z"):
            raise Answer(5)

    with installed(Acting("rename", fail)), installed(Recording({"rename"})) as kernel:
        tx = atomik.transaction()
        for name in ("x", "y", "z"):
            tx.file(name)
        with pytest.raises(errors.CommitError):
            tx.commit()
    left = [os.path.basename(call.paths[0]) for call in kernel.calls[3:]]
    assert [name for name in left if not name.startswith(".atomik-")] == ["y", "x"]


def test_items_and_repr(folder: Path) -> None:
    """What is staged can be seen before the commit."""
    with atomik.transaction() as tx:
        tx.file("a", order=3)
        tx.remove("b", missing_ok=True)
        (item,) = tx.items
        assert (item.path, item.kind, item.order) == (str(folder / "a"), "file", 3)
        assert "1 items" in repr(tx)
        assert "open" in repr(tx)
        assert tx.txid in repr(tx)
        assert len(tx.txid) == 16


def test_the_failed_item_must_be_staged_again(folder: Path) -> None:
    """An item whose own block failed cannot be left out silently."""
    with atomik.transaction() as tx:
        with contextlib.suppress(ZeroDivisionError), tx.file("a") as f:
            f.write("half")
            raise ZeroDivisionError
        with contextlib.suppress(ZeroDivisionError), tx.folder("d") as d:
            (d / "half").touch()
            raise ZeroDivisionError
        assert tx.items == ()
        with pytest.raises(errors.TransactionStateError, match=r"'.*/a'.*ZeroDivisionError"):
            tx.commit()
        assert tx.state is State.OPEN
        with tx.file("a") as f:
            f.write("whole")
        with pytest.raises(errors.TransactionStateError, match="/d"):
            tx.commit()
        (tx.folder("d") / "whole").touch()
    assert Path("a").read_text() == "whole"
    assert os.listdir("d") == ["whole"]


def test_leaving_the_block_with_a_failed_item(folder: Path) -> None:
    """The block's end refuses, and drops everything."""
    with pytest.raises(errors.TransactionStateError), atomik.transaction() as tx:
        tx.file("b")
        with contextlib.suppress(ZeroDivisionError), tx.file("a"):
            raise ZeroDivisionError
    assert tx.state is State.ABORTED
    assert os.listdir() == []


def test_a_refused_item_does_not_spoil_the_rest(folder: Path) -> None:
    """What could not be staged at all is the caller's to decide about."""
    Path("there").touch()
    with atomik.transaction() as tx:
        with contextlib.suppress(FileExistsError):
            tx.file("there")
        tx.file("other")
    assert sorted(os.listdir()) == ["other", "there"]


@pytest.mark.parametrize("wrong", [{"durable": "sync"}, {"durable": None}, {"lock_timeout": -1}])
def test_wrong_parameters(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        atomik.transaction(**wrong)


def test_forked_child_keeps_off(folder: Path) -> None:
    """I11: the child can neither stage, commit nor abort, and its end changes nothing; the parent goes on."""
    with atomik.transaction() as tx:
        handle = tx.file("a")
        handle.write("parent")
        plots = tx.folder("d")

        def child() -> list[str]:
            said = []
            for action in (lambda: tx.file("b"), tx.commit, tx.abort, tx.__enter__):
                try:
                    action()
                except errors.TransactionStateError as exc:
                    said.append(str(exc))
            with contextlib.suppress(ZeroDivisionError), contextlib.suppress(errors.TransactionStateError):
                tx.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
            (plots / "from the child").touch()
            return said

        said = in_child(child)
        assert len(said) == 4
        assert all("forked child" in text for text in said)
    assert Path("a").read_text() == "parent"
    assert os.listdir("d") == ["from the child"]


def test_forked_child_that_leaves_the_block(folder: Path) -> None:
    """A child that runs out of the block, as after a bare fork, gets an error instead of the parent's commit."""
    with atomik.transaction() as tx:
        tx.file("a").write("parent")
        pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                try:
                    tx.__exit__(None, None, None)
                except errors.TransactionStateError:
                    status = 0
            os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert not os.path.exists("a")
    assert Path("a").read_text() == "parent"


def test_forked_child_holds_no_lock(folder: Path) -> None:
    """A child that outlives its parent's transaction keeps neither private folder nor folder locked."""
    reader, writer = os.pipe()
    with atomik.transaction() as tx:
        tx.folder("a")
        (private_folder,) = left_in(folder)[:1]
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent is done
            os._exit(0)
    os.close(reader)
    with atomik.transaction(lock_timeout=0) as tx:
        tx.file("b")
        tx.file("c")
    assert not os.path.exists(private_folder)
    os.close(writer)
    os.waitpid(pid, 0)


def forget(things: list[Any]) -> None:
    things.clear()
    gc.collect()


def test_garbage_collected(folder: Path) -> None:
    """A forgotten transaction warns, drops what was staged, and leaves no descriptor (see conftest)."""
    tx = atomik.transaction()
    handle = tx.file("a")
    handle.write("lost")
    tx.folder("d")
    del handle
    forgotten = [tx]
    del tx
    with pytest.warns(ResourceWarning, match="never committed nor aborted"):
        forget(forgotten)
    assert os.listdir() == []


def test_garbage_collected_output(folder: Path) -> None:
    """The same for a shortcut that was never entered."""
    with pytest.warns(ResourceWarning, match="never committed"):
        forget([atomik.file("a")])
    assert os.listdir() == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_exception_of_a_block_is_not_hidden_by_a_failing_removal(folder: Path, kind: str) -> None:
    """What was staged cannot be deleted just then: the block's own exception comes out, and the end tries again."""
    broken = Faulty.every("unlink", errno.EIO)
    with pytest.raises(LookupError, match="mine"), atomik.transaction() as tx:  # noqa: SIM117
        with installed(Poor("tmpfile")), getattr(tx, kind)("a") as output:
            (output / "f").write_text("x") if kind == "folder" else output.write("x")
            with installed(broken):
                output.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
            assert broken.struck
            assert left_in(folder)
            raise LookupError("mine")
    assert os.listdir(folder) == []


def test_forgotten_handle_publishes_nothing(folder: Path) -> None:
    """The file object may go before the transaction: what was written is still sealed at the commit."""
    with atomik.transaction() as tx:
        tx.file("a").write("kept")
        gc.collect()
    assert Path("a").read_text() == "kept"


def test_interpreter_exits_with_an_open_transaction(folder: Path) -> None:
    """Leaving a program without an end publishes nothing, whatever was staged."""
    code = "import atomik; tx = atomik.transaction(); tx.file('a').write('x'); tx.folder('d')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env(), check=True)
    assert done.stdout == ""
    assert not os.path.exists("a")
    atomik.recover(folder)


def env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}


def test_threads_stage_into_one_transaction(folder: Path) -> None:
    """Threads may stage and write at the same time; each destination gets its own content."""
    threads, each = 8, 12
    start = threading.Barrier(threads)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            start.wait()
            for count in range(each):
                with tx.file(f"{number}-{count}") as f:
                    f.write(f"{number} {count}")
                (tx.folder(f"d{number}-{count}") / "x").write_text(str(number))
        except BaseException as exc:
            failures.append(exc)

    with atomik.transaction() as tx:
        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert failures == []
        assert len(tx.items) == 2 * threads * each
    for number in range(threads):
        for count in range(each):
            assert Path(f"{number}-{count}").read_text() == f"{number} {count}"
            assert Path(f"d{number}-{count}/x").read_text() == str(number)


def test_threads_race_for_one_destination(folder: Path) -> None:
    """Of many threads that stage the same destination, one gets it."""
    start = threading.Barrier(8)
    won: list[int] = []
    lost: list[BaseException] = []

    def work(number: int) -> None:
        start.wait()
        try:
            tx.file("x").write(str(number))
            won.append(number)
        except errors.DuplicateDestinationError as exc:
            lost.append(exc)

    with atomik.transaction() as tx:
        workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert (len(won), len(lost)) == (1, 7)
    assert Path("x").read_text() == str(won[0])


def test_descriptors_do_not_grow(folder: Path) -> None:
    """I10: however many files are sealed, only a handful stay open."""
    base = len(os.listdir("/proc/self/fd"))
    with atomik.transaction() as tx:
        for number in range(100):
            with tx.file(f"f{number}") as f:
                f.write(str(number))
        assert len(os.listdir("/proc/self/fd")) - base < 20
    assert {name: Path(name).read_text() for name in os.listdir()} == {f"f{n}": str(n) for n in range(100)}


def test_real_ctrl_c(folder: Path) -> None:
    """A real SIGINT while the block runs: KeyboardInterrupt, and nothing is left."""
    with pytest.raises(KeyboardInterrupt), atomik.transaction() as tx:
        tx.file("a").write("x")
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(60)
    assert os.listdir() == []


def test_lock_is_waited_for_and_timed_out(folder: Path) -> None:
    """A lock on the folder is waited for; if it takes too long, the error names the folder and lock_timeout."""
    import fcntl

    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        tx = atomik.transaction(lock_timeout=0.05)
        tx.file("a")
        tx.file("b")
        with pytest.raises(errors.LockTimeoutError, match="lock_timeout") as caught:
            tx.commit()
        assert caught.value.filename == str(folder)
        assert isinstance(caught.value, TimeoutError)
        assert tx.state is State.ABORTED
        tx = atomik.transaction()
        tx.file("a")
        tx.file("b")
        timer = threading.Timer(0.05, fcntl.flock, (fd, fcntl.LOCK_UN))
        timer.start()
        tx.commit()
        timer.join()
    finally:
        os.close(fd)
    assert sorted(os.listdir()) == ["a", "b"]


def test_one_item_needs_no_lock(folder: Path) -> None:
    """A single output does not wait for a stranger's flock."""
    import fcntl

    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        for _ in range(2):
            with atomik.file("a", overwrite=True, lock_timeout=0) as f:
                f.write("x")
    finally:
        os.close(fd)


def test_several_folders_and_tmp_dir(folder: Path) -> None:
    """Destinations in many folders, staged in a third: all swapped, every private folder gone."""
    for name in ("one", "two", "tmp"):
        Path(name).mkdir()
    with installed(Recording({"mkdir"})) as kernel, atomik.transaction() as tx:
        tx.file("one/a", tmp_dir="tmp").write("a")
        tx.file("two/b").write("b")
        tx.folder("two/c", tmp_dir="tmp")
        tx.symlink("d", "x")
    assert sorted(p for p in tree(folder)) == ["d", "one", "one/a", "tmp", "two", "two/b", "two/c"]
    private_folders = [call.paths[0] for call in kernel.calls if ".atomik-" not in os.path.dirname(call.paths[0])]
    assert sorted(os.path.dirname(private_folder) for private_folder in private_folders) == [
        str(folder),
        str(folder / "tmp"),
        str(folder / "two"),
    ]


def test_progress_is_told(folder: Path) -> None:
    """progress() is called for the swaps, and an exception that it raises rolls everything back."""
    heard: list[tuple[str, int, int]] = []
    with atomik.transaction(progress=lambda *args: heard.append(args)) as tx:
        tx.file("a")
        tx.file("b")
    assert ("swapping", 2, 2) in heard

    def stop(phase: str, done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), atomik.transaction(progress=stop, overwrite=True) as tx:
        tx.file("a").write("new")
        tx.file("c")
    assert sorted(os.listdir()) == ["a", "b"]
    assert Path("a").read_text() == ""


def test_no_warning_on_a_normal_run(folder: Path) -> None:
    """Neither a commit nor an abort warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with atomik.transaction() as tx:
            tx.file("a")
        tx = atomik.transaction()
        tx.file("b")
        tx.abort()
        del tx
        gc.collect()


def retry(attempt: Callable[[], object], times: int = 3) -> None:
    for _ in range(times):
        attempt()


def test_output_may_be_reused_after_failure(folder: Path) -> None:
    """A failed commit leaves the folder as usable as before."""

    def attempt() -> None:
        with pytest.raises(ZeroDivisionError), atomik.transaction() as tx:
            tx.file("a")
            tx.folder("b")
            raise ZeroDivisionError

    retry(attempt)
    with atomik.transaction() as tx:
        tx.file("a")
        tx.folder("b")
    assert sorted(os.listdir()) == ["a", "b"]
