"""Every error that atomik raises on purpose.

`AtomikError` is the root.  A class for a failed system call also inherits from the builtin `OSError` subclass of that
failure, and has ``errno``, ``filename`` and, if there are two paths, ``filename2``; so ``except FileExistsError`` and
``except atomik.errors.AtomikError`` both work.  The message says what happened and what to do.  All of them can be pickled.

What the classes say about the destinations:

* raised while staging, or a `ConflictError`, `FileAlreadyExistsError` or `CommitError` from ``commit()``: every destination
  is as it was before, and nothing of atomik's is left;
* `DurabilityError`: every destination is new, but a power cut could still bring the old ones back;
* `RollbackError`: in doubt; the journal stays, and `atomik.recover()` settles it.
"""

from __future__ import annotations

import errno as _errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from ._receipt import Receipt

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
    "NamespaceError",
    "NestedDestinationError",
    "RollbackError",
    "StillRunningError",
    "TransactionStateError",
    "UndecidedError",
    "UnsupportedFilesystemError",
    "WrongKindError",
]


class AtomikError(Exception):
    """The root of all errors that atomik raises on purpose: catch it to catch them all.

    Wrong arguments (an unknown option, a mode that does not write) raise ValueError and TypeError, as from `open`.
    """

    __module__ = "atomik"


class AtomikOSError(AtomikError, OSError):
    """A system call failed, and there is no narrower class for it; see ``errno``, ``filename`` and the message.

    Every class for a failed system call derives from this one.  The usual causes that have no class of their own are a full
    disk (ENOSPC), an exhausted quota (EDQUOT), a read-only mount (EROFS) and a failing device (EIO).

    ``report``: if `atomik.recover` raised it, the `atomik.RecoveryReport` of what was done nevertheless.
    """

    report: object = None


class AccessDeniedError(AtomikOSError, PermissionError):
    """This user is not allowed to do that there (EACCES, EPERM).  Nothing was changed.

    Cause: no write or search permission on the folder, an immutable or append-only flag, a sticky folder in which the
    entry belongs to another user, or a security module.

    Cure: check the folder's permissions (``ls -ld``) and flags (``lsattr -d``); run as a user who may write there.
    """


class MissingPathError(AtomikOSError, FileNotFoundError):
    """Something that must exist does not (ENOENT).  Nothing was changed.

    Cause: the parent folder of the destination, or the ``tmp_dir``, is missing; or the source of a move, a removal, an
    update or a mode "r+" is missing; or nothing was written to the path from `atomik.path`.

    Cure: create it, or pass ``parents=True`` for missing folders, or ``missing_ok=True`` for a removal.
    """


class FileAlreadyExistsError(AtomikOSError, FileExistsError):
    """The destination exists and ``overwrite`` is false (EEXIST).  What exists was left alone, whoever won the race.

    Cause: it existed when the output was staged, or someone else published first; the message says which.

    Cure: pass ``overwrite=True`` if it may be replaced, or choose another name.
    """


class WrongKindError(AtomikOSError, IsADirectoryError, NotADirectoryError):
    """A file cannot replace a folder, nor a folder anything else (EISDIR, ENOTDIR).  Nothing was changed.

    Cause: what exists at the destination is of another kind than the output.

    Cure: remove it first in the same transaction (`Transaction.remove`), or choose another name.
    """


class InvalidDestinationError(AtomikOSError, ValueError):
    """The destination is not a usable name.  Nothing was changed.

    Cause: it is empty, ends in ``.``, ``..`` or (for a file) a slash, contains a NUL, is longer than 255 bytes, or begins
    with ``.atomik-``, which is reserved for atomik; or ``backup=`` names something outside the destination's folder.

    Cure: choose another name.
    """


class CrossFilesystemError(AtomikOSError):
    """Two paths of one call are on different filesystems or mounts, and the kernel does not rename across them (EXDEV).

    ``devices`` has their ``st_dev`` values, ``filename`` and ``filename2`` the paths.  Nothing was changed.

    Cause: the destinations of one transaction, or a destination and its ``tmp_dir``, are on two filesystems, or on two mounts
    of one filesystem, such as a bind mount.

    Cure: use one transaction for each filesystem; leave ``tmp_dir`` out.
    """

    devices: tuple[int, int] | None = None


InvalidCrossDeviceError = CrossFilesystemError


