"""One change of one name: the unit of a commit, of the journal, and of an undo.

Before a `Step` the slot holds the new object (nothing, for a removal); after it the destination holds the new object and
the slot holds the displaced original::

    op        before: dest, slot     after: dest, slot      method tried first
    create    –      new             new    –               renameat2 NOREPLACE (linkat for a file without a name)
    replace   old    new             new    old             renameat2 EXCHANGE
    remove    old    –               –      old             renameat2 NOREPLACE
    exchange  old    new             new    old             renameat2 EXCHANGE, where the slot is a destination as well

Larger changes are chains of steps that share a slot: a move is *remove* the source, then *create* (or *replace*) the
target out of the same slot; keeping the previous version is *replace*, then *create* under its new name.
"""

from __future__ import annotations

import itertools
from enum import Enum

from atomik._folder.place import Place
from atomik._hidden_names import twin_name
from atomik._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from atomik._receipt import Method

RENAMEAT2: Final = "renameat2"
LINKAT: Final = "linkat"
LINK: Final = "link"
RENAME: Final = "rename"
GAP: Final = "gap"


class Undone(Enum):
    """What `undo` found."""

    UNTOUCHED = "untouched"  # the destination holds the original already
    UNDONE = "undone"  # it was brought back
    FOREIGN = "foreign"  # another program's object is there; it is kept


class Step:
    """One change of one name.

    ``op``, ``kind``, ``dest``, ``slot`` and ``order`` as in the journal; ``new`` and ``old`` are identities, None where
    there is nothing, or where one step alone does not need them.  ``fd`` is the new file where it has no name yet.
    ``overwriting``: the caller would not mind that something exists there.  ``alone``: the only step of its commit, so
    nothing after it can fail and want it undone.
    """

    __slots__ = (
        "allow_gap", "alone", "dest", "fd", "kind", "method", "new", "old", "op", "order", "overwriting", "slot",
    )  # fmt: skip

    def __init__(
        self, op: str, kind: str, dest: Place, slot: Place, new: bytes | None, old: bytes | None = None, order: int = 0,
        allow_gap: bool = False, overwriting: bool = False, fd: int = -1,
    ) -> None:  # fmt: skip
        self.op, self.kind, self.dest, self.slot = op, kind, dest, slot
        self.new, self.old, self.order = new, old, order
        self.allow_gap, self.overwriting, self.fd = allow_gap, overwriting, fd
        self.method, self.alone = "", False

    method: Method
    alone: bool

    def __repr__(self) -> str:
        return f"<Step {self.op} {self.dest}>"

    @property
    def folder(self) -> bool:
        """Whether a folder takes part, so that hard links cannot serve."""
        return self.kind == "folder"

    def twin(self, suffix: str) -> Place:
        """A second private name next to the slot, for the methods and undos that need one."""
        return Place(self.slot.directory, twin_name(self.slot.name, suffix))

    def slots(self) -> tuple[Place, ...]:
        """Every private name at which this step may have left something.  Both names of an exchange are destinations, which
        must not be deleted (I6)."""
        return () if self.op == "exchange" else (self.slot, self.twin("old"), self.twin("new"))

    def twins(self) -> Iterator[Place]:
        """Private names next to the slot, as many as needed, for what is moved away from the destination."""
        return map(self.twin, itertools.chain(("new",), map("new{}".format, itertools.count(1))))


def same_kind(mode: int, kind: str) -> bool:
    """Whether an existing object may be replaced by one of `kind`: a folder by a folder, else by no folder."""
    return kernel.is_folder(mode) == (kind == "folder")
