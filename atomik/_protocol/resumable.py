"""The private folder of a resumable output: it outlives its transaction, for the next run to continue.

::

    .atomik-ID-resume-NAME/           derived from the destination (`derived_id`), 0700, locked while a job stages in it
        .atomik-ID-0                  the slot: what `folder` stages, or the sealed output of `path`
        .atomik-ID-1/NAME             what a program writes to a `path`
        .atomik-ID-2                  a folder that is being cloned from ``base=``
        .atomik-ID-journal            while it is published

An output in it is always published with a journal, so what the slot holds is never in doubt: without a journal it is what
was staged; with one, that journal says whether it is what was staged or what was displaced.  So `make` recovers the
journals of dead transactions before the slot is used.  It is removed by a commit, when its output is dropped, and
by ``recover(discard=True)``.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable

from atomik import _hidden_names, errors
from atomik._folder.directory import Directory
from atomik._folder.lock import refuse_without_locks
from atomik._folder.place import Place, refuse_unremovable, rename
from atomik._hidden_names import JOURNAL_NAME, new_txid, pinned_name, resumable_name, slot_name, twin_name
from atomik._system import forked, kernel
from atomik._system.hashes import blake2b
from atomik._tree.delete import delete_tree

from .private_folder import PrivateFolder, as_given, is_suspect, refuse_no_folders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: Settle the journal of that name in a folder: see `wait_or_recover`, which this room does not know.
Settle = Callable[[Directory, str], object]

SLOT, WORK, CLONE = range(3)
_ATTEMPTS = 8
#: Seconds to wait for a recovery that is checking it at this moment; a job that stages in it takes longer.
_MOMENT, _PAUSE = 1.0, 0.02


def settle_journal(directory: Directory, name: str, settle: Settle) -> None:
    """Undo or finish what a dead transaction has left there, if it has."""
    if directory.exists(name):
        settle(directory, name)


def derived_id(parent: Directory, name: str) -> str:
    """The id of the resumable output `name` in a folder.

    By the folder's identity, not its path: renamed, it keeps what was staged for it; and what someone moves here from
    another folder is not taken for it.
    """
    return blake2b((parent.identity("") or b"") + b"\0" + os.fsencode(name), digest_size=8).hexdigest()


class Resumable(PrivateFolder):
    """The private folder in `stage` for the destination `place`, made or found by `make`."""

    __slots__ = ("_aside", "_name", "_settle", "destination", "durable", "resumed")

    outlives = True

    def __init__(self, stage: Directory, place: Place, settle: Settle, *, durable: bool) -> None:
        super().__init__(stage, derived_id(place.directory, place.name))
        self.destination, self._settle, self.durable = place, settle, durable
        #: whether an earlier run left something in it
        self.resumed = False
        self._name, self._aside = resumable_name(self.txid, place.name), ""

    @property
    def name(self) -> str:
        """Its name in the folder in which the output is staged."""
        return self._name

    def slot(self, number: int = SLOT) -> Place:
        """One of its names; see the module."""
        return Place(self.folder, slot_name(self.txid, number))

    def _make(self) -> None:
        """Create or find it, and lock it.  If an exception arrives in here, it is closed."""
        try:
            for _ in range(_ATTEMPTS):
                self.close()
                if self._try_to_make():
                    self.made = True
                    return
            text = "another process keeps removing what was staged for the destination"
            errors.fail(errors.ConflictError, errno.EBUSY, text, str(self.destination), self.parent.child(self.name))
        finally:
            if not self.made:
                self.close()

    def _try_to_make(self) -> bool:
        """False if it was removed in the meantime: by a job that published it, or by a recovery."""
        if not self._open():
            return False
        self._lock()
        if not self._is_there():
            return False
        self._refuse_unremovable()
        settle_journal(self.destination.directory, JOURNAL_NAME, self._settle)
        settle_journal(self.folder, self.journal, self._settle)
        if not self._is_there():
            return False
        if self.folder.exists(self.journal):
            text = (
                "an earlier version of the destination could not be brought back and is kept where this output is staged; "
                "move it away and remove that folder, or delete it with recover(discard=True)"
            )
            errors.fail(errors.ConflictError, errno.EBUSY, text, str(self.destination), self.folder.path)
        self._recall()
        return True

    def _open(self) -> bool:
        parent, name = self.parent, self.name
        try:
            kernel.port.mkdir(name, 0o700, parent.fd)
        except OSError as exc:
            if kernel.errno_of(exc) != errno.EEXIST:
                refuse_no_folders(kernel.errno_of(exc), parent)
                raise
        try:
            self.folder = folder = Directory.open(name, parent.fd, follow=False)
        except OSError as exc:
            number = kernel.errno_of(exc)
            if number == errno.ENOENT:
                return False
            if number in (errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM):
                self._refuse(parent.stat(name))
            raise
        folder.path = parent.child(name)
        found = kernel.port.fstat(folder.fd)
        if is_suspect(found, 0o077) and not as_given(found, folder, self.txid, 0o077):
            self._refuse(found)
        return True

    def _refuse(self, found: os.stat_result | None) -> NoReturn:
        if found is not None and found.st_uid != os.geteuid():
            why = f"it belongs to user {found.st_uid}"
        elif found is not None and kernel.is_folder(found.st_mode):
            why = "others may enter it"
        else:
            why = "it is not a folder"
        text = f"what is at the name for staged content cannot be trusted: {why}; remove it, or write elsewhere"
        errors.fail(errors.ConflictError, errno.EBUSY, text, str(self.destination), self.parent.child(self.name))

    def _lock(self) -> None:
        folder = self.folder
        forked.guard(folder.fd)
        for _ in range(int(_MOMENT / _PAUSE)):
            try:
                return kernel.port.flock(folder.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                number = kernel.errno_of(exc)
                refuse_without_locks(number, self.parent.path)
                if number != errno.EWOULDBLOCK:
                    raise
            kernel.sleep(_PAUSE)
        text = f"another job{_owner(folder)} is staging this output with resume=True; wait until it has ended"
        errors.fail(errors.ConflictError, errno.EBUSY, text, str(self.destination), folder.path)

    def _refuse_unremovable(self) -> None:
        try:
            refuse_unremovable(Place(self.parent, self.name), ours=True)
        except BaseException:
            try:
                self.leave()
            except OSError as exc:
                if not kernel.is_failure(exc):
                    raise  # else the error to tell is why nothing can be staged
            raise

    def _is_there(self) -> bool:
        found = self.parent.stat(self.name)
        return found is not None and (found.st_dev, found.st_ino) == self.folder.key

    def _recall(self) -> None:
        """What a rollback has put next to the slot returns to the slot; what is not needed is removed."""
        slot = self.slot()
        new, old = (Place(self.folder, twin_name(slot.name, suffix)) for suffix in ("new", "old"))
        if slot.status() is None and new.status() is not None:
            rename(new, slot, 0)
        for place in (new, old, self.slot(CLONE)):
            delete_tree(place)

    def make_durable(self) -> None:
        """From here on a power cut leaves as much of the content as its writer has made durable."""
        if self.durable:
            self.folder.sync()
            self.parent.sync()

    def hand_over(self) -> None:
        """As `PrivateFolder.hand_over`; and the next job is not to wait for that."""
        super().hand_over()
        self._aside = self._aside or pinned_name(new_txid())
        if self._is_there():
            rename(Place(self.parent, self._name), Place(self.parent, self._aside), 0)
        self._name = self._aside

    def leave(self) -> None:
        """Release it for the next run; remove it if nothing was staged."""
        folder: Directory | None = getattr(self, "folder", None)
        try:
            if folder is not None and folder.fd >= 0 and self._is_there():
                for place in (Place(folder, self.journal), self.slot(CLONE)):
                    delete_tree(place)
                if is_empty(folder, self.txid):
                    self.dissolve()
        finally:
            self.close()

    def _dissolve(self, progress: Callable[[int], None] | None) -> None:
        if getattr(self, "folder", None) is not None:  # else it is nobody's, or another job's
            super()._dissolve(progress)


def is_empty(folder: Directory, id: str) -> bool:
    """Whether nothing is staged in the folder: no slot, or empty folders only."""
    names = [name for name in folder.names() if _hidden_names.parse(name) == (_hidden_names.SLOT, id)]
    return not any(_holds(Place(folder, name)) for name in names)


def _holds(place: Place) -> bool:
    found = place.status()
    if found is None or not kernel.is_folder(found.mode):
        return found is not None
    try:
        inner = place.open()
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return True
    with inner:
        return bool(inner.names())


def _owner(folder: Directory) -> str:
    """The owner of the lock, if /proc/locks says it: " (process 1234)"."""
    where = f"{os.major(folder.dev):02x}:{os.minor(folder.dev):02x}:{folder.ino}"
    try:
        with open("/proc/locks", encoding="ascii") as lines:
            fields = [line.split() for line in lines]
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return ""
    for each in fields:
        if len(each) > 5 and each[1] == "FLOCK" and each[5] == where and int(each[4]) > 0:
            return f" (process {each[4]})"
    return ""
