"""The program of ``atomik run``: started, sent the signals that we get, and waited for.

The child is forked here and not by `subprocess`, which takes longer to load than a short program runs.
"""

from __future__ import annotations

import contextlib
import errno
import os

from atomik._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable
    from typing import IO, Any, NoReturn

    from .signals import Signals
else:
    import _signal as signal  # see .signals

#: Exit codes of ``run`` that are not the child's own, as env(1), timeout(1) and nohup(1) have them.
FAILED, CANNOT_RUN, NOT_FOUND = 125, 126, 127

_SI_KERNEL = 0x80  # sigaction(2): the kernel sent it, not a process


class NotStartedError(Exception):
    """The program could not be run; ``code`` is our exit code."""

    def __init__(self, program: str, exc: OSError) -> None:
        super().__init__(f"cannot run {program!r}: {exc.strerror}")
        self.code = NOT_FOUND if isinstance(exc, FileNotFoundError) else CANNOT_RUN


def spawn(
    signals: Signals, command: list[str], variables: dict[str, str], streams: dict[int, IO[Any]],
    enter: Callable[[], None] | None = None,
) -> int:  # fmt: skip
    """Run the program to its end, passing on what we are sent; its exit code, 128 + n for a signal.

    `streams` has files for its descriptors.  The child first calls `enter`; if that raises, it is a `NotStartedError`.
    """
    watched = {*signals.caught, signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, the child's exit code is lost
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)

    def prepare() -> None:
        for fd, file in streams.items():
            os.dup2(file.fileno(), fd)
        if enter is not None:
            enter()
        kernel.end_with(parent, signal.SIGTERM)
        for number in (*signals.caught, signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores the last two
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    parent = os.getpid()
    kernel.libc()
    try:
        try:
            pid = _start(command, variables, prepare)
        except OSError as exc:
            raise NotStartedError(command[0], exc) from exc
        return _wait(pid, signals, watched)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start(command: list[str], variables: dict[str, str], prepare: Callable[[], None]) -> int:
    """The process that has become the program."""
    reader, writer = os.pipe()
    with open(reader, "rb", 0) as answer:
        with open(writer, "wb", 0):  # also closed when the child becomes the program
            pid = os.fork()
            if not pid:
                _become(command, variables, prepare, writer)
        failed = answer.read()
    if failed:
        os.waitpid(pid, 0)
        raise OSError(int(failed), os.strerror(int(failed)))
    return pid


def _become(command: list[str], variables: dict[str, str], prepare: Callable[[], None], writer: int) -> NoReturn:
    """In the child: become the program, or say the errno.  No signal raises here: they are blocked, and then end it."""
    number = errno.EINVAL
    try:
        prepare()
        for fd in _open():
            if fd > 2 and fd != writer:
                with contextlib.suppress(OSError):  # it is not open
                    os.close(fd)
        os.execvpe(command[0], command, variables)
    except OSError as exc:
        number = exc.errno or number
    finally:
        os.write(writer, b"%d" % number)
        os._exit(FAILED)


def _open() -> Iterable[int]:
    """Descriptors that may be open: what we inherited is not the program's."""
    try:
        return map(int, os.listdir("/proc/self/fd"))
    except OSError:  # no /proc
        return range(os.sysconf("SC_OPEN_MAX"))


def _wait(pid: int, signals: Signals, watched: Iterable[int]) -> int:
    status = None
    try:
        while status is None:
            ended, found = os.waitpid(pid, os.WNOHANG)
            if ended:
                status = found
            else:
                _pass_on(pid, signals, signal.sigwaitinfo(watched))
    finally:
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _pass_on(pid: int, signals: Signals, info: Any) -> None:
    number = info.si_signo
    if number == signal.SIGCHLD:
        return
    signals.number = signals.number or number
    # A terminal's Ctrl-C and Ctrl-\ went to its whole foreground group, the child too, so it has them already.
    if info.si_code != _SI_KERNEL or number not in (signal.SIGINT, signal.SIGQUIT):
        with contextlib.suppress(PermissionError):  # it runs as another user: sudo passes on what it gets itself
            os.kill(pid, number)
