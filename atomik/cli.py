"""The command ``atomik``: write, run, swap, recover, doctor.

Exit codes (docs/reference/command-line.md):

* 0: done.  1: it failed, and nothing was changed.  2: the command line is wrong.
* 3: it wants attention: in doubt, not confirmed durable, or `recover` could not settle everything.
* 128 + n: ended by signal n; nothing was changed.
* ``run`` has the program's own exit code, and 125 when atomik failed (nothing was published), 126 when the program
  cannot be run, 127 when it was not found.

A mistake of the user's gets one line on standard error, never a traceback.  ``--json`` prints one object on standard
output (``run``: on standard error, for standard output is the program's).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from . import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ._receipt import Receipt

DONE, FAILED, USAGE, ATTENTION = 0, 1, 2, 3
_RUN_FAILED = 125
_BROKEN_PIPE = 128 + 13
#: What the messages of the library call by Python's names.
_SAID_HERE = {
    "overwrite=True": "--overwrite",
    "parents=True": "--parents",
    "raise lock_timeout": "raise --lock-timeout",
}


class _Parser(argparse.ArgumentParser):
    """No abbreviations, for they break when an option is added."""

    def __init__(self, **keywords: Any) -> None:
        keywords |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**keywords)


class _Output(argparse.Action):
    """``--file`` and ``--folder`` go into one list, in the order in which they were given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:  # noqa: ARG002
        namespace.outputs = [*(namespace.outputs or ()), ((option or "").lstrip("-"), values)]


def _mode(text: str) -> int:
    value = int(text, 8)
    if not 0 <= value <= 0o7777:
        raise ValueError
    return value


_mode.__name__ = "octal mode"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from . import __version__

    top = _Parser(
        prog="atomik", description="Outputs written all or nothing: files, folders, or a whole group of them."
    )
    top.add_argument("--version", action="version", version=f"atomik {__version__}")
    commands = top.add_subparsers(dest="name", metavar="COMMAND", required=True)

    def command(name: str, text: str, more: str = "", **keywords: Any) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text}\n{more}", **keywords)
        added.add_argument("--json", action="store_true", help="print what was done as one JSON object")
        return added

    add = command("write", "Write standard input to a file, all or nothing.", _WRITE)
    add.add_argument("destination", metavar="DEST")
    add.add_argument("--mode", type=_mode, metavar="0640", help="permissions of the file, in octal")
    add.add_argument("--follow-symlinks", action="store_true", help="write to the target of a link at DEST")
    add.add_argument("--if-changed", action="store_true", help="leave an equal file as it is")
    add.add_argument("--keep", metavar="NAME", help="keep the previous version under this name in the same folder")
    _add_output_options(add)

    usage = "atomik run [--file DEST]... [--folder DEST]... [options] -- PROGRAM [ARGUMENT]..."
    add = command("run", "Run a program, and publish its outputs if it exits with 0.", _RUN, usage=usage)
    for kind in ("file", "folder"):
        text = f"a {kind} that the program writes; repeat for more"
        add.add_argument(f"--{kind}", action=_Output, dest="outputs", metavar="DEST", help=text)
    _add_output_options(add)

    add = command("swap", "Exchange what stands at two paths, in one step.")
    add.add_argument("first", metavar="A")
    add.add_argument("second", metavar="B")
    add.add_argument("--no-durable", action="store_false", dest="durable", help="do not sync the folders")

    add = command("recover", "Undo or finish what dead transactions left in folders.")
    add.add_argument("folders", nargs="+", metavar="FOLDER")
    add.add_argument("--dry-run", action="store_true", help="change nothing, only tell")
    text = "also delete displaced originals that cannot go back, and give up folders that are gone"
    add.add_argument("--discard", action="store_true", help=text)
    add.add_argument("--lock-timeout", type=float, default=60.0, metavar="SECONDS")

    add = command("doctor", "Show what a folder's filesystem can do, and which promises hold there.")
    add.add_argument("folders", nargs="+", metavar="FOLDER")
    return top


_WRITE = """
A program upstream that fails in a pipe cannot be seen from here: what it wrote until then is published.
Use "atomik run" when its exit code matters.
"""

_RUN = """
The program finds the paths to write to where its arguments say {DEST}, and in the environment as
ATOMIK_PATH_1, ATOMIK_PATH_2 and so on.  All outputs are published in one transaction, or none:

    atomik run --file out.csv --folder plots -- ./analyse --table {out.csv} --plots {plots}
"""


