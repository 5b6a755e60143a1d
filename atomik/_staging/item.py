"""Items: one operation of a transaction each, with what it needs until it is published.

The contract, and who calls what::

    OPEN ──seal──▶ SEALED ──(commit)──▶ DONE
      └───discard──────┴──────────────▶ DISCARDED

* *stage* (the module of each kind): the user's turn.  A file has no name of its own then (O_TMPFILE, P7); folders and
  paths lie in the private folder.  Raises what the destination does not allow; the transaction stays usable.
* *seal* (the user's ``close`` or ``with``, else the commit): the content is complete; errors of the last write show here.
  A failure discards the item.
* *look* (staging and commit): the destination as it is, or the refusal.
* *parts* (the commit, under its locks; plan, exists and open without): the items that stand for it, where what changes
  depends on what exists then: a folder that stays, companions.
* *find*, *operation* (the commit, under its locks): what exists at the names that change, and what is to change.  A file
  gets its owner, mode and attributes here, what else is staged when it is sealed (and again, if they changed since).
* *discard*: removes everything of the item; may be called in any state, and repeated.
* *end* (the transaction, once): releases what the item still holds.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from enum import Enum

from atomik import errors
from atomik._folder.directory import Directory, identify
from atomik._folder.paths import decoded
from atomik._folder.place import Place, delete_file
from atomik._hidden_names import JOURNAL_NAME
from atomik._system import kernel
from atomik._typing import NamedTuple, Protocol, cast

from . import checks, companions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import RLock
    from collections.abc import Sequence
    from typing import NoReturn

    from atomik._progress import Counting
    from atomik._protocol.resumable import Resumable, Settle
    from atomik._protocol.step import Step
    from atomik._receipt import ItemReceipt, Kind, Op
    from atomik._system.libc import Status

    from .options import Options
    from .workspace import Workspace


class ItemState(Enum):
    """Where an item is in its life (see the module)."""

    OPEN = "open"
    SEALED = "sealed"
    DONE = "done"
    DISCARDED = "discarded"


_new = tuple.__new__  # in half the time of calling the class

#: As names of the module: before Python 3.12, to look a member up in its class is a call.
OPEN, SEALED, DONE, DISCARDED = ItemState


class Found(NamedTuple):
    """An object that exists, or is staged: its kind as `Step` knows it, and its identity where that is needed."""

    kind: str
    identity: bytes | None


class Operation(NamedTuple):
    """What is asked for, as the plan takes it.

    ``op``: "put" (the object in `slot`, or the file `fd` without a name, at `place`), "remove", "move" (`other` to `place`).
    ``backup``: where the previous version goes.  `slot` is where the new object is, or the displaced one goes.
    """

    op: str
    place: Place
    slot: Place
    new: Found | None = None
    fd: int = -1
    other: Place | None = None
    backup: Place | None = None
    overwrite: bool = False
    allow_gap: bool = False
    order: int = 0
    #: a folder may replace what is not a folder, and the reverse
    any_kind: bool = False


class Owner(Protocol):
    """What must know how an item fares: the intake of its transaction."""

    lock: RLock
    #: whether the outputs are to survive a power cut
    durable: bool

    def sealed(self, item: Item) -> None:
        """Its content is complete."""

    def discarded(self, item: Item, reason: str) -> None:
        """It was dropped."""

    def counting(self, phase: str) -> Counting | None:
        """What reports the progress of a phase, one object at a time."""

    def synced_whole(self, directory: Directory) -> bool:
        """Whether the filesystem of a folder will be synced as a whole."""


def kind_of(mode: int) -> str:
    """The kind of an existing object, as `Step` knows it."""
    if kernel.is_file(mode):
        return "file"
    return "folder" if kernel.is_folder(mode) else "symlink" if kernel.is_link(mode) else "other"


class Item:
    """One operation of a transaction.

    ``path`` is the destination, absolute; ``kind`` one of "file", "folder", "path", "symlink", "removal", "move", "copy",
    "exchange", "expectation";
    ``order`` decides when it is swapped (lower first, then as staged); ``state`` is an `ItemState`.
    """

    __slots__ = (
        "backup", "displaces", "expectation", "follows", "found", "given", "kept", "links", "not_preserved",
        "options", "order", "owner", "place", "slot", "stage", "stamp", "state", "synced", "unchanged",
        "workspace",
    )  # fmt: skip

    kind: Kind
    #: whether staging it writes content that must be synced
    content = True
    #: whether it can make missing folders above its destination (parents=True)
    makes_parents = True
    #: whether it changes a name, and does not only say what must exist there
    changes = True
    #: whether the commit is to ask for `parts`
    parted = False
    #: whether the destination is a folder that stays, and only what is in it changes
    stays = False
    #: whether a folder may replace what is not a folder, and the reverse
    any_kind = False
    #: items that are taken back with it, and the one with which it is itself
    together: Sequence[Item] = ()
    belongs_to: Item | None = None

    def __init__(
        self, given: str | None, place: Place, stage: Directory, workspace: Workspace, options: Options, order: int = 0
    ) -> None:
        #: the path as given, where it is not the one of `place`: memory counts when there are many items
        self.given = given
        self.place, self.stage, self.workspace, self.options, self.order = place, stage, workspace, options, order
        #: what must exist at the destination: an `Observation`, "absent", or None for anything
        self.expectation = options.expect if options.expect != "any" else None
        self.state = OPEN
        self.slot: Place | None = None
        #: where a resumable output is staged, and whether something was staged there before
        self.kept: Resumable | None = None
        self.not_preserved: tuple[str, ...] = ()
        self.unchanged = False
        #: the name that the previous version will get
        self.backup: str | None = None
        #: the kind of what existed at the destination when it was last checked; "" for nothing
        self.found = ""
        #: how many names besides the destination what exists there has
        self.links = 0
        #: an earlier operation of the transaction changes the destination, and leaves `displaces` there: what another item
        #: staged, or what exists now under another name, or nothing
        self.follows = False
        self.displaces: Item | Place | None = None
        #: its content is durable already
        self.synced = False
        #: (inode, change time) of what the metadata was taken from
        self.stamp: tuple[int, int] | None = None
        #: told when the content is complete, and when it was dropped
        self.owner: Owner | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r} {self.state.value}>"

    @property
    def path(self) -> str:
        """The destination as given, absolute."""
        return self.given or self.place.directory.child(self.place.name)

    @property
    def resumed(self) -> bool:
        """Whether it goes on with what an earlier run has left."""
        return self.kept is not None and self.kept.resumed

    # --- life ----------------------------------------------------------------------------------------------------
    def seal(self) -> None:
        """Finish the content; idempotent.  A failure discards the item and is raised."""
        owner = self.owner
        if owner is None:
            return
        with owner.lock:
            if self.state is not OPEN:
                return
            try:
                self._seal()
            except BaseException as exc:
                self.discard(f"sealing failed: {exc}")
                if isinstance(exc, OSError) and kernel.errno_of(exc) is not None:
                    raise errors.system_error(exc, "cannot finish the output", self.path) from exc
                raise
            self.state = SEALED
        owner.sealed(self)

    def discard(self, reason: str = "") -> None:
        """Drop what was staged; idempotent.  The transaction cannot commit without it any more.

        What brought us here is the error to tell: what cannot be removed now, the private folder's end tries again and
        reports.
        """
        try:
            self._discard(reason)
        except OSError as exc:
            if not kernel.is_failure(exc):
                raise

    def _discard(self, reason: str) -> None:
        if self.state not in (OPEN, SEALED):
            return
        try:
            self._drop()
        finally:
            self.state = DISCARDED
            if self.owner is not None:
                self.owner.discarded(self, reason)

    def end(self, *, done: bool) -> None:
        """The transaction is over: release what the item still holds.  May be repeated until ``owner`` is None."""
        try:
            if done:
                self.state = DONE
            else:
                if self.state is not DONE:
                    self._drop()
                self.state = DISCARDED
        finally:
            self.close()
        self.owner = None

    def close(self) -> None:
        """Let go of descriptors."""

    def settle(self, settle: Settle) -> None:
        """Before the destination is checked: a dead run may have left something there that must still be undone."""
        from atomik._protocol.resumable import settle_journal

        settle_journal(self.place.directory, JOURNAL_NAME, settle)

    def keep(self, settle: Settle) -> Resumable:
        """Stage it where the next run finds it."""
        if self.follows:
            text = "resume=True cannot follow an earlier operation of this transaction at this name; drop that first"
            errors.fail(errors.DuplicateDestinationError, errno.EEXIST, text, self.path)
        assert self.owner is not None
        mode, durable = self.options.permissions, self.owner.durable
        if self.found == "folder" and not kernel.port.may_write(self.place.name, self.place.fd):
            checks.refuse_bound(self.path)
        if mode is not None and not mode & stat.S_IWUSR and os.geteuid():
            raise ValueError(f"permissions={mode:#o} with resume=True: what is staged must stay writable for its owner")
        self.kept = kept = self.workspace.resumable(self.stage, self.place, settle, durable=durable)
        with kernel.typed("cannot stage in the folder", self.stage.path):
            kept.make()
        return kept

    def content_path(self) -> str:
        """Where its content is now, by path, for reading it before the commit."""
        assert self.slot is not None
        return self.workspace.path_of(self.slot)

    def name_it(self) -> None:
        """Give what is staged a slot, if it has none yet."""

    def slot_to_read(self) -> Place:
        """The slot with what is staged, for an operation of the transaction that starts from it."""
        assert self.slot is not None
        return self.slot

    def _finished_slot(self) -> Place:
        """The same, with the owner and mode that it would otherwise take over at the commit."""
        if self.state is OPEN:
            text = "it is still being written; close it, or leave its block, before it is copied"
            raise errors.TransactionStateError(f"cannot copy {self.path!r}: {text}")
        chain: list[Item] = []
        earlier: Item | Place | None = self
        while isinstance(earlier, Item):
            chain.append(earlier)
            earlier = earlier.displaces if earlier.follows else None
        for each in reversed(chain):
            each.name_it()
            if each.follows:
                each._finish_following()
            else:
                each._finish_late(each.present())
        assert self.slot is not None
        return self.slot

    def start(self) -> Place | None:
        """What an output that starts from the present content starts from: what exists at the destination, or what an
        earlier operation leaves there; None where that is nothing."""
        if not self.follows:
            return self.place
        return self.displaces.slot_to_read() if isinstance(self.displaces, Item) else self.displaces

    @property
    def expected_at(self) -> Place | None:
        """The name at which what it must find exists until the commit: its destination, or the one from which an earlier
        operation takes it there; None for what the transaction itself staged."""
        if not self.follows:
            return self.place
        return None if isinstance(self.displaces, Item) else self.displaces

    # --- the destination -----------------------------------------------------------------------------------------
    def step_kind(self) -> str:
        """The kind of object, as `Step` knows it; "" where it is not known yet."""
        return self.kind

    def places(self) -> tuple[Place, ...]:
        """The names that it changes, whose folders must be locked."""
        return (self.place,)

    def names(self) -> tuple[Place, ...]:
        """The names that it changes, with the one for the previous version."""
        place = self.backup_place
        return self.places() if place is None else (*self.places(), place)

    def folders_there(self) -> tuple[Place, ...]:
        """The names that it changes that were folders at the last check; their readers hold their locks."""
        return (self.place,) if self.found == "folder" else ()

    def look(self) -> Status | None:
        """The destination as it is, if that is what the item requires; called when staged, and again at the commit."""
        options, place = self.options, self.place
        expect = self.expectation
        if expect is None and not options.overwrite:
            # Everything else that is refused here, the kernel refuses when it is published: nothing is replaced then (P2).
            if kernel.port.exists(place.name, place.directory.fd):
                checks.refuse_existing(self.path)
            return None
        if expect is not None and not isinstance(expect, str) and (why := expect._mismatch(place)) is not None:
            self.conflict(f"not what was expected: {why}")
        found = place.status()
        if found is None:
            self.found = ""
            return None
        if not options.overwrite or expect == "absent":
            checks.refuse_existing(self.path)
        if expect is not None and not isinstance(expect, str) and expect.absent:  # it came since the comparison
            self.conflict("not what was expected: it exists now")
        mode = found.mode
        if self.kind == "file" and kernel.is_file(mode):
            self.found = "file"
        else:
            checks.refuse_other_kind(mode, self.step_kind(), self.path)
            if kernel.is_link(mode) and self.kind != "symlink":
                checks.refuse_device_link(place, self.path)
            self.found = kind_of(mode)
        self.links = found.nlink - 1
        return found

    def conflict(self, text: str, place: Place | None = None) -> NoReturn:
        """Raise the error for something that is not what the caller expects, with both as data; it is at `place`, by default
        the destination."""
        error = errors.ConflictError(*errors.os_args(errno.EBUSY, f"{text}; observe it again and repeat", self.path))
        self.explain(error, place or self.place)
        raise error

    def explain(self, error: errors.ConflictError, place: Place) -> None:
        """Give the error what differs as data."""
        from .observe import Digest, look_at

        expected = self.expectation
        error.path, error.expected = self.path, str(expected) if isinstance(expected, Digest) else expected
        error.found = look_at(place, digest=False)

    def leaves(self) -> str | None:
        """What it leaves at its destination: the kind of an object, or None for nothing."""
        return self.step_kind()

    def origin(self) -> Item | Place | None:
        """What that is: itself, the name at which it exists now, or nothing."""
        return self

    def follow(self, leaves: str | None) -> None:
        """Instead of `look`: an earlier operation of the same transaction leaves that at the destination."""
        if self.expectation not in (None, "absent"):
            self.conflict("an earlier operation of this transaction changes it, so it cannot be what was observed")
        if leaves is None:
            return
        if not self.options.overwrite or self.expectation == "absent":
            text = "this transaction puts something there already; pass overwrite=True to replace that"
            errors.fail(errors.DuplicateDestinationError, errno.EEXIST, text, self.path, str(self.place))
        kind = self.step_kind()
        if kind and leaves and (kind == "folder") != (leaves == "folder"):
            text = f"cannot put a {kind} where this transaction puts a {leaves}; remove that first in this transaction"
            errors.fail(errors.WrongKindError, errno.EISDIR if leaves == "folder" else errno.ENOTDIR, text, self.path)

    def load(self) -> None:
        """Load now what the commit will need (I14): an upgrade, a chroot or dropped rights in between lose nothing."""
        if "atomik._tree.metadata" not in sys.modules:
            from atomik._tree import metadata  # noqa: F401

    def refuse_companions(self) -> None:
        """Refuse what would not match a file next to the destination; checked when staged, and at the commit."""

    # --- the commit ----------------------------------------------------------------------------------------------
    def parts(self, *, locked: bool) -> Sequence[Item]:
        """The items that change names for it, in their order: where what changes depends on what was written, and on what
        exists.  `locked`: the commit asks, under its locks; before that, nothing is checked."""
        return (self,)

    def find(self, found: dict[Place, Found | None], *, alone: bool) -> None:
        """Add to `found` what exists at each name that it changes, after every check; `alone` needs no identities.

        What an earlier operation changes is in `found`, and the plan knows what that leaves.  What it only looked at may be
        there too, such as the name for a previous version that does not exist.  Raises, with nothing touched, when the
        destination is not as the item requires.
        """
        self.refuse_companions()
        if self.follows and self.place in found:
            self._refuse_changed_start()
            self._finish_following()
        else:
            found[self.place] = self._find_destination(alone=alone)
        if self.backup is not None:
            self.find_backup(found)

    def _refuse_changed_start(self) -> None:
        """What an earlier operation leaves there, and this one started from, must still be what it was."""
        at, expect = self.expected_at, self.expectation
        if at is not None and expect is not None and not isinstance(expect, str):
            why = expect._mismatch(at)
            if why is not None:
                self.conflict(f"what it started from, at {str(at)!r}, is not what was read: {why}", at)

    def find_backup(self, found: dict[Place, Found | None]) -> None:
        """Add what exists at the name for the previous version."""
        place = self.backup_place
        if place is not None and place not in found:
            there = self.check_backup()
            found[place] = None if there is None else Found(kind_of(there.mode), place.identity())

    def _find_destination(self, *, alone: bool) -> Found | None:
        options, place = self.options, self.place
        directory, name = place
        if not (options.overwrite or options.expect) and (
            alone or name not in self.workspace.listed.get(directory, (name,))
        ):
            self._finish_late(None)  # if something exists there nevertheless, the kernel says so (P2)
            return None
        there = self.look()
        self._finish_late(there)
        if there is None:
            return None
        if there.mount != directory.mount or self.found == "folder":
            checks.refuse_mounts(place, there, self.path)
        if self.stamp is not None:
            self._refresh(self.stamp)
        return _new(Found, (self.found, None if alone else identify(directory.fs, directory.fd, name)))

    def _finish_following(self) -> None:
        """What an earlier operation leaves at the destination gives its owner and mode, now that it has its own."""
        self._finish_late(None)
        source = self.displaces
        if source is None or self.slot is None or not self.options.overwrite or self.options.preserve == "none":
            return
        place = source.slot if isinstance(source, Item) else source
        if place is not None:  # gone since: then it is what exists here that is replaced
            self.finish_slot(place if place.status() is not None else self.place)

    def _finish_late(self, there: Status | None) -> None:
        """The destination has been checked, under the locks: a file gets its metadata now."""

    def operation(self, *, alone: bool) -> Operation:
        """What is to change, as the plan takes it; called once the locks are held."""
        slot, options = self.slot, self.options
        assert slot is not None
        home, name = slot
        identity = identify(home.fs, home.fd, name)
        if identity is None:
            text = "the staged content was removed from atomik's private folder"
            errors.fail(errors.ConflictError, errno.ENOENT, text, str(slot), self.path)
        backup = None if self.backup is None else self.backup_place
        new = _new(Found, (self.step_kind(), identity))
        return _new(Operation, (
            "put", self.place, slot, new, -1, None, backup,
            options.overwrite, options.allow_gap, self.order, self.any_kind,
        ))  # fmt: skip

    def stands_already(self) -> bool:
        """With ``if_changed``: whether there is nothing to change; the commit then leaves it out."""
        self.unchanged = self.would_change_nothing()
        if self.unchanged:
            self.synced = False  # what exists there was not synced by us
        return self.unchanged

    def would_change_nothing(self) -> bool:
        """With ``if_changed``: whether the destination holds the same already; true only at the moment of the comparison.

        What an earlier operation changes is not compared: what exists there now is not what this one would replace.
        """
        return self.options.if_changed and not self.follows and self.look() is not None and self._equals_present()

    def _equals_present(self) -> bool:
        from atomik._tree import compare

        return self.slot is not None and compare.same(self.slot, self.place, self.options.permissions)

    # --- the previous version ------------------------------------------------------------------------------------
    def choose_backup(self) -> None:
        """Decide, early, which name the previous version will get."""
        backup = self.options.backup
        if backup is not None:
            name = decoded(backup(self.path) if callable(backup) else backup, "backup")
            self.backup = checks.backup_name(name, self.place, self.path)

    @property
    def backup_place(self) -> Place | None:
        """Where the previous version will be kept."""
        return None if self.backup is None else Place(self.place.directory, self.backup)

    def check_backup(self) -> Status | None:
        """What exists under the name for the previous version, if that may be replaced."""
        place = self.backup_place
        if place is None:
            return None
        if self.step_kind() != "folder":
            companions.refuse_log(place, self.workspace, self.path)
        there = place.status()
        if there is None:
            return None
        checks.refuse_mounts(place, there, self.path)
        checks.refuse_sticky(place.directory, there, str(place))
        return there

    # --- content and metadata ------------------------------------------------------------------------------------
    def sync_content(self) -> int:
        """fsync what is to exist there, all of it; the number of calls.

        It lies in the slot; where nothing changed, at the destination: whoever wrote that may not have synced it.
        """
        calls = 0 if self.synced else self._sync_new()
        if self.backup is not None:  # the previous version stays, so it must be durable too (P5)
            calls += sync_place(self.place)
        return calls

    def _sync_new(self) -> int:
        slot = self.place if self.unchanged else self.slot
        assert slot is not None
        return sync_place(slot)

    def receipt(self, op: str | None, step: Step | None, *, kept: bool) -> ItemReceipt:
        """What happened to its destination: `op`, by the `step` that the commit took there; `kept`: and to its backup's name,
        too."""
        from atomik._receipt import ItemReceipt

        if op is None or step is None:
            return ItemReceipt(self.path, self.kind, "unchanged", "", self.order, replaced=False)
        replaced = step.op != "create"
        backup = str(self.backup_place) if kept else None
        links = self.links if step.op == "replace" and not step.folder else 0
        return ItemReceipt(
            self.path,
            self.kind,
            cast("Op", op),
            step.method,
            self.order,
            replaced,
            self.not_preserved,
            links,
            backup,
            step.op == "replace" and self.found == "symlink",
        )  # fmt: skip

    def present(self) -> Status | None:
        """The status of what it will displace, if that is what exists at the destination now."""
        return None if self.follows else self.place.status()

    def finish(self, fd: int, there: Status | None, source: Place | None = None) -> None:
        """Give the new object its final owner, attributes and mode, through an open descriptor; `there` is the status of what
        it will displace, which is at `source` (by default the destination)."""
        options = self.options
        source = source or self.place
        if there is not None and options.overwrite and options.preserve != "none":
            self._take_over_all(fd, source)
        # Some servers refuse fchmod(2) although it would change nothing.
        if options.permissions is not None and kernel.port.fstat(fd).st_mode & 0o7777 != options.permissions:
            kernel.port.fchmod(fd, options.permissions)

    def _take_over_all(self, fd: int, place: Place) -> None:
        from atomik._tree import metadata

        source = metadata.Metadata.of(place)
        if source is not None and kernel.is_folder(source.type) == (self.step_kind() == "folder"):
            self.stamp = source.stamp
            self.not_preserved = metadata.apply(fd, source, self.options.preserve)

    def _refresh(self, stamp: tuple[int, int]) -> None:
        """The destination's owner or mode changed since the item got its own: follow that."""
        now = self.place.stat()
        if now is not None and (now.st_ino, now.st_ctime_ns) != stamp:
            self.finish_slot(self.place)

    def finish_slot(self, source: Place | None = None) -> None:
        """`finish` what was staged, by what is at `source`."""
        source = source or self.place
        self.finish_content(source.status(), source)

    def finish_content(self, there: Status | None, source: Place | None = None) -> None:
        """`finish` what was staged, opened again."""
        assert self.slot is not None
        self.synced = False
        try:
            fd = kernel.port.open(self.slot.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, self.slot.fd)
        except OSError as exc:
            if kernel.errno_of(exc) in (errno.ELOOP, errno.ENXIO):  # a symlink or a socket: nothing to set
                return
            raise
        try:
            self.finish(fd, there, source)
        finally:
            kernel.port.close(fd)

    # --- what each kind does in its own way ----------------------------------------------------------------------
    def _seal(self) -> None:
        """Complete the content, where staging has not done that."""

    def _drop(self) -> None:
        """Remove the slot, unless it is resumable.  The private folder reports what cannot be removed, because it
        empties itself at the end."""
        if self.slot is None or self.kept is not None:
            return
        if (
            self.slot.directory is self.place.directory
        ):  # others may write there: a folder is removed by its identity only
            delete_file(self.slot)
            return
        from atomik._tree.delete import delete_tree

        delete_tree(self.slot)


def sync_place(place: Place) -> int:
    """fsync what exists at `place`, all of it; the number of calls."""
    found = place.status()
    if found is not None and kernel.is_folder(found.mode):
        from atomik._tree.sync import sync_tree

        with place.open() as folder:
            return sync_tree(folder)
    if found is None or not kernel.is_file(found.mode):
        return 0  # a link or a device has nothing but its name, which is its folder's to make durable
    fd = kernel.port.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, place.fd)
    try:
        kernel.port.fsync(fd)
    finally:
        kernel.port.close(fd)
    return 1
