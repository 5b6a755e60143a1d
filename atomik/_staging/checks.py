"""What may not exist at a destination, and the errors that say so, with the cure."""

from __future__ import annotations

import errno
import os

from atomik import errors
from atomik._protocol.step import same_kind
from atomik._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from atomik._folder.directory import Directory
    from atomik._folder.filesystem import Filesystem
    from atomik._folder.place import Place
    from atomik._system.libc import Status

    from .item import Item


def refuse_existing(path: str) -> NoReturn:
    """Something is there, and it may not be replaced."""
    text = "it already exists; pass overwrite=True to replace it"
    errors.fail(errors.FileAlreadyExistsError, errno.EEXIST, text, path)


def refuse_other_kind(mode: int, kind: str, path: str) -> None:
    """A folder cannot replace a file, nor a file a folder, and nothing replaces a device.  `mode` is of what is there, `kind`
    what will come, as `Step` knows it, or empty if that is not known yet."""
    if kernel.is_device(mode):
        text = "cannot replace it: it is a device; use open() to write to it, or another name"
        errors.fail(errors.WrongKindError, errno.ENOTDIR, text, path)
    if kind and not same_kind(mode, kind):
        there = "a folder" if kernel.is_folder(mode) else "not a folder"
        text = f"cannot replace it by a {kind}: it is {there}; remove it first in the same transaction, or use another name"
        errors.fail(errors.WrongKindError, errno.EISDIR if kernel.is_folder(mode) else errno.ENOTDIR, text, path)


def refuse_device_link(place: Place, path: str) -> None:
    """Nothing replaces a link to a device or into /proc, such as /dev/stdout: programs that write to it would fill the file
    that took its place."""
    try:
        target = kernel.port.readlink(place.name, place.fd)
        device = target.startswith("/proc/") or kernel.is_device(kernel.port.statx_path(place.name, place.fd).mode)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return  # it leads nowhere, or was replaced
    if device:
        text = f"cannot replace it: it is a link to {target!r}, which is a device or in /proc"
        cure = "open it with open(), or remove it first in the same transaction"
        errors.fail(errors.WrongKindError, errno.ENOTDIR, f"{text}; {cure}", path)


def refuse_mounts(place: Place, found: Status, path: str) -> None:
    """A mount point cannot be displaced, and a mount inside a displaced folder would move away with it, to be deleted with
    its content later.  `found` is the status of `place`; `path` is the destination, for the message."""
    if kernel.is_folder(found.mode):
        from atomik._folder.mounts import mount_at_or_below

        inside = mount_at_or_below(*place, lambda: _find_mount(place))
    else:  # where mounts cannot be found out, the kernel refuses (EBUSY)
        inside = str(place) if found.mount != place.directory.mount else None
    if inside is not None:
        text = "the destination is a mount point or contains one; unmount it, or write to a path inside it"
        errors.fail(errors.MountPointError, errno.EBUSY, text, inside, None if inside == str(place) else path)


def refuse_mounts_inside(folder: Directory, path: str) -> None:
    """The contents of the folder will be displaced, and none of them can be a mount point; `path` is for the message."""
    from atomik._folder.mounts import mount_at_or_below
    from atomik._tree.walk import first_mount

    inside = mount_at_or_below(folder, "", lambda: first_mount(folder, folder))
    if inside is not None:
        text = "something is mounted inside the folder, and cannot be replaced with the rest; unmount it"
        errors.fail(errors.MountPointError, errno.EBUSY, text, inside, path)


def _find_mount(place: Place) -> str | None:
    """A mount on or below a folder, found by going there: for sandboxes in which the table of mounts cannot be read."""
    from atomik._tree.walk import first_mount

    try:
        folder = place.open()
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return None  # gone, or closed to this user, who then can displace it only where it is empty
    with folder:
        return first_mount(folder, place.directory)


def refuse_append_only(directory: Directory, path: str) -> None:
    """In a folder with chattr +a nothing can be removed or renamed, so what is staged there would stay forever."""
    if directory.append_only:
        text = "the folder is append-only (chattr +a): all that can be done there is to create one file at a time"
        errors.fail(errors.AccessDeniedError, errno.EPERM, f"{text}; remove the flag, or write elsewhere", path)


def refuse_sticky(directory: Directory, found: Status, path: str) -> None:
    """In a sticky folder only the owner of an entry, of the folder, or root may replace or remove the entry (unlink(2))."""
    me = os.geteuid()
    if directory.sticky and me not in (0, found.uid, directory.uid):
        text = (
            f"the folder is sticky and the entry belongs to user {found.uid}, so only they or the folder's owner may "
            "replace it; write to another folder"
        )
        errors.fail(errors.AccessDeniedError, errno.EPERM, text, path)


def refuse_bound(path: str) -> NoReturn:
    """A folder that this user may not write to can be renamed only within its parent, not into the private folder that a
    resumable output has."""
    text = "resume=True cannot replace a folder, or publish one, that this user may not write to; chmod u+w it first"
    errors.fail(errors.AccessDeniedError, errno.EACCES, text, path)


def refuse_unsupported(item: Item, fs: Filesystem, *, overwriting: bool) -> None:
    """A filesystem that ignores the flags of renameat2, and for folders one that lacks them, is refused before anything is
    written."""
    if item.kind == "removal":  # to take away needs no flag: the slot's name is free
        return
    if fs.lies and overwriting:
        from atomik._protocol.trial import LIES

        errors.fail(errors.UnsupportedFilesystemError, errno.EOPNOTSUPP, LIES, item.path)
    needed = fs.exchange if overwriting else fs.noreplace
    if item.step_kind() == "folder" and needed is False and not item.options.allow_gap:
        text = (
            "the filesystem cannot publish a folder in one step (it lacks the flags of renameat2); write to another "
            "one, or pass allow_gap=True to accept a moment in which it is empty or missing"
        )
        errors.fail(errors.UnsupportedFilesystemError, errno.EOPNOTSUPP, text, item.path)


def refuse_backup(place: Place, *, folder: bool) -> NoReturn:
    """The name for the previous version is taken by an object of another kind."""
    text = "the name for the previous version is taken by another kind of object; remove it or choose another"
    errors.fail(errors.WrongKindError, errno.EISDIR if folder else errno.ENOTDIR, text, str(place))


def backup_name(name: str, place: Place, path: str) -> str:
    """The name that the previous version of `place` will get; refused if it cannot be one."""
    from atomik._folder.paths import split
    from atomik._folder.resolve import real

    parent = place.directory.path
    if not name:
        text = "backup= is empty; give the name that the previous version will get"
        errors.fail(errors.InvalidDestinationError, errno.EINVAL, text, name, path)
    head, tail = split(os.path.join(parent, name), folder=False)
    if head != parent and real(head) != real(parent):
        text = "backup= must be a name in the destination's own folder"
        errors.fail(errors.InvalidDestinationError, errno.EINVAL, text, name, path)
    if tail == place.name:
        text = "backup= names the destination itself; choose another name for the previous version"
        errors.fail(errors.DuplicateDestinationError, errno.EEXIST, text, path)
    return tail
