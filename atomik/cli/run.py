"""``atomik write`` and ``atomik run``: outputs of other programs, all or nothing, whenever a signal comes.

What only ``run`` needs is imported by its functions: otherwise ``write`` would take half as long again to start.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from atomik import errors
from atomik._api.shortcuts import file, transaction
from atomik._folder.paths import exists, is_folder
from atomik._system import kernel

from .signals import Signals, guarded

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    import re
    from collections.abc import Callable, Iterator
    from typing import IO, Any

    from atomik._api.transaction import Transaction
    from atomik._receipt import PlannedChange, Receipt
    from atomik._staging.item import Item

    from .progress import Progress

#: outputs that the program prints
STREAMS = ("stdout", "stderr")

#: an argument that no program parses again for blanks and quotes, and a path that survives it if one does
_WORD, _PLAIN = r"[\w./=,:;+@%^~#-]*", r"[A-Za-z0-9_./\x80-\U0010ffff-]+"
#: what the name of an environment variable is made of here
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")

_CHUNK = 1 << 20


class PlaceholderError(ValueError):
    """A placeholder is at a place where its path would be misread."""


def _named(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that only outputs of a command have."""
    options: dict[str, Any] = {"allow_gap": True} if arguments.allow_gap else {}
    if getattr(arguments, "backup", None) is not None:
        options["backup"] = arguments.backup
    return options


def _asked_for(arguments: argparse.Namespace) -> dict[str, Any]:
    """Only what is not the default: for a plain file the library loads less."""
    options = {
        "parents": arguments.parents, "permissions": arguments.mode, "follow_symlinks": arguments.follow_symlinks,
        "if_changed": arguments.if_changed,
    }  # fmt: skip
    return {name: value for name, value in options.items() if value is not None and value is not False}


# --- write -----------------------------------------------------------------------------------------------------------
def write(arguments: argparse.Namespace, progress: Progress) -> Receipt | tuple[PlannedChange, ...]:
    """Standard input to a file; returns what was done, or would be."""
    if sys.stdin is None:  # as Python found it; what the descriptor leads to now is something else
        errors.fail(errors.AtomikOSError, errno.EBADF, "standard input is closed; redirect a file or a pipe to it", "-")
    _refuse_special(arguments.destination)
    with Signals() as signals, progress:
        output = file(
            arguments.destination, "wb", arguments.overwrite, durable=arguments.durable,
            lock_timeout=arguments.lock_timeout, progress=progress.wanted, **_named(arguments), **_asked_for(arguments),
        )  # fmt: skip

        def work() -> Receipt | tuple[PlannedChange, ...]:
            _copy_input(output.output, progress)
            output.output.close()  # complete, so that a dry run can compare it
            return output.transaction.plan() if arguments.dry_run else output.commit()

        result: Receipt | tuple[PlannedChange, ...] = guarded(signals, output.transaction, work)
        return result


def _copy_input(output: IO[bytes], progress: Progress) -> None:
    with kernel.typed("cannot read standard input", "-"):
        size = os.fstat(0).st_size  # 0 for a pipe
        typed = os.isatty(0)
    if not typed:  # a line from us would disturb
        progress.start()
    done = 0
    while chunk := _read_input():
        done += output.write(chunk)
        progress("MiB read", done >> 20, size >> 20)


def _read_input() -> bytes:
    with kernel.typed("cannot read standard input", "-"):
        return os.read(0, _CHUNK)


def _refuse_special(path: str) -> None:
    """A user who passes /dev/null or /dev/stdout wants to write to it; the library would replace the name."""
    try:
        mode = os.stat(path).st_mode
        into_proc = stat.S_ISLNK(os.lstat(path).st_mode) and os.readlink(path).startswith("/proc/")
    except ValueError:
        return  # no path: the library says so
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return  # nothing there
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or into_proc:
        text = "a device, FIFO or socket would be replaced by a file; redirect to it with the shell, or remove it first"
        errors.fail(errors.WrongKindError, errno.EINVAL, text, path)


# --- run -------------------------------------------------------------------------------------------------------------
def run(arguments: argparse.Namespace, progress: Progress) -> tuple[int, Receipt | tuple[PlannedChange, ...] | None]:
    """A program on staged paths; (the exit code, what was published, or would be)."""
    streams = [output for output in arguments.outputs if output[0] in STREAMS]
    paths = [output for output in arguments.outputs if output[0] not in STREAMS]
    names = [path for _, path, _ in paths]
    with Signals() as signals, progress:
        tx = transaction(
            overwrite=arguments.overwrite, durable=arguments.durable, lock_timeout=arguments.lock_timeout,
            progress=progress.wanted,
        )  # fmt: skip

        def work() -> tuple[int, Receipt | tuple[PlannedChange, ...] | None]:
            files = {kind: _stage(tx, kind, path, arguments, own) for kind, path, own in streams}
            outputs = [_stage(tx, kind, path, arguments, own) for kind, path, own in paths]
            _refuse_twice(tx)
            staged = [place for _, place in outputs]
            resumed = {f"ATOMIK_RESUMED_{at}": "1" for at, (item, _) in enumerate(outputs, 1) if item.resumed}
            beside = list(_beside(paths, staged))
            command = fill_in(
                arguments.program, names + [name for name, _ in beside], staged + [at for _, at in beside]
            )
            from .child import spawn

            code = spawn(signals, command, environment(names, staged) | resumed, files)
            if code:
                return code, None
            signals.check()  # the child was told to stop, and said that all is well; its output is not to be trusted
            for (kind, path, _), place in zip(paths, staged, strict=True):
                _check_output(kind, path, place)
            progress.start()
            return 0, tx.plan() if arguments.dry_run else tx.commit()

        result: tuple[int, Receipt | tuple[PlannedChange, ...] | None] = guarded(signals, tx, work)
        return result


