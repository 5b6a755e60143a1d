"""Timing for a noisy machine: the contestants take turns, and only medians and ratios are kept."""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def interleaved(contestants: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Seconds a call: each round calls each contestant once, with the number of the round; the median of the rounds.

    The order is drawn anew each round (from a fixed seed), so that nobody always runs behind the same neighbour: whoever
    comes after a writer that makes the disk work would pay for it.
    """
    names = list(contestants)
    drawn = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        drawn.shuffle(names)
        for name in names:
            started = time.perf_counter()
            contestants[name](number)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}
