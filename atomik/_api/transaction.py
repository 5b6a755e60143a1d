"""`Transaction`: collects items, and publishes all of them or none.

Everything public about a transaction is here; what it is made of lies below: items (`_staged`, `_names`), the ground
they share (`_workspace`), the commit (`_commit`, `_single`, `_group`).

Threads may stage at the same time: the transaction's lock guards its lists, and each item has a lock of its own, so
that a slow sync of one does not stop the others.  A forked child gets a dead copy (I11).
"""

from __future__ import annotations

import atexit
import errno
import operator
import os
import sys
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

from atomik import _events, errors
from atomik._commit.barriers import Barriers
from atomik._commit.commit import Commit, Interrupt
from atomik._commit.single import Phase, Single
from atomik._receipt import Receipt, State
from atomik._staging.item import ItemState
from atomik._staging.options import Progress
from atomik._staging.workspace import Workspace
from atomik._system import forked

from .stager import Stager

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from atomik._protocol.step import Step
    from atomik._staging.file import StagedFile
    from atomik._staging.item import Item


#: As a name of the module: before Python 3.12, to look a member up in its class is a call.
_OPEN = State.OPEN

#: Items lie in the order in which they were staged, which a sort leaves to those of equal ``order``.
_order = operator.attrgetter("order")


