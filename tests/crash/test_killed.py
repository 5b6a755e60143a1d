"""A transaction dies at every call that changes something: afterwards everything is old, or everything is new."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from atomik.testing import recorded
from tests.crash import deaths, scenarios
from tests.crash.deaths import killed_everywhere
from tests.crash.scenarios import World

if TYPE_CHECKING:
    from collections.abc import Callable

    Job = Callable[[World, bool | str], object]

pytestmark = pytest.mark.sweep


@pytest.mark.parametrize("job", scenarios.SEVERAL, ids=lambda job: job.__name__)
def test_several_items_are_all_old_or_all_new(world: World, job: Job) -> None:
    """I1 to I6: whatever kills a transaction of several items, it is undone as a whole or finished as a whole."""
    assert killed_everywhere(world, job, True, step=2 if job is scenarios.mixed else 3) > 12


@pytest.mark.parametrize("job", [scenarios.mixed, scenarios.moves], ids=lambda job: job.__name__)
def test_without_durability_the_death_of_a_process_is_survived_all_the_same(world: World, job: Job) -> None:
    """durable=False leaves out the syncs, not the journal."""
    assert killed_everywhere(world, job, False, step=3) > 10


@pytest.mark.usefixtures("one_log")
@pytest.mark.parametrize("job", scenarios.IN_ONE_FOLDER, ids=lambda job: job.__name__)
def test_where_the_mark_is_a_name(world: World, job: Job) -> None:
    """One sync stands for B2 and B3."""
    world.build()
    calls = recorded(lambda: job(world, True))
    assert any(name == "link" and given[2].endswith("-committed") for name, given in calls)
    assert killed_everywhere(world, job, True) > 20


def test_the_same_on_disk(world_on_disk: World) -> None:
    """Where the other tests are in memory."""
    assert killed_everywhere(world_on_disk, scenarios.mixed, True, step=4) > 20


@pytest.mark.parametrize("job", scenarios.ONE, ids=lambda job: job.__name__)
def test_one_item_is_old_or_new(world: World, job: Job) -> None:
    """P1: one item is a single step, and its remains are found by recovery."""
    assert killed_everywhere(world, job, True) > 6


@pytest.mark.slow
@pytest.mark.parametrize("durable", [True, False, "fsync", "syncfs"])
@pytest.mark.parametrize("way", deaths.WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("job", [*scenarios.SEVERAL, *scenarios.ONE], ids=lambda job: job.__name__)
def test_every_job_every_way_and_every_durability(world: World, job: Job, way: object, durable: bool | str) -> None:
    """The same with each way to get well at every point."""
    killed_everywhere(world, job, durable, ways=(way,))
