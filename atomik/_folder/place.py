"""A name in a held folder, and what can be done with two of them: rename, link, put back.

Answers of the kernel that say "there is no such thing here" are listed here once, for all fallbacks:

=============  =====================================================================================================
`NO_FLAG`      renameat2(2) has no flags here: EINVAL of FUSE, NFS and ZFS before 2.2, ENOSYS before Linux 3.15 and of
               sandboxes (see `Kernel.rename`), EOPNOTSUPP of some network filesystems
`NO_TMPFILE`   O_TMPFILE: EOPNOTSUPP; EINVAL, ENOSYS or EISDIR on FUSE and old kernels.  Not ENOENT: the folder is gone
`is_no_link`   link(2): every errno that is not about the two names or about space.  EPERM of filesystems without hard
               links and of fs.protected_hardlinks, EACCES of AppArmor, EIO of rclone, ERANGE of CryFS, EMLINK of an inode
               with as many links as it can have
=============  =====================================================================================================
"""

from __future__ import annotations

import errno
import os
import stat

from atomik import errors
from atomik._system import kernel
from atomik._typing import NamedTuple

from .directory import Directory, identify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from atomik._system.libc import Status

NO_FLAG = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS})

_LINK_SAYS = frozenset(
    {
        errno.EEXIST,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENAMETOOLONG,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.ENOMEM,
        errno.ENOTCONN,  # these are about a server that has died, or is out of reach
        errno.ECONNABORTED,
        errno.ESHUTDOWN,
        errno.EHOSTDOWN,
        errno.ETIMEDOUT,
        errno.ESTALE,
    }
)


class Place(NamedTuple):
    """A name in a held folder.  A tuple, because there are two for each output, and they are used as keys."""

    directory: Directory
    name: str

    def __str__(self) -> str:
        return self.directory.child(self.name)

    @property
    def fd(self) -> int:
        return self.directory.fd

    def open(self) -> Directory:
        """The real folder at that name, held open; OSError as open(2) where there is none."""
        folder = Directory.open(self.name, self.directory.fd, follow=False)
        folder.path = str(self)
        return folder

    def status(self) -> Status | None:
        """What is at that name, without times; None where there is nothing."""
        try:
            return kernel.port.statx(self.directory.fd, self.name)
        except FileNotFoundError as exc:
            if kernel.errno_of(exc) is None:
                raise
            return None

    def identity(self) -> bytes | None:
        """The token of what is at that name."""
        return identify(self.directory.fs, self.directory.fd, self.name)

    def stat(self) -> os.stat_result | None:
        """lstat of what is at that name."""
        return self.directory.stat(self.name)


def rename(src: Place, dst: Place, flags: int) -> None:
    """renameat2(2) between two places."""
    kernel.port.rename(src.name, src.directory.fd, dst.name, dst.directory.fd, flags)


def rename_back(src: Place, dst: Place, *, folder: bool) -> None:
    """Rename back onto a name that should be free, never replacing what came there in the meantime."""
    fs = dst.directory.fs
    if fs.noreplace is not False:
        try:
            rename(src, dst, kernel.NOREPLACE)
        except OSError as exc:
            if kernel.errno_of(exc) not in NO_FLAG:
                raise
            fs.noreplace = False
        else:
            return
    if not folder and fs.links_are_one is not False and link(src, dst):
        kernel.port.unlink(src.name, src.fd)
        return
    if dst.directory.exists(dst.name):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(dst))
    rename(src, dst, 0)  # nothing better is left; of folders it replaces at most an empty one


#: how many folders are remembered
_MANY = 1000


def refuse_unremovable(place: Place, *, ours: bool = False) -> None:
    """Refuse to make names in the folder of `place` that a sandbox would not let us remove, as Landlock can: before any is
    made, where something exists at `place`, else right after our new folder there (`ours`)."""
    port, (directory, name), known = kernel.port, place, place.directory.fs.removable
    if (directory.key, ours) in known:
        return
    if ours:
        _ask_removal(directory, "folders", port.rename_to_itself, name)
        _ask_removal(directory, "files", port.unlink_folder, name)
    else:
        _ask_removal(directory, "files", port.rename_to_itself, name)
    if len(known) >= _MANY:
        known.clear()
    known.add((directory.key, ours))


