"""The coverage-guided run: ``python -m tests.fuzz journal --runs 10000000``, with atheris (the extra ``fuzz``).

It tries that many inputs, or stops at the first that breaks a rule of `targets`, which is written to a file in DIR;
``--input FILE`` tries that one again.  It may be stopped at any time: with ``--keep DIR``, the same command goes on from
there, with the inputs that were interesting and the number of those tried.  ``--record`` writes those numbers into the
documentation.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define

from tests.support.pages import fill

#: The longest input in bytes: a journal of some steps, a few changes, a line of 32 words.
_LONGEST = {"journal": 1024, "change-set": 1024, "command-line": 33}
_NAMES = {"journal": "journal", "change-set": "change set", "command-line": "command line"}


def main() -> int:
    """Fuzz one parser; returns only for ``--input`` and ``--record``."""
    options = _parse()
    if options.record:
        fill("fuzz", _table(options.keep))
        return 0
    if options.input is not None:
        from tests.fuzz.targets import TARGETS

        TARGETS[options.target](options.input.read_bytes())
        print("every rule holds for this input")
        return 0
    keep = options.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    corpus = keep / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    _fuzz(options, corpus, keep / f"{options.target}.tried")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("target", choices=(*_NAMES, "all"))
    parser.add_argument("--runs", type=int, default=100_000, help="how many inputs, with those already tried (100,000)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="interesting inputs and counts (a temporary folder)")
    parser.add_argument("--input", type=Path, metavar="FILE", help="try this one input")
    parser.add_argument("--record", action="store_true", help="write the counts of --keep into the documentation")
    options = parser.parse_args()
    if options.record != (options.target == "all") or (options.record and options.keep is None):
        parser.error("'all', --record and --keep go together")
    return options


def _fuzz(options: argparse.Namespace, corpus: Path, counts: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["atomik"]):
        targets = importlib.import_module("tests.fuzz.targets")
        commands = importlib.import_module("atomik.cli.commands")
    _make_quick(commands, atheris.instrument_func)
    rule = _Counted(targets.TARGETS[options.target], counts, int(counts.read_text()) if counts.exists() else 0)
    for number, seed in enumerate(targets.seeds(options.target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    arguments = [
        sys.argv[0],
        f"-runs={max(1, options.runs - rule.tried)}",
        f"-seed={1 + rule.tried}",
        f"-max_len={_LONGEST[options.target]}",
        f"-artifact_prefix={corpus.parent}/",
        "-print_final_stats=1",
    ]
    atheris.Setup([*arguments, str(corpus)], rule)
    atheris.Fuzz()


def _make_quick(commands: Any, instrument: Callable[[Any], Any]) -> None:
    """What is the same for every input is done once: the parser is built, its help composed.

    Of argparse the fuzzer sees where words are told apart and taken.  All of argparse would make it three times as slow.
    """
    commands.parser = functools.cache(commands.parser)
    kind = commands._Parser
    kind.format_usage = functools.cache(kind.format_usage)
    kind.format_help = functools.cache(kind.format_help)
    kind._print_message = lambda *arguments: None
    argparse._ = str  # type: ignore[attr-defined]  # gettext looks for a translation of each message on the disk
    for name in ("_parse_optional", "_get_option_tuples", "_get_values"):
        setattr(argparse.ArgumentParser, name, instrument(getattr(argparse.ArgumentParser, name)))


@define
class _Counted:
    """Counts the inputs for which the rules hold, in a file too; a broken rule ends the count, which then starts again."""

    rule: Callable[[bytes], None]
    file: Path
    tried: int

    def __call__(self, data: bytes) -> None:
        try:
            self.rule(data)
        except BaseException:
            self.file.unlink(missing_ok=True)
            raise
        self.tried += 1
        if self.tried % 10_000 == 0:
            self.file.write_text(str(self.tried))


def _table(keep: Path) -> str:
    lines = ["| parser | inputs tried, at least | broken rules |", "|---|--:|--:|"]
    for name, words in _NAMES.items():
        lines.append(f"| {words} | {int((keep / f'{name}.tried').read_text()):,} | 0 |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
