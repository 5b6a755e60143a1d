"""The ladder: how one destination is published.

A `Step` is one change of one name (`_step`).  `swap` goes down the ladder when the filesystem lacks a flag (EINVAL, ENOSYS):

* ``renameat2``  – NOREPLACE and EXCHANGE;
* ``link``       – for anything but folders: link + unlink (create), or link the original into the slot's twin and
  rename over (replace).  Never a missing moment, never a replaced stranger on create; on replace a foreign write in
  the microseconds between look and rename is lost;
* ``rename``     – where hard links are missing too, for one item alone: a plain rename over the original, which is one
  step as well, but has no way back;
* ``allow_gap``     – only on request (``fallback="weaker"``): mkdir + rename shows an empty folder for a moment, two
  renames leave a moment without any; a file without flags and links is created by a look and a rename.

How a step is brought back is said in `_undo`.
"""

from __future__ import annotations

import errno
import os

from atomik import errors
from atomik._folder.directory import identify, rename
from atomik._system import kernel

from .step import GAP, LINK, NO_FLAG, RENAME, RENAMEAT2, Step, link, remove_empty
from .undo import give_back


def swap(step: Step) -> None:
    """Publish one step and check that it did what it says: the swap of a journalled transaction.

    Raises `FileAlreadyExistsError` or `ConflictError` for a lost race (the destination is as the other left it),
    `UnsupportedFilesystemError` when no method keeps the promise, and OSError as the kernel gives it.
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
    """Go down the ladder until a method serves; OSError of the method that the filesystem knows but that failed."""
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
    try:
        if step.op == "create":
            rename(step.slot, step.dest, kernel.NOREPLACE)
        elif step.op == "replace":
            rename(step.slot, step.dest, kernel.EXCHANGE)
        else:
            rename(step.dest, step.slot, kernel.NOREPLACE)
    except OSError as exc:
        if exc.errno not in NO_FLAG:
            raise
        fs = step.dest.directory.fs
        if fs.trusted:
            pass  # it knows the flag, so this says something about these two names; the next two may be fine
        elif step.op == "replace":
            fs.exchange = False
        else:
            fs.noreplace = False
        return False
    step.method = RENAMEAT2
    return True


def _by_links(step: Step) -> None:
    """The methods below renameat2."""
    if step.op == "remove":
        # The slot's name is private and unique, so there is nothing that a plain rename could replace.
        rename(step.dest, step.slot, 0)
        step.method = LINK
    elif step.folder:
        _with_gap(step)
    elif step.op == "create":
        _create_by_link(step)
    else:
        _replace_by_link(step)


def _create_by_link(step: Step) -> None:
    if link(step.slot, step.dest):
        step.method = LINK
        kernel.port.unlink(step.slot.name, step.slot.fd)
    else:
        _with_gap(step)


def _replace_by_link(step: Step) -> None:
    if step.old is None:
        step.old = step.dest.identity()  # a one-item write has not looked
    twin = step.twin("old")
    if link(step.dest, twin):
        if twin.identity() != step.old:
            kernel.port.unlink(twin.name, twin.fd)
            _conflict(step, "the destination was replaced meanwhile")
        rename(step.slot, step.dest, 0)
        rename(twin, step.slot, 0)
        step.method = LINK
    elif step.alone and not step.allow_gap:
        rename(step.slot, step.dest, 0)
        step.method = RENAME
    else:
        _with_gap(step)


def _with_gap(step: Step) -> None:
    """Nothing above keeps the promise: only when the caller asked for less."""
    if not step.allow_gap:
        what = "a folder in one step (" if step.folder else "this in one step and undo it (it has no hard links, and "
        text = (
            f"the filesystem cannot publish {what}renameat2 flags are missing); "
            'write to another filesystem, or accept a moment of visibility with fallback="weaker"'
        )
        errors.fail(errors.UnsupportedFilesystemError, errno.EOPNOTSUPP, text, str(step.dest))
    if step.op == "create":
        _create_with_gap(step)
    else:
        twin = step.twin("old")
        rename(step.dest, twin, 0)
        rename(step.slot, step.dest, 0)
        rename(twin, step.slot, 0)
    step.method = GAP


def _create_with_gap(step: Step) -> None:
    if not step.folder:
        if step.dest.directory.exists(step.dest.name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(step.dest))
        rename(step.slot, step.dest, 0)
        return
    # Our own empty folder first: a stranger's entry in it makes the rename fail instead of being replaced.
    kernel.port.mkdir(step.dest.name, 0o700, step.dest.fd)
    try:
        rename(step.slot, step.dest, 0)
    except BaseException:
        remove_empty(step.dest)
        raise


def _check(step: Step) -> None:
    """I4, after the fact: the destination holds the new object and the slot the old one."""
    directory, name = step.dest
    if identify(directory.fs, directory.fd, name) != step.new:
        _conflict(step, "somebody replaced the destination right after it was published")
    if step.op == "create" and step.method == RENAMEAT2:
        return  # a rename that arrived has left its slot
    if step.slot.identity() != step.old:
        # What we displaced is not what we looked at: a lost update.  It is in hand, so give it back.
        give_back(step)
        _conflict(step, "the destination was replaced by somebody else meanwhile")


def _conflict(step: Step, text: str) -> None:
    errors.fail(errors.ConflictError, errno.EBUSY, f"{text}; read it again and repeat", str(step.dest))
