"""The rules between the destinations of one transaction: none twice, none inside another, all on one filesystem.

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


class Destinations:
    """What was taken so far; see the module."""

    #: the first one, kept aside until there is a second: most transactions have one
    _first: tuple[Place, str | None, Status | None] | None = None
    #: the names taken in each folder, each with its path as given where it is not the folder's and the name
    _taken: dict[_Key, tuple[Directory, dict[str, str | None]]] = {}  # noqa: RUF012  replaced by `_unfold`
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

    def register(self, place: Place, given: str | None, folder_there: Status | None) -> None:
        """Take a destination in, or refuse it: duplicate, nested, or on a second filesystem.

        `given` is its path as the user gave it, where that is another than the place's; `folder_there` the stat of a
        folder that the item would displace.
        """
        if self._first is None and self._taken is Destinations._taken:
            self._first = place, given, folder_there
            return
        self._unfold()
        self._register(place, given, folder_there)

    def _register(self, place: Place, given: str | None, folder_there: Status | None) -> None:
        path = given or str(place)
        directory = place.directory
        taken = self._taken.get(directory.place_key)
        if taken is None:
            self._same_filesystem(directory, path)
        elif place.name in taken[1]:
            text = "the same destination is staged twice in one transaction; a name changes once, "
            text += "so stage what is to stand there in the end"
            errors.fail(errors.DuplicateDestinationError, errno.EEXIST, text, path, taken[1][place.name] or str(place))
        self._not_nested(directory, path, folder_there)
        if taken is None:
            taken = self._taken[directory.place_key] = directory, {}
        taken[1][place.name] = given
        if folder_there is not None:
            self._displaced[folder_there.dev, folder_there.ino] = path

    def unregister(self, place: Place) -> None:
        """Let a destination go, so that it may be staged again."""
        self._unfold()
        key = place.directory.place_key
        _, names = self._taken.get(key) or (None, {})
        path = names.pop(place.name, None) or str(place)
        if not names:
            self._taken.pop(key, None)
        self._displaced = {k: p for k, p in self._displaced.items() if p != path}

    def use(self, directory: Directory, path: str) -> None:
        """Something of ours will lie in this folder, which must not be displaced."""
        self._unfold()
        self._not_in_displaced(directory, path)
        self._used.setdefault(directory.place_key, (directory, path))

    def refuse_inside(self, parent: str, path: str) -> None:
        """The parent is missing: perhaps because it is itself a destination of this transaction."""
        self._unfold()
        for directory, names in self._taken.values():
            for name, given in names.items():
                staged = given or directory.child(name)
                if (parent + "/").startswith(staged.rstrip("/") + "/"):
                    _nested(path, staged)

    def _same_filesystem(self, directory: Directory, path: str) -> None:
        if not self._taken:
            return
        first, names = next(iter(self._taken.values()))
        if (first.dev, first.mount) != (directory.dev, directory.mount):
            name, given = next(iter(names.items()))
            where = "different filesystems" if first.dev != directory.dev else "different mounts of one filesystem"
            text = (
                f"destinations lie on {where} (st_dev {directory.dev} and {first.dev}); "
                "one transaction needs one filesystem: use a transaction for each"
            )
            error = errors.CrossFilesystemError(*errors.os_args(errno.EXDEV, text, path, given or first.child(name)))
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
