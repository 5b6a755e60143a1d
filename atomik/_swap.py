"""The ladder: how one destination is published, and how that is undone.

A `Step` is one change of one name.  Before it, the slot holds the new object (nothing, for a removal); after it, the
destination holds the new object and the slot the displaced original::

    op        before: dest, slot     after: dest, slot      first rung
    create    –      new             new    –               renameat2 NOREPLACE
    replace   old    new             new    old             renameat2 EXCHANGE
    remove    old    –               –      old             renameat2 NOREPLACE

Larger wishes are chains of steps that share a slot: a move is *remove* the source, then *create* (or *replace*) the
target out of the same slot; keeping the previous version is *replace*, then *create* its new name.

`swap` goes down the ladder when the filesystem lacks a flag (EINVAL, ENOSYS):

* ``renameat2``  – NOREPLACE and EXCHANGE;
* ``link``       – for anything but folders: link + unlink (create), or link the original into the slot's twin and
  rename over (replace).  Never a missing moment, never a replaced stranger on create; on replace a foreign write in
  the microseconds between look and rename is lost;
* ``rename``     – where hard links are missing too, for one item alone: a plain rename over the original, which is one
  step as well, but has no way back;
* ``weaker``     – only on request (``fallback="weaker"``): mkdir + rename shows an empty folder for a moment, two
  renames leave a moment without any; a file without flags and links is created by a look and a rename.

`undo` looks at identities and nothing else, so it is the same in rollback and in recovery, and may be repeated (I5).
What is neither the recorded new nor the recorded old object is *foreign* and stays (I4).
"""

from __future__ import annotations

import errno
import os
from enum import Enum
from typing import TYPE_CHECKING

from attrs import define

from . import _kernel, errors
from ._directory import Place, rename

if TYPE_CHECKING:
    from collections.abc import Container

#: errno values that say "this filesystem (or kernel) does not know the flag": EINVAL of FUSE, NFS and ZFS before 2.2,
#: ENOSYS before Linux 3.15, EOPNOTSUPP of some network filesystems.
NO_FLAG = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})

#: errno values of link(2) where it is no way: EPERM of filesystems without hard links and of fs.protected_hardlinks,
#: EOPNOTSUPP and ENOSYS of servers, EMLINK of an inode that has as many as it can.
NO_LINK = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK})

RENAMEAT2 = "renameat2"
LINKAT = "linkat"
LINK = "link"
RENAME = "rename"
WEAKER = "weaker"


class Undone(Enum):
    """What `undo` found."""

    UNTOUCHED = "untouched"  # the destination holds the original already
    UNDONE = "undone"  # it was brought back
    FOREIGN = "foreign"  # somebody else's object is there; it stays


@define
class Step:
    """One change of one name.  ``new`` and ``old`` are identities, None where there is nothing."""

    op: str
    kind: str
    dest: Place
    slot: Place
    new: bytes | None
    old: bytes | None = None
    order: int = 0
    rung: str = ""
    weaker: bool = False
    #: the only step of its transaction: nothing after it can fail and want it undone
    alone: bool = False
    #: the mode that the new folder gets right before its swap, where its slot is no private place
    mode: int | None = None
    #: whoever asked would not mind that something stands there
    overwriting: bool = False

    @property
    def folder(self) -> bool:
        """Whether a folder takes part, so that hard links are no way."""
        return self.kind == "folder"

    def twin(self, suffix: str) -> Place:
        """A second private name beside the slot, for the rungs and undos that need one."""
        return Place(self.slot.directory, f"{self.slot.name}-{suffix}")

    def slots(self) -> tuple[Place, ...]:
        """Every private name that this step may have left something at."""
        return self.slot, self.twin("old"), self.twin("new")


def swap(step: Step) -> None:
    """Publish one step and check that it did what it says: the swap of a journalled transaction.

    Raises `FileAlreadyExistsError` or `ConflictError` for a lost race (the destination is as the other left it),
    `UnsupportedFilesystemError` when no rung keeps the promise, and OSError as the kernel gives it.
    """
    try:
        publish(step)
    except FileExistsError:
        if step.op != "create":
            raise
        if step.overwriting:
            _conflict(step, "something was created at the destination meanwhile")
        raise lost_race(str(step.dest)) from None
    except FileNotFoundError:
        if step.op != "create" and step.dest.identity() is None:
            _conflict(step, "the destination was removed meanwhile")
        raise
    _check(step)


def lost_race(path: str) -> errors.FileAlreadyExistsError:
    """The error for a destination that came to be since it was looked at."""
    text = "it already exists: somebody else published first; nothing was replaced. Pass overwrite=True to replace it"
    return errors.FileAlreadyExistsError(*errors.os_args(errno.EEXIST, text, path))


