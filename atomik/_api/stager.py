"""Staging: how outputs get into a transaction.  `Transaction` adds how they get out.

Every method decides as early as it can whether the destination can work, so that a mistake shows before hours of
computing and not after; the same is decided again, atomically, at the commit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, BinaryIO, ParamSpec, TextIO, TypeVar, Unpack, overload

from atomik import _events
from atomik import errors as _errors
from atomik._folder.paths import absolute, followed
from atomik._staging import checks as _refuse
from atomik._staging import file_objects as _handles
from atomik._staging import trial as _probe
from atomik._staging.file import StagedFile, StagedFolder
from atomik._staging.file_objects import StagedPath
from atomik._staging.item import Item
from atomik._staging.names import Move, Removal, StagedSymlink
from atomik._staging.options import PLAIN, BytesMode, ItemOptions, Options, Progress, StrPath, TextMode, checked
from atomik._staging.path import StagedProgram
from atomik._staging.workspace import refuse_append_only
from atomik._system import kernel

if TYPE_CHECKING:
    import threading

    from atomik._commit.barriers import Barriers
    from atomik._commit.commit import Commit
    from atomik._folder.directory import Place
    from atomik._staging.workspace import Workspace

_Item = TypeVar("_Item", bound=Item)
_P = ParamSpec("_P")
_T = TypeVar("_T")

#: So many sealed files stay unnamed and open; the oldest gets a slot and gives its descriptor up when one more comes.
#: A bound, so that descriptors do not grow with the number of files (I10).
RETAINED = 8


class Stager:
    """The staging half of `Transaction`."""

    _overwrite: bool
    _workspace: Workspace
    _barriers: Barriers
    _items: list[Item]
    _failed: dict[str, str]
    _retained: list[StagedFile]
    _lock: threading.RLock
    _progress: Progress | None
    _commit: Commit | None
    _heard: bool

    @property
    def txid(self) -> str:
        """The id that log events and the names of temporary files carry."""
        return self._workspace.txid

    def _require_open(self) -> None:
        raise NotImplementedError

    @overload
    def file(
        self,
        path: StrPath,
        mode: TextMode = "w",
        overwrite: bool | None = None,
        tmp_dir: StrPath | None = None,
        *,
        encoding: str | None = "utf-8",
        errors: str | None = None,
        newline: str | None = None,
        buffering: int = -1,
        **options: Unpack[ItemOptions],
    ) -> TextIO: ...

    @overload
    def file(
        self,
        path: StrPath,
        mode: BytesMode,
        overwrite: bool | None = None,
        tmp_dir: StrPath | None = None,
        *,
        encoding: str | None = "utf-8",
        errors: str | None = None,
        newline: str | None = None,
        buffering: int = -1,
        **options: Unpack[ItemOptions],
    ) -> BinaryIO: ...

    @overload
    def file(
        self,
        path: StrPath,
        mode: str = "w",
        overwrite: bool | None = None,
        tmp_dir: StrPath | None = None,
        *,
        encoding: str | None = "utf-8",
        errors: str | None = None,
        newline: str | None = None,
        buffering: int = -1,
        **options: Unpack[ItemOptions],
    ) -> IO[Any]: ...

    def file(
        self,
        path: StrPath,
        mode: str = "w",
        overwrite: bool | None = None,
        tmp_dir: StrPath | None = None,
        *,
        encoding: str | None = "utf-8",
        errors: str | None = None,
        newline: str | None = None,
        buffering: int = -1,
        **options: Unpack[ItemOptions],
    ) -> IO[Any]:
        """Stage a file and return the file object to write it with; see `atomik.file` for the parameters and errors.

        The object may be used with ``with``, or closed, or left to the commit.  Leaving its ``with`` by an exception
        drops this output alone; the commit then wants it staged again.

        :param overwrite: a bool; ``None`` takes the transaction's default.
        :param int order: when it is published, among the items; lower first, then as staged.
        :returns: a real, seekable file object, text or binary.
        :raises atomik.errors.DuplicateDestinationError: the destination is staged already in this transaction.
        :raises atomik.errors.NestedDestinationError: it lies inside another destination, or the reverse.
        :raises atomik.errors.CrossFilesystemError: it lies on another filesystem or mount than the first one.
        :raises atomik.errors.TransactionStateError: the transaction is not open, or this is a forked child.
        """
        parsed = _handles.parse_mode(mode)
        if parsed[0] == "x":
            if overwrite:
                raise ValueError('mode "x" creates and never overwrites; use mode "w" with overwrite=True')
            overwrite = False
        item = None
        if not (options or overwrite or self._overwrite or tmp_dir is not None):
            path = name = absolute(path)
            item = self._add_another(path)
        if item is None:
            item = self._add(StagedFile, "file", path, overwrite, tmp_dir, options)
            name = item.path
        return self._open(item, item.open, name, parsed, buffering, encoding, errors, newline)

    def folder(
        self,
        path: StrPath,
        overwrite: bool | None = None,
        tmp_dir: StrPath | None = None,
        *,
        base: StrPath | None = None,
        **options: Unpack[ItemOptions],
    ) -> StagedPath:
        """Stage a folder and return its present path, to be filled; see `atomik.folder` for the parameters.

        :returns: a `pathlib.Path`; with ``with``, leaving the block by an exception drops this output alone.  It pickles
            as a plain path, for worker processes.

        Raises like `Transaction.file`.
        """
        item = self._add(StagedFolder, "folder", path, overwrite, tmp_dir, options)
        progress = self._progress
        cloned = None if progress is None else lambda done: progress("cloning", done, 0)
        return self._handed_out(item, self._open(item, item.open, base, cloned))

    def path(
        self,
        path: StrPath,
        overwrite: bool | None = None,
        tmp_dir: StrPath | None = None,
        **options: Unpack[ItemOptions],
    ) -> StagedPath:
        """Stage a path for a program that opens files by name; see `atomik.path` for the parameters.

        :returns: a `pathlib.Path`, at which nothing stands yet.

        Raises like `Transaction.file`.
        """
        item = self._add(StagedProgram, "path", path, overwrite, tmp_dir, options)
        return self._handed_out(item, self._open(item, item.open))

    def symlink(
        self, path: StrPath, target: StrPath, overwrite: bool | None = None, *, order: int = 0, parents: bool = False
    ) -> None:
        """Stage a symbolic link at `path` that says `target`; the target need not exist.

        With `overwrite`, anything but a folder may be replaced.

        :param path: where the link is to stand, a str or path.
        :param target: what the link says, a str or path, absolute or relative to the link's folder.
        :param overwrite: a bool; ``None`` takes the transaction's default.
        :param int order: when it is published, among the items; lower first.
        :param bool parents: make missing folders above `path`.

        Raises like `Transaction.file`.
        """
        item = self._add(StagedSymlink, "symlink", path, overwrite, None, {"order": order, "parents": parents})
        self._open(item, item.open, os.fsdecode(target))

    def remove(self, path: StrPath, *, missing_ok: bool = False, order: int = 0) -> None:
        """Stage the removal of what stands at `path`: a file, a link (itself, not its target) or a whole folder.

        It is renamed away by the commit and deleted after it, so until then it can come back.

        :param path: what is to go, a str or path.
        :param bool missing_ok: nothing there is fine; else `MissingPathError`.
        :param int order: when it is swapped, among the items; lower first.

        Raises like `Transaction.file`.
        """
        self._require_open()
        if missing_ok and not os.path.lexists(path):
            return
        item = self._add(Removal, "removal", path, True, None, {"order": order, "preserve": "none"})  # noqa: FBT003
        self._open(item, item.open)

    def move(
        self, src: StrPath, dest: StrPath, overwrite: bool | None = None, *, order: int = 0,
        keep: str | Callable[[str], str] | None = None,
    ) -> None:  # fmt: skip
        """Stage moving what stands at `src` to `dest`, on the same filesystem; undone like everything else.

        Each of the two names changes in one step; between the two steps, microseconds, neither shows the object.

        :param src: what is to be moved, a str or path: a file, a link (itself, not its target) or a whole folder.
        :param dest: its new name, a str or path.
        :param overwrite: a bool: whether something at `dest` may be replaced; ``None`` takes the transaction's default.
        :param int order: when it is published, among the items; lower first.
        :param keep: a name in `dest`'s folder (or a function from path to name) under which what stood there stays.

        :raises atomik.errors.MissingPathError: `src` is missing.
        :raises atomik.errors.NestedDestinationError: a folder would go into itself.

        Otherwise raises like `Transaction.file`.
        """
        origin = absolute(src)
        with _errors.typed("cannot move", origin), self._lock:
            self._require_open()
            source = self._workspace.locate(origin, folder=True, parents=False)
            options: ItemOptions = {"order": order, "preserve": "none", "keep": keep}
            item = self._add(Move, "move", dest, overwrite, None, options, lambda item: item.take(source))
            try:
                self._workspace.destinations.register(source, None, _folder_at(source))
            except BaseException:
                self._forget(item)
                raise
            item.on_forget = lambda: self._workspace.destinations.unregister(source)
        self._open(item, item.open)

    def _add_another(self, path: str) -> StagedFile | None:
        """What `_add` comes to for most files of a large transaction: one more new name in a folder that is known by now.

        None where there is more to decide, or something to refuse.
        """
        with self._lock:
            self._require_open()
            workspace = self._workspace
            place = workspace.known(path)
            if place is None or self._failed:
                return None
            directory, name = place
            try:
                if not directory.fs.trusted or kernel.port.exists(name, directory.fd):
                    return None
            except OSError:  # the other way says what is wrong
                return None
            if not workspace.destinations.take(place):
                return None
            item = StagedFile(None, "file", place, directory, workspace, PLAIN)
            self._items.append(item)
            return item

    def _add(
        self,
        kind: type[_Item],
        word: str,
        path: StrPath,
        overwrite: bool | None,
        tmp_dir: StrPath | None,
        given: ItemOptions,
        prepare: Callable[[_Item], None] | None = None,
    ) -> _Item:
        """Decide early whether the destination can work, and take it in."""
        options = checked(given, overwrite=self._overwrite if overwrite is None else bool(overwrite))
        full = absolute(path)
        if given.get("follow_symlinks"):
            full = followed(full)
        try:
            with self._lock:
                self._require_open()
                return self._decide(kind, word, full, tmp_dir, options, given, prepare)
        except _errors.AtomikError:
            raise
        except OSError as exc:
            raise _errors.system_error(exc, "cannot stage there", full) from exc

    def _decide(
        self,
        kind: type[_Item],
        word: str,
        full: str,
        tmp_dir: StrPath | None,
        options: Options,
        given: ItemOptions,
        prepare: Callable[[_Item], None] | None,
    ) -> _Item:
        workspace = self._workspace
        place = workspace.locate(full, folder=word not in ("file", "symlink"), parents=bool(given.get("parents")))
        directory, name = place
        stage = directory if tmp_dir is None else workspace.staging(place, absolute(tmp_dir), full)
        as_given = None if full == directory.child(name) else full
        item = kind(as_given, word, place, stage, workspace, options, given.get("order", 0))
        if prepare is not None:
            prepare(item)
        found = item.look()
        item.found = found is not None
        there = found if found is not None and kernel.is_folder(found.st_mode) else None
        workspace.destinations.register(place, as_given, there)
        try:
            if found is not None:
                _refuse.mounts(place, found, item.path)
                refuse_append_only(directory, full)
            if found is not None or not stage.fs.trusted or item.step_kind() == "folder":
                _probe.flags(workspace, stage, item, found is not None)
            if options.keep is not None:
                self._register_kept(item, found)
        except BaseException:
            workspace.destinations.unregister(place)
            raise
        self._items.append(item)
        if self._failed:
            self._failed.pop(full, None)
        return item

    def _register_kept(self, item: Item, found: os.stat_result | None) -> None:
        """The name under which the previous version is to stay is a destination like the others."""
        item.choose_kept()
        if item.kept_place is not None:
            there = item.check_kept() if found is not None else None
            folder = there if there is not None and kernel.is_folder(there.st_mode) else None
            self._workspace.destinations.register(item.kept_place, None, folder)

    def _forget(self, item: Item) -> None:
        """An item is out of the transaction."""
        with self._lock:
            if item in self._items:
                self._items.remove(item)
                self._workspace.destinations.unregister(item.place)
                if item.kept_place is not None:
                    self._workspace.destinations.unregister(item.kept_place)
                if item.on_forget is not None:
                    item.on_forget()
            if item in self._retained:
                self._retained.remove(item)

    def _open(self, item: Item, action: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            result = action(*args, **kwargs)
        except BaseException:
            item.discard()
            self._forget(item)
            raise
        item.owner = self
        if self._heard:
            _events.emit(
                _events.DEBUG, "item.staged", tx=self.txid, path=item.path, kind=item.kind, order=item.order,
                st_dev=item.place.directory.dev,
            )  # fmt: skip
        return result

    def _handed_out(self, item: Item, path: str) -> StagedPath:
        return StagedPath.of(path, item, self._workspace.path_elsewhere(path))

    def _sealed(self, item: Item) -> None:
        """An item is complete.  Keep the number of open descriptors bounded."""
        if self._heard:
            _events.emit(_events.DEBUG, "item.sealed", tx=self.txid, path=item.path, kind=item.kind)
        if isinstance(item, StagedFile):
            self._retain(item)

    def _retain(self, item: StagedFile) -> None:
        """Keep a sealed file open; give the oldest that is one too many its slot, and its descriptor to the system."""
        oldest = item
        try:
            with self._lock:
                self._retained.append(item)
                if len(self._retained) <= RETAINED or self._commit is not None:
                    return
                oldest = self._retained.pop(0)
                oldest.name_it()
            self._barriers.sealed(oldest)
            oldest.close()
        except BaseException as exc:
            oldest.discard(f"staging failed: {exc}")
            if isinstance(exc, OSError) and not isinstance(exc, _errors.AtomikError):
                raise _errors.system_error(exc, "cannot stage the file", oldest.path) from exc
            raise

    def _discarded(self, item: Item, reason: str) -> None:
        """An item's block failed: the transaction may go on only if the destination is staged again."""
        with self._lock:
            self._forget(item)
            self._failed[item.path] = reason


def _folder_at(place: Place) -> os.stat_result | None:
    """The stat of a folder that stands there; None for anything else."""
    found = place.stat()
    return found if found is not None and kernel.is_folder(found.st_mode) else None
