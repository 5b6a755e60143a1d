"""One dead transaction: from its journal to all old, or all new.

`settle(folder)` is what a commit, a reader and `recover` do about a ``.atomik-journal``:

1. *open* it: it must be trustworthy (`_journal.load`), and its lock free, or its owner lives and we wait;
2. *reach* the other folders from this one, by relative path and checked by identity, and lock all parents in order;
3. *decide* by the outcome record: committed: finish.  Undone: finish.  None: undo in reverse (`_swap.undo`, the same
   function as in rollback, I5), make that durable, and say "undone" in the journal before any of its names goes (I3);
4. *clean*: the well-known names first, then what the slots hold, then the journal in the claims, then the claims.

Everything may be repeated, and killed at any call: each step looks at identities and outcome again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from attrs import define, field

from . import _events, _journal, _kernel, _records, _swap, _tree, errors
from ._claim import journal_name
from ._directory import JOURNAL_NAME, PREFIX, Directory, Place
from ._records import Intent, Journal
from ._swap import Step, Undone

_NO_LINKS = _kernel.RESOLVE_NO_SYMLINKS | _kernel.RESOLVE_NO_MAGICLINKS
_POLL = 0.01


@define(frozen=True)
class Recovered:
    """What was found and done about one name.

    ``path``: the name.  ``action``: "undone" (the original was brought back), "untouched" (it was there already),
    "finished" (the commit was complete; this is the new version), "foreign" (somebody else's object stands there, and
    stays), "kept" (a displaced original that has no place to go back to; ``detail`` says where it lies), "discarded" (such
    a one, deleted on request), "removed" (an abandoned temporary file or folder), "live" (its owner is at work), "left"
    (not ours to touch; ``detail`` says why), "unreachable" (a folder of the transaction was not found).
    ``txid``: the transaction's id.
    """

    path: str
    action: str
    txid: str
    detail: str = ""


@define(eq=False)
class DeadTransaction:
    """A journal taken over from a dead owner."""

    journal: _journal.LiveJournal
    content: Journal
    folders: list[Directory | None]
    discard: bool
    found: list[Recovered] = field(factory=list)

    @property
    def intent(self) -> Intent:
        """What it was about to do."""
        return self.content.intent

    def tell(self, path: str, action: str, detail: str = "") -> None:
        """Report, and log."""
        self.found.append(Recovered(path, action, self.intent.txid, detail))
        level = _events.WARNING if action in ("foreign", "kept", "left", "unreachable") else _events.INFO
        _events.emit(level, f"recovery.{action}", tx=self.intent.txid, path=path, detail=detail)

    def run(self) -> None:
        """Undo or finish, and clean up.  Raises RollbackError, with the journal still there, when that is impossible."""
        steps = self._steps()
        outcome = self.content.outcome
        if outcome == _records.COMMITTED:
            # Once more, for a mark whose own sync failed may be in the page cache only: a fresh write is surely synced.
            self._end(_records.COMMITTED)
            for step in steps:
                self.tell(str(step.dest), "finished")
        else:
            if outcome is None:
                self._undo(steps)
                self._end(_records.UNDONE)
            outcome = _records.UNDONE
        stranded = [] if outcome == _records.COMMITTED else self._stranded(steps)
        self._clean(steps, stranded, committed=outcome == _records.COMMITTED)

    def _steps(self) -> list[Step]:
        """The steps whose folders were found.  A claim that is gone has nothing more to give back."""
        steps = []
        for record in self.intent.steps:
            parent, slot_folder = self.folders[record.dest_folder], self.folders[record.slot_folder]
            if parent is None:
                self._unreachable(record)
                continue
            slot = Place(slot_folder if slot_folder is not None else parent, record.slot_name)
            dest = Place(parent, record.dest_name)
            steps.append(
                Step(record.op, record.kind, dest, slot, record.new, record.old, record.order, weaker=record.weaker)
            )
        return steps

    def _unreachable(self, record: _records.StepRecord) -> None:
        path = os.path.join("…", *self.intent.folders[record.dest_folder].parts, record.dest_name)
        self.tell(path, "unreachable")
        if self.content.outcome is None and not self.discard:
            text = (
                "a folder of an unfinished transaction was moved or is not mounted, so it cannot be undone; put it back, "
                "or give its part up with recover(discard=True)"
            )
            errors.fail(errors.RollbackError, errno.ENOENT, text, path)

    def _undo(self, steps: list[Step]) -> None:
        failure: tuple[Step, OSError] | None = None
        for step in reversed(steps):
            try:
                result = _swap.undo(step)
            except OSError as exc:
                failure = failure or (step, exc)  # the others are brought back all the same
                continue
            detail = "somebody published there since; theirs stays" if result is Undone.FOREIGN else ""
            self.tell(str(step.dest), result.value, detail)
        if failure is not None:
            step, exc = failure
            text = f"recovery could not bring it back: {exc.strerror}; the journal stays. Mend the cause and recover again"
            raise errors.RollbackError(*errors.os_args(exc.errno or errno.EIO, text, str(step.dest))) from exc

    def _end(self, outcome: int) -> None:
        """Make what was done durable, then the record that says so (I2, I3)."""
        for folder in self.folders:
            if folder is not None:
                folder.sync()
        self.journal.append(outcome)
        _kernel.port.fsync(self.journal.fd)

    def _stranded(self, steps: list[Step]) -> list[Place]:
        """Slots with an original that cannot go back, for a stranger's object stands in its place."""
        stranded = []
        originals = {step.old for step in steps if step.old is not None}
        homes = {step.old: step.dest for step in steps}
        for place in dict.fromkeys(slot for step in steps for slot in step.slots()):
            identity = place.identity()
            if identity not in originals or homes[identity].identity() == identity:
                continue
            if self.discard:
                _tree.delete(place)
                self.tell(str(homes[identity]), "discarded")
            else:
                self.tell(str(homes[identity]), "kept", f"the displaced original lies at {place}")
                stranded.append(place)
        return stranded

    def _clean(self, steps: list[Step], stranded: list[Place], *, committed: bool) -> None:
        news = {step.new for step in steps} - {None}
        olds = {step.old for step in steps} - {None}
        ours = olds - news if committed else news - olds
        txid = self.intent.txid
        self._signposts()
        for place in dict.fromkeys(slot for step in steps for slot in step.slots()):
            if place not in stranded and place.identity() in ours:  # I6
                _tree.delete(place)
        if stranded:
            return  # the claims, with the journal in them, stay until they are discarded
        for folder, entry in zip(self.folders, self.intent.folders, strict=True):
            if folder is not None and not entry.parent:
                self._remove_claim(folder, entry.parts[-1], txid)

    def _signposts(self) -> None:
        """Take the well-known names away, wherever they still lead to this journal."""
        identity = self.journal.identity
        for folder, entry in zip(self.folders, self.intent.folders, strict=True):
            if folder is not None and entry.parent and folder.identity(JOURNAL_NAME) == identity:
                _kernel.port.unlink(JOURNAL_NAME, folder.fd)

    def _remove_claim(self, claim: Directory, name: str, txid: str) -> None:
        """What is left in a claim is ours by the recorded identity of the claim; the journal goes last."""
        clear_claim(claim, txid)
        parent = Directory.open("..", claim.fd)
        try:
            remove_folder(parent, name, claim)
        finally:
            parent.close()


