"""A transaction is a sequence: random ones against a dictionary with identities; see `tests.crash.model`.

``python -m tests.crash.model --minutes 30`` goes on for longer, with other sequences each time.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from tests.crash.model import Checker, Operation, Sequence, ground

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.sweep


@pytest.fixture
def checker() -> Iterator[Checker]:
    before = os.umask(0o022)
    with ground() as top:
        yield Checker(top)
    os.umask(before)


@pytest.mark.parametrize("part", range(4))
def test_random_sequences(checker: Checker, part: int) -> None:
    """Committed, aborted, failed, killed, prepared: every name has the object that the dictionary says; nothing is left."""
    for seed in range(part * 1000, part * 1000 + 10):
        rng = random.Random(seed)
        checker.check(Sequence.random(rng), rng, points=3)


FILE = ("file", 0o640)

FOUND = {
    "the mode of what is replaced comes from where that exists": (
        {"a/1": FILE, "a/2": ("file", 0o600), "b/1": FILE},
        (Operation("move", "b/1", "a/2", overwrite=True), Operation("file", "b/1", text="new", overwrite=True)),
    ),
    "what was removed gives no mode": (
        {"b/2": ("file", 0o700)},
        (Operation("remove", "b/2"), Operation("file", "b/2", text="new", overwrite=True)),
    ),
    "no backup of nothing": (
        {"a/1": ("link", 0), "b/2": ("folder", 0o750)},
        (Operation("move", "a/3", "b/2", backup="1"), Operation("file", "a/2", text="new", overwrite=True, backup="1")),
    ),
    "a backup of what was moved there": (
        {"a/1": FILE, "a/2": FILE},
        (Operation("move", "a/3", "a/1"), Operation("file", "a/3", text="new", overwrite=True, backup="1")),
    ),
    "log rotation": (
        {"a/1": FILE, "a/2": FILE, "a/3": FILE},
        (
            Operation("move", "a/3", "a/2", overwrite=True),
            Operation("move", "a/2", "a/1"),
            Operation("file", "a/1", text="new"),
        ),
    ),
    "three change places": (
        {"a/1": FILE, "a/2": ("folder", 0o755), "b/1": ("link", 0)},
        (Operation("exchange", "a/1", "a/2"), Operation("exchange", "a/2", "b/1")),
    ),
    "there and back": (
        {"a/1": FILE},
        (Operation("move", "b/1", "a/1"), Operation("move", "a/1", "b/1")),
    ),
    "one kind after the other": (
        {"a/1": ("folder", 0o755), "a/2": FILE},
        (
            Operation("remove", "a/1"), Operation("file", "a/1", text="new"),
            Operation("remove", "a/2"), Operation("folder", "a/2", text="new"),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FOUND)
def test_sequences_that_matter(checker: Checker, what: str) -> None:
    """Those that were found to go wrong, and those that users ask for."""
    plan, ops = FOUND[what]
    for durable in (False, True):
        checker.check(Sequence(plan, ops, durable), random.Random(what), points=4)


@pytest.mark.parametrize("what", FOUND)
def test_a_death_at_every_call(checker: Checker, what: str) -> None:
    """Killed at each call in turn: all old or all new."""
    plan, ops = FOUND[what]
    checker.every_death(Sequence(plan, ops))
