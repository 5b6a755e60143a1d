"""Programs under strace: their system calls counted, killed at the n-th, or failed from outside.

    trace = run([sys.executable, "job.py"], calls=("renameat2", "fsync"))
    assert trace.count("renameat2") == 2
    run(argv, inject=kill_at("renameat2", 2))    # SIGKILL before the second one
    run(argv, inject=fail_at("fsync", 1, "EIO"))

strace is a witness that shares nothing with the code under test. Forks and
threads are followed. ``nth`` counts the calls of that name in each process
apart, from 1. Give the real interpreter as ``argv[0]``, not a shim: a shim's own
calls count too. A traced run takes some 30 to 90 ms.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.lab import linux

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LINE = re.compile(r"^(?:(?P<pid>\d+) +)?(?P<name>[a-z]\w*)\((?P<rest>.*)$")
_RESUMED = re.compile(r"^(?:(?P<pid>\d+) +)?<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)$")
_UNFINISHED = re.compile(r" ?<unfinished \.\.\.>$")
_RESULT = re.compile(r"^(?P<arguments>.*)\) += (?P<result>.*)$")


@dataclass(frozen=True)
class Call:
    """One system call, in strace's own words."""

    pid: int
    name: str
    arguments: str
    result: str
    """Such as "0", "-1 ENOENT (No such file or directory)" or "?" when it never returned."""

    @property
    def succeeded(self) -> bool:
        """Whether the call returned, and without an error."""
        return not self.result.startswith(("-1 ", "?"))


@dataclass(frozen=True)
class Trace:
    """What a traced program did."""

    calls: tuple[Call, ...]
    """In the order in which they began."""
    returncode: int
    """As of subprocess: minus the signal's number for a program that was killed."""
    stdout: str
    stderr: str

    @property
    def counts(self) -> Counter[str]:
        """How often each call was made, failed ones too."""
        return Counter(call.name for call in self.calls)

    def count(self, name: str) -> int:
        """How often ``name`` was called; 0 also when it was not traced.  Calls with a descriptor that is never open only ask
        whether a sandbox lets them through, and do not count."""
        return sum(call.name == name and str(_NO_FD) not in call.arguments for call in self.calls)


#: the descriptor of atomik._system.kernel that is never open
_NO_FD = 0x7FFFFFFF


@functools.cache
def missing_strace() -> str | None:
    """Why programs cannot be traced here (no strace, or no right to), as a reason to skip; or None."""
    program = shutil.which("strace")
    if program is None:
        return "needs strace"
    tried = subprocess.run([program, "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return f"strace may not trace here: {tried.stderr.strip()}" if tried.returncode else None


def kill_at(call: str, nth: int) -> str:
    """An ``inject`` for :func:`run`: SIGKILL instead of the ``nth`` such call, which is not carried out."""
    return f"{call}:signal=KILL:when={nth}"


def fail_at(call: str, nth: int, error: str, *, from_then_on: bool = False) -> str:
    """An ``inject`` for :func:`run`: the ``nth`` such call is not made, but fails with ``error``.

    ``error`` is a name such as "ENOSPC". With ``from_then_on``, later calls fail as well.
    """
    return f"{call}:error={error}:when={nth}{'+' if from_then_on else ''}"


def run(
    argv: Sequence[linux.StrPath],
    *,
    calls: Sequence[str] = (),
    inject: str | Sequence[str] = (),
    paths: bool = False,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> Trace:
    """Run ``argv`` under strace to its end, and return what it did.

    ``calls`` are the system calls to trace (none: all of them; much slower), and
    may be classes such as "%file". Injected calls are traced as well. ``paths``
    shows the path after each descriptor, as in ``3</dev/null>``. Raises
    subprocess.TimeoutExpired after ``timeout`` seconds.
    """
    injected = [inject] if isinstance(inject, str) else list(inject)
    wanted = [*calls, *(rule.partition(":")[0] for rule in injected)] if calls else []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "trace")
        command = ["strace", "-f", "-qq", "-s", "4096", "-e", "signal=none", "-o", str(log)]
        command += ["-y"] if paths else []
        command += ["-e", "trace=" + ",".join(wanted)] if wanted else []
        command += [f"--inject={rule}" for rule in injected]
        command += ["--kill-on-exit"] if _can_kill_on_exit() else []
        command += ["--", *(os.fspath(part) for part in argv)]
        code, stdout, stderr = _run_group(command, cwd, env, timeout)
        return Trace(tuple(parse(log.read_text(errors="surrogateescape"))), code, stdout, stderr)


def _run_group(
    command: list[str], cwd: Path | None, env: Mapping[str, str] | None, timeout: float
) -> tuple[int, str, str]:
    """Run the command in a process group of its own, which is killed as a whole if it does not end well.

    strace before 6.2, when killed, lets go of the program, which would live on.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=env,
        process_group=0,
        preexec_fn=linux.die_with(os.getpid()),
    ) as child:
        try:
            stdout, stderr = child.communicate(timeout=timeout)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    return child.returncode, stdout, stderr


def parse(log: str) -> list[Call]:
    """The calls of a trace written with ``strace -f -o``; interrupted lines are put together."""
    begun: list[tuple[int, str, str]] = []
    waiting: dict[tuple[int, str], int] = {}
    for line in log.splitlines():
        if resumed := _RESUMED.match(line):
            key = int(resumed["pid"] or 0), resumed["name"]
            place = waiting.pop(key)
            begun[place] = (*key, begun[place][2] + resumed["rest"])
        elif match := _LINE.match(line):
            pid, rest = int(match["pid"] or 0), match["rest"]
            if _UNFINISHED.search(rest):
                waiting[pid, match["name"]] = len(begun)
                rest = _UNFINISHED.sub("", rest)
            begun.append((pid, match["name"], rest))
    return [_call(*parts) for parts in begun]


def _call(pid: int, name: str, rest: str) -> Call:
    match = _RESULT.match(rest)
    # A process that was killed inside a call leaves no result, or a question mark.
    return Call(pid, name, match["arguments"], match["result"]) if match else Call(pid, name, rest, "?")


@functools.cache
def _can_kill_on_exit() -> bool:
    """Whether strace (6.2 and later) can take its tracees along when it is killed."""
    offered = subprocess.run(["strace", "--help"], capture_output=True, text=True, check=False)
    return "--kill-on-exit" in offered.stdout
