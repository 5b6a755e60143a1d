"""What a program changed in a folder that it saw through an overlay: read from the overlay's upper layer.

Calling sequence::

    layer = Layer(upper, lower, prefix)      # before the program runs; two held folders, and how overlayfs marks things
    …
    found = layer.changes()                  # in the end: [LayerChange("put", "a/new", …), …]
    layer.complete("a/b", base, spare)       # the folder a/b of the layer becomes all that it shows
    strip(place, prefix)                     # removes what overlayfs noted

How overlayfs writes changes down (Documentation/filesystems/overlayfs.rst in Linux): of a file, all is in the upper layer; of
a folder, the names in it that are new or changed.  A name that is gone is a *whiteout*: a character device 0/0, or an empty
file with the attribute ``whiteout``.  An *opaque* folder hides what the lower layer has of its name.  A *redirect* says which
folder of the lower layer shows through instead: the folder was renamed.  ``origin`` names the file that was copied up.

Of a folder that both layers have, only what the program changed in it is a change, and the folder itself is one only if its
mode, owner or attributes are.  It is then published as a whole, with a copy of what shows through: no step changes the
attributes of a folder that stays, because that could not be undone by a rename.

Nothing here touches the lower layer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys

from attrs import define, field

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place, chmod
from atomik._hidden_names import PREFIX
from atomik._system import kernel

from . import compare
from .clone import clone
from .delete import delete_tree
from .metadata import Metadata, Named, address, apply
from .walk import TreeWalk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Literal

#: How overlayfs marks things in the upper layer: with and without CAP_SYS_ADMIN in the first user namespace.
TRUSTED, USER = "trusted.overlay.", "user.overlay."

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_PATH = os.O_PATH | os.O_NOFOLLOW
BENEATH = kernel.RESOLVE_NO_XDEV | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS | kernel.RESOLVE_BENEATH
#: Where the handle begins in the attribute ``origin``: behind version, magic, length, flags, type (a byte each) and UUID.
_HANDLE_TYPE, _HANDLE = 4, 21


@define
class LayerChange:
    """One name that the program changed.

    ``op``: "put" (what is there now is in the layer), "remove", or "move" (the folder ``source`` was renamed, and nothing
    else was changed in it).  ``path`` is relative to the folder.  ``old``: what the folder has of that name, ``new``: what
    the layer has.  ``base``: of a folder, which folder shows through, relative to the lower layer.  ``same``: only times
    differ.  ``origin``: where the folder has nothing, and of a file with several names, type and file handle of what was
    copied up, as `Kernel.handle` gives them; b"" where they are not known, None for what is new.  ``spare``: where the new
    object is, if not at its path in the layer: a name beside the layer.
    """

    op: Literal["put", "remove", "move"]
    path: str
    old: os.stat_result | None
    new: os.stat_result | None = None
    base: str | None = None
    source: str = ""
    same: bool = False
    origin: bytes | None = None
    spare: str = ""


@define(eq=False)
class Layer:
    """The upper layer of an overlay, and the folder that is its lower layer; see the module."""

    upper: Directory
    lower: Directory
    prefix: str
    #: the metadata of the top before the program ran
    top: Metadata = field(init=False)
    #: folders that both layers have, and that stay, with the times (access, modification) that the program left them with
    merged: dict[str, tuple[int, int]] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.top = self._metadata(self.upper.fd)

    # --- reading -----------------------------------------------------------------------------------------------------
    def changes(self) -> list[LayerChange]:
        """What the program changed; no path is below another one's."""
        now = self._metadata(self.upper.fd)
        if not _alike(now, self.top):
            self._refuse_closed("", now.mode, stat.S_IRWXU)
            return [LayerChange("put", "", kernel.port.fstat(self.lower.fd), kernel.port.fstat(self.upper.fd), "")]
        found: list[LayerChange] = []
        left = [""]
        while left:
            path = left.pop()
            left += self._folder(path, found)
        return self._with_moves(sorted(found, key=lambda change: change.path))

    def _folder(self, path: str, found: list[LayerChange]) -> list[str]:
        """The changes in one folder that both layers have; returns the paths of those in it."""
        port, below = kernel.port, []
        with opened(self.upper.fd, path) as upper, opened(self.lower.fd, path) as lower:
            self.merged[path] = _both_times(port.fstat(upper))
            with port.scandir(upper) as entries:
                names = [entry.name for entry in entries if not entry.name.startswith(PREFIX)]
            for name in names:
                change = self._entry(name, os.path.join(path, name), upper, lower)
                if isinstance(change, str):
                    below.append(change)
                elif change is not None:
                    found.append(change)
        return below

    def _entry(self, name: str, path: str, upper: int, lower: int) -> LayerChange | str | None:
        """The change of one name; its path, if it is a folder that stays; None where nothing changed."""
        new, old = kernel.port.lstat(name, upper), found_at(name, lower)
        if self._is_whiteout(name, upper, new):
            return None if old is None else LayerChange("remove", path, old)
        if not stat.S_ISDIR(new.st_mode):
            if old is not None and self._unchanged(name, upper, lower, new, old):
                return LayerChange("put", path, old, new, same=True) if new.st_mtime_ns != old.st_mtime_ns else None
            known = (old is not None and new.st_nlink == 1) or not kernel.port.has_xattrs(name, upper)
            return LayerChange("put", path, old, new, origin=None if known else origin_of(self.marks(name, upper)))
        marks = self.marks(name, upper)
        if "redirect" in marks:
            base = redirected(os.path.dirname(path), marks["redirect"])
            return LayerChange("put", path, old, new, base)
        if marks.get("opaque") == b"y" or old is None or not stat.S_ISDIR(old.st_mode):
            self._refuse_closed(path, new.st_mode, stat.S_IRUSR | stat.S_IXUSR)
            return LayerChange("put", path, old, new, origin=None if "opaque" in marks else origin_of(marks))
        if new.st_mode == old.st_mode and self._same_metadata(name, upper, lower):
            return path
        self._refuse_closed(path, new.st_mode, stat.S_IRWXU)
        return LayerChange("put", path, old, new, path)

    def _refuse_closed(self, path: str, mode: int, needed: int) -> None:
        """A folder that lacks one of the permissions for its owner, if that is not root."""
        if mode & needed != needed and self.prefix == USER:
            text = (
                f"the folder's new mode {stat.S_IMODE(mode):04o} keeps its owner out, so its content cannot be published; "
                "nothing was published.  Run it without changes_only, on a clone of the folder, or as root"
            )
            errors.fail(errors.UnsupportedFilesystemError, errno.EOPNOTSUPP, text, os.path.join(self.lower.path, path))

    def _with_moves(self, found: list[LayerChange]) -> list[LayerChange]:
        """A folder that was only renamed is moved; any other with a redirect is put, with a copy of what shows through."""
        removed = {change.path: change for change in found if change.op == "remove"}
        for change in found:
            source = removed.get(change.base or "")
            if source is not None and change.old is None and self._is_only_renamed(change):
                change.op, change.source, change.old = "move", source.path, source.old
                del removed[source.path]
        return [change for change in found if change.op != "remove" or change.path in removed]

    def _is_only_renamed(self, change: LayerChange) -> bool:
        with opened(self.upper.fd, change.path) as upper:
            with kernel.port.scandir(upper) as entries:
                if next(entries, None) is not None:
                    return False
            with opened(self.lower.fd, change.base or "") as lower:
                return _alike(self._metadata(upper), self._metadata(lower))

    # --- marks -------------------------------------------------------------------------------------------------------
    def marks(self, name: str, dir_fd: int) -> dict[str, bytes]:
        """What overlayfs has noted about a name."""
        fd = kernel.port.open(name, _PATH, dir_fd)
        try:
            return _marks(fd, self.prefix, name)
        finally:
            kernel.port.close(fd)

    def _is_whiteout(self, name: str, dir_fd: int, found: os.stat_result) -> bool:
        if stat.S_ISCHR(found.st_mode):
            return found.st_rdev == 0
        return stat.S_ISREG(found.st_mode) and not found.st_size and "whiteout" in self.marks(name, dir_fd)

    # --- comparing ---------------------------------------------------------------------------------------------------
    def _metadata(self, fd: int, *, path_only: bool = False) -> Metadata:
        """Without the marks."""
        found = Metadata.held(fd, kernel.port.fstat(fd), path_only=path_only)
        kept = {name: value for name, value in found.xattrs.items() if not name.startswith(self.prefix)}
        return found._replace(xattrs=kept)

    def _same_metadata(self, name: str, upper: int, lower: int) -> bool:
        with opened(upper, name) as first, opened(lower, name) as second:
            return _alike(self._metadata(first), self._metadata(second))

    def _unchanged(self, name: str, upper: int, lower: int, new: os.stat_result, old: os.stat_result) -> bool:
        """Whether what was copied up is as it was, except for its times."""
        of_both = [(each.st_mode, each.st_uid, each.st_gid, each.st_rdev) for each in (new, old)]
        if of_both[0] != of_both[1] or (stat.S_ISREG(new.st_mode) and new.st_size != old.st_size):
            return False
        if new.st_nlink > 1:  # it may have been linked to another name
            return False
        places = Place(_Held(upper), name), Place(_Held(lower), name)  # type: ignore[arg-type]
        found = [self._attributes(name, fd) for fd in (upper, lower)]
        return found[0] == found[1] and compare.same(*places)

    def _attributes(self, name: str, dir_fd: int) -> dict[str, bytes]:
        fd = kernel.port.open(name, _PATH, dir_fd)
        try:
            return self._metadata(fd, path_only=True).xattrs
        finally:
            kernel.port.close(fd)

    # --- completing --------------------------------------------------------------------------------------------------
    def complete(self, path: str, base: str | None, spare: Callable[[], Place], *, share: bool = False) -> None:
        """Make the folder at `path` of the upper layer hold all that it shows, without marks; `base` is the folder of the
        lower layer that shows through, `spare` gives names for copies, and `share` is for `clone`."""
        left = [(path, base)]
        while left:
            at, below = left.pop()
            left += self._strip(at) if below is None else self._merge(at, below, spare(), share=share)

    def _strip(self, path: str) -> list[tuple[str, str | None]]:
        """Take the marks off a folder that is new, and all in it; except from renamed folders of the lower layer, which are
        still to be completed."""
        found: list[tuple[str, str | None]] = []
        with placed(self.upper, path) as place:
            _strip(place.name, place.fd, self.prefix)
            for down, name in each_below(place, "read what the program changed", loosen=True):
                level = down.level
                folder = bool(level.folders) and level.folders[-1] == name  # type: ignore[index]
                target = self.marks(name, level.fd).get("redirect") if folder else None
                if target is None:
                    _strip(name, level.fd, self.prefix)
                else:
                    level.folders.pop()  # type: ignore[union-attr]
                    where = os.path.join(path, *level.names())
                    found.append((os.path.join(where, name), redirected(where, target)))
        return found

    def _merge(self, path: str, base: str, fresh: Place, *, share: bool) -> list[tuple[str, str | None]]:
        """Replace a folder of the upper layer by a copy of `base` with the changes of the layer in it; what is still to be
        completed in there."""
        kernel.port.mkdir(fresh.name, 0o700, fresh.fd)
        with fresh.open() as target:
            with Directory.reach(self.lower, base or ".", BENEATH) as source:
                clone(source, target, share=share)
            with Directory.reach(self.upper, path or ".", BENEATH) as upper:
                left = self._merge_into(upper, target, path, base)
        if path:
            with placed(self.upper, path) as place:
                times = _both_times(kernel.port.fstat(place.fd))
                delete_tree(place)
                kernel.port.rename(fresh.name, fresh.fd, place.name, place.fd, 0)
                kernel.port.futime(place.fd, times)
        else:
            self._replace_top(fresh)
        return left

    def _replace_top(self, fresh: Place) -> None:
        """The top is held open, so everything from the copy goes into it."""
        for name in self.upper.names():
            delete_tree(Place(self.upper, name))
        _strip(".", self.upper.fd, self.prefix)
        with fresh.open() as source:
            for name in source.names():
                kernel.port.rename(name, source.fd, name, self.upper.fd, 0)
            kernel.port.futime(self.upper.fd, _both_times(kernel.port.fstat(source.fd)))

    def _merge_into(self, upper: Directory, target: Directory, path: str, base: str) -> list[tuple[str, str | None]]:
        """Put the changes below `upper` into a copy of what shows through."""
        later: list[tuple[str, str | None]] = []
        folders = [""]
        done: list[str] = []
        while folders:
            at = folders.pop()
            done.append(at)
            with opened(upper.fd, at) as source, opened(target.fd, at) as copy:
                with kernel.port.scandir(source) as entries:
                    names = [entry.name for entry in entries]
                for name in names:
                    inner = os.path.join(at, name)
                    what = self._merge_entry(name, source, copy, target, os.path.join(base, at))
                    if what is True:
                        folders.append(inner)
                    elif what is not False:
                        later.append((os.path.join(path, inner), what))
        for at in reversed(done):  # from below: times change with what is put in
            self._dress(upper, target, at)
        return later

    def _merge_entry(self, name: str, upper: int, copy: int, target: Directory, base: str) -> str | bool | None:
        """Put one name into the copy.  True: a folder, whose content is to be merged.  False: done.  Else a folder that is to
        be completed with what shows through, which is the answer."""
        found, there = kernel.port.lstat(name, upper), found_at(name, copy)
        whiteout = self._is_whiteout(name, upper, found)
        folder = stat.S_ISDIR(found.st_mode)
        marks = self.marks(name, upper) if folder else {}
        merged = folder and there is not None and stat.S_ISDIR(there.st_mode)
        if merged and "redirect" not in marks and marks.get("opaque") != b"y":
            return True
        if there is not None:
            with Directory.open(".", copy) as above:
                above.path = target.path
                delete_tree(Place(above, name))
        if whiteout:
            return False
        if not folder:
            _strip(name, upper, self.prefix)
        kernel.port.rename(name, upper, name, copy, 0)
        if not folder:
            return False
        return redirected(base, marks["redirect"]) if "redirect" in marks else None

    def _dress(self, upper: Directory, target: Directory, path: str) -> None:
        with opened(upper.fd, path) as source, opened(target.fd, path) as copy:
            kernel.port.futime(copy, _both_times(kernel.port.fstat(source)))
            apply(copy, self._metadata(source), "all", same_content=True, path=target.path)


