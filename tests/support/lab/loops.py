"""Loop devices that free themselves: attached with autoclear, held by a descriptor and by what is mounted.

The kernel detaches such a device when its last user goes: the descriptor here,
and the mount. No process has to run for that, so nothing stays after SIGKILL.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

from tests.support.lab.linux import StrPath

if TYPE_CHECKING:
    from types import TracebackType

_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_AUTOCLEAR = 4
# struct loop_config: backing fd, block size, loop_info64 (of which only the flags
# and the file name, kept for people to read, are set here), reserved words.
_CONFIG = struct.Struct("=II QQQQQ IIII 64s64s32s QQ 64x")
_BLKFLSBUF = 0x1261
_ATTEMPTS = 50


def missing_loop() -> str | None:
    """Why there are no loop devices here, as a reason to skip; None when there are."""
    if not os.access("/dev/loop-control", os.R_OK | os.W_OK):
        return "needs loop devices (/dev/loop-control)"
    return None


class LoopDevice:
    """A block device over the file ``image``; ``path`` is its name, such as /dev/loop3.

    A context manager. :meth:`close` lets go of it; it disappears at that moment,
    or when what is mounted from it is unmounted, whichever comes later.
    """

    def __init__(self, image: StrPath) -> None:
        backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._fd, self.path = _attach(backing, os.fsencode(image))
        finally:
            os.close(backing)

    def flush(self) -> None:
        """Write out and drop what the kernel caches of the device itself (not of a filesystem on it)."""
        fcntl.ioctl(self._fd, _BLKFLSBUF, 0)

    def close(self) -> None:
        """Let go of the device; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> LoopDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _attach(backing: int, name: bytes) -> tuple[int, str]:
    # Another process can take the free number first: then the next one is tried.
    for _ in range(_ATTEMPTS):
        path = f"/dev/loop{_free_number()}"
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_CONFIGURE, _configuration(backing, name))
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EBUSY:
                raise
        except BaseException:
            os.close(fd)
            raise
        else:
            return fd, path
    raise OSError(errno.EBUSY, "no free loop device")


def _free_number() -> int:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    with contextlib.closing(os.fdopen(control, "rb", buffering=0)):
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)


def _configuration(backing: int, name: bytes) -> bytes:
    return _CONFIG.pack(backing, 0, 0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, name[:63], b"", b"", 0, 0)
