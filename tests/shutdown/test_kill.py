"""Many writers in the same folders, killed with SIGKILL again and again: readers see whole generations only."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import atomik
from tests.shutdown.crowd import Member, idle, prepare, recover, whole
from tests.support.state import eventually

ROUNDS = int(os.environ.get("ATOMIK_KILL_ROUNDS", "20"))
WRITERS = 8


def _reader(root: Path) -> str:
    with atomik.reading(root / "a", root / "b", lock_timeout=60):
        return whole(root)


@pytest.mark.sweep
def test_eight_writers_are_killed_at_random(tmp_path: Path) -> None:
    """Each death leaves work for the next writer or reader; none of them ever sees or leaves half a generation."""
    rng = random.Random(7)
    root = tmp_path / "shared"
    prepare(root, "before")
    members = [Member(root, durable=False, label=str(number)) for number in range(WRITERS)]
    born, generations = WRITERS, set[str]()
    try:
        for number in range(ROUNDS):
            if number % 4 == 0:  # on a busy machine they may all die before they have published anything
                assert eventually(lambda: _reader(root) not in generations | {"before"}), "nobody publishes"
            idle(rng, 0.03)
            place = rng.randrange(WRITERS)
            members[place].kill()
            members[place] = Member(root, durable=False, label=str(born))
            born += 1
            generations.add(_reader(root))
    finally:
        for member in members:
            member.kill()
    recover(root)
    whole(root)
