"""``folder(…, in_place=True)``: a folder that stays, whose entries change.

For mount points, volumes, watched folders and working directories, which cannot be exchanged, or whose users would stay
in the old one.  The new content is built in a private folder inside it, so on the same mount.  When it is complete each of
its entries gets a slot.  At the commit, under the folder's lock, the parts follow from what exists there: entries that are
new, entries that are replaced, and, last, entries that are removed.  They are items like all others, in one journalled
transaction.

What stays: atomik's own names, and the ``lost+found`` of a filesystem's root.
"""

from __future__ import annotations

import errno
import os
import stat

from atomik import errors
from atomik._folder.paths import absolute, decoded
from atomik._folder.place import Place
from atomik._folder.resolve import real
from atomik._hidden_names import PREFIX
from atomik._system import kernel

from . import checks
from .folder import StagedFolder
from .item import SEALED, Found, Item, kind_of
from .observe import Observation, look_at
from .options import Options
from .written import Gone, Written

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from atomik._progress import Counting
    from atomik._receipt import Kind
    from atomik._system.libc import Status

    from .intake import Intake
    from .options import ItemOptions, StrPath

#: the inode of the root of ext2, ext3 and ext4, in which `_LOST` is the kernel's
_EXT_ROOT, _LOST = 2, "lost+found"


def stage(
    intake: Intake, path: StrPath, overwrite: bool | None, tmp_dir: StrPath | None, base: str | None, *, copy: bool,
    options: ItemOptions,
) -> tuple[Item, str]:  # fmt: skip
    """Stage the new contents of a folder that stays; the item, and the path at which to build them."""
    for name, plain in (("permissions", None), ("preserve", "all"), ("backup", None)):
        if options.get(name, plain) != plain:
            why = "no previous version of it is kept" if name == "backup" else "its owner, mode and attributes stay"
            raise ValueError(f"{name} cannot be combined with in_place=True: the folder itself stays, and {why}")
    path = _plain(path)
    if intake.items and _is_elsewhere(intake, absolute(path)):
        text = "an earlier operation of this transaction changes what is at this name; write into what it has staged"
        errors.fail(errors.NestedDestinationError, errno.EINVAL, text, absolute(path))
    item = intake.add(StagedInPlace, path, overwrite, tmp_dir, options)
    return item, intake.open(item, item.open, base, copy, intake.counting("cloning"))


def _is_elsewhere(intake: Intake, path: str) -> bool:
    """Whether the transaction puts something else at `path` than the folder that is there now."""
    from .view import Staged

    with intake.lock, kernel.typed("cannot open the folder", path):
        return Staged.of(intake).where(path) != real(path)


def _plain(path: StrPath) -> str:
    """The folder's path, without anything after its name."""
    name = decoded(path, "path")
    if not name.strip("/") or "\0" in name:
        text = "this folder cannot be filled in place; name one below the root"
        errors.fail(errors.InvalidDestinationError, errno.EINVAL, text, name)
    bare = name.rstrip("/")
    if bare == "." or bare.endswith("/."):
        bare = absolute(bare)[: -len("/.")]
    return bare


