"""What atomik does in a folder, tried there by atomik itself: the ground of what `probe` says of the promises.

Each trial is a small program of a user's: it creates, overwrites, fails half-way or dies, in a scratch folder of its own, and
looks at what came of it.  So the answer is what happens when a program of this process runs there, whatever the reason: the
filesystem, the kernel, or a sandbox.  Nothing is synced.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from attrs import define

from atomik import errors
from atomik._commit.barriers import Barriers
from atomik._commit.commit import Commit
from atomik._hidden_names import JOURNAL_NAME
from atomik._recovery.unfinished_journal import wait_or_recover
from atomik._staging import file as _file
from atomik._staging.intake import Intake
from atomik._system import kernel

from .transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from atomik._folder.directory import Directory

#: errno values that say something about the moment, and nothing about the place
_OF_THE_MOMENT = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR, errno.ETIMEDOUT}
)


@define(frozen=True)
class Outcome:
    """What came of a trial: ``works`` is None where that could not be found out; ``why`` says why it does not work."""

    works: bool | None
    why: str = ""


class _StopError(Exception):
    """What a user's program raises half-way."""


def attempt(work: Callable[[], str]) -> Outcome:
    """Try something that returns what is wrong with what came of it, "" for nothing."""
    try:
        why = work()
    except OSError as exc:
        number = exc.errno if isinstance(exc, errors.AtomikError) else kernel.errno_of(exc)
        if number is None:
            raise
        text = (exc.strerror or str(exc)).partition("; ")[0]
        return Outcome(None if number in _OF_THE_MOMENT else False, text)
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
            found[name] = attempt(lambda trial=trial, fresh=fresh: trial(fresh))  # type: ignore[misc]
        finally:
            for folder in folders:
                folder.close()
    return found


# --- the programs ----------------------------------------------------------------------------------------------------
def _create(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    with _begin(at) as tx:
        tx.file(at.child("a"), "wb").write(b"new")
    return _expect(at, "a", b"new")


def _overwrite(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    _put(at, "a", b"old")
    with _begin(at, overwrite=True) as tx:
        tx.file(at.child("a"), "wb").write(b"new")
    return _expect(at, "a", b"new")


def _create_folder(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    with _begin(at) as tx:
        tx.folder(at.child("a"))
    return "" if at.exists("a") else "the new folder is not there"


def _overwrite_folder(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    kernel.port.mkdir("a", 0o700, at.fd)
    before = at.identity("a")
    with _begin(at, overwrite=True) as tx:
        tx.folder(at.child("a"))
    return "the old folder is still there" if at.identity("a") == before else ""


def _lose_the_race(fresh: Callable[[], Directory]) -> str:
    """Somebody else creates the destination after it was staged."""
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
    return "a failing program was not heard"


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
    """Overwrite the places, and stop behind the first swap, without anything that a living process would do then."""
    barriers = Barriers(durable=False)
    intake = Intake(barriers, overwrite=True, progress=_stop_half_way)
    commit: Commit | None = None
    try:
        for at, name in places:
            intake.workspace.hold(at)
            _file.stage(intake, at.child(name), "wb", None, None, (-1, None, None, None), {}).write(b"new")
        items = intake.ordered()
        for item in items:
            item.seal(early=False)
        commit = Commit(intake.workspace, items, barriers, 1.0, _stop_half_way, heard=False)
        commit.prepare()
    except BaseException as exc:
        if not isinstance(exc, _StopError):
            if commit is not None:
                commit.end(exc)
            raise
    finally:
        for item in intake.items:
            item.close()
        if commit is not None:
            commit.abandon()
        intake.workspace.release(keep_parents=True, keep_private_folders=True)


def _write_unseen(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    with _begin(at) as tx:
        tx.file(at.child("a"), "wb").write(b"new")
        with kernel.port.scandir(at.fd) as entries:
            names = [entry.name for entry in entries]
        tx.abort()
    return "it has a name in a private folder, because there is no O_TMPFILE" if names else ""


def _stay_closed(fresh: Callable[[], Directory]) -> str:
    at = fresh()
    _put(at, "a", b"old")
    before = at.stat("a")
    with _begin(at, overwrite=True) as tx:
        tx.file(at.child("a"), "wb").write(b"new")
    after = at.stat("a")
    if before is None or after is None or after.st_mode & 0o777 & ~before.st_mode:
        return "the new version has more permissions than the old one"
    return ""


#: name → program
TRIALS: dict[str, Callable[[Callable[[], Directory]], str]] = {
    "create": _create,
    "overwrite": _overwrite,
    "create folder": _create_folder,
    "overwrite folder": _overwrite_folder,
    "lose the race": _lose_the_race,
    "lose the race for a folder": _lose_the_race_for_a_folder,
    "roll back": _roll_back,
    "recover": _recover,
    "recover two folders": _recover_two_folders,
    "write unseen": _write_unseen,
    "stay closed": _stay_closed,
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


def _put(at: Directory, name: str, content: bytes) -> None:
    fd = kernel.port.create(name, os.O_WRONLY, 0o600, at.fd)
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
