"""Progress on a terminal, for what takes longer than a second; in a pipe, never."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from atomik.cli import progress as _progress
from atomik.cli.progress import Progress, line
from tests.unit.cli.test_commands import COMMAND, ENVIRONMENT, on_terminal


class Screen:
    """A terminal that can be waited for."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.drawn = threading.Event()

    def __call__(self, text: str) -> None:
        self.shown.append(text)
        self.drawn.set()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setattr(_progress, "AFTER", 0.001)
    monkeypatch.setattr(_progress, "EVERY", 0.001)
    return Screen()


def test_line() -> None:
    """A bar where the total is known, else how much was done."""
    assert line("syncing", 1, 3) == "[##########....................] 1 of 3 syncing"
    assert line("cloning", 5, 0) == "cloning: 5"
    assert line("MiB read", 9, 4) == f"[{'#' * 30}] 9 of 4 MiB read"  # a file that grew while it was read


def test_drawn_and_wiped(screen: Screen) -> None:
    """Also while the work itself says nothing for long; at the end the line is removed."""
    with Progress(screen) as progress:
        progress.start()
        progress("syncing", 1, 3)
        assert screen.drawn.wait(30)
        progress.clear()
        screen.drawn.clear()
        assert screen.drawn.wait(30), "it is drawn again"
    assert "1 of 3 syncing" in screen.shown[0]
    assert screen.shown[-1] == "\r\033[K"
    assert "atomik progress" not in {each.name for each in threading.enumerate()}


def test_nothing_before_it_starts_or_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick work draws nothing, not even to wipe it away; without a terminal there is no thread."""
    monkeypatch.setattr(_progress, "AFTER", 60.0)
    screen = Screen()
    with Progress(screen) as progress:
        progress("syncing", 1, 3)
        progress.start()
        assert progress.wanted is progress
    assert screen.shown == []
    with Progress(None) as progress:
        assert progress.wanted is None, "the library need not count"
        before = threading.active_count()
        progress.start()
        progress("syncing", 1, 3)
        assert threading.active_count() == before


def test_no_more_threads(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work goes on without its progress."""

    def full(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    with Progress(screen) as progress:
        progress.start()
        progress("syncing", 1, 3)
    assert screen.shown == []


def test_what_a_signal_handler_raises_as_the_thread_starts(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for the lack of threads (I13)."""
    raised = RuntimeError("of the handler")

    def interrupted(thread: threading.Thread) -> None:
        raise raised

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(RuntimeError) as caught, Progress(screen) as progress:
        progress.start()
    assert caught.value is raised


SLOW = "{ head -c 3000000 /dev/zero; sleep 1.5; echo end; }"


@pytest.mark.slow
def test_a_slow_input(folder: Path) -> None:
    """On a terminal `atomik write` says how much it has read, and wipes that away; in a pipe it prints nothing."""
    command = f"{SLOW} | {' '.join(COMMAND)} write --overwrite out"
    shown = on_terminal(["/bin/bash", "-c", command])
    assert b"MiB read: 2" in shown
    assert shown.endswith(b"\r\x1b[K")
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert Path("out").stat().st_size == 3_000_004


def test_the_program_has_the_terminal_for_itself(folder: Path) -> None:
    """While the program of `atomik run` works, nothing of ours is drawn into what it shows."""
    script = "import sys, time; print('working'); time.sleep(1.3); open(sys.argv[1], 'w').close()"
    shown = on_terminal([*COMMAND, "run", "--file", "a", "--", sys.executable, "-c", script, "{a}"])
    assert shown == b"working\r\n"
