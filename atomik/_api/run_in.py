"""`run_in`: a program works on a private copy of a folder, in the folder's own place; all of it is published, or nothing.

The copy is what ``tx.folder(copy=True)`` stages, and it is published like any other folder: by one exchange, under the lock
of the parent, and only if the original is still what was copied.  The program does not
notice: a mount namespace of its own shows it the copy at the folder's path (`_system.namespace`).
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.paths import absolute, followed, split
from atomik._folder.place import Place
from atomik._folder.resolve import real
from atomik._hidden_names import JOURNAL_NAME
from atomik._receipt import Values
from atomik._recovery.unfinished_journal import wait_or_recover
from atomik._staging import checks
from atomik._staging.folder import StagedFolder
from atomik._system import kernel
from atomik._system.namespace import Entrance, Process, View
from atomik._tree.changes import Change, changes, manifest
from atomik._tree.metadata import Metadata, apply

from .transaction import Transaction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any, Literal, NoReturn, Self

    from atomik._receipt import Receipt
    from atomik._staging.options import Progress, StrPath
    from atomik._system.namespace import Answer

    Background = Literal["refuse", "wait", "kill"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
#: Options of subprocess that would change the child's user before it enters the namespace.
_REFUSED = ("preexec_fn", "user", "group", "extra_groups")
#: How long processes have to end after SIGTERM, in seconds; after SIGKILL they get as long again.
_GRACE = 5.0


class RunResult(Values):
    """What `run_in` returns.

    ``process``: a `subprocess.CompletedProcess`.  ``receipt``: what was published, an `atomik.Receipt`; None when the program
    failed, so that nothing was.
    """

    __slots__ = __match_args__ = ("process", "receipt")

    process: subprocess.CompletedProcess[Any]
    receipt: Receipt | None

    def __init__(self, process: subprocess.CompletedProcess[Any], receipt: Receipt | None) -> None:
        self._set(process, receipt)


def run_in(
    folder: StrPath,
    args: Sequence[StrPath] | str,
    *,
    changes_only: bool = False,
    overwrite_changes: bool = False,
    background: Background = "refuse",
    keep_on_failure: StrPath | None = None,
    durable: bool | Literal["fsync", "syncfs"] = True,
    lock_timeout: float | None = 60.0,
    progress: Progress | Literal[True] | None = None,
    **subprocess_options: Any,
) -> RunResult:
    """Run a program that changes a folder: all of its changes are published at once, or none.

    >>> atomik.run_in("out", ["touch", "out/done"], check=True)

    The program sees a clone of the folder at the folder's own path; nobody else sees the clone.  When the program has exited
    with 0 and the clone is durable, it takes the folder's place in one step.

    :param folder: a str or path object: an existing folder.  If it is a symbolic link, its target is used.
    :param args: the program and its arguments, as for `subprocess.run`.
    :param bool changes_only: do not clone the folder: the program sees it through a layer (overlayfs), and what it wrote
        there is published as one transaction.  The cost grows with the changes, not with the folder.  But each name is a step
        of its own, so a reader that does not use `reading` may see some names new and some old.
    :param bool overwrite_changes: publish even if someone else changed the folder in the meantime; their changes are lost.
    :param str background: what to do about processes that the program left running when it ended: "refuse" to publish,
        "wait" until they end, or "kill" them (SIGTERM, after 5 seconds SIGKILL).
    :param keep_on_failure: a str or path object, a new folder on the same filesystem: where the copy goes if the program
        fails.
    :param durable: as for `transaction`; so are ``lock_timeout`` and ``progress``.
    :param subprocess_options: options of `subprocess.run`, such as ``cwd``, ``env``, ``input``, ``capture_output``, ``check``
        and ``timeout``; but not ``preexec_fn``, ``user``, ``group`` and ``extra_groups``.
    :returns: a `RunResult`: the completed process and the receipt.

    :raises atomik.errors.NamespaceError: it does not work on this system; the program did not run.
    :raises atomik.errors.ConflictError: someone else changed the folder in the meantime; their version is kept.
    :raises atomik.errors.StillRunningError: processes that the program started are still running.
    :raises atomik.errors.MountPointError: the folder is a mount point, or something is mounted inside it.
    :raises atomik.errors.UnsupportedFilesystemError: the folder belongs to a lower layer of an overlay that cannot rename it;
        or, with ``changes_only`` and after the program ran, a change cannot be published name by name.  Nothing was changed.
    :raises FileNotFoundError, PermissionError, subprocess.SubprocessError: from `subprocess.run`; nothing was changed.

    Otherwise raises like `folder`.  Limits: only the folder is captured, not what the program writes elsewhere; programs that
    have the old folder as their working directory stay in it; the program must not need the ids of other users unless this
    process is root.  It is not a sandbox: a program that wants to can leave it.

    Source: unshare(2), open_tree(2) and move_mount(2) (Linux 5.2), mount_namespaces(7), user_namespaces(7), renameat2(2).
    """
    for name in _REFUSED:
        if name in subprocess_options:
            raise TypeError(f"run_in() takes no {name}: the program runs as this user, in a namespace of its own")
    if background not in ("refuse", "wait", "kill"):
        raise ValueError(f"background must be 'refuse', 'wait' or 'kill', not {background!r}")
    cwd = subprocess_options.pop("cwd", None)
    tx = Transaction(overwrite=True, durable=durable, lock_timeout=lock_timeout, progress=progress)
    private = private_layer() if changes_only else PrivateCopy
    with tx, private(tx, folder, cwd, overwrite_changes=overwrite_changes, keep=keep_on_failure) as copy:
        try:
            process = copy.run(args, subprocess_options)
            if process.returncode == 0:
                copy.settle(background)
        except BaseException as exc:
            copy.keep_after(exc)
            raise
        if process.returncode:
            copy.keep()
            tx.abort()
            return RunResult(process, None)
        copy.stage()
        receipt = tx.commit()
        copy.published()
        return RunResult(process, receipt)


class Private:
    """A folder as one program will see it, while everybody else sees the original; and the program's processes.

    Made before the program runs, and everything that can be refused is refused then.
    """

    path: str
    _entrance: Entrance
    #: where the result is; what is kept of a failed run
    slot: Place

    def __init__(
        self, tx: Transaction, folder: StrPath, cwd: StrPath | None = None, *, overwrite_changes: bool = False,
        keep: StrPath | None = None, allow_gap: bool = False,
    ) -> None:  # fmt: skip
        self.path = real_folder(folder)
        cwd = absolute(os.curdir if cwd is None else cwd, "cwd")
        if not os.path.isabs(cwd):
            errors.fail(
                errors.MissingPathError, errno.ENOENT, "the working folder has no path; change to one that has", cwd
            )
        self._overwrite_changes = overwrite_changes
        refuse_where_impossible(self.path)
        _recover(self.path, tx._lock_timeout)
        self._kept = None if keep is None else _Kept(keep)
        try:
            with kernel.typed("cannot run a program in the folder", self.path):
                self._entrance = Entrance(self._prepare(tx, cwd, allow_gap=allow_gap))
        except BaseException:
            self._close_kept()
            raise

    def _prepare(self, tx: Transaction, cwd: str, *, allow_gap: bool) -> View:
        raise NotImplementedError

    @classmethod
    def why_not(cls, folder: StrPath) -> str:
        """Why no program can run in the folder like this; "" if one can.  All is tried that can fail before the program
        starts, except for the copying, and nothing stays."""
        path = real_folder(folder)
        try:
            refuse_where_impossible(path)
            with (
                kernel.typed("cannot run a program in the folder", path),
                Transaction(overwrite=True, durable=False) as tx,
            ):
                cls._try(tx, path)
                tx.abort()
        except errors.AtomikOSError as exc:
            elsewhere = "" if exc.filename in (None, path) else f": {exc.filename!r}"
            return f"{exc.strerror}{elsewhere}".removeprefix(_NOT_SHOWN)
        return ""

    @classmethod
    def _try(cls, tx: Transaction, path: str) -> None:
        """Raise what would keep `_prepare` from working."""
        raise NotImplementedError

    def remember(self) -> None:
        """Record its state before the program runs, for `changes`."""

    def changes(self) -> list[Change]:
        """What the program changed since `remember`."""
        raise NotImplementedError

    def stage(self) -> None:
        """The program and its processes have ended: stage what will be published."""

    def published(self) -> None:
        """The commit is over."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._entrance.close()
        finally:
            self._close_kept()

    def _close_kept(self) -> None:
        if self._kept is not None:
            self._kept.close()

    # --- the program -------------------------------------------------------------------------------------------------
    def run(self, args: Any, options: dict[str, Any]) -> subprocess.CompletedProcess[Any]:
        """`subprocess.run` in the namespace."""
        parent = os.getpid()

        def prepare() -> None:
            self.enter()
            # A program that outlived us would work on a copy that is never published.
            kernel.end_with(parent, signal.SIGTERM)

        try:
            return subprocess.run(args, preexec_fn=prepare, **options)  # noqa: PLW1509, PLW1510  takes no lock; check is an option
        except subprocess.SubprocessError as exc:
            self.raise_if_not_entered(exc)
            raise

    def enter(self) -> None:
        """In the child: see the clone in the folder's place."""
        self._entrance.enter()

    def raise_if_not_entered(self, cause: BaseException) -> None:
        """If the child could not enter, raise the error that says why."""
        answer = self._entrance.answer()
        if answer is not None and answer.failed:
            raise not_entered(answer, self.path, self._entrance.view.cwd) from cause

    # --- processes that it left ----------------------------------------------------------------------------------------
    def settle(
        self, background: Background, parent: int | None = None, check: Callable[[], None] = lambda: None
    ) -> None:
        """The program has ended: nothing may change the clone any more.

        :param parent: a process that adopts orphans, all of whose children belong to the program.
        :param check: called while waiting.
        """
        if background == "kill":
            for number in (signal.SIGTERM, signal.SIGKILL):
                self._wait(parent, check, number)
        elif background == "wait":
            self._wait(parent, check)
        if alive := self.alive(parent):
            _still_running(alive, self.path)
        self._entrance.close()

    def alive(self, parent: int | None) -> list[Process]:
        """The processes that still see the clone."""
        return self._entrance.members(parent)

    def _wait(self, parent: int | None, check: Callable[[], None], send: int | None = None) -> list[Process]:
        """Wait until there are none; with a signal to `send`, for as long as `_GRACE`.  Those that are left."""
        pause, until = 0.005, time.monotonic() + _GRACE
        while alive := self.alive(parent):
            if send is not None:
                if time.monotonic() > until:
                    break
                for process in alive:
                    self._entrance.send(process, send, parent)
            time.sleep(pause)
            check()
            pause = min(2 * pause, 0.2)
        return alive

    def keep(self) -> None:
        """The run failed: move the result to where the user wants to inspect it, if anywhere."""
        if self._kept is not None:
            self._kept.take(self.slot)

    def keep_after(self, cause: BaseException) -> None:
        """The same while `cause` is on its way to the caller: why that failed is only a note to it."""
        try:
            self.keep()
        except OSError as exc:
            if not kernel.is_failure(exc):
                raise
            cause.add_note(str(exc))


