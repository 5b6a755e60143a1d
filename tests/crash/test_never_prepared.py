"""The owner dies before its transaction is prepared, a stranger overwrites, and recovery comes to one folder at a time.

Whichever private folder is gone by then: nothing was published, so nothing is undone and no folder stays blocked (P4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import atomik
from atomik._hidden_names import JOURNAL_NAME
from tests.crash.deaths import die
from tests.support.kernels import Poor, installed
from tests.support.state import left_in, tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.sweep


def build(top: Path) -> None:
    atomik.recover(*(top / name for name in ("a", "b") if (top / name).exists()), discard=True)
    for name in ("a", "b"):
        for path in (top / name).glob("*") if (top / name).exists() else ():
            path.unlink()
        (top / name).mkdir(exist_ok=True)
        for old in ("replaced", "removed", "from"):
            (top / name / old).write_text(f"old {name}/{old}")


def publish(top: Path, folders: tuple[str, ...] = ("a", "b")) -> None:
    """Create, replace and remove in each folder; move from each to the next."""
    with atomik.transaction(overwrite=True, durable=False) as tx:
        for name, other in zip(folders, (*folders[1:], folders[0]), strict=True):
            tx.file(top / name / "created").write("new")
            tx.file(top / name / "replaced").write("new")
            tx.remove(top / name / "removed")
            tx.move(top / name / "from", top / other / f"to from {name}")


def overwrite(top: Path) -> None:
    for name in ("created", "replaced", "removed", "from"):
        (top / "a" / "theirs").write_text("a stranger's")
        (top / "a" / "theirs").replace(top / "a" / name)


def deaths(top: Path, job: Callable[[], object], folders: tuple[str, ...] = ("a", "b")) -> Iterator[int]:
    """Every point at which `job` dies with everything staged and nothing published, the folders as death left them."""
    found = False
    for number in range(1, 1_000):
        build(top)
        before = tree(top)
        if die(job, number, "after").returned:
            assert found
            return
        now = tree(top)
        same = all(now.get(name) == what for name, what in before.items()) and "a/created" not in now
        if same and not all((top / name / JOURNAL_NAME).exists() for name in folders):
            found = True
            yield number


def expect(top: Path, what: object) -> None:
    """What the stranger wrote is there, everything else is as it was, and nothing of atomik's is left."""
    assert not left_in(top), what
    texts = {str(path.relative_to(top)): path.read_text() for path in top.rglob("*") if path.is_file()}
    strange = {f"a/{name}": "a stranger's" for name in ("created", "replaced", "removed", "from")}
    assert texts == {f"b/{name}": f"old b/{name}" for name in ("replaced", "removed", "from")} | strange, what


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_one_folder_at_a_time(folder: Path, order: str) -> None:
    """Recovery of the first folder removes the private folder that the journal in the second one names."""
    for point in deaths(folder, lambda: publish(folder)):
        overwrite(folder)
        for name in order:
            report = atomik.recover(folder / name, lock_timeout=1)
            assert report.clean, (point, report)
        expect(folder, point)


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_the_recovery_is_killed_too(folder: Path, order: str, step: int) -> None:
    """At every call (in a plain run: at some), with the stranger between the two recoveries."""
    kills = 0
    for number in list(deaths(folder, lambda: publish(folder)))[-7:]:
        for second in range(1 + number % step, 1_000, step):
            build(folder)
            die(lambda: publish(folder), number, "after")
            again = die(
                lambda: [atomik.recover(folder / name) for name in order], second, "before" if second % 2 else "after"
            )
            if again.returned:
                break
            kills += 1
            overwrite(folder)
            for name in order:
                assert atomik.recover(folder / name, lock_timeout=1).clean, (number, again)
            atomik.recover(folder / order[0], lock_timeout=1)
            expect(folder, (number, str(again)))
    assert kills > 3


def test_without_hard_links(folder: Path) -> None:
    """The journal has one name only, and is moved from the private folder to the parent."""
    with installed(Poor("link")):
        for point in deaths(folder, lambda: publish(folder, ("a",)), ("a",)):
            overwrite(folder)
            assert atomik.recover(folder / "a", lock_timeout=1).clean, point
            expect(folder, point)


def test_a_well_known_name_that_the_user_deleted_proves_nothing(folder: Path) -> None:
    """What was published is undone nevertheless, from the other folder's journal."""
    for number in range(1, 1_000):
        build(folder)
        before = tree(folder)
        if die(lambda: publish(folder), number, "after").returned:
            break
        if not all((folder / name / JOURNAL_NAME).exists() for name in "ab"):
            continue
        (folder / "a" / JOURNAL_NAME).unlink()
        assert atomik.recover(folder / "b").clean
        if (folder / "a" / "created").exists():  # the mark was written
            continue
        atomik.recover(folder / "a")
        assert tree(folder) == before, number
