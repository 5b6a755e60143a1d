"""The rules between the destinations of one transaction: none inside another, all on one filesystem; and what the operations
so far leave at each name, because each operation sees the result of the earlier ones.

Folders are identified by identity and mount, never by path, so two spellings of one folder, or a parent reached through
a link, are seen.  Not thread-safe by itself: the transaction holds its lock.
"""

from __future__ import annotations

import errno

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from atomik._system.libc import Status

    from .item import Item

_Key = tuple[int, int, int]


#: no operation of the transaction has changed the name so far
UNTOUCHED = "untouched"


class Entry:
    """What one operation leaves at a name.

    ``leaves``: a kind ("" for one that nobody knows yet), or None for nothing.  ``origin``: what that is: the item that
    staged it, or the name at which it exists now; None for nothing.  ``displaces``: the folder that it displaces there.
    ``below``: what an earlier operation left there.
    """

    __slots__ = ("_leaves", "below", "displaces", "item", "origin")

    def __init__(
        self, item: Item, leaves: str | None, origin: Item | Place | None, displaces: tuple[int, int] | None = None
    ) -> None:
        self.item, self._leaves, self.origin, self.displaces = item, leaves, origin, displaces
        self.below: Entry | None = None

    @property
    def leaves(self) -> str | None:
        known = self._leaves
        return known if known != "" or isinstance(self.origin, Place | None) else self.origin.step_kind()


