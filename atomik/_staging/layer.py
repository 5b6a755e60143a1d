"""What a program wrote into a layer over a folder, staged as one transaction.

Calling sequence::

    staged = StagedLayer(intake, path)       # makes the layer, in a private folder next to the folder
    staged.begin()                           # from here on, what others change in the folder is a conflict
    …                                        # the program runs
    staged.read()                            # what it changed
    staged.stage(overwrite_changes=False)    # an output for each name
    …                                        # the commit
    staged.give_times()

The folder cannot be recorded before the program runs: that would cost as much as copying it.  So times show what others
changed: what has a later ctime than the filesystem's clock had at the beginning was changed since.  No program can set
a ctime, and every change of content, metadata or name sets it; the program itself writes only into the layer.

Folders that stay get the times that the program left them with after the commit, when atomik has done its own work in them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._system import kernel
from atomik._tree.changes import Change, between
from atomik._tree.layer import BENEATH, Layer, LayerChange, handles, newer, opened, origin_of, placed, strip
from atomik._tree.metadata import Metadata, apply
from atomik._tree.several_names import Names

from . import checks, move, removal
from .expectation import Expected
from .observe import Observation, look_at
from .written import Written

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

    from .intake import Intake
    from .item import Found
    from .options import ItemOptions


#: Seconds of a run, and the part of it, by which the filesystem's clock may have gone slower than ours.
_SLOWER, _PART = 0.1, 0.001


class Ready(Written):
    """An object that is complete and in a private folder of the transaction."""

    __slots__ = ()

    kind = "path"

    def take(self, written: Place) -> None:
        super().take(written)
        self.seal()

    def bring(self, written: Place, slot: Place) -> None:
        try:
            super().bring(written, slot)
        except OSError as exc:
            if kernel.errno_of(exc) != errno.EXDEV:  # another project id (xfs, ext4)
                raise
            from atomik._tree.clone import copy_entry

            self.not_preserved = tuple(copy_entry(written, slot))

    def complete(self, slot: Place, mode: int | None) -> None:
        if mode is not None:
            super().complete(slot, mode)


class Whole(Expected):
    """The folder that the program saw takes part, whatever changes in it and wherever: readers of it see all or nothing, and
    recovery of it leads to the other folders."""

    __slots__ = ()

    def look(self) -> None:
        return None

    def find(self, found: dict[Place, Found | None], *, alone: bool) -> None:
        pass


class Displaced(Observation):
    """What a folder was; once it is displaced, files in it that have other names as well may have lost these to the same
    transaction, which changes their ctime."""

    __slots__ = ("since",)

    since: int

    def __init__(self, seen: Observation, since: int) -> None:
        self._set(*seen._values())
        object.__setattr__(self, "_folders", seen._folders)
        object.__setattr__(self, "since", since)

    def _mismatch(self, place: Place, *, moved: bool = False) -> str | None:
        if not moved:
            return Observation._mismatch(self, place)
        if place.identity() != self.identity:
            return "it was replaced"
        what = newer(place, self.since, touched=2, moved=True)
        return None if what is None else f"{what!r} in it was changed"


class StagedLayer:
    """A layer over the folder at ``path``; see the module."""

    def __init__(self, intake: Intake, path: str) -> None:
        self._intake, self.path = intake, path
        #: folders in which a name was made, removed or renamed since the program began
        self._touched: set[str] = set()
        workspace = intake.workspace
        place = workspace.locate(path, folder=True, parents=False)
        self.place = place
        with kernel.typed("cannot run a program in the folder", path):
            self.folder = place.open()
        self.folder.path = path
        try:
            found = place.status()
            assert found is not None
            checks.refuse_mounts(place, found, path)
            if self.folder.dev != place.directory.dev:
                text = "it is a subvolume, and nothing can be renamed into it from outside; run it without changes_only"
                errors.fail(errors.UnsupportedFilesystemError, errno.EXDEV, text, path)
            self.slot = workspace.slot(place.directory)
            kernel.port.mkdir(self.slot.name, 0o700, self.slot.fd)
            self.private = self.slot.open()
        except BaseException:
            self.folder.close()
            raise

    def close(self) -> None:
        self.folder.close()
        self.private.close()
        if self._layer is not None:
            self._layer.upper.close()

    _layer: Layer | None = None
    _old_names: dict[bytes, str] | None = None
    changes: list[LayerChange] = []  # noqa: RUF012  replaced by `read`

    # --- before the program ----------------------------------------------------------------------------------------------
    def begin(self, prefix: str) -> None:
        """Make the layer; `prefix` says how overlayfs will mark things in it."""
        private = self.private
        for name in ("upper", "work"):
            kernel.port.mkdir(name, 0o700, private.fd)
        self.since = self._tick()
        self._began = time.monotonic()
        upper = Directory.open("upper", private.fd, follow=False)
        try:
            apply(upper.fd, Metadata.of(self.place), "all", same_content=True, path=self.path)
            found = kernel.port.fstat(self.folder.fd)
            kernel.port.futime(upper.fd, (found.st_atime_ns, found.st_mtime_ns))
            upper.path = self.path
            self._layer = Layer(upper, self.folder, prefix)
            self.read()  # nothing yet; what cannot be read because of a sandbox shows now
        except BaseException:
            upper.close()
            raise

    def _tick(self) -> int:
        """The present time of the filesystem's clock; everything that changes from now on has a later time."""
        before = self._now(self.private.fd)
        while self._now(self.private.fd) <= before:
            kernel.sleep(0.0005)
        return before

    @staticmethod
    def _now(fd: int) -> int:
        kernel.port.fchmod(fd, 0o700)
        return kernel.port.fstat(fd).st_ctime_ns

    # --- after it --------------------------------------------------------------------------------------------------------
    @property
    def layer(self) -> Layer:
        """The layer, once the program may run."""
        assert self._layer is not None
        return self._layer

    def read(self) -> None:
        """Find out what the program changed."""
        with kernel.typed("cannot read what the program changed", self.path):
            self.changes = self.layer.changes()
            self.changes += self._other_names() if self._indexed() else self._refuse_unclear()

    # --- hard links ------------------------------------------------------------------------------------------------------
    def _indexed(self) -> bool:
        """Whether overlayfs kept track of files with several names, which it does for root, and where there are handles."""
        return self.private.exists("work/index") and self.folder.fs.handle_flags is not None

    def _other_names(self) -> list[LayerChange]:
        """What the program changed or renamed through one of several names applies to the others, too."""
        found: list[LayerChange] = []
        with Directory.reach(self.private, "work/index", BENEATH) as index:
            copied = dict(self._files_in(index))
            for key, path in self._names_of(copied):
                name, new = copied[key]
                spare = f"name{len(found)}"
                kernel.port.link(name, index.fd, spare, self.private.fd)
                with placed(self.folder, path) as place:
                    found.append(LayerChange("put", path, place.stat(), new, spare=spare))
        return found

    def _names_of(self, copied: dict[bytes, Any]) -> Iterator[tuple[bytes, str]]:
        """The names by which the program saw files (by their handles) that it changed by others.  Raises if a folder above
        one was renamed, or is published as a whole."""
        names, flags = Names(self.layer), self.folder.fs.handle_flags
        for key, path in handles(Place(self.folder, "."), flags) if copied and flags is not None else ():
            for shown in names.shown_at(path) if key in copied else ():
                if shown != path or any(_is_below(path, change.path) for change in self.changes):
                    self._refuse_link(path, "a folder above it was renamed, or got another mode, owner or attribute")
                yield key, path

    def _files_in(self, index: Directory) -> Iterator[tuple[bytes, tuple[str, os.stat_result]]]:
        """What became of files with several names: by the handle of the old file, the name in the index and the status."""
        with kernel.port.scandir(index.fd) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            new = kernel.port.lstat(name, index.fd)
            if not kernel.is_folder(new.st_mode) and (origin := origin_of(self.layer.marks(name, index.fd))):
                yield origin, (name, new)

    def _refuse_unclear(self) -> list[LayerChange]:
        """Without an index it is unknown whether the program changed a file with several names, or replaced this one."""
        names = Names(self.layer)
        unclear, clear = names.copied()
        first = {key: path for path, key in unclear.items()}
        for key, path in names.of(set(first)):
            if path != first[key] and path not in clear:
                why = "an overlay of an ordinary user does not tell whether it was changed in place by another name"
                self._refuse_link(path, why)
        return []

    def _refuse_link(self, path: str, why: str) -> NoReturn:
        text = (
            f"the file has several names in the folder, and {why}; nothing was published.  Run it without changes_only, on a "
            "clone of the folder, or as root"
        )
        errors.fail(errors.UnsupportedFilesystemError, errno.EOPNOTSUPP, text, os.path.join(self.path, path))

    # --- staging ---------------------------------------------------------------------------------------------------------
    def complete(self, path: str, base: str | None, *, share: bool = False) -> None:
        """Make a folder in the layer hold all that it shows."""
        with kernel.typed("cannot complete what the program changed", os.path.join(self.path, path)):
            self.layer.complete(path, base, lambda: self._intake.workspace.slot(self.place.directory), share=share)

    def stage(self, *, overwrite_changes: bool) -> None:
        """An output for each name that changed."""
        if not self.changes:
            return
        if not overwrite_changes:
            self._refuse_clock()
        self._hold_folders()
        if self.changes[0].path:  # a name in it leads recovery from there to all the others
            folder = self._intake.workspace.directory(self.path)
            self._intake.workspace.private_folder(folder)
            name = self.changes[0].path.partition("/")[0]
            whole = self._intake.add(Whole, folder.child(name), True, None, {"preserve": "none"})  # noqa: FBT003
            self._intake.open(whole, whole.seal)
        places = {change.path: self._place_of(change.path) for change in self.changes}
        watched = () if overwrite_changes else [change for change in self.changes if change.op != "move"]
        for change in watched:
            self._refuse_newer(change, places[change.path])
        for change in self.changes:
            if change.op == "put":
                self._complete(change)
        # What is shared with the new folders has a new ctime by now; whatever others do to it is done to both.
        since = self._tick()
        seen = {change.path: self._observed(change, places[change.path], since) for change in watched}
        for change in sorted(self.changes, key=lambda each: each.op):  # moves first: they make room
            self._stage(change, places[change.path], seen.get(change.path))

    def _complete(self, change: LayerChange) -> None:
        """What is put must hold all that it shows, and no marks of the overlay."""
        assert change.new is not None
        if kernel.is_folder(change.new.st_mode):
            self.complete(change.path, change.base, share=True)
        else:
            with self._source(change) as source:
                strip(source, self.layer.prefix)

    def _hold_folders(self) -> None:
        """Hold the folders in which something changes, reached from the one that the program saw; the transaction writes into
        these, wherever their paths may lead by now."""
        workspace = self._intake.workspace
        above = {os.path.dirname(path) for change in self.changes for path in (change.path, change.source) if path}
        for path in sorted(above | {""}):
            if not (path or self.changes[0].path):
                continue  # the folder itself is replaced
            where = os.path.join(self.path, path) if path else self.path
            with kernel.typed("cannot publish what the program changed in the folder", where):
                held = Directory.reach(self.folder, path or ".", BENEATH)
            held.path = where
            if kernel.port.fstat(held.fd).st_ctime_ns > self.since:
                self._touched.add(path)
            workspace.adopt(held)

    def _place_of(self, path: str) -> Place:
        if not path:
            return self.place
        above, name = os.path.split(path)
        return Place(self._intake.workspace.directory(os.path.join(self.path, above) if above else self.path), name)

    def _refuse_newer(self, change: LayerChange, place: Place, *, touched: int | None = None) -> None:
        """Raise if another program changed what the folder has at that name since the program began."""
        what = newer(place, self.since, touched=touched)
        if what is not None:
            self._conflict(str(place) if what == "." else place.directory.child(os.path.join(place.name, what)))
        if (place.stat() is None) != (change.old is None) or self._lost(change):
            self._conflict(str(place))

    def _observed(self, change: LayerChange, place: Place, since: int) -> Observation:
        """What must not change from now on."""
        seen = look_at(place, digest=False)
        self._refuse_newer(change, place, touched=1)
        if seen.tree is None:
            return seen
        return Displaced(seen, since)

    def _lost(self, change: LayerChange) -> bool:
        """Whether another program removed what the program changed: it was copied up, and not because of a rename."""
        if change.old is not None or change.origin is None or change.base is not None:
            return False
        assert change.new is not None
        if kernel.is_folder(change.new.st_mode):
            return True
        if change.origin and self.folder.fs.handle_flags is not None:
            return change.origin not in self.old_names()
        # An ordinary user's overlay does not say of what it is the copy: then a folder in which nothing changed lost nothing.
        return os.path.dirname(change.path) in self._touched

    def _conflict(self, path: str) -> NoReturn:
        text = (
            "someone else changed what the program changed too, while it ran; their version is kept, and nothing was "
            "published. Run it again, or pass overwrite_changes=True"
        )
        error = errors.ConflictError(*errors.os_args(errno.EBUSY, text, path))
        error.path = path
        raise error

    def _refuse_clock(self) -> None:
        """If the clock was set back, a change may have an earlier time than the beginning."""
        ours = time.monotonic() - self._began
        theirs = (self._now(self.private.fd) - self.since) / 1e9
        if theirs < ours * (1 - _PART) - _SLOWER:
            text = (
                "the clock was set back while the program ran, so changes by others cannot be detected; nothing was "
                "published. Run it again, or pass overwrite_changes=True"
            )
            errors.fail(errors.ConflictError, errno.EBUSY, text, self.path)

    def _stage(self, change: LayerChange, place: Place, seen: Observation | None) -> None:
        path = str(place)
        if change.op == "move":
            source = self._place_of(change.source)
            move.stage(self._intake, str(source), path, False, order=0, backup=None, expect=None)  # noqa: FBT003
            return
        there = place.stat() if seen is None else change.old
        removed = change.op == "remove" or (there is not None and _needs_room(there, change.new))
        if removed and there is not None:
            removal.stage(self._intake, path, missing_ok=seen is None, order=0, expect=seen)
        if change.op == "put":
            self._put(
                change, path, None if removed or seen is None or seen.absent else seen, new=there is None or removed
            )

    def _put(self, change: LayerChange, path: str, seen: Observation | None, *, new: bool) -> None:
        options: ItemOptions = {"preserve": "none", "expect": seen}
        item = self._intake.add(Ready, path, not new, None, options)
        with self._source(change) as source:
            self._intake.open(item, item.take, source)

    def _source(self, change: LayerChange) -> contextlib.AbstractContextManager[Place]:
        """Where the new object is."""
        if change.spare or not change.path:
            return contextlib.nullcontext(Place(self.private, change.spare or "upper"))
        return placed(self.layer.upper, change.path)

    def give_times(self) -> None:
        """After the commit: folders that stay get the times that the program left them with."""
        for path, times in self.layer.merged.items() if self.changes else ():
            try:
                with opened(self.folder.fd, path) as fd:
                    kernel.port.futime(fd, times)
            except OSError as exc:  # gone by now, or another user's
                if kernel.errno_of(exc) is None:
                    raise

    # --- telling ---------------------------------------------------------------------------------------------------------
    def old_names(self) -> dict[bytes, str]:
        """The path of everything that was at a name that changed, by its file handle; empty where there are no handles."""
        if self._old_names is None:
            self._old_names, flags = {}, self.folder.fs.handle_flags
            for change in self.changes if flags is not None else ():
                if change.old is not None and flags is not None:
                    found = handles(self._place_of(change.source or change.path), flags)
                    self._old_names |= {key: os.path.join(change.path, below).rstrip("/") for key, below in found}
        return self._old_names

    def listing(self) -> list[Change]:
        """What would be published, a line for each name; times alone are no change."""
        if not self.changes:
            return []
        self._hold_folders()
        removed = {change.path for change in self.changes if change.op == "remove"}
        found = [line for change in self.changes for line in self._lines(change, removed)]
        renamed = {line.old for line in found if line.change == "R"}
        return sorted((line for line in found if line.path not in renamed), key=lambda line: line.path)

    def _lines(self, change: LayerChange, removed: set[str]) -> list[Change]:
        if change.op == "move":
            return [Change("R", change.path + "/", change.source + "/")]
        if any(each is not None and kernel.is_folder(each.st_mode) for each in (change.old, change.new)):
            return self._lines_of_folder(change)
        if change.op == "remove":
            return [Change("-", change.path)]
        old = self.old_names().get(change.origin or b"") if change.old is None else None
        if old in removed:
            return [Change("R", change.path, old)]
        return [] if change.same else [Change("+" if change.old is None else "M", change.path)]

    def _lines_of_folder(self, change: LayerChange) -> list[Change]:
        """What differs between the folder that was, and the one that is put."""
        base = change.path if change.base is None else change.base
        renamed = base != change.path
        old = new = None
        try:
            if renamed or (change.old is not None and kernel.is_folder(change.old.st_mode)):
                old = Directory.reach(self.folder, base or ".", BENEATH)
            if change.new is not None and kernel.is_folder(change.new.st_mode):
                self.complete(change.path, change.base)
                new = Directory.reach(self.layer.upper, change.path or ".", BENEATH)
            found = between(old, new, change.path)
        finally:
            for folder in (old, new):
                if folder is not None:
                    folder.close()
        if renamed:
            found.append(Change("R", change.path + "/", base + "/"))
        if change.old is not None and change.new is not None and (old is None) != (new is None):  # another kind
            shown = change.path if new is None else change.path + "/"
            found = [line for line in found if line.path.rstrip("/") != change.path] + [Change("M", shown)]
        return found


def _is_below(path: str, above: str) -> bool:
    return not above or path.startswith(above + "/")


def _needs_room(old: os.stat_result, new: os.stat_result | None) -> bool:
    """Whether what exists must be removed by a step of its own: a folder instead of anything else, or a device."""
    assert new is not None
    return kernel.is_folder(old.st_mode) != kernel.is_folder(new.st_mode) or kernel.is_device(old.st_mode)
