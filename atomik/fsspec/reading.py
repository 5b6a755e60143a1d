"""The reading half of `AtomikFileSystem`: its transaction, and looking at files through it.

Outside a transaction this is fsspec's local filesystem, less the names of atomik's own.  Inside, paths lead to where
their content lies at present (`_fsspec_view`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.transaction import Transaction as FsspecTransaction
from fsspec.utils import stringify_path

from atomik import errors
from atomik._hidden_names import PREFIX

from .changes import Changes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atomik._receipt import Receipt


class AtomikTransaction(FsspecTransaction):  # type: ignore[misc]
    """``fs.transaction``: one atomik transaction; ``with fs.transaction as t`` gives it.

    ``receipt``: an `atomik.Receipt` of what it did, when it is over; None before that, and when it failed.
    """

    fs: Any

    def __init__(self, fs: ReadingFileSystem, **keywords: Any) -> None:
        super().__init__(fs, **keywords)
        self.changes: Changes = fs._changes()
        self.receipt: Receipt | None = None

    def start(self) -> None:
        """Begin: once, and not inside another transaction of the filesystem."""
        if self.fs is None:
            raise errors.TransactionStateError("this transaction is over; begin a new one with fs.transaction")
        self.fs._refuse_nested()
        super().start()

    def complete(self, commit: bool = True) -> None:
        """Publish everything or, with ``commit=False``, drop it."""
        fs = self.fs
        writers = list(self.files)
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


class ReadingFileSystem(LocalFileSystem):  # type: ignore[misc]
    """Looking, and the transaction."""

    transaction_type = AtomikTransaction

    def __init__(self, auto_mkdir: bool, durable: bool, lock_timeout: float, **keywords: Any) -> None:
        super().__init__(auto_mkdir=auto_mkdir, **keywords)
        self.durable = durable
        self.lock_timeout = lock_timeout

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        # fsspec before 2025.5 knows only its own local protocols.
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        path = stringify_path(path)
        for prefix in (f"{cls.protocol}://", f"{cls.protocol}:"):
            if path.startswith(prefix):
                path = path.removeprefix(prefix)
                break
        return super()._strip_protocol(path)

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path."""
        return f"{self.protocol}://{self._strip_protocol(name)}"

    # --- the transaction ---------------------------------------------------------------------------------------------
    def _changes(self) -> Changes:
        return Changes(durable=self.durable, lock_timeout=self.lock_timeout)

    def start_transaction(self) -> AtomikTransaction:
        """Begin a transaction that `end_transaction` ends."""
        self._refuse_nested()
        transaction: AtomikTransaction = super().start_transaction()
        return transaction

    def _refuse_nested(self) -> None:
        if self._intrans:
            text = "a transaction of this filesystem is running already, and cannot hold another one; use that one"
            raise errors.TransactionStateError(text)

    @property
    def _view(self) -> Changes | None:
        """The changes of the running transaction."""
        return self.transaction.changes if self._intrans else None

    @contextlib.contextmanager
    def _editing(self) -> Iterator[Changes]:
        """The running transaction's changes, or, outside, those of one that ends with the block."""
        view = self._view
        if view is not None:
            yield view
            return
        view = self._changes()
        try:
            yield view
            view.publish()
        finally:
            view.abort()

    def _where(self, path: Any, *, follow: bool = True) -> str:
        """Where to read a path."""
        path, view = self._strip_protocol(path), self._view
        if view is None:
            return str(path)
        where = view.where(path, follow=follow)
        if where is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return where

    # --- looking -----------------------------------------------------------------------------------------------------
    def info(self, path: Any, **keywords: Any) -> dict[str, Any]:
        """As of the local filesystem."""
        if isinstance(path, os.DirEntry):
            return dict(super().info(path, **keywords))
        where = self._where(path, follow=False)
        if self._view is not None and os.path.islink(where):
            # What the link leads to may have changed as well.
            found = dict(super().info(self._where(path), **keywords))
            found |= {"islink": True, "destination": os.readlink(where)}
        else:
            found = dict(super().info(where, **keywords))
        found["name"] = self._strip_protocol(path)
        return found

    def ls(self, path: Any, detail: bool = False, **keywords: Any) -> list[Any]:
        """As of the local filesystem."""
        path, view = self._strip_protocol(path), self._view
        if view is None:
            found = super().ls(path, detail=detail, **keywords)
            return [each for each in found if not _is_ours(each["name"] if detail else each)]
        if not view.is_folder(path):
            found = self.info(path)
            return [found if detail else found["name"]]
        paths = [os.path.join(path, name) for name in view.names(path)]
        if not detail:
            return paths
        listed: list[Any] = []
        for each in paths:
            with contextlib.suppress(FileNotFoundError):  # another thread has removed it since
                listed.append(self._entry(each))
        return listed

    def _entry(self, path: str) -> dict[str, Any]:
        """What `info` says of an entry of a listing: there, a link is never what it leads to (nor walked into)."""
        where = self._where(path, follow=False)
        found = os.lstat(where)
        if not stat.S_ISLNK(found.st_mode):
            return self.info(path)
        told = {"name": path, "size": 0, "type": "other", "created": found.st_ctime, "islink": True}
        told |= {name: getattr(found, f"st_{name}") for name in ("mode", "uid", "gid", "mtime", "ino", "nlink")}
        with contextlib.suppress(OSError):
            told["size"] = os.stat(where).st_size
        return told | {"destination": os.readlink(where)}

    def isfile(self, path: Any) -> bool:
        """As of the local filesystem."""
        return self._asks(os.path.isfile, path)

    def isdir(self, path: Any) -> bool:
        """As of the local filesystem."""
        return self._asks(os.path.isdir, path)

    def islink(self, path: Any) -> bool:
        """As of the local filesystem."""
        return self._asks(os.path.islink, path, follow=False)

    def lexists(self, path: Any, **keywords: Any) -> bool:  # noqa: ARG002  fsspec's signature
        """As of the local filesystem."""
        return self._asks(os.path.lexists, path, follow=False)

    def _asks(self, question: Any, path: Any, *, follow: bool = True) -> bool:
        try:
            return bool(question(self._where(path, follow=follow)))
        except OSError:  # nothing there, or links that lead in a circle
            return False


def _is_ours(path: str) -> bool:
    return os.path.basename(path).startswith(PREFIX)
