"""What atomik does in a folder, tried there by atomik itself: the basis of what `probe` says about the promises.

Each trial does what a user's program would do: it creates, overwrites, fails half-way or dies, in a scratch folder of its
own, and checks the result.  So the answer is what happens when a program of this process runs there, whatever the reason: the
filesystem, the kernel, or a sandbox.  Nothing is synced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct

from attrs import define, evolve

from atomik import errors
from atomik._commit.barriers import Barriers
from atomik._commit.commit import Commit
from atomik._folder.directory import Directory
from atomik._hidden_names import JOURNAL_NAME, PREFIX
from atomik._recovery.unfinished_journal import wait_or_recover
from atomik._staging import file as _file
from atomik._staging.intake import Intake
from atomik._system import kernel

from .transaction import Transaction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


#: errno values that say something about the moment, and nothing about the place
_OF_THE_MOMENT = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR, errno.ETIMEDOUT}
)


@define(frozen=True)
class Outcome:
    """What came of a trial: ``works`` is None where that could not be found out; ``why`` says why it does not work.

    ``refused``: atomik refused it.  ``left``: what is not as it was in spite of that, "" for nothing.
    """

    works: bool | None
    why: str = ""
    refused: bool = False
    left: str = ""


class _StopError(Exception):
    """What a user's program raises half-way."""


class _UnknownError(Exception):
    """The trial cannot be made here."""


def attempt(work: Callable[[], str]) -> Outcome:
    """Try something that returns what is wrong with what came of it, "" for nothing."""
    try:
        why = work()
    except _UnknownError as exc:
        return Outcome(None, str(exc))
    except OSError as exc:
        number = exc.errno if isinstance(exc, errors.AtomikError) else kernel.errno_of(exc)
        if number is None:
            raise
        text = (exc.strerror or str(exc)).partition("; ")[0]
        return Outcome(None if number in _OF_THE_MOMENT else False, text, refused=True)
    return Outcome(not why, why)


def run_all(scratch: Callable[[], Directory]) -> dict[str, Outcome]:
    """Every trial; `scratch` gives an empty folder, held open, that is closed here."""
    found = {}
    for name, trial in TRIALS.items():
        folders: list[Directory] = []

        def fresh(folders: list[Directory] = folders) -> Directory:
            folders.append(scratch())
            return folders[-1]

        try:
            outcome = attempt(lambda trial=trial, fresh=fresh: trial(fresh))  # type: ignore[misc]
            if outcome.refused:
                changed = [attempt(lambda at=at: _changed(at)) for at in folders]  # type: ignore[misc]
                outcome = evolve(outcome, left=next((one.why for one in changed if one.why), ""))
            found[name] = outcome
        finally:
            for folder in folders:
                try:
                    _empty(folder)
                finally:
                    folder.close()
    return found


def _empty(at: Directory, depth: int = 2) -> None:
    """Remove what a trial has made, also where nothing tells one mount from another, and no tree is deleted otherwise."""
    with kernel.port.scandir(at.fd) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in names:
        try:
            if is_folder and depth:
                with Directory.open(name, at.fd, follow=False) as below:
                    _empty(below, depth - 1)
            (kernel.port.rmdir if is_folder else kernel.port.unlink)(name, at.fd)
        except OSError as exc:  # the end of the private folder removes it
            if kernel.errno_of(exc) is None:
                raise


def _changed(at: Directory) -> str:
    """What a refused program has changed in its folder: a new version is there, or something of atomik's is left."""
    with kernel.port.scandir(at.fd) as entries:
        found = sorted((entry.name, entry.is_file(follow_symlinks=False)) for entry in entries)
    for name, is_file in found:
        if name.startswith(PREFIX):
            return f"{name} was left"
        if is_file and not _expect(at, name, b"new"):
            return f"{name} is new"
    return ""


