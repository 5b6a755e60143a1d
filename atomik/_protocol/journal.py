"""A journal on disk: create it, link it, mark it, and open one that another process left.

The journal is an unnamed file (mode 0600, flock'ed by its owner) until its intent is written; then it is linked into
every private folder, where nobody else can reach it, and as ``.atomik-journal`` into every parent, where the next transaction
finds it.  All these names are one inode, so one mark commits everywhere at once.

`load` trusts nothing: a journal is a regular file of the effective user or of root that nobody else may write,
reached without following a link, of bounded size; `records` checks the contents.  Where the filesystem gives everything
one owner and mode, these are no sign of a forgery and are not judged (`as_given`).  A journal also holds its own
identity, so that a copy (cp -a, a restored backup) is not taken for a journal.
"""

from __future__ import annotations

import errno
import fcntl
import os

from atomik import errors
from atomik._folder.directory import Directory, identify
from atomik._folder.place import NO_TMPFILE, Place, is_no_link, rename_back
from atomik._hidden_names import JOURNAL_NAME, new_txid
from atomik._system import forked, kernel

from . import records as _records
from .private_folder import PrivateFolder, as_given

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from .records import Journal

_new = tuple.__new__  # in half the time of calling the class

#: errno of opening another user's file, or what is not a file (any more)
_NOT_FOR_US = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO)
#: permissions that let another user write a journal
_OTHERS = 0o022


class HotJournal(Exception):  # noqa: N818  a signal to start again, not an error
    """A parent has another transaction's journal: recover it, or wait, and start again."""

    def __init__(self, directory: Directory) -> None:
        super().__init__(directory.path)
        self.directory = directory


class LiveJournal:
    """The journal of a transaction of this process, or one taken over by recovery.

    ``fd`` is -1 while it is closed; ``end`` is where the next record belongs; ``identity`` is that of the file.  With `room`
    an outcome's bytes are written as zeros with the intent, so that the outcome itself changes no size.  `mark` is the name
    that is the commit mark, where one log holds every change; None where the mark is a record.
    """

    fd = -1
    room = 0
    mark: Place | None = None

    def __init__(self, fd: int, txid: str, end: int, identity: bytes | None = None) -> None:
        self.txid, self.end, self.identity = txid, end, identity
        self.names: list[Place] = []
        self.fd = fd

    def append(self, kind: int) -> None:
        """Write an outcome record.  Not durable before the next barrier."""
        data = _records.encode_outcome(kind, self.txid)
        _write_all(self.fd, data, self.end)
        self.end += len(data)

    def set_mark(self) -> None:
        """Make the commit mark.  Not durable before the next barrier."""
        if self.mark is None:
            self.append(_records.COMMITTED)
        else:
            directory, name = self.names[0]
            kernel.port.link(name, directory.fd, self.mark.name, self.mark.fd)

    def append_undone(self) -> None:
        """Write that everything was brought back."""
        self.append(_records.UNDONE)

    def is_marked(self) -> bool:
        """Whether there is the mark, even if an exception arrived while it was made."""
        return self.read_back() == _records.COMMITTED if self.mark is None else self._is_at(self.mark)

    def read_back(self) -> int | None:
        """The outcome in the file, after an `append` that was interrupted: was the record written?"""
        size = kernel.port.fstat(self.fd).st_size
        content = _records.decode(_read(self.fd, size))
        return None if content is None else content.outcome

    def withdraw(self) -> None:
        """Remove its well-known names: it blocks nobody any more, and recovery finds it only in the private folders."""
        self._unlink([place for place in self.names if place.name == JOURNAL_NAME])

    def keep(self, home: PrivateFolder) -> None:
        """Keep it where it blocks nobody: in a private folder (unless the filesystem has no hard links, it is there)."""
        if all(place.name == JOURNAL_NAME for place in self.names):
            private = Place(home.folder, home.journal)
            rename_back(self.names[0], private, folder=False)
            self.names[0] = private

    def unlink(self) -> None:
        """Remove all its names: the well-known ones first, because they block others."""
        self.withdraw()
        self._unlink(list(self.names))

    def _unlink(self, places: list[Place]) -> None:
        for place in reversed(places):
            if self._is_at(place):  # I6: only while the name still leads to this journal
                kernel.port.unlink(place.name, place.directory.fd)
            self.names.remove(place)

    def _is_at(self, place: Place) -> bool:
        """Whether the name leads to this journal.  A server may give it another inode number (rclone, a moment after the
        rename), but it has no other file with the same content: the transaction's id is in it."""
        directory, name = place
        there = identify(directory.fs, directory.fd, name)
        if there is None or there == self.identity or directory.fs.name != "fuse":
            return there is not None and there == self.identity
        fd = kernel.port.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, directory.fd)
        try:
            return kernel.port.pread(fd, self.end, 0) == kernel.port.pread(self.fd, self.end, 0)
        finally:
            kernel.port.close(fd)

    def close(self) -> None:
        """Close the descriptor, and so let go of its lock."""
        fd = self.fd
        if fd < 0:
            return
        forked.release(fd)
        try:
            # One line: an interrupt comes before both, and nothing is lost, or after both.
            self.fd = -1; kernel.port.close(fd)  # noqa: E702  # fmt: skip
        except OSError as exc:
            # close(2) fails only with what the barriers reported before, or for a journal that is not durable anyway.
            if kernel.errno_of(exc) is None:
                raise

    def __del__(self) -> None:
        if self.fd >= 0:  # an interrupt came right before `close`: the lock would stop this process itself
            self.close()


