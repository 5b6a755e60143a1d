"""How outputs get into a transaction: `Intake`, which a `Transaction` has.

It decides as early as it can whether the destination can work, so that a mistake is reported before hours of computing, not
after; the same is decided again, atomically, at the commit.  It keeps the outputs, which report to it when their content is
complete or was dropped.

Threads may stage at the same time: the lock guards the lists and the sealing of outputs, not their syncs.
"""

from __future__ import annotations

import errno
import operator
import os
from _thread import RLock

from atomik import _events
from atomik import errors as _errors
from atomik._folder.paths import absolute, followed
from atomik._folder.place import Place
from atomik._system import forked, kernel
from atomik._typing import Protocol

from . import checks
from .destinations import UNTOUCHED, Entry, key_of
from .file import StagedFile
from .item import Item, kind_of
from .options import OVERWRITING, PLAIN, ItemOptions, Options, checked
from .workspace import Workspace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn, TypeVar, TypeVarTuple

    from atomik._folder.directory import Directory
    from atomik._progress import Counting
    from atomik._system.libc import Status

    from .options import Progress, StrPath
    from .staged_path import StagedPath
    from .view import Staged

    _Item = TypeVar("_Item", bound=Item)
    _Ts = TypeVarTuple("_Ts")
    _T = TypeVar("_T")

#: So many sealed files stay unnamed and open; the oldest gets a slot and gives its descriptor up when one more comes.
#: A bound, so that descriptors do not grow with the number of files (I10).
RETAINED = 16

#: Items are in the order in which they were staged; a sort keeps that for equal ``order``.
_order = operator.attrgetter("order")


class Syncs(Protocol):
    """What makes files durable that give up their descriptors."""

    durable: bool | str

    def batch(self, item: StagedFile) -> int:
        """How many of them do so together."""

    def sealed(self, items: Sequence[StagedFile]) -> None:
        """Sync them now, unless that comes later for all."""

    def whole(self, directory: Directory) -> bool:
        """Whether it does, by one sync of the whole filesystem."""


