"""The commit of one item by one atomic step: no journal, and no barriers but those before the step and behind it.

::

    content durable ─ look ─ step ─ check what came out ─ folder durable ─ delete what came out
    └───── nothing visible ────┘└──── undo on failure ───┘└──────────── committed ────────────┘

An unnamed file appears by linkat(2); everything else waits in a slot, and is exchanged or renamed out of it.  `_plain` is
the same without anything around it, for the plainest of files, and comes here (`Single.resume`) with what it cannot end.
"""

from __future__ import annotations

import errno
import time
from enum import Enum
from typing import NoReturn

from attrs import define

from atomik import errors
from atomik._folder.directory import JOURNAL_NAME, Directory, Place, identify, rename
from atomik._protocol import publish as _swap
from atomik._protocol.private_folder import KEPT
from atomik._protocol.step import LINKAT, RENAME, Step, Undone, same_kind
from atomik._protocol.undo import undo
from atomik._receipt import State
from atomik._staging import checks as _refuse
from atomik._staging.file import NO_NAME, StagedFile
from atomik._staging.item import Item
from atomik._system import kernel
from atomik._tree import delete

from .commit import Commit, uninterrupted

#: How often an overwrite starts again because somebody else keeps creating and removing the destination.
_ATTEMPTS = 1000


class Phase(Enum):
    """How far a commit of one item came in the short way (see `_plain`)."""

    STAGED = "staged"  # the destination is old
    BEGUN = "begun"  # it may be new
    CONFIRMING = "confirming"  # it is new, and its folder is being synced
    PUBLISHED = "published"  # as durable as it shall be; what came out is to be deleted
    CLEAN = "clean"  # nothing is left but to close


