"""The command ``atomik``: write, run, apply, swap, recover, doctor.

Exit codes (docs/reference/command-line.md):

* 0: done.  1: it failed, and nothing was changed.  2: the command line, or the change set, is wrong.
* 3: it needs attention: in doubt, not confirmed durable, `recover` could not settle everything, or it is done and the
  report could not be written.
* 128 + n: ended by signal n.
* ``run`` has the program's own exit code, and 125 when atomik failed (nothing was published), 126 when the program
  cannot be run, 127 when it was not found.

A user's mistake gets one line on standard error, never a traceback.  What is printed, and how, is in `report`.
"""

from __future__ import annotations

import argparse
import os
import sys

from atomik import errors

from .report import Report, UnheardError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn


DONE, FAILED, USAGE, ATTENTION = 0, 1, 2, 3
_RUN_FAILED = 125

# Nobody has translated the words of argparse.  For each that it says, gettext would look for a catalog on the disk, and load
# `locale` for that.
argparse._ = str  # type: ignore[attr-defined]
_INTERRUPTED, _BROKEN_PIPE = 128 + 2, 128 + 13


class UsageError(Exception):
    """The command line is wrong; ``usage`` says how it should be."""

    def __init__(self, usage: str, message: str) -> None:
        super().__init__(message)
        self.usage = usage


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """One is made for each option, and asks for the width of the terminal by loading shutil, and so every compressor."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_width() - 2)


def _width() -> int:
    """The columns of the terminal, as shutil.get_terminal_size() finds them."""
    try:
        columns = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        columns = 0
    if columns <= 0:
        try:
            columns = os.get_terminal_size(sys.__stdout__.fileno()).columns if sys.__stdout__ is not None else 0
        except (OSError, ValueError):  # no terminal, or closed
            columns = 0
    return columns or 80


class _Parser(argparse.ArgumentParser):
    """No abbreviations: they would break when an option is added."""

    def __init__(self, **keywords: Any) -> None:
        keywords |= {"allow_abbrev": False, "formatter_class": _Formatter}
        super().__init__(**keywords)

    def error(self, message: str) -> NoReturn:
        raise UsageError(self.format_usage(), f"{self.prog}: error: {message}")


class _Output(argparse.Action):
    """``--file``, ``--folder``, ``--stdout`` and ``--stderr`` go into one list, in the order in which they were given, each
    with the options of its own that follow."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        kind, before = (option or "").lstrip("-"), namespace.outputs or []
        if kind.startswith("std") and any(kind == other for other, *_ in before):
            parser.error(f"argument {option}: given twice, but the program has only one")
        namespace.outputs = [*before, (kind, values, {})]


class _OfOutput(argparse.Action):
    """An option of the output before it, which must be of the kind `const`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        kind, _, own = (namespace.outputs or [("", "", {})])[-1]
        if kind != self.const:
            parser.error(f"argument {option}: put it right after the --{self.const} that it belongs to")
        if self.nargs == 0:
            own[self.dest] = True
        else:
            own[self.dest] = [*own.get(self.dest, ()), *values]


def _mode(text: str) -> int:
    value = int(text, 8)
    if not 0 <= value <= 0o7777:
        raise ValueError
    return value


_mode.__name__ = "octal mode"


def _seconds(text: str) -> float:
    value = float(text)
    if not value >= 0:  # NaN neither: it would wait forever
        raise ValueError
    return value


_seconds.__name__ = "number of seconds"


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """The command line; with `only` that of one command, because describing all takes longer than writing a small file."""
    if only is not None:
        return _described(only, _Parser(prog=f"atomik {only}", **_texts(only)))
    from atomik import __version__

    top = _Parser(prog="atomik", description="Write files, folders, or groups of them, all or nothing.")
    top.add_argument("--version", action="version", version=f"atomik {__version__}")
    # Without prog=, argparse formats a usage to find out what it is, and loads every compressor with shutil for that.
    commands = top.add_subparsers(dest="name", metavar="COMMAND", required=True, prog="atomik")
    for name in _COMMANDS:
        _described(name, commands.add_parser(name, help=_HELP[name], **_texts(name)))
    return top


def _texts(name: str) -> dict[str, Any]:
    """What argparse says about a command, besides its arguments."""
    texts = {"description": f"{_HELP[name]}\n{_MORE.get(name, '')}"}
    return texts | {"usage": _RUN_USAGE} if name == "run" else texts


def _described(name: str, command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The command with its arguments."""
    command.add_argument("--json", action="store_true", help="print the result as one JSON object")
    _ARGUMENTS[name](command)
    return command


