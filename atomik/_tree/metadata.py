"""Mode, owner, group, extended attributes and ACLs: read from what is replaced, put on what replaces it.

Calling sequence::

    before = Metadata.of(place)          # None: nothing there, or a link
    …
    lost = apply(fd, before, "all")      # content complete, nothing published yet; names what was not kept

The new object is at no moment open to more users than the old one (P8), whatever the capabilities of the process.  So
`apply` first closes it to everyone but its owner, who is this process, then sets the group, the attributes and the ACLs
(an ACL with an empty mask), then the permission bits, then gives it to the old owner, and at last sets the set-id bits,
which chown(2) clears.  The mode comes before the owner: afterwards fchmod(2) needs CAP_FOWNER.

Losing metadata does not fail a commit.  What this user or this filesystem refuses is named in the result; a device that
fails (EIO, EROFS …) is an error like any other.  Limits, on purpose:

* set-uid is removed if the owner could not be kept, and set-gid if the group could not: they lend an identity, and it
  would be the wrong one;
* when the group could not be kept, the group and others each get only what both had: the bits would speak of another
  group, and the members of the old one are others now;
* an ACL that cannot be kept is not replaced by its mask, which is what the group bits of such a mode mean: the group
  gets no more than the ACL gave it, and neither group nor others more than any user or group named in the ACL;
* an object that would stay more open than the old one (the filesystem refuses fchmod) is an `AccessDeniedError`;
* ``security.capability``, ``security.ima`` and ``security.evm`` vouch for the old content and are not put on other
  content (xattr(7), capabilities(7));
* attributes of inodes that are not xattrs (chattr(1), project quotas) are not seen.
"""

from __future__ import annotations

import errno
import functools
import os
import stat

from atomik import errors
from atomik._folder.filesystem import is_fuse
from atomik._system import kernel
from atomik._typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Literal

    from atomik._folder.place import Place

    What = Literal["all", "mode", "none"]

ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"
_ACLS = frozenset({ACL, DEFAULT_ACL, "system.nfs4_acl", "system.cifs_acl", "system.richacl"})
#: Statements about content that is being replaced.
_VOUCHING = frozenset({"security.capability", "security.ima", "security.evm"})
#: Of these, the one that speaks of the inode too.
_BOUND = frozenset({"security.evm"})

_CAPABILITY = "security.capability"

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


class Metadata(NamedTuple):
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
        except OSError as exc:
            if kernel.errno_of(exc) is None:
                raise
            # the thorough check below finds out what it is
        try:
            fd = port.open(place.name, os.O_PATH | os.O_NOFOLLOW, place.fd)
        except FileNotFoundError as exc:
            if kernel.errno_of(exc) is None:
                raise
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
        number = kernel.errno_of(exc)
        if number in (errno.ENOTSUP, errno.ENOSYS) or _is_servers_no(number, fd):
            return xattrs, ()
        if number not in REFUSED and not (number == errno.ENOENT and path_only):  # /proc is not mounted
            raise
        return xattrs, ("*",)
    for name in names:
        try:
            xattrs[name] = port.getxattr_of(address(fd), name) if path_only else port.getxattr(fd, name)
        except OSError as exc:
            number = kernel.errno_of(exc)
            if number not in REFUSED:
                raise
            if number != errno.ENODATA:
                unread.append(name)
    return xattrs, tuple(unread)


def _is_servers_no(number: int | None, fd: int) -> bool:
    """Whether an EIO is how a FUSE server (rclone) says that it has no attributes, and not an error of a device."""
    return number == errno.EIO and is_fuse(kernel.port.filesystem_magic(fd))


