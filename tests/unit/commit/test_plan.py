"""The plan, exhaustively over small worlds: three names, whatever exists at each, every sequence of up to three operations.

The steps are played on a model of names and slots, and compared with a naive interpretation of the operations, one after
the other.  A sample is published and undone on a real disk too.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from atomik._commit.plan import Refusal, needs_journal, plan
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._protocol import publish as _publish
from atomik._protocol.step import Step, Undone
from atomik._protocol.undo import undo
from atomik._staging.item import Found, Operation

NAMES = "abc"
#: What exists at the three names, except for the order of the names: the operations go through all of them.
WORLDS = list(itertools.combinations_with_replacement(("", "file", "folder"), len(NAMES)))

#: Object at each name; an object is (kind, identity).
World = dict[str, Found | None]


@define(frozen=True)
class Op:
    """An operation as the naive interpretation takes it."""

    op: str
    name: str
    other: str = ""
    kind: str = ""
    overwrite: bool = False
    backup: str = ""

    def __str__(self) -> str:
        words = [self.op, self.kind, self.name, self.other, "overwrite" * self.overwrite, self.backup]
        return " ".join(word for word in words if word)


class Refused(Exception):
    """The naive interpretation's refusal: reason and name."""


def build(kinds: tuple[str, ...]) -> World:
    return {
        name: Found(kind, f"old {name}".encode()) if kind else None for name, kind in zip(NAMES, kinds, strict=True)
    }


def made(number: int, op: Op) -> Found:
    """The object that an operation stages."""
    return Found(op.kind, f"new {number}".encode())


def naive(world: World, number: int, op: Op) -> World:  # noqa: C901  one operation after the other
    """Do one operation on the names, as a user would say what it does."""
    there = world[op.name]
    if op.op == "remove":
        if there is None:
            raise Refused("missing", op.name)
        return world | {op.name: None}
    if op.op == "exchange":
        for name in (op.name, op.other):
            if world[name] is None:
                raise Refused("missing", name)
        return world | {op.name: world[op.other], op.other: there}
    new = made(number, op) if op.op == "put" else world[op.other]
    if new is None:
        raise Refused("missing", op.other)
    after = dict(world)
    if there is not None:
        refuse(op, there, new)
        if op.backup:
            taken = world[op.backup]
            if taken is not None and (taken.kind == "folder") != (there.kind == "folder"):
                raise Refused("backup", op.backup)
            after[op.backup] = there
    if op.op == "move":
        after[op.other] = None
    after[op.name] = new
    return after


def refuse(op: Op, there: Found, new: Found) -> None:
    """Nothing is replaced unasked, and a folder only by a folder."""
    if not op.overwrite:
        raise Refused("exists", op.name)
    if (there.kind == "folder") != (new.kind == "folder"):
        raise Refused("kind", op.name)


def every_operation(*, backups: bool = False) -> list[Op]:
    both = (False, True)
    names = list(NAMES)
    puts = [Op("put", n, kind=k, overwrite=o) for n in names for k in ("file", "folder") for o in both]
    removals = [Op("remove", n) for n in names]
    moves = [Op("move", n, m, overwrite=o) for n, m in itertools.permutations(names, 2) for o in both]
    exchanges = [Op("exchange", n, m) for n, m in itertools.permutations(names, 2)]
    kept = [
        Op("put", n, kind=k, overwrite=True, backup=b)
        for n, b in itertools.permutations(names, 2)
        for k in ("file", "folder")
    ]
    return puts + removals + moves + exchanges + kept * backups


def sequences(world: World, most: int, operations: list[Op]) -> Iterator[tuple[list[Op], World | Refused]]:
    """Every sequence of 1 to `most` operations, with what the naive interpretation makes of it.

    None goes on after a refusal, because what comes after it does not matter.
    """
    unfinished: list[tuple[list[Op], World]] = [([], world)]
    while unfinished:
        before, now = unfinished.pop()
        for op in operations:
            done = [*before, op]
            try:
                result = naive(now, len(before), op)
            except Refused as refused:
                yield done, refused
                continue
            yield done, result
            if len(done) < most:
                unfinished.append((done, result))


class Ground:
    """Two folders that exist as words only: one for the names, one for the slots."""

    def __init__(self, label: str) -> None:
        self.label = label

    def child(self, name: str) -> str:
        return f"{self.label}/{name}"

    def __repr__(self) -> str:
        return self.label


HOME: Any = Ground("home")
PRIVATE: Any = Ground("private")


def planned(world: World, ops: list[Op], home: Any = HOME, private: Any = PRIVATE) -> list[Step]:
    """What `plan` says; operations get a slot each."""
    operations = [
        Operation(
            op.op, Place(home, op.name), Place(private, str(number)), made(number, op) if op.op == "put" else None,
            -1, Place(home, op.other) if op.other else None, Place(home, op.backup) if op.backup else None,
            op.overwrite, order=0,
        )
        for number, op in enumerate(ops)
    ]  # fmt: skip
    touched = {name for op in ops for name in (op.name, op.other, op.backup) if name}
    return plan(operations, {Place(home, name): world[name] for name in NAMES if name in touched})


