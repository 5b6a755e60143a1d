"""`Transaction.file`: a file that the user writes through a file object."""

from __future__ import annotations

import errno
import os
import stat

from atomik import errors
from atomik._folder.place import NO_TMPFILE, refuse_unremovable
from atomik._protocol.publish import is_no_name, refuse_exdev
from atomik._system import kernel

from . import companions, file_objects
from .item import Found, Item, Operation
from .options import PLAIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

    from atomik._folder.directory import Directory
    from atomik._folder.place import Place
    from atomik._system.libc import Status

    from .intake import Intake
    from .options import ItemOptions, Options, StrPath
    from .workspace import Workspace

#: errno of O_TMPFILE where the filesystem has none, or (EPERM) a filter refuses it
_NO_TMPFILE = NO_TMPFILE | {errno.EPERM}

_new = tuple.__new__  # at half the price of calling the class


def stage(
    intake: Intake, path: StrPath, mode: str, overwrite: bool | None, tmp_dir: StrPath | None, text: tuple[Any, ...],
    options: ItemOptions,
) -> IO[Any]:  # fmt: skip
    """Stage a file, and return the file object to write it with; `text` is (buffering, encoding, errors, newline)."""
    parsed = file_objects.parse_mode(mode)
    if parsed[0] == "x":
        if overwrite:
            raise ValueError('mode "x" creates and never overwrites; use mode "w" with overwrite=True')
        overwrite = False
    if parsed[2]:
        if text[1:] != _NO_TEXT:
            _refuse_text_options(*text[1:])
    elif text[0] == 0:
        raise ValueError("can't have unbuffered text I/O")
    item = intake.add(StagedFile, path, overwrite, tmp_dir, options)
    return intake.open(item, item.open, parsed, text)


#: encoding, errors and newline that a binary file may have: "utf-8" is the default, so nobody asked for it
_NO_TEXT = ("utf-8", None, None)


def _refuse_text_options(encoding: str | None, errors: str | None, newline: str | None) -> None:
    """As `open` does."""
    if encoding is not None and encoding != "utf-8":
        raise ValueError("binary mode doesn't take an encoding argument")
    if errors is not None:
        raise ValueError("binary mode doesn't take an errors argument")
    if newline is not None:
        raise ValueError("binary mode doesn't take a newline argument")


