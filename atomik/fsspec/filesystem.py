"""An fsspec filesystem for local folders whose writes are all or nothing: protocol ``atomik``.

    import fsspec
    fs = fsspec.filesystem("atomik")

    df.to_csv("atomik:///data/out.csv")                 # one file: published when it is complete, or never
    with fs.transaction:                                # many: published together, or none of them
        fs.rm("/data/set", recursive=True)
        fs.makedirs("/data/set")
        df.to_parquet("/data/set", partition_cols=["year"], filesystem=fs)
        fs.mv("/data/new-index.json", "/data/index.json")

Like fsspec's own local filesystem, with these differences:

* every file written by `open`, `pipe`, `put`, `cp`, `touch` appears in one step and durable, keeps mode, owner and
  attributes of what it replaces, and does not appear when its writing fails (see `_fsspec_files`).  `mv`, and `rm` of
  several paths or of folders, are one atomik transaction;
* inside ``with fs.transaction`` everything, `mkdir`, `rm` and `mv` too, becomes visible at the end in one atomik
  transaction (with its journal: also a crash leaves all old or all new).  What reads through this instance sees the
  new state before (see `_fsspec_changes`).  All of it must lie on one filesystem;
* names that begin with ``.atomik-`` are not listed: they belong to transactions at work.

Storage options: ``auto_mkdir=False``, ``durable=True`` (see `atomik.transaction`), ``lock_timeout=60.0``.

Limits: `link`, `symlink`, `mkdir`, `chmod` outside a transaction are the plain system calls.  An instance, and so its
transaction, belongs to the thread that asked fsspec for it; hand the instance itself to other threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING, Any

from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.implementations.local import LocalFileOpener, LocalFileSystem
from fsspec.utils import isfilelike

from atomik import errors
from atomik._api.shortcuts import file

from .changes import copy
from .naming import NamingFileSystem
from .reading import AtomikTransaction
from .writers import TextWriter, Writer

if TYPE_CHECKING:
    from .changes import Changes

__all__ = ["AtomikFileSystem", "AtomikTransaction"]


class AtomikFileSystem(NamingFileSystem):
    """Local files, written all or nothing, for whatever writes through fsspec: protocol ``atomik``.

    >>> fs = fsspec.filesystem("atomik")
    >>> with fs.transaction:
    ...     frame.to_parquet("set", partition_cols=["year"], filesystem=fs)

    :param bool auto_mkdir: make missing folders above what is written.
    :param bool durable: as for `atomik.transaction`.
    :param float lock_timeout: seconds to wait for another transaction in the same folders.

    Its methods are those of fsspec's LocalFileSystem, and raise the errors of `atomik.errors`, which are builtin ones too.

    Guarantee: a file appears complete (and durable) when it is closed, or never when its writing failed.  In ``with
    fs.transaction`` (an `AtomikTransaction`) everything appears at its end, as one `atomik.transaction`; ``rm`` of several
    paths or of a folder, and ``mv``, are one each.  Limit: all of it must lie on one filesystem; outside a transaction
    ``mkdir``, ``link``, ``symlink`` and ``chmod`` are the plain system calls; an instance belongs to the thread that asked
    fsspec for it.  Source: as for `atomik.transaction`.
    """

    protocol = "atomik"

    def __init__(
        self, auto_mkdir: bool = False, durable: bool = True, lock_timeout: float = 60.0, **keywords: Any
    ) -> None:
        super().__init__(auto_mkdir, durable, lock_timeout, **keywords)

    @property
    def fsid(self) -> str:
        """The files are the local ones."""
        return "local"

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
        view = self._view
        if view is None:
            made = file(
                path, mode, overwrite="x" not in mode, durable=self.durable, lock_timeout=self.lock_timeout,
                follow_symlinks=True,
            )  # fmt: skip
            layers = _layers(made.output, compression, mode, made.abort)
            return Writer(path, mode, layers, made.commit, made.abort, autocommit=autocommit)
        return self._staged_writer(view, path, mode, compression)

    def _staged_writer(self, view: Changes, path: str, mode: str, compression: str | None) -> Writer:
        target = view.resolve(path)
        present = view.stat(target)
        if present is not None and "x" in mode:
            errors.fail(errors.FileAlreadyExistsError, errno.EEXIST, "it already exists", path)
        if view.is_folder(target):
            errors.fail(errors.WrongKindError, errno.EISDIR, "cannot write a file there: a folder stands there", path)
        view.check_parent(target)
        place = view.slot(target)
        if present is not None and ("a" in mode or "r" in mode):
            copy(view.where(target) or target, place)
        elif "r" in mode:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

        inner = open(place, mode)  # noqa: SIM115  the writer closes it

        def drop() -> None:
            with contextlib.suppress(OSError):  # a full disk, and what is still in the buffer is not wanted
                inner.close()
            with contextlib.suppress(FileNotFoundError):  # it went with the transaction
                os.unlink(place)

        layers = _layers(inner, compression, mode, drop)
        writer = Writer(
            path, mode, layers, lambda: view.put(target, place, fresh="x" in mode), drop,
            failed=lambda reason: view.failed.__setitem__(target, reason),
        )  # fmt: skip
        self.transaction.files.append(writer)
        return writer

    def pipe_file(self, path: Any, value: bytes, mode: str = "overwrite", **keywords: Any) -> None:
        """Set the content of a file; with ``mode="create"`` nothing is replaced, whoever wins the race."""
        with self.open(path, "xb" if mode == "create" else "wb", **keywords) as writer:
            writer.write(value)

    def cp_file(self, path1: Any, path2: Any, **keywords: Any) -> None:  # noqa: ARG002
        """As of the local filesystem."""
        if not self.exists(path1):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path1)
        if self.isfile(path1) and self.exists(path2) and os.path.samefile(self._where(path1), self._where(path2)):
            raise shutil.SameFileError(path1)
        self._copy_in(self._where(path1), path2)

    def put_file(self, path1: Any, path2: Any, callback: Any = None, **keywords: Any) -> None:  # noqa: ARG002
        """As of the local filesystem; `path1` is no path of a transaction's."""
        self._copy_in(LocalFileSystem._strip_protocol(path1), path2)

    def _copy_in(self, source: str, path: Any) -> None:
        if os.path.isdir(source):
            self.makedirs(path, exist_ok=True)
            return
        from atomik._tree.content import copy_content

        with open(source, "rb") as reader, self.open(path, "wb") as writer:
            copy_content(reader.fileno(), writer.fileno())

    def get_file(self, path1: Any, path2: Any, callback: Any = None, **keywords: Any) -> None:  # noqa: ARG002
        """As of the local filesystem; `path2` is no path of a transaction's, and written plainly."""
        source = self._where(path1)
        if isfilelike(path2):
            with open(source, "rb") as reader:
                shutil.copyfileobj(reader, path2)
        elif os.path.isdir(source):
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
        elif self._view is None:
            os.utime(path)
        elif not self.isdir(path):  # a folder's times change anyway, with what is put into it
            with self.open(path, "ab") as writer:
                os.utime(writer.fileno())


def _layers(inner: Any, compression: str | None, mode: str, drop: Any) -> list[Any]:
    """The staged file, and what compresses on top of it."""
    try:
        return [inner] if compression is None else [inner, compr[compression](inner, mode=mode[0])]
    except BaseException:
        drop()
        raise
