"""The trace of every history, held against the strictest disk; and every mutant is caught by it. Needs no root."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernels import Faulty, installed
from tests.powercut import tape
from tests.powercut.histories import History, look, plant, without_empty
from tests.powercut.mutants import MUTANTS, Mutant
from tests.powercut.strict import StrictDisk
from tests.powercut.workloads import NAMED

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


def watched(
    history: History, root: Path, around: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
) -> tuple[list[str], int]:
    """What is broken in the trace of a history, and how many rules were looked at."""
    root.mkdir()
    plant(root, history.tree)
    broken, checked = list[str](), 0
    for phase in history.phases:
        word, _, at = phase.ending.partition(":")
        disk = StrictDisk(recovering=word == "killed")
        if word == "killed":
            call, _, number = at.partition(":")
            tape.killed(lambda phase=phase: phase.perform(root), call, int(number))  # type: ignore[misc]
        with installed(disk), around():
            if word == "killed":
                tape.recover(history, root)
            else:
                with contextlib.suppress(tape.Sabotage):
                    phase.perform(root, tape.saboteur(int(at)) if at else None)
        disk.returned()
        broken += disk.broken
        checked += disk.checked
    return broken, checked


@pytest.mark.parametrize("name", NAMED)
def test_every_history_keeps_the_order(name: str, tmp_path: Path) -> None:
    """Nothing is swapped, marked or deleted before all that must be durable then has been synced by name."""
    history = NAMED[name]
    broken, checked = watched(history, tmp_path / "work")
    assert broken == []
    assert checked
    if len(history.phases) == 1 and history.phases[0].ending == "commit":
        made = history.made()
        assert without_empty(look(tmp_path / "work"), made) == history.phases[0].apply(history.tree)


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=list(MUTANTS))
def test_every_mutant_breaks_a_rule(mutant: Mutant, tmp_path: Path) -> None:
    """With the barrier left out, or the order turned round, the same history breaks at least one rule."""
    broken, _ = watched(NAMED[mutant.history], tmp_path / "work", mutant.around)
    assert broken, f"the mutant {mutant.name} ({mutant.rule}) survives"
    assert any(line.startswith(mutant.rule[:2]) for line in broken), broken


@pytest.mark.parametrize("name", ["file-over", "path-over", "folder-over", "folder-tmp"])
def test_one_item_that_is_taken_back_keeps_the_order(name: str, tmp_path: Path) -> None:
    """Ctrl-C right after the swap of a single item: the swap is undone, and that is durable before anything goes."""
    history = NAMED[f"{name}/fsync"]
    plant(tmp_path, history.tree)
    disk = StrictDisk()
    with installed(disk):
        interrupted = Faulty(
            lambda call: KeyboardInterrupt() if swapped(disk) and not interrupted.struck else None, {"fsync"}
        )
        with installed(interrupted), pytest.raises(KeyboardInterrupt):
            history.phases[0].perform(tmp_path)
    assert interrupted.struck
    assert disk.broken == []
    assert look(tmp_path) == history.tree


def swapped(disk: StrictDisk) -> bool:
    """Whether anything has been swapped on this disk."""
    return any(one.swapped for one in disk._known.values())
