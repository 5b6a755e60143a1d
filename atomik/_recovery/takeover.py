"""One dead transaction, taken over: undo or finish it, and clean up.

1. *decide* by the outcome, a record or the name that is a mark: committed: finish.  Undone: finish.  None: undo in reverse
   (`undo`, the same function as in rollback, I5), make that durable, and write "undone" to the journal before any of its
   names goes (I3).  If a coordinator decided to commit a prepared transaction, write the mark instead.  If the transaction
   was never prepared (`DeadTransaction.never_prepared`), nothing was published and there is nothing to undo;
2. *clean*: the well-known names first, then what the slots hold in every folder, then the private folders with the
   journal in them.  The journal is removed from none of them before everything else is removed from all of them.

Everything may be repeated, and killed or interrupted at any call: each step checks identities and outcome again.  The
caller (`unfinished_journal`) holds the journal's lock and those of all parents that were found.
"""

from __future__ import annotations

import errno
import functools
import os
from collections import Counter
from collections.abc import Callable, Container

from atomik import _events, _hidden_names, errors
from atomik._folder.directory import Directory
from atomik._folder.pin import is_pinned
from atomik._folder.place import Place, rename_back
from atomik._hidden_names import JOURNAL_NAME, journal_name, mark_name
from atomik._protocol import journal as _journal
from atomik._protocol import private_folder as _private_folder
from atomik._protocol import records as _records
from atomik._protocol.records import Intent, Journal, StepRecord
from atomik._protocol.step import Step, Undone
from atomik._protocol.undo import undo
from atomik._receipt import PlainValues
from atomik._system import kernel
from atomik._tree import delete

#: actions that want the user's attention
ATTENTION = frozenset({"foreign", "kept", "left", "unreachable"})

#: what is said of a folder that was displaced and is still read
PINNED = "a version that readers still use; it is deleted when they have ended"

#: errno values of a rename that the kernel will refuse again: EXDEV of xfs project ids, EPERM of an immutable file, EACCES,
#: EBUSY of a mount point, and the flags that are missing
_REFUSED = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EBUSY, errno.EINVAL, errno.EOPNOTSUPP})


class Recovered(PlainValues):
    """What was found and done about one name; in `atomik.RecoveryReport`.

    ``path``: the name.  ``action``: "undone" (the original was brought back), "untouched" (it was there already),
    "finished" (the commit was complete; this is the new version), "foreign" (someone else's object is there, and is kept),
    "kept" (a displaced original that cannot be put back; ``detail`` says where it is), "discarded" (such an original, deleted
    on request), "removed" (an abandoned temporary file or folder), "resumable" (what was staged with ``resume=True``, for the
    next run), "pinned" (a displaced version that readers still use), "live" (its owner is alive),
    "left" (it could not be removed, or is not atomik's; ``detail`` says why),
    "unreachable" (a folder of the transaction was not found); with ``dry_run`` also "hot" (a journal whose owner is dead),
    "prepared" (the same, but its coordinator has to decide), "abandoned" (a private folder whose owner is dead) and "slot" (a
    name next to a destination).
    ``txid``: the transaction's id, "" if it is not known.  ``detail``: more, often empty.
    """

    __module__ = "atomik"

    __slots__ = __match_args__ = ("path", "action", "txid", "detail")

    path: str
    action: str
    txid: str
    detail: str

    def __init__(self, path: str, action: str, txid: str, detail: str = "") -> None:
        self._set(path, action, txid, detail)


def log(item: Recovered) -> None:
    """The event of what a recovery did about a name, or found there."""
    level = _events.WARNING if item.action in ATTENTION else _events.INFO
    _events.emit(level, f"recovery.{item.action}", tx=item.txid, path=item.path, detail=item.detail)


