"""How one step is published: `publish`, and the methods that it falls back to.

* ``renameat2`` – NOREPLACE and EXCHANGE.  A new file without a name gets its only name by ``linkat``;
* ``link``      – for anything but folders: link + unlink (create), or link the original into the slot's twin and rename
  over it (replace).  The destination is never missing, and a create never replaces anything; on replace, what another
  program publishes in the microseconds between check and rename is lost;
* ``rename``    – without hard links, for a single step: a plain rename over the original, which is one step too, but
  cannot be undone;
* ``gap``       – only on request (``allow_gap=True``): mkdir + rename shows an empty folder for a moment, two renames
  leave a moment without any; without flags and links, a file is created by a check and a rename.

What was published is found out by identities, never by the class of an exception (I13): a signal handler may raise
anything right after the call.  So an exception that arrives here is raised unchanged if `is_published` says that the
step has happened, and the caller undoes it (`undo`).
"""

from __future__ import annotations

import errno
import os

from atomik import errors
from atomik._folder.directory import identify
from atomik._folder.mounts import why_exdev
from atomik._folder.place import NO_FLAG, Place, is_no_link, link, remove_empty, rename
from atomik._system import kernel

from .step import GAP, LINK, LINKAT, RENAME, RENAMEAT2, Step
from .undo import give_back

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn


def is_no_name(number: int | None) -> bool:
    """Whether an errno of linkat(2) for an unnamed file means that it cannot get one: a filesystem or a sandbox without hard
    links, or one without /proc on a kernel before 6.10 (ENOENT)."""
    return number == errno.ENOENT or is_no_link(number)


#: Errors of renameat2 after which `publish` tries another way.
_OTHER_WAYS = NO_FLAG | {errno.EXDEV}

_ANNOUNCE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class Unnameable(Exception):  # noqa: N818  a signal, not an error
    """A file without a name cannot get one directly at the destination here: it needs a slot."""


def publish(step: Step) -> None:
    """Publish one step by the best method that serves here; `check`, which comes after it, sees that it did what it says.

    Raises `FileAlreadyExistsError` or `ConflictError` for a lost race (the destination is as the other left it),
    `UnsupportedFilesystemError` when no method keeps the promise, FileNotFoundError or FileExistsError of a step `alone`
    whose destination came or went (plan it again), `Unnameable`, and the kernel's OSError.
    """
    try:
        if step.fd >= 0 and step.op == "create":
            _name_at_destination(step)
        elif not _native(step):
            _by_links(step)
    except OSError as exc:
        _refuse(step, exc)


def swap(step: Step) -> None:
    """`publish` by one renameat2 and nothing else, for one of steps that `are_plain`."""
    op, (directory, name), (home, slot) = step.op, step.dest, step.slot
    try:
        if op == "replace":
            kernel.port.rename(name, directory.fd, slot, home.fd, kernel.EXCHANGE)  # in this order, see `_exchange`
        elif op == "create":
            kernel.port.rename(slot, home.fd, name, directory.fd, kernel.NOREPLACE)
        else:
            kernel.port.rename(name, directory.fd, slot, home.fd, kernel.NOREPLACE)
    except OSError as exc:
        if kernel.errno_of(exc) not in _OTHER_WAYS or is_published(step):
            _refuse(step, exc)
        publish(step)
    else:
        step.method = RENAMEAT2


def are_plain(steps: Iterable[Step]) -> bool:
    """Whether renameat2 publishes each of the steps: what is staged has a name, and the filesystem is known to have the
    flags."""
    for step in steps:  # noqa: SIM110  a generator would take twice as long
        if step.fd >= 0 or step.op == "exchange" or not step.dest.directory.fs.trusted:
            return False
    return True


def _refuse(step: Step, exc: OSError) -> NoReturn:
    """Raise what the kernel's refusal means."""
    number = kernel.errno_of(exc)
    if number is None or is_published(step):
        raise exc
    if number == errno.EEXIST and step.op == "create" and not (step.alone and step.overwriting):
        if step.overwriting:
            _conflict(step, "something was created at the destination in the meantime")
        raise lost_race(str(step.dest)) from None
    if number == errno.ENOENT and step.op != "create" and not step.alone and _destination_went(step):
        _conflict(step, "the destination was removed in the meantime")
    if number == errno.EXDEV:
        refuse_exdev(step.slot, step.dest, exc)
    raise exc


