"""Record a history on a real filesystem, and judge each disk that a power cut could have left of it.

    take = record("btrfs", NAMED["every/fsync"], "sync+private folders")
    for state in take.images.states(seed=7):
        if (wrong := judge(take, state)) is not None: ...

Marks in the log say what the history had reached: ``may N`` when tree N may show from now on, ``is N`` when it must.
`recut` records the recovery of one crash state, whose crash states can be judged in their turn.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from attrs import define, field

import atomik
from atomik._folder.directory import Directory
from tests.powercut.histories import Fill, History, Phase, Tree, difference, look, ours, plant, without_empty
from tests.powercut.noise import noise as neighbours
from tests.support.kernels import Acting, installed
from tests.support.lab import linux, namespace
from tests.support.lab.crash_images import CrashImages, UnmountableError
from tests.support.lab.crash_states import CrashState
from tests.support.lab.recorder import Recording, recording

KINDS = ("ext4", "xfs", "btrfs")

#: Something to put around the library while it works: a mutant.
Around = Callable[[], AbstractContextManager[Any]]


class Sabotage(Exception):
    """What the rolled-back phases fail with."""


@define
class Take:
    """One recording: the history, the trees that it went through, and the log."""

    kind: str
    history: History
    noise: str
    trees: list[Tree] = field(factory=list, repr=False)
    images: CrashImages = field(init=False, repr=False)

    def allowed(self, marks: tuple[str, ...]) -> list[Tree]:
        """The trees that may be found after these marks."""
        found = {0}
        for mark in marks:
            word, _, number = mark.partition(" ")
            found = {*found, int(number)} if word == "may" else {int(number)}
        return [self.trees[number] for number in sorted(found)]


def record(
    kind: str, history: History, noise: str = "quiet", around: Around = contextlib.nullcontext, size: int | None = None
) -> Take:
    """Perform the history on a fresh filesystem, with a noisy neighbour, and with the library as `around` makes it."""
    take = Take(kind, history, noise, [history.tree])
    with recording(kind, size=size) as tape:
        plant(tape.folder, history.tree)
        with Directory.open(str(tape.folder)) as here:
            here.sync()  # until something was synced, nobody knows whether ext4 makes fast commits
        tape.start()
        with neighbours(tape.folder, noise), around():
            for phase in history.phases:
                _perform(take, tape, phase)
        _last_noise(tape.folder)
    take.images = CrashImages.of(tape)
    return take


def _perform(take: Take, tape: Recording, phase: Phase) -> None:
    now = len(take.trees) - 1
    take.trees.append(phase.apply(take.trees[now]))
    word, _, at = phase.ending.partition(":")
    if word == "rollback":
        with contextlib.suppress(Sabotage):
            phase.perform(tape.folder, saboteur(int(at)))
        _reached(take, tape, now)
        return
    tape.mark(f"may {now + 1}")
    if word == "commit":
        phase.perform(tape.folder)
        _reached(take, tape, now + 1)
        return
    call, _, number = at.partition(":")
    killed(lambda: phase.perform(tape.folder), call, int(number))
    if not recover(take.history, tape.folder).items:
        return  # nothing to be seen of the dead: recovery promises nothing, and either tree may be found later
    found = without_empty(look(tape.folder), take.history.made())
    goal = without_empty(take.trees[now + 1], take.history.made())
    _reached(take, tape, now + 1 if found == goal else now)


def _reached(take: Take, tape: Recording, number: int) -> None:
    """The history has come to this tree: whatever it says from now on must last."""
    found, wanted = look(tape.folder), take.trees[number]
    made = take.history.made()
    if without_empty(found, made) != without_empty(wanted, made):
        raise AssertionError(f"{take.history.name}, before any power cut: {difference(found, wanted)}")
    # A later phase starts from here, and not from where an earlier one would have led.
    take.trees.append(wanted)
    tape.mark(f"is {len(take.trees) - 1}")


def saboteur(at: int) -> Callable[[str, int, int], None]:
    def progress(phase: str, done: int, total: int) -> None:
        if phase == "swapping" and done == min(at, total):
            raise Sabotage

    return progress


def _last_noise(folder: Path) -> None:
    """Let the filesystem's journal go on once more, while what was not synced is still in memory."""
    fd = os.open(folder.parent / "last", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, b"last" * 500)
        os.fsync(fd)
    finally:
        os.close(fd)


def killed(function: Callable[[], object], calls: str, number: int, *, after: bool = True) -> bool:
    """Run `function` in a fork that dies by SIGKILL right after (or before) its `number`-th call of one of these names;
    False if it lived."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            linux.die_with_parent()
            with installed(Acting(calls, lambda _: os.kill(os.getpid(), signal.SIGKILL), after=after)) as kernel:
                kernel.when = lambda found: found.number == number
                function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise AssertionError("the child failed by itself; its traceback is on stderr")
    return False


def recover(history: History, root: Path, order: str = "") -> atomik.RecoveryReport:
    """`atomik.recover` on every folder of the history that is there, in an order that depends on the label."""
    places = [str(root / name) for name in history.places() if (root / name).is_dir()]
    random.Random(order).shuffle(places)
    report = atomik.recover(*places, lock_timeout=5)
    for phase in history.phases:
        for op in phase.ops:
            if isinstance(op, Fill) and op.resume and (root / os.path.dirname(op.path)).is_dir():
                op.give_up(root)
    return report


def judge(take: Take, state: CrashState) -> str | None:
    """What is wrong in this crash state, or None."""
    try:
        with take.images.mounted(state) as root:
            return verdict(take, root, take.allowed(state.marks), state.label)
    except UnmountableError as error:
        return str(error)


def verdict(take: Take, root: Path, allowed: list[Tree], label: str) -> str | None:
    """Recover, and compare with the trees that are allowed; then recover again, which must find nothing."""
    try:
        report = recover(take.history, root, label)
    except OSError as error:
        return f"recovery failed: {type(error).__name__}: {error}"
    found, made = look(root), take.history.made()
    if names := ours(found):
        return f"left over: {names}; the report: {report}"
    bare = without_empty(found, made)
    wanted = [without_empty(tree, made) for tree in allowed]
    if bare not in wanted:
        nearest = min(wanted, key=lambda tree: len(difference(bare, tree)))
        return f"neither old nor new: {difference(bare, nearest)}; the report: {report}"
    if not report.clean:
        return f"recovery is not satisfied: {report}"
    again = recover(take.history, root, label + "again")
    if again.items or look(root) != found:
        return f"recovery, repeated, did something: {again}"
    return None


def recut(take: Take, state: CrashState, noise: str) -> Take:
    """Record the recovery of `state`: a take of its own, whose crash states are judged in their turn.

    Recovery decides by the disk alone, so every cut of it must come to the same tree as the one that was not cut.
    """
    image = namespace.scratch("crashed") / "disk.img"
    take.images.build(state, image)
    with recording(take.kind, image=image) as tape:
        namespace.remove_with(tape, image.parent)
        tape.start()
        with neighbours(tape.folder, noise):
            recover(take.history, tape.folder, state.label)
        second = Take(take.kind, take.history, f"{noise} while {state.label} recovers", [look(tape.folder)])
        _last_noise(tape.folder)
    second.images = CrashImages.of(tape)
    return second