def clear_claim(claim: Directory, txid: str) -> None:
    """Delete everything in a claim that carries the transaction's id, its journal last."""
    mark, last = f"{PREFIX}{txid}-", journal_name(txid)
    with _kernel.port.scandir(claim.fd) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(mark)]
    for name in sorted(names, key=lambda name: name == last):
        _tree.delete(Place(claim, name))


def remove_folder(parent: Directory, name: str, folder: Directory) -> bool:
    """Remove the emptied claim, if the name still leads to it; False when somebody else's things are in it."""
    if parent.identity(name) != folder.identity(""):
        return True
    try:
        _kernel.port.rmdir(name, parent.fd)
    except FileNotFoundError:
        return True
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def settle(directory: Directory, timeout: float, *, discard: bool = False, name: str = JOURNAL_NAME) -> list[Recovered]:
    """Deal with the journal `name` in the folder, if there is one; see the module.  No lock of ours may be held.

    Raises `LockTimeoutError` while its owner lives, `JournalError` when it cannot be trusted, `RollbackError` when it
    cannot be finished; the journal is still there then.
    """
    deadline = time.monotonic() + timeout
    while True:
        loaded = _journal.load(Place(directory, name))
        if loaded is None:
            return []
        fd, content = loaded
        try:
            if not _lock_journal(fd):
                _wait(directory, name, deadline, timeout)
                continue
            if not _same(fd, directory, name):
                continue  # its owner ended while we looked
            # Under its lock nobody else changes it; what was read before may be older.
            content = _journal.reread(fd, Place(directory, name))
            if content is None:
                return _drop_torn(directory, name, timeout, deadline)
            return _take_over(fd, content, directory, timeout, deadline, discard=discard)
        finally:
            _kernel.port.close(fd)


