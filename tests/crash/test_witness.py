"""strace as the witness that shares nothing with the code: no call by-passes the port, and what it kills gets well."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash import scenarios
from tests.crash.deaths import WAYS, gets_well
from tests.crash.scenarios import Expected, World
from tests.support.lab import strace
from tests.support.lab.need import need

if TYPE_CHECKING:
    from collections.abc import Callable

    Job = Callable[[World, bool | str], object]

JOB = Path(__file__).with_name("job.py")

#: system calls → the methods of the port that make them
MADE_BY = {
    # the C library makes renameat of a renameat2 without flags
    ("renameat2", "renameat", "rename"): "rename rename_to_itself",
    ("linkat", "link"): "link link_fd",
    ("unlinkat", "unlink", "rmdir"): "unlink rmdir unlink_folder",
    ("mkdirat", "mkdir"): "mkdir",
    ("symlinkat", "symlink"): "symlink",
    ("mknodat", "mknod"): "mknod",
    ("fsync",): "fsync",
    ("fdatasync",): "fdatasync",
    ("syncfs", "sync"): "syncfs",
    ("sync_file_range",): "start_writeback write_back",
    ("flock",): "flock",
    ("pwrite64", "pwritev"): "pwrite",
    ("ftruncate", "truncate"): "truncate",
    ("copy_file_range", "sendfile"): "copy_range",
    ("fchmod",): "fchmod",
    ("fchown",): "fchown",
    ("fchownat", "chown", "lchown"): "lchown",
    ("fsetxattr",): "setxattr",
    ("fremovexattr",): "removexattr",
}
CALLS = tuple(call for calls in MADE_BY for call in calls)


@pytest.fixture(autouse=True)
def traced() -> None:
    need(strace.missing_strace())


@pytest.fixture
def built(world: World) -> World:
    world.build()
    return world


#: The real interpreter: a shim's own calls would count as well.
PYTHON = os.path.realpath(sys.executable)
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"}


def command(world: World, job: Job, *how: str) -> list[str]:
    return [PYTHON, str(JOB), str(world.top), job.__name__, *how]


@pytest.mark.parametrize(
    "job",
    [
        scenarios.mixed,
        *(pytest.param(job, marks=pytest.mark.sweep) for job in (scenarios.moves, scenarios.one_overwritten)),
    ],
    ids=lambda job: job.__name__,
)
def test_no_call_by_passes_the_port(built: World, job: Job) -> None:
    """Every system call that changes something is one that a recording kernel saw, and the other way round."""
    traced = strace.run(command(built, job, "record"), calls=CALLS, env=ENVIRONMENT)
    assert traced.returncode == 0, traced.stderr
    asked = Counter(traced.stdout.split())
    # Whether a sandbox refuses a call is asked with a descriptor that is never open, and changes nothing.
    done = Counter(call.name for call in traced.calls if not call.result.startswith("-1 EBADF"))
    for calls, methods in MADE_BY.items():
        wanted = sum(asked[method] for method in methods.split())
        made = sum(done[call] for call in calls)
        assert made == wanted, f"{calls}: the port was asked {wanted} times, and {made} calls were made"
    assert asked["rename"] + asked["link_fd"] > 1


def calls_of(world: World, job: Job) -> Counter[str]:
    traced = strace.run(command(world, job), calls=CALLS, env=ENVIRONMENT)
    assert traced.returncode == 0, traced.stderr
    world.build()
    return traced.counts


def killed(world: World, job: Job, points: list[tuple[str, int]]) -> set[str]:
    expected = Expected.of(world, job)
    outcomes = set()
    for number, (call, nth) in enumerate(points):
        world.build()
        traced = strace.run(
            command(world, job), calls=("renameat2",), inject=strace.kill_at(call, nth), env=ENVIRONMENT
        )
        assert traced.returncode == -9, f"it outlived {call} {nth}: {traced.stderr}"
        point = _Point(f"killed at {call} {nth}")
        outcomes.add(gets_well(world, expected, point, WAYS[number % len(WAYS)]))  # type: ignore[arg-type]
    return outcomes


class _Point:
    """A death that strace brought about."""

    returned = False

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


@pytest.mark.sweep
def test_a_process_killed_from_outside_gets_well(built: World) -> None:
    """A real process, killed at some of its calls by strace: all old or all new."""
    counts = calls_of(built, scenarios.moves)
    every = [(call, nth) for call in ("renameat2", "linkat", "unlinkat", "fsync") for nth in range(1, counts[call] + 1)]
    assert len(every) > 15
    assert killed(built, scenarios.moves, every[::4]) == {"old", "new"}


@pytest.mark.slow
@pytest.mark.parametrize("job", scenarios.SEVERAL, ids=lambda job: job.__name__)
def test_a_process_killed_from_outside_at_every_call_gets_well(built: World, job: Job) -> None:
    """At every call that changes something."""
    counts = calls_of(built, job)
    assert killed(built, job, [(call, nth) for call in CALLS for nth in range(1, counts[call] + 1)]) == {"old", "new"}


@pytest.mark.sweep
def test_strace_counts_few_syncs(tmp_path: Path) -> None:
    """I10: the number of sync calls is bounded, whatever the number of items, as seen from outside."""
    for items, folders, most in ((1, 1, 3), (1000, 1, 6), (400, 4, 12)):
        traced = strace.run(
            [PYTHON, "-c", _MANY, str(tmp_path), str(items), str(folders)],
            calls=("fsync", "fdatasync", "syncfs"),
            env=ENVIRONMENT,
        )
        assert traced.returncode == 0, traced.stderr
        made = sum(traced.count(call) for call in ("fsync", "fdatasync", "syncfs"))
        assert 1 < made <= most, (items, folders, traced.counts)
        assert made == int(traced.stdout), "the receipt counts otherwise"


_MANY = """
import sys, pathlib, atomik
top, items, folders = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with atomik.transaction() as tx:
    for n in range(items):
        tx.file(top / f"{items}-{folders}-{n % folders}" / f"{n}.txt", parents=True).write(str(n))
receipt = tx.receipt
print(receipt.sync_calls)
"""
