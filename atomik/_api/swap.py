"""`swap`: two paths exchanged at once, on whatever filesystem they lie.

`rename.swap` is the bare system call.  This one first makes sure, once for each mount, that the filesystem does what it
says: a server that ignores the flag of renameat2 would destroy one of the two.  And it opens both folders as
`_resolve` does, so that no link of somebody else's on the way leads it to other things.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from atomik import errors, rename
from atomik._folder.resolve import open_path_fd
from atomik._protocol.trial import LIES
from atomik._staging import companions
from atomik._staging.workspace import Workspace
from atomik._system import kernel
from atomik.flags import formerly

if TYPE_CHECKING:
    from atomik._folder.directory import Directory
    from atomik.rename import StrOrBytesPath

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

    :param first, second: str, bytes or path object, on the same filesystem; a relative one starts from `first_dir_fd` or
        `second_dir_fd`, descriptors of open folders, if given.
    :raises atomik.errors.UnsupportedFilesystemError: the filesystem or kernel lacks the flag (EINVAL, ENOSYS), or it
        says that it exchanged two scratch files and did not.
    :raises atomik.errors.CrossFilesystemError: two filesystems or mounts (EXDEV); ``devices`` has both ``st_dev``.
    :raises atomik.errors.MissingPathError: one of them is missing (ENOENT).
    :raises atomik.errors.ConflictError: one of them is a database whose log beside it holds changes, which would be replayed
        into the other.
    :raises atomik.errors.AccessDeniedError: the way to one leads through a link of another user to a folder that is not
        theirs, or this user may not change one of the two folders.
    :raises atomik.errors.AtomikOSError: everything else, with errno; all of them carry ``filename`` and ``filename2``.

    Guarantee: no observer sees one of them missing.  Limit: no sync; on a FUSE, network or unknown filesystem the first
    call tries two scratch files in a private folder beside `second`.

    Source: renameat2(2), RENAME_EXCHANGE (Linux 3.15).
    """
    _refuse_liars(first, second, second_dir_fd)
    paths = os.fsdecode(first), os.fsdecode(second)
    with contextlib.ExitStack() as opened:
        try:
            one, two = (
                _opened(path, dir_fd, opened) for path, dir_fd in zip(paths, (first_dir_fd, second_dir_fd), strict=True)
            )
        except errors.AtomikError:
            raise
        except OSError as exc:
            raise errors.system_error(exc, "cannot rename", *paths) from exc
        except ValueError as exc:  # a NUL in a name
            errors.fail(errors.InvalidDestinationError, errno.EINVAL, f"cannot rename: {exc}", *paths)
        companions.refuse_logs_of_swap((one, two), paths)
        try:
            rename.swap(one[1], two[1], first_dir_fd=one[0], second_dir_fd=two[0])
        except errors.AtomikOSError as exc:
            exc.filename, exc.filename2 = paths
            raise


def _opened(path: str, dir_fd: int | None, opened: contextlib.ExitStack) -> tuple[int, str]:
    """(the folder in which the path ends, held open; the name in it)."""
    head, name = os.path.split(path.rstrip("/"))
    if not name:  # "" or "/": nothing can be exchanged with that, and the kernel says so
        return _AT_FDCWD, path
    path_fd = open_path_fd(_from(dir_fd, path, head))
    opened.callback(kernel.port.close, path_fd)
    return path_fd, path[len(path.rstrip("/")) - len(name) :]


def _from(dir_fd: int | None, path: str, head: str) -> str:
    if dir_fd in (None, _AT_FDCWD) or os.path.isabs(path):
        return head or "."
    return f"/proc/self/fd/{dir_fd}/{head}"


def _refuse_liars(first: StrOrBytesPath, second: StrOrBytesPath, dir_fd: int | None) -> None:
    name = os.fsdecode(second)
    head = _from(dir_fd, name, os.path.dirname(name.rstrip("/")))
    workspace = Workspace()
    try:
        try:
            parent = workspace.directory(head)
        except (errors.AtomikError, ValueError):
            return  # no such folder, or no name: the exchange itself says so, with both paths
        _try_names(workspace, parent)
        lies = parent.fs.lies
    finally:
        workspace.release(keep_parents=True)
    if lies:
        errors.fail(errors.UnsupportedFilesystemError, errno.EOPNOTSUPP, LIES, os.fsdecode(first), name)


def _try_names(workspace: Workspace, parent: Directory) -> None:
    with kernel.typed("cannot try out the filesystem", parent.path):
        if parent.fs.trusted:
            return
        try:
            workspace.try_names(parent)
        except OSError as exc:  # where nothing may be made nothing can be exchanged, and the exchange itself says so
            ours = isinstance(exc, errors.AtomikError)
            if (exc.errno if ours else kernel.errno_of(exc)) not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
