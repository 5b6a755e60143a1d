"""The same deaths on real filesystems: each has its own order of things, handles, and ways to refuse."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.crash import scenarios
from tests.crash.deaths import WAYS, die, gets_well, killed_everywhere, recover_one
from tests.crash.scenarios import Expected, World
from tests.crash.test_recovery_killed import recovery_killed
from tests.support.lab import mounts
from tests.support.lab.need import need

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Job = Callable[[World, bool | str], object]

pytestmark = [pytest.mark.root, pytest.mark.filesystems]

KINDS = (
    "ext4", "xfs", "btrfs", "btrfs-subvolume", "tmpfs", "overlay-redirect-on", "overlay-redirect-off", "bind", "fuse-honours",
)  # fmt: skip
ONE = (scenarios.one_overwritten, scenarios.one_folder_over, scenarios.one_new)


@pytest.mark.parametrize("job", [scenarios.mixed, scenarios.moves, scenarios.kept], ids=lambda job: job.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_transaction_is_all_old_or_all_new(kind: str, job: Job) -> None:
    """Whatever the filesystem: old or new after recovery, or after the next transaction, reader or one-item write."""
    need(mounts.missing(kind))
    with mounts.mounted(kind) as place:
        assert killed_everywhere(World(place.folder / "world"), job, True, step=3) > 12


@pytest.mark.parametrize("job", ONE, ids=lambda job: job.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_one_item_write_is_old_or_new(kind: str, job: Job) -> None:
    """The same for one item."""
    need(mounts.missing(kind))
    with mounts.mounted(kind) as place:
        assert killed_everywhere(World(place.folder / "world"), job, True) > 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_recovery_is_taken_up_by_the_next(kind: str) -> None:
    """The recovery dies as well."""
    need(mounts.missing(kind))
    with mounts.mounted(kind) as place:
        world = World(place.folder / "world")
        assert recovery_killed(world, scenarios.mixed, recover_one, first=40, step=9, inner=9) > 10


@pytest.mark.parametrize("kind", ["overlay-redirect-on", "overlay-redirect-off"])
def test_objects_of_the_lower_layer_come_back(kind: str) -> None:
    """An object's identity outlasts its copy-up: what was displaced from the lower layer is known again."""
    need(mounts.missing(kind))
    job = scenarios.mixed if kind.endswith("on") else scenarios.two_overwritten
    with mounts.mounted(kind, prepare=_world) as place:
        expected = Expected(old=World(place.folder).look(), new={})
        job(World(place.folder), False)
        expected = Expected(old=expected.old, new=World(place.folder).look())
    ways = count()
    outcomes = set()
    for number in range(1, 200, 4):
        with mounts.mounted(kind, prepare=_world) as place:
            world = World(place.folder)
            point = die(lambda world=world: job(world, True), number, "after")  # type: ignore[misc]
            outcomes.add(gets_well(world, expected, point, WAYS[next(ways) % len(WAYS)]))
        if point.returned:
            break
    assert outcomes == {"old", "new"}


def _world(lower: Path) -> None:
    """The world of the scenarios, in the lower layer, where the mount's folder shows it."""
    World(lower / "work").build()
