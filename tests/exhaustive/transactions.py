"""All transactions of up to three items: every operation, on the same few names, in every order, also those that are refused.

Each is a tuple of operations of `tests.powercut.histories`, which say by themselves what must come of them.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from attrs import define

import atomik
from tests.powercut.histories import Exchange, Fill, Link, Move, Operation, Remove, Tree, Write

from .memory import Disk, MemoryKernel

OLD: Tree = {
    "a": None,
    "a/f": b"old f",
    "a/l": "f",
    "a/d": None,
    "a/d/x": b"old x",
    "b": None,
    "b/g": b"old g",
    "b/e": None,
    "b/e/y": b"old y",
}
"""What is there before: a file, a link and a folder in one folder, a file and a folder in another."""


def planted() -> Disk:
    """A disk with that."""
    disk = Disk()
    disk.plant(OLD)
    return disk


OPERATIONS: dict[str, Operation] = {
    "create": Write("a/n", b"new n"),
    "replace": Write("a/f", b"new f"),
    "remove": Remove("b/g"),
    "move": Move("b/g", "a/n"),
    "move-over": Move("a/f", "b/g"),
    "exchange": Exchange("a/f", "b/g"),
    "backup": Write("a/f", b"newer f", backup="f.bak"),
    "link": Link("a/l", "n"),
    "folder": Fill("b/e", {"z": b"new z"}),
    "folder-new": Fill("b/n", {"z": b"new z", "s": None}),
    "folder-remove": Remove("a/d"),
    "folder-move": Move("b/e", "a/d"),
    "folder-exchange": Exchange("a/d", "b/g"),
    "folder-to-file": Write("a/d", b"a file now"),
    "file-to-folder": Fill("b/g", {"z": b"a folder now"}),
}
"""Kinds change by two items: *folder-remove* or *remove*, and then the last ones, which alone are refused."""


@define(frozen=True)
class Case:
    """One transaction; ``syncs`` is what ``durable`` is given."""

    names: tuple[str, ...]
    syncs: str = "fsync"

    def __str__(self) -> str:
        return f"{' + '.join(self.names)} ({self.syncs})"

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What it does."""
        return tuple(OPERATIONS[name] for name in self.names)

    def wanted(self) -> Tree:
        """The tree when it was committed."""
        tree = OLD
        for operation in self.operations:
            tree = operation.apply(tree)
        return tree

    def stage(self, tx: atomik.Transaction, kernel: MemoryKernel) -> None:
        """Stage all of it."""
        for operation in self.operations:
            path = f"/{operation.path}"
            if isinstance(operation, Write):
                tx.file(path, "wb", buffering=0, backup=operation.backup).write(operation.data)
            elif isinstance(operation, Fill):
                kernel.plant(str(tx.folder(path)), operation.tree)
            else:
                operation.stage(tx, Path("/"))


def cases(most: int, syncs: tuple[str, ...] = ("fsync", "syncfs")) -> list[Case]:
    """Every transaction of one to `most` items."""
    found = (names for count in range(1, most + 1) for names in itertools.product(OPERATIONS, repeat=count))
    return [Case(names, how) for names in found for how in syncs]
