"""Files that belong to another one by their names: what would be mispaired in silence is refused.

A database's log (SQLite's ``-wal`` and ``-journal``, DuckDB's ``.wal``) holds changes that its program will replay into
whatever database it finds under the name: into the new one, if only the database is replaced.  And a file that this process
still holds open for writing may lack what is written when it is closed (HDF5 writes its header then).
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, NoReturn

from atomik import errors
from atomik._folder.place import Place
from atomik._system import kernel

if TYPE_CHECKING:
    from .workspace import Workspace

#: what a database's log is called, behind the database's own name
_LOGS = ("-wal", "-journal", ".wal")
#: names under which a file that is written by `Transaction.file` is taken for a database
_DATABASES = (".db", ".db3", ".sqlite", ".sqlite3", ".s3db", ".sl3", ".duckdb", ".gpkg", ".mbtiles")
_NAME_MAX = 255


def is_database(name: str) -> bool:
    """Whether a file of that name is probably a database."""
    return name.endswith(_DATABASES)


def refuse_log(place: Place, workspace: Workspace, path: str) -> None:
    """Refuse to publish at `place` while a log with changes for its predecessor lies beside it, unless the same transaction
    removes that."""
    for suffix in _LOGS:
        name = place.name + suffix
        if len(name) > _NAME_MAX // 4 and len(os.fsencode(name)) > _NAME_MAX:
            continue
        log = Place(place.directory, name)
        there = None if log in workspace.removed else log.stat()
        if there is not None and kernel.is_file(there.st_mode) and there.st_size:
            _refuse_log(str(log), path)


def _refuse_log(log: str, path: str) -> NoReturn:
    text = (
        "a log beside the destination holds changes for the database that is, or was, there, and would be replayed into the "
        "new one; open the database once with its own program, so that it finishes, or remove the log in the same "
        "transaction (tx.remove)"
    )
    errors.fail(errors.ConflictError, errno.EBUSY, text, log, path)


def refuse_open(place: Place, path: str) -> None:
    """Refuse a file that this process still holds open for writing.  Where /proc does not tell, nothing is known."""
    found = place.status()
    if found is None or not kernel.is_file(found.mode):
        return
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return
    for fd in descriptors:
        if _writes(fd, found.dev, found.ino):
            text = "this process still holds it open for writing, so the last of it may be missing; close it first"
            errors.fail(errors.ConflictError, errno.EBUSY, text, path)


def _writes(fd: int, dev: int, ino: int) -> bool:
    try:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            return False
        there = kernel.port.fstat(fd)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return False  # closed since it was listed
    return (there.st_dev, there.st_ino) == (dev, ino)