def _lock_journal(fd: int) -> bool:
    try:
        _kernel.port.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(directory: Directory, name: str, deadline: float, timeout: float) -> None:
    if time.monotonic() >= deadline:
        text = f"a transaction is still at work in the folder after {timeout:g} s; wait, or raise lock_timeout"
        errors.fail(errors.LockTimeoutError, errno.ETIMEDOUT, text, directory.child(name))
    time.sleep(_POLL)


def _same(fd: int, directory: Directory, name: str) -> bool:
    now, mine = directory.stat(name), _kernel.port.fstat(fd)
    return now is not None and (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino)


def _drop_torn(directory: Directory, name: str, timeout: float, deadline: float) -> list[Recovered]:
    """Its intent was never complete, so nothing was swapped; what was staged is found by its claim."""
    directory.lock(timeout, deadline)
    try:
        _kernel.port.unlink(name, directory.fd)
    finally:
        directory.unlock()
    return [Recovered(directory.child(name), "removed", "", "a journal that was never complete")]


def _take_over(
    fd: int, content: Journal, directory: Directory, timeout: float, deadline: float, *, discard: bool
) -> list[Recovered]:
    folders = reach(content.intent, directory)
    try:
        parents = [f for f, entry in zip(folders, content.intent.folders, strict=True) if f is not None and entry.parent]
        for parent in sorted({parent.key: parent for parent in parents}.values(), key=lambda p: p.key):
            parent.lock(timeout, deadline)  # I8
        identity = _journal.identity(fd, directory)
        live = _journal.LiveJournal(fd, content.intent.txid, content.end, identity)
        dead = DeadTransaction(live, content, folders, discard)
        dead.run()
        return dead.found
    finally:
        for folder in folders:
            if folder is not None:
                folder.close()


def reach(intent: Intent, start: Directory) -> list[Directory | None]:
    """Every folder of the transaction, opened anew from one of them; None for one that is not where it was.

    Raises `JournalError` when `start` is none of them: the journal was copied here from elsewhere.
    """
    me = start.identity("")
    mine = next((entry for entry in intent.folders if entry.identity == me), None)
    if mine is None:
        text = (
            "this journal is about other folders (was it copied here, or restored from a backup?); nothing was touched. "
            f"Remove {JOURNAL_NAME} and {PREFIX}{intent.txid} here if you know that to be so"
        )
        errors.fail(errors.JournalError, errno.EBADMSG, text, start.path)
    up = "../" * len(mine.parts)
    folders: list[Directory | None] = []
    try:
        for entry in intent.folders:
            folders.append(_reach_one(start, up + "/".join(entry.parts) or ".", entry))
    except BaseException:
        for folder in folders:
            if folder is not None:
                folder.close()
        raise
    return folders


def _reach_one(start: Directory, path: str, entry: _records.Folder) -> Directory | None:
    try:
        folder = Directory.reach(start, path, _NO_LINKS)
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