@contextlib.contextmanager
def placed(top: Directory, path: str) -> Iterator[Place]:
    """A path below a held folder as a place."""
    above, name = os.path.split(path)
    with Directory.reach(top, above or ".", BENEATH) as held:
        yield Place(held, name or ".")


@contextlib.contextmanager
def opened(top_fd: int, path: str) -> Iterator[int]:
    """A folder at or below an open one."""
    fd = kernel.port.open_beneath(path or ".", _FOLDER, top_fd, BENEATH)
    try:
        yield fd
    finally:
        kernel.port.close(fd)


class _Held:
    """As much of a folder as `compare` needs."""

    def __init__(self, fd: int) -> None:
        self.fd = fd


def each_below(place: Place, action: str, *, loosen: bool = False) -> Iterator[tuple[TreeWalk, str]]:
    """Each name below a folder, with the way to it."""
    with place.open() as top, TreeWalk(top, action, loosen=loosen, restore=loosen) as down:
        for entry in down.each():
            yield down, entry.name


def strip(place: Place, prefix: str) -> None:
    """Remove what overlayfs noted about a file; attributes that it had to rename get their names back."""
    _strip(place.name, place.fd, prefix)


def _strip(name: str, dir_fd: int, prefix: str) -> None:
    port = kernel.port
    if not port.has_xattrs(name, dir_fd):
        return
    fd = port.open(name, _PATH, dir_fd)
    try:
        target, marks = Named(fd, name, dir_fd), _marks(fd, prefix, name)
        with _loosened(fd, name) if marks and prefix == USER else contextlib.nullcontext():
            for mark, value in marks.items():
                if mark.startswith("overlay."):  # an overlay that the program mounted itself (Linux 6.7)
                    target.set_xattr(prefix + mark.removeprefix("overlay."), value)
                target.remove_xattr(prefix + mark)
    finally:
        port.close(fd)


