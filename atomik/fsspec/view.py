"""The tree as a transaction of `AtomikFileSystem` will leave it.

`View` tells where the content of a path lies at present: at a staged place, still at the place it was moved from,
nowhere (it is removed), or at the path itself.  `Changes` has a view and makes the changes; a view only looks.

Symbolic links are followed here and not by the kernel, one component after the other: the target of a link may have been
changed by the transaction, and a link that was itself moved or staged content, until the commit, in a folder where its
target means something else.  Writing through it there would change the user's files before the commit.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import TYPE_CHECKING

from attrs import define

from atomik import errors
from atomik._folder.resolve import refuse_traps
from atomik._hidden_names import PREFIX
from atomik._system import kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_LINKS = 40  # path_resolution(7)


@define
class Change:
    """What becomes of one path: its content lies at ``where`` now (None: it is removed)."""

    where: str | None
    #: still at its old place, which is the user's, and may only be read
    moved: bool = False
    #: must not replace what another program puts there in the meantime
    fresh: bool = False
    permissions: int | None = None


class View:
    """What the changes of one transaction make of the tree; threads that share it may look while others change."""

    def __init__(self) -> None:
        self.lock: threading.RLock = threading.RLock()
        #: by resolved path; none lies below another
        self.changes: dict[str, Change] = {}

    def resolve(self, path: str, *, follow: bool = True) -> str:
        """The one spelling of a path by which changes are kept: without links above it, and at it unless `follow` is
        false.  OSError (ELOOP) for links that lead in a circle."""
        with self.lock:
            left = os.path.normpath(path).split("/")[::-1]
            done, links = "/", 0
            content: str | None = "/"  # where the content of `done` lies
            owners: set[int] = set()  # of the links on the way that are no work of this transaction
            while left:
                name = left.pop()
                if name in ("", "."):
                    continue
                if name == "..":  # of a link's target; what is above it has no links any more
                    done = os.path.dirname(done)
                    content = self._content(done)
                    continue
                here = f"{done.rstrip('/')}/{name}"
                change = self.changes.get(here)
                where = change.where if change is not None else content and f"{content.rstrip('/')}/{name}"
                target = _link(where) if where and (left or follow) else None
                if target is None:
                    done, content = here, where
                    continue
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if where == here:
                    owners.add(os.lstat(here).st_uid)
                if target.startswith("/"):
                    done, content = "/", "/"
                left += target.split("/")[::-1]
            self._refuse_traps(path, owners, done)
            return done

    def _refuse_traps(self, path: str, owners: set[int], done: str) -> None:
        """Links of other users lead into no folder of one's own (see `_resolve`)."""
        if not owners - {0, os.geteuid()}:
            return
        folder = self._content(os.path.dirname(done))
        try:
            refuse_traps(path, owners, os.geteuid() if folder is None else os.lstat(folder).st_uid)
        except (FileNotFoundError, NotADirectoryError) as exc:
            if kernel.errno_of(exc) is None:
                raise

    def _content(self, path: str) -> str | None:
        """Where the content of a resolved path lies."""
        key = self.at_or_above(path)
        if key is None:
            return path
        change = self.changes[key]
        return None if change.where is None else change.where + path[len(key) :]

    def where(self, path: str, *, follow: bool = True) -> str | None:
        """Where the content of a path lies now; None when the transaction has removed it."""
        with self.lock:
            return self._content(self.resolve(path, follow=follow))

    def stat(self, path: str, *, follow: bool = True) -> os.stat_result | None:
        """stat(2) of what is there for the transaction, None where there is nothing."""
        try:
            where = self.where(path, follow=follow)
            return None if where is None else os.stat(where, follow_symlinks=follow)
        except (FileNotFoundError, NotADirectoryError) as exc:
            if kernel.errno_of(exc) is None:
                raise
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
            for key in self.below(path):
                parent, name = os.path.split(key)
                if parent == path:
                    names -= {name}
                    names |= set() if self.changes[key].where is None else {name}
        return sorted(names)

    def staged(self, path: str) -> bool:
        """Whether the transaction has made what is there, so that it may be changed in place."""
        key = self.at_or_above(self.resolve(path))
        return key is not None and self.changes[key].where is not None and not self.changes[key].moved

    def target_of_move(self, source: str, target: str) -> str:
        """Where a move of `source` to `target` ends: inside a folder, in the place of a file."""
        found, there = self.stat(source, follow=False), self.stat(target)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
        whence = self.resolve(source, follow=False)
        if there is None or whence == self.resolve(target, follow=False):
            return target
        onto_link = whence == self.resolve(target)  # which leads to the source
        if stat.S_ISDIR(there.st_mode) and not onto_link:
            target = os.path.join(target, os.path.basename(source))
            if self.stat(target, follow=False) is not None:
                errors.fail(errors.FileAlreadyExistsError, errno.EEXIST, "it already exists", target)
        elif stat.S_ISDIR(found.st_mode):
            text = "cannot move a folder there: it is no folder"
            errors.fail(errors.WrongKindError, errno.ENOTDIR, text, source, target)
        return target

    def at_or_above(self, path: str) -> str | None:
        """The path of the change that decides about `path`: its own, or that of a folder above."""
        while path not in self.changes:
            above = os.path.dirname(path)
            if above == path:
                return None
            path = above
        return path

    def below(self, path: str) -> Iterator[str]:
        """The paths of the changes below `path`."""
        inside = path.rstrip("/") + "/"
        return iter([key for key in self.changes if key.startswith(inside)])


def _link(where: str) -> str | None:
    """What a link says; None for anything else, and for nothing."""
    try:
        return os.readlink(where) if stat.S_ISLNK(os.lstat(where).st_mode) else None
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return None
