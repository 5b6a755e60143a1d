"""What is done to a tree, twice: with atomik on a real folder, and as a pure function on a dictionary.

A `Tree` maps a path below the root to what is there: ``bytes`` for a file, ``str`` for a symlink's target, ``None``
for a folder.  An operation knows how to stage itself (`stage`) and what must come of it (`apply`); neither is made from
the other.  A `Phase` is one transaction and how it ends; a `History` is a tree and the phases that follow each other.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from attrs import define, field

import atomik

Tree = dict[str, "bytes | str | None"]

PREFIX = ".atomik-"


def content(text: str, size: int = 0) -> bytes:
    """`size` bytes (or just the text) that say whose they are in every block."""
    piece = f"{text}|".encode()
    return (piece * (size // len(piece) + 1))[:size] if size else piece


def inside(tree: Tree, path: str) -> Tree:
    """What is at `path` and below it."""
    return {name: node for name, node in tree.items() if name == path or name.startswith(path + "/")}


def without(tree: Tree, path: str) -> Tree:
    """The tree less `path` and what is below it."""
    gone = inside(tree, path)
    return {name: node for name, node in tree.items() if name not in gone}


def moved(tree: Tree, old: str, new: str) -> Tree:
    """What is at `old`, as if it were at `new`."""
    return {new + name[len(old) :]: node for name, node in inside(tree, old).items()}


def with_parents(tree: Tree, path: str) -> Tree:
    """The tree, and the folders that `path` needs above it."""
    above = os.path.dirname(path)
    return tree if not above or above in tree else {**with_parents(tree, above), above: None}


class Operation(Protocol):
    """One item of a transaction."""

    path: str

    def apply(self, tree: Tree) -> Tree:
        """The tree afterwards."""

    def stage(self, tx: atomik.Transaction, root: Path) -> None:
        """Stage it."""


@define(frozen=True)
class Write:
    """A file: by a file object, or with ``named`` by a path.  ``tmp``: stage it there.  ``backup``: the old one's name."""

    path: str
    data: bytes
    named: bool = False
    tmp: str | None = None
    backup: str | None = None
    parents: bool = False

    def apply(self, tree: Tree) -> Tree:
        tree = with_parents(tree, self.path) if self.parents else dict(tree)
        if self.backup is not None and self.path in tree:
            tree[os.path.join(os.path.dirname(self.path), self.backup)] = tree[self.path]
        tree[self.path] = self.data
        return tree

    def options(self, root: Path) -> dict[str, Any]:
        tmp = None if self.tmp is None else root / self.tmp
        return {"tmp_dir": tmp, "backup": self.backup, "parents": self.parents}

    def stage(self, tx: atomik.Transaction, root: Path) -> None:
        if self.named:
            tx.path(root / self.path, **self.options(root)).write_bytes(self.data)
        else:
            with tx.file(root / self.path, "wb", **self.options(root)) as file:
                file.write(self.data)

    def alone(self, root: Path, durable: Any) -> Any:
        options = {**self.options(root), "overwrite": True, "durable": durable}
        if self.named:
            with atomik.path(root / self.path, **options) as name:
                name.write_bytes(self.data)
        else:
            with atomik.file(root / self.path, "wb", **options) as file:
                file.write(self.data)


@define(frozen=True)
class Fill:
    """A folder with ``tree`` in it (paths below the folder).  ``copy``: begin with what is there.  ``resume``: what is staged
    outlives the process."""

    path: str
    tree: Tree
    copy: bool = False
    tmp: str | None = None
    resume: bool = False

    def apply(self, tree: Tree) -> Tree:
        base = dict(tree) if self.copy else without(tree, self.path)
        base[self.path] = None
        return {**base, **{f"{self.path}/{name}": node for name, node in self.tree.items()}}

    def options(self, root: Path) -> dict[str, Any]:
        options = {"copy": True if self.copy else None, "tmp_dir": None if self.tmp is None else root / self.tmp}
        return {**options, "resume": True} if self.resume else options

    def stage(self, tx: atomik.Transaction, root: Path) -> None:
        plant(tx.folder(root / self.path, **self.options(root)), self.tree)

    def give_up(self, root: Path) -> None:
        """Look at what was staged, and drop it: it is what was written, as far as that was synced, and nothing else."""
        with atomik.transaction(overwrite=True) as tx:
            staged = look(tx.folder(root / self.path, **self.options(root)))
            for name, node in staged.items():
                if name not in self.tree or not is_part(node, self.tree[name]):
                    raise AssertionError(
                        f"{self.path} goes on with {name}: {brief(node)}, which is not what was staged"
                    )
            tx.drop(root / self.path)

    def alone(self, root: Path, durable: Any) -> Any:
        with atomik.folder(root / self.path, overwrite=True, durable=durable, **self.options(root)) as new:
            plant(new, self.tree)