class PrivateCopy(Private):
    """A clone of a folder, staged in a transaction."""

    def _prepare(self, tx: Transaction, cwd: str, *, allow_gap: bool) -> View:
        options: Any = {"allow_gap": True} if allow_gap else {}
        _refuse_fixed(tx, self.path)
        options |= {"preserve": "none", "expect": "any" if self._overwrite_changes else None}
        intake = tx._intake  # not `tx.folder`, which loads pathlib for what it returns
        self._item = intake.add(StagedFolder, self.path, None, None, options)
        intake.open(self._item, self._item.open, None, True, intake.counting("cloning"))  # noqa: FBT003
        assert self._item.slot is not None
        self.slot = self._item.slot
        self._dress()
        return self._view(cwd)

    @classmethod
    def _try(cls, tx: Transaction, path: str) -> None:
        _refuse_fixed(tx, path)
        workspace = tx._intake.workspace
        place = workspace.locate(path, folder=True, parents=False)
        found = place.status()
        if found is not None:
            checks.refuse_mounts(place, found, path)
        slot = workspace.slot(place.directory)
        kernel.port.mkdir(slot.name, 0o700, slot.fd)

    def _dress(self) -> None:
        """Give the clone itself the metadata of the original now: what the program changes of it is kept (`preserve`)."""
        source = Metadata.of(self._item.place)
        fd = kernel.port.open(self.slot.name, _FOLDER, self.slot.fd)
        try:
            self._item.not_preserved += apply(fd, source, "all", same_content=True, path=self.path)
        finally:
            kernel.port.close(fd)

    def _view(self, cwd: str) -> View:
        place, slot = self._item.place, self.slot
        shown, hidden = slot.stat(), place.stat()
        if shown is None or hidden is None:
            errors.fail(errors.ConflictError, errno.ENOENT, "the folder was removed while it was copied", self.path)
        private = os.path.basename(slot.directory.path)
        return View(
            place.fd,
            f"{private}/{slot.name}",
            place.name,
            (shown.st_dev, shown.st_ino),
            (hidden.st_dev, hidden.st_ino),
            cwd,
        )

    def remember(self) -> None:
        """Record the state of the clone before the program runs, for `changes`."""
        with self._opened(self.slot) as folder:
            self._before = manifest(folder)

    def changes(self) -> list[Change]:
        """What the program changed since `remember`."""
        with self._opened(self.slot) as clone, self._opened(self._item.place) as original:
            return changes(self._before, clone, original)

    def _opened(self, place: Place) -> Directory:
        with kernel.typed("cannot compare the folders", self.path):
            folder = place.open()
        folder.path = self.path
        return folder


