"""The plan: from what was asked for, and what was found, to the steps that do it.  Pure: nothing here does I/O.

A transaction is a sequence of operations about names, each of which sees what the earlier ones will have done.  `plan` plays
them on a model of the names, and takes the *net* change of each name: where every object that exists now, or is staged,
will be in the end.  From that follow the steps, as chains that share a slot::

    log.1 → log.2, log → log.1, new log      slot(new) ⇄ log, slot ⇄ log.1, slot → log.2
    a → b, where b exists                    a → slot, slot ⇄ b         (what was b stays in the slot, to be deleted)
    a ⇄ b                                    one exchange of two destinations

so no name that will exist in the end is ever missing, except the source of a move.  What nets out to nothing has no step.

Whether a commit needs a journal follows from the steps as data (`needs_journal`).
"""

from __future__ import annotations

import operator

from atomik._protocol.step import Step
from atomik._staging import checks
from atomik._staging.item import Found, Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import NoReturn

    from atomik._folder.place import Place
    from atomik._staging.item import Item


_order = operator.attrgetter("order")


class Refusal(Exception):  # noqa: N818  the plan's answer; the commit makes an error of it
    """An operation cannot be done: ``operation``, and ``reason``: "exists", "missing", "kind" or "backup"."""

    def __init__(self, operation: Operation, place: Place, reason: str, *, folder_there: bool = False) -> None:
        super().__init__(reason)
        self.operation, self.place, self.reason, self.folder_there = operation, place, reason, folder_there


#: operations that change two names, and so are no single step that is atomic by itself, or need both identities
_OF_TWO_NAMES = frozenset({"move", "exchange"})


def may_go_alone(items: Sequence[Item]) -> bool:
    """Whether this is one output for which one step, with nothing to check or undo after it, is enough."""
    if len(items) != 1:
        return False
    item = items[0]
    return (
        item.changes
        and not item.parted
        and item.backup is None
        and item.expectation is None
        and not item.options.allow_gap
        and item.kind not in _OF_TWO_NAMES
        and item.kept is None  # a journal says whether its slot holds what was staged or what was displaced
    )


def needs_journal(steps: Sequence[Step], *, checked_later: bool) -> bool:
    """Whether these steps need a journal with its mark: several, or one that a later check may want undone; `checked_later`
    says that what was displaced is compared after the swap."""
    return len(steps) > 1 or (checked_later and bool(steps)) or any(step.allow_gap for step in steps)


def plan(
    operations: Iterable[Operation], found: Mapping[Place, Found | None], *, separate: bool | None = None
) -> list[Step]:
    """The steps that do what the operations ask for, in order; `found` has what exists at each of their names.

    `separate`: each has a name of its own, and none brings what exists to another name.  A caller that knows this may pass an
    iterator, so that very many operations need not exist at the same time.

    Raises `Refusal`.
    """
    if separate is None:
        operations = list(operations)
        separate = _are_separate(operations, found)
    if separate:
        steps = [_separate(operation, found[operation.place]) for operation in operations]
        steps.sort(key=_order)
        return steps
    operations = list(operations)
    model = _Model(found)
    for number, operation in enumerate(operations):
        model.apply(number, operation)
    return model.steps(operations)


def are_separate(items: Sequence[Item], found: Mapping[Place, Found | None]) -> bool:
    """Whether this is so of the operations of all of these items, as far as can be told without making them."""
    for item in items:
        if item.kind in _OF_TWO_NAMES or item.backup is not None or not item.changes:
            return False
    return len(found) == len(items)


def _are_separate(operations: Sequence[Operation], found: Mapping[Place, Found | None]) -> bool:
    if any(
        operation.op in _OF_TWO_NAMES or (operation.backup is not None and found[operation.place] is not None)
        for operation in operations
    ):
        return False
    return len(operations) == 1 or len({operation.place for operation in operations}) == len(operations)


def _separate(operation: Operation, there: Found | None) -> Step:
    new = operation.new
    if there is None:
        if new is None:
            raise Refusal(operation, operation.place, "missing")
    elif new is not None:
        _refuse_put(operation, there, new)
    return _step(operation, operation.place, operation.slot, new, there, operation.fd)