class Destinations:
    """What was taken so far; see the module."""

    #: the first one, kept aside until there is a second: most transactions have one
    _first: tuple[Place, Item | Entry] | None = None
    #: the names taken in each folder, each with what the operations leave there
    _taken: dict[_Key, tuple[Directory, dict[str, Item | Entry]]] = {}  # noqa: RUF012  replaced by `_unfold`
    #: the folders in which something of ours is or will be, each with the path that needs it
    _used: dict[_Key, tuple[Directory, str]] = {}  # noqa: RUF012

    def _unfold(self) -> None:
        """There is more than one destination, or a ``tmp_dir``: now all is kept."""
        if self._taken is not Destinations._taken:
            return
        self._taken, self._used = {}, {}
        #: the folders that are used, even if operations are dropped
        self._staging: dict[_Key, tuple[Directory, str]] = {}
        #: the folders that will be displaced
        self._displaced: dict[tuple[int, int], str] = {}
        self._chains: dict[_Key, frozenset[tuple[int, int]]] = {}
        first, self._first = self._first, None
        if first is not None:
            self._register(*first)

    def forget(self) -> None:
        """The transaction is over: without the references from here to the items there is no cycle, and all of it is freed at
        once."""
        self._first, self._taken = None, Destinations._taken

    def last(self, place: Place) -> Entry | None:
        """What the operations so far leave at a name; None where they have not changed it."""
        first = self._first
        if first is not None:
            return _entry(first[1]) if first[0] == place else None
        taken = self._taken.get(place.directory.place_key)
        left = None if taken is None else taken[1].get(place.name)
        return None if left is None else _entry(left)

    def leaves(self, place: Place) -> str | None:
        """What the operations so far leave at a name: a kind ("" for one that nobody knows yet), None for nothing, or
        `UNTOUCHED`."""
        entry = self.last(place)
        return UNTOUCHED if entry is None else entry.leaves

    def origin(self, place: Place) -> Item | Place | None:
        """What will be at a name by the operations so far: the item that staged it, or the name at which it exists now."""
        entry = self.last(place)
        return place if entry is None else entry.origin

    def register(self, place: Place, new: Item | Entry) -> None:
        """Accept an operation, or refuse it: nested, or on a second filesystem.  An item that displaces no folder at its own
        destination is kept without an `Entry`, which saves one object for each of very many."""
        if self._first is None and self._taken is Destinations._taken:
            self._first = place, new
            return
        self._unfold()
        self._register(place, new)

    def _register(self, place: Place, new: Item | Entry) -> None:
        directory, name = place
        taken = self._taken.get(directory.place_key)
        if taken is None or self._displaced or type(new) is Entry:
            taken = self._admit(place, _entry(new))
        below = taken[1].get(name)
        if below is not None:
            new = _entry(new)
            new.below = _entry(below)
        taken[1][name] = new

    def _admit(self, place: Place, entry: Entry) -> tuple[Directory, dict[str, Item | Entry]]:
        """Check whether one more name may be taken in the folder; returns the names that are taken there."""
        directory = place.directory
        path = entry.item.path if place == entry.item.place else str(place)
        if directory.place_key not in self._taken:
            self._same_filesystem(directory, path)
        self._not_nested(directory, path, entry.displaces)
        if entry.displaces is not None:
            self._displaced[entry.displaces] = path
        return self._taken.setdefault(directory.place_key, (directory, {}))

    def unregister(self, place: Place, item: Item) -> None:
        """Take what an item leaves at a name back, if it was registered."""
        self._unfold()
        key, name = place.directory.place_key, place.name
        _, names = self._taken.get(key) or (None, {})
        found, left = names.pop(name, None), []
        entry = None if found is None else _entry(found)
        while entry is not None:
            if entry.item is not item:
                left.append(entry)
            elif entry.displaces is not None:
                self._displaced.pop(entry.displaces, None)
            entry = entry.below
        below = None
        for entry in reversed(left):
            entry.below = below
            names[name] = below = entry
        if not names and key in self._taken and key not in self._staging:
            del self._taken[key]
            del self._used[key]

    def use(self, directory: Directory, path: str) -> None:
        """This folder will contain something of ours, and must not be displaced."""
        self._unfold()
        self.refuse_displaced(directory, path)
        self._staging.setdefault(directory.place_key, (directory, path))
        self._used.setdefault(directory.place_key, (directory, path))

    def watch(self, directory: Directory, path: str) -> None:
        """Something in this folder must be as it was seen: it is locked like the others, and must not be displaced."""
        self._unfold()
        key = directory.place_key
        if key not in self._taken:
            self._same_filesystem(directory, path)
        self.use(directory, path)
        self._taken.setdefault(key, (directory, {}))

    def refuse_inside(self, parent: str, path: str) -> None:
        """The parent is missing: perhaps because it is itself a destination of this transaction."""
        self._unfold()
        for directory, names in self._taken.values():
            for name in names:
                staged = directory.child(name)
                if (parent + "/").startswith(staged.rstrip("/") + "/"):
                    _nested(path, staged)

    def _same_filesystem(self, directory: Directory, path: str) -> None:
        if not self._taken:
            return
        first, names = next(iter(self._taken.values()))
        if (first.dev, first.mount) != (directory.dev, directory.mount):
            name = next(iter(names), "")
            where = "different filesystems" if first.dev != directory.dev else "different mounts of one filesystem"
            text = (
                f"the destinations are on {where} (st_dev {directory.dev} and {first.dev}); "
                "use one transaction for each filesystem"
            )
            error = errors.CrossFilesystemError(*errors.os_args(errno.EXDEV, text, path, first.child(name)))
            error.devices = (directory.dev, first.dev)
            raise error

    def _not_nested(self, directory: Directory, path: str, displaces: tuple[int, int] | None) -> None:
        # With a single item nothing can be nested, so the walk up waits until there is a second one, or a tmp_dir.
        if self._displaced:
            self.refuse_displaced(directory, path)
        if displaces is not None:
            for used, brought_in in self._used.values():
                if displaces in self._chain(used):
                    _nested(brought_in, path)
        self._used.setdefault(directory.place_key, (directory, path))

    def is_displaced(self, directory: Directory) -> bool:
        """Whether the folder, or one above it, will not be at its path any more."""
        self._unfold()
        return bool(self._displaced) and not self._chain(directory).isdisjoint(self._displaced)

    def refuse_displaced(self, directory: Directory, path: str) -> None:
        """Refuse what would change `path` in such a folder."""
        for above in self._chain(directory) & self._displaced.keys():
            _nested(path, self._displaced[above])

    def _chain(self, directory: Directory) -> frozenset[tuple[int, int]]:
        """A folder and all folders that contain it."""
        key = directory.place_key
        chain = self._chains.get(key)
        if chain is None:
            chain = self._chains[key] = frozenset(directory.ancestors())
        return chain


def _entry(left: Item | Entry) -> Entry:
    return left if isinstance(left, Entry) else Entry(left, left.leaves(), left.origin())


def _nested(inner: str, outer: str) -> NoReturn:
    text = (
        "one path is inside the other, a folder that the same transaction moves or replaces; write into the staged folder, "
        "or change the inner path first, in a transaction of its own"
    )
    errors.fail(errors.NestedDestinationError, errno.EINVAL, text, inner, outer)


def key_of(folder: Status | None) -> tuple[int, int] | None:
    """The key by which a displaced folder is recognised, from its status."""
    return None if folder is None else (folder.dev, folder.ino)
