"""Random sequences of operations against a dictionary with identities: ``python -m tests.crash.model --minutes N``.

The dictionary knows for each name which object is there: one that existed before (by its inode), or the one that the n-th
operation staged (by its content).  It plays one operation after the other, and knows nothing of slots, steps or chains.
Each sequence is then done for real, over and over: committed, aborted, failed at a call, killed at a call and recovered,
prepared and then committed, aborted, or killed, and decided by a coordinator.  Afterwards every name must hold the object
that the dictionary says, and nothing of atomik's may be left.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import define, field

import atomik
from atomik import errors
from tests.crash.deaths import die
from tests.support.kernels import Faulty, installed
from tests.support.state import left_in

FOLDERS = ("a", "b")
NAMES = ("a/1", "a/2", "a/3", "b/1", "b/2")
KINDS = ("file", "folder", "link")


class Refused(Exception):
    """The dictionary does not allow it."""


@define(frozen=True)
class Node:
    """An object: its kind, its content, its permissions, and its inode if it existed before."""

    kind: str
    text: str
    mode: int
    ino: int | None = field(default=None)


Names = dict[str, Node]


@define(frozen=True)
class Operation:
    """One operation of a transaction."""

    op: str
    path: str
    other: str = ""
    text: str = ""
    overwrite: bool = False
    backup: str = ""
    order: int = 0

    def play(self, names: Names) -> Names:
        """The names afterwards; raises `Refused`."""
        now = dict(names)
        if self.op == "remove":
            _take(now, self.path)
        elif self.op == "move":
            if self.path == self.other or self.keeps == self.other:
                raise Refused
            node = _take(now, self.other)
            self._put(now, node)
        elif self.op == "exchange":
            if self.path == self.other:
                raise Refused
            first, second = _take(now, self.path), _take(now, self.other)
            now[self.path], now[self.other] = second, first
        else:
            node = Node(self.op, self.text, {"file": 0o644, "folder": 0o755, "link": 0o777}[self.op])
            there = now.get(self.path)
            if there is not None and there.kind == self.op and self.op != "link":
                node = Node(self.op, self.text, there.mode)  # the owner's permissions are kept
            self._put(now, node)
        return now

    def _put(self, now: Names, node: Node) -> None:
        there = now.get(self.path)
        if there is not None:
            if not self.overwrite or (there.kind == "folder") != (node.kind == "folder"):
                raise Refused
            if self.backup:
                taken = now.get(self.keeps)
                if taken is not None and (taken.kind == "folder") != (there.kind == "folder"):
                    raise Refused
                now[self.keeps] = there
        now[self.path] = node

    @property
    def keeps(self) -> str:
        """The name under which what was there stays."""
        return f"{self.path[0]}/{self.backup}" if self.backup else ""

    def stage(self, tx: atomik.Transaction, root: Path) -> None:
        """Ask for it."""
        path, other = root / self.path, root / self.other
        if self.op == "remove":
            tx.remove(path, order=self.order)
        elif self.op == "move":
            tx.move(other, path, self.overwrite, order=self.order, backup=self.backup or None)
        elif self.op == "exchange":
            tx.exchange(path, other, order=self.order)
        elif self.op == "link":
            tx.symlink(path, self.text, self.overwrite, order=self.order)
        elif self.op == "folder":
            with tx.folder(path, self.overwrite, order=self.order, backup=self.backup or None) as new:
                (new / "in").write_text(self.text)
        elif self.text.endswith("open"):  # finished by the commit
            tx.file(path, "w", self.overwrite, order=self.order, backup=self.backup or None).write(self.text)
        else:
            with tx.file(path, "w", self.overwrite, order=self.order, backup=self.backup or None) as f:
                f.write(self.text)


def _take(names: Names, path: str) -> Node:
    if path not in names:
        raise Refused
    return names.pop(path)


class World:
    """A folder in which sequences are done."""

    def __init__(self, top: Path) -> None:
        self.root = top / "world"

    def build(self, plan: dict[str, tuple[str, int]]) -> Names:
        """Create it again; returns what is there then."""
        shutil.rmtree(self.root, ignore_errors=True)
        for name in FOLDERS:
            (self.root / name).mkdir(parents=True)
        for path, (kind, mode) in plan.items():
            where = self.root / path
            if kind == "link":
                where.symlink_to(f"old {path}")
                continue
            if kind == "folder":
                where.mkdir()
                (where / "in").write_text(f"old {path}")
            else:
                where.write_text(f"old {path}")
            where.chmod(mode)
        return self.look()

    def look(self) -> Names:
        """What is there; names of atomik's aside."""
        found = {}
        for folder in FOLDERS:
            for entry in os.scandir(self.root / folder):
                if entry.name.startswith(".atomik"):
                    continue
                status = entry.stat(follow_symlinks=False)
                kind = "link" if entry.is_symlink() else "folder" if entry.is_dir() else "file"
                text = (
                    os.readlink(entry.path) if kind == "link" else
                    Path(entry.path, "in" if kind == "folder" else "").read_text()
                )  # fmt: skip
                found[f"{folder}/{entry.name}"] = Node(kind, text, status.st_mode & 0o777, status.st_ino)
        return found

    def left(self) -> list[str]:
        """What is left of atomik's."""
        return left_in(self.root)

    def recover(self, **how: Any) -> None:
        """As after a crash."""
        atomik.recover(*(self.root / name for name in FOLDERS), lock_timeout=5, **how)


