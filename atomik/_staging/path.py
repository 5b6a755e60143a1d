"""`Transaction.path`: a private folder for programs that open files by name, and what they leave there.

Its companions (``also=``) are written next to it by the same program, and are items of their own: `StagedProgram` seals them
with itself, and says at the commit which of them there are to publish.
"""

from __future__ import annotations

import errno
import os

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place, rename
from atomik._protocol.resumable import WORK
from atomik._system import kernel

from . import companions
from .item import OPEN, kind_of
from .written import Gone, Written, loosen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from atomik._protocol.resumable import Settle

    from .intake import Intake
    from .item import Item
    from .options import ItemOptions, StrPath


def stage(
    intake: Intake, path: StrPath, overwrite: bool | None, tmp_dir: StrPath | None, also: Iterable[str],
    settle: Settle | None, options: ItemOptions,
) -> tuple[Item, str]:  # fmt: skip
    """Stage a path for a program that opens files by name, with `settle` a resumable one; the item, and the path."""
    names = companions.checked(also, options)
    if settle is not None:
        if names:
            raise ValueError(
                "also= cannot be combined with resume=True, which keeps one file or folder: stage a folder"
            )
        item = intake.add(StagedProgram, path, overwrite, tmp_dir, options, lambda item: item.settle(settle))
        return item, intake.open(item, item.resume, settle)
    with intake.lock:
        item = intake.add(StagedProgram, path, overwrite, tmp_dir, options)
        try:
            for name in companions.names_of(names, item.place.name, item.path):
                item.join(intake, name, tmp_dir, options)
        except BaseException:
            intake.forget(item)
            raise
        return item, intake.open(item, item.open)


class StagedProgram(Written):
    """A path for programs that open files by name; what they leave there is published, a file or a folder."""

    __slots__ = ("_also", "_work", "written")

    kind = "path"

    #: the private folder in which the program writes
    _work: Place | None
    #: the names that the program has left
    written: set[str]
    #: what the program may write next to it
    _also: tuple[Companion, ...]

    def join(self, intake: Intake, name: str, tmp_dir: StrPath | None, options: ItemOptions) -> None:
        """Take a companion in; `expect` is about this item alone."""
        options = options.copy()
        if options.get("expect") not in (None, "absent", "any"):
            del options["expect"]
        path = os.path.join(os.path.dirname(self.path.rstrip("/")), name)
        each = intake.add(Companion, path, self.options.overwrite, tmp_dir, options, lambda each: each.belong(self))
        self._also = (*getattr(self, "_also", ()), each)
        intake.open(each, each.open)

    @property
    def together(self) -> Sequence[Item]:  # type: ignore[override]
        return getattr(self, "_also", ())

    @property
    def parted(self) -> bool:  # type: ignore[override]
        return bool(self.together)

    def parts(self, *, locked: bool) -> Sequence[Item]:
        # Last, because a program that waits for it will look for the others then.
        found = [each.part(locked=locked) for each in getattr(self, "_also", ())]
        return (*(each for each in found if each is not None), self)

    def open(self) -> str:
        """Make the private folder in which the program writes under the destination's own name."""
        self._work = work = self.workspace.slot(self.stage)
        kernel.port.mkdir(work.name, 0o700, work.fd)
        return os.path.join(self.workspace.path_of(work), self.place.name)

    def resume(self, settle: Settle) -> str:
        """Go on with what an earlier run has left, or make the private folder where the next run finds it."""
        kept = self.keep(settle)
        self._work = work = kept.slot(WORK)
        made = work.status() is None
        if made:
            kernel.port.mkdir(work.name, 0o700, work.fd)
        with work.open() as inside:
            sealed = kept.slot().status()
            if sealed is not None:  # it was complete, but was not published
                loosen(kept.slot(), sealed)
                rename(kept.slot(), Place(inside, self.place.name), 0)
            kept.resumed = bool(inside.names())
        if made:
            kept.make_durable()
        return os.path.join(self.workspace.path_of(work), self.place.name)

    def content_path(self) -> str:
        return super().content_path() if self.slot is not None else self.path_beside(self.place.name)

    def path_beside(self, name: str) -> str:
        """Where the program writes what will have that name."""
        assert self._work is not None
        return os.path.join(self.workspace.path_of(self._work), name)

    def step_kind(self) -> str:
        return super().step_kind() or self.kind_beside(self.place.name)

    def kind_beside(self, name: str) -> str:
        """The kind of what the program has written under that name by now; "" for nothing."""
        if self.state is not OPEN or getattr(self, "_work", None) is None:
            return ""
        try:
            return kind_of(kernel.port.lstat(self.path_beside(name), None).st_mode)
        except FileNotFoundError as exc:
            if kernel.errno_of(exc) is None:
                raise
            return ""

    def refuse_companions(self) -> None:
        companions.refuse_log(self.place, self.workspace, self.path)

    def _seal(self) -> None:
        assert self._work is not None
        with self._work.open() as work:
            self.written = set(work.names())
            inner = Place(work, self.place.name)
            if inner.name not in self.written:
                text = "nothing was written to the staged path; write the file before leaving the block"
                errors.fail(
                    errors.MissingPathError, errno.ENOENT, text, self.path, os.path.join(str(self._work), inner.name)
                )
            self._refuse_others(work)
            # Listed, and not asked for one by one: a "no such file" may be wrong, and would make us drop what was written.
            for each in self.together:
                each.seal()
            companions.refuse_open(inner, self.path)
            self.take(inner)
        kernel.port.rmdir(self._work.name, self._work.fd)
        self._work = None

    def _refuse_others(self, work: Directory) -> None:
        """What else the program left may be data (the log of a database, the parts of a shapefile): it is not dropped in
        silence, and not published without being asked for."""
        asked = {self.place.name, *(each.place.name for each in self.together)}
        others = sorted(self.written - asked)
        if not others:
            return
        shown = ", ".join(repr(name) for name in others[:5]) + (" …" if len(others) > 5 else "")
        text = (
            f"the program left other files next to the staged path: {shown}; if a database is still open, close it before "
            "leaving the block; to publish these files too, name them in also=, or write everything into tx.folder(); remove "
            "those that are not needed"
        )
        errors.fail(errors.ConflictError, errno.EBUSY, text, self.path, work.child(others[0]))

    def _drop(self) -> None:
        for each in getattr(self, "_also", ()):
            each._drop()
        work = getattr(self, "_work", None)
        if work is not None and self.kept is None:
            from atomik._tree.delete import delete_tree

            delete_tree(work)
        super()._drop()


