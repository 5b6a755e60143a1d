"""What a filesystem can do, and what atomik can promise there, found out by trying it: `probe`, and `Capabilities`.

Every ability comes from a real call, and every promise from a small program (`trials`), in a private folder of a
transaction that is never committed; it is removed afterwards.  Only ``syncfs`` is looked up: trying it would wait for
everything that other programs have written.  What was learned about the flags of renameat2 is remembered for the mount,
as after a first transaction there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os

from attrs import asdict, define, evolve, field

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.mounts import mount_of
from atomik._folder.place import Place, remove_empty
from atomik._hidden_names import slot_name
from atomik._protocol.trial import try_names
from atomik._staging.workspace import Workspace
from atomik._system import kernel
from atomik._tree import metadata as _metadata
from atomik._tree.delete import delete_tree

from .promises import Promise, promises_of
from .trials import TRIALS, Outcome, attempt, run_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

_REFUSALS = frozenset({*_metadata.REFUSED, errno.EXDEV, errno.EISDIR, errno.ENOENT, errno.ENOTTY, errno.ENOLCK})

#: What is lost when the machine stops, even if it was synced.
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "rootfs", "devtmpfs", "hugetlbfs"})


@define(frozen=True)
class Capabilities:
    """What the filesystem that holds a folder can do; `probe` makes it.

    ``folder``: the folder that was asked about, absolute.  ``filesystem``: its type, as in /proc/mounts.  ``mount``:
    the mount point.  ``st_dev``: its device number, as in `os.stat_result`.

    ``tmpfile``: files without a name (O_TMPFILE) that can get one.  ``noreplace``, ``exchange``: the flags of
    renameat2(2).  ``lies``: it reports an exchange that it did not do.  ``hard_links``, ``symlinks``: they can be
    created.  ``file_handles``: objects have handles (name_to_handle_at(2)), which survive a remount.  ``reflink``: files
    can share their content (FICLONE).  ``syncfs``: one call makes everything durable, and reports errors.  ``flock``:
    locks on folders exclude each other.  ``xattrs``, ``acls``: "user." attributes and POSIX ACLs.  ``fsync``,
    ``dir_fsync``: files, and folders, can be synced.  ``paths``: what is staged has a path that other programs can open
    (`Transaction.path`).

    ``fixed_folders``: why it may be impossible to rename, and so to replace, move or remove, a folder in it; "" if it is not.
    ``fixed``: the same of something in it that has another project id.

    ``volatile``: why what was synced does not survive the machine ("it lives in memory"); "" if it does.

    ``unflushed``: why what was synced may still be in the device's cache ("it is mounted with nobarrier"); "" if it is not.

    ``promises``: which of atomik's promises hold, a `Promise` each.  What could not be found out is None, and ``unknown``
    says why.  ``str()`` gives all of it as a table, `as_dict` as plain values.
    """

    __module__ = "atomik"

    folder: str
    filesystem: str
    mount: str
    st_dev: int
    tmpfile: bool | None
    noreplace: bool | None
    exchange: bool | None
    lies: bool
    hard_links: bool | None
    symlinks: bool | None
    file_handles: bool
    reflink: bool | None
    syncfs: bool
    flock: bool | None
    xattrs: bool | None
    acls: bool | None
    fsync: bool | None
    dir_fsync: bool | None
    paths: bool | None = None
    volatile: str | None = ""
    unflushed: str = ""
    fixed_folders: str = ""
    fixed: str = ""
    #: ability → why it could not be found out
    unknown: dict[str, str] = field(factory=dict, hash=False)
    promises: tuple[Promise, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Everything as strings, numbers, booleans, lists and dictionaries, fit for JSON."""
        plain = asdict(self)
        plain["promises"] = {promise.name: asdict(promise) for promise in self.promises}
        return plain

    def __str__(self) -> str:
        device = f"{os.major(self.st_dev)}:{os.minor(self.st_dev)}"
        lines = [f"{self.folder}: {self.filesystem} on {self.mount} (device {device})", ""]
        for name, label in _LABELS.items():
            lines.append(f"  {label:<55}{_yes(getattr(self, name))}")
            if getattr(self, name) is None:
                lines.append(f"     {self.unknown.get(name, '')}")
        if self.lies:
            lines.append("  It reports an exchange as done without doing it: overwriting is refused.")
        lines.append("")
        for promise in self.promises:
            lines.append(f"  {f'{promise.name} {promise.text}':<55}{promise.holds}")
            if promise.reason:
                lines.append(f"     {promise.reason}")
        return "\n".join(lines)