def apply(
    to: int | Opened, metadata: Metadata | None, what: What, *, same_content: bool = False, path: str = ""
) -> tuple[str, ...]:
    """Put `metadata` on an object of our own, by default an open file or folder; returns the names of what could not be kept.

    `what` is "all", "mode" (the permission bits alone) or "none".  The names are "owner", "group", "acl", "mode" and
    "xattr NAME".  Only what differs is set: where nothing does, this costs an fstat and a flistxattr.  With
    `same_content` (a clone) file capabilities and the like are kept as well.

    Raises `AccessDeniedError`, with `path`, if the object would stay more open than it may be.
    """
    if metadata is None or what == "none":
        return ()
    target = Opened(to) if isinstance(to, int) else to
    found = target.stat()
    work = _Dressing(target, metadata, what, path, found)
    if what == "all":
        work.set_all(_BOUND if same_content else _VOUCHING)
    else:
        work.remove(work.listed(), ACL)  # inherited, it would let in users whom the old object kept out
    work.set_mode()
    if what == "all":
        work.give_away()
    work.finish()
    return work.lost()


class Opened:
    """An object by its descriptor, and the calls that change its metadata."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def stat(self) -> os.stat_result:
        return kernel.port.fstat(self.fd)

    def chmod(self, mode: int) -> None:
        kernel.port.fchmod(self.fd, mode)

    def chown(self, uid: int, gid: int) -> None:
        """Set owner and group; -1 leaves one as it is."""
        kernel.port.fchown(self.fd, uid, gid)

    def list_xattrs(self) -> list[str]:
        return kernel.port.listxattr(self.fd)

    def xattr(self, name: str) -> bytes:
        return kernel.port.getxattr(self.fd, name)

    def set_xattr(self, name: str, value: bytes) -> None:
        kernel.port.setxattr(self.fd, name, value)

    def remove_xattr(self, name: str) -> None:
        kernel.port.removexattr(self.fd, name)


class Named(Opened):
    """The same for a link, FIFO, socket or device, which must not be opened: an O_PATH descriptor, and the name."""

    def __init__(self, path_fd: int, name: str, dir_fd: int) -> None:
        super().__init__(path_fd)
        self.name, self.dir_fd = name, dir_fd

    def chmod(self, mode: int) -> None:
        """Set the mode; a link has none of its own."""
        kernel.port.chmod(address(self.fd), mode)

    def chown(self, uid: int, gid: int) -> None:
        kernel.port.lchown(self.name, uid, gid, self.dir_fd)

    def list_xattrs(self) -> list[str]:
        return kernel.port.listxattr_of(address(self.fd))

    def xattr(self, name: str) -> bytes:
        return kernel.port.getxattr_of(address(self.fd), name)

    def set_xattr(self, name: str, value: bytes) -> None:
        kernel.port.setxattr_of(address(self.fd), name, value)

    def remove_xattr(self, name: str) -> None:
        kernel.port.removexattr_of(address(self.fd), name)


class _Dressing:
    """One object that is getting the metadata of another.  The steps are called in the order that `apply` shows."""

    stuck = False  # it has an ACL that could not be removed

    def __init__(self, target: Opened, wanted: Metadata, what: What, path: str, found: os.stat_result) -> None:
        self.target, self.wanted, self.what, self.path = target, wanted, what, path
        self.found = found  # before anything was changed
        self.uid, self.gid = found.st_uid, found.st_gid
        self.mode = stat.S_IMODE(found.st_mode)  # the present one
        self.refused: list[str] = []
        self.bound: dict[str, bytes] = {}  # xattrs that go when the owner changes

    # --- the steps ---------------------------------------------------------------------------------------------------
    def set_all(self, never: frozenset[str]) -> None:
        """Group, attributes and ACLs, while only the owner can open the object.

        An attribute that only the new object has stays: the program that wrote it, or the security module, put it
        there.  An ACL does not: it was inherited from the folder.
        """
        wanted = self.wanted
        if (self.uid, self.gid) != (wanted.uid, wanted.gid):
            self._close()
        if self.gid != wanted.gid and self._done("", self.target.chown, -1, wanted.gid):
            self.gid = wanted.gid
        for name in wanted.unread:
            self._refuse(name)
        names = self.listed()
        self.remove(names, *(name for name in (ACL, DEFAULT_ACL) if name not in wanted.xattrs))
        for name in sorted(wanted.xattrs, key=_ACLS.__contains__):  # an ACL may take write permission from the owner
            if name in never:
                if name == _CAPABILITY:
                    self._refuse(name)
            elif name == _CAPABILITY and self.uid != wanted.uid:
                self.bound[name] = wanted.xattrs[name]
            else:
                self._set_xattr(name, wanted.xattrs[name], names)

    def set_mode(self) -> None:
        """The permission bits, while the object is still ours."""
        goal = self._goal()
        self._chmod(goal if self.what != "all" or self.uid == self.wanted.uid else goal & ~_SET_ID)

    def give_away(self) -> None:
        """The owner, and the attributes that a new owner takes away."""
        if self.uid != self.wanted.uid and self._done("", self.target.chown, self.wanted.uid, -1):
            self.uid = self.wanted.uid
            self.mode &= ~_SET_ID
        for name, value in self.bound.items():
            self._set_xattr(name, value, ())

    def finish(self) -> None:
        """The set-id bits; raises `AccessDeniedError` if the object came out more open than it may be."""
        goal = self._goal()
        self._chmod(goal)
        if self._is_link or (self.mode == goal and not goal & _SET_ID):
            return
        # The kernel drops set-gid silently if we are not in the group, and some filesystems ignore fchmod.
        self.mode = stat.S_IMODE(self.target.stat().st_mode)
        if self.mode & ~goal & (_SET_ID | 0o777):
            text = f"cannot narrow the permissions: they would stay {self.mode:04o}, but at most {goal:04o} is allowed"
            text += "; the filesystem refuses it, or the capability CAP_FOWNER is missing"
            errors.fail(errors.AccessDeniedError, errno.EACCES, text, self.path or None)

    def lost(self) -> tuple[str, ...]:
        """The names of what could not be kept."""
        wanted, names = self.wanted, list(self.refused)
        if self.what == "all":
            names[:0] = ["owner"] * (self.uid != wanted.uid) + ["group"] * (self.gid != wanted.gid)
        if not self._is_link and self.mode != wanted.mode:
            names.append("mode")
        return tuple(names)

    # --- modes -------------------------------------------------------------------------------------------------------
    @property
    def _is_link(self) -> bool:
        return stat.S_ISLNK(self.found.st_mode)

    def _goal(self) -> int:
        """The mode that the object will end with."""
        wanted, mode, acl = self.wanted, self.wanted.mode, self.wanted.xattrs.get(ACL)
        if acl is not None and (self.what == "mode" or "acl" in self.refused):
            mode, acl = _without_acl(mode, acl), None
        if self.gid != wanted.gid:
            mode &= ~stat.S_ISGID
            if self.what == "all":
                mode = _without_group(mode, acl)
        if self.uid != wanted.uid:
            mode &= ~stat.S_ISUID
        return mode & ~0o070 if self.stuck else mode

    def _close(self) -> None:
        """Take all permissions but the owner's."""
        self._chmod(self.mode & 0o700)

    def _chmod(self, mode: int) -> None:
        if mode == self.mode or self._is_link:
            return
        try:
            self.target.chmod(mode)
        except OSError as exc:
            if kernel.errno_of(exc) not in REFUSED:
                raise
        else:
            self.mode = mode

    # --- attributes --------------------------------------------------------------------------------------------------
    def listed(self) -> list[str]:
        """The names of the attributes that the object has."""
        try:
            return self.target.list_xattrs()
        except OSError as exc:
            number = kernel.errno_of(exc)
            if number not in REFUSED and not _is_servers_no(number, self.target.fd):
                raise
            return []

    def remove(self, present: Sequence[str], *names: str) -> None:
        """Remove attributes, with the object closed: its group bits were the mask of the ACL, and become the group's."""
        for name in names:
            if name in present:
                self._close()
                removed = self._done(name, self.target.remove_xattr, name)
                self.stuck |= name == ACL and not removed

    def _set_xattr(self, name: str, value: bytes, present: Sequence[str]) -> None:
        if name == ACL and self.gid != self.wanted.gid:
            value = _edited(value, {_GROUP_OBJ: _both(value), _OTHER: _both(value)})
        if name in present and self._value(name) == value:
            return
        if self._done(name, self.target.set_xattr, name, closed(value) if name == ACL else value):
            if name in _ACLS:
                self.mode = stat.S_IMODE(self.target.stat().st_mode)
        elif name == ACL:
            self.remove(present, ACL)

    def _value(self, name: str) -> bytes | None:
        try:
            return self.target.xattr(name)
        except OSError as exc:
            if kernel.errno_of(exc) not in REFUSED:
                raise
            return None

    def _done(self, name: str, call: Callable[..., None], *args: object) -> bool:
        """Make one call; a refusal is noted under the attribute's name, if it is about one."""
        try:
            call(*args)
        except OSError as exc:
            if kernel.errno_of(exc) not in REFUSED:
                raise
            if name:
                self._refuse(name)
            return False
        return True

    def _refuse(self, name: str) -> None:
        said = "acl" if name in _ACLS else f"xattr {name}"
        if said not in self.refused:
            self.refused.append(said)


