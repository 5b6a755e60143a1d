"""Check the protocol: ``python -m tests.model``; it needs the Debian packages spin and gcc.

For one step up to ``--steps`` (4) it searches every state of every transaction, and then takes out each rule in turn, for
which there must be a counterexample; ``--trail RULE`` prints the one of a rule.  ``--campaign`` searches four steps together
with all the others instead, in parts, which takes longer.  ``--record`` writes the numbers into the documentation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.model import spin
from tests.model.rules import RULES, Rule
from tests.support.pages import fill

PAGE = "explanation/proof.md"
_KINDS = ("create", "replace", "remove", "exchange")  # 1 to 4 in the model


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when the model holds and needs each rule, 1 when not, 2 when nothing could be checked."""
    options = _parse(arguments)
    if reason := spin.missing():
        print(f"cannot check here: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        if options.trail is not None:
            return _trail(options.trail, Path(folder))
        if options.campaign:
            return _campaign(Path(folder), record=options.record)
        lines, good = _search(options, Path(folder))
    if options.record and good:
        fill("model", "\n".join(lines) + "\n", PAGE)
        fill("rules", _rules(), PAGE)
    return 0 if good else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=4, help="how many steps a transaction has at most (4)")
    parser.add_argument(
        "--crashes", type=int, default=2, help="how many crashes, for up to two steps; one for more (2)"
    )
    parser.add_argument(
        "--trail", choices=[rule.name for rule in RULES], help="print the counterexample without this rule"
    )
    parser.add_argument("--campaign", action="store_true", help="four steps, with the others")
    parser.add_argument("--record", action="store_true", help="write the numbers into the documentation")
    return parser.parse_args(arguments)


def _search(options: argparse.Namespace, folder: Path) -> tuple[list[str], bool]:
    checkers = {steps: spin.Checker(steps, folder) for steps in range(1, options.steps + 1)}
    lines, good = (
        ["| steps | each in | others | crashes | states | counterexample |", "|--:|---|---|--:|--:|---|"],
        True,
    )
    print("\n".join(lines), flush=True)
    for steps, checker in checkers.items():
        anywhere, others = steps <= 2, steps <= 3
        for crashes in range(1, (options.crashes if anywhere else 1) + 1):
            found = checker.check(crashes=crashes, anywhere=anywhere, others=others)
            good &= found.error is None
            where, who = "any folder" if anywhere else "the two folders in turn", "yes" if others else "no"
            lines.append(f"| {steps} | {where} | {who} | {crashes} | {found.states:,} | {found.error or 'none'} |")
            print(lines[-1], *found.trail, sep="\n", flush=True)
    for rule in RULES:
        found = checkers[min(2, options.steps)].check(rule.number, rule.crashes)
        good &= found.error is not None
        what = f"found after {found.states:,} states" if found.error else "NONE: the rule is not needed"
        print(f"without {rule.name:20} ({rule.invariant}: {rule.text}): {what}", flush=True)
    return lines, good


def _campaign(folder: Path, *, record: bool) -> int:
    """Four steps with the others: too many states for the memory at once, so one beginning after the other."""
    checker = spin.Checker(4, folder)
    lines = ["| first step | states | counterexample |", "|---|--:|---|"]
    states = 0
    print("\n".join(lines), flush=True)
    for first, name in enumerate(_KINDS, 1):
        here = 0
        for second in range(1, len(_KINDS) + 1):
            found = checker.check(kinds=f"{first}{second}")
            if found.error is not None:
                print(*found.trail, f"broken: {found.error}", sep="\n")
                return 1
            here += found.states
        lines.append(f"| {name} | {here:,} | none |")
        print(lines[-1], flush=True)
        states += here
    lines.append(f"| together | {states:,} | none |")
    print(lines[-1], flush=True)
    if record:
        fill("campaign", "\n".join(lines) + "\n", PAGE)
    return 0


def _rules() -> str:
    """The rules, and what shows in the code that each is needed."""
    lines = ["| taken out | the rule | in the code |", "|---|---|---|"]
    for rule in RULES:
        shown = f"mutant `{rule.mutant}`" if rule.mutant else f"replay `{rule.replay}`"
        lines.append(f"| {rule.name} | {rule.invariant}: {rule.text} | {shown} |")
    return "\n".join(lines) + "\n"


def _trail(name: str, folder: Path) -> int:
    rule: Rule = next(rule for rule in RULES if rule.name == name)
    found = spin.Checker(2, folder).check(rule.number, rule.crashes)
    print(f"without {rule.name} ({rule.text}):", *found.trail, f"broken: {found.error}", sep="\n")
    return 0 if found.error else 1


if __name__ == "__main__":
    sys.exit(main())
