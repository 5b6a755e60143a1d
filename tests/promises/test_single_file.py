"""One plain file, the most frequent output: the same results, errors and receipts as in a transaction, at any surprise."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

import atomik
from atomik import State, errors
from atomik._hidden_names import JOURNAL_NAME
from atomik._system.kernel import MUTATING
from tests.support.kernels import ALL, Acting, Answer, Faulty, Recording, installed
from tests.support.state import descriptors, in_child, left_in
from tests.support.users import no_root

both = pytest.mark.parametrize("durable", [True, False], ids=["durable", "not"])
overwriting = pytest.mark.parametrize("overwrite", [True, False], ids=["overwrite", "new"])


#: what strikes, and whether it does so after the call; a call that was made does not fail
FAULTS = [
    *((number, False) for number in (errno.EIO, errno.ENOENT, errno.EACCES)),
    *((interrupt, late) for interrupt in (KeyboardInterrupt, SystemExit) for late in (False, True)),
]


def write(text: str = "new", **options: Any) -> atomik.Receipt:
    output = atomik.file("x", overwrite=options.pop("overwrite", True), **options)
    with output as f:
        f.write(text)
    assert output.receipt is not None
    return output.receipt


@both
@overwriting
def test_alone_or_in_a_transaction_is_the_same(folder: Path, durable: bool, overwrite: bool) -> None:
    """`file` is a transaction with one output: the receipt tells the same, except for the id and the times."""

    def in_a_transaction() -> atomik.Receipt:
        with atomik.transaction(overwrite=overwrite, durable=durable) as tx:
            tx.file("x").write("new")
        assert tx.receipt is not None
        return tx.receipt

    receipts = []
    for way in (lambda: write(overwrite=overwrite, durable=durable), in_a_transaction):
        Path("x").unlink(missing_ok=True)
        if overwrite:
            Path("x").write_text("old")
            os.link("x", "y")
        receipt = way()
        assert (len(receipt.txid), receipt.duration > receipt.visible > 0) == (16, True)
        receipts.append(evolve(receipt, txid="", duration=0, visible=0))
        Path("y").unlink(missing_ok=True)
    assert receipts[0] == receipts[1]


@overwriting
def test_listening_changes_no_call(folder: Path, overwrite: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Whether someone listens to the log decides nothing: the calls are the same, in the same order."""
    seen = []
    with installed(Recording()) as kernel:
        for _ in range(2):  # the first use of a filesystem, and the first overwrite in a folder, find out about it
            write()
        for level in (logging.ERROR, logging.DEBUG):
            Path("x").unlink(missing_ok=True)
            if overwrite:
                Path("x").write_text("old")
            kernel.calls.clear()
            with caplog.at_level(level, "atomik"):
                write(overwrite=overwrite)
            seen.append(kernel.names())
    assert seen[0] == seen[1]
    assert "transaction.committed" in caplog.text


def test_the_transaction_behind_it(folder: Path) -> None:
    """It has the file as its one item, and can be ended in its place; after the end it tells what was done."""
    output = atomik.file("x")
    output.output.write("1")
    assert output.transaction.state is State.OPEN
    assert [item.path for item in output.transaction.items] == [str(folder / "x")]
    output.transaction.commit()
    assert Path("x").read_text() == "1"
    other = atomik.file("y")
    receipt = other.commit()
    assert (other.transaction.state, other.transaction.receipt) == (State.COMMITTED, receipt)
    assert [item.state.value for item in other.transaction.items] == ["done"]
    third = atomik.file("z")
    third.abort()
    assert third.transaction.state is State.ABORTED
    third.abort()


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_used_after_its_end(folder: Path, end: str) -> None:
    """As a transaction: `TransactionStateError`, and to abort what was aborted is harmless."""
    output = atomik.file("x")
    getattr(output, end)()
    with pytest.raises(errors.TransactionStateError, match="begin a new one"):
        output.commit()
    with pytest.raises(errors.TransactionStateError), output:
        pass
    if end == "commit":
        with pytest.raises(errors.TransactionStateError):
            output.abort()


def test_closed_by_its_user(folder: Path) -> None:
    """Closing the file object early, or its buffer, or taking the buffer away, is all right."""
    with atomik.file("a") as f:
        f.write("1")
        f.close()
    with atomik.file("b") as f:
        f.write("2")
        f.flush()
        f.buffer.close()
    with atomik.file("c") as f:
        f.write("3")
        f.detach().write(b"4")
    assert [Path(name).read_text() for name in "abc"] == ["1", "2", "34"]


def test_its_own_block_was_left_by_an_exception(folder: Path) -> None:
    """Then there is nothing to commit."""
    output = atomik.file("x")
    with pytest.raises(KeyError), output.output:
        raise KeyError
    with pytest.raises(errors.TransactionStateError, match="KeyError"):
        output.commit()
    output.abort()
    with pytest.raises(errors.TransactionStateError), atomik.file("x") as f:
        try:
            with f:
                raise KeyError
        except KeyError:
            pass
    assert os.listdir() == []


