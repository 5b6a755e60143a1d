"""The command `atomik` in a forked child, which is quicker than a new interpreter."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from subprocess import CompletedProcess
from typing import Any

from atomik.cli import main


def forked(*arguments: Any, input: bytes = b"") -> CompletedProcess[bytes]:
    """What ``atomik ARGUMENTS`` prints and returns, with `input` as its standard input."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(input)
        files[0].seek(0)
        child = os.fork()
        if not child:
            os._exit(_main([os.fsdecode(each) for each in arguments], [file.fileno() for file in files]))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in files:
            file.seek(0)
        return CompletedProcess(arguments, code, files[1].read(), files[2].read())


def _main(arguments: list[str], fds: list[int]) -> int:
    code: Any = 1
    try:
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115  to its end
        sys.argv = ["atomik", *arguments]
        code = main()
    except SystemExit as exc:
        code = exc.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0
