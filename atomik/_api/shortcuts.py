"""`file`, `folder`, `path`, `update`, `transaction`: the interface in one page, mostly one-item transactions.

Nothing heavy is imported here.  The first call loads the rest, so that ``import atomik`` costs next to nothing.
"""

from __future__ import annotations

import os

from atomik._system import kernel
from atomik._typing import TypedDict, cast, overload
from atomik.flags import formerly

from .output import Output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import IO, Any, Literal, Unpack

    from atomik._receipt import Receipt
    from atomik._staging.file_objects import StagedBinary, StagedText
    from atomik._staging.observe import Observation
    from atomik._staging.options import BytesMode, StrPath, TextMode
    from atomik._staging.staged_path import StagedPath

    from .transaction import Transaction


class OutputOptions(TypedDict, total=False):
    """Keyword arguments that `file`, `folder` and `path` share; `file` describes them."""

    durable: bool | Literal["fsync", "syncfs"]
    lock_timeout: float | None
    progress: Callable[[str, int, int], None] | Literal[True] | None
    cleanup: Literal["now", "later"]
    follow_symlinks: bool
    parents: bool
    preserve: Literal["all", "mode", "none"]
    permissions: int | None
    expect: Observation | str | None
    backup: str | Callable[[str], str] | None
    if_changed: bool
    allow_gap: bool