def private_layer() -> type[Private]:
    """`PrivateLayer`, loaded when it is wanted."""
    from .private_layer import PrivateLayer

    return PrivateLayer


class _Kept:
    """Where the clone of a failed run goes."""

    def __init__(self, path: StrPath) -> None:
        self._path = absolute(path, "keep_on_failure")
        head, name = split(os.fsdecode(path), folder=True)
        with kernel.typed("cannot keep the result there", self._path):
            self._parent = Directory.open(head)
        self._place = Place(self._parent, name)
        if self._place.status() is not None:
            self.close()
            text = "something exists there already; name a new folder to keep the result of a failed run in"
            errors.fail(errors.FileAlreadyExistsError, errno.EEXIST, text, self._path)

    def take(self, slot: Place) -> None:
        """Rename the clone there."""
        with kernel.typed("cannot keep the result of the failed run there", self._path):
            kernel.port.rename(slot.name, slot.fd, self._place.name, self._place.fd, kernel.NOREPLACE)

    def close(self) -> None:
        """Let go of the folder above it."""
        self._parent.close()


def _still_running(alive: list[Process], path: str) -> NoReturn:
    names = ", ".join(str(process) for process in alive[:5]) + (", …" if len(alive) > 5 else "")
    error = errors.StillRunningError(
        *errors.os_args(
            errno.EBUSY, f"the program left processes running that can still change the copy: {names}; nothing was "
            "published; end them in the program, or pass background='wait' or 'kill'", path,
        )
    )  # fmt: skip
    error.pids = tuple(process.pid for process in alive)
    raise error


