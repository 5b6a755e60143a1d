"""Items with content: a file written through a file object, a folder filled by path, a path for other programs."""

from __future__ import annotations

import errno
import os
import stat
from typing import IO, TYPE_CHECKING, Any

from attrs import define, field

from atomik import errors
from atomik._folder.directory import Directory, Place
from atomik._system import kernel
from atomik._tree import compare as _compare
from atomik._tree import metadata as _metadata

from . import file_objects as _handles
from .item import Item
from .options import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable

#: errno of O_TMPFILE where the filesystem (EOPNOTSUPP; EINVAL, ENOSYS or EISDIR on FUSE) has none.  Not ENOENT: that
#: the folder itself was removed says nothing about the others on its filesystem.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS)

#: errno of linkat for an unnamed file: a filesystem without hard links (EPERM, EOPNOTSUPP, ENOSYS, EINVAL), or a sandbox
#: without /proc on a kernel before 6.10 (ENOENT)
NO_NAME = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOENT)


@define(eq=False)
class StagedFile(Item):
    """A file that the user writes through a file object."""

    fd: int = field(default=-1, init=False, repr=False)
    handle: IO[Any] | None = field(default=None, init=False, repr=False)
    #: the layer below a text file, which the user may detach and write to
    below: IO[bytes] | None = field(default=None, init=False, repr=False)
    mode: tuple[str, bool, bool] = field(default=("w", False, False), init=False, repr=False)

    def open(
        self, name: str, mode: tuple[str, bool, bool], buffering: int, encoding: str | None, on_error: str | None,
        newline: str | None,
    ) -> IO[Any]:  # fmt: skip
        """Make the unnamed file and the file object on it, whose `name` is the item's path."""
        self.mode = mode
        try:
            self.fd = self._create()
            if mode[0] in "ar":
                self._copy_present()
            self.handle = handle = _handles.open_handle(
                self.fd, self, name, mode, buffering, encoding, on_error, newline
            )
            if not mode[2]:
                self.below = handle.buffer  # type: ignore[attr-defined]
        except BaseException as exc:
            self.discard()
            if isinstance(exc, OSError) and not isinstance(exc, errors.AtomikError):
                raise errors.system_error(exc, "cannot stage the file", self.path) from exc
            raise
        return handle

    def _create(self) -> int:
        fs = self.stage.fs
        if fs.tmpfile is not False:
            try:
                fd = kernel.port.open_tmpfile(self.stage.fd, os.O_RDWR, 0o666)
            except OSError as exc:
                if exc.errno not in _NO_TMPFILE:
                    raise
                fs.tmpfile = False
            else:
                fs.tmpfile = True
                return fd
        slot = self.workspace.slot(self.stage)
        fd = kernel.port.create(slot.name, os.O_RDWR, 0o666, slot.fd)
        self.slot = slot
        return fd

    def _copy_present(self) -> None:
        """Modes "a" and "r+" begin with a copy of what is there."""
        found = self.place.stat()
        if found is None:
            if self.mode[0] == "a":
                return
            text = 'mode "r+" needs an existing file; use mode "w" to make one'
            errors.fail(errors.MissingPathError, errno.ENOENT, text, self.path)
        if not kernel.is_file(found.st_mode):  # only to open a device or a FIFO may have effects of its own
            text = 'what exists is no regular file, so there is no content to start from; use mode "w" to replace it'
            text += ", or follow_symlinks=True" * stat.S_ISLNK(found.st_mode)
            errors.fail(errors.WrongKindError, errno.EINVAL, text, self.path)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        source = kernel.port.open(self.place.name, flags, self.place.fd)
        try:
            from atomik._tree.clone import copy_content

            copy_content(source, self.fd)
        finally:
            kernel.port.close(source)

    def _seal(self) -> None:
        handle = self.handle
        assert handle is not None
        handle._item = None  # type: ignore[attr-defined]
        self.handle = None
        below, self.below = self.below, None
        if not is_closed(handle):
            handle.let_go()  # type: ignore[attr-defined]  # flushes; the descriptor stays ours
        elif below is not None and not is_closed(below):
            below.flush()  # it was detached: what was written to it counts all the same
        if self.options is not PLAIN:
            self.finish(self.fd)

    def name_it(self) -> None:
        """Link the unnamed file into a slot, so that it needs no descriptor any more."""
        if self.slot is not None:
            return
        slot = self.workspace.slot(self.stage)
        directory, name = slot
        try:
            kernel.port.link_fd(self.fd, name, directory.fd)
        except OSError as exc:
            if exc.errno not in NO_NAME:
                raise
            self._copy_into(slot)
        self.slot = slot

    def _copy_into(self, slot: Place) -> None:
        """There is O_TMPFILE here, but no way to give such a file a name: copy it into one that has.

        Where that is so shows with the first file of a mount; the later ones have names from the start.
        """
        from atomik._tree.content import copy_content

        self.stage.fs.tmpfile = False
        metadata = _metadata.Metadata.held(self.fd, kernel.port.fstat(self.fd))
        fd = kernel.port.create(slot.name, os.O_RDWR, 0o600, slot.fd)
        try:
            copy_content(self.fd, fd)
            self.not_preserved += _metadata.apply(fd, metadata, "all", same_content=True)
        except BaseException:
            kernel.port.close(fd)
            raise
        self.close()
        self.fd, self.synced = fd, False

    def finish_slot(self) -> None:
        if self.fd < 0:
            super().finish_slot()
        else:
            self.finish(self.fd)

    def _equals_present(self) -> bool:
        if self.fd < 0:
            return super()._equals_present()
        return _compare.same_file(self.fd, self.place, self.options.permissions)

    def close(self) -> None:
        """Close the descriptor."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            kernel.port.close(fd)

    def _drop(self) -> None:
        handle, self.handle = self.handle, None
        if handle is not None:
            handle._item = None  # type: ignore[attr-defined]
        try:
            if handle is not None and not is_closed(handle):
                close_quietly(handle)
        finally:
            self.close()
            super()._drop()


def is_closed(handle: IO[Any]) -> bool:
    """Whether a file object is closed, or can no more be (its buffer was detached)."""
    try:
        return handle.closed
    except ValueError:  # the user detached the buffer, and so took flushing upon himself
        return True


def close_quietly(handle: IO[Any]) -> None:
    """Close a file object whose content is not wanted: a full disk must not hide the error that brought us here."""
    try:
        handle.close()
    except (OSError, ValueError):
        pass


@define(eq=False)
class StagedFolder(Item):
    """A folder that the user fills by path."""

    def open(self, base: str | os.PathLike[str] | None, progress: Callable[[int], None] | None = None) -> str:
        """Make the folder in the private folder; ``base="copy"`` (or a path) starts from a clone.  Returns its path."""
        slot = self.workspace.slot(self.stage)
        try:
            kernel.port.mkdir(slot.name, 0o777, slot.fd)
            self.slot = slot
            if base is not None:
                self._clone(base, slot, progress)
        except BaseException as exc:
            self.discard()
            if isinstance(exc, OSError) and not isinstance(exc, errors.AtomikError):
                raise errors.system_error(exc, "cannot stage the folder", self.path) from exc
            raise
        return self.workspace.path_of(slot)

    def _clone(self, base: str | os.PathLike[str], slot: Place, progress: Callable[[int], None] | None) -> None:
        from_destination = base == "copy"
        try:
            if from_destination:
                source = Directory.open(self.place.name, self.place.fd, follow=False)
                source.path = self.path
            else:
                source = Directory.open(os.path.abspath(base))
        except FileNotFoundError:
            if from_destination:
                return  # nothing there yet: start empty
            raise
        try:
            target = Directory.open(slot.name, slot.fd, follow=False)
            target.path = str(slot)
            try:
                from atomik._tree.clone import clone

                self.not_preserved += tuple(clone(source, target, progress))
            finally:
                target.close()
        finally:
            source.close()

    def _seal(self) -> None:
        assert self.slot is not None
        try:
            fd = kernel.port.open(self.slot.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, self.slot.fd)
        except OSError as exc:
            raise errors.system_error(exc, "the staged folder is gone or unreadable", str(self.slot)) from exc
        try:
            kept = self.not_preserved
            self.finish(fd)
            self.not_preserved = kept + self.not_preserved
        finally:
            kernel.port.close(fd)