def _surprise(name: str) -> None:
    if name == "group":
        os.chown("x", 65534, 65534)
    elif name == "set-id":
        os.chmod("x", 0o6755)
    elif name == "xattr":
        os.setxattr("x", "user.note", b"kept")
    elif name == "mode":
        os.chmod("x", 0o640)


@both
@pytest.mark.parametrize("name", ["group", "set-id", "xattr", "mode"])
def test_what_is_replaced_is_looked_at_at_the_end(folder: Path, name: str, durable: bool) -> None:
    """Owner, set-id bits, attributes and mode are those that it has when the new content is complete."""
    Path("x").write_text("old")
    if name == "group" and (why := no_root()):
        pytest.skip(why)
    with atomik.file("x", overwrite=True, durable=durable) as f:
        f.write("new")
        _surprise(name)
        before = Path("x").stat()
    after = Path("x").stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert os.listxattr("x") == (["user.note"] if name == "xattr" else [])
    assert Path("x").read_text() == "new"


@both
def test_a_link_or_nothing_came_since(folder: Path, durable: bool) -> None:
    """What is there is replaced, whatever it is by now; but no folder."""
    for come in (lambda: os.symlink("nowhere", "x"), lambda: None):
        Path("x").write_text("old")
        with atomik.file("x", overwrite=True, durable=durable) as f:
            f.write("new")
            os.unlink("x")
            come()
        assert Path("x").read_text() == "new"
        os.unlink("x")


def _fails(call: object) -> None:
    raise Answer(errno.EIO)


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("number", range(1, 5))
@pytest.mark.parametrize("name", ["exists", "statx", "look_at"])
@overwriting
def test_a_look_fails(folder: Path, overwrite: bool, name: str, number: int, lasting: bool) -> None:
    """Then it says what is wrong, and everything is as it was."""
    if overwrite:
        Path("x").write_text("old")
    with installed(Acting(name, _fails, when=lambda call: call.number >= number if lasting else call.number == number)):
        failed: Any = None
        try:
            write(overwrite=overwrite)
        except errors.AtomikError as exc:
            failed = exc
    if failed is None:
        assert Path("x").read_text() == "new"
    else:
        assert failed.errno == errno.EIO
        if isinstance(failed, errors.RollbackError):  # whether it was undone for good cannot be told
            assert lasting
            atomik.recover(".")
        assert Path("x").read_text() == "old" if overwrite else not os.path.lexists("x")
    assert os.listdir() in ([], ["x"])


def test_a_look_fails_for_one_more(folder: Path) -> None:
    """In a transaction that holds the folder already: the error is the one of any other output."""
    with atomik.transaction() as tx:
        tx.file("first").write("1")
        with (
            installed(Acting("exists", _fails)),
            pytest.raises(errors.AtomikError, match="cannot stage there") as failed,
        ):
            tx.file("second")
        assert failed.value.errno == errno.EIO  # type: ignore[attr-defined]
    assert os.listdir() == ["first"]


def _folder_for_file(call: object) -> None:
    os.unlink("x")
    os.mkdir("x")


@both
@pytest.mark.parametrize(("when", "number"), [("rename", 1), ("link_fd", 1), ("statx", 3)])
def test_a_folder_comes_at_the_last_moment(folder: Path, durable: bool, when: str, number: int) -> None:
    """Between any two calls: it stays, or comes back, and nothing of ours is left."""
    Path("x").write_text("old")
    acting = Acting(when, _folder_for_file, when=lambda call: call.number == number)
    with installed(acting), pytest.raises(errors.WrongKindError):
        write(durable=durable)
    assert Path("x").is_dir()
    assert os.listdir() == ["x"]


@both
def test_a_lost_race(folder: Path, durable: bool) -> None:
    """Someone publishes right before the link: their version is kept or replaced, as the caller asked."""
    for overwrite in (False, True):
        with installed(
            Acting("link_fd", lambda call: Path("x").write_text("theirs"), when=lambda call: call.number == 1)
        ):
            if overwrite:
                write(durable=durable)
            else:
                with pytest.raises(errors.FileAlreadyExistsError, match="someone else published first"):
                    write(durable=durable, overwrite=False)
        assert Path("x").read_text() == ("new" if overwrite else "theirs")
        assert os.listdir() == ["x"]
        os.unlink("x")


@pytest.mark.parametrize("call", ["open_tmpfile", "link_fd"])
def test_what_one_folder_refuses_says_nothing_about_the_others(folder: Path, call: str) -> None:
    """An immutable folder and a removed one do not take unnamed files (P7) from all others of the filesystem."""

    def refuse(_: object) -> None:
        if call == "link_fd":
            os.rmdir("gone")
        raise Answer(errno.EPERM if call == "open_tmpfile" else errno.ENOENT)

    Path("gone").mkdir()
    refusing = Acting(call, refuse, when=lambda _: refusing.acted == 0)
    # Both to the end, because what is known of the filesystem is forgotten then.
    with installed(Recording()) as kernel, installed(refusing):
        with contextlib.suppress(errors.AtomikError), atomik.file("gone/x"):
            pass
        assert refusing.acted == 1
        kernel.calls.clear()
        with atomik.file("y"):
            pass
        assert "create" not in kernel.names()
        assert "open_tmpfile" in kernel.names()