# --- where it works --------------------------------------------------------------------------------------------------
def real_folder(folder: StrPath) -> str:
    """The path of a folder whose name can be exchanged: links at its end followed, ``.`` and ``..`` replaced by a name."""
    path = followed(os.fsdecode(folder))
    if path and os.path.basename(path.rstrip("/")) in ("", ".", ".."):
        path = real(path)
    return path


def _recover(path: str, lock_timeout: float | None) -> None:
    """What a transaction has half done in the folder, dead or alive, must not be what the program sees."""
    with kernel.typed("cannot run a program in the folder", absolute(path)), Directory.open(path) as folder:
        while folder.exists(JOURNAL_NAME):
            wait_or_recover(folder, lock_timeout)


def _refuse_fixed(tx: Transaction, path: str) -> None:
    """A folder of an overlay's lower layer cannot be renamed unless the overlay notes that down (redirect_dir).  The kernel
    says so first when asked to rename it over a folder that is not empty, which nothing can be renamed over."""
    workspace = tx._intake.workspace
    place = workspace.locate(path, folder=True, parents=False)
    if place.directory.fs.name != "overlay":
        return
    taken = workspace.slot(place.directory)
    kernel.port.mkdir(taken.name, 0o700, taken.fd)
    with taken.open() as inside:
        kernel.port.mkdir("taken", 0o700, inside.fd)
    try:
        kernel.port.rename(place.name, place.fd, taken.name, taken.fd, 0)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        if exc.errno == errno.EXDEV:
            text = (
                "it belongs to the lower layer of an overlay, such as the image of a container, so it cannot be exchanged; "
                "mount the overlay with redirect_dir=on, or replace the folder by a copy of itself (cp -a)"
            )
            raise errors.UnsupportedFilesystemError(*errors.os_args(errno.EXDEV, text, absolute(path))) from exc


