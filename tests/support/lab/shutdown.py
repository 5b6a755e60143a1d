"""A filesystem that stops at once, as if the machine had died: the shutdown ioctl of ext4 and xfs.

    with mounted("ext4") as place:
        ...
        shutdown(place.root)       # every call from here on fails with EIO
        place.disk.remount()       # the journal is replayed: this is what survived

It shows what was never written, not what was reordered: for that there is the
recorder. btrfs has had no such ioctl up to now.
"""

from __future__ import annotations

import enum
import fcntl
import os
import struct

from tests.support.lab import linux

KINDS = ("ext4", "xfs")
"""The filesystems that can do it."""

_GOING_DOWN = 0x8004587D


class Going(enum.IntEnum):
    """How the filesystem goes down."""

    FROZEN = 0
    """Everything is written out first: nothing is lost."""
    LOG_FLUSHED = 1
    """The journal is written out, data is not."""
    NOTHING_FLUSHED = 2
    """At once, as in a power cut."""


def shutdown(path: linux.StrPath, going: Going = Going.NOTHING_FLUSHED) -> None:
    """Stop the filesystem that holds ``path``; it stays mounted, and must be unmounted and mounted again.

    Raises OSError (ENOTTY) where the filesystem cannot do it. Needs root.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _GOING_DOWN, struct.pack("=I", going))
    finally:
        os.close(fd)
