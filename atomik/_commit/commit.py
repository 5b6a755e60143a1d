"""The commit: from sealed items to published ones, or all back.  The same for one output and for many.

::

    prepare                                     publish            confirm                    clean up
    lock parents ─ find ─ plan ─ journal ─ B1 ─ swap … swap ─ B2 ─ mark ─ B3 ─ unlink journal ─ unlock ─ delete displaced
    └────────────── nothing visible ─────────┘└── undo in reverse ──┘└ in doubt ┘└────────────── committed ─────────────┘

What of it a commit needs follows from the steps (`plan.needs_journal`): one that is atomic by itself needs no journal, no
mark and no B3; it locks when a folder is displaced.  ``durable=False`` leaves the barriers out.

* *lock*: every parent, and every folder that is displaced, in one order (I8); no user code runs while they are held.
* *journal*: durable in every parent before the first swap (I1), so that recovery finds it from any of them.
* *swap*: in the order of the steps; each is checked by identity (I4).
* *B2* before the mark (I2), unless the mark is a name in the same log as the swaps (see `barriers`); *mark* and *B3* are the
  commit point.  If B3 itself fails the outcome is unknown: the journal stays, nothing is undone, and recovery decides by
  what the disk has.
* Displaced originals are deleted only after B3 (I3), and after the locks are released, because a tree may take long.

`Commit.prepare`, `confirm` and `clean_up` go forward and may be left by any exception at any bytecode.  `Commit.end` then
brings what was begun to an end, all old or all new, by identities and by what is in the journal (I13); it may be
interrupted and called again, and does nothing when there is nothing left to do.
"""

from __future__ import annotations

import errno
import functools
import operator
import os
import stat
import time
from types import MappingProxyType

from atomik import _events, errors
from atomik._folder.directory import Directory, identify
from atomik._folder.pin import is_pinned
from atomik._folder.place import Place, chmod, delete_file, rename, set_mode
from atomik._hidden_names import JOURNAL_NAME, kept_name, mark_name
from atomik._protocol import locks
from atomik._protocol.locks import close_all, lock_all, unlock_all
from atomik._protocol.publish import Unnameable, are_plain, check, identity_of_new, publish, swap
from atomik._protocol.step import LINKAT, RENAME, Step, Undone, same_kind
from atomik._protocol.undo import undo
from atomik._staging import checks
from atomik._staging.file import StagedFile
from atomik._system import kernel
from atomik.flags import State

from . import plan as _plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, NoReturn

    from atomik._protocol.journal import LiveJournal
    from atomik._protocol.private_folder import PrivateFolder
    from atomik._protocol.records import Folder, StepFields
    from atomik._staging.item import Found, Item
    from atomik._staging.observe import Digest, Observation
    from atomik._staging.workspace import Workspace

    from .barriers import Barriers

#: How often an overwrite starts again because another process keeps creating and removing the destination.
_ATTEMPTS = 1000

#: With more items than this, the names in their folders are read at once …
MANY = 8
#: … unless there are more of them than items, or than this: then each item asks for its own.
LONG = 4096

#: Seconds between the swap of a folder and the deletion of the old one, for programs that list the old one just then.
GRACE = 0.005

#: the kinds of outputs that may be folders, or displace one
_OF_FOLDERS = ("folder", "path", "removal")

#: what is asked of each item, in a loop of C
_parted, _kept, _expectation = map(operator.attrgetter, ("parted", "kept", "expectation"))
_new = tuple.__new__  # in half the time of calling the class

# As names of the module: before Python 3.12, to look a member up in its class is a call.
_OPEN, _PREPARED, _SWAPPED, _COMMITTED, _ABORTED, _IN_DOUBT = State


