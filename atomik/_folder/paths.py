"""From the path that a user passes to the absolute path of a folder and a name in it; nothing here changes anything."""

from __future__ import annotations

import errno
import os
import stat

from atomik import errors
from atomik._hidden_names import PREFIX
from atomik._system import kernel
from atomik._typing import cast

from .resolve import follow, open_path_fd, refuse_traps

NAME_MAX = 255
_SURELY_SHORT = NAME_MAX // 4


def decoded(path: object, option: str) -> str:
    """A path as a str; a TypeError names the option that it was given for."""
    if type(path) is str:
        return path
    try:
        return os.fsdecode(cast("str", path))
    except TypeError:
        raise TypeError(f"{option} must be a str or path object, not {type(path).__name__}") from None


def absolute(path: str | os.PathLike[str], option: str = "path") -> str:
    """The path from the root, for messages and as a key; nothing folded or resolved: to fold ``..`` away would be wrong
    behind a symlink.

    Where the working folder has no path that can be found, a relative one stays as it is.  A relative path is *opened*
    as it was given: the absolute one may lead through a folder that is closed, or be longer than the kernel takes.
    """
    name = decoded(path, option)
    if not name or name[0] == "/":
        return name
    try:
        here = os.getcwd()
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        if kernel.port.stat(".").st_nlink == 0:
            raise errors.system_error(exc, "the current folder was deleted", name) from exc
        return name
    return f"{here}/{name}" if here != "/" else here + name


def followed(path: str) -> str:
    """Where a link at `path` leads in the end, whether that exists or not; any other path is returned unchanged.

    A link of another user is not followed where `resolve` would not follow it either.
    """
    with kernel.typed("cannot follow the link", path):
        target, owners = follow(path)
        if owners:
            above = open_path_fd(os.path.dirname(target.rstrip("/")) or "/")
            try:
                refuse_traps(path, owners, kernel.port.fstat(above).st_uid)
            finally:
                kernel.port.close(above)
    return target


def exists(path: str) -> bool:
    """Whether there is anything at a path; see `real` for why it is not os.path.lexists."""
    return mode(path, follow=False) != 0


def is_folder(path: str, *, follow: bool = True) -> bool:
    """Whether there is a folder at a path."""
    return stat.S_ISDIR(mode(path, follow=follow))


def mode(path: str, *, follow: bool = True) -> int:
    """The mode of what is at a path; 0 where there is nothing, where links lead in a circle, and where it cannot be seen."""
    try:
        return (kernel.port.stat(path) if follow else kernel.port.lstat(path, None)).st_mode
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return 0


def split(path: str, *, folder: bool) -> tuple[str, str]:
    """(parent, name) of a destination, refused if it cannot be one; the parent of a relative path is relative.  ``..``
    in the middle is left alone: removing it would be wrong after a symlink."""
    head, _, name = path.rpartition("/")
    # Four bytes are as many as a character takes: then nothing has to be encoded to see that the name is short enough.
    if not name or name[0] == "." or len(name) > _SURELY_SHORT or "\0" in path:
        head, name = _split_odd(path, folder=folder)
    return head.rstrip("/") or ("/" if path[0] == "/" else "."), name


def _split_odd(path: str, *, folder: bool) -> tuple[str, str]:
    """The same for a path with something unusual in it, or the error for it."""
    if not path:
        errors.fail(
            errors.InvalidDestinationError, errno.ENOENT, "the destination is empty; name a file or folder", path
        )
    if "\0" in path:
        errors.fail(errors.InvalidDestinationError, errno.EINVAL, "the destination contains a NUL character", path)
    bare = path.rstrip("/")
    if bare != path and not folder:
        text = "the name of a file cannot end with a slash; remove the slash, or use folder()"
        errors.fail(errors.InvalidDestinationError, errno.EISDIR, text, path)
    head, _, name = bare.rpartition("/")
    if name in ("", ".", ".."):
        text = "the destination must end with a name, not with '.', '..' or '/'"
        errors.fail(errors.InvalidDestinationError, errno.EINVAL, text, path)
    if len(os.fsencode(name)) > NAME_MAX:
        text = f"the name is longer than {NAME_MAX} bytes; choose a shorter one"
        errors.fail(errors.InvalidDestinationError, errno.ENAMETOOLONG, text, path)
    refuse_reserved(name, path)
    return head, name


def refuse_reserved(name: str, path: str) -> None:
    """Refuse a destination with one of atomik's own names: it would be taken for something of atomik's, and block its
    folder."""
    if name.startswith(PREFIX):
        text = f"names that begin with {PREFIX!r} are reserved for atomik; choose another"
        errors.fail(errors.InvalidDestinationError, errno.EINVAL, text, path)
