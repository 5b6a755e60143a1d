"""`swap`: two paths exchanged at once, on whatever filesystem they lie.

`rename.swap` is the bare system call.  This one first makes sure, once for each mount, that the filesystem does what it
says: a server that ignores the flag of renameat2 would destroy one of the two.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from . import _probe, errors, rename
from ._workspace import Workspace
from .flags import formerly

if TYPE_CHECKING:
    from .rename import StrOrBytesPath

_AT_FDCWD = -100


@formerly(a="first", b="second")
def swap(
    first: StrOrBytesPath,
    second: StrOrBytesPath,
    *,
    first_dir_fd: int | None = None,
    second_dir_fd: int | None = None,
) -> None:
    """Exchange what stands at two paths, in one step: files, folders, links, in any pairing; both must exist.

    :param first, second: str, bytes or path, on the same filesystem; a relative one starts from `first_dir_fd` or
        `second_dir_fd`, if given.
    :raises atomik.errors.UnsupportedFilesystemError: the filesystem or kernel lacks the flag (EINVAL, ENOSYS), or it
        says that it exchanged two scratch files and did not.
    :raises atomik.errors.CrossFilesystemError: two filesystems or mounts (EXDEV); ``devices`` has both ``st_dev``.
    :raises atomik.errors.MissingPathError: one of them is missing (ENOENT).
    :raises atomik.errors.AtomikOSError: everything else, with errno; all of them carry ``filename`` and ``filename2``.

    Guarantee: no observer sees one of them missing.  Limit: no sync; on a FUSE, network or unknown filesystem the first
    call tries two scratch files in a private folder beside `second`.

    Source: renameat2(2), RENAME_EXCHANGE (Linux 3.15).
    """
    _refuse_liars(first, second, second_dir_fd)
    rename.swap(first, second, first_dir_fd=first_dir_fd, second_dir_fd=second_dir_fd)


def _refuse_liars(first: StrOrBytesPath, second: StrOrBytesPath, dir_fd: int | None) -> None:
    name = os.fsdecode(second)
    head = os.path.dirname(name.rstrip("/")) or "."
    if dir_fd not in (None, _AT_FDCWD) and not os.path.isabs(name):
        head = f"/proc/self/fd/{dir_fd}/{head}"
    workspace = Workspace()
    try:
        parent = workspace.directory(head)
        if not parent.fs.trusted and parent.fs.exchange is None:
            _probe.try_flags(workspace, parent)
        lies = parent.fs.lies
    except (errors.AtomikError, ValueError):
        return  # no such folder, none to write to, no name: the exchange itself says so, with both paths
    finally:
        workspace.release(keep_parents=True)
    if lies:
        errors.fail(errors.UnsupportedFilesystemError, errno.EOPNOTSUPP, _probe.LIES, os.fsdecode(first), name)
