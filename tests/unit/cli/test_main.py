"""`atomik.cli.main` without arguments: it ends the process, as sys.exit() would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import atomik

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}
CODE = """
import atexit, sys
from atomik.cli import main
atexit.register(print, "the end", end="")
sys.argv[1:] = {arguments!r}
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [(["swap", "a", "b"], 0, "the end"), (["swap", "a", "no"], 1, "the end"), (["swap"], 2, "the end"),
     (["run", "--file", "c", "--", "false"], 1, "the end"), (["--version"], 0, f"atomik {atomik.__version__}\nthe end")],
)  # fmt: skip
def test_the_process_ends(folder: Path, arguments: list[str], code: int, said: str) -> None:
    """With the exit code, after the functions of `atexit`, and with all that was printed."""
    for name in "ab":
        Path(name).write_text(name)
    command = [sys.executable, "-c", CODE.format(arguments=arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (code, said), done.stderr


def test_standard_output_is_full(folder: Path) -> None:
    """What cannot be printed at the end is no success."""
    Path("a").write_text("a")
    Path("b").write_text("b")
    code = CODE.format(arguments=["swap", "a", "b"])
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
    assert done.returncode != 0
    assert "No space left" in done.stderr
