"""Every error that atomik raises on purpose.

`AtomikError` is the root.  A class that stands for a failed system call also inherits the builtin
`OSError` subclass of that failure, and carries ``errno``, ``filename`` and, where two paths take part,
``filename2``; so ``except FileExistsError`` and ``except atomik.errors.AtomikError`` both work.
The message says what happened and what cures it.  All of them survive pickling.

What the classes tell about the destinations:

* raised while staging, or a `ConflictError`, `FileAlreadyExistsError`, `CommitError` out of ``commit()``:
  every destination is as it was before, and nothing of ours is left;
* `DurabilityError`: every destination is new, but a power cut could still take that back;
* `RollbackError`: in doubt; the journal stays and `atomik.recover()` settles it.
"""

from __future__ import annotations

import contextlib
import errno as _errno
import os
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "AccessDeniedError",
    "AtomikError",
    "AtomikOSError",
    "CommitError",
    "ConflictError",
    "CrossFilesystemError",
    "DuplicateDestinationError",
    "DurabilityError",
    "FileAlreadyExistsError",
    "InvalidCrossDeviceError",
    "InvalidDestinationError",
    "JournalError",
    "LockTimeoutError",
    "MissingPathError",
    "MountPointError",
    "NestedDestinationError",
    "RollbackError",
    "TransactionStateError",
    "UnsupportedFilesystemError",
    "WrongKindError",
]


class AtomikError(Exception):
    """The root of all errors raised by atomik."""


class AtomikOSError(AtomikError, OSError):
    """A system call failed and no narrower class says why; ``errno`` and ``filename`` do."""


class AccessDeniedError(AtomikOSError, PermissionError):
    """EACCES or EPERM: this user may not do that there.  Nothing was changed."""


class MissingPathError(AtomikOSError, FileNotFoundError):
    """The destination's parent, a ``tmp_dir``, or something that must exist (``mode="r+"``, a removal,
    the source of a move) is not there.  Pass ``parents=True`` to have missing parents made."""


class FileAlreadyExistsError(AtomikOSError, FileExistsError):
    """Something stands at the destination and ``overwrite`` is false.  It was left alone, whoever won the race."""


class WrongKindError(AtomikOSError, IsADirectoryError, NotADirectoryError):
    """A file was to replace a folder, or a folder something that is no folder.  Remove the old one first."""


class InvalidDestinationError(AtomikOSError, ValueError):
    """The destination is no usable name: empty, ``.``, ``..``, with a NUL, too long, a file with a trailing slash."""


class CrossFilesystemError(AtomikOSError):
    """Two paths of one transaction lie on different filesystems (or mounts), so no rename can join them.
    ``devices`` holds their ``st_dev`` values, ``filename`` and ``filename2`` the paths."""

    devices: tuple[int, int] | None = None


InvalidCrossDeviceError = CrossFilesystemError


class UnsupportedFilesystemError(AtomikOSError):
    """The filesystem cannot keep the promise that the call makes.  Nothing was touched.
    ``atomik doctor FOLDER`` shows what it can."""


class MountPointError(AtomikOSError):
    """The destination is a mount point, or a folder that would be displaced contains one (EBUSY)."""


class DuplicateDestinationError(AtomikOSError, FileExistsError):
    """The same destination was staged twice in one transaction, perhaps under two spellings."""


class NestedDestinationError(AtomikOSError):
    """One destination of the transaction lies inside another.  Write into the staged folder instead."""


class ConflictError(AtomikOSError):
    """The destination, or the folder that holds it, is no longer what was expected: somebody changed it
    meanwhile.  Theirs was left alone.  Read again and repeat the transaction."""


class LockTimeoutError(AtomikOSError, TimeoutError):
    """Another transaction, or a stranger, held the lock on the folder for longer than ``lock_timeout`` seconds."""


class TransactionStateError(AtomikError, RuntimeError):
    """A method was called in a state that does not allow it: staging after the commit, committing twice,
    committing an item whose writing failed, or using a transaction in a forked child."""


