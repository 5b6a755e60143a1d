"""From a journal that lies in a folder to all old, or all new.

`settle(folder)` is what a commit, a reader and `recover` do about a ``.atomik-journal``:

1. *open* it: it must be trustworthy (`_journal.load`), and its lock free, or its owner lives and we wait;
2. *reach* the other folders from this one, by relative path and checked by identity, and lock all parents in order;
3. undo or finish, and clean up (`_dead`).
"""

from __future__ import annotations

import errno
import time
from typing import NoReturn

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._hidden_names import JOURNAL_NAME, PREFIX
from atomik._protocol import journal as _journal
from atomik._protocol import records as _records
from atomik._protocol.records import Intent, Journal
from atomik._system import kernel

from .takeover import DeadTransaction, Recovered

_NO_LINKS = kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS
_POLL = 0.01


def wait_or_recover(
    directory: Directory, timeout: float, *, discard: bool = False, name: str = JOURNAL_NAME
) -> list[Recovered]:
    """Deal with the journal `name` in the folder, if there is one; see the module.  No lock of ours may be held.

    Raises `LockTimeoutError` while its owner lives, `JournalError` when it cannot be trusted, `RollbackError` when it
    cannot be finished; the journal is still there then.
    """
    try:
        return _wait_or_recover(Place(directory, name), timeout, discard=discard)
    except OSError as exc:
        if isinstance(exc, errors.AtomikError):
            raise
        text = (
            f"an unfinished transaction could not be recovered: {exc.strerror}; its journal stays. Mend the cause, then call "
            "atomik.recover() on the folder"
        )
        raise errors.RollbackError(*errors.os_args(exc.errno or errno.EIO, text, directory.path)) from exc


def _wait_or_recover(place: Place, timeout: float, *, discard: bool) -> list[Recovered]:
    deadline = time.monotonic() + timeout
    while True:
        loaded = _journal.load(place)
        if loaded is None:
            return []
        fd, content = loaded
        try:
            if not _journal.lock(fd) or not _same(fd, place):
                _wait(place, deadline, timeout)  # its owner lives, or ended while we looked
                continue
            # Under its lock nobody else changes it; what was read before may be older.
            content = _journal.reread(fd, place)
            if content is None:
                return _drop_torn(place, timeout, deadline)
            return _take_over(fd, content, place, timeout, deadline, discard=discard)
        finally:
            _journal.close(fd)


def _wait(place: Place, deadline: float, timeout: float) -> None:
    if time.monotonic() >= deadline:
        text = f"a transaction is still at work in the folder after {timeout:g} s; wait, or raise lock_timeout"
        errors.fail(errors.LockTimeoutError, errno.ETIMEDOUT, text, place.directory.path)
    time.sleep(_POLL)


def _same(fd: int, place: Place) -> bool:
    now, mine = place.stat(), kernel.port.fstat(fd)
    return now is not None and (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino)


def _drop_torn(place: Place, timeout: float, deadline: float) -> list[Recovered]:
    """Its intent was never complete, so nothing was swapped; what was staged is found by its private folder."""
    directory = place.directory
    if place.name != JOURNAL_NAME:  # in a private folder, whose lock the caller holds
        kernel.port.unlink(place.name, place.fd)
        return []
    directory.lock(timeout, deadline)
    try:
        kernel.port.unlink(place.name, place.fd)
    finally:
        directory.unlock()
    return [Recovered(str(place), "removed", "", "a journal that was never complete")]


def _take_over(
    fd: int, content: Journal, place: Place, timeout: float, deadline: float, *, discard: bool
) -> list[Recovered]:
    identity = _journal.identity(fd, place.directory)
    if identity != content.intent.journal:
        _refuse_copy(place, content.intent.txid, "is a copy")
    folders = reach(content.intent, place)
    try:
        parents = [
            f for f, entry in zip(folders, content.intent.folders, strict=True) if f is not None and entry.parent
        ]
        for parent in sorted({parent.key: parent for parent in parents}.values(), key=lambda p: p.key):
            parent.lock(timeout, deadline)  # I8
        live = _journal.LiveJournal(fd, content.intent.txid, content.end, identity)
        dead = DeadTransaction(live, content, folders, discard)
        dead.run()
        return dead.found
    finally:
        for folder in folders:
            if folder is not None:
                folder.close()


def _refuse_copy(place: Place, txid: str, what: str) -> NoReturn:
    text = (
        f"this journal {what} (copied here, or restored from a backup?); nothing was touched. Remove it, and "
        f"{PREFIX}{txid} beside it, if you know that to be so"
    )
    errors.fail(errors.JournalError, errno.EBADMSG, text, str(place))


def reach(intent: Intent, found: Place) -> list[Directory | None]:
    """Every folder of the transaction, opened anew from the one in which its journal was found; None for one that is
    not where it was.

    Raises `JournalError` when that is none of them: the journal was copied here from elsewhere.
    """
    start = found.directory
    me = start.identity("")
    mine = next((entry for entry in intent.folders if entry.identity == me), None)
    if mine is None or mine.parent != (found.name == JOURNAL_NAME):
        _refuse_copy(found, intent.txid, "is about other folders")
    folders: list[Directory | None] = []
    try:
        folders.extend(_reach_one(start, _way(mine.parts, entry.parts), entry) for entry in intent.folders)
    except BaseException:
        for folder in folders:
            if folder is not None:
                folder.close()
        raise
    return folders


def _way(here: tuple[str, ...], there: tuple[str, ...]) -> str:
    """The path from one folder to another, no further up than need be: this folder may have got another name since, and
    itself and what lies in it are found all the same."""
    apart = (at for at, (a, b) in enumerate(zip(here, there, strict=False)) if a != b)
    shared = next(apart, min(len(here), len(there)))
    return "/".join(("..",) * (len(here) - shared) + there[shared:]) or "."


def _reach_one(start: Directory, path: str, entry: _records.Folder) -> Directory | None:
    try:
        folder = _open(start, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENAMETOOLONG):  # somebody put a link in the way
            return None
        raise errors.system_error(exc, "recovery cannot open a folder of the transaction", path) from exc
    if folder.identity("") != entry.identity:
        folder.close()
        return None
    return folder


def _open(start: Directory, path: str) -> Directory:
    try:
        return Directory.reach(start, path, _NO_LINKS)
    except OSError as exc:
        # Before Linux 5.6, or under a filter that does not know openat2.  Links then lead astray, which the identity shows.
        if exc.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    return Directory.open(path, start.fd)
