"""What is done about dead transactions in folders: `recover`.

It never stops at the first thing that fails (P4).  In this order:

1. every journal of every folder is settled: the well-known one, then those in private folders;
2. what is left in the folders is removed (`leftovers`); what cannot be is in the report, and ``clean`` is false;
3. the first failure is raised: a folder that cannot be opened, a journal that cannot be settled.

In a folder with a journal that could not be settled nothing is removed: it may be what the journal is about.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

from attrs import define, field

from atomik import _hidden_names, errors
from atomik._folder.directory import Directory, open_as_given
from atomik._folder.paths import is_folder
from atomik._folder.place import Place
from atomik._hidden_names import JOURNAL_NAME, PREFIX, journal_name
from atomik._protocol import journal as _journal
from atomik._protocol import records as _records
from atomik._system import kernel
from atomik._tree.walk import TreeWalk

from . import leftovers
from .takeover import ATTENTION, PINNED, Recovered, log
from .unfinished_journal import Decide, wait_or_recover

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal


@define(frozen=True)
class RecoveryReport:
    """What `recover` found and did: ``items``, a `Recovered` for each name, in the order of the work; ``str()`` gives a line
    for each."""

    __module__ = "atomik"

    items: tuple[Recovered, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing needs your attention: no foreign object, no kept original, no unreachable folder."""
        return not any(item.action in ATTENTION for item in self.items)

    @property
    def kept(self) -> tuple[Recovered, ...]:
        """Displaced originals that could not be put back; `recover` with ``discard=True`` deletes them."""
        return tuple(item for item in self.items if item.action == "kept")

    def __str__(self) -> str:
        if not self.items:
            return "nothing to recover"
        return "\n".join(f"{i.action}: {i.path}" + (f" ({i.detail})" if i.detail else "") for i in self.items)


def recover(
    *folders: str | os.PathLike[str],
    recursive: bool = False,
    discard: bool = False,
    dry_run: bool = False,
    decide: Decide | None = None,
    lock_timeout: float | None = 60.0,
    progress: Callable[[str, int, int], None] | Literal[True] | None = None,
) -> RecoveryReport:
    """Undo or finish what dead transactions left in `folders`, and remove their temporary files.

    Transactions, `reading` and writes of a single output do this by themselves for a journal that they find.  Call it after a
    crash to do it at once, and to remove what was staged by processes that died before their commit.

    :param folders: str or path objects: folders that hold destinations (their parents, not the destinations).  From any
        folder of a transaction the others are found, even if the tree is mounted elsewhere now.
    :param bool recursive: also recover all folders below them, but not below symbolic links and mount points.
    :param bool discard: also delete what was staged with ``resume=True`` and is not in use, and displaced originals that
        cannot be put back because someone else published in their place since; and give up parts of a transaction that
        cannot be undone: their folder cannot be found, or the kernel keeps refusing (an immutable file, an xfs project id).
    :param bool dry_run: change nothing, only report what there is ("live", "hot", "prepared", "abandoned", "kept" …).  It
        writes nothing at all, and so works on a read-only mount.  A journal whose owner or mode is not as atomik makes it is
        "left": whether the filesystem gives that to every file, only a recovery finds out.
    :param decide: a function that decides about prepared transactions of dead processes (``transaction(coordinator=…)``).  It
        gets the transaction's id and its coordinator, and returns True to commit or False to undo.
    :param float lock_timeout: seconds to wait for a transaction that is still running; None waits as long as it takes.
    :param progress: ``True`` for a bar, as for `atomik.transaction`; or a function, called with ("recovering", done, total),
        which are numbers of folders.
    :returns: a `RecoveryReport`; each of its items is also logged as a ``recovery.…`` event, but not in a dry run.

    :raises atomik.errors.MissingPathError, atomik.errors.WrongKindError, atomik.errors.AccessDeniedError: a folder cannot
        be opened.
    :raises atomik.errors.LockTimeoutError: a transaction was still running in the folder after ``lock_timeout``.
    :raises atomik.errors.JournalError: a journal is damaged, newer than this atomik, or belongs neither to this user nor to
        root; nothing was touched.
    :raises atomik.errors.UndecidedError: a coordinator must decide about a prepared transaction, and `decide` was not passed;
        the transaction was not touched.
    :raises atomik.errors.RollbackError: something could not be brought back; the journal stays.  Fix the cause and repeat.
    :raises atomik.errors.AtomikOSError: another system call failed, with errno; fix the cause and repeat.

    Errors are raised at the end, after everything else is done; ``report`` of the error says what was done, and its notes
    list the other failures.  An exception from `decide` or `progress` is raised at once, unchanged.

    Guarantee: afterwards all destinations of a dead transaction are what they were before; or, if its commit mark was
    durable, all are new.  Idempotent; may be killed or interrupted at any moment and run again.  Objects that
    are neither the recorded old nor the recorded new one are never touched.  Only names with atomik's prefix and the
    transaction's id are deleted, and only if their identity is recorded or their private folder's lock is free (flock(2),
    name_to_handle_at(2)).
    """
    if progress is True:
        from atomik._progress import Bar

        with contextlib.closing(Bar()) as bar:
            return recover(
                *folders, recursive=recursive, discard=discard, dry_run=dry_run, decide=decide,
                lock_timeout=lock_timeout, progress=bar,
            )  # fmt: skip
    report, failures = recover_all(
        folders,
        recursive=recursive,
        discard=discard,
        dry_run=dry_run,
        decide=decide,
        lock_timeout=lock_timeout,
        progress=progress,
    )
    if failures:
        failure = failures[0]
        failure.report = report
        for other in failures[1:]:
            failure.add_note(f"also: {other}")
        raise failure
    return report


