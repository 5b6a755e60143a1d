"""What a transaction of `AtomikFileSystem` has done so far, and how it does more.

The user's paths stay what they are until `publish`.  `Changes` records where the content of a path is at present::

    mkdir, new content   →  staged:  a place in a private folder of atomik, made for good there
    rm                   →  nothing
    mv of what is real   →  moved:   still where it was; both names change at the commit
    anything below       →  below the staged place; so a new folder is filled, and read, like any folder
    everything else      →  the path itself

So programs that write a dataset and read it again (zarr, pyarrow) see their own work inside the transaction, and no other
program does.  Changes never lie below one another.  An operation that would need that (writing into a folder that was
moved, removing a folder out of which something was moved) first copies what was moved into the private folder.

`publish` makes one atomik item of every change, and commits them together.

Forked children and other instances of the filesystem have no part in it (fsspec makes one for each thread that asks for
one); the threads that share this instance may all write.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat

from atomik import errors
from atomik._api.shortcuts import transaction
from atomik._folder.paths import exists, is_folder
from atomik._folder.place import Place
from atomik._staging import companions
from atomik._staging.observe import observe
from atomik._system import kernel
from atomik.flags import State

from .view import Change, View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from atomik._api.transaction import Transaction
    from atomik._receipt import Receipt
    from atomik._staging.observe import Observation


class Changes:
    """The changes of one transaction; see the module.  ``view`` is the tree with them made."""

    def __init__(self, *, durable: bool = True, lock_timeout: float = 60.0) -> None:
        self.view = View()
        self._lock, self._changes = self.view.lock, self.view.changes
        self._options: dict[str, Any] = {"durable": durable, "lock_timeout": lock_timeout}
        self._tx: Transaction | None = None
        #: paths whose writing failed, with the reason
        self.failed: dict[str, str] = {}
        #: copies of databases, each with the suffixes of the logs without which it would lack changes
        self._databases: dict[str, list[str]] = {}
        #: what was at a path when the transaction copied it to change the copy
        self._expected: dict[str, Observation] = {}
        self._ground: tuple[int, int, str] | None = None

    @property
    def tx(self) -> Transaction:
        """The transaction, begun when there is something to do."""
        if self._tx is None:
            self._tx = transaction(overwrite=True, **self._options)
        return self._tx

    def slot(self, path: str) -> str:
        """A free place to stage what will become `path`: in its folder, so that it inherits what files there inherit."""
        with self._lock:
            path = self.view.resolve(path, follow=False)
            parent = os.path.dirname(self.view.at_or_above(path) or path)
            workspace = self.tx._intake.workspace
            folder = workspace.directory(parent, wanted=path)
            if self._ground is None:
                self._ground = folder.dev, folder.mount, parent
            elif self._ground[:2] != (folder.dev, folder.mount):
                text = "the two paths are on different filesystems; use one transaction for each filesystem"
                errors.fail(errors.CrossFilesystemError, errno.EXDEV, text, path, self._ground[2])
            with kernel.typed("cannot stage there", path):
                return workspace.path_of(workspace.slot(folder))

    def check_parent(self, path: str) -> None:
        """Raise unless the folder that will hold `path` exists."""
        parent = above = os.path.dirname(self.view.resolve(path, follow=False))
        while (found := self.view.stat(above)) is None:
            above = os.path.dirname(above)
        if not stat.S_ISDIR(found.st_mode):
            errors.fail(errors.WrongKindError, errno.ENOTDIR, "cannot write there: it is not a folder", above)
        if above != parent:
            errors.fail(errors.MissingPathError, errno.ENOENT, "cannot write there: the folder does not exist", parent)

    def stage_file(self, path: str, mode: str) -> tuple[str, str]:
        """Begin to write a file: (the resolved path, a place to write to, with a copy where `mode` starts from one)."""
        target = self.view.resolve(path)
        present = self.view.stat(target)
        if present is not None and "x" in mode:
            errors.fail(errors.FileAlreadyExistsError, errno.EEXIST, "it already exists", path)
        if present is not None and stat.S_ISDIR(present.st_mode):
            errors.fail(errors.WrongKindError, errno.EISDIR, "cannot write a file there: it is a folder", path)
        if present is None and "r" in mode:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self.check_parent(target)
        place = self.slot(target)
        if "a" in mode or "r" in mode:
            where = self.view.where(target)
            if where is not None and not self.view.staged(target):
                self._expect(where)
            if present is not None:
                copy(where or target, place)
        return target, place

    def _expect(self, path: str) -> None:
        """The transaction goes on with a copy of what is at `path`: if someone else changes that before the commit, it is a
        conflict.  Not so for a folder: the transaction itself may make private folders in it."""
        if path not in self._expected and not _is_folder(path):
            self._expected[path] = observe(path)

    def put(self, path: str, place: str, *, fresh: bool = False) -> None:
        """What was staged at `place` becomes `path`; `fresh`: only if nothing else has appeared there."""
        with self._lock:
            path = self.view.resolve(path, follow=False)
            if fresh and self.view.stat(path, follow=False) is not None:
                _delete(place)
                errors.fail(errors.FileAlreadyExistsError, errno.EEXIST, "it already exists", path)
            self.failed.pop(path, None)
            self._databases.pop(path, None)
            above = self.view.at_or_above(os.path.dirname(path))
            if above is not None:
                self._own(above)
                target = self.view.where(path, follow=False)
                if target is None:
                    errors.fail(errors.MissingPathError, errno.ENOENT, "the folder was removed", path)
                os.replace(place, target)
                return
            self._detach(path)
            removed = self._forget(path)
            new = fresh and not exists(path)
            self._changes[path] = Change(place, fresh=new, removed=removed)

    def mkdir(self, path: str) -> None:
        """Make a folder in an existing one; FileExistsError when another thread has been faster."""
        with self._lock:
            self.check_parent(path)
            place = self.slot(path)
            os.mkdir(place)
            self.put(path, place, fresh=True)

    def remove(self, path: str) -> None:
        """Remove a file, a link, or a folder with all that is in it."""
        with self._lock:
            path = self.view.resolve(path, follow=False)
            above = self.view.at_or_above(os.path.dirname(path))
            if above is not None:
                self._own(above)
                _delete(self.view.where(path, follow=False))
                return
            self._detach(path)
            for key in self.view.below(path):
                self._forget(key)
            self._forget(path)
            self.failed.pop(path, None)
            if exists(path):
                self._changes[path] = Change(None)

    def move(self, source: str, target: str) -> None:
        """Give what is at `source` the name `target`, whatever was there."""
        with self._lock:
            source, target = self.view.resolve(source, follow=False), self.view.resolve(target, follow=False)
            if target == source:
                return
            if (target + "/").startswith(source + "/"):
                errors.fail(errors.NestedDestinationError, errno.EINVAL, "cannot move it into itself", source, target)
            self.check_parent(target)
            change = self._changes.get(source)
            untouched = self.view.at_or_above(source) is None and not any(self.view.below(source))
            if (untouched or (change is not None and change.moved)) and self.view.at_or_above(
                os.path.dirname(target)
            ) is None:
                self._move_real(source, target, source if change is None else change.where or source)
                return
            left = self._databases.pop(source, None) or logs_of(self.view.where(source, follow=False))
            place = self._take(source, target)
            self.remove(source)
            self.put(target, place)
            self.copied(target, left)

    def copied(self, path: str, logs: list[str]) -> None:
        """A database was copied to `path`: its logs must be copied too, before the commit."""
        if logs:
            self._databases[self.view.resolve(path)] = logs

    def _refuse_half_copies(self) -> None:
        for path, logs in self._databases.items():
            for log in (path + suffix for suffix in logs):
                key = self.view.at_or_above(log)
                changed = key == log or (key is not None and self.view.stat(log, follow=False) is not None)
                if not changed and self.view.stat(path) is not None:
                    companions.refuse_copy(path)

    def _move_real(self, source: str, target: str, origin: str) -> None:
        self._detach(source)
        for key in self.view.below(target):
            self._forget(key)
        self._detach(target, but=origin)
        removed = self._forget(target)
        self._changes.pop(source, None)
        if exists(source):
            self._changes[source] = Change(None)
        if origin == target:
            self._changes.pop(target, None)  # it is back where it was
        else:
            self._changes[target] = Change(origin, moved=True, removed=removed)

    def _take(self, source: str, target: str) -> str:
        """What is at `source`, at a free place for `target`."""
        key = self.view.at_or_above(source)
        if key is not None:
            self._own(key)
        place = self.slot(target)
        where = self.view.where(source, follow=False)
        if where is None:
            errors.fail(errors.MissingPathError, errno.ENOENT, "there is nothing to move", source)
        if key is not None:
            os.rename(where, place)
            return place
        copy(where, place)
        for below in self.view.below(source):
            self._own(below)
            inside = place + below[len(source) :]
            _delete(inside)
            now = self._changes.pop(below).where
            if now is not None:
                os.rename(now, inside)
        return place

    def _own(self, key: str) -> None:
        """Something that was moved is changed: from now on it is a copy, and what was moved is removed."""
        change = self._changes[key]
        if change.moved and change.where is not None:
            place = self.slot(key)
            self._expect(change.where)
            copy(change.where, place)
            self._changes[key] = Change(place, removed=change.removed)

    def _detach(self, path: str, but: str | None = None) -> None:
        """`path` is to change: what was moved away from there, or from below it, becomes a copy first."""
        inside = path + "/"
        for key, change in list(self._changes.items()):
            origin = change.where if change.moved else None
            if origin is not None and origin != but and (origin + "/").startswith(inside):
                self._own(key)

    def _forget(self, path: str) -> bool:
        """Cancel a change.  What was staged for it is removed; what was moved stays removed where it was.  Whether the
        transaction has removed what is there now."""
        change = self._changes.pop(path, None)
        if change is None:
            return False
        if not change.moved:
            _delete(change.where)
        return change.removed or change.where is None

    def set_permissions(self, path: str, mode: int) -> None:
        """chmod, of what the transaction has made."""
        with self._lock:
            path = self.view.resolve(path)
            if not self.view.staged(path):
                raise NotImplementedError(
                    f"inside a transaction, chmod works only on what the transaction has written: {path!r}"
                )
            where = self.view.where(path)
            assert where is not None
            os.chmod(where, mode)
            if path in self._changes:
                self._changes[path].permissions = mode

    # --- the end -----------------------------------------------------------------------------------------------------
    def publish(self) -> Receipt:
        """Commit all changes, or raise with everything as it was."""
        with self._lock:
            try:
                for path, reason in self.failed.items():
                    text = (
                        f"cannot commit without {path!r}: {reason}; write it again, remove it, or leave by an exception"
                    )
                    raise errors.TransactionStateError(text)
                self._refuse_half_copies()
                origins = {change.where for change in self._changes.values() if change.moved}
                for path, change in self._changes.items():
                    if change.where is not None:
                        self._stage(path, change, change.where)
                    elif path not in origins:
                        self.tx.remove(path, missing_ok=True, expect=self._expected.get(path))
                return self.tx.commit()
            except BaseException:
                self.abort()
                raise

    def _stage(self, path: str, change: Change, where: str) -> None:
        expect = self._expected.get(path)
        if change.removed and _is_folder(path) != _is_folder(where):
            self.tx.remove(path, missing_ok=True, expect=expect)
            expect = None
        if change.moved:
            self.tx.move(where, path, expect=expect)
        else:
            place = self.tx.path(path, overwrite=not change.fresh, permissions=change.permissions, expect=expect)
            os.rename(where, place)

    def abort(self) -> None:
        """Drop everything."""
        with self._lock:
            self._changes.clear()
            if self._tx is not None and self._tx.state is State.OPEN:
                self._tx.abort()


def _delete(place: str | None) -> None:
    if place is None or not exists(place):
        return
    if _is_folder(place):
        shutil.rmtree(place)
    else:
        os.unlink(place)


def _is_folder(path: str) -> bool:
    return is_folder(path, follow=False)


def logs_of(path: str | None) -> list[str]:
    """The suffixes of the logs of a database that hold changes which a copy of it would lack."""
    if path is None or _is_folder(path):
        return []
    from atomik._folder.directory import Directory

    with Directory.open(os.path.dirname(path)) as above:
        return companions.log_suffixes(Place(above, os.path.basename(path)))


def copy(source: str, target: str) -> None:
    """Copy a file, link or whole folder to a free place, with everything that can be kept of it."""
    from atomik._folder.directory import Directory
    from atomik._tree.clone import copy_entry

    with Directory.open(os.path.dirname(source)) as above, Directory.open(os.path.dirname(target)) as home:
        copy_entry(Place(above, os.path.basename(source)), Place(home, os.path.basename(target)))
