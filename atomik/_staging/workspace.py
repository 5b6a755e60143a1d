"""What the outputs of one transaction share: held folders, private folders, slot numbers, folders made for ``parents=True``.

The workspace resolves each path once, and knows everything that must be released at the end.

Not thread-safe by itself: the intake holds its lock while it calls in here, except for slots, which items take by
themselves.
"""

from __future__ import annotations

import errno
import itertools
import os

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.paths import absolute, exists, refuse_reserved, split
from atomik._folder.place import Place
from atomik._hidden_names import new_txid, slot_name
from atomik._protocol.private_folder import PrivateFolder
from atomik._system import kernel
from atomik._typing import cast

from .checks import refuse_append_only
from .destinations import Destinations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from atomik._protocol.resumable import Resumable, Settle


_new = tuple.__new__  # in half the time of calling the class


class Workspace:
    """The shared ground of one transaction; see the module."""

    _txid = ""
    #: what the names of all slots begin with
    _slots = ""
    _made: Sequence[Place] = ()
    _made_in: Sequence[Directory] = ()

    def __init__(self) -> None:
        self._number: Callable[[], int] = itertools.count().__next__
        #: by the place key of the folder that holds each; resumable ones by their name as well
        self.private_folders: dict[tuple[int | str, ...], PrivateFolder] = {}
        self._by_path: dict[str, Directory] = {}
        self._by_key: dict[tuple[int, int, int], Directory] = {}
        self.destinations = Destinations()
        #: the names in a folder, listed under its lock
        self.listed: dict[Directory, set[str]] = {}

    @property
    def txid(self) -> str:
        """The transaction's id, in its log events and in the names of its temporary files."""
        if not self._txid:
            vars(self).setdefault("_txid", new_txid())  # one of two threads is the first
        return self._txid

    def txid_if_any(self) -> str:
        """The same for events about a failure, which may be that there are no random numbers for an id."""
        try:
            return self.txid
        except OSError as exc:
            if kernel.errno_of(exc) is None:
                raise
            return ""

    # --- paths ---------------------------------------------------------------------------------------------------
    def locate(self, path: str, *, folder: bool, parents: bool | None) -> Place:
        """The place of a destination: its parent held open, its name checked; `parents` None: the call has no such option."""
        head, name = split(path, folder=folder)
        directory = self._by_path.get(head)
        if directory is None:
            directory = self.directory(head, parents=bool(parents), wanted=None if parents is None else path)
        return _new(Place, (directory, name))

    def directory(self, where: str, *, parents: bool = False, wanted: str | None = None) -> Directory:
        """The folder at `where`, opened once per transaction however it is spelled; a relative path is known by its absolute
        one, because the working folder may change, and opened as it is."""
        path = where if where[:1] == "/" else absolute(where)
        if path in self._by_path:
            return self._by_path[path]
        if why := kernel.refused_calls():
            text = f"cannot stage in the folder: {why}; allow the call there"
            errors.fail(errors.UnsupportedFilesystemError, errno.ENOSYS, text, path)
        try:
            folder = Directory.open(where)
        except OSError as exc:
            number = kernel.errno_of(exc)
            if number is None:
                raise
            if number != errno.ENOENT:
                raise errors.system_error(exc, "cannot open the folder", path) from exc
            folder = self._open_missing(path, exc, parents=parents, wanted=wanted and absolute(wanted))
        held = self.adopt(folder)
        if path != folder.path:
            self._by_path[path] = held
        return held

    def adopt(self, folder: Directory) -> Directory:
        """Use a folder that is open already for its path, and close it at the end."""
        held = self._by_key.setdefault(folder.place_key, folder)
        if held is not folder:
            folder.close()
        self._by_path[folder.path] = held
        return held

    def held(self, path: str) -> Directory | None:
        """The folder that is open for this path."""
        return self._by_path.get(path)

    def hold(self, folder: Directory) -> None:
        """Use a folder that is open already for its path; it is opened once more, and `folder` stays the caller's."""
        if folder.path not in self._by_path:
            again = self._by_path[folder.path] = folder.reopened()
            self._by_key[again.place_key] = again

    def _open_missing(self, path: str, cause: OSError, *, parents: bool, wanted: str | None) -> Directory:
        self.destinations.refuse_inside(path, wanted or path)
        if not parents:
            text = "cannot write there: the folder does not exist; create it"
            text += " or pass parents=True" if wanted is not None else ""
            raise errors.MissingPathError(*errors.os_args(errno.ENOENT, text, path)) from cause
        self._make_parents(path)
        return Directory.open(path)

    def _make_parents(self, path: str) -> None:
        missing: list[str] = []
        while path and not exists(path):
            path, name = os.path.split(path)
            refuse_reserved(name, os.path.join(path, name))
            missing.append(name)
        above = Directory.open(path)
        self._made_in = [*self._made_in, above]
        while missing:
            place = Place(above, missing.pop())
            with kernel.typed("cannot create the parent folder", str(place)):
                self.make_folder(place)
                above = place.open()
            self._made_in = [*self._made_in, above]

    def make_folder(self, place: Place) -> None:
        """Create a folder that is removed again if nothing is published; `place` is in a folder that stays open."""
        self._made = [*self._made, place]  # before it exists: an interrupt may come right after the call
        try:
            kernel.port.mkdir(place.name, 0o777, place.fd)
        except OSError as exc:
            number = kernel.errno_of(exc)
            if number is None:
                raise
            self._made = self._made[:-1]
            if number != errno.EEXIST:
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
                f"tmp_dir and the destination are on different filesystems or mounts (st_dev {folder.dev} and "
                f"{parent.dev}); leave tmp_dir out, so that atomik stages next to the destination"
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
        if made is not None and made.made:
            return made
        refuse_append_only(directory, directory.path)
        # Recorded before it exists, because an interrupt may come right after the call that creates it; one for all threads.
        made = self.private_folders.setdefault(key, PrivateFolder(directory, self.txid))
        with kernel.typed("cannot stage in the folder", directory.path):
            made.make()
        return made

    def resumable(self, directory: Directory, place: Place, settle: Settle, *, durable: bool) -> Resumable:
        """The private folder in `directory` that keeps what is staged for `place`, still to be made."""
        from atomik._protocol.resumable import Resumable

        refuse_append_only(directory, directory.path)
        kept = Resumable(directory, place, settle, durable=durable)
        found = self.private_folders.setdefault((*directory.place_key, kept.name), kept)
        assert isinstance(found, Resumable)
        return found

    def let_go(self, kept: Resumable, *, discard: bool = False) -> None:
        """Take a resumable output out of the transaction; what was staged stays, unless it is discarded."""
        self.private_folders = {key: made for key, made in self.private_folders.items() if made is not kept}
        if discard:
            kept.dissolve()
        else:
            kept.leave()

    def slot(self, directory: Directory) -> Place:
        """A fresh slot in the private folder of `directory`."""
        made = self.private_folders.get(directory.place_key)
        if made is None or not made.made:
            made = self.private_folder(directory)
        return self.sibling(made.folder)

    def sibling(self, directory: Directory) -> Place:
        """A new slot in the folder itself: next to the destinations, for what may only be renamed within its parent."""
        return _new(Place, (directory, f"{self._slots or self._name_slots()}{self._number()}"))

    def _name_slots(self) -> str:
        self._slots = slot_name(self.txid, "")
        return self._slots

    def try_names(self, directory: Directory) -> None:
        """Try what an unknown filesystem does with names, once for each mount."""
        if directory.fs.exchange is None:
            from atomik._protocol.trial import try_names

            try_names(*(self.slot(directory) for _ in range(4)))

    def path_of(self, slot: Place) -> str:
        """The path by which a slot can be handed to code that is not ours; see `PrivateFolder.path_of`."""
        made = next(made for made in self.private_folders.values() if made.folder is slot.directory)
        return made.path_of(slot)

    def path_elsewhere(self, path: str) -> str:
        """The same for a process that may run on another machine, where only the name leads there.

        Root's processes get no other path than root itself: there it is not worth the risk.
        """
        for made in self.private_folders.values() if os.geteuid() else ():
            if path.startswith(f"{made.descriptor_path}/"):
                return made.folder.path + path[len(made.descriptor_path) :]
        return path

    def list_names(self, folders: Iterable[Directory], most: int) -> None:
        """Look at all names in the folders at once, which costs less than to ask for each of very many; not in a folder
        with more than `most`, nor where a listing might leave out what a status would find."""
        for folder in folders:
            if folder.fs.trusted:
                with kernel.port.scandir(folder.fd) as entries:  # at most that many
                    names = {entry.name for entry in itertools.islice(entries, most + 1)}
                if len(names) <= most:
                    self.listed[folder] = names

    # --- the end -------------------------------------------------------------------------------------------------
    def release(
        self, *, keep_parents: bool, keep_private_folders: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[OSError]:  # fmt: skip
        """Give everything back: what is left in the private folders, these, made parents, descriptors.  May be repeated.

        `progress` is told "cleaning" with the number of objects deleted so far; what it raises goes on.
        The kernel's refusals are returned.  With `keep_private_folders` only descriptors go: recovery needs the rest.
        """
        failures: list[OSError] = []
        if self.private_folders:
            self._give_up_private_folders(failures, progress, keep=keep_private_folders, committed=keep_parents)
        if self._made:
            self._remove_made(failures, keep=keep_parents)
        for folder in (*self._by_key.values(), *self._made_in):
            try:
                folder.close()
            except OSError as exc:
                note_failure(failures, exc)
        self._by_key.clear()
        self._by_path.clear()
        self.destinations.forget()
        self._made_in = ()
        return failures

    def _give_up_private_folders(
        self, failures: list[OSError], progress: Callable[[str, int, int], None] | None, *, keep: bool, committed: bool
    ) -> None:
        cleaned = None
        if progress is not None:
            from atomik._progress import Counting

            cleaned = Counting(progress, "cleaning")
        going = [made for made in self.private_folders.values() if not keep and (committed or not made.outlives)]
        for made in going if len(self.private_folders) > 1 else ():
            try:
                made.empty(cleaned)
            except OSError as exc:  # `dissolve` tries once more, and says so
                if not kernel.is_failure(exc):
                    raise
        for key, made in list(self.private_folders.items()):
            try:
                if keep:
                    made.close()
                elif made in going:
                    made.dissolve(cleaned)
                else:
                    cast("Resumable", made).leave()
            except OSError as exc:
                note_failure(failures, exc)
            del self.private_folders[key]
        if cleaned is not None:
            cleaned.finish()

    def _remove_made(self, failures: list[OSError], *, keep: bool) -> None:
        while self._made and not keep:
            place = self._made[-1]
            try:
                kernel.port.rmdir(place.name, place.fd)
            except OSError as exc:  # it was replaced or removed by another program
                if kernel.errno_of(exc) not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST):
                    note_failure(failures, exc)
            self._made = self._made[:-1]
        self._made = ()


def note_failure(failures: list[OSError], exc: OSError) -> None:
    """Note what the kernel refused during the clean-up; everything else is raised."""
    if not kernel.is_failure(exc):
        raise exc
    failures.append(exc)
