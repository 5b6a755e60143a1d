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
import functools
import os
import time
from collections.abc import Callable

from attrs import define, field

from atomik import _events, errors
from atomik._folder.directory import Directory, Place, identify
from atomik._protocol import publish as _swap
from atomik._protocol import records as _records
from atomik._protocol.journal import LiveJournal
from atomik._protocol.step import Step, Undone
from atomik._protocol.undo import undo
from atomik._receipt import State
from atomik._system import kernel
from atomik._tree import delete

from .commit import Interrupt, uninterrupted
from .prepare import Prepared


@define(eq=False)
class Group(Prepared):
    """Publish several steps, or one with ``expect``."""

    _begun: int = field(default=0, init=False)
    #: the identities of all objects that the transaction knows
    _recorded: set[bytes] = field(factory=set, init=False)
    #: a Ctrl-C that came when there was no way back; raised at the end
    _interrupt: Interrupt | None = field(default=None, init=False)

    def run(self) -> None:
        """Publish, or raise with everything as it was; RollbackError or DurabilityError when that is not certain."""
        self._lock()
        try:
            try:
                self._publish()
            finally:
                self._unlock()
            self._clean_up()
        finally:
            if self._journal is not None:
                self._journal.close()
        if self._interrupt is not None:
            raise self._interrupt

    def _publish(self) -> None:
        try:
            self._prepare()
            self.state = State.PREPARED
            self._swap_all()
            self.syncing(1, 3)
            self.barriers.names(self._folders())
            self.syncing(2, 3)
            self.state = State.SWAPPED
            self._mark()
        except BaseException as exc:
            if self.state is not State.IN_DOUBT:
                self._roll_back(exc)
            raise
        self._take_down(LiveJournal.withdraw)

    @property
    def at(self) -> str | None:
        return str(self.steps[self._begun - 1].dest) if self._begun else None

    # --- swap ----------------------------------------------------------------------------------------------------
    def _swap_all(self) -> None:
        heard = _events.heard(_events.DEBUG)
        progress, total = self.progress, len(self.steps)
        self._visible_from = time.perf_counter()
        for at, step in enumerate(self.steps):
            self._begun = at + 1
            if step.mode is not None:
                self._set_mode(step.slot, step.mode, step.new)
            _swap.swap(step)
            if heard:
                self.swapped(step, at)
            if progress is not None:
                progress("swapping", at + 1, total)
        self.visible = time.perf_counter() - self._visible_from
        for step in self.steps:
            if step.mode is not None and self.barriers.durable:
                self._set_mode(step.dest, None)
        for item in self.items:
            if item.options.expect is not None:
                self._check_displaced(item.expected_in())

    def _set_mode(self, place: Place, mode: int | None, known: bytes | None = None) -> None:
        """Give a folder that was closed to others its mode, right before its swap, if it is the `known` one still; None:
        make that durable."""
        flags = os.O_RDONLY if mode is None else os.O_PATH
        try:
            fd = kernel.port.open(place.name, flags | os.O_DIRECTORY | os.O_NOFOLLOW, place.fd)
        except PermissionError:  # a mode that does not let its owner read, as fsync would have to
            self.barriers.syncfs(place.fd)
            return
        try:
            if mode is None:
                self.barriers.fsync(fd)
            elif identify(place.directory.fs, fd) != known:
                text = "another folder came to be where the new one was staged; nothing was changed in it. Try again"
                errors.fail(errors.ConflictError, errno.EBUSY, text, str(place))
            else:
                kernel.port.chmod(f"/proc/self/fd/{fd}", mode)
        finally:
            kernel.port.close(fd)

    def _check_displaced(self, expected: tuple[object, Place, str] | None) -> None:
        """Compare-and-swap, after the swap: what we displaced must still be what the caller had seen."""
        if expected is None:
            return
        observation, slot, path = expected
        why = observation._mismatch(slot, moved=True)  # type: ignore[attr-defined]
        if why is not None:
            text = f"not what was expected: {why} at the last moment; observe it again and repeat"
            errors.fail(errors.ConflictError, errno.EBUSY, text, path)

    def _mark(self) -> None:
        """B3.  From the moment that the mark may be written there is no way back, only forward or into doubt: an undo
        behind a mark, and then a crash, would leave half of each."""
        if self._journal is not None:
            journal = self._journal
            _, self._interrupt = uninterrupted(lambda: self._write_mark(journal))
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

    def _write_mark(self, journal: LiveJournal) -> None:
        self.state = State.IN_DOUBT
        try:
            journal.append(_records.COMMITTED)
        except OSError:
            self.state = State.SWAPPED  # it is not whole, so it marks nothing
            raise

    # --- back ----------------------------------------------------------------------------------------------------
    def _roll_back(self, cause: BaseException) -> None:
        """Undo what was begun, in reverse.  Returns with everything old; RollbackError when that is not certain."""
        begun = self.steps[: self._begun]
        if begun:
            self.state = State.IN_DOUBT
        self._recorded = {identity for step in begun for identity in (step.new, step.old) if identity is not None}
        failures = [failure for step in reversed(begun) if (failure := self._undo(step, cause)) is not None]
        if failures:
            self._in_doubt(failures[0], cause)
        if self.stranded:
            self._keep_journal()
        try:
            uninterrupted(lambda: self._end_journal(bool(begun)))
        except OSError as exc:
            if begun:
                self._in_doubt(exc, cause)
        self.state = State.ABORTED
        if begun:
            self.told = True
            self.event(_events.INFO, "transaction.rolled_back", steps=len(begun), cause=str(cause))
        self._take_down(LiveJournal.withdraw)
        self._clean_up()

    def _undo(self, step: Step, cause: BaseException) -> OSError | None:
        """Undo one step; a failure is returned, so that the others are undone all the same.

        Tried twice: the cause may have been of the moment, and in doubt is a bad place to be.
        """
        recorded = self._recorded
        try:
            result, _ = uninterrupted(lambda: undo(step, recorded))
        except OSError:
            try:
                result, _ = uninterrupted(lambda: undo(step, recorded))
            except OSError as exc:
                return exc
        held = step.slot.identity()
        if result is Undone.FOREIGN and held is not None and (held == step.old or held not in recorded):
            self.stranded.append(step)
            cause.add_note(
                f"somebody published at {step.dest} meanwhile, and theirs stays; the original lies at {step.slot} until "
                "atomik.recover(…, discard=True)"
            )
        if _events.heard(_events.DEBUG):
            self.event(_events.DEBUG, "item.undone", path=str(step.dest), op=step.op, result=result.value)
        return None

    def _end_journal(self, begun: bool) -> None:
        """Make the rollback durable, and say so in the journal before any of its names goes: one that lingers must not
        start an undo over newer work (I3)."""
        if begun:
            self._sync_anew()
        if self._journal is not None and self._journal.names:
            self._journal.append(_records.UNDONE)
            if begun:
                self.barriers.mark(self._journal.fd)

    def _sync_anew(self) -> None:
        """Through descriptors of their own: one on which a sync has failed proves nothing any more (I9)."""
        anew: list[Directory] = []
        try:
            for folder in self._folders() if self.barriers.durable else ():
                anew.append(Directory.open(".", folder.fd))
            self.barriers.names(anew)
        finally:
            for folder in anew:
                folder.close()

    def _keep_journal(self) -> None:
        """Originals stay in the private folders; without a journal there, recovery would take them for rubbish."""
        with contextlib.suppress(OSError):
            journal = self._journal = self._journal or LiveJournal(-1, self.txid, 0)
            if journal.fd < 0:
                self._write_journal(journal)
            if self.stranded:
                journal.keep(next(iter(self.workspace.private_folders.values())).folder)

    def _in_doubt(self, failure: OSError, cause: BaseException) -> None:
        if self._journal is None:
            self._keep_journal()
        self.told = True
        self.event(_events.WARNING, "transaction.in_doubt", error=str(failure), cause=str(cause))
        text = (
            f"the commit failed ({cause}), and so did undoing it: {failure.strerror or failure}; the journal stays. "
            "Mend the cause, then call atomik.recover() on this folder"
        )
        raise errors.RollbackError(
            *errors.os_args(failure.errno or errno.EIO, text, self._parents[0].path)
        ) from failure

    # --- the end -------------------------------------------------------------------------------------------------
    def _clean_up(self) -> None:
        """Delete what lies beside the destinations (what is in the private folders goes with them), then the journal: until then
        recovery finds in the private folders what there is to delete."""
        try:
            self.spare_readers()
        finally:  # a Ctrl-C in there
            self._delete_siblings()
        # Theirs stands where ours belonged: the record of it stays in the private folder.
        if not self.stranded:
            self._take_down(LiveJournal.unlink)

    def _take_down(self, which: Callable[[LiveJournal], None]) -> None:
        """Take names of the journal away; tried twice, for the cause of a failure may have been of the moment."""
        journal = self._journal
        for last in (False, True):
            if journal is None:
                return
            try:
                _, interrupt = uninterrupted(functools.partial(which, journal))
                self._interrupt = self._interrupt or interrupt
                return
            except OSError as exc:
                if last:
                    self.failed_cleanup(str(journal.names[-1]), exc)

    def _delete_siblings(self) -> None:
        """Delete the slots that lie beside the destinations; those in private folders go with them."""
        kept = {id(step) for step in self.stranded}
        for step in self.steps:
            if step.slot.directory is step.dest.directory and id(step) not in kept:
                try:
                    found = step.slot.identity()
                    if found in (step.new, step.old):  # I6
                        delete.delete_tree(step.slot, known=found)
                except OSError as exc:
                    self.failed_cleanup(str(step.slot), exc)
