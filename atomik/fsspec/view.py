"""The tree as a transaction of `AtomikFileSystem` will leave it: a transaction's view (`_staging.view`), of its `Change`s.

`Changes` has a view and makes the changes; a view only reads.
"""

from __future__ import annotations

import errno
import os
import stat
import threading

from attrs import define

from atomik import errors
from atomik._hidden_names import PREFIX
from atomik._staging import view

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@define
class Change:
    """What becomes of one path: its content is at ``where`` now (None: it is removed)."""

    where: str | None
    #: still at its old place, which is the user's, and may only be read
    moved: bool = False
    #: must not replace what another program puts there in the meantime
    fresh: bool = False
    permissions: int | None = None
    #: what is there now, the transaction has removed: so this may be of another kind
    removed: bool = False


class View(view.View[Change]):
    """What the changes of one transaction make of the tree."""

    def __init__(self) -> None:
        super().__init__(threading.RLock())

    def content_of(self, change: Change) -> str | None:
        """Where it is now."""
        return change.where

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
        """Where a move of `source` to `target` ends: inside a folder, or instead of a file."""
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
            text = "cannot move a folder there: it is not a folder"
            errors.fail(errors.WrongKindError, errno.ENOTDIR, text, source, target)
        return target

    def below(self, path: str) -> Iterator[str]:
        """The paths of the changes below `path`."""
        inside = path.rstrip("/") + "/"
        return iter([key for key in self.changes if key.startswith(inside)])