def _marks(path_fd: int, prefix: str, name: str) -> dict[str, bytes]:
    port, path = kernel.port, address(path_fd)
    marks = [each for each in port.listxattr_of(path) if each.startswith(prefix)]
    try:
        return {each.removeprefix(prefix): port.getxattr_of(path, each) for each in marks}
    except OSError as exc:
        if kernel.errno_of(exc) != errno.EACCES:
            raise
    with _loosened(path_fd, name):
        return {each.removeprefix(prefix): port.getxattr_of(path, each) for each in marks}


@contextlib.contextmanager
def _loosened(path_fd: int, name: str) -> Iterator[None]:
    """The owner may read and write something of the layer, without which nobody but root gets at ``user.`` attributes."""
    mode = stat.S_IMODE(kernel.port.fstat(path_fd).st_mode)
    if mode | stat.S_IRUSR | stat.S_IWUSR == mode:
        yield
        return
    chmod(path_fd, mode | stat.S_IRUSR | stat.S_IWUSR, name)
    try:
        yield
    finally:
        chmod(path_fd, mode, name)


def origin_of(marks: dict[str, bytes]) -> bytes | None:
    told = marks.get("origin")
    if told is None or len(told) <= _HANDLE:
        return None if told is None else b""
    return int.to_bytes(told[_HANDLE_TYPE], 4, sys.byteorder) + told[_HANDLE:]