class Disk:
    """Names and slots, each with the identity of what is there."""

    def __init__(self, world: World, ops: list[Op]) -> None:
        self.at: dict[Place, bytes] = {Place(HOME, name): found.identity for name, found in world.items() if found}  # type: ignore[misc]
        for number, op in enumerate(ops):
            if op.op == "put":
                self.at[Place(PRIVATE, str(number))] = f"new {number}".encode()

    def names(self) -> dict[str, bytes]:
        return {place.name: identity for place, identity in self.at.items() if place.directory is HOME}

    def publish(self, step: Step) -> None:
        """The table of `step`, with its conditions."""
        there, held = self.at.get(step.dest), self.at.get(step.slot)
        assert there == step.old, step
        assert held == step.new, step
        assert (step.op == "create") == (there is None), step
        assert (step.op == "remove") == (held is None), step
        self._exchange(step)

    def undo(self, step: Step) -> None:
        assert self.at.get(step.dest) == step.new, step
        assert self.at.get(step.slot) == step.old, step
        self._exchange(step)

    def _exchange(self, step: Step) -> None:
        there, held = self.at.pop(step.dest, None), self.at.pop(step.slot, None)
        if held is not None:
            self.at[step.dest] = held
        if there is not None:
            self.at[step.slot] = there


def identities(world: World) -> dict[str, bytes | None]:
    return {name: found.identity for name, found in world.items() if found is not None}


def check(kinds: tuple[str, ...], ops: list[Op], wanted: World | Refused) -> None:
    """The plan does what the operations say, by steps that are possible, and that any prefix of them can be undone."""
    world = build(kinds)
    if isinstance(wanted, Refused):
        with pytest.raises(Refusal) as refusal:
            planned(world, ops)
        assert (refusal.value.reason, refusal.value.place.name) == wanted.args
        return
    steps = planned(world, ops)
    disk = Disk(world, ops)
    before, beginning, end = disk.names(), dict(disk.at), identities(wanted)
    lasting = before.keys() & end.keys()
    for at, step in enumerate(steps):
        disk.publish(step)
        assert lasting <= disk.names().keys(), "a name that exists before and after was missing in between"
        for done in reversed(steps[: at + 1]):
            disk.undo(done)
        assert disk.at == beginning
        for done in steps[: at + 1]:
            disk.publish(done)
    assert disk.names() == end
    assert not steps or before != end, "what nets out to nothing has steps"


@pytest.mark.sweep
@pytest.mark.parametrize("kinds", WORLDS, ids="-".join)
def test_every_sequence_of_three(kinds: tuple[str, ...]) -> None:
    """Put, remove, move and exchange, with overwriting and without, at all names, as often as they like."""
    count = 0
    for ops, wanted in sequences(build(kinds), 3, every_operation()):
        count += 1
        try:
            check(kinds, ops, wanted)
        except (AssertionError, Refusal) as exc:
            raise AssertionError(f"{'; '.join(map(str, ops))}: {exc}") from exc
    assert count > 1000


@pytest.mark.parametrize("kinds", WORLDS, ids="-".join)
def test_every_pair_with_backups(kinds: tuple[str, ...]) -> None:
    """The previous version goes to a third name, which is free or not, and is used by another operation or not."""
    for ops, wanted in sequences(build(kinds), 2, every_operation(backups=True)):
        if any(op.backup for op in ops):
            try:
                check(kinds, ops, wanted)
            except (AssertionError, Refusal) as exc:
                raise AssertionError(f"{'; '.join(map(str, ops))}: {exc}") from exc


def test_operations_on_names_of_their_own_are_published_in_their_order() -> None:
    """The order is the caller's (``order=``), where nothing forces another."""
    world = build(("file", "file", "file"))
    choices = [[Op("put", n, kind="file", overwrite=True), Op("remove", n)] for n in NAMES]
    for names in itertools.permutations(range(3)):
        for ops in itertools.product(*(choices[at] for at in names)):
            assert [step.dest.name for step in planned(world, list(ops))] == [op.name for op in ops]


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize(("there", "new"), [("file", "folder"), ("folder", "file"), ("folder", "symlink")])
def test_an_entry_of_a_folder_that_stays_may_become_of_another_kind(
    tmp_path: Path, there: str, new: str, others: int
) -> None:
    """In one exchange, in which a folder takes part; every other operation that puts something there is refused."""
    folder = Directory.open(str(tmp_path))
    try:
        place, slot = Place(folder, "a"), Place(folder, "slot")
        operation = Operation("put", place, slot, Found(new, b"new"), overwrite=True)
        beside = [Operation("put", Place(folder, "b"), Place(folder, "slot2"), Found("file", b"b"))] * others
        found = {place: Found(there, b"old"), Place(folder, "b"): None}
        (step, *_) = plan([operation._replace(any_kind=True), *beside], found)
        assert (step.op, step.kind, step.new, step.old) == ("replace", "folder", b"new", b"old")
        with pytest.raises(Refusal, match="kind"):
            plan([operation, *beside], found)
    finally:
        folder.close()