@define(frozen=True)
class Written:
    """A file by a path, with companions: those in ``beside`` are written, the others of ``also`` are not."""

    path: str
    data: bytes
    also: tuple[str, ...]
    beside: Tree

    def apply(self, tree: Tree) -> Tree:
        above = os.path.dirname(self.path)
        for name in self.also:
            tree = without(tree, f"{above}/{name}")
        return {**tree, self.path: self.data, **{f"{above}/{name}": node for name, node in self.beside.items()}}

    def stage(self, tx: atomik.Transaction, root: Path) -> None:
        staged = tx.path(root / self.path, also=self.also)
        staged.write_bytes(self.data)
        plant(staged.parent, self.beside)


@define(frozen=True)
class InPlace:
    """A folder that stays, with ``tree`` in it afterwards (paths below the folder)."""

    path: str
    tree: Tree

    def apply(self, tree: Tree) -> Tree:
        kept = {**without(tree, self.path), self.path: None}
        return {**kept, **{f"{self.path}/{name}": node for name, node in self.tree.items()}}

    def stage(self, tx: atomik.Transaction, root: Path) -> None:
        plant(tx.folder(root / self.path, in_place=True), self.tree)


@define(frozen=True)
class Link:
    """A symlink."""

    path: str
    target: str

    def apply(self, tree: Tree) -> Tree:
        return {**tree, self.path: self.target}

    def stage(self, tx: atomik.Transaction, root: Path) -> None:
        tx.symlink(root / self.path, self.target)


@define(frozen=True)
class Remove:
    """Whatever is there goes."""

    path: str

    def apply(self, tree: Tree) -> Tree:
        return without(tree, self.path)

    def stage(self, tx: atomik.Transaction, root: Path) -> None:
        tx.remove(root / self.path)


@define(frozen=True)
class Move:
    """From ``source`` to ``path``."""

    source: str
    path: str
    backup: str | None = None

    def apply(self, tree: Tree) -> Tree:
        kept: Tree = {}
        if self.backup is not None and self.path in tree:
            kept = moved(tree, self.path, os.path.join(os.path.dirname(self.path), self.backup))
        rest = without(without(tree, self.path), self.source)
        return {**rest, **kept, **moved(tree, self.source, self.path)}

    def stage(self, tx: atomik.Transaction, root: Path) -> None:
        tx.move(root / self.source, root / self.path, backup=self.backup)


@define(frozen=True)
class Exchange:
    """What is at ``path`` and at ``other`` changes places."""

    path: str
    other: str

    def apply(self, tree: Tree) -> Tree:
        rest = without(without(tree, self.path), self.other)
        return {**rest, **moved(tree, self.path, self.other), **moved(tree, self.other, self.path)}

    def stage(self, tx: atomik.Transaction, root: Path) -> None:
        tx.exchange(root / self.path, root / self.other)


@define(frozen=True)
class Bring:
    """What someone wrote beside the root a moment ago, and did not sync, comes to ``path``: by a move, or by an exchange
    with what is there."""

    path: str
    tree: Tree
    exchange: bool = False

    def apply(self, tree: Tree) -> Tree:
        return {**without(tree, self.path), **{f"{self.path}/{n}".rstrip("/"): node for n, node in self.tree.items()}}

    def stage(self, tx: atomik.Transaction, root: Path) -> None:
        source = root.parent / f"brought {self.path.replace('/', ' ')}"
        plant(root.parent, {f"{source.name}/{n}".rstrip("/"): node for n, node in self.tree.items()})
        if self.exchange:
            tx.exchange(root / self.path, source)
        else:
            tx.move(source, root / self.path)


