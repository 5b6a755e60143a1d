"""An fsspec filesystem for local files whose writes are all or nothing: protocol ``atomik``.

    import fsspec
    fs = fsspec.filesystem("atomik")

    df.to_csv("atomik:///data/out.csv")                 # one file: published when it is complete, or never
    with fs.transaction:                                # many: published together, or none of them
        fs.rm("/data/set", recursive=True)
        fs.makedirs("/data/set")
        df.to_parquet("/data/set", partition_cols=["year"], filesystem=fs)
        fs.mv("/data/new-index.json", "/data/index.json")

It is fsspec's own local filesystem, with these differences:

* every file written by `open`, `pipe`, `put`, `cp`, `touch` appears in one step and durable, keeps mode, owner and
  attributes of the file it replaces, and does not appear when its writing fails (see `writers`).  `mv`, and `rm` of
  several paths or of folders, are one atomik transaction;
* inside ``with fs.transaction`` everything, `mkdir`, `rm` and `mv` too, becomes visible at the end in one atomik
  transaction (with its journal: after a crash, too, all is old or all is new).  Reads through this instance see the
  new state before (see `view`).  All of it must be on one filesystem;
* names that begin with ``.atomik-`` are not listed: they belong to running transactions.

A method asks for the changes of the running transaction first.  There are none outside a transaction; then it does what
fsspec's local filesystem does.

Storage options: ``auto_mkdir=False``, ``durable=True`` (see `atomik.transaction`), ``lock_timeout=60.0``.

A database is not copied or moved without its log (SQLite's ``-wal`` and ``-journal``): that is a `ConflictError`, outside a
transaction at once, inside one unless the log is copied as well.

Limits: `link`, `symlink`, `mkdir`, `chmod` outside a transaction are the plain system calls.  An instance, and so its
transaction, belongs to the process and the thread that asked fsspec for it; hand the instance itself to other threads.
No other process can take part in a transaction, so an instance cannot be pickled while one is open.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat

from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.implementations.local import LocalFileOpener, LocalFileSystem
from fsspec.utils import isfilelike, stringify_path

from atomik import errors
from atomik import transaction as begin
from atomik._api.shortcuts import file
from atomik._folder import paths
from atomik._folder.resolve import real
from atomik._hidden_names import PREFIX
from atomik._staging import companions
from atomik._system import kernel

from .changes import Changes, copy, logs_of
from .transaction import AtomikTransaction
from .writers import TextWriter, Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class AtomikFileSystem(LocalFileSystem):  # type: ignore[misc]
    """Local files, written all or nothing, for everything that writes through fsspec: protocol ``atomik``.

    >>> fs = fsspec.filesystem("atomik")
    >>> with fs.transaction:
    ...     frame.to_parquet("set", partition_cols=["year"], filesystem=fs)

    :param bool auto_mkdir: make missing folders above what is written.
    :param bool durable: as for `atomik.transaction`.
    :param float lock_timeout: seconds to wait for another transaction in the same folders.

    Its methods are those of fsspec's LocalFileSystem, and raise the errors of `atomik.errors`, which are builtin ones too.

    Guarantee: a file appears complete (and durable) when it is closed, or never when its writing failed.  In ``with
    fs.transaction`` (an `AtomikTransaction`) everything appears at its end, as one `atomik.transaction`; ``rm`` of several
    paths or of a folder, and ``mv``, are one each.  Limit: all of it must be on one filesystem; outside a transaction
    ``mkdir``, ``link``, ``symlink`` and ``chmod`` are the plain system calls; an instance belongs to the thread that asked
    fsspec for it, and cannot be pickled (TypeError) while its transaction is open.  Source: as for `atomik.transaction`.
    """

    __module__ = "atomik.fsspec"

    protocol = "atomik"
    transaction_type = AtomikTransaction

    def __init__(
        self, auto_mkdir: bool = False, durable: bool = True, lock_timeout: float = 60.0, **keywords: Any
    ) -> None:
        super().__init__(auto_mkdir=auto_mkdir, **keywords)
        self.durable = durable
        self.lock_timeout = lock_timeout

    @property
    def fsid(self) -> str:
        """The files are the local ones."""
        return "local"

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
    def start_transaction(self) -> AtomikTransaction:
        """Begin a transaction that `end_transaction` ends."""
        self._refuse_nested()
        transaction: AtomikTransaction = super().start_transaction()
        return transaction

    def _refuse_nested(self) -> None:
        if self._intrans:
            text = "a transaction of this filesystem is running already, and cannot hold another one; use that one"
            raise errors.TransactionStateError(text)

    def _new_changes(self) -> Changes:
        return Changes(durable=self.durable, lock_timeout=self.lock_timeout)

    @property
    def _changes(self) -> Changes | None:
        """The changes of the running transaction, if there is one."""
        if not self._intrans:
            return None
        transaction: AtomikTransaction = self.transaction
        transaction._require_owner()
        return transaction.changes

    @contextlib.contextmanager
    def _editing(self) -> Iterator[Changes]:
        """The running transaction's changes, or, outside, those of one that ends with the block."""
        changes = self._changes
        if changes is not None:
            yield changes
            return
        changes = self._new_changes()
        try:
            yield changes
            changes.publish()
        finally:
            changes.abort()

    def __reduce__(self) -> Any:
        self._refuse_to_leave("pickle the filesystem")
        return super().__reduce__()

    def to_dict(self, **keywords: Any) -> Any:
        """As of any filesystem; `to_json` uses it."""
        self._refuse_to_leave("serialise the filesystem")
        return super().to_dict(**keywords)

    def _refuse_to_leave(self, action: str) -> None:
        """A copy in another process would know of no transaction, and write into the live files at once."""
        if self._intrans:
            raise TypeError(
                f"cannot {action} while its transaction is open: other processes cannot take part in it; write in this "
                "process, or let the workers write into a folder from atomik.folder(), outside fs.transaction"
            )

    # --- looking -----------------------------------------------------------------------------------------------------
    def _where(self, path: Any, *, follow: bool = True) -> str:
        """Where to read a path."""
        path, changes = self._strip_protocol(path), self._changes
        if changes is None:
            return str(path)
        where = changes.view.where(path, follow=follow)
        if where is None:
            raise _missing(path)
        return where

    def _mode(self, path: Any, *, follow: bool = True) -> int:
        """The mode of what is at a path; 0 where there is nothing, or links that lead in a circle."""
        try:
            return os.stat(self._where(path, follow=follow), follow_symlinks=follow).st_mode
        except ValueError:  # a NUL in the path
            return 0
        except OSError as exc:
            if kernel.errno_of(exc) is None:
                raise
            return 0

    def isfile(self, path: Any) -> bool:
        """As of the local filesystem."""
        return stat.S_ISREG(self._mode(path))

    def isdir(self, path: Any) -> bool:
        """As of the local filesystem."""
        return stat.S_ISDIR(self._mode(path))

    def islink(self, path: Any) -> bool:
        """As of the local filesystem."""
        return stat.S_ISLNK(self._mode(path, follow=False))

    def lexists(self, path: Any, **keywords: Any) -> bool:  # noqa: ARG002  fsspec's signature
        """As of the local filesystem."""
        return self._mode(path, follow=False) != 0

    def info(self, path: Any, **keywords: Any) -> dict[str, Any]:
        """As of the local filesystem."""
        if isinstance(path, os.DirEntry):
            return dict(super().info(path, **keywords))
        where = self._where(path, follow=False)
        if self._changes is not None and stat.S_ISLNK(paths.mode(where, follow=False)):
            # What the link leads to may have changed as well.
            found = dict(super().info(self._where(path), **keywords))
            found |= {"islink": True, "destination": os.readlink(where)}
        else:
            found = dict(super().info(where, **keywords))
        found["name"] = self._strip_protocol(path)
        return found

    def ls(self, path: Any, detail: bool = False, **keywords: Any) -> list[Any]:
        """As of the local filesystem."""
        path, changes = self._strip_protocol(path), self._changes
        if changes is None:
            found = super().ls(path, detail=detail, **keywords)
            return [each for each in found if not _is_ours(each["name"] if detail else each)]
        if not changes.view.is_folder(path):
            found = self.info(path)
            return [found if detail else found["name"]]
        paths = [os.path.join(path, name) for name in changes.view.names(path)]
        return [entry for each in paths if (entry := self._entry(each))] if detail else paths

    def _entry(self, path: str) -> dict[str, Any] | None:
        """What `info` says of an entry of a listing: there, a link is never what it leads to (nor walked into).  None
        when another thread has removed it since."""
        try:
            where = self._where(path, follow=False)
            found = os.lstat(where)
            if not stat.S_ISLNK(found.st_mode):
                return self.info(path)
            told = {"name": path, "size": 0, "type": "other", "created": found.st_ctime, "islink": True}
            told |= {name: getattr(found, f"st_{name}") for name in ("mode", "uid", "gid", "mtime", "ino", "nlink")}
            try:
                told["size"] = os.stat(where).st_size
            except OSError as exc:  # it leads nowhere
                if kernel.errno_of(exc) is None:
                    raise
            return told | {"destination": os.readlink(where)}
        except FileNotFoundError as exc:
            if kernel.errno_of(exc) is None:
                raise
            return None

    # --- files -------------------------------------------------------------------------------------------------------
    def open(  # noqa: PLR0913  fsspec's signature
        self, path: Any, mode: str = "rb", block_size: int | None = None, cache_options: Any = None,
        compression: str | None = None, **keywords: Any,
    ) -> Any:  # fmt: skip
        """As of any fsspec filesystem; what it gives for writing is a `Writer`, or text on one."""
        if "r" in mode and "+" not in mode:
            return super().open(path, mode, block_size, cache_options, compression, **keywords)
        path = self._strip_protocol(path)
        text = {name: keywords.pop(name) for name in ("encoding", "errors", "newline") if name in keywords}
        autocommit = keywords.pop("autocommit", True)
        binary = mode.replace("t", "").replace("b", "") + "b"
        writer = self._writer(path, binary, get_compression(path, compression), autocommit=autocommit)
        return writer if "b" in mode else TextWriter.of(writer, **text)

    def _open(self, path: Any, mode: str = "rb", block_size: int | None = None, **keywords: Any) -> Any:  # noqa: ARG002
        if "r" in mode and "+" not in mode:
            return LocalFileOpener(self._where(path), mode, fs=self, **keywords)
        return self._writer(self._strip_protocol(path), mode, None, autocommit=keywords.get("autocommit", True))

    def _writer(self, path: str, mode: str, compression: str | None, *, autocommit: bool) -> Writer:
        self._make_parent(path)
        changes = self._changes
        if changes is None:
            made = file(
                path, mode, overwrite="x" not in mode, durable=self.durable, lock_timeout=self.lock_timeout,
                follow_symlinks=True,
            )  # fmt: skip
            layers = _layers(made.output, compression, mode, made.abort)
            return Writer(path, mode, layers, made.commit, made.abort, autocommit=autocommit)
        return self._staged_writer(changes, path, mode, compression)

    def _staged_writer(self, changes: Changes, path: str, mode: str, compression: str | None) -> Writer:
        target, place = changes.stage_file(path, mode)
        inner = open(place, mode)  # noqa: SIM115  the writer closes it

        def drop() -> None:
            try:
                inner.close()
            except OSError as exc:  # a full disk, and what is still in the buffer is not wanted
                if kernel.errno_of(exc) is None:
                    raise
            try:
                os.unlink(place)
            except FileNotFoundError as exc:  # it went with the transaction
                if kernel.errno_of(exc) is None:
                    raise

        layers = _layers(inner, compression, mode, drop)
        writer = Writer(
            path, mode, layers, lambda: changes.put(target, place, fresh="x" in mode), drop,
            failed=lambda reason: changes.failed.__setitem__(target, reason),
        )  # fmt: skip
        self.transaction.files.append(writer)
        return writer

    def pipe_file(self, path: Any, value: bytes, mode: str = "overwrite", **keywords: Any) -> None:
        """Set the content of a file; with ``mode="create"`` nothing is ever replaced, whoever wins the race."""
        with self.open(path, "xb" if mode == "create" else "wb", **keywords) as writer:
            writer.write(value)

    def cp_file(self, path1: Any, path2: Any, **keywords: Any) -> None:  # noqa: ARG002
        """As of the local filesystem."""
        if not self.exists(path1):
            raise _missing(path1)
        if self.isfile(path1) and self.exists(path2) and os.path.samefile(self._where(path1), self._where(path2)):
            raise shutil.SameFileError(path1)
        self._copy_in(self._where(path1), path2)

    def put_file(self, path1: Any, path2: Any, callback: Any = None, **keywords: Any) -> None:  # noqa: ARG002
        """As of the local filesystem; `path1` is a path outside any transaction."""
        self._copy_in(LocalFileSystem._strip_protocol(path1), path2)

    def _copy_in(self, source: str, path: Any) -> None:
        if paths.is_folder(source):
            self.makedirs(path, exist_ok=True)
            return
        from atomik._tree.content import copy_content

        logs, changes = logs_of(real(source)), self._changes
        if logs and changes is None:
            companions.refuse_copy(source, self._strip_protocol(path))
        with open(source, "rb") as reader, self.open(path, "wb") as writer:
            copy_content(reader.fileno(), writer.fileno())
        if changes is not None:
            changes.copied(self._strip_protocol(path), logs)

    def get_file(self, path1: Any, path2: Any, callback: Any = None, **keywords: Any) -> None:  # noqa: ARG002
        """As of the local filesystem; `path2` is a path outside any transaction, and is written plainly."""
        source = self._where(path1)
        if isfilelike(path2):
            with open(source, "rb") as reader:
                shutil.copyfileobj(reader, path2)
        elif paths.is_folder(source):
            os.makedirs(path2, exist_ok=True)
        else:
            if self.auto_mkdir:
                os.makedirs(os.path.dirname(os.path.abspath(path2)), exist_ok=True)
            shutil.copyfile(source, path2)

    def touch(self, path: Any, truncate: bool = True, **keywords: Any) -> None:  # noqa: ARG002
        """As of the local filesystem."""
        path = self._strip_protocol(path)
        if truncate or not self.exists(path):
            self.open(path, "wb").close()
        elif self._changes is None:
            os.utime(path)
        elif not self.isdir(path):  # a folder's times change anyway, with what is put into it
            with self.open(path, "ab") as writer:
                os.utime(writer.fileno())

    # --- names -------------------------------------------------------------------------------------------------------
    def _make_parent(self, path: str) -> None:
        if self.auto_mkdir:
            self.makedirs(self._parent(path), exist_ok=True)

    def mkdir(self, path: Any, create_parents: bool = True, **keywords: Any) -> None:
        """As of the local filesystem."""
        path, changes = self._strip_protocol(path), self._changes
        if changes is None:
            super().mkdir(path, create_parents, **keywords)
        elif self.lexists(path):
            errors.fail(errors.FileAlreadyExistsError, errno.EEXIST, "it already exists", path)
        else:
            if create_parents:
                self.makedirs(self._parent(path), exist_ok=True)
            changes.mkdir(path)

    def makedirs(self, path: Any, exist_ok: bool = False) -> None:
        """As of the local filesystem."""
        path, changes = self._strip_protocol(path), self._changes
        if changes is None:
            os.makedirs(path, exist_ok=exist_ok)
        elif not (exist_ok and self.isdir(path)):
            try:
                self.mkdir(path, create_parents=True)
            except FileExistsError as exc:
                if not (kernel.is_failure(exc) and exist_ok and self.isdir(path)):
                    raise

    def rmdir(self, path: Any) -> None:
        """As of the local filesystem."""
        path, changes = self._strip_protocol(path), self._changes
        if changes is None:
            os.rmdir(path)
            return
        if not changes.view.is_folder(path, follow=False):
            errors.fail(errors.WrongKindError, errno.ENOTDIR, "not a folder", path)
        if changes.view.names(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        changes.remove(path)

    def rm_file(self, path: Any) -> None:
        """As of the local filesystem."""
        self._remove([self._strip_protocol(path)], recursive=None)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:  # noqa: ARG002
        """As of the local filesystem; all of them, or none."""
        self._remove([self._strip_protocol(each) for each in (path if isinstance(path, list) else [path])], recursive)

    def _remove(self, paths: list[str], recursive: bool | None) -> None:
        with self._editing() as changes:
            for path in paths:
                found = changes.view.stat(path, follow=False)
                if found is None:
                    raise _missing(path)
                if stat.S_ISDIR(found.st_mode):
                    _check_folder(path, recursive)
                changes.remove(path)

    def mv(self, path1: Any, path2: Any, recursive: bool = True, **keywords: Any) -> None:  # noqa: ARG002
        """As of the local filesystem: a folder at `path2` gets `path1` into it, a file is replaced."""
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        self._make_parent(target)
        try:
            with self._editing() as changes:
                target = changes.view.target_of_move(source, target)
                changes.move(source, target)
        except errors.CrossFilesystemError as exc:
            if self._intrans or not kernel.is_failure(exc):
                raise
            self._move_across(source, target)

    def _move_across(self, source: str, target: str) -> None:
        """To another filesystem: the copy appears in one step, and then the original is removed in one step."""
        if logs_of(source):
            companions.refuse_copy(source, target)
        with begin(overwrite=True, durable=self.durable, lock_timeout=self.lock_timeout) as tx:
            copy(source, str(tx.path(target)))
        self._remove([source], recursive=True)

    def link(self, src: Any, dst: Any, **keywords: Any) -> None:
        """A hard link."""
        self._name(os.link, self._where(src, follow=False), dst, keywords)

    def symlink(self, src: Any, dst: Any, **keywords: Any) -> None:
        """A symbolic link that says `src`."""
        self._name(os.symlink, self._strip_protocol(src), dst, keywords)

    def _name(self, call: Any, said: str, path: Any, keywords: dict[str, Any]) -> None:
        path, changes = self._strip_protocol(path), self._changes
        if changes is None:
            call(said, path, **keywords)
            return
        if changes.view.stat(path, follow=False) is not None:
            errors.fail(errors.FileAlreadyExistsError, errno.EEXIST, "it already exists", path)
        changes.check_parent(path)
        place = changes.slot(path)
        call(said, place, **keywords)
        changes.put(path, place, fresh=True)

    def chmod(self, path: Any, mode: int) -> None:
        """Set the permission bits; inside a transaction, of what it has written."""
        path, changes = self._strip_protocol(path), self._changes
        if changes is None:
            os.chmod(path, mode)
        else:
            changes.set_permissions(path, mode)


def _layers(inner: Any, compression: str | None, mode: str, drop: Any) -> list[Any]:
    """The staged file, and what compresses on top of it."""
    try:
        return [inner] if compression is None else [inner, compr[compression](inner, mode=mode[0])]
    except BaseException:
        drop()
        raise


def _check_folder(path: str, recursive: bool | None) -> None:
    """As of the local filesystem, whether a folder may be removed; `recursive` None: only files may."""
    if recursive is None:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not recursive:
        raise ValueError("Cannot delete directory, set recursive=True")
    try:
        here = os.getcwd()
    except FileNotFoundError as exc:  # the current folder was deleted already
        if kernel.errno_of(exc) is None:
            raise
        return
    if path == here:
        raise ValueError("Cannot delete current working directory")


def _missing(path: Any) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _is_ours(path: str) -> bool:
    return os.path.basename(path).startswith(PREFIX)