_LABELS = {
    "noreplace": "rename that never replaces",
    "exchange": "exchange of two names",
    "tmpfile": "files without a name (O_TMPFILE)",
    "hard_links": "hard links",
    "symlinks": "symbolic links",
    "paths": "paths for other programs",
    "file_handles": "file handles",
    "reflink": "shared content (reflink)",
    "flock": "locks on folders (flock)",
    "fsync": "fsync of files",
    "dir_fsync": "fsync of folders",
    "syncfs": "syncfs that can be relied on",
    "xattrs": "extended attributes",
    "acls": "POSIX ACLs",
}


def _yes(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def probe(folder: str | os.PathLike[str]) -> Capabilities:
    """Find out what the filesystem that holds `folder` can do, and which of atomik's promises hold there.

    >>> print(atomik.probe("out"))

    :param folder: a str or path object: an existing folder that this user may write to: the parent of future destinations.
    :returns: `Capabilities`.

    :raises atomik.errors.MissingPathError: the folder does not exist.
    :raises atomik.errors.WrongKindError: it is not a folder.
    :raises atomik.errors.AccessDeniedError: this user may not write to it.
    :raises atomik.errors.AtomikOSError: nothing can be created in it, for example on a full or read-only filesystem.

    What cannot be found out is None, or "unknown", with the reason.

    Guarantee: nothing that exists is touched, and nothing is left.  Everything happens in a private folder
    ``.atomik-<id>`` (mode 0700) inside; if the process dies, `recover` removes it.  Limit: a network or FUSE
    server may say one thing and do another; the exchange is checked by comparing inodes.

    Source: renameat2(2), open(2) on O_TMPFILE, link(2), name_to_handle_at(2), ioctl_ficlone(2), flock(2), xattr(7),
    acl(5).
    """
    path = os.fsdecode(folder)
    if why := kernel.refused_calls():
        return _refused(path, why)
    workspace = Workspace()
    with kernel.typed("cannot try out the filesystem", path), contextlib.ExitStack() as opened:
        opened.callback(workspace.release, keep_parents=True)
        directory = workspace.directory(path)
        unknown: dict[str, str] = {}
        try:
            private_folder = workspace.private_folder(directory).folder
        except errors.UnsupportedFilesystemError as exc:  # no flock
            unknown["flock"] = _in_short(exc)
            private_folder = opened.enter_context(_folder_without_lock(workspace.sibling(directory)))
        except errors.AccessDeniedError as exc:
            if directory.append_only or not kernel.port.may_write(".", directory.fd):
                raise
            left = [str(failure) for failure in workspace.release(keep_parents=True)]
            return _refused(path, _in_short(exc), untried=_WITHOUT_FOLDER, left=left)
        return _try_all(_Scratch(workspace, directory, private_folder, unknown))


#: what atomik does without a private folder: where a sandbox allows none, nothing can be tried, and this is not refused
_WITHOUT_FOLDER = ("create", "overwrite", "lose the race", "write unseen", "stay closed", "be heard")


def _refused(path: str, why: str, untried: Sequence[str] = (), left: Sequence[str] = ()) -> Capabilities:
    """What is known where a sandbox refuses what every output needs, but perhaps for those that are `untried`."""
    with kernel.typed("cannot try out the filesystem", path):
        directory = Directory.open(path)
    try:
        mount, kind, _ = _mount_of(directory)
        unknown = dict.fromkeys(("volatile", "noreplace", "exchange", *_TO_TRY), why)
        asked: dict[str, Any] = dict.fromkeys(unknown)
        found = Capabilities(
            folder=directory.path, filesystem=kind or directory.fs.name, mount=mount, st_dev=directory.dev, lies=False,
            file_handles=directory.fs.handle_flags is not None, syncfs=directory.fs.syncfs, unknown=unknown, **asked,
        )  # fmt: skip
    finally:
        directory.close()
    refused, not_tried = Outcome(works=False, why=why, refused=True), Outcome(None, why)
    trials = {name: not_tried if name in untried else refused for name in TRIALS}
    trials["clean up"] = evolve(refused, left="".join(left[:1]))
    return evolve(found, promises=promises_of(found, trials))


def _in_short(exc: OSError) -> str:
    """What is the matter, without the cure."""
    return (exc.strerror or str(exc)).partition("; ")[0]


@contextlib.contextmanager
def _folder_without_lock(place: Place) -> Iterator[Directory]:
    try:
        kernel.port.mkdir(place.name, 0o700, place.fd)
        with place.open() as folder:
            yield folder
    finally:
        delete_tree(place)


def _try_all(scratch: _Scratch) -> Capabilities:
    fs, unknown = scratch.directory.fs, scratch.unknown
    why = scratch.ask("exchange", lambda: try_names(*(scratch.slot() for _ in range(4)))).why
    if why:
        unknown["noreplace"] = why
    asked: dict[str, Any] = {name: scratch.ask(name, getattr(scratch, name)).works for name in _TO_TRY}
    if fs.links is False:
        asked["hard_links"] = False
    mount, kind, options = _mount_of(scratch.directory)
    volatile = _volatile(kind or fs.name, fs.name, options, scratch.extents)
    if volatile is None:
        unknown["volatile"] = "what lies below the overlay is not visible here"
    found = Capabilities(
        folder=scratch.directory.path, filesystem=kind or fs.name, mount=mount, st_dev=scratch.directory.dev,
        noreplace=None if why else bool(fs.noreplace), exchange=None if why else bool(fs.exchange), lies=fs.lies,
        file_handles=fs.handle_flags is not None, syncfs=fs.syncfs, volatile=volatile, unknown=unknown,
        unflushed="it is mounted with nobarrier" if "nobarrier" in options.split(",") else "",
        fixed_folders=_fixed_folders(scratch.directory, kind or fs.name, options), fixed=_fixed(scratch.directory), **asked,
    )  # fmt: skip
    try:
        trials = run_all(scratch.folder)
    finally:
        removed = attempt(scratch.remove_folders)
    left = removed.why and f"what was made cannot be removed: {removed.why}"
    trials = {"clean up": evolve(removed, left=left), **trials}
    paths = trials["create path"]
    unknown.update({"paths": paths.why} if paths.works is None else {})
    return evolve(found, paths=paths.works, promises=promises_of(found, trials))


def _mount_of(directory: Directory) -> tuple[str, str, str]:
    """Mount point, type and options, "" for what is not to be found out."""
    try:
        return mount_of(directory)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return "", "", ""


def _volatile(kind: str, magic: str, options: str, extents: Callable[[], bool]) -> str | None:
    """Why synced data is lost when the machine stops; "" if it is not lost, None if that cannot be found out."""
    if kernel.fsync_is_ignored():
        return "a seccomp filter answers fsync without syncing"
    if kind in _IN_MEMORY or magic in _IN_MEMORY:
        return "it lives in memory"
    if kind != "overlay":
        return ""
    given = options.split(",")
    if "volatile" in given or "fsync=volatile" in given:
        return "the overlay is mounted with the option volatile, and ignores all syncs"
    if extents():
        return ""
    return "the upper layer of the overlay lives in memory" if _upper_in_memory(given) else None


def _fixed_folders(directory: Directory, kind: str, options: str) -> str:
    """Why folders of an overlay's lower layers cannot be renamed; "" where `directory` has none.

    A folder of the upper layer alone has none.  overlayfs shows a link count of 1 for merged folders only (ovl_getattr), and
    `directory` has an upper layer by now, because something was made in it."""
    if kind != "overlay" or kernel.port.fstat(directory.fd).st_nlink > 1:
        return ""
    given = [option for option in options.split(",") if option.startswith("redirect_dir=")]
    if given == ["redirect_dir=on"] or (not given and options and _redirects_by_default()):
        return ""
    return "the overlay is mounted without redirect_dir=on, so the folders of its lower layers cannot be renamed"


#: how many entries of a folder are asked for their project ids
_MANY = 1000


def _fixed(directory: Directory) -> str:
    """What the kernel refuses to do with entries whose project id is not the one that their folder passes on, "" where there
    are none.  It lets in nothing that has another project id, and a rename within the folder counts as coming in."""
    port = kernel.port
    own = port.project(directory.fd)
    if own is None or not own[1]:
        return ""
    with port.scandir(directory.fd) as entries:
        names = [entry.name for entry in itertools.islice(entries, _MANY)]
    if all(_project_of(directory, name) in (None, own[0]) for name in names):
        return ""
    refused = "moved, removed or kept" if directory.fs.name == "xfs" else "replaced, moved, removed or kept"
    return f"an entry with another project id than the folder's (lsattr -p) cannot be {refused}"


def _project_of(directory: Directory, name: str) -> int | None:
    """The project id of a file or folder that may be opened."""
    port = kernel.port
    found = directory.stat(name)
    if found is None or not (kernel.is_file(found.st_mode) or kernel.is_folder(found.st_mode)):
        return None
    try:
        fd = port.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, directory.fd)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return None
    try:
        project = port.project(fd)
    finally:
        port.close(fd)
    return None if project is None else project[0]


