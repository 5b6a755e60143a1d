"""What is killed: transactions of every kind of item, in a small world that can be built again and looked at.

A `World` has the folders ``a``, ``b`` and ``c`` (destinations) and ``t`` (for ``tmp_dir``), filled by `World.build`.  A
`Scenario` is a function of the world that publishes something.  `World.look` is what an observer sees: everything but
atomik's own names, with type, mode and content.
"""

from __future__ import annotations

import os
import shutil
import stat
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define

import atomik
from tests.support.state import left_in

if TYPE_CHECKING:
    from collections.abc import Callable

Seen = dict[str, tuple[str, object]]


@define(frozen=True)
class World:
    """Four folders below ``top``."""

    top: Path

    @property
    def a(self) -> Path:
        return self.top / "a"

    @property
    def b(self) -> Path:
        return self.top / "b"

    @property
    def c(self) -> Path:
        return self.top / "c"

    @property
    def t(self) -> Path:
        return self.top / "t"

    @property
    def folders(self) -> tuple[Path, ...]:
        """All of them, for the final recovery."""
        return self.a, self.b, self.c, self.t

    @property
    def parents(self) -> tuple[Path, ...]:
        """The same, and those that ``parents=True`` has made by now."""
        return (*self.folders, *(path for path in self.c.rglob("made*") if path.is_dir()))

    def build(self) -> None:
        """The state before, made afresh."""
        shutil.rmtree(self.top, ignore_errors=True)
        for folder in self.folders:
            folder.mkdir(parents=True)
        for folder in (self.a, self.b):
            (folder / "old.txt").write_text("old")
            (folder / "old.txt").chmod(0o640)
            (folder / "old.bin").write_bytes(b"old\0" * 2000)
            (folder / "set").mkdir()
            (folder / "set" / "kept.txt").write_text("old")
            (folder / "set" / "deep").mkdir()
            (folder / "set" / "deep" / "gone.txt").write_text("old")
            (folder / "link").symlink_to("old.txt")
            (folder / "gone").write_text("old")
            (folder / "gone set").mkdir()
            (folder / "gone set" / "x").write_text("old")
            (folder / "source").write_text("moved")
            (folder / "source set").mkdir()
            (folder / "source set" / "x").write_text("moved")

    def look(self) -> Seen:
        """What an observer sees.  Empty folders that ``parents=True`` made do not count, nor do the "passing"
        things by which a later writer looked in."""
        seen: Seen = {}
        for where, folders, files in os.walk(self.top):
            folders[:] = [name for name in folders if not name.startswith(".atomik")]
            for name in (*folders, *files):
                path = Path(where, name)
                relative = str(path.relative_to(self.top))
                if not name.startswith((".atomik", "passing")) and not (
                    name.startswith("made") and not _has_files(path)
                ):
                    seen[relative] = _shown(path)
        return seen

    def leftovers(self) -> list[str]:
        """Names of atomik's, anywhere."""
        return left_in(self.top)


def _has_files(folder: Path) -> bool:
    return any(not path.is_dir() and not path.parent.name.startswith(".atomik") for path in folder.rglob("[!.]*"))


def _shown(path: Path) -> tuple[str, object]:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "link", os.readlink(path)
    if path.is_dir():
        return oct(found.st_mode), None
    content = path.read_bytes()
    return oct(found.st_mode), content if len(content) < 20 else (content[:8], sha256(content).hexdigest()[:8])


def two_files(world: World, durable: bool | str) -> None:
    """Two new files, text and binary, in one folder."""
    with atomik.transaction(durable=durable) as tx:
        tx.file(world.a / "one.txt").write("new")
        with tx.file(world.a / "two.bin", "wb") as f:
            f.write(b"new\0" * 3000)


