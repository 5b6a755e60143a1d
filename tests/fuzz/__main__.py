"""The coverage-guided run: ``python -m tests.fuzz journal --runs 10000000``, with atheris (the extra ``fuzz``).

It ends with the number of inputs tried and of what the fuzzer reached, or with the first input that breaks a rule of
`targets`, which is written to a file; ``--input FILE`` tries that one again.  ``--corpus DIR`` keeps what was interesting,
and goes on from there.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import tempfile
from pathlib import Path

#: The longest input in bytes: a journal of some steps, a few changes, a line of 60 words.
_LONGEST = {"journal": 1024, "change-set": 1024, "command-line": 60}


def main() -> int:
    """Fuzz one parser; does not return but for ``--input``."""
    options = _parse()
    if options.input is not None:
        from tests.fuzz.targets import TARGETS

        TARGETS[options.target](options.input.read_bytes())
        print("every rule holds for this input")
        return 0
    import atheris

    sys.modules.pop("argparse", None)  # so that the fuzzer sees what the command line is parsed by
    with atheris.instrument_imports(include=["atomik", "argparse", "json.decoder"]):
        targets = importlib.import_module("tests.fuzz.targets")
        commands = importlib.import_module("atomik.cli.commands")
    _make_quick(commands)
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="fuzz-"))
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(targets.seeds(options.target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    arguments = [
        sys.argv[0],
        f"-runs={options.runs}",
        f"-seed={options.seed}",
        f"-max_len={_LONGEST[options.target]}",
        "-print_final_stats=1",
    ]
    atheris.Setup([*arguments, str(corpus)], targets.TARGETS[options.target])
    atheris.Fuzz()
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("target", choices=("journal", "change-set", "command-line"))
    parser.add_argument("--runs", type=int, default=100_000, help="how many inputs (100,000)")
    parser.add_argument("--seed", type=int, default=1, help="of the fuzzer (1)")
    parser.add_argument("--corpus", type=Path, help="a folder for interesting inputs (a temporary one)")
    parser.add_argument("--input", type=Path, metavar="FILE", help="try this one input")
    return parser.parse_args()


def _make_quick(commands: object) -> None:
    """The parser is built, and its help composed, once: that takes 50 times as long as to parse a line, and is the same."""
    commands.parser = functools.cache(commands.parser)  # type: ignore[attr-defined]
    kind = commands._Parser  # type: ignore[attr-defined]
    kind.format_usage = functools.cache(kind.format_usage)
    kind.format_help = functools.cache(kind.format_help)
    kind._print_message = lambda *arguments: None
    sys.modules["argparse"]._ = str  # gettext looks for a translation of each message on the disk


if __name__ == "__main__":
    sys.exit(main())
