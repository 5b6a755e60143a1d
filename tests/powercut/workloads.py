"""The histories that are recorded: named ones, each for a reason, and random ones from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.powercut.histories import (
    Bring,
    Exchange,
    Fill,
    History,
    InPlace,
    Link,
    Move,
    Operation,
    Phase,
    Remove,
    Tree,
    Write,
    Written,
    content,
)

#: Sizes that matter: nothing, inline in the inode (btrfs, ext4), one block, several blocks.
SIZES = (0, 30, 1500, 4096, 9000)

OLD: Tree = {
    "a": None,
    "a/f": content("old f", 9000),
    "a/g": content("old g"),
    "a/obsolete": content("old obsolete", 5000),
    "a/link": "f",
    "a/dir": None,
    "a/dir/x": content("old x", 5000),
    "a/dir/sub": None,
    "a/dir/sub/y": content("old y"),
    "b": None,
    "b/f": content("old b/f", 4096),
    "b/dir": None,
    "b/dir/z": content("old z"),
    "b/dir/link": "z",
    "b/goes": None,
    "b/goes/k": content("old k", 9000),
    "b/goes/empty": None,
    "c": None,
    "c/f": content("old c/f", 1500),
    "tmp": None,
}
"""What stands there before, in most of them."""

LEAVES: Tree = {
    "index": content("new index", 9000),
    "small": content("new small"),
    "empty": None,
    "link": "index",
    "sub": None,
    "sub/deep": None,
    "sub/deep/leaf": content("new leaf", 5000),
    "sub/link": "../small",
    "sub/none": None,
}
"""A folder with everything that a filesystem may forget: links, empty folders, small and large files."""

FOUR: tuple[Operation, ...] = (
    Write("a/f", content("new f", 9000)),
    Write("a/n", content("new n", 5000)),
    Fill("a/dir", LEAVES),
    Remove("a/obsolete"),
)

EVERY: tuple[Operation, ...] = (
    Write("a/f", content("new f", 9000)),
    Write("b/new", content("new b", 1500)),
    Write("c/named", content("new named", 5000), named=True),
    Write("a/g", content("new g", 4096), backup="g.before"),
    Fill("b/fresh", LEAVES),
    Fill("a/dir", LEAVES),
    Fill("b/dir", {"more": content("more"), "link2": "z"}, copy=True),
    Link("a/link", "n"),
    Link("c/link", "../a/f"),
    Remove("a/obsolete"),
    Remove("b/goes"),
    Move("c/f", "b/f"),
)

PAIR: tuple[Operation, ...] = (
    Write("a/f", content("new f", 9000)),
    Write("a/n", content("new n", 30)),
)
"""Two files in one folder: where one log holds every change, few syncs serve all of it."""

ONE_FOLDER: tuple[Operation, ...] = (
    Write("a/f", content("new f", 9000), backup="f.before"),
    Move("a/g", "a/moved"),
    Write("a/g", content("new g", 30)),
    Fill("a/dir", {"more": content("more"), "link2": "x"}, copy=True),
    Write("a/named", content("new named", 5000), named=True),
    Link("a/link", "moved"),
    Remove("a/obsolete"),
)
"""Every kind in one folder: where one log holds every change, the mark is a name then."""

FILES: tuple[Operation, ...] = (
    Write("a/f", content("new f", 9000)),
    Write("b/new", content("new b", 4096)),
    Write("c/f", content("new c/f", 0)),
    Write("a/g", content("new g", 1500), backup="g.before"),
)
"""As many files as are synced without syncfs, in three folders."""

MOVES: tuple[Operation, ...] = (
    Move("a/f", "b/from a"),
    Move("b/goes", "a/dir", backup="dir.before"),
    Move("b/f", "c/f", backup="f.before"),
    Move("a/link", "c/link"),
)

STAGED_ELSEWHERE: tuple[Operation, ...] = (
    Write("a/f", content("new f", 9000), tmp="tmp"),
    Write("b/n", content("new n", 30), tmp="tmp"),
    Fill("a/dir", LEAVES, tmp="tmp"),
    Write("c/named", content("new", 5000), named=True, tmp="c"),
)

MADE: tuple[Operation, ...] = (
    Write("a/f", content("new f", 9000)),
    Write("a/n", content("new n", 30)),
    Write("b/p/q/n", content("new n", 30), parents=True),
    Write("d/p/n", content("new n", 5000), parents=True),
)
"""Folders are made under one that is a parent, and under one that nothing else in the transaction touches."""

THREE: tuple[Operation, ...] = (
    Write("a/f", content("new f", 9000)),
    Write("b/n", content("new n", 30)),
    Move("b/goes", "c/came"),
)

MANY: tuple[Operation, ...] = tuple(
    Write(f"{'ab'[n % 2]}/{'f' if n < 2 else n}", content(f"new {n}", SIZES[n % 5])) for n in range(200)
)

LONG: tuple[Operation, ...] = (
    *(Write(f"a/{n:0230}", content(f"new {n}")) for n in range(16)),
    Remove("a/obsolete"),
)
"""An intent of more than a block, so that a power cut can leave a part of it."""

CHAINS: tuple[Operation, ...] = (
    Move("a/g", "b/f"),
    Move("a/f", "a/g"),
    Write("a/f", content("new f", 9000)),
    Move("a/dir", "c/dir"),
    Fill("a/dir", LEAVES),
    Move("c/dir", "c/again"),
    Write("c/f", content("new c/f", 30), backup="f.before"),
)
"""Rotation within a folder and across two, and a folder that goes on."""

EXCHANGES: tuple[Operation, ...] = (
    Exchange("a/f", "b/f"),
    Exchange("b/f", "c/f"),
    Exchange("a/dir", "b/goes"),
    Exchange("a/link", "b/dir"),
)
"""Cycles of two and three, of one kind and of two, across folders."""

OTHER_KINDS: tuple[Operation, ...] = (
    Remove("a/dir"),
    Write("a/dir", content("a file now", 5000)),
    Remove("a/f"),
    Fill("a/f", LEAVES),
    Remove("b/goes"),
    Link("b/goes", "dir"),
)

BROUGHT: tuple[Operation, ...] = (
    Bring("a/f", {"": content("brought f", 9000)}),
    Bring("b/n", {"": content("brought n", 30)}),
    Bring("a/dir", {"": None, **LEAVES}),
    Bring("c/f", {"": content("exchanged f", 5000)}, exchange=True),
    Bring("b/dir", {"": None, **LEAVES}, exchange=True),
)
"""What nobody synced (P5)."""

COMPANIONS: tuple[Operation, ...] = (
    Written(
        "a/f", content("new f", 9000), ("g", "n", "link", "obsolete"), {"g": content("new g", 5000), "n": content("n")}
    ),
    Written("b/n", content("new n", 30), ("goes", "dir"), {"dir": None, "dir/z": content("new z", 5000)}),
)

IN_PLACE: tuple[Operation, ...] = (
    InPlace("a", {**LEAVES, "f": content("new f", 9000), "g": None, "dir": content("a file now", 5000)}),
    InPlace("b", {"dir": None, "dir/z": content("new z", 5000), "goes": "link"}),
)

SEQUENCES = {
    "chains": CHAINS, "exchanges": EXCHANGES, "kinds": OTHER_KINDS, "brought": BROUGHT, "companions": COMPANIONS,
    "in-place": IN_PLACE,
}  # fmt: skip

ALONE: dict[str, Operation] = {
    "file-new": Write("a/n", content("new n", 9000)),
    "file-over": Write("a/f", content("new f", 5000)),
    "file-tmp": Write("a/f", content("new f", 5000), tmp="tmp"),
    "file-parents": Write("a/p/q/n", content("new n", 5000), parents=True),
    "path-new": Write("a/n", content("new n", 5000), named=True),
    "path-over": Write("a/f", content("new f", 9000), named=True),
    "folder-new": Fill("a/n", LEAVES),
    "folder-over": Fill("a/dir", LEAVES),
    "folder-tmp": Fill("a/dir", LEAVES, tmp="tmp"),
    "folder-hollow": Fill("a/n", {"empty": None, "link": "index", "sub": None, "sub/empty": None, "sub/link": "../x"}),
}

ONE_ITEM: dict[str, Operation] = {
    "symlink-new": Link("c/n", "f"),
    "symlink-over": Link("a/link", "elsewhere"),
    "remove-file": Remove("a/obsolete"),
    "remove-folder": Remove("b/goes"),
    "move-folder": Move("b/goes", "c/came"),
    "backup": Write("a/f", content("new f", 9000), backup="f.before"),
}


def _history(name: str, *phases: Phase, tmp: tuple[str, ...] = ()) -> History:
    return History(name, OLD, phases, tmp)


def _named() -> Iterator[History]:
    for how in (True, "fsync", "syncfs"):
        yield _history(f"four/{how}", Phase(FOUR, how))
        yield _history(f"every/{how}", Phase(EVERY, how))
        yield _history(f"pair/{how}", Phase(PAIR, how))
        yield _history(f"one-folder/{how}", Phase(ONE_FOLDER, how))
        yield _history(f"files/{how}", Phase(FILES, how))
        yield _history(f"moves/{how}", Phase(MOVES, how))
        yield _history(f"tmp/{how}", Phase(STAGED_ELSEWHERE, how), tmp=("tmp", "c"))
        yield _history(f"made/{how}", Phase(MADE, how))
        yield _history(f"many/{how}", Phase(MANY, how))
        for name, ops in SEQUENCES.items():
            yield _history(f"{name}/{how}", Phase(ops, how))
        for name, op in ALONE.items():
            yield _history(f"{name}/{how}", Phase((op,), how, alone=True), tmp=("tmp",) if "tmp" in name else ())
        for name, op in ONE_ITEM.items():
            yield _history(f"{name}/{how}", Phase((op,), how))
        yield _history(f"resume/{how}", Phase((Fill("a/dir", LEAVES, resume=True),), how, alone=True))
        yield _history(
            f"resume-group/{how}", Phase((*PAIR, Fill("b/dir", LEAVES, tmp="tmp", resume=True)), how), tmp=("tmp",)
        )
    yield _history("long-names", Phase(LONG, "fsync"))
    yield from _twice()
    yield from _failing()
    yield from _failing_in_one_log()


def _twice() -> Iterator[History]:
    """One after the other: what lingers of the first must not reach into the second."""
    again = (Write("a/f", content("newer f", 5000)), Fill("a/dir", {"only": content("newer")}), Remove("a/n"))
    for how in (True, "fsync"):
        yield _history(f"twice/{how}", Phase(FOUR, how), Phase(again, how))
    single = Phase((Write("a/f", content("newest f", 30)),), alone=True)
    yield _history("group-then-one", Phase(THREE), single)
    yield _history("rollback-then-one", Phase(THREE, ending="rollback:2"), single)
    yield _history("rollback-made-then-group", Phase(MADE, "fsync", "rollback:2"), Phase(FOUR, "fsync"))
    yield _history("rollback-then-group", Phase(THREE, "fsync", "rollback:3"), Phase(FOUR, "fsync"))


def _failing() -> Iterator[History]:
    """Rolled back in the process, or killed and then recovered, before the power goes."""
    for at in (1, 2, 3):
        yield _history(f"rollback:{at}", Phase(THREE, "fsync", f"rollback:{at}"))
    for at in (2, 12):
        yield _history(f"rollback-every:{at}", Phase(EVERY, True, f"rollback:{at}"))
    for call, last in (("rename", 3), ("pwrite", 2), ("fsync", 9), ("unlink", 5), ("rmdir", 1)):
        for at in range(1, last + 1):
            yield _history(f"killed:{call}:{at}", Phase(THREE, "fsync", f"killed:{call}:{at}"))
    for name, ops in SEQUENCES.items():
        if name != "brought":  # what is written beside the root is not set up anew
            for at in (2, 4):
                yield _history(f"{name}/rollback:{at}", Phase(ops, "fsync", f"rollback:{at}"))
                yield _history(f"{name}/killed:{at}", Phase(ops, "fsync", f"killed:rename:{at}"))
    for name in ("file-over", "folder-over", "folder-tmp", "path-over"):
        phase = Phase((ALONE[name],), "fsync", "killed:rename:2" if "path" in name else "killed:rename:1", alone=True)
        yield _history(f"{name}/killed", phase, tmp=("tmp",) if "tmp" in name else ())
    yield _history("remove-folder/killed", Phase((ONE_ITEM["remove-folder"],), "fsync", "killed:rename:1"))
    yield _history("move-folder/killed", Phase((ONE_ITEM["move-folder"],), "fsync", "killed:rename:2"))


def _failing_in_one_log() -> Iterator[History]:
    """The same where one log holds every change: nothing is durable yet when the process dies after a swap."""
    last = ("killed:link:2", "killed:fsync:1", "killed:unlink:1", "killed:unlink:2", "killed:rmdir:1")
    for ending in ("killed:rename:1", "killed:rename:2", *last, "rollback:1", "rollback:2"):
        yield _history(f"pair/log/{ending}", Phase(PAIR, True, ending))
    for ending in ("killed:rename:4", *last, "rollback:5"):
        yield _history(f"one-folder/log/{ending}", Phase(ONE_FOLDER, True, ending))
    yield _history("file-over/log/killed", Phase((ALONE["file-over"],), True, "killed:rename:1", alone=True))
    yield _history("file-new/log/killed", Phase((ALONE["file-new"],), True, "killed:link_fd:1", alone=True))


NAMED: dict[str, History] = {history.name: history for history in _named()}


def random_history(seed: str) -> History:
    """A history from a seed: one to three phases over the old tree, with whatever is there at that time."""
    rng = random.Random(seed)
    tree, phases = OLD, []
    for number in range(rng.choice((1, 1, 2, 3))):
        phase = _random_phase(rng, tree, number)
        phases.append(phase)
        if phase.ending == "commit":
            tree = phase.apply(tree)
        elif phase.ending.startswith("killed"):
            break  # how that ends is seen only when it has happened
    return History(f"random:{seed}", OLD, tuple(phases), ("tmp",))


def _random_phase(rng: random.Random, tree: Tree, number: int) -> Phase:
    parents = rng.sample(("a", "b", "c"), rng.randint(1, 3))
    ops, taken = list[Operation](), set[str]()
    for at in range(rng.choice((1, 1, 2, 3, 4, 6, 9))):
        op = _random_op(rng, tree, parents, taken, f"{number}.{at}")
        if op is not None:
            ops.append(op)
    if not ops:
        ops.append(Write("a/always", content("always", 30)))
    durable = rng.choice((True, "fsync", "fsync", "syncfs"))
    alone = len(ops) == 1 and hasattr(ops[0], "alone")
    ending = rng.choice(("commit",) * 5 + ("rollback", "killed", "killed"))
    if ending == "rollback":
        ending = f"rollback:{rng.randint(1, len(ops))}" if len(ops) > 1 else "commit"
    elif ending == "killed":
        ending = f"killed:{rng.choice(('rename', 'fsync', 'pwrite', 'unlink', 'link', 'link_fd'))}:{rng.randint(1, 6)}"
    return Phase(tuple(ops), durable, ending, alone)


def _random_op(rng: random.Random, tree: Tree, parents: list[str], taken: set[str], label: str) -> Operation | None:
    """An operation on a name that this phase has not touched; None when the dice fell badly."""
    parent = rng.choice(parents)
    there = [name for name in tree if name.rpartition("/")[0] == parent]
    path = rng.choice(there) if there and rng.random() < 0.6 else f"{parent}/{rng.choice('nopqrs')}"
    tmp = rng.choice((None, None, None, "tmp"))
    if path in taken:
        return None
    taken.add(path)
    exists, folder = path in tree, path in tree and tree[path] is None
    draw = rng.random()
    if exists and draw < 0.2:
        return Remove(path)
    if exists and draw < 0.4:
        goal = f"{rng.choice(parents)}/moved {label}"
        taken.add(goal)
        return Move(path, goal)
    if folder or (not exists and draw < 0.35):
        leaves = {name: node for name, node in LEAVES.items() if rng.random() < 0.8 or node is None}
        return Fill(path, {**leaves, "mark": content(f"new {label}", rng.choice(SIZES))}, tmp=tmp)
    if draw > 0.85:
        return Link(path, f"target {label}")
    keep = f"kept {label}" if exists and rng.random() < 0.3 else None
    if keep is not None:
        taken.add(f"{parent}/{keep}")
    return Write(path, content(f"new {label}", rng.choice(SIZES)), rng.random() < 0.3, tmp, keep)
