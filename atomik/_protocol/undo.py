"""Undo: take one step back, however much of it was done.

It looks at identities and nothing else, so it is the same in rollback and in recovery, and may be repeated (I5).  What is
neither the recorded new nor the recorded old object is *foreign* and stays (I4).
"""

from __future__ import annotations

from atomik._folder.place import NO_FLAG, remove_empty, rename, rename_back
from atomik._system import kernel

from .step import Step, Undone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container


def undo(step: Step, recorded: Container[bytes] = ()) -> Undone:
    """Take one step back, however much of it was done; idempotent, by identity only (I4, I5).

    `recorded`: the identities of all objects that the transaction knows, for steps may share a slot.
    Raises OSError when the kernel refuses; the state is then as before, or undone.
    """
    now = step.dest.identity()
    if step.op == "create":
        return _undo_create(step, now)
    held = step.slot.identity()
    if now == step.new and held not in (None, step.new, step.old) and held not in recorded:
        give_back(step)  # we displaced what came there between check and swap, and were stopped before it was put back
        return Undone.FOREIGN
    if now == step.old:
        return Undone.UNTOUCHED
    if now is None and step.op == "replace" and step.old is not None and step.twin("old").identity() == step.old:
        rename_back(step.twin("old"), step.dest, folder=step.folder)  # the method with a gap, between its renames
        return Undone.UNDONE
    if now != step.new:
        if step.op == "exchange" and now in recorded:
            return Undone.UNTOUCHED  # in a cycle the destination has what another step brings or brought
        return Undone.FOREIGN
    if step.op == "remove":
        return _undo_remove(step)
    return _undo_replace(step)


def _undo_create(step: Step, now: bytes | None) -> Undone:
    if now is None:
        return _return_moved(step)
    if now != step.new:
        if step.allow_gap and step.folder and remove_empty(step.dest):
            return Undone.UNDONE  # the empty folder of the method with a gap
        return Undone.FOREIGN
    # Move it away first and check afterwards: what another program published between check and rename is put back.
    # Not into the slot: another program's object in the slot was displaced by an earlier step that shares it.
    # To a free name: a rename onto another name of the same inode would do nothing, and the method link killed between
    # link and unlink leaves one, and so does a btrfs whose folders were synced apart, of an earlier recovery as well.
    away = next(place for place in step.twins() if place.identity() is None)
    try:
        rename(step.dest, away, 0)
    except FileNotFoundError as exc:
        if kernel.errno_of(exc) is None or step.dest.identity() is not None:
            raise
        return Undone.UNTOUCHED
    return _return_moved(step)


def _return_moved(step: Step) -> Undone:
    """What `_undo_create` moved away, perhaps before it was stopped: ours goes to the slot, another program's back."""
    result = Undone.UNTOUCHED
    for away in step.twins():
        moved = away.identity()
        if moved is None:
            return result
        if moved != step.new:
            rename_back(away, step.dest, folder=step.folder)
            return Undone.FOREIGN
        if step.slot.identity() is None:
            rename(away, step.slot, 0)
        result = Undone.UNDONE
    raise AssertionError  # `Step.twins` never ends


def _undo_remove(step: Step) -> Undone:
    if step.slot.identity() != step.old:
        return Undone.FOREIGN  # it was not this transaction that moved it away
    try:
        rename_back(step.slot, step.dest, folder=step.folder)
    except FileExistsError as exc:
        if kernel.errno_of(exc) is None or step.dest.identity() in (None, step.old):
            raise
        return Undone.FOREIGN
    return Undone.UNDONE


def _undo_replace(step: Step) -> Undone:
    candidates = (step.slot,) if step.op == "exchange" else step.slots()[:2]
    held = next((place for place in candidates if place.identity() == step.old), None)
    if held is None or step.old is None:
        return Undone.FOREIGN
    if step.dest.directory.fs.exchange is not False:
        try:
            # The new object goes first: it was made in the slot's folder, so nothing keeps it from returning there (an XFS
            # project id is checked for the first one alone), and the last event is MOVED_TO of the destination (P10).
            rename(step.dest, held, kernel.EXCHANGE)
        except OSError as exc:
            if kernel.errno_of(exc) not in NO_FLAG or step.dest.identity() == step.old:
                raise
            step.dest.directory.fs.exchange = False
        else:
            if held.identity() == step.new:
                return Undone.UNDONE
            rename(step.dest, held, kernel.EXCHANGE)  # a stranger's: back to where it was
            return Undone.FOREIGN
    if step.folder:
        rename(step.dest, step.twin("new"), 0)
    rename(held, step.dest, 0)
    return Undone.UNDONE


def give_back(step: Step) -> None:
    """Undo a step that displaced a foreign object, so that the object returns."""
    foreign = Step(step.op, step.kind, step.dest, step.slot, step.new, step.slot.identity(), allow_gap=step.allow_gap)
    undo(foreign)
