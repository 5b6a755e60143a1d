"""Barriers: points past which everything before is durable.  Which sync calls make them, and how many there were.

B1 before the first swap: staged content, slot names and journal (I1).  B2 after the last: every folder of a swapped
name (I2).  B3: the commit mark.  Their number does not depend on the number of items (I10); the calls behind them do
not either once ``syncfs`` serves: one call for the whole filesystem, through a descriptor that was opened before the
first byte was staged, so that an earlier writeback error shows (I9, Linux 5.8).

``durable=True`` decides: fsync for a few files that are still open, syncfs for more than that, and for trees, where the
filesystem is known to honour it; fsync of each file elsewhere.  ``"fsync"`` and ``"syncfs"`` decide otherwise.

Where one log holds every change in order (`filesystem.has_one_log`: ext4, xfs), ``durable=True`` relies on that order.  No
swap is durable before everything that was changed earlier, so B1 only writes the files and the journal back.  The mark must
not be durable before the swaps are (I2).  A name that is made after them is not, and the sync of its folder brings the log
along with everything in it: then B3 stands for B2 as well.  Where the mark is a record, B2 syncs the folder of the last swap.

A failed sync is never repeated: the kernel reports an error only once, and the next sync would seem to succeed.
"""

from __future__ import annotations

import os

from atomik._folder.filesystem import has_one_log
from atomik._staging.file import StagedFile
from atomik._system import kernel
from atomik._typing import cast

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from atomik._folder.directory import Directory
    from atomik._receipt import SyncedBy
    from atomik._staging.item import Item

#: Up to this many files are synced one by one.  More of them, or a tree, cost less in one syncfs, which on the other
#: hand also waits for what other programs have written.
FEW = 4
#: The same where one log holds every change, so that files are only written back: up to as many as are open (`RETAINED`).
FEW_WRITTEN_BACK = 16
#: So many files are synced together, each by an fsync of its own.
BATCH = 64
#: So many files give up their descriptors one by one, before it shows that there are many.
FEW_SEALED = 8
#: So many folders are synced one by one, before syncfs is the cheaper way to make names durable.
FEW_FOLDERS = 4


