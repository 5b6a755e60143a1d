"""strace as a witness: counts, kills and failures happen where they are asked for."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.lab import strace
from tests.support.lab.need import need

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import os
for number in range(3):
    open(f"a{number}", "w").close()
    os.rename(f"a{number}", f"b{number}")
if os.fork() == 0:
    os.rename("b2", "c")
    os._exit(0)
os.wait()
"""


@pytest.fixture(autouse=True)
def _strace() -> None:
    need(strace.missing_strace())


def argv() -> list[str]:
    return [os.path.realpath(sys.executable), "-I", "-S", "-c", PROGRAM]


def test_calls_are_counted_across_a_fork(tmp_path: Path) -> None:
    """Three renames of the parent and one of the child are four, in order, with arguments and results."""
    trace = strace.run(argv(), calls=("rename", "fork", "fsync"), cwd=tmp_path)
    assert trace.returncode == 0
    assert trace.count("rename") == 4
    assert trace.count("fsync") == 0
    renames = [call for call in trace.calls if call.name == "rename"]
    assert renames[0].arguments == '"a0", "b0"'
    assert all(call.succeeded for call in renames)
    assert len({call.pid for call in renames}) == 2


def test_a_kill_comes_before_its_call(tmp_path: Path) -> None:
    """Killed at the second rename, the first has happened and the second has not."""
    trace = strace.run(argv(), calls=("rename",), inject=strace.kill_at("rename", 2), cwd=tmp_path)
    assert trace.returncode == -9
    assert sorted(os.listdir(tmp_path)) == ["a1", "b0"]
    assert not trace.calls[-1].succeeded


def test_a_failure_is_injected_instead_of_the_call(tmp_path: Path) -> None:
    """The third rename fails with the error asked for, and is not made."""
    failing = strace.fail_at("rename", 3, "ENOSPC")
    trace = strace.run(argv(), calls=("rename",), inject=failing, cwd=tmp_path)
    assert "No space left" in trace.stderr
    assert sorted(os.listdir(tmp_path)) == ["a2", "b0", "b1"]


def test_interrupted_lines_are_put_together() -> None:
    """A call that another process's line cut in two is one call, in its place, with its result."""
    log = (
        "7 fsync(3 <unfinished ...>\n"
        '8 rename("a", "b") = -1 ENOENT (No such file or directory)\n'
        "7 <... fsync resumed>) = 0\n"
    )
    first, second = strace.parse(log)
    assert (first.pid, first.name, first.arguments, first.result) == (7, "fsync", "3", "0")
    assert (second.name, second.succeeded) == ("rename", False)