def found_at(name: str, dir_fd: int) -> os.stat_result | None:
    try:
        return kernel.port.lstat(name, dir_fd)
    except OSError as exc:
        if kernel.errno_of(exc) != errno.ENOENT:
            raise
        return None


def redirected(parent: str, target: bytes) -> str:
    """The folder that a redirect means: a name in the same folder, or a path from the top of the layer."""
    told = os.fsdecode(target)
    return told.lstrip("/") if told.startswith("/") else os.path.join(parent, told)


def _alike(one: Metadata, other: Metadata) -> bool:
    return (one.mode, one.uid, one.gid, one.xattrs) == (other.mode, other.uid, other.gid, other.xattrs)


def _both_times(found: os.stat_result) -> tuple[int, int]:
    return found.st_atime_ns, found.st_mtime_ns


def newer(place: Place, since: int, *, touched: int | None, moved: bool = False) -> str | None:
    """What was changed at a place, or below it, after `since` (nanoseconds of the filesystem's clock): a path relative to the
    place, "." for itself; None where nothing was.  No program can set the time by which this is known (ctime).

    `touched`: of files with that many names or more we have made or removed a name ourselves, so the time of their content
    counts (mtime); `moved`: and the place itself was renamed.
    """
    found = place.stat()
    if found is None:
        return None
    if not moved and _changed(found, touched) > since:
        return "."
    for down, name in each_below(place, "look for changes") if stat.S_ISDIR(found.st_mode) else ():
        if _changed(kernel.port.lstat(name, down.level.fd), touched) > since and not name.startswith(PREFIX):
            return os.path.join(*down.level.names(), name)
    return None


def _changed(found: os.stat_result, touched: int | None) -> int:
    ours = touched is not None and found.st_nlink >= touched and not stat.S_ISDIR(found.st_mode)
    return found.st_mtime_ns if ours else found.st_ctime_ns


def handles(place: Place, flags: int) -> Iterator[tuple[bytes, str]]:
    """Type and file handle of what exists at a place and below it, with the path relative to the place ("" for itself)."""
    found = place.stat()
    if found is None:
        return
    yield kernel.port.handle(place.name, place.fd, flags), ""
    for down, name in each_below(place, "look for renamed files") if stat.S_ISDIR(found.st_mode) else ():
        yield kernel.port.handle(name, down.level.fd, flags), os.path.join(*down.level.names(), name)