class StagedFile(Item):
    """A file that the user writes through a file object."""

    __slots__ = ("chosen_mode", "database", "fd", "file_object", "unnameable")

    kind = "file"

    def __init__(
        self, given: str | None, place: Place, stage: Directory, workspace: Workspace, options: Options, order: int = 0
    ) -> None:
        Item.__init__(self, given, place, stage, workspace, options, order)
        self.fd = -1
        self.file_object: IO[Any] | None = None
        #: the mode bits that the user gave it by its descriptor
        self.chosen_mode: int | None = None
        #: it may be a database, by its name or, once it is sealed, by its content
        self.database = companions.is_database(place.name)
        #: it cannot get its only name directly at the destination: that was tried, or watchers would only hear that it was
        #: created, because it cannot be opened for writing (P10)
        self.unnameable = options.permissions is not None and not options.permissions & 0o200

    def open(self, mode: tuple[str, bool, bool], text: tuple[Any, ...]) -> IO[Any]:
        """Make the unnamed file and the file object on it, whose `name` is the item's path."""
        self.fd = fd = self._create()
        if mode[0] in "ar":
            self._copy_present(mode[0])
        self.file_object = file_object = file_objects.open_file_object(fd, self, self.path, mode, *text)
        return file_object

    def _create(self) -> int:
        stage, permissions = self.stage, self.options.permissions
        fs = stage.fs
        # What is not given here is given by fchmod(2), which some servers refuse.
        mode = 0o666 if permissions is None else permissions & 0o066 | 0o600
        if fs.tmpfile is not False:
            try:
                fd = kernel.port.open_tmpfile(stage.fd, os.O_RDWR, mode)
            except OSError as exc:
                number = kernel.errno_of(exc)
                if number not in _NO_TMPFILE:
                    raise
                if number != errno.EPERM:  # an immutable folder gives it too, which says nothing about other folders
                    fs.tmpfile = False
            else:
                if not fs.tmpfile:
                    fs.tmpfile = True
                return fd
        self.slot = slot = self.workspace.slot(stage)
        return kernel.port.create(slot.name, os.O_RDWR, mode, slot.fd)

    def finish(self, fd: int, there: Status | None, source: Place | None = None) -> None:
        """As for every item; but a mode that the user gave the open file has priority over that of the replaced file."""
        super().finish(fd, there, source)
        if self.chosen_mode is not None and self.options.permissions is None:
            kernel.port.fchmod(fd, self.chosen_mode)

    def _copy_present(self, mode: str) -> None:
        """Modes "a" and "r+" begin with a copy of what is there."""
        from .observe import look_at

        start, at = self.start(), self.expected_at
        if self.options.expect is None and at is not None:  # lines that others wrote in the meantime must not be lost
            self.expectation = look_at(at, digest=False)
        found = None if start is None else start.status()
        if start is None or found is None:
            if mode == "a":
                return
            text = 'there is no file to start from; use mode "w" to create one'
            errors.fail(errors.MissingPathError, errno.ENOENT, text, self.path)
        if not kernel.is_file(found.mode):  # only to open a device or a FIFO may have effects of its own
            text = 'it is not a regular file, so there is no content to start from; use mode "w" to replace it'
            text += ", or follow_symlinks=True" * kernel.is_link(found.mode)
            errors.fail(errors.WrongKindError, errno.EINVAL, text, self.path)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        source = kernel.port.open(start.name, flags, start.fd)
        try:
            from atomik._tree.content import copy_content

            copy_content(source, self.fd)
        finally:
            kernel.port.close(source)

    def refuse_companions(self) -> None:
        if self.database:
            companions.refuse_log(self.place, self.workspace, self.path)

    def _seal(self) -> None:
        file_object = self.file_object
        assert file_object is not None
        file_object._item = None  # type: ignore[attr-defined]
        self.file_object = None
        below = file_object._below  # type: ignore[attr-defined]
        if not is_closed(file_object):
            raw: Any = getattr(below or file_object, "raw", file_object)
            if raw.first_mode is not None:
                self.chosen_mode = mode = raw.chosen_mode()
                self.unnameable = self.unnameable or (mode is not None and not mode & 0o200)
            file_object.let_go()  # type: ignore[attr-defined]  # flushes; the descriptor stays ours
        elif below is not None and not is_closed(below):
            below.flush()  # it was detached: what was written to it counts nevertheless
        self.database = self.database or companions.begins_as_database(self.fd)

    def _finish_late(self, there: Status | None) -> None:
        options = self.options
        if options is PLAIN:
            return
        set_anyway = options.permissions is not None or self.chosen_mode is not None
        if set_anyway or (there is not None and options.preserve != "none" and not self._take_over_mode(there)):
            self.finish_content(there)

    def _take_over_mode(self, old: Status) -> bool:
        """The common case, with no attribute on either and one owner: only the mode may differ.  False where there is
        more to it.  Asks for no times: a file whose times were asked for costs more at its next change (see `libc`)."""
        if old.mode & 0o177000 != stat.S_IFREG:  # no regular file, or one with more than permissions in its mode
            return False
        port, fd, (directory, name) = kernel.port, self.fd, self.place
        try:
            if port.has_xattrs(name, directory.fd):
                return False
            if fd >= 0:
                new, has_xattrs = port.statx(fd), bool(port.listxattr(fd))
            else:
                assert self.slot is not None
                directory, name = self.slot
                new, has_xattrs = port.statx(directory.fd, name), port.has_xattrs(name, directory.fd)
            if has_xattrs or new.uid != old.uid or new.gid != old.gid or (fd < 0 and new.mode != old.mode):
                return False
            if new.mode != old.mode:
                port.fchmod(fd, old.mode & 0o777)
        except OSError as exc:
            if kernel.errno_of(exc) is None:
                raise
            return False  # the thorough way finds out what it is
        return True

    def operation(self, *, alone: bool) -> Operation:
        """As for every item; a file published alone may still be without a name, and then nobody asks for its identity."""
        if self.slot is not None and not (
            alone and self.fd >= 0 and self.place.directory.fs.trusted and not self.unnameable
        ):
            return super().operation(alone=alone)
        options, place = self.options, self.place
        # A file without a name needs no slot, unless it is undone (`Commit._identify`).
        return _new(Operation, (
            "put", place, self.slot or place, _UNKNOWN, self.fd, None, self.backup_place if self.backup else None,
            options.overwrite, options.allow_gap, self.order, self.any_kind,
        ))  # fmt: skip

    def content_path(self) -> str:
        return f"/proc/self/fd/{self.fd}" if self.fd >= 0 else super().content_path()

    slot_to_read = Item._finished_slot

    def name_it(self) -> None:
        """Link the unnamed file into a slot, so that it needs no descriptor any more."""
        if self.slot is None:
            self._name_at(self.workspace.slot(self.stage))

    def name_beside(self) -> None:
        """A name for an unnamed file that will be exchanged alone.

        Beside the destination, which is cheapest, while a shared lock on the parent shows that we live; in a private folder
        where another process holds that lock, or where the filesystem has to be tried anyway.
        """
        parent = self.place.directory
        if self.stage is parent and parent.fs.trusted and not parent.append_only and parent.try_lock(shared=True):
            refuse_unremovable(self.place)
            self._name_at(self.workspace.sibling(parent))
        else:
            self.name_it()

    def _name_at(self, slot: Place) -> None:
        directory, name = slot
        self.slot = slot  # before it exists: an interrupt may come right after the call
        try:
            kernel.port.link_fd(self.fd, name, directory.fd)
        except OSError as exc:
            number = kernel.errno_of(exc)
            if number == errno.EXDEV:
                refuse_exdev(slot, self.place, exc)
            if not is_no_name(number):
                raise
            self._copy_into(self.workspace.slot(self.stage))

    def _copy_into(self, slot: Place) -> None:
        """There is O_TMPFILE here, but no way to give such a file a name: copy it into one that has.

        Where that is so shows with the first file of a mount; the later ones have names from the start.
        """
        from atomik._tree import metadata
        from atomik._tree.content import copy_content

        kept = metadata.Metadata.held(self.fd, kernel.port.fstat(self.fd))
        self.slot = slot
        fd = kernel.port.create(slot.name, os.O_RDWR, 0o600, slot.fd)
        self.stage.fs.tmpfile = False  # only now: a folder that was removed says nothing about the others
        try:
            copy_content(self.fd, fd)
            self.not_preserved += metadata.apply(fd, kept, "all", same_content=True)
        except BaseException:
            kernel.port.close(fd)
            raise
        self.close()
        self.fd, self.synced = fd, False

    def _sync_new(self) -> int:
        if self.fd < 0 or self.unchanged:
            return super()._sync_new()
        kernel.port.fsync(self.fd)
        return 1

    def finish_content(self, there: Status | None, source: Place | None = None) -> None:
        """`finish` what was staged, by its own descriptor where that is still open."""
        if self.fd < 0:
            super().finish_content(there, source)
        else:
            self.synced = False
            self.finish(self.fd, there, source)

    def _equals_present(self) -> bool:
        if self.fd < 0:
            return super()._equals_present()
        from atomik._tree import compare

        return compare.same_file(self.fd, self.place, self.options.permissions)

    def close(self) -> None:
        """Close the descriptor."""
        fd = self.fd
        if fd >= 0:
            self.fd = -1  # nothing that can be interrupted comes between this and the call
            kernel.port.close(fd)

    def _drop(self) -> None:
        file_object, self.file_object = self.file_object, None
        if file_object is not None:
            file_object._item = None  # type: ignore[attr-defined]
        try:
            if file_object is not None and not is_closed(file_object):
                close_quietly(file_object)
        finally:
            self.close()
            super()._drop()


#: A file that is published alone, whose identity is asked for only when something failed.
_UNKNOWN = Found("file", None)


def is_closed(file_object: IO[Any]) -> bool:
    """Whether a file object is closed, or can no longer be (its buffer was detached)."""
    try:
        return file_object.closed
    except ValueError:  # the user detached the buffer, and so took flushing upon themselves
        return True


def close_quietly(file_object: IO[Any]) -> None:
    """Close a file object whose content is not wanted: a full disk must not hide the error that brought us here."""
    try:
        file_object.close()
    except ValueError:
        pass
    except OSError as exc:
        if not kernel.is_failure(exc):
            raise