class UnsupportedFilesystemError(AtomikOSError):
    """The filesystem cannot keep the promise that the call makes.  Every destination is as it was.

    Cause: the flags of renameat2(2) are missing (NFS, some FUSE servers, ZFS before 2.2), or a server reports success without
    doing what they mean; and no other method keeps the promise.

    Cure: write to another filesystem; for folders, ``allow_gap=True`` accepts a moment in which the folder is empty or
    missing.  ``atomik doctor FOLDER`` shows what a filesystem can do.
    """


class MountPointError(AtomikOSError):
    """A mount is in the way (EBUSY).  Nothing was changed.

    Cause: the destination is a mount point, such as a single file that is bind-mounted into a container; or something
    is mounted inside the folder that would be displaced, and the mount would move away with it.

    Cure: write to a path inside the mount, or unmount it.
    """


class DuplicateDestinationError(AtomikOSError, FileExistsError):
    """The same destination was staged twice in one transaction, without ``overwrite``.  The transaction stays usable.

    Cause: perhaps two spellings of one path, or two paths of which one leads through a symbolic link; or ``backup=``
    names the destination itself.

    Cure: stage it once, or pass ``overwrite=True`` to replace what was staged.
    """


class NestedDestinationError(AtomikOSError):
    """One destination of the transaction is inside another.  The transaction stays usable.

    Cause: a file was staged inside a folder that is also staged; or a folder would be moved into itself.

    Cure: write into the staged folder, using the path that ``tx.folder()`` returned.
    """


class ConflictError(AtomikOSError):
    """A destination, or the folder that holds it, is no longer what was expected.  Every destination is as it was.

    Cause: someone else changed, replaced, created or removed it in the meantime, or moved the folder; or a database that was
    written through `atomik.path` is still open.

    ``path``, ``expected`` (the value of ``expect=``) and ``found`` (an `atomik.Observation`) say what differs, if an
    expectation was not met; otherwise they are None.

    Cure: read again and repeat the whole transaction; their version was kept.
    """

    path: str | None = None
    expected: object = None
    found: object = None


class LockTimeoutError(AtomikOSError, TimeoutError):
    """Another process held the lock on a folder for longer than ``lock_timeout`` seconds (ETIMEDOUT).  Nothing was changed.

    Cause: another transaction or reader is running there, or another program holds an flock(2) on the folder.

    Cure: repeat later, or raise ``lock_timeout``; ``lslocks`` or ``fuser FOLDER`` show who holds the lock.
    """


class TransactionStateError(AtomikError, RuntimeError):
    """A method was called in a state that does not allow it.  This is a mistake in the calling program.

    Cause: staging after the commit, committing twice, committing although writing an item failed, or using a transaction in a
    forked child.

    Cure: begin a new transaction; stage the failed item again, drop it, or abort.
    """


class CommitError(AtomikOSError):
    """A system call of the commit failed, and everything was rolled back: every destination is as it was.

    ``__cause__`` is the system's error, and ``errno`` is its number.

    Cause: see the message and ``__cause__``; often a full disk or a failing device.

    Cure: fix that, then repeat the whole transaction.
    """


class RollbackError(AtomikOSError):
    """In doubt: the commit or a recovery failed, and undoing it failed as well.  The journal stays.

    Cause: a failing device, a filesystem that became read-only, or a folder that was moved away during the commit.

    Cure: fix the problem, then call `atomik.recover` on the folder in ``filename``; do not change the destinations before
    that.  For a single output there is no journal: ``filename2`` says where the original is.
    """


class DurabilityError(AtomikOSError):
    """Every destination is new, but a sync after the swaps failed: a power cut may still bring the old ones back.

    ``receipt``, an `atomik.Receipt`, says what was published.

    Cause: the device reported an error for an fsync(2).

    Cure: check the disk and the kernel log, call `atomik.recover` on the folder, then write the outputs again.  Do not
    just sync again: the kernel reports an error only once, and the next sync would seem to succeed.
    """

    receipt: Receipt | None = None


class JournalError(AtomikOSError):
    """A journal, ``.atomik-journal``, cannot be trusted.  Nothing was touched.

    Cause: it is damaged, was written by a newer version of atomik, belongs to another user, can be written by others, is
    not a regular file, or was copied here from elsewhere.  Or the code that recovers it cannot be loaded any more, because
    the process has entered a chroot or dropped rights, or atomik was upgraded, since the output was staged.

    Cure: recover as its owner, as root, or with the newer version; if atomik did not make it, remove it.
    """