class Commit:
    """One attempt to publish; see the module.

    ``state`` says what is true of the destinations; ``steps`` what was planned, of which ``begun`` may have happened;
    ``leftovers`` what could not be cleaned up; ``visible`` the seconds from the first swap to the end of the last.
    """

    # What most commits never change is said once, here: making the objects is a good part of what a small commit costs.
    state = _OPEN
    steps: Sequence[Step] = ()
    visible = _visible_from = 0.0
    #: displaced originals that must stay, because a stranger's object exists where they belong
    stranded: Sequence[Step] = ()
    leftovers: Sequence[str] = ()
    _begun = 0
    #: each step has a slot and a name of its own
    _apart = False
    _needs_journal = False
    _parents: Sequence[Directory] = ()
    #: folders that will be displaced, open for their lock
    _displaced: Sequence[Directory] = ()
    _locked = _marking = told = False
    #: the private folders must stay, with the journal in them: readers use a displaced folder that can only be next to the
    #: destination, or a journal stays whose mark is in there
    needed = False
    _journal: LiveJournal | None = None
    #: folders that go from their slot in a private folder to one beside the destination
    _moved: Sequence[tuple[Place, Place]] = ()
    #: the modes that new folders get right before their swap, where their slots are in a folder that others can enter
    _modes: Mapping[Step, int] = MappingProxyType({})
    #: why undoing failed, the first time
    _failure: OSError | None = None
    _recorded: frozenset[bytes] = frozenset()
    #: displaced folders are deleted by a thread (see `later`)
    later = False
    #: it may stay prepared, and what decides about it then
    undecided = False
    coordinator = ""

    def __init__(
        self, workspace: Workspace, items: list[Item], barriers: Barriers, lock_timeout: float | None,
        progress: Callable[[str, int, int], None] | None, *, heard: bool,
    ) -> None:  # fmt: skip
        self.workspace, self.items, self.barriers = workspace, items, barriers
        #: the items as they were staged; `items` has their parts, where they have some
        self._staged = items
        self.lock_timeout, self.progress, self._heard = lock_timeout, progress, heard

    # --- saying --------------------------------------------------------------------------------------------------
    @property
    def txid(self) -> str:
        """The transaction's id."""
        return self.workspace.txid

    @property
    def at(self) -> str | None:
        """The destination whose step was begun last, for messages."""
        return str(self.steps[self._begun - 1].dest) if self._begun else None

    def event(self, level: int, name: str, **fields: object) -> None:
        """Log, bound to the transaction."""
        _events.emit(level, name, tx=self.txid, **fields)

    def _syncing(self) -> None:
        """Report the barriers so far; before each of them, because after the last one a failing callback cannot roll back."""
        if self.progress is not None and self.barriers.durable:
            three = self._needs_journal and not self._mark_is_a_name
            self.progress("syncing", self.barriers.passed, 3 if three else 2)

    def failed_cleanup(self, path: str, exc: OSError) -> None:
        """A failure after the commit point: logged, never raised."""
        self.leftovers = (*self.leftovers, f"{path}: {exc.strerror or exc}")
        self.event(_events.WARNING, "cleanup.failed", path=path, error=str(exc))

    # --- forward -------------------------------------------------------------------------------------------------
    def prepare(self) -> None:
        """Everything before the mark: published, durable unless B3 makes it so, and still undoable."""
        if not self.undecided and _plan.may_go_alone(self.items):
            self._prepare_alone(self.items[0])
        else:
            self._prepare_group()
        if not self.steps:
            self.state = _SWAPPED if self.undecided else _COMMITTED
            return
        self.state = _PREPARED
        if self.steps[0].alone:
            self._publish_alone(self.items[0])
        else:
            self._publish()
        if self.barriers.durable and not self._mark_is_a_name:  # else B3 makes both durable
            self._syncing()
            self._make_names_durable()
        self.state = _SWAPPED

    def _prepare_alone(self, item: Item) -> None:
        """One item: what it needs shows when it is planned."""
        options = item.options
        if item.kind in _OF_FOLDERS and _is_bound(item.place, item.slot):
            self._prepare_group()
            return
        parent = item.place.directory
        while kernel.port.exists(JOURNAL_NAME, parent.fd):
            # An unfinished transaction may be about to put back what exists at our destination.
            _loaded_machinery(parent).wait_or_recover(parent, self.lock_timeout)
        if not parent.still_there():
            self._refuse_moved(parent)
        if options.if_changed and item.stands_already():
            self._confirm_unchanged(parent)
            return
        found = _find_alone(item)
        if self.barriers.durable:
            self._syncing()
            self.barriers.staged(self.items, [], self.workspace.made_parents, None)
        self._plan_alone(item, found)

    def _confirm_unchanged(self, parent: Directory) -> None:
        """Nothing is published, but the program that wrote what is there may not have synced it."""
        self._syncing()
        self.barriers.staged(self.items, [], self.workspace.made_parents, None)
        self.barriers.names([parent])

    def _prepare_group(self) -> None:
        """Under the locks: plan, and write the journal."""
        self.barriers.begin(self.items)
        displaced = {place for item in self.items for place in item.folders_there()}
        self._lock(displaced)
        for item in self.items:
            item.name_it()
        while True:
            folders = self._plan_group()
            if folders <= displaced:
                break
            displaced |= folders  # one came since the check
            self._lock(displaced)
        self._keep_in_parent()
        if self.steps:
            if self._needs_journal:
                self._write_journal()
            else:  # one step that needs no journal, such as that of backup= without a previous version
                self.steps[0].alone = False
        for slot, beside in self._moved:  # now that a journal records it, because nothing else would
            rename(slot, beside, 0)
        if self.barriers.durable:
            homes = [
                made.parent for made in self.workspace.private_folders.values() if made.parent not in self._parents
            ]
            self._syncing()
            # The private folders' own names must be durable too: what is displaced will be in them.
            fd = None if self._journal is None else self._journal.fd
            self.barriers.staged(self.items, self._folders() + homes, self.workspace.made_parents, fd)
        if self._heard:
            self.event(_events.DEBUG, "transaction.prepared", steps=len(self.steps), barriers=self.barriers.passed)

    # --- finding and planning ------------------------------------------------------------------------------------
    def _plan_alone(self, item: Item, found: dict[Place, Found | None]) -> None:
        """Plan one item that is not locked yet; lock where its step needs that, and plan again."""
        there = found[item.place]
        if isinstance(item, StagedFile) and item.slot is None and (there is not None or item.unnameable):
            self._name(item, item.name_beside)
        alone = not self._locked
        try:
            self.steps = _plan.plan((item.operation(alone=alone),), found, separate=True)
        except _plan.Refusal as refusal:
            _plan.refuse(refusal)
        self.steps[0].alone = True
        if there is not None and there.kind == "folder" and not self._locked:
            self._needs_journal = _plan.needs_journal(self.steps, checked_later=False)
            self._lock({item.place})
            self._plan_alone(item, _find_alone(item))

    def _name(self, item: StagedFile, action: Callable[[], None]) -> None:
        """Give an unnamed file a slot; if that took a copy, the copy must be made durable."""
        before = item.fd
        action()
        if self.barriers.durable and item.fd != before:
            self.barriers.content(item)

    def _plan_group(self) -> set[Place]:
        """Plan; the names at which there are folders now."""
        if any(map(_parted, self._staged)):
            self.items = [part for item in self._staged for part in item.parts(locked=True)]
        if len(self.items) > MANY and (fresh := sum(not item.options.overwrite for item in self.items)) > MANY:
            self.workspace.list_names(self._parents, min(fresh, LONG))
        found: dict[Place, Found | None] = {}
        items = []
        for item in self.items:
            if not (item.options.if_changed and item.stands_already()):
                item.find(found, alone=False)
                items.append(item)
        self.steps = self._planned(items, found)
        later = self.undecided or any(map(_expectation, items)) or any(map(_kept, items))
        self._needs_journal = _plan.needs_journal(self.steps, checked_later=later)
        return {place for place, there in found.items() if there is not None and there.kind == "folder"}

    def _planned(self, items: list[Item], found: dict[Place, Found | None]) -> list[Step]:
        self._apart = _plan.are_separate(items, found)
        try:
            operations = (item.operation(alone=False) for item in items if item.changes)
            return _plan.plan(operations, found, separate=self._apart or None)
        except _plan.Refusal as refusal:
            _plan.refuse(refusal)

    def _keep_in_parent(self) -> None:
        """Give a folder that may be renamed only within its parent a slot there.

        Others could look into that slot, so what is staged is closed to them until right before its swap.
        """
        chains: dict[Place, list[Step]] = {}
        for step in self.steps:
            if step.kind == "folder" and step.op != "exchange":
                chains.setdefault(step.slot, []).append(step)
        if not chains:
            return
        items = {item.slot: item for item in self.items if item.slot is not None}
        for slot, steps in chains.items():
            parents = {step.dest.directory.key: step.dest.directory for step in steps}
            if len(parents) != 1 or not any(_is_bound(step.dest, step.slot) for step in steps):
                continue
            if items[slot].kept is not None:
                checks.refuse_bound(items[slot].path)
            self._needs_journal = True  # nothing else would say whose slot that is
            beside = self.workspace.sibling(*parents.values())
            first = steps[0]
            if first.new is not None:
                there = slot.status()
                if there is None or kernel.is_folder(there.mode):
                    # Taken from others; its owner may rename it.
                    self._modes = {**self._modes, first: set_mode(slot, stat.S_IRWXU)}
                self._moved = (*self._moved, (slot, beside))
            items[slot].slot = beside
            for step in steps:
                step.slot = beside

    # --- locks and the journal -----------------------------------------------------------------------------------
    def _lock(self, displaced: set[Place]) -> None:
        """Lock every parent, and every folder that will be displaced: readers of it must have ended (P6)."""
        if self._locked:
            self._unlock()
        parents = {place.directory for item in self._staged for place in item.places()}
        self._parents = sorted(parents, key=locks.order)
        while True:
            self._locked = True  # from here on there may be locks to release
            self._open_displaced(displaced)
            hot = lock_all([*self._parents, *self._displaced], self.lock_timeout)
            if hot is None:
                break
            # Its owner would hold the lock, so it is dead (or locks another way): recovery finds out, by its own locks.
            self._unlock()
            _machinery().wait_or_recover(hot, self.lock_timeout)
        for parent in self._parents:
            if not parent.still_there():
                self._refuse_moved(parent)

    def _open_displaced(self, displaced: set[Place]) -> None:
        self._displaced = held = []
        for place in displaced:
            try:
                held.append(place.open())
            except OSError as exc:  # gone; or it may not be read, and has no readers that could hold its lock
                if kernel.errno_of(exc) is None:
                    raise

    def _unlock(self) -> None:
        if self._locked:
            unlock_all(self._parents)
            if self._displaced:
                close_all(self._displaced)
                self._displaced = ()
            self._locked = False

    def _refuse_moved(self, directory: Directory) -> NoReturn:
        """The folder that was opened when the item was staged is no longer the one at its path."""
        text = "the folder was moved, removed or replaced since the output was staged; stage again"
        errors.fail(errors.ConflictError, errno.ESTALE, text, directory.path)

    def _folders(self) -> list[Directory]:
        """Every folder that a swap takes a name from or gives one to, and those that hold the journal's names."""
        private = [made.folder for made in self.workspace.private_folders.values()]
        if self._parents:
            return [*self._parents, *private]
        step = self.steps[0]
        folders = [step.dest.directory]
        if step.method != LINKAT and step.slot.directory is not step.dest.directory:
            folders.append(step.slot.directory)
        return folders

    def _write_journal(self) -> None:
        journal, records = _machinery().journal, _machinery().records
        self._journal = live = journal.LiveJournal(-1, self.txid, 0)
        private = list(self.workspace.private_folders.values())
        one_log = self.barriers.one_log(private[0].folder)
        live.room = records.OUTCOME_SIZE if one_log else 0
        try:
            journal.create(live, self._intent, private, list(self._parents))
        except journal.HotJournal as hot:
            text = "another transaction's journal appeared in the folder although it was locked; run recover() there"
            raise errors.ConflictError(*errors.os_args(errno.EBUSY, text, hot.directory.path)) from None
        linked = live.names[0].directory is private[0].folder  # else there are no hard links here
        if one_log and linked and self._mark_may_be_a_name(private):
            live.mark = Place(private[0].folder, mark_name(self.txid))

    @property
    def _mark_is_a_name(self) -> bool:
        return self._journal is not None and self._journal.mark is not None

    def _mark_may_be_a_name(self, private: list[PrivateFolder]) -> bool:
        """Whether recovery will find a name in the private folder from wherever it finds the journal: there is only one
        private folder, in the only parent.  What a coordinator decides must be durable before it is asked."""
        home = private[0]
        one = len(private) == len(self._parents) == 1 and home.parent.key == self._parents[0].key
        return one and not self.undecided and not home.outlives

    def _intent(self, identity: bytes) -> Iterator[bytes | bytearray]:
        """The intent in bytes, with the identity of the journal's file.  One step at a time: there may be very many."""
        journal, records = self._journal, _machinery().records
        assert journal is not None
        parents, private = self._parents, self.workspace.private_folders.values()
        paths = _paths_below({*parents, *[made.parent for made in private]})
        number: dict[Directory, int] = {}
        entries: list[Folder] = []
        for parent in parents:
            number[parent] = len(entries)
            entries.append(_new(records.Folder, (paths[parent], parent.identity("") or b"", True)))
        for made in private:
            number[made.folder] = len(entries)
            below = (*paths[made.parent], made.name)
            entries.append(_new(records.Folder, (below, made.folder.identity("") or b"", False)))

        def steps() -> Iterator[StepFields]:
            for s in self.steps:
                (directory, name), (home, slot) = s.dest, s.slot
                yield s.op, s.kind, s.allow_gap, number[directory], name, number[home], slot, s.new, s.old, s.order

        pieces: Iterator[bytes | bytearray] = records.encode(
            journal.txid, identity, entries, steps, len(self.steps), self.coordinator, journal.room
        )
        return pieces

    # --- publish -------------------------------------------------------------------------------------------------
    def _publish(self) -> None:
        """Swap all in a row, and check after the last swap, because readers see a mixture until then; where steps share
        names, after each."""
        steps, modes = self.steps, self._modes
        apart = self._apart or (
            len({step.slot for step in steps}) == len(steps) and all(step.op != "exchange" for step in steps)
        )
        action = swap if are_plain(steps) else publish
        self._visible_from = time.perf_counter()
        try:
            self._swap_all(action, apart=apart)
        except errors.ConflictError as conflict:
            self._explain(conflict, steps[self._begun - 1])
            raise
        self.visible = time.perf_counter() - self._visible_from
        for step in steps if apart else ():
            try:
                check(step)
            except errors.ConflictError as conflict:
                self._explain(conflict, step)
                raise
        for step in modes if self.barriers.durable else ():
            self._set_mode(step.dest, None)
        if any(map(_expectation, self.items)):
            self._check_expectations()

    def _swap_all(self, action: Callable[[Step], None], *, apart: bool) -> None:
        heard, progress, steps, modes = self._heard, self.progress, self.steps, self._modes
        for at, step in enumerate(steps, 1):
            self._begun = at
            if modes and step in modes:
                self._set_mode(step.slot, modes[step], step.new)
            action(step)
            if not apart:
                check(step)
            if heard:
                self._swapped(step, at - 1)
            if progress is not None:
                progress("swapping", at, len(steps))

    def _check_expectations(self) -> None:
        displaced: dict[Place, Place] | None = None
        for item in self.items:
            expect = item.expectation
            if expect is not None and not isinstance(expect, str) and not expect.absent and not item.unchanged:
                displaced = self._displaced_places() if displaced is None else displaced
                self._check_displaced(item, expect, displaced.get(item.expected_at or item.place))

    def _publish_alone(self, item: Item) -> None:
        """One step, and the last writer wins: where the destination came or went in between, plan again."""
        for _ in range(_ATTEMPTS):
            step = self.steps[0]
            self._visible_from = time.perf_counter()
            self._begun = 1
            try:
                publish(step)
            except Unnameable:
                self._begun = 0
                assert isinstance(item, StagedFile)
                item.unnameable = True
                self._name(item, item.name_it)
            except OSError as exc:
                if not self._is_to_repeat(step, exc):
                    raise
                self._begun = 0
            else:
                self.visible = time.perf_counter() - self._visible_from
                if step.op != "create" and step.method != RENAME:
                    self._check_came_out(step)
                if self._heard:
                    self._swapped(step, 0)
                return
            self._plan_alone(item, _find_alone(item))
            step = self.steps[0]
            if step.slot is not step.dest:
                # It has a private name by now, and is published out of that; linkat(2) would leave it both names.
                identity_of_new(step)
                step.fd = -1
        text = "others keep creating and removing the destination; try again"
        errors.fail(errors.ConflictError, errno.EBUSY, text, item.path)

    def _is_to_repeat(self, step: Step, exc: OSError) -> bool:
        """Whether nothing happened because the destination appeared or disappeared since the check; by now it may have come
        or gone once more, so what counts is that the new object is still where it was."""
        number = None if isinstance(exc, errors.ConflictError) else kernel.errno_of(exc)
        if number == errno.EEXIST and step.op == "create" and step.overwriting:
            return step.dest.identity() != identity_of_new(step)
        if number == errno.ENOENT or isinstance(exc, errors.ConflictError):
            return step.op == "replace" and step.slot.identity() == identity_of_new(step)
        return False

    def _check_came_out(self, step: Step) -> None:
        """What came out must be what may be replaced; the last writer wins, so it need not be what we looked at."""
        came_out = step.slot.status()
        if came_out is None or (step.new is not None and step.slot.identity() == step.new):
            text = "the filesystem reported an exchange that it did not do; write elsewhere"
            errors.fail(errors.UnsupportedFilesystemError, errno.EOPNOTSUPP, text, str(step.dest))
        if step.op == "replace" and not same_kind(came_out.mode, step.kind):
            text = "another kind of object was created there in the meantime; it was left alone"
            errors.fail(errors.WrongKindError, errno.EISDIR, text, str(step.dest))

    def _set_mode(self, place: Place, mode: int | None, known: bytes | None = None) -> None:
        """Give a folder that was closed to others its mode, right before its swap, if it is the `known` one still; None:
        make that durable."""
        flags = os.O_RDONLY if mode is None else os.O_PATH
        try:
            fd = kernel.port.open(place.name, flags | os.O_DIRECTORY | os.O_NOFOLLOW, place.fd)
        except PermissionError as exc:  # a mode that does not let its owner read, as fsync would have to
            if kernel.errno_of(exc) is None:
                raise
            self.barriers.syncfs(place.fd)
            return
        try:
            if mode is None:
                self.barriers.fsync(fd)
            elif identify(place.directory.fs, fd) != known:
                text = "another folder took the place of the staged one; nothing was changed in it. Try again"
                errors.fail(errors.ConflictError, errno.EBUSY, text, str(place))
            else:
                chmod(fd, mode, str(place))
        finally:
            kernel.port.close(fd)

    def _check_displaced(self, item: Item, expect: Observation | Digest, place: Place | None) -> None:
        """Compare-and-swap, after the swap: what we displaced, to `place`, must still be what the caller had seen."""
        why = None if place is None else expect._mismatch(place, moved=True)
        if why is not None:
            item.conflict(f"not what was expected: {why} at the last moment", place)

    def _explain(self, conflict: errors.ConflictError, step: Step) -> None:
        """If someone else's object came to a name at the last moment, and an expectation was about that name, say what
        differs."""
        names = (step.dest, step.slot)
        item = next((item for item in self.items if item.expectation is not None and item.place in names), None)
        if item is not None and conflict.path is None:
            item.explain(conflict, item.place)

    def _displaced_places(self) -> dict[Place, Place]:
        """Where what was at each name before the first step is now: in a slot, or under another name."""
        at: dict[Place, Place] = {}
        names: set[Place] = set()
        holders: dict[bytes, list[Place]] = {}
        for step in self.steps:
            before = ((step.dest, step.old), (step.slot, step.new if step.op == "exchange" else None))
            for place, was in before:
                if was is not None and place not in names:
                    names.add(place)
                    holders.setdefault(was, []).append(place)
            for identity, now in ((step.new, step.dest), (step.old, step.slot)):
                for place in holders.get(identity or b"", ()):
                    at[place] = now
        return at

    def _swapped(self, step: Step, order: int) -> None:
        self.event(
            _events.DEBUG, "item.swapped", path=str(step.dest), kind=step.kind, op=step.op, method=step.method,
            order=order, st_dev=step.dest.directory.dev,
        )  # fmt: skip

    # --- confirm -------------------------------------------------------------------------------------------------
    def _make_names_durable(self) -> None:
        """B2.  Of one step alone it is the last sync: a failure leaves the new version visible, because undoing it
        would be no more durable."""
        try:
            self.barriers.names(self._folders(), self.steps[-1].dest.directory)
        except OSError as exc:
            if self._needs_journal or kernel.errno_of(exc) is None:
                raise
            self.state = _COMMITTED
            text = "the new version is in place, but the sync of its folder failed, so a power cut may undo it"
            raise errors.DurabilityError(
                *errors.os_args(
                    exc.errno or errno.EIO, f"{text}; check the disk and write again", str(self.steps[0].dest)
                )
            ) from exc

    def confirm(self) -> None:
        """The mark and B3: from here on there is no way back."""
        if self._journal is not None and self.state is _SWAPPED:
            self._syncing()
            self._marking = True
            self._journal.set_mark()
            if self.barriers.durable:
                self._sync_mark()
        self.state = _COMMITTED
        if self.progress is not None and self.barriers.passed:
            self.progress("syncing", self.barriers.passed, self.barriers.passed)

    def _sync_mark(self) -> None:
        journal = self._journal
        assert journal is not None
        try:
            if journal.mark is None:
                self.barriers.mark(journal.fd, in_place=journal.room > 0)
            else:
                self.barriers.mark(journal.mark.fd)
        except OSError as exc:
            if kernel.errno_of(exc) is None:
                raise
            self.state = _IN_DOUBT
            text = (
                "every destination is new, but the sync of the commit mark failed, so a power cut may bring all of "
                "them back; check the disk, then call atomik.recover() on the folder"
            )
            raise errors.DurabilityError(*errors.os_args(exc.errno or errno.EIO, text, self._parents[0].path)) from exc

    # --- the end -------------------------------------------------------------------------------------------------
    def end(self, cause: BaseException) -> None:
        """Bring what was begun to an end: all old, or, after the mark, all new.

        Idempotent, and may be left by any exception and called again.  Sets ``state``; raises RollbackError when it is not
        certain that everything is old.
        """
        if self._marking and self.state is _SWAPPED:
            self._read_mark()
        if self.state in (_OPEN, _PREPARED, _SWAPPED):
            self._roll_back(cause)
        if self.state is not _IN_DOUBT:
            self.clean_up()
        self._unlock()
        if self._journal is not None:
            self._journal.close()
        if self._failure is not None:
            self._tell_doubt(cause)

    def abandon(self) -> None:
        """Let go of all locks and leave everything as it is, like the death of the process: for `probe`, which tries what
        recovery does then."""
        self._unlock()
        if self._journal is not None:
            self._journal.close()

    def _read_mark(self) -> None:
        """Something arrived while the mark was written: what the journal holds says whether it counts (I13)."""
        assert self._journal is not None
        try:
            marked = self._journal.is_marked()
        except OSError as exc:  # the server of the filesystem died
            if kernel.errno_of(exc) is None:
                raise
            self._failure, self.state = exc, _IN_DOUBT
            return
        if marked:
            self._sync_mark()
            self.state = _COMMITTED
        else:
            self._marking = False

    def _roll_back(self, cause: BaseException) -> None:
        """Undo what was begun, in reverse; what cannot be undone leaves us in doubt."""
        begun = self.steps[: self._begun]
        if self.steps and self.steps[0].alone:
            for step in begun:
                self._identify(step)
        recorded = (identity for step in begun for identity in (step.new, step.old) if identity is not None)
        self._recorded = frozenset(recorded)
        self.stranded = ()
        failures = [failure for step in reversed(begun) if (failure := self._undo(step, cause)) is not None]
        if not failures:
            try:
                self._make_undone_durable(begun=bool(begun))
            except OSError as exc:
                if kernel.errno_of(exc) is None:
                    raise
                failures = [exc] if begun else []
        if failures:
            self._failure = failures[0]
            self._keep_in_doubt()
            return
        self.state = _ABORTED
        if begun and not self.steps[0].alone and not self.told:
            self.told = True
            self.event(_events.INFO, "transaction.rolled_back", steps=len(begun), cause=str(cause))

    def _identify(self, step: Step) -> None:
        """Fill in the identities that a single step did without: only a failure has to distinguish old from new."""
        if step.slot is step.dest:  # it was to appear without one
            step.slot = self.workspace.sibling(step.dest.directory)
        identity_of_new(step)
        there = step.dest.identity()
        if there != step.new:
            step.old = there  # not swapped, or already another program's
        elif step.op != "create":
            held = (place.identity() for place in step.slots())
            step.old = next((identity for identity in held if identity not in (None, step.new)), None)

    def _undo(self, step: Step, cause: BaseException) -> OSError | None:
        """Undo one step; a failure is returned, so that the others are undone nevertheless.

        Tried twice: the cause may have been of the moment, and in doubt is a bad place to be.
        """
        for last in (False, True):
            try:
                result = undo(step, self._recorded)
                break
            except OSError as exc:
                if not kernel.is_failure(exc):
                    raise
                if last:
                    return exc
        held = step.slot.identity()
        if not step.alone and result is Undone.FOREIGN and held is not None and _is_strange(step, held, self._recorded):
            self.stranded = (*self.stranded, step)
            cause.add_note(
                f"someone else published at {step.dest} in the meantime, and their version is kept; the original is at "
                f"{step.slot} until atomik.recover(…, discard=True)"
            )
        if _events.heard(_events.DEBUG):
            self.event(_events.DEBUG, "item.undone", path=str(step.dest), op=step.op, result=result.value)
        return None

    def _make_undone_durable(self, *, begun: bool) -> None:
        """Make the rollback durable, and say so in the journal before any of its names goes: one that lingers must not
        start an undo over newer work (I3).

        The syncs use new descriptors, because one on which a sync has failed proves nothing any more (I9).  The files' own
        are closed before, which makes room for these: the files have names in the journal.
        """
        if begun and self.barriers.durable:
            for item in self.items if self._journal is not None else ():
                item.close()
            for folder in self._folders():
                with Directory.open(".", folder.fd) as fresh:
                    self.barriers.names([fresh])
        if self._journal is not None and self._journal.names:
            self._journal.append_undone()
            if begun:
                self.barriers.mark(self._journal.fd)

    def _keep_in_doubt(self) -> None:
        """Undoing failed: the journal stays; a step alone has none, so its original gets a name that says "keep me"."""
        self.state = _IN_DOUBT
        step = self.steps[0]
        if step.alone and step.op != "create" and _may_hold_original(step):
            kept = Place(step.slot.directory, kept_name(step.slot.name))
            try:
                rename(step.slot, kept, 0)
            except OSError as exc:
                if kernel.errno_of(exc) is None:
                    raise
            else:
                step.slot = kept

    def _tell_doubt(self, cause: BaseException) -> NoReturn:
        failure, self._failure = self._failure, None
        assert failure is not None
        why = failure.strerror or str(failure)
        self.told = True
        self.event(_events.WARNING, "transaction.in_doubt", error=str(failure), cause=str(cause))
        step = self.steps[0]
        if step.alone:
            where = str(step.slot) if step.op != "create" else None
            text = f"the commit failed, and so did undoing it: {why}; the original may be next to it"
            raise errors.RollbackError(
                *errors.os_args(failure.errno or errno.EIO, text, str(step.dest), where)
            ) from failure
        text = (
            f"the commit failed ({cause}), and so did undoing it: {why}; the journal stays. "
            "Fix the cause, then call atomik.recover() on this folder"
        )
        raise errors.RollbackError(
            *errors.os_args(failure.errno or errno.EIO, text, self._parents[0].path)
        ) from failure

    # --- clean up ------------------------------------------------------------------------------------------------
    def clean_up(self) -> None:
        """Take the journal's well-known names away, unlock, and delete what lies beside the destinations.  What is in the
        private folders goes with them (`Workspace.release`), the journal's last names at the very end: until then recovery
        of any one folder finds what there is to delete in the others.
        """
        journal = self._journal
        if journal is not None:
            if journal.names and (self.stranded or any(map(_kept, self.items))):
                self._without_failing(lambda: journal.keep(self._home()))
            self._without_failing(journal.withdraw)
            stays = any(name == JOURNAL_NAME for _, name in journal.names)
            self.needed = stays and journal.mark is not None and self.state is _COMMITTED
        if self._locked:
            self._unlock()
        steps = self.steps
        if steps and not (steps[0].alone and steps[0].op == "create" and self.state is _COMMITTED):
            displaced = set() if self.later else self.displaced_in()
            if displaced:
                kernel.sleep(self.pause())
            self._delete_siblings()
            if displaced:
                self._remove_unpinned(displaced)
        if journal is not None:
            journal.close()

    def _home(self) -> PrivateFolder:
        """Where the journal stays: with what is resumable, because it says what that is."""
        kept = next(filter(None, map(_kept, self.items)), None)
        return kept or next(iter(self.workspace.private_folders.values()))

    def _without_failing(self, action: Callable[..., None], *about: Any) -> None:
        """Tried twice, because a failure may have been temporary; then logged, not raised."""
        for last in (False, True):
            try:
                action(*about)
                return
            except OSError as exc:
                if not kernel.is_failure(exc):
                    raise
                if last:
                    named = about or (self._journal.names[-1:] if self._journal else ())
                    self.failed_cleanup(str(getattr(named[0], "path", named[0])) if named else "", exc)

    def displaced_in(self) -> set[Directory]:
        """The folders in which folders were displaced, once that is final."""
        steps = self.steps if self.state is _COMMITTED else ()
        return {step.dest.directory for step in steps if step.kind == "folder" and step.op != "create"}

    def pause(self) -> float:
        """Seconds to wait before a displaced folder is deleted.  A program that opened it right before it was displaced is
        perhaps listing it this very moment, and would see it being emptied: give it a moment.  A commit that waited for its
        barriers has given it already."""
        return max(0.0, self._visible_from + self.visible + _grace() - time.perf_counter())

    def _delete_siblings(self) -> None:
        """Delete the slots next to the destinations; those in private folders are deleted with them."""
        for step in self.steps:
            if step.slot.directory is not step.dest.directory or step.op == "exchange":
                continue
            if step.alone:
                self._delete_alone(step)
            elif step.folder and is_pinned(step.slot):
                self.needed = True
            elif not any(step is other for other in self.stranded):
                self._without_failing(_delete_known, step.slot, step)

    def _remove_unpinned(self, folders: Iterable[Directory]) -> None:
        """Delete what earlier commits displaced there and readers have given up since."""
        for parent in folders:
            self._without_failing(_machinery().remove_unpinned, parent)

    def _delete_alone(self, step: Step) -> None:
        """Only files are swapped alone next to their destination, so no folder there is ours."""
        if self.state is not _COMMITTED:
            for place in step.slots() if self._begun else ():
                self._without_failing(delete_file, place)
        elif step.op != "create" and step.method != RENAME:
            self._without_failing(delete_file, step.slot)


