"""What is done about dead transactions in a folder: `recover`.

First the hot journal, then every private folder whose lock is free (with a journal in it: the same as a hot one;
without: it was never prepared, so nothing was swapped, and what is staged goes), then slots beside the destinations that
nobody covers.
Names that are not ours, or belong to somebody else, are reported and left alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from attrs import define

from atomik import _events, _hidden_names, errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._hidden_names import JOURNAL_NAME, PREFIX, journal_name, private_folder_name
from atomik._protocol import journal as _journal
from atomik._protocol import records as _records
from atomik._protocol.private_folder import like_all
from atomik._system import kernel
from atomik._tree import delete

from . import unfinished_journal as _wait_or_recover
from .takeover import Recovered, clear_private_folder, remove_folder


@define(frozen=True)
class RecoveryReport:
    """What `recover` found and did: ``items``, one `Recovered` a name, in the order of the work; ``str()`` gives a line for
    each."""

    items: tuple[Recovered, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing is left that wants attention: no foreign object, kept original or unreachable folder."""
        return not any(item.action in ("foreign", "kept", "left", "unreachable") for item in self.items)

    @property
    def kept(self) -> tuple[Recovered, ...]:
        """Displaced originals that could not go back; `recover` with ``discard=True`` deletes them."""
        return tuple(item for item in self.items if item.action == "kept")

    def __str__(self) -> str:
        if not self.items:
            return "nothing to recover"
        return "\n".join(f"{i.action}: {i.path}" + (f" ({i.detail})" if i.detail else "") for i in self.items)


def recover(
    *folders: str | os.PathLike[str],
    discard: bool = False,
    dry_run: bool = False,
    lock_timeout: float = 60.0,
    progress: Callable[[str, int, int], None] | None = None,
) -> RecoveryReport:
    """Undo or finish what dead transactions left in `folders`, and remove their temporary files.

    A transaction, `reading` and a one-item write do this by themselves for a journal they meet; call it after a crash
    to do it at once, and to remove what was staged by processes that died before their commit.

    :param folders: str or path objects: folders that hold destinations (their parents, not the destinations).  From any
        one folder of a transaction the others are found, wherever the tree is mounted now.
    :param bool discard: also delete displaced originals that cannot go back because somebody else published in their
        place since, and give up parts of a transaction in folders that cannot be found.
    :param bool dry_run: change nothing; report what there is ("live", "hot", "abandoned", "kept" …).
    :param float lock_timeout: seconds to wait for a transaction that is at work.
    :param progress: a function, called with ("recovering", done, total), in folders.
    :returns: a `RecoveryReport`, item by item; it is logged as ``recovery.…`` events as well.

    :raises atomik.errors.MissingPathError, atomik.errors.WrongKindError, atomik.errors.AccessDeniedError: a folder cannot
        be opened.
    :raises atomik.errors.LockTimeoutError: a transaction was at work in the folder all the time.
    :raises atomik.errors.JournalError: a journal is damaged, newer than this atomik, or not this user's (or root's) own;
        nothing was touched.
    :raises atomik.errors.RollbackError: something could not be brought back; the journal stays, mend and repeat.
    :raises atomik.errors.AtomikOSError: another system call failed, with errno; mend the cause and repeat.

    Guarantee: every destination of a dead transaction is afterwards what it was before, or the new version if its commit
    mark was durable; all of them alike.  Idempotent; may be killed at any moment and run again.  Objects that are neither
    the recorded old nor the recorded new one are never touched.  Only names with atomik's prefix and the transaction's id
    are deleted, and only if their identity is recorded or their private folder's lock is free (flock(2), name_to_handle_at(2)).
    """
    found: list[Recovered] = []
    for at, folder in enumerate(folders):
        path = os.fsdecode(folder)
        try:
            # "." is the usual folder, and nobody wants to read "/data/./.atomik-journal"
            directory = Directory.open(os.path.join(os.getcwd(), path).removesuffix("/.") or "/")
        except OSError as exc:
            raise errors.system_error(exc, "cannot recover", path) from exc
        try:
            found += _survey(directory) if dry_run else _recover_folder(directory, lock_timeout, discard=discard)
        except OSError as exc:
            if isinstance(exc, errors.AtomikError):
                raise
            raise errors.system_error(exc, "recovery failed; mend the cause and recover again", path) from exc
        finally:
            directory.close()
        if progress is not None:
            progress("recovering", at + 1, len(folders))
    return RecoveryReport(tuple(dict.fromkeys(found)))  # what is kept is told by every folder of its transaction


