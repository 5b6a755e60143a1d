"""What dead processes left besides the journals: abandoned private folders, slots, and originals that are kept for the user.

Every journal in the folder is settled before (`recover`), so no transaction needs any of it.  A private folder is abandoned
when its lock is free; without a journal it was never prepared, so nothing was swapped (I6).  Names that are not ours, or
belong to another user, are reported and left alone; so is whatever cannot be deleted.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from itertools import islice

from atomik import _hidden_names
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._hidden_names import journal_name, private_folder_name
from atomik._protocol.private_folder import as_given, is_suspect, remove
from atomik._protocol.resumable import is_empty
from atomik._system import kernel
from atomik._tree import delete

from .takeover import PINNED, Recovered, remove_folder

_PRIVATE = 0o077
#: the kinds of private folders
PRIVATE = (_hidden_names.PRIVATE_FOLDER, _hidden_names.RESUMABLE, _hidden_names.PINNED)

_DETAILS = {
    "removed": "staged, never committed",
    "discarded": "staged, never committed",
    "pinned": PINNED,
    "left": "it contains something that is not atomik's, or that is kept",
}
#: How many names of a folder are checked after a commit for versions that readers have released.
_MANY = 4096


def left(path: str, txid: str, exc: OSError) -> Recovered:
    """Report what could not be removed: the object that the error names, and why."""
    name = exc.filename if isinstance(exc.filename, str) and os.path.isabs(exc.filename) else path
    return Recovered(name, "left", txid, exc.strerror or str(exc))


def names(directory: Directory, *kinds: str) -> list[tuple[str, str]]:
    """(name, transaction id) of what has a name of one of these kinds, in order."""
    parsed = [(name, _hidden_names.parse(name)) for name in directory.names()]
    return sorted((name, kind[1]) for name, kind in parsed if kind is not None and kind[0] in kinds)


def clean(directory: Directory, timeout: float | None, *, discard: bool) -> Iterator[Recovered]:
    """Remove what is abandoned in the folder, and report what stays."""
    for name, txid in names(directory, *PRIVATE):
        try:
            yield from _clean_private_folder(directory, name, txid, discard=discard)
        except OSError as exc:
            if not kernel.is_failure(exc):
                raise
            yield left(directory.child(name), txid, exc)
    yield from kept(directory, private=False, discard=discard)
    slots = names(directory, _hidden_names.SLOT, _hidden_names.TWIN)
    if slots:
        try:
            yield from _remove_slots(directory, slots, timeout)
        except OSError as exc:
            if not kernel.is_failure(exc):
                raise
            yield left(directory.child(slots[0][0]), slots[0][1], exc)


def remove_unpinned(directory: Directory) -> None:
    """Delete what was displaced in the folder, and was pinned by readers that have ended since; asked after each commit that
    displaces a folder."""
    with kernel.port.scandir(directory.fd) as entries:
        names = [entry.name for entry in islice(entries, _MANY)]
    for name in names:
        kind = _hidden_names.parse(name)
        if kind is None or kind[0] != _hidden_names.PINNED:
            continue
        private_folder = open_private_folder(directory, name, kind[1])
        if isinstance(private_folder, Directory):
            with private_folder:
                remove(directory, name, private_folder)


# --- private folders ---------------------------------------------------------------------------------------------------
def open_private_folder(
    directory: Directory, name: str, txid: str, *, dry: bool = False
) -> Directory | Recovered | None:
    """The private folder, locked; or what to report instead; None if it does not exist any more."""
    path = directory.child(name)
    found = directory.stat(name)
    if found is None:
        return None
    if not stat.S_ISDIR(found.st_mode):
        return Recovered(path, "left", txid, "it is not a folder")
    suspect = is_suspect(found, _PRIVATE)
    strange = Recovered(path, "left", txid, _why(found))
    if suspect and dry:
        return strange
    try:
        private_folder = Directory.open(name, directory.fd, follow=False)
    except OSError as exc:
        answer = kernel.errno_of(exc)
        if answer == errno.ENOENT:
            return None
        if answer in (errno.EACCES, errno.EPERM) and suspect:
            return strange
        raise
    private_folder.path = path
    refusal: Recovered | None = None
    usable = False
    try:
        if suspect and not as_given(found, private_folder, txid, _PRIVATE):
            refusal = strange
        elif not private_folder.try_lock():
            refusal = Recovered(path, "live", txid, "its owner is alive")
        else:
            usable = private_folder.key == (found.st_dev, found.st_ino)
    finally:
        if not usable:
            private_folder.close()
    return private_folder if usable else refusal


def _why(found: os.stat_result) -> str:
    if found.st_uid != os.geteuid():
        return f"it belongs to user {found.st_uid}"
    return "other users may enter it, so atomik did not make it"


def _clean_private_folder(directory: Directory, name: str, txid: str, *, discard: bool) -> Iterator[Recovered]:
    private_folder = open_private_folder(directory, name, txid)
    if not isinstance(private_folder, Directory):
        if private_folder is not None:
            yield private_folder
        return
    with private_folder:
        if private_folder.exists(journal_name(txid)):
            return  # it keeps a displaced original, or could not be settled: that was reported
        yield from kept(private_folder, private=True, discard=discard)
        waits = resumable(private_folder, name, txid)
        if waits is not None and not discard:
            yield waits
            return
        _make_last(private_folder, directory)
        done = remove_folder(directory, name, private_folder)
        if done == "removed" and waits is not None:
            done = "discarded"
        yield Recovered(private_folder.path, done, txid, _DETAILS[done])


def resumable(private_folder: Directory, name: str, id: str) -> Recovered | None:
    """What to report if the folder holds what an output with ``resume=True`` has staged."""
    if _hidden_names.kind_of(name) != _hidden_names.RESUMABLE or is_empty(private_folder, id):
        return None
    shown = name.partition("-resume-")[2]
    detail = f"staged for {shown!r}; the next run with resume=True continues it; discard=True deletes it"
    return Recovered(private_folder.path, "resumable", id, detail)


def _make_last(private_folder: Directory, directory: Directory) -> None:
    """A one-item write killed right after its swap left the displaced original here, and the swap perhaps in memory
    only: what is visible now must be durable before the original is deleted (I3).  With ``tmp_dir`` the destination may
    be in any folder of the filesystem, so the whole filesystem is synced, where that is possible."""
    if private_folder.fs.syncfs:
        try:
            return kernel.port.syncfs(private_folder.fd)
        except OSError as exc:
            if kernel.errno_of(exc) != errno.ENOSYS:  # a sandbox refuses it
                raise
    private_folder.sync()
    directory.sync()


# --- kept originals ----------------------------------------------------------------------------------------------------
def kept(folder: Directory, *, private: bool, discard: bool = False, dry: bool = False) -> Iterator[Recovered]:
    """Originals that a write of a single output could not put back, for the user to move away or discard.

    A folder is deleted only in a private folder, which is `private`: elsewhere anybody may have given it that name.
    """
    for name, txid in names(folder, _hidden_names.KEPT_ORIGINAL):
        place = Place(folder, name)
        found = place.stat()
        if found is None or (is_suspect(found, 0) and (dry or _is_foreign(found, place, txid))):
            continue
        is_folder = stat.S_ISDIR(found.st_mode)
        if not discard or (is_folder and not private):
            yield Recovered(str(place), "kept", txid, "an original that could not be put back; move it away")
            continue
        try:
            if is_folder:
                delete.delete_tree(place)
            else:
                kernel.port.unlink(name, folder.fd)
        except OSError as exc:
            if not kernel.is_failure(exc):
                raise
            yield left(str(place), txid, exc)
        else:
            yield Recovered(str(place), "discarded", txid)


def _is_foreign(found: os.stat_result, place: Place, txid: str) -> bool:
    """Whether it belongs to another user, where that means anything."""
    return is_suspect(found, 0) and not as_given(found, place.directory, txid, 0)


# --- slots next to the destinations -------------------------------------------------------------------------------------
def _remove_slots(directory: Directory, slots: list[tuple[str, str]], timeout: float | None) -> Iterator[Recovered]:
    directory.lock(timeout)  # a one-item writer covers its slot with a shared lock on the folder
    try:
        directory.sync()  # its swap must be durable before what it displaced is deleted (I3)
        for name, txid in slots:
            item = _remove_slot(Place(directory, name), txid)
            if item is not None:
                yield item
    finally:
        directory.unlock()


def _remove_slot(place: Place, txid: str) -> Recovered | None:
    """A slot beside the destinations that no journal covers, under the folder's exclusive lock: what a killed one-item write
    left.  Only files: a folder's slot is always recorded."""
    found = place.stat()
    if found is None or place.directory.exists(private_folder_name(txid)):
        return None  # its transaction lives, or keeps it: its private folder has been reported
    if stat.S_ISDIR(found.st_mode):
        return Recovered(str(place), "left", txid, "a folder that no journal mentions")
    if _is_foreign(found, place, txid):
        return Recovered(str(place), "left", txid, _why(found))
    try:
        # No tree is ever deleted here, whatever takes its place in the meantime: other users may be able to write to
        # the folder.
        kernel.port.unlink(place.name, place.fd)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return left(str(place), txid, exc)
    return Recovered(str(place), "removed", txid, "left by a write of a single output")