def test_a_move_removes_its_source_first() -> None:
    """Until the target has it, the object is in the slot; a step for each of the two names."""
    steps = planned(build(("file", "file", "")), [Op("move", "b", "a", overwrite=True)])
    assert [(step.op, step.dest.name) for step in steps] == [("remove", "a"), ("replace", "b")]
    assert len({step.slot for step in steps}) == 1


@pytest.mark.parametrize(
    ("ops", "later", "wanted"),
    [([], False, False), (["a"], False, False), (["a"], True, True), (["a", "b"], False, True)],
)
def test_what_needs_a_journal(ops: list[str], later: bool, wanted: bool) -> None:
    """Not one step that is atomic by itself, unless something is checked after it."""
    steps = planned(build(("", "", "")), [Op("put", op, kind="file") for op in ops])
    assert needs_journal(steps, checked_later=later) is wanted


def test_one_step_with_a_gap_needs_a_journal() -> None:
    """Between its two renames the destination is missing, so its death must be undone."""
    (step,) = planned(build(("", "", "")), [Op("put", "a", kind="file")])
    step.allow_gap = True
    assert needs_journal([step], checked_later=False)


# --- on a disk ---------------------------------------------------------------------------------------------------------


def on_disk(folder: Path, kinds: tuple[str, ...], ops: list[Op]) -> tuple[Directory, Directory, list[Step]]:
    """The world and what is staged, as real objects, and the plan with their identities."""
    for place in ("home", "private"):
        (folder / place).mkdir()
    for name, kind in zip(NAMES, kinds, strict=True):
        if kind:
            _make(folder / "home" / name, kind, f"old {name}")
    for number, op in enumerate(ops):
        if op.op == "put":
            _make(folder / "private" / str(number), op.kind, f"new {number}")
    home, private = Directory.open(str(folder / "home")), Directory.open(str(folder / "private"))
    real = {
        _content(Path(str(place))).encode(): place.identity()
        for place in [
            *(Place(home, name) for name in os.listdir(folder / "home")),
            *(Place(private, name) for name in os.listdir(folder / "private")),
        ]
    }
    steps = planned(build(kinds), ops, home, private)
    for step in steps:
        step.new = real[step.new] if step.new else None
        step.old = real[step.old] if step.old else None
    return home, private, steps


def _make(path: Path, kind: str, content: str) -> None:
    if kind == "folder":
        path.mkdir()
        path = path / "content"
    path.write_text(content)


def _content(path: Path) -> str:
    return (path / "content" if path.is_dir() else path).read_text()


def _seen(folder: Path) -> dict[str, str]:
    return {
        f"{place}/{name}": _content(folder / place / name)
        for place in ("home", "private")
        for name in os.listdir(folder / place)
    }


def _sample(count: int) -> list[tuple[tuple[str, ...], list[Op], World]]:
    chance = random.Random(1)
    possible = [
        (kinds, ops, wanted)
        for kinds in WORLDS
        for ops, wanted in sequences(build(kinds), 2, every_operation(backups=True))
        if not isinstance(wanted, Refused)
    ]
    cycles = [
        (kinds, ops, wanted)
        for kinds in [("file",) * 3, ("folder",) * 3]
        for ops in itertools.permutations([Op("exchange", n, m) for n, m in itertools.combinations(NAMES, 2)], 2)
        for wanted in [naive(naive(build(kinds), 0, ops[0]), 1, ops[1])]
    ]
    return chance.sample(possible, count) + [(kinds, list(ops), wanted) for kinds, ops, wanted in cycles]


def test_published_and_undone_on_a_disk(tmp_path: Path) -> None:
    """The real `publish` does it, and the real `undo` brings back any prefix, asked for all steps as recovery does."""
    for number, (kinds, ops, wanted) in enumerate(_sample(150)):
        folder = tmp_path / str(number)
        folder.mkdir()
        home, private, steps = on_disk(folder, kinds, ops)
        try:
            _publish_and_undo(folder, steps, wanted, "; ".join(map(str, ops)))
        finally:
            home.close()
            private.close()


def _publish_and_undo(folder: Path, steps: list[Step], wanted: World, what: str) -> None:
    before = _seen(folder)
    recorded = {identity for step in steps for identity in (step.new, step.old) if identity is not None}
    for done in range(len(steps) + 1):
        for step in steps[:done]:
            _publish.publish(step)
            _publish.check(step)
        if done == len(steps):
            names = {name: found.identity.decode() for name, found in wanted.items() if found and found.identity}
            assert {n.removeprefix("home/"): c for n, c in _seen(folder).items() if n.startswith("home/")} == names, (
                what
            )
        results = [undo(step, recorded) for step in reversed(steps)]
        assert Undone.FOREIGN not in results, (what, done, results)
        assert _seen(folder) == before, (what, done)
        assert {undo(step, recorded) for step in reversed(steps)} <= {Undone.UNTOUCHED}, (what, done)