class DeadTransaction:
    """A journal taken over from a dead owner.  ``commit``: the coordinator's decision about one without an outcome."""

    def __init__(
        self, journal: _journal.LiveJournal, content: Journal, folders: list[Directory | None], discard: bool,
        commit: bool = False,
    ) -> None:  # fmt: skip
        self.journal, self.content, self.folders = journal, content, folders
        if content.outcome is None and self._has_mark():
            self.content = content._replace(outcome=_records.COMMITTED)
        self.discard, self.commit = discard, commit
        self.found: list[Recovered] = []
        #: identities of what the transaction made, and of what it displaced; what it moves, keeps or exchanges is both
        self.news: set[bytes] = set()
        self.olds: set[bytes] = set()
        #: objects that could not go back and are nowhere else: not even discard deletes them in the same run
        self._only_copies: set[bytes] = set()
        for step in self.intent.steps:
            both = (step.new, step.old) if step.op == "exchange" else ()
            self.news.update(identity for identity in (step.new, *both) if identity is not None)
            self.olds.update(identity for identity in (step.old, *both) if identity is not None)

    @property
    def intent(self) -> Intent:
        return self.content.intent

    def tell(self, path: str, action: str, detail: str = "") -> None:
        """Report, and log."""
        item = Recovered(path, action, self.intent.txid, detail)
        self.found.append(item)
        log(item)

    def run(self) -> None:
        """Undo or finish, and clean up.  Raises RollbackError, with the journal still there, when that is impossible."""
        outcome = self.content.outcome or (_records.COMMITTED if self.commit else None)
        never_prepared = self.content.outcome is None and self.never_prepared()
        steps = self._reachable() if never_prepared else self._steps()
        if outcome == _records.COMMITTED:
            if self.commit:
                self._refuse_unprepared(steps, never=never_prepared)
            # Written once more: a mark whose own sync failed may be in the page cache only, and a fresh one is synced.
            self._end(_records.COMMITTED)
            for step in steps:
                self.tell(str(step.dest), "finished")
        else:
            if never_prepared:
                for step in steps:
                    self.tell(str(step.dest), "untouched")
            elif outcome is None:
                self._undo(steps)
            # Also when it says so already: its owner may have died between writing that and making it durable (I3).
            self._end(_records.UNDONE)
            outcome = _records.UNDONE
        stranded = [] if outcome == _records.COMMITTED else self._stranded(steps)
        self._clean(steps, stranded, committed=outcome == _records.COMMITTED)

    def _refuse_unprepared(self, steps: list[Step], *, never: bool) -> None:
        """To commit it, every step must have been published: a coordinator that was told "prepared" can rely on that."""
        waiting = [
            str(step.dest)
            for step in steps
            if (step.dest.identity() == step.old if step.new is None else step.slot.identity() == step.new)
        ]
        if never or waiting:
            text = (
                "its coordinator decided to commit it, but it was never completely prepared; nothing was touched. Only False "
                "can be the right decision"
            )
            found = (folder.path for folder in self.folders if folder is not None)
            errors.fail(errors.RollbackError, errno.EINVAL, text, waiting[0] if waiting else next(found))

    def never_prepared(self) -> bool:
        """Whether the owner died before it had linked the journal into every parent, so that nothing was published.

        The well-known names are all there before the first swap, and go only after an outcome is written: a parent without
        its name is proof.  Unless the user deleted that name: then something that was published says so.
        """
        entries = zip(self.folders, self.intent.folders, strict=True)
        parents = [folder for folder, entry in entries if folder is not None and entry.parent]
        if len(self._well_known()) == len(parents):
            return False
        return not any(_is_published(step, self.olds) for step in self._reachable())

    def _reachable(self) -> list[Step]:
        """The steps whose parents were found; their private folders need not be."""
        return [self._step(record) for record in self.intent.steps if self.folders[record.dest_folder] is not None]

    def _steps(self) -> list[Step]:
        """The steps whose folders were found."""
        records = self.intent.steps
        shared = Counter(_chain(record) for record in records)
        lost = {_chain(record) for record in records if self._is_lost(record, alone=shared[_chain(record)] == 1)}
        if lost:
            self._give_up([record for record in records if _chain(record) in lost])
        return [self._step(record) for record in records if _chain(record) not in lost]

    def _is_lost(self, record: StepRecord, *, alone: bool) -> bool:
        if self.folders[record.dest_folder] is None:
            return True
        if self.folders[record.slot_folder] is not None:
            return False
        if record.op == "exchange":
            return True
        if self.content.outcome is not None:
            return False
        # Without its private folder, what was created can still be taken back; but not what displaced something.
        return not (alone and record.op == "create") and self._step(record).dest.identity() != record.old

    def _step(self, record: StepRecord) -> Step:
        parent, slot_folder = self.folders[record.dest_folder], self.folders[record.slot_folder]
        assert parent is not None
        slot = Place(slot_folder if slot_folder is not None else parent, record.slot_name)
        return Step(
            record.op, record.kind, Place(parent, record.dest_name), slot, record.new, record.old, record.order,
            allow_gap=record.allow_gap,
        )  # fmt: skip

    def _give_up(self, records: list[StepRecord]) -> None:
        """Parts of which a folder is missing: an error, unless the user gives them up.  Once the outcome is written they do
        not matter any more: the folder may be one that the transaction had made, and removed as it was rolled back."""
        if self.content.outcome is not None:
            return
        paths = [os.path.join("…", *self.intent.folders[r.dest_folder].parts, r.dest_name) for r in records]
        if not self.discard:
            text = (
                "a folder of an unfinished transaction (or atomik's own folder in it) was moved, removed or is not mounted, "
                "so it cannot be undone; put it back, or give up its part with recover(discard=True)"
            )
            errors.fail(errors.RollbackError, errno.ENOENT, text, paths[0])
        for path in paths:
            self.tell(path, "unreachable")

    def _undo(self, steps: list[Step]) -> None:
        failures: list[tuple[Step, OSError]] = []
        recorded = self.news | self.olds
        for step in reversed(steps):
            published = step.new is None or step.slot.identity() != step.new
            try:
                result = undo(step, recorded)
            except OSError as exc:
                if not kernel.is_failure(exc):
                    raise
                failures.append((step, exc))  # the others are brought back nevertheless
                continue
            if result is Undone.FOREIGN and not published:
                result = Undone.UNTOUCHED  # another program's object that came before our swap: nothing to undo
            detail = "someone else published there since; their version is kept" if result is Undone.FOREIGN else ""
            self.tell(str(step.dest), result.value, detail)
        self._give_back_or_up(failures)

    def _give_back_or_up(self, failures: list[tuple[Step, OSError]]) -> None:
        """Steps whose undo failed: an error, unless the kernel refuses it for good and the user wants to give them up."""
        for step, exc in failures:
            if not self.discard or exc.errno not in _REFUSED:
                self._fail_undo(step, exc)
        for step, exc in failures:
            self.tell(str(step.dest), "left", f"given up: it could not be brought back ({_reason(exc)})")
            if step.old is not None and step.dest.identity() is None:
                self._only_copies.add(step.old)

    def _fail_undo(self, step: Step, cause: OSError) -> None:
        text = f"recovery could not bring it back: {_reason(cause)}; the journal stays. Fix the cause and recover again"
        if cause.errno in _REFUSED:
            text += (
                " (look for immutable flags with lsattr, for mounts and for xfs project ids), or give it up with "
                "recover(discard=True): the new version then stays here, and the original is deleted"
            )
        raise errors.RollbackError(*errors.os_args(cause.errno or errno.EIO, text, str(step.dest))) from cause

    def _end(self, outcome: int) -> None:
        """Make what was done durable, then the record that says so (I2, I3)."""
        for folder in self.folders:
            if folder is not None:
                folder.sync()
        self.journal.append(outcome)
        kernel.port.fsync(self.journal.fd)

    def _stranded(self, steps: list[Step]) -> list[Place]:
        """Slots with an object that cannot go back, because there is a stranger's object in its place: originals, and what
        was created between the check and the swap."""
        stranded = []
        homes = {step.old: step.dest for step in steps if step.old is not None}
        slots = {slot: step.dest for step in steps for slot in step.slots()}
        for place, dest in slots.items():
            identity = place.identity()
            if identity is None or (identity in self.news and identity not in self.olds):
                continue
            home = homes.get(identity, dest)
            if home.identity() == identity:
                continue
            if self.discard and identity not in self._only_copies:
                if self._remove(str(place), functools.partial(delete.delete_tree, place, known=identity)):
                    self.tell(str(home), "discarded")
            else:
                self.tell(str(home), "kept", f"the displaced original is at {place}")
                stranded.append(place)
        return stranded

    def _clean(self, steps: list[Step], stranded: list[Place], *, committed: bool) -> None:
        """Nothing depends on it any more: what cannot be removed now is reported, and left for another time."""
        ours = self.olds - self.news if committed else self.news - self.olds
        if stranded:
            self._keep_private()
        resumable, mine = self._resumable()
        self._remove_well_known_names()
        if not committed:
            self._leave_staged(mine, stranded)
        private_folders = [
            (folder, name)
            for folder, name in self._private_folders()
            if folder not in resumable or (committed and folder in mine)
        ]
        inside = set() if stranded else {folder for folder, _ in private_folders}  # they are cleared as a whole
        inside |= resumable
        all_gone = True
        for place in dict.fromkeys(slot for step in steps for slot in step.slots() if slot.directory not in inside):
            found = place.identity()
            if place not in stranded and found in ours:  # I6
                if is_pinned(place):
                    self.tell(str(place), "pinned", PINNED)
                    all_gone = False
                    continue
                all_gone &= self._remove(str(place), functools.partial(delete.delete_tree, place, known=found))
        if not stranded:  # else the private folders, with the journal in them, stay until the originals are discarded
            self._remove_private_folders(private_folders, journal=all_gone)

    def _remove_private_folders(self, private_folders: list[tuple[Directory, str]], *, journal: bool) -> None:
        """The journal is removed last, from all of them: after another death it leads to the rest."""
        told = bool(self.found)
        for folder, name in private_folders:
            journal &= self._remove(folder.path, functools.partial(_private_folder.clear, folder, name))
        for folder, name in private_folders if journal else ():
            done = self._remove(folder.path, functools.partial(_remove_private_folder, folder, name))
            if done and not told:
                self.tell(folder.path, "removed", "left by a transaction that had ended")

    def _private_folders(self) -> list[tuple[Directory, str]]:
        """The private folders that were found, and their names."""
        entries = zip(self.folders, self.intent.folders, strict=True)
        return [(folder, entry.parts[-1]) for folder, entry in entries if folder is not None and not entry.parent]

    def _has_mark(self) -> bool:
        """Whether the commit mark is there, where it is a name and not a record."""
        places = [_named(mark_name, folder, name) for folder, name in self._private_folders()]
        return any(place.identity() == self.journal.identity for place in places)

    def _resumable(self) -> tuple[set[Directory], set[Directory]]:
        """The private folders of resumable outputs, and those of them that no other job can have begun to use: this journal
        is in them, or still where it stops others."""
        found = [
            (folder, _private_journal(folder, name))
            for folder, name in self._private_folders()
            if _hidden_names.kind_of(name) == _hidden_names.RESUMABLE
        ]
        stops = bool(self._well_known())
        mine = {folder for folder, place in found if stops or place.identity() == self.journal.identity}
        return {folder for folder, _ in found}, mine

    def _leave_staged(self, resumable: set[Directory], stranded: list[Place]) -> None:
        """What was staged to be resumed is where it was staged, and waits for the next run."""
        for folder, name in self._private_folders():
            place = _private_journal(folder, name)
            free = folder in resumable and not any(each.directory is folder for each in stranded)
            if free and place.identity() == self.journal.identity:
                kernel.port.unlink(place.name, place.fd)

    def _remove(self, path: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except OSError as exc:
            if not kernel.is_failure(exc):
                raise
            self.tell(path, "left", _reason(exc))
            return False
        return True

    def _keep_private(self) -> None:
        """Without hard links the well-known name is the journal's only one: move it into a private folder."""
        places = [_private_journal(folder, name) for folder, name in self._private_folders()]
        if places and not any(place.identity() == self.journal.identity for place in places):
            for place in self._well_known():
                rename_back(place, places[0], folder=False)
                return

    def _well_known(self) -> list[Place]:
        """The well-known names that still lead to this journal."""
        entries = zip(self.folders, self.intent.folders, strict=True)
        places = [Place(folder, JOURNAL_NAME) for folder, entry in entries if folder is not None and entry.parent]
        return [place for place in places if place.identity() == self.journal.identity]

    def _remove_well_known_names(self) -> None:
        for place in self._well_known():
            kernel.port.unlink(place.name, place.fd)


def _is_published(step: Step, existed: Container[bytes]) -> bool:
    """Whether only this transaction can have done what is there: what it staged is at its destination, or what it displaced
    is in its slot.  Objects that `existed` before may have been moved or exchanged by another transaction since."""
    if step.new is not None and step.new not in existed and step.dest.identity() == step.new:
        return True
    return step.old is not None and any(place.identity() == step.old for place in step.slots())


def _private_journal(folder: Directory, name: str) -> Place:
    """The journal's name in the private folder called `name`."""
    return _named(journal_name, folder, name)


def _named(which: Callable[[str], str], folder: Directory, name: str) -> Place:
    """A name in the private folder called `name`; it has the same id in it."""
    _, id = _hidden_names.parse(name) or ("", "")
    return Place(folder, which(id))


def _reason(exc: OSError) -> str:
    return exc.strerror or str(exc)


def _remove_private_folder(private_folder: Directory, name: str) -> None:
    """What is left in a private folder is ours by the recorded identity of the private folder; the journal goes last."""
    with Directory.open("..", private_folder.fd) as parent:
        remove_folder(parent, name, private_folder)


def remove_folder(parent: Directory, name: str, folder: Directory) -> str:
    """Remove a private folder with what is in it; "removed", "pinned" where readers still use something in it, or "left" when
    someone else's things are in it."""
    try:
        return "removed" if _private_folder.remove(parent, name, folder) else "pinned"
    except OSError as exc:
        answer = kernel.errno_of(exc)
        if answer not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise
        return "removed" if answer == errno.ENOENT else "left"


def _chain(record: StepRecord) -> tuple[int, str]:
    """Steps that share a slot belong together: a move, or what is kept under another name."""
    return record.slot_folder, record.slot_name
