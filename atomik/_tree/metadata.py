"""Mode, owner, group, extended attributes and ACLs: read from what is replaced, put on what replaces it.

Calling sequence::

    before = Metadata.of(place)          # None: nothing there, or a link
    …
    lost = apply(fd, before, "all")      # content complete, nothing published yet; names what was not kept

The order inside `apply` is owner and group, then attributes and ACLs, then the mode: chown(2) clears the set-id bits
and the capabilities of a file, and setting an ACL (acl(5)) writes the group bits of the mode.

Losing metadata never fails a commit.  What this user or this filesystem refuses is named in the result; a device that
fails (EIO, EROFS …) is an error like any other.  Limits, on purpose:

* set-uid goes when the owner could not be kept, and set-gid when the group could not: they lend an identity, and it
  would be the wrong one.  The other bits stay, so "group may write" then speaks of another group;
* an ACL that cannot be kept is not replaced by its mask, which is what the group bits of such a mode mean: the group
  gets no more than the ACL gave it;
* ``security.capability``, ``security.ima`` and ``security.evm`` vouch for the old content and are not put on other
  content (xattr(7), capabilities(7));
* attributes of inodes that are no xattrs (chattr(1), project quotas) are not seen.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Literal

from attrs import define

from atomik._system import kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from atomik._folder.place import Place

What = Literal["all", "mode", "none"]

ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"
_ACLS = frozenset({ACL, DEFAULT_ACL, "system.nfs4_acl", "system.cifs_acl", "system.richacl"})
#: Statements about content that is being replaced.
_VOUCHING = frozenset({"security.capability", "security.ima", "security.evm"})
#: Of these, the one that speaks of the inode too.
_BOUND = frozenset({"security.evm"})

_SET_ID = stat.S_ISUID | stat.S_ISGID

#: What the kernel says when it will not have one attribute, as opposed to a failure of the device.
REFUSED = frozenset(
    {
        errno.EPERM,  # not the owner, or an xattr namespace that needs a capability
        errno.EACCES,  # the same from a security module or a network server
        errno.ENOTSUP,  # no xattrs or ACLs on this filesystem, or no such namespace
        errno.ENOSYS,  # a FUSE server without the operation
        errno.EINVAL,  # an id without mapping in this user namespace, or a value that a security module refuses
        errno.EOVERFLOW,  # an id without mapping on an id-mapped mount
        errno.ENOSPC,  # xattrs do not fit: ext4 and btrfs have room for a block of them
        errno.EDQUOT,  # the quota of the owner to be
        errno.E2BIG,
        errno.ERANGE,
        errno.ENODATA,  # it went away between being listed and being read or removed
    }
)


def address(fd: int) -> str:
    """The path by which calls that refuse an O_PATH descriptor reach what it holds."""
    return f"/proc/self/fd/{fd}"


@define(frozen=True)
class Metadata:
    """What one object carries besides its content.

    ``mode`` is without the type, which is ``type``; ``unread`` names attributes that exist and could not be read ("*" for
    the list itself); ``stamp`` is (inode, ctime in ns), which changes when anything here does.
    """

    mode: int
    uid: int
    gid: int
    xattrs: dict[str, bytes]
    unread: tuple[str, ...]
    nlink: int
    stamp: tuple[int, int]
    type: int = stat.S_IFREG

    @classmethod
    def of(cls, place: Place) -> Metadata | None:
        """The metadata of the file or folder at `place`; None where there is nothing, or a link.

        Needs no permission on the object itself, save to read ``user.`` attributes (xattr(7)).
        """
        port = kernel.port
        found = place.stat()
        if found is None or stat.S_ISLNK(found.st_mode):
            return None
        try:
            if not port.has_xattrs(place.name, place.fd):
                return cls._from(found, {}, ())
        except OSError:
            pass  # whatever it is, the thorough way below finds out
        try:
            fd = port.open(place.name, os.O_PATH | os.O_NOFOLLOW, place.fd)
        except FileNotFoundError:
            return None
        try:
            found = port.fstat(fd)
            return None if stat.S_ISLNK(found.st_mode) else cls.held(fd, found, path_only=True)
        finally:
            port.close(fd)

    @classmethod
    def held(cls, fd: int, found: os.stat_result, *, path_only: bool = False) -> Metadata:
        """The metadata of an open object whose fstat is `found`; `path_only` when it was opened with O_PATH."""
        return cls._from(found, *_read(fd, path_only=path_only))

    @classmethod
    def _from(cls, found: os.stat_result, xattrs: dict[str, bytes], unread: tuple[str, ...]) -> Metadata:
        return cls(
            stat.S_IMODE(found.st_mode),
            found.st_uid,
            found.st_gid,
            xattrs,
            unread,
            found.st_nlink,
            (found.st_ino, found.st_ctime_ns),
            stat.S_IFMT(found.st_mode),
        )


def _read(fd: int, *, path_only: bool) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Every attribute, and the names of those that could not be read."""
    port = kernel.port
    xattrs: dict[str, bytes] = {}
    unread = []
    try:
        names = port.listxattr_of(address(fd)) if path_only else port.listxattr(fd)
    except OSError as exc:
        if exc.errno in (errno.ENOTSUP, errno.ENOSYS):
            return xattrs, ()
        if exc.errno == errno.ENOENT and path_only:  # /proc is not mounted
            return xattrs, ("*",)
        if exc.errno not in REFUSED:
            raise
        return xattrs, ("*",)
    for name in names:
        try:
            xattrs[name] = port.getxattr_of(address(fd), name) if path_only else port.getxattr(fd, name)
        except OSError as exc:
            if exc.errno not in REFUSED:
                raise
            if exc.errno != errno.ENODATA:
                unread.append(name)
    return xattrs, tuple(unread)


