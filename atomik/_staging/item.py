"""Items: one destination each, with what is to happen there.

The life of an item::

    OPEN ──seal──▶ SEALED ──(commit)──▶ DONE
      └───discard──────┴──────────────▶ DISCARDED

*open*: the user writes.  A file has no name of its own then (O_TMPFILE, P7); folders and paths lie in the private folder.
*seal*: the content is complete; owner, mode and attributes get their final values; errors of the last write show here.
*stage*: a sealed file gets its slot (before, a small transaction keeps it unnamed).  *steps*: what the commit has to
swap, in order.  *discard*: everything of the item is gone again; may be called in any state, and repeated.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from _thread import RLock
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from attrs import define, field

from atomik import errors
from atomik._folder.directory import Directory, Place, identify
from atomik._protocol.step import Step, same_kind
from atomik._receipt import ItemReceipt
from atomik._system import kernel
from atomik._tree import compare as _compare
from atomik._tree import delete, sync
from atomik._tree import metadata as _metadata

from . import checks as _refuse
from .observe import Observation
from .options import Options

if TYPE_CHECKING:
    from collections.abc import Callable

    from .workspace import Workspace


_SHARED = RLock()


class ItemState(Enum):
    """Where an item is in its life (see the module)."""

    OPEN = "open"
    SEALED = "sealed"
    DONE = "done"
    DISCARDED = "discarded"


#: As a name of the module: before Python 3.12, to look a member up in its class is a call.
_OPEN, _SEALED, _DONE = ItemState.OPEN, ItemState.SEALED, ItemState.DONE


class Owner(Protocol):
    """Who must know how an item fares: the transaction."""

    def _sealed(self, item: Item) -> None: ...
    def _discarded(self, item: Item, reason: str) -> None: ...


@define(eq=False)
class Item:
    """One destination of a transaction.

    ``path`` is the destination, absolute; ``kind`` one of "file", "folder", "path", "symlink", "removal", "move";
    ``order`` decides when it is swapped (lower first, then as staged); ``state`` is an `ItemState`.
    """

    #: the path as given, where it is not the one of `place`: memory counts when there are many items
    given: str | None = field(repr=False)
    kind: str
    place: Place = field(repr=False)
    stage: Directory = field(repr=False)
    workspace: Workspace = field(repr=False)
    options: Options
    order: int = 0
    state: ItemState = field(default=ItemState.OPEN, init=False)
    slot: Place | None = field(default=None, init=False, repr=False)
    not_preserved: tuple[str, ...] = field(default=(), init=False)
    unchanged: bool = field(default=False, init=False)
    kept: str | None = field(default=None, init=False)
    #: whether something stood at the destination when it was staged
    found: bool = field(default=False, init=False, repr=False)
    #: how many names besides the destination what stands there has
    links: int = field(default=0, init=False, repr=False)
    #: its content is durable already
    synced: bool = field(default=False, init=False, repr=False)
    _source: _metadata.Metadata | None = field(default=None, init=False, repr=False)
    #: made by the class itself, which threading.RLock is a function around
    _lock: RLock = field(factory=RLock, init=False, repr=False)
    on_forget: Callable[[], None] | None = field(default=None, init=False, repr=False)
    #: told when the content is complete, and when it was dropped
    owner: Owner | None = field(default=None, init=False, repr=False)

    #: whether staging it writes content that must be synced
    content = True

    @property
    def path(self) -> str:
        """The destination as given, absolute."""
        return self.given or self.place.directory.child(self.place.name)

    def seal(self) -> None:
        """Finish the content; idempotent.  A failure discards the item and is raised."""
        with self._lock:
            if self.state is not _OPEN:
                return
            try:
                self._seal()
            except BaseException as exc:
                self.discard(f"sealing failed: {exc}")
                if isinstance(exc, OSError) and not isinstance(exc, errors.AtomikError):
                    raise errors.system_error(exc, "cannot finish the output", self.path) from exc
                raise
            self.state = _SEALED
            self._lock = _SHARED  # nothing slow comes any more, and memory counts when there are many items
        if self.owner is not None:
            self.owner._sealed(self)

    def discard(self, reason: str = "") -> None:
        """Drop what was staged; idempotent.  The transaction cannot commit without it any more.

        Whatever brought us here is the error to tell: what cannot be removed now, the private folder's end tries again and reports.
        """
        with contextlib.suppress(OSError):
            self._discard(reason)

    def _discard(self, reason: str = "") -> None:
        with self._lock:
            if self.state not in (ItemState.OPEN, ItemState.SEALED):
                return
            self.state = ItemState.DISCARDED
            try:
                self._drop()
            finally:
                if self.owner is not None:
                    self.owner._discarded(self, reason)

    def end(self, *, done: bool) -> None:
        """The transaction is over: give back what the item still holds.  May be repeated."""
        self.owner = None
        try:
            if done:
                self.state = _DONE
            else:
                self._discard()
        finally:
            self.close()  # also when an earlier discard was interrupted before it came to this

    def close(self) -> None:
        """Let go of descriptors."""

    def choose_kept(self) -> None:
        """Decide, early, under which name the previous version is to be kept."""
        keep = self.options.keep
        if keep is None:
            return
        self.kept = _refuse.kept_name(os.fsdecode(keep(self.path) if callable(keep) else keep), self.place, self.path)

    def check_kept(self) -> os.stat_result | None:
        """What stands under the name for the previous version, if that may be replaced."""
        place = self.kept_place
        there = None if place is None else place.stat()
        if there is None or place is None:
            return None
        # Where the destination is still empty its kind may not be known; then nothing will be kept either.
        if self.step_kind() and not same_kind(there.st_mode, self.step_kind()):
            text = "the name for the previous version is taken by another kind of object; remove it or choose another"
            errors.fail(errors.WrongKindError, errno.EISDIR, text, str(place))
        _refuse.mounts(place, there, self.path)
        return there

    @property
    def kept_place(self) -> Place | None:
        """Where the previous version is to be kept."""
        return None if self.kept is None else Place(self.place.directory, self.kept)

    def steps(self) -> list[Step]:
        """What must be swapped, in order; called once the locks are held.

        Raises, with nothing touched, when the destination is not as the item requires.
        """
        slot, options = self.slot, self.options
        assert slot is not None
        if options.if_changed and self.stands_already():
            return []
        old = self.check()
        directory, name = slot
        new = identify(directory.fs, directory.fd, name)
        if new is None:
            text = "the staged content is gone: somebody removed it from atomik's private folder"
            errors.fail(errors.ConflictError, errno.ENOENT, text, str(slot), self.path)
        if old is None:
            return [self._step("create", self.place, slot, new, None)]
        steps = [self._step("replace", self.place, slot, new, old)]
        if options.keep is not None:
            steps.append(self._keep(old))
        return steps

    def stands_already(self) -> bool:
        """With ``if_changed``: whether the destination holds the same already, so that there is nothing to swap.

        Whoever reads a yes has one valid moment for it: when the two were compared.
        """
        if self.options.if_changed and self.look() is not None:
            self.unchanged = self._equals_present()
            if self.unchanged:
                self.synced = False  # what stands there was not synced by us
        return self.unchanged

    def _equals_present(self) -> bool:
        return self.slot is not None and _compare.same(self.slot, self.place, self.options.permissions)

    def _step(self, op: str, dest: Place, slot: Place, new: bytes | None, old: bytes | None) -> Step:
        options = self.options
        return Step(
            op, self.step_kind(), dest, slot, new, old, self.order,
            "", options.allow_gap, overwriting=options.overwrite or isinstance(options.expect, Observation),
        )  # fmt: skip

    def _keep(self, old: bytes) -> Step:
        """Publish the displaced original under its new name, out of the slot where the first swap left it."""
        assert self.slot is not None
        place = self.kept_place
        assert place is not None
        self.check_kept()
        present = place.identity()
        return self._step("create" if present is None else "replace", place, self.slot, old, present)

    @property
    def one_step(self) -> bool:
        """Whether one atomic step publishes it, so that alone it needs no journal.

        The weaker method takes more than one: dying between them, only the journal knows where the original lies.
        """
        options = self.options
        if options.keep is not None or options.allow_gap or isinstance(options.expect, Observation):
            return False
        return self.step_kind() != "folder" or not self.stays_in_parent()

    def stays_in_parent(self) -> bool:
        """Whether a folder takes part that this user may not write to: the kernel lets it be renamed within its parent
        only, for its ".." would change.  Then its slot must lie beside the destination."""
        may_write = kernel.port.may_write
        if self.place.stat() is not None and not may_write(self.place.name, self.place.fd):
            return True
        slot = self.slot
        return slot is not None and slot.stat() is not None and not may_write(slot.name, slot.fd)

    def places(self) -> tuple[Place, ...]:
        """The names that it changes, whose folders must be locked."""
        return (self.place,)

    def expected_in(self) -> tuple[Observation, Place, str] | None:
        """After the swaps: what the caller expected to displace, and where that lies now."""
        expect = self.options.expect
        if self.unchanged or self.slot is None or not isinstance(expect, Observation) or expect.absent:
            return None
        return expect, self.kept_place or self.slot, self.path

    def step_kind(self) -> str:
        """The kind of object, as `Step` knows it."""
        return self.kind

    def look(self) -> os.stat_result | None:
        """The destination as it is, if that is what the item requires; called when staged, and again at the commit."""
        options = self.options
        expect = options.expect
        if expect is None and not options.overwrite:
            # Whatever else this says no to, the kernel refuses when it is published: nothing is replaced then (P2).
            directory, name = self.place
            if kernel.port.exists(name, directory.fd):
                _refuse.existing(self.path)
            return None
        if isinstance(expect, Observation) and (why := expect._mismatch(self.place)) is not None:
            text = f"not what was expected: {why}; observe it again and repeat"
            errors.fail(errors.ConflictError, errno.EBUSY, text, self.path)
        found = self.place.stat()
        if found is None:
            return None
        if not options.overwrite or expect == "absent":
            _refuse.existing(self.path)
        _refuse.other_kind(found.st_mode, self.step_kind(), self.path)
        self.links = found.st_nlink - 1
        return found

    def check(self) -> bytes | None:
        """The identity of what a journalled commit will displace, after every check; None where there is nothing."""
        options, (directory, name) = self.options, self.place
        if not (options.overwrite or options.expect) and name not in self.workspace.listed.get(directory, (name,)):
            return None
        found = self.look()
        if found is None:
            return None
        _refuse.mounts(self.place, found, self.path)
        self.refresh(found)
        return self.place.identity()

    def sync_tree(self) -> int:
        """fsync what is to stand there, all of it; the number of calls.

        It lies in the slot; where nothing changed, at the destination: whoever wrote that may not have synced it.
        """
        slot = self.place if self.unchanged else self.slot
        assert slot is not None
        found = slot.stat()
        if found is not None and stat.S_ISDIR(found.st_mode):
            folder = Directory.open(slot.name, slot.fd, follow=False)
            try:
                return sync.sync_tree(folder)
            finally:
                folder.close()
        fd = kernel.port.open(slot.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, slot.fd)
        try:
            kernel.port.fsync(fd)
        finally:
            kernel.port.close(fd)
        return 1

    def receipt(self, step: Step | None) -> ItemReceipt:
        """What happened to it, by the step that the commit took at its destination."""
        if step is None:
            return ItemReceipt(self.path, self.kind, "unchanged", "", self.order, replaced=False)
        replaced = step.op != "create"
        kept = str(self.kept_place) if replaced and self.kept is not None else None
        op = "move" if self.kind == "move" else step.op
        links = self.links if step.op == "replace" and not step.folder else 0
        return ItemReceipt(self.path, self.kind, op, step.method, self.order, replaced, self.not_preserved, links, kept)

    def _seal(self) -> None:
        raise NotImplementedError

    def _drop(self) -> None:
        """Remove the slot.  A failure to remove is the private folder's to report, for it empties itself at the end."""
        if self.slot is None:
            return
        if self.slot.directory is self.place.directory:  # others may write there: a folder goes by its identity alone
            delete.delete_file(self.slot)
        else:
            delete.delete_tree(self.slot)

    def finish(self, fd: int) -> None:
        """Give the new object its final owner, attributes and mode, through an open descriptor."""
        options = self.options
        if options.overwrite and options.preserve != "none":
            self._source = _metadata.Metadata.of(self.place)
            if self._source is not None and same_kind(self._source.type, self.step_kind()):
                self.not_preserved = _metadata.apply(fd, self._source, options.preserve)
        if options.permissions is not None:
            kernel.port.fchmod(fd, options.permissions)

    def refresh(self, now: os.stat_result) -> None:
        """The destination's owner or mode changed since the item was sealed (`now` is its stat): follow that."""
        if self._source is None or (now.st_ino, now.st_ctime_ns) == self._source.stamp:
            return
        self.finish_slot()

    def finish_slot(self) -> None:
        """`finish` what was staged, opened anew."""
        assert self.slot is not None
        self.synced = False
        fd = kernel.port.open(self.slot.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, self.slot.fd)
        try:
            self.finish(fd)
        finally:
            kernel.port.close(fd)
