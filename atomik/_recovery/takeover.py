"""One dead transaction, taken over: undo or finish it, and clean up.

1. *decide* by the outcome record: committed: finish.  Undone: finish.  None: undo in reverse (`_swap.undo`, the same
   function as in rollback, I5), make that durable, and say "undone" in the journal before any of its names goes (I3);
2. *clean*: the well-known names first, then what the slots hold, then the journal in the private folders, then the private folders.

Everything may be repeated, and killed at any call: each step looks at identities and outcome again.  The caller
(`_wait_or_recover`) holds the journal's lock and those of all parents that were found.
"""

from __future__ import annotations

import errno
import functools
import os
from collections import Counter
from collections.abc import Callable

from attrs import define, field

from atomik import _events, errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place, rename_back
from atomik._hidden_names import JOURNAL_NAME, KEPT, PREFIX, journal_name
from atomik._protocol import journal as _journal
from atomik._protocol import records as _records
from atomik._protocol.records import Intent, Journal, StepRecord
from atomik._protocol.step import Step, Undone
from atomik._protocol.undo import undo
from atomik._system import kernel
from atomik._tree import delete


@define(frozen=True)
class Recovered:
    """What was found and done about one name; in `atomik.RecoveryReport`.

    ``path``: the name.  ``action``: "undone" (the original was brought back), "untouched" (it was there already),
    "finished" (the commit was complete; this is the new version), "foreign" (somebody else's object stands there, and
    stays), "kept" (a displaced original that has no place to go back to; ``detail`` says where it lies), "discarded" (such
    a one, deleted on request), "removed" (an abandoned temporary file or folder), "live" (its owner is at work), "left"
    (not ours to touch; ``detail`` says why), "unreachable" (a folder of the transaction was not found); with ``dry_run``
    also "hot" (a journal whose owner is dead), "abandoned" (its staging folder) and "slot" (a name beside a destination).
    ``txid``: the transaction's id, "" where it is not known.  ``detail``: more, often empty.
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
    #: identities of what the transaction made, and of what it displaced; in a move or with keep= one object is both
    news: set[bytes] = field(init=False)
    olds: set[bytes] = field(init=False)

    @property
    def intent(self) -> Intent:
        """What it was about to do."""
        return self.content.intent

    def tell(self, path: str, action: str, detail: str = "") -> None:
        """Report, and log."""
        self.found.append(Recovered(path, action, self.intent.txid, detail))
        level = _events.WARNING if action in ("foreign", "kept", "left", "unreachable") else _events.INFO
        _events.emit(level, f"recovery.{action}", tx=self.intent.txid, path=path, detail=detail)

    def __attrs_post_init__(self) -> None:
        self.news = {record.new for record in self.intent.steps if record.new is not None}
        self.olds = {record.old for record in self.intent.steps if record.old is not None}

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
            # Also when it says so already: its owner may have died between writing that and making it durable (I3).
            self._end(_records.UNDONE)
            outcome = _records.UNDONE
        stranded = [] if outcome == _records.COMMITTED else self._stranded(steps)
        self._clean(steps, stranded, committed=outcome == _records.COMMITTED)

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
        if self.folders[record.slot_folder] is not None or self.content.outcome is not None:
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
        """Parts of which a folder is missing: an error, unless they are to be given up.  Once the outcome is written they do
        not matter any more: the folder may be one that the transaction had made, and removed as it was rolled back."""
        if self.content.outcome is not None:
            return
        paths = [os.path.join("…", *self.intent.folders[r.dest_folder].parts, r.dest_name) for r in records]
        if not self.discard:
            text = (
                "a folder of an unfinished transaction (or atomik's own folder in it) was moved, removed or is not mounted, "
                "so it cannot be undone; put it back, or give its part up with recover(discard=True)"
            )
            errors.fail(errors.RollbackError, errno.ENOENT, text, paths[0])
        for path in paths:
            self.tell(path, "unreachable")

    def _undo(self, steps: list[Step]) -> None:
        failure: tuple[Step, OSError] | None = None
        recorded = self.news | self.olds
        for step in reversed(steps):
            published = step.new is None or step.slot.identity() != step.new
            try:
                result = undo(step, recorded)
            except OSError as exc:
                failure = failure or (step, exc)  # the others are brought back all the same
                continue
            if result is Undone.FOREIGN and not published:
                result = Undone.UNTOUCHED  # theirs is no business of ours
            detail = "somebody published there since; theirs stays" if result is Undone.FOREIGN else ""
            self.tell(str(step.dest), result.value, detail)
        if failure is not None:
            step, cause = failure
            text = f"recovery could not bring it back: {cause.strerror}; the journal stays. Mend the cause and recover again"
            raise errors.RollbackError(*errors.os_args(cause.errno or errno.EIO, text, str(step.dest))) from cause

    def _end(self, outcome: int) -> None:
        """Make what was done durable, then the record that says so (I2, I3)."""
        for folder in self.folders:
            if folder is not None:
                folder.sync()
        self.journal.append(outcome)
        kernel.port.fsync(self.journal.fd)

    def _stranded(self, steps: list[Step]) -> list[Place]:
        """Slots with an object that cannot go back, for a stranger's stands in its place: originals, and what came to
        be between the look and the swap."""
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
            if self.discard:
                delete.delete_tree(place, known=identity)
                self.tell(str(home), "discarded")
            else:
                self.tell(str(home), "kept", f"the displaced original lies at {place}")
                stranded.append(place)
        return stranded

    def _clean(self, steps: list[Step], stranded: list[Place], *, committed: bool) -> None:
        """Nothing depends on it any more: what cannot be removed now is reported, and left for another time."""
        ours = self.olds - self.news if committed else self.news - self.olds
        if stranded:
            self._keep_private()
        self._well_known_names()
        for place in dict.fromkeys(slot for step in steps for slot in step.slots()):
            found = place.identity()
            if place not in stranded and found in ours:  # I6
                self._remove(str(place), functools.partial(delete.delete_tree, place, known=found))
        if stranded:
            return  # the private folders, with the journal in them, stay until they are discarded
        for folder, entry in zip(self.folders, self.intent.folders, strict=True):
            if folder is None or entry.parent:
                continue
            done = self._remove(
                folder.path, functools.partial(_remove_private_folder, folder, entry.parts[-1], self.intent.txid)
            )
            if done and not self.found:
                self.tell(folder.path, "removed", "left by a transaction that had ended")

    def _remove(self, path: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except OSError as exc:
            self.tell(path, "left", exc.strerror or str(exc))
            return False
        return True

    def _keep_private(self) -> None:
        """Without hard links the well-known name is the journal's only one: it goes into a private folder, to stop nobody."""
        private_folders = [
            Place(folder, journal_name(self.intent.txid))
            for folder, entry in zip(self.folders, self.intent.folders, strict=True)
            if folder is not None and not entry.parent
        ]
        if private_folders and not any(place.identity() == self.journal.identity for place in private_folders):
            for place in self._well_known():
                rename_back(place, private_folders[0], folder=False)
                return

    def _well_known(self) -> list[Place]:
        """The well-known names that still lead to this journal."""
        places = [
            Place(folder, JOURNAL_NAME)
            for folder, entry in zip(self.folders, self.intent.folders, strict=True)
            if folder is not None and entry.parent
        ]
        return [place for place in places if place.identity() == self.journal.identity]

    def _well_known_names(self) -> None:
        for place in self._well_known():
            kernel.port.unlink(place.name, place.fd)


