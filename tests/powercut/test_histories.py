"""The dictionary model and the real thing agree, and the tools of this folder see what they are there to see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.powercut import figures, tape
from tests.powercut.histories import History, Phase, Write, difference, inside, look, moved, plant, without_empty
from tests.powercut.mutants import MUTANTS
from tests.powercut.tape import KINDS
from tests.powercut.workloads import NAMED, OLD, random_history


def test_what_is_planted_is_seen(tmp_path: Path) -> None:
    """A tree written to disk and read back is the same dictionary."""
    plant(tmp_path, OLD)
    assert look(tmp_path) == OLD


def test_folders_move_with_what_is_in_them() -> None:
    """A subtree keeps its shape under another name."""
    tree = {"a": None, "a/b": None, "a/b/c": b"x", "ab": b"y"}
    assert inside(tree, "a") == {"a": None, "a/b": None, "a/b/c": b"x"}
    assert moved(tree, "a/b", "d") == {"d": None, "d/c": b"x"}


def test_differences_are_named() -> None:
    """Missing, surplus and changed names are distinguished."""
    said = difference({"a": b"1", "b": b"2"}, {"b": b"3", "c": None})
    assert "a is there" in said
    assert "c is missing" in said
    assert "b holds" in said


def test_empty_made_folders_are_forgiven_and_full_ones_not() -> None:
    """Only folders that parents=True made, and only with nothing in them."""
    tree = {"p": None, "p/q": None, "r": None, "s": None, "s/x": b""}
    assert without_empty(tree, {"p", "p/q", "s"}) == {"r": None, "s": None, "s/x": b""}


@pytest.mark.parametrize("seed", range(12))
def test_random_histories_run_and_agree_with_the_model(seed: int, tmp_path: Path) -> None:
    """What atomik makes of a random history is what the pure functions make of it."""
    history = random_history(str(seed))
    plant(tmp_path, history.tree)
    tree = history.tree
    for phase in history.phases:
        if phase.ending == "commit":
            phase.perform(tmp_path)
            tree = phase.apply(tree)
    assert look(tmp_path) == tree


def test_the_same_seed_gives_the_same_history() -> None:
    """A label is enough to have a random history again."""
    assert random_history("7.1.2.ext4") == random_history("7.1.2.ext4")
    assert random_history("7.1.2.ext4") != random_history("7.1.3.ext4")


def test_a_kill_comes_right_after_its_call(tmp_path: Path) -> None:
    """The child dies at the call that was named, and lives when there are fewer."""
    (tmp_path / "a").mkdir()
    phase = Phase((Write("a/f", b"new"), Write("a/g", b"new")), durable=False)
    assert tape.killed(lambda: phase.perform(tmp_path), "rename", 1)
    assert sorted(name for name in os.listdir(tmp_path / "a") if not name.startswith(".")) == ["f"]
    history = History("killed", {}, (phase,))
    assert tape.recover(history, tmp_path).items
    assert os.listdir(tmp_path / "a") == []
    assert not tape.killed(lambda: phase.perform(tmp_path), "rename", 99)
    assert sorted(os.listdir(tmp_path / "a")) == ["f", "g"]


def test_the_tables_are_consistent() -> None:
    """Every mutant names a history that there is, and filesystems that are recorded."""
    for mutant in MUTANTS.values():
        assert mutant.history in NAMED
        assert set(mutant.shows) <= set(KINDS)


def test_the_page_says_what_the_run_wrote() -> None:
    """The tables of how-we-know.md are those of the figures."""
    text = figures.PAGE.read_text(encoding="utf-8")
    assert figures.filled(text) == text
