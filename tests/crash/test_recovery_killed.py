"""The recovery dies too, at every call, and the recovery after that: what the first death decided stays decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.crash import scenarios
from tests.crash.deaths import die, gets_well, next_reader, next_transaction, recover_all, recover_one
from tests.crash.scenarios import Expected, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from atomik.testing import CrashPoint

    Job = Callable[[World, bool | str], object]
    Way = Callable[[World], object]

pytestmark = pytest.mark.sweep


def deaths_of(world: World, job: Job, durable: bool, first: int, step: int) -> Iterator[tuple[int, str, CrashPoint]]:
    """The points at which the job dies, each with the scene set: the world as that death left it."""
    for number in range(first, 10_000, step):
        for when in ("before", "after"):
            world.build()
            point = die(lambda: job(world, durable), number, when)
            if point.returned:
                return
            yield number, when, point


def recovery_killed(
    world: World,
    job: Job,
    way: Way,
    *,
    durable: bool = False,
    first: int = 1,
    step: int = 1,
    inner: int = 1,
    twice: int = 0,
) -> int:
    """Kill `job`, kill `way` at every `inner`-th call of it, with `twice` also its successor at every such call; get well.

    Returns the number of deaths of recoveries.
    """
    expected = Expected.of(world, job)
    died = 0
    for number, when, point in deaths_of(world, job, durable, first, step):
        decided = gets_well(world, expected, point, recover_one)
        for second in range(1, 10_000, inner):
            world.build()
            die(lambda: job(world, durable), number, when)
            again = die(lambda: way(world), second, "before" if second % 2 else "after")
            if again.returned:
                break
            died += 1
            if twice:
                third = die(lambda: recover_all(world), 1 + (second * twice) % 40, "after")
                died += not third.returned
            seen = gets_well(world, expected, point, next_transaction if second % 3 else recover_one)
            assert seen == decided, f"job died {point}, recovery {again}: {decided} became {seen}"
    return died


def test_a_recovery_of_every_kind_of_item_may_be_killed(world: World) -> None:
    """I5: recovery is idempotent, at every call, for every kind of item."""
    assert recovery_killed(world, scenarios.mixed, recover_one, first=40, step=6, inner=4) > 40


def test_a_recovery_of_moves_may_be_killed_twice(world: World) -> None:
    """The same for objects that are neither new nor displaced, with two deaths in a row."""
    assert recovery_killed(world, scenarios.moves, recover_all, first=10, step=3, inner=3, twice=7) > 40


def test_a_reader_that_recovers_may_be_killed(world: World) -> None:
    """It does the same as `recover` in the folder that it reads."""
    assert recovery_killed(world, scenarios.two_overwritten, next_reader, first=12, step=4, inner=3) > 10


@pytest.mark.slow
@pytest.mark.parametrize("way", [recover_one, next_transaction, next_reader], ids=lambda way: way.__name__)
@pytest.mark.parametrize("job", scenarios.SEVERAL, ids=lambda job: job.__name__)
def test_every_recovery_at_every_call(world: World, job: Job, way: Way) -> None:
    """All of it: each death of the job, each death of what comes after it."""
    assert recovery_killed(world, job, way, step=2, inner=2) > 30


@pytest.mark.slow
@pytest.mark.parametrize("job", scenarios.SEVERAL, ids=lambda job: job.__name__)
def test_every_recovery_nested_twice(world: World, job: Job) -> None:
    """And a second death, at a call that differs from one to the next."""
    assert recovery_killed(world, job, recover_all, step=3, inner=2, twice=7) > 30
