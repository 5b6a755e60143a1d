"""The folder tree as a transaction of `AtomikFileSystem` will make it, over the one that is: looking.

`View` says for a path where its content lies at present: at a staged place, still at the place it was moved from,
nowhere (it goes), or at the path itself.  `Changes` (in `_fsspec_changes`) makes the changes.

Symbolic links are followed here and not by the kernel, one component after the other: what a link leads to may have been
changed by the transaction, and a link that was itself moved or staged lies, until the commit, in a folder where its
target means something else.  To write through it there would change the user's files before the commit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from typing import TYPE_CHECKING

from attrs import define

from atomik._folder.resolve import refuse_traps
from atomik._hidden_names import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_LINKS = 40  # path_resolution(7)


@define
class Change:
    """What becomes of one path: its content lies at ``where`` now (None: it goes)."""

    where: str | None
    #: still at its old place, which is the user's, and may only be read
    moved: bool = False
    #: must not replace what somebody else puts there meanwhile
    fresh: bool = False
    permissions: int | None = None


class View:
    """What the changes of one transaction make of the tree; the threads that share it may look while others change."""

    def __init__(self) -> None:
        self.lock: threading.RLock = threading.RLock()
        self._changes: dict[str, Change] = {}

    def resolve(self, path: str, *, follow: bool = True) -> str:
        """The one spelling of a path by which changes are kept: without links above it, and at it unless `follow` is
        false.  OSError (ELOOP) for links that lead in a circle."""
        with self.lock:
            left = os.path.normpath(path).split("/")[::-1]
            done, links = "/", 0
            lies: str | None = "/"  # where the content of `done` lies
            owners: set[int] = set()  # of the links on the way that are no work of this transaction
            while left:
                name = left.pop()
                if name in ("", "."):
                    continue
                if name == "..":  # of a link's target; what is above it has no links any more
                    done = os.path.dirname(done)
                    lies = self._lies(done)
                    continue
                here = f"{done.rstrip('/')}/{name}"
                change = self._changes.get(here)
                where = change.where if change is not None else lies and f"{lies.rstrip('/')}/{name}"
                target = _link(where) if where and (left or follow) else None
                if target is None:
                    done, lies = here, where
                    continue
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if where == here:
                    owners.add(os.lstat(here).st_uid)
                if target.startswith("/"):
                    done, lies = "/", "/"
                left += target.split("/")[::-1]
            self._refuse_traps(path, owners, done)
            return done

    def _refuse_traps(self, path: str, owners: set[int], done: str) -> None:
        """Links of other users lead into no folder of one's own (see `_resolve`)."""
        if not owners - {0, os.geteuid()}:
            return
        folder = self._lies(os.path.dirname(done))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            refuse_traps(path, owners, os.geteuid() if folder is None else os.lstat(folder).st_uid)

    def _lies(self, path: str) -> str | None:
        """Where the content of a resolved path lies."""
        key = self._at_or_above(path)
        if key is None:
            return path
        change = self._changes[key]
        return None if change.where is None else change.where + path[len(key) :]

    def where(self, path: str, *, follow: bool = True) -> str | None:
        """Where the content of a path lies now; None when the transaction has removed it."""
        with self.lock:
            return self._lies(self.resolve(path, follow=follow))

    def stat(self, path: str, *, follow: bool = True) -> os.stat_result | None:
        """stat(2) of what is there for the transaction, None where there is nothing."""
        try:
            where = self.where(path, follow=follow)
            return None if where is None else os.stat(where, follow_symlinks=follow)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def is_folder(self, path: str, *, follow: bool = True) -> bool:
        """Whether a folder is there."""
        found = self.stat(path, follow=follow)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def names(self, path: str) -> list[str]:
        """What is in a folder."""
        where = self.where(path)
        if where is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        with self.lock:
            path = self.resolve(path)
            names = {name for name in os.listdir(where) if not name.startswith(PREFIX)}
            for key in self._below(path):
                parent, name = os.path.split(key)
                if parent == path:
                    names -= {name}
                    names |= set() if self._changes[key].where is None else {name}
        return sorted(names)

    def staged(self, path: str) -> bool:
        """Whether the transaction has made what is there, so that it may be changed in place."""
        key = self._at_or_above(self.resolve(path))
        return key is not None and self._changes[key].where is not None and not self._changes[key].moved

    def _at_or_above(self, path: str) -> str | None:
        while path not in self._changes:
            above = os.path.dirname(path)
            if above == path:
                return None
            path = above
        return path

    def _below(self, path: str) -> Iterator[str]:
        inside = path.rstrip("/") + "/"
        return iter([key for key in self._changes if key.startswith(inside)])


def _link(where: str) -> str | None:
    """What a link says; None for anything else, and for nothing."""
    try:
        return os.readlink(where) if stat.S_ISLNK(os.lstat(where).st_mode) else None
    except OSError:
        return None
