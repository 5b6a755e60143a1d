"""A transaction's private folder in a parent, locked while the transaction is alive.

``.atomik-<txid>`` (mode 0700) holds the slots ``.atomik-<txid>-<n>`` and, during a commit of several items, the
journal.  One folder of our own per parent, rather than many hidden siblings of the destinations, because

* nobody else can read what is staged, nor create, replace or guess a slot;
* the user's folder gets one entry, not thousands (ext4 never gives the blocks of a grown folder back);
* files and folders made in it inherit set-group-id and default ACLs as they would in the parent itself.

Its owner holds an flock on it while alive.  A process that can take that lock may treat the contents as abandoned.

A slot *next to* the destination (for an overwrite of a single output, and for folders that this user may rename only within
their parent) is covered by a lock on the parent: shared by the writer, exclusive by a transaction and by recovery.
"""

from __future__ import annotations

import errno
import fcntl
import os
from _thread import RLock

from atomik import _hidden_names, errors
from atomik._folder.directory import Directory
from atomik._folder.lock import refuse_without_locks
from atomik._folder.pin import is_pinned
from atomik._folder.place import Place, delete_file, refuse_unremovable, rename
from atomik._folder.resolve import is_private
from atomik._hidden_names import journal_name, new_txid, pinned_name, private_folder_name, slot_name
from atomik._system import forked, kernel
from atomik._tree.delete import delete_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_ATTEMPTS = 8
#: the number of the slot that a scratch file has
_SAMPLE = 10**10 - 1


class PrivateFolder:
    """The private folder of transaction `txid` in `parent`; `make` makes it."""

    __slots__ = ("_making", "_private", "_tried", "folder", "made", "parent", "txid")

    #: the folder itself, once it was opened
    folder: Directory
    #: what is staged in it outlives a transaction that does not publish it (see `resumable`)
    outlives = False

    def __init__(self, parent: Directory, txid: str) -> None:
        self.parent, self.txid = parent, txid
        #: threads of one transaction make one together; a signal handler may come in the middle
        self._making = RLock()
        self._private: bool | None = None
        #: whether something of the name may be there
        self._tried = False
        #: whether it exists, locked
        self.made = False

    def make(self) -> None:
        """Make and lock it, if another thread has not; again, if a recovery took it for abandoned between the two.

        Whatever exception arrives in here, `dissolve` knows what to remove.
        """
        with self._making:
            if not self.made:
                self._make()

    def _make(self) -> None:
        for _ in range(_ATTEMPTS):
            if self._tried:
                self._dissolve(None)  # what an attempt has left that was interrupted
            if self._try_to_make():
                self.made = True
                return
        self._dissolve(None)
        text = "another process keeps removing atomik's private folder"
        errors.fail(errors.ConflictError, errno.EBUSY, text, self.path)

    def _try_to_make(self) -> bool:
        port, parent, name = kernel.port, self.parent, self.name
        self._tried = True  # before it exists: an interrupt may come right after the call
        try:
            port.mkdir(name, 0o700, parent.fd)
        except OSError as exc:
            self._tried = kernel.errno_of(exc) is None
            refuse_no_folders(kernel.errno_of(exc), parent)
            raise
        try:
            self.folder = folder = Directory.open(name, parent.fd, follow=False)
        except FileNotFoundError as exc:
            if kernel.errno_of(exc) is None:
                raise
            return False
        folder.path = parent.child(name)
        _refuse_foreign(folder, self.txid)
        forked.guard(folder.fd)
        try:
            port.flock(folder.fd, fcntl.LOCK_EX)  # waits only for a recovery that is checking it at this moment
        except OSError as exc:
            refuse_without_locks(kernel.errno_of(exc), parent.path)
            raise
        found = Place(parent, name).status()
        if found is None or found.place_key != folder.place_key:
            return False
        refuse_unremovable(Place(parent, name), ours=True)
        return True

    @property
    def name(self) -> str:
        """Its name in the parent."""
        return private_folder_name(self.txid)

    @property
    def journal(self) -> str:
        """The name that the journal has in it."""
        return journal_name(self.txid)

    def path_of(self, slot: Place) -> str:
        """The path of a slot, for code that is not ours and writes to it by name.

        Where others can rename the private folder, or a folder above it, they can put something else in its place, and
        whatever is written by that path would go there.  The path then begins at our descriptor of the private folder, which
        no rename leads elsewhere; other processes of this user can use it too, while this one lives.
        """
        if self._private is None:
            self._private = is_private(self.parent.path, self.parent.key)
        if self._private:
            return str(slot)
        try:
            kernel.port.stat(self.descriptor_path)
        except OSError as exc:
            if kernel.errno_of(exc) not in kernel.NO_PROC:
                raise
            text = (
                "others can rename what is in the folder, or in one above it, and without /proc they could redirect any path "
                "to the private folder; mount /proc, or pass tmp_dir=, a folder of your own on the same filesystem"
            )
            errors.fail(errors.AccessDeniedError, errno.EACCES, text, self.parent.path)
        return f"{self.descriptor_path}/{slot.name}"

    @property
    def descriptor_path(self) -> str:
        """A path to it that begins at our descriptor."""
        return f"/proc/{os.getpid()}/fd/{self.folder.fd}"

    @property
    def path(self) -> str:
        """Its path, for messages."""
        return self.parent.child(self.name)

    def hand_over(self) -> None:
        """Its transaction is committed, and `dissolve` will be called later: keep a descriptor of the parent for that."""
        self.parent = self.parent.reopened()

    def empty(self, progress: Callable[[int], None] | None = None) -> None:
        """Delete what it holds, except the journal: as long as that is there, it leads recovery to all private folders."""
        folder: Directory | None = getattr(self, "folder", None)
        if folder is not None and folder.fd >= 0:
            clear(folder, self.name, progress)

    def dissolve(self, progress: Callable[[int], None] | None = None) -> None:
        """Empty it, remove it and let go of the lock, whatever there is of it; may be repeated.

        Tried twice, because a failure may have been temporary.  Raises OSError (ENOTEMPTY when something of
        someone else's is inside) with the descriptor closed.
        """
        try:
            self._dissolve(progress)
        except OSError as exc:
            if not kernel.is_failure(exc):
                raise
            try:
                self._dissolve(None)
            except OSError as again:
                if isinstance(again, errors.AtomikError) or kernel.errno_of(again) is None:
                    raise
                raise errors.system_error(again, "cannot clean up", self.path) from again
            finally:
                self.close()

    def _dissolve(self, progress: Callable[[int], None] | None) -> None:
        folder: Directory | None = getattr(self, "folder", None)
        if folder is not None and folder.fd >= 0:
            remove(self.parent, self.name, folder, progress)
        elif (
            folder is None and self._tried
        ):  # stopped right after mkdir: what has our random name is ours, if it is empty
            try:
                kernel.port.rmdir(self.name, self.parent.fd)
            except OSError as exc:
                if kernel.errno_of(exc) not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY):
                    raise
        self.close()
        self._tried = False

    def close(self) -> None:
        """Close the descriptor, and so let go of the lock."""
        self.made = False
        folder: Directory | None = getattr(self, "folder", None)
        if folder is not None:
            folder.close()
            del self.folder


