"""A kernel with one disk in memory, which writes down every change and every sync.

Names and contents are kept apart, as on a disk: ``names`` has the entries of folders, ``data`` the bytes of files, and
``made`` what each inode is.  The log is what `crashes` builds disks from.  It knows the calls that atomik makes and no
others: a call that it does not know fails, so that none reaches the real disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from attrs import define, field

from atomik._system import libc
from atomik._system.kernel import EXCHANGE, NOREPLACE, Kernel

Entry = tuple[int, str]
"""A folder's inode and a name in it."""

ROOT = 1
_DEVICE = os.makedev(250, 7)
_MOUNT = 0x7E57
_EXT4 = 0xEF53
_FIRST_FD = 100  # below atomik's own limit, above all that a test has open


class Made(NamedTuple):
    """What an inode is: ``mode`` with its type, and the target of a link.  Owners and modes are not part of a crash."""

    mode: int
    target: str = ""


@define(frozen=True)
class Names:
    """One change of entries, which happens as a whole: ``sets`` says what each becomes (None: nothing).

    ``source``, ``goal``: of a rename, the folder that loses the name and the one that gains it.
    """

    sets: tuple[tuple[Entry, int | None], ...]
    source: int = 0
    goal: int = 0


@define(frozen=True)
class Bytes:
    """Bytes written to a file."""

    ino: int
    offset: int
    data: bytes


@define(frozen=True)
class Sync:
    """fsync of an inode; 0 for all of the filesystem."""

    ino: int


Record = Names | Bytes | Sync


@define
class Disk:
    """What is on it."""

    names: dict[Entry, int] = field(factory=dict)
    data: dict[int, bytes] = field(factory=dict)
    made: dict[int, Made] = field(factory=lambda: {ROOT: Made(stat.S_IFDIR | 0o755)})
    #: folders that a user filled
    outputs: set[int] = field(factory=set)

    def copy(self) -> Disk:
        """Another one, which changes by itself."""
        return Disk(dict(self.names), dict(self.data), dict(self.made), self.outputs)

    def listing(self) -> dict[int, list[tuple[str, int]]]:
        """The entries of each folder."""
        found: dict[int, list[tuple[str, int]]] = {}
        for (above, name), ino in self.names.items():
            found.setdefault(above, []).append((name, ino))
        return found

    def tree(self) -> dict[str, bytes | str | None]:
        """Path below the root → content, link target, or None for a folder; as `tests.powercut.histories` has it."""
        found: dict[str, bytes | str | None] = {}
        listing, work = self.listing(), [(ROOT, "")]
        while work:
            above, path = work.pop()
            for name, ino in listing.get(above, ()):
                made, below = self.made[ino], path + name
                if stat.S_ISDIR(made.mode):
                    found[below] = None
                    work.append((ino, below + "/"))
                else:
                    found[below] = made.target if stat.S_ISLNK(made.mode) else self.data.get(ino, b"")
        return found

    def plant(self, tree: dict[str, bytes | str | None]) -> None:
        """Put a tree on it; durable, and not in any log."""
        at = {"": ROOT}
        for path in sorted(tree):
            above, _, name = path.rpartition("/")
            node = tree[path]
            ino = max(self.made) + 1
            kind = stat.S_IFDIR if node is None else stat.S_IFLNK if isinstance(node, str) else stat.S_IFREG
            self.made[ino] = Made(kind | 0o755, node if isinstance(node, str) else "")
            if isinstance(node, bytes):
                self.data[ino] = node
            self.names[at[above], name] = at[path] = ino

    def apply(self, record: Record) -> None:
        """Make one change."""
        if isinstance(record, Names):
            for entry, ino in record.sets:
                if ino is None:
                    self.names.pop(entry, None)
                else:
                    self.names[entry] = ino
        elif isinstance(record, Bytes):
            before = self.data.get(record.ino, b"").ljust(record.offset, b"\0")
            self.data[record.ino] = before[: record.offset] + record.data + before[record.offset + len(record.data) :]


@define
class _Open:
    ino: int
    at: int = 0


class _DirEntry:
    def __init__(self, name: str, ino: int, kernel: MemoryKernel) -> None:
        self.name, self._ino, self._kernel = name, ino, kernel

    def inode(self) -> int:
        return self._ino

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return stat.S_ISDIR(self._kernel.disk.made[self._ino].mode)

    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self._kernel.disk.made[self._ino].mode)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return stat.S_ISREG(self._kernel.disk.made[self._ino].mode)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return self._kernel._stat(self._ino)


