"""What a commit would do now, with nothing locked and nothing changed: the plan, as the user sees it."""

from __future__ import annotations

from atomik._protocol.step import GAP, LINK, LINKAT, RENAME, RENAMEAT2, Step
from atomik._receipt import PlannedChange
from atomik._staging.item import SEALED, Found, Item, Operation, kind_of
from atomik._typing import cast

from . import plan as _plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from atomik._folder.place import Place
    from atomik._receipt import Method, Op


def preview(items: Sequence[Item], *, undecided: bool) -> tuple[PlannedChange, ...]:
    """A `PlannedChange` for each name that the operations of `items` are about, in the order of the steps; `undecided`: a
    coordinator decides the outcome."""
    found: dict[Place, Found | None] = {}
    alone = not undecided and _plan.may_go_alone(items)
    items = [part for item in items for part in item.parts(locked=False)]
    for item in items:
        for place in (*item.places(), item.backup_place):
            if place is not None and place not in found:
                there = place.status()
                # A number instead of the identity: it distinguishes what exists now from what is staged.
                found[place] = None if there is None else Found(kind_of(there.mode), b"%d" % len(found))
    operations = [_operation(item, found[item.place], len(found) + n) for n, item in enumerate(items) if _changes(item)]
    try:
        steps = _plan.plan(operations, found)
    except _plan.Refusal as refusal:
        _plan.refuse(refusal)
    kinds = _kinds(steps, operations, found)
    changes = _plan.changes(steps)
    changed = [
        PlannedChange(str(place), cast("Op", op), kinds[place], step.order, _method(step, alone=alone))
        for place, (op, step) in changes.items()
    ]
    same = [
        PlannedChange(str(place), "unchanged", "" if there is None else there.kind, 0, "")
        for place, there in found.items()
        if place not in changes
    ]
    return (*changed, *same)


def _changes(item: Item) -> bool:
    """Whether the item would change a name, as far as that is known before the commit; checks its destination."""
    if item.options.if_changed and item.state is SEALED and item.would_change_nothing():
        return False
    if not item.follows:
        item.look()
    return item.changes


def _kinds(
    steps: Sequence[Step], operations: Sequence[Operation], found: Mapping[Place, Found | None]
) -> dict[Place, str]:
    """The kind of what each name that changes will have, or of what it had."""
    objects = [each for each in (*found.values(), *(operation.new for operation in operations)) if each is not None]
    kinds = {each.identity: each.kind for each in objects}
    ends: dict[Place, str] = {}
    for step in steps:
        ends[step.dest] = kinds[step.new or step.old]
        if step.op == "exchange":
            ends[step.slot] = kinds[step.old]
    return ends


def _operation(item: Item, there: Found | None, number: int) -> Operation:
    """The item's operation, as far as it is known before the commit; `number` is its identity.  If nothing is written yet, it
    has the kind of what is `there`."""
    if item.kind in ("removal", "move", "exchange"):
        return item.operation(alone=False)
    options = item.options
    kind = item.step_kind() or ("file" if there is None else there.kind)
    return Operation(
        "put", item.place, item.slot or item.place, Found(kind, b"%d" % number), getattr(item, "fd", -1), None,
        item.backup_place, options.overwrite, options.allow_gap, item.order, item.any_kind,
    )  # fmt: skip


def _method(step: Step, *, alone: bool) -> Method:
    fs = step.dest.directory.fs
    if step.op == "create" and alone and step.fd >= 0:
        return LINKAT
    native = fs.exchange if step.op in ("replace", "exchange") else fs.noreplace
    if native is not False:
        return RENAMEAT2
    if step.op == "remove" or (not step.folder and fs.links is not False):
        return LINK
    return GAP if step.allow_gap or step.folder else RENAME