def lock(fd: int, *, shared: bool = False) -> bool:
    """Take the lock on an open journal; False while another process has it."""
    forked.guard(fd)
    try:
        kernel.port.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return False
    return True


def close(fd: int) -> None:
    """Close a journal, which gives up its lock."""
    try:
        forked.release(fd)
    finally:
        kernel.port.close(fd)


def create(
    journal: LiveJournal,
    encode: Callable[[bytes], Iterable[bytes | bytearray]],
    private_folders: list[PrivateFolder],
    parents: list[Directory],
) -> None:
    """Write the intent, which `encode` makes for the identity of the journal's file, and give the file its names.

    `journal` is filled in rather than returned: an interrupt on the way back must not lose what is on the disk by then.
    `HotJournal` when a parent holds one already; nothing is left then.
    """
    try:
        _create(journal, encode, private_folders, parents)
    except _Unnameable:
        private_folders[0].folder.fs.tmpfile = False
        _create(journal, encode, private_folders, parents)


class _Unnameable(Exception):  # noqa: N818  a signal to start again
    """There is O_TMPFILE here, but no way to give such a file a name."""


def _create(
    journal: LiveJournal,
    encode: Callable[[bytes], Iterable[bytes | bytearray]],
    private_folders: list[PrivateFolder],
    parents: list[Directory],
) -> None:
    home = private_folders[0]
    _refuse_renumbered(home.parent)
    names = [_new(Place, (made.folder, made.journal)) for made in private_folders]
    names += [_new(Place, (parent, JOURNAL_NAME)) for parent in parents]
    journal.fd = _unnamed(home.folder, names[0].name)
    try:
        journal.identity = identify(home.folder.fs, journal.fd)
        journal.names.append(names[0])
        lock(journal.fd)
        at = 0
        for piece in encode(journal.identity or b""):
            _write_all(journal.fd, piece, at)
            at += len(piece)
        journal.end = at - journal.room
        if home.folder.fs.tmpfile:
            _name(journal.fd, names[0])
        for place in names[1:]:
            _add_name(journal, home, place)
    except BaseException:
        try:
            journal.unlink()
        except OSError as exc:
            if not kernel.is_failure(exc):
                raise  # else the end of the commit tries again: what came first is the error to tell
        finally:
            journal.close()
        raise


def _refuse_renumbered(folder: Directory) -> None:
    """Where an object that is renamed gets another inode number, it cannot be followed, and neither can the journal."""
    if folder.fs.renumbers:
        text = (
            "the filesystem gives renamed objects new inode numbers, so a transaction with several steps could not be undone "
            "there; write single files"
        )
        errors.fail(errors.UnsupportedFilesystemError, errno.EOPNOTSUPP, text, folder.path)


def _name(fd: int, place: Place) -> None:
    try:
        kernel.port.link_fd(fd, place.name, place.directory.fd)
    except OSError as exc:
        number = kernel.errno_of(exc)
        if number != errno.ENOENT and not is_no_link(number):  # ENOENT: a sandbox without /proc, before Linux 6.10
            raise
        raise _Unnameable from exc


def _unnamed(home: Directory, name: str) -> int:
    """An unnamed file where the filesystem has that, else one with its private name."""
    if home.fs.tmpfile is not False:
        try:
            fd = kernel.port.open_tmpfile(home.fd, os.O_RDWR, 0o600)
        except OSError as exc:
            if kernel.errno_of(exc) not in NO_TMPFILE:
                raise
            home.fs.tmpfile = False
        else:
            home.fs.tmpfile = True
            return fd
    return kernel.port.create(name, os.O_RDWR, 0o600, home.fd)


def _add_name(journal: LiveJournal, home: PrivateFolder, place: Place) -> None:
    """Link the journal to one more name."""
    first, (directory, name) = journal.names[0], place
    journal.names.append(place)  # before the call: an interrupt may come right after it
    try:
        kernel.port.link(first.name, first.directory.fd, name, directory.fd)
    except OSError as exc:
        answer = kernel.errno_of(exc)
        if answer == errno.EEXIST:
            raise HotJournal(directory) from None
        if not is_no_link(answer):
            raise
        _move_name(journal, home, place, exc)
        return
    if identify(directory.fs, directory.fd, name) != journal.identity:  # two identities (sshfs): not one file for us
        kernel.port.unlink(name, directory.fd)
        _move_name(journal, home, place, None)