def _recover_folder(directory: Directory, timeout: float, *, discard: bool) -> list[Recovered]:
    found = _wait_or_recover.wait_or_recover(directory, timeout, discard=discard)
    private_folders, slots = _names(directory)
    for name in private_folders:
        found += _recover_private_folder(directory, name, timeout, discard=discard)
    found += _kept(directory, private=False, discard=discard)
    if slots:
        directory.lock(timeout)  # a one-item writer covers its slot with a shared lock on the folder
        try:
            directory.sync()  # its swap must last before what it displaced is deleted (I3)
            for name in slots:
                found += _remove_slot(Place(directory, name))
        finally:
            directory.unlock()
    return found


def _names(directory: Directory) -> tuple[list[str], list[str]]:
    """The names of private folders, and of slots beside the destinations."""
    private_folders, slots = [], []
    with kernel.port.scandir(directory.fd) as entries:
        for entry in entries:
            kind = _hidden_names.parse(entry.name)
            if kind is not None and kind[0] == _hidden_names.PRIVATE_FOLDER:
                private_folders.append(entry.name)
            elif kind is not None and kind[0] in (_hidden_names.SLOT, _hidden_names.TWIN):
                slots.append(entry.name)
    return private_folders, slots


def _report(path: str, action: str, txid: str, detail: str = "") -> Recovered:
    level = _events.WARNING if action == "left" else _events.INFO
    _events.emit(level, f"recovery.{action}", tx=txid, path=path, detail=detail)
    return Recovered(path, action, txid, detail)


def _not_ours(found: os.stat_result) -> str | None:
    """Why something with our kind of name is not ours to touch."""
    if found.st_uid != os.geteuid():
        return f"it belongs to user {found.st_uid}"
    return None


def _open_private_folder(directory: Directory, name: str, *, dry: bool = False) -> Directory | Recovered | None:
    """The private folder, locked; or why not; None when it went meanwhile."""
    path, txid = directory.child(name), name.removeprefix(PREFIX)
    found = directory.stat(name)
    if found is None:
        return None
    if not stat.S_ISDIR(found.st_mode):
        return _report(path, "left", txid, "it is no folder")
    why = _not_ours(found)
    if why is None and stat.S_IMODE(found.st_mode) & 0o077:
        why = "others may enter it, so atomik did not make it"
    if why is not None and dry:
        return _report(path, "left", txid, why)
    try:
        private_folder = Directory.open(name, directory.fd, follow=False)
    except FileNotFoundError:
        return None
    except PermissionError:
        if why is None:
            raise
        return _report(path, "left", txid, why)
    private_folder.path = path
    try:
        refusal = _lock_private_folder(private_folder, txid, why)
    except BaseException:
        private_folder.close()
        raise
    if refusal is not None or private_folder.key != (found.st_dev, found.st_ino):
        private_folder.close()
        return refusal
    return private_folder


def _lock_private_folder(private_folder: Directory, txid: str, why: str | None) -> Recovered | None:
    """Take the lock of an open private folder; else the report. `why` it seems not to be ours, which need not mean anything."""
    if why is not None and not like_all(private_folder):
        return _report(private_folder.path, "left", txid, why)
    return None if private_folder.try_lock() else Recovered(private_folder.path, "live", txid, "its owner is at work")


def _recover_private_folder(directory: Directory, name: str, timeout: float, *, discard: bool) -> list[Recovered]:
    private_folder = _open_private_folder(directory, name)
    if not isinstance(private_folder, Directory):
        return [] if private_folder is None else [private_folder]
    txid = name.removeprefix(PREFIX)
    try:
        found = _wait_or_recover.wait_or_recover(private_folder, timeout, discard=discard, name=journal_name(txid))
        if private_folder.exists(journal_name(txid)) or directory.stat(name) is None:
            return found  # its journal keeps a displaced original; or all is done
        found += _kept(private_folder, private=True, discard=discard)
        _make_last(private_folder, directory)
        clear_private_folder(private_folder, txid)  # never prepared (I6): no other destination hangs on what is in it
        found.append(_report(private_folder.path, "removed", txid, "staged, never committed"))
        if not remove_folder(directory, name, private_folder):
            found.append(_report(private_folder.path, "left", txid, "things that are not atomik's lie in it"))
        return found
    finally:
        private_folder.close()


