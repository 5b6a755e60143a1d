"""Rules that are not barriers, taken out of the library's code; each scenario then ends in what the rule is there to prevent.

A scenario works in a folder and raises AssertionError when the promise is broken.  `test_rules` runs each twice: as the
library is, where it must hold, and with its ``spoil``, where it must not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define

import atomik
from atomik._commit import commit
from atomik._folder.place import rename, rename_back
from atomik._protocol import journal
from atomik._protocol import undo as _undo
from atomik._protocol.locks import lock_all
from atomik._protocol.step import Step, Undone
from atomik._recovery import reading, takeover
from atomik._system import kernel
from tests.powercut import tape
from tests.powercut.histories import Exchange, Operation, Phase, Write, look, plant
from tests.powercut.strict import StrictDisk
from tests.powercut.workloads import NAMED
from tests.support.kernels import Acting, installed
from tests.support.state import in_child

OLD = {"a": None, "a/f": b"old f", "b": None, "b/g": b"old g"}
TWO: tuple[Operation, ...] = (Write("a/f", b"new f"), Write("b/g", b"new g"))


@define
class Replay:
    """``spoil(patch)`` takes the rule out of the code; ``scenario(folder)`` shows that it is missed."""

    spoil: Callable[[pytest.MonkeyPatch], None]
    scenario: Callable[[Path], None]


def _both(*folders: Path) -> None:
    atomik.recover(*folders, lock_timeout=5)


def _stranger(path: Path, before: int) -> contextlib.AbstractContextManager[Acting]:
    """Someone replaces `path` right before the rename of this number."""
    theirs = path.parent / "theirs"
    theirs.write_bytes(b"a stranger's")
    acting = Acting("rename", lambda _: os.replace(theirs, path))
    acting.when = lambda call: call.number == before
    return installed(acting)


def _killed_with_stranger(root: Path, ops: tuple[Operation, ...], path: str) -> None:
    """A stranger's object comes between check and swap, and we die right after the swap."""

    def publish_it() -> None:
        with _stranger(root / path, 1):
            Phase(ops, durable=False).perform(root)

    assert tape.killed(publish_it, "rename", 1)


# --- I1: the journal has a name in every folder ------------------------------------------------------------------------
def _journal_in_one(patch: pytest.MonkeyPatch) -> None:
    """In the one whose path comes first: the order of the locks is another one in every folder."""
    create = journal.create

    def in_one(live: Any, encode: Any, private: list[Any], parents: list[Any]) -> None:
        one = min(parents, key=lambda parent: parent.path)
        create(live, encode, [made for made in private if made.parent is one], [one])

    patch.setattr(journal, "create", in_one)


def _from_either_folder(root: Path) -> None:
    for number, folder in enumerate("ab"):
        place = root / str(number)
        place.mkdir()
        plant(place, dict(OLD))  # type: ignore[arg-type]
        assert tape.killed(lambda place=place: Phase(TWO, durable=False).perform(place), "rename", 1)  # type: ignore[misc]
        _both(place / folder)
        assert [look(place)[name] for name in ("a/f", "b/g")] == [b"old f", b"old g"]


# --- I3: recovery makes an outcome durable that it finds ---------------------------------------------------------------
def _trust_outcome(patch: pytest.MonkeyPatch) -> None:
    end = takeover.DeadTransaction._end

    def trusting(self: takeover.DeadTransaction, outcome: int) -> None:
        if self.content.outcome is None:
            end(self, outcome)

    patch.setattr(takeover.DeadTransaction, "_end", trusting)


def _died_behind_the_record(root: Path) -> None:
    history = NAMED["rollback:3"]
    plant(root, history.tree)
    assert tape.killed(lambda: history.phases[0].perform(root, tape.saboteur(3)), "pwrite", 2)
    disk = StrictDisk(recovering=True)
    with installed(disk):
        tape.recover(history, root)
    disk.returned()
    assert disk.broken == []