def _move_name(journal: LiveJournal, home: PrivateFolder, place: Place, cause: OSError | None) -> None:
    """No hard links here: the journal's one name must be the well-known one, so there can be only one parent, and what is
    staged must be in it: recovery would find a private folder elsewhere without a journal and take it for abandoned."""
    first = Place(home.folder, home.journal)
    if place.name != JOURNAL_NAME or journal.names != [first, place] or home.parent.key != place.directory.key:
        text = (
            "the filesystem has no hard links, so a transaction over several folders cannot be journalled there; "
            "write to one folder per transaction, without tmp_dir"
        )
        raise errors.UnsupportedFilesystemError(
            *errors.os_args(errno.EOPNOTSUPP, text, place.directory.path)
        ) from cause
    try:
        rename_back(first, place, folder=False)
    except FileExistsError as exc:
        if kernel.errno_of(exc) is None:
            raise
        raise HotJournal(place.directory) from None
    journal.names.remove(first)


def _write_all(fd: int, data: bytes | bytearray, offset: int) -> None:
    done = kernel.port.pwrite(fd, data, offset)
    while done < len(data):
        done += kernel.port.pwrite(fd, data[done:], offset + done)


def load(place: Place, *, dry: bool = False) -> tuple[int, Journal | None] | None:
    """Open and read the journal at `place`: (descriptor, contents; None when the intent is torn), or None when there is
    nothing.  Raises `JournalError` for whatever may not be trusted; nothing was touched then.  With `dry` it is opened for
    reading, and every `suspicion` counts, because to judge it takes a file.
    """
    found = place.stat()
    if found is None:
        return None
    # Checked before it is opened: opening another user's device or FIFO could have side effects.
    _vouch(found, place, dry=dry)
    how = os.O_RDONLY if dry else os.O_RDWR
    try:
        fd = kernel.port.open(place.name, how | os.O_NOFOLLOW | os.O_NONBLOCK, place.fd)
    except OSError as exc:
        answer = kernel.errno_of(exc)
        if answer == errno.ENOENT:
            return None
        if answer not in _NOT_FOR_US:
            raise
        text = "cannot open the journal; nothing was touched. Let its owner run 'atomik recover'"
        raise errors.JournalError(*errors.os_args(exc.errno or errno.EACCES, text, str(place))) from exc
    try:
        now = kernel.port.fstat(fd)
        _vouch(now, place, dry=dry)
        try:
            return fd, _records.decode(_read(fd, now.st_size))
        except _records.BadJournal as exc:
            _refuse(place, str(exc))
    except BaseException:
        close(fd)
        raise


def reread(fd: int, place: Place) -> Journal | None:
    """The contents again, of a journal that is open and locked now."""
    try:
        return _records.decode(_read(fd, kernel.port.fstat(fd).st_size))
    except _records.BadJournal as exc:
        _refuse(place, str(exc))


def identity(fd: int, directory: Directory) -> bytes | None:
    """The identity of an open journal, in the terms of the folder's filesystem."""
    return identify(directory.fs, fd)


def _read(fd: int, size: int) -> bytes:
    """What the header says there is, and a little more for the outcome: never a sparse file's gigabytes."""
    wanted = min(size, _records.extent(kernel.port.pread(fd, _records.HEAD_SIZE, 0)))
    pieces: list[bytes] = []
    at = 0
    while at < wanted and (piece := kernel.port.pread(fd, wanted - at, at)):
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces)


def suspicion(found: os.stat_result) -> str:
    """Why a journal may be another user's work, by its owner and mode alone; "" if it is not."""
    if found.st_uid not in (0, os.geteuid()):
        return f"it belongs to user {found.st_uid}: let them run 'atomik recover'"
    return "others may write to it" if found.st_mode & _OTHERS else ""


def _vouch(found: os.stat_result, place: Place, *, dry: bool) -> None:
    if not kernel.is_file(found.st_mode):
        _refuse(place, "it is not a regular file")
    why = suspicion(found)
    if why and (dry or not as_given(found, place.directory, new_txid(), _OTHERS)):
        _refuse(place, why)
    if found.st_size > _records.MAX_SIZE:
        _refuse(place, f"it is larger ({found.st_size} bytes) than any journal")


def _refuse(place: Place, why: str) -> NoReturn:
    text = f"cannot trust this journal: {why}; nothing was touched. If atomik did not make it, remove it"
    errors.fail(errors.JournalError, errno.EBADMSG, text, str(place))
