"""The library with one barrier, or one rule of order, taken out: what the suite must be able to catch.

A mutant is a kernel that leaves some syncs out (`Slack`), puts them off (`PutOff`), or deletes too early (`Hasty`), so
nothing in the library has to be known but its calls.  Each names the history that shows it, and for each filesystem on
which a crash state gives it away, the noise that this takes.  Where no filesystem does, the strictest disk (`strict`)
must, which every mutant is held against anyway.

When a mutant survives, either the suite has gone blind or the barrier is not needed: find out which.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from typing import Any

from attrs import define, field

from tests.powercut.histories import PREFIX
from tests.powercut.noise import is_swap
from tests.support.kernels import Call, Watching, installed

_MAGIC = b"AtmK"
_WATCHED = frozenset("fsync fdatasync syncfs start_writeback write_back pwrite rename link link_fd mkdir".split())
_Around = Callable[[], contextlib.AbstractContextManager[Any]]


class Progress(Watching):
    """Knows how far a transaction is, and what each sync is about; subclasses meddle in `act`."""

    def __init__(self) -> None:
        super().__init__(_WATCHED)
        self.pid = os.getpid()
        self.swapped = False
        self.ended = False
        self.journal: tuple[int, int] | None = None
        self.made_in: set[tuple[int, int]] = set()
        #: the slots of the swaps so far, and of those that were taken back
        self.slots: list[str] = []
        self.undone: list[str] = []

    def around(self, call: Call, go: Callable[[], Any]) -> Any:
        if self.is_outcome(call) or self.is_intent(call):
            self.journal = self.journal if self.is_mark(call) else _key(call.args[0])
            self.ended = self.is_outcome(call)
            self.swapped = self.swapped and self.ended  # an intent begins a new transaction
        result = self.act(call, go)
        if call.name == "mkdir" and f"/{PREFIX}" not in call.paths[0]:
            found = os.stat(os.path.dirname(call.paths[0]))
            self.made_in.add((found.st_dev, found.st_ino))
        if is_swap(call):
            self.swapped = True
            slot = next((path for path in call.paths if f"/{PREFIX}" in path), "")
            (self.undone if slot in self.slots else self.slots).append(slot)
        return result

    def act(self, call: Call, go: Callable[[], Any]) -> Any:
        raise NotImplementedError

    # --- what a call is about ------------------------------------------------------------------------------------
    def is_intent(self, call: Call) -> bool:
        return call.name == "pwrite" and call.args[1][:4] == _MAGIC and call.args[2] == 0

    def is_outcome(self, call: Call) -> bool:
        written = call.name == "pwrite" and call.args[1][:4] == _MAGIC and call.args[2] > 0
        return written or self.is_mark(call)

    def is_mark(self, call: Call) -> bool:
        """The mark that is a name."""
        return call.name == "link" and call.paths[-1].endswith("-committed")

    def is_journal(self, call: Call) -> bool:
        return call.name in ("fsync", "fdatasync", "write_back") and _key(call.args[0]) == self.journal

    def is_content(self, call: Call) -> bool:
        """The head start of a file's writeback counts as its sync: with it, the data are on the disk by chance."""
        if call.name not in ("fsync", "start_writeback", "write_back") or self.is_journal(call):
            return False
        return stat.S_ISREG(os.fstat(call.args[0]).st_mode)

    def is_folder(self, call: Call) -> bool:
        return call.name == "fsync" and stat.S_ISDIR(os.fstat(call.args[0]).st_mode)

    def is_made_in(self, call: Call) -> bool:
        """The sync of a folder in which parents=True has made another."""
        return call.name == "fsync" and _key(call.args[0]) in self.made_in

    def is_parent(self, call: Call) -> bool:
        return self.is_folder(call) and _depth(call) == 0

    def is_claim(self, call: Call) -> bool:
        return self.is_folder(call) and _depth(call) == 1

    def is_inner(self, call: Call) -> bool:
        return self.is_folder(call) and _depth(call) > 1

    def is_sync(self, call: Call) -> bool:
        return call.name in ("fsync", "fdatasync", "syncfs")

    def between(self) -> bool:
        """Behind the first swap, before the outcome: the place of B2."""
        return self.swapped and not self.ended

    def recovering(self) -> bool:
        """In the process that recovers, and not in the child that was killed."""
        return os.getpid() == self.pid


class Slack(Progress):
    """Leaves out every call for which ``skip(self, call)`` holds."""

    def __init__(self, skip: Callable[[Slack, Call], bool]) -> None:
        super().__init__()
        self.skip = skip

    def act(self, call: Call, go: Callable[[], Any]) -> Any:
        if self.skip(self, call):
            return len(call.args[1]) if call.name == "pwrite" else None
        return go()


class PutOff(Progress):
    """B2 comes after B3: the folders are synced once the mark is durable."""

    def __init__(self) -> None:
        super().__init__()
        self.later: list[int] = []

    def act(self, call: Call, go: Callable[[], Any]) -> Any:
        if self.between() and self.is_folder(call):
            self.later.append(os.dup(call.args[0]))
            return None
        result = go()
        if self.ended and self.is_journal(call):
            for fd in self.later:
                self.under.fsync(fd)
                os.close(fd)
            self.later.clear()
        return result


