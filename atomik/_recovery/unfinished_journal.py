"""From a journal found in a folder to all old, or all new.

`wait_or_recover(folder)` is what a commit, a reader and `recover` do about a ``.atomik-journal``:

1. *open* it: it must be trustworthy (`journal.load`).  While its lock is held its owner is alive, and we wait;
2. *decide*: if a coordinator decides the outcome, ask; without an answer nothing is touched (`UndecidedError`);
3. *reach* the other folders from this one, by relative path and checked by identity, and lock all parents in order;
4. undo or finish, and clean up (`takeover`).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.lock import ask_whether_to_wait, deadline_of, now, refuse_own
from atomik._folder.place import Place
from atomik._hidden_names import JOURNAL_NAME, private_folder_name
from atomik._protocol import journal as _journal
from atomik._protocol import records as _records
from atomik._protocol.locks import close_all, in_order
from atomik._protocol.records import Intent, Journal
from atomik._system import kernel
from atomik._typing import NamedTuple

from .takeover import DeadTransaction, Recovered, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_NO_LINKS = kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS
_POLL = 0.01

#: errno values of opening a folder that is not where it was, or of a link that was put in the way
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
#: openat2(2) before Linux 5.6, or under a filter that does not know it
_NO_OPENAT2 = frozenset({errno.ENOSYS, errno.EPERM})

#: Asked for the outcome of a prepared transaction: (transaction id, coordinator) → commit it?
Decide = Callable[[str, str], bool]


class Wishes(NamedTuple):
    """How to recover: ``timeout`` in seconds, and what the user allows; see `atomik.recover`."""

    timeout: float | None
    discard: bool = False
    decide: Decide | None = None


def wait_or_recover(
    directory: Directory,
    timeout: float | None,
    *,
    discard: bool = False,
    decide: Decide | None = None,
    name: str = JOURNAL_NAME,
) -> list[Recovered]:
    """Deal with the journal `name` in the folder, if there is one; see the module.  No lock of ours may be held.

    Raises `LockTimeoutError` while its owner lives, `JournalError` when it cannot be trusted, `UndecidedError` when its
    coordinator must decide, `RollbackError` when it cannot be finished; the journal is still there then.
    """
    try:
        return _wait_or_recover(Place(directory, name), Wishes(timeout, discard, decide))
    except OSError as exc:
        if isinstance(exc, errors.AtomikError) or not kernel.is_failure(exc):
            raise
        text = (
            f"an unfinished transaction could not be recovered: {exc.strerror}; its journal stays. Fix the cause, then call "
            "atomik.recover() on the folder"
        )
        raise errors.RollbackError(*errors.os_args(exc.errno or errno.EIO, text, directory.path)) from exc


def _wait_or_recover(place: Place, wishes: Wishes) -> list[Recovered]:
    deadline = deadline_of(wishes.timeout)
    still = 0.0  # slept while the clock stood still
    while True:
        loaded = _journal.load(place)
        if loaded is None:
            return []
        live = _journal.LiveJournal(loaded[0], "", 0)
        try:
            try:
                if _journal.lock(live.fd) and _same(live.fd, place):
                    # Under its lock nobody else changes it; what was read before may be older.
                    content = _journal.reread(live.fd, place)
                    if content is None:
                        return _drop_torn(place, wishes.timeout, deadline)
                    return _take_over(live, content, place, wishes, deadline)
            finally:
                live.close()
        finally:  # again, for something may have arrived on the way in: no lock waits for the end of a traceback
            live.close()
        # Its owner lives, or ended just now.  Is it this very thread, which a signal handler interrupted?
        refuse_own(place.directory, shared=False)
        ask_whether_to_wait()
        if now() + still >= deadline:
            text = (
                f"a transaction is still running in the folder after {wishes.timeout:g} s; wait, or raise lock_timeout"
            )
            errors.fail(errors.LockTimeoutError, errno.ETIMEDOUT, text, place.directory.path)
        before = now()
        kernel.sleep(_POLL)
        still += _POLL if now() == before else 0.0


def _same(fd: int, place: Place) -> bool:
    now, mine = place.stat(), kernel.port.fstat(fd)
    return now is not None and (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino)


def _drop_torn(place: Place, timeout: float | None, deadline: float) -> list[Recovered]:
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
    item = Recovered(str(place), "removed", "", "a journal that was never complete")
    log(item)
    return [item]


def _take_over(
    live: _journal.LiveJournal, content: Journal, place: Place, wishes: Wishes, deadline: float
) -> list[Recovered]:
    live.txid, live.end = content.intent.txid, content.end
    live.identity = _journal.identity(live.fd, place.directory)
    if live.identity != content.intent.journal:
        _refuse_copy(place, live.txid, "is a copy")
    commit = _decided(content, place, wishes.decide)  # the user's code: no folder is locked yet (I8)
    with _reached(content.intent, place) as folders:
        entries = zip(folders, content.intent.folders, strict=True)
        for parent in in_order(folder for folder, entry in entries if folder is not None and entry.parent):
            parent.lock(wishes.timeout, deadline)
        dead = DeadTransaction(live, content, folders, wishes.discard, commit)
        dead.run()
        return dead.found


def _decided(content: Journal, place: Place, decide: Decide | None) -> bool:
    """Whether to commit a transaction that has no outcome yet: only if its coordinator says so."""
    intent = content.intent
    if content.outcome is not None or not intent.coordinator:
        return False
    if decide is None:
        text = (
            f"a prepared transaction of a dead process waits for the decision of its coordinator {intent.coordinator!r}; "
            "nothing was touched. Call atomik.recover(folder, decide=…) with a function that asks the coordinator"
        )
        error = errors.UndecidedError(*errors.os_args(errno.EBUSY, text, place.directory.path))
        error.txid, error.coordinator = intent.txid, intent.coordinator
        raise error
    answer = decide(intent.txid, intent.coordinator)
    if not isinstance(answer, bool):
        raise TypeError(f"decide must return True (commit) or False (undo), not {answer!r}")
    return answer


def _refuse_copy(place: Place, txid: str, what: str) -> NoReturn:
    text = (
        f"this journal {what} (copied here, or restored from a backup?); nothing was touched. If you are sure that it is "
        f"a copy, remove it, and {private_folder_name(txid)} next to it"
    )
    errors.fail(errors.JournalError, errno.EBADMSG, text, str(place))


@contextlib.contextmanager
def _reached(intent: Intent, found: Place) -> Iterator[list[Directory | None]]:
    """Every folder of the transaction, opened again from the one in which its journal was found; None for one that is
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
        try:
            folders.extend(_reach(start, _way(mine.parts, entry.parts), entry) for entry in intent.folders)
            yield folders
        finally:
            close_all(filter(None, folders))
    finally:  # again, for something may have arrived on the way in: no lock waits for the end of a traceback
        close_all(filter(None, folders))


def _way(here: tuple[str, ...], there: tuple[str, ...]) -> str:
    """The path from one folder to another, no further up than needed: this folder may have another name by now, and it and
    the folders in it are found nevertheless."""
    apart = (at for at, (a, b) in enumerate(zip(here, there, strict=False)) if a != b)
    shared = next(apart, min(len(here), len(there)))
    return "/".join(("..",) * (len(here) - shared) + there[shared:]) or "."


def _reach(start: Directory, path: str, entry: _records.Folder) -> Directory | None:
    try:
        folder = _open(start, path)
    except OSError as exc:
        answer = kernel.errno_of(exc)
        if answer in _GONE:
            return None
        if answer is None:
            raise
        raise errors.system_error(exc, "recovery cannot open a folder of the transaction", path) from exc
    try:
        right = folder.identity("") == entry.identity
    except BaseException:
        folder.close()
        raise
    if right:
        return folder
    folder.close()
    return None


def _open(start: Directory, path: str) -> Directory:
    try:
        return Directory.reach(start, path, _NO_LINKS)
    except OSError as exc:
        if kernel.errno_of(exc) not in _NO_OPENAT2:
            raise
    return Directory.open(path, start.fd)  # a link may lead elsewhere, which the identity shows
