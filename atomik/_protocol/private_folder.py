"""The private folder: a transaction's private folder in a parent, locked for as long as the transaction lives.

``.atomik-<txid>`` (mode 0700) holds the slots ``.atomik-<txid>-<n>`` and, during a commit of several items, the
journal.  One folder of our own per parent, rather than many hidden siblings of the destinations, because

* nobody else can read what is staged, nor create, replace or guess a slot;
* the user's folder gets one entry, not thousands (ext4 never gives the blocks of a grown folder back);
* files and folders made in it inherit set-group-id and default ACLs as they would in the parent itself.

Its flock shows that the owner lives: who can take it, may treat what is inside as abandoned.  A slot that lies
*beside* the destination instead (one-item overwrites, and folders that this user may rename only within their parent)
is covered by a lock on the parent: shared by the one-item writer, exclusive by a transaction and by recovery.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from attrs import define, field

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._folder.resolve import is_private
from atomik._hidden_names import KEPT as KEPT  # noqa: PLC0414  for modules that are being rewritten
from atomik._hidden_names import journal_name as journal_name  # noqa: PLC0414  for modules that are being rewritten
from atomik._hidden_names import new_txid as new_txid  # noqa: PLC0414  for modules that are being rewritten
from atomik._hidden_names import private_folder_name
from atomik._hidden_names import slot_name as slot_name  # noqa: PLC0414  for modules that are being rewritten
from atomik._system import forked, kernel

_ATTEMPTS = 8
_SAMPLE = "sample"


@define(eq=False)
class PrivateFolder:
    """The private folder of transaction `txid` in `parent`."""

    parent: Directory
    txid: str
    folder: Directory = field(init=False)
    _private: bool | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.folder = _make(self.parent, self.name)

    @property
    def name(self) -> str:
        """Its name in the parent."""
        return private_folder_name(self.txid)

    def path_of(self, slot: Place) -> str:
        """The path of a slot, for code that is not ours and writes to it by name.

        Where others can rename the private folder, or a folder above it, they can lay something else in its place, and whatever
        is written by that path would go there.  The path then begins at our descriptor of the private folder, which no rename
        leads elsewhere; other processes of this user can use it too, while this one lives.
        """
        if self._private is None:
            self._private = is_private(self.parent.path, self.parent.key)
        if self._private:
            return str(slot)
        try:
            kernel.port.stat(self.descriptor_path)
        except FileNotFoundError:
            text = (
                "others can rename what lies in the folder, or in one above it, and without /proc there is no path that they "
                "cannot make lead elsewhere; mount /proc, or pass tmp_dir=, a folder of your own on the same filesystem"
            )
            errors.fail(errors.AccessDeniedError, errno.EACCES, text, self.parent.path)
        return f"{self.descriptor_path}/{slot.name}"

    @property
    def descriptor_path(self) -> str:
        """A path to it that begins at our descriptor."""
        return f"/proc/{os.getpid()}/fd/{self.folder.fd}"

    def release(self) -> None:
        """Remove the folder, which must be empty by now, and let go of the lock.

        Raises OSError (ENOTEMPTY when something of somebody else's is inside); it stays open then, and may be repeated.
        """
        # By name, so look that the name is still ours; a stranger's empty folder is not ours to remove (I6).
        if self.parent.identity(self.name) == self.folder.identity(""):
            kernel.port.rmdir(self.name, self.parent.fd)
        self.folder.close()


def _make(parent: Directory, name: str) -> Directory:
    """Make and lock the folder; again, if a recovery took it for abandoned between the two."""
    for _ in range(_ATTEMPTS):
        folder = _try_to_make(parent, name)
        if folder is not None:
            return folder
    text = "somebody keeps removing atomik's staging folder"
    errors.fail(errors.ConflictError, errno.EBUSY, text, parent.child(name))


def _try_to_make(parent: Directory, name: str) -> Directory | None:
    port = kernel.port
    try:
        port.mkdir(name, 0o700, parent.fd)
    except OSError:
        raise
    except BaseException:  # an interrupt, perhaps right behind the call
        _unmake(parent, name, None)
        raise
    folder = None
    try:
        folder = Directory.open(name, parent.fd, follow=False)
        folder.path = parent.child(name)
        _refuse_foreign(folder)
        forked.guard(folder.fd)
        port.flock(folder.fd, fcntl.LOCK_EX)  # waits only for a recovery that looks at it this very moment
        found = parent.stat(name)
        if found is not None and (found.st_dev, found.st_ino) == folder.key:
            return folder
    except BaseException as exc:
        _unmake(parent, name, folder)
        if folder is None and isinstance(exc, FileNotFoundError):
            return None
        raise
    _unmake(parent, name, folder)
    return None


def _refuse_foreign(folder: Directory) -> None:
    """Between mkdir and open, whoever may rename things in the parent can put a folder of his own in the place of ours.

    What was made here belongs to us and to nobody else.  Where the filesystem gives all things one owner and mode (FAT,
    a server that maps users), it does so to a folder that is made in it as well.
    """
    mine = kernel.port.fstat(folder.fd)
    if (mine.st_uid != os.geteuid() or mine.st_mode & 0o077) and not like_all(folder):
        text = "somebody put another folder in the place of atomik's staging folder; write to a folder of your own"
        errors.fail(errors.ConflictError, errno.EBUSY, text, folder.path)


def like_all(folder: Directory) -> bool:
    """Whether what we make in this folder gets the folder's owner, or a mode that we cannot choose: then owner and mode
    say nothing here about who made what.

    Looked at through the descriptor of a file that was made for it: a name might be somebody else's a moment later.
    """
    port = kernel.port
    try:
        fd = port.create(_SAMPLE, os.O_RDWR, 0o600, folder.fd)
    except OSError:
        return False
    try:
        made, found, me = port.fstat(fd), port.fstat(folder.fd), os.geteuid()
        if made.st_uid != me or found.st_uid != me:
            return made.st_uid == found.st_uid
        return _mode_is_given(fd)
    finally:
        port.close(fd)
        with contextlib.suppress(OSError):
            port.unlink(_SAMPLE, folder.fd)


def _mode_is_given(fd: int) -> bool:
    """Whether the filesystem has a mode of its own for all files, whatever we ask for."""
    port = kernel.port
    try:
        for mode in (0o600, 0o666):
            port.fchmod(fd, mode)
            if port.fstat(fd).st_mode & 0o777 != mode:
                return True
    except OSError:  # EPERM of vfat
        return True
    return False


def _unmake(parent: Directory, name: str, folder: Directory | None) -> None:
    """Making it failed: take away what there is of it."""
    if folder is not None:
        folder.close()
    # What brought us here is the error to tell; an empty folder that cannot be removed is left to recovery.
    with contextlib.suppress(OSError):
        kernel.port.rmdir(name, parent.fd)