class UndecidedError(AtomikOSError):
    """A transaction in the folder is prepared, its process is dead, and its coordinator has to decide the outcome.  Nothing
    was touched.

    Cause: the process died between ``tx.prepare()`` and ``tx.commit()`` of a transaction with ``coordinator=``.  Only the
    coordinator, such as a database, knows whether the transaction should be committed.

    Cure: call ``atomik.recover(folder, decide=f)``, where ``f(txid, coordinator)`` asks the coordinator and returns True to
    commit or False to undo.  ``txid`` and ``coordinator`` are attributes of this error.
    """

    txid: str = ""
    coordinator: str = ""


class NamespaceError(AtomikOSError):
    """This process cannot show a program a private copy of a folder (`atomik.run_in`).  Nothing was changed, and the program
    did not run.

    Cause: the kernel refuses a mount namespace, or a mount in it: user namespaces are restricted (AppArmor, a sysctl), a
    container's filter forbids the calls, the process is in a chroot, or the kernel is older than Linux 5.2.  With
    ``changes_only``: an overlay cannot be mounted there, or does not record all changes.

    Cure: see the message; as root with CAP_SYS_ADMIN no user namespace is needed.  ``atomik doctor FOLDER`` says whether it
    works.
    """


class StillRunningError(AtomikOSError):
    """The program succeeded, but processes that it started are still running on the private copy (`atomik.run_in`).  Nothing
    was published.

    ``pids`` are their process ids.

    Cause: a daemon or a background job that the program left running.  It could change the folder after it was published.

    Cure: end it in the program, or pass ``background="wait"`` or ``"kill"``.
    """

    pids: tuple[int, ...] = ()


#: EEXIST is not among them: only the caller knows whether a destination or one of our own names exists.
_BY_ERRNO: dict[int, type[AtomikOSError]] = {
    _errno.EACCES: AccessDeniedError,
    _errno.EPERM: AccessDeniedError,
    _errno.ENOENT: MissingPathError,
    _errno.EXDEV: CrossFilesystemError,
    _errno.EBUSY: MountPointError,
    _errno.ENAMETOOLONG: InvalidDestinationError,
    _errno.EILSEQ: InvalidDestinationError,
    _errno.EISDIR: WrongKindError,
    _errno.ENOTDIR: WrongKindError,
}

_CURE = {
    _errno.EACCES: "check the permissions of the folder and of the path to it, and what a sandbox allows",
    _errno.EPERM: "look for an immutable or append-only flag (lsattr), a sticky folder, another owner, or a sandbox",
    _errno.ENOSYS: "the kernel is too old, or a sandbox or seccomp filter refuses the call: allow it",
    _errno.EOVERFLOW: "this user has no id there (an id-mapped mount): write as a user who has one",
    _errno.ENOTCONN: "the server of the filesystem has died: mount it again",
    _errno.ECONNABORTED: "the server of the filesystem has died: mount it again",
    _errno.ENOSPC: "free some space on the filesystem, then repeat",
    _errno.EDQUOT: "free some of the disk quota, then repeat",
    _errno.EROFS: "the filesystem is mounted read-only: remount it or choose another folder",
    _errno.EIO: "the device failed: check the kernel log",
    _errno.ESTALE: "the network filesystem lost the folder: begin again",
    _errno.EBUSY: "a mount point cannot be replaced: write to a path inside it, or unmount it",
    _errno.EXDEV: "choose destinations (and tmp_dir) on one filesystem and mount",
    _errno.ENOENT: "create what is missing, or correct the path",
    _errno.ENAMETOOLONG: "choose a shorter name",
    _errno.EILSEQ: "the filesystem has only names that are valid Unicode (NTFS, FAT): choose such a name",
    _errno.ELOOP: "symbolic links on the path form a loop: fix them, or use the real path",
    _errno.ENOTDIR: "a part of the path is not a folder: correct the path, or remove what is there",
    _errno.EMFILE: "raise the limit of open files (ulimit -n, LimitNOFILE= of systemd), or publish in several transactions",
}


def system_error(
    cause: OSError, action: str, path: str | os.PathLike[str] | None, path2: str | None = None
) -> AtomikOSError:
    """The atomik error for a failed system call: same errno, the paths, and the usual cure."""
    number = cause.errno or _errno.EIO
    return _BY_ERRNO.get(number, AtomikOSError)(*describe(number, action, path, path2, cause.strerror))


def describe(
    number: int,
    action: str,
    path: str | os.PathLike[str] | None,
    path2: str | None,
    why: str | None,
) -> tuple[object, ...]:
    """The arguments of an `OSError` that says what was tried, why it failed and what helps."""
    text = f"{action}: {why or os.strerror(number)}"
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