@define(frozen=True)
class Sequence:
    """What is there before, and the operations."""

    plan: dict[str, tuple[str, int]]
    ops: tuple[Operation, ...]
    durable: bool = False

    @classmethod
    def random(cls, rng: random.Random) -> Sequence:
        """One from a generator."""
        plan = {}
        for name in NAMES:
            if rng.random() < 0.65:
                plan[name] = rng.choice((*KINDS, "file")), rng.choice((0o640, 0o700, 0o750))
        names = rng.sample(NAMES, rng.choice((2, 3, 3, 4, 5)))
        ops = []
        for number in range(rng.choice((1, 2, 2, 3, 3, 4, 5, 7))):
            op = rng.choice((*KINDS, "file", "remove", "remove", "move", "move", "move", "exchange", "exchange"))
            backup = rng.choice(("", "", "", "1", "2", "kept")) if op in ("file", "folder", "move") else ""
            path = rng.choice(names)
            if backup == path[2:]:
                backup = ""
            text = f"new {number}" + rng.choice(("", " open"))
            order = rng.choice((0, 0, 0, 0, -1, 1))
            ops.append(Operation(op, path, rng.choice(names), text, rng.random() < 0.75, backup, order))
        return cls(plan, tuple(ops), rng.random() < 0.2)

    def simulated(self, before: Names) -> tuple[tuple[Operation, ...], Names]:
        """The operations that the dictionary allows, and the names afterwards."""
        allowed, now = [], before
        for op in self.ops:
            with contextlib.suppress(Refused):
                now = op.play(now)
                allowed.append(op)
        return tuple(allowed), now


def agrees(found: Names, wanted: Names) -> bool:
    """Whether what was found is what the dictionary says; a new object may have any inode."""
    return found.keys() == wanted.keys() and all(
        (node.kind, node.text, node.mode) == (wanted[name].kind, wanted[name].text, wanted[name].mode)
        and wanted[name].ino in (None, node.ino)
        for name, node in found.items()
    )


