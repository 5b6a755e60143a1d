"""Everything of a journalled commit that can fail before anything is visible: lock, verify, journal, B1.

What is likely to go wrong goes wrong here, with every destination untouched; the swaps behind it (`_group`) only rename.
"""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import stat
import time

from attrs import define, field

from atomik import _events, errors
from atomik._folder.directory import JOURNAL_NAME, Directory, Place, rename
from atomik._protocol import journal as _journal
from atomik._protocol import records as _records
from atomik._protocol.journal import LiveJournal
from atomik._protocol.records import Folder
from atomik._protocol.step import Step
from atomik._staging.file import StagedFile
from atomik._staging.item import Item
from atomik._system import kernel

from .commit import Commit

#: With more items than this, the names in their folders are read at once …
MANY = 8
#: … unless there are more of them than items, or than this: then each item asks for its own.
LONG = 4096


@define(eq=False)
class Prepared(Commit):
    """The first half of `Group`."""

    journalled: bool = True
    _parents: list[Directory] = field(factory=list, init=False)
    _journal: LiveJournal | None = field(default=None, init=False)
    #: folders that go from their slot in a private folder to one beside the destination
    _to_move: list[tuple[Place, Place]] = field(factory=list, init=False)

    def _lock(self) -> None:
        parents = {place.directory for item in self.items for place in item.places()}
        self._parents = sorted(parents, key=_key)
        deadline = time.monotonic() + self.lock_timeout
        while True:
            try:
                for parent in self._parents:
                    parent.lock(self.lock_timeout, deadline)
                hot = next((parent for parent in self._parents if parent.exists(JOURNAL_NAME)), None)
                if hot is None:
                    for parent in self._parents:
                        self.check_parent(parent)
                    return
            except BaseException:
                self._unlock()
                raise
            # Its owner would hold the lock, so it is dead (or locks another way): recovery finds out, by its own locks.
            self._unlock()
            self.wait_or_recover(hot)

    def _unlock(self) -> None:
        for parent in self._parents:
            if parent.fd >= 0:
                # A failure here must not look like a failed commit; the lock goes with the descriptor anyway.
                with contextlib.suppress(OSError):
                    parent.unlock()

    def _prepare(self) -> None:
        for item in self.items:
            if item.slot is None and isinstance(item, StagedFile):
                item.name_it()
        self._verify()
        folders: dict[Place, list[Step]] = {}
        for step in self.steps:
            if step.kind == "folder":
                folders.setdefault(step.slot, []).append(step)
        for item in self.items if folders else ():
            self._keep_in_parent(folders.get(item.slot, []) if item.slot else [], item)
        if self.steps and (self.journalled or self._chained()):
            self._journal = LiveJournal(-1, self.txid, 0)
            self._write_journal(self._journal)
        for slot, beside in self._to_move:  # now that a journal tells of it, for nothing else would
            rename(slot, beside, 0)
        fd = None if self._journal is None else self._journal.fd
        # The private folders' own names must last as well: what is displaced will lie in them.
        homes = [
            private_folder.parent
            for private_folder in self.workspace.private_folders.values()
            if private_folder.parent not in self._parents
        ]
        self.syncing(0, 3)
        self.barriers.staged(self.items, self._folders() + homes, self.workspace.made_parents, fd)
        if _events.heard(_events.DEBUG):
            self.event(_events.DEBUG, "transaction.prepared", steps=len(self.steps), barriers=self.barriers.passed)

    def _verify(self) -> None:
        """Look at the destinations under the locks, and find out what is to be swapped."""
        if len(self.items) > MANY:
            self.workspace.list_names(self._parents, min(len(self.items), LONG))
        for item in self.items:
            self.steps += item.steps()

    def _chained(self) -> bool:
        """Whether two steps share a slot.  Without a journal nobody but this process would know what a move has in hand
        between its two steps."""
        return len({step.slot for step in self.steps}) < len(self.steps)

    def _keep_in_parent(self, steps: list[Step], item: Item) -> None:
        """Give a folder that may be renamed only within its parent a slot there.

        Others could look into that slot, so what is staged is closed to them until right before its swap.
        """
        parents = {step.dest.directory.key: step.dest.directory for step in steps}
        if len(parents) != 1 or not any(_bound(step) for step in steps):
            return
        beside = self.workspace.sibling(*parents.values())
        first, slot = steps[0], steps[0].slot
        if first.new is not None:
            first.mode = _close_to_others(slot)
            self._to_move.append((slot, beside))
        item.slot = beside
        for step in steps:
            step.slot = beside

    def _write_journal(self, journal: LiveJournal) -> None:
        try:
            private_folders = list(self.workspace.private_folders.values())
            _journal.create(journal, self._intent, private_folders, self._parents)
        except _journal.HotJournal as hot:
            text = "another transaction's journal appeared in the folder although it was locked; run recover() there"
            raise errors.ConflictError(*errors.os_args(errno.EBUSY, text, hot.directory.path)) from None

    def _folders(self) -> list[Directory]:
        """Every folder that a swap takes a name from or gives one to, and those that hold the journal's names."""
        private_folders = [private_folder.folder for private_folder in self.workspace.private_folders.values()]
        return self._parents + private_folders

    def _intent(self, journal: bytes) -> bytearray:
        """The intent in bytes, with the identity of the journal's file.  One step at a time: there may be very many."""
        folders = self._folders()
        paths = [folder.real_path() for folder in folders]
        root = os.path.commonpath(paths)
        number = {folder: at for at, folder in enumerate(folders)}
        entries = [
            Folder(_below(path, root), folder.identity("") or b"", at < len(self._parents))
            for at, (path, folder) in enumerate(zip(paths, folders, strict=True))
        ]
        steps = (
            (
                s.op, s.kind, s.allow_gap, number[s.dest.directory], s.dest.name,
                number[s.slot.directory], s.slot.name, s.new, s.old, s.order,
            )
            for s in self.steps
        )  # fmt: skip
        return _records.encode(self.txid, journal, entries, steps, len(self.steps))


#: the order in which locks are taken (I8)
_key = operator.attrgetter("key")


def _below(path: str, root: str) -> tuple[str, ...]:
    rest = os.path.relpath(path, root)
    return () if rest == "." else tuple(rest.split("/"))


def _bound(step: Step) -> bool:
    """Whether it renames a folder that this user may not write to."""
    return any(
        place.stat() is not None and not kernel.port.may_write(place.name, place.fd) for place in (step.dest, step.slot)
    )


def _close_to_others(place: Place) -> int:
    """Take a staged folder's permissions from others, and let its owner rename it; the mode that it had."""
    port = kernel.port
    fd = port.open(place.name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, place.fd)
    try:
        mode = stat.S_IMODE(port.fstat(fd).st_mode)
        port.chmod(f"/proc/self/fd/{fd}", stat.S_IRWXU)
        return mode
    finally:
        port.close(fd)