def _destination_went(step: Step) -> bool:
    """Whether it was the destination that the kernel did not find; something may be there again."""
    return step.dest.identity() is None or (step.op != "remove" and step.slot.identity() is not None)


def is_published(step: Step) -> bool:
    """Whether the step has happened, by identities."""
    there = step.dest.identity()
    if step.op == "remove":
        return there is None and step.slot.identity() is not None
    return there is not None and there == identity_of_new(step)


def identity_of_new(step: Step) -> bytes | None:
    """The identity of the new object; of a file that is published alone it is asked for only when something failed."""
    if step.new is None and step.fd >= 0:
        step.new = identify(step.dest.directory.fs, step.fd)
    return step.new


def lost_race(path: str) -> errors.FileAlreadyExistsError:
    """The error for a destination that was created after the check."""
    text = "it already exists: someone else published first; nothing was replaced. Pass overwrite=True to replace it"
    return errors.FileAlreadyExistsError(*errors.os_args(errno.EEXIST, text, path))


def refuse_exdev(src: Place, dest: Place, cause: OSError) -> NoReturn:
    """EXDEV between folders that have been found to be on one mount: refuse what needs both."""
    text = (
        f"the kernel will not rename it from one folder to another: {why_exdev(src.directory, dest.directory)}; "
        "grant LANDLOCK_ACCESS_FS_REFER, mount the overlay with redirect_dir=on, write the files in the folder one by one, "
        "or leave tmp_dir out"
    )
    raise errors.UnsupportedFilesystemError(*errors.os_args(errno.EXDEV, text, str(dest), str(src))) from cause


def _name_at_destination(step: Step) -> None:
    """A new file: its only name is the destination, given in one linkat that replaces nothing (P2, P7)."""
    directory, name = step.dest
    try:
        kernel.port.link_fd(step.fd, name, directory.fd)
    except OSError as exc:
        if not is_no_name(kernel.errno_of(exc)) or is_published(step):
            raise
        raise Unnameable from exc
    step.method = LINKAT
    _announce(directory.fd, name)


def _announce_file(step: Step) -> None:
    """The same for what may not be a file: a device must not be opened."""
    there = step.dest.status()
    if there is not None and kernel.is_file(there.mode):
        _announce(step.dest.fd, step.dest.name)


def _announce(fd: int, name: str) -> None:
    """link(2) gives watchers only CREATE, which many of them take for a file that is still being written; opening the
    name for writing and closing it gives them CLOSE_WRITE (P10).  O_NONBLOCK, because another user may have put a FIFO
    there."""
    port = kernel.port
    try:
        fd = port.open(name, _ANNOUNCE, fd)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return  # an unwritable mode: watchers get CREATE
    port.close(fd)


def _native(step: Step) -> bool:
    """Try renameat2; False when the filesystem does not know the flag."""
    op, (directory, name), (home, slot) = step.op, step.dest, step.slot
    fs = directory.fs
    exchanges = op in ("replace", "exchange")
    if (fs.exchange if exchanges else fs.noreplace) is False:
        return False
    try:
        if op == "create":
            kernel.port.rename(slot, home.fd, name, directory.fd, kernel.NOREPLACE)
        elif op == "remove":
            kernel.port.rename(name, directory.fd, slot, home.fd, kernel.NOREPLACE)
        elif op == "exchange":
            _exchange_two(step)
        else:
            _exchange(step)
    except OSError as exc:
        if kernel.errno_of(exc) not in NO_FLAG or is_published(step):
            raise
        if not fs.trusted:  # else it knows the flag, and this says something about these two names only
            if exchanges:
                fs.exchange = False
            else:
                fs.noreplace = False
        return False
    step.method = RENAMEAT2
    return True