class MarkFirst(Progress):
    """The mark that is a name is made before the first swap."""

    def act(self, call: Call, go: Callable[[], Any]) -> Any:
        if self.is_mark(call):
            return None
        if is_swap(call) and not self.swapped:
            home = next(os.path.dirname(path) for path in call.paths if f"/{PREFIX}" in path)
            above = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                name = os.path.basename(home)
                self.under.link(f"{name}-journal", above, f"{name}-committed", above)
            finally:
                os.close(above)
        return go()


class Hasty(Progress):
    """Deletes what is in the slots before the first call for which ``when(self, call)`` holds."""

    def __init__(self, when: Callable[[Hasty, Call], bool]) -> None:
        super().__init__()
        self.when = when
        self.done = False

    def act(self, call: Call, go: Callable[[], Any]) -> Any:
        if not self.done and self.when(self, call):
            self.done = True
            for slot in self.undone or self.slots:
                self._delete(slot)
        return go()

    def _delete(self, slot: str) -> None:
        above = os.open(os.path.dirname(slot), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.under_test(slot, above)
        finally:
            os.close(above)

    def under_test(self, slot: str, above: int) -> None:
        """Through the port for the topmost name, so that the strictest disk sees it."""
        name = os.path.basename(slot)
        if os.path.isdir(slot) and not os.path.islink(slot):
            for entry in os.listdir(slot):
                inner = os.path.join(slot, entry)
                shutil.rmtree(inner) if os.path.isdir(inner) and not os.path.islink(inner) else os.unlink(inner)
            self.under.rmdir(name, above)
        elif os.path.lexists(slot):
            self.under.unlink(name, above)


@define(frozen=True)
class Mutant:
    """``rule``: what is broken, by the number of the invariant.  ``history``: shows it.  ``shows``: the filesystems on
    which a crash state does, with the noise that it takes.  ``one_log``: only filesystems that have one log show it."""

    name: str
    rule: str
    history: str
    around: _Around = field(repr=False)
    shows: dict[str, str] = field(factory=dict)
    one_log: bool = False


def _without(skip: Callable[[Slack, Call], bool]) -> _Around:
    return lambda: installed(Slack(skip))


def _hasty(when: Callable[[Hasty, Call], bool]) -> _Around:
    return lambda: installed(Hasty(when))


def _all(noise: str) -> dict[str, str]:
    return dict.fromkeys(("ext4", "xfs", "btrfs"), noise)


def _logs(noise: str) -> dict[str, str]:
    return dict.fromkeys(("ext4", "xfs"), noise)


_STAGING = (
    Mutant("content", "I1: staged files", "four/fsync", _without(lambda s, c: not s.swapped and s.is_content(c)), _all("quiet")),
    Mutant("inner-folders", "I1: folders in a staged folder", "folder-hollow/fsync", _without(lambda s, c: s.is_inner(c))),
    Mutant("private folders", "I1: names of the slots", "every/fsync", _without(lambda s, c: not s.swapped and s.is_claim(c))),
    Mutant("parents", "I1: names of journal and private folders", "every/fsync", _without(lambda s, c: not s.swapped and s.is_parent(c))),
    Mutant("made", "I1: folders made by parents=True", "made/fsync", _without(lambda s, c: s.is_made_in(c))),
    Mutant("journal", "I1: the intent", "four/fsync", _without(lambda s, c: not s.swapped and s.is_journal(c)), _all("file")),
    Mutant("staged-syncfs", "I1: all of B1 by syncfs", "four/syncfs", _without(lambda s, c: not s.swapped and c.name == "syncfs"), _all("file")),
    Mutant("B1", "I1: all of B1", "every/fsync", _without(lambda s, c: not s.swapped and s.is_sync(c)), _all("file")),
)  # fmt: skip

_SWAPPING = (
    Mutant("B2", "I2: folders of swapped names", "every/fsync", _without(lambda s, c: s.between() and s.is_folder(c)), {"btrfs": "sync"}),
    Mutant("B2-parents", "I2: folders of destinations", "every/fsync", _without(lambda s, c: s.between() and s.is_parent(c))),
    Mutant("B2-private folders", "I2: folders of slots", "every/fsync", _without(lambda s, c: s.between() and s.is_claim(c))),
    Mutant("B2-syncfs", "I2: B2 by syncfs", "every/syncfs", _without(lambda s, c: s.between() and c.name == "syncfs"), {"btrfs": "sync"}),
    Mutant("B2-after-B3", "I2: swaps durable before the mark", "every/fsync", lambda: installed(PutOff())),
    Mutant("B3", "I3: the commit mark", "four/fsync", _without(lambda s, c: s.ended and s.is_journal(c)), _all("quiet")),
    Mutant("displaced-early", "I3: displaced content outlives the mark", "four/fsync", _hasty(lambda s, c: s.is_outcome(c)), {"ext4": "file", "xfs": "file", "btrfs": "sync+private folders"}),
)  # fmt: skip

_BACK = (
    Mutant("staged-early", "I3: staged content outlives the rollback", "rollback:3", _hasty(lambda s, c: bool(s.undone) and s.is_sync(c))),
    Mutant("rollback-names", "I2: the rollback is durable before it is recorded", "rollback:3", _without(lambda s, c: s.between() and s.is_sync(c))),
    Mutant("undone", "I3: the record of a rollback", "rollback:3", _without(lambda s, c: s.swapped and (c.name == "pwrite" or s.is_journal(c)))),
    Mutant("undone-sync", "I3: the sync of that record", "rollback:3", _without(lambda s, c: s.ended and s.is_journal(c))),
    Mutant("recovery-names", "I2: recovery's undo is durable before it is recorded", "killed:rename:3", _without(lambda s, c: s.recovering() and not s.ended and s.is_sync(c)), {"btrfs": "sync"}),
    Mutant("recovery-record", "I3: recovery's record", "killed:rename:3", _without(lambda s, c: s.recovering() and s.ended and s.is_journal(c))),
    Mutant("recovery-last", "I3: what a dead one-item write swapped outlives its slot", "folder-over/killed", _without(lambda s, c: s.recovering() and s.is_sync(c)), _all("quiet")),
    Mutant("recovery-last-file", "I3: the same for a file", "file-over/killed", _without(lambda s, c: s.recovering() and s.is_sync(c)), _all("quiet")),
)  # fmt: skip

_ALONE = (
    Mutant("one-content", "I1: one file", "file-over/fsync", _without(lambda s, c: s.is_content(c)), _all("quiet")),
    Mutant("one-tree", "I1: one folder", "folder-over/fsync", _without(lambda s, c: s.is_inner(c) or s.is_content(c)), _all("quiet")),
    Mutant("one-syncfs", "I1: one folder by syncfs", "folder-over/syncfs", _without(lambda s, c: c.name == "syncfs"), _all("quiet")),
    Mutant("one-names", "P5: the folder of one file", "file-over/fsync", _without(lambda s, c: s.is_folder(c)), _all("quiet")),
    Mutant("one-new-names", "P5: the folder of one new file", "file-new/fsync", _without(lambda s, c: s.is_folder(c)), _all("quiet")),
    Mutant("one-private folder", "P5: the slot's folder of one folder", "folder-over/fsync", _without(lambda s, c: s.swapped and s.is_claim(c))),
    Mutant("one-removed", "P5: the folder of one removal", "remove-file/fsync", _without(lambda s, c: s.is_folder(c)), _all("quiet")),
    Mutant("one-made", "P5: folders made for one file", "file-parents/fsync", _without(lambda s, c: s.is_made_in(c))),
    Mutant("one-displaced-early", "I3: one displaced folder outlives the sync of its swap", "folder-over/fsync", _hasty(lambda s, c: s.swapped and s.is_sync(c))),
)  # fmt: skip

_ONE_LOG = (
    Mutant("log-content", "I1: content that is written back before the swaps", "pair/True", _without(lambda s, c: not s.swapped and s.is_content(c)), _logs("quiet"), one_log=True),
    Mutant("log-journal", "I1: the journal that is written back before the swaps", "pair/True", _without(lambda s, c: not s.swapped and s.is_journal(c)), _logs("file"), one_log=True),
    Mutant("log-mark-first", "I2: swaps before the mark", "pair/True", lambda: installed(MarkFirst()), _logs("file"), one_log=True),
    Mutant("log-B3", "I3: the sync that stands for all barriers", "pair/True", _without(lambda s, c: s.ended and s.is_sync(c)), _logs("quiet"), one_log=True),
    Mutant("log-B2", "I2: the sync that stands for all of B1 and B2", "files/True", _without(lambda s, c: s.between() and s.is_folder(c)), _logs("sync"), one_log=True),
    Mutant("log-record", "I3: the mark in its place", "files/True", _without(lambda s, c: s.ended and s.is_journal(c)), _logs("quiet"), one_log=True),
    Mutant("log-one-content", "I1: one file that is written back", "file-over/True", _without(lambda s, c: s.is_content(c)), _logs("quiet"), one_log=True),
    Mutant("log-one-new-content", "I1: one new file that is written back", "file-new/True", _without(lambda s, c: s.is_content(c)), _logs("quiet"), one_log=True),
    Mutant("log-one-names", "P5: the one sync of one file", "file-over/True", _without(lambda s, c: s.is_folder(c)), _logs("quiet"), one_log=True),
)  # fmt: skip

MUTANTS: dict[str, Mutant] = {mutant.name: mutant for mutant in (*_STAGING, *_SWAPPING, *_BACK, *_ALONE, *_ONE_LOG)}


def _depth(call: Call) -> int:
    """0 outside of a private folder, 1 for a private folder itself, more inside of one."""
    _, mark, rest = call.paths[0].partition(f"/{PREFIX}")
    return 0 if not mark else 1 + rest.count("/")


def _key(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
