"""The mutation gate on real filesystems: which mutant a crash state gives away, where, and with what noise."""

from __future__ import annotations

import random
from collections.abc import Iterator

from attrs import define, field

from tests.powercut import tape
from tests.powercut.mutants import MUTANTS, Mutant
from tests.powercut.tape import KINDS
from tests.powercut.workloads import NAMED

#: What is tried, in this order, when a filesystem has not betrayed a mutant yet.
TRIED = ("quiet", "file", "sync", "sync+private folders", "sync+parents", "parents", "private folders")

SEED = 7


@define
class Row:
    """One mutant, and where it was caught: filesystem -> noise.  The strictest disk catches each (test_strict.py)."""

    mutant: Mutant
    caught: dict[str, str] = field(factory=dict)

    def __str__(self) -> str:
        where = ", ".join(f"{kind} ({noise})" for kind, noise in self.caught.items())
        return f"{self.mutant.name:20} {self.mutant.rule:58} {where or 'by the strictest disk alone'}"


def caught(mutant: Mutant, kind: str, noise: str, *, limit: int = 150, samples: int = 3) -> str | None:
    """What is wrong in the first crash state that gives the mutant away, or None when none of them does."""
    try:
        take = tape.record(kind, NAMED[mutant.history], noise, mutant.around)
    except AssertionError as error:
        return f"without any power cut: {error}"
    states = list(take.images.states(seed=SEED, samples=samples))
    # In no order, because they come in that of the log, and most mutants show late in it.
    random.Random(SEED).shuffle(states)
    for state in states[:limit]:
        if (problem := tape.judge(take, state)) is not None:
            return f"{state.label}: {problem}"
    return None


def table(kinds: tuple[str, ...] = KINDS) -> Iterator[Row]:
    """Every mutant on every filesystem, until some noise gives it away there."""
    for mutant in MUTANTS.values():
        row = Row(mutant)
        for kind in kinds:
            for noise in dict.fromkeys((mutant.shows.get(kind, TRIED[0]), *TRIED)):
                if caught(mutant, kind, noise) is not None:
                    row.caught[kind] = noise
                    break
        yield row
