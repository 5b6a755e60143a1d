"""Many recordings, one after the other, within a time: how many states there were, and the first finding.

    campaign = Campaign(seed=7, minutes=30)
    finding = campaign.run()          # None, or a `Finding`; campaign.counts says what was explored
    finding.save(path)                # log, disk and label in one file
    Finding.load(path).replay()       # the very same crash state again

The named histories come round by round, each time with another noise, and between them random ones: for every third at
first, for every one from the second round on.  In every recording the recovery of some crash states of an unfinished
commit is recorded and cut as well.
"""

from __future__ import annotations

import gzip
import os
import pickle
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from attrs import define, field

from tests.powercut import tape
from tests.powercut.histories import History
from tests.powercut.noise import NOISES
from tests.powercut.tape import KINDS, Take
from tests.powercut.workloads import NAMED, random_history
from tests.support.lab import images, namespace
from tests.support.lab.crash_images import CrashImages
from tests.support.lab.crash_states import CrashState, state_at
from tests.support.lab.recorder import load_events, save_events


@define
class Counts:
    """What was explored on one filesystem."""

    recordings: int = 0
    states: int = 0
    recoveries: int = 0
    recovery_states: int = 0
    seconds: float = 0.0

    @property
    def all_states(self) -> int:
        """Crash states of commits and of recoveries."""
        return self.states + self.recovery_states


@define
class Finding:
    """A crash state that breaks the promise, with everything that is needed to see it again."""

    take: Take
    state: CrashState
    problem: str

    def __str__(self) -> str:
        where = f"{self.take.kind}, history {self.take.history.name}, noise {self.take.noise}, state {self.state.label}"
        return f"{where}, marks {list(self.state.marks)}:\n  {self.problem}"

    def save(self, path: Path) -> None:
        """Keep log, disk, history and label in one file."""
        work = namespace.scratch("finding")
        save_events(self.take.images.events, work / "events")
        data = {
            "kind": self.take.kind,
            "history": self.take.history,
            "noise": self.take.noise,
            "trees": self.take.trees,
            "label": self.state.label,
            "problem": self.problem,
            "events": (work / "events").read_bytes(),
            "disk": _sparse(self.take.images.pristine),
        }
        with gzip.open(path, "wb", compresslevel=1) as file:
            pickle.dump(data, file)

    @classmethod
    def load(cls, path: Path) -> Finding:
        """What `save` kept."""
        with gzip.open(path, "rb") as file:
            data = pickle.load(file)
        work = namespace.scratch("finding")
        (work / "events").write_bytes(data["events"])
        _fill(work / "disk.img", *data["disk"])
        take = Take(data["kind"], data["history"], data["noise"], data["trees"])
        take.images = CrashImages(take.kind, work / "disk.img", load_events(work / "events"))
        return cls(take, state_at(take.images.events, data["label"]), data["problem"])

    def replay(self) -> str | None:
        """What is wrong in the state now, with the library as it is now."""
        return tape.judge(self.take, self.state)


def _sparse(image: Path) -> tuple[int, list[tuple[int, bytes]]]:
    with image.open("rb") as file:
        fd = file.fileno()
        pieces = [(start, os.pread(fd, end - start, start)) for start, end in images.extents(fd)]
        return os.fstat(fd).st_size, pieces


def _fill(image: Path, size: int, pieces: list[tuple[int, bytes]]) -> None:
    with image.open("wb") as file:
        file.truncate(size)
        for start, data in pieces:
            file.seek(start)
            file.write(data)


@define
class Campaign:
    """See the module.  ``limit``: crash states of one recording; ``recuts``: recoveries cut of one recording."""

    seed: int = 7
    minutes: float = 1.0
    kinds: tuple[str, ...] = KINDS
    limit: int = 60
    samples: int = 4
    recuts: int = 1
    tell: Callable[[str], Any] = print
    counts: dict[str, Counts] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.counts = {kind: Counts() for kind in self.kinds}

    def run(self) -> Finding | None:
        """Continue until the time is over, or something is found."""
        end = time.monotonic() + 60 * self.minutes
        for kind, history, noise in self.plan():
            if time.monotonic() >= end:
                return None
            began = time.monotonic()
            finding = self.explore(kind, history, noise)
            self.counts[kind].seconds += time.monotonic() - began
            if finding is not None:
                return finding
        raise AssertionError("the plan never ends")

    def plan(self) -> Iterator[tuple[str, History, str]]:
        """Which recordings, in which order; it never ends."""
        number = 0
        while True:
            for at, history in enumerate(NAMED.values()):
                for shift, kind in enumerate(self.kinds):
                    yield kind, history, self.noise(at + number + 3 * shift, number)
                if number or at % 3 == 0:
                    for kind in self.kinds:
                        name = f"{self.seed}.{number}.{at}.{kind}"
                        yield kind, random_history(name), self.noise(random.Random(name).randrange(99), number)
            number += 1

    def noise(self, at: int, number: int) -> str:
        """A noise for the `at`-th history of a round; from the second round on, every other one is random."""
        if number and at % 2:
            return f"random:{self.seed}.{number}.{at}"
        return NOISES[at % len(NOISES)]

    def explore(self, kind: str, history: History, noise: str) -> Finding | None:
        """One recording: its crash states, and the recovery of some of them, cut."""
        count = self.counts[kind]
        take = tape.record(kind, history, noise)
        count.recordings += 1
        states = self.chosen(take)
        for state in states:
            count.states += 1
            if (problem := tape.judge(take, state)) is not None:
                return Finding(take, state, problem)
        unfinished = [state for state in states if len(take.allowed(state.marks)) > 1]
        for state in random.Random(f"{self.seed}{noise}").sample(unfinished, min(self.recuts, len(unfinished))):
            second = tape.recut(take, state, noise)
            count.recoveries += 1
            for cut in self.chosen(second):
                count.recovery_states += 1
                if (problem := tape.judge(second, cut)) is not None:
                    return Finding(second, cut, problem)
        return None

    def chosen(self, take: Take) -> list[CrashState]:
        """The crash states of a take to look at: all, or as many as the limit says, spread over the log."""
        states: Iterable[CrashState] = take.images.states(seed=self.seed, samples=self.samples)
        found = list(states)
        if len(found) <= self.limit:
            return found
        places = sorted(random.Random(f"{self.seed}{take.history.name}").sample(range(len(found)), self.limit))
        return [found[place] for place in places]


def keep(finding: Finding) -> Path:
    """Save a finding in the current folder, or where temporary files go when that cannot be written to."""
    name = f"powercut-{finding.take.kind}-{finding.state.label.replace('/', '-')}.gz"
    try:
        finding.save(Path(name))
    except OSError:
        path = Path(tempfile.gettempdir(), name)
        finding.save(path)
        return path
    return Path(name)