class Checker:
    """Does sequences in every way; each difference is an AssertionError that shows the sequence."""

    def __init__(self, top: Path) -> None:
        self.world = World(top)
        self.runs = 0

    def check(self, sequence: Sequence, rng: random.Random, *, points: int) -> None:
        """One sequence, with this many failures and deaths."""
        try:
            self._check(sequence, rng, points)
        except BaseException as exc:
            exc.add_note(f"the sequence: {sequence.plan} {sequence.durable}\n" + "\n".join(map(repr, sequence.ops)))
            raise

    def _check(self, sequence: Sequence, rng: random.Random, points: int) -> None:
        self.sequence = sequence
        self._begin()
        self.commit()
        self._begin()
        self.abort()
        for end in ("commit", "abort", "drop"):
            self._begin()
            self.prepare(end)
        for _ in range(points):
            self._begin()
            self.fail(rng)
            self._begin()
            self.kill(rng)
            self._begin()
            self.kill_prepared(rng)

    def every_death(self, sequence: Sequence) -> None:
        """Killed at each call of the sequence in turn."""
        self.sequence, rng = sequence, random.Random(0)
        for number in range(1, 1000):
            self._begin()

            def job() -> None:
                with self._transaction() as tx:
                    self._stage(tx)

            point = die(job, number, "before")
            self._settle(rng)
            self._is((self.after,) if point.returned else (self.before, self.after), f"killed {point}")
            if point.returned:
                return

    def _begin(self) -> None:
        self.before = self.world.build(self.sequence.plan)
        self.ops, self.after = self.sequence.simulated(self.before)
        self.runs += 1

    def _transaction(self, **how: Any) -> atomik.Transaction:
        return atomik.transaction(durable=self.sequence.durable, lock_timeout=5, **how)

    def _stage(self, tx: atomik.Transaction) -> None:
        for op in self.ops:
            op.stage(tx, self.world.root)

    def is_old(self, what: str) -> None:
        self._is((self.before,), what)

    def is_new(self, what: str) -> None:
        self._is((self.after,), what)

    def _is(self, allowed: tuple[Names, ...], what: str, *, left: bool = False) -> None:
        found = self.world.look()
        said = "\nor ".join(map(str, allowed))
        assert any(agrees(found, names) for names in allowed), f"{what}:\nfound {found}\nnot {said}"
        assert left or not self.world.left(), f"{what}: left over: {self.world.left()}"

    # --- the ways --------------------------------------------------------------------------------------------------
    def commit(self) -> None:
        """What the dictionary refuses is refused when it is asked for; the plan says what the receipt will."""
        now = self.before
        with self._transaction() as tx:
            for op in self.sequence.ops:
                try:
                    then = op.play(now)
                except Refused:
                    then = None
                refusal = None
                try:
                    op.stage(tx, self.world.root)
                except errors.AtomikError as exc:
                    refusal = exc
                assert (refusal is None) == (then is not None), f"{op}: {refusal or 'taken'}"
                now = now if then is None else then
            planned = tx.plan()
        self.is_new("committed")
        self._compare(planned, tx)

    def _compare(self, planned: tuple[atomik.PlannedChange, ...], tx: atomik.Transaction) -> None:
        plan = {change.path.removeprefix(f"{self.world.root}/"): change for change in planned}
        assert len(plan) == len(planned), f"a name twice: {planned}"
        for path, change in plan.items():
            assert change.op in self._ops(path), f"the plan says {change}, not {self._ops(path)}"
        changed = {name for name in (*self.before, *self.after) if self._ops(name) != {"unchanged"}}
        assert changed <= plan.keys(), f"the plan does not name {changed - plan.keys()}: {planned}"
        assert tx.receipt is not None
        for each, op in zip(tx.receipt.items, sorted(self.ops, key=lambda op: op.order), strict=True):
            change = plan[op.path]
            assert (each.op, each.method) == (change.op, change.method), f"receipt {each}, plan {change}"
            assert each.op in self._ops(op.path), f"the receipt says {each}, not {self._ops(op.path)}"
            assert each.replaced == (op.path in self.before and each.op != "unchanged"), each

    def _ops(self, name: str) -> set[str]:
        old, new = self.before.get(name), self.after.get(name)
        if old == new:
            return {"unchanged"}
        if new is None:
            return {"remove"}
        if new.ino is not None:
            return {"move", "exchange"}
        return {"create" if old is None else "replace"}

    def abort(self) -> None:
        tx = self._transaction()
        self._stage(tx)
        tx.abort()
        self.is_old("aborted")

    def prepare(self, end: str) -> None:
        """Prepared, it is published; an abort, or to let go of it, brings everything back."""
        tx = self._transaction()
        self._stage(tx)
        tx.prepare()
        self._is((self.after,), "prepared", left=True)
        if end == "commit":
            tx.commit()
            self.is_new("prepared and committed")
        elif end == "abort":
            tx.abort()
            self.is_old("prepared and aborted")
        else:
            with contextlib.suppress(KeyboardInterrupt), tx:
                raise KeyboardInterrupt
            self.is_old("prepared and left by an exception")

    def fail(self, rng: random.Random) -> None:
        """A call fails, once or from then on, with an errno or an interrupt."""
        number = _deep(rng)
        fault: Any = rng.choice((errno.EIO, errno.ENOSPC, errno.EINTR, KeyboardInterrupt()))
        how: dict[str, bool] = {}
        if isinstance(fault, KeyboardInterrupt):
            how = {"after": rng.random() < 0.5}
        what = f"{fault!r} at call {number} {how}"
        committed = False
        with installed(Faulty.at(number, fault, **how)) as kernel:
            try:
                with self._transaction() as tx:
                    self._stage(tx)
                committed = True
            except errors.RollbackError:
                kernel.plan = lambda call: None
                self.world.recover()
                self._is((self.before, self.after), what)
                return
            except errors.DurabilityError:
                self.world.recover()
                self._is((self.after,), what)
                return
            except (errors.AtomikError, KeyboardInterrupt):
                committed = tx.state is atomik.State.COMMITTED
        if kernel.struck and (self.world.left() or kernel.struck[0].name == "close"):
            self.world.recover()
        (self.is_new if committed else self.is_old)(f"{what} ({kernel.struck})")

    def kill(self, rng: random.Random) -> None:
        """The process dies at a call; the next one there finds all old or all new."""

        def job() -> None:
            with self._transaction() as tx:
                self._stage(tx)

        point = die(job, _deep(rng), rng.choice(("before", "after")))
        self._settle(rng)
        self._is((self.after,) if point.returned else (self.before, self.after), f"killed {point}")

    def _settle(self, rng: random.Random) -> None:
        if rng.random() < 0.3:
            with atomik.reading(*(self.world.root / name for name in FOLDERS), lock_timeout=5):
                found = self.world.look()
                self._is((self.before, self.after), "killed, and read", left=True)
            self.world.recover()
            assert found == self.world.look(), "recovery changed what a reader had seen"
        else:
            for name in rng.sample(FOLDERS, 2):
                atomik.recover(self.world.root / name, lock_timeout=5)

    def kill_prepared(self, rng: random.Random) -> None:
        """Dead at any call of an abort or commit of what was prepared, or between; a coordinator decides, or nobody."""
        coordinator = rng.choice(("", "db"))
        end = rng.choice(("commit", "abort", ""))
        said = self.world.root / "prepared"

        def job() -> None:
            tx = self._transaction(coordinator=coordinator)
            self._stage(tx)
            tx.prepare()
            said.touch()
            if end:
                getattr(tx, end)()
            else:
                os._exit(0)

        point = die(job, _deep(rng), rng.choice(("before", "after")))
        answer = rng.random() < 0.5 and end != "abort" and said.exists()
        what = f"{coordinator!r} {end} {point}, decided {answer}"
        allowed: tuple[Names, ...] = (self.before, self.after)
        if not point.returned and not said.exists():
            allowed = (self.before,)
        if coordinator and not end and said.exists():
            allowed = (self.after,) if answer else (self.before,)
        self.world.recover(decide=lambda txid, who: answer)
        self._is(allowed, what)


def _deep(rng: random.Random) -> int:
    return rng.choice((rng.randint(1, 30), rng.randint(10, 60), rng.randint(20, 110)))


@contextlib.contextmanager
def ground() -> Iterator[Path]:
    """A place in memory, if there is one."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="atomik-model-", dir=memory) as top:
        yield Path(top)


def main() -> int:
    """Continue until the time is over, or something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.model", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--points", type=int, default=6, help="failures, deaths and deaths of what was prepared, each")
    parser.add_argument("--only", action="store_true", help="this seed alone")
    options = parser.parse_args()
    os.umask(0o022)
    end, seed = time.monotonic() + 60 * options.minutes, options.seed
    with ground() as top:
        checker = Checker(top)
        while time.monotonic() < end:
            rng = random.Random(seed)
            try:
                checker.check(Sequence.random(rng), rng, points=options.points)
            except BaseException:
                print(f"FOUND: --seed {seed}", file=sys.stderr)
                raise
            seed += 1
            if options.only:
                break
    print(f"{seed - options.seed} sequences, {checker.runs} runs, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
