"""A pin: the sign that a reader uses a folder, and keeps using it after it has been replaced.

::

    pin(folder)          # a held folder; until its last copy of the descriptor is closed
    is_pinned(place)     # asked before a displaced folder is deleted

A pin delays nobody: publishers exchange the folder as always, and only postpone deleting it.  It is a read lock of an open
file description on one byte of the folder (fcntl(2), F_OFD_SETLK, Linux 3.15).  Read permission is enough for it, and it is
independent of flock(2), for which publishers do wait.  A reader checks, after it has pinned the folder, that the folder is
still in its place: then the publisher, which asks for pins after the exchange, sees this one.
"""

from __future__ import annotations

import errno
import os

from atomik import errors
from atomik._system import kernel

from .lock import NO_LOCKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .directory import Directory
    from .place import Place

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def pin(folder: Directory) -> None:
    """Keep the folder from being deleted by a publisher for as long as the descriptor is open."""
    try:
        kernel.port.pin(folder.fd)
    except OSError as exc:
        if kernel.errno_of(exc) not in NO_LOCKS:
            raise
        text = (
            "the kernel, or a sandbox, has no locks of open file descriptions (fcntl, F_OFD_SETLK), so nothing keeps the "
            "folder from being deleted; use atomik.reading"
        )
        errors.fail(errors.UnsupportedFilesystemError, exc.errno or errno.ENOSYS, text, folder.path)


def is_pinned(place: Place) -> bool:
    """Whether there is a folder that is pinned.  What this user may not read counts as not pinned."""
    try:
        fd = kernel.port.open(place.name, _FOLDER, place.fd)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return False
    try:
        return kernel.port.is_pinned(fd)
    except OSError as exc:
        if kernel.errno_of(exc) not in NO_LOCKS:
            raise
        return False
    finally:
        kernel.port.close(fd)
