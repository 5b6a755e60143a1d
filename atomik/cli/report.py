"""What the command line prints: results and errors, for people or (``--json``) for machines.

Results go to standard output (``run``: JSON on standard error, because standard output is the program's), messages to
standard error.  A message that cannot be written is no reason to fail.  A result that cannot be written is: `UnheardError`
is raised, which says nothing about the work itself, because that is done by then.

Names are written as the bytes they are, whatever the locale; in messages, which are one line each, control characters
are escaped.
"""

from __future__ import annotations

import codecs
import os
import sys

from .progress import Progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

    from atomik._receipt import PlannedChange, Receipt

#: What the messages of the library call by Python's names.
_SAID_HERE = {
    "; create the missing folder, or pass parents=True": "",
    "overwrite=True": "--overwrite",
    "allow_gap=True": "--allow-gap",
    "backup= ": "--backup ",
    "parents=True": "--parents",
    "raise lock_timeout": "raise --lock-timeout",
    "pass background='wait' or 'kill'": "pass --background wait or kill",
}
#: control characters as they are shown, in one line
_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(0x20), 0x7F)}


class UnheardError(Exception):
    """The result could not be written; ``__cause__`` is the system's error."""


class Report:
    """Prints what one command does.  ``machine``: as JSON; ``outputs``: the command has ``--overwrite`` and the like."""

    def __init__(self, *, machine: bool, error_stream: bool, outputs: bool) -> None:
        self._machine, self._error_stream, self._outputs = machine, error_stream, outputs
        #: what went wrong with one of several folders
        self.errors: list[dict[str, str]] = []
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="atomik.names")

    def result(self, value: dict[str, Any], text: str = "") -> None:
        """What was done: `value` for a machine, `text` for a person."""
        if self._machine:
            self._put(_json(value), sys.stderr if self._error_stream else sys.stdout)
        elif text:
            self._put(text, sys.stdout)

    def listing(self, value: dict[str, Any], text: str) -> None:
        """What would be done: on standard error too, because standard output is the program's."""
        if self._machine:
            self.result(value)
        else:
            self._put(text, sys.stderr)

    def done(self, what: Receipt | tuple[PlannedChange, ...], value: dict[str, Any] | None = None) -> None:
        """What a commit did, or would do; `value` says it for a machine, where it is more than the receipt."""
        if not isinstance(what, tuple):
            for leftover in what.leftovers:
                self.tell(f"could not clean up: {leftover}")
            if self._machine:
                self.result(what.as_dict() if value is None else value)
        else:
            plan = [change.as_dict() for change in what]
            self.result({"dry_run": True, "plan": plan}, "\n".join(map(str, what)))

    def print(self, value: dict[str, Any]) -> None:
        """A document, with or without ``--json``."""
        self._put(_json(value, None if self._machine else 2), sys.stdout)

    def failure(self, kind: str, message: str, **more: Any) -> None:
        """That the command failed: the message, and an object that says the same."""
        self.tell(message)
        self._fail({"error": kind, "message": message, **more})

    def failed(self, exc: Exception) -> None:
        """That one folder of several failed; the result is still to come."""
        self.tell(self.say(exc))
        self.errors.append({"error": type(exc).__name__, "message": self.say(exc)})

    def mistake(self, usage: str, message: str) -> None:
        """That the command line is wrong."""
        self._try(f"{usage}{message.translate(_CONTROL)}")
        self._fail({"error": "UsageError", "message": message})

    def tell(self, message: str) -> None:
        """A message of one line."""
        self._try(f"atomik: {message.translate(_CONTROL)}")

    def say(self, exc: BaseException) -> str:
        """An error in one line, without Python's decoration."""
        if not isinstance(exc, OSError) or exc.strerror is None:
            return str(exc)
        text = exc.strerror
        if not self._outputs:
            text = text.replace("create it or pass parents=True", "create it")
        for python, option in _SAID_HERE.items():
            text = text.replace(python, option)
        names = [str(name) or "''" for name in (exc.filename, exc.filename2) if name not in (None, "-")]
        return ": ".join([*([", ".join(names)] if names else []), text])

    def progress(self) -> Progress:
        """How far the work is, on a terminal; nothing elsewhere."""
        terminal = sys.stderr is not None and sys.stderr.isatty()
        return Progress((lambda text: self._try(text, end="")) if terminal else None)

    def _fail(self, value: dict[str, Any]) -> None:
        try:
            self.result(value)
        except UnheardError:
            pass  # the exit code says it

    def _try(self, text: str, end: str = "\n") -> None:
        try:
            self._put(text, sys.stderr, end)
        except UnheardError:
            pass

    def _put(self, text: str, stream: TextIO | None, end: str = "\n") -> None:
        if stream is None:
            return  # it was closed when we were started
        try:
            print(text, end=end, file=stream, flush=True)
        except OSError as exc:
            # What is left in its buffer must not fail once more when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            raise UnheardError from exc


def _json(value: dict[str, Any], indent: int | None = None) -> str:
    import json  # most commands tell nothing

    return json.dumps(value, indent=indent)


def _name_bytes(exc: UnicodeError) -> tuple[str | bytes, int]:
    """Encode names that are no text to their bytes, and what the stream's encoding lacks to an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(exc)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(exc)


codecs.register_error("atomik.names", _name_bytes)
