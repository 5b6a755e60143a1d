"""The command line with standard descriptors closed: nothing else is ever taken for standard input or output."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import atomik

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1]), "PYTHONWARNINGS": "error"}

#: `python -m atomik`, and what the installed script does.
ENTRIES = {"module": ["-m", "atomik"], "script": ["-c", "import sys; from atomik.cli import main; sys.exit(main())"]}

CLOSED = [each for count in range(4) for each in itertools.combinations(range(3), count)]

ANY = pytest.mark.parametrize("closed", CLOSED, ids=lambda each: "".join(map(str, each)) or "none")


def _pairs() -> list[Any]:
    """Each entry with all that may be closed; in a plain run not every pair."""
    pairs = []
    for entry, closed in itertools.product(ENTRIES, CLOSED):
        some = closed in ((), (0,), (1, 2), (0, 1, 2)) if entry == "module" else closed == (0, 1, 2)
        pairs.append(
            pytest.param(
                entry,
                closed,
                marks=() if some else pytest.mark.sweep,
                id=f"{entry}-{''.join(map(str, closed)) or 'none'}",
            )
        )
    return pairs


BOTH = pytest.mark.parametrize(("entry", "closed"), _pairs())


def call(entry: str, closed: tuple[int, ...], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    def close() -> None:
        for fd in closed:
            os.close(fd)

    command = [sys.executable, *ENTRIES[entry], *arguments]
    return subprocess.run(command, input=b"input", capture_output=True, env=ENVIRONMENT, preexec_fn=close)


@BOTH
def test_write(folder: Path, entry: str, closed: tuple[int, ...]) -> None:
    """A closed input is an error and changes nothing; closed outputs change nothing about the work."""
    Path("out").write_text("old")
    done = call(entry, closed, "write", "--overwrite", "--json", "out")
    told = json.loads(done.stdout) if 1 not in closed else None
    if 0 in closed:
        assert (done.returncode, Path("out").read_text()) == (1, "old")
        said = b"" if 2 in closed else b"atomik: standard input is closed; redirect a file or a pipe to it\n"
        assert told is None or told["message"].startswith("standard input is closed")
    else:
        assert (done.returncode, Path("out").read_text()) == (0, "input")
        assert told is None or told["items"][0]["op"] == "replace"
        said = b""
    assert done.stderr == said


@BOTH
def test_run(folder: Path, entry: str, closed: tuple[int, ...]) -> None:
    """The program gets the descriptors as we got them, and what it writes is published."""
    script = (
        'for n in 0 1 2; do test -e /proc/$$/fd/$n && found="$found $n"; done; echo "$found" > "$1"; cat "$2"; true'
    )
    Path("in").write_text("printed")
    done = call(entry, closed, "run", "--file", "out", "--", "sh", "-c", script, "sh", "{out}", "in")
    assert done.returncode == 0
    assert Path("out").read_text().split() == [str(fd) for fd in range(3) if fd not in closed]
    assert done.stdout == (b"" if 1 in closed else b"printed")


@pytest.mark.sweep
@BOTH
def test_run_with_streams(folder: Path, entry: str, closed: tuple[int, ...]) -> None:
    """Streams that are published are open for the program, whatever we were started with."""
    done = call(entry, closed, "run", "--stdout", "o", "--stderr", "e", "--", "sh", "-c", "echo o; echo e >&2")
    assert done.returncode == 0
    assert (Path("o").read_text(), Path("e").read_text()) == ("o\n", "e\n")
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.sweep
@BOTH
def test_other_commands(folder: Path, entry: str, closed: tuple[int, ...]) -> None:
    """They do their work and say what they can."""
    Path("a").write_text("a")
    Path("b").write_text("b")
    assert call(entry, closed, "swap", "a", "b").returncode == 0
    assert Path("a").read_text() == "b"
    assert call(entry, closed, "doctor", ".").returncode == 0
    done = call(entry, closed, "recover", ".")
    assert (done.returncode, done.stdout) == (0, b"" if 1 in closed else b"nothing to recover\n")


LOOK = """
import os, sys
before = set(sys.modules)
from atomik.cli import main
loaded = {"ctypes", "argparse", "subprocess", "atomik.cli.commands"} & (set(sys.modules) - before)
import atomik.cli.commands as commands

def look(arguments):
    with open("seen", "w") as seen:
        print(*[os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)], seen.fileno(), file=seen)
    return 0

assert not loaded, loaded
commands.main = look
main()
"""


@ANY
def test_claimed_before_anything_is_loaded(folder: Path, closed: tuple[int, ...]) -> None:
    """Closed ones lead to /dev/null before the command line is read, the others are unchanged; no others are open."""

    def close() -> None:
        for fd in closed:
            os.close(fd)

    command = [sys.executable, "-c", LOOK]
    subprocess.run(command, env=ENVIRONMENT, preexec_fn=close, check=True, input=b"", capture_output=True)
    *seen, next_one = Path("seen").read_text().split()
    assert [fd for fd, to in enumerate(seen) if to == "/dev/null"] == list(closed)
    assert next_one == "3"