def _find_alone(item: Item) -> dict[Place, Found | None]:
    """What exists at the name that the only output changes; nobody asks for identities."""
    found: dict[Place, Found | None] = {}
    item.find(found, alone=True)
    return found


@functools.cache
def _machinery() -> Any:
    """What a journal needs; a function, because the first file of a program needs none of it (see there)."""
    from . import machinery

    return machinery


def _loaded_machinery(folder: Directory) -> Any:
    """The same for a plain file, where a journal appeared after it was staged."""
    try:
        return _machinery()
    except (ImportError, OSError) as exc:
        if isinstance(exc, OSError) and not kernel.came_from_import(exc):
            raise
        text = (
            "a dead transaction must be recovered first, and the code for that can no longer be loaded, as after an upgrade, "
            f"a chroot or dropped rights ({exc}); nothing was changed. Run 'atomik recover' on the folder, then write again"
        )
        raise errors.JournalError(*errors.os_args(errno.ELIBACC, text, folder.path)) from exc


def _delete_known(slot: Place, step: Step) -> None:
    found = slot.identity()
    if found is not None and found in (step.new, step.old):  # I6
        from atomik._tree.delete import delete_tree

        delete_tree(slot, known=found)


def _may_hold_original(step: Step) -> bool:
    """Whether the slot holds what was displaced, as far as is known; not if only the sync of the undo failed."""
    try:
        return step.slot.identity() not in (None, step.new)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return True


