"""The naming half of `AtomikFileSystem`: folders made, names removed, moved and linked, modes set.

Outside a transaction `rm` and `mv` are an atomik transaction each, and the others the plain system calls.  Inside, all of
them change the transaction's tree only (`_fsspec_changes`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Any

from atomik import errors
from atomik import transaction as begin

from .changes import copy
from .reading import ReadingFileSystem

if TYPE_CHECKING:
    from .changes import Changes


class NamingFileSystem(ReadingFileSystem):
    """Names, and what they stand for as a whole."""

    def _make_parent(self, path: str) -> None:
        if self.auto_mkdir:
            self.makedirs(self._parent(path), exist_ok=True)

    def mkdir(self, path: Any, create_parents: bool = True, **keywords: Any) -> None:
        """As of the local filesystem."""
        path, view = self._strip_protocol(path), self._view
        if view is None:
            super().mkdir(path, create_parents, **keywords)
        elif self.lexists(path):
            errors.fail(errors.FileAlreadyExistsError, errno.EEXIST, "it already exists", path)
        else:
            if create_parents:
                self.makedirs(self._parent(path), exist_ok=True)
            view.mkdir(path)

    def makedirs(self, path: Any, exist_ok: bool = False) -> None:
        """As of the local filesystem."""
        path, view = self._strip_protocol(path), self._view
        if view is None:
            os.makedirs(path, exist_ok=exist_ok)
        elif not (exist_ok and self.isdir(path)):
            try:
                self.mkdir(path, create_parents=True)
            except FileExistsError:
                if not (exist_ok and self.isdir(path)):
                    raise

    def rmdir(self, path: Any) -> None:
        """As of the local filesystem."""
        path, view = self._strip_protocol(path), self._view
        if view is None:
            os.rmdir(path)
            return
        if not view.is_folder(path, follow=False):
            errors.fail(errors.WrongKindError, errno.ENOTDIR, "not a folder", path)
        if view.names(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        view.remove(path)

    def rm_file(self, path: Any) -> None:
        """As of the local filesystem."""
        self._remove([self._strip_protocol(path)], recursive=None)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:  # noqa: ARG002
        """As of the local filesystem; all of them, or none."""
        self._remove([self._strip_protocol(each) for each in (path if isinstance(path, list) else [path])], recursive)

    def _remove(self, paths: list[str], recursive: bool | None) -> None:
        with self._editing() as view:
            for path in paths:
                found = view.stat(path, follow=False)
                if found is None:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                if stat.S_ISDIR(found.st_mode):
                    _check_folder(path, recursive)
                view.remove(path)

    def mv(self, path1: Any, path2: Any, recursive: bool = True, **keywords: Any) -> None:  # noqa: ARG002
        """As of the local filesystem: a folder at `path2` gets `path1` into it, a file is replaced."""
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        self._make_parent(target)
        try:
            with self._editing() as view:
                target = _target(view, source, target)
                view.move(source, target)
        except errors.CrossFilesystemError:
            if self._intrans:
                raise
            self._move_across(source, target)

    def _move_across(self, source: str, target: str) -> None:
        """To another filesystem: the copy appears in one step, and then the original goes, in one step as well."""
        with begin(overwrite=True, durable=self.durable, lock_timeout=self.lock_timeout) as tx:
            copy(source, str(tx.path(target)))
        self._remove([source], recursive=True)

    def link(self, src: Any, dst: Any, **keywords: Any) -> None:
        """A hard link."""
        self._name(os.link, self._where(src, follow=False), dst, keywords)

    def symlink(self, src: Any, dst: Any, **keywords: Any) -> None:
        """A symbolic link that says `src`."""
        self._name(os.symlink, self._strip_protocol(src), dst, keywords)

    def _name(self, call: Any, said: str, path: Any, keywords: dict[str, Any]) -> None:
        path, view = self._strip_protocol(path), self._view
        if view is None:
            call(said, path, **keywords)
            return
        if view.stat(path, follow=False) is not None:
            errors.fail(errors.FileAlreadyExistsError, errno.EEXIST, "it already exists", path)
        view.check_parent(path)
        place = view.slot(path)
        call(said, place, **keywords)
        view.put(path, place, fresh=True)

    def chmod(self, path: Any, mode: int) -> None:
        """Set the permission bits; inside a transaction, of what it has written."""
        path, view = self._strip_protocol(path), self._view
        if view is None:
            os.chmod(path, mode)
        else:
            view.set_permissions(path, mode)


def _check_folder(path: str, recursive: bool | None) -> None:
    """As of the local filesystem, whether a folder may be removed; `recursive` None: only files may."""
    if recursive is None:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not recursive:
        raise ValueError("Cannot delete directory, set recursive=True")
    with contextlib.suppress(FileNotFoundError):  # the current folder is gone already
        if path == os.getcwd():
            raise ValueError("Cannot delete current working directory")


def _target(view: Changes, source: str, target: str) -> str:
    """Where `source` is to go: into a folder, in the place of a file."""
    found, there = view.stat(source, follow=False), view.stat(target)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
    if there is None or view.resolve(source, follow=False) == view.resolve(target, follow=False):
        return target
    onto_link = view.resolve(source, follow=False) == view.resolve(target)  # which leads to the source
    if view.is_folder(target) and not onto_link:
        target = os.path.join(target, os.path.basename(source))
        if view.stat(target, follow=False) is not None:
            errors.fail(errors.FileAlreadyExistsError, errno.EEXIST, "it already exists", target)
    elif view.is_folder(source, follow=False):
        text = "cannot move a folder there: what exists is no folder"
        errors.fail(errors.WrongKindError, errno.ENOTDIR, text, source, target)
    return target
