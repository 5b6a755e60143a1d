"""Killing: one death at a chosen call, and the ways to get well afterwards."""

from __future__ import annotations

import os
import signal
import traceback
from itertools import count
from typing import TYPE_CHECKING

import atomik
from atomik import testing
from atomik.testing import CrashPoint
from tests.crash.scenarios import Expected, World
from tests.support.kernels import Acting, installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Job = Callable[[World, bool | str], object]
    Way = Callable[[World], object]


def die(function: Callable[[], object], number: int, when: str) -> CrashPoint:
    """Run `function` in a child that is killed before or after its `number`-th call that changes something."""
    return testing._run(function, number, when)


def every_death(function: Callable[[], object], *, step: int = 1, first: int = 1) -> Iterator[CrashPoint]:
    """Every point at which `function` can die, and last the one at which it did not; the caller must set the scene
    before it asks for the next."""
    number = first
    while True:
        for when in ("before", "after"):
            point = die(function, number, when)
            yield point
            if point.returned:
                return
        number += step


def next_transaction(world: World) -> None:
    """A transaction in every folder, which changes nothing to be seen."""
    with atomik.transaction(overwrite=True) as tx:
        for folder in world.folders[:3]:
            tx.symlink(folder / "passing", "by")
    with atomik.transaction() as tx:
        for folder in world.folders[:3]:
            tx.remove(folder / "passing", missing_ok=True)


def next_one_item(world: World) -> None:
    """A one-item write in every folder."""
    for folder in world.folders[:3]:
        with atomik.file(folder / "passing") as f:
            f.write("by")
        (folder / "passing").unlink()


def next_reader(world: World) -> None:
    """A reader of all folders."""
    with atomik.reading(*world.folders):
        pass


def recover_one(world: World) -> None:
    """From the first parent that every job has, the others are found."""
    atomik.recover(world.a)


def recover_last(world: World) -> None:
    """From another parent, if the job has one: its journal leads to the first."""
    atomik.recover(world.c)
    atomik.recover(world.b)
    atomik.recover(world.a)


def recover_all(world: World) -> None:
    atomik.recover(*world.parents)


WAYS = (recover_one, recover_last, next_transaction, next_one_item, next_reader)


def gets_well(world: World, expected: Expected, point: CrashPoint, way: Callable[[World], object]) -> str:
    """After `point`: one of the ways gives all old or all new; recovery of all does not change that, and cleans up."""
    way(world)
    seen = expected.which(world, f"{point}, after {way.__name__}")
    if point.returned:
        assert seen == "new", f"commit() returned, and yet the old is back, after {way.__name__}"
    recover_all(world)
    assert expected.which(world, f"{point}, after recovery") == seen, f"recovery changed its mind, {point}"
    assert not world.leftovers(), f"left over, {point}, after {way.__name__}: {world.leftovers()}"
    return seen


def killed_everywhere(
    world: World, job: Job, durable: bool | str, *, step: int = 1, ways: tuple[Way, ...] = WAYS
) -> int:
    """Die at every call of `job`, and get well in each of the ways by turns; the number of points."""
    expected = Expected.of(world, job)
    turn, outcomes = count(), []
    world.build()
    for point in every_death(lambda: job(world, durable), step=step):
        way = ways[next(turn) % len(ways)]
        outcomes.append(gets_well(world, expected, point, way))
        world.build()
    assert outcomes[0] == "old", "the first call cannot have published anything"
    assert outcomes[-1] == "new", "the last point is the job's end"
    return len(outcomes)


def die_at(function: Callable[[], object], call: str, nth: int = 1, *, after: bool = True) -> None:
    """Run `function` in a child that is killed right after (or before) its `nth` call of that name."""
    child = os.fork()
    if child == 0:
        left = count(nth, -1)
        kill = Acting(call, lambda _: os.kill(os.getpid(), signal.SIGKILL), when=lambda _: next(left) == 1, after=after)
        try:
            with installed(kill):
                function()
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"it outlived its {call} number {nth}"
