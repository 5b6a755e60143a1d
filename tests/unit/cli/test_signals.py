"""``atomik write`` and ``atomik run`` under signals: all old, nothing left, the program ended, in every phase."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik._system import kernel as _kernel
from atomik.cli import commands as cli
from atomik.cli import signals as _signals
from atomik.testing import CrashPoint, crash_points
from tests.support.kernels import Call, Watching
from tests.support.state import child_processes, left_in, tree
from tests.unit.cli.test_commands import COMMAND, ENVIRONMENT, on_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Writes its outputs, says its process id, and waits for the end of the world.
PROGRAM = "echo new > {a}; echo new > {b}/new; echo $$ > told; exec sleep 1000"
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]


@pytest.fixture(autouse=True)
def hangup_counts() -> Iterator[None]:
    """Under nohup SIGHUP is ignored, and children inherit that: then it would rightly stop nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def answering(code: int) -> str:
    """A program that waits for SIGTERM, and ends with that exit code when it comes."""
    script = (
        "import os, pathlib, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [15]); "
        "pathlib.Path(sys.argv[1]).touch(); pathlib.Path('told').write_text(str(os.getpid())); signal.sigwait([15]); "
        f"os._exit({code})"
    )
    return f'exec {sys.executable} -c "{script}" {{a}}'


def prepare(folder: Path) -> dict[str, Any]:
    """A file and a folder to be replaced, and a FIFO by which the program tells that it runs."""
    shutil.rmtree(folder)
    folder.mkdir()
    os.chdir(folder)
    Path("a").write_text("old")
    Path("b").mkdir()
    Path("b/old").touch()
    return tree(folder)


def arguments(program: str) -> list[str]:
    return ["run", "--overwrite", "--file", "a", "--folder", "b", "--", "sh", "-c", program]


@contextmanager
def running(folder: Path, program: str = PROGRAM, **keywords: Any) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`atomik run` with the program at work, and the program's id."""
    os.mkfifo("told")
    ours = subprocess.Popen([*COMMAND, *arguments(program)], env=ENVIRONMENT, stderr=subprocess.PIPE, **keywords)
    theirs = int(Path("told").read_text())  # returns when the program has written it
    Path("told").unlink()
    try:
        yield ours, theirs
    finally:
        ours.kill()
        ours.communicate()


def ended(pid: int) -> bool:
    """Whether a process ends; waits for it."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 30)[0])
    finally:
        os.close(handle)


class TestWhileTheProgramRuns:
    """The long phase."""

    @pytest.mark.parametrize("number", SIGNALS)
    def test_passed_on(self, folder: Path, number: signal.Signals) -> None:
        """The signal ends the program and then us: 128 + its number, everything old, nothing left."""
        before = prepare(folder)
        with running(folder) as (ours, theirs):
            ours.send_signal(number)
            _, said = ours.communicate(timeout=30)
            assert ours.returncode == 128 + number
            assert b"Traceback" not in said
            assert ended(theirs)
        assert tree(folder) == before

    @pytest.mark.parametrize(("its", "ours_code"), [(0, 143), (9, 9)])
    def test_a_program_that_answers(self, folder: Path, its: int, ours_code: int) -> None:
        """A program that says all is well because it was told to stop has published nothing; its own code is kept."""
        before = prepare(folder)
        with running(folder, answering(its)) as (ours, _):
            ours.send_signal(signal.SIGTERM)
            _, said = ours.communicate(timeout=30)
        assert ours.returncode == ours_code
        assert said == (b"" if its else b"atomik: stopped by SIGTERM; nothing was changed\n")
        assert tree(folder) == before

    def test_a_program_that_does_not_care(self, folder: Path) -> None:
        """We wait for a program that ignores the signal, and publish nothing when it is done."""
        before = prepare(folder)
        os.mkfifo("gate")
        program = 'trap "" TERM; echo new > {a}; echo $$ > told; read x < gate; exit 0'
        with running(folder, program) as (ours, _):
            ours.send_signal(signal.SIGTERM)
            Path("gate").write_text("go on\n")
            assert ours.wait(timeout=30) == 143
        Path("gate").unlink()
        assert tree(folder) == before

    def test_ignored_signals_stay_ignored(self, folder: Path) -> None:
        """Under nohup a hangup stops neither us nor the program."""
        prepare(folder)
        os.mkfifo("gate")
        program = "echo new > {a}; echo $$ > told; read x < gate; exit 0"

        def nohup() -> None:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

        with running(folder, program, preexec_fn=nohup) as (ours, theirs):
            os.kill(theirs, signal.SIGHUP)
            ours.send_signal(signal.SIGHUP)
            Path("gate").write_text("go on\n")
            assert ours.wait(timeout=30) == 0
        assert Path("a").read_text() == "new\n"

    @pytest.mark.sweep
    def test_killed(self, folder: Path) -> None:
        """When we are killed with SIGKILL the program ends too; recover removes what was staged."""
        before = prepare(folder)
        with running(folder) as (ours, theirs):
            ours.kill()
            ours.wait()
            assert ended(theirs)
        assert left_in(folder)
        assert subprocess.run([*COMMAND, "recover", "."], env=ENVIRONMENT, capture_output=True).returncode == 0
        assert tree(folder) == before

    def test_alive_is_not_recovered(self, folder: Path) -> None:
        """While it runs, recover in the same folder leaves it alone."""
        prepare(folder)
        os.mkfifo("gate")
        program = "echo new > {a}; echo $$ > told; read x < gate; exit 0"
        with running(folder, program) as (ours, _):
            assert [item.action for item in atomik.recover(folder).items] == ["live"]
            Path("gate").write_text("go on\n")
            assert ours.wait(timeout=30) == 0
        assert Path("a").read_text() == "new\n"


class TestOnATerminal:
    """A real terminal, with the keys that people press."""

    COUNTING = """
