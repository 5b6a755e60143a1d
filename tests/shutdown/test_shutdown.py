"""The filesystem is shut down under several writers at random moments: what was committed is there, nothing is mixed.

The shutdown ioctl of ext4 and xfs stops the filesystem at once: what was not written is lost, nothing is reordered.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

import atomik
from tests.shutdown.crowd import crowd, idle, prepare, recover, whole
from tests.support.lab import mounts, shutdown
from tests.support.lab.need import need

if TYPE_CHECKING:
    from types import FunctionType as Way

pytestmark = [pytest.mark.root, pytest.mark.powercut]

ROUNDS = int(os.environ.get("ATOMIK_SHUTDOWN_ROUNDS", "12"))
WRITERS = 3


def alone(rng: random.Random, place: mounts.Mounted, number: int) -> None:
    """Every writer has folders of its own, so it is known which generation must be there."""
    roots = [place.folder / f"{number}-{writer}" for writer in range(WRITERS)]
    for root in roots:
        prepare(root, "before")
    with crowd(roots, durable=True) as members:
        rng.choice(members).wait_for(rng.randint(0, 3))
        idle(rng, 0.02)
        going = rng.choice((shutdown.Going.NOTHING_FLUSHED, shutdown.Going.LOG_FLUSHED))
        shutdown.shutdown(place.root, going)
    place.disk.remount()  # type: ignore[union-attr]
    for root, member in zip(roots, members, strict=True):
        to_do = atomik.recover(root / "a", root / "b", dry_run=True, lock_timeout=10)
        recover(root)
        label, _, generation = whole(root).partition(".")
        found = int(generation) if generation else -1
        assert label in ("before", member.label)
        told = f"{found} is there, {member.told} was committed; {going.name}; to recover: {to_do}"
        assert found in (member.told, member.told + 1), told


def together(rng: random.Random, place: mounts.Mounted, number: int) -> None:
    """All write to the same folders: some whole generation is there, and none that is older than a committed one of
    the same writer."""
    root = place.folder / f"{number}-shared"
    prepare(root, "before")
    with crowd([root] * WRITERS, durable=True) as members:
        rng.choice(members).wait_for(rng.randint(0, 3))
        idle(rng, 0.02)
        shutdown.shutdown(place.root)
    place.disk.remount()  # type: ignore[union-attr]
    recover(root)
    label, _, generation = whole(root).partition(".")
    if label == "before":
        assert all(member.told == -1 for member in members)
    else:
        assert int(generation) >= members[int(label)].told


@pytest.mark.parametrize("way", [alone, together])
@pytest.mark.parametrize("kind", shutdown.KINDS)
def test_what_was_committed_survives_a_shutdown(kind: str, way: Way) -> None:
    """In every round: all old or all new, the last committed generation or the one after it, nothing left over."""
    need(mounts.missing(kind))
    rng = random.Random(f"{kind} {way.__name__}")
    with mounts.mounted(kind) as place:
        for number in range(ROUNDS):
            way(rng, place, number)