def refuse_where_impossible(path: str) -> None:
    """Try in a child of our own: see the folder in its own place.  Raises `NamespaceError` where that fails."""
    split(path, folder=True)  # "/" can be neither exchanged nor, in a user namespace, mounted: the first says why
    with kernel.typed("cannot run a program in the folder", absolute(path)):
        folder = Directory.open(path)
    with folder, Entrance(View(folder.fd, ".", ".", folder.key, folder.key, "/")) as entrance:
        answer = entrance.try_it()
    if answer is None or answer.failed:
        raise not_entered(answer, absolute(path), "/")


def not_entered(answer: Answer | None, path: str, cwd: str) -> errors.AtomikOSError:
    """The error for a child that could not see what it was to see."""
    if answer is None:
        return errors.NamespaceError(*errors.os_args(errno.EIO, "the child that tried it was killed", path))
    step, number = answer.failed, answer.errno
    if step == "cwd":
        return errors.system_error(OSError(number, ""), "cannot enter the working folder of the program", cwd)
    if step == "folder":
        text = "the folder, or atomik's private folder next to it, was replaced; try again"
        return errors.ConflictError(*errors.os_args(number, text, path))
    text = f"{_NOT_SHOWN}{_reason(step, number)}"
    return errors.NamespaceError(*errors.os_args(number, text, path))


_NOT_SHOWN = "cannot show a program a private copy of the folder: "
_DENIED = (errno.EPERM, errno.EACCES)


def _reason(step: str, number: int) -> str:
    """Why, and what helps."""
    said = f"{_CALLS[step]}: {os.strerror(number)}"
    if number == errno.ENOSYS:
        return f"{said}; the kernel is older than Linux 5.2, or a sandbox hides the call"
    if step == "userns" and number in (errno.ENOSPC, errno.EUSERS):
        return f"{said}; the limit of user namespaces is reached: raise the sysctl user.max_user_namespaces, or run as root"
    if step == "map" and kernel.port.stat("/proc/self/uid_map").st_uid != os.geteuid():
        return (
            f"{said}; this process changed its user and may not be inspected since: execute a program as the new user"
        )
    if step in ("userns", "map", "private", "open_tree", "move_mount") and number in _DENIED:
        if _sysctl("kernel/unprivileged_userns_clone") == b"0":
            return f"{said}; set the sysctl kernel.unprivileged_userns_clone=1, or run as root"
        if _sysctl("kernel/apparmor_restrict_unprivileged_userns") == b"1":
            return (
                f"{said}; AppArmor restricts user namespaces: load a profile for this program that allows them (userns,), "
                "set the sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root"
            )
        return (
            f"{said}; a container's seccomp filter or security module forbids it, or the process is in a chroot: run it with "
            "CAP_SYS_ADMIN and a filter that allows unshare and mount, or outside of the container"
        )
    if step in ("overlay", "marks"):
        return f"{said}; {_overlay_reason(number)}; or run it without changes_only: on a clone of the folder"
    if step == "private" and number == errno.EINVAL:
        return f"{said}; '/' is no mount point, as in a chroot: run it outside of the chroot"
    if step == "proc":
        return f"{said}; mount /proc"
    return said


def _overlay_reason(number: int) -> str:
    if number == errno.ENODEV:
        return "the kernel has no overlayfs: load the module overlay"
    if number in _DENIED:
        return "the kernel lets only root mount an overlay (before Linux 5.11), or a sandbox forbids it: run it as root"
    return (
        "overlayfs cannot write to this filesystem: it is an overlay itself, a network filesystem, or one without extended "
        "attributes"
    )


_CALLS = {
    "unshare": "no mount namespace (unshare)",
    "userns": "no user namespace (unshare)",
    "map": "the user cannot be mapped (/proc/self/uid_map)",
    "private": "mounts cannot be made private (mount)",
    "open_tree": "the copy cannot be mounted (open_tree)",
    "move_mount": "the copy cannot be mounted (move_mount)",
    "proc": "/proc is not there",
    "overlay": "the changes cannot be collected in an overlay (mount)",
    "marks": "an overlay there does not record all changes",
}


def _sysctl(name: str) -> bytes:
    return kernel.told(f"/proc/sys/{name}").strip()
