"""What a destination was when somebody looked: the ticket for compare-and-swap."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from attrs import define

from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._system import kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 1 << 20


@define(frozen=True)
class Observation:
    """What stood at a path: give it to ``expect=``, and the commit happens only if that still stands there.

    Made by `observe`.  ``path``: the absolute path.  ``identity``: which object (file handle, or type and inode), None
    when there was nothing.  ``size`` in bytes, ``mtime_ns`` and ``ctime_ns`` in nanoseconds since the epoch: they
    show changes made in place, as far as the clock of the filesystem tells them apart (about 4 ms before Linux 6.13).
    ``digest``: BLAKE2b of the content, when asked for: it shows every change.  Of a folder,
    only changes of its own entries show.
    """

    path: str
    identity: bytes | None
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    digest: bytes | None = None

    @property
    def absent(self) -> bool:
        """Whether there was nothing."""
        return self.identity is None

    def _mismatch(self, place: Place, *, moved: bool = False) -> str | None:
        """How what stands at `place` differs, None when it does not.  `moved` ignores the ctime, for renames set it."""
        now = place.identity()
        if now != self.identity:
            if now is None:
                return "it was removed"
            return "something was created there" if self.identity is None else "it was replaced"
        if now is None:
            return None
        found = place.stat()
        if found is None:
            return "it was removed"
        times = (found.st_mtime_ns, self.ctime_ns if moved else found.st_ctime_ns)
        if (found.st_size, *times) != (self.size, self.mtime_ns, self.ctime_ns):
            return "it was changed in place"
        if self.digest is not None and _digest(place) != self.digest:
            return "its content was changed"
        return None


def observe(path: str | os.PathLike[str], *, digest: bool = False) -> Observation:
    """Look at `path` (links are not followed) and remember what stands there, for ``expect=``.

    >>> seen = atomik.observe("config.json", digest=True)
    >>> with atomik.file("config.json", expect=seen) as f:  # ConflictError if it changed
    ...     json.dump(config, f)

    :param path: a str or path object; that nothing is there is an observation too.
    :param bool digest: also read a regular file's content, so that even a change that keeps inode, size and times is
        seen.
    :returns: an `Observation`.
    :raises atomik.errors.InvalidDestinationError: no usable name, as for `file`.
    :raises atomik.errors.MissingPathError: the folder that should hold it does not exist.
    :raises atomik.errors.AccessDeniedError: it, or its folder, may not be read.

    Limit: without ``digest`` two changes within one tick of the filesystem's clock look alike (see `Observation`).
    Source: statx(2), name_to_handle_at(2).
    """
    from atomik._folder.paths import split

    head, name = split(os.fsdecode(path), folder=True)
    with kernel.typed("cannot observe", os.path.join(head, name)):
        directory = Directory.open(head)
        try:
            return look_at(Place(directory, name), digest=digest)
        finally:
            directory.close()


def look_at(place: Place, *, digest: bool) -> Observation:
    """What exists at a place, as an observation."""
    found = place.stat()
    if found is None:
        return Observation(str(place), None)
    # Times were taken before the content: a change in between makes the observation stale, never wrong.
    content = _digest(place) if digest else None
    return Observation(str(place), place.identity(), found.st_size, found.st_mtime_ns, found.st_ctime_ns, content)


def _digest(place: Place) -> bytes | None:
    """BLAKE2b-256 of a regular file, None of anything else."""
    from hashlib import blake2b

    found = place.stat()
    if found is None or not kernel.is_file(found.st_mode):
        return None  # not even opened: with a device or a FIFO that may have effects of its own
    try:
        fd = kernel.port.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, place.fd)
    except OSError as exc:
        if kernel.errno_of(exc) in (errno.ELOOP, errno.ENXIO, errno.ENOENT):
            return None
        raise
    try:
        if not kernel.is_file(kernel.port.fstat(fd).st_mode):
            return None
        state = blake2b(digest_size=32)
        for chunk in _chunks(fd):
            state.update(chunk)
        return state.digest()
    finally:
        kernel.port.close(fd)


def _chunks(fd: int) -> Iterator[bytes]:
    at = 0
    while chunk := kernel.port.pread(fd, _CHUNK, at):
        yield chunk
        at += len(chunk)
