"""``fs.transaction`` of `AtomikFileSystem`: begin and end; what happens between them is in `changes`."""

from __future__ import annotations

from fsspec.transaction import Transaction as FsspecTransaction

from atomik import errors
from atomik._system import forked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn, Self

    from atomik._receipt import Receipt

    from .changes import Changes
    from .filesystem import AtomikFileSystem


class AtomikTransaction(FsspecTransaction):  # type: ignore[misc]
    """``fs.transaction``: one atomik transaction; ``with fs.transaction as t`` gives it.

    ``receipt``: an `atomik.Receipt` of what it did, when it is over; None before that, and when it failed.
    """

    __module__ = "atomik.fsspec"

    fs: Any

    def __init__(self, fs: AtomikFileSystem, **keywords: Any) -> None:
        super().__init__(fs, **keywords)
        self.changes: Changes = fs._new_changes()
        self.receipt: Receipt | None = None
        self._pid = forked.me

    def start(self) -> None:
        """Begin: once, and not inside another transaction of the filesystem."""
        if self.fs is None:
            raise errors.TransactionStateError("this transaction is over; begin a new one with fs.transaction")
        self.fs._refuse_nested()
        super().start()

    def __enter__(self) -> Self:
        if self.fs is not None:
            self.fs._refuse_nested()
        try:
            self.start()
            return self
        except BaseException:
            self._drop()
            raise

    def __exit__(self, kind: object, exc: object, trace: object) -> None:
        try:
            self.complete(commit=kind is None)
        finally:
            self._drop()

    def _drop(self) -> None:
        """End what is not ended: an interrupt may have come in or before `complete`; a forked child ends its own part."""
        if self.fs is not None:
            self._leave()
        if self._pid == forked.me:
            self.changes.abort()

    def _leave(self) -> None:
        """Take it from the filesystem, in one line that no handler interrupts: instances are cached, and one that stays in a
        transaction that is over would take all later writes and never publish them."""
        fs = self.fs; self.fs = None; fs._intrans = False; fs._transaction = None  # noqa: E702  # fmt: skip

    def _require_owner(self) -> None:
        """Raise in a forked child: what it wrote would be no part of its parent's transaction (I11)."""
        if self._pid != forked.me:
            text = "this is a forked child, and the transaction of the filesystem is its parent's; write in the parent"
            raise errors.TransactionStateError(text)

    def complete(self, commit: bool = True) -> None:
        """Publish everything or, with ``commit=False``, drop it."""
        if self._pid != forked.me:  # nothing of the parent's is touched
            if commit:
                self._require_owner()
            return
        writers = list(self.files)
        self._leave()  # first, because anything may arrive from here on
        try:
            self.files.clear()
            still_open = [writer for writer in writers if not writer.closed]
            for writer in still_open:
                writer.discard()
            if commit:
                for writer in still_open:
                    text = f"{writer.path!r} is still open at the end of the transaction; close it before"
                    raise errors.TransactionStateError(text)
                self.receipt = self.changes.publish()
        finally:
            self.changes.abort()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("cannot pickle a transaction of atomik.fsspec: it belongs to the process that began it")
