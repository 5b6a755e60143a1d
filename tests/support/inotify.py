"""inotify(7) itself: what the kernel tells those who watch a folder."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = {0x2: "MODIFY", 0x8: "CLOSE_WRITE", 0x40: "MOVED_FROM", 0x80: "MOVED_TO", 0x100: "CREATE", 0x200: "DELETE"}
_NONBLOCK = 0o4000


class Watch:
    """A watch of one folder."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(_NONBLOCK)
        assert libc.inotify_add_watch(self.fd, os.fsencode(folder), sum(NAMES)) >= 0, os.strerror(ctypes.get_errno())

    def events(self) -> dict[str, list[str]]:
        """The events of each name since the last time; the kernel queues them before the call returns."""
        found: dict[str, list[str]] = {}
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.fd, 1 << 16):
                while data:
                    _, mask, _, size = struct.unpack("iIII", data[:16])
                    name = os.fsdecode(data[16 : 16 + size].rstrip(b"\0"))
                    found.setdefault(name, []).append(NAMES[mask & sum(NAMES)])
                    data = data[16 + size :]
        return found


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[Watch]:
    """Watch a folder in the block."""
    watch = Watch(folder)
    try:
        yield watch
    finally:
        os.close(watch.fd)