def refuse_no_folders(number: int | None, parent: Directory) -> None:
    """The error where only a sandbox keeps us from making a folder; `number` is the errno of mkdir(2)."""
    if number is not None and number in (errno.EACCES, errno.EPERM) and kernel.port.may_write(".", parent.fd):
        text = (
            "a sandbox (Landlock, AppArmor) or the server does not let this process make folders here, which groups, folders "
            "and paths are staged in; grant LANDLOCK_ACCESS_FS_MAKE_DIR"
        )
        errors.fail(errors.AccessDeniedError, number, text, parent.path)


def remove_empty(parent: Directory, name: str, folder: Directory) -> None:
    """Remove a private folder that holds nothing of ours any more; what a server has made of it goes as well.

    Raises the kernel's OSError; ENOTEMPTY if something else is in it."""
    for pause in _PAUSES:
        try:
            return kernel.port.rmdir(name, parent.fd)
        except OSError as exc:
            if kernel.errno_of(exc) not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not any(map(_hidden_names.is_servers, folder.names())):
                raise
        kernel.sleep(pause)  # until the server learns that the file is closed
        for made in filter(_hidden_names.is_servers, folder.names()):
            delete_file(Place(folder, made))
    return kernel.port.rmdir(name, parent.fd)


#: seconds between attempts, for a server that has not processed a close yet
_PAUSES = (0, 0.01, 0.1, 0.5)


def remove(parent: Directory, name: str, folder: Directory, progress: Callable[[int], None] | None = None) -> bool:
    """Empty a private folder and remove it; False when that must wait because readers have pinned something in it.  Then it
    gets a name by which the next transaction there, and recovery, know that nothing else is in it.

    Raises OSError (ENOTEMPTY if something else is inside).
    """
    slots, folders, journals, marks = _content(folder, name)
    pinned = _clear(folder, slots, folders, progress)
    # By name, so check that the name is still ours; a stranger's empty folder is not ours to remove (I6).
    mine = parent.identity(name) == folder.identity("")
    if pinned and mine and _hidden_names.kind_of(name) != _hidden_names.PINNED:
        rename(Place(parent, name), Place(parent, pinned_name(new_txid())), 0)
    for each in (*journals, *marks):  # a journal without its mark would be taken for one of an unfinished transaction
        delete_tree(Place(folder, each), progress)
    if not pinned and mine:
        remove_empty(parent, name, folder)
    return not pinned


