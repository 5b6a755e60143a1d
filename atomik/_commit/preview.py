"""What a commit would do now, with nothing locked and nothing changed: the plan, as the user sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from atomik._protocol.step import GAP, LINK, LINKAT, RENAME, RENAMEAT2, Step
from atomik._receipt import PlannedChange
from atomik._staging.item import Found, Item, Operation, kind_of

from . import plan as _plan

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    try:
        steps = _plan.plan([_operation(item) for item in items if item.changes], found)
    except _plan.Refusal as refusal:
        _plan.refuse(refusal)
    changes = _plan.changes(steps)
    changed = [
        PlannedChange(str(place), cast("Op", op), step.kind, step.order, _method(step, alone=alone))
        for place, (op, step) in changes.items()
    ]
    same = [PlannedChange(str(place), "unchanged", "", 0, "") for place in found if place not in changes]
    return (*changed, *same)


def _operation(item: Item) -> Operation:
    """The item's operation, as far as it is known before the commit."""
    if item.kind in ("removal", "move", "exchange"):
        return item.operation(alone=False)
    options = item.options
    return Operation(
        "put", item.place, item.slot or item.place, Found(item.step_kind() or "file", None), getattr(item, "fd", -1), None,
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
