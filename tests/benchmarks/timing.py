"""Timing for a noisy machine: the contestants take turns in random order, and are compared round by round."""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Ratio(NamedTuple):
    """One contestant's time divided by another's, round by round: the median, and the middle half of the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


class Times:
    """Seconds of each round, by contestant."""

    def __init__(self, taken: Mapping[str, list[float]]) -> None:
        self.taken = taken

    def __contains__(self, name: str) -> bool:
        return name in self.taken

    def median(self, name: str) -> float:
        """Of all rounds."""
        return statistics.median(self.taken[name])

    def ratio(self, over: str, under: str) -> Ratio:
        """Of one to the other in the same round, so that what slows down the machine for a while slows down both."""
        ratios = sorted(a / b for a, b in zip(self.taken[over], self.taken[under], strict=True))
        low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        return Ratio(median, low, high)

    def without(self, name: str) -> Times:
        """What the others take more than `name`."""
        base = self.median(name)
        others = {who: [seconds - base for seconds in taken] for who, taken in self.taken.items() if who != name}
        return Times({who: [max(seconds, 1e-9) for seconds in taken] for who, taken in others.items()})

    def __str__(self) -> str:
        return "  ".join(f"{name} {self.median(name) * 1e6:,.1f} µs" for name in self.taken)


def interleaved(
    contestants: Mapping[str, Callable[[int], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> Times:
    """Each round calls each contestant once, with the number of the round.

    The order is drawn anew each round (from a fixed seed), so that nobody always runs behind the same neighbour: whoever
    comes after a writer that makes the disk work would pay for it.
    """
    names = list(contestants)
    drawn = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        drawn.shuffle(names)
        for name in names:
            started = clock()
            contestants[name](number)
            times[name].append(clock() - started)
    return Times(times)