import os, signal, sys
caught = []
# Not by print: the key may arrive while the print below is still in its call.
signal.signal(signal.SIGINT, lambda *_: (caught.append(1), os.write(1, b"caught\\n")))
open(sys.argv[1], "w").close()
print("ready", flush=True)
sys.stdin.readline()
print("times:", len(caught))
"""

    def test_control_c(self, folder: Path) -> None:
        """Ctrl-C reaches the program once (the terminal sends it to both of us), and nothing is published."""
        before = prepare(folder)
        shown = on_terminal(
            [*COMMAND, "run", "--overwrite", "--file", "a", "--", sys.executable, "-c", self.COUNTING, "{a}"],
            keys=[(b"ready", b"\x03"), (b"caught", b"\n")],
        )
        assert b"times: 1\r\n" in shown
        assert b"stopped by SIGINT; nothing was changed" in shown
        assert tree(folder) == before

    def test_reads_from_the_terminal(self, folder: Path) -> None:
        """The program is in the foreground: it may ask the user."""
        prepare(folder)
        command = [*COMMAND, *arguments("echo ready; read answer; echo $answer > {a}")]
        on_terminal(command, keys=[(b"ready", b"yes\n")])
        assert Path("a").read_text() == "yes\n"


class Terminating(Watching):
    """Sends SIGTERM to itself before or after one call, failed or not."""

    def __init__(self, number: int, after: bool) -> None:
        super().__init__()
        self.number, self.after = number, after

    def around(self, call: Call, go: Callable[[], Any]) -> Any:
        if call.number == self.number and not self.after:
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            return go()
        finally:
            if call.number == self.number and self.after:
                os.kill(os.getpid(), signal.SIGTERM)


def main_in_child(call: list[str], kernel: _kernel.Kernel) -> int:
    """`main` in a forked child with that kernel; its exit code, as a shell would give it."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.dup2(os.open("/dev/null", os.O_RDWR), 2)
            _kernel.install(kernel)
            code = cli.main(call)
        except SystemExit as exc:
            code = int(exc.code or 0)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


#: Every call takes long, because the program is started each time; a plain run takes some of them.
STEPS = pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])


