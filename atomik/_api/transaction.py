"""`Transaction`: collects outputs, and publishes all of them or none.

Everything public about a transaction is here.  It has an intake (`_staging.intake`), which accepts outputs, and makes a
`_commit.commit.Commit` when it is committed.

An exception that arrives while it ends, of any class and at any bytecode, is kept until everything is old or everything is
new, and is raised then (P3): `_end` repeats what may be repeated.  It is called from two levels, so that a second exception,
on the way into the first handler, finds the other.

Threads may stage at the same time.  A forked child gets a dead copy (I11).
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import operator
import os
import sys
import time
from _weakref import ref  # weakref itself takes longer to load than any module of atomik

from atomik import _events, errors
from atomik._commit import plan as _plan
from atomik._commit.barriers import Barriers
from atomik._commit.commit import Commit
from atomik._staging import file as _file
from atomik._staging.intake import Intake
from atomik._staging.item import SEALED
from atomik._staging.workspace import note_failure
from atomik._system import forked, kernel
from atomik._typing import overload
from atomik.flags import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import IO, Any, BinaryIO, Literal, NoReturn, Self, TextIO, Unpack

    from atomik._commit.later import Job
    from atomik._folder.directory import Directory
    from atomik._progress import Bar
    from atomik._receipt import PlannedChange, Receipt
    from atomik._staging.item import Item
    from atomik._staging.options import BytesMode, Expectation, ItemOptions, Progress, StrPath, TextMode
    from atomik._staging.staged_path import StagedPath

# As names of the module: before Python 3.12, to look a member up in its class is a call.
_OPEN, _, _SWAPPED, _COMMITTED, _ABORTED, _IN_DOUBT = State

#: How often the end is started again when an exception arrives.  More than any burst of signals needs: each attempt continues
#: where the last one was stopped; but what fails every time (a user's function that raises, say) must not hang the program.
_PATIENCE = 1000


class Transaction:
    """Several outputs, published all or nothing.  Made by `atomik.transaction`, whose help says how to use it.

    As a context manager it commits when its block ends without an exception, and aborts otherwise.  Threads may stage at the
    same time.  A forked child cannot use its parent's transaction, and changes nothing of it.
    """

    __module__ = "atomik"

    _commit: Commit | None = None
    _receipt: Receipt | None = None
    _duration = 0.0
    _coordinator = ""
    #: displaced folders are deleted by a thread
    _later = False
    _job: Job | None = None
    _bar: Bar | None = None

    def __init__(
        self,
        *,
        overwrite: bool = False,
        durable: bool | Literal["fsync", "syncfs"] = True,
        lock_timeout: float | None = 60.0,
        progress: Progress | Literal[True] | None = None,
        coordinator: str = "",
        cleanup: Literal["now", "later"] = "now",
    ) -> None:
        if durable is not True and durable is not False and durable not in ("fsync", "syncfs"):
            raise ValueError(f"durable must be True, False, 'fsync' or 'syncfs', not {durable!r}")
        if progress is not None:
            from atomik._progress import Bar, progress_of

            progress = progress_of(progress)
            self._bar = progress if type(progress) is Bar else None
        if lock_timeout is not None:
            if not isinstance(lock_timeout, (int, float)):
                raise TypeError(f"lock_timeout must be a number of seconds or None, not {lock_timeout!r}")
            if not lock_timeout >= 0:  # NaN neither: no deadline would ever pass
                raise ValueError(f"lock_timeout is in seconds and cannot be negative: {lock_timeout!r}")
        self._barriers = Barriers(durable)
        self._intake = Intake(self._barriers, overwrite=overwrite, progress=progress)
        self._lock_timeout = lock_timeout
        if cleanup != "now":
            self._later = _checked_cleanup(cleanup)
        if coordinator:
            self._coordinator = _checked_coordinator(coordinator)
        self._state = _OPEN  # last: from here on there is something to release
        _live[id(self)] = ref(self)
        if self._intake.heard:
            _events.emit(_events.DEBUG, "transaction.begun", tx=self.txid)

    # --- looking -------------------------------------------------------------------------------------------------
    @property
    def txid(self) -> str:
        """The id in log events and in the names of temporary files."""
        return self._intake.workspace.txid

    @property
    def state(self) -> State:
        """How far the transaction is, an `atomik.State`."""
        commit = self._commit
        return commit.state if commit is not None and self._state is _OPEN else self._state

    @property
    def items(self) -> tuple[Item, ...]:
        """The items staged so far, in the order in which they will be swapped.  Each has ``path`` (absolute), ``kind``
        and ``order``, as an `atomik.ItemReceipt` has them."""
        return tuple(self._intake.ordered())

    @property
    def receipt(self) -> Receipt | None:
        """What the commit did, an `atomik.Receipt`; None before it, and if everything was rolled back."""
        commit = self._commit
        if self._receipt is None and commit is not None and commit.state in (_COMMITTED, _IN_DOUBT):
            from atomik._receipt import Receipt

            changes, barriers = _plan.changes(commit.steps), self._barriers
            outputs = tuple(
                item.receipt(*changes.get(item.place, (None, None)), kept=item.backup_place in changes)
                for item in sorted(commit.items, key=_order)
                if item.changes
            )
            self._receipt = Receipt(
                self.txid, outputs, bool(barriers.durable),
                barriers.how, barriers.passed, barriers.calls, self._duration, commit.visible, tuple(commit.leftovers),
                commit.state,
            )  # fmt: skip
        return self._receipt

    def __repr__(self) -> str:
        return f"<atomik.Transaction {self.txid} {self.state.value}, {len(self._intake.items)} items>"

    # --- staging -------------------------------------------------------------------------------------------------
    @overload
    def file(
        self, path: StrPath, mode: TextMode = "w", overwrite: bool | None = None, tmp_dir: StrPath | None = None, *,
        encoding: str | None = "utf-8", errors: str | None = None, newline: str | None = None, buffering: int = -1,
        **options: Unpack[ItemOptions],
    ) -> TextIO: ...  # fmt: skip

    @overload
    def file(
        self, path: StrPath, mode: BytesMode, overwrite: bool | None = None, tmp_dir: StrPath | None = None, *,
        encoding: str | None = "utf-8", errors: str | None = None, newline: str | None = None, buffering: int = -1,
        **options: Unpack[ItemOptions],
    ) -> BinaryIO: ...  # fmt: skip

    @overload
    def file(
        self, path: StrPath, mode: str = "w", overwrite: bool | None = None, tmp_dir: StrPath | None = None, *,
        encoding: str | None = "utf-8", errors: str | None = None, newline: str | None = None, buffering: int = -1,
        **options: Unpack[ItemOptions],
    ) -> IO[Any]: ...  # fmt: skip

    def file(
        self,
        path: StrPath,
        mode: str = "w",
        overwrite: bool | None = None,
        tmp_dir: StrPath | None = None,
        *,
        encoding: str | None = "utf-8",
        errors: str | None = None,
        newline: str | None = None,
        buffering: int = -1,
        **options: Unpack[ItemOptions],
    ) -> IO[Any]:
        """Stage a file and return the file object to write it with; see `atomik.file` for the parameters and errors.

        Use the object with ``with``, close it, or let the commit close it.  If an exception leaves its ``with`` block, only
        this output is dropped, and the commit then requires that it is staged again.  The modes "a" and "r+" start from what
        an earlier operation of the transaction has put there.

        :param overwrite: a bool; ``None`` takes the transaction's default.
        :param int order: the position among the items when they are published; lower first, equal ones as staged.
        :returns: a real, seekable file object, text or binary.
        :raises atomik.errors.DuplicateDestinationError: the destination is staged already in this transaction.
        :raises atomik.errors.NestedDestinationError: it is inside another destination, or contains one.
        :raises atomik.errors.CrossFilesystemError: it is on another filesystem or mount than the first one.
        :raises atomik.errors.TransactionStateError: the transaction is not open, or this is a forked child.
        """
        return self._stage_file(path, mode, overwrite, tmp_dir, (buffering, encoding, errors, newline), options)

    def _stage_file(
        self, path: StrPath, mode: str, overwrite: bool | None, tmp_dir: StrPath | None, text: tuple[Any, ...],
        options: ItemOptions,
    ) -> IO[Any]:  # fmt: skip
        return _file.stage(self._intake, path, mode, overwrite, tmp_dir, text, options)

    def folder(
        self,
        path: StrPath,
        overwrite: bool | None = None,
        tmp_dir: StrPath | None = None,
        *,
        base: StrPath | None = None,
        copy: bool = False,
        resume: bool = False,
        in_place: bool = False,
        **options: Unpack[ItemOptions],
    ) -> StagedPath:
        """Stage a folder and return a path to fill; see `atomik.folder` for the parameters.

        :param base: a str or path object: start from a clone of this folder, which may be one that is staged.
        :param bool copy: start from a clone of what exists at `path`, or of what an earlier operation has put there.
        :param bool resume: continue what an earlier run staged for `path`, and keep it for the next run if this one fails;
            ``resumed`` of the returned path says whether there was anything.
        :param bool in_place: keep the folder itself, and change its entries.
        :returns: a `pathlib.Path`; if it is used with ``with`` and an exception leaves the block, only this output is
            dropped.  It pickles as a plain path, for worker processes.

        Raises like `Transaction.file`.
        """
        return self._intake.hand_out(
            *self._stage_folder(path, overwrite, tmp_dir, base, copy=copy, resume=resume, in_place=in_place, **options)
        )

    def _stage_folder(
        self, path: StrPath, overwrite: bool | None = None, tmp_dir: StrPath | None = None, base: StrPath | None = None,
        *, copy: bool = False, resume: bool = False, in_place: bool = False, **options: Unpack[ItemOptions],
    ) -> tuple[Item, str]:  # fmt: skip
        """The item, and the path to fill as a str: the command line need not load pathlib."""
        from atomik._staging import folder

        settle = self._resume if resume else None
        item, new = folder.stage(
            self._intake, path, overwrite, tmp_dir, base, copy=copy, in_place=in_place, settle=settle, options=options
        )
        if item.resumed:
            self._recover_inside(item, new)
        return item, new

    def path(
        self,
        path: StrPath,
        overwrite: bool | None = None,
        tmp_dir: StrPath | None = None,
        *,
        resume: bool = False,
        also: Iterable[str] = (),
        **options: Unpack[ItemOptions],
    ) -> StagedPath:
        """Stage a path for a program that opens files by name; see `atomik.path` for the parameters.

        :param bool resume: continue what an earlier run staged for `path`, and keep it for the next run if this one fails;
            ``resumed`` of the returned path says whether there was anything.
        :param also: suffixes and names of files that the program may write next to it.
        :returns: a `pathlib.Path`, at which nothing exists yet.

        Raises like `Transaction.file`.
        """
        return self._intake.hand_out(*self._stage_path(path, overwrite, tmp_dir, resume=resume, also=also, **options))

    def _stage_path(
        self, path: StrPath, overwrite: bool | None = None, tmp_dir: StrPath | None = None, *, resume: bool = False,
        also: Iterable[str] = (), **options: Unpack[ItemOptions],
    ) -> tuple[Item, str]:  # fmt: skip
        """The item, and the path to write to as a str."""
        from atomik._staging import path as _path

        settle = self._resume if resume else None
        item, new = _path.stage(self._intake, path, overwrite, tmp_dir, also, settle, options)
        if item.resumed:
            self._recover_inside(item, os.path.dirname(new))
        return item, new

    def _recover_inside(self, item: Item, folder: str) -> None:
        """What was staged may have been written by transactions of its own, which died with the job."""
        from atomik._recovery.recover import recover

        try:
            recover(folder, recursive=True, lock_timeout=self._lock_timeout)
        except BaseException as exc:
            item.discard(f"what an earlier run staged could not be recovered: {exc}")
            raise

    def _resume(self, directory: Directory, name: str) -> None:
        """Undo or finish what a dead transaction has done to a resumable output."""
        from atomik._commit.machinery import wait_or_recover

        wait_or_recover(directory, self._lock_timeout, name=name)

    def symlink(
        self, path: StrPath, target: StrPath, overwrite: bool | None = None, *, order: int = 0, parents: bool = False,
        expect: Expectation = None,
    ) -> None:  # fmt: skip
        """Stage a symbolic link at `path` to `target`, which need not exist.

        With `overwrite`, anything but a folder may be replaced.

        :param path: the path of the link, a str or path.
        :param target: the target of the link, a str or path, absolute or relative to the link's folder.
        :param overwrite: a bool; ``None`` takes the transaction's default.
        :param int order: when it is published, among the items; lower first.
        :param bool parents: create missing parent folders of `path`.
        :param expect: what must exist at `path`, as for `atomik.file`.

        Raises like `Transaction.file`.
        """
        from atomik._staging import symlink

        options: ItemOptions = {"order": order, "parents": parents, "expect": expect}
        symlink.stage(self._intake, path, target, overwrite, options)

    def remove(self, path: StrPath, *, missing_ok: bool = False, order: int = 0, expect: Expectation = None) -> None:
        """Stage the removal of what exists at `path`: a file, a link (itself, not its target) or a whole folder.

        The commit renames it away and deletes it at the end, so that it can be brought back until then.

        :param path: what to remove, a str or path.
        :param bool missing_ok: do nothing if nothing is there, now or at the commit, whatever `expect` says; otherwise that
            is a `MissingPathError`.
        :param int order: when it is swapped, among the items; lower first.
        :param expect: what must exist at `path`, as for `atomik.file`.

        Raises like `Transaction.file`.
        """
        from atomik._staging import removal

        removal.stage(self._intake, path, missing_ok=missing_ok, order=order, expect=expect)

    def move(
        self, src: StrPath, dest: StrPath, overwrite: bool | None = None, *, order: int = 0,
        backup: str | Callable[[str], str] | None = None,
        expect: Expectation = None,
    ) -> None:  # fmt: skip
        """Stage the move of what exists at `src` to `dest`, on the same filesystem; it is undone like everything else.

        Each of the two names changes in one step; for the microseconds between the two steps, the object is at neither.

        :param src: what to move, a str or path: a file, a link (itself, not its target) or a whole folder.
        :param dest: its new name, a str or path.
        :param overwrite: a bool: whether something at `dest` may be replaced; ``None`` takes the transaction's default.
        :param int order: when it is published, among the items; lower first.
        :param backup: a name in `dest`'s folder (or a function from path to name) that the previous version gets.
        :param expect: what must exist at `dest`, as for `atomik.file`.

        :raises atomik.errors.MissingPathError: `src` is missing.
        :raises atomik.errors.NestedDestinationError: a folder would be moved into itself.

        Otherwise raises like `Transaction.file`.
        """
        from atomik._staging import move

        move.stage(self._intake, src, dest, overwrite, order=order, backup=backup, expect=expect)

    def copy(self, src: StrPath, dest: StrPath, overwrite: bool | None = None, **options: Unpack[ItemOptions]) -> None:
        """Stage a copy of what exists at `src`, or of what this transaction has put there, at `dest`.

        The copy is made at once.  It keeps mode, owner, times and attributes of the source, and shares its content where the
        filesystem can; links are copied, never followed.

        :param src: a str or path: a file, a link (itself, not its target) or a whole folder, on any filesystem.
        :param dest: the name of the copy, a str or path.
        :param overwrite: a bool: whether something at `dest` may be replaced; ``None`` takes the transaction's default.

        The other options are those of `atomik.file` that are about the destination.  What could not be kept is listed in the
        receipt.

        :raises atomik.errors.MissingPathError: `src` is missing.
        :raises atomik.errors.NestedDestinationError: a folder would be copied into itself; or this transaction has changed
            something inside it.
        :raises atomik.errors.TransactionStateError: `src` is an output of this transaction that is still being written.

        Otherwise raises like `Transaction.file`.  Source: ioctl_ficlone(2), copy_file_range(2).
        """
        from atomik._staging import copy

        copy.stage(self._intake, src, dest, overwrite, options)

    def write_text(  # noqa: PLR0913  pathlib's and file's
        self, path: StrPath, data: str, overwrite: bool | None = None, *, encoding: str | None = "utf-8",
        errors: str | None = None, newline: str | None = None, **options: Unpack[ItemOptions],
    ) -> None:  # fmt: skip
        """Stage a file with the text `data`; the other parameters, and what it raises, are those of `Transaction.file`."""
        with self.file(path, "w", overwrite, encoding=encoding, errors=errors, newline=newline, **options) as f:
            f.write(data)

    def write_bytes(
        self, path: StrPath, data: bytes, overwrite: bool | None = None, **options: Unpack[ItemOptions]
    ) -> None:
        """Stage a file with the bytes `data`; the other parameters, and what it raises, are those of `Transaction.file`."""
        with self.file(path, "wb", overwrite, **options) as f:
            f.write(data)

    def exists(self, path: StrPath) -> bool:
        """Whether something would be at `path` after a commit now: staged outputs count, staged removals do not.

        A link at the end of the path is not followed: the link itself counts.

        :raises atomik.errors.AccessDeniedError: this user may not look there.
        """
        from atomik._staging import view

        return view.exists(self._intake, path)

    def open(  # noqa: PLR0913  as open()
        self, path: StrPath, mode: str = "r", buffering: int = -1, *, encoding: str | None = "utf-8",
        errors: str | None = None, newline: str | None = None,
    ) -> IO[Any]:  # fmt: skip
        """Open for reading what would be at `path` after a commit now: what is staged, or what exists there.

        Of a staged file that is still open, it shows what has been flushed so far.  Links are followed, staged ones too, and
        paths may lead into staged folders.

        :param str mode: "r" or "rb"; ``encoding``, ``errors``, ``newline`` and ``buffering`` are as for `open`, but UTF-8
            is the default.
        :returns: a file object that stays readable after the commit; close it.
        :raises ValueError: a mode that writes.
        :raises atomik.errors.MissingPathError: nothing would be there.
        :raises atomik.errors.WrongKindError: a folder is there.
        """
        from atomik._staging import view

        text = {"encoding": encoding, "errors": errors, "newline": newline}
        return view.open_path(self._intake, path, mode, buffering, text)

    def exchange(self, first: StrPath, second: StrPath, *, order: int = 0, expect: Expectation = None) -> None:
        """Stage the exchange of what exists at two names, in one step: files, folders and links, in any combination.

        :param first, second: str or path objects; both must exist, or have been staged earlier in this transaction.
        :param int order: when it is published, among the items; lower first.
        :param expect: what must exist at `first`, as for `atomik.file`.

        :raises atomik.errors.MissingPathError: one of them does not exist.

        Otherwise raises like `Transaction.file`.  Source: renameat2(2), RENAME_EXCHANGE.
        """
        from atomik._staging import exchange

        exchange.stage(self._intake, first, second, order=order, expect=expect)

    def expect(self, path: StrPath, expected: Expectation) -> None:
        """Commit only if `path` is still as `expected`, although this transaction does not change it.

        :param expected: what `atomik.observe` returned, "absent", or ``"sha256:<hex>"`` of a regular file.
        :raises atomik.errors.ConflictError: it is not; raised at once, or by the commit, under the locks and before the first
            swap.

        Limit: a change after that check, in the microseconds of the swaps, is not noticed.
        """
        from atomik._staging import expectation

        expectation.stage(self._intake, path, expected)

    def drop(self, path: StrPath) -> None:
        """Cancel the last operation at `path`, and delete what it staged; after an output there failed, go on without it.

        :raises atomik.errors.MissingPathError: no operation of this transaction changes it.
        :raises atomik.errors.DuplicateDestinationError: a later operation builds on it; drop that first.
        """
        self._intake.drop(path)

    def plan(self) -> tuple[PlannedChange, ...]:
        """What the commit would do now: an `atomik.PlannedChange` for each name, in the order of the steps.

        Nothing is locked or changed, so other programs may make the answer stale.  With ``if_changed``, an output that is
        still being written counts as changed.

        Raises like `commit` if a destination is not as it must be, or if an output failed.
        """
        from atomik._commit.preview import preview

        items = self._intake.items
        with self._intake.lock, kernel.typed("cannot look at the destinations", items[0].path if items else ""):
            self._refuse_unless_whole()
            return preview(items, undecided=bool(self._coordinator))

    # --- ending --------------------------------------------------------------------------------------------------
    def commit(self) -> Receipt:
        """Publish everything, and return what was done.

        :returns: an `atomik.Receipt`; every destination is new, and durable unless ``durable=False``.  If it raises, every
            destination is as it was and nothing is left over, except for the last two errors.  What a signal handler, a
            listener of the log or the ``progress`` function raises after the commit point is raised too, with every
            destination new and everything cleaned up: see `state`.

        :raises atomik.errors.FileAlreadyExistsError: someone else published there first; their version is kept.
        :raises atomik.errors.ConflictError: a destination or its folder is not what was expected, or not what it was when
            the locks were taken; their version is kept.
        :raises atomik.errors.WrongKindError, atomik.errors.MountPointError, atomik.errors.MissingPathError: a destination
            (or the source of a move or removal) is not as it must be.
        :raises atomik.errors.UnsupportedFilesystemError: no method keeps the promise on this filesystem.
        :raises atomik.errors.LockTimeoutError: another transaction held a folder for longer than ``lock_timeout`` seconds.
        :raises atomik.errors.JournalError: there is a dead transaction's journal in the folder that cannot be trusted.
        :raises atomik.errors.AtomikOSError: the rest of an output could not be written (for example, a full disk).
        :raises atomik.errors.CommitError: another system call failed; everything was rolled back.
        :raises atomik.errors.TransactionStateError: the transaction is not open any more, this is a forked child, or an
            output failed and was not staged again.
        :raises atomik.errors.DurabilityError: everything is new, but the last sync failed; ``receipt`` says what.
        :raises atomik.errors.RollbackError: in doubt; `atomik.recover` decides.
        """
        self._publish()
        receipt = self.receipt
        assert receipt is not None
        return receipt

    def prepare(self) -> None:
        """Do everything up to the commit mark: everything is published and durable, and can still be undone.

        Then `commit` writes the mark, or `abort` undoes everything, so that a database, for example, can decide between the
        two.  Until then the folders stay locked.  If the process dies in between, the next transaction there (or `recover`)
        undoes it; with ``transaction(coordinator=…)`` nothing touches it until ``recover(folder, decide=…)`` asks the
        coordinator.

        Raises like `commit`; then everything is as it was, and the transaction is over.
        """
        with self._intake.lock:
            self._refuse_unless_whole()
            self._guarded(lambda _: self._prepare(), time.perf_counter())

    def abort(self) -> None:
        """Drop everything staged, or undo what was prepared; every destination is as it was.  Does nothing if the
        transaction was aborted before.

        :raises atomik.errors.TransactionStateError: it was committed already, or this is a forked child.
        """
        with self._intake.lock:
            if self._state is _ABORTED:
                return
            if not self._is_prepared() or self._intake.pid != forked.me:
                self._intake.require_open()
            try:
                self._drop(None)
            except BaseException as exc:  # noqa: BLE001  goes on from there
                self._fail_if_open(exc)
                raise

    def _drop(self, cause: BaseException | None) -> None:
        """Drop everything staged; `cause` is what the block was left by."""
        self._intake.closed = _ABORTED.value
        interrupt = self._end(cause)
        if _events.heard(_events.INFO):
            tx, items = self._intake.workspace.txid_if_any(), len(self._intake.items)
            _events.emit(_events.INFO, "transaction.aborted", tx=tx, items=items)
        if interrupt is not None:
            raise interrupt

    def _is_prepared(self) -> bool:
        """Whether nothing but the mark is missing."""
        return self._commit is not None and self._commit.undecided and self._state is _OPEN

    def _publish(self) -> None:
        """Publish everything, or bring everything back."""
        with self._intake.lock:
            started = time.perf_counter()
            if self._is_prepared() and self._intake.pid == forked.me:
                self._guarded(self._finish, started)
            else:
                self._refuse_unless_whole()
                self._guarded(self._run, started)
        if _events.heard(_events.INFO):
            self._tell_success()

    def _refuse_unless_whole(self) -> None:
        intake = self._intake
        if intake.closed or intake.failed or intake.pid != forked.me:
            intake.require_open()
            path, reason = next(iter(intake.failed.items()))
            raise errors.TransactionStateError(
                f"cannot commit without {path!r}: {reason}; stage it again, drop it, or abort"
            )

    def _guarded(self, action: Callable[[float], None], started: float) -> None:
        """Do it; if an exception arrives, bring everything to an end first."""
        try:
            try:
                action(started)
            except BaseException as exc:  # noqa: BLE001  goes on from there
                self._fail(exc, started)
        except BaseException as exc:
            self._fail_if_open(exc)
            raise

    def _run(self, started: float) -> None:
        self._begin()
        self._finish(started)

    def _prepare(self) -> None:
        self._begin(undecided=True)
        self._intake.closed = "prepared"

    def _begin(self, *, undecided: bool = False) -> None:
        intake = self._intake
        intake.closed = "being committed"
        items = intake.items
        for item in items:
            if item.state is not SEALED:
                item.seal()
        commit = self._commit = Commit(
            intake.workspace, items, self._barriers, self._lock_timeout, intake.progress, heard=intake.heard
        )
        commit.later = self._later
        if undecided or self._coordinator:
            commit.undecided, commit.coordinator = True, self._coordinator
        if items:
            commit.prepare()
        else:
            commit.state = _SWAPPED if commit.undecided else _COMMITTED

    def _finish(self, started: float) -> None:
        commit = self._commit
        assert commit is not None
        commit.confirm()
        commit.clean_up()
        self._give_back(self._intake.progress)
        self._duration = time.perf_counter() - started
        self._state = commit.state
        self._intake.closed = "committed"
        _live.pop(id(self), None)

    def _fail_if_open(self, exc: BaseException) -> None:
        """For outer handlers: `exc` arrived on the way into the handler that would have ended everything."""
        if self._state is _OPEN and self._intake.pid == forked.me:
            self._fail(exc, time.perf_counter())

    def _fail(self, exc: BaseException, started: float) -> NoReturn:
        """The commit was left by `exc`: bring it to an end, and raise what the caller should see."""
        interrupt = self._end(exc)
        self._duration = time.perf_counter() - started
        self._tell_failure(exc)
        if isinstance(exc, errors.DurabilityError):
            exc.receipt = self.receipt
        if interrupt is not None and interrupt is not exc:
            raise interrupt
        if isinstance(exc, OSError) and kernel.errno_of(exc) is not None and self._state is _ABORTED:
            raise self._commit_error(exc) from exc
        raise exc

    def _end(self, exc: BaseException | None) -> BaseException | None:
        """Bring everything to an end, whatever exceptions arrive; returns what to raise instead of `exc`."""
        instead: BaseException | None = None
        for attempt in range(_PATIENCE):
            try:
                # Its progress is told once: a callback that raises would do so each time.
                self._settle(exc, self._intake.progress if attempt == 0 else None)
                break
            except errors.RollbackError as doubt:
                instead = doubt
            except BaseException as again:  # noqa: BLE001  kept until the end
                # A request to end the program is never dropped, and what the caller raised has priority over our own errors.
                if exc is None or _goes_before(again, exc):
                    instead = instead or again
        return instead

    def _settle(self, exc: BaseException | None, progress: Progress | None) -> None:
        """The part that may be repeated until it is not interrupted."""
        commit = self._commit
        if commit is not None:
            commit.end(exc or _Unfinished("it was never finished"))
        self._give_back(progress)
        self._state = _ABORTED if commit is None or commit.state is _OPEN else commit.state
        self._intake.closed = self._state.value
        _live.pop(id(self), None)

    def _give_back(self, progress: Progress | None) -> None:
        """Delete what is left, and release everything.  Failures are logged, and listed in the receipt."""
        commit, intake = self._commit, self._intake
        state, keep = (_ABORTED, False) if commit is None else (commit.state, bool(commit.stranded))
        # A slot may hold an original that only recovery can bring back, or that cannot be put back at all.
        if state is _IN_DOUBT or (commit is not None and commit.needed):
            keep = True
        done = keep or state is _COMMITTED
        failures: list[OSError] = []
        for item in intake.items:
            if item.owner is not None:
                try:
                    item.end(done=done)
                except OSError as problem:
                    note_failure(failures, problem)
        if self._later and not keep and commit is not None and commit.displaced_in():
            self._hand_over(commit)
        failures += intake.workspace.release(
            keep_parents=state is not _ABORTED, keep_private_folders=keep, progress=progress
        )
        if self._bar is not None:
            self._bar.close()
        for failure in failures:
            path = str(failure.filename or "")
            if commit is not None:
                commit.failed_cleanup(path, failure)
            else:
                _events.emit(_events.WARNING, "cleanup.failed", tx=self.txid, path=path, error=str(failure))

    def _hand_over(self, commit: Commit) -> None:
        """Leave the displaced folders to the thread that deletes them."""
        from atomik._commit import later

        workspace = self._intake.workspace
        if self._job is None:
            folders = workspace.private_folders.values()
            self._job = later.Job(self.txid, commit.pause(), folders, commit.displaced_in())
        later.hand_over(self._job)
        workspace.private_folders = {}

    # --- telling -------------------------------------------------------------------------------------------------
    def _tell_success(self) -> None:
        commit, barriers = self._commit, self._barriers
        assert commit is not None
        commit.event(
            _events.INFO, "transaction.committed", items=len(commit.items), durable=bool(barriers.durable),
            synced_by=barriers.how, sync_calls=barriers.calls, duration=round(self._duration, 6),
        )  # fmt: skip
        for each in self.receipt.items if self.receipt is not None else ():
            if each.broken_links:
                commit.event(_events.INFO, "item.links_broken", path=each.path, links=each.broken_links)
            if each.replaced_link:
                commit.event(_events.INFO, "item.link_replaced", path=each.path)

    def _tell_failure(self, exc: BaseException) -> None:
        """Log the last event of a commit that failed, unless a place that knows more has done so."""
        if self._commit is not None and self._commit.told:
            return
        cause, tx = str(exc) or type(exc).__name__, self._intake.workspace.txid_if_any()
        if self._state is _ABORTED:
            items = len(self._intake.items)
            _events.emit(_events.INFO, "transaction.aborted", tx=tx, items=items, cause=cause)
        elif isinstance(exc, errors.DurabilityError):
            _events.emit(_events.WARNING, "transaction.in_doubt", tx=tx, error=cause, cause=str(exc.__cause__))

    def _commit_error(self, exc: OSError) -> errors.CommitError:
        """Rolled back.  The path: of the destination that was being swapped, or what the system's error names."""
        named = exc.filename if isinstance(exc.filename, str) and os.path.isabs(exc.filename) else None
        items = self._intake.items
        path = (self._commit and self._commit.at) or named or (items[0].path if items else None)
        text = "the commit failed and everything was rolled back"
        return errors.CommitError(*errors.describe(exc.errno or errno.EIO, text, path, None, exc.strerror))

    # --- with ----------------------------------------------------------------------------------------------------
    def __enter__(self) -> Self:
        if not self._is_prepared() or self._intake.pid != forked.me:
            self._intake.require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._intake.pid != forked.me:
                if kind is None:
                    self._intake.require_open()
            elif self._state is not _OPEN:
                pass  # committed or aborted inside the block
            elif kind is not None:
                with self._intake.lock:
                    self._drop(exc)
            else:
                self._publish()
        except BaseException as failure:
            if self._goes_on(failure, exc):
                raise

    def _goes_on(self, failure: BaseException, exc: BaseException | None) -> bool:
        """`failure` arrived while `exc` was leaving a block: end everything; returns whether the caller should see it."""
        if exc is None or _goes_before(failure, exc):
            exc = failure
        self._fail_if_open(exc)
        return exc is failure

    async def __aenter__(self) -> Self:
        from . import in_worker  # before it is needed (I14)

        in_worker.running()
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        from .in_worker import Ending

        await Ending(self, self.__exit__).run(kind, exc, trace)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "cannot pickle 'Transaction': it belongs to the process that began it; stage a folder, and send paths in it"
        )

    def __del__(self) -> None:
        if getattr(self, "_state", None) is not _OPEN or self._intake.pid != forked.me:
            return
        import warnings

        said = f"{self!r} was never committed nor aborted; dropped: {self._intake.shown()}"
        arrived = None if sys.is_finalizing() else self._end(None)
        try:
            # Last, because a filter may turn it into an exception, and nothing may be left undone then.
            warnings.warn(said, ResourceWarning, source=self, stacklevel=2)
        finally:
            if arrived is not None:  # for sys.unraisablehook, which tells it
                raise arrived


