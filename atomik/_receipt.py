"""What a commit did; and the immutable values with named fields that this is made of.

All other values are made with attrs; loading attrs would take half the time of the first commit of a process.
"""

from __future__ import annotations

from .flags import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, NoReturn, Self

    #: what an output is
    Kind = Literal["file", "folder", "path", "symlink", "removal", "move", "copy", "exchange", "expectation"]
    #: what happened to one destination
    Op = Literal["create", "replace", "remove", "exchange", "move", "unchanged"]
    #: how a destination got its new object; "" when nothing was done
    Method = Literal["renameat2", "linkat", "link", "rename", "gap", ""]
    #: which sync calls made a commit durable
    SyncedBy = Literal["fsync", "syncfs", "fsync+syncfs", ""]


class _Attrs(type):
    """Lets `attrs.evolve`, `attrs.asdict` and `attrs.fields` take a class for one of theirs."""

    @property
    def __attrs_attrs__(cls) -> Any:
        import attrs

        return attrs.fields(attrs.make_class(cls.__name__, list(_names(cls))))


def _names(cls: type) -> tuple[str, ...]:
    """Declared by each class for itself, so that type checkers know the names."""
    names: tuple[str, ...] = getattr(cls, "__match_args__", ())
    return names


class Values(metaclass=_Attrs):
    """A base for classes whose ``__match_args__`` name their values, in order; compared, shown and pickled by them."""

    __slots__ = ("__weakref__",)

    def _set(self, *values: object) -> None:
        for name, value in zip(_names(type(self)), values, strict=True):
            object.__setattr__(self, name, value)

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in _names(type(self))])

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, self.__class__) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in _names(type(self)))
        return f"{type(self).__name__}({fields})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__!r} says what was done; nothing of it can be changed")

    def __delattr__(self, name: str) -> NoReturn:
        self.__setattr__(name, None)

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), self._values()


class PlainValues(Values):
    """Those whose values are plain."""

    __slots__ = ()

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return dict(zip(_names(type(self)), self._values(), strict=True))


class ItemReceipt(PlainValues):
    """What happened to one destination; in `Receipt`.

    ``path``: the destination, absolute.
    ``kind``: "file", "folder", "path", "symlink", "removal", "move", "copy", "exchange".
    ``op``: "create", "replace", "remove", "exchange" (of two destinations), "move" or "unchanged".
    ``method``: how it was published ("renameat2", "linkat", "link", "rename", "gap"; "" if nothing was done).
    ``order``: the order given.  ``replaced``: whether something was displaced.
    ``not_preserved``: what could not be kept of the displaced original ("owner", "group", "acl",
    "mode", "xattr NAME").  ``broken_links``: how many other hard links of the displaced original keep the old content.
    ``backup``: the path of the previous version, None if there is none.  ``replaced_link``: whether a symbolic link was
    displaced; its target is as it was (``follow_symlinks=True`` would write to the target).
    ``str()`` gives one line, `as_dict` plain values.
    """

    __module__ = "atomik"

    __slots__ = __match_args__ = (
        "path", "kind", "op", "method", "order", "replaced", "not_preserved", "broken_links", "backup", "replaced_link",
    )  # fmt: skip

    path: str
    kind: Kind
    op: Op
    method: Method
    order: int
    replaced: bool
    not_preserved: tuple[str, ...]
    broken_links: int
    backup: str | None
    replaced_link: bool

    def __init__(
        self, path: str, kind: Kind, op: Op, method: Method, order: int, replaced: bool, not_preserved: tuple[str, ...] = (),
        broken_links: int = 0, backup: str | None = None, replaced_link: bool = False,
    ) -> None:  # fmt: skip
        self._set(
            path, kind, op, method, order, replaced, not_preserved, broken_links, backup, replaced_link
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**super().as_dict(), "not_preserved": list(self.not_preserved)}

    def __str__(self) -> str:
        notes = []
        if self.replaced_link:
            notes.append("replaced a symbolic link")
        if self.backup is not None:
            notes.append(f"previous version: {self.backup}")
        if self.not_preserved:
            notes.append(f"not preserved: {', '.join(self.not_preserved)}")
        if self.broken_links:
            notes.append(f"other hard links that keep the old content: {self.broken_links}")
        return f"{self.op:<9} {self.kind:<7} {self.path}" + (f" ({'; '.join(notes)})" if notes else "")


class PlannedChange(PlainValues):
    """What a commit would do to one name; returned by `Transaction.plan`.

    ``path``: the name, absolute.  ``op``: "create", "replace", "remove", "move" (something that exists elsewhere
    now), "exchange" or "unchanged".  ``kind``: the kind of the new object, or of the removed one.  ``order``: the order
    given. ``method``: how it would be published.  ``str()`` gives one line.
    """

    __module__ = "atomik"

    __slots__ = __match_args__ = ("path", "op", "kind", "order", "method")

    path: str
    op: Op
    kind: str
    order: int
    method: Method

    def __init__(self, path: str, op: Op, kind: str, order: int, method: Method) -> None:
        self._set(path, op, kind, order, method)

    def __str__(self) -> str:
        return f"{self.op:<9} {self.kind:<7} {self.path}"


class Receipt(PlainValues):
    """What a commit did: returned by ``commit()``, kept as ``tx.receipt``.

    ``txid``: the id in log events and names.  ``items``: an `ItemReceipt` for each output, in the order of publishing.
    ``durable``: whether the new versions survive a power cut.  ``synced_by``: "fsync", "syncfs", "fsync+syncfs", or "" if
    nothing was synced.  ``barriers`` and ``sync_calls``: the number of barriers, and of the calls that they took.
    ``duration``: seconds that the commit took; ``visible``: seconds between the first swap and the end of the last.
    ``leftovers``: what could not be cleaned up ("path: reason"); `atomik.recover` will try again.
    ``state``: `State.COMMITTED`, or `State.IN_DOUBT` if the commit raised `DurabilityError`.
    ``str()`` gives a line for each item, for people; `as_dict` plain values.
    """

    __module__ = "atomik"

    __slots__ = __match_args__ = (
        "txid", "items", "durable", "synced_by", "barriers", "sync_calls", "duration", "visible", "leftovers", "state",
    )  # fmt: skip

    txid: str
    items: tuple[ItemReceipt, ...]
    durable: bool
    synced_by: SyncedBy
    barriers: int
    sync_calls: int
    duration: float
    visible: float
    leftovers: tuple[str, ...]
    state: State

    def __init__(
        self, txid: str, items: tuple[ItemReceipt, ...], durable: bool, synced_by: SyncedBy, barriers: int, sync_calls: int,
        duration: float, visible: float, leftovers: tuple[str, ...] = (), state: State = State.COMMITTED,
    ) -> None:  # fmt: skip
        self._set(txid, items, durable, synced_by, barriers, sync_calls, duration, visible, leftovers, state)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        plain = {**super().as_dict(), "state": self.state.value, "leftovers": list(self.leftovers)}
        return {**plain, "items": [item.as_dict() for item in self.items]}

    def __str__(self) -> str:
        durable = f"durable by {self.synced_by or 'nothing to sync'}" if self.durable else "not synced"
        lines = [f"{self.state.value}: {len(self.items)} in {self.duration * 1e3:.1f} ms, {durable}, tx {self.txid}"]
        lines += [f"  {item}" for item in self.items]
        lines += [f"  could not clean up: {leftover}" for leftover in self.leftovers]
        return "\n".join(lines)