# --- I5: steps are undone in reverse -----------------------------------------------------------------------------------
def _undo_forward(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(takeover, "reversed", list, raising=False)


def _died_behind_the_second_swap(root: Path) -> None:
    old = {"a": None, "a/f": b"old f"}
    plant(root, old)  # type: ignore[arg-type]
    phase = Phase((Write("a/f", b"new f", backup="f.before"),), durable=False)
    assert tape.killed(lambda: phase.perform(root), "rename", 2)
    _both(root / "a")
    assert look(root) == old


# --- I4: identities ----------------------------------------------------------------------------------------------------
def _blind(step: Step, recorded: Any = ()) -> Undone:
    if step.op == "create":
        rename(step.dest, step.slot, 0)
    elif step.op == "replace":
        rename(step.dest, step.slot, kernel.EXCHANGE)
    return Undone.UNDONE


def _no_identity(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(takeover, "undo", _blind)


def _stranger_after_the_swap(root: Path) -> None:
    plant(root, dict(OLD))  # type: ignore[arg-type]
    phase = Phase((Write("a/n", b"new n"), Write("b/g", b"new g")), durable=False)
    assert tape.killed(lambda: phase.perform(root), "rename", 2)
    (root / "theirs").write_bytes(b"a stranger's")
    os.replace(root / "theirs", root / "a/n")
    _both(root / "a", root / "b")
    assert (root / "a/n").read_bytes() == b"a stranger's"


def _no_check(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commit, "check", lambda step: None)


def _stranger_before_the_swap(root: Path) -> None:
    plant(root, dict(OLD))  # type: ignore[arg-type]
    with contextlib.suppress(atomik.errors.ConflictError), _stranger(root / "a/f", 1):
        Phase(TWO, durable=False).perform(root)
    assert (root / "a/f").read_bytes() == b"a stranger's"


def _no_return(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_undo, "give_back", lambda step: None)


def _stranger_before_the_swap_and_death(root: Path) -> None:
    plant(root, dict(OLD))  # type: ignore[arg-type]
    _killed_with_stranger(root, TWO, "a/f")
    _both(root / "a", root / "b")
    assert (root / "a/f").read_bytes() == b"a stranger's"


def _create_returns(patch: pytest.MonkeyPatch) -> None:
    undo = _undo.undo

    def mistaken(step: Step, recorded: Any = ()) -> Undone:
        if (
            step.op == "create"
            and step.dest.identity() is None
            and step.slot.identity() not in (None, step.new, *recorded)
        ):
            rename_back(step.slot, step.dest, folder=False)
            return Undone.FOREIGN
        return undo(step, recorded)

    patch.setattr(takeover, "undo", mistaken)


def _stranger_in_a_shared_slot(root: Path) -> None:
    plant(root, {"a": None, "a/f": b"old f"})
    _killed_with_stranger(root, (Write("a/f", b"new f", backup="f.before"),), "a/f")
    _both(root / "a")
    assert look(root) == {"a": None, "a/f": b"a stranger's"}


def _never_prepared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(takeover.DeadTransaction, "never_prepared", lambda self: False)


def _another_transaction_meanwhile(root: Path) -> None:
    """We die with the journal in one of two folders; another program does in the other one what we were about to do."""
    plant(root, {"a": None, "a/x": b"x", "a/y": b"y", "b": None, "b/x": b"x", "b/y": b"y"})
    phase = Phase((Exchange("a/x", "a/y"), Exchange("b/x", "b/y")), durable=False)
    at = 1
    while True:
        assert tape.killed(lambda: phase.perform(root), "link", at)
        named = [name for name in "ab" if (root / name / ".atomik-journal").exists()]
        if len(named) == 1:
            break
        _both(root / "a", root / "b")
        at += 1
    other = "b" if named == ["a"] else "a"
    Phase((Exchange(f"{other}/x", f"{other}/y"), Write(f"{other}/n", b"n")), durable=False).perform(root)
    _both(root / named[0])
    assert (root / other / "x").read_bytes() == b"y"


# --- I3: originals -----------------------------------------------------------------------------------------------------
def _no_stranded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(takeover.DeadTransaction, "_stranded", lambda self, steps: [])


def _original_that_cannot_go_back(root: Path) -> None:
    plant(root, dict(OLD))  # type: ignore[arg-type]
    assert tape.killed(lambda: Phase(TWO, durable=False).perform(root), "rename", 2)
    (root / "theirs").write_bytes(b"a stranger's")
    os.replace(root / "theirs", root / "a/f")
    _both(root / "a", root / "b")
    assert b"old f" in look(root).values()
    atomik.recover(root / "a", root / "b", discard=True)


# --- I8: locks ---------------------------------------------------------------------------------------------------------
def _no_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commit, "lock_all", lambda directories, timeout: None)


def _reader_is_at_work(root: Path) -> None:
    plant(root, dict(OLD))  # type: ignore[arg-type]
    with atomik.reading(root / "a", root / "b"):
        assert in_child(_commit_meanwhile, root) == "it waits"


def _commit_meanwhile(root: Path) -> str:
    try:
        with atomik.transaction(overwrite=True, durable=False, lock_timeout=0.05) as tx:
            for op in TWO:
                op.stage(tx, root)
    except atomik.errors.LockTimeoutError:
        return "it waits"
    return "it did not wait"


def _no_hot(patch: pytest.MonkeyPatch) -> None:
    def careless(*arguments: Any, **keywords: Any) -> None:
        with patch.context() as inner:
            inner.setattr("atomik._protocol.locks.JOURNAL_NAME", ".no such name")
            lock_all(*arguments, **keywords)

    patch.setattr(reading, "lock_all", careless)


def _half_of_a_dead_one(root: Path) -> None:
    plant(root, dict(OLD))  # type: ignore[arg-type]
    assert tape.killed(lambda: Phase(TWO, durable=False).perform(root), "rename", 1)
    try:
        with atomik.reading(root / "a", root / "b"):
            seen = [(root / name).read_bytes() for name in ("a/f", "b/g")]
    finally:
        _both(root / "a", root / "b")
    assert seen == [b"old f", b"old g"]


def _all() -> Iterator[tuple[str, Replay]]:
    yield "journal_in_one", Replay(_journal_in_one, _from_either_folder)
    yield "trust_outcome", Replay(_trust_outcome, _died_behind_the_record)
    yield "undo_forward", Replay(_undo_forward, _died_behind_the_second_swap)
    yield "no_identity", Replay(_no_identity, _stranger_after_the_swap)
    yield "no_check", Replay(_no_check, _stranger_before_the_swap)
    yield "no_return", Replay(_no_return, _stranger_before_the_swap_and_death)
    yield "no_stranded", Replay(_no_stranded, _original_that_cannot_go_back)
    yield "no_lock", Replay(_no_lock, _reader_is_at_work)
    yield "no_hot", Replay(_no_hot, _half_of_a_dead_one)
    yield "never_prepared", Replay(_never_prepared, _another_transaction_meanwhile)
    yield "create_returns", Replay(_create_returns, _stranger_in_a_shared_slot)


REPLAYS: dict[str, Replay] = dict(_all())
