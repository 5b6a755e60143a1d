"""What a filesystem can do, found out by trying it: `probe`, and `Capabilities`, its answer.

Every answer comes from a real call in a scratch folder (the private folder of a transaction that never was), which is gone
afterwards; only ``syncfs`` is looked up, for to try it would wait for all that other programs have written.  What was
learned about the flags of renameat2 is remembered for the mount, as after a first transaction there.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, Any

from attrs import asdict, define, field

from atomik import errors
from atomik._protocol.trial import try_names
from atomik._staging.workspace import Workspace
from atomik._system import kernel
from atomik._tree import metadata as _metadata

from .promises import Promise, promises_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from atomik._folder.directory import Directory
    from atomik._folder.place import Place

_REFUSALS = frozenset({*_metadata.REFUSED, errno.EXDEV, errno.EISDIR, errno.ENOENT, errno.ENOTTY, errno.ENOLCK})


@define(frozen=True)
class Capabilities:
    """What the filesystem that holds a folder can do; `probe` makes it.

    ``folder``: the folder that was asked about, absolute.  ``filesystem``: its type, as in /proc/mounts.  ``mount``:
    the mount point.  ``st_dev``: its device number, as in `os.stat_result`.

    ``tmpfile``: files without a name (O_TMPFILE) that can get one.  ``noreplace``, ``exchange``: the flags of
    renameat2(2).  ``lies``: it reports an exchange as done without doing it.  ``hard_links``, ``symlinks``: as they
    say.  ``file_handles``: objects have handles (name_to_handle_at(2)), which survive a remount.  ``reflink``: files
    can share their content (FICLONE).  ``syncfs``: one call makes everything durable, and reports errors.  ``flock``:
    locks on folders exclude each other.  ``xattrs``, ``acls``: "user." attributes and POSIX ACLs.  ``dir_fsync``: a
    folder can be synced.

    ``promises``: which of atomik's promises hold, a `Promise` each.  All but ``folder``, ``filesystem``, ``mount``,
    ``st_dev`` and ``promises`` are bool.  ``str()`` gives all of it as a table, `as_dict` as plain values.
    """

    __module__ = "atomik"

    folder: str
    filesystem: str
    mount: str
    st_dev: int
    tmpfile: bool
    noreplace: bool
    exchange: bool
    lies: bool
    hard_links: bool
    symlinks: bool
    file_handles: bool
    reflink: bool
    syncfs: bool
    flock: bool
    xattrs: bool
    acls: bool
    dir_fsync: bool
    promises: tuple[Promise, ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "promises", promises_of(self))

    def as_dict(self) -> dict[str, Any]:
        """Everything as strings, numbers, booleans, lists and dictionaries, fit for JSON."""
        plain = asdict(self)
        plain["promises"] = {promise.name: asdict(promise) for promise in self.promises}
        return plain

    def __str__(self) -> str:
        device = f"{os.major(self.st_dev)}:{os.minor(self.st_dev)}"
        lines = [f"{self.folder}: {self.filesystem} on {self.mount} (device {device})", ""]
        lines += [f"  {label:<55}{_yes(getattr(self, name))}" for name, label in _LABELS.items()]
        if self.lies:
            lines.append("  It reports an exchange as done without doing it: overwriting is refused.")
        lines.append("")
        for promise in self.promises:
            lines.append(f"  {promise.name} {promise.text:<52}{promise.holds}")
            if promise.reason:
                lines.append(f"     {promise.reason}")
        return "\n".join(lines)


_LABELS = {
    "noreplace": "rename that never replaces",
    "exchange": "exchange of two names",
    "tmpfile": "files without a name (O_TMPFILE)",
    "hard_links": "hard links",
    "symlinks": "symbolic links",
    "file_handles": "file handles",
    "reflink": "shared content (reflink)",
    "flock": "locks on folders (flock)",
    "dir_fsync": "fsync of folders",
    "syncfs": "syncfs that can be relied on",
    "xattrs": "extended attributes",
    "acls": "POSIX ACLs",
}


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def probe(folder: str | os.PathLike[str]) -> Capabilities:
    """Find out what the filesystem that holds `folder` can do, and which of atomik's promises hold there.

    >>> print(atomik.probe("out"))

    :param folder: a str or path object: an existing folder that this user may write to: the parent of future destinations.
    :returns: `Capabilities`.

    :raises atomik.errors.MissingPathError: the folder does not exist.
    :raises atomik.errors.WrongKindError: it is no folder.
    :raises atomik.errors.AccessDeniedError: this user may not write to it.
    :raises atomik.errors.AtomikOSError: it cannot be tried out, for a full or read-only filesystem, say.

    Guarantee: nothing that exists is touched, and nothing is left.  Everything happens in a private folder
    ``.atomik-<id>`` (mode 0700) inside; should the process die meanwhile, `recover` removes it.  Limit: what a network
    or FUSE server says may be other than what it does; the exchange is checked by looking at inodes.

    Source: renameat2(2), open(2) on O_TMPFILE, link(2), name_to_handle_at(2), ioctl_ficlone(2), flock(2), xattr(7),
    acl(5).
    """
    path = os.path.abspath(os.fsdecode(folder))
    workspace = Workspace()
    try:
        directory = workspace.directory(path)
        private_folder = workspace.private_folder(directory).folder
        try_names(*(workspace.slot(directory) for _ in range(4)))
        return _try_all(_Scratch(workspace, directory, private_folder), path)
    except errors.AtomikError:
        raise
    except OSError as exc:
        raise errors.system_error(exc, "cannot try out the filesystem", path) from exc
    finally:
        workspace.release(keep_parents=True)


def _try_all(scratch: _Scratch, path: str) -> Capabilities:
    fs = scratch.directory.fs
    mount, kind = _mount(scratch.directory)
    return Capabilities(
        folder=path,
        filesystem=kind or fs.name,
        mount=mount,
        st_dev=scratch.directory.dev,
        tmpfile=scratch.can(scratch.tmpfile),
        noreplace=bool(fs.noreplace),
        exchange=bool(fs.exchange),
        lies=fs.lies,
        hard_links=scratch.can(scratch.hard_link),
        symlinks=scratch.can(scratch.symlink),
        file_handles=fs.handle_flags is not None,
        reflink=scratch.can(scratch.reflink),
        syncfs=fs.syncfs,
        flock=scratch.can(scratch.flock),
        xattrs=scratch.can(scratch.xattr),
        acls=scratch.can(scratch.acl),
        dir_fsync=scratch.can(lambda: kernel.port.fsync(scratch.private_folder.fd)),
    )


@define
class _Scratch:
    """The private folder, with one method for each thing to try: OSError when it cannot be done."""

    workspace: Workspace
    directory: Directory
    private_folder: Directory

    def can(self, attempt: Callable[[], object]) -> bool:
        """Whether it works; a failure that is none of the filesystem's abilities (a full disk …) is raised."""
        try:
            attempt()
        except OSError as exc:
            if exc.errno not in _REFUSALS or exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            return False
        return True

    def slot(self) -> Place:
        """A free name; what is made there goes with the folder."""
        return self.workspace.slot(self.directory)

    def file(self) -> Place:
        """A small file."""
        place = self.slot()
        fd = kernel.port.create(place.name, os.O_RDWR, 0o600, place.fd)
        try:
            kernel.port.pwrite(fd, bytes(4096), 0)
        finally:
            kernel.port.close(fd)
        return place

    def opened(self, place: Place, work: Callable[[int], object]) -> None:
        """Do something with a descriptor of it."""
        fd = kernel.port.open(place.name, os.O_RDWR | os.O_NOFOLLOW, place.fd)
        try:
            work(fd)
        finally:
            kernel.port.close(fd)

    def tmpfile(self) -> None:
        """A file without a name, which then gets one."""
        fd = kernel.port.open_tmpfile(self.private_folder.fd, os.O_RDWR, 0o600)
        try:
            place = self.slot()
            kernel.port.link_fd(fd, place.name, place.fd)
        finally:
            kernel.port.close(fd)

    def hard_link(self) -> None:
        """A second name."""
        old, new = self.file(), self.slot()
        kernel.port.link(old.name, old.fd, new.name, new.fd)

    def symlink(self) -> None:
        """A dangling link."""
        place = self.slot()
        kernel.port.symlink("nowhere", place.name, place.fd)

    def reflink(self) -> None:
        """Two files, one content."""
        source, target = self.file(), self.file()
        self.opened(source, lambda src: self.opened(target, lambda dst: kernel.port.clone(dst, src)))

    def xattr(self) -> None:
        """A user's attribute on a file."""
        self.opened(self.file(), lambda fd: kernel.port.setxattr(fd, "user.atomik", b"?"))

    def acl(self) -> None:
        """Whether a folder could have an ACL: that there is none must be said in the right words."""
        try:
            kernel.port.getxattr(self.private_folder.fd, _metadata.DEFAULT_ACL)
        except OSError as exc:
            if exc.errno != errno.ENODATA:
                raise

    def flock(self) -> None:
        """A second descriptor must not get the lock that the private folder holds."""
        fd = kernel.port.open(".", os.O_RDONLY | os.O_DIRECTORY, self.private_folder.fd)
        try:
            kernel.port.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        finally:
            kernel.port.close(fd)
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def _mount(directory: Directory) -> tuple[str, str]:
    """(mount point, type) of the folder's mount; the type is "" where /proc does not tell."""
    port = kernel.port
    point, up = directory.real_path(), ".."
    while point != "/" and port.statx(directory.fd, up).mount == directory.mount:
        point, up = os.path.dirname(point), up + "/.."
    kind = ""
    for line in _text_of("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ")[4] == point.replace("\\", "\\134").replace(" ", "\\040"):
            kind = after.split(" ")[0]  # the last one lies on top
    return point, kind


def _text_of(path: str) -> str:
    """A small text file of the kernel's, "" where it is not there."""
    try:
        fd = kernel.port.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return ""
    try:
        data = b""
        while more := kernel.port.pread(fd, 1 << 16, len(data)):
            data += more
        return os.fsdecode(data)
    finally:
        kernel.port.close(fd)
