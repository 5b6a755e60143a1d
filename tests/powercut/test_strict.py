"""The trace of every history, held against the strictest disk; and every mutant is caught by it. Needs no root."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from tests.powercut import tape
from tests.powercut.histories import Bring, History, look, plant, without_empty
from tests.powercut.mutants import MUTANTS, Mutant
from tests.powercut.strict import StrictDisk
from tests.powercut.workloads import NAMED
from tests.support.kernels import Call, Faulty, Recording, Watching, installed

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

# What one log brings along is for the recorded disks to show.
pytestmark = [pytest.mark.sweep, pytest.mark.usefixtures("no_log")]


#: What should be caught here.
STRICT = [mutant for mutant in MUTANTS.values() if not mutant.one_log]


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
        for op in phase.ops:
            if isinstance(op, Bring):
                disk.lasts(str(root / op.path))
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


@pytest.mark.usefixtures("no_syncfs")
@pytest.mark.parametrize("name", NAMED)
def test_every_history_keeps_the_order_without_syncfs(name: str, tmp_path: Path) -> None:
    """The same where syncfs means nothing (network filesystems, ZFS, FUSE): one by one, in recovery too."""
    broken, checked = watched(NAMED[name], tmp_path / "work")
    assert broken == []
    assert checked


@pytest.mark.parametrize("mutant", STRICT, ids=[mutant.name for mutant in STRICT])
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


class Unwritable(Watching):
    """Every folder is one that this user may not write to: it is swapped through a slot beside it."""

    def around(self, call: Call, go: Callable[[], Any]) -> Any:
        return False if call.name == "may_write" else go()


@pytest.mark.parametrize("name", ["four/fsync", "every/True", "every/syncfs"])
def test_folders_that_stay_in_their_parent_keep_the_order(name: str, tmp_path: Path) -> None:
    """The slot is beside the destination, and the mode is set late: both last before the outcome is written."""
    broken, checked = watched(NAMED[name], tmp_path / "work", lambda: installed(Unwritable({"may_write"})))
    assert broken == []
    assert checked


def test_a_rollback_that_died_behind_its_record_is_made_durable_first(tmp_path: Path) -> None:
    """Killed between writing "undone" and making that last: recovery must not take the record for durable."""
    history = NAMED["rollback:3"]
    plant(tmp_path, history.tree)
    assert tape.killed(lambda: history.phases[0].perform(tmp_path, tape.saboteur(3)), "pwrite", 2)
    disk = StrictDisk(recovering=True)
    with installed(disk):
        report = tape.recover(history, tmp_path)
    disk.returned()
    assert report.items
    assert disk.broken == []
    assert look(tmp_path) == history.tree


@pytest.mark.parametrize("name", ["four/fsync", "many/True", "file-new/fsync", "file-over/fsync", "file-over/True"])
def test_files_that_cannot_get_a_name_keep_the_order(name: str, tmp_path: Path) -> None:
    """Where an unnamed file cannot be linked it is copied, and the copy is made durable."""
    without = Faulty(lambda call: errno.EPERM if call.name == "link_fd" else None, {"link_fd"})
    broken, checked = watched(NAMED[name], tmp_path / "work", lambda: installed(without))
    assert without.struck
    assert broken == []
    assert checked


@pytest.mark.parametrize("count", [1, 2])
def test_what_stands_already_is_made_durable(count: int, tmp_path: Path) -> None:
    """With if_changed and equal content nothing is swapped, but what is there is made durable."""
    names = [tmp_path / str(number) for number in range(count)]
    for name in names:
        name.write_text("equal")
    with installed(Recording({"fsync", "syncfs"})) as kernel, atomik.transaction(overwrite=True, durable="fsync") as tx:
        for name in names:
            tx.file(name, if_changed=True).write("equal")
    synced = {path for call in kernel.calls for path in call.paths}
    assert {str(tmp_path), *map(str, names)} <= synced


def test_what_was_brought_and_not_synced_breaks_a_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the sync of what is moved or exchanged, its content does not last (P5)."""
    for module in ("move", "exchange"):
        monkeypatch.setattr(f"atomik._staging.{module}.sync_place", lambda place: 0)
    broken, _ = watched(NAMED["brought/fsync"], tmp_path / "work")
    assert any("its content is not durable" in line for line in broken)
