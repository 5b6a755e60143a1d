"""The program of ``atomik run``: what it inherits, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from atomik.cli import child
from atomik.cli.signals import Signals
from tests.support.state import in_child


def spawned(*command: str, **keywords: Any) -> int | str:
    """The exit code, or why it was not started; in a child of the test, whose signals and descriptors are its own."""

    def spawn() -> int | str:
        try:
            with Signals() as signals:
                return child.spawn(signals, list(command), dict(os.environ), {}, **keywords)
        except child.NotStartedError as exc:
            return str(exc)

    return in_child(spawn)


LOOK = """
import os, sys
for fd in map(int, sys.argv[1:]):
    try:
        os.fstat(fd)
    except OSError:
        continue
    sys.exit(3)
"""


def test_descriptors(tmp_path: Path) -> None:
    """None but the standard ones, not even those that we inherited."""
    fds = [os.open(tmp_path, flags) for flags in (os.O_RDONLY, os.O_PATH)]
    try:
        for fd in fds:
            os.set_inheritable(fd, True)
        assert spawned(sys.executable, "-S", "-c", LOOK, *map(str, fds)) == 0
    finally:
        for fd in fds:
            os.close(fd)


def test_signals(tmp_path: Path) -> None:
    """None is blocked, and those that Python ignores are not ignored."""
    assert spawned("sh", "-c", f"grep Sig /proc/self/status > '{tmp_path}/said'") == 0
    said = dict(line.split(":\t") for line in (tmp_path / "said").read_text().splitlines())
    assert int(said["SigBlk"], 16) == 0
    assert not int(said["SigIgn"], 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_before_it_is_the_program(tmp_path: Path, number: int) -> None:
    """A signal that finds the child still on its way ends it there, as it would have ended the program."""
    ran = tmp_path / "ran"
    assert spawned("touch", str(ran), enter=lambda: os.kill(os.getpid(), number)) == 128 + number
    assert not ran.exists()


def test_ended_with_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If waiting fails, the program is killed, so that it does not go on to write what nobody publishes."""

    def spawn() -> bool:
        def failing(*_: object) -> None:
            raise KeyError

        monkeypatch.setattr(child, "_wait", failing)
        with Signals() as signals, pytest.raises(KeyError):
            child.spawn(signals, ["sleep", "60"], dict(os.environ), {})
        with pytest.raises(ChildProcessError):
            os.wait()
        return signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())

    assert not in_child(spawn)