def _ask_removal(directory: Directory, what: str, call: Callable[[str, int], None], name: str) -> None:
    try:
        call(name, directory.fd)
    except OSError as exc:
        number = kernel.errno_of(exc)
        if number is None:
            raise
        if number not in (errno.EACCES, errno.EPERM):
            return
        text = (
            f"a sandbox (Landlock, AppArmor) does not let this process both make and remove {what} here, as staging does; "
            "grant LANDLOCK_ACCESS_FS_MAKE_REG, MAKE_DIR, REMOVE_FILE and REMOVE_DIR"
        )
        if what == "folders":
            text += f", and remove the empty folder {name!r}, which has to stay"
        errors.fail(errors.AccessDeniedError, number, text, directory.path)


def is_no_link(number: int | None) -> bool:
    """Whether an errno of link(2) means "no hard links here"; None, for what did not come from the kernel, does not."""
    return number is not None and number not in _LINK_SAYS


def link(src: Place, dst: Place) -> bool:
    """Give a second name; False where the filesystem, the kernel or a sandbox has no hard links."""
    if src.directory.fs.links is False:
        return False
    try:
        kernel.port.link(src.name, src.fd, dst.name, dst.fd)
    except OSError as exc:
        if not is_no_link(kernel.errno_of(exc)):
            raise
        return False
    return True


def delete_file(place: Place) -> None:
    """Remove what exists at a place, but never a folder: where others may write, it can only be another user's."""
    try:
        kernel.port.unlink(place.name, place.fd)
    except OSError as exc:
        number = kernel.errno_of(exc)
        if number is None:
            raise
        # Asked twice: after a wrong "no such file" a name of ours would stay.
        if number != errno.EISDIR and not (number == errno.ENOENT and place.status() is None):
            raise errors.system_error(exc, "cannot delete", str(place)) from exc


def chmod(path_fd: int, mode: int, path: str) -> None:
    """Set the mode of what an O_PATH descriptor holds, which fchmod(2) refuses (EBADF); `path` is for the error.

    By chmod(2) through /proc; where there is none by fchmodat2(2) (Linux 6.6), and of a folder that we may read by
    fchmod(2).
    """
    port = kernel.port
    try:
        return port.chmod(f"/proc/self/fd/{path_fd}", mode)
    except OSError as exc:
        number = kernel.errno_of(exc)
        # EPERM: not the owner, which no other call changes.  EACCES comes from AppArmor, for /proc itself.
        if number == errno.EPERM or number not in kernel.NO_PROC:
            raise
    try:
        return port.fchmodat2(path_fd, mode)
    except OSError as exc:
        if kernel.errno_of(exc) not in kernel.SANDBOXED | {errno.EINVAL}:
            raise
        refused = exc
    try:
        fd = port.open(".", os.O_RDONLY | os.O_DIRECTORY, path_fd)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        text = (
            "cannot change the mode: /proc is missing, and the kernel (before Linux 6.6) or a sandbox has no fchmodat2"
        )
        errors.fail(errors.AtomikOSError, refused.errno or errno.ENOSYS, f"{text}; mount /proc", path)
    try:
        port.fchmod(fd, mode)
    finally:
        port.close(fd)


def set_mode(place: Place, mode: int) -> int:
    """Set the mode of the folder at a place, which need not be readable; returns the permissions that it had."""
    port = kernel.port
    fd = port.open(place.name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, place.fd)
    try:
        before = stat.S_IMODE(port.fstat(fd).st_mode)
        chmod(fd, mode, str(place))
        return before
    finally:
        port.close(fd)


def remove_empty(place: Place) -> bool:
    """Remove the empty folder that reserved a name for us; False if it is not an empty folder."""
    try:
        kernel.port.rmdir(place.name, place.fd)
    except OSError as exc:
        if kernel.errno_of(exc) not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.ENOENT):
            raise
        return False
    return True
