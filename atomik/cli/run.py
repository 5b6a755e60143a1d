"""``atomik write`` and ``atomik run``: outputs of other programs, all or nothing, whatever signal comes when.

Signals that end a program (`ENDING`) must leave nothing half done, in any phase::

    staging        the handler raises `Stopped`; the transaction is aborted
    the child      the signal goes on to the child; when that is dead the transaction is aborted, whatever its exit code
    the commit     the handler raises `Stopped`; the core rolls back, or finishes when the commit mark is written

`Stopped` is raised at most once, so that the way back is not interrupted again.  A signal that was ignored when we were
started (nohup, a shell's background job) stays ignored, by us and by the child.  When we are killed with SIGKILL, the
kernel ends the child, and `atomik recover` removes what was staged.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import stat
import subprocess
from typing import TYPE_CHECKING

from atomik import errors
from atomik._api.shortcuts import file, transaction
from atomik._receipt import State

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator
    from types import FrameType, TracebackType
    from typing import Any, Self

    from atomik._api.transaction import Transaction
    from atomik._receipt import Receipt

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

#: Exit codes of ``run`` that are not the child's own, as env(1), timeout(1) and nohup(1) have them.
FAILED, CANNOT_RUN, NOT_FOUND = 125, 126, 127

_CHUNK = 1 << 20
_SI_KERNEL = 0x80  # sigaction(2): the kernel sent it, not a process
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Stopped(SystemExit):
    """A signal ended us; the exit code is 128 + its number, as a shell gives it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
        self.outcome = "nothing was changed"

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}; {self.outcome}"


class NotStartedError(Exception):
    """The program could not be run; ``code`` is our exit code."""

    def __init__(self, program: str, exc: OSError) -> None:
        super().__init__(f"cannot run {program!r}: {exc.strerror}")
        self.code = NOT_FOUND if isinstance(exc, FileNotFoundError) else CANNOT_RUN


