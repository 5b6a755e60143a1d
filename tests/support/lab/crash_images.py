"""The disks of crash states, mounted: the filesystem recovers, and its files can be looked at.

    images = CrashImages.of(tape)
    for state in images.states(seed=7):
        with images.mounted(state) as folder:
            assert (folder / "x").read_bytes() in (OLD, NEW), state.label

States are cheap when they come in the order of the log: what has become durable
is written once into one image, and each state is a sparse copy of it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.lab import crash_states, disks, images, namespace
from tests.support.lab.crash_states import CrashState
from tests.support.lab.recorder import Event, Recording, Write

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class UnmountableError(RuntimeError):
    """The kernel refused to mount a crash state: a fault of the filesystem, or of the recording."""


@dataclass(eq=False)
class CrashImages:
    """Builds and mounts the crash states of one recording; keeps one image of the durable part."""

    kind: str
    """ext4, xfs or btrfs."""
    pristine: Path
    """The image before ``events[0]``; it is only read."""
    events: Sequence[Event]
    tape: Recording | None = field(default=None, repr=False)
    """Kept for its pristine image, which goes when the recording goes."""
    _durable: Path = field(init=False, repr=False)
    _position: int | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        self._durable = namespace.scratch("crash") / "durable.img"
        namespace.remove_with(self, self._durable.parent)

    @classmethod
    def of(cls, tape: Recording) -> CrashImages:
        """Those of a recording whose block has ended."""
        return cls(tape.kind, tape.pristine, tape.events, tape)

    def states(self, *, seed: int, samples: int = 6) -> Iterator[CrashState]:
        """See :func:`tests.support.lab.crash_states.crash_states`."""
        return crash_states.crash_states(self.events, seed=seed, samples=samples)

    def build(self, state: CrashState, target: Path) -> None:
        """Write the disk of ``state`` to the file ``target``, over what is there."""
        self._advance(state.durable)
        images.copy_sparse(self._durable, target)
        _write(target, state.writes)

    @contextlib.contextmanager
    def mounted(self, state: CrashState, *, options: str = "") -> Iterator[Path]:
        """Mount the disk of ``state`` and give the recording's folder on it, writable.

        Raises UnmountableError when the filesystem cannot be mounted. What the
        block changes is lost afterwards.
        """
        image = self._durable.with_name("state.img")
        self.build(state, image)
        with contextlib.ExitStack() as stack:
            try:
                disk = stack.enter_context(disks.disk(self.kind, image, options=options))
            except OSError as error:
                raise UnmountableError(f"state {state.label} of {self.kind}: {error}") from error
            yield disk.root / "work"

    def _advance(self, durable: int) -> None:
        """Bring the durable image to the state before ``events[durable]``."""
        if self._position is None or self._position > durable:
            images.copy_sparse(self.pristine, self._durable)
            self._position = 0
        _write(self._durable, self.events[self._position : durable])
        self._position = durable


def _write(image: Path, events: Sequence[Event]) -> None:
    fd = os.open(image, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for event in events:
            if isinstance(event, Write):
                os.pwrite(fd, event.data, event.offset)
    finally:
        os.close(fd)
