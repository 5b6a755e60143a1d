"""The commit of several steps: all of them or none, also across the death of the process and a power cut.

::

    lock ─ verify ─ journal ─ B1 ─ swap … swap ─ B2 ─ mark ─ B3 ─ unlink journal ─ unlock ─ delete displaced
    └──────── nothing visible ───┘└─ undo in reverse ┘└ in doubt ┘└──────────── committed ────────────────┘

* *lock*: every parent, in (st_dev, st_ino) order (I8), all sealed by now, so no user code runs while they are held.
* *journal*: durable in every parent before the first swap (I1), so that recovery finds it from any of them.
* *swap*: in the order of the steps; each is checked by identity (I4).
* *B2* before the mark (I2); *mark* and *B3* are the commit point.  If B3 itself fails the outcome is unknown: the
  journal stays, nothing is undone, and recovery decides by what the disk has.
* Displaced originals are deleted behind B3 only (I3), and after the locks are gone, for a tree may take long.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import Counter
from typing import TYPE_CHECKING

from attrs import define, field

from . import _events, _journal, _kernel, _records, _swap, _tree, errors
from ._commit import Commit, Interrupt, uninterrupted
from ._directory import JOURNAL_NAME, Directory, Place, rename
from ._receipt import State
from ._records import Folder, StepRecord
from ._staged import StagedFile
from ._swap import Step, Undone

if TYPE_CHECKING:
    from ._journal import LiveJournal


@define(eq=False)
class Group(Commit):
    """Publish several steps, or one with ``expect``."""

    journalled: bool = True
    _parents: list[Directory] = field(factory=list, init=False)
    _journal: LiveJournal | None = field(default=None, init=False)
    _begun: int = field(default=0, init=False)
    #: a Ctrl-C that came when there was no way back; raised at the end
    _interrupt: Interrupt | None = field(default=None, init=False)

    def run(self) -> None:
        """Publish, or raise with everything as it was; RollbackError or DurabilityError when that is not certain."""
        self._lock()
        try:
            try:
                self._prepare()
                self.state = State.PREPARED
                self._swap_all()
                self.barriers.names(self._folders())
                self.state = State.SWAPPED
                # Once begun it must be finished: a mark that is perhaps written must not be followed by an undo.
                _, self._interrupt = uninterrupted(lambda: self._append(_records.COMMITTED))
            except BaseException as exc:
                self._roll_back(exc)
                raise
            self._mark()
            self._close_journal()
        finally:
            if self._journal is not None:
                self._journal.close()
            self._unlock()
        self._delete_siblings()
        if self._interrupt is not None:
            raise self._interrupt

    # --- prepare -------------------------------------------------------------------------------------------------
    def _lock(self) -> None:
        parents = {place.directory.key: place.directory for item in self.items for place in item.places()}
        self._parents = [parents[key] for key in sorted(parents)]
        deadline = time.monotonic() + self.lock_timeout
        while True:
            try:
                for parent in self._parents:
                    parent.lock(self.lock_timeout, deadline)
                hot = next((parent for parent in self._parents if parent.exists(JOURNAL_NAME)), None)
                if hot is None:
                    for parent in self._parents:
                        self.check_parent(parent)
                    return
            except BaseException:
                self._unlock()
                raise
            # Its owner would hold the lock, so it is dead (or locks another way): recovery finds out, by its own locks.
            self._unlock()
            self.settle(hot)

    def _unlock(self) -> None:
        for parent in self._parents:
            if parent.fd >= 0:
                # A failure here must not look like a failed commit; the lock goes with the descriptor anyway.
                with contextlib.suppress(OSError):
                    parent.unlock()

    @property
    def at(self) -> str | None:
        return str(self.steps[self._begun - 1].dest) if self._begun else None

    def _prepare(self) -> None:
        for item in self.items:
            if isinstance(item, StagedFile):
                item.name_it()
        for item in self.items:
            self.steps += item.steps()
        shared = Counter(step.slot for step in self.steps if step.folder)
        for step in self.steps:
            if step.folder and shared[step.slot] == 1:
                self._keep_in_parent(step)
        if self.journalled and self.steps:
            self._journal = self._write_journal()
        fd = None if self._journal is None else self._journal.fd
        # The claims' own names must last as well: what is displaced will lie in them.
        homes = [claim.parent for claim in self.workspace.claims.values() if claim.parent not in self._parents]
        self.barriers.staged(self.items, self._folders() + homes, self.workspace.made_parents, fd)
        if _events.heard(_events.DEBUG):
            self.event(_events.DEBUG, "transaction.prepared", steps=len(self.steps), barriers=self.barriers.passed)

    def _keep_in_parent(self, step: Step) -> None:
        """A folder that this user may not write to can be renamed only within its parent (its ".." would change), so
        its swap happens through a slot beside it."""
        port = _kernel.port
        ours = step.old is None or port.may_write(step.dest.name, step.dest.fd)
        if ours and (step.new is None or port.may_write(step.slot.name, step.slot.fd)):
            return
        beside = self.workspace.sibling(step.dest.directory)
        if step.new is not None:
            rename(step.slot, beside, _kernel.NOREPLACE)
        for item in self.items:
            if item.slot == step.slot:
                item.slot = beside
        step.slot = beside

    def _write_journal(self) -> LiveJournal:
        try:
            claims = list(self.workspace.claims.values())
            return _journal.create(self.txid, self._intent, claims, self._parents)
        except _journal.HotJournal as hot:
            text = "another transaction's journal appeared in the folder although it was locked; run recover() there"
            raise errors.ConflictError(*errors.os_args(errno.EBUSY, text, hot.directory.path)) from None

    def _folders(self) -> list[Directory]:
        """Every folder that a swap takes a name from or gives one to, and those that hold the journal's names."""
        claims = [claim.folder for claim in self.workspace.claims.values()]
        return self._parents + claims

    def _intent(self, journal: bytes) -> bytes:
        """The intent, in bytes, with the identity of the journal's file in it.  The steps are turned one by one: there may be very many."""
        folders = self._folders()
        paths = [folder.real_path() for folder in folders]
        root = os.path.commonpath(paths)
        number = {id(folder): at for at, folder in enumerate(folders)}
        entries = [
            Folder(_below(path, root), folder.identity("") or b"", at < len(self._parents))
            for at, (path, folder) in enumerate(zip(paths, folders, strict=True))
        ]
        steps = (
            StepRecord(
                s.op, s.kind, s.weaker, number[id(s.dest.directory)], s.dest.name,
                number[id(s.slot.directory)], s.slot.name, s.new, s.old, s.order,
            )
            for s in self.steps
        )  # fmt: skip
        return _records.encode(self.txid, journal, entries, steps, len(self.steps))

    # --- swap ----------------------------------------------------------------------------------------------------
    def _swap_all(self) -> None:
        self._visible_from = time.perf_counter()
        total = len(self.steps)
        for at, step in enumerate(self.steps):
            self._begun = at + 1
            _swap.swap(step)
            self.swapped(step, at)
            self.tell("swapping", at + 1, total)
        self.visible = time.perf_counter() - self._visible_from
        for item in self.items:
            self._check_displaced(item.expected_in())

    def _check_displaced(self, expected: tuple[object, Place, str] | None) -> None:
        """Compare-and-swap, after the swap: what we displaced must still be what the caller had seen."""
        if expected is None:
            return
        observation, slot, path = expected
        why = observation.mismatch(slot, moved=True)  # type: ignore[attr-defined]
        if why is not None:
            text = f"not what was expected: {why} at the last moment; observe it again and repeat"
            errors.fail(errors.ConflictError, errno.EBUSY, text, path)

    def _append(self, kind: int) -> None:
        if self._journal is not None:
            self._journal.append(kind)

    def _mark(self) -> None:
        """B3.  From the moment that the mark is written there is no way back, only forward or into doubt."""
        self.state = State.IN_DOUBT
        if self._journal is not None:
            journal = self._journal
            try:
                # An interrupted sync has not failed: it may be asked again, unlike one that reported an error (I9).
                _, interrupt = uninterrupted(lambda: self.barriers.mark(journal.fd))
                self._interrupt = self._interrupt or interrupt
            except OSError as exc:
                text = (
                    "every destination is new, but the sync of the commit mark failed, so a power cut may bring all of "
                    "them back; check the disk, then call atomik.recover() on the folder"
                )
                raise errors.DurabilityError(
                    *errors.os_args(exc.errno or errno.EIO, text, self._parents[0].path)
                ) from exc
        self.state = State.COMMITTED

    # --- back ----------------------------------------------------------------------------------------------------
    def _roll_back(self, cause: BaseException) -> None:
        """Undo what was begun, in reverse.  Returns with everything old; RollbackError when that is not certain."""
        begun = self.steps[: self._begun]
        if begun:
            self.state = State.IN_DOUBT
        failures = [failure for step in reversed(begun) if (failure := self._undo(step)) is not None]
        if failures:
            self._in_doubt(failures[0], cause)
        try:
            uninterrupted(lambda: self._end_journal(bool(begun)))
        except OSError as exc:
            if begun:
                self._in_doubt(exc, cause)
        self.state = State.ABORTED
        if begun:
            self.event(_events.INFO, "transaction.rolled_back", steps=len(begun), cause=str(cause))
        self._close_journal()
        self._delete_siblings()

    def _undo(self, step: Step) -> OSError | None:
        """Undo one step; a failure is returned, so that the others are undone all the same.

        Tried twice: the cause may have been of the moment, and in doubt is a bad place to be.
        """
        try:
            result, _ = uninterrupted(lambda: _swap.undo(step))
        except OSError:
            try:
                result, _ = uninterrupted(lambda: _swap.undo(step))
            except OSError as exc:
                return exc
        if result is Undone.FOREIGN and step.old is not None and step.slot.identity() == step.old:
            self.stranded.append(step)
        if _events.heard(_events.DEBUG):
            self.event(_events.DEBUG, "item.undone", path=str(step.dest), op=step.op, result=result.value)
        return None

    def _end_journal(self, begun: bool) -> None:
        """Make the rollback durable, and say so in the journal before any of its names goes: one that lingers must not
        start an undo over newer work (I3)."""
        if begun:
            self.barriers.names(self._folders())
        if self._journal is not None and self._journal.names:
            self._journal.append(_records.UNDONE)
            if begun:
                self.barriers.mark(self._journal.fd)

    def _in_doubt(self, failure: OSError, cause: BaseException) -> None:
        self.event(_events.WARNING, "transaction.in_doubt", error=str(failure), cause=str(cause))
        text = (
            f"the commit failed ({cause}), and so did undoing it: {failure.strerror or failure}; the journal stays. "
            "Mend the cause, then call atomik.recover() on this folder"
        )
        raise errors.RollbackError(
            *errors.os_args(failure.errno or errno.EIO, text, self._parents[0].path)
        ) from failure

    # --- the end -------------------------------------------------------------------------------------------------
    def _close_journal(self) -> None:
        """Take the journal's names away; past here nobody will look for it."""
        if self._journal is None:
            return
        if self.stranded:
            # Theirs stands where ours belonged: the record of it stays in the claim, the well-known names go.
            self._journal.names = [n for n in self._journal.names if n.name == JOURNAL_NAME]
        try:
            self._unlink_journal(self._journal)
        except OSError:
            try:
                self._unlink_journal(self._journal)  # the cause may have been of the moment
            except OSError as exc:
                self.failed_cleanup(str(self._journal.names[-1]), exc)
        finally:
            self._journal.close()

    def _unlink_journal(self, journal: LiveJournal) -> None:
        _, interrupt = uninterrupted(journal.unlink)
        self._interrupt = self._interrupt or interrupt

    def _delete_siblings(self) -> None:
        """Delete the slots that lie beside the destinations; those in claims go with them."""
        kept = {id(step) for step in self.stranded}
        for step in self.steps:
            if step.slot.directory is step.dest.directory and id(step) not in kept:
                try:
                    if step.slot.identity() in (step.new, step.old):  # I6
                        _tree.delete(step.slot)
                except OSError as exc:
                    self.failed_cleanup(str(step.slot), exc)


def _below(path: str, root: str) -> tuple[str, ...]:
    rest = os.path.relpath(path, root)
    return () if rest == "." else tuple(rest.split("/"))