class StagedInPlace(StagedFolder):
    """The new contents of a folder that stays; its place is the folder itself."""

    __slots__ = ("_entries",)

    stays = parted = True
    #: what gets a slot when it is sealed, by name
    _entries: dict[str, Entry]

    # --- the destination -----------------------------------------------------------------------------------------
    def look(self) -> Status | None:
        folder = self.place.directory
        checks.refuse_mounts_inside(folder, self.path)
        expect = self.expectation
        if expect is not None and not isinstance(expect, str) and (why := expect._mismatch(self.place)) is not None:
            self.conflict(f"not what was expected: {why}")
        if not self.options.overwrite or expect == "absent":
            there = min(self.there(), default=None)
            if there is not None:
                text = "the folder is not empty; pass overwrite=True to replace what is in it"
                errors.fail(errors.FileAlreadyExistsError, errno.EEXIST, text, self.path, folder.child(there))
        return self.place.status()

    def there(self) -> set[str]:
        """The names of the entries that may change."""
        names = self.place.directory.names()
        return {name for name in names if not name.startswith(PREFIX) and name not in self.no_content}

    @property
    def no_content(self) -> Collection[str]:  # type: ignore[override]
        return (_LOST,) if self.place.directory.key[1] == _EXT_ROOT else ()

    def step_kind(self) -> str:
        return ""  # a filesystem that cannot exchange folders may have only files here

    def leaves(self) -> str:
        return "folder"

    def follow(self, leaves: str | None) -> None:
        text = "this transaction builds it in place already; write everything into one staged folder"
        errors.fail(errors.DuplicateDestinationError, errno.EEXIST, text, self.path)

    def folders_there(self) -> tuple[Place, ...]:
        return (Place(self.place.directory, ".."),)  # readers of its contents see one version of this folder, too

    # --- its life ------------------------------------------------------------------------------------------------
    def open(self, base: str | None, copy: bool, progress: Counting | None = None) -> str:
        path = super().open(base, copy, progress)
        assert self.slot is not None
        self._dress(self.slot)
        # Ours, which is where the content is being built, is no loss.
        own = f" of {PREFIX}"
        self.not_preserved = tuple(lost for lost in self.not_preserved if own not in lost)
        return path

    def _dress(self, slot: Place) -> None:
        """What is made in it inherits the group and the default ACL that it would have inherited in the folder itself."""
        from atomik._tree import metadata

        source = metadata.Metadata.of(self.place)
        if source is None:
            return
        fd = kernel.port.open(slot.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, slot.fd)
        try:
            metadata.apply(fd, source, "all")
            mode = kernel.port.fstat(fd).st_mode
            if ~mode & stat.S_IRWXU:  # it belongs to this user, not to the folder's owner, who may have no rights there
                kernel.port.fchmod(fd, stat.S_IMODE(mode) | stat.S_IRWXU)
        finally:
            kernel.port.close(fd)

    def _seal(self) -> None:
        assert self.slot is not None
        with kernel.typed("the staged folder is gone or unreadable", str(self.slot)):
            work = self.slot.open()
        self._entries = {}
        with work:
            for name in sorted(work.names()):
                self._take(Place(work, name))
        kernel.port.rmdir(self.slot.name, self.slot.fd)
        self.slot = None

    def _take(self, written: Place) -> None:
        folder, name = self.place.directory, written.name
        if name.startswith(PREFIX) or name in self.no_content:
            text = "the name belongs to atomik, or to the filesystem; choose another"
            errors.fail(errors.InvalidDestinationError, errno.EINVAL, text, folder.child(name), str(written))
        each = Entry(None, Place(folder, name), self.stage, self.workspace, self._options, self.order)
        self._entries[name] = each
        each.take(written)
        each.state = SEALED

    @property
    def _options(self) -> Options:
        given = self.options
        return Options(given.overwrite, "none", if_changed=given.if_changed, allow_gap=given.allow_gap)

    def _drop(self) -> None:
        for each in getattr(self, "_entries", {}).values():
            each._drop()
        super()._drop()

    # --- the commit ----------------------------------------------------------------------------------------------
    def parts(self, *, locked: bool) -> Sequence[Item]:
        folder, there, new = self.place.directory, self.there(), self._new()
        gone = {name: Gone.at(Place(folder, name), self, self._options) for name in sorted(there - new.keys())}
        if locked:
            self._expect_each({**new, **gone})
            self.look()
        # New entries come first and removals last, so that nothing that is referred to is missing in between.
        parts = sorted(new.values(), key=lambda each: each.place.name in there)
        return (*parts, *gone.values())

    def _expect_each(self, parts: dict[str, Entry | Gone]) -> None:
        """What is expected of the whole folder is expected of each entry, also at the moment of its swap: what it is now, for
        the folder is compared after this."""
        expect = self.expectation
        if isinstance(expect, Observation) and not expect.absent:
            for part in parts.values():
                part.expectation = look_at(part.place, digest=expect.digest is not None)

    def _new(self) -> dict[str, Entry]:
        """What will be there, as far as it has been built."""
        entries: dict[str, Entry] | None = getattr(self, "_entries", None)
        if entries is not None or self.slot is None:
            return entries or {}
        with self.slot.open() as work:
            names = sorted(work.names())
        above, new = self.workspace.path_of(self.slot), {}
        for name in names:
            new[name] = Entry(None, Place(self.place.directory, name), self.stage, self.workspace, self._options)
            new[name].path_now = os.path.join(above, name)
        return new


class Entry(Written):
    """One entry of the new content."""

    __slots__ = ("path_now",)

    any_kind = True
    #: where it is, before it has a slot
    path_now: str

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        kind = self.step_kind()
        return kind if kind in ("folder", "symlink") else "file"  # type: ignore[return-value]

    def step_kind(self) -> str:
        known = super().step_kind()
        return known or kind_of(kernel.port.lstat(self.path_now, None).st_mode)

    def content_path(self) -> str:
        return super().content_path() if self.slot is not None else self.path_now

    def complete(self, slot: Place, mode: int | None) -> None:
        if mode is not None:  # else it is published as it was built: only the folder itself keeps its owner and mode
            super().complete(slot, mode)

    def look(self) -> Status | None:
        """Anything may be replaced here, and mounts were looked for in the whole folder."""
        there, expect = self.place.status(), self.expectation
        if there is None:
            return None
        if not self.options.overwrite:
            checks.refuse_existing(self.path)
        if isinstance(expect, Observation) and expect.absent:
            self.conflict("not what was expected: something was created there")
        checks.refuse_sticky(self.place.directory, there, self.path)
        self.links, self.found = there.nlink - 1, kind_of(there.mode)
        return there

    def _find_destination(self, *, alone: bool) -> Found | None:
        there = self.look()
        return None if there is None else Found(self.found, self.place.identity())