def _remove_private_folder(private_folder: Directory, name: str, txid: str) -> None:
    """What is left in a private folder is ours by the recorded identity of the private folder; the journal goes last."""
    clear_private_folder(private_folder, txid)
    parent = Directory.open("..", private_folder.fd)
    try:
        remove_folder(parent, name, private_folder)
    finally:
        parent.close()


def clear_private_folder(private_folder: Directory, txid: str) -> None:
    """Delete everything in a private folder that carries the transaction's id, its journal last; but what is to be kept."""
    mark, last = f"{PREFIX}{txid}-", journal_name(txid)
    with kernel.port.scandir(private_folder.fd) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(mark) and not entry.name.endswith(KEPT)]
    for name in sorted(names, key=lambda name: name == last):
        delete.delete_tree(Place(private_folder, name))


def remove_folder(parent: Directory, name: str, folder: Directory) -> bool:
    """Remove the emptied private folder, if the name still leads to it; False when somebody else's things are in it."""
    if parent.identity(name) != folder.identity(""):
        return True
    try:
        kernel.port.rmdir(name, parent.fd)
    except FileNotFoundError:
        return True
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _chain(record: StepRecord) -> tuple[int, str]:
    """Steps that share a slot belong together: a move, or what is kept under another name."""
    return record.slot_folder, record.slot_name
