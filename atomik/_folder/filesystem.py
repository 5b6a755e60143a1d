"""What is known about a mounted filesystem, remembered by mount.

`of` asks once per mount; the answer is kept under the mount id that Linux 6.8 never reuses.  Where that id is missing, it
is kept while a folder is open there: a transaction's folders share what the first of them found out.  A capability that
turns out to be absent (`tmpfile`, `exchange` …) is noted in the object, so a feature that one mount lacks is never switched
off for another.
"""

from __future__ import annotations

import functools
import os
import sys

from atomik._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from weakref import WeakValueDictionary

    from atomik._system.libc import Status

_HANDLE_FID = 0x200
#: FILEID_INO64_GEN, which the kernel makes up (AT_HANDLE_FID) where a filesystem has no handles: the inode number, and a
#: generation that such filesystems leave at 0.  An overlay that was mounted in a user namespace is one.  The handles of xfs
#: have the same type, and are real; they are given without that flag.
_MADE_UP = (0x81).to_bytes(4, sys.byteorder)

BTRFS = 0x9123683E  # f_type of statfs(2)

#: f_type → (name, whether syncfs reaches the device and reports errors)
_KNOWN = {
    0xEF53: ("ext4", True),
    0x58465342: ("xfs", True),
    BTRFS: ("btrfs", True),
    0xF2F52010: ("f2fs", True),
    0xCA451A4E: ("bcachefs", True),
    0x01021994: ("tmpfs", True),
    0x858458F6: ("ramfs", True),
    0x794C7630: ("overlay", True),
    0x2FC12FC1: ("zfs", False),
    0x4D44: ("vfat", False),
    0x2011BAB0: ("exfat", False),
    0x7366746E: ("ntfs3", False),
    0x6969: ("nfs", False),
    0xFF534D42: ("cifs", False),
    0xFE534D42: ("smb", False),
    0x01021997: ("9p", False),
    0x00C36400: ("ceph", False),
    0x24051905: ("ubifs", False),
    0x01161970: ("gfs2", False),
    0x65735546: ("fuse", False),
}

#: Filesystems whose own code implements the flags of renameat2: no probe is needed before the first exchange.
_TRUSTED_FLAGS = frozenset({"ext4", "xfs", "btrfs", "f2fs", "bcachefs", "tmpfs", "ramfs", "overlay", "vfat"})


class Filesystem:
    """One mounted filesystem: what it is, and what it was found able to do (``None``: not yet tried)."""

    tmpfile: bool | None = None
    #: files can have a second name, and then both names have one identity (not so on sshfs)
    links: bool | None = None
    links_are_one: bool | None = None
    #: an object that is renamed gets another inode number (rclone), so it cannot be followed
    renumbers = False
    #: reports an exchange as done without doing it
    lies = False
    #: one log holds every change in the order in which they were made, and a sync of what was changed last forces all of it
    one_log: bool | None = None

    def __init__(self, name: str, magic: int, *, syncfs: bool, handle_flags: int | None, trusted: bool) -> None:
        self.name, self.magic = name, magic
        #: statfs and syncfs are known to mean what they say here
        self.syncfs = syncfs
        #: flags for name_to_handle_at, or None where identities are inode numbers
        self.handle_flags = handle_flags
        #: the flags of renameat2 need no probe here
        self.trusted = trusted
        self.noreplace: bool | None = trusted or None
        self.exchange: bool | None = trusted or None
        #: folders in which no sandbox keeps us from removing what we make (see `place.refuse_unremovable`)
        self.removable: set[tuple[tuple[int, int], bool]] = set()


_remembered: dict[int, Filesystem] = {}


@functools.cache
def _open() -> WeakValueDictionary[tuple[int, int], Filesystem]:
    """The same where ids are given to another mount later: while a folder is open, its mount keeps its id."""
    from weakref import WeakValueDictionary

    return WeakValueDictionary()


def of(fd: int, status: Status) -> Filesystem:
    """The filesystem of an open folder, remembered by the id of its mount: forever where that is never given to another
    (Linux 6.8), else for as long as a folder is open there."""
    if not status.unique_mount:
        key = (status.mount, status.dev)
        found = _open().get(key)
        if found is None:
            found = _open()[key] = _ask(fd)
        return found
    found = _remembered.get(status.mount)
    if found is None:
        found = _remembered[status.mount] = _ask(fd)
    return found


def is_fuse(magic: int) -> bool:
    """Whether a ``f_type`` is that of a server in user space."""
    return _KNOWN.get(magic, ("", False))[0] == "fuse"