_HELP = {
    "write": "Write standard input to a file, all or nothing.",
    "run": "Run a program and publish its outputs if it exits with 0.",
    "apply": "Apply a change set (JSON) to files below a folder, all or nothing.",
    "swap": "Exchange two files, folders or links in one step.",
    "recover": "Undo or finish the transactions that dead processes left in folders.",
    "doctor": "Show what a folder's filesystem can do, and which promises hold there.",
}

_LOCK_TIMEOUT = "how long to wait for other transactions in the folder, 60 by default; inf: as long as it takes"

_WRITE = """
If the program upstream of the pipe fails, what it wrote until then is published.
If its exit code matters, use "atomik run --stdout".
"""

_RUN_USAGE = """atomik run [--file DEST]... [--folder DEST]... [--stdout DEST] [options] -- PROGRAM [ARGUMENT]...
       atomik run --in FOLDER [options] -- PROGRAM [ARGUMENT]..."""

_RUN = """
In its arguments, {DEST} is replaced by the path that the program should write to.  The paths are also in the
environment, as ATOMIK_PATH_1, ATOMIK_PATH_2 and so on.  All outputs are published in one transaction, or none:

    atomik run --file out.csv --folder plots -- ./analyse --table {out.csv} --plots {plots}
    atomik run --stdout dump.sql -- pg_dump shop
    atomik run --file data.shp --also .shx .dbf .prj -- ogr2ogr {data.shp} roads.geojson
    atomik run --folder /srv/volume --in-place --overwrite -- hugo -d {volume}

With --resume, what the program wrote is kept for the next run if the program fails or is killed.  The next run finds it at
the same path, with ATOMIK_RESUMED_1 (for the first path) set to 1.

Pass the paths to a shell script as arguments:

    atomik run --file out -- sh -c 'sort data > "$1"' sh {out}

With --in, the program runs on a private copy of a folder, at the folder's own path.  If it exits with 0, the copy
takes the folder's place in one step:

    atomik run --in /srv/site -- make install
"""


_APPLY = """
    {"changes": [{"op": "write", "path": "a.txt", "text": "...", "expect": "absent"},
                 {"op": "replace", "path": "x.py", "old": "foo(", "new": "bar(", "count": 2},
                 {"op": "remove", "path": "d"}, {"op": "move", "from": "e", "to": "f"}]}

Each change sees the result of the earlier ones.  --schema prints the whole format.
"""

_MORE = {"write": _WRITE, "run": _RUN, "apply": _APPLY}


def _add_write(add: argparse.ArgumentParser) -> None:
    add.add_argument("destination", metavar="DEST", help="the file to write")
    add.add_argument("--mode", type=_mode, metavar="0640", help="permissions of the file, in octal")
    add.add_argument("--follow-symlinks", action="store_true", help="if DEST is a link, write to its target")
    add.add_argument("--if-changed", action="store_true", help="do nothing if the content is unchanged")
    add.add_argument("--backup", metavar="NAME", help="keep the previous version under this name in the same folder")
    _add_dry_run(add)
    _add_output_options(add)


