"""Files with several names (hard links) in a folder that a program saw through an overlay.

A change through one of its names is a change of all.  Where overlayfs keeps an *index*, for root, the folder ``index``
holds the present state of every such file that the program opened for writing, by whatever name.  `Names.shown_at` says at
which of its other names the program still saw it: these get the new file, too.

Without an index, each name that is written to gets a file of its own, and nothing tells this file from a new one.  But
overlayfs marks every folder into which it copied something as ``impure`` (Linux 4.13).  In a folder without the mark, files
were only created, replaced and removed, so the other names of an old file keep it.  `Names.copied` tells such names from
the others.
Limit: the mark goes when the folder is removed.
"""

from __future__ import annotations

import os
import stat

from atomik._folder.place import Place
from atomik._hidden_names import PREFIX
from atomik._system import kernel

from .layer import each_below, found_at, opened, placed, redirected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .layer import Layer

Key = tuple[int, int]


class Names:
    """The names in the lower layer, as a program saw them through the upper one."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    # --- with an index -----------------------------------------------------------------------------------------------
    def shown_at(self, path: str) -> list[str]:
        """The paths at which the program saw what the folder has at `path`: none, itself, or in a renamed folder."""
        found = []
        for upper, lower in self._roots():
            if not lower or path.startswith(lower + "/"):
                rest = path[len(lower) :].lstrip("/")
                if not self._is_hidden(upper, rest):
                    found.append(os.path.join(upper, rest))
        return found

    _renamed: list[tuple[str, str]] | None = None

    def _roots(self) -> list[tuple[str, str]]:
        """The folder, and all folders that were renamed: the path in the upper layer and the one in the lower."""
        if self._renamed is None:
            self._renamed = [("", "")]
            left: list[tuple[str, str | None]] = [("", "")]
            while left:
                path, base = left.pop()
                for name, marks in self._folders(path):
                    inner, under = os.path.join(path, name), None if base is None else os.path.join(base, name)
                    if "redirect" in marks:
                        under = redirected(base or "", marks["redirect"])
                        self._renamed.append((inner, under))
                    elif marks.get("opaque") == b"y":
                        under = None
                    left.append((inner, under))
        return self._renamed

    def _folders(self, path: str) -> list[tuple[str, dict[str, bytes]]]:
        with opened(self.layer.upper.fd, path) as fd:
            with kernel.port.scandir(fd) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            return [(name, self.layer.marks(name, fd)) for name in names]

    def _is_hidden(self, upper: str, rest: str) -> bool:
        """Whether the upper layer has something of its own at a path below one of its folders, or above that path."""
        *above, last = rest.split("/")
        for name in above:
            with opened(self.layer.upper.fd, upper) as fd:
                found = found_at(name, fd)
                if found is None:
                    return False
                if not kernel.is_folder(found.st_mode):
                    return True
                marks = self.layer.marks(name, fd)
            if "redirect" in marks or marks.get("opaque") == b"y":
                return True
            upper = os.path.join(upper, name)
        with opened(self.layer.upper.fd, upper) as fd:
            return found_at(last, fd) is not None

    # --- without one -------------------------------------------------------------------------------------------------
    def copied(self) -> tuple[dict[str, Key], set[str]]:
        """The names of files with several names that the program changed or removed: those that it perhaps changed in place,
        or gave another name, with device and inode; and those that it only replaced or removed."""
        unclear: dict[str, Key] = {}
        clear: set[str] = set()
        gone: list[str] = []
        left = [""]
        while left:
            path = left.pop()
            marked, entries = self._entries(path)
            for name, new, old, opaque in entries:
                inner = os.path.join(path, name)
                if kernel.is_folder(old.st_mode):
                    stays = kernel.is_folder(new.st_mode) and not opaque
                    (left if stays else gone).append(inner)
                elif kernel.is_file(old.st_mode) and old.st_nlink > 1:
                    if marked:
                        unclear[inner] = old.st_dev, old.st_ino
                    else:
                        clear.add(inner)
        self._look_into(gone, unclear, clear)
        return unclear, clear

    def _entries(self, path: str) -> tuple[bool, list[tuple[str, os.stat_result, os.stat_result, bool]]]:
        """Of a folder that both layers have: whether anything in it was copied up; and what both have under one name: the
        name, the new and the old status, and whether a folder is opaque."""
        port, layer, found = kernel.port, self.layer, []
        with opened(layer.upper.fd, path) as upper, opened(layer.lower.fd, path) as lower:
            with port.scandir(upper) as entries:
                names = [entry.name for entry in entries if not entry.name.startswith(PREFIX)]
            for name in names:
                old = found_at(name, lower)
                if old is not None:
                    new = port.lstat(name, upper)
                    opaque = kernel.is_folder(new.st_mode) and layer.marks(name, upper).get("opaque") == b"y"
                    found.append((name, new, old, opaque))
            return layer.prefix + "impure" in port.listxattr(upper), found

    def _look_into(self, gone: list[str], unclear: dict[str, Key], clear: set[str]) -> None:
        """The mark of a folder that was removed is gone.  A file in it may have been moved before, if a new one looks like
        it."""
        new: set[tuple[int, ...]] | None = None
        for path in gone:
            with placed(self.layer.lower, path) as place:
                found = {os.path.join(path, name): status for name, status in _files(place) if status.st_nlink > 1}
            if found and new is None:
                new = {_looks(status) for _, status in _files(Place(self.layer.upper, "."))}
            for inner, status in found.items():
                if new is not None and _looks(status) in new:
                    unclear[inner] = status.st_dev, status.st_ino
                else:
                    clear.add(inner)

    def of(self, wanted: set[Key]) -> Iterator[tuple[Key, str]]:
        """All names in the folder of some files."""
        for path, found in _files(Place(self.layer.lower, ".")) if wanted else ():
            key = found.st_dev, found.st_ino
            if key in wanted:
                yield key, path


def _files(place: Place) -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file below a folder: its path from there, and its status."""
    for down, name in each_below(place, "look for files with several names"):
        found = kernel.port.lstat(name, down.level.fd)
        if stat.S_ISREG(found.st_mode):
            yield os.path.join(*down.level.names(), name), found


def _looks(found: os.stat_result) -> tuple[int, ...]:
    return found.st_mode, found.st_size, found.st_mtime_ns
