"""The program of ``atomik run``: started, sent the signals that we get, and waited for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

from atomik._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .signals import Signals

#: Exit codes of a program that did not start, as env(1), timeout(1) and nohup(1) have them.
CANNOT_RUN, NOT_FOUND = 126, 127

_SI_KERNEL = 0x80  # sigaction(2): the kernel sent it, not a process


class NotStartedError(Exception):
    """The program could not be run; ``code`` is our exit code."""

    def __init__(self, program: str, exc: OSError) -> None:
        super().__init__(f"cannot run {program!r}: {exc.strerror}")
        self.code = NOT_FOUND if isinstance(exc, FileNotFoundError) else CANNOT_RUN


def spawn(
    signals: Signals, command: list[str], variables: dict[str, str], streams: dict[str, Any],
    enter: Callable[[], None] | None = None,
) -> int:  # fmt: skip
    """Run the program to its end, passing on what we are sent; its exit code, 128 + n for a signal.

    The child first calls `enter`; what that raises arrives as a `subprocess.SubprocessError`.
    """
    watched = {*signals.caught, signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, the child's exit code is lost
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        try:
            prepare = _prepare(mask, signals.caught, enter)
            child = subprocess.Popen(command, env=variables, preexec_fn=prepare, **streams)  # noqa: PLW1509  no threads yet
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


def _prepare(mask: Any, caught: Iterable[int], enter: Callable[[], None] | None) -> Callable[[], None]:
    """What the child does before it becomes the program: unblock signals, and ask to be ended when we are killed.  A signal
    that comes before it is the program ends it there, as it would end the program."""
    kernel.libc()
    parent = os.getpid()

    def prepare() -> None:
        if enter is not None:
            enter()
        kernel.end_with(parent, signal.SIGTERM)
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return prepare