def _add_output_options(add: argparse.ArgumentParser) -> None:
    add.add_argument("--overwrite", action="store_true", help="replace what exists")
    add.add_argument("--no-durable", action="store_false", dest="durable", help="do not wait for the disk")
    add.add_argument("--parents", action="store_true", help="make missing folders above")
    add.add_argument("--lock-timeout", type=float, default=60.0, metavar="SECONDS")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (raises SystemExit for signals, ``--help`` and mistakes)."""
    known = _parse(list(sys.argv[1:] if arguments is None else arguments))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape")  # names that are no text come out as the bytes they are
    try:
        code = _COMMANDS[known.name](known)
        print(end="", flush=True)
    except BrokenPipeError:  # the reader of our report went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _BROKEN_PIPE
    except SystemExit as exc:
        print(f"atomik: {exc}", file=sys.stderr)
        raise
    except (errors.AtomikError, OSError, ValueError) as exc:
        return _failed(known, exc)
    return code


def _parse(given: list[str]) -> argparse.Namespace:
    run = given[:1] == ["run"]
    program: list[str] = []
    if run and "--" in given:  # by hand, for argparse takes a second "--" away from the program
        at = given.index("--")
        given, program = given[:at], given[at + 1 :]
    try:
        known = parser().parse_args(given)
    except SystemExit as exc:
        raise SystemExit(_RUN_FAILED if run and exc.code == USAGE else exc.code) from None
    if run and not (program and known.outputs):
        missing = "say what it writes, with --file or --folder" if program else "put the program to run behind --"
        print(f"atomik run: {missing}; see atomik run --help", file=sys.stderr)
        raise SystemExit(_RUN_FAILED)
    known.program = program
    return known


def _failed(known: argparse.Namespace, exc: Exception) -> int:
    print(f"atomik: {say(exc)}", file=sys.stderr)
    if known.json:
        _print_json({"error": type(exc).__name__, "message": say(exc)}, known)
    if known.name == "run":
        return _RUN_FAILED
    return ATTENTION if isinstance(exc, errors.RollbackError | errors.DurabilityError) else FAILED


def say(exc: BaseException) -> str:
    """An error in one line, without Python's decoration."""
    if not isinstance(exc, OSError) or exc.strerror is None:
        return str(exc)
    text = exc.strerror
    for python, option in _SAID_HERE.items():
        text = text.replace(python, option)
    names = [str(name) for name in (exc.filename, exc.filename2) if name not in (None, "-")]
    return ": ".join([*([", ".join(names)] if names else []), text])


def _print_json(value: object, known: argparse.Namespace) -> None:
    print(json.dumps(value), file=sys.stderr if known.name == "run" else sys.stdout)


def _print_receipt(receipt: Receipt, known: argparse.Namespace) -> None:
    from attrs import asdict

    for leftover in receipt.leftovers:
        print(f"atomik: could not clean up: {leftover}", file=sys.stderr)
    if known.json:
        _print_json(asdict(receipt), known)


# --- commands --------------------------------------------------------------------------------------------------------
def _write(known: argparse.Namespace) -> int:
    from . import _cli_run

    _print_receipt(_cli_run.write(known), known)
    return DONE


def _run(known: argparse.Namespace) -> int:
    from . import _cli_run

    try:
        code, receipt = _cli_run.run(known)
    except _cli_run.NotStartedError as exc:
        print(f"atomik: {exc}", file=sys.stderr)
        return exc.code
    if receipt is not None:
        _print_receipt(receipt, known)
    return code


def _swap(known: argparse.Namespace) -> int:
    from ._directory import Directory
    from ._exchange import swap

    swap(known.first, known.second)
    if known.durable:
        for parent in {os.path.dirname(os.path.abspath(path)) for path in (known.first, known.second)}:
            directory = Directory.open(parent)
            try:
                directory.sync()
            finally:
                directory.close()
    if known.json:
        _print_json({"swapped": [known.first, known.second], "durable": known.durable}, known)
    return DONE


def _recover(known: argparse.Namespace) -> int:
    from attrs import asdict

    from ._recovery import RecoveryReport, recover

    items: list[Any] = []
    code = DONE
    for at, folder in enumerate(known.folders):
        _show_progress(at, len(known.folders))
        try:
            report = recover(folder, discard=known.discard, dry_run=known.dry_run, lock_timeout=known.lock_timeout)
        except (errors.AtomikError, OSError) as exc:  # the other folders are looked after all the same
            _show_progress(0, 0)
            print(f"atomik: {say(exc)}", file=sys.stderr)
            code = ATTENTION if isinstance(exc, errors.RollbackError) else max(code, FAILED)
        else:
            items += report.items
    _show_progress(0, 0)
    whole = RecoveryReport(tuple(items))
    if known.json:
        _print_json({"clean": whole.clean, "items": [asdict(item) for item in items]}, known)
    else:
        print(whole)
    return code or (DONE if whole.clean else ATTENTION)


def _show_progress(done: int, total: int) -> None:
    """A bar on a terminal, nothing elsewhere; a total of 0 wipes it away."""
    if not sys.stderr.isatty():
        return
    bar = ""
    if total > 1:
        filled = 30 * done // total
        bar = f"[{'#' * filled}{'.' * (30 - filled)}] {done} of {total} folders"
    print(f"\r\033[K{bar}", end="", file=sys.stderr, flush=True)


def _doctor(known: argparse.Namespace) -> int:
    from ._capabilities import probe

    code, found = DONE, []
    for folder in known.folders:
        try:
            found.append(probe(folder))
        except (errors.AtomikError, OSError) as exc:
            print(f"atomik: {say(exc)}", file=sys.stderr)
            code = FAILED
    if known.json:
        _print_json({"folders": [capabilities.as_dict() for capabilities in found]}, known)
    else:
        print("\n\n".join(str(capabilities) for capabilities in found))
    return code


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "write": _write,
    "run": _run,
    "swap": _swap,
    "recover": _recover,
    "doctor": _doctor,
}