def recover_all(
    folders: Iterable[str | os.PathLike[str]],
    *,
    recursive: bool = False,
    discard: bool = False,
    dry_run: bool = False,
    decide: Decide | None = None,
    lock_timeout: float | None = 60.0,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[RecoveryReport, list[errors.AtomikOSError]]:
    """The same, with the failures returned rather than raised."""
    work = _Recovery(lock_timeout, discard, decide, dry_run)
    paths = [_plain(os.fsdecode(folder)) for folder in folders]
    if recursive:
        paths = [found for path in paths for found in work.below(path)]
    work.there = {path for path in paths if is_folder(path)}
    settled = {path for path in paths if dry_run or work.attempt(path, work.settle)}
    for done, path in enumerate(paths, 1):
        if path in settled:
            work.attempt(path, work.survey if dry_run else work.clean)
        if progress is not None:
            progress("recovering", done, len(paths))
    return RecoveryReport(tuple(dict.fromkeys(work.found))), work.failures


@define(eq=False)
class _Recovery:
    """The work of one call: what was done, and what failed."""

    timeout: float | None
    discard: bool
    decide: Decide | None
    dry_run: bool
    found: list[Recovered] = field(factory=list)
    failures: list[errors.AtomikOSError] = field(factory=list)
    #: the folders that existed at the beginning: one that is gone was made by what was undone here
    there: set[str] = field(factory=set)
    #: identities of journals that could not be settled: their other names are not tried again
    _unsettled: set[bytes] = field(factory=set)

    def attempt(self, path: str, action: Callable[[Directory], bool]) -> bool:
        """Open the folder at `path` for `action`, and keep a failure for the end."""
        try:
            with open_as_given(path, "cannot recover") as directory:
                return action(directory)
        except OSError as exc:
            if not kernel.is_failure(exc):
                raise
            if not (isinstance(exc, errors.MissingPathError | errors.WrongKindError) and path in self.there):
                self._failed(exc, "recovery failed; fix the cause and recover again", path)
            return False

    def _tell(self, item: Recovered) -> None:
        """Report, and log; but a dry run is no event."""
        self.found.append(item)
        if not self.dry_run:
            log(item)

    def _failed(self, exc: OSError, action: str, path: str) -> None:
        if not isinstance(exc, errors.AtomikOSError):
            failure = errors.system_error(exc, action, path)
            failure.__cause__ = exc
            exc = failure
        self.failures.append(exc)

    # --- settle ----------------------------------------------------------------------------------------------------
    def settle(self, directory: Directory) -> bool:
        """Settle every journal in the folder; False when there is one that could not be, so that nothing may be removed."""
        if not self._settle(directory, JOURNAL_NAME):
            return False
        for name, txid in leftovers.names(directory, *leftovers.PRIVATE):
            private_folder = leftovers.open_private_folder(directory, name, txid)
            if isinstance(private_folder, Directory):
                with private_folder:
                    self._settle(private_folder, journal_name(txid))
        return True

    def _settle(self, directory: Directory, name: str) -> bool:
        identity = Place(directory, name).identity()
        if identity is None or identity in self._unsettled:
            return identity is None
        try:
            self.found += wait_or_recover(directory, self.timeout, discard=self.discard, decide=self.decide, name=name)
        except OSError as exc:
            if not kernel.is_failure(exc):
                raise
            self._unsettled.add(identity)
            self._failed(exc, "recovery failed; fix the cause and recover again", directory.child(name))
            return False
        return True

    # --- clean and survey --------------------------------------------------------------------------------------------
    def clean(self, directory: Directory) -> bool:
        """Remove what dead processes left in the folder."""
        for item in leftovers.clean(directory, self.timeout, discard=self.discard):
            self._tell(item)
        return True

    def survey(self, directory: Directory) -> bool:
        """Say what there is, with nothing changed."""
        for item in _survey(directory):
            self._tell(item)
        return True

    # --- search ------------------------------------------------------------------------------------------------------
    def below(self, path: str) -> list[str]:
        """The folders at and below `path` in which there is one of our names."""
        found: list[str] = []

        def search(directory: Directory) -> bool:
            for folder, failure in _search(directory):
                if failure is None:
                    found.append((path + folder[len(directory.path) :]).removeprefix("./"))  # as it was given
                else:
                    self._tell(leftovers.left(folder, "", failure))
            return True

        self.attempt(path, search)
        return found


def _plain(path: str) -> str:
    """Avoids "/data/./.atomik-journal" in reports."""
    return path[:-1] if path.endswith("/.") else path


def _search(top: Directory) -> Iterator[tuple[str, OSError | None]]:
    """Folders with our names, and those that cannot be searched with the reason."""
    with TreeWalk(top, "search") as down:
        while True:
            level = down.level
            if level.folders is None:
                level.folders, ours = _list(down)
                if ours:
                    yield down.path(), None
            if level.folders:
                name = level.folders.pop()
                failure = _enter(down, name)
                if failure is not None:
                    yield down.path(name), failure
            elif down.depth:
                down.leave()
            else:
                return


def _list(down: TreeWalk) -> tuple[list[str], bool]:
    """The folders in the present one, and whether one of our names is among its entries."""
    folders, ours = [], False
    for entry in down.entries():
        if entry.name.startswith(PREFIX):
            ours = True
        elif entry.is_dir(follow_symlinks=False):
            folders.append(entry.name)
    return folders, ours


def _enter(down: TreeWalk, name: str) -> OSError | None:
    """Go down, unless that is a mount point or gone by now; the reason if it cannot be searched."""
    try:
        down.enter(name)
    except (errors.MountPointError, NotADirectoryError, FileNotFoundError) as exc:
        if not kernel.is_failure(exc):
            raise
    except errors.AtomikOSError as exc:
        if not kernel.is_failure(exc):
            raise
        return exc
    return None


# --- dry run -----------------------------------------------------------------------------------------------------------
def _survey(directory: Directory) -> Iterator[Recovered]:
    told = set()
    for item in _survey_journal(directory, JOURNAL_NAME):
        told.add(item.txid)
        yield item
    for name, txid in leftovers.names(directory, *leftovers.PRIVATE):
        private_folder = leftovers.open_private_folder(directory, name, txid, dry=True)
        if not isinstance(private_folder, Directory):
            if private_folder is not None:
                yield private_folder
            continue
        with private_folder:
            if txid not in told:  # else its journal is the same file
                items = _survey_journal(private_folder, journal_name(txid))
                items += leftovers.kept(private_folder, private=True, dry=True)
                waits = leftovers.resumable(private_folder, name, txid)
                if _hidden_names.kind_of(name) == _hidden_names.PINNED:
                    waits = Recovered(directory.child(name), "pinned", txid, PINNED)
                yield from items or [waits or Recovered(directory.child(name), "abandoned", txid)]
    yield from leftovers.kept(directory, private=False, dry=True)
    for name, txid in leftovers.names(directory, _hidden_names.SLOT, _hidden_names.TWIN):
        yield Recovered(directory.child(name), "slot", txid)


def _survey_journal(directory: Directory, name: str) -> list[Recovered]:
    path, place = directory.child(name), Place(directory, name)
    found = place.stat()
    if found is not None and kernel.is_file(found.st_mode) and (why := _journal.suspicion(found)):
        return [Recovered(path, "left", "", f"{why}; only a recovery finds out whether that means anything here")]
    loaded = _journal.load(place, dry=True)
    if loaded is None:
        return []
    fd, content = loaded
    try:
        alive = not _journal.lock(fd, shared=True)
    finally:
        _journal.close(fd)
    if content is None:
        return [Recovered(path, "live" if alive else "hot", "", "never complete")]
    intent = content.intent
    detail = "; ".join(f"{step.op} {step.dest_name}" for step in intent.steps)
    action = "hot"
    if alive:
        action = "live"
    elif name != JOURNAL_NAME and content.outcome == _records.UNDONE:
        action = "kept"  # that is what such a journal stays for, in its private folder
    elif content.outcome is None and intent.coordinator:
        action, detail = "prepared", f"{intent.coordinator!r} decides; {detail}"
    return [Recovered(path, action, intent.txid, detail)]
