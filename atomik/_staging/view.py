"""The tree as a transaction will leave it: `Transaction.exists` and `Transaction.open`, and the base of atomik.fsspec's view.

A view has `changes`, by resolved path, and says where the content of a path is at present: in a slot, still at the name it
is moved from, nowhere (it is removed), or at the path itself.  A view only reads.

Symbolic links are followed here and not by the kernel, one component after the other: the target of a link may have been
changed by the transaction, and a link that was itself moved or staged is, until the commit, in a folder where its target
means something else.
"""

from __future__ import annotations

import errno
import os
import stat

from atomik import errors
from atomik._folder.paths import absolute, is_folder
from atomik._folder.place import Place
from atomik._folder.resolve import real, refuse_traps
from atomik._system import kernel
from atomik._typing import Generic, TypeVar

from .exchange import Exchange
from .item import Item
from .move import Move

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import RLock
    from typing import IO, Any

    from atomik._folder.directory import Directory

    from .intake import Intake
    from .options import StrPath

_MOST_LINKS = 40  # path_resolution(7)

_Change = TypeVar("_Change")


class View(Generic[_Change]):
    """What changes make of the tree; threads that share it may look while others change, under `lock`."""

    def __init__(self, lock: RLock) -> None:
        self.lock = lock
        #: by resolved path; none is below another
        self.changes: dict[str, _Change] = {}

    def content_of(self, change: _Change) -> str | None:
        """Where the content of a changed path is now; None for what is removed."""
        raise NotImplementedError

    def resolve(self, path: str, *, follow: bool = True) -> str:
        """The one spelling of a path by which changes are kept: without links above it, and at it unless `follow` is
        false.  OSError (ELOOP) for links that lead in a circle."""
        with self.lock:
            left = path.split("/")[::-1]
            done, links = "/", 0
            content: str | None = "/"  # where the content of `done` is
            owners: set[int] = set()  # of the links on the way that are no work of this transaction
            while left:
                name = left.pop()
                if name in ("", "."):
                    continue
                if name == "..":  # of a link's target; what is above it has no links any more
                    done = os.path.dirname(done)
                    content = self._content(done)
                    continue
                here = f"{done.rstrip('/')}/{name}"
                if here in self.changes:
                    where = self.content_of(self.changes[here])
                else:
                    where = content and f"{content.rstrip('/')}/{name}"
                target = _link(where) if where and (left or follow) else None
                if target is None:
                    done, content = here, where
                    continue
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if where == here:
                    owners.add(os.lstat(here).st_uid)
                if target.startswith("/"):
                    done, content = "/", "/"
                left += target.split("/")[::-1]
            self._refuse_traps(path, owners, done)
            return done

    def _refuse_traps(self, path: str, owners: set[int], done: str) -> None:
        """Other users' links are not followed into this user's folders (see `_folder.resolve`)."""
        if not owners - {0, os.geteuid()}:
            return
        folder = self._content(os.path.dirname(done))
        try:
            refuse_traps(path, owners, os.geteuid() if folder is None else os.lstat(folder).st_uid)
        except (FileNotFoundError, NotADirectoryError) as exc:
            if kernel.errno_of(exc) is None:
                raise

    def _content(self, path: str) -> str | None:
        """Where the content of a resolved path is."""
        key = self.at_or_above(path)
        if key is None:
            return path
        where = self.content_of(self.changes[key])
        return None if where is None else where + path[len(key) :]

    def where(self, path: str, *, follow: bool = True) -> str | None:
        """Where the content of a path is now; None when the transaction has removed it."""
        with self.lock:
            return self._content(self.resolve(path, follow=follow))

    def stat(self, path: str, *, follow: bool = True) -> os.stat_result | None:
        """stat(2) of what is there for the transaction, None where there is nothing."""
        try:
            where = self.where(path, follow=follow)
            return None if where is None else os.stat(where, follow_symlinks=follow or _is_descriptor(where))
        except (FileNotFoundError, NotADirectoryError) as exc:
            if kernel.errno_of(exc) is None:
                raise
            return None

    def at_or_above(self, path: str) -> str | None:
        """The path of the change that decides about `path`: its own, or that of a folder above."""
        while path not in self.changes:
            above = os.path.dirname(path)
            if above == path:
                return None
            path = above
        return path