def transaction(
    *,
    overwrite: bool = False,
    durable: bool | Literal["fsync", "syncfs"] = True,
    lock_timeout: float | None = 60.0,
    progress: Callable[[str, int, int], None] | Literal[True] | None = None,
    coordinator: str = "",
    cleanup: Literal["now", "later"] = "now",
) -> Transaction:
    """Begin a transaction: several outputs that are published all or nothing.

    >>> with atomik.transaction() as tx:
    ...     with tx.file("model.bin", "wb") as f:
    ...         f.write(weights)
    ...     plots = tx.folder("plots")
    ...     draw(plots / "loss.svg")
    ...     tx.remove("model.old", missing_ok=True)

    Nothing is visible before the end of the block.  If the block ends without an exception, the transaction commits; any
    exception (KeyboardInterrupt and sys.exit too) aborts it and goes on unchanged.  ``async with`` does the same in a thread,
    under asyncio and trio; a cancellation before the commit mark rolls back.  Inside the block::

        f = tx.file(path, mode="w")        a file object; close it, or let the commit do it
        new = tx.folder(path, copy=False)  a pathlib.Path: a private, empty folder to fill
        name = tx.path(path, also=[])      a pathlib.Path at which nothing exists, for a program that writes by name
        tx.symlink(path, target)           a symbolic link to target
        tx.remove(path, missing_ok=False)  removes a file, a link or a whole folder
        tx.move(src, dest)                 renames a file, a link or a whole folder
        tx.copy(src, dest)                 copies a file, a link or a whole folder
        tx.write_text(path, text)          a file in one call; and tx.write_bytes
        tx.exists(path), tx.open(path)     look and read as if it were committed already
        tx.exchange(first, second)         exchanges what is at two names
        tx.expect(path, expected)          commit only if path is still what was observed
        tx.plan(), tx.drop(path)           what would be done; cancel an operation
        tx.commit(), tx.abort()            end it before the block ends
        tx.state, tx.items, tx.receipt     how far it is, what is staged, what was done

    Paths are str or path objects.  Every operation that changes a name takes ``order=0`` (an int: lower numbers are published
    first, equal ones as staged) and ``expect=None``.
    `file`, ``folder`` and ``path`` share these options, described in ``help(atomik.file)``::

        overwrite=None          replace what exists?  None: the transaction's default
        tmp_dir=None            a folder on the same filesystem to stage in
        preserve="all"          what to keep of an overwritten one: "all", "mode", "none"
        permissions=None        final mode bits, such as 0o640
        follow_symlinks=False   write to the target of a link
        parents=False           create missing parent folders
        expect=None             what atomik.observe() returned, "absent" or "any"
        backup=None             a name that the previous version gets
        if_changed=False        do nothing if the content is unchanged
        allow_gap=False         accept a moment without the destination

    :param bool overwrite: the default for all items: whether existing destinations may be replaced.
    :param durable: bool or str.  ``True``: when ``commit()`` returns, the new versions survive a power cut; atomik
        chooses how to sync (fsync for a few files, syncfs for many; on ext4 with a journal and on xfs a few files are only
        written back, by sync_file_range(2), because one log keeps every change in order).  ``"fsync"`` or ``"syncfs"``
        choose it.  ``False``: no sync; the transaction is still all or nothing if the process dies, but not if the machine
        does.
    :param lock_timeout: a float, the seconds to wait for another transaction or reader in the same folders; 0 does not wait,
        ``None`` waits as long as it takes.
    :param progress: ``True``: a bar on the terminal, by rich or tqdm (``pip install 'atomik[progress]'``); or a function,
        called with (phase, done, total) during long work, by the thread that works; phases are "cloning", "syncing",
        "swapping" and "cleaning"; a total of 0 is unknown, and each phase ends with done == total.
    :param str coordinator: the name of whoever decides about the transaction once it is prepared (`Transaction.prepare`),
        such as a database; after a crash nothing touches the transaction until ``recover(folder, decide=…)`` asks.  At
        most 255 bytes.
    :param str cleanup: "later" lets a thread delete the folders that the commit displaced, so that the commit does not wait
        for it; the end of the program does.  What cannot be deleted is logged, and is not in the receipt.  If the process
        dies, recovery deletes the rest.
    :returns: a `Transaction`.

    :raises ValueError: ``durable`` or ``lock_timeout`` is invalid.

    Staging raises at once, and the transaction stays usable: `FileAlreadyExistsError`, `MissingPathError`,
    `InvalidDestinationError`, `WrongKindError`, `AccessDeniedError`, `MountPointError`, `CrossFilesystemError`,
    `UnsupportedFilesystemError`, `DuplicateDestinationError`, `NestedDestinationError`, `ConflictError`
    (``expect=``). The end of the block raises these too, if something changed in the meantime, and `LockTimeoutError`,
    `CommitError` (a system call failed), `JournalError` (the journal of a dead transaction cannot be trusted),
    `UndecidedError` (its coordinator has to decide), `TransactionStateError` (an output failed and was not staged
    again).  After all of these, every destination is as it was.  That is not so only after `DurabilityError` (all new, but
    perhaps not durable) and `RollbackError` (in doubt: call `recover`).  All are in `atomik.errors`, derive from
    `AtomikError`, and say in their docstrings what to do.

    Guarantee: at every moment, for every observer, each destination is what it was or the complete new version (one
    renameat2(2) each).  After any failure that leaves the process alive, all destinations are what they were.  After the
    death of the process or a power cut, `recover` (which the next transaction there runs by itself) makes them all new or
    all old.  Limits: for the microseconds between two renames, an observer that does not cooperate can see some new and
    some old; to avoid that, put the outputs into one folder and publish the folder.  All destinations must be on one
    filesystem and mount.

    Source: renameat2(2) (Linux 3.15), fsync(2), syncfs(2) (errors since Linux 5.8), flock(2).
    """
    _load_machinery()
    return (_Transaction or _load())(
        overwrite=overwrite, durable=durable, lock_timeout=lock_timeout, progress=progress, coordinator=coordinator,
        cleanup=cleanup,
    )  # fmt: skip


@overload
def file(
    path: StrPath, mode: TextMode = "w", overwrite: bool = False, tmp_dir: StrPath | None = None, *,
    encoding: str | None = "utf-8", errors: str | None = None, newline: str | None = None, buffering: int = -1,
    **options: Unpack[OutputOptions],
) -> Output[StagedText]: ...  # fmt: skip


@overload
def file(
    path: StrPath, mode: BytesMode, overwrite: bool = False, tmp_dir: StrPath | None = None, *,
    encoding: str | None = "utf-8", errors: str | None = None, newline: str | None = None, buffering: int = -1,
    **options: Unpack[OutputOptions],
) -> Output[StagedBinary]: ...  # fmt: skip