# --- the programs ----------------------------------------------------------------------------------------------------
def _create(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    with _begin(at) as tx:
        tx.file(at.child("a"), "w").write("new")  # in text mode, as most programs do: that takes a seek
    return _expect(at, "a", b"new")


def _overwrite(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    _put(at, "a", b"old")
    with _begin(at, overwrite=True) as tx:
        tx.file(at.child("a"), "w").write("new")
    return _expect(at, "a", b"new")


def _create_folder(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    with _begin(at) as tx:
        tx.folder(at.child("a"))
    return "" if at.exists("a") else "the new folder is not there"


def _overwrite_folder(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    kernel.port.mkdir("a", 0o777, at.fd)
    before = at.identity("a")
    with _begin(at, overwrite=True) as tx:
        tx.folder(at.child("a"))
    return "the old folder is still there" if at.identity("a") == before else ""


def _create_symlink(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    with _begin(at) as tx:
        tx.symlink(at.child("a"), "nowhere")
    return "" if at.exists("a") else "the new link is not there"


def _create_path(fresh: Callable[[], Directory]) -> str:
    """What another program wrote by the path that it was given."""
    at = fresh()
    with _begin(at) as tx:
        _put(at, str(tx.path(at.child("a"))), b"new")
    return _expect(at, "a", b"new")


def _move(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    _put(at, "a", b"old")
    with _begin(at) as tx:
        tx.move(at.child("a"), at.child("b"))
    return _expect(at, "b", b"old")


def _remove(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    _put(at, "a", b"old")
    with _begin(at) as tx:
        tx.remove(at.child("a"))
    return "the file is still there" if at.exists("a") else ""


def _lose_the_race(fresh: Callable[[], Directory]) -> str:
    """Someone else creates the destination after it was staged."""
    at = fresh()
    try:
        with _begin(at) as tx:
            tx.file(at.child("a"), "wb").write(b"new")
            _put(at, "a", b"theirs")
    except errors.FileAlreadyExistsError:
        return _expect(at, "a", b"theirs")
    return "a file that someone else created in the meantime was replaced"


def _lose_the_race_for_a_folder(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    try:
        with _begin(at) as tx:
            tx.folder(at.child("a"))
            kernel.port.mkdir("a", 0o700, at.fd)
            theirs = at.identity("a")
    except errors.FileAlreadyExistsError:
        return "" if at.identity("a") == theirs else "a folder that someone else created in the meantime was replaced"
    return "a folder that someone else created in the meantime was replaced"


def _roll_back(fresh: Callable[[], Directory]) -> str:
    """Two overwrites; the program fails between them."""
    at = fresh()
    _put(at, "a", b"old")
    _put(at, "b", b"old")
    try:
        with _begin(at, overwrite=True, progress=_stop_half_way) as tx:
            tx.file(at.child("a"), "wb").write(b"new")
            tx.file(at.child("b"), "wb").write(b"new")
    except _StopError:
        return _expect(at, "a", b"old") or _expect(at, "b", b"old")
    return "an exception in the middle of the commit did not stop it"


def _recover(fresh: Callable[[], Directory]) -> str:
    """The same, but the program dies there."""
    at = fresh()
    return _die_and_recover(at, at)


def _recover_two_folders(fresh: Callable[[], Directory]) -> str:
    return _die_and_recover(fresh(), fresh())


def _die_and_recover(one: Directory, other: Directory) -> str:
    places = ((one, "a"), (other, "b"))
    for at, name in places:
        _put(at, name, b"old")
    _die(places)
    for at in (one, other):
        if kernel.port.exists(JOURNAL_NAME, at.fd):
            wait_or_recover(at, 1.0)
    return _expect(one, "a", b"old") or _expect(other, "b", b"old")


def _die(places: tuple[tuple[Directory, str], ...]) -> None:
    """Overwrite the places, and stop after the first swap, without what a living process would do then."""
    barriers = Barriers(durable=False)
    intake = Intake(barriers, overwrite=True, progress=_stop_half_way)
    commit: Commit | None = None
    dead = False
    try:
        for at, name in places:
            intake.workspace.hold(at)
            _file.stage(intake, at.child(name), "wb", None, None, (-1, None, None, None), {}).write(b"new")
        items = intake.ordered()
        for item in items:
            item.seal()
        commit = Commit(intake.workspace, items, barriers, 1.0, _stop_half_way, heard=False)
        commit.prepare()
    except BaseException as exc:
        dead = isinstance(exc, _StopError)
        if not dead:
            if commit is not None:
                commit.end(exc)
            raise
    finally:
        for item in intake.items:
            item.close()
        if commit is not None:
            commit.abandon()
        intake.workspace.release(keep_parents=True, keep_private_folders=dead)


def _write_unseen(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    with _begin(at) as tx:
        tx.file(at.child("a"), "wb").write(b"new")
        names = at.names()
        tx.abort()
    return "it has a name in a private folder, because there is no O_TMPFILE" if names else ""


def _stay_closed(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    _put(at, "a", b"old", 0o600)
    before = at.stat("a")
    with _begin(at, overwrite=True) as tx:
        tx.file(at.child("a"), "wb").write(b"new")
    after = at.stat("a")
    if before is None or after is None or after.st_mode & 0o777 & ~before.st_mode:
        return "the new version has more permissions than the old one"
    return ""


#: inotify(7): every event about a name in the folder, and those that say "there and complete"
_ALL_EVENTS, _COMPLETE = 0x2 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200, 0x8 | 0x80
_EVENT = struct.Struct("=iIII")

#: name, whether it is there before, whether it is a folder
_PUBLISHED = (("a", False, False), ("b", False, True), ("b", True, True), ("c", True, False))


def _be_heard(fresh: Callable[[], Directory]) -> str:
    """The folder is watched while a file and a folder are created and overwritten, unless that is refused."""
    at = fresh()
    _put(at, "c", b"old")
    fd = _watch(at)
    try:
        for name, overwrite, folder in _PUBLISHED:
            with contextlib.suppress(errors.AtomikOSError), _begin(at, overwrite=overwrite) as tx:
                tx.folder(at.child(name)) if folder else tx.file(at.child(name), "wb").write(b"new")
        last = _last_events(fd)
    finally:
        kernel.port.close(fd)
    if not last:
        raise _UnknownError("there was no event for a published name")
    quiet = ["a folder" if name == "b" else "a file" for name, mask in last.items() if not mask & _COMPLETE]
    return f"the last event of {quiet[0]} is neither MOVED_TO nor CLOSE_WRITE" if quiet else ""


def _watch(at: Directory) -> int:
    try:
        try:
            return kernel.port.watch(f"/proc/self/fd/{at.fd}", _ALL_EVENTS)
        except OSError as exc:
            if kernel.errno_of(exc) not in kernel.NO_PROC:
                raise
            return kernel.port.watch(at.path, _ALL_EVENTS)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        raise _UnknownError(f"no inotify(7) here ({exc.strerror})") from exc


def _last_events(fd: int) -> dict[str, int]:
    """The last event of each name that is not atomik's own; all of them are queued by now."""
    last: dict[str, int] = {}
    while True:
        try:
            data = kernel.port.read(fd, 1 << 16)
        except BlockingIOError as exc:
            if kernel.errno_of(exc) is None:
                raise
            return last
        at = 0
        while at < len(data):
            _, mask, _, size = _EVENT.unpack_from(data, at)
            at += _EVENT.size + size
            name = os.fsdecode(data[at - size : at].rstrip(b"\0"))
            if name and not name.startswith(PREFIX):
                last[name] = mask


#: name → program
TRIALS: dict[str, Callable[[Callable[[], Directory]], str]] = {
    "create": _create,
    "overwrite": _overwrite,
    "create symlink": _create_symlink,
    "create path": _create_path,
    "move": _move,
    "remove": _remove,
    "create folder": _create_folder,
    "overwrite folder": _overwrite_folder,
    "lose the race": _lose_the_race,
    "lose the race for a folder": _lose_the_race_for_a_folder,
    "roll back": _roll_back,
    "recover": _recover,
    "recover two folders": _recover_two_folders,
    "write unseen": _write_unseen,
    "stay closed": _stay_closed,
    "be heard": _be_heard,
}


# --- what they share -------------------------------------------------------------------------------------------------
def _begin(
    at: Directory, *, overwrite: bool = False, progress: Callable[[str, int, int], None] | None = None
) -> Transaction:
    tx = Transaction(overwrite=overwrite, durable=False, lock_timeout=1.0, progress=progress)
    tx._intake.workspace.hold(at)
    return tx


def _stop_half_way(phase: str, done: int, _: int) -> None:
    if phase == "swapping" and done == 1:
        raise _StopError


def _put(at: Directory, name: str, content: bytes, mode: int = 0o666) -> None:
    fd = kernel.port.create(name, os.O_WRONLY, mode, at.fd)
    try:
        kernel.port.write(fd, content)
    finally:
        kernel.port.close(fd)


def _expect(at: Directory, name: str, content: bytes) -> str:
    fd = kernel.port.open(name, os.O_RDONLY | os.O_NOFOLLOW, at.fd)
    try:
        found = kernel.port.pread(fd, 100, 0)
    finally:
        kernel.port.close(fd)
    return "" if found == content else f"a file holds {found!r} where it should hold {content!r}"
