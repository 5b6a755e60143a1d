"""What may not stand at a destination, and the errors that say so, with the cure."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, NoReturn

from atomik import errors
from atomik._folder.mounts import has_foreign_mount
from atomik._folder.paths import split
from atomik._protocol.step import same_kind
from atomik._system import kernel

if TYPE_CHECKING:
    from atomik._folder.directory import Place


def existing(path: str) -> NoReturn:
    """Something is there, and nobody allowed it to be replaced."""
    text = "it already exists; pass overwrite=True to replace it"
    errors.fail(errors.FileAlreadyExistsError, errno.EEXIST, text, path)


def other_kind(mode: int, kind: str, path: str) -> None:
    """A folder is no successor to a file, nor the reverse.  `mode` is of what is there, `kind` what is to come, as `Step`
    knows it, or empty where nobody knows yet."""
    if kind and not same_kind(mode, kind):
        there = "a folder" if stat.S_ISDIR(mode) else "no folder"
        text = f"cannot put a {kind} there: what exists is {there}"
        text += "; remove it first, or choose another name"
        errors.fail(errors.WrongKindError, errno.EISDIR if stat.S_ISDIR(mode) else errno.ENOTDIR, text, path)


def mounts(place: Place, found: os.stat_result, path: str) -> None:
    """A mount point cannot be displaced, and a mount inside a displaced folder would move away with it, to be deleted with
    its content later.  `found` is the stat of `place`; `path` is the destination, for the message."""
    mount = place.directory.mount
    if stat.S_ISDIR(found.st_mode):
        inside = has_foreign_mount(place)
    else:
        try:
            there = kernel.port.statx(place.fd, place.name).mount if mount else 0
        except FileNotFoundError:
            return  # removed since it was looked at
        inside = str(place) if there != mount else None
    if inside is not None:
        text = "a mount lies on or inside the destination; unmount it, or write to a path inside it"
        errors.fail(errors.MountPointError, errno.EBUSY, text, inside, None if inside == str(place) else path)


def kept_name(name: str, place: Place, path: str) -> str:
    """The name under which the previous version of `place` is to stay, refused where it can be none."""
    parent = place.directory.path
    if not name:
        text = "keep= is empty; name the file or folder that the previous version is to become"
        errors.fail(errors.InvalidDestinationError, errno.EINVAL, text, name, path)
    head, tail = split(os.path.join(parent, name), folder=False)
    if head != parent and os.path.realpath(head) != os.path.realpath(parent):
        text = "keep= must name something in the destination's own folder"
        errors.fail(errors.InvalidDestinationError, errno.EINVAL, text, name, path)
    if tail == place.name:
        text = "keep= names the destination itself; choose another name for the previous version"
        errors.fail(errors.DuplicateDestinationError, errno.EEXIST, text, path)
    return tail
