"""What a commit did."""

from __future__ import annotations

from typing import Any, Literal

from attrs import asdict, define

#: what an output is
Kind = Literal["file", "folder", "path", "symlink", "removal", "move", "copy", "exchange", "expectation"]
#: what happened to one destination
Op = Literal["create", "replace", "remove", "exchange", "move", "unchanged"]
#: how a destination got its new object; "" when nothing was done
Method = Literal["renameat2", "linkat", "link", "rename", "gap", ""]
#: which sync calls made a commit durable
SyncedBy = Literal["fsync", "syncfs", "fsync+syncfs", ""]


@define(frozen=True)
class ItemReceipt:
    """What happened to one destination; in `Receipt`.

    ``path``: the destination, absolute.
    ``kind``: "file", "folder", "path", "symlink", "removal", "move", "copy", "exchange".
    ``op``: "create", "replace", "remove", "exchange" (of two destinations), "move" or "unchanged".
    ``method``: how it was swapped ("renameat2", "linkat", "link", "rename", "gap"; "" when nothing was).
    ``order``: the order given.  ``replaced``: whether something was displaced.
    ``not_preserved``: names of what could not be carried over from the displaced original ("owner", "group", "acl",
    "mode", "xattr NAME").  ``broken_links``: how many other hard links of the displaced original keep the old content.
    ``backup``: the path at which the previous version stays, None where there is none.
    """

    __module__ = "atomik"

    path: str
    kind: Kind
    op: Op
    method: Method
    order: int
    replaced: bool
    not_preserved: tuple[str, ...] = ()
    broken_links: int = 0
    backup: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything as strings, numbers, booleans, lists and dictionaries, fit for JSON."""
        return {**asdict(self), "not_preserved": list(self.not_preserved)}


@define(frozen=True)
class PlannedChange:
    """What a commit would do to one name; in what `Transaction.plan` returns.

    ``path``: the name, absolute.  ``op``: "create", "replace", "remove", "move" (what comes there exists elsewhere now),
    "exchange" or "unchanged".  ``kind``: of what will be there, or of what goes.  ``order``: the order given.
    ``method``: how it would be swapped.  ``str()`` gives a line.
    """

    __module__ = "atomik"

    path: str
    op: Op
    kind: str
    order: int
    method: Method

    def as_dict(self) -> dict[str, Any]:
        """Everything as strings and numbers, fit for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.op:<9} {self.kind:<7} {self.path}"


@define(frozen=True)
class Receipt:
    """What a commit did: returned by ``commit()``, kept as ``tx.receipt``.

    ``txid``: the id in log events and names.  ``items``: an `ItemReceipt` each, in the order in which they were swapped.
    ``durable``: whether the new versions survive a power cut.  ``synced_by``: "fsync", "syncfs", "fsync+syncfs", or ""
    without any.  ``barriers`` and ``sync_calls``: how many points of durability there were, and how many calls made them.
    ``duration``: seconds that the commit took; ``visible``: seconds between the first swap and the end of the last.
    ``leftovers``: what could not be cleaned up ("path: reason"); `atomik.recover` will try again.
    """

    __module__ = "atomik"

    txid: str
    items: tuple[ItemReceipt, ...]
    durable: bool
    synced_by: SyncedBy
    barriers: int
    sync_calls: int
    duration: float
    visible: float
    leftovers: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Everything as strings, numbers, booleans, lists and dictionaries, fit for JSON."""
        plain = asdict(self, recurse=False)
        return {**plain, "items": [item.as_dict() for item in self.items], "leftovers": list(self.leftovers)}