def _add_run(add: argparse.ArgumentParser) -> None:
    texts = {
        "file": "a file that the program writes; can be repeated",
        "folder": "a folder that the program writes; can be repeated",
        "stdout": "a file for the standard output of the program",
        "stderr": "a file for the standard error of the program",
    }
    for kind, text in texts.items():
        add.add_argument(f"--{kind}", action=_Output, dest="outputs", metavar="DEST", help=text)
    text = "after --file: what the program may write next to it, as suffixes (.shx next to data.shp) or file names"
    add.add_argument("--also", action=_OfOutput, const="file", nargs="+", metavar="NAME", help=text)
    text = "after --folder: keep the folder itself (a mount point, a volume) and change its entries"
    add.add_argument("--in-place", action=_OfOutput, const="folder", nargs=0, help=text)
    text = "run the program and print what would be published (with --in: what it changed), but publish nothing"
    add.add_argument("--dry-run", action="store_true", help=text)
    text = "continue what an earlier run wrote to --file and --folder; keep it for the next run if the program fails"
    add.add_argument("--resume", action="store_true", help=text)
    _add_output_options(add)
    inside = add.add_argument_group("with --in FOLDER")
    inside.add_argument(
        "--in", dest="inside", metavar="FOLDER", help="run the program on a private copy of this folder"
    )
    text = (
        "do not clone the folder; collect the changes in an overlay and publish each; for large folders without reflink"
    )
    inside.add_argument("--changes-only", action="store_true", help=text)
    text = "publish even if someone else changed the folder in the meantime; their changes are lost"
    inside.add_argument("--overwrite-changes", action="store_true", help=text)
    text = "what to do about processes that the program leaves running; the default is to refuse to publish"
    inside.add_argument("--background", choices=("refuse", "wait", "kill"), help=text)
    text = "if the program fails, keep the copy as this new folder, on the same filesystem"
    inside.add_argument("--keep-on-failure", metavar="DIR", help=text)


def _add_apply(add: argparse.ArgumentParser) -> None:
    add.add_argument("changes", nargs="?", metavar="CHANGES", help="a JSON file, or - for standard input")
    add.add_argument(
        "--root",
        default=".",
        metavar="DIR",
        help="the folder that all paths are relative to; by default the current one",
    )
    _add_dry_run(add)
    add.add_argument("--schema", action="store_true", help="print the JSON schema of change sets, and do nothing else")
    _add_waiting(add)


def _add_swap(add: argparse.ArgumentParser) -> None:
    add.add_argument("first", metavar="A", help="a path that exists")
    add.add_argument("second", metavar="B", help="another one, on the same filesystem")
    _add_dry_run(add)
    _add_waiting(add)


def _add_recover(add: argparse.ArgumentParser) -> None:
    add.add_argument("folders", nargs="+", metavar="FOLDER", help="a folder that holds destinations")
    add.add_argument("--recursive", action="store_true", help="also search the folders below them")
    _add_dry_run(add)
    text = "also delete originals that cannot be put back and what was staged with resume, and give up lost folders"
    add.add_argument("--discard", action="store_true", help=text)
    add.add_argument("--lock-timeout", type=_seconds, default=60.0, metavar="SECONDS", help=_LOCK_TIMEOUT)


def _add_doctor(add: argparse.ArgumentParser) -> None:
    add.add_argument("folders", nargs="+", metavar="FOLDER")


def _add_output_options(add: argparse.ArgumentParser) -> None:
    add.add_argument("--overwrite", action="store_true", help="replace existing destinations")
    add.add_argument("--parents", action="store_true", help="create missing parent folders")
    text = "accept a moment without the destination where the filesystem cannot replace it in one step"
    add.add_argument("--allow-gap", action="store_true", help=text)
    _add_waiting(add)


def _add_waiting(add: argparse.ArgumentParser) -> None:
    add.add_argument("--no-durable", action="store_false", dest="durable", help="do not wait for the disk")
    add.add_argument("--lock-timeout", type=_seconds, default=60.0, metavar="SECONDS", help=_LOCK_TIMEOUT)