def publish(step: Step) -> None:
    """Go down the ladder until a rung serves; OSError of the rung that the filesystem knows but that failed."""
    fs = step.dest.directory.fs
    native = fs.exchange if step.op == "replace" else fs.noreplace
    try:
        if native is False or not _native(step):
            _by_links(step)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        text = (
            "the filesystem will not rename it, although both names lie on one mount (a folder in the lower layer of "
            "an overlay, another project quota or encryption key); mount the overlay with redirect_dir=on, write the "
            "files in the folder one by one, or leave tmp_dir out"
        )
        raise errors.UnsupportedFilesystemError(
            *errors.os_args(errno.EXDEV, text, str(step.dest), str(step.slot))
        ) from exc


def _native(step: Step) -> bool:
    """Try renameat2; False when the filesystem does not know the flag."""
    fs = step.dest.directory.fs
    try:
        if step.op == "replace":
            rename(step.slot, step.dest, _kernel.EXCHANGE)
        elif step.op == "create":
            rename(step.slot, step.dest, _kernel.NOREPLACE)
        else:
            rename(step.dest, step.slot, _kernel.NOREPLACE)
    except OSError as exc:
        if exc.errno not in NO_FLAG:
            raise
        if fs.trusted:
            pass  # it knows the flag, so this says something about these two names; the next two may be fine
        elif step.op == "replace":
            fs.exchange = False
        else:
            fs.noreplace = False
        return False
    step.rung = RENAMEAT2
    return True


def _by_links(step: Step) -> None:
    """The rungs below renameat2."""
    if step.op == "remove":
        # The slot's name is private and unique, so there is nothing that a plain rename could replace.
        rename(step.dest, step.slot, 0)
        step.rung = LINK
    elif step.folder:
        _weaker(step)
    elif step.op == "create":
        _create_by_link(step)
    else:
        _replace_by_link(step)


def _create_by_link(step: Step) -> None:
    if _link(step.slot, step.dest):
        step.rung = LINK
        _kernel.port.unlink(step.slot.name, step.slot.fd)
    else:
        _weaker(step)


def _replace_by_link(step: Step) -> None:
    if step.old is None:
        step.old = step.dest.identity()  # a one-item write has not looked
    twin = step.twin("old")
    if _link(step.dest, twin):
        if twin.identity() != step.old:
            _kernel.port.unlink(twin.name, twin.fd)
            _conflict(step, "the destination was replaced meanwhile")
        rename(step.slot, step.dest, 0)
        rename(twin, step.slot, 0)
        step.rung = LINK
    elif step.alone and not step.weaker:
        rename(step.slot, step.dest, 0)
        step.rung = RENAME
    else:
        _weaker(step)


def _link(src: Place, dst: Place) -> bool:
    """Give a second name; False where the filesystem (or the kernel's fs.protected_hardlinks) will not."""
    try:
        _kernel.port.link(src.name, src.fd, dst.name, dst.fd)
    except OSError as exc:
        if exc.errno not in NO_LINK:
            raise
        return False
    return True


def _weaker(step: Step) -> None:
    """Nothing above keeps the promise: only when the caller asked for less."""
    if not step.weaker:
        what = "a folder in one step (" if step.folder else "this in one step and undo it (it has no hard links, and "
        text = (
            f"the filesystem cannot publish {what}renameat2 flags are missing); "
            'write to another filesystem, or accept a moment of visibility with fallback="weaker"'
        )
        errors.fail(errors.UnsupportedFilesystemError, errno.EOPNOTSUPP, text, str(step.dest))
    if step.op == "create":
        _create_weaker(step)
    else:
        twin = step.twin("old")
        rename(step.dest, twin, 0)
        rename(step.slot, step.dest, 0)
        rename(twin, step.slot, 0)
    step.rung = WEAKER


def _create_weaker(step: Step) -> None:
    if not step.folder:
        if step.dest.directory.exists(step.dest.name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(step.dest))
        rename(step.slot, step.dest, 0)
        return
    # Our own empty folder first: a stranger's entry in it makes the rename fail instead of being replaced.
    _kernel.port.mkdir(step.dest.name, 0o700, step.dest.fd)
    try:
        rename(step.slot, step.dest, 0)
    except BaseException:
        _remove_empty(step.dest)
        raise


def _check(step: Step) -> None:
    """I4, after the fact: the destination holds the new object and the slot the old one."""
    if step.dest.identity() != step.new:
        _conflict(step, "somebody replaced the destination right after it was published")
    if step.op == "create" and step.rung == RENAMEAT2:
        return  # a rename that arrived has left its slot
    if step.slot.identity() != step.old:
        # What we displaced is not what we looked at: a lost update.  It is in hand, so give it back.
        give_back(step)
        _conflict(step, "the destination was replaced by somebody else meanwhile")