def _ask(fd: int) -> Filesystem:
    try:
        magic = kernel.port.filesystem_magic(fd)
    except OSError as exc:
        if kernel.errno_of(exc) not in kernel.SANDBOXED:
            raise
        magic = 0  # unknown, so that everything is tried
    name, syncfs = _KNOWN.get(magic, (f"0x{magic:x}", False))
    # A FUSE handle is the server's node number, which it may forget and renumber at any time.
    flags = None if name == "fuse" else _handle_flags(fd)
    trusted = name in _TRUSTED_FLAGS
    return Filesystem(name, magic, syncfs=syncfs, handle_flags=flags, trusted=trusted)


def _handle_flags(fd: int) -> int | None:
    """How to ask for handles here: plainly, or (overlay) for comparison only; None where neither tells more than an inode
    number."""
    for flags in (0, _HANDLE_FID):
        try:
            found = kernel.port.handle("", fd, flags)
        except OSError as exc:  # EOPNOTSUPP of the filesystem, EPERM or ENOSYS of a container's filter
            if kernel.errno_of(exc) is None:
                raise
            continue
        return None if flags and found.startswith(_MADE_UP) else flags
    return None


def has_one_log(fs: Filesystem, fd: int, dev: int) -> bool:
    """Whether a sync of the object that was changed last makes every earlier change on the filesystem of `fd` durable.

    Known of ext4 with a journal (jbd2 commits whole transactions, in order) and of xfs (a log force writes all items up to
    its sequence number), and proven by the power-cut suite.  btrfs logs each file for itself.  Both flush the device's
    cache before the record that commits, so that content which had been given to the device is durable with it
    (`Kernel.write_back`); not that of a realtime section of xfs, which is a device of its own.
    """
    if fs.one_log is None:
        known: bool | None = False
        if _is_since(5, 2):  # before, sync_file_range(2) could pass over pages, as on DAX
            xfs = fs.name == "xfs" and kernel.port.has_realtime(fd) is False
            known = _commits_in_order(dev) if fs.name == "ext4" else xfs
        fs.one_log = known
    return bool(fs.one_log)


def _commits_in_order(dev: int) -> bool | None:
    """Whether jbd2 keeps a journal on the device, and commits everything in order; no if /sys and /proc do not say, and None
    while that will show later."""
    port = kernel.port
    try:
        device = port.readlink(f"/sys/dev/block/{os.major(dev)}:{os.minor(dev)}").rpartition("/")[2]
        fd = port.open("/proc/fs/jbd2", os.O_RDONLY | os.O_DIRECTORY)
        try:
            with port.scandir(fd) as entries:  # "sda1-8": the number is the journal's inode
                journal = next((each.name for each in entries if each.name.rpartition("-")[0] == device), None)
        finally:
            port.close(fd)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return False
    options = kernel.told(f"/proc/fs/ext4/{device}/options", 1 << 16)
    # With that option a commit record does not wait for what was written before it.
    if journal is None or not options or b"journal_async_commit" in options or b"fc_debug_force" in options:
        return False
    return _has_no_fast_commits(
        kernel.told(f"/proc/fs/ext4/{device}/fc_info", 4096), kernel.told(f"/proc/fs/jbd2/{journal}/info", 4096)
    )


def _has_no_fast_commits(fast: bytes, full: bytes) -> bool | None:
    """Whether the option fast_commit (Linux 5.10) is off, by the statistics of both kinds of commits; None before anything
    was synced.

    A fast commit of one file does not hold every earlier change: replayed after a power cut, names that were given to files
    without one were missing (Linux 6.18), and with them a group, although it had been synced.  Only a kernel with
    CONFIG_EXT4_DEBUG has a word for it among its options.  Where it is on, the first sync of a file is counted, as a commit
    or as one that was not possible.
    """
    if not fast:
        return not _is_since(5, 10)
    counted = [line.split()[0] for line in fast.splitlines() if line.endswith((b" commits", b" ineligible"))]
    if counted != [b"0", b"0"] or b" requested)" not in full:
        return False
    return None if b"(0 requested)" in full else True


def _is_since(first: int, second: int, release: str = os.uname().release) -> bool:
    """Whether this is Linux `first`.`second` or later; an unreadable version is an old one."""
    major, _, rest = release.partition(".")
    minor = rest.split(".")[0].split("-")[0]
    return major.isdecimal() and minor.isdecimal() and (int(major), int(minor)) >= (first, second)


def forget() -> None:
    """Forget all mounts (tests)."""
    _remembered.clear()
    _open.cache_clear()
    kernel.refused_calls.cache_clear()