class Companion(Written):
    """What the program may write next to its path; what it did not write is removed at the destination."""

    __slots__ = ("belongs_to",)

    kind = "path"

    belongs_to: StagedProgram

    def belong(self, main: StagedProgram) -> None:
        """Belong to `main`, whose program writes it."""
        self.belongs_to = main

    def open(self) -> None:
        """The caller may have observed the main one; what belongs to it must not change either while the program works."""
        if self.expectation is None and self.belongs_to.expectation is not None:
            from .observe import look_at

            self.expectation = look_at(self.place, digest=False)

    def follow(self, leaves: str | None) -> None:
        text = "an earlier operation of this transaction changes it, and also= would change it again; leave one of them out"
        errors.fail(errors.DuplicateDestinationError, errno.EEXIST, text, self.path)

    def parts(self, *, locked: bool) -> Sequence[Item]:
        return ()  # its main item reports it

    def part(self, *, locked: bool) -> Item | None:
        """What changes its name: itself, the removal of what exists there, or nothing."""
        if self.step_kind():
            return self
        # Asked twice, because a "no such file" may be wrong.
        if (self.look() if locked else None) is None and self.place.status() is None:
            return None
        gone = Gone.at(self.place, self, self.options)
        gone.expectation, gone.backup = self.expectation, self.backup
        return gone

    def step_kind(self) -> str:
        return super().step_kind() or ("" if self.state is not OPEN else self.belongs_to.kind_beside(self.place.name))

    def content_path(self) -> str:
        return super().content_path() if self.slot is not None else self.belongs_to.path_beside(self.place.name)

    def refuse_companions(self) -> None:
        companions.refuse_log(self.place, self.workspace, self.path)

    def _seal(self) -> None:
        work = self.belongs_to._work
        assert work is not None
        with work.open() as folder:
            inner = Place(folder, self.place.name)
            if inner.name in self.belongs_to.written:
                companions.refuse_open(inner, self.path)
                self.take(inner)