#: Items are in the order in which they were staged; a sort keeps that for equal ``order``.
_order = operator.attrgetter("order")


def _checked_cleanup(cleanup: str) -> bool:
    """Whether displaced folders are deleted later."""
    if cleanup != "later":
        raise ValueError(f"cleanup must be 'now' or 'later', not {cleanup!r}")
    from atomik._commit import later  # noqa: F401  before it is needed (I14)

    return True


def _checked_coordinator(name: str) -> str:
    if len(name.encode()) > 255:
        raise ValueError(f"coordinator is a name of at most 255 bytes, not {len(name.encode())}")
    return name


def _goes_before(again: BaseException, exc: BaseException) -> bool:
    """Whether the caller should see `again`, the later one, rather than `exc`, which came first."""
    return _is_ours(exc) or (isinstance(exc, Exception) and not isinstance(again, Exception))


class _Unfinished(Exception):  # noqa: N818
    """The cause of a rollback if a commit that was left half-way ends with its object."""


def _is_ours(exc: BaseException) -> bool:
    """Whether it says what atomik or the kernel could not do, as opposed to what the caller raised."""
    return isinstance(exc, errors.AtomikError) or (isinstance(exc, OSError) and kernel.errno_of(exc) is not None)


#: the open transactions of this process; a plain dict, because a WeakSet costs more than the rest of beginning one
_live: dict[int, ref[Transaction]] = {}


def _drop_open() -> None:
    """The program ends with open transactions: end them as if they had been collected, while that still works."""
    with contextlib.ExitStack() as each:  # whatever the others raise, such as a warning that is an error
        for reference in reversed(list(_live.values())):
            each.callback(_drop, reference)


def _drop(reference: ref[Transaction]) -> None:
    transaction = reference()
    # One that another thread is committing this very moment is not open, only late.
    if transaction is not None and transaction._intake.lock.acquire(blocking=False):
        try:
            transaction.__del__()
        finally:
            transaction._intake.lock.release()


atexit.register(_drop_open)