def _stage(tx: Transaction, kind: str, path: str, arguments: argparse.Namespace, own: dict[str, Any]) -> Any:
    """What the program is to write to: an item and its path, or for a stream a file object."""
    _refuse_special(path)
    options = {"parents": arguments.parents, **_named(arguments), **own}
    if kind in STREAMS:
        return tx.file(path, "wb", **options)
    stage: Callable[..., tuple[Item, str]] = tx._stage_folder if kind == "folder" else tx._stage_path
    return stage(path, resume=arguments.resume, **options)


def _refuse_twice(tx: Transaction) -> None:
    """Of two outputs with one destination only the second would be published, where something may be replaced."""
    for item in tx.items:
        if item.follows:
            text = (
                "two outputs have this destination; for both streams in one file, give --stdout and run the program by "
            )
            text += "sh -c 'exec \"$@\" 2>&1' sh PROGRAM"
            errors.fail(errors.DuplicateDestinationError, errno.EEXIST, text, item.path)


def _beside(paths: list[tuple[str, str, dict[str, Any]]], staged: list[str]) -> Iterator[tuple[str, str]]:
    """(name, path to write to) of what may be written next to the staged paths."""
    from atomik._staging.companions import names_of

    for (_, path, own), place in zip(paths, staged, strict=True):
        for name in names_of(own.get("also", ()), os.path.basename(place), path):
            yield os.path.join(os.path.dirname(path), name), os.path.join(os.path.dirname(place), name)


def _check_output(kind: str, path: str, place: str) -> None:
    if not exists(place):
        text = f"the program exited with 0, but did not create this {kind}"
        errors.fail(errors.MissingPathError, errno.ENOENT, text, path)
    if kind == "file" and is_folder(place):
        text = "the program created a folder for a --file; use --folder"
        errors.fail(errors.WrongKindError, errno.EISDIR, text, path)


def fill_in(command: list[str], names: list[str], staged: list[str]) -> list[str]:
    """The command with ``{destination}`` replaced; the base name will do where it is no other's.

    Braces around anything else stay as they are.
    """
    places: dict[str, str] = {}
    for of in (_base, lambda name: name.rstrip("/"), lambda name: name):  # what was given in full wins
        for name, place in zip(names, staged, strict=True):
            if of is not _base or [_base(other) for other in names].count(_base(name)) == 1:
                places[f"{{{of(name)}}}"] = place
    return [_filled(each, places) for each in command]


def _filled(argument: str, places: dict[str, str]) -> str:
    if argument in places or not any(name in argument for name in places):
        return places.get(argument, argument)
    import re

    ours = re.compile("|".join(map(re.escape, places)))  # a name may have braces of its own
    _refuse_to_split(argument, ours, places)
    return ours.sub(lambda found: places[found[0]], argument)


def _refuse_to_split(argument: str, ours: re.Pattern[str], places: dict[str, str]) -> None:
    """An argument that is more than a word, such as the script of ``sh -c``, is parsed again by the program that gets
    it: a blank or a quote in the path would then end the path, or begin something else."""
    import re

    if re.fullmatch(_WORD, ours.sub("", argument)):
        return
    for name in ours.findall(argument):
        if not re.fullmatch(_PLAIN, places[name]):
            raise PlaceholderError(
                f"{name} inside {argument!r}: its path, {places[name]!r}, would be split or misread there; pass it as an "
                f'argument of its own, such as sh -c \'... "$1" ...\' sh {name}, or use "$ATOMIK_PATH_1"'
            )


def environment(names: list[str], staged: list[str]) -> dict[str, str]:
    """The environment with ``ATOMIK_PATH_1`` … in the order given, and ``ATOMIK_PATH_OUT_CSV`` for a base name."""
    found = {key: value for key, value in os.environ.items() if not key.startswith("ATOMIK_RESUMED_")}
    keys = [_key(name) for name in names]
    found |= {f"ATOMIK_PATH_{key}": place for key, place in zip(keys, staged, strict=True) if keys.count(key) == 1}
    # The numbers last, because they are always there: an output may be called "2" and not be the second.
    return found | {f"ATOMIK_PATH_{at}": place for at, place in enumerate(staged, 1)}


def _key(name: str) -> str:
    """A base name in the letters of a variable's name: one underscore for whatever is something else."""
    text = "".join([char if char in _LETTERS else "_" for char in _base(name).upper()])
    while "__" in text:
        text = text.replace("__", "_")
    return text


def _base(name: str) -> str:
    return os.path.basename(name.rstrip("/"))
