"""Every rule of the protocol is needed: the model has a counterexample without it, and so has the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model import spin
from tests.model.replays import REPLAYS
from tests.model.rules import NEEDLESS, RULES, Rule
from tests.powercut.mutants import MUTANTS


def test_every_rule_is_replayed_on_the_code() -> None:
    """By a mutant of the power-cut suite, which the strictest disk catches, or by a replay."""
    for rule in (*RULES, NEEDLESS):
        assert (rule.mutant in MUTANTS) != (rule.replay in REPLAYS), rule.name
    assert {rule.replay for rule in RULES} - {""} == set(REPLAYS)


def test_the_numbers_are_those_of_the_model() -> None:
    """The model says each rule's number once."""
    text = spin.MODEL.read_text(encoding="utf-8")
    for rule in (*RULES, NEEDLESS):
        assert f"#define {rule.name} {rule.number}\n" in text


@pytest.mark.parametrize("name", REPLAYS)
def test_the_code_keeps_the_rule(name: str, tmp_path: Path) -> None:
    """As the library is, the scenario ends well."""
    REPLAYS[name].scenario(tmp_path)


@pytest.mark.leftovers("a library without one of its rules")
@pytest.mark.parametrize("name", REPLAYS)
def test_the_code_needs_the_rule(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rule taken out of the code, the same scenario breaks a promise."""
    REPLAYS[name].spoil(monkeypatch)
    with pytest.raises((AssertionError, OSError)):
        REPLAYS[name].scenario(tmp_path)


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> spin.Checker:
    """For two steps."""
    if reason := spin.missing():
        pytest.skip(reason)
    return spin.Checker(2, tmp_path_factory.mktemp("spin"))


@pytest.mark.sweep
@pytest.mark.parametrize("crashes", [1, 2])
def test_the_model_holds(checker: spin.Checker, crashes: int) -> None:
    """Two steps of every mixture of kinds, in two folders, with one crash and with two: no state breaks a promise."""
    result = checker.check(crashes=crashes)
    assert result.error is None, "\n".join(result.trail)
    assert result.states > 100_000


@pytest.mark.sweep
def test_the_parts_are_the_whole(checker: spin.Checker) -> None:
    """Searched by the kind of the first step, there are as many states, except for the few before the choice of it."""
    whole = checker.check(others=False).states
    parts = sum(checker.check(others=False, kinds=kind).states for kind in "1234")
    assert whole <= parts < whole + 100


@pytest.mark.sweep
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_model_needs_the_rule(checker: spin.Checker, rule: Rule) -> None:
    """Without it there is a way to a broken promise."""
    result = checker.check(rule.number, rule.crashes)
    assert result.error is not None
    assert result.trail