class _Model:
    """The names as they will be.  Objects are told apart as Python objects, for their identities may not be known."""

    def __init__(self, found: Mapping[Place, Found | None]) -> None:
        self.before = found
        self.now: dict[Place, Found | None] = dict(found)
        #: which operation changed a name last
        self.last: dict[Place, int] = {}
        #: which operation staged an object
        self.staged: dict[int, Operation] = {}

    # --- playing -------------------------------------------------------------------------------------------------
    def apply(self, number: int, operation: Operation) -> None:
        op, place = operation.op, operation.place
        there = self.now[place]
        if op == "put":
            assert operation.new is not None
            self.staged[id(operation.new)] = operation
            self._make_room(number, operation, there, operation.new)
            self._set(place, operation.new, number)
        elif op == "remove":
            if there is None:
                raise Refusal(operation, place, "missing")
            self._set(place, None, number)
        elif op == "move":
            assert operation.other is not None
            source = self.now[operation.other]
            if source is None:
                raise Refusal(operation, operation.other, "missing")
            self._make_room(number, operation, there, source)
            self._set(operation.other, None, number)
            self._set(place, source, number)
        else:
            self._exchange(number, operation)

    def _make_room(self, number: int, operation: Operation, there: Found | None, new: Found) -> None:
        """What exists at the destination is displaced: it is deleted, or gets the backup's name."""
        if there is None:
            return
        _refuse_put(operation, there, new)
        if operation.backup is not None:
            taken = self.now[operation.backup]
            if taken is not None and (taken.kind == "folder") != (there.kind == "folder"):
                raise Refusal(operation, operation.backup, "backup", folder_there=taken.kind == "folder")
            self._set(operation.backup, there, number)

    def _exchange(self, number: int, operation: Operation) -> None:
        assert operation.other is not None
        first, second = self.now[operation.place], self.now[operation.other]
        if first is None or second is None:
            raise Refusal(operation, operation.place if first is None else operation.other, "missing")
        self._set(operation.place, second, number)
        self._set(operation.other, first, number)

    def _set(self, place: Place, new: Found | None, number: int) -> None:
        self.now[place] = new
        self.last[place] = number

    # --- the net change ------------------------------------------------------------------------------------------
    def steps(self, operations: Sequence[Operation]) -> list[Step]:
        """The steps from what was to what will be."""
        chains = list(self._chains(operations))
        chains.sort(key=lambda chain: max(step.order for step in chain))
        return [step for chain in chains for step in chain]

    def _chains(self, operations: Sequence[Operation]) -> Iterable[list[Step]]:
        """Chains that begin at a slot, then what is left: cycles of destinations."""
        homes = {id(old): place for place, old in self.before.items() if old is not None}
        ends = {id(new): place for place, new in self.now.items() if new is not None}
        done: set[Place] = set()
        for place, new in self.now.items():
            old = self.before[place]
            if new is not None and id(new) in homes:
                continue  # it comes from another name, or never left: no beginning
            if old is None and new is None:
                continue
            yield self._chain(operations, place, ends, done)
        for place, new in self.now.items():
            if place not in done and new is not None and self.before[place] is not new:
                yield self._cycle(operations, place, homes, done)

    def _chain(
        self, operations: Sequence[Operation], place: Place, ends: Mapping[int, Place], done: set[Place]
    ) -> list[Step]:
        """Through one slot: it gives what it holds to a name, takes what was there, and gives that to its new name."""
        # A staged object is in the slot of the operation that staged it, whichever brought it here since.
        first = self.staged.get(id(self.now[place])) or operations[self.last[place]]
        slot, fd, steps = first.slot, first.fd, []
        at: Place | None = place
        while at is not None:
            done.add(at)
            operation = operations[self.last.get(at, self.last[place])]
            old = self.before[at]
            steps.append(_step(operation, at, slot, self.now[at], old, fd))
            fd = -1
            at = None if old is None else ends.get(id(old))
        return steps

    def _cycle(
        self, operations: Sequence[Operation], place: Place, homes: Mapping[int, Place], done: set[Place]
    ) -> list[Step]:
        """Objects that change names among themselves: exchanges of two destinations, one fewer than there are names."""
        steps = []
        held = self.before[place]  # what `place` has at this moment
        target = place
        while target not in done:
            done.add(target)
            wanted = self.now[target]
            assert wanted is not None
            source = homes[id(wanted)]
            if source in done:
                break
            operation = operations[self.last[target]]
            steps.append(_step(operation, target, source, wanted, held, op="exchange"))
            target = source  # which has what `target` had
        return steps


def changes(steps: Sequence[Step]) -> dict[Place, tuple[str, Step]]:
    """What the steps do to each name, in their order: the operation as the user knows it, and the step; an exchange changes
    two names.  The plan and the receipt both say this."""
    olds = {step.old for step in steps if step.old is not None}
    found: dict[Place, tuple[str, Step]] = {}
    for step in steps:
        moved = step.op in ("create", "replace") and step.new in olds
        found.setdefault(step.dest, ("move" if moved else step.op, step))
        if step.op == "exchange":
            found.setdefault(step.slot, ("exchange", step))
    return found


def _refuse_put(operation: Operation, there: Found, new: Found) -> None:
    if not operation.overwrite:
        raise Refusal(operation, operation.place, "exists")
    if not operation.any_kind and (there.kind == "folder") != (new.kind == "folder"):
        raise Refusal(operation, operation.place, "kind", folder_there=there.kind == "folder")


def _step(
    operation: Operation, place: Place, slot: Place, new: Found | None, old: Found | None, fd: int = -1, op: str = ""
) -> Step:
    """One step; a folder takes part if either object is one."""
    kind, becomes = ("", None) if new is None else new
    was, before = ("", None) if old is None else old
    if was == "folder" or not kind:
        kind = was
    if not op:
        op = "remove" if new is None else "create" if old is None else "replace"
    return Step(
        op, kind, place, slot, becomes, before, operation.order, operation.allow_gap, operation.overwrite, fd,
    )  # fmt: skip


def refuse(refusal: Refusal) -> NoReturn:
    """Raise the plan's answer as an error of atomik."""
    import errno

    from atomik import errors

    path = str(refusal.place)
    if refusal.reason == "exists":
        checks.refuse_existing(path)
    if refusal.reason == "missing":
        text = "there is nothing to move or remove any more"
        errors.fail(errors.MissingPathError, errno.ENOENT, text, path)
    if refusal.reason == "backup":
        checks.refuse_backup(refusal.place, folder=refusal.folder_there)
    there = "a folder" if refusal.folder_there else "not a folder"
    text = f"cannot replace it: it is {there}; remove it first in the same transaction"
    errors.fail(errors.WrongKindError, errno.EISDIR if refusal.folder_there else errno.ENOTDIR, text, path)
