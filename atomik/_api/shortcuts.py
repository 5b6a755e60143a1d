"""`file`, `folder`, `path`, `update`, `transaction`: the interface in one page, mostly one-item transactions.

Nothing heavy is imported here; the machinery is loaded by the first call, so that ``import atomik`` costs next to
nothing.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast, overload

from atomik._system import kernel
from atomik.flags import formerly

from .output import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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
) -> Transaction:
    """Begin a transaction: several outputs that are published all or nothing.

    >>> with atomik.transaction() as tx:
    ...     with tx.file("model.bin", "wb") as f:
    ...         f.write(weights)
    ...     plots = tx.folder("plots")
    ...     draw(plots / "loss.svg")
    ...     tx.remove("model.old", missing_ok=True)

    Nothing is visible before the end of the block.  Leaving it well commits; leaving it with any exception
    (KeyboardInterrupt and sys.exit too) aborts, and the exception goes on unchanged.  ``async with`` does the same in a
    thread, under asyncio and trio; a cancellation before the commit mark rolls back.  Inside the block::

        f = tx.file(path, mode="w")        a file object; close it, or leave it to the commit
        new = tx.folder(path, copy=False)  a pathlib.Path: a private, empty folder to fill
        name = tx.path(path, also=[])      a pathlib.Path at which nothing exists, for a program that writes by name
        tx.symlink(path, target)           a symbolic link that says target
        tx.remove(path, missing_ok=False)  a file, a link or a whole folder goes
        tx.move(src, dest)                 what exists at src goes to dest
        tx.copy(src, dest)                 a copy of it, file or whole folder
        tx.write_text(path, text)          a file in one call; and tx.write_bytes
        tx.exists(path), tx.open(path)     look and read as if it were committed
        tx.exchange(first, second)         two names change what exists at them
        tx.expect(path, expected)          commit only if path is still as it was seen
        tx.plan(), tx.drop(path)           what would be done; take an operation back
        tx.commit(), tx.abort()            the end, by hand
        tx.state, tx.items, tx.receipt     where it is, what is staged, what was done

    Paths are str or path objects.  Whatever changes a name takes ``order=0`` (an int: lower is published first, equal ones
    as staged) and ``expect=None``.
    `file`, ``folder`` and ``path`` share these options, which ``help(atomik.file)`` describes::

        overwrite=None          may what exists be replaced?  None: as the transaction says
        tmp_dir=None            a folder on the same filesystem to stage in
        preserve="all"          what an overwritten one hands on: "all", "mode", "none"
        permissions=None        final mode bits, such as 0o640
        follow_symlinks=False   write to the target of a link
        parents=False           make missing folders above
        expect=None             what atomik.observe() returned, "absent" or "any"
        backup=None             a name under which the previous version stays
        if_changed=False        leave an equal one as it is
        allow_gap=False         accept a moment without the destination

    :param bool overwrite: the default for the items: whether what exists at a destination may be replaced.
    :param durable: bool or str.  ``True``: when ``commit()`` returns, the new versions survive a power cut; the kind of
        sync is chosen (fsync of a few files, syncfs for many).  ``"fsync"`` or ``"syncfs"`` choose it.  ``False``: no
        sync; the transaction is still all or nothing when the process dies, but not when the machine does.
    :param lock_timeout: a float, seconds to wait for another transaction or reader in the same folders; 0 does not wait,
        ``None`` waits for ever.
    :param progress: ``True``: a bar on the terminal, by rich or tqdm (``pip install 'atomik[progress]'``); or a function,
        called with (phase, done, total) during long work, by the thread that works; phases are "cloning", "syncing",
        "swapping" and "cleaning"; a total of 0 is unknown, and each phase ends with done == total.
    :param str coordinator: who decides about the transaction once it is prepared (`Transaction.prepare`), such as the name of
        a database; after a crash nothing touches it until ``recover(folder, decide=…)`` asks.  At most 255 bytes.
    :returns: a `Transaction`.

    :raises ValueError: ``durable`` or ``lock_timeout`` make no sense.

    Staging raises at once, and the transaction stays usable: `FileAlreadyExistsError`, `MissingPathError`,
    `InvalidDestinationError`, `WrongKindError`, `AccessDeniedError`, `MountPointError`, `CrossFilesystemError`,
    `UnsupportedFilesystemError`, `DuplicateDestinationError`, `NestedDestinationError`, `ConflictError`
    (``expect=``). The end of the block raises these again if things changed meanwhile, and `LockTimeoutError`,
    `CommitError` (a system call failed), `JournalError` (what a dead transaction left may not be trusted),
    `UndecidedError` (its coordinator has to decide), `TransactionStateError` (an output failed and was not staged
    again): then every destination is as it was.  Only after `DurabilityError` (all new, not surely durable) and
    `RollbackError` (in doubt: call `recover`) it is not.  All are in `atomik.errors`, derive from `AtomikError`, and
    say in their docstrings what cures them.

    Guarantee: each destination is at every moment, for every observer, either what it was or the complete new version
    (one renameat2(2) each); after any failure that leaves the process alive all of them are what they were; after the
    death of the process or a power cut, `recover` (which the next transaction there runs by itself) makes them all new
    or all old.  Limit: an observer that does not cooperate can see, for the microseconds between two renames, some new
    and some old; put the outputs into one folder and publish that when this must not be.  All destinations must lie on
    one filesystem and mount.

    Source: renameat2(2) (Linux 3.15), fsync(2), syncfs(2) (errors since Linux 5.8), flock(2).
    """
    kernel.refuse_fake()
    from atomik._commit.machinery import load

    from .transaction import Transaction

    load()
    return Transaction(
        overwrite=overwrite, durable=durable, lock_timeout=lock_timeout, progress=progress, coordinator=coordinator
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
) -> Output[StagedText]: ...


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
) -> Output[StagedBinary]: ...


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


def file(
    path: StrPath | None = None,  # never left out, but by programs of 0.0.3 that say file_name
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
    :param str mode: as for `open`, writing modes only: "w", "wb", "w+", "w+b", "x", "xb"; "a" and "r+" start from a
        copy of the present content.  `atomik.Mode` works too.
    :param bool overwrite: whether an existing destination may be replaced; by default it never is, whoever wins the
        race.
    :param tmp_dir: a str or path object: a folder on the same filesystem to stage in; by default the destination's own.
    :param encoding: a str, as for `open`, but text is UTF-8 unless said otherwise; ``errors``, ``newline`` and
        ``buffering`` are as for `open`.
    :param durable: True by default, as for `transaction`; so are ``lock_timeout`` (60.0 seconds) and ``progress``.
    :param str preserve: what an overwritten destination's successor takes over: "all" (the default: mode, owner, group,
        extended attributes, ACLs), "mode" or "none".  What the kernel does not allow is left out and named in the
        receipt.
    :param int permissions: final mode bits, e.g. ``0o640``, instead of the preserved ones or of 0666 less the umask.
    :param bool follow_symlinks: write to the target of a symlink; by default the link itself is replaced.
        A link of another user is followed only into a folder of that user's (`AccessDeniedError`).
    :param bool parents: make missing folders above the destination; they are removed again if it comes to nothing
        (after SIGKILL or a power cut empty ones may stay).
    :param expect: what `observe` returned, ``"sha256:<hex>"`` of a regular file, or "absent": commit only if that is still
        what exists there.  An observation
        of something allows it to be replaced, without ``overwrite``.  What starts from a copy of the present content (modes
        "a" and "r+", ``copy=True``) expects the original to be unchanged, unless this is "any".
    :param backup: a str, a name in the same folder (or a function from path to name), under which the previous version
        stays; what has that name already is replaced.
    :param bool if_changed: do nothing when the new content equals the old; the receipt says "unchanged".
    :param bool allow_gap: accept, where the filesystem cannot publish in one step (a folder without the flags of
        renameat2, say), a moment in which the destination is empty or missing.
    :returns: an `Output`; ``with`` gives a real, seekable file object.  It has no name on disk while being written
        (O_TMPFILE, where the filesystem has it), so nothing is left even after SIGKILL.  ``f.name`` is the destination,
        absolute; ``f.receipt`` says after the block what was done (None: nothing, all is as it was).

    :raises ValueError: a mode that does not write, or an option that makes no sense; TypeError: an unknown option.
    :raises atomik.errors.FileAlreadyExistsError: something is there and `overwrite` is false.
    :raises atomik.errors.MissingPathError: the folder, or with "r+" the file, does not exist.
    :raises atomik.errors.InvalidDestinationError: empty, ".", "..", a NUL, a trailing slash, longer than NAME_MAX.
    :raises atomik.errors.WrongKindError: a folder stands there.
    :raises atomik.errors.MountPointError: a mount point stands there.
    :raises atomik.errors.AccessDeniedError: no permission on the folder.
    :raises atomik.errors.CrossFilesystemError: `tmp_dir` lies on another filesystem.
    :raises atomik.errors.UnsupportedFilesystemError: the filesystem cannot keep the promise; nothing was touched.
    :raises atomik.errors.ConflictError: `expect` not met, at once or on leaving the block; or, on leaving it, the folder
        was moved or replaced.
    :raises atomik.errors.LockTimeoutError: on leaving the block: an unfinished transaction is at work in the folder.
    :raises atomik.errors.JournalError: on leaving the block: a dead transaction's journal lies there, and may not be
        trusted.
    :raises atomik.errors.CommitError: on leaving the block: a system call failed; everything is as it was.
    :raises atomik.errors.AtomikOSError: writing failed, with errno (a full disk, say); everything is as it was.
    :raises atomik.errors.DurabilityError: the file is in place, but the last sync failed.
    :raises atomik.errors.RollbackError: the commit failed and so did undoing it; the original lies at ``filename2``.

    Guarantee and source: as for `transaction`; a new file appears by one linkat(2), an old one is exchanged by one
    renameat2(2).  Two syncs when durable.
    """
    if path is None:
        path = _former_path(options)
    tx = _begin(overwrite, options)
    if options or str(mode)[:1] in ("a", "r"):  # what starts from a copy may conflict
        _load_machinery()
    text = buffering, encoding, errors, newline
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
    :param bool copy: start from a clone of what exists at `path`, so that a folder can be updated (extents shared where the
        filesystem can; links, modes, times, hard links and attributes kept), and empty where nothing exists there.
    :param base: a str or path object: start from a clone of that folder instead.
    :param bool resume: keep what was staged for the next run if this one fails, is aborted or is killed (by SIGKILL, or by a
        power cut as far as its writer had synced it), and go on with what an earlier run has kept; ``resumed`` of the path
        says whether there was any.  It is locked while this process lives.  It goes when it is published, by
        `Transaction.drop`, and by ``recover(discard=True)``.  Not with ``copy=True``; with `base` only the first run starts
        from the clone.
    :param bool in_place: the folder at `path` itself stays, and its entries change: for a mount point, a container's volume,
        a watched folder, a program's working directory.  It must exist (or pass ``parents=True``), and keeps its owner, mode
        and attributes; without `overwrite` it must be empty.  ``backup`` and ``permissions`` cannot go with it.
    :param bool overwrite: as for `file`, and so are ``tmp_dir`` and all the other options; ``preserve`` is about the
        folder itself, not what is in it.
    :returns: an `Output`; ``with`` gives a `pathlib.Path` to fill.  It lies in a folder that only this user can enter,
        so nobody reads half of it.  Where other users can rename that folder, or one above it, the path is one below
        ``/proc/<pid>/fd``, which they cannot make lead elsewhere; it holds for this process and its user's others, until
        the end of the block.  Pickled, it is the path by name all the same (but not for root), for other machines.

    A program that wants an *existing, empty folder* gets it from `folder`; one that wants a *name at which nothing exists
    yet* (and makes the file or folder itself, or refuses an existing one), from `path`.

    Raises like `file`; `MountPointError` also when something is mounted inside the folder that would be displaced,
    `UnsupportedFilesystemError` where folders cannot be exchanged and ``allow_gap=True`` was not passed; `ConflictError`
    when a folder that started from ``copy=True`` was changed meanwhile, or with ``resume=True`` when another job is
    staging the same destination, or what lies there cannot be trusted.

    Guarantee: the whole folder changes by one renameat2(2), non-empty ones too: no observer sees it missing or mixed.
    Limit: programs that hold the old folder open (as current folder, say) keep the old one.  With ``in_place=True`` such
    programs see the new content, and all of it is new or all is old after any failure and any crash, but not at one instant:
    while `commit` swaps the entries, for microseconds each, a program that does not use `reading` sees some new and some old
    ones.  Entries that are folders are exchanged whole.  What others put into the folder before the commit is replaced like
    everything else in it; what comes during the swaps stays.  Source: as for `transaction`.
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
    :param also: what the program may write beside it, an iterable of str: suffixes, which take the place of the destination's
        own (".shx" beside "data.shp" is "data.shx"), and names of files ("data.shp.xml").  Those that it has written are
        published with the main one, in one transaction; where it has written none, what exists there is removed.
        `overwrite` and the other options hold for each of them, but an observation given as ``expect`` is about the main one
        (the others must not change between now and the commit), and ``backup`` must be a function.
    :param bool overwrite: as for `file`, and so are ``tmp_dir`` and all the other options.
    :param bool resume: as for `folder`: what the program wrote stays for the next run, which finds it at the same path.
        Not with `also`.
    :returns: an `Output`; ``with`` gives a `pathlib.Path`, at which nothing exists yet, with the destination's own base
        name and extension, in a private folder (see `folder`).  What exists there at the end, a file or a folder, is
        published.

    A program that wants an *existing, empty folder* gets it from `folder`; one that wants a *name at which nothing exists
    yet* (and makes the file or folder itself, or refuses an existing one), from `path`.

    Raises like `file`; `MissingPathError` when nothing was written; `ConflictError` when the program left something beside it
    that is not in `also` (such as a database's unfinished ``-wal``: close it first); `InvalidDestinationError` and
    `DuplicateDestinationError` for names in `also` that cannot be companions.  Guarantee and source: as for `file`; but the
    program's files have names, so after SIGKILL they stay in the private folder until `recover`.
    """
    _load_machinery()
    tx = _begin(overwrite, options)
    return Output(tx, tx.path, path, overwrite, tmp_dir, resume=resume, also=also, **cast("Any", options))


@overload
def update(
    path: StrPath,
    mode: Literal["r+", "r+t"] = "r+",
    *,
    encoding: str | None = "utf-8",
    errors: str | None = None,
    newline: str | None = None,
    **options: Unpack[OutputOptions],
) -> Output[StagedText]: ...


@overload
def update(
    path: StrPath,
    mode: Literal["r+b", "rb+"],
    *,
    encoding: str | None = "utf-8",
    errors: str | None = None,
    newline: str | None = None,
    **options: Unpack[OutputOptions],
) -> Output[StagedBinary]: ...


@overload
def update(
    path: StrPath,
    mode: str = "r+",
    *,
    encoding: str | None = "utf-8",
    errors: str | None = None,
    newline: str | None = None,
    **options: Unpack[OutputOptions],
) -> Output[IO[Any]]: ...


def update(
    path: StrPath,
    mode: str = "r+",
    *,
    encoding: str | None = "utf-8",
    errors: str | None = None,
    newline: str | None = None,
    **options: Unpack[OutputOptions],
) -> Output[Any]:
    """Read, modify and write a file; it fails rather than lose somebody else's change made meanwhile.

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
    :raises atomik.errors.ConflictError: on leaving the block: the file is no longer what was read (compared by
        identity, size, times and content, before the exchange and after it); theirs stays.  Repeat the whole update.

    Otherwise raises like `file`, and `MissingPathError` when there is nothing to update.  Limit: what a program writes in
    place after the last comparison is lost.  Guarantee and source: as for `transaction`; it takes the journal and the
    folder's lock, so that a change at the last moment can be put back.
    """
    from atomik._staging.observe import observe

    if options.get("follow_symlinks"):
        from atomik._folder.paths import followed

        path = followed(os.fsdecode(path))
    options["expect"] = observe(path, digest=True)
    text = -1, encoding, errors, newline
    _load_machinery()  # what it starts from may be changed meanwhile
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
    path: StrPath,
    function: Callable[[str], str],
    *,
    binary: Literal[False] = False,
    encoding: str | None = "utf-8",
    errors: str | None = None,
    newline: str | None = "",
    attempts: int = 10,
    **options: Unpack[OutputOptions],
) -> Receipt: ...


@overload
def edit(
    path: StrPath,
    function: Callable[[bytes], bytes],
    *,
    binary: Literal[True],
    attempts: int = 10,
    **options: Unpack[OutputOptions],
) -> Receipt: ...


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
    """Change a file by a function of its content, without losing somebody else's change made meanwhile.

    >>> atomik.edit("config.json", lambda text: text.replace('"workers": 4', '"workers": 8'))

    Reads the file, calls the function, and writes what it returns.  If the file was changed in the meantime, all of that is
    repeated with the new content, so the function should do nothing else.

    :param path: an existing file, a str or path object; ``encoding``, ``errors`` and the options are as for `file`.
    :param function: takes the whole text, or bytes, and returns the new one; what it raises goes on, and nothing is changed.
    :param bool binary: give it bytes, not text.
    :param newline: as for `open`; by default line endings stay as they are.
    :param int attempts: how often at most the function is called.
    :returns: the `Receipt` of the commit; it says "unchanged" when the function returned what it got.

    :raises TypeError: the function returned something else than text (or bytes).
    :raises atomik.errors.ConflictError: the file was changed meanwhile at every attempt; nothing was changed by this call.

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
        except ConflictError:
            if not attempts:
                raise
            continue
        try:
            _apply(function, output.output, bytes if binary else str)
        except BaseException:
            output.abort()
            raise
        try:
            return output.commit()
        except ConflictError:
            if not attempts:
                raise


def _apply(function: Callable[[Any], Any], f: IO[Any], kind: type) -> None:
    """Replace the content of an open file by what the function makes of it."""
    new = function(f.read())
    if not isinstance(new, kind):
        raise TypeError(f"the function must return {kind.__name__}, not {type(new).__name__}")
    f.seek(0)
    f.truncate()
    f.write(new)


def _former_path(options: Any) -> StrPath:
    """``file_name``, as the path was called; `formerly` would cost as much as a system call."""
    if "file_name" not in options:
        raise TypeError("file() missing 1 required positional argument: 'path'")
    return options.pop("file_name")  # type: ignore[no-any-return]


#: Loaded by the first call: `import atomik` costs next to nothing.
_Transaction: type[Transaction] | None = None


def _load() -> type[Transaction]:
    global _Transaction  # noqa: PLW0603  loaded once, when first needed
    kernel.refuse_fake()
    from .transaction import Transaction

    _Transaction = Transaction
    return Transaction


def _load_machinery() -> None:
    """The output may need more than one plain file does."""
    kernel.refuse_fake()
    from atomik._commit.machinery import load

    load()


def _begin(overwrite: bool, options: Any) -> Transaction:
    """The transaction for one item; the options that are the item's own stay in `options`."""
    make = _Transaction or _load()
    if not options:
        return make(overwrite=overwrite)
    pop = options.pop
    return make(
        overwrite=overwrite,
        durable=pop("durable", True),
        lock_timeout=pop("lock_timeout", 60.0),
        progress=pop("progress", None),
    )