@pytest.mark.sweep
class TestEveryCall:
    """A signal at each of the system calls that atomik makes, from the first staging to the last cleanup."""

    PROGRAM = "echo new > {a}; echo new > {b}/new"

    @pytest.mark.parametrize("after", [False, True])
    @STEPS
    def test_terminated(self, folder: Path, after: bool, step: int) -> None:
        """SIGTERM before or after any call: 143, all old or (only when it comes too late) all new, and nothing left."""
        outcomes = []
        for number in range(1, 300, step):
            before = prepare(folder)
            code = main_in_child(arguments(self.PROGRAM), Terminating(number, after))
            new = tree(folder) != before
            assert not left_in(folder)
            if new:
                assert (Path("a").read_text(), os.listdir("b")) == ("new\n", ["new"])
            outcomes.append((code, new))
            if code == 0:
                break
            assert code == 143
        assert outcomes[-1] == (0, True)
        assert len(outcomes) > 25 // step
        decided = outcomes.index((143, True))
        assert decided > 12 // step
        assert all(new for _, new in outcomes[decided:]), "an outcome must not come and go"

    @pytest.mark.sweep
    @STEPS
    def test_killed(self, folder: Path, step: int) -> None:
        """SIGKILL at any call: after recover all old or all new, and nothing left."""

        def check(point: CrashPoint) -> None:
            atomik.recover(folder)
            assert not left_in(folder)
            if tree(folder) != before or point.returned:
                assert (Path("a").read_text(), os.listdir("b")) == ("new\n", ["new"])

        before = prepare(folder)
        count = crash_points(self._run, check, prepare=lambda: prepare(folder), step=step)
        assert count > 50 // step

    def _run(self) -> None:
        assert cli.main(arguments(self.PROGRAM)) == 0


class TestWrite:
    """``atomik write`` under signals."""

    @pytest.mark.parametrize("number", SIGNALS)
    def test_stopped(self, folder: Path, number: signal.Signals) -> None:
        """A signal while input still comes: the old file stays, and nothing is left."""
        before = prepare(folder)
        ours = subprocess.Popen(
            [*COMMAND, "write", "--overwrite", "a"], env=ENVIRONMENT, stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert ours.stdin is not None
        ours.stdin.write(b"x" * 200_000)  # more than a pipe holds: when it returns, the reader is at work
        ours.stdin.flush()
        ours.send_signal(number)
        _, said = ours.communicate(timeout=30)
        assert ours.returncode == 128 + number
        assert said.decode() == f"atomik: stopped by {number.name}; nothing was changed\n"
        assert tree(folder) == before

    @pytest.mark.sweep
    def test_killed(self, folder: Path) -> None:
        """SIGKILL while input still comes leaves nothing to recover: the file had no name."""
        before = prepare(folder)
        ours = subprocess.Popen([*COMMAND, "write", "--overwrite", "a"], env=ENVIRONMENT, stdin=subprocess.PIPE)
        assert ours.stdin is not None
        ours.stdin.write(b"x" * 200_000)
        ours.stdin.flush()
        ours.kill()
        ours.communicate()
        assert tree(folder) == before


class TestRecover:
    """``atomik recover`` under signals."""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_stopped(self, folder: Path, number: signal.Signals) -> None:
        """Stopped while it waits for a lock, it says so in one line, with JSON too."""
        (folder / ".atomik-0123456789abcdef-0").touch()  # abandoned, and to be removed under the folder's lock
        held = os.open(folder, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            ours = subprocess.Popen(
                [*COMMAND, "recover", "--json", "."], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            while not _kernel.port.writer_is_waiting(held):  # it says so while it waits
                assert ours.poll() is None
            ours.send_signal(number)
            said, told = ours.communicate(timeout=30)
        finally:
            os.close(held)
            (folder / ".atomik-0123456789abcdef-0").unlink()
        assert ours.returncode == 128 + number
        assert told.decode() == f"atomik: stopped by {number.name}; some of it may be done; run recover again\n"
        assert json.loads(said)["error"] == "Stopped"


def test_raised_once(folder: Path) -> None:
    """A second signal does not interrupt the way back that the first one began."""
    with _signals.Signals() as signals:
        signals.arm()
        with pytest.raises(_signals.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.number == signal.SIGTERM
    assert child_processes() == set()
