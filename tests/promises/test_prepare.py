"""`prepare`: published, durable and still undoable; and who decides about it when the process is dead."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atomik
from atomik import State, errors
from tests.support.state import left_in

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def ground(folder: Path) -> Path:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "f").write_text("old")
    return folder


def stage(tx: atomik.Transaction) -> atomik.Transaction:
    tx.file("a/f").write("new")
    tx.file("b/f").write("new")
    return tx


def texts() -> tuple[str, str]:
    return Path("a/f").read_text(), Path("b/f").read_text()


OLD, NEW = ("old", "old"), ("new", "new")


def begin(coordinator: str = "") -> atomik.Transaction:
    return stage(atomik.transaction(overwrite=True, durable=False, coordinator=coordinator))


def test_states(ground: Path) -> None:
    """Prepared it is published, and nothing more can be staged; then it is committed or undone, once."""
    tx = begin()
    assert tx.state is State.OPEN
    tx.prepare()
    assert (tx.state, tx.receipt, texts()) == (State.SWAPPED, None, NEW)
    for refused in (
        lambda: tx.file("a/g"), lambda: tx.remove("a/f"), lambda: tx.move("a/f", "a/g"), lambda: tx.exchange("a/f", "b/f"),
        lambda: tx.drop("a/f"), lambda: tx.expect("a/f", "any"), tx.prepare, tx.plan,
    ):  # fmt: skip
        with pytest.raises(errors.TransactionStateError, match="prepared"):
            refused()
    assert texts() == NEW
    receipt = tx.commit()
    assert (tx.state, len(receipt.items), texts()) == (State.COMMITTED, 2, NEW)
    for refused in (tx.commit, tx.prepare, tx.abort):
        with pytest.raises(errors.TransactionStateError):
            refused()


def test_abort(ground: Path) -> None:
    tx = begin()
    tx.prepare()
    tx.abort()
    tx.abort()
    assert (tx.state, texts()) == (State.ABORTED, OLD)
    with pytest.raises(errors.TransactionStateError):
        tx.commit()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_block_decides(ground: Path, inside: bool, fails: bool) -> None:
    """The end of a block commits, and an exception undoes, prepared before it or in it."""
    tx = begin()
    if not inside:
        tx.prepare()

    def block() -> None:
        with tx:
            if inside:
                tx.prepare()
            if fails:
                raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            block()
    else:
        block()
    assert texts() == (OLD if fails else NEW)


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_nothing_to_do(ground: Path, end: str) -> None:
    """If nothing was staged, or the net change is nothing, it can still be decided."""
    for staging in (lambda tx: None, lambda tx: (tx.move("a/f", "a/g"), tx.move("a/g", "a/f"))):
        tx = atomik.transaction(durable=False)
        staging(tx)
        tx.prepare()
        getattr(tx, end)()
        assert tx.state is (State.COMMITTED if end == "commit" else State.ABORTED)
        assert texts() == OLD


def test_dropped(ground: Path) -> None:
    """Nobody decided, and the object is gone: undone, with a warning."""
    tx = begin()
    tx.prepare()
    with pytest.warns(ResourceWarning, match="never committed"):
        del tx
    assert texts() == OLD


def test_it_fails(ground: Path) -> None:
    """What cannot be published fails in `prepare`, with everything old, and the transaction is over."""
    tx = begin()
    tx.file("a/g").write("new")
    Path("a/g").write_text("another's")
    tx = stage_again(tx)
    assert (tx.state, texts()) == (State.ABORTED, OLD)
    assert Path("a/g").read_text() == "another's"


def stage_again(tx: atomik.Transaction) -> atomik.Transaction:
    tx.drop("a/g")
    tx.file("a/g", overwrite=False) if not Path("a/g").exists() else None
    with atomik.transaction(durable=False) as other:
        other.remove("a/f")
    with pytest.raises(errors.AtomikError):
        tx.expect("a/f", "sha256:" + "0" * 64)
        tx.prepare()
    tx.abort()
    Path("a/f").write_text("old")
    return tx


def test_the_folders_are_locked(ground: Path) -> None:
    """Until it is decided no other transaction and no reader comes in; a thread that waits goes on then."""
    tx = begin()
    tx.prepare()
    for folder in ("a", "b"):
        with pytest.raises(errors.AtomikError), atomik.reading(folder, lock_timeout=0.05):
            pass
    found: list[str] = []

    def later() -> None:
        with atomik.reading("a", lock_timeout=30):
            found.append(Path("a/f").read_text())

    thread = threading.Thread(target=later)
    thread.start()
    tx.abort()
    thread.join()
    assert found == ["old"]


def test_a_forked_child_cannot_decide(ground: Path) -> None:
    tx = begin()
    tx.prepare()
    child = os.fork()
    if not child:
        code = 0
        for end in (tx.commit, tx.abort):
            try:
                end()
            except errors.TransactionStateError:
                continue
            code = 1
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert texts() == NEW
    tx.abort()
    assert texts() == OLD


# --- the process is dead ------------------------------------------------------------------------------------------------
def dies(coordinator: str) -> str:
    """A process that prepares and dies; its transaction's id."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            tx = begin(coordinator)
            tx.prepare()
            os.write(writer, tx.txid.encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    txid = os.read(reader, 100).decode()
    os.close(reader)
    assert texts() == NEW
    return txid


def writes() -> None:
    with atomik.transaction(durable=False, lock_timeout=5) as tx:
        tx.file("a/g").write("another")
    Path("a/g").unlink()


def writes_two() -> None:
    with atomik.transaction(durable=False, lock_timeout=5) as tx:
        tx.file("b/g").write("another")
        tx.file("b/h").write("another")
    Path("b/g").unlink()
    Path("b/h").unlink()


def reads() -> None:
    with atomik.reading("b", lock_timeout=5):
        assert texts()[1] == "old"


def recovers() -> None:
    atomik.recover("a", lock_timeout=5)


@pytest.mark.parametrize("next_one", [writes, writes_two, reads, recovers])
def test_without_a_coordinator_it_is_undone(ground: Path, next_one: Callable[[], None]) -> None:
    dies("")
    next_one()
    atomik.recover("a", "b")
    assert texts() == OLD


@pytest.mark.parametrize("answer", [True, False])
def test_a_coordinator_decides(ground: Path, answer: bool) -> None:
    """Nothing touches it before; not the next writer or reader either, and the error says whom to ask."""
    txid = dies("the database")
    for next_one in (writes, writes_two, reads, recovers):
        with pytest.raises(errors.UndecidedError, match="the database") as undecided:
            next_one()
        again = pickle.loads(pickle.dumps(undecided.value))
        assert (again.txid, again.coordinator) == (txid, "the database")
    assert texts() == NEW
    (found,) = (item for item in atomik.recover("a", dry_run=True).items if item.action == "prepared")
    assert found.txid == txid
    asked: list[tuple[str, str]] = []

    def decide(*about: str) -> bool:
        asked.append(about)  # type: ignore[arg-type]
        return answer

    atomik.recover("b", decide=decide)
    assert asked == [(txid, "the database")]
    assert texts() == (NEW if answer else OLD)
    atomik.recover("a", "b")  # of nobody any more
    assert not left_in(ground)


def test_a_decision_that_fails(ground: Path) -> None:
    """The database does not answer: the exception goes on, and nothing is touched."""
    dies("db")

    def decide(txid: str, coordinator: str) -> bool:
        raise ConnectionError("no answer")

    with pytest.raises(ConnectionError, match="no answer"):
        atomik.recover("a", decide=decide)
    with pytest.raises(TypeError, match="True"):
        atomik.recover("a", decide=lambda txid, coordinator: None)  # type: ignore[arg-type,return-value]
    assert texts() == NEW
    atomik.recover("a", "b", decide=lambda txid, coordinator: False)
    assert texts() == OLD


def test_a_yes_to_what_was_never_prepared(ground: Path) -> None:
    """A coordinator that says yes to what was never prepared is refused, and no half is published."""
    from tests.crash.deaths import die

    seen = set()
    for number in range(1, 200):
        point = die(lambda: (tx := begin("db")).prepare() or tx.abort(), number, "before")  # type: ignore[func-returns-value]
        if point.returned:
            break
        try:
            atomik.recover("a", "b", decide=lambda txid, coordinator: True)
            seen.add(texts())
        except errors.RollbackError:
            atomik.recover("a", "b", decide=lambda txid, coordinator: False)
            assert texts() == OLD, point
        assert texts() in (OLD, NEW), point
        assert not left_in(ground), point
        for name in ("a", "b"):
            (ground / name / "f").write_text("old")
    assert NEW in seen


def test_a_coordinator_alone_at_commit(ground: Path) -> None:
    """Without `prepare`, a coordinator's transaction commits as any other."""
    with begin("db") as tx:
        pass
    assert (tx.state, texts()) == (State.COMMITTED, NEW)
    for name in ("x" * 256, "ä" * 128):
        with pytest.raises(ValueError, match="255"):
            atomik.transaction(coordinator=name)
