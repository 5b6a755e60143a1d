"""The rules between the destinations of one transaction: none inside another, all on one filesystem; and what the operations
so far leave at each name, for each sees what the earlier ones will have done.

Folders are told by identity and mount, never by their paths, so two spellings of one folder, or a parent reached through
a link, are seen.  Not thread-safe by itself: the transaction holds its lock.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NoReturn

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place

if TYPE_CHECKING:
    from atomik._system.libc import Status

_Key = tuple[int, int, int]


#: no operation of the transaction has changed the name so far
UNTOUCHED = "untouched"


class Destinations:
    """What was taken so far; see the module."""

    #: the first one, kept aside until there is a second: most transactions have one
    _first: tuple[Place, str | None, Status | None, str | None] | None = None
    #: the names taken in each folder, each with what the operations leave there, in their order
    _taken: dict[_Key, tuple[Directory, dict[str, list[str | None]]]] = {}  # noqa: RUF012  replaced by `_unfold`
    #: the folders in which something of ours lies or will lie, each with the path that brought it in
    _used: dict[_Key, tuple[Directory, str]] = {}  # noqa: RUF012

    def _unfold(self) -> None:
        """There is more than one destination, or a ``tmp_dir``: now all is kept."""
        if self._taken is not Destinations._taken:
            return
        self._taken, self._used = {}, {}
        #: the folders that will be displaced
        self._displaced: dict[tuple[int, int], str] = {}
        self._chains: dict[_Key, frozenset[tuple[int, int]]] = {}
        first, self._first = self._first, None
        if first is not None:
            self._register(*first)

    def leaves(self, place: Place) -> str | None:
        """What the operations so far leave at a name: a kind ("" for one that nobody knows yet), None for nothing, or
        `UNTOUCHED`."""
        if self._taken is Destinations._taken:
            if self._first is None or self._first[0] != place:
                return UNTOUCHED
            return self._first[3]
        _, names = self._taken.get(place.directory.place_key) or (None, {})
        return names[place.name][-1] if place.name in names else UNTOUCHED

    def register(self, place: Place, given: str | None, folder_there: Status | None, leaves: str | None) -> None:
        """Take an operation in, or refuse it: nested, or on a second filesystem.

        `given` is its path as the user gave it, where that is another than the place's; `folder_there` the status of a
        folder that it would displace; `leaves` what it leaves there.
        """
        if self._first is None and self._taken is Destinations._taken:
            self._first = place, given, folder_there, leaves
            return
        self._unfold()
        self._register(place, given, folder_there, leaves)

    def _register(self, place: Place, given: str | None, folder_there: Status | None, leaves: str | None) -> None:
        path = given or str(place)
        directory = place.directory
        taken = self._taken.get(directory.place_key)
        if taken is None:
            self._same_filesystem(directory, path)
        self._not_nested(directory, path, folder_there)
        if taken is None:
            taken = self._taken[directory.place_key] = directory, {}
        taken[1].setdefault(place.name, []).append(leaves)
        if folder_there is not None:
            self._displaced[folder_there.dev, folder_there.ino] = path

    def unregister(self, place: Place) -> None:
        """Take the last operation at a name back."""
        self._unfold()
        key = place.directory.place_key
        _, names = self._taken.get(key) or (None, {})
        operations = names.get(place.name)
        if operations:
            operations.pop()
        if operations:
            return
        names.pop(place.name, None)
        if not names:
            self._taken.pop(key, None)
        self._displaced = {k: p for k, p in self._displaced.items() if p != str(place)}

    def use(self, directory: Directory, path: str) -> None:
        """Something of ours will lie in this folder, which must not be displaced."""
        self._unfold()
        self._not_in_displaced(directory, path)
        self._used.setdefault(directory.place_key, (directory, path))

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
            name = next(iter(names))
            where = "different filesystems" if first.dev != directory.dev else "different mounts of one filesystem"
            text = (
                f"destinations lie on {where} (st_dev {directory.dev} and {first.dev}); "
                "one transaction needs one filesystem: use a transaction for each"
            )
            error = errors.CrossFilesystemError(*errors.os_args(errno.EXDEV, text, path, first.child(name)))
            error.devices = (directory.dev, first.dev)
            raise error

    def _not_nested(self, directory: Directory, path: str, folder_there: Status | None) -> None:
        # With a single item nothing can be nested, so the walk up waits until there is a second one, or a tmp_dir.
        if self._displaced:
            self._not_in_displaced(directory, path)
        if folder_there is not None:
            me = (folder_there.dev, folder_there.ino)
            for used, brought_in in self._used.values():
                if me in self._chain(used):
                    _nested(brought_in, path)
        self._used.setdefault(directory.place_key, (directory, path))

    def _not_in_displaced(self, directory: Directory, path: str) -> None:
        for above in self._chain(directory) & self._displaced.keys():
            _nested(path, self._displaced[above])

    def _chain(self, directory: Directory) -> frozenset[tuple[int, int]]:
        """A folder and all that it lies in."""
        key = directory.place_key
        chain = self._chains.get(key)
        if chain is None:
            chain = self._chains[key] = frozenset(directory.ancestors())
        return chain


def _nested(inner: str, outer: str) -> NoReturn:
    text = "one destination lies inside another of the same transaction; write into the staged folder instead"
    errors.fail(errors.NestedDestinationError, errno.EINVAL, text, inner, outer)