class Barriers:
    """The barriers of one commit.  ``durable`` as given by the user; ``calls`` made so far, ``passed`` barriers."""

    __slots__ = ("_how", "_refused", "_sealed", "calls", "durable", "passed")

    def __init__(self, durable: bool | str) -> None:
        self.durable = durable
        self.calls = self.passed = 0
        self._how: tuple[str, ...] = ()
        #: a sandbox refuses syncfs
        self._refused = False
        #: how many files have given up their descriptors
        self._sealed = 0

    @property
    def how(self) -> SyncedBy:
        """The ways used: "fsync", "syncfs", "fsync+syncfs", or "" when nothing was to be durable."""
        return cast("SyncedBy", "+".join(sorted(set(self._how))))

    def whole(self, directory: Directory) -> bool:
        """Whether syncfs may serve on this filesystem."""
        return self.durable == "syncfs" or (self.durable is True and directory.fs.syncfs and not self._refused)

    def one_log(self, directory: Directory) -> bool:
        """Whether syncing what changed last is enough on this filesystem."""
        return self.durable is True and not self._refused and has_one_log(directory.fs, directory.fd, directory.dev)

    def _few(self, directory: Directory) -> int:
        return FEW_WRITTEN_BACK if self.one_log(directory) else FEW

    def batch(self, item: StagedFile) -> int:
        """How many files give up their descriptors together: where each must be synced and they are many, a batch takes
        a fraction of the time to sync."""
        many = self._sealed >= FEW_SEALED and self.durable and not self.whole(item.stage)
        return BATCH if many else 1

    def sealed(self, items: Sequence[StagedFile]) -> None:
        """Files give up their descriptors: sync them now unless syncfs will."""
        self._sealed += len(items)
        if self.durable and not self.whole(items[0].stage):
            self._files(items)

    def begin(self, items: Sequence[Item]) -> None:
        """Start the writeback of the files that B1 will wait for: the disk works while the commit is prepared."""
        if not self.durable or len(items) > self._few(items[0].stage):
            return
        for item in items:
            if isinstance(item, StagedFile) and item.fd >= 0 and not item.synced:
                try:
                    kernel.port.start_writeback(item.fd)
                except OSError as exc:
                    if kernel.errno_of(exc) is None:
                        raise
                    return  # only a head start: the sync reports what is wrong

    def staged(
        self, items: list[Item], folders: list[Directory], made: list[Directory], journal_fd: int | None
    ) -> None:
        """B1.  `folders` are those that hold slots or the journal's names."""
        if not self.durable:
            return
        self.passed += 1
        unsynced = [item for item in items if item.content and (not item.synced or item.backup)]
        one_by_one = [item for item in unsynced if isinstance(item, StagedFile) and (item.fd >= 0 or item.unchanged)]
        calls = len(one_by_one)
        if journal_fd is not None and _is_btrfs(items[0].stage):
            calls += 1 + len(folders)
        many = len(one_by_one) < len(unsynced) or calls > self._few(items[0].stage)
        if many and self.whole(items[0].stage) and self._by_syncfs(items[0].stage.fd):
            return
        if self.one_log(items[0].stage):
            for item in unsynced:
                self._give(item)
            if journal_fd is not None and not self._write_back(journal_fd):
                self.fsync(journal_fd)
            return
        # Made folders first: a journal that outlives a power cut must not name a folder that does not.
        self._folders(made)
        files = [
            item for item in unsynced if isinstance(item, StagedFile) and item.backup is None and not item.unchanged
        ]
        self._files(files)
        for item in unsynced:
            if not item.synced or item.backup is not None:
                self.content(item)
        if journal_fd is not None:
            self.fsync(journal_fd)
        self._folders(folders)

    def _files(self, items: Sequence[StagedFile]) -> None:
        """fsync the content of files, many at once; those that gave up their descriptors are opened again."""
        for at in range(0, len(items), BATCH):
            files = items[at : at + BATCH]
            if len(files) == 1:
                self.content(files[0])
                continue
            opened: list[int] = []
            try:
                self._together(files, [item.fd if item.fd >= 0 else _open(item, opened) for item in files])
            finally:
                kernel.close_all(opened)

    def _together(self, files: Sequence[StagedFile], fds: list[int]) -> None:
        from atomik._tree.sync import sync_files  # loaded with the first output of a group (I14)

        self.calls += len(fds)
        self._how += ("fsync",) if "fsync" not in self._how else ()
        failed = sync_files(fds)
        if failed is not None:
            at, exc = failed
            exc.filename = files[at].path
            raise exc
        for item in files:
            item.synced = True

    def content(self, item: Item) -> None:
        """fsync one item's content, all of it, and the previous version that stays."""
        self.calls += item.sync_content()
        self._how += ("fsync",) if "fsync" not in self._how else ()
        item.synced = True

    def _give(self, item: Item) -> None:
        """Write content back, where the next sync makes it durable."""
        if isinstance(item, StagedFile) and item.fd >= 0 and not item.unchanged and item.backup is None:
            item.synced = self._write_back(item.fd)
        if not item.synced or item.backup is not None:
            self.content(item)

    def _write_back(self, fd: int) -> bool:
        """Write a file's content back; False where a sandbox refuses that."""
        try:
            kernel.port.write_back(fd)
        except OSError as exc:
            if kernel.errno_of(exc) not in kernel.SANDBOXED or kernel.sandboxed("sync_file_range") is None:
                raise
            return False
        return True

    def names(self, folders: list[Directory], last: Directory | None = None) -> None:
        """B2: every folder of a swapped name, source and destination; `last` is one that the last swap changed."""
        if self.durable:
            self.passed += 1
            if last is not None and self.one_log(last):
                self._folders([last])
            elif not (len(folders) > FEW_FOLDERS and self.whole(folders[0]) and self._by_syncfs(folders[0].fd)):
                self._folders(reversed(folders) if _is_btrfs(folders[0]) else folders)

    def mark(self, fd: int, *, in_place: bool = False) -> None:
        """B3: the record that was just written into the journal, or the folder in which a name is the mark.  `in_place`:
        where zeros were before, so that content is all that changed, and no log need be forced."""
        if self.durable:
            self.passed += 1
            self.fsync(fd, kernel.port.fdatasync if in_place else kernel.port.fsync)

    def _folders(self, folders: Iterable[Directory]) -> None:
        for folder in folders:
            self.calls += 1
            self._how += ("fsync",) if "fsync" not in self._how else ()
            folder.sync()

    def fsync(self, fd: int, call: Callable[[int], None] | None = None) -> None:
        """One fsync, or what else syncs one file."""
        self.calls += 1
        self._how += ("fsync",) if "fsync" not in self._how else ()
        (call or kernel.port.fsync)(fd)

    def _by_syncfs(self, fd: int) -> bool:
        """syncfs; False where a sandbox refuses it and nobody asked for just that: then everything is synced by itself."""
        try:
            self.syncfs(fd)
        except OSError as exc:
            refused = kernel.errno_of(exc) in kernel.SANDBOXED and kernel.sandboxed("syncfs") is not None
            if not refused or self.durable == "syncfs":
                raise
            self._refused = True
            self._how = tuple(how for how in self._how if how != "syncfs")
            return False
        return True

    def syncfs(self, fd: int) -> None:
        """One syncfs."""
        self.calls += 1
        self._how += ("syncfs",) if "syncfs" not in self._how else ()
        kernel.port.syncfs(fd)


def _open(item: StagedFile, opened: list[int]) -> int:
    """Open a file that gave up its descriptor, by its slot."""
    assert item.slot is not None
    opened.append(kernel.port.open(item.slot.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, item.slot.fd))
    return opened[-1]


def _is_btrfs(folder: Directory) -> bool:
    """Whether a sync of one new name may cost a whole commit of the filesystem.  So folders and journal count like files
    there, and the private folders, which names leave, are synced first: the parents then have nothing left to do."""
    return folder.fs.name == "btrfs"