def _add_dry_run(add: argparse.ArgumentParser) -> None:
    add.add_argument("--dry-run", action="store_true", help="change nothing, only print what would be done")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (raises SystemExit for signals and ``--help``)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name, own = "".join(given[:1]), given[: given.index("--")] if "--" in given else given
    failed = _RUN_FAILED if name == "run" else FAILED
    report = Report(machine="--json" in own, error_stream=name == "run", outputs=name in ("run", "write"))
    try:
        known = _parse(given)
        return _COMMANDS[known.name](known, report)
    except UsageError as exc:
        report.mistake(exc.usage, str(exc))
        return _RUN_FAILED if name == "run" else USAGE
    except UnheardError as exc:
        if isinstance(exc.__cause__, BrokenPipeError):  # the reader of our report went away
            return _BROKEN_PIPE
        report.tell(f"the work is done, but the report could not be written: {report.say(exc.__cause__ or exc)}")
        return _RUN_FAILED if name == "run" else ATTENTION
    except SystemExit as exc:
        if exc.code:
            report.failure("Stopped", str(exc))
        raise
    except KeyboardInterrupt:  # before or after the work, which catches its signals itself
        report.failure("Stopped", "stopped by SIGINT")
        return _INTERRUPTED
    except (errors.AtomikError, OSError, ValueError) as exc:
        change = getattr(exc, "change", None)
        report.failure(type(exc).__name__, report.say(exc), **({} if change is None else {"change": change}))
        if type(exc).__name__ == "ChangeSetError":
            return USAGE
        doubt = isinstance(exc, errors.RollbackError | errors.DurabilityError) and name != "run"
        return ATTENTION if doubt else failed


def _parse(given: list[str]) -> argparse.Namespace:
    run = given[:1] == ["run"]
    program: list[str] = []
    if run and "--" in given:  # by hand: argparse would take a second "--" away from the program
        at = given.index("--")
        given, program = given[:at], given[at + 1 :]
    if given and given[0] in _COMMANDS:
        known = parser(given[0]).parse_args(given[1:], argparse.Namespace(name=given[0]))
    else:
        known = parser().parse_args(given)
    if run:
        _check_inside(known)
    if run and not (program and (known.outputs or known.inside is not None)):
        missing = (
            "say what the program writes, with --file, --folder, --stdout or --in"
            if program
            else "put the program after --"
        )
        raise UsageError("", f"atomik run: {missing}; see atomik run --help")
    known.program = program
    return known


def _check_inside(known: argparse.Namespace) -> None:
    """Some options of ``run`` are for --in alone, others have no meaning with it."""
    only = {
        "--changes-only": known.changes_only, "--overwrite-changes": known.overwrite_changes,
        "--background": known.background is not None,
        "--keep-on-failure": known.keep_on_failure is not None,
    }  # fmt: skip
    never = {
        "an output": known.outputs, "--overwrite": known.overwrite, "--parents": known.parents, "--resume": known.resume,
    }  # fmt: skip
    wrong = [name for name, given in (never if known.inside is not None else only).items() if given]
    if wrong:
        text = (
            f"{wrong[0]} cannot be combined with --in" if known.inside is not None else f"{wrong[0]} needs --in FOLDER"
        )
        raise UsageError("", f"atomik run: {text}; see atomik run --help")


# --- commands --------------------------------------------------------------------------------------------------------
def _write(known: argparse.Namespace, report: Report) -> int:
    from .run import write

    report.done(write(known, report.progress()))
    return DONE


def _apply(known: argparse.Namespace, report: Report) -> int:
    from .apply import apply, schema

    if known.schema:
        report.print(schema())
    elif known.changes is None:
        raise UsageError("", "atomik apply: give the change set, or - for standard input; see atomik apply --help")
    else:
        report.done(*apply(known, report.progress()))
    return DONE


