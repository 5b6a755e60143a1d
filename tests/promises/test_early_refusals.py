"""What a sequence of operations cannot do is refused when it is asked for, with the cure; the transaction stays usable."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atomik
from atomik import errors

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def ground(folder: Path) -> Path:
    for name in ("d", "d/sub", "e"):
        (folder / name).mkdir()
    for name in ("f", "g", "d/x", "e/y"):
        (folder / name).write_text(name)
    return folder


def moved_folder(tx: atomik.Transaction) -> None:
    tx.move("d", "new")
    tx.file("d/x", overwrite=True)


def moved_folder_later(tx: atomik.Transaction) -> None:
    tx.file("d/x", overwrite=True).write("new")
    tx.move("d", "new")


def removed_folder(tx: atomik.Transaction) -> None:
    tx.remove("d")
    tx.file("d/sub/n")


def below_a_folder_that_comes(tx: atomik.Transaction) -> None:
    tx.move("d", "new")
    tx.file("new/n")


def exchange_with_child(tx: atomik.Transaction) -> None:
    tx.exchange("d", "d/sub")


def exchange_child_with_it(tx: atomik.Transaction) -> None:
    tx.exchange("d/sub", "d")


def into_itself(tx: atomik.Transaction) -> None:
    tx.move("d", "d/sub/d")


def exchanged_folder(tx: atomik.Transaction) -> None:
    tx.exchange("d", "e")
    tx.remove("d/x")


def exchange_same(tx: atomik.Transaction) -> None:
    tx.exchange("f", "./f")


def exchange_missing(tx: atomik.Transaction) -> None:
    tx.exchange("f", "missing")


def exchange_removed(tx: atomik.Transaction) -> None:
    tx.remove("f")
    tx.exchange("f", "g")


def moved_twice(tx: atomik.Transaction) -> None:
    tx.move("f", "n")
    tx.move("f", "m")


def taken(tx: atomik.Transaction) -> None:
    tx.file("n").write("1")
    tx.move("f", "n")


def other_kind(tx: atomik.Transaction) -> None:
    tx.move("f", "n")
    tx.folder("n", overwrite=True)


def dropped_nothing(tx: atomik.Transaction) -> None:
    tx.drop("f")


def dropped_with_a_later_one(tx: atomik.Transaction) -> None:
    tx.move("f", "n")
    tx.file("f").write("new")
    tx.drop("n")


REFUSED: dict[Callable[[atomik.Transaction], None], tuple[type[errors.AtomikOSError], str]] = {
    moved_folder: (errors.NestedDestinationError, "in a transaction of its own"),
    moved_folder_later: (errors.NestedDestinationError, "in a transaction of its own"),
    removed_folder: (errors.NestedDestinationError, "staged folder"),
    below_a_folder_that_comes: (errors.NestedDestinationError, "staged folder"),
    exchange_with_child: (errors.NestedDestinationError, "is inside the other"),
    exchange_child_with_it: (errors.NestedDestinationError, "is inside the other"),
    into_itself: (errors.NestedDestinationError, "outside it"),
    exchanged_folder: (errors.NestedDestinationError, "is inside the other"),
    exchange_same: (errors.InvalidDestinationError, "needs two"),
    exchange_missing: (errors.MissingPathError, "both names must exist"),
    exchange_removed: (errors.MissingPathError, "both names must exist"),
    moved_twice: (errors.MissingPathError, "removes it"),
    taken: (errors.DuplicateDestinationError, "overwrite=True"),
    other_kind: (errors.WrongKindError, "remove that first"),
    dropped_nothing: (errors.MissingPathError, "nothing to drop"),
    dropped_with_a_later_one: (errors.DuplicateDestinationError, "drop that first"),
}


@pytest.mark.parametrize("ask", REFUSED)
def test_refused_when_it_is_asked_for(ground: Path, ask: Callable[[atomik.Transaction], None]) -> None:
    """And what was staged before that is committed nevertheless."""
    kind, cure = REFUSED[ask]
    before = sorted(os.walk("."))
    with atomik.transaction() as tx:
        with pytest.raises(kind, match=cure):
            ask(tx)
        tx.abort()
    assert sorted(os.walk(".")) == before
    with atomik.transaction() as tx:
        with pytest.raises(kind):
            ask(tx)
        tx.file("usable").write("still")
    assert Path("usable").read_text() == "still"


def test_drop_takes_the_last_operation_back(ground: Path) -> None:
    """One after the other, from the last; what a name held before is what the next operation sees."""
    with atomik.transaction() as tx:
        tx.move("f", "n")
        tx.file("f").write("new")
        tx.drop("f")
        with pytest.raises(errors.MissingPathError):
            tx.remove("f")
        tx.drop("n")
        assert [change.op for change in tx.plan()] == []
        tx.move("d", "n")
        tx.drop("d")
        (tx.file("d/x", overwrite=True)).write("changed")  # it is not moved any more
        tx.exchange("f", "g")
        tx.drop("g")
        tx.file("f", overwrite=True, backup="f.old").write("1")
        tx.drop("f.old")
        tx.file("f.old").write("free")
    assert Path("d/x").read_text() == "changed"
    assert (Path("f").read_text(), Path("g").read_text(), Path("f.old").read_text()) == ("f", "g", "free")


def test_a_block_that_fails_in_the_middle_of_a_sequence(ground: Path) -> None:
    """What was built on it goes with it, or is refused: never a half of the sequence."""
    with pytest.raises((errors.TransactionStateError, errors.MissingPathError)), atomik.transaction() as tx:
        with pytest.raises(ZeroDivisionError), tx.file("n"):
            tx.move("n", "m")
            raise ZeroDivisionError
        tx.file("n").write("again")
        tx.remove("f")
    assert sorted(path.name for path in ground.iterdir()) == ["d", "e", "f", "g"]


def test_what_nets_out_to_nothing(ground: Path) -> None:
    """It does nothing: the same objects, no journal, and the receipt says so."""
    before = {path.name: path.stat().st_ino for path in ground.iterdir()}
    with atomik.transaction() as tx:
        tx.move("f", "n")
        tx.move("n", "f")
        tx.exchange("d", "e")
        tx.exchange("e", "d")
        tx.file("p").write("1")
        tx.remove("p")
        planned = tx.plan()
    assert {change.op for change in planned} == {"unchanged"}
    assert tx.receipt is not None
    assert {(each.op, each.method, each.replaced, each.backup) for each in tx.receipt.items} == {
        ("unchanged", "", False, None)
    }
    assert {path.name: path.stat().st_ino for path in ground.iterdir()} == before
