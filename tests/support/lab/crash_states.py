"""From a recorded log, the disks that a power cut could have left. Pure: no file is touched here.

The model of the disk: what a flush followed is durable. Of what came later, any
set of 4 KiB blocks may have reached the medium, in any order. The cuts are laid
before every flush, before every mark and at the end; for each of them come

- ``all``      everything that was written reached the disk,
- ``none``     only what had been flushed,
- ``subset…``  every other set of blocks, where there are few enough of them,
- ``random…``  else a seeded choice: half, most, or few of the blocks, or all up to one moment.

A state carries the marks that the workload had passed before the cut: what it
claimed there must hold. The label, such as ``7/123/random4`` (seed, event,
choice), together with the log and the seed's ``samples``, gives the same state
again by :func:`state_at`.

Assumed, and so not tested: a disk that does not lie about flushes, writes a
4 KiB block whole or not at all, and has everything that is before a flush in the log
when it answers that flush.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.lab.recorder import START, Event, Flush, Mark, Write

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BLOCK = 4096
_SECTOR = 512
_DENSITIES = (0.5, 0.9, 0.1)


@dataclass(frozen=True)
class CrashState:
    """One disk that a power cut could have left."""

    label: str
    """Says which state of which cut this is; see :func:`state_at`."""
    event: int
    """The cut: the power went before ``events[event]`` (or at the end)."""
    durable: int
    """All writes in ``events[:durable]`` are on the disk."""
    writes: tuple[Write, ...] = field(repr=False)
    """What else is on the disk: of the writes not flushed, the blocks that made it, in order."""
    marks: tuple[str, ...]
    """The marks passed before the cut, oldest first, that of the start left out."""


def crash_states(
    events: Sequence[Event], *, seed: int, samples: int = 6, distinct: bool = True
) -> Iterator[CrashState]:
    """The crash states of a log, in the order of the log, from its last start mark on.

    At most ``samples`` states per cut beside ``all`` and ``none``. With
    ``distinct``, a disk that was already given with the same marks is left out.
    """
    seen = _Seen()
    for cut in _cuts(events):
        seen.advance(events, cut.durable)
        for choice in _choices(len(cut.blocks), samples):
            state = cut.state(seed, choice)
            if not distinct or seen.is_new(state):
                yield state


def state_at(events: Sequence[Event], label: str) -> CrashState:
    """The state that :func:`crash_states` gave under ``label`` for the same log.

    Raises LookupError for a label that does not belong to this log.
    """
    seed, event, choice = label.split("/")
    for cut in _cuts(events):
        if cut.event == int(event):
            return cut.state(int(seed), choice)
    raise LookupError(f"no cut of this log has the label {label!r}")


@dataclass(frozen=True)
class _Cut:
    """A moment at which the power can go: before ``events[event]``."""

    event: int
    durable: int
    blocks: tuple[Write, ...]
    marks: tuple[str, ...]

    def state(self, seed: int, choice: str) -> CrashState:
        label = f"{seed}/{self.event}/{choice}"
        kept = _keep(self.blocks, choice, random.Random(label))
        return CrashState(label, self.event, self.durable, kept, self.marks)


def _cuts(events: Sequence[Event]) -> Iterator[_Cut]:
    """Every cut after the start, with the blocks that are in flight there."""
    start = start_of(events)
    durable, flying, marks = start, list[Write](), list[str]()
    for index in range(start, len(events)):
        event = events[index]
        if isinstance(event, Write):
            flying.extend(_blocks(event))
            continue
        yield _Cut(index, durable, tuple(flying), tuple(marks))
        if isinstance(event, Flush):
            durable, flying = index + 1, []
        else:
            marks.append(event.text)
    yield _Cut(len(events), durable, tuple(flying), tuple(marks))


def start_of(events: Sequence[Event]) -> int:
    """The index of the first event after the last start mark; 0 without one."""
    for index in range(len(events), 0, -1):
        event = events[index - 1]
        if isinstance(event, Mark) and event.text == START:
            return index
    return 0


def _blocks(write: Write) -> Iterator[Write]:
    """The write, cut at the disk's block boundaries."""
    position, end = write.offset, write.offset + len(write.data)
    while position < end:
        edge = min(end, position - position % BLOCK + BLOCK)
        yield Write(position, write.data[position - write.offset : edge - write.offset])
        position = edge


def _choices(blocks: int, samples: int) -> Iterator[str]:
    yield "all"
    if not blocks:
        return
    yield "none"
    others = 2**blocks - 2 if blocks < 32 else samples + 1
    if others <= samples:
        yield from (f"subset{bits}" for bits in range(1, others + 1))
    else:
        yield from (f"random{number}" for number in range(samples))


def _keep(blocks: tuple[Write, ...], choice: str, rng: random.Random) -> tuple[Write, ...]:
    if choice == "all":
        return blocks
    if choice == "none":
        return ()
    if choice.startswith("subset"):
        bits = int(choice.removeprefix("subset"))
        return tuple(block for place, block in enumerate(blocks) if bits >> place & 1)
    kind = int(choice.removeprefix("random")) % (len(_DENSITIES) + 1)
    if kind == len(_DENSITIES):
        return blocks[: rng.randrange(len(blocks) + 1)]
    return tuple(block for block in blocks if rng.random() < _DENSITIES[kind])


class _Seen:
    """Which disks were given already, distinguished by the content of every sector written since the start."""

    def __init__(self) -> None:
        self._given: set[tuple[int, int]] = set()
        self._sectors: dict[int, int] = {}
        self._digest = 0
        self._position: int | None = None

    def advance(self, events: Sequence[Event], durable: int) -> None:
        """Take in the writes that have become durable."""
        begin = durable if self._position is None else self._position
        for event in events[begin:durable]:
            if isinstance(event, Write):
                self._digest = _apply(event, self._digest, self._sectors, self._sectors)
        self._position = durable

    def is_new(self, state: CrashState) -> bool:
        """Whether this disk with these marks has not been asked about before."""
        digest, changed = self._digest, dict[int, int]()
        for write in state.writes:
            digest = _apply(write, digest, changed, self._sectors)
        key = digest, len(state.marks)
        new = key not in self._given
        self._given.add(key)
        return new


def _apply(write: Write, digest: int, changed: dict[int, int], below: dict[int, int]) -> int:
    """The digest of a disk after ``write``; ``changed`` over ``below`` is what its sectors hold."""
    for start in range(0, len(write.data), _SECTOR):
        sector = (write.offset + start) // _SECTOR
        content = hashlib.blake2b(write.data[start : start + _SECTOR], digest_size=16, salt=sector.to_bytes(8)).digest()
        value = int.from_bytes(content)
        # XOR takes the sector's old content out and puts the new one in, whatever the order.
        digest ^= changed.get(sector, below.get(sector, 0)) ^ value
        changed[sector] = value
    return digest
