"""A job with ``resume=True`` dies: what it staged is there for the next run, and what that publishes is what an undisturbed
job would have published."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

import atomik
from tests.crash.deaths import every_death
from tests.support.state import left_in, tree

if TYPE_CHECKING:
    from collections.abc import Callable

    Job = Callable[[Path], bool]

pytestmark = pytest.mark.sweep

PARTS = ("first", "second", "third")


def _fill(new: Path, computed: Path) -> None:
    """Make the parts that are not there yet, each in one step, and note what was computed."""
    for part in PARTS:
        if not (new / part).exists():
            with computed.open("a") as f:
                f.write(f"{part}\n")
            (new / "unfinished").write_text(part * 100)
            (new / "unfinished").rename(new / part)


def folder_created(top: Path) -> bool:
    with atomik.folder(top / "made", resume=True) as new:
        _fill(new, top.parent / "computed")
        return new.resumed


def folder_replaced(top: Path) -> bool:
    with atomik.folder(top / "set", overwrite=True, resume=True) as new:
        _fill(new, top.parent / "computed")
        return new.resumed


def path_replaced(top: Path) -> bool:
    with atomik.path(top / "set", overwrite=True, resume=True) as new:
        new.mkdir(exist_ok=True)
        _fill(new, top.parent / "computed")
        return new.resumed


def in_a_group(top: Path) -> bool:
    """Beside other outputs, and with the previous version kept."""
    with atomik.transaction(overwrite=True) as tx:
        new = tx.folder(top / "set", resume=True, backup="set.before")
        _fill(new, top.parent / "computed")
        tx.file(top / "done").write("new")
        tx.remove(top / "gone", missing_ok=True)
        return new.resumed


def elsewhere(top: Path) -> bool:
    with atomik.folder(top / "set", overwrite=True, tmp_dir=top.parent / "tmp", resume=True) as new:
        _fill(new, top.parent / "computed")
        return new.resumed


JOBS = (folder_created, folder_replaced, path_replaced, in_a_group, elsewhere)


def _build(top: Path) -> None:
    shutil.rmtree(top.parent, ignore_errors=True)
    (top / "set").mkdir(parents=True)
    (top.parent / "tmp").mkdir()
    for part in PARTS:
        (top / "set" / part).write_text("old")
    (top / "set" / "old").write_text("old")
    (top / "done").write_text("old")
    (top / "gone").write_text("old")


def _seen(top: Path) -> dict[str, object]:
    """But for our own names, and for a previous version: of a job that was done, a second run keeps the first one's."""
    return {name: what for name, what in tree(top).items() if not name.startswith((".atomik", "set.before/"))}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
@pytest.mark.parametrize("recovers", [False, True], ids=["run again", "recover first"])
def test_it_dies_at_every_call(tmp_path: Path, job: Job, recovers: bool) -> None:
    """Old or new after each death, in recovery too; nothing that was complete is computed twice."""
    top = tmp_path / "there" / "top"
    _build(top)
    old = _seen(top)
    assert not job(top)
    new, step = _seen(top), count()
    assert new != old
    _build(top)
    resumed = 0
    for point in every_death(lambda: job(top)):
        assert _seen(top) in (old, new) or recovers or os.path.lexists(top / ".atomik-journal"), str(point)
        if recovers:
            atomik.recover(top, top.parent / "tmp")
            assert _seen(top) in (old, new), str(point)
        if point.returned:
            break
        if not recovers or _seen(top) == old:
            resumed += _again(job, top)
        assert _seen(top) == new, str(point)
        atomik.recover(top, top.parent / "tmp")
        assert not left_in(top.parent), str(point)
        next(step)
        _build(top)
    assert resumed > next(step) / 3, "it was rarely resumed"


def _again(job: Job, top: Path) -> bool:
    """The next run, which finds that the destination is there by now, or goes on."""
    try:
        resumed = job(top)
    except atomik.errors.FileAlreadyExistsError:
        return False
    if resumed:
        _not_again(top.parent / "computed", str(top))
    return resumed


def _not_again(computed: Path, point: str) -> None:
    lines = computed.read_text().split()
    assert len(lines) <= len(PARTS) + 1, f"{point}: what was complete was computed again: {lines}"


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_recovery_dies_at_every_call(tmp_path: Path, job: Job) -> None:
    """A job killed right after its first swap, whose recovery (by the next run, too) is killed at every call."""
    top = tmp_path / "there" / "top"
    _build(top)
    assert not job(top)
    new = _seen(top)
    for again in (lambda: atomik.recover(top, top.parent / "tmp"), lambda: _again(job, top)):
        _build(top)
        _die_in_the_swaps(top, job)
        for point in every_death(again, step=2):
            if point.returned:
                break
            _again(job, top)
            atomik.recover(top, top.parent / "tmp")
            assert _seen(top) == new, str(point)
            assert not left_in(top.parent), str(point)
            _build(top)
            _die_in_the_swaps(top, job)


def _die_in_the_swaps(top: Path, job: Job) -> None:
    from tests.crash.deaths import die_at

    die_at(lambda: job(top), "rename", _renames(job))


def _renames(job: Job) -> int:
    """The number of the rename that is the first swap: that of the clone's name, and for a path that of the sealed output,
    come before."""
    return 2


TRAINING = """
import sys, atomik
from pathlib import Path
top = Path(sys.argv[1])
with atomik.folder(top / "model", overwrite=True, resume=True) as new:
    state = new / "state"
    done, total = map(int, state.read_text().split()) if state.exists() else (0, 0)
    print("resumed" if new.resumed else "began", flush=True)
    while done < 40:
        total = (total * 31 + done) % 1_000_003
        done += 1
        (new / f"step-{done % 5}").write_text(str(total) * 200)
        with atomik.file(state, overwrite=True, durable=False) as f:
            f.write(f"{done} {total}")
    (new / "result").write_text(str(total))
"""


def test_it_is_killed_200_times_at_random(tmp_path: Path) -> None:
    """Whatever the moment, the result is that of a job that nobody disturbed."""
    moments, kills, resumed = Random(17), 0, 0
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    duration = max(_train(undisturbed, None)[2] for _ in range(2))
    expected = _result(undisturbed)
    while kills < 200:
        shutil.rmtree(killed, ignore_errors=True)
        (killed / "model").mkdir(parents=True)
        (killed / "model" / "old").write_text("old")
        for _ in range(1000):
            said, code, _ = _train(killed, moments.uniform(0, duration * 1.1))
            resumed += said == "resumed"
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
        assert _result(killed) == expected
        atomik.recover(killed)
        assert not left_in(killed)
    assert resumed > 40, f"of {kills} kills only {resumed} left something to go on with"


def _train(top: Path, seconds: float | None) -> tuple[str, int, float]:
    """What the job said, its exit code, and the seconds from then on; it is killed after so many, or left alone."""
    code = [sys.executable, "-c", TRAINING, str(top)]
    environment = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}
    job = subprocess.Popen(code, stdout=subprocess.PIPE, text=True, env=environment)
    assert job.stdout is not None
    with job.stdout:
        said = job.stdout.readline().strip()
    began = time.monotonic()
    try:
        job.wait(timeout=60 if seconds is None else seconds)
    except subprocess.TimeoutExpired:
        job.kill()
    return said, job.wait(), time.monotonic() - began


def _result(top: Path) -> dict[str, object]:
    """What is published."""
    return tree(top / "model")
