"""What a destination was when it was observed, for compare-and-swap.

Of a folder it covers the whole tree (`_tree.fingerprint`).
"""

from __future__ import annotations

import errno
import os

from atomik._folder.directory import Directory
from atomik._receipt import Values
from atomik._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from atomik._folder.place import Place


_SECOND = 10**9


class Observation(Values):
    """What was at a path: pass it as ``expect=``, and the commit happens only if that is still there.

    Made by `observe`.  ``path``: the absolute path.  ``identity``: which object (file handle, or type and inode), None
    if there was nothing.  ``size`` in bytes, ``mtime_ns`` and ``ctime_ns`` in nanoseconds since the epoch: they
    show changes made in place, if the clock of the filesystem can tell them apart (about 4 ms before Linux 6.13).
    ``tree``: for a folder, a hash of the same for everything in it, else None.  ``digest``: if asked for, BLAKE2b of the
    content of a file, or of all files and link targets in a folder: it shows every change.
    """

    __module__ = "atomik"

    __match_args__ = ("path", "identity", "size", "mtime_ns", "ctime_ns", "digest", "tree")
    __slots__ = (*__match_args__, "_folders")

    path: str
    identity: bytes | None
    size: int
    mtime_ns: int
    ctime_ns: int
    digest: bytes | None
    tree: bytes | None
    #: of a folder: a value for each folder in it, by which the first difference is found
    _folders: tuple[tuple[str, bytes], ...]

    def __init__(
        self, path: str, identity: bytes | None, size: int = 0, mtime_ns: int = 0, ctime_ns: int = 0,
        digest: bytes | None = None, tree: bytes | None = None, folders: tuple[tuple[str, bytes], ...] = (),
    ) -> None:  # fmt: skip
        self._set(path, identity, size, mtime_ns, ctime_ns, digest, tree)
        object.__setattr__(self, "_folders", folders)

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), (*self._values(), self._folders)

    @property
    def absent(self) -> bool:
        """Whether there was nothing."""
        return self.identity is None

    def _mismatch(self, place: Place, *, moved: bool = False) -> str | None:
        """How what exists at `place` differs, None if it does not.  `moved` ignores what renames set."""
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
        if self.tree is not None:
            return self._mismatch_in_tree(place)
        when = (found.st_mtime_ns,) if moved else (found.st_mtime_ns, found.st_ctime_ns)
        seen = (self.mtime_ns,) if moved else (self.mtime_ns, self.ctime_ns)
        # encfs cuts the time to seconds in a rename, which no later change can do
        cut = moved and found.st_mtime_ns == self.mtime_ns // _SECOND * _SECOND
        if found.st_size != self.size or (when != seen and not cut):
            return "it was changed in place"
        if self.digest is not None and _content(place, digest=True)[0] != self.digest:
            return "its content was changed"
        return None

    def _mismatch_in_tree(self, place: Place) -> str | None:
        """Whatever changes in the folder itself is in the value of its tree, except for what a rename changes."""
        from atomik._tree.fingerprint import fingerprint, first_difference

        folder = _folder(place)
        if folder is None:
            return "it was replaced"
        digest = self.digest is not None
        with folder:
            if fingerprint(folder, digest=digest) == self.tree:
                return None
            what = first_difference(folder, dict(self._folders), digest=digest)
        return f"{what!r} in it was changed" if what else "it was changed in place"


class Digest:
    """The SHA-256 of a regular file's content, as an expectation: ``expect="sha256:…"``."""

    __slots__ = ("hexadecimal",)

    absent = False

    def __init__(self, hexadecimal: str) -> None:
        self.hexadecimal = hexadecimal

    def __repr__(self) -> str:
        return f"sha256:{self.hexadecimal}"

    def _mismatch(self, place: Place, *, moved: bool = False) -> str | None:
        """How what exists at `place` differs, None when it does not."""
        now = sha256_of(place)
        if now is None:
            return "it is not a regular file" if place.status() is not None else "it was removed"
        return None if now == self.hexadecimal else f"its content is sha256:{now}, not {self!r}"


