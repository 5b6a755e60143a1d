"""Barriers: points past which everything before is durable.  Which sync calls make them, and how many there were.

B1 before the first swap: staged content, slot names and journal (I1).  B2 after the last: every folder of a swapped
name (I2).  B3: the commit mark.  Their number does not depend on the number of items (I10); the calls behind them do
not either once ``syncfs`` serves: one call for the whole filesystem, through a descriptor that was opened before the
first byte was staged, so that an earlier writeback error shows (I9, Linux 5.8).

``durable=True`` decides: fsync for a few files that are still open, syncfs for more than that, and for trees, where the
filesystem is known to honour it; fsync of each file elsewhere.  ``"fsync"`` and ``"syncfs"`` decide otherwise.

A failed sync is never repeated: the kernel reports an error once and then says "fine" without it being so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from atomik._staging.file import StagedFile
from atomik._system import kernel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from atomik._folder.directory import Directory
    from atomik._receipt import SyncedBy
    from atomik._staging.item import Item

#: Up to this many files are synced one by one.  More of them, or a tree, cost less in one syncfs, which on the other
#: hand also waits for what other programs have written.
FEW = 4
#: So many folders are synced one by one, before syncfs is the cheaper way to make names durable.
FEW_FOLDERS = 4


class Barriers:
    """The barriers of one commit.  ``durable`` as given by the user; ``calls`` made so far, ``passed`` barriers."""

    __slots__ = ("_how", "calls", "durable", "passed")

    def __init__(self, durable: bool | str) -> None:
        self.durable = durable
        self.calls = self.passed = 0
        self._how: tuple[str, ...] = ()

    @property
    def how(self) -> SyncedBy:
        """The ways used: "fsync", "syncfs", "fsync+syncfs", or "" when nothing was to be durable."""
        return cast("SyncedBy", "+".join(sorted(set(self._how))))

    def whole(self, directory: Directory) -> bool:
        """Whether syncfs may serve on this filesystem."""
        return self.durable == "syncfs" or (self.durable is True and directory.fs.syncfs)

    def sealed(self, item: StagedFile) -> None:
        """A file gives up its descriptor: sync it now unless syncfs will."""
        if self.durable and not self.whole(item.stage):
            self.fsync(item.fd)
            item.synced = True

    def staged(
        self, items: list[Item], folders: list[Directory], made: list[Directory], journal_fd: int | None
    ) -> None:
        """B1.  `folders` are those that hold slots or the journal's names."""
        if not self.durable:
            return
        self.passed += 1
        unsynced = [item for item in items if item.content and (not item.synced or item.backup)]
        one_by_one = [item for item in unsynced if isinstance(item, StagedFile) and (item.fd >= 0 or item.unchanged)]
        if self.whole(items[0].stage) and (len(one_by_one) < len(unsynced) or len(one_by_one) > FEW):
            self.syncfs(items[0].stage.fd)
            return
        # Made folders first: a journal that outlives a power cut must not name a folder that does not.
        self._folders(made)
        for item in unsynced:
            self.content(item)
        if journal_fd is not None:
            self.fsync(journal_fd)
        self._folders(folders)

    def content(self, item: Item) -> None:
        """fsync one item's content, all of it, and the previous version that stays."""
        self.calls += item.sync_content()
        self._how += ("fsync",) if "fsync" not in self._how else ()
        item.synced = True

    def names(self, folders: list[Directory]) -> None:
        """B2: every folder of a swapped name, source and destination."""
        if self.durable:
            self.passed += 1
            if len(folders) > FEW_FOLDERS and self.whole(folders[0]):
                self.syncfs(folders[0].fd)
            else:
                self._folders(folders)

    def mark(self, fd: int) -> None:
        """B3: the record that was just appended to the journal."""
        if self.durable:
            self.passed += 1
            self.fsync(fd)

    def _folders(self, folders: Iterable[Directory]) -> None:
        for folder in folders:
            self.calls += 1
            self._how += ("fsync",) if "fsync" not in self._how else ()
            folder.sync()

    def fsync(self, fd: int) -> None:
        """One fsync."""
        self.calls += 1
        self._how += ("fsync",) if "fsync" not in self._how else ()
        kernel.port.fsync(fd)

    def syncfs(self, fd: int) -> None:
        """One syncfs."""
        self.calls += 1
        self._how += ("syncfs",) if "syncfs" not in self._how else ()
        kernel.port.syncfs(fd)
