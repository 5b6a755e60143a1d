"""The FUSE wire format (linux/fuse.h, protocol 7.31): numbers, structures, and nothing that acts.

Requests arrive as a header and a body that depends on the opcode; names in a
body end in NUL. All integers are in the machine's own order.
"""

from __future__ import annotations

import enum
import os
import struct
from dataclasses import dataclass
from typing import Any

MAJOR, MINOR = 7, 31
MAX_WRITE = 1 << 20
ROOT_NODE = 1
BUFFER_SIZE = MAX_WRITE + (1 << 16)


class Opcode(enum.IntEnum):
    """What a request asks for; the method of :class:`tests.support.lab.fuse.FileSystem` has the lower-case name."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45


class InitFlag(enum.IntFlag):
    """What a server tells the kernel that it can do (FUSE_INIT)."""

    ASYNC_READ = 1 << 0
    BIG_WRITES = 1 << 5
    MAX_PAGES = 1 << 22


class Valid(enum.IntFlag):
    """The fields that a SETATTR request sets (FATTR_*)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


FOPEN_DIRECT_IO = 1
FSYNC_DATA_ONLY = 1

IN_HEADER = struct.Struct("=IIQQIII4x")
OUT_HEADER = struct.Struct("=IiQ")
INIT_IN = struct.Struct("=III")
INIT_OUT = struct.Struct("=IIIIHHIIHH32x")
ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
ATTR_OUT = struct.Struct("=QII")
ENTRY_OUT = struct.Struct("=QQQQII")
OPEN_IN = struct.Struct("=I4x")
OPEN_OUT = struct.Struct("=QI4x")
CREATE_IN = struct.Struct("=II8x")
READ_IN = struct.Struct("=QQI20x")
WRITE_IN = struct.Struct("=QQI20x")
WRITE_OUT = struct.Struct("=I4x")
FSYNC_IN = struct.Struct("=QI4x")
RELEASE_IN = struct.Struct("=Q16x")
MKNOD_IN = struct.Struct("=II8x")
MKDIR_IN = struct.Struct("=I4x")
RENAME_IN = struct.Struct("=Q")
RENAME2_IN = struct.Struct("=QI4x")
LINK_IN = struct.Struct("=Q")
SETATTR_IN = struct.Struct("=I4xQQ8xQQ8xII4xI4xII4x")
SETXATTR_IN = struct.Struct("=II")
GETXATTR_IN = struct.Struct("=I4x")
GETXATTR_OUT = struct.Struct("=I4x")
STATFS_OUT = struct.Struct("=QQQQQIII28x")
FALLOCATE_IN = struct.Struct("=QQQI4x")
FORGET_IN = struct.Struct("=Q")
BATCH_FORGET_IN = struct.Struct("=I4x")
FORGET_ONE = struct.Struct("=QQ")
_DIRENT = struct.Struct("=QQII")

_NANO = 10**9


@dataclass(slots=True)
class Request:
    """One request; ``body`` is a view into the server's buffer and valid only until the reply."""

    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int
    body: memoryview

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The fields at the start of the body."""
        return layout.unpack_from(self.body)

    def rest(self, layout: struct.Struct) -> memoryview:
        """What follows these fields in the body."""
        return self.body[layout.size :]

    def names(self, layout: struct.Struct | None = None) -> list[bytes]:
        """The NUL-terminated names after ``layout``, or from the start of the body."""
        raw = bytes(self.body if layout is None else self.rest(layout))
        return raw.split(b"\0")[:-1]

    def name(self, layout: struct.Struct | None = None) -> bytes:
        """The first of :meth:`names`."""
        return self.names(layout)[0]


def parse(message: memoryview) -> Request:
    """The request that the kernel wrote as ``message``."""
    _, opcode, unique, node, uid, gid, pid = IN_HEADER.unpack_from(message)
    return Request(opcode, unique, node, uid, gid, pid, message[IN_HEADER.size :])


def pack_init(max_readahead: int) -> bytes:
    """Reply to INIT: this protocol version, large writes, and no feature that needs more code."""
    flags = InitFlag.ASYNC_READ | InitFlag.BIG_WRITES | InitFlag.MAX_PAGES
    pages = MAX_WRITE // 4096
    return INIT_OUT.pack(MAJOR, MINOR, max_readahead, flags, 64, 48, MAX_WRITE, 1, pages, 0)


def pack_attr(found: os.stat_result) -> bytes:
    """A ``struct fuse_attr`` from what stat says."""
    (atime, atime_ns), (mtime, mtime_ns), (ctime, ctime_ns) = (
        divmod(stamp, _NANO) for stamp in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
    )
    return ATTR.pack(
        found.st_ino,
        found.st_size,
        found.st_blocks,
        *(part & 0xFFFFFFFFFFFFFFFF for part in (atime, mtime, ctime)),
        atime_ns,
        mtime_ns,
        ctime_ns,
        found.st_mode,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        _pack_device(found.st_rdev),
        found.st_blksize,
        0,
    )


def _pack_device(number: int) -> int:
    """The kernel's 32-bit form of a device number (new_encode_dev)."""
    major, minor = os.major(number), os.minor(number)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def unpack_device(packed: int) -> int:
    """The device number from the kernel's 32-bit form."""
    return os.makedev(packed >> 8 & 0xFFF, packed & 0xFF | packed >> 12 & 0xFFF00)


def pack_entry(node: int, attr: bytes, seconds: int = 0) -> bytes:
    """Reply to LOOKUP and to what makes a name: the node and its attributes, to be cached for ``seconds``."""
    return ENTRY_OUT.pack(node, 0, seconds, seconds, 0, 0) + attr


def pack_dirent(inode: int, next_offset: int, kind: int, name: bytes) -> bytes:
    """One record of a READDIR reply; ``kind`` is the file type of st_mode shifted right by 12."""
    record = _DIRENT.pack(inode, next_offset, len(name), kind) + name
    return record + bytes(-len(record) % 8)