def parse_digest(text: str) -> Digest:
    """The digest in ``"sha256:…"``."""
    name, _, digits = text.partition(":")
    if name != "sha256" or len(digits) != 64 or set(digits.lower()) - set("0123456789abcdef"):
        raise ValueError(f"expect takes 'absent', 'any' or 'sha256:' with 64 hexadecimal digits, not {text!r}")
    return Digest(digits.lower())


def sha256_of(place: Place) -> str | None:
    """The SHA-256 of a regular file in hexadecimal, None of anything else."""
    from hashlib import sha256

    found = place.status()
    if found is None or not kernel.is_file(found.mode):
        return None
    fd = kernel.port.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, place.fd)
    try:
        state, at = sha256(), 0
        while piece := kernel.port.pread(fd, 1 << 20, at):
            state.update(piece)
            at += len(piece)
        return state.hexdigest()
    finally:
        kernel.port.close(fd)


def observe(path: str | os.PathLike[str], *, digest: bool = False) -> Observation:
    """Look at `path` (links are not followed) and remember what is there, for ``expect=``.

    >>> seen = atomik.observe("config.json", digest=True)
    >>> with atomik.file("config.json", expect=seen) as f:  # ConflictError if it changed
    ...     json.dump(config, f)

    :param path: a str or path object; nothing need exist there.
    :param bool digest: also read the content of a file, or of all files in a folder, so that even a change that keeps
        inode, size and times is seen.
    :returns: an `Observation`.
    :raises atomik.errors.InvalidDestinationError: not a usable name, as for `file`.
    :raises atomik.errors.MissingPathError: the folder that should hold it does not exist.
    :raises atomik.errors.AccessDeniedError: it, its folder, or something in it may not be read.

    Limit: without ``digest`` two changes within one tick of the filesystem's clock look alike (see `Observation`).
    Source: statx(2), name_to_handle_at(2).
    """
    from atomik._folder.paths import absolute, split
    from atomik._folder.place import Place

    head, name = split(os.fsdecode(path), folder=True)
    with kernel.typed("cannot observe", absolute(path)), Directory.open(head) as directory:
        return look_at(Place(directory, name), digest=digest)


def look_at(place: Place, *, digest: bool) -> Observation:
    """What exists at a place, as an observation."""
    found = place.stat()
    if found is None:
        return Observation(str(place), None)
    # Times were taken before the content: a change in between makes the observation stale, never wrong.
    identity = place.identity()
    folders: dict[str, bytes] = {}
    content, tree = _content(place, digest=digest, folders=folders)
    return Observation(
        str(place), identity, found.st_size, found.st_mtime_ns, found.st_ctime_ns, content, tree, tuple(folders.items())
    )


def _content(
    place: Place, *, digest: bool, folders: dict[str, bytes] | None = None
) -> tuple[bytes | None, bytes | None]:
    """(digest, value of the tree) of what exists at a place: of a file, of a folder; None of anything else."""
    from atomik._tree import fingerprint

    found = place.stat()
    if found is not None and kernel.is_folder(found.st_mode):
        folder = _folder(place)
        if folder is None:
            return None, None
        with folder:
            tree = fingerprint.fingerprint(folder, digest=digest, folders=folders)
        return tree if digest else None, tree
    if not digest or found is None or not kernel.is_file(found.st_mode):
        return None, None  # not even opened: with a device or a FIFO that may have effects of its own
    try:
        fd = kernel.port.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, place.fd)
    except OSError as exc:
        if kernel.errno_of(exc) in (errno.ELOOP, errno.ENXIO, errno.ENOENT):
            return None, None
        raise
    try:
        return fingerprint.content_digest(fd) or None, None
    finally:
        kernel.port.close(fd)


def _folder(place: Place) -> Directory | None:
    """The folder at a place, open; None when there is none any more."""
    try:
        return place.open()
    except OSError as exc:
        if kernel.errno_of(exc) in (errno.ELOOP, errno.ENOTDIR, errno.ENOENT):
            return None
        raise
