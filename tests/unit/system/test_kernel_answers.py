"""Which errors are the kernel's own answers (I13)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atomik import errors
from atomik._folder.directory import Directory
from atomik._system import kernel
from tests.support.kernels import Acting, Faulty, Recording, installed

_HANDLED = signal.SIGUSR1


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Directory]:
    directory = Directory.open(str(tmp_path))
    yield directory
    directory.close()


@pytest.fixture
def handler() -> Iterator[Callable[[BaseException], None]]:
    """A signal handler that raises what it is given."""
    before = signal.getsignal(_HANDLED)

    def set_to(exc: BaseException) -> None:
        def raise_it(*_: object) -> None:
            raise exc

        signal.signal(_HANDLED, raise_it)

    yield set_to
    signal.signal(_HANDLED, before)


def answer(call: Callable[[], Any]) -> int | None:
    """What `errno_of` says about the error of a call."""
    with pytest.raises(OSError) as caught:  # noqa: PT011  the errno is what is asked for
        call()
    return kernel.errno_of(caught.value)


def test_the_real_kernel_answers(here: Directory) -> None:
    """By ctypes and by os, from a method of the port and from one that is a function of os."""
    port = kernel.port
    assert answer(lambda: port.rename("a", here.fd, "b", here.fd, 0)) == errno.ENOENT
    assert answer(lambda: port.unlink("a", here.fd)) == errno.ENOENT
    assert answer(lambda: Directory.open("missing", here.fd)) == errno.ENOENT
    assert answer(lambda: Directory.open("/proc/self/exe")) == errno.ENOTDIR


@pytest.mark.parametrize(
    "exc", [TimeoutError(errno.ENOENT, "x"), FileNotFoundError(errno.ENOENT, "x"), OSError(5, "x")]
)
def test_a_handlers_exception_is_no_answer(
    here: Directory, handler: Callable[[BaseException], None], exc: OSError
) -> None:
    """It arrives inside the call, after the call has happened."""
    handler(exc)
    real = os.unlink

    def unlink_and_signal(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        os.kill(os.getpid(), _HANDLED)

    Path(here.child("x")).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", unlink_and_signal)
        assert answer(lambda: kernel.port.unlink("x", here.fd)) is None
    assert not here.exists("x")


_STORM = """
import os, signal, sys, threading
from atomik._system import kernel
from atomik._folder.directory import Directory

def handler(*_): raise TimeoutError(2, "of the handler")

signal.signal(signal.SIGALRM, handler)
here, wrong = Directory.open(sys.argv[1]), 0
for _ in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + os.urandom(1)[0] / 1e6)
        while True:
            here.exists("missing")
            here.stat("missing")
            kernel.port.statx(here.fd)
    except TimeoutError as exc:
        wrong += kernel.errno_of(exc) is not None
print(wrong)
"""


def test_a_real_timer(tmp_path: Path) -> None:
    """Wherever a real signal strikes, its exception is never taken for the kernel's."""
    run = subprocess.run([sys.executable, "-c", _STORM, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert run.stdout == "0\n", run.stderr


def test_a_kernel_that_injects_faults_answers(here: Directory) -> None:
    """Also with others on top of it and below."""
    with installed(Recording()), installed(Faulty.every("unlink", errno.EIO)), installed(Recording()):
        assert answer(lambda: kernel.port.unlink("x", here.fd)) == errno.EIO


def test_what_acts_beside_the_call_is_no_answer(here: Directory) -> None:
    """A function that a test runs before a call represents another program, as a handler does."""

    def fail(_: object) -> None:
        raise OSError(errno.EIO, "somebody else's")

    with installed(Acting("unlink", fail)):
        assert answer(lambda: kernel.port.unlink("x", here.fd)) is None


def test_a_function_put_on_the_port_answers(here: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tests do for one call; the package must be the one that calls it."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(kernel.port, "fsync", refuse, raising=False)
    assert answer(here.sync) == errno.ENOSPC


def test_what_atomik_says_is_no_answer(here: Directory) -> None:
    """Its own errors have been translated already; one without an errno is not an answer either."""

    def refuse(*_: object) -> None:
        raise errors.ConflictError(errno.EBUSY, "…")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel.port, "fsync", refuse, raising=False)
        assert answer(here.sync) is None
        patch.setattr(kernel.port, "fsync", lambda fd: (_ for _ in ()).throw(OSError("no number")), raising=False)
        assert answer(here.sync) is None
    assert kernel.errno_of(OSError(errno.EIO, "never raised")) is None


def test_typed_turns_the_kernels_answers_alone(tmp_path: Path) -> None:
    """Our own errors, everybody else's, and those of a signal handler go on unchanged, of whatever class."""
    for exc in (errors.ConflictError(errno.EBUSY, "x"), ZeroDivisionError(), TimeoutError(errno.ETIMEDOUT, "handler")):
        with pytest.raises(type(exc)) as caught, kernel.typed("cannot", "/x"):
            raise exc
        assert caught.value is exc
    with pytest.raises(errors.MissingPathError) as turned, kernel.typed("cannot look", "/x"):
        Directory.open(str(tmp_path / "missing"))
    assert turned.value.filename == "/x"
    assert isinstance(turned.value.__cause__, FileNotFoundError)