def _remove_empty(place: Place) -> bool:
    """Remove the empty folder that held a place for us; False when it is no empty folder."""
    try:
        _kernel.port.rmdir(place.name, place.fd)
    except (FileExistsError, NotADirectoryError, FileNotFoundError):
        return False
    except OSError as exc:
        if exc.errno != errno.ENOTEMPTY:
            raise
        return False
    return True


def give_back(step: Step) -> None:
    """Undo a step that displaced a foreign object, which thereby returns."""
    foreign = Step(step.op, step.kind, step.dest, step.slot, step.new, step.slot.identity(), weaker=step.weaker)
    undo(foreign)


def _conflict(step: Step, text: str) -> None:
    errors.fail(errors.ConflictError, errno.EBUSY, f"{text}; read it again and repeat", str(step.dest))


def undo(step: Step, recorded: Container[bytes] = ()) -> Undone:
    """Bring one step back, whatever of it was done; idempotent, by identity only (I4, I5).

    `recorded`: the identities of all objects that the transaction knows, for steps may share a slot.
    Raises OSError when the kernel refuses; the state is then as before, or undone.
    """
    now = step.dest.identity()
    held = step.slot.identity()
    swapped = now == step.new or (now is None and step.op == "create")
    if swapped and held not in (None, step.new, step.old) and held not in recorded:
        return _return_stranger(step, now)
    if now == step.old:
        return Undone.UNTOUCHED
    if now is None and step.op == "replace" and step.old is not None and step.twin("old").identity() == step.old:
        put(step.twin("old"), step.dest, step.folder)  # the weaker rung, between its renames
        return Undone.UNDONE
    if now != step.new:
        if step.weaker and step.folder and step.op == "create" and _remove_empty(step.dest):
            return Undone.UNDONE  # the empty folder of the weaker rung
        return Undone.FOREIGN
    if step.op == "create":
        return _undo_create(step)
    if step.op == "remove":
        return _undo_remove(step)
    return _undo_replace(step)


def _return_stranger(step: Step, now: bytes | None) -> Undone:
    """We displaced what came there between look and swap, and were stopped before it was given back."""
    if now == step.new:
        give_back(step)
    else:
        put(step.slot, step.dest, step.folder)
    return Undone.FOREIGN


def _undo_create(step: Step) -> Undone:
    # Take it away first and look afterwards: a stranger who published between look and rename gets theirs back.
    # Where the slot holds the same inode (link rung, killed between link and unlink) a rename onto it would do nothing.
    away = step.twin("new") if step.slot.identity() is not None else step.slot
    try:
        rename(step.dest, away, 0)
    except FileNotFoundError:
        if step.dest.identity() is not None:
            raise
        return Undone.UNTOUCHED
    if away.identity() == step.new:
        return Undone.UNDONE
    put(away, step.dest, step.folder)
    return Undone.FOREIGN


def _undo_remove(step: Step) -> Undone:
    if step.slot.identity() != step.old:
        return Undone.FOREIGN  # it was not we who took it away
    try:
        put(step.slot, step.dest, step.folder)
    except FileExistsError:
        if step.dest.identity() is None:
            raise
        return Undone.FOREIGN
    return Undone.UNDONE


def _undo_replace(step: Step) -> Undone:
    held = next((place for place in step.slots()[:2] if place.identity() == step.old), None)
    if held is None or step.old is None:
        return Undone.FOREIGN
    if step.dest.directory.fs.exchange is not False:
        try:
            rename(held, step.dest, _kernel.EXCHANGE)
        except OSError as exc:
            if exc.errno not in NO_FLAG:
                raise
            step.dest.directory.fs.exchange = False
        else:
            if held.identity() == step.new:
                return Undone.UNDONE
            rename(held, step.dest, _kernel.EXCHANGE)  # a stranger's: back to where it was
            return Undone.FOREIGN
    if step.folder:
        rename(step.dest, step.twin("new"), 0)
    rename(held, step.dest, 0)
    return Undone.UNDONE


def put(src: Place, dst: Place, folder: bool) -> None:
    """Rename back onto a name that should be free, never replacing what came there meanwhile."""
    fs = dst.directory.fs
    if fs.noreplace is not False:
        try:
            rename(src, dst, _kernel.NOREPLACE)
        except OSError as exc:
            if exc.errno not in NO_FLAG:
                raise
            fs.noreplace = False
        else:
            return
    if not folder and _link(src, dst):
        _kernel.port.unlink(src.name, src.fd)
        return
    if dst.directory.exists(dst.name):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(dst))
    rename(src, dst, 0)  # nothing better is left; of folders it replaces at most an empty one


def same_kind(mode: int, kind: str) -> bool:
    """Whether an existing object may be replaced by one of `kind`: a folder by a folder, else by no folder."""
    return _kernel.is_folder(mode) == (kind == "folder")
