"""Random histories against a dictionary: two transactions, strangers, crashes, recoveries, in any order.

The model is the tree as a dictionary (`tests.powercut.histories`), and knows for each commit whether it must go well.
After every step: the destinations are what the dictionary says (P3, P4), and nothing of atomik's is left when no
transaction is open; at every swap: each destination is what it was or what it becomes (P1).

``ATOMIK_MODEL_EXAMPLES=5000 pytest tests/promises/test_model.py`` looks longer, with another seed each time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import atomik
from atomik import errors
from atomik._system.kernel import MUTATING
from tests.powercut.histories import (
    Fill,
    Link,
    Move,
    Operation,
    Phase,
    Remove,
    Tree,
    Write,
    difference,
    inside,
    look,
    moved,
    ours,
    plant,
    without,
)
from tests.powercut.noise import is_swap
from tests.powercut.tape import killed
from tests.support.kernels import Acting, Call, installed

pytestmark = pytest.mark.sweep

EXAMPLES = int(os.environ.get("ATOMIK_MODEL_EXAMPLES", "0"))

FOLDERS = ("a", "b")
NAMES = tuple(f"{folder}/{name}" for folder in FOLDERS for name in "123")
paths = st.sampled_from(NAMES)
data = st.sampled_from((b"", b"short", b"block" * 1000))
stages = st.sampled_from((None, None, "tmp"))
trees = st.sampled_from(({}, {"x": b"leaf"}, {"x": b"other", "sub": None, "sub/link": "../x"}))

operations: st.SearchStrategy[Any] = st.one_of(
    st.builds(Write, paths, data, named=st.booleans(), tmp=stages),
    st.builds(Fill, paths, trees, tmp=stages),
    st.builds(Link, paths, st.sampled_from(("1", "nowhere"))),
    st.builds(Remove, paths),
    st.builds(Move, paths, paths),
)
#: What a stranger makes of a name: nothing, a file, a link or a folder.
foreign = st.sampled_from((None, {"": b"foreign"}, {"": "foreign"}, {"": None, "f": b"foreign"}))
_ABSENT = object()


def touched(op: Operation) -> set[str]:
    """The names that an operation changes."""
    names = {op.path}
    if isinstance(op, Move):
        names.add(op.source)
    if isinstance(op, Write) and op.backup is not None:
        names.add(f"{os.path.dirname(op.path)}/{op.backup}")
    return names


def fits(op: Operation, tree: Tree, overwrite: bool) -> bool:
    """Whether the tree allows it."""
    there: Any = tree.get(op.path, _ABSENT)
    if isinstance(op, Remove):
        return there is not _ABSENT
    folder = isinstance(op, Fill)
    if isinstance(op, Move):
        if op.source not in tree or op.source == op.path:
            return False
        folder = tree[op.source] is None
    return there is _ABSENT or (overwrite and (there is None) == folder)


def chosen(wanted: list[Operation], tree: Tree) -> tuple[Operation, ...]:
    """Those that can be in one transaction over this tree."""
    ops, taken = list[Operation](), set[str]()
    for op in wanted:
        if fits(op, tree, True) and not touched(op) & taken:
            ops.append(op)
            taken |= touched(op)
    return tuple(ops)


class Open:
    """A transaction that is open, and what was staged in it."""

    def __init__(self, overwrite: bool) -> None:
        self.overwrite = overwrite
        self.tx = atomik.transaction(overwrite=overwrite, durable=False, lock_timeout=5)
        self.ops: list[Operation] = []

    @property
    def taken(self) -> set[str]:
        return {name for op in self.ops for name in touched(op)}

    def apply(self, tree: Tree) -> Tree:
        for op in self.ops:
            tree = op.apply(tree)
        return tree


class Machine(RuleBasedStateMachine):
    """See the module."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="atomik-model-"))
        self.tree: Tree = {
            **dict.fromkeys((*FOLDERS, "tmp"), None),
            "a/1": b"old",
            "a/2": None,
            "a/2/x": b"old leaf",
            "b/1": "link",
        }
        plant(self.root, self.tree)
        self.open: dict[int, Open] = {}
        self.kept = 0

    def teardown(self) -> None:
        if not hasattr(self, "root"):
            return
        for one in self.open.values():
            one.tx.abort()
        shutil.rmtree(self.root)

    # --- transactions --------------------------------------------------------------------------------------------
    @rule(which=st.integers(0, 1), overwrite=st.sampled_from((True, True, False)), op=operations)
    def stage(self, which: int, overwrite: bool, op: Operation) -> None:
        """In one of two transactions, begun if needed; what cannot work is refused at once and changes nothing."""
        if which not in self.open:
            self.open[which] = Open(overwrite)
        one = self.open[which]
        if touched(op) & one.taken:
            return  # several operations on one name: `tests.crash.model`
        # What a program makes of a path, a file or a folder, shows at the commit only.
        late = isinstance(op, Write) and op.named and one.overwrite
        allowed = late or fits(op, self.tree, one.overwrite)
        try:
            op.stage(one.tx, self.root)
        except errors.AtomikError:
            assert not allowed, f"{op} was refused"
        else:
            assert allowed, f"{op} was taken"
            one.ops.append(op)

    @rule(which=st.integers(0, 1), path=paths, content=data)
    def stage_with_backup(self, which: int, path: str, content: bytes) -> None:
        """A file whose previous version is kept under a fresh name."""
        self.kept += 1
        self.stage(which, True, Write(path, content, backup=f"kept {self.kept}"))

    @precondition(lambda self: self.open)
    @rule(pick=st.integers(0, 1))
    def commit(self, pick: int) -> None:
        """It succeeds exactly if every destination still allows it: then everything is new, otherwise everything is old."""
        one = self._take(pick)
        possible, new = True, self.tree
        for op in one.ops:
            possible = possible and fits(op, self.tree, one.overwrite)
        if possible:
            new = one.apply(self.tree)
        with self._observed(self.tree, new):
            refused = None
            try:
                one.tx.commit()
            except errors.AtomikError as error:
                refused = error
        assert (refused is None) == possible, f"{refused or 'it went well, which it could not'}: {one.ops}"
        self.tree = self.tree if refused else new

    @precondition(lambda self: self.open)
    @rule(pick=st.integers(0, 1))
    def abort(self, pick: int) -> None:
        """Nothing has happened."""
        self._take(pick).tx.abort()

    def _take(self, pick: int) -> Open:
        return self.open.pop(pick if pick in self.open else next(iter(self.open)))

    @contextlib.contextmanager
    def _observed(self, old: Tree, new: Tree) -> Any:
        """At every change of a name, each destination is what it was or what it becomes (P1)."""

        def look_now(call: Call) -> None:
            now = look(self.root)
            for name in {path for path in (*old, *new) if path.count("/") == 1}:
                found = inside(now, name)
                assert found in (inside(old, name), inside(new, name)), f"{name} is {found} at {call}"

        with installed(Acting("rename link_fd unlink rmdir", look_now, after=True)):
            yield

    # --- others --------------------------------------------------------------------------------------------------
    @rule(path=paths, node=foreign)
    def stranger(self, path: str, node: Tree | None) -> None:
        """Someone who has not heard of atomik replaces or removes what is there."""
        self._put(path, node)
        self.tree = self._with(self.tree, path, node)

    def _put(self, path: str, node: Tree | None) -> None:
        real = self.root / path
        if real.is_dir() and not real.is_symlink():
            shutil.rmtree(real)
        else:
            real.unlink(missing_ok=True)
        if node is not None:
            plant(real.parent, moved({f"x/{name}".rstrip("/"): value for name, value in node.items()}, "x", real.name))

    def _with(self, tree: Tree, path: str, node: Tree | None) -> Tree:
        added = {} if node is None else {f"{path}/{name}".rstrip("/"): value for name, value in node.items()}
        return {**without(tree, path), **added}

    @rule(wanted=st.lists(operations, min_size=2, max_size=5), at=st.integers(1, 6), path=paths, node=foreign)
    def stranger_in_the_middle(self, wanted: list[Operation], at: int, path: str, node: Tree | None) -> None:
        """A stranger acts between two calls of a commit: all old or all new, and what they did is never lost (I4)."""
        ops = chosen(wanted, self.tree)
        if len(ops) < 2:
            return
        old, new = self.tree, Phase(ops).apply(self.tree)
        with installed(Acting("rename", lambda call: self._put(path, node))) as kernel:
            swaps = itertools.count(1)
            kernel.when = lambda call: is_swap(call) and next(swaps) == at
            with contextlib.suppress(errors.AtomikError):
                Phase(ops, durable=False).perform(self.root)
        allowed = [old, new]
        if kernel.acted:
            idle = node is None and path not in old  # nothing was there to be removed, unless it came after the swap
            allowed = [self._with(old, path, node), self._with(new, path, node), *(allowed if idle else [])]
        atomik.recover(*(self.root / name for name in (*FOLDERS, "tmp")), discard=True, lock_timeout=5)
        self._wait_or_recover(allowed, f"a stranger at swap {at} of {ops}")

    @rule(
        wanted=st.lists(operations, min_size=1, max_size=4),
        number=st.integers(1, 40),
        after=st.booleans(),
        then=st.sampled_from(("recover", "read", "write")),
    )
    def crash(self, wanted: list[Operation], number: int, after: bool, then: str) -> None:
        """A process dies at any call of its transaction: the next one there finds, or makes, all old or all new."""
        ops = chosen(wanted, self.tree)
        if not ops:
            return
        old, new = self.tree, Phase(ops).apply(self.tree)
        job = Phase(ops, durable=number % 5 == 0)
        died = killed(lambda: job.perform(self.root), " ".join(MUTATING), number, after=after)
        places = [self.root / name for name in FOLDERS]
        if then == "read":
            with atomik.reading(*places, lock_timeout=5):
                assert self._bare() in (old, new), difference(self._bare(), old)
        elif then == "write":
            with atomik.transaction(overwrite=True, durable=False, lock_timeout=5) as tx:
                for place in places:
                    tx.symlink(place / "next", "next")
            for place in places:
                (place / "next").unlink()
        atomik.recover(*places, self.root / "tmp", lock_timeout=5)
        self._wait_or_recover([old, new] if died else [new], f"killed at call {number} of {ops}")

    def _wait_or_recover(self, allowed: list[Tree], what: str) -> None:
        found = self._bare()
        assert found in allowed, f"{what}: " + "; or ".join(difference(found, tree) for tree in allowed)
        self.tree = found

    def _bare(self) -> Tree:
        found = look(self.root)
        hidden = set(ours(found))
        return {name: node for name, node in found.items() if name not in hidden}

    @invariant()
    def as_the_model_says(self) -> None:
        """The destinations are what the dictionary says; with no transaction open, nothing of atomik's is there."""
        if not hasattr(self, "root"):
            return
        found = look(self.root)
        assert self._bare() == self.tree, difference(self._bare(), self.tree)
        if not self.open:
            assert ours(found) == []


@pytest.mark.leftovers("each example has a folder of its own, and looks after it")
def test_histories_agree_with_the_model() -> None:
    """No sequence of steps leads to a tree that the model does not know."""
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES or 40,
            stateful_step_count=20,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