def clear(folder: Directory, name: str, progress: Callable[[int], None] | None = None) -> bool:
    """Delete what the slots of the private folder called `name` hold; see `_clear`."""
    slots, folders, *_ = _content(folder, name)
    return _clear(folder, slots, folders, progress)


def _clear(folder: Directory, slots: list[str], folders: set[str], progress: Callable[[int], None] | None) -> bool:
    """Delete what the slots of a private folder hold; `progress` is called with the number of objects deleted.

    The journal goes later, and only when all of it is gone: what is left is then still known to belong to a transaction whose
    outcome is decided.  What readers have pinned stays; the answer is whether there is such a thing.  A failure does not keep
    the rest from being deleted; the first one is raised at the end.
    """
    pinned = False
    failure: OSError | None = None
    for each in slots:
        place = Place(folder, each)
        try:
            if each in folders and is_pinned(place):
                pinned = True
            else:
                delete_tree(place, progress)
        except OSError as exc:
            if not kernel.is_failure(exc):
                raise
            failure = failure or exc
    if failure is not None:
        raise failure
    return pinned


def _content(folder: Directory, name: str) -> tuple[list[str], set[str], list[str], list[str]]:
    """The slots (and their twins) in the private folder called `name`, those of them that are folders, journals and marks.

    They carry the id of the folder's own name; where readers have pinned something, that of whatever it was before.
    Originals that only the user may delete are not among them, and neither are names that are not ours (I6).
    """
    what, id = _hidden_names.parse(name) or ("", "")
    slots: list[str] = []
    folders: set[str] = set()
    journals: list[str] = []
    marks: list[str] = []
    with kernel.port.scandir(folder.fd) as entries:
        for entry in entries:
            kind, of = _hidden_names.parse(entry.name) or ("", "")
            if of != id and what != _hidden_names.PINNED:
                continue
            if kind == _hidden_names.JOURNAL:
                journals.append(entry.name)
            elif kind == _hidden_names.MARK:
                marks.append(entry.name)
            elif kind in (_hidden_names.SLOT, _hidden_names.TWIN):
                slots.append(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
    return slots, folders, journals, marks


def _refuse_foreign(folder: Directory, txid: str) -> None:
    """Between mkdir and open, a user who may rename in the parent can put their own folder in place of ours."""
    mine = kernel.port.fstat(folder.fd)
    if is_suspect(mine, 0o077) and not as_given(mine, folder, txid, 0o077):
        text = "someone put another folder in the place of atomik's private folder; write to a folder of your own"
        errors.fail(errors.ConflictError, errno.EBUSY, text, folder.path)


def is_suspect(found: os.stat_result, others: int) -> bool:
    """Whether something with our kind of name may be another user's work: by its owner, or because it has one of the
    permissions `others`."""
    return found.st_uid != os.geteuid() or bool(found.st_mode & others)


def as_given(found: os.stat_result, folder: Directory, txid: str, others: int) -> bool:
    """Whether owner and mode of `found` are what the filesystem gives to everything that we make in `folder`: then they say
    nothing about who made it.

    So it is on FAT, NTFS and CIFS with their usual mount options, and with a server that maps users (NFS with root_squash).
    A file is made to find out, and examined through its own descriptor: its name might be another file's a moment later.
    The name is that of a slot of transaction `txid`, so recovery removes it if we are killed here.
    """
    port, name = kernel.port, slot_name(txid, _SAMPLE)
    fd = -1
    try:
        fd = port.create(name, os.O_RDWR, 0o600, folder.fd)
        same_owner = port.fstat(fd).st_uid == found.st_uid
        return same_owner and (not found.st_mode & others or _mode_is_given(fd))
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return False  # nothing can be made here, so nothing is known
    finally:
        try:
            if fd >= 0:
                port.close(fd)
        finally:
            _remove_sample(folder, name)


def _remove_sample(folder: Directory, name: str) -> None:
    try:
        kernel.port.unlink(name, folder.fd)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise


def _mode_is_given(fd: int) -> bool:
    """Whether the filesystem gives all files the same mode, whatever we ask for."""
    port = kernel.port
    try:
        for mode in (0o600, 0o666):
            port.fchmod(fd, mode)
            if port.fstat(fd).st_mode & 0o777 != mode:
                return True
    except OSError as exc:  # EPERM of vfat
        if kernel.errno_of(exc) is None:
            raise
        return True
    return False