def apply(fd: int, metadata: Metadata, what: What, *, same_content: bool = False) -> tuple[str, ...]:
    """Put `metadata` on an open file or folder; returns the names of what could not be kept.

    `what` is "all", "mode" (the permission bits alone) or "none".  The names are "owner", "group", "acl", "mode" and
    "xattr NAME".  Only what differs is set: where nothing does, this costs an fstat and a flistxattr.  With
    `same_content` (a clone) file capabilities and the like are kept as well.
    """
    if what == "none":
        return ()
    lost: list[str] = []
    now = kernel.port.fstat(fd)
    uid, gid, touched = now.st_uid, now.st_gid, False
    mode = metadata.mode
    if what == "all":
        if (uid, gid) != (metadata.uid, metadata.gid):
            uid, gid = _set_owner(fd, metadata, now)
            touched = True
            lost += ["owner"] * (uid != metadata.uid) + ["group"] * (gid != metadata.gid)
        touched |= _set_xattrs(fd, metadata, lost, _BOUND if same_content else _VOUCHING)
    if ACL in metadata.xattrs and (what == "mode" or "acl" in lost):
        mode = _without_mask(mode, metadata.xattrs[ACL])
    if uid != metadata.uid:
        mode &= ~stat.S_ISUID
    if gid != metadata.gid:
        mode &= ~stat.S_ISGID
    kept = mode == metadata.mode
    if touched or mode != stat.S_IMODE(now.st_mode):
        kept &= _set_mode(fd, mode)
    if not kept:
        lost.append("mode")
    return tuple(lost)


def _set_owner(fd: int, metadata: Metadata, now: os.stat_result) -> tuple[int, int]:
    """Both, or the group alone (which its members may set), or the owner alone; the (uid, gid) that stand then."""
    for uid, gid in ((metadata.uid, metadata.gid), (-1, metadata.gid), (metadata.uid, -1)):
        if (uid in (-1, now.st_uid)) and (gid in (-1, now.st_gid)):
            continue
        try:
            kernel.port.fchown(fd, uid, gid)
        except OSError as exc:
            if exc.errno not in REFUSED:
                raise
        else:
            return (now.st_uid if uid < 0 else uid), (now.st_gid if gid < 0 else gid)
    return now.st_uid, now.st_gid


def _set_xattrs(fd: int, metadata: Metadata, lost: list[str], never: frozenset[str]) -> bool:
    """Make the attributes those of `metadata`; whether an ACL was touched, and with it perhaps the mode.

    An attribute that only the new object has stays: the program that wrote it, or the security module, put it there.
    An ACL does not, for it was inherited from the folder and would let others in whom the old one kept out.
    """
    port = kernel.port
    names = _listed(fd)
    for name in metadata.unread:
        _note(lost, name)
    if not names and not metadata.xattrs:
        return False
    touched = False
    for name in names:
        if name in (ACL, DEFAULT_ACL) and name not in metadata.xattrs:
            touched |= _try(lost, name, port.removexattr, fd, name)
    for name, value in metadata.xattrs.items():
        if name in never:
            if name == "security.capability":
                _note(lost, name)
        elif name not in names or _value(fd, name) != value:
            done = _try(lost, name, port.setxattr, fd, name, value)
            touched |= done and name in _ACLS
    return touched


def _listed(fd: int) -> list[str]:
    try:
        return kernel.port.listxattr(fd)
    except OSError as exc:
        if exc.errno not in REFUSED:
            raise
        return []


def _value(fd: int, name: str) -> bytes | None:
    try:
        return kernel.port.getxattr(fd, name)
    except OSError as exc:
        if exc.errno not in REFUSED:
            raise
        return None


def _try(lost: list[str], name: str, call: Callable[..., None], *args: object) -> bool:
    """Make one call; a refusal is noted under the attribute's name."""
    try:
        call(*args)
    except OSError as exc:
        if exc.errno not in REFUSED:
            raise
        _note(lost, name)
        return False
    return True


def _note(lost: list[str], name: str) -> None:
    said = "acl" if name in _ACLS else f"xattr {name}"
    if said not in lost:
        lost.append(said)


def _set_mode(fd: int, mode: int) -> bool:
    """fchmod; whether the mode is now that.  The kernel drops set-gid silently for one outside the group."""
    try:
        kernel.port.fchmod(fd, mode)
    except OSError as exc:
        if exc.errno not in REFUSED:
            raise
        return False
    return not mode & _SET_ID or stat.S_IMODE(kernel.port.fstat(fd).st_mode) == mode


def _without_mask(mode: int, acl: bytes) -> int:
    """The mode for an object that loses this ACL: the group bits are what the ACL gave the group, within its mask.

    The value is a version (32 bits) and entries of tag, permissions (16 bits each) and id (32), little-endian;
    tag 4 is the owning group, 16 the mask (linux/posix_acl_xattr.h).
    """
    group = mode >> 3 & 7
    for at in range(4, len(acl) - 7, 8):
        tag = int.from_bytes(acl[at : at + 2], "little")
        if tag in (4, 16):
            group &= int.from_bytes(acl[at + 2 : at + 4], "little")
    return mode & ~0o070 | group << 3
