"""The command ``atomik``: `commands` reads the command line, `run`, `run_in` and `apply` do the work, `child` runs their
programs, `signals` ends them cleanly, `report` and `progress` print.

`main` claims the standard descriptors before anything else is imported.  A list of arguments goes in and an exit
code comes out; nothing here is for use by other code.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; without arguments, run that of this process and end it."""
    if arguments is not None:
        _claim()
        from . import commands

        return commands.main(arguments)
    # The process is ours.  What is loaded stays until its end, so looking for garbage in all of it finds nothing.
    gc.set_threshold(100_000)
    _end(main(sys.argv[1:]))


def _end(code: int) -> NoReturn:
    """End the process as sys.exit() does, but leave its memory to the kernel: taking apart all that was loaded, object by
    object, takes a fifteenth of a short command."""
    atexit._run_exitfuncs()
    if sys.stdout is not None:
        sys.stdout.flush()
    os._exit(code)


def _claim() -> None:
    """Open /dev/null for each of descriptors 0, 1, 2 that was closed when we were started.

    Otherwise the next file that is opened gets the number: the library that ctypes opens would be read as standard
    input, or a file that is being written would get our messages.  The program of ``run`` does not inherit the
    replacement.  Python remembers which were closed: there, sys.stdin, stdout or stderr is None.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
