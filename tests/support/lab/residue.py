"""What the machine holds of mounts, loop devices and FUSE connections, to compare before and after.

    before = look()
    ...
    assert not left_since(before)

Only system-wide things count, whoever made them: on a machine where others mount
too, a difference can be theirs.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.lab import linux, namespace

if TYPE_CHECKING:
    from collections.abc import Callable

_FIRST_WAIT = 0.001


@dataclass(frozen=True)
class Residue:
    """What there is, or, of a difference, what is new."""

    loops: frozenset[str]
    """Attached loop devices, as "loop3: backing file"."""
    connections: frozenset[str]
    """FUSE connections, by the number the kernel gave them."""
    mounts: frozenset[str]
    """Mount points in this process's namespace."""

    def __sub__(self, other: Residue) -> Residue:
        return Residue(self.loops - other.loops, self.connections - other.connections, self.mounts - other.mounts)

    def __and__(self, other: Residue) -> Residue:
        return Residue(self.loops & other.loops, self.connections & other.connections, self.mounts & other.mounts)

    def __bool__(self) -> bool:
        return bool(self.loops or self.connections or self.mounts)


def look() -> Residue:
    """What is attached, connected and mounted now. Needs root: the lab mounts fusectl for itself."""
    return Residue(_loops(), _connections(), frozenset(namespace.mount_points()))


def left_since(before: Residue, *, patience: float = 60.0) -> Residue:
    """What is there now and was not before; empty (false) is good. Looks again for ``patience`` seconds."""
    return _after_a_while(lambda: look() - before, patience)


def left_of(taken: Residue, *, patience: float = 60.0) -> Residue:
    """What is still there of ``taken`` (some process's ``look() - before``); empty (false) is good."""
    return _after_a_while(lambda: look() & taken, patience)


def _after_a_while(left: Callable[[], Residue], patience: float) -> Residue:
    """Look until nothing is left: the kernel frees things a moment after their last user is gone."""
    deadline, wait = time.monotonic() + patience, _FIRST_WAIT
    while (found := left()) and time.monotonic() < deadline:
        time.sleep(wait)
        wait = min(wait * 2, 0.1)
    return found


def _loops() -> frozenset[str]:
    found = set()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # detached this very moment
            found.add(f"{backing.parts[3]}: {backing.read_text().strip()}")
    return frozenset(found)


def _connections() -> frozenset[str]:
    """Looked up in a fusectl of our own, for /sys/fs/fuse/connections is often not mounted."""
    point = namespace.enter() / "fusectl"
    if not point.exists():
        point.mkdir()
        linux.mount("fusectl", point, "fusectl")
    return frozenset(os.listdir(point))
