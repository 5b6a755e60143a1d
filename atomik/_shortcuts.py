"""`file`, `folder`, `path`, `update`, `transaction`: the interface in one page, mostly one-item transactions.

Nothing heavy is imported here; the machinery is loaded by the first call, so that ``import atomik`` costs next to
nothing.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Generic, Literal, TextIO, TypedDict, TypeVar, Unpack, overload

from .flags import formerly

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ._handles import StagedPath
    from ._observe import Observation
    from ._options import BytesMode, StrPath, TextMode
    from ._receipt import Receipt
    from ._transaction import Transaction

_T = TypeVar("_T")


class OutputOptions(TypedDict, total=False):
    """Keyword arguments that `file`, `folder` and `path` share; `file` describes them."""

    durable: bool | Literal["fsync", "syncfs"]
    lock_timeout: float
    progress: Callable[[str, int, int], None] | None
    follow_symlinks: bool
    parents: bool
    preserve: Literal["all", "mode", "none"]
    permissions: int | None
    expect: Observation | Literal["absent"] | None
    keep: str | Callable[[str], str] | None
    if_changed: bool
    fallback: Literal["weaker"] | None


class Output(Generic[_T]):
    """A one-item transaction: enter it for the file object or path, leave it to publish.

    ``output`` is what ``with`` gives; ``transaction`` the transaction behind it.
    """

    def __init__(self, transaction: Transaction, stage: Callable[[], _T]) -> None:
        self.transaction = transaction
        try:
            self.output = stage()
        except BaseException:
            transaction.abort()
            raise

    def commit(self) -> Receipt:
        """Publish now; see `Transaction.commit`."""
        return self.transaction.commit()

    def abort(self) -> None:
        """Drop what was written; see `Transaction.abort`."""
        self.transaction.abort()

    @property
    def receipt(self) -> Receipt | None:
        """What the commit did; None before it."""
        return self.transaction.receipt

    def __enter__(self) -> _T:
        self.transaction.__enter__()
        return self.output

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.transaction.__exit__(kind, exc, trace)


def transaction(
    *,
    overwrite: bool = False,
    durable: bool | Literal["fsync", "syncfs"] = True,
    journal: bool = True,
    lock_timeout: float = 60.0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Transaction:
    """Begin a transaction: several outputs that are published all or nothing.

    >>> with atomik.transaction() as tx:                       # doctest: +SKIP
    ...     with tx.file("model.bin", "wb") as f:
    ...         f.write(weights)
    ...     plots = tx.folder("plots")
    ...     draw(plots / "loss.svg")
    ...     tx.remove("model.old", missing_ok=True)

    Leaving the block well commits; leaving it with any exception (KeyboardInterrupt too) aborts, and the exception goes
    on unchanged.  ``tx.commit()`` and ``tx.abort()`` do the same explicitly.  Inside the block::

        tx.file(path, mode="w")             a file object to write
        tx.folder(path, base=None)          a pathlib.Path: a private folder to fill
        tx.path(path)                       a pathlib.Path for other programs
        tx.symlink(path, target)
        tx.remove(path, missing_ok=False)
        tx.move(src, dest)
        tx.state, tx.items, tx.receipt      where it is, what is staged, what was done

    A file object may be used with ``with``, or closed, or left to the commit to close.

    All of them take ``order=`` (an int, default 0: lower is published first, then as staged).  The outputs take
    ``overwrite=`` and the other options of `file` as well.  Nothing is visible before the end of the block.

    :param bool overwrite: the default for the items: whether what exists at a destination may be replaced.
    :param durable: ``True`` (the default): when ``commit()`` returns, the new versions survive a power cut; the kind of
        sync is chosen (fsync of a few files, syncfs for many).  ``"fsync"`` or ``"syncfs"`` choose it.  ``False``: no
        sync; the transaction is still all or nothing when the process dies, but not when the machine does.
    :param bool journal: ``False`` leaves the journal out: all or nothing only while the process lives.
    :param float lock_timeout: seconds to wait for another transaction in the same folders.
    :param progress: a function, called with (phase, done, total) during long work; phases are "cloning", "syncing",
        "swapping" and "cleaning"; a total of 0 is unknown.
    :returns: a `Transaction`.

    :raises ValueError: ``durable`` or ``lock_timeout`` make no sense.

    What staging raises, `file` lists; `Transaction.commit` lists what the end of the block raises.

    Guarantee: each destination is at every moment, for every observer, either what it was or the complete new version
    (one renameat2(2) each); after any failure that leaves the process alive all of them are what they were; after the
    death of the process or a power cut, `recover` (which the next transaction there runs by itself) makes them all new
    or all old.  Limit: an observer that does not cooperate can see, for the microseconds between two renames, some new
    and some old; put the outputs into one folder and publish that when this must not be.  All destinations must lie on
    one filesystem and mount.

    Source: renameat2(2) (Linux 3.15), fsync(2), syncfs(2) (errors since Linux 5.8), flock(2).
    """
    from ._transaction import Transaction

    return Transaction(
        overwrite=overwrite, durable=durable, journal=journal, lock_timeout=lock_timeout, progress=progress
    )


@overload
def file(
    path: StrPath,
    mode: TextMode = "w",
    overwrite: bool = False,
    tmp_dir: StrPath | None = None,
    *,
    encoding: str | None = "utf-8",
    errors: str | None = None,
    newline: str | None = None,
    buffering: int = -1,
    **options: Unpack[OutputOptions],
) -> Output[TextIO]: ...


@overload
def file(
    path: StrPath,
    mode: BytesMode,
    overwrite: bool = False,
    tmp_dir: StrPath | None = None,
    *,
    encoding: str | None = "utf-8",
    errors: str | None = None,
    newline: str | None = None,
    buffering: int = -1,
    **options: Unpack[OutputOptions],
) -> Output[BinaryIO]: ...


@overload
def file(
    path: StrPath,
    mode: str = "w",
    overwrite: bool = False,
    tmp_dir: StrPath | None = None,
    *,
    encoding: str | None = "utf-8",
    errors: str | None = None,
    newline: str | None = None,
    buffering: int = -1,
    **options: Unpack[OutputOptions],
) -> Output[IO[Any]]: ...


@formerly(file_name="path")
def file(
    path: StrPath,
    mode: str = "w",
    overwrite: bool = False,
    tmp_dir: StrPath | None = None,
    *,
    encoding: str | None = "utf-8",
    errors: str | None = None,
    newline: str | None = None,
    buffering: int = -1,
    **options: Unpack[OutputOptions],
) -> Output[Any]:
    """Write one file, all or nothing.

    >>> with atomik.file("result.json", overwrite=True) as f:   # doctest: +SKIP
    ...     json.dump(result, f)

    :param path: the destination, a str or path.  Its folder must exist (or pass ``parents=True``).
    :param str mode: as for `open`, writing modes only: "w", "wb", "w+", "w+b", "x", "xb"; "a" and "r+" start from a
        copy of the present content.  `atomik.Mode` works too.
    :param bool overwrite: whether an existing destination may be replaced; by default it never is, whoever wins the
        race.
    :param tmp_dir: a folder on the same filesystem to stage in; by default the destination's own.
    :param encoding: as for `open`, but text is UTF-8 unless said otherwise; ``errors``, ``newline`` and ``buffering``
        are as for `open`.
    :param durable: as for `transaction`, and so are ``lock_timeout`` and ``progress``.
    :param preserve: what an overwritten destination's successor takes over: "all" (mode, owner, group, extended
        attributes, ACLs), "mode" or "none".  What the kernel does not allow is left out and named in the receipt.
    :param int permissions: final mode bits, e.g. ``0o640``, instead of the preserved ones or of 0666 less the umask.
    :param bool follow_symlinks: write to the target of a symlink; by default the link itself is replaced.
        A link of another user is followed only into a folder of that user's (`AccessDeniedError`).
    :param bool parents: make missing folders above the destination; they are removed again if it comes to nothing
        (after SIGKILL or a power cut empty ones may stay).
    :param expect: what `observe` returned, or "absent": commit only if that is still what stands there.
    :param keep: a name in the same folder (or a function from path to name) under which the previous version stays.
    :param bool if_changed: do nothing when the new content equals the old; the receipt says "unchanged".
    :param fallback: "weaker" accepts, where the filesystem cannot publish in one step (a folder without the flags of
        renameat2, say), a moment in which the destination is empty or missing.
    :returns: an `Output`; ``with`` gives a real, seekable file object.  It has no name on disk while being written
        (O_TMPFILE), so nothing is left even after SIGKILL.

    :raises ValueError: a mode that does not write, or an option that makes no sense.
    :raises atomik.errors.FileAlreadyExistsError: something is there and `overwrite` is false.
    :raises atomik.errors.MissingPathError: the folder, or with "r+" the file, does not exist.
    :raises atomik.errors.InvalidDestinationError: empty, ".", "..", a NUL, a trailing slash, longer than NAME_MAX.
    :raises atomik.errors.WrongKindError: a folder stands there.
    :raises atomik.errors.MountPointError: a mount point stands there.
    :raises atomik.errors.AccessDeniedError: no permission on the folder.
    :raises atomik.errors.CrossFilesystemError: `tmp_dir` lies on another filesystem.
    :raises atomik.errors.UnsupportedFilesystemError: the filesystem cannot keep the promise; nothing was touched.
    :raises atomik.errors.ConflictError: on leaving the block: `expect` not met, or the folder was moved or replaced.
    :raises atomik.errors.LockTimeoutError: on leaving the block: an unfinished transaction is at work in the folder.
    :raises atomik.errors.CommitError: on leaving the block: a system call failed; everything is as it was.
    :raises atomik.errors.DurabilityError: the file is in place, but the last sync failed.
    :raises atomik.errors.RollbackError: the commit failed and so did undoing it; the original lies at ``filename2``.

    Guarantee and source: as for `transaction`; a new file appears by one linkat(2), an old one is exchanged by one
    renameat2(2).  Two syncs when durable.
    """
    text: Any = {"encoding": encoding, "errors": errors, "newline": newline, "buffering": buffering}
    tx, rest = _begin(overwrite, options)
    return Output(tx, lambda: tx.file(path, mode, overwrite, tmp_dir, **text, **rest))


@formerly(file_name="path")
def folder(
    path: StrPath,
    overwrite: bool = False,
    tmp_dir: StrPath | None = None,
    *,
    base: StrPath | None = None,
    **options: Unpack[OutputOptions],
) -> Output[StagedPath]:
    """Write a whole folder, all or nothing.

    >>> with atomik.folder("site", overwrite=True) as new:      # doctest: +SKIP
    ...     (new / "index.html").write_text(page)

    :param path: the destination; a trailing slash is fine.
    :param base: ``"copy"`` starts from a clone of what is there (extents shared where the filesystem can; links, modes,
        times, hard links and attributes kept), so that a folder can be updated; a path clones that folder.
    :param bool overwrite: as for `file`, and so are ``tmp_dir`` and all the other options; ``preserve`` is about the
        folder itself, not what is in it.
    :returns: an `Output`; ``with`` gives a `pathlib.Path` to fill.  It lies in a folder that only this user can enter,
        so nobody reads half of it.  Where other users can rename that folder, or one above it, the path is one below
        ``/proc/<pid>/fd``, which they cannot make lead elsewhere; it holds for this process and its user's others, until
        the end of the block.  Pickled, it is the path by name all the same (but not for root), for other machines.

    Raises like `file`; `MountPointError` also when something is mounted inside the folder that would be displaced.
    The whole folder changes by one renameat2(2), non-empty ones too: no observer sees it missing or mixed.  Programs
    that hold the old folder open (as current folder, say) keep the old one.
    """
    tx, rest = _begin(overwrite, options)
    return Output(tx, lambda: tx.folder(path, overwrite, tmp_dir, base=base, **rest))


def path(
    path: StrPath, overwrite: bool = False, tmp_dir: StrPath | None = None, **options: Unpack[OutputOptions]
) -> Output[StagedPath]:
    """A path for programs that want a file name, published all or nothing.

    >>> with atomik.path("data.npz") as name:                   # doctest: +SKIP
    ...     numpy.savez(name, **arrays)

    :param path: the destination; this and all the other options as for `file`.
    :returns: an `Output`; ``with`` gives a `pathlib.Path` with the destination's own base name and extension, in a
        private folder (see `folder`).  What stands there at the end, a file or a folder, is published; what else the
        program left beside it is not.  A database's unfinished ``-wal`` or ``-journal`` is a `ConflictError`: close it first.

    Raises like `file`, and `MissingPathError` when nothing was written.
    """
    tx, rest = _begin(overwrite, options)
    return Output(tx, lambda: tx.path(path, overwrite, tmp_dir, **rest))


def update(
    path: StrPath,
    mode: str = "r+",
    *,
    encoding: str | None = "utf-8",
    errors: str | None = None,
    newline: str | None = None,
    **options: Unpack[OutputOptions],
) -> Output[IO[Any]]:
    """Read, modify and write a file; it fails rather than lose somebody else's change made meanwhile.

    >>> with atomik.update("config.json") as f:                 # doctest: +SKIP
    ...     config = json.load(f)
    ...     config["workers"] = 8
    ...     f.seek(0); f.truncate(); json.dump(config, f)

    :param path: an existing file, a str or path.
    :param str mode: "r+" or "r+b": the file object starts at the beginning of a copy of the present content.
    :raises atomik.errors.ConflictError: on leaving the block: the file is no longer what was read (compared by
        identity, size, times and content, before the exchange and after it); theirs stays.  Repeat the whole update.

    Otherwise raises like `file`, and `MissingPathError` when there is nothing to update.
    """
    from ._observe import observe

    if options.get("follow_symlinks"):
        from ._workspace import followed

        path = followed(os.fsdecode(path))
    options["expect"] = observe(path, digest=True)
    text: Any = {"encoding": encoding, "errors": errors, "newline": newline}
    tx, rest = _begin(options=options, overwrite=True)
    return Output(tx, lambda: tx.file(path, mode, overwrite=True, **text, **rest))


def _begin(overwrite: bool, options: OutputOptions) -> tuple[Transaction, Any]:
    """The transaction for one item, and the options that are the item's."""
    rest: Any = dict(options)
    own = {name: rest.pop(name) for name in ("durable", "lock_timeout", "progress") if name in rest}
    return transaction(overwrite=overwrite, **own), rest
