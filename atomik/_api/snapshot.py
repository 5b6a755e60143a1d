"""`snapshot`: a reader that stays with one version of a folder, for as long as it wants."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.paths import absolute
from atomik._folder.pin import pin
from atomik._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import NoReturn

    from atomik._staging.options import StrPath

#: How often a folder that is replaced between two system calls is opened again.
_ATTEMPTS = 1000


class Snapshot:
    """A pinned version of a folder; made by `snapshot`, whose help says how to use it.

    ``path`` and ``fd`` are there inside the block: a path to the version, and the descriptor that pins it.
    """

    __module__ = "atomik"

    __slots__ = ("__weakref__", "_directory", "_given", "_path")

    def __init__(self, folder: StrPath) -> None:
        self._given = os.fsdecode(folder)
        self._directory: Directory | None = None
        self._path: Path | None = None

    def __repr__(self) -> str:
        return f"<atomik.Snapshot of {self._given!r}{'' if self._path is None else f' at {str(self._path)!r}'}>"

    @property
    def fd(self) -> int:
        """The descriptor of the version; every copy of it (``pass_fds=`` of `subprocess.Popen`) keeps the version pinned."""
        return -1 if self._directory is None else self._directory.fd

    @property
    def path(self) -> Path:
        """A path that leads to this version, even after another one is published."""
        if self._path is None:
            raise errors.TransactionStateError("a snapshot has a path only inside its block: with snapshot(…) as path")
        return self._path

    def __enter__(self) -> Path:
        if self._directory is not None:
            raise errors.TransactionStateError("this snapshot is in use already; make another one")
        try:
            with kernel.typed("cannot read from the folder", absolute(self._given)):
                self._pin()
        except BaseException:
            self.close()
            raise
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Path:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the version up; harmless when repeated."""
        directory, self._directory, self._path = self._directory, None, None
        if directory is not None:
            directory.close()

    def _pin(self) -> None:
        for _ in range(_ATTEMPTS):
            self._directory = directory = Directory.open(self._given)
            pin(directory)
            if directory.still_there():  # a publisher that exchanges it from here on sees the pin
                self._path = _path_of(directory)
                return
            directory.close()
        text = "the folder is replaced all the time, between any two system calls; try again"
        errors.fail(errors.ConflictError, errno.EBUSY, text, absolute(self._given))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "cannot pickle 'Snapshot': it belongs to this process; send its path to processes on this machine"
        )


def _path_of(directory: Directory) -> Path:
    """By this process's descriptor: no rename leads it elsewhere, no closed folder is in its way, and children can use it."""
    for process in (str(os.getpid()), "self"):
        path = f"/proc/{process}/fd/{directory.fd}"
        try:
            found = kernel.port.stat(path)
        except OSError as exc:
            if kernel.errno_of(exc) is None:
                raise
            continue
        if (found.st_dev, found.st_ino) == directory.key:
            return Path(path)
    text = (
        "without /proc there is no path that stays with one version of the folder; mount /proc, or use atomik.reading"
    )
    errors.fail(errors.UnsupportedFilesystemError, errno.ENOSYS, text, directory.path)


def snapshot(folder: StrPath) -> Snapshot:
    """Read one version of a folder for as long as it takes, while others publish newer ones.

    >>> with atomik.snapshot("out") as path:
    ...     model, index = load(path / "model.bin"), load(path / "index.json")

    :param folder: a str or path object: a folder that is published as a whole, or a link to one.
    :returns: a `Snapshot`; ``with`` (or ``async with``) gives a `pathlib.Path` that leads to the version that exists at the
        beginning of the block, until its end.  It begins with ``/proc/<pid>/fd``, so programs that this process starts can
        use it too, even if they close all their descriptors, while this process is in the block.  For a program that
        outlives the block, pass the descriptor: ``pass_fds=[s.fd]``, and ``/proc/self/fd/<s.fd>`` as the path.

    :raises atomik.errors.MissingPathError, atomik.errors.WrongKindError, atomik.errors.AccessDeniedError: the folder cannot
        be opened.
    :raises atomik.errors.UnsupportedFilesystemError: without /proc there is no such path, or a sandbox refuses the lock.
    :raises atomik.errors.ConflictError: the folder is replaced again and again, between any two system calls.

    Guarantee: a transaction that replaces or removes the folder deletes nothing of that version before the block has ended,
    even if the reader is another user with only read permission.  It does not wait either: when the last reader has ended,
    the version is deleted by the next transaction that replaces or removes a folder in the same place, or by `recover`.  The
    pin ends with the process.

    Limits: changes inside the folder are visible, and what other programs delete in it is deleted.  A program that resolves
    the path (realpath) gets the name that the version has at that moment; another version may have that name a moment later.
    Other machines do not see the pin on a network filesystem.

    Source: fcntl(2), F_OFD_SETLK (Linux 3.15); proc_pid_fd(5).
    """
    return Snapshot(folder)