def _kept(folder: Directory, *, private: bool, discard: bool) -> list[Recovered]:
    """Originals that a one-item write could not bring back: theirs who lost them, to move away or to discard.

    A folder is deleted only in a private folder, which is `private`: elsewhere anybody may have given it that name.
    """
    with kernel.port.scandir(folder.fd) as entries:
        parsed = ((entry.name, _hidden_names.parse(entry.name)) for entry in entries)
        names = sorted((name, kind[1]) for name, kind in parsed if kind and kind[0] == _hidden_names.KEPT_ORIGINAL)
    found = []
    for name, txid in names:
        place = Place(folder, name)
        seen = place.stat()
        if seen is None or _not_ours(seen) is not None:
            continue
        if discard and private:
            delete.delete_tree(place)
        elif discard and not stat.S_ISDIR(seen.st_mode):
            kernel.port.unlink(name, folder.fd)
        else:
            text = "an original that could not be brought back; move it away"
            found.append(_report(str(place), "kept", txid, text))
            continue
        found.append(_report(str(place), "discarded", txid))
    return found


def _make_last(private_folder: Directory, directory: Directory) -> None:
    """A one-item write killed right behind its swap left the displaced original here, and the swap perhaps in memory
    only: what is visible now must last before the original is deleted (I3).  With ``tmp_dir`` the destination may lie
    in any folder of the filesystem, so it is the whole filesystem that is synced, where that is possible."""
    if private_folder.fs.syncfs:
        kernel.port.syncfs(private_folder.fd)
    else:
        private_folder.sync()
        directory.sync()


def _remove_slot(place: Place) -> list[Recovered]:
    """A slot beside the destinations that no journal spoke of, under the folder's exclusive lock: what a one-item write
    left when it was killed.  Only files: a folder's slot is always recorded."""
    found = place.stat()
    if found is None:
        return []
    txid = place.name.removeprefix(PREFIX).split("-")[0]
    if place.directory.exists(private_folder_name(txid)):
        return []  # its transaction lives, or keeps it: its private folder has been told about
    if stat.S_ISDIR(found.st_mode):
        return [_report(str(place), "left", txid, "a folder that no journal speaks of")]
    if (why := _not_ours(found)) is not None:
        return [_report(str(place), "left", txid, why)]
    # No tree is ever deleted here, whatever takes its place this moment: the folder may be anybody's to write to.
    kernel.port.unlink(place.name, place.fd)
    return [_report(str(place), "removed", txid, "left by a one-item write")]


def _survey(directory: Directory) -> list[Recovered]:
    """What there is, with nothing changed."""
    found = _survey_journal(directory, JOURNAL_NAME)
    told_of = {item.txid for item in found}
    private_folders, slots = _names(directory)
    for name in private_folders:
        private_folder = _open_private_folder(directory, name, dry=True)
        if isinstance(private_folder, Directory):
            try:
                txid = name.removeprefix(PREFIX)
                if txid not in told_of:  # else its journal is the same file
                    told = _survey_journal(private_folder, journal_name(txid)) + _kept(
                        private_folder, private=True, discard=False
                    )
                    found += told or [Recovered(directory.child(name), "abandoned", txid)]
            finally:
                private_folder.close()
        elif private_folder is not None:
            found.append(private_folder)
    found += _kept(directory, private=False, discard=False)
    found += [Recovered(directory.child(name), "slot", name.removeprefix(PREFIX).split("-")[0]) for name in slots]
    return found


def _survey_journal(directory: Directory, name: str) -> list[Recovered]:
    action = "hot"
    loaded = _journal.load(Place(directory, name))
    if loaded is None:
        return []
    fd, content = loaded
    try:
        if not _journal.lock(fd):
            action = "live"
    finally:
        _journal.close(fd)
    if content is None:
        return [Recovered(directory.child(name), action, "", "never complete")]
    if action == "hot" and name != JOURNAL_NAME and content.outcome == _records.UNDONE:
        action = "kept"  # that is what such a journal stays for, in its private folder
    detail = "; ".join(f"{step.op} {step.dest_name}" for step in content.intent.steps)
    return [Recovered(directory.child(name), action, content.intent.txid, detail)]