def _is_strange(step: Step, held: bytes, recorded: frozenset[bytes]) -> bool:
    """Whether the slot holds an original, or what was created between the check and the swap."""
    return held == step.old or held not in recorded


def _grace() -> float:
    """`GRACE`, or more where a reader that was stopped in between waits longer for a processor: at 2.8 runnable
    programs a processor, 5 ms were too short for 165 of 10,000 swaps under a spinning reader, 20 ms for none of 2,000."""
    try:
        crowd = os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError as exc:  # no /proc; it has no errno
        if kernel.came_from_elsewhere(exc):
            raise
        crowd = 1.0
    return GRACE * min(max(1.0, 2 * crowd), 20.0)


def _paths_below(folders: set[Directory]) -> dict[Directory, tuple[str, ...]]:
    """The path of each folder from the one that holds all of them."""
    if len(folders) == 1:
        return dict.fromkeys(folders, ())
    paths = {folder: tuple(filter(None, folder.real_path().split("/"))) for folder in folders}
    shared = len(os.path.commonprefix(list(paths.values())))  # noqa: RUF071  of tuples, it compares components
    return {folder: path[shared:] for folder, path in paths.items()}


def _is_bound(*places: Place | None) -> bool:
    """Whether there is a folder at one of them that this user may not write to, so that it cannot leave its parent."""
    for place in places:
        there = None if place is None else place.status()
        if place is None or there is None or not kernel.is_folder(there.mode):
            continue
        if not kernel.port.may_write(place.name, place.fd):
            return True
    return False
