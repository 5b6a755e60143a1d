"""Make a whole tree durable, or many open files.

* `sync_tree(directory)` syncs the content and the names of a tree, the folder itself included, its own name not.  It
  never follows a link, crosses a mount, recurses, or holds more than a fixed number of descriptors (see `walk`).
  Failures are atomik errors with the whole path.
* `sync_files(fds)` syncs open files, many at once.
* `HeadStart(folder)` syncs while many objects are still being made.

fsync(2) waits for the device each time, and a filesystem that is asked by several threads waits once for all of them.
300 new files of 4 KiB in a loop device, medians in ms on two cores, while the device is idle, and while it is busy:

=====================================  =========  ========  =========  ========
way                                    ext4 idle  xfs idle  ext4 busy  xfs busy
=====================================  =========  ========  =========  ========
one by one                                    63        70        830       324
one by one, writeback started before          16        16        252       671
8 threads                                     19        45        227       136
8 threads, writeback started before            8        18         67        51
16 threads, writeback started before           7        18         29        41
32 threads, writeback started before          10        22         29        53
=====================================  =========  ========  =========  ========

With 10 files threads cost more than they save (6 ms to 4 on ext4), with 30 they are level, with 100 they save a fifth.
On btrfs they cost more at any number, because each fsync writes a log of its own: 300 files take 1.3 times as long with 8
threads as one by one, and 2.4 times with 2; without threads they take 0.93 times as long.  So no threads are used there.

No fsync is ever repeated (I9): the kernel reports a failed writeback only once, and a second fsync would seem to succeed.
"""

from __future__ import annotations

import errno
import os
import stat
from _thread import get_native_id, start_new_thread
from collections import deque
from collections.abc import Sequence

from atomik._folder.filesystem import BTRFS
from atomik._folder.place import chmod
from atomik._system import kernel

from .walk import Level, TreeWalk

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from typing import Self

    from atomik._folder.directory import Directory

#: How many files are open at once while their writeback is under way.
BATCH = 128
#: How many files are synced at once.
THREADS = 8
#: Fewer files than this are not worth threads.
FEW = 32

#: After so many new objects a `HeadStart` syncs.  With half as many, btrfs gains nothing: each of its syncs holds up whoever
#: is changing something.
ENOUGH = 4000

_FILE = os.O_NOFOLLOW | os.O_NONBLOCK


# --- open files ------------------------------------------------------------------------------------------------------
def sync_files(fds: Sequence[int]) -> tuple[int, OSError] | None:
    """fsync every file once; after a failure no other is begun, and the answer is (index of the file, error).

    Whatever is raised (Ctrl-C), no thread is at work any more when this returns.
    """
    if len(fds) > 1:
        _start_writeback(fds)
    work = _Work(deque(enumerate(fds)))
    try:
        if len(fds) >= FEW and not _is_btrfs(fds[0]):
            work.start(min(THREADS, len(fds)) - 1)
        work.run()
    finally:
        work.stop()
    return work.failure()


def _is_btrfs(fd: int) -> bool:
    try:
        return kernel.port.filesystem_magic(fd) == BTRFS
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return False


def _start_writeback(fds: Sequence[int]) -> None:
    for fd in fds:
        try:
            kernel.port.start_writeback(fd)
        except OSError as exc:
            if kernel.errno_of(exc) is None:
                raise
            return  # only a head start: fsync reports what is wrong


class _Work:
    """Files to be synced, by this thread and by others."""

    def __init__(self, left: deque[tuple[int, int]]) -> None:
        self.left = left
        self.failed: list[tuple[int, BaseException]] = []
        self.threads: list[threading.Thread] = []

    def start(self, count: int) -> None:
        """Let other threads begin."""
        try:
            import threading
        except ImportError:  # there is nothing to load it from any more: this one does all (I14)
            return

        for _ in range(count):
            thread = threading.Thread(target=self._run_beside, name="atomik-sync", daemon=True)
            self.threads.append(thread)
            try:
                thread.start()
            except RuntimeError as exc:
                if not kernel.is_no_thread(exc):
                    raise
                self.threads.pop()  # this one does the rest
                return

    def run(self) -> None:
        """Sync what no other thread has taken yet."""
        while self.left:
            try:
                number, fd = self.left.popleft()
            except IndexError as exc:
                if kernel.came_from_elsewhere(exc):
                    raise
                return  # another thread was quicker
            try:
                kernel.port.fsync(fd)
            except OSError as exc:
                if kernel.errno_of(exc) is None:
                    raise
                self.failed.append((number, exc))
                self.left.clear()

    def _run_beside(self) -> None:
        try:
            self.run()
        except BaseException as exc:  # noqa: BLE001  the calling thread raises it
            self.failed.append((-1, exc))
            self.left.clear()

    def stop(self) -> None:
        """Start no other file, and wait for the threads, even if exceptions arrive."""
        self.left.clear()
        interrupt = None
        while self.threads:
            try:
                if self.threads[-1].is_alive():  # one that has not started yet finds nothing left
                    self.threads[-1].join()
                self.threads.pop()
            except BaseException as exc:  # noqa: BLE001  raised below, when all threads have ended
                interrupt = exc
        if interrupt is not None:
            raise interrupt

    def failure(self) -> tuple[int, OSError] | None:
        """The first failure of a sync; any other exception is raised."""
        for number, exc in self.failed:
            if number >= 0 and isinstance(exc, OSError):
                return number, exc
            raise exc
        return None