class Signals:
    """The signals that end us, caught from entry to exit; while ``armed``, the first one raises `Stopped`."""

    def __init__(self) -> None:
        self.armed = False
        self.number: int | None = None
        self.caught = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        self._before: list[tuple[int, Any]] = []

    def __enter__(self) -> Self:
        for number in self.caught:
            self._before.append((number, signal.signal(number, self._arrived)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  a handler gets the frame
        first, self.number = self.number is None, self.number or number
        if self.armed and first:
            raise Stopped(number)

    def arm(self) -> None:
        """From now on a signal raises; one that came before does it now."""
        self.armed = True
        self.check()

    def check(self) -> None:
        """Raise for a signal that was only noted."""
        if self.number is not None:
            raise Stopped(self.number)


@contextlib.contextmanager
def stoppable(outcome: str) -> Iterator[None]:
    """A signal that ends us raises `Stopped` in the block, once; `outcome` is what it says then."""
    with Signals() as signals:
        try:
            signals.arm()
            yield
        except Stopped as exc:
            exc.outcome = outcome
            raise
        finally:
            signals.armed = False


def guarded(signals: Signals, tx: Transaction, work: Any) -> Any:
    """Call ``work()``, which ends with the commit; whatever happens in it, the transaction is over afterwards.

    Two levels, for a signal may come anywhere: when the outer one is reached, no handler raises any more.
    """
    try:
        try:
            signals.arm()
            return work()
        except Stopped as exc:
            if tx.state is State.COMMITTED:
                exc.outcome = "everything was published before it came"
            raise
        finally:
            signals.armed = False
    finally:
        if tx.state is State.OPEN:
            tx.abort()


# --- write -----------------------------------------------------------------------------------------------------------
def write(arguments: argparse.Namespace) -> Receipt:
    """Standard input to a file."""
    _check_input()
    _refuse_special(arguments.destination)
    with Signals() as signals:
        output = file(
            arguments.destination, "wb", arguments.overwrite, durable=arguments.durable, parents=arguments.parents,
            permissions=arguments.mode, follow_symlinks=arguments.follow_symlinks, if_changed=arguments.if_changed,
            keep=arguments.keep, lock_timeout=arguments.lock_timeout,
        )  # fmt: skip

        def work() -> Receipt:
            while chunk := _read_input():
                output.output.write(chunk)
            return output.commit()

        receipt: Receipt = guarded(signals, output.transaction, work)
        return receipt


def _refuse_special(path: str) -> None:
    """Who says /dev/null or /dev/stdout wants to write to it; the library would replace the name, as rename(2) does."""
    try:
        mode = os.stat(path).st_mode
        into_proc = os.path.islink(path) and os.readlink(path).startswith("/proc/")
    except (OSError, ValueError):
        return  # nothing there, or no path: the library says so
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or into_proc:
        text = "a device, FIFO or socket would be replaced by a file; redirect to it with the shell, or remove it first"
        errors.fail(errors.WrongKindError, errno.EINVAL, text, path)


def _check_input() -> None:
    """Where it is closed, the next file that is opened would get its number, and be read as the input."""
    try:
        os.fstat(0)
    except OSError as exc:
        raise errors.system_error(exc, "cannot read standard input", "-") from exc


def _read_input() -> bytes:
    try:
        return os.read(0, _CHUNK)
    except OSError as exc:
        raise errors.system_error(exc, "cannot read standard input", "-") from exc


# --- run -------------------------------------------------------------------------------------------------------------
def run(arguments: argparse.Namespace) -> tuple[int, Receipt | None]:
    """A program on staged paths; (the exit code, what was published)."""
    with Signals() as signals:
        tx = transaction(overwrite=arguments.overwrite, durable=arguments.durable, lock_timeout=arguments.lock_timeout)

        def work() -> tuple[int, Receipt | None]:
            staged = [_stage(tx, kind, path, parents=arguments.parents) for kind, path in arguments.outputs]
            names = [path for _, path in arguments.outputs]
            code = _spawn(signals, fill_in(arguments.program, names, staged), environment(names, staged))
            if code:
                return code, None
            signals.check()  # the child was told to stop, and said that all is well; its output is not to be trusted
            for (kind, path), place in zip(arguments.outputs, staged, strict=True):
                _check_output(kind, path, place)
            return 0, tx.commit()

        result: tuple[int, Receipt | None] = guarded(signals, tx, work)
        return result


def _stage(tx: Transaction, kind: str, path: str, *, parents: bool) -> str:
    _refuse_special(path)
    return str(tx.path(path, parents=parents) if kind == "file" else tx.folder(path, parents=parents))


def _check_output(kind: str, path: str, place: str) -> None:
    if not os.path.lexists(place):
        text = f"the program exited with 0, but did not make this {kind}"
        errors.fail(errors.MissingPathError, errno.ENOENT, text, path)
    if kind == "file" and os.path.isdir(place):
        text = "the program made a folder where --file was given; use --folder for it"
        errors.fail(errors.WrongKindError, errno.EISDIR, text, path)


def fill_in(command: list[str], names: list[str], staged: list[str]) -> list[str]:
    """The command with ``{destination}`` replaced; the base name will do where it is no other's.

    Braces around anything else stay as they are.
    """
    places: dict[str, str] = {}
    for of in (_base, lambda name: name.rstrip("/"), lambda name: name):  # what was given in full wins
        for name, place in zip(names, staged, strict=True):
            if of is not _base or [_base(other) for other in names].count(_base(name)) == 1:
                places[f"{{{of(name)}}}"] = place
    ours = re.compile("|".join(map(re.escape, places)))  # a name may have braces of its own
    return [ours.sub(lambda found: places[found[0]], each) for each in command]


def environment(names: list[str], staged: list[str]) -> dict[str, str]:
    """The environment with ``ATOMIK_PATH_1`` … in the order given, and ``ATOMIK_PATH_OUT_CSV`` for a base name."""
    found = dict(os.environ)
    keys = [re.sub(r"[^A-Z0-9]+", "_", _base(name).upper()) for name in names]
    found |= {f"ATOMIK_PATH_{key}": place for key, place in zip(keys, staged, strict=True) if keys.count(key) == 1}
    # The numbers last, for they are always there: an output may be called "2" and not be the second.
    return found | {f"ATOMIK_PATH_{at}": place for at, place in enumerate(staged, 1)}


def _base(name: str) -> str:
    return os.path.basename(name.rstrip("/"))


def _spawn(signals: Signals, command: list[str], variables: dict[str, str]) -> int:
    """Run the program to its end, passing on what we are sent; its exit code, 128 + n for a signal."""
    watched = {*signals.caught, signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, the child's exit code is lost
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        try:
            child = subprocess.Popen(command, env=variables, preexec_fn=_tie_to_us(mask))  # noqa: PLW1509  no threads here
        except OSError as exc:
            raise NotStartedError(command[0], exc) from exc
        try:
            _wait(signals, child, watched)
        finally:
            if child.returncode is None:
                child.kill()
                child.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    code = child.returncode
    return 128 - code if code < 0 else code


def _wait(signals: Signals, child: subprocess.Popen[bytes], watched: Iterable[int]) -> None:
    while child.poll() is None:
        info = signal.sigwaitinfo(watched)
        number = info.si_signo
        if number == signal.SIGCHLD:
            continue
        signals.number = signals.number or number
        # A terminal's Ctrl-C and Ctrl-\ went to its whole foreground group, the child too, so it has them already.
        if info.si_code != _SI_KERNEL or number not in (signal.SIGINT, signal.SIGQUIT):
            with contextlib.suppress(PermissionError):  # it runs as another user: sudo passes on what it gets itself
                child.send_signal(number)


def _tie_to_us(mask: Any) -> Any:
    """What the child does before it becomes the program: unblock signals, and ask to be ended when we are killed."""
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if os.getppid() != parent:  # we were killed before the kernel knew
            os._exit(FAILED)

    return prepare
