"""The bar of ``progress=True``, by rich and by tqdm, on a terminal and in a pipe."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pty
import subprocess
import sys
import termios
from importlib.util import find_spec
from pathlib import Path

import pytest

import atomik
from atomik._progress import Bar, Counting

#: Nothing but the maker with that name is found.
PROGRAM = """\
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: found(name, *rest) if name == sys.argv[1] else None
import atomik, pathlib, time
folder = pathlib.Path(sys.argv[2])
for number in range(20):
    (folder / "site" / str(number)).parent.mkdir(exist_ok=True)
    (folder / "site" / str(number)).write_text("x")
with atomik.transaction(overwrite=True, progress=True) as tx:
    tx.folder(folder / "site", copy=True)
    tx.file(folder / "index").write("x")
report = atomik.recover(folder, progress=True)
print("done")
"""


@pytest.mark.parametrize("maker", ["rich", "tqdm"])
def test_a_bar_on_a_terminal(tmp_path: Path, maker: str) -> None:
    """Every phase is shown with its name; what is drawn is removed."""
    pytest.importorskip(maker)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, maker, tmp_path],
        stdout=subprocess.PIPE, stderr=theirs, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1]), "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert (done.returncode, done.stdout) == (0, "done\n"), shown.decode()
    for phase in ("cloning", "syncing", "swapping", "cleaning", "recovering"):
        assert phase in shown.decode(), phase


@pytest.mark.parametrize("maker", ["rich", "tqdm"])
def test_no_bar_in_a_pipe(tmp_path: Path, maker: str) -> None:
    """Logs and pipes stay clean."""
    pytest.importorskip(maker)
    environment = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}
    command = [sys.executable, "-c", PROGRAM, maker, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_neither_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install, before anything is staged."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'atomik\[progress\]'"):
        atomik.file(tmp_path / "a", progress=True)


def test_what_is_no_progress_function(tmp_path: Path) -> None:
    """False is not one either."""
    for wrong in (False, 1, "bar"):
        with pytest.raises(TypeError, match="True for a bar"):
            atomik.file(tmp_path / "a", progress=wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(find_spec("rich") is None and find_spec("tqdm") is None, reason="needs rich or tqdm")
def test_an_aborted_transaction_closes_its_bar(tmp_path: Path) -> None:
    """Also one that fails in the middle of a phase."""
    with pytest.raises(FileExistsError), atomik.transaction(progress=True) as tx:
        tx.file(tmp_path / "a").write("x")
        tx.file(tmp_path / "b").write("x")
        (tmp_path / "b").write_text("theirs")
    bar = tx._intake.progress
    assert isinstance(bar, Bar)
    assert bar._drawn is None


def test_counting() -> None:
    """The total is known at the end; if nothing is done, nothing is reported."""
    told: list[tuple[str, int, int]] = []
    counting = Counting(lambda *event: told.append(event), "cloning")
    counting.finish()
    assert told == []
    for count in (1, 5):
        counting(count)
    counting.finish()
    assert told == [("cloning", 1, 0), ("cloning", 6, 6)]