def _run(known: argparse.Namespace, report: Report) -> int:
    from .child import NotStartedError
    from .run import run

    work: Callable[..., tuple[int, Any]] = run
    if known.inside is not None:
        from .run_in import run_in as work
    try:
        code, done = work(known, report.progress())
    except NotStartedError as exc:
        report.failure("NotStartedError", str(exc))
        return exc.code
    if done is not None and known.inside is not None and known.dry_run:
        report.listing(done.as_dict(), str(done))
    elif done is not None:
        report.done(done)
    else:  # the program has said why; with --json, say whose exit code this is
        text = f"the program ended with {code}; nothing was published"
        report.result({"error": "ProgramFailed", "message": text, "code": code})
    return code


def _swap(known: argparse.Namespace, report: Report) -> int:
    from atomik._api.transaction import Transaction

    from .signals import Signals

    with Signals() as signals, Transaction(durable=known.durable, lock_timeout=known.lock_timeout) as tx:
        tx.exchange(known.first, known.second)
        if known.dry_run:
            report.done(tx.plan())
            tx.abort()
            return DONE
        signals.check()
    report.result({"swapped": [known.first, known.second], "durable": known.durable})
    return DONE


def _recover(known: argparse.Namespace, report: Report) -> int:
    from atomik._recovery.recover import recover_all

    from .signals import stoppable

    # All folders in one call: what one of them needs may be in another.
    options = {name: getattr(known, name) for name in ("recursive", "discard", "dry_run", "lock_timeout")}
    with report.progress() as progress, stoppable("some of it may be done; run recover again"):
        progress.start()
        found, failures = recover_all(known.folders, progress=progress, **options)
    for failure in failures:
        report.failed(failure)
    value = {"clean": found.clean and not failures, "items": [item.as_dict() for item in found.items]}
    report.result({**value, "errors": report.errors}, str(found) if found.items or not failures else "")
    if any(isinstance(failure, errors.RollbackError | errors.UndecidedError) for failure in failures):
        return ATTENTION
    return FAILED if failures else DONE if found.clean else ATTENTION


def _doctor(known: argparse.Namespace, report: Report) -> int:
    from atomik._api.probe import probe

    from .signals import stoppable

    found = []
    with report.progress() as progress, stoppable("nothing was changed"):
        progress.start()
        for at, folder in enumerate(known.folders):
            progress("folders", at, len(known.folders))
            try:
                capabilities = probe(folder)
                found.append((capabilities, _run_in(folder)))
            except (errors.AtomikError, OSError, ValueError) as exc:
                progress.clear()
                report.failed(exc)
    folders = [
        can.as_dict() | {name: {"works": not why, "reason": why} for name, why in reasons.items()}
        for can, reasons in found
    ]
    told = "\n\n".join("\n".join([f"{can}\n", *map(_told, reasons.items())]) for can, reasons in found)
    report.result({"folders": folders, "errors": report.errors}, told)
    return FAILED if report.errors else DONE


_RUN_IN = {
    "run_in": "  programs on a private copy (atomik run --in)",
    "changes_only": "  programs through a layer (--changes-only)",
}


def _told(answer: tuple[str, str]) -> str:
    name, why = answer
    said = f"no\n     {why}" if why else "yes"
    return f"{_RUN_IN[name]:<57}{said}"


def _run_in(folder: str) -> dict[str, str]:
    """Why no program can run on a private copy of the folder, or through a layer over it; "" if one can."""
    from atomik._api.run_in import PrivateCopy, private_layer

    return {"run_in": PrivateCopy.why_not(folder), "changes_only": private_layer().why_not(folder)}


_COMMANDS: dict[str, Callable[[argparse.Namespace, Report], int]] = {
    "write": _write,
    "run": _run,
    "apply": _apply,
    "swap": _swap,
    "recover": _recover,
    "doctor": _doctor,
}

_ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "write": _add_write,
    "run": _add_run,
    "apply": _add_apply,
    "swap": _add_swap,
    "recover": _add_recover,
    "doctor": _add_doctor,
}