@define(frozen=True)
class Phase:
    """One transaction.

    ``ending``: "commit"; "rollback:K": an exception after the K-th swap; "killed:CALL:K": SIGKILL right after the K-th
    call of that name in atomik's port, and then ``recover()``.  ``alone``: by the one-item function where there is one.
    """

    ops: tuple[Operation, ...]
    durable: bool | str = True
    ending: str = "commit"
    alone: bool = False

    def apply(self, tree: Tree) -> Tree:
        """The tree when it was committed."""
        for op in self.ops:
            tree = op.apply(tree)
        return tree

    def perform(self, root: Path, progress: Any = None) -> None:
        """Stage and commit it."""
        if self.alone:
            (op,) = self.ops
            op.alone(root, self.durable)  # type: ignore[attr-defined]
            return
        with atomik.transaction(overwrite=True, durable=self.durable, progress=progress) as tx:
            for op in self.ops:
                op.stage(tx, root)


@define(frozen=True)
class History:
    """A tree, and what happens to it.  ``tmp``: folders for staging, which recovery gets too."""

    name: str
    tree: Tree = field(repr=False)
    phases: tuple[Phase, ...]
    tmp: tuple[str, ...] = ()

    def places(self) -> list[str]:
        """The folders that recovery is to look at: every parent of a destination, and every folder for staging."""
        found = dict.fromkeys(self.tmp)
        for phase in self.phases:
            for op in phase.ops:
                found[op.path if isinstance(op, InPlace) else os.path.dirname(op.path)] = None
                if isinstance(op, Move):
                    found[os.path.dirname(op.source)] = None
                if isinstance(op, Exchange):
                    found[os.path.dirname(op.other)] = None
        return list(found)

    def made(self) -> set[str]:
        """Folders that ``parents=True`` makes.  When the machine dies before the commit they may stay, empty."""
        return {
            folder
            for phase in self.phases
            for op in phase.ops
            if isinstance(op, Write) and op.parents
            for folder in with_parents({}, op.path)
        }


def plant(root: Path, tree: Tree) -> None:
    """Make the tree in the folder `root`; parents are before what is in them, by sorting."""
    for name in sorted(tree):
        node, path = tree[name], root / name
        if node is None:
            path.mkdir()
        elif isinstance(node, str):
            path.symlink_to(node)
        else:
            path.write_bytes(node)


def look(root: Path) -> Tree:
    """What is below `root`, byte for byte."""
    found: Tree = {}
    for where, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(where, name)
            node = os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
            found[str(path.relative_to(root))] = node
    return found


def ours(tree: Tree) -> list[str]:
    """The names in it that are atomik's."""
    return sorted(name for name in tree if any(part.startswith(PREFIX) for part in name.split("/")))


def without_empty(tree: Tree, made: set[str]) -> Tree:
    """The tree less those folders of `made` that have nothing in them."""
    for name in sorted(made & tree.keys(), reverse=True):
        if len(inside(tree, name)) == 1:
            tree = without(tree, name)
    return tree


def difference(found: Tree, wanted: Tree) -> str:
    """What is wrong, in a few words."""
    words = []
    for name in sorted({*found, *wanted}):
        if name not in found:
            words.append(f"{name} is missing")
        elif name not in wanted:
            words.append(f"{name} is there")
        elif found[name] != wanted[name]:
            words.append(f"{name} holds {brief(found[name])} and not {brief(wanted[name])}")
    return "; ".join(words[:6]) or "nothing"


def is_part(node: bytes | str | None, wanted: bytes | str | None) -> bool:
    """Whether a power cut can have left this of what was written and not synced: some of its blocks, and zeros for others."""
    if not isinstance(node, bytes) or not isinstance(wanted, bytes):
        return node == wanted
    blocks = range(0, len(node), 4096)
    return len(node) <= len(wanted) and all(
        node[at : at + 4096] in (wanted[at : at + len(node[at : at + 4096])], bytes(len(node[at : at + 4096])))
        for at in blocks
    )


def brief(node: bytes | str | None) -> str:
    """A node in a few characters."""
    if node is None:
        return "a folder"
    return f"{len(node)} bytes {node[:12]!r}" if isinstance(node, bytes) else f"a link to {node!r}"
