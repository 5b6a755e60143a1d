"""The commit: what both ways from sealed items to published ones share.

* `Single` (_single.py): one step is atomic by itself, so there is no journal, and no lock beyond the one that covers a
  slot beside the destination.  Last writer wins, as with rename(2).
* `Group` (_group.py): several steps, or one with ``expect``: locks, journal, three barriers.

A commit either returns, with everything new, or raises, with everything old; ``state`` says so where it is not.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, TypeVar

from attrs import define, field

from atomik import _events, errors
from atomik._protocol.step import Step
from atomik._receipt import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from atomik._folder.directory import Directory
    from atomik._staging.item import Item
    from atomik._staging.workspace import Workspace

    from .barriers import Barriers

_T = TypeVar("_T")

#: Seconds between the swap of a folder and the deletion of the old one, for readers that list the old one just then.
GRACE = 0.005


@define(eq=False)
class Commit:
    """One attempt to publish; see the module."""

    workspace: Workspace
    items: list[Item]
    barriers: Barriers
    lock_timeout: float
    progress: Callable[[str, int, int], None] | None = None
    state: State = field(default=State.OPEN, init=False)
    steps: list[Step] = field(factory=list, init=False)
    #: (path, reason) of what could not be cleaned up
    leftovers: list[str] = field(factory=list, init=False)
    #: its end has been logged already
    told: bool = field(default=False, init=False)
    #: displaced originals that must stay, because a stranger's object stands where they belong
    stranded: list[Step] = field(factory=list, init=False)
    _visible_from: float = field(default=0.0, init=False)
    visible: float = field(default=0.0, init=False)

    def run(self) -> None:
        """Publish, or raise; see the two ways below."""
        raise NotImplementedError

    @property
    def txid(self) -> str:
        """The transaction's id."""
        return self.workspace.txid

    def event(self, level: int, name: str, **fields: object) -> None:
        """Log, bound to the transaction."""
        _events.emit(level, name, tx=self.txid, **fields)

    @property
    def at(self) -> str | None:
        """The destination whose step was begun last, for messages."""
        return str(self.steps[-1].dest) if self.steps else None

    def tell(self, phase: str, done: int, total: int) -> None:
        """Report progress, if somebody wants it."""
        if self.progress is not None:
            self.progress(phase, done, total)

    def syncing(self, done: int, total: int) -> None:
        """Report the barriers behind us; before each, for behind the last there is no way back for a failing callback."""
        if self.barriers.durable:
            self.tell("syncing", done, total)

    def wait_or_recover(self, directory: Directory) -> None:
        """A journal lies in the folder: wait for its owner, or recover what a dead one left."""
        from atomik._recovery.unfinished_journal import wait_or_recover

        wait_or_recover(directory, self.lock_timeout)

    def check_parent(self, directory: Directory) -> None:
        """The folder that was opened when the item was staged must still be the one at its path."""
        if not directory.still_there():
            text = "the folder was moved, removed or replaced since the output was staged; stage again"
            errors.fail(errors.ConflictError, errno.ESTALE, text, directory.path)

    def failed_cleanup(self, path: str, exc: OSError) -> None:
        """A failure behind the commit point: told, never raised."""
        self.leftovers.append(f"{path}: {exc.strerror or exc}")
        self.event(_events.WARNING, "cleanup.failed", path=path, error=str(exc))

    def spare_readers(self) -> None:
        """Who opened a folder right before it was displaced is perhaps listing it this very moment, and would see it
        being emptied: give them a moment.  A commit that waited for its barriers has given it already."""
        if any(step.op != "create" and step.folder for step in self.steps):
            left = self._visible_from + self.visible + _grace() - time.perf_counter()
            if left > 0:
                time.sleep(left)

    def swapped(self, step: Step, order: int) -> None:
        """Log one swap."""
        if _events.heard(_events.DEBUG):
            self.event(
                _events.DEBUG, "item.swapped", path=str(step.dest), kind=step.kind, op=step.op, method=step.method,
                order=order, st_dev=step.dest.directory.dev,
            )  # fmt: skip


def _grace() -> float:
    """`GRACE`, or more where a reader that was stopped in between waits longer for a processor: at 2.8 runnable
    programs a processor, 5 ms were too short for 165 of 10,000 swaps under a spinning reader, 20 ms for none of 2,000."""
    try:
        crowd = os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:  # no /proc
        crowd = 1.0
    return GRACE * min(max(1.0, 2 * crowd), 20.0)


#: What a signal handler raises to end the program: Ctrl-C, or sys.exit() on SIGTERM.
Interrupt = KeyboardInterrupt | SystemExit


def uninterrupted(action: Callable[[], _T]) -> tuple[_T, Interrupt | None]:
    """Finish an idempotent action although Ctrl-C comes in the middle; (its result, the interrupt to raise later)."""
    interrupt: Interrupt | None = None
    while True:
        try:
            return action(), interrupt
        except (KeyboardInterrupt, SystemExit) as exc:
            interrupt = exc
