"""`Transaction.folder`: a folder that the user fills by path."""

from __future__ import annotations

import errno
import os
import stat

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.paths import decoded
from atomik._folder.place import Place, rename, set_mode
from atomik._protocol.resumable import CLONE, WORK
from atomik._system import kernel

from .item import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from atomik._progress import Counting
    from atomik._protocol.resumable import Settle
    from atomik._tree.fingerprint import Recorder

    from .intake import Intake
    from .options import ItemOptions, StrPath


def stage(
    intake: Intake, path: StrPath, overwrite: bool | None, tmp_dir: StrPath | None, base: StrPath | None, *, copy: bool,
    in_place: bool, settle: Settle | None, options: ItemOptions,
) -> tuple[Item, str]:  # fmt: skip
    """Stage a folder, with `settle` a resumable one; the item, and its present path."""
    if copy and base is not None:
        raise ValueError("copy=True starts from what exists at the destination, base= from another folder; pass one")
    if copy and settle is not None:
        raise ValueError("copy=True starts from what exists now, resume=True from what was staged before; pass one")
    if in_place and settle is not None:
        raise ValueError(
            "in_place=True cannot be combined with resume=True: what is staged for it does not survive the process"
        )
    if base is not None:
        base = os.path.abspath(decoded(base, "base"))
        if intake.items:
            from .view import source_of

            base = source_of(intake, base)
    if in_place:
        from . import in_place as staying

        return staying.stage(intake, path, overwrite, tmp_dir, base, copy=copy, options=options)
    if settle is not None:
        item = intake.add(StagedFolder, path, overwrite, tmp_dir, options, lambda item: item.settle(settle))
        return item, intake.open(item, item.resume, settle, base, intake.counting("cloning"))
    item = intake.add(StagedFolder, path, overwrite, tmp_dir, options)
    return item, intake.open(item, item.open, base, copy, intake.counting("cloning"))


class StagedFolder(Item):
    """A folder that the user fills by path."""

    __slots__ = ()

    kind = "folder"
    #: names in the folder that do not count as content
    no_content: Collection[str] = ()

    def open(self, base: str | None, copy: bool, progress: Counting | None = None) -> str:
        """Make the folder in the private folder; `copy` and `base` start from a clone.  Returns its path."""
        slot = self.workspace.slot(self.stage)
        self.slot = slot  # before it exists: an interrupt may come right after the call
        kernel.port.mkdir(slot.name, 0o777, slot.fd)
        if copy:
            self._clone_present(slot, progress)
        elif base is not None:
            self._clone_base(base, slot, progress)
        return self.workspace.path_of(slot)

    def resume(self, settle: Settle, base: str | None, progress: Counting | None) -> str:
        """Go on with what an earlier run has staged, or make the folder where the next run finds it."""
        kept = self.keep(settle)
        slot, work = kept.slot(), kept.slot(WORK)
        there = slot.status()
        if work.status() is not None or not (there is None or kernel.is_folder(there.mode)):
            text = "an earlier run staged it with path(); continue with that, or delete it with recover(discard=True)"
            errors.fail(errors.WrongKindError, errno.ENOTDIR, text, self.path, kept.folder.path)
        self.slot = slot
        if there is None:
            fresh = kept.slot(CLONE)  # so that what is in the slot is complete
            kernel.port.mkdir(fresh.name, 0o777, fresh.fd)
            if base is not None:
                self._clone_base(base, fresh, progress)
            rename(fresh, slot, 0)
            kept.make_durable()
        else:
            kept.resumed = True
            if not kernel.port.may_write(slot.name, slot.fd):  # it has its final mode already
                set_mode(slot, stat.S_IMODE(there.mode) | stat.S_IRWXU)
        return self.workspace.path_of(slot)

    def _clone_present(self, slot: Place, progress: Counting | None) -> None:
        from atomik._tree.fingerprint import Recorder

        from .observe import Observation, look_at

        start, at = self.start(), self.expected_at
        # What others changed in the meantime must not be lost.
        expected = self.options.expect is None and at is not None
        if start is not None and start.stat() is None:
            start = None
        if start is None or self.no_content:  # with names that are not copied, the clone does not see all
            if expected and at is not None:
                self.expectation = look_at(at, digest=False)
            if start is None:
                return  # start empty
        source = start.open()
        found, identity, seen = kernel.port.fstat(source.fd), source.identity(""), Recorder(source)
        self._clone(source, slot, progress, seen)
        if expected and not self.no_content:
            self.expectation = Observation(
                str(self.place), identity, found.st_size, found.st_mtime_ns, found.st_ctime_ns, None, seen.value(),
                tuple(seen.folders.items()),
            )  # fmt: skip

    def _clone_base(self, base: str, slot: Place, progress: Counting | None) -> None:
        with kernel.typed("cannot copy the folder given as base=", base):
            source = Directory.open(base)
        self._clone(source, slot, progress)

    def _clone(self, source: Directory, slot: Place, progress: Counting | None, seen: Recorder | None = None) -> None:
        from atomik._tree.clone import clone
        from atomik._tree.sync import HeadStart

        assert self.owner is not None
        with source, slot.open() as target, HeadStart(target) as start:
            ahead = start if self.owner.synced_whole(target) else None
            lost = clone(source, target, progress, leave_out=self.no_content, seen=seen, ahead=ahead)
            self.not_preserved += tuple(lost)
            if progress is not None:
                progress.finish()

    def finish_copy(self, copy: Place) -> None:
        """Give a copy that is made before this is complete the owner and mode that this will have."""
        lost, start = self.not_preserved, self.start()
        fd = kernel.port.open(copy.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, copy.fd)
        try:
            self.finish(fd, None if start is None else start.status(), start)
        finally:
            self.not_preserved = lost
            kernel.port.close(fd)

    def _seal(self) -> None:
        assert self.slot is not None
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        with kernel.typed("the staged folder was removed or cannot be read", str(self.slot)):
            fd = kernel.port.open(self.slot.name, flags, self.slot.fd)
        try:
            lost = self.not_preserved
            self.finish(fd, self.present())
            self.not_preserved = lost + self.not_preserved
        finally:
            kernel.port.close(fd)