def _exchange_two(step: Step) -> None:
    """Both names are destinations, and the kernel's last event of the second is MOVED_FROM.  So a file goes there, which can
    be announced; of two folders, watchers hear that of one of them (P10)."""
    first, second = step.dest, step.slot
    there, other = first.stat(), second.stat()
    if there is not None and not kernel.is_file(there.st_mode) and other is not None and kernel.is_file(other.st_mode):
        first, second, there = second, first, other
    rename(first, second, kernel.EXCHANGE)
    if there is not None and kernel.is_file(there.st_mode):
        _announce(second.fd, second.name)


def _exchange(step: Step) -> None:
    """In this order the last event of the kernel is MOVED_TO of the destination, not MOVED_FROM (P10)."""
    (directory, name), (home, slot) = step.dest, step.slot
    try:
        kernel.port.rename(name, directory.fd, slot, home.fd, kernel.EXCHANGE)
    except OSError as exc:
        if kernel.errno_of(exc) != errno.EXDEV:
            raise
        # Of another project id (XFS)?  Only the object that goes first is checked against the folder that it goes to.  The
        # new one passes, because it was made in such a folder, and in `undo` it goes first as well.
        rename(step.slot, step.dest, kernel.EXCHANGE)
        _announce_file(step)


def _by_links(step: Step) -> None:
    """The methods below renameat2."""
    if step.op == "remove":
        # The slot's name is private and unique, so there is nothing that a plain rename could replace.
        rename(step.dest, step.slot, 0)
        step.method = LINK
    elif step.folder or step.op == "exchange":
        _with_gap(step)
    elif step.op == "create":
        _create_by_link(step)
    else:
        _replace_by_link(step)


def _create_by_link(step: Step) -> None:
    # Only undoing it needs an identity that both names share.
    if (step.alone or step.dest.directory.fs.links_are_one is not False) and link(step.slot, step.dest):
        step.method = LINK
        kernel.port.unlink(step.slot.name, step.slot.fd)
        _announce_file(step)
    else:
        _with_gap(step)


def _replace_by_link(step: Step) -> None:
    if step.old is None:
        step.old = step.dest.identity()  # a single step has not checked
    twin = step.twin("old")
    if step.dest.directory.fs.links_are_one is not False and link(step.dest, twin):
        if twin.identity() != step.old:
            kernel.port.unlink(twin.name, twin.fd)
            _conflict(step, "the destination was replaced in the meantime")
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
    if not step.allow_gap or step.op == "exchange":
        what = "a folder in one step (" if step.folder else "this in one step and undo it (it has no hard links, and "
        text = (
            f"the filesystem cannot publish {what}renameat2 flags are missing); "
            "write to another filesystem, or pass allow_gap=True to accept a moment in which it is empty or missing"
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
        try:
            remove_empty(step.dest)
        except OSError as exc:
            if not kernel.is_failure(exc):
                raise  # else `undo` tries again: what came first is the error to tell
        raise


def check(step: Step) -> None:
    """I4, after the fact: the destination holds the new object and the slot the old one.

    It may wait until other steps were published, but not until one that has the same slot, or names, was.
    """
    directory, name = step.dest
    there = identify(directory.fs, directory.fd, name)
    if there != step.new:
        if step.op == "exchange" and there is not None and step.slot.identity() is not None:
            # Another program's object, which came to the other name between check and swap: it returns there.
            rename(step.dest, step.slot, kernel.EXCHANGE)
            _conflict(step, "someone else replaced one of the two in the meantime")
        _conflict(step, "someone else replaced the destination right after it was published")
    if step.op == "create" and step.method == RENAMEAT2:
        return  # a rename that arrived has left its slot
    home, slot = step.slot
    if identify(home.fs, home.fd, slot) != step.old:
        # What we displaced is not what we checked: a lost update.  It is in our slot, so put it back.
        give_back(step)
        _conflict(step, "someone else replaced the destination in the meantime")


def _conflict(step: Step, text: str) -> None:
    errors.fail(errors.ConflictError, errno.EBUSY, f"{text}; read it again and repeat", str(step.dest))
