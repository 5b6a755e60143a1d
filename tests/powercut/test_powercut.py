"""No crash state of any history breaks the promise; each is seen again when asked for. Needs root, loop and FUSE.

Here is a part that fits into CI, always the same one; ``python -m tests.powercut`` goes on for as long as it may.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.powercut import tape
from tests.powercut.__main__ import main
from tests.powercut.campaign import Campaign, Finding, keep
from tests.powercut.gate import caught
from tests.powercut.mutants import MUTANTS
from tests.powercut.noise import NOISES
from tests.powercut.tape import KINDS
from tests.powercut.workloads import NAMED
from tests.support.lab import disks
from tests.support.lab.need import need
from tests.support.lab.recorder import missing_recorder

pytestmark = [pytest.mark.root, pytest.mark.powercut]

SEED = 20240607
HOWS = ("True", "fsync", "syncfs")
#: Crash states of one recording; of a recording of many items, which take longer to look at, half as many.
LIMIT = 14
RANDOM = 8


def ready(kind: str) -> None:
    """Skip, with the reason, where nothing can be recorded."""
    need(missing_recorder(), disks.missing_disk(kind))


def part() -> list[tuple[str, str, str]]:
    """(filesystem, history, noise): every history that comes in three ways of syncing in one of them on each
    filesystem, so in all three on the three; the others everywhere; the noises in turn."""
    chosen = []
    for place, kind in enumerate(KINDS):
        for at, name in enumerate(NAMED):
            *_, how = name.split("/")
            if how not in HOWS or HOWS.index(how) == (at + place) % 3:
                chosen.append((kind, name, NOISES[(at * 7 + place * 3) % len(NOISES)]))
    return chosen


def explored(kind: str, name: str, noise: str, limit: int, recuts: int) -> Campaign:
    """Explore one history; a finding fails the test, and says how to see it again."""
    campaign = Campaign(SEED, kinds=(kind,), limit=limit, samples=3, recuts=recuts)
    finding = campaign.explore(kind, NAMED[name], noise)
    if finding is not None:
        pytest.fail(f"{finding}\nsee it again: python -m tests.powercut --replay {keep(finding)}")
    return campaign


@pytest.mark.parametrize(("kind", "name", "noise"), part())
def test_all_old_or_all_new_in_every_crash_state(kind: str, name: str, noise: str) -> None:
    """After recovery: all old or all new, new once commit() had returned, nothing left over, nothing more to do."""
    ready(kind)
    campaign = explored(kind, name, noise, LIMIT // 2 if "many" in name else LIMIT, 0)
    assert campaign.counts[kind].states


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "noise"),
    [
        ("every/fsync", "file"),
        ("moves/fsync", "private folders"),
        ("tmp/True", "parents"),
        ("twice/fsync", "sync+file"),
    ],
)
def test_a_recovery_that_is_cut_comes_to_the_same(kind: str, name: str, noise: str) -> None:
    """Recovery is recorded and cut too: recovered again, every crash state shows what it would have shown."""
    ready(kind)
    campaign = explored(kind, name, noise, 20, 2)
    assert campaign.counts[kind].recovery_states


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(RANDOM))
def test_random_histories(kind: str, number: int) -> None:
    """Histories that nobody thought of, with syncs by others at any moment."""
    from tests.powercut.workloads import random_history

    ready(kind)
    campaign = Campaign(SEED, kinds=(kind,), limit=LIMIT, samples=3, recuts=0)
    history = random_history(f"{SEED}.{number}.{kind}")
    finding = campaign.explore(kind, history, f"random:{number}")
    if finding is not None:
        pytest.fail(f"{finding}\nsee it again: python -m tests.powercut --replay {keep(finding)}")


GATE = [(mutant.name, kind) for mutant in MUTANTS.values() for kind in mutant.shows]


@pytest.mark.parametrize(("name", "kind"), GATE)
def test_the_gate(name: str, kind: str) -> None:
    """The library with this barrier taken out is caught by a crash state, on the filesystems where it shows."""
    ready(kind)
    mutant = MUTANTS[name]
    assert caught(mutant, kind, mutant.shows[kind]) is not None, f"the mutant {name} ({mutant.rule}) survives on {kind}"


def test_what_is_no_finding_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file, or another one: said in a line, and no traceback."""
    ready("ext4")
    (tmp_path / "other").write_text("other")
    for name in ("missing", "other"):
        assert main(["--replay", str(tmp_path / name)]) == 2
        assert str(tmp_path / name) in capsys.readouterr().err


def test_a_finding_is_seen_again(tmp_path: Path) -> None:
    """What was saved shows the same crash state in another process's terms: the same label, the same fault."""
    ready("ext4")
    mutant = MUTANTS["content"]
    take = tape.record("ext4", NAMED[mutant.history], "quiet", mutant.around)
    state, problem = next(
        (state, problem) for state in take.images.states(seed=SEED) if (problem := tape.judge(take, state)) is not None
    )
    Finding(take, state, problem).save(tmp_path / "finding.gz")
    again = Finding.load(tmp_path / "finding.gz")
    assert again.state.label == state.label
    assert again.state.marks == state.marks
    assert (again.replay() or "").split(";")[0] == problem.split(";")[0]
