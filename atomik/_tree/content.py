"""Copy one file's content the cheapest way that the filesystem has, holes as holes.

The methods, from the cheapest: share all extents (FICLONE), copy inside the kernel (copy_file_range(2)), read and write.
A `Copier` remembers which of them a pair of filesystems refused: use one for as long as the pair is the same.
"""

from __future__ import annotations

import errno
import os

from atomik._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Larger pieces would make Ctrl-C wait.
_PIECE = 1 << 26
_BUFFER = 1 << 20

#: "Not here" of FICLONE: no such operation, another filesystem, a file whose extents cannot be shared, or a sandbox.
_NO_REFLINK = kernel.SANDBOXED | {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY}
#: The same of copy_file_range; ETXTBSY of an active swap file.
_NO_RANGES = kernel.SANDBOXED | {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ETXTBSY}


def copy_content(src_fd: int, dst_fd: int) -> None:
    """Make the empty file `dst_fd` hold what `src_fd` holds; no metadata, and both offsets may have moved."""
    Copier().copy(src_fd, dst_fd, kernel.port.fstat(src_fd))


class Copier:
    """Copies content, and remembers which methods do not work between two filesystems."""

    def __init__(self) -> None:
        self.reflink = self.ranges = True

    def copy(self, src: int, dst: int, found: os.stat_result) -> None:
        """Copy into an empty file; `found` is the fstat of `src`."""
        size = found.st_size
        if not size:
            self._by_hand(src, dst, 0, None)  # perhaps it only says so (some FUSE servers, /proc)
            return
        if self.reflink:
            try:
                kernel.port.clone(dst, src)
            except OSError as exc:
                if kernel.errno_of(exc) not in _NO_REFLINK:
                    raise
                self.reflink = False
        if not self.reflink:
            if found.st_blocks * 512 >= size:
                self._range(src, dst, 0, size)
            else:
                for start, end in _data(src, size):
                    if (reached := self._range(src, dst, start, end)) < end:
                        size = reached  # it ends sooner than it says (files of /sys), or became shorter
                        break
                kernel.port.truncate(dst, size)

    def _range(self, src: int, dst: int, start: int, end: int) -> int:
        """Copy from `start` to `end`; returns how far it came, which is less only where the file ends."""
        at = start
        while self.ranges and at < end:
            try:
                copied = kernel.port.copy_range(src, dst, min(end - at, _PIECE), at, at)
            except OSError as exc:
                if kernel.errno_of(exc) not in _NO_RANGES:
                    raise
                self.ranges = False
                break
            if not copied:  # it became shorter; or the kernel says so wrongly, as some have
                break
            at += copied
        return at if at >= end else self._by_hand(src, dst, at, end)

    def _by_hand(self, src: int, dst: int, start: int, end: int | None) -> int:
        """Read and write from `start` to `end`, or to the end of the file; returns how far it came."""
        port, at = kernel.port, start
        while end is None or at < end:
            data = port.pread(src, _BUFFER if end is None else min(_BUFFER, end - at), at)
            if not data:
                break
            view = memoryview(data)
            while view:
                done = port.pwrite(dst, view, at)
                view = view[done:]
                at += done
        return at


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes (lseek(2), SEEK_DATA and SEEK_HOLE)."""
    seek, at = kernel.port.seek, 0
    while at < size:
        try:
            start = seek(fd, at, os.SEEK_DATA)
            end = min(seek(fd, start, os.SEEK_HOLE), size)
        except OSError as exc:
            number = kernel.errno_of(exc)
            if number == errno.ENXIO:  # nothing but a hole from here on
                return
            if number != errno.EINVAL:
                raise
            yield at, size  # the filesystem cannot say
            return
        if start >= size:
            return
        yield start, end
        at = end