class Transaction(Stager):
    """Several outputs, published all or nothing.  Made by `atomik.transaction`, whose help says how to use it.

    As a context manager it commits when its block ends well, and aborts when it is left by any exception.  Threads may
    stage at the same time.  A forked child cannot use its parent's transaction, and changes nothing of it.
    """

    def __init__(
        self,
        *,
        overwrite: bool = False,
        durable: bool | str = True,
        journal: bool = True,
        lock_timeout: float = 60.0,
        progress: Progress | None = None,
    ) -> None:
        if durable not in (True, False, "fsync", "syncfs"):
            raise ValueError(f"durable must be True, False, 'fsync' or 'syncfs', not {durable!r}")
        if not lock_timeout >= 0:  # NaN neither: no deadline would ever pass
            raise ValueError(f"lock_timeout is in seconds and cannot be negative: {lock_timeout!r}")
        self._overwrite = overwrite
        self._journal = journal
        self._lock_timeout = lock_timeout
        self._progress = progress
        self._workspace = Workspace()
        self._barriers = Barriers(durable)
        self._items = []
        self._failed = {}
        self._retained = []
        self._commit = None
        self._receipt: Receipt | None = None
        self._duration = 0.0
        self._lock = threading.RLock()
        self._pid = forked.me
        self._state = State.OPEN  # last: from here on there is something to give back
        live[id(self)] = weakref.ref(self)
        # Asked once for all that is staged, not twice for each of very many items.
        self._heard = _events.heard(_events.DEBUG)
        if self._heard:
            _events.emit(_events.DEBUG, "transaction.begun", tx=self.txid)

    # --- looking -------------------------------------------------------------------------------------------------
    @property
    def state(self) -> State:
        """Where the transaction is, a `atomik.State`."""
        commit = self._commit
        return commit.state if commit is not None and self._state is State.OPEN else self._state

    @property
    def items(self) -> tuple[Item, ...]:
        """The items staged so far, in the order in which they will be swapped.  Each has ``path`` (absolute), ``kind``
        and ``order``, as an `atomik.ItemReceipt` has them."""
        with self._lock:
            return tuple(sorted(self._items, key=_order))

    @property
    def receipt(self) -> Receipt | None:
        """What the commit did, a `atomik.Receipt`; None before it, and when everything was rolled back."""
        commit = self._commit
        if self._receipt is None and commit is not None and commit.state in (State.COMMITTED, State.IN_DOUBT):
            steps = {step.dest: step for step in reversed(commit.steps)}
            barriers = self._barriers
            self._receipt = Receipt(
                self.txid, tuple(item.receipt(steps.get(item.place)) for item in commit.items), bool(barriers.durable),
                barriers.how, barriers.passed, barriers.calls, self._duration, commit.visible, tuple(commit.leftovers),
            )  # fmt: skip
        return self._receipt

    def __repr__(self) -> str:
        return f"<atomik.Transaction {self.txid} {self.state.value}, {len(self._items)} items>"

    # --- ending --------------------------------------------------------------------------------------------------
    def commit(self) -> Receipt:
        """Publish everything, and return what was done.

        :returns: a `atomik.Receipt`, with every destination new, and durable unless ``durable=False``.  When it raises,
            every destination is as it was and nothing is left over, but for the last two errors.

        :raises atomik.errors.FileAlreadyExistsError: somebody else published there first; theirs stays.
        :raises atomik.errors.ConflictError: a destination or its folder is not what was expected, or what it was when
            the locks were taken; theirs stays.
        :raises atomik.errors.WrongKindError, atomik.errors.MountPointError, atomik.errors.MissingPathError: a destination
            (or what is to be moved or removed) is not as it must be.
        :raises atomik.errors.UnsupportedFilesystemError: no way to swap keeps the promise on this filesystem.
        :raises atomik.errors.LockTimeoutError: another transaction held a folder for longer than ``lock_timeout`` seconds.
        :raises atomik.errors.JournalError: a dead transaction's journal lies in the folder, and may not be trusted.
        :raises atomik.errors.AtomikOSError: the last of an output could not be written (a full disk), with errno.
        :raises atomik.errors.CommitError: another system call failed; everything was rolled back.
        :raises atomik.errors.TransactionStateError: not open any more, a forked child, or an output whose writing failed
            and that was not staged again.
        :raises atomik.errors.DurabilityError: everything is new, but the last sync failed; ``receipt`` says what.
        :raises atomik.errors.RollbackError: in doubt; `atomik.recover` decides.
        """
        self._publish()
        receipt = self.receipt
        assert receipt is not None
        return receipt

    def _publish(self) -> None:
        with self._lock:
            self._require_open()
            if self._failed:
                path, reason = next(iter(self._failed.items()))
                self._fail_state(f"cannot commit without {path!r}: {reason}; stage it again, or abort")
            self._run_commit()

    def _run_commit(self) -> None:
        started, sealed = time.perf_counter(), ItemState.SEALED
        commit: Commit | None = None
        try:
            items = list(self.items)
            for item in items:
                if item.state is not sealed:
                    item.seal()
            commit = self._commit = self._choose(items)
            if items:
                commit.run()
            else:
                commit.state = State.COMMITTED
        except BaseException as exc:  # noqa: BLE001  goes on from there
            self._duration = time.perf_counter() - started
            self._fail(exc, commit)
        self._duration = time.perf_counter() - started
        self._finish(commit)
        if _events.heard(_events.INFO):
            commit.event(
                _events.INFO, "transaction.committed", items=len(items), durable=bool(self._barriers.durable),
                synced_by=self._barriers.how, sync_calls=self._barriers.calls, duration=round(self._duration, 6),
            )  # fmt: skip
            for each in self.receipt.items if self.receipt is not None else ():
                if each.broken_links:
                    commit.event(_events.INFO, "item.links_broken", path=each.path, links=each.broken_links)

    def _fail(self, exc: BaseException, commit: Commit | None) -> NoReturn:
        """The commit ended with `exc`: give everything back, and raise what the caller is to see."""
        self._finish(commit)
        self._tell_failure(commit, exc)
        if isinstance(exc, errors.DurabilityError):
            exc.receipt = self.receipt
        if isinstance(exc, OSError) and not isinstance(exc, errors.AtomikError):
            raise self._commit_error(exc, commit) from exc
        raise exc

    def _resume(self, step: Step | None, exc: BaseException, phase: Phase, started: float) -> None:
        """Bring to its end what `_plain` began: `step`, if it came to one, and what stopped it, and where."""
        commit: Single | None = None
        try:
            if step is None:
                raise exc
            commit = Single(self._workspace, self._items, self._barriers, self._lock_timeout)
            self._commit = commit
            commit.resume(step, exc, phase)
        except BaseException as final:  # noqa: BLE001  goes on from there
            self._duration = time.perf_counter() - started
            self._fail(final, commit)
        self._duration = time.perf_counter() - started
        self._finish(commit)

    def _tell_failure(self, commit: Commit | None, exc: BaseException) -> None:
        """The last event of a commit that failed, unless it was told where more is known."""
        if commit is not None and commit.told:
            return
        cause = str(exc) or type(exc).__name__
        if self._state is State.ABORTED:
            _events.emit(_events.INFO, "transaction.aborted", tx=self.txid, items=len(self._items), cause=cause)
        elif isinstance(exc, (errors.DurabilityError, errors.RollbackError)):
            _events.emit(_events.WARNING, "transaction.in_doubt", tx=self.txid, error=cause, cause=str(exc.__cause__))

    def _choose(self, items: list[Item]) -> Commit:
        """One step is atomic by itself; several need the journal."""
        if len(items) <= 1 and all(item.one_step for item in items):
            return Single(self._workspace, items, self._barriers, self._lock_timeout, self._progress)
        from atomik._commit.group import Group  # what it needs is loaded only by those who need it

        group = Group(self._workspace, items, self._barriers, self._lock_timeout, self._progress)
        # Without one, recovery would take what the weaker method has put aside for abandoned.
        group.journalled = self._journal or any(item.options.allow_gap for item in items)
        return group

    def _commit_error(self, exc: OSError, commit: Commit | None) -> errors.CommitError:
        """Rolled back.  The path: of the destination that was being swapped, or what the system's error names."""
        named = exc.filename if isinstance(exc.filename, str) and os.path.isabs(exc.filename) else None
        path = (commit and commit.at) or named or (self._items[0].path if self._items else None)
        text = "the commit failed and everything was rolled back"
        return errors.CommitError(*errors.describe(exc.errno or errno.EIO, text, path))

    def abort(self) -> None:
        """Drop everything staged; every destination is as it was.  Harmless when it was aborted before.

        :raises atomik.errors.TransactionStateError: it was committed already, or this is a forked child.
        """
        with self._lock:
            if self._state is State.ABORTED:
                return
            self._require_open()
            self._finish(None)
            if _events.heard(_events.INFO):
                _events.emit(_events.INFO, "transaction.aborted", tx=self.txid, items=len(self._items))

    def _finish(self, commit: Commit | None) -> None:
        """Give everything back, whatever happened.  Failures are logged, and listed in the receipt."""
        state = State.ABORTED if commit is None or commit.state is State.OPEN else commit.state
        if state in (State.PREPARED, State.SWAPPED):
            state = (
                State.IN_DOUBT
            )  # a second interrupt, in the rollback: what is displaced is for recovery to bring back
        interrupt: Interrupt | None = None
        while True:
            try:
                self._give_back(commit, state)
                break
            except (KeyboardInterrupt, SystemExit) as exc:  # everything in there may be repeated
                interrupt = exc
        self._state = state
        live.pop(id(self), None)
        if interrupt is not None:
            raise interrupt

    def _give_back(self, commit: Commit | None, state: State) -> None:
        failures: list[OSError] = []
        # In a slot there may be an original that only recovery can bring back, or that has no place to go back to.
        keep = state is State.IN_DOUBT or (commit is not None and bool(commit.stranded))
        for item in self._items:
            try:
                item.end(done=state is State.COMMITTED or keep)
            except OSError as exc:
                failures.append(exc)
        failures += self._workspace.release(
            keep_parents=state is not State.ABORTED, keep_private_folders=keep, progress=self._progress
        )
        for failure in failures:
            path = str(failure.filename or "")
            if commit is not None:
                commit.failed_cleanup(path, failure)
            else:
                _events.emit(_events.WARNING, "cleanup.failed", tx=self.txid, path=path, error=str(failure))

    def _take_over(self, item: StagedFile, state: State, receipt: Receipt | None, pid: int) -> None:
        """Begin with an item that the short way has staged in process `pid`, or ended already (see `_plain`)."""
        self._workspace.hold(item.place.directory)
        self._workspace.destinations.register(item.place, item.given, None)
        item.owner = self
        self._items.append(item)
        self._state, self._receipt, self._pid = state, receipt, pid
        if state is not State.OPEN:
            item.state = ItemState.DONE
            live.pop(id(self), None)

    def _require_open(self) -> None:
        if self._pid != forked.me:
            self._fail_state("this is a forked child: only the process that began a transaction can use it")
        if self._state is not _OPEN or self._commit is not None:
            self._fail_state(f"the transaction is {self.state.value}; begin a new one")

    def _fail_state(self, text: str) -> NoReturn:
        raise errors.TransactionStateError(text)

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pid != forked.me:
            if kind is None:
                self._require_open()
            return
        if self._state is not State.OPEN:
            return  # committed or aborted inside the block
        if kind is None:
            try:
                self._publish()
            except errors.TransactionStateError:
                self.abort()
                raise
        else:
            self.abort()

    def __del__(self) -> None:
        if getattr(self, "_state", None) is not State.OPEN or self._pid != forked.me:
            return
        said = f"{self!r} was never committed nor aborted"
        if not sys.is_finalizing():
            self._finish(None)
        # Last, for a filter may turn it into an exception, and nothing may be left for that.
        warnings.warn(said, ResourceWarning, source=self, stacklevel=2)


#: the open transactions of this process; a plain dict, for a WeakSet costs more than the rest of beginning one
live: dict[int, weakref.ref[Any]] = {}


def _drop_open() -> None:
    """The program ends with open transactions: as if they had been collected, while that still works."""
    for reference in list(live.values()):
        transaction = reference()
        # One that another thread is committing this very moment is not open, only late.
        if transaction is not None and transaction._lock.acquire(blocking=False):
            try:
                transaction.__del__()
            finally:
                transaction._lock.release()


atexit.register(_drop_open)
