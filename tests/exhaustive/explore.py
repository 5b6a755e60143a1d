"""Explore one transaction to the end: every crash, the recovery of each, every crash of that, until no disk is new.

The disks are the nodes of a graph.  What recovery makes of a disk depends on the disk alone: it is the only input (the
process is new, its ids are not used, and nobody else is there).  So each disk is recovered once, however many crashes lead
to it, and with its recovery every crash of that recovery is known, for those are disks again.  That makes it finite, and
complete to any number of crashes one after the other.

What must hold:

* before the commit returned, every disk is recovered to all old or all new; when it returned, to all new; when it was rolled
  back and has said so, to all old;
* a recovery that is cut, and begun again, comes to the same as the one that was not cut;
* it ends without an error, is content, and leaves no name of atomik's.

A process that is killed while the machine goes on leaves what it did in memory: what is visible is not durable yet.  There
recovery may come to either side, but once it has returned, its side must last.  The power is cut in that recovery too, at
every call, if the process had published something; before, there is nothing that a recovery could bring back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from attrs import define, field

import atomik
from atomik import _hidden_names
from atomik._commit import commit as _commit
from atomik._folder import filesystem as _filesystem
from atomik._system import kernel as _kernel
from tests.powercut.histories import Tree, difference

from .crashes import Cut, Key, bare, key_of
from .memory import ROOT, Disk, Entry, Made, MemoryKernel, Names, Record
from .transactions import OLD, Case, planted

FOLDERS = ("/a", "/b")
_FOLDER_A, _FOLDER_B = (next(ino for entry, ino in planted().names.items() if entry == (ROOT, name)) for name in "ab")


def _is_destination(change: tuple[Entry, int | None]) -> bool:
    (above, name), _ = change
    return above in (_FOLDER_A, _FOLDER_B) and not name.startswith(_hidden_names.PREFIX)


class Violation(AssertionError):
    """A promise is broken; the text says where."""


class _Sabotage(Exception):
    """What a rolled-back transaction fails with."""


@define
class Counts:
    """``crashes``: sets of changes that reached a disk, at every call; ``disks``: those that were different, each of which
    was recovered; ``kills``: processes killed at a call, and recovered with what was in memory."""

    crashes: int = 0
    disks: int = 0
    kills: int = 0
    refused: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            *(getattr(self, name) + getattr(other, name) for name in ("crashes", "disks", "kills", "refused"))
        )


@define(frozen=True)
class _Recovery:
    """What recovery did on a disk: its log, what inodes are, the tree it left, and whether there was anything to report."""

    log: list[Record]
    made: dict[int, Made]
    tree: Tree
    report: Any


@define
class Known:
    """What was found out about disks; explorers may share it, for recovery depends on nothing but the disk.

    Most crashes lead to a disk that was met before, so that is found out first, and quickly: equal names and bytes are
    enough, with the same `made`, before anything is compared inode by inode.
    """

    recoveries: dict[Key, _Recovery] = field(factory=dict)
    outcomes: set[Key] = field(factory=set)
    _keys: dict[tuple[Any, Any, int], Key] = field(factory=dict)
    _made: dict[Any, dict[int, Made]] = field(factory=dict)

    def one_made(self, made: dict[int, Made]) -> dict[int, Made]:
        """The same object for equal ones; nothing may change it."""
        return self._made.setdefault(frozenset(made.items()), made)

    def key(self, disk: Disk) -> Key:
        """`key_of`; ``disk.made`` comes from `one_made`."""
        quick = frozenset(disk.names.items()), frozenset(disk.data.items()), id(disk.made)
        key = self._keys.get(quick)
        if key is None:
            key = self._keys[quick] = key_of(disk)
        return key


@define
class _Run:
    """One run of a transaction: its log, the disk in the end, what inodes are, and whether it was committed."""

    log: list[Record]
    disk: Disk
    made: dict[int, Made]
    committed: bool


@contextlib.contextmanager
def on(kernel: MemoryKernel) -> Iterator[MemoryKernel]:
    """Have atomik work on a disk in memory.  Its ids are the same every time, and it does not wait for readers."""
    before, grace = _kernel.install(kernel), _commit._grace
    _filesystem.forget()
    _commit._grace = lambda: 0.0
    _hidden_names._random[:] = [bytes([number]) * 8 for number in (3, 2, 1)]
    try:
        yield kernel
    finally:
        _kernel.install(before)
        _commit._grace = grace
        _hidden_names._random.clear()
        _filesystem.forget()


@define
class Explorer:
    """One case.  ``mutant`` gets each kernel before it is used, and may spoil it."""

    case: Case
    mutant: Callable[[MemoryKernel, bool], object] = lambda kernel, recovering: None
    counts: Counts = field(factory=Counts)
    known: Known = field(factory=Known)

    def explore(self) -> Counts:
        """All of it; raises `Violation`."""
        run = self._run(None)
        if run is None:
            self.counts.refused += 1
            return self.counts
        new = run.disk.tree()
        if new != self.case.wanted():
            self._break("it committed", difference(new, self.case.wanted()))
        self._crash(run, [OLD, new], [new])
        for at in range(1, len(self.case.names) + 1):
            back = self._run(at)
            if back is not None and not back.committed:
                if back.disk.tree() != OLD:
                    self._break("it rolled back", difference(back.disk.tree(), OLD))
                self._crash(back, [OLD, new], [OLD])
        return self.counts

    def _break(self, when: str, what: str) -> None:
        raise Violation(f"{self.case}: {when}: {what}")

    # --- running -------------------------------------------------------------------------------------------------
    def _run(self, sabotaged: int | None) -> _Run | None:
        """Commit it, or fail after this many swaps; None if it was refused."""
        kernel = MemoryKernel(planted())
        self.mutant(kernel, False)
        committed = True

        def progress(phase: str, done: int, total: int) -> None:
            if phase == "swapping" and done == min(sabotaged or 0, total):
                raise _Sabotage

        with on(kernel):
            try:
                with atomik.transaction(overwrite=True, durable=self.case.syncs, progress=sabotaged and progress) as tx:
                    self.case.stage(tx, kernel)
            except (_Sabotage, atomik.errors.AtomikError) as exc:
                committed = False
                if not isinstance(exc, _Sabotage):
                    if kernel.disk.tree() != OLD:
                        self._break("it was refused", difference(kernel.disk.tree(), OLD))
                    return None
        return _Run(kernel.log, kernel.disk, self.known.one_made(kernel.disk.made), committed)

    def _recover(self, disk: Disk) -> _Recovery:
        """Recovery on this disk, which it changes."""
        kernel, made = MemoryKernel(disk), set(disk.made)
        self.mutant(kernel, True)
        with on(kernel):
            try:
                report = atomik.recover(*FOLDERS, lock_timeout=0)
            except (OSError, AssertionError) as exc:
                self._break(f"recovery of {sorted(disk.tree())}", f"{type(exc).__name__}: {exc}")
        assert disk.made.keys() == made, "recovery makes no inodes: so its log is the same for whatever else there is"
        return _Recovery(kernel.log, self.known.one_made(kernel.disk.made), kernel.disk.tree(), report)

    # --- crashes -------------------------------------------------------------------------------------------------
    def _crash(self, run: _Run, meanwhile: list[Tree], afterwards: list[Tree]) -> None:
        """Cut and kill a run at every call; `meanwhile` and `afterwards` are the trees that are allowed then."""
        start = planted()
        start.outputs = run.disk.outputs
        now = start.copy()
        now.made = self.known.one_made(now.made)
        cut = Cut(start)
        published = False
        self._kill(now, cut, meanwhile, published=False)
        for number, record in enumerate(run.log):
            for disk in cut.after(record, run.made):
                self._judge(disk, meanwhile, f"power cut after change {number}")
            now.made = run.made
            now.apply(record)
            published = published or (isinstance(record, Names) and any(map(_is_destination, record.sets)))
            self._kill(now, cut, meanwhile, published=published)
        for disk in cut.everything():
            self._judge(disk, afterwards, "power cut after the end")

    def _kill(self, now: Disk, cut: Cut, allowed: list[Tree], *, published: bool) -> None:
        """The process dies here, the machine goes on: recovered from what is visible; that recovery is cut too."""
        self.counts.kills += 1
        recovery = self._recovered(self.known.key(now), now)
        self._check(recovery, allowed, "killed")
        if not published:
            return
        after = cut.copy()
        made = self.known.one_made(now.made | recovery.made)
        for record in recovery.log:
            for crashed in after.after(record, made):
                self._judge(crashed, allowed, "killed, and power cut while that was recovered")
        if recovery.report.items:  # else the dead process had done nothing that shows, and nothing is promised
            for crashed in after.everything():
                self._judge(crashed, [recovery.tree], "killed, recovered, and then power cut")

    def _judge(self, disk: Disk, allowed: list[Tree], when: str) -> None:
        self.counts.crashes += 1
        outcome = self._outcome(disk)
        if outcome not in allowed:
            nearest = min(allowed, key=lambda tree: len(difference(outcome, tree)))
            self._break(when, f"on {sorted(disk.tree())}: {difference(outcome, nearest)}")

    def _outcome(self, disk: Disk) -> Tree:
        """What recovery makes of a disk, and of every disk that a crash of that recovery leaves, which must be the same."""
        first = self.known.key(disk)
        work = [] if first in self.known.outcomes else [(first, bare(disk))]
        while work:
            key, disk = work.pop()
            if key not in self.known.outcomes:
                self.counts.disks += 1
                self.known.outcomes.add(key)
                start = disk.copy()
                recovery = self._recovered(key, disk)
                self._check(recovery, None, "power cut")
                work += self._cuts(start, recovery)
            tree, wanted = self.known.recoveries[key].tree, self.known.recoveries[first].tree
            if tree != wanted:
                self._break("recovery was cut", f"it came to another end: {difference(tree, wanted)}")
        return self.known.recoveries[first].tree

    def _recovered(self, key: Key, disk: Disk) -> _Recovery:
        """Recovery of a disk, once for equal ones."""
        found = self.known.recoveries.get(key)
        if found is None:
            found = self.known.recoveries[key] = self._recover(bare(disk))
        return found

    def _cuts(self, start: Disk, recovery: _Recovery) -> Iterator[tuple[Key, Disk]]:
        cut = Cut(start)
        for record in recovery.log:
            for crashed in cut.after(record, recovery.made):
                self.counts.crashes += 1
                key = self.known.key(crashed)
                yield key, crashed if key in self.known.outcomes else bare(crashed)

    def _check(self, recovery: _Recovery, allowed: list[Tree] | None, when: str) -> None:
        found, report = recovery.tree, recovery.report
        if left := [path for path in found if ".atomik" in path]:
            self._break(when, f"left over: {left}")
        if not report.clean:
            self._break(when, f"recovery is not content: {report}")
        if allowed is not None and found not in allowed:
            self._break(when, difference(found, allowed[0]))
