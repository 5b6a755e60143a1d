"""One plain file, the short way: the same system calls in the same order, without the machinery for everything else.

Most of what is written is a single file on a filesystem that is known well, with nothing asked for but a mode,
``overwrite`` and ``durable``.  There the objects of a transaction (workspace, item, step, commit) cost more than the
system calls.  So this knows the good way of `_single.Single`, and nothing else::

    stage     open the folder, look at the destination, O_TMPFILE
    seal      flush, take over the mode of what is replaced; fsync when durable (I1)
    look      is there a journal?  is the folder still the one at its path?
    publish   linkat (new); or linkat to a slot, exchange, look, unlink what came out; fsync of the folder before that

Everything else is a *surprise*: another kind of object, owners or attributes to be kept, a lost race, a journal, an
error.  Then the file goes to a `Transaction` (`PlainFile.transaction`), which looks again from the beginning, and
decides, undoes and explains as for any other output.  Whoever asks for the transaction gets it in the same way.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
import weakref
from typing import IO, TYPE_CHECKING, Any

from atomik import _events
from atomik._commit.single import Phase
from atomik._folder.directory import JOURNAL_NAME, Directory, Place
from atomik._folder.paths import absolute, split
from atomik._protocol.private_folder import new_txid, slot_name
from atomik._protocol.step import LINKAT, RENAMEAT2, Step
from atomik._receipt import ItemReceipt, Receipt, State
from atomik._staging import file_objects as _handles
from atomik._staging.file import StagedFile, close_quietly, is_closed
from atomik._staging.options import checked
from atomik._system import forked, kernel

from .output import Output
from .transaction import Transaction, live

if TYPE_CHECKING:
    from types import TracebackType

    from atomik._staging.options import StrPath

_SET_ID = 0o6000

# Before Python 3.12 a member of an enum is looked up by a call.
_OPEN, _COMMITTED, _ABORTED = State.OPEN, State.COMMITTED, State.ABORTED
_STAGED, _BEGUN, _CONFIRMING, _PUBLISHED, _CLEAN = Phase


class _Surprise(Exception):  # noqa: N818  a signal, not an error
    """Not as the short way expects it."""


def begin(path: StrPath, mode: str, overwrite: bool, durable: bool, text: tuple[Any, ...]) -> PlainFile | None:
    """Stage a plain file; None where the short way is none, or where something is wrong: `Transaction` will say what.

    ``text`` is (buffering, encoding, errors, newline), as for `open`.
    """
    parsed = _handles.parse_mode(mode)
    if parsed[0] not in "wx" or (parsed[0] == "x" and overwrite) or _events.heard(_events.INFO):
        return None
    full = absolute(path)
    head, name = split(full, folder=False)
    try:
        folder = Directory.open(head)
        try:
            return _stage(full, folder, name, parsed, overwrite, durable, text)
        except BaseException:
            folder.close()
            raise
    except (_Surprise, OSError, LookupError, TypeError, ValueError):
        return None


def _stage(
    full: str, folder: Directory, name: str, mode: tuple[str, bool, bool], overwrite: bool, durable: bool,
    text: tuple[Any, ...],
) -> PlainFile:  # fmt: skip
    port, fs = kernel.port, folder.fs
    if fs.tmpfile is False or not fs.trusted or folder.append_only:
        raise _Surprise
    replaces = overwrite and _replaces(folder, name)
    if not overwrite and port.exists(name, folder.fd):
        raise _Surprise
    fd = port.open_tmpfile(folder.fd, os.O_RDWR, 0o666)
    fs.tmpfile = True
    try:
        handle = _handles.open_handle(fd, None, full, mode, *text)
    except BaseException:
        port.close(fd)
        raise
    return PlainFile(full, folder, name, mode, fd, handle, overwrite, durable, replaces)


def _replaces(folder: Directory, name: str) -> bool:
    """Whether there is a file to replace; anything else that is there is a surprise."""
    try:
        found = kernel.port.statx(folder.fd, name)
    except FileNotFoundError:
        return False
    if not kernel.is_file(found.mode) or found.mount != folder.mount:
        raise _Surprise
    return True


class PlainFile(Output[IO[Any]]):
    """An `Output` that goes the short way as long as there is no surprise."""

    _transaction: Transaction | None = None
    _receipt: Receipt | None = None
    _state = _OPEN
    _phase = _STAGED
    _txid = _slot = ""
    _links = 0
    _duration = _visible = 0.0

    def __init__(
        self, path: str, folder: Directory, name: str, mode: tuple[str, bool, bool], fd: int, handle: IO[Any],
        overwrite: bool, durable: bool, replaces: bool,
    ) -> None:  # fmt: skip
        self._path, self._folder, self._name, self._mode = path, folder, name, mode
        self._fd, self._overwrite, self._durable, self._replaces = fd, overwrite, durable, replaces
        self._pid = forked.me
        self._lock = threading.RLock()
        self._below = None if mode[2] else handle.buffer  # type: ignore[attr-defined]
        self.output = handle
        live[id(self)] = weakref.ref(self)
        handle._item = self  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"<atomik.Output {self._path!r} {self._state.value}>"

    # --- the interface -------------------------------------------------------------------------------------------
    def commit(self) -> Receipt:
        if not self._publish():
            self.transaction._publish()
        receipt = self.receipt
        assert receipt is not None
        return receipt

    def abort(self) -> None:
        if self._is_plain() and not _events.heard(_events.INFO):
            self._drop()
        else:
            self.transaction.abort()

    @property
    def receipt(self) -> Receipt | None:
        if self._transaction is not None:
            return self._transaction.receipt
        if self._receipt is None and self._state is _COMMITTED:
            op, method = ("replace", RENAMEAT2) if self._slot else ("create", LINKAT)
            item = ItemReceipt(self._path, "file", op, method, 0, bool(self._slot), (), self._links)
            synced, calls = ("fsync", 2) if self._durable else ("", 0)
            self._receipt = Receipt(
                self._id(), (item,), self._durable, synced, calls, calls, self._duration, self._visible
            )
        return self._receipt

    def __enter__(self) -> IO[Any]:
        if not self._is_plain():
            self.transaction.__enter__()
        return self.output

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            if not self._publish():
                self.transaction.__exit__(None, None, None)
        elif self._is_plain():
            self.abort()
        else:
            self.transaction.__exit__(kind, exc, trace)

    def __del__(self) -> None:
        if getattr(self, "_state", None) is not _OPEN or not self._is_plain():
            return
        if not sys.is_finalizing():
            self._drop()
        # Last, for a filter may turn it into an exception, and nothing may be left for that.
        warnings.warn(f"{self!r} was never committed nor aborted", ResourceWarning, source=self, stacklevel=2)

    # --- what a file object tells its item -----------------------------------------------------------------------
    def seal(self) -> None:
        """The user closed the file object."""
        self.transaction.items[0].seal()

    def discard(self, reason: str = "") -> None:
        """The user left the file object's own block by an exception."""
        self.transaction.items[0].discard(reason)

    # --- the good way --------------------------------------------------------------------------------------------
    def _is_plain(self) -> bool:
        return self._transaction is None and self._state is _OPEN and self._pid == forked.me

    def _publish(self) -> bool:
        """The commit; False, with nothing published, when not everything is as expected: then it is the transaction's."""
        with self._lock:
            if not self._is_plain() or _events.heard(_events.INFO):
                return False
            started = time.perf_counter()
            try:
                self._seal()
                if self._durable:
                    kernel.port.fsync(self._fd)
                self._look_around()
                if self._replaces:
                    self._exchange()
                else:
                    self._link()
                self._close()
            except _Surprise:
                return False
            except BaseException as exc:  # noqa: BLE001  goes on from there
                self._resume(exc, started)
            else:
                self._state = _COMMITTED
                self._duration = time.perf_counter() - started
            return True

    def _seal(self) -> None:
        """The content is complete; its mode is that of what it replaces.  Other owners and attributes are a surprise."""
        handle = self.output
        if is_closed(handle):
            raise _Surprise
        handle._item = None  # type: ignore[attr-defined]
        handle.let_go()  # type: ignore[attr-defined]
        if not self._replaces:
            return
        port, folder, fd = kernel.port, self._folder.fd, self._fd
        try:
            old = port.statx(folder, self._name)
            if not kernel.is_file(old.mode) or port.has_xattrs(self._name, folder):
                raise _Surprise
            new = port.statx(fd)
            if new.uid != old.uid or new.gid != old.gid or port.listxattr(fd):
                raise _Surprise
            if new.mode != old.mode:
                if old.mode & _SET_ID:
                    raise _Surprise
                port.fchmod(fd, old.mode & 0o777)
        except OSError as exc:
            raise _Surprise from exc
        self._links = old.nlink - 1

    def _look_around(self) -> None:
        folder = self._folder
        try:
            if kernel.port.exists(JOURNAL_NAME, folder.fd) or not folder.still_there():
                raise _Surprise
        except OSError as exc:
            raise _Surprise from exc

    def _link(self) -> None:
        """A new file: its only name is the destination, given in one linkat that replaces nothing (P2)."""
        visible_from = time.perf_counter()
        self._phase = _BEGUN
        try:
            kernel.port.link_fd(self._fd, self._name, self._folder.fd)
        except OSError as exc:
            self._phase = _STAGED
            raise _Surprise from exc
        self._visible = time.perf_counter() - visible_from
        if self._durable:
            self._phase = _CONFIRMING
            self._folder.sync()
        self._phase = _CLEAN

    def _exchange(self) -> None:
        """Beside the destination under a name of ours, while a shared lock on the folder shows that we live."""
        port, folder, fd = kernel.port, self._folder, self._folder.fd
        try:
            if not folder.try_lock(shared=True):
                raise _Surprise
            self._txid = txid = new_txid()
            slot = self._slot = slot_name(txid, 0)
            port.link_fd(self._fd, slot, fd)
        except OSError as exc:
            self._slot = ""
            raise _Surprise from exc
        visible_from = time.perf_counter()
        self._phase = _BEGUN
        try:
            port.rename(slot, fd, self._name, fd, kernel.EXCHANGE)
        except OSError as exc:
            self._phase = _STAGED
            raise _Surprise from exc
        self._visible = time.perf_counter() - visible_from
        if kernel.is_folder(port.statx(fd, slot).mode):
            raise IsADirectoryError  # it came to stand there since, and is brought back
        if self._durable:  # what came out outlives the sync of what took its place (I3)
            self._phase = _CONFIRMING
            folder.sync()
        self._phase = _PUBLISHED
        try:
            port.unlink(slot, fd)
        except IsADirectoryError:
            pass  # somebody put a folder in its place, which is not ours to delete
        self._phase = _CLEAN

    def _close(self) -> None:
        live.pop(id(self), None)
        fd, self._fd = self._fd, -1
        try:
            if fd >= 0:
                kernel.port.close(fd)
        finally:
            self._folder.close()

    # --- the end of the short way --------------------------------------------------------------------------------
    def _id(self) -> str:
        if not self._txid:
            self._txid = new_txid()
        return self._txid

    def _drop(self) -> None:
        """Nothing has a name yet, so closing is all there is to do."""
        self._state = _ABORTED
        self.output._item = None  # type: ignore[attr-defined]
        try:
            if not is_closed(self.output):
                close_quietly(self.output)
        finally:
            self._close()

    @property
    def transaction(self) -> Transaction:
        """The transaction behind it, made when it is first asked for."""
        with self._lock:
            if self._transaction is None:
                self._transaction = self._handed_over()
            return self._transaction

    def _handed_over(self) -> Transaction:
        """A transaction in which this file is the one item, in the state that it is in."""
        transaction = Transaction(overwrite=self._overwrite, durable=self._durable)
        workspace = transaction._workspace
        workspace.txid = self._id()
        options = checked({}, overwrite=self._overwrite)
        item = StagedFile(self._path, "file", Place(self._folder, self._name), self._folder, workspace, options)
        item.mode, item.links, item.found = self._mode, self._links, self._replaces
        item.fd, item.handle, item.below = self._fd, self.output, self._below
        if self._slot:
            item.slot = Place(self._folder, self._slot)
            next(workspace.numbers)
        handle: Any = self.output
        if self._state is _OPEN and handle._item is self:
            handle._item = item
        transaction._take_over(item, self._state, self.receipt, self._pid)
        live.pop(id(self), None)
        return transaction

    def _resume(self, exc: BaseException, started: float) -> None:
        """Stopped by an error or an interrupt: the transaction brings it to an end, the one way or the other."""
        transaction = self.transaction
        transaction._resume(None if self._phase is _STAGED else self._step(), exc, self._phase, started)

    def _step(self) -> Step:
        dest = Place(self._folder, self._name)
        if self._slot:
            return Step("replace", "file", dest, Place(self._folder, self._slot), None, alone=True, method=RENAMEAT2)
        return Step("create", "file", dest, self.transaction._workspace.sibling(self._folder), None, method=LINKAT)
