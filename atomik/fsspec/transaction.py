"""``fs.transaction`` of `AtomikFileSystem`: begin and end; what happens between them is in `changes`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from fsspec.transaction import Transaction as FsspecTransaction

from atomik import errors
from atomik._system import forked

if TYPE_CHECKING:
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
        fs, writers = self.fs, list(self.files)
        self.fs = None
        self.files.clear()
        try:
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
            fs._intrans = False
            fs._transaction = None

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("cannot pickle a transaction of atomik.fsspec: it belongs to the process that began it")