class Intake:
    """The outputs of one transaction on their way in; see the module."""

    #: why nothing more can be staged; "" while it can
    closed = ""
    #: the tree as the items so far leave it, once someone has asked
    view: Staged | None = None

    def __init__(self, syncs: Syncs, *, overwrite: bool, progress: Progress | None) -> None:
        self.overwrite, self.progress, self._syncs = overwrite, progress, syncs
        self.durable = bool(syncs.durable)
        self.workspace = Workspace()
        self.items: list[Item] = []
        #: outputs that were dropped and must be staged again: path → reason
        self.failed: dict[str, str] = {}
        self._retained: list[StagedFile] = []
        self.lock = RLock()
        self.pid = forked.me
        # Asked once for all that is staged, not twice for each of very many items.
        self.heard = _events.heard(_events.DEBUG)

    def require_open(self) -> None:
        """Raise `TransactionStateError` unless outputs can still be staged."""
        if self.pid != forked.me:
            _fail("this is a forked child: only the process that began a transaction can use it")
        if self.closed:
            _fail(f"the transaction is {self.closed}; begin a new one")

    def shown(self) -> str:
        """The first few destinations, for a message."""
        names = [repr(item.path) for item in self.items[:3]]
        return ", ".join(names) + " …" * (len(self.items) > len(names)) if names else "nothing"

    def ordered(self) -> list[Item]:
        """The items in the order in which they will be swapped."""
        with self.lock:
            return sorted(self.items, key=_order) if len(self.items) > 1 else list(self.items)

    # --- taking in -----------------------------------------------------------------------------------------------
    def add(
        self, kind: type[_Item], path: StrPath, overwrite: bool | None, tmp_dir: StrPath | None, given: ItemOptions,
        prepare: Callable[[_Item], None] | None = None,
    ) -> _Item:  # fmt: skip
        """Decide early whether the destination can work, and take it in."""
        replaces = self.overwrite if overwrite is None else overwrite
        if isinstance(replaces, str | bytes):  # an encoding, or "no"
            raise TypeError(f"overwrite must be a bool, not {replaces!r}")
        options = checked(given, overwrite=bool(replaces)) if given else OVERWRITING if replaces else PLAIN
        where = full = path if type(path) is str and path[:1] == "/" else absolute(path)
        if given and given.get("follow_symlinks"):
            where = full = self._followed(full)
        elif where is not path:  # as it was given: the path from the root may not be searchable
            where = os.fsdecode(path)
        try:
            with self.lock:
                if self.closed or self.pid != forked.me:
                    self.require_open()
                return self._decide(kind, where, full, tmp_dir, options, given, prepare)
        except OSError as exc:
            if kernel.errno_of(exc) is None:
                raise
            raise _errors.system_error(exc, "cannot stage there", full) from exc

    def _followed(self, path: str) -> str:
        """Where a link at `path` leads in the end; for the transaction, which may have changed it."""
        if not self.items or path.endswith("/"):
            return followed(path)
        from .view import Staged

        with self.lock, kernel.typed("cannot follow the link", path):
            return Staged.of(self).resolve(path)

    def _decide(
        self, kind: type[_Item], where: str, full: str, tmp_dir: StrPath | None, options: Options, given: ItemOptions,
        prepare: Callable[[_Item], None] | None,
    ) -> _Item:  # fmt: skip
        workspace = self.workspace
        parents = bool(given and given.get("parents")) if kind.makes_parents else None
        if kind.stays:
            place = Place(workspace.directory(where, parents=bool(parents), wanted=where), ".")
        else:
            place = workspace.locate(where, folder=kind.kind not in ("file", "symlink"), parents=parents)
        directory, name = place
        stage = directory if tmp_dir is None else workspace.staging(place, absolute(tmp_dir, "tmp_dir"), full)
        as_given = None if full == directory.child(name) else full
        item = kind(as_given, place, stage, workspace, options, given.get("order", 0) if given else 0)
        if prepare is not None:
            prepare(item)
        destinations = workspace.destinations
        before = destinations.last(place)
        found = None
        if before is None:
            found = item.look()
        else:
            item.follow(before.leaves)
            item.follows, item.displaces = True, before.origin
        item.refuse_companions()
        if not item.changes:
            destinations.watch(directory, full)
            self.items.append(item)
            return item
        displaced = key_of(found) if found is not None and kernel.is_folder(found.mode) else None
        destinations.register(
            place, item if displaced is None else Entry(item, item.leaves(), item.origin(), displaced)
        )
        if found is not None or options is not PLAIN or not stage.fs.trusted or kind is not StagedFile:
            try:
                self._check(item, found, before)
            except BaseException:
                self._unregister(item)
                raise
        self.items.append(item)
        if self.failed:
            self.failed.pop(full, None)
        return item

    def _check(self, item: Item, found: Status | None, before: Entry | None) -> None:
        """What would fail at the commit."""
        item.load()
        place, stage = item.place, item.stage
        directory = place.directory
        if found is not None and not (
            directory.plain and found.mount == directory.mount and kernel.is_file(found.mode)
        ):
            path = item.path
            checks.refuse_mounts(place, found, path)
            checks.refuse_append_only(directory, path)
            checks.refuse_sticky(directory, found, path)
        if not stage.fs.trusted:
            self.workspace.try_names(stage)
            checks.refuse_unsupported(item, stage.fs, overwriting=found is not None)
        if item.options.backup is not None:
            there = None if before is None else before.leaves
            self._register_backup(item, there if found is None else kind_of(found.mode), before)

    def _register_backup(self, item: Item, there: str | None, before: Entry | None) -> None:
        """The name that the previous version will get, if there is one (`there` is its kind), is a destination
        like the others."""
        item.choose_backup()
        place = item.backup_place
        if place is None or there is None:
            return
        destinations = self.workspace.destinations
        taken, folder = destinations.leaves(place), None
        if taken == UNTOUCHED:
            found = item.check_backup()
            taken = None if found is None else kind_of(found.mode)
            folder = found if taken == "folder" else None
        if taken and there and (taken == "folder") != (there == "folder"):
            checks.refuse_backup(place, folder=taken == "folder")
        origin = item.place if before is None else before.origin
        destinations.register(place, Entry(item, there, origin, key_of(folder)))

    def _unregister(self, item: Item) -> None:
        for place in (*item.places(), item.backup_place):
            if place is not None:
                self.workspace.destinations.unregister(place, item)

    def forget(self, item: Item) -> None:
        """An item is out of the transaction, with those that belong to it."""
        with self.lock:
            self.view = None
            for each in item.together:
                self.forget(each)
            if item in self.items:
                self.items.remove(item)
                self._unregister(item)
            if item in self._retained:
                self._retained.remove(item)

    # --- handing out ---------------------------------------------------------------------------------------------
    def open(self, item: Item, action: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        """Let the item make what the user gets; a failure takes it out again."""
        item.owner = self
        try:
            result = action(*args)
        except BaseException as exc:
            self._take_back(item)
            if isinstance(exc, OSError) and kernel.errno_of(exc) is not None:
                raise _errors.system_error(exc, f"cannot stage the {item.kind}", item.path) from exc
            raise
        if item.kept is not None and item.resumed:
            _events.emit(_events.INFO, "item.resumed", tx=self.workspace.txid, path=item.path, kind=item.kind)
        if self.heard:
            _events.emit(
                _events.DEBUG, "item.staged", tx=self.workspace.txid, path=item.path, kind=item.kind, order=item.order,
                st_dev=item.place.directory.dev,
            )  # fmt: skip
        return result

    def _take_back(self, item: Item) -> None:
        """Staging failed, and that is the error to raise: what cannot be removed now is reported with the private folder."""
        try:
            item.end(done=False)
            if item.kept is not None:
                self.workspace.let_go(item.kept)
        except OSError as exc:
            if not kernel.is_failure(exc):
                raise  # the transaction's end finds it among the items
        self.forget(item)

    def hand_out(self, item: Item, path: str) -> StagedPath:
        """The path `path` of `item`, as the user gets it."""
        from .staged_path import StagedPath

        return StagedPath.of(path, item, self.workspace.path_elsewhere(path), resumed=item.resumed)

    def will_exist(self, path: StrPath) -> bool:
        """Whether something would exist at `path` if the commit came now; refused where that is in a staged folder."""
        try:
            place = self.workspace.locate(absolute(path), folder=True, parents=None)
        except _errors.MissingPathError as exc:
            if not kernel.is_failure(exc):
                raise
            return False
        leaves = self.workspace.destinations.leaves(place)
        if leaves != UNTOUCHED:
            return leaves is not None
        if place.status() is None and self.workspace.destinations.is_displaced(place.directory):
            from .view import exists

            if exists(self, path):  # in what displaces the folder
                self.workspace.destinations.refuse_displaced(place.directory, absolute(path))
            return False
        return place.status() is not None

    def drop(self, path: StrPath) -> None:
        """Take the last operation at `path` back."""
        full = absolute(path)
        with self.lock:
            self.require_open()
            if self.failed.pop(full, None) is not None:
                return
            place = self.workspace.locate(full, folder=True, parents=None)
            there = place.status()
            itself = None if there is None else (there.dev, there.ino)
            item = next(
                (
                    each
                    for each in reversed(self.items)
                    if (each.place.directory.key == itself if each.stays else place in each.names())
                ),
                None,
            )
            if item is None:
                text = "no operation of this transaction changes it, so there is nothing to drop"
                _errors.fail(_errors.MissingPathError, errno.ENOENT, text, full)
            item = item.belongs_to or item
            whole = (item, *item.together)
            names = {name for each in whole for name in each.names()}
            later = self.items[self.items.index(item) + 1 :]
            built = next((each for each in later if each not in whole and names & set(each.names())), None)
            if built is not None:
                text = "a later operation of this transaction builds on it; drop that first"
                _errors.fail(_errors.DuplicateDestinationError, errno.EEXIST, text, full, built.path)
            self.forget(item)
            item.end(done=False)
            if item.kept is not None:
                self.workspace.let_go(item.kept, discard=True)
            self.failed.pop(item.path, None)

    def counting(self, phase: str) -> Counting | None:
        """What adds up counts for the user's progress function."""
        if self.progress is None:
            return None
        from atomik._progress import Counting

        return Counting(self.progress, phase)

    def synced_whole(self, directory: Directory) -> bool:
        """Whether one sync of the whole filesystem will make what is staged there durable."""
        return self._syncs.whole(directory)

    # --- what items report -----------------------------------------------------------------------------------------
    def sealed(self, item: Item) -> None:
        """An item is complete.  Keep the number of open descriptors bounded."""
        if self.heard:
            _events.emit(_events.DEBUG, "item.sealed", tx=self.workspace.txid, path=item.path, kind=item.kind)
        if not self.closed and isinstance(item, StagedFile):
            self._retain(item)

    def _retain(self, item: StagedFile) -> None:
        """Keep a sealed file open; when they are too many, give the oldest slots, and their descriptors to the system."""
        oldest = [item]
        try:
            batch = self._syncs.batch(item)
            with self.lock:
                self._retained.append(item)
                if len(self._retained) < RETAINED + batch:
                    return
                oldest, self._retained = self._retained[:batch], self._retained[batch:]
                for one in oldest:
                    one.name_it()
            self._syncs.sealed(oldest)
            for one in oldest:
                one.close()
        except BaseException as exc:
            for one in oldest:  # whether another one's content is durable is not known
                one.discard(f"staging failed: {exc}")
            if isinstance(exc, OSError) and kernel.errno_of(exc) is not None:
                path = next((one.path for one in oldest if one.path == exc.filename), oldest[0].path)
                raise _errors.system_error(exc, "cannot stage the file", path) from exc
            raise

    def discarded(self, item: Item, reason: str) -> None:
        """An item's block failed: the transaction may go on only if the destination is staged again."""
        item = item.belongs_to or item
        with self.lock:
            self.forget(item)
            self.failed[item.path] = reason


def _fail(text: str) -> NoReturn:
    raise _errors.TransactionStateError(text)