class Staged(View["Item | Place | None"]):
    """The tree as the operations of a transaction leave it.  The intake keeps it, and it goes on from the operations that it
    has seen: with very many of them, to begin anew for each question would take too long."""

    def __init__(self, intake: Intake) -> None:
        super().__init__(intake.lock)
        #: what is at each name: what an item staged, what exists at a place now, or nothing
        self._now: dict[Place, Item | Place | None] = {}
        self._paths: dict[Directory, str] = {}
        self._seen = 0

    @classmethod
    def of(cls, intake: Intake) -> Staged:
        """The present one, for use under the intake's lock."""
        view = intake.view or cls(intake)
        new = intake.items[view._seen :]
        for item in new:
            for part in item.parts(locked=False):
                view._play(part)
        view._seen = len(intake.items)
        # What changes for an item with parts follows from what is written, and from what exists, at each moment.
        intake.view = None if any(item.parted for item in new) else view
        return view

    def _play(self, item: Item) -> None:
        place, backup = item.place, item.backup_place
        if backup is not None and (previous := self._at(place)) is not None:
            self._set(backup, previous)
        if item.kind == "removal":
            self._set(place, None)
        elif isinstance(item, Move):
            moved = self._at(item.other)
            self._set(place, moved)
            self._set(item.other, None)
        elif isinstance(item, Exchange):
            first, second = self._at(place), self._at(item.other)
            self._set(place, second)
            self._set(item.other, first)
        elif item.changes:
            self._set(place, item)

    def _at(self, place: Place) -> Item | Place | None:
        return self._now[place] if place in self._now else place if place.status() is not None else None

    def _set(self, place: Place, content: Item | Place | None) -> None:
        directory, name = place
        if directory not in self._paths:
            self._paths[directory] = _path_of(directory)
        self._now[place] = content
        self.changes[f"{self._paths[directory].rstrip('/')}/{name}"] = content

    def refuse_below(self, resolved: str, path: str) -> None:
        """A copy of a folder would not have what the transaction changes inside it."""
        where = self._content(resolved)
        if where is None or _is_descriptor(where) or not is_folder(where):
            return
        inside = next((each for each in self.changes if each.startswith(f"{resolved.rstrip('/')}/")), None)
        if inside is not None:
            text = (
                "cannot copy the folder: an earlier operation of this transaction changes something inside it; copy it "
                "before that, or in a transaction of its own"
            )
            errors.fail(errors.NestedDestinationError, errno.EINVAL, text, path, inside)

    def content_of(self, change: Item | Place | None) -> str | None:
        return change.content_path() if isinstance(change, Item) else None if change is None else str(change)


def exists(intake: Intake, path: StrPath) -> bool:
    """Whether something would be at `path` if the commit came now."""
    full = absolute(path)
    with kernel.typed("cannot look at it", full), intake.lock:
        intake.require_open()
        try:
            return Staged.of(intake).stat(full, follow=False) is not None
        except OSError as exc:
            if kernel.errno_of(exc) != errno.ELOOP:
                raise
            return False  # as os.path.exists says of links that lead in a circle


def open_path(intake: Intake, path: StrPath, mode: str, buffering: int, text: dict[str, str | None]) -> IO[Any]:
    """Open what would be at `path` if the commit came now, for reading."""
    if "".join(sorted(mode)) not in ("r", "br", "rt"):
        raise ValueError(f"invalid mode: {mode!r}; this reads, with 'r' or 'rb'; use tx.file() to write")
    full = absolute(path)
    with kernel.typed("cannot open", full), intake.lock:
        intake.require_open()
        where = Staged.of(intake).where(full)
        if where is None:
            why = "cannot open: an operation of this transaction removes it"
            errors.fail(errors.MissingPathError, errno.ENOENT, why, full)
        if "b" in mode:
            text = {}
        return open(full, mode, buffering, **text, opener=lambda _, flags: kernel.port.open(where, flags))  # type: ignore[call-overload,no-any-return]


def source_of(intake: Intake, path: str) -> str:
    """Where the content of `path` is now, which a clone is to start from."""
    with intake.lock:
        view = Staged.of(intake)
        resolved = view.resolve(path)
        view.refuse_below(resolved, path)
        where = view.where(resolved)
    if where is None:
        text = "there is nothing to copy: an earlier operation of this transaction removes it"
        errors.fail(errors.MissingPathError, errno.ENOENT, text, path)
    return where


def _path_of(directory: Directory) -> str:
    """The path of a held folder without links in it."""
    try:
        return kernel.port.readlink(f"/proc/self/fd/{directory.fd}")
    except OSError as exc:
        if kernel.errno_of(exc) not in kernel.NO_PROC:
            raise
        return real(directory.path)


def _is_descriptor(where: str) -> bool:
    """Whether it is the path of a file that has no name yet."""
    return os.path.dirname(where) == "/proc/self/fd"


def _link(where: str) -> str | None:
    """What a link says; None for anything else, and for nothing."""
    if _is_descriptor(where):
        return None
    try:
        return os.readlink(where) if stat.S_ISLNK(os.lstat(where).st_mode) else None
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return None