@define(eq=False)
class Single(Commit):
    """Publish one item by one atomic step."""

    def run(self) -> None:
        """Publish, or raise with everything as it was; DurabilityError when it is visible but not durable."""
        item = self.items[0]
        parent = item.place.directory
        self._wait_for_others(parent)
        item.stands_already()
        self.syncing(0, 2)
        self.barriers.staged([item], [], self.workspace.made_parents, None)
        if item.unchanged:
            self.barriers.names([parent])
            self.state = State.COMMITTED
            return
        try:
            step = self._publish(item)
            self._confirm(step)
            self.spare_readers()
        except BaseException:
            self._stopped()
            raise
        _, interrupt = uninterrupted(lambda: self._remove_displaced(step))
        if interrupt is not None:
            raise interrupt

    def resume(self, step: Step, exc: BaseException, phase: Phase) -> None:
        """Bring to its end what the short way began with `step`, and `exc` stopped; returns when it is published."""
        self.steps.append(step)
        try:
            if isinstance(exc, OSError) and phase is Phase.CONFIRMING:
                self._unconfirmed(step, exc)
            if isinstance(exc, OSError) and phase is Phase.BEGUN:
                self._displaced(step)  # says what is wrong with what came out
            if phase in (Phase.BEGUN, Phase.CONFIRMING):
                raise exc
        except BaseException:
            self._stopped()
            raise
        self.state = State.COMMITTED
        self._remove_displaced(step)
        if not isinstance(exc, OSError):
            raise exc
        if phase is Phase.CLEAN:
            self.failed_cleanup(str(step.dest), exc)

    def _stopped(self) -> None:
        """By an error or an interrupt: undo, or, where there is no way back, remove what came out."""
        if self.state is not State.COMMITTED:
            self._back()
        elif self.steps:
            uninterrupted(lambda: self._remove_displaced(self.steps[-1]))

    def _wait_for_others(self, parent: Directory) -> None:
        # An unfinished transaction may be about to put back what stands at our destination.
        while parent.exists(JOURNAL_NAME):
            self.wait_or_recover(parent)
        self.check_parent(parent)

    def _publish(self, item: Item) -> Step:
        unnamed = isinstance(item, StagedFile) and item.slot is None
        # A link replaces nothing and says so: with nothing there when it was staged, it is worth trying without a look.
        step = self._link(item) if unnamed and not item.found else None
        for _ in range(_ATTEMPTS):
            if step is None:
                step = self._look_and_publish(item)
            if step is not None:
                self.swapped(step, 0)
                return step
        errors.fail(
            errors.ConflictError, errno.EBUSY, "others keep creating and removing the destination; try again", item.path
        )

    def _look_and_publish(self, item: Item) -> Step | None:
        found = item.look()
        if found is None and isinstance(item, StagedFile) and item.slot is None:
            return self._link(item)
        if found is not None:
            if kernel.is_folder(found.st_mode):
                _refuse.mounts(item.place, found, item.path)  # one that came since would move away with the old folder
            item.refresh(found)
        return self._rename(item, there=found is not None)

    def _link(self, item: Item) -> Step | None:
        """A new file: its only name is the destination, given in one linkat that replaces nothing (P2)."""
        assert isinstance(item, StagedFile)
        place = item.place
        step = Step("create", "file", place, self.workspace.sibling(place.directory), None, method=LINKAT)
        self._visible_from = time.perf_counter()
        self.steps.append(step)
        try:
            kernel.port.link_fd(item.fd, place.name, place.fd)
        except FileExistsError:
            self.steps.clear()
            if item.options.overwrite:
                return None
            raise _swap.lost_race(item.path) from None
        except OSError as exc:
            self.steps.clear()
            if exc.errno not in (*NO_NAME, errno.EXDEV):
                raise
            self._name(item)  # no hard links for unnamed files here: give it a slot, and rename
            return None
        self.visible = time.perf_counter() - self._visible_from
        return step

    def _rename(self, item: Item, *, there: bool) -> Step | None:
        if item.slot is None:
            self._take_slot(item)
        assert item.slot is not None
        op = "remove" if item.kind == "removal" else "replace" if there else "create"
        step = Step(op, item.step_kind(), item.place, item.slot, None, allow_gap=item.options.allow_gap, alone=True)
        trusted = item.place.directory.fs.trusted
        if op != "remove" and not (trusted and isinstance(item, StagedFile) and item.fd >= 0):
            step.new = item.slot.identity()
        if not trusted and op != "create":
            step.old = item.place.identity()  # a lower method has to know beforehand
        self._visible_from = time.perf_counter()
        self.steps.append(step)
        try:
            _swap.publish(step)
        except FileExistsError:
            if not item.options.overwrite:
                raise _swap.lost_race(item.path) from None
        except FileNotFoundError:
            if op == "create" or step.dest.stat() is not None:
                raise
        except errors.ConflictError:
            pass  # somebody replaced it while a lower method was at work
        else:
            self.visible = time.perf_counter() - self._visible_from
            return self._displaced(step)
        self.steps.clear()
        return None  # the destination came or went in between: look again

    def _take_slot(self, item: Item) -> None:
        """A name for an unnamed file that is to be exchanged.

        Beside the destination, which is cheapest, while a shared lock on the parent shows that we live; in a private folder of
        our own where somebody else holds that lock, or where the filesystem has to be probed anyway.
        """
        assert isinstance(item, StagedFile)
        parent = item.place.directory
        if item.stage is parent and parent.fs.trusted and not parent.append_only and parent.try_lock(shared=True):
            slot = self.workspace.sibling(parent)
            try:
                item.slot = slot
                kernel.port.link_fd(item.fd, slot.name, slot.fd)
            except OSError as exc:
                item.slot = None
                if exc.errno not in NO_NAME:
                    raise
            else:
                return
        self._name(item)

    def _name(self, item: StagedFile) -> None:
        """Give the file a slot in a private folder; if that took a copy, the copy must be made durable."""
        before = item.fd
        item.name_it()
        if self.barriers.durable and item.fd != before:
            self.barriers.content(item)

    def _displaced(self, step: Step) -> Step:
        """What came out must be what may be replaced; the last writer wins, so it need not be what we looked at."""
        if step.op == "create":
            return step
        if step.method == RENAME:
            self.state = State.COMMITTED  # what was there is gone: there is no way back
            return step
        came_out = step.slot.stat()
        if came_out is None or (step.new is not None and step.slot.identity() == step.new):
            text = "the filesystem says that it exchanged two names, and did not; write elsewhere"
            errors.fail(errors.UnsupportedFilesystemError, errno.EOPNOTSUPP, text, str(step.dest))
        if not same_kind(came_out.st_mode, step.kind):
            text = "another kind of object came to stand there meanwhile; it was left alone"
            errors.fail(errors.WrongKindError, errno.EISDIR, text, str(step.dest))
        return step

    def _identify(self, item: Item, step: Step) -> None:
        """Fill in the identities, which an unnamed file does without: only a failure has to tell old from new."""
        if step.new is None and step.op != "remove":
            assert isinstance(item, StagedFile)
            step.new = identify(step.dest.directory.fs, item.fd)
        there = step.dest.identity()
        if there != step.new:
            step.old = there  # not swapped, or somebody else's already
        elif step.op != "create":
            held = (place.identity() for place in step.slots())
            step.old = next((identity for identity in held if identity not in (None, step.new)), None)

    def _confirm(self, step: Step) -> None:
        """Make the swap durable.  A failure leaves the new version visible: to undo it would be no more durable."""
        folders = [step.dest.directory]
        if step.method != LINKAT and step.slot.directory is not step.dest.directory:
            folders.append(step.slot.directory)
        self.syncing(1, 2)  # a callback that fails is no failed sync
        try:
            self.barriers.names(folders)
        except OSError as exc:
            self._unconfirmed(step, exc)
        self.state = State.COMMITTED

    def _unconfirmed(self, step: Step, exc: OSError) -> NoReturn:
        self.state = State.COMMITTED
        text = "the new version is in place, but the sync of its folder failed, so a power cut may undo it"
        raise errors.DurabilityError(
            *errors.os_args(exc.errno or errno.EIO, f"{text}; check the disk and write again", str(step.dest))
        ) from exc

    def _back(self) -> None:
        """Bring the step back; whatever brought us here stays the error, unless even that fails."""
        try:
            uninterrupted(self._undo)
        except OSError as exc:
            self.state = State.IN_DOUBT
            raise self._in_doubt(exc) from exc
        self.state = State.ABORTED

    def _in_doubt(self, exc: OSError) -> errors.RollbackError:
        """There is no journal that would tell recovery of the original, so it gets a name that says "keep me"."""
        item = self.items[0]
        where, told = item.slot, "the original"
        if where is not None:
            kept = Place(where.directory, where.name + KEPT)
            try:
                rename(where, kept, 0)
                where = kept
            except OSError:
                told = "the original, which recovery would delete: take it away first,"
        text = f"the commit failed, and so did undoing it: {exc.strerror}; {told} may lie beside it"
        return errors.RollbackError(*errors.os_args(exc.errno or errno.EIO, text, item.path, str(where or "")))

    def _undo(self) -> None:
        item = self.items[0]
        for step in self.steps:
            self._identify(item, step)
            result = undo(step)  # a stranger's newer object stays, and supersedes what we displaced
            if result is Undone.UNDONE and self.barriers.durable:
                # The swap may be on the disk already, and must be off it before what was staged is deleted (I3).
                for folder in {step.dest.directory, step.slot.directory}:
                    folder.sync()
            if step.method == LINKAT:
                delete.delete_file(step.slot)  # where undo took the new file away to
        if item.slot is not None and item.slot.directory is item.place.directory:
            delete.delete_file(item.slot)

    def _remove_displaced(self, step: Step) -> None:
        if step.op == "create" or step.method == RENAME or step.slot.directory is not step.dest.directory:
            return  # private folders are emptied as a whole
        try:
            delete.delete_file(step.slot)  # beside the destination only files are swapped alone
        except OSError:
            try:
                delete.delete_file(step.slot)  # the cause may have been of the moment
            except OSError as exc:
                self.failed_cleanup(str(step.slot), exc)
