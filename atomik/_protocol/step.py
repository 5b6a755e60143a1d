"""One change of one name: the unit of a commit, of the journal, and of an undo.

A `Step` is one change of one name.  Before it, the slot holds the new object (nothing, for a removal); after it, the
destination holds the new object and the slot the displaced original::

    op        before: dest, slot     after: dest, slot      first method
    create    –      new             new    –               renameat2 NOREPLACE
    replace   old    new             new    old             renameat2 EXCHANGE
    remove    old    –               –      old             renameat2 NOREPLACE

Larger wishes are chains of steps that share a slot: a move is *remove* the source, then *create* (or *replace*) the
target out of the same slot; keeping the previous version is *replace*, then *create* its new name.
"""

from __future__ import annotations

from enum import Enum

from attrs import define

from atomik._folder.place import NO_FLAG as NO_FLAG  # noqa: PLC0414  for modules that are being rewritten
from atomik._folder.place import Place, rename_back
from atomik._folder.place import link as link  # noqa: PLC0414
from atomik._folder.place import remove_empty as remove_empty  # noqa: PLC0414
from atomik._system import kernel

put = rename_back  # for modules that are being rewritten

RENAMEAT2 = "renameat2"
LINKAT = "linkat"
LINK = "link"
RENAME = "rename"
GAP = "weaker"


class Undone(Enum):
    """What `undo` found."""

    UNTOUCHED = "untouched"  # the destination holds the original already
    UNDONE = "undone"  # it was brought back
    FOREIGN = "foreign"  # somebody else's object is there; it stays


@define
class Step:
    """One change of one name.  ``new`` and ``old`` are identities, None where there is nothing."""

    op: str
    kind: str
    dest: Place
    slot: Place
    new: bytes | None
    old: bytes | None = None
    order: int = 0
    method: str = ""
    allow_gap: bool = False
    #: the only step of its transaction: nothing after it can fail and want it undone
    alone: bool = False
    #: the mode that the new folder gets right before its swap, where its slot is no private place
    mode: int | None = None
    #: whoever asked would not mind that something stands there
    overwriting: bool = False

    @property
    def folder(self) -> bool:
        """Whether a folder takes part, so that hard links are no way."""
        return self.kind == "folder"

    def twin(self, suffix: str) -> Place:
        """A second private name beside the slot, for the methods and undos that need one."""
        return Place(self.slot.directory, f"{self.slot.name}-{suffix}")

    def slots(self) -> tuple[Place, ...]:
        """Every private name that this step may have left something at."""
        return self.slot, self.twin("old"), self.twin("new")


def same_kind(mode: int, kind: str) -> bool:
    """Whether an existing object may be replaced by one of `kind`: a folder by a folder, else by no folder."""
    return kernel.is_folder(mode) == (kind == "folder")
