"""Files that belong to another one by their names: silent mismatches are refused, and ``also=`` names the companions.

A database's log (SQLite's ``-wal`` and ``-journal``, DuckDB's ``.wal``) holds changes that its program will replay into
whatever database it finds under the name: into the new one, if only the database is replaced.  And a file that this process
still holds open for writing may lack what is written when it is closed (HDF5 writes its header then).
"""

from __future__ import annotations

import errno
import fcntl
import os

from atomik import errors
from atomik._folder.paths import decoded
from atomik._folder.place import Place
from atomik._system import kernel

from .destinations import UNTOUCHED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NoReturn

    from .options import ItemOptions
    from .workspace import Workspace

#: what follows a database's name in the name of its log
_LOGS = ("-wal", "-journal", ".wal")
#: names under which a file that is written by `Transaction.file` is taken for a database
_DATABASES = (".db", ".db3", ".sqlite", ".sqlite3", ".s3db", ".sl3", ".duckdb", ".gpkg", ".mbtiles")
_NAME_MAX = 255
#: how SQLite's databases and its logs begin (https://sqlite.org/fileformat2.html, sections 1.3, 3 and 4.1)
_SQLITE = b"SQLite format 3\0"
_JOURNAL = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
_WAL = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")


def checked(also: Iterable[str], options: ItemOptions) -> Sequence[str]:
    """What was given as ``also=``, or TypeError and ValueError."""
    if isinstance(also, str | bytes | os.PathLike):
        raise TypeError(f"also takes a list of suffixes and file names, not {also!r}; write also=[{also!r}]")
    names = tuple(decoded(name, "also") for name in also)
    backup = options.get("backup")
    if names and backup is not None and not callable(backup):
        text = "with also=, backup must be a function from path to name, such as backup=lambda path: path + '.bak'"
        raise ValueError(f"{text}, because each file needs a name of its own; not {backup!r}")
    return names


def names_of(also: Iterable[str], name: str, path: str) -> list[str]:
    """The names that `also` means for a file `name` with the path `path`: ".shx" for "data.shp" is "data.shx"."""
    names: list[str] = []
    for given in also:
        if "/" in given or given in ("", ".", ".."):
            text = (
                "also= takes suffixes such as '.shx', and names in the destination's own folder; use a group for others"
            )
            errors.fail(errors.InvalidDestinationError, errno.EINVAL, text, given, path)
        beside = os.path.splitext(name)[0] + given if given[0] == "." else given
        if beside == name or beside in names:
            text = f"also= names {'the destination itself' if beside == name else 'it twice'}; leave it out there"
            errors.fail(errors.DuplicateDestinationError, errno.EEXIST, text, beside, path)
        if any(beside == name + log for log in _LOGS):
            text = "a database's log is not published next to it; close the database, so that it takes in the log"
            errors.fail(errors.InvalidDestinationError, errno.EINVAL, text, beside, path)
        names.append(beside)
    return names


def is_database(name: str) -> bool:
    """Whether a file of that name is probably a database."""
    return name.lower().endswith(_DATABASES)


def begins_as_database(fd: int) -> bool:
    """Whether the content of an open file is a database's, of SQLite or DuckDB, whatever its name is."""
    begins = kernel.port.pread(fd, len(_SQLITE), 0)
    return begins == _SQLITE or begins[8:12] == b"DUCK"


def refuse_log(place: Place, workspace: Workspace, path: str) -> None:
    """Refuse to publish at `place` while a log with changes for the old version is next to it, unless the same transaction
    moves or removes that."""
    for log in logs(place.fd, place.name):
        if _untouched(place, log, workspace):
            text = "a log next to the destination belongs to the database that is or was there, and would change the new one"
            _refuse(text, place.directory.child(log), path)


def refuse_left_log(source: Place, workspace: Workspace, path: str) -> None:
    """Refuse to take a database away from a log that holds the last of it; asked at the commit, because the transaction may
    move the log as well."""
    for log in logs(source.fd, source.name, sure=True):
        if _untouched(source, log, workspace):
            text = "a log that stays behind belongs to this database, which would lose the changes in it"
            _refuse(text, source.directory.child(log), path)


def log_suffixes(source: Place) -> list[str]:
    """What follows a database's name in the names of the logs that hold changes for it."""
    return [log.removeprefix(source.name) for log in logs(source.fd, source.name, sure=True)]


def refuse_half_copy(suffixes: Sequence[str], place: Place, workspace: Workspace, path: str) -> None:
    """Refuse the copy of a database whose log was not copied with it; asked at the commit, as above."""
    for suffix in suffixes:
        if workspace.destinations.leaves(Place(place.directory, place.name + suffix)) == UNTOUCHED:
            refuse_copy(path)


def refuse_copy(*paths: str) -> NoReturn:
    """Refuse to copy a database without its log."""
    _refuse("a log next to the source has changes for this database, which the copy would lack", *paths)


def _untouched(place: Place, log: str, workspace: Workspace) -> bool:
    return workspace.destinations.leaves(Place(place.directory, log)) == UNTOUCHED


def logs(dir_fd: int, name: str, *, sure: bool = False) -> list[str]:
    """The names of the logs next to a file that hold changes; `sure`: only those that are a database's without doubt.

    An empty ``-wal`` next to its index (``-shm``) is a log too: a process has the database open, and will write there.
    """
    found = []
    for suffix in _LOGS:
        log = name + suffix
        size = _size(log, dir_fd)
        if not size:
            if size is not None and suffix == "-wal" and _size(name + "-shm", dir_fd):
                found.append(log)
            continue
        begins = _beginning(log, dir_fd)
        # SQLite's journal_mode=PERSIST ends a transaction by writing zeros over the header.
        over = suffix == "-journal" and begins == bytes(len(_JOURNAL))
        if not over and (not sure or is_database(name) or begins == _JOURNAL or begins[:4] in _WAL):
            found.append(log)
    return found


def _size(name: str, dir_fd: int) -> int | None:
    """The size of a regular file; None where there is none."""
    if len(name) > _NAME_MAX // 4 and len(os.fsencode(name)) > _NAME_MAX:
        return None
    try:
        there = kernel.port.lstat(name, dir_fd)
    except OSError as exc:
        if kernel.errno_of(exc) not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        return None
    return there.st_size if kernel.is_file(there.st_mode) else None


def _beginning(name: str, dir_fd: int) -> bytes:
    """The first bytes of a file; none where they cannot be read, so that it counts as a log that holds changes."""
    port, fd = kernel.port, -1
    try:
        fd = port.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd)
        return port.pread(fd, len(_JOURNAL), 0)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return b""
    finally:
        if fd >= 0:
            port.close(fd)


def _refuse(why: str, *paths: str) -> NoReturn:
    cure = (
        "close the database everywhere, or open it once with its own program, so that it finishes; or move, copy or remove "
        "the log in the same transaction"
    )
    errors.fail(errors.ConflictError, errno.EBUSY, f"{why}; {cure}", *paths)


def refuse_open(place: Place, path: str) -> None:
    """Refuse a file that this process still has open for writing.  Without /proc that is not known."""
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