def two_overwritten(world: World, durable: bool | str) -> None:
    """Two files overwritten, in one folder."""
    with atomik.transaction(overwrite=True, durable=durable) as tx:
        tx.file(world.a / "old.txt").write("new")
        tx.file(world.a / "old.bin", "r+b").write(b"new")


def folders(world: World, durable: bool | str) -> None:
    """A new folder, and one overwritten that began as a copy of what was there, in two parents."""
    with atomik.transaction(overwrite=True, durable=durable) as tx:
        fresh = tx.folder(world.a / "fresh")
        (fresh / "sub").mkdir()
        (fresh / "sub" / "x").write_text("new")
        (fresh / "link").symlink_to("sub")
        copied = tx.folder(world.b / "set", copy=True)
        (copied / "added").write_text("new")
        shutil.rmtree(copied / "deep")


def moves(world: World, durable: bool | str) -> None:
    """A file moved to another folder, a folder moved onto one that exists, and what was there kept under a new name."""
    with atomik.transaction(overwrite=True, durable=durable) as tx:
        tx.move(world.a / "source", world.b / "target")
        tx.move(world.a / "source set", world.b / "set", backup="set.before")


def kept(world: World, durable: bool | str) -> None:
    """Previous versions kept under other names, one of them taken, and one file only if it is as it was seen."""
    seen = atomik.observe(world.b / "old.txt", digest=True)
    with atomik.transaction(overwrite=True, durable=durable) as tx:
        tx.file(world.a / "old.txt", backup="old.txt.1").write("new")
        tx.file(world.a / "old.bin", "wb", backup="gone").write(b"new")
        tx.file(world.b / "old.txt", expect=seen).write("new")
        (tx.folder(world.b / "set", backup=lambda path: path + "~") / "x").write_text("new")


def mixed(world: World, durable: bool | str) -> None:
    """Every kind of item, in three parents, one of which is made, with a private folder elsewhere."""
    with atomik.transaction(overwrite=True, durable=durable) as tx:
        tx.file(world.a / "old.txt").write("new")
        with tx.file(world.b / "new.bin", "wb", tmp_dir=world.t) as f:
            f.write(b"new" * 999)
        (tx.folder(world.b / "set", tmp_dir=world.t) / "new").write_text("new")
        with tx.path(world.a / "plot.svg") as path:
            path.write_text("new")
        tx.symlink(world.a / "link", "old.bin")
        tx.remove(world.a / "gone")
        tx.remove(world.b / "gone set")
        tx.move(world.b / "source", world.a / "moved")
        tx.file(world.c / "made" / "made too" / "x.txt", parents=True).write("new")


def in_one_folder(world: World, durable: bool | str) -> None:
    """Every kind of item in one parent."""
    with atomik.transaction(overwrite=True, durable=durable) as tx:
        tx.file(world.a / "old.txt", backup="old.txt.1").write("new")
        tx.file(world.a / "new.txt").write("new")
        (tx.folder(world.a / "set", copy=True) / "added").write_text("new")
        with tx.path(world.a / "plot.svg") as path:
            path.write_text("new")
        tx.symlink(world.a / "link", "old.bin")
        tx.remove(world.a / "gone set")
        tx.move(world.a / "source", world.a / "moved")


def companions(world: World, durable: bool | str) -> None:
    """A file with companions: one new, one replaced, one that goes, with previous versions."""
    also = [".bin", ".idx", "gone", "gone set"]
    with atomik.path(
        world.a / "old.txt", overwrite=True, also=also, backup=lambda path: path + "~", durable=durable
    ) as path:
        path.write_text("new")
        path.with_suffix(".idx").write_text("new")
        path.with_suffix(".bin").write_bytes(b"new")