class CommitError(AtomikOSError):
    """The commit failed and everything was rolled back.  ``__cause__`` is the system's error."""


class RollbackError(AtomikOSError):
    """In doubt: the commit failed, and undoing it failed as well.  The journal stays.
    Call ``atomik.recover(folder)`` once the cause is mended; do not touch the destinations before."""


class DurabilityError(AtomikOSError):
    """Every destination is the new version, but a sync after the swaps failed, so a power cut may
    still bring the old ones back.  Do not retry the sync: it would say "fine" without being so.
    Check the disk, then write again.  ``receipt`` tells what was published."""

    receipt: object = None


class JournalError(AtomikOSError):
    """A journal is damaged, from a newer version, or not one that this user may trust.  Nothing was touched."""


#: EEXIST is not among them: whose name is taken, a destination or one of ours, only the caller knows.
_BY_ERRNO: dict[int, type[AtomikOSError]] = {
    _errno.EACCES: AccessDeniedError,
    _errno.EPERM: AccessDeniedError,
    _errno.ENOENT: MissingPathError,
    _errno.EXDEV: CrossFilesystemError,
    _errno.EBUSY: MountPointError,
    _errno.ENAMETOOLONG: InvalidDestinationError,
    _errno.EISDIR: WrongKindError,
    _errno.ENOTDIR: WrongKindError,
}

_CURE = {
    _errno.EACCES: "check the permissions of the folder and of the path to it",
    _errno.EPERM: "look for an immutable or append-only flag (lsattr), a sticky folder, or another owner",
    _errno.ENOSPC: "free some space on the filesystem, then repeat",
    _errno.EDQUOT: "free some of the disk quota, then repeat",
    _errno.EROFS: "the filesystem is mounted read-only: remount it or choose another folder",
    _errno.EIO: "the device failed: check the kernel log",
    _errno.ESTALE: "the network filesystem lost the folder: open it again",
    _errno.EBUSY: "a mount point cannot be replaced: write to a path inside it, or unmount it",
    _errno.EXDEV: "choose destinations (and tmp_dir) on one filesystem and mount",
    _errno.ENOENT: "create the missing folder, or pass parents=True",
    _errno.ENAMETOOLONG: "choose a shorter name",
    _errno.EMFILE: "raise the limit of open files (ulimit -n) or close some",
}


def system_error(
    cause: OSError, action: str, path: str | os.PathLike[str] | None, path2: str | None = None
) -> AtomikOSError:
    """The atomik error for a failed system call: same errno, the paths, and the usual cure."""
    number = cause.errno or _errno.EIO
    return _BY_ERRNO.get(number, AtomikOSError)(*describe(number, action, path, path2))


@contextlib.contextmanager
def typed(action: str, path: str) -> Iterator[None]:
    """Turn the system's errors in the block into atomik's, which say what was tried and with which path."""
    try:
        yield
    except AtomikError:
        raise
    except OSError as exc:
        raise system_error(exc, action, path) from exc


def describe(
    number: int, action: str, path: str | os.PathLike[str] | None, path2: str | None = None
) -> tuple[object, ...]:
    """The arguments of an `OSError` that says what was tried, why it failed and what helps."""
    text = f"{action}: {os.strerror(number)}"
    if number in _CURE:
        text += f"; {_CURE[number]}"
    return os_args(number, text, path, path2)


def os_args(
    number: int, text: str, path: str | os.PathLike[str] | None, path2: str | None = None
) -> tuple[object, ...]:
    """Positional arguments of `OSError`, with the second path where there is one."""
    name = None if path is None else os.fspath(path)
    return (number, text, name) if path2 is None else (number, text, name, None, path2)


def fail(
    kind: type[AtomikOSError], number: int, text: str, path: str | None = None, path2: str | None = None
) -> NoReturn:
    """Raise `kind` with an errno, a message and its paths."""
    raise kind(*os_args(number, text, path, path2))