# --- while it is still being made --------------------------------------------------------------------------------------
class HeadStart:
    """Syncs a filesystem in a thread while many objects are made in it, so that B1 has less left to wait for.

    Only a head start: whatever the syncs report is ignored.  B1 syncs again, through a descriptor of its own that was opened
    before, and gets the same errors (I9).  At the end of the block no thread exists any more, because a program may be
    started next, and a process with threads should not fork.

    `folder` must be open through a descriptor that B1 does not use.
    """

    def __init__(self, folder: Directory) -> None:
        self._fd, self._made = folder.fd, 0
        self._sync: _Beside | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        interrupt: BaseException | None = None
        while self._sync is not None:
            try:
                self._sync.wait()
                interrupt, self._sync = self._sync.raised or interrupt, None
            except BaseException as exc:  # noqa: BLE001  raised below, when the thread has ended
                interrupt = exc
        if interrupt is not None:
            raise interrupt

    def more(self, made: int) -> None:
        """So many more objects were made: start a sync, if they are enough, unless one is under way."""
        self._made += made
        before = self._sync
        if self._made < ENOUGH or (before is not None and (before.raised is not None or not before.done)):
            return
        self._made, self._sync = 0, _Beside(self._fd)
        try:
            start_new_thread(self._sync.run, ())
        except RuntimeError as exc:
            if not kernel.is_no_thread(exc):  # a signal handler's (I13)
                raise


class _Beside:
    """One syncfs(2) in a thread.  The first to claim it decides whether it takes place: the thread itself, or `wait`."""

    done = False
    raised: BaseException | None = None
    _thread = 0

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._claim: dict[str, str] = {}

    def run(self) -> None:
        if self._claim.setdefault("by", "thread") != "thread":
            return
        self._thread = get_native_id()
        try:
            kernel.port.syncfs(self._fd)
        except BaseException as exc:  # noqa: BLE001  the thread that waits raises it
            self.raised = None if isinstance(exc, OSError) and kernel.errno_of(exc) is not None else exc
        finally:
            self.done = True

    def wait(self) -> None:
        """Wait until the thread has ended, or see to it that nothing begins.  May be repeated."""
        if self._claim.setdefault("by", "wait") == "wait":
            return
        while not self.done or kernel.told(f"/proc/self/task/{self._thread}/comm"):
            kernel.sleep(5e-4)


# --- trees -----------------------------------------------------------------------------------------------------------
def sync_tree(directory: Directory) -> int:
    """fsync every regular file below `directory`, then every folder bottom-up, and `directory` itself.

    Returns the number of sync calls.  A file or folder that its owner may not read gets that permission for the moment.
    What vanishes in the meantime needs no sync.  A folder that cannot be synced at all (EINVAL, see `Directory.sync`) is
    passed over; any other failure is an error that names the path.
    """
    with TreeWalk(directory, "sync", loosen=True, restore=True) as down, _Batch(down) as batch:
        while True:
            level = down.level
            if level.folders is None:
                level.folders = batch.add_files(level)
            if level.folders:
                down.enter_if_there(level.folders.pop())
            else:
                batch.sync_folder(level)
                if not down.depth:
                    break
                down.leave()
        batch.flush()
        return batch.count


class _Batch:
    """Files that are open, to be synced together."""

    def __init__(self, down: TreeWalk) -> None:
        self.down, self.count = down, 0
        self._files: list[tuple[int, str, Level]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        files, self._files = self._files, []
        kernel.close_all([fd for fd, _, _ in files])

    def add_files(self, level: Level) -> list[str]:
        """Take the present folder's files; returns the names of its folders."""
        folders = []
        for entry in self.down.entries():
            if entry.is_file(follow_symlinks=False):
                self._add(entry.name, level)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
        return folders

    def _add(self, name: str, level: Level) -> None:
        try:
            fd = self._open(name, level)
        except OSError as exc:
            if kernel.errno_of(exc) in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # gone, or no file any more
                return
            self.down.fail(exc, name)
        self._files.append((fd, name, level))
        if len(self._files) >= BATCH:
            self.flush()

    def _open(self, name: str, level: Level) -> int:
        """A readable descriptor, also of a file that its owner may not read."""
        port = kernel.port
        try:
            return port.open(name, os.O_RDONLY | _FILE, level.fd)
        except OSError as exc:
            number = kernel.errno_of(exc)
            if number == errno.EMFILE and self._files:
                self.flush()
                return port.open(name, os.O_RDONLY | _FILE, level.fd)
            if number != errno.EACCES:
                raise
        if self.down.loosened():  # perhaps it was only the folder that may not be searched
            return self._open(name, level)
        path_fd = port.open(name, os.O_PATH | os.O_NOFOLLOW, level.fd)
        try:
            path, mode = self.down.path(name, level), stat.S_IMODE(port.fstat(path_fd).st_mode)
            chmod(path_fd, mode | stat.S_IRUSR, path)
            try:
                return self._reopen(path_fd, name, level)
            finally:
                chmod(path_fd, mode, path)
        finally:
            port.close(path_fd)

    @staticmethod
    def _reopen(path_fd: int, name: str, level: Level) -> int:
        """A readable descriptor of what an O_PATH descriptor holds; without /proc by its name."""
        try:
            return kernel.port.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_NONBLOCK)
        except OSError as exc:
            if kernel.errno_of(exc) not in kernel.NO_PROC:
                raise
        return kernel.port.open(name, os.O_RDONLY | _FILE, level.fd)

    def flush(self) -> None:
        """Sync all files so far."""
        failed = sync_files([fd for fd, _, _ in self._files])
        if failed is not None:
            _, name, level = self._files[failed[0]]
            self.down.fail(failed[1], name, level)
        self.count += len(self._files)
        self._close()

    def sync_folder(self, level: Level) -> None:
        """fsync the present folder."""
        try:
            kernel.port.fsync(level.fd)
        except OSError as exc:
            if kernel.errno_of(exc) != errno.EINVAL:
                self.down.fail(exc)
        self.count += 1