def _redirects_by_default() -> bool:
    """Whether an overlay has redirect_dir=on by default."""
    return kernel.told("/sys/module/overlay/parameters/redirect_dir", 1) == b"Y"


def _upper_in_memory(options: list[str]) -> bool:
    """Whether the upper layer, if it can be seen from here by its path, is on a filesystem in memory."""
    upper = next((option[9:] for option in options if option.startswith("upperdir=")), "")
    try:
        folder = Directory.open(upper.encode().decode("unicode_escape")) if upper else None
    except (OSError, ValueError) as exc:
        if isinstance(exc, OSError) and kernel.errno_of(exc) is None:
            raise
        return False
    if folder is None:
        return False
    with folder:
        return folder.fs.name in _IN_MEMORY


_TO_TRY = ("tmpfile", "hard_links", "symlinks", "reflink", "flock", "xattrs", "acls", "fsync", "dir_fsync")


@define
class _Scratch:
    """The private folder, with one method for each thing to try: OSError when it cannot be done."""

    workspace: Workspace
    directory: Directory
    private_folder: Directory
    #: what could not be found out, and why
    unknown: dict[str, str]
    _numbers: Iterator[int] = field(factory=itertools.count)
    _folders: list[Place] = field(factory=list)

    def ask(self, name: str, attempt: Callable[[], object]) -> Outcome:
        """Whether it works; a failure that is not about the filesystem's abilities (a full disk …) is no answer."""
        try:
            attempt()
        except OSError as exc:
            number = exc.errno if isinstance(exc, errors.AtomikError) else kernel.errno_of(exc)
            if number is None:
                raise
            if number in _REFUSALS and number not in (errno.ENOSPC, errno.EDQUOT):
                return Outcome(works=False)
            self.unknown[name] = _in_short(exc)
            return Outcome(None, self.unknown[name])
        return Outcome(works=True)

    def folder(self) -> Directory:
        """A folder for a trial, removed with the private folder."""
        place = self.slot()
        self._folders.append(place)
        kernel.port.mkdir(place.name, 0o700, place.fd)
        return place.open()

    def remove_folders(self) -> str:
        """Remove the folders of the trials, which are empty by now."""
        for place in self._folders:
            remove_empty(place)
        return ""

    def extents(self) -> bool:
        """Whether files are stored in blocks of a device."""
        found = []
        self.ask("extents", lambda: self.opened(self.file(), lambda fd: found.append(kernel.port.has_extents(fd))))
        self.unknown.pop("extents", None)
        return any(found)

    def fsync(self) -> None:
        self.opened(self.file(), kernel.port.fsync)

    def dir_fsync(self) -> None:
        kernel.port.fsync(self.private_folder.fd)

    def slot(self) -> Place:
        """A free name; what is created there is removed with the folder."""
        return Place(self.private_folder, slot_name(self.workspace.txid, next(self._numbers)))

    def file(self) -> Place:
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

    def hard_links(self) -> None:
        old, new = self.file(), self.slot()
        kernel.port.link(old.name, old.fd, new.name, new.fd)

    def symlinks(self) -> None:
        place = self.slot()
        kernel.port.symlink("nowhere", place.name, place.fd)

    def reflink(self) -> None:
        """Two files, one content."""
        source, target = self.file(), self.file()
        self.opened(source, lambda src: self.opened(target, lambda dst: kernel.port.clone(dst, src)))

    def xattrs(self) -> None:
        self.opened(self.file(), lambda fd: kernel.port.setxattr(fd, "user.atomik", b"?"))

    def acls(self) -> None:
        """Whether a folder could have an ACL: ENODATA says that it could, and has none."""
        try:
            kernel.port.getxattr(self.private_folder.fd, _metadata.DEFAULT_ACL)
        except OSError as exc:
            if kernel.errno_of(exc) != errno.ENODATA:
                raise

    def flock(self) -> None:
        """A second descriptor must not get the lock that the private folder holds."""
        fd = kernel.port.open(".", os.O_RDONLY | os.O_DIRECTORY, self.private_folder.fd)
        try:
            kernel.port.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            if kernel.errno_of(exc) is None:
                raise
            return
        finally:
            kernel.port.close(fd)
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
