"""What the items of one transaction share: held folders, private folders, slot numbers, and the destinations taken so far.

The workspace resolves each path once, and knows everything that must be given back at the end.

Not thread-safe by itself: the transaction holds its lock while it calls in here, except for slots, which items take by
themselves.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
from typing import TYPE_CHECKING

from atomik import errors
from atomik._folder.directory import Directory, Place
from atomik._folder.paths import split
from atomik._protocol.private_folder import PrivateFolder, new_txid, slot_name
from atomik._system import kernel

from .destinations import Destinations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class Workspace:
    """The shared ground of one transaction; see the module."""

    def __init__(self) -> None:
        self.txid: str = new_txid()
        self.numbers: Iterator[int] = itertools.count()
        self.private_folders: dict[tuple[int, int, int], PrivateFolder] = {}
        self._claiming = threading.Lock()
        self._by_path: dict[str, Directory] = {}
        self._by_key: dict[tuple[int, int, int], Directory] = {}
        self._made: list[Place] = []
        self._made_in: list[Directory] = []
        self.destinations = Destinations()
        #: the names in a folder, looked at under its lock
        self.listed: dict[Directory, set[str]] = {}

    # --- paths ---------------------------------------------------------------------------------------------------
    def locate(self, path: str, *, folder: bool, parents: bool) -> Place:
        """The place of a destination: its parent held open, its name checked."""
        head, name = split(path, folder=folder)
        return Place(self.directory(head, parents=parents, wanted=path), name)

    def known(self, path: str) -> Place | None:
        """The place of a file in a folder that is held by now, if that is how its path is spelled."""
        head, name = split(path, folder=False)
        directory = self._by_path.get(head)
        return Place(directory, name) if directory is not None and len(path) == len(head) + 1 + len(name) else None

    def directory(self, path: str, *, parents: bool = False, wanted: str | None = None) -> Directory:
        """The folder at `path`, opened once per transaction however it is spelled."""
        found = self._by_path.get(path)
        if found is not None:
            return found
        try:
            folder = Directory.open(path)
        except FileNotFoundError as exc:
            self.destinations.refuse_inside(path, wanted or path)
            if not parents:
                text = "cannot write there: the folder does not exist; create it"
                text += " or pass parents=True" if wanted is not None else ""
                raise errors.MissingPathError(*errors.os_args(errno.ENOENT, text, path)) from exc
            self._make_parents(path)
            folder = Directory.open(path)
        except errors.AtomikError:
            raise
        except OSError as exc:
            raise errors.system_error(exc, "cannot open the folder", path) from exc
        key = folder.place_key
        held = self._by_key.get(key)
        if held is not None:
            folder.close()
            folder = held
        self._by_path[path] = self._by_key[key] = folder
        return folder

    def hold(self, folder: Directory) -> None:
        """Take in a folder that is open already."""
        self._by_path[folder.path] = self._by_key[folder.place_key] = folder

    def _make_parents(self, path: str) -> None:
        missing: list[str] = []
        while path and not os.path.lexists(path):
            path, name = os.path.split(path)
            missing.append(name)
        above = Directory.open(path)
        self._made_in.append(above)
        while missing:
            place = Place(above, missing.pop())
            with errors.typed("cannot create the parent folder", str(place)):
                self._make_folder(place)
                above = Directory.open(place.name, place.fd, follow=False)
            above.path = str(place)
            self._made_in.append(above)

    def _make_folder(self, place: Place) -> None:
        self._made.append(place)  # before it is there: an interrupt may come right behind the call
        try:
            kernel.port.mkdir(place.name, 0o777, place.fd)
        except FileExistsError:
            self._made.pop()
        except OSError:
            self._made.pop()
            raise

    @property
    def made_parents(self) -> list[Directory]:
        """The parents of folders that ``parents=True`` made, whose new entries must become durable too."""
        return [place.directory for place in self._made]

    # --- staging -------------------------------------------------------------------------------------------------
    def staging(self, place: Place, tmp_dir: str, path: str) -> Directory:
        """The folder in which the item is staged, where that is not its parent; it must lie on the same mount."""
        folder = self.directory(tmp_dir)
        parent = place.directory
        if (folder.dev, folder.mount) != (parent.dev, parent.mount):
            text = (
                f"tmp_dir and the destination lie on different filesystems or mounts (st_dev {folder.dev} and "
                f"{parent.dev}); leave tmp_dir out, and atomik stages beside the destination"
            )
            error = errors.CrossFilesystemError(*errors.os_args(errno.EXDEV, text, tmp_dir, path))
            error.devices = (folder.dev, parent.dev)
            raise error
        self.destinations.use(folder, tmp_dir)
        return folder

    def private_folder(self, directory: Directory) -> PrivateFolder:
        """The private folder in `directory`, made when first needed."""
        key = directory.place_key
        made = self.private_folders.get(key)
        if made is not None:
            return made
        refuse_append_only(directory, directory.path)
        with self._claiming, errors.typed("cannot stage in the folder", directory.path):
            private_folder = self.private_folders.get(key)
            if private_folder is None:
                private_folder = self.private_folders[key] = PrivateFolder(directory, self.txid)
        return private_folder

    def slot(self, directory: Directory) -> Place:
        """A fresh slot in the private folder of `directory`."""
        private_folder = self.private_folders.get(directory.place_key) or self.private_folder(directory)
        return Place(private_folder.folder, slot_name(self.txid, next(self.numbers)))

    def path_of(self, slot: Place) -> str:
        """The path by which a slot can be handed to code that is not ours; see `PrivateFolder.path_of`."""
        private_folder = next(
            private_folder
            for private_folder in self.private_folders.values()
            if private_folder.folder is slot.directory
        )
        return private_folder.path_of(slot)

    def path_elsewhere(self, path: str) -> str:
        """The same for a process that may run on another machine, where only the name leads there.

        Root's processes get no other path than root itself: there it is not worth the risk.
        """
        for private_folder in self.private_folders.values() if os.geteuid() else ():
            if path.startswith(f"{private_folder.descriptor_path}/"):
                return private_folder.folder.path + path[len(private_folder.descriptor_path) :]
        return path

    def sibling(self, directory: Directory) -> Place:
        """A fresh slot beside the destinations, for what may only be renamed within its parent."""
        return Place(directory, slot_name(self.txid, next(self.numbers)))

    def list_names(self, folders: Iterable[Directory], most: int) -> None:
        """Look at all names in the folders at once, which costs less than to ask for each of very many; not in a folder
        with more than `most`, nor where a listing might leave out what a look would find."""
        for folder in folders:
            if folder.fs.trusted:
                with kernel.port.scandir(folder.fd) as entries:
                    names = {entry.name for entry in itertools.islice(entries, most + 1)}
                if len(names) <= most:
                    self.listed[folder] = names

    # --- the end -------------------------------------------------------------------------------------------------
    def release(
        self,
        *,
        keep_parents: bool,
        keep_private_folders: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[OSError]:
        """Give everything back: what is left in the private folders, the private folders, made parents, descriptors.

        `progress` is told "cleaning" with the number of objects deleted so far; what it raises is its own affair.
        Never raises; the failures are returned.  With `keep_private_folders` only descriptors go: recovery needs the rest.
        """
        failures: list[OSError] = []
        cleaned = None if progress is None else _counting(progress)
        for key, private_folder in list(self.private_folders.items()):
            try:
                if keep_private_folders:
                    private_folder.folder.close()
                else:
                    _dissolve(private_folder, cleaned)
            except OSError as exc:
                failures.append(exc)
            del self.private_folders[key]
        for each in () if keep_parents else reversed(self._made):
            try:
                kernel.port.rmdir(each.name, each.fd)
            except OSError as exc:
                # Somebody put something into it, or removed it: theirs now.
                if exc.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST):
                    failures.append(exc)
        self._made.clear()
        for folder in (*self._by_key.values(), *self._made_in):
            try:
                folder.close()
            except OSError as exc:
                failures.append(exc)
        self._by_key.clear()
        self._by_path.clear()
        self._made_in.clear()
        return failures


def _counting(progress: Callable[[str, int, int], None]) -> Callable[[int], None]:
    """From "so many more" to "so many so far"."""
    total = 0

    def more(count: int) -> None:
        nonlocal total
        total += count
        with contextlib.suppress(Exception):  # the commit is over; a failing callback must not fail it
            progress("cleaning", total, 0)

    return more


def _dissolve(private_folder: PrivateFolder, cleaned: Callable[[int], None] | None) -> None:
    """Empty a private folder and remove it; once more if something fails, for the cause may have been of the moment."""
    try:
        private_folder.clear(cleaned)
        private_folder.release()
    except OSError:
        try:
            private_folder.clear()
            private_folder.release()
        except OSError as exc:
            private_folder.folder.close()
            if isinstance(exc, errors.AtomikError):
                raise
            raise errors.system_error(exc, "cannot clean up", private_folder.folder.path) from exc


def refuse_append_only(directory: Directory, path: str) -> None:
    """In a folder with chattr +a nothing can be removed or renamed, so what is staged there would stay for ever."""
    if directory.append_only:
        text = "the folder is append-only (chattr +a): all that can be done there is to create one file at a time"
        errors.fail(errors.AccessDeniedError, errno.EPERM, f"{text}; take the flag away, or write elsewhere", path)