class MemoryKernel(Kernel):
    """See the module.  The caller's process is alone and root, so locks are always free."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.log: list[Record] = []
        self.skip: Any = None  # asked before a sync: leave it out?  (mutants)
        self._fds: dict[int, _Open] = {}
        self._next = max(disk.made) + 1
        self._mountinfo = -1
        self._where: dict[int, Entry] = {ino: entry for entry, ino in disk.names.items()}

    # --- inside --------------------------------------------------------------------------------------------------
    def _fail(self, number: int, *names: str) -> Any:
        raise OSError(number, os.strerror(number), *names)

    def _change(self, record: Record) -> None:
        self.log.append(record)
        self.disk.apply(record)
        if isinstance(record, Names):
            for entry, ino in record.sets:
                if ino is not None:
                    self._where[ino] = entry

    def _make(self, mode: int, target: str = "") -> int:
        ino = self._next
        self._next += 1
        self.disk.made[ino] = Made(mode, target)
        if stat.S_ISREG(mode):
            self.disk.data[ino] = b""
        return ino

    def _open(self, ino: int) -> int:
        fd = _FIRST_FD
        while fd in self._fds:
            fd += 1
        self._fds[fd] = _Open(ino)
        return fd

    def _of(self, fd: int) -> int:
        if fd not in self._fds:
            self._fail(errno.EBADF)
        return self._fds[fd].ino

    def _find(self, path: str, dir_fd: int | None) -> int | None:
        """The inode at a path; None where there is nothing.  Links are not followed."""
        at = ROOT if path.startswith("/") or dir_fd is None or dir_fd < 0 else self._of(dir_fd)
        for name in path.split("/"):
            if name in ("", "."):
                continue
            if name == "..":
                at = self._where.get(at, (ROOT, ""))[0]
                continue
            if not stat.S_ISDIR(self.disk.made[at].mode):
                self._fail(errno.ENOTDIR, path)
            found = self.disk.names.get((at, name))
            if found is None:
                return None
            at = found
        return at

    def _need(self, path: str, dir_fd: int | None) -> int:
        found = self._find(path, dir_fd)
        return self._fail(errno.ENOENT, path) if found is None else found

    def _free(self, name: str, dir_fd: int | None) -> Entry:
        """The entry of a name that is not taken; of a whole path too."""
        head, _, last = name.rpartition("/")
        above = self._need(head or ("/" if name.startswith("/") else "."), dir_fd)
        if (above, last) in self.disk.names:
            self._fail(errno.EEXIST, name)
        return above, last

    def _stat(self, ino: int) -> os.stat_result:
        made = self.disk.made[ino]
        links = sum(1 for found in self.disk.names.values() if found == ino)
        size = len(self.disk.data.get(ino, b""))
        return os.stat_result((made.mode, ino, _DEVICE, links, os.geteuid(), os.getegid(), size, 0, 0, 0))

    def _path(self, ino: int) -> str:
        names: list[str] = []
        while ino != ROOT:
            ino, name = self._where.get(ino, (ROOT, f"#{ino} (deleted)"))
            names.append(name)
        return "/" + "/".join(reversed(names))

    def plant(self, top: str, tree: dict[str, bytes | str | None]) -> None:
        """What a user puts into a staged folder: by calls that atomik does not see, so none of it is synced."""
        above = self._need(self._real(top), None)
        at = {"": above}
        for path in sorted(tree):
            head, _, name = path.rpartition("/")
            node = tree[path]
            kind = stat.S_IFDIR if node is None else stat.S_IFLNK if isinstance(node, str) else stat.S_IFREG
            self.disk.outputs.add(at[head])
            at[path] = ino = self._make(kind | 0o755, node if isinstance(node, str) else "")
            self._change(Names((((at[head], name), ino),)))
            if isinstance(node, bytes):
                self._change(Bytes(ino, 0, node))

    def _real(self, path: str) -> str:
        """The path without the descriptor that it begins with."""
        head = f"/proc/{os.getpid()}/fd/"
        if path.startswith(head):
            number, _, rest = path[len(head) :].partition("/")
            return f"{self._path(self._of(int(number)))}/{rest}"
        return path

    # --- opening -------------------------------------------------------------------------------------------------
    def open(self, path: str, flags: int, dir_fd: int | None = None) -> int:
        if path == "/proc/self/mountinfo":
            self._mountinfo = self._open(ROOT)
            return self._mountinfo
        ino = self._need(path, dir_fd)
        mode = self.disk.made[ino].mode
        if flags & os.O_DIRECTORY and not stat.S_ISDIR(mode):
            self._fail(errno.ENOTDIR, path)
        if stat.S_ISLNK(mode) and not flags & os.O_PATH:
            self._fail(errno.ELOOP, path)
        return self._open(ino)

    def open_beneath(self, path: str, flags: int, dir_fd: int, resolve: int) -> int:
        return self.open(path, flags, dir_fd)

    def open_tmpfile(self, dir_fd: int, flags: int, mode: int) -> int:
        self._of(dir_fd)
        return self._open(self._make(stat.S_IFREG | mode))

    def create(self, name: str, flags: int, mode: int, dir_fd: int) -> int:
        entry = self._free(name, dir_fd)
        ino = self._make(stat.S_IFREG | mode)
        self._change(Names(((entry, ino),)))
        return self._open(ino)

    def close(self, fd: int) -> None:  # type: ignore[override]
        self._of(fd)
        del self._fds[fd]
        if fd == self._mountinfo:
            self._mountinfo = -1

    # --- names ---------------------------------------------------------------------------------------------------
    def mkdir(self, name: str, mode: int, dir_fd: int | None) -> None:
        self._change(Names(((self._free(name, dir_fd), self._make(stat.S_IFDIR | mode)),)))

    def symlink(self, target: str, name: str, dir_fd: int) -> None:
        self._change(Names(((self._free(name, dir_fd), self._make(stat.S_IFLNK | 0o777, target)),)))

    def link(self, src: str, src_fd: int, dst: str, dst_fd: int) -> None:
        ino = self._need(src, src_fd)
        self._change(Names(((self._free(dst, dst_fd), ino),)))

    def link_fd(self, fd: int, dst: str, dst_fd: int) -> None:
        self._change(Names(((self._free(dst, dst_fd), self._of(fd)),)))

    def rename(self, src: str, src_fd: int, dst: str, dst_fd: int, flags: int) -> None:
        one, two = (self._of(src_fd), src), (self._of(dst_fd), dst)
        ino, there = self._need(src, src_fd), self.disk.names.get(two)
        if flags == EXCHANGE:
            if there is None:
                self._fail(errno.ENOENT, src, dst)
            self._change(Names(((one, there), (two, ino))))
            return
        if there is not None and flags == NOREPLACE:
            self._fail(errno.EEXIST, src, dst)
        if there != ino:
            self._change(Names(((one, None), (two, ino)), one[0], two[0]))

    def unlink(self, name: str, dir_fd: int) -> None:
        ino = self._need(name, dir_fd)
        if stat.S_ISDIR(self.disk.made[ino].mode):
            self._fail(errno.EISDIR, name)
        self._change(Names((((self._of(dir_fd), name), None),)))

    def rmdir(self, name: str, dir_fd: int | None) -> None:
        assert dir_fd is not None
        ino = self._need(name, dir_fd)
        if not stat.S_ISDIR(self.disk.made[ino].mode):
            self._fail(errno.ENOTDIR, name)
        if any(above == ino for above, _ in self.disk.names):
            self._fail(errno.ENOTEMPTY, name)
        self._change(Names((((self._of(dir_fd), name), None),)))

    # --- content -------------------------------------------------------------------------------------------------
    def write(self, fd: int, data: Any) -> int:  # type: ignore[override]
        held = self._fds[fd]
        done = self.pwrite(fd, data, held.at)
        held.at += done
        return done

    def pwrite(self, fd: int, data: Any, offset: int) -> int:  # type: ignore[override]
        self._change(Bytes(self._of(fd), offset, bytes(data)))
        return len(data)

    def pread(self, fd: int, count: int, offset: int) -> bytes:  # type: ignore[override]
        if fd == self._mountinfo:
            return b"" if offset else b"20 1 250:7 / / rw - ext4 /dev/test rw\n"
        return self.disk.data.get(self._of(fd), b"")[offset : offset + count]

    def start_writeback(self, fd: int) -> None:
        """No promise, so nothing."""

    # --- durability ----------------------------------------------------------------------------------------------
    def fsync(self, fd: int) -> None:  # type: ignore[override]
        self._sync(self._of(fd))

    def syncfs(self, fd: int) -> None:
        self._sync(0)

    def _sync(self, ino: int) -> None:
        if self.skip is None or not self.skip(self, ino):
            self.log.append(Sync(ino))

    # --- locks ---------------------------------------------------------------------------------------------------
    def flock(self, fd: int, operation: int) -> None:  # type: ignore[override]
        self._of(fd)

    def announce_writer(self, fd: int, ticket: int) -> None:
        """Nobody listens for it."""

    def writer_is_waiting(self, fd: int) -> bool:
        return False

    def earlier(self, fd: int, first: int, end: int) -> int | None:
        return None

    def is_pinned(self, fd: int) -> bool:
        return False

    # --- attributes ----------------------------------------------------------------------------------------------
    def fchmod(self, fd: int, mode: int) -> None:  # type: ignore[override]
        self._chmod(self._of(fd), mode)

    def chmod(self, path: str, mode: int) -> None:
        self._chmod(self._of(int(path.rpartition("/")[2])), mode)

    def _chmod(self, ino: int, mode: int) -> None:
        made = self.disk.made[ino]
        self.disk.made[ino] = Made(stat.S_IFMT(made.mode) | mode, made.target)

    def fchown(self, fd: int, uid: int, gid: int) -> None:
        """Everything has one owner."""

    def futime(self, fd: int, ns: tuple[int, int]) -> None:
        """There are no times."""

    def listxattr(self, fd: int) -> list[str]:  # type: ignore[override]
        return []

    def listxattr_of(self, path: str) -> list[str]:
        return []

    def has_xattrs(self, name: str, dir_fd: int) -> bool:
        self._need(name, dir_fd)
        return False

    # --- looking -------------------------------------------------------------------------------------------------
    def fstat(self, fd: int) -> os.stat_result:  # type: ignore[override]
        return self._stat(self._of(fd))

    def lstat(self, name: str, dir_fd: int | None) -> os.stat_result:
        return self._stat(self._need(name, dir_fd))

    def stat(self, path: str) -> os.stat_result:  # type: ignore[override]
        return self._stat(self._need(self._real(path), None))

    def exists(self, name: str, dir_fd: int) -> bool:
        return self._find(name, dir_fd) is not None

    def may_write(self, name: str, dir_fd: int) -> bool:
        return True

    def rename_to_itself(self, name: str, dir_fd: int) -> None:
        """No sandbox."""
        self._need(name, dir_fd)

    def unlink_folder(self, name: str, dir_fd: int) -> None:
        """A folder is no file."""
        self._need(name, dir_fd)
        self._fail(errno.EISDIR, name)

    def readlink(self, name: str, dir_fd: int | None = None) -> str:
        if name.startswith("/proc/self/fd/"):
            return self._path(self._of(int(name.rpartition("/")[2])))
        return self.disk.made[self._need(name, dir_fd)].target

    @contextlib.contextmanager
    def scandir(self, fd: int) -> Iterator[Iterator[Any]]:  # type: ignore[override]
        ino = self._of(fd)
        found = sorted((name, below) for (above, name), below in self.disk.names.items() if above == ino)
        yield iter([_DirEntry(name, below, self) for name, below in found])

    def statx(self, fd: int, name: str = "") -> libc.Status:
        return self._status(self._need(name, fd) if name else self._of(fd))

    def statx_path(self, path: str, dir_fd: int = -100) -> libc.Status:
        return self._status(self._need(path, dir_fd))

    def _status(self, ino: int) -> libc.Status:
        plain = self._stat(ino)
        return libc.Status(
            libc.STATX_IDENTITY | libc.STATX_MNT_ID_UNIQUE, 0, plain.st_nlink, plain.st_uid, plain.st_gid, plain.st_mode, ino,
            250, 7, _MOUNT,
        )  # fmt: skip

    def filesystem_magic(self, fd: int) -> int:
        return _EXT4

    def handle(self, name: str, dir_fd: int, flags: int) -> bytes:
        return b"%d" % (self._need(name, dir_fd) if name else self._of(dir_fd))


def _unknown(name: str) -> Any:
    def method(self: MemoryKernel, *arguments: Any) -> Any:
        raise AssertionError(f"the disk in memory has no {name}{arguments}")

    return method


for _name in vars(Kernel):
    if not _name.startswith("_") and _name not in vars(MemoryKernel):
        setattr(MemoryKernel, _name, _unknown(_name))