@overload
def file(
    path: StrPath, mode: str = "w", overwrite: bool = False, tmp_dir: StrPath | None = None, *,
    encoding: str | None = "utf-8", errors: str | None = None, newline: str | None = None, buffering: int = -1,
    **options: Unpack[OutputOptions],
) -> Output[IO[Any]]: ...  # fmt: skip


def file(
    path: StrPath | None = None,  # left out only by programs for 0.0.3 that pass file_name
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

    >>> with atomik.file("result.json", overwrite=True) as f:
    ...     json.dump(result, f)

    :param path: the destination, a str or path object.  Its folder must exist (or pass ``parents=True``).
    :param str mode: as for `open`, but only modes that write: "w", "wb", "w+", "w+b", "x", "xb"; "a" and "r+" start from a
        copy of the present content.  `atomik.Mode` works too.
    :param bool overwrite: whether an existing destination may be replaced; by default it never is, whoever wins the
        race.
    :param tmp_dir: a str or path object: a folder on the same filesystem to stage in; by default the destination's own.
    :param encoding: a str, as for `open`, but UTF-8 by default; ``errors``, ``newline`` and
        ``buffering`` are as for `open`.
    :param durable: True by default, as for `transaction`; so are ``lock_timeout`` (60.0 seconds), ``progress`` and
        ``cleanup``.
    :param str preserve: what the new version keeps of an overwritten one: "all" (the default: mode, owner, group, extended
        attributes, ACLs), "mode" or "none".  What the kernel does not allow is left out and listed in the receipt.
    :param int permissions: final mode bits, e.g. ``0o640``, instead of the preserved ones or of 0666 minus the umask.
    :param bool follow_symlinks: write to the target of a symlink; by default the link itself is replaced.
        Another user's link is followed only into a folder of the same user (`AccessDeniedError`).
    :param bool parents: create missing parent folders; they are removed again if nothing is published (after SIGKILL or a
        power cut, empty ones may stay).
    :param expect: what `observe` returned, ``"sha256:<hex>"`` of a regular file, or "absent": commit only if that is still
        what exists there.  An observation of something that exists, or a digest, allows it to be replaced, without
        ``overwrite``.  Outputs that start from a copy of the present content (modes "a" and "r+", ``copy=True``) expect the
        original to be unchanged, unless this is "any".
    :param backup: a str: the name that the previous version gets, in the same folder (or a function from path to name);
        anything that has that name already is replaced.
    :param bool if_changed: do nothing if the new content equals the old; the receipt then says "unchanged".
    :param bool allow_gap: accept a moment in which the destination is empty or missing, if the filesystem cannot publish in
        one step (for example a folder, without the flags of renameat2).
    :returns: an `Output`; ``with`` gives a real, seekable file object.  It has no name on disk while being written
        (O_TMPFILE, where the filesystem has it), so nothing is left even after SIGKILL.  ``f.name`` is the absolute
        path of the destination; after the block ``f.receipt`` says what was done (None: nothing, all is as it was).

    :raises ValueError: a mode that does not write, or an invalid option; TypeError: an unknown option.
    :raises atomik.errors.FileAlreadyExistsError: the destination exists and `overwrite` is false.
    :raises atomik.errors.MissingPathError: the folder, or with "r+" the file, does not exist.
    :raises atomik.errors.InvalidDestinationError: empty, ".", "..", a NUL, a trailing slash, longer than NAME_MAX.
    :raises atomik.errors.WrongKindError: the destination is a folder.
    :raises atomik.errors.MountPointError: the destination is a mount point.
    :raises atomik.errors.AccessDeniedError: no permission on the folder.
    :raises atomik.errors.CrossFilesystemError: `tmp_dir` is on another filesystem.
    :raises atomik.errors.UnsupportedFilesystemError: the filesystem cannot keep the promise; nothing was touched.
    :raises atomik.errors.ConflictError: `expect` is not met, at once or at the end of the block; or the folder was moved or
        replaced, at the end of the block.
    :raises atomik.errors.LockTimeoutError: at the end of the block: another transaction is running in the folder.
    :raises atomik.errors.JournalError: at the end of the block: there is a dead transaction's journal that cannot be
        trusted.
    :raises atomik.errors.CommitError: at the end of the block: a system call failed; everything is as it was.
    :raises atomik.errors.AtomikOSError: writing failed, with errno (for example, a full disk); everything is as it was.
    :raises atomik.errors.DurabilityError: the file is in place, but the last sync failed.
    :raises atomik.errors.RollbackError: the commit failed and so did undoing it; the original is at ``filename2``.

    Guarantee and source: as for `transaction`; a new file appears by one linkat(2), an old one is exchanged by one
    renameat2(2).  If durable, one sync on ext4 with a journal and on xfs, where one log holds every change; else two.
    """
    if path is None:
        path = _former_path(options)
    tx = _begin(overwrite, options)
    if options or str(mode)[:1] in ("a", "r"):  # what starts from a copy may conflict
        _load_machinery()
    text = buffering, encoding, errors, newline
    if not _loaded:
        return Output(tx, _stage_and_look, tx, path, mode, overwrite, tmp_dir, text, options)
    return Output(tx, tx._stage_file, path, mode, overwrite, tmp_dir, text, cast("Any", options))


@formerly(file_name="path")
def folder(
    path: StrPath,
    overwrite: bool = False,
    tmp_dir: StrPath | None = None,
    *,
    base: StrPath | None = None,
    copy: bool = False,
    resume: bool = False,
    in_place: bool = False,
    **options: Unpack[OutputOptions],
) -> Output[StagedPath]:
    """Write a whole folder, all or nothing.

    >>> with atomik.folder("site", overwrite=True) as new:
    ...     (new / "index.html").write_text(page)

    :param path: the destination, a str or path object; a trailing slash is fine.
    :param bool copy: start from a clone of the folder at `path`, to update it; if nothing exists there, start empty.  The
        clone shares blocks where the filesystem can, and keeps links, modes, times, hard links and attributes.
    :param base: a str or path object: start from a clone of that folder instead.
    :param bool resume: if this run fails, is aborted or is killed, keep what was staged for the next run; and continue what
        an earlier run has kept (``resumed`` of the path says whether there was anything).  After a power cut it is there as
        far as its writer had synced it.  It is locked while this process lives.  It is removed when it is published, by
        `Transaction.drop`, and by ``recover(discard=True)``.  Cannot be combined with ``copy=True``; with `base` only the
        first run starts from the clone.
    :param bool in_place: keep the folder at `path` itself and change its entries: for a mount point, a container's volume, a
        watched folder, a program's working directory.  It must exist (or pass ``parents=True``), and keeps its owner, mode
        and attributes; without `overwrite` it must be empty.  Cannot be combined with ``backup`` and ``permissions``.
    :param bool overwrite: as for `file`, and so are ``tmp_dir`` and all the other options; ``preserve`` applies to the
        folder itself, not to its contents.
    :returns: an `Output`; ``with`` gives a `pathlib.Path` to fill.  It is in a folder that only this user can enter, so
        nobody reads half of it.  Where other users could rename that folder, or one above it, the path begins with
        ``/proc/<pid>/fd``, which they cannot redirect; it is valid for processes of this user, while this process lives,
        until the end of the block.  Pickled, for other machines, it is a plain path (but not for root).

    For a program that needs an *existing, empty folder*, use `folder`.  For a program that needs a *name at which nothing
    exists yet*, because it creates the file or folder itself, use `path`.

    Raises like `file`; `MountPointError` also if something is mounted inside the folder that would be displaced,
    `UnsupportedFilesystemError` if folders cannot be exchanged and ``allow_gap=True`` was not passed; `ConflictError` if a
    folder that started from ``copy=True`` was changed in the meantime, or with ``resume=True`` if another job is staging the
    same destination, or what was kept there cannot be trusted.

    Guarantee: the whole folder changes by one renameat2(2), even if it is not empty: no observer sees it missing or mixed.
    Limit: programs that have the old folder open (for example as their working directory) keep the old one.

    With ``in_place=True`` such programs see the new content.  After any failure and any crash everything is new or everything
    is old, but the change does not happen at one instant: while `commit` swaps the entries, for microseconds each, a program
    that does not use `reading` sees some new and some old ones.  Entries that are folders are exchanged whole.  What others
    put into the folder before the commit is replaced like everything else in it; what they put there during the swaps is
    kept.  Source: as for `transaction`.
    """
    _load_machinery()
    tx = _begin(overwrite, options)
    cast("Any", options).update(base=base, copy=copy, resume=resume, in_place=in_place)
    return Output(tx, tx.folder, path, overwrite, tmp_dir, **cast("Any", options))


def path(
    path: StrPath, overwrite: bool = False, tmp_dir: StrPath | None = None, *, resume: bool = False,
    also: Iterable[str] = (),
    **options: Unpack[OutputOptions],
) -> Output[StagedPath]:  # fmt: skip
    """A path for programs that want a file name, published all or nothing.

    >>> with atomik.path("data.npz") as name:
    ...     numpy.savez(name, **arrays)

    :param path: the destination, a str or path object.
    :param also: an iterable of str: what the program may write next to the path.  Suffixes take the place of the
        destination's own (".shx" for "data.shp" is "data.shx"); names are names of files ("data.shp.xml").  Those that were
        written are published with the main one, in one transaction; where none was written, what exists there is removed.
        `overwrite` and the other options apply to each of them, but an observation passed as ``expect`` is about the main one
        (the others must not change between now and the commit), and ``backup`` must be a function.
    :param bool overwrite: as for `file`, and so are ``tmp_dir`` and all the other options.
    :param bool resume: as for `folder`: what the program wrote is kept for the next run, which finds it at the same path.
        Cannot be combined with `also`.
    :returns: an `Output`; ``with`` gives a `pathlib.Path`, at which nothing exists yet, with the base name and extension of
        the destination, in a private folder (see `folder`).  Whatever is there at the end, a file or a folder, is published.

    For a program that needs an *existing, empty folder*, use `folder`.  For a program that needs a *name at which nothing
    exists yet*, because it creates the file or folder itself, use `path`.

    Raises like `file`; `MissingPathError` if nothing was written; `ConflictError` if the program left something next to
    it that is not in `also` (such as a database's unfinished ``-wal``: close it first); `InvalidDestinationError` and
    `DuplicateDestinationError` for names in `also` that cannot be companions.  Guarantee and source: as for `file`; but the
    program's files have names, so after SIGKILL they stay in the private folder until `recover`.
    """
    _load_machinery()
    tx = _begin(overwrite, options)
    return Output(tx, tx.path, path, overwrite, tmp_dir, resume=resume, also=also, **cast("Any", options))


@overload
def update(
    path: StrPath, mode: Literal["r+", "r+t"] = "r+", *, encoding: str | None = "utf-8", errors: str | None = None,
    newline: str | None = None, **options: Unpack[OutputOptions],
) -> Output[StagedText]: ...  # fmt: skip


@overload
def update(
    path: StrPath, mode: Literal["r+b", "rb+"], *, encoding: str | None = "utf-8", errors: str | None = None,
    newline: str | None = None, **options: Unpack[OutputOptions],
) -> Output[StagedBinary]: ...  # fmt: skip


@overload
def update(
    path: StrPath, mode: str = "r+", *, encoding: str | None = "utf-8", errors: str | None = None,
    newline: str | None = None, **options: Unpack[OutputOptions],
) -> Output[IO[Any]]: ...  # fmt: skip


def update(
    path: StrPath,
    mode: str = "r+",
    *,
    encoding: str | None = "utf-8",
    errors: str | None = None,
    newline: str | None = None,
    **options: Unpack[OutputOptions],
) -> Output[Any]:
    """Read, modify and write a file, without losing a change that someone else makes in the meantime.

    >>> with atomik.update("config.json") as f:
    ...     config = json.load(f)
    ...     config["workers"] = 8
    ...     f.seek(0)
    ...     f.truncate()
    ...     json.dump(config, f)

    :param path: an existing file, a str or path object; ``encoding``, ``errors``, ``newline`` and the options are as for
        `file`.
    :param str mode: "r+" or "r+b": the file object starts at the beginning of a copy of the present content.
    :returns: an `Output`; ``with`` gives a real, seekable file object.
    :raises atomik.errors.ConflictError: at the end of the block: someone else changed the file in the meantime (compared by
        identity, size, times and content, before the exchange and after it); their version is kept.  Repeat the whole
        update.

    Otherwise raises like `file`, and `MissingPathError` if there is nothing to update.  Limit: what a program writes in place
    after the last comparison is lost.  Guarantee and source: as for `transaction`; it uses the journal and the folder's lock,
    so that a change at the last moment can be put back.
    """
    from atomik._staging.observe import observe

    if options.get("follow_symlinks"):
        from atomik._folder.paths import followed

        path = followed(os.fsdecode(path))
    options["expect"] = observe(path, digest=True)
    text = -1, encoding, errors, newline
    _load_machinery()  # the original may be changed in the meantime
    tx = _begin(True, options)  # noqa: FBT003
    return Output(tx, tx._stage_file, path, mode, True, None, text, cast("Any", options))  # noqa: FBT003


def write_text(  # noqa: PLR0913  pathlib's and file's
    path: StrPath, data: str, overwrite: bool = False, *, encoding: str | None = "utf-8", errors: str | None = None,
    newline: str | None = None, **options: Unpack[OutputOptions],
) -> Receipt:  # fmt: skip
    """Write a text file in one call, all or nothing.

    >>> atomik.write_text("version.txt", "0.2.0", overwrite=True)

    :param path: the destination, a str or path object.
    :param str data: all of its text.
    :param bool overwrite: whether an existing destination may be replaced.
    :param encoding: a str, by default UTF-8; ``errors``, ``newline`` and the options are as for `file`.
    :returns: the `Receipt` of the commit.

    Raises like `file`.  Guarantee and source: as for `file`.
    """
    return _write(file(path, "w", overwrite, encoding=encoding, errors=errors, newline=newline, **options), data)


def write_bytes(path: StrPath, data: bytes, overwrite: bool = False, **options: Unpack[OutputOptions]) -> Receipt:
    """Write a file in one call, all or nothing.

    :param path: the destination, a str or path object.
    :param data: its content, bytes.
    :param bool overwrite: whether an existing destination may be replaced; the options are as for `file`.
    :returns: the `Receipt` of the commit.

    Raises like `file`.  Guarantee and source: as for `file`.
    """
    return _write(file(path, "wb", overwrite, **options), data)


def _write(output: Output[Any], data: Any) -> Receipt:
    with output as f:
        f.write(data)
    assert output.receipt is not None
    return output.receipt


@overload
def edit(
    path: StrPath, function: Callable[[str], str], *, binary: Literal[False] = False, encoding: str | None = "utf-8",
    errors: str | None = None, newline: str | None = "", attempts: int = 10, **options: Unpack[OutputOptions],
) -> Receipt: ...  # fmt: skip


@overload
def edit(
    path: StrPath, function: Callable[[bytes], bytes], *, binary: Literal[True], attempts: int = 10,
    **options: Unpack[OutputOptions],
) -> Receipt: ...  # fmt: skip


def edit(
    path: StrPath,
    function: Callable[[Any], Any],
    *,
    binary: bool = False,
    encoding: str | None = "utf-8",
    errors: str | None = None,
    newline: str | None = "",
    attempts: int = 10,
    **options: Unpack[OutputOptions],
) -> Receipt:
    """Change a file by a function of its content, without losing a change that someone else makes in the meantime.

    >>> atomik.edit("config.json", lambda text: text.replace('"workers": 4', '"workers": 8'))

    Reads the file, calls the function, and writes what it returns.  If the file was changed in the meantime, all of that is
    repeated with the new content, so the function should have no side effects.

    :param path: an existing file, a str or path object; ``encoding``, ``errors`` and the options are as for `file`.
    :param function: takes the whole text, or bytes, and returns the new one.  If it raises, nothing is changed.
    :param bool binary: pass bytes to it, not text.
    :param newline: as for `open`; by default line endings stay as they are.
    :param int attempts: the function is called at most that often.
    :returns: the `Receipt` of the commit; it says "unchanged" if the function returned what it was given.

    :raises TypeError: the function did not return text (or bytes).
    :raises atomik.errors.ConflictError: the file was changed in the meantime at every attempt; this call changed nothing.

    Otherwise raises like `update`.  Guarantee, limit and source: as for `update`.
    """
    from atomik.errors import ConflictError

    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts!r}")
    text: dict[str, Any] = {} if binary else {"encoding": encoding, "errors": errors, "newline": newline}
    options.setdefault("if_changed", True)
    while True:
        attempts -= 1
        try:
            output = update(path, "r+b" if binary else "r+", **text, **options.copy())
        except ConflictError as exc:
            if not attempts or not kernel.is_failure(exc):
                raise
            continue
        try:
            _apply(function, output.output, bytes if binary else str)
        except BaseException:
            output.abort()
            raise
        try:
            return output.commit()
        except ConflictError as exc:
            if not attempts or not kernel.is_failure(exc):
                raise


def _apply(function: Callable[[Any], Any], f: IO[Any], kind: type) -> None:
    """Replace the content of an open file by what the function returns for it."""
    new = function(f.read())
    if not isinstance(new, kind):
        raise TypeError(f"the function must return {kind.__name__}, not {type(new).__name__}")
    f.seek(0)
    f.truncate()
    f.write(new)


def _former_path(options: Any) -> StrPath:
    """``file_name``, the former name of the path; `formerly` would cost as much as a system call."""
    if "file_name" not in options:
        raise TypeError("file() missing 1 required positional argument: 'path'")
    return options.pop("file_name")  # type: ignore[no-any-return]


#: Loaded by the first call: `import atomik` costs next to nothing.
_Transaction: type[Transaction] | None = None
_loaded = False


def _load() -> type[Transaction]:
    global _Transaction  # noqa: PLW0603  loaded once, when first needed
    kernel.refuse_fake()
    from .transaction import Transaction

    _Transaction = Transaction
    return Transaction


def _load_machinery() -> None:
    """The output may need more than one plain file does."""
    global _loaded  # noqa: PLW0603  once
    kernel.refuse_fake()
    if not _loaded:
        from atomik._commit.machinery import load

        load()
        _loaded = True


#: folders in which there was no journal when a file was staged
_without_journal: set[tuple[int, int]] = set()
_MANY = 1000


def _stage_and_look(tx: Transaction, *given: Any) -> IO[Any]:
    """A plain file needs the machinery only where a dead transaction must be recovered first: look for its journal once in
    each folder.  One that appears later is an error at the commit if there is nothing to load from any more (I14)."""
    output = tx._stage_file(*given)
    directory = tx._intake.items[0].place.directory
    if directory.key not in _without_journal:
        from atomik._hidden_names import JOURNAL_NAME

        with kernel.typed("cannot look for a journal", directory.path):
            found = kernel.port.exists(JOURNAL_NAME, directory.fd)
        if found:
            _load_machinery()
        elif len(_without_journal) < _MANY:
            _without_journal.add(directory.key)
    return output


def _begin(overwrite: bool, options: Any) -> Transaction:
    """The transaction for one item; the options of the item itself stay in `options`."""
    make = _Transaction or _load()
    if not options:
        return make(overwrite=overwrite)
    pop = options.pop
    return make(
        overwrite=overwrite,
        durable=pop("durable", True),
        lock_timeout=pop("lock_timeout", 60.0),
        progress=pop("progress", None),
        cleanup=pop("cleanup", "now"),
    )