def test_replaced_removed_and_created(folder: Path) -> None:
    """The destination goes at the last moment, so that the new file is created and replaces nothing: the private name that it
    had for the exchange does not stay beside it."""
    Path("x").write_text("old")
    with installed(Acting("rename", lambda _: os.unlink("x"), when=lambda call: call.number == 1)) as kernel:
        receipt = write()
    assert kernel.acted == 1
    assert (receipt.items[0].op, Path("x").read_text(), os.stat("x").st_nlink) == ("create", "new", 1)
    assert os.listdir() == ["x"]


def test_a_moved_folder_and_a_journal(folder: Path) -> None:
    """Both are seen before anything is published."""
    Path("d").mkdir()
    with pytest.raises(errors.ConflictError, match="moved, removed or replaced"), atomik.file("d/x") as f:
        f.write("new")
        os.rename("d", "e")
        os.mkdir("d")
    assert os.listdir("d") == os.listdir("e") == []
    with pytest.raises(errors.JournalError), atomik.file("e/x") as f:
        Path("e", JOURNAL_NAME).mkdir()
    assert os.listdir("e") == [JOURNAL_NAME]
    os.rmdir(Path("e", JOURNAL_NAME))


def test_a_slot_that_cannot_be_unlinked_is_told(folder: Path) -> None:
    """The commit is good nevertheless; the receipt names what is left, and recovery removes it."""
    Path("x").write_text("old")
    with installed(Faulty.every("unlink", errno.EIO)):
        receipt = write()
    assert "Input/output error" in receipt.leftovers[0]
    assert receipt.duration > 0
    assert Path("x").read_text() == "new"
    assert len(left_in(folder)) == 1
    atomik.recover(".")
    assert os.listdir() == ["x"]


@both
@overwriting
@pytest.mark.parametrize(("fault", "late"), FAULTS, ids=str)
def test_every_call_fails(folder: Path, durable: bool, overwrite: bool, fault: Any, late: bool) -> None:
    """New or old as the outcome says, no descriptor and no name left; a failed sync is never a success.

    Errors strike the calls that only look as well.  An interrupt after a call that opens loses the descriptor before
    anybody has it, so there is nothing to test.
    """
    among = ALL if isinstance(fault, int) else MUTATING - {"open_tmpfile"}
    number, struck = 1, True
    while struck:
        Path("x").unlink(missing_ok=True)
        if overwrite:
            Path("x").write_text("old")
        before = descriptors()
        kernel = Faulty.at(number, fault if isinstance(fault, int) else fault(), among=among, after=late)
        failure: BaseException | None = None
        with installed(kernel):
            try:
                write(durable=durable, overwrite=overwrite)
            except (OSError, KeyboardInterrupt, SystemExit) as exc:
                failure = exc
        struck = bool(kernel.struck)
        name = kernel.struck[0].name if struck else ""
        content = Path("x").read_text() if Path("x").exists() else None
        published = failure is None or isinstance(failure, errors.DurabilityError) or name == "unlink"
        assert content == ("new" if published else "old" if overwrite else None), (kernel.struck, failure)
        assert not (name == "fsync" and failure is None), kernel.struck
        assert os.listdir() == ([] if content is None else ["x"]), kernel.struck
        assert descriptors() == before, kernel.struck
        number += 1
    assert number > 2


def test_listeners_hear_it_all(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who listens from the start, or only when it is committed or aborted."""
    with caplog.at_level(logging.DEBUG, "atomik"):
        write()
    assert "item.staged" in caplog.text
    caplog.clear()
    output = atomik.file("x", overwrite=True)
    with caplog.at_level(logging.INFO, "atomik"):
        output.commit()
    assert "transaction.committed" in caplog.text
    output = atomik.file("x", overwrite=True)
    with caplog.at_level(logging.INFO, "atomik"):
        output.abort()
    assert "transaction.aborted" in caplog.text


def test_a_child_leaves_it_alone(folder: Path) -> None:
    """Neither a commit nor the end of its block, nor its collection, touches what is the parent's (I11)."""
    output = atomik.file("x")
    output.output.write("1")

    def child() -> list[str]:
        said = []
        for use in (output.commit, output.abort, lambda: output.__exit__(None, None, None)):
            try:
                use()
            except errors.TransactionStateError as exc:
                said.append(str(exc))
        output.__exit__(KeyError, KeyError(), None)
        return said

    said = in_child(child)
    assert len(said) == 3
    assert all("forked child" in text for text in said)
    output.commit()
    assert Path("x").read_text() == "1"


def test_two_threads_commit_once(folder: Path) -> None:
    """One of them gets the receipt, the other an error."""
    for _ in range(50):
        output = atomik.file("x", overwrite=True)
        results: list[object] = []

        def commit(output: atomik.Output[Any] = output, results: list[object] = results) -> None:
            try:
                results.append(output.commit())
            except errors.TransactionStateError as exc:
                results.append(exc)

        threads = [threading.Thread(target=commit) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(isinstance(result, atomik.Receipt) for result in results) == [False, True]