# --- ACLs ------------------------------------------------------------------------------------------------------------
# The value is a version (32 bits) and entries of tag, permissions (16 bits each) and id (32), little-endian
# (linux/posix_acl_xattr.h).
_USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 2, 4, 8, 16, 32


def _entries(acl: bytes) -> list[tuple[int, int]]:
    """(tag, permissions) of each."""
    return [
        (int.from_bytes(acl[at : at + 2], "little"), int.from_bytes(acl[at + 2 : at + 4], "little"))
        for at in range(4, len(acl) - 7, 8)
    ]


def _edited(acl: bytes, permissions: dict[int, int]) -> bytes:
    """The ACL with other permissions for some tags.  Without a mask, a mode limits the owning group in its place."""
    edited = bytearray(acl)
    for number, (tag, _) in enumerate(_entries(acl)):
        if tag in permissions:
            edited[6 + 8 * number : 8 + 8 * number] = permissions[tag].to_bytes(2, "little")
    return bytes(edited)


@functools.lru_cache(maxsize=64)
def closed(acl: bytes) -> bytes:
    """The ACL for an object that is still without its mode, which opens it: only the owner has permissions."""
    return _edited(acl, {_MASK: 0, _OTHER: 0})


def _both(acl: bytes) -> int:
    """What the ACL gives to the owning group and to others too."""
    both = 7
    for tag, permissions in _entries(acl):
        if tag in (_GROUP_OBJ, _MASK, _OTHER):
            both &= permissions
    return both


def _without_group(mode: int, acl: bytes | None) -> int:
    """The mode for an object that is in another group: its members were others, and those of the old one are others now.

    With an ACL the group bits are its mask, and stay.
    """
    if acl is not None:
        return mode & ~0o007 | _both(acl)
    both = mode >> 3 & mode & 0o007
    return mode & ~0o077 | both << 3 | both


def _without_acl(mode: int, acl: bytes) -> int:
    """The mode for an object that loses this ACL: for the group what the ACL gave it, for nobody more than it gave to a
    user or a group that it names."""
    entries = _entries(acl)
    mask = next((permissions for tag, permissions in entries if tag == _MASK), 7)
    group, others = mode >> 3 & 7, mode & 7
    for tag, permissions in entries:
        if tag in (_GROUP_OBJ, _USER):
            group &= permissions & mask
        if tag in (_GROUP, _USER):
            others &= permissions & mask
    return mode & ~0o077 | group << 3 | others