def in_place(world: World, durable: bool | str) -> None:
    """A folder that stays: entries that are new, replaced, of another kind, and that go; a second one staged elsewhere."""
    with atomik.transaction(overwrite=True, durable=durable) as tx:
        with tx.folder(world.a, in_place=True) as new:
            (new / "added").write_text("new")
            (new / "old.txt").write_text("new")
            (new / "set").mkdir()
            (new / "set" / "x").write_text("new")
            (new / "gone set").write_text("a file now")
            (new / "gone").mkdir()
        with tx.folder(world.b, in_place=True, copy=True, tmp_dir=world.t) as new:
            (new / "source").unlink()
            (new / "link").unlink()
            (new / "set" / "kept.txt").write_text("new")


def one_new(world: World, durable: bool | str) -> None:
    with atomik.file(world.a / "one.txt", durable=durable) as f:
        f.write("new")


def one_overwritten(world: World, durable: bool | str) -> None:
    with atomik.file(world.a / "old.txt", overwrite=True, durable=durable) as f:
        f.write("new")


def one_elsewhere(world: World, durable: bool | str) -> None:
    with atomik.file(world.a / "old.bin", "wb", True, world.t, durable=durable) as f:
        f.write(b"new")


def one_folder(world: World, durable: bool | str) -> None:
    with atomik.folder(world.a / "fresh", durable=durable) as path:
        (path / "x").write_text("new")


def one_folder_over(world: World, durable: bool | str) -> None:
    with atomik.folder(world.a / "set", overwrite=True, copy=True, durable=durable) as path:
        (path / "kept.txt").write_text("new")


def one_path(world: World, durable: bool | str) -> None:
    with atomik.path(world.a / "old.bin", overwrite=True, durable=durable) as path:
        path.write_bytes(b"new")


def one_removed(world: World, durable: bool | str) -> None:
    with atomik.transaction(durable=durable) as tx:
        tx.remove(world.a / "gone set")


def one_link(world: World, durable: bool | str) -> None:
    with atomik.transaction(durable=durable) as tx:
        tx.symlink(world.a / "link", "gone", overwrite=True)


def one_moved(world: World, durable: bool | str) -> None:
    with atomik.transaction(durable=durable) as tx:
        tx.move(world.a / "source", world.b / "target")


def one_kept(world: World, durable: bool | str) -> None:
    with atomik.file(world.a / "old.txt", overwrite=True, durable=durable, backup="old.txt.1") as f:
        f.write("new")


def one_expected(world: World, durable: bool | str) -> None:
    with atomik.file(world.a / "old.txt", durable=durable, expect=atomik.observe(world.a / "old.txt")) as f:
        f.write("new")


SEVERAL = (two_files, two_overwritten, folders, moves, kept, mixed, companions, in_place)
#: where one log holds every change, their mark is a name
IN_ONE_FOLDER = (two_files, two_overwritten, in_one_folder, companions)
ONE = (
    one_new, one_overwritten, one_elsewhere, one_folder, one_folder_over, one_path, one_removed, one_link, one_moved,
    one_kept, one_expected,
)  # fmt: skip


@define(frozen=True)
class Expected:
    """What may be seen after a death: the state before, or the state that the whole job makes."""

    old: Seen
    new: Seen

    @classmethod
    def of(cls, world: World, job: Callable[[World, bool | str], object]) -> Expected:
        """By doing the job once, alive."""
        world.build()
        old = world.look()
        job(world, False)
        new = world.look()
        assert old != new, "the job changes nothing: nothing could be seen"
        assert not world.leftovers(), "the job left something by itself"
        return cls(old, new)

    def which(self, world: World, point: object) -> str:
        """ "old" or "new"; AssertionError with the difference otherwise."""
        seen = world.look()
        if seen in (self.old, self.new):
            return "new" if seen == self.new else "old"
        names = sorted({*seen, *self.old, *self.new})
        lines = [
            f"{name}: {seen.get(name)} (old {self.old.get(name)}, new {self.new.get(name)})"
            for name in names
            if not seen.get(name) == self.old.get(name) == self.new.get(name)
        ]
        raise AssertionError(f"neither old nor new, {point}:\n" + "\n".join(lines))
