"""The command line, as a shell sees it: what is published, exit codes, messages, JSON."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik._hidden_names import new_txid
from atomik.cli import commands as cli
from atomik.cli.run import environment, fill_in
from tests.crash.deaths import die_at
from tests.support.command import forked
from tests.support.lab.strace import missing_strace
from tests.support.state import left_in

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "atomik"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def call(*arguments: str, input: bytes = b"", **keywords: Any) -> subprocess.CompletedProcess[bytes]:
    """The command in a new interpreter, or, where nothing special is asked for, in a forked child, which is quicker."""
    if not keywords:
        return forked(*arguments, input=input)
    return subprocess.run([*COMMAND, *arguments], input=input, capture_output=True, env=ENVIRONMENT, **keywords)


def shell(script: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script as in a manual: `atomik` is the command."""
    command = " ".join(COMMAND)
    prepared = f'atomik() {{ {command} "$@"; }}\n{script}'
    return subprocess.run(["bash", "-c", prepared], capture_output=True, env=ENVIRONMENT)


class TestWrite:
    """``atomik write``."""

    def test_bytes(self, folder: Path) -> None:
        """Every byte of standard input comes into the file, and nothing is printed."""
        data = bytes(range(256)) * 20_000
        done = call("write", "out.bin", input=data)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert Path("out.bin").read_bytes() == data

    def test_refuses_what_exists(self, folder: Path) -> None:
        """Without --overwrite an existing file stays, and one line says what to do."""
        Path("out").write_text("old")
        done = call("write", "out", input=b"new")
        assert done.returncode == 1
        assert done.stderr.decode() == f"atomik: {folder}/out: it already exists; pass --overwrite to replace it\n"
        assert Path("out").read_text() == "old"

    def test_over_its_own_input(self, folder: Path) -> None:
        """A filter may write the file that it reads."""
        Path("names").write_text("b\na\n")
        assert shell("sort names | atomik write --overwrite names").returncode == 0
        assert Path("names").read_text() == "a\nb\n"

    def test_mode(self, folder: Path) -> None:
        """--mode sets the permissions, whatever the umask."""
        assert call("write", "--mode", "0640", "out").returncode == 0
        assert os.stat("out").st_mode & 0o7777 == 0o640

    @pytest.mark.parametrize("mode", ["rw", "8", "-1", "10000"])
    def test_bad_mode(self, folder: Path, mode: str) -> None:
        """An invalid mode is a mistake in the command line."""
        done = call("write", f"--mode={mode}", "out")
        assert done.returncode == 2
        assert b"invalid octal mode value" in done.stderr

    def test_devices_and_pipes(self, folder: Path) -> None:
        """What is not a file is not replaced by one, however it is reached: that would cost a system its /dev/null."""
        os.mkfifo("fifo")
        Path("null").symlink_to("/dev/null")
        Path("stdout").symlink_to("/proc/self/fd/1")  # as /dev/stdout
        for name in ("fifo", "null", "stdout"):
            before = os.lstat(name)
            for command in (["write", "--overwrite", name], ["run", "--overwrite", "--file", name, "--", "true"]):
                done = call(*command, input=b"x")
                assert done.returncode == (1 if command[0] == "write" else 125)
                assert b"a device, FIFO or socket would be replaced" in done.stderr
            assert os.lstat(name).st_ino == before.st_ino

    def test_parents(self, folder: Path) -> None:
        """--parents makes what is missing above; without it that is an error with a cure."""
        done = call("write", "a/b/out", input=b"x")
        assert done.returncode == 1
        assert b"--parents" in done.stderr
        assert call("write", "--parents", "a/b/out", input=b"x").returncode == 0
        assert Path("a/b/out").read_text() == "x"

    def test_more_options(self, folder: Path) -> None:
        """--backup, --if-changed, --follow-symlinks and --no-durable reach the library."""
        for text in (b"one", b"two"):
            assert (
                call("write", "--overwrite", "--backup", "out.bak", "--no-durable", "out", input=text).returncode == 0
            )
        assert (Path("out").read_text(), Path("out.bak").read_text()) == ("two", "one")
        done = call("write", "--overwrite", "--if-changed", "--json", "--dry-run", "out", input=b"two")
        assert json.loads(done.stdout)["plan"][0]["op"] == "unchanged"
        done = call("write", "--overwrite", "--if-changed", "--json", "out", input=b"two")
        assert json.loads(done.stdout)["items"][0]["op"] == "unchanged"
        Path("link").symlink_to("out")
        assert call("write", "--overwrite", "--follow-symlinks", "link", input=b"three").returncode == 0
        assert Path("link").is_symlink()
        assert Path("out").read_text() == "three"

    def test_unreadable_input(self, folder: Path) -> None:
        """An error of standard input publishes nothing."""
        done = shell("atomik write out <&-")
        assert done.returncode == 1
        assert done.stderr == b"atomik: standard input is closed; redirect a file or a pipe to it\n"
        done = shell("atomik write out 0> other")
        assert done.returncode == 1
        assert done.stderr.startswith(b"atomik: cannot read standard input: Bad file descriptor")
        os.unlink("other")
        assert shell("atomik write out < .").returncode == 1  # Python itself refuses to start on a folder
        assert os.listdir() == []

    def test_closed_output(self, folder: Path) -> None:
        """Without a standard output to report to, the work is done nevertheless."""
        assert shell("echo x | atomik write --json out >&-").returncode == 0
        assert Path("out").read_text() == "x\n"

    def test_full_disk(self, folder: Path) -> None:
        """When the file cannot be written to its end, what was there stays."""
        Path("out").write_text("old")
        done = shell("ulimit -f 8; trap '' XFSZ; head -c 1000000 /dev/zero | atomik write --overwrite out")
        assert done.returncode == 1
        assert b"File too large" in done.stderr
        assert b"standard input" not in done.stderr
        assert Path("out").read_text() == "old"


class TestRun:
    """``atomik run``: what is published; signals are in test_signals.py."""

    SCRIPT = 'echo table > "$1"; echo plot > "$2/plot"'

    def test_publishes(self, folder: Path) -> None:
        """Placeholders are paths to write to; all outputs appear when the program exits with 0."""
        done = call(
            "run",
            "--file",
            "out.csv",
            "--folder",
            "plots/",
            "--",
            "sh",
            "-c",
            self.SCRIPT,
            "sh",
            "{out.csv}",
            "{plots}",
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert (Path("out.csv").read_text(), Path("plots/plot").read_text()) == ("table\n", "plot\n")

    def test_environment(self, folder: Path) -> None:
        """The paths are in the environment too, by number and by name, for scripts that take no arguments."""
        script = (
            'echo a > "$ATOMIK_PATH_1"; echo b > "$ATOMIK_PATH_2/b"; test "$ATOMIK_PATH_OUT_CSV" = "$ATOMIK_PATH_1"'
        )
        assert call("run", "--file", "out.csv", "--folder", "plots", "--", "sh", "-c", script).returncode == 0
        assert (Path("out.csv").read_text(), Path("plots/b").read_text()) == ("a\n", "b\n")

    @pytest.mark.parametrize("code", [1, 2, 77, 255])
    def test_exit_code(self, folder: Path, code: int) -> None:
        """Another exit code than 0 publishes nothing and is ours."""
        Path("out").write_text("old")
        script = f"echo new > {{out}}; exit {code}"
        assert call("run", "--overwrite", "--file", "out", "--", "sh", "-c", script).returncode == code
        assert Path("out").read_text() == "old"

    def test_killed_program(self, folder: Path) -> None:
        """A program that a signal ended gives 128 + its number, and publishes nothing."""
        assert call("run", "--file", "out", "--", "sh", "-c", "echo new > {out}; kill -9 $$").returncode == 137
        assert os.listdir() == []

    def test_streams_are_the_programs(self, folder: Path) -> None:
        """Standard input, output and error go through untouched, with --json as well."""
        script = "cat; echo said >&2; touch {out}"
        done = call("run", "--json", "--file", "out", "--", "sh", "-c", script, input=b"\0heard")
        assert done.stdout == b"\0heard"
        said, receipt = done.stderr.splitlines()
        assert said == b"said"
        assert json.loads(receipt)["items"][0]["op"] == "create"

    def test_missing_output(self, folder: Path) -> None:
        """One output that was not written, and none is published."""
        done = call("run", "--file", "a", "--file", "b", "--", "touch", "{a}")
        assert done.returncode == 125
        assert done.stderr.decode() == "atomik: b: the program exited with 0, but did not create this file\n"
        assert os.listdir() == []

    def test_folder_for_a_file(self, folder: Path) -> None:
        """A folder where a file was announced is refused."""
        assert call("run", "--file", "a", "--", "mkdir", "{a}").returncode == 125
        assert os.listdir() == []

    def test_refuses_before_it_runs(self, folder: Path) -> None:
        """What exists is refused before the program has worked for hours."""
        Path("out").write_text("old")
        done = call("run", "--file", "out", "--", "touch", "ran")
        assert (done.returncode, os.listdir()) == (125, ["out"])

    def test_lost_race(self, folder: Path) -> None:
        """What appears while the program runs is not replaced, and no other output is published."""
        done = call("run", "--file", "a", "--file", "b", "--", "sh", "-c", "touch {a} {b}; echo theirs > b")
        assert done.returncode == 125
        assert (os.listdir(), Path("b").read_text()) == (["b"], "theirs\n")

    def test_program_not_found(self, folder: Path) -> None:
        """127 for a program that is not there, 126 for one that cannot be run."""
        assert call("run", "--file", "out", "--", "no-such-program").returncode == 127
        assert call("run", "--file", "out", "--", "/etc/passwd").returncode == 126
        assert os.listdir() == []

    @pytest.mark.parametrize(
        "arguments",
        [["run"], ["run", "--file", "a"], ["run", "--file", "a", "--"], ["run", "--", "true"],
         ["run", "--bad", "--", "true"], ["run", "true"]],
    )  # fmt: skip
    def test_mistakes(self, folder: Path, arguments: list[str]) -> None:
        """A mistake in the command line is 125 and a line that helps, so that it cannot be taken for the program's."""
        done = call(*arguments)
        assert done.returncode == 125
        assert done.stderr.startswith((b"usage:", b"atomik run:"))
        assert b"Traceback" not in done.stderr

    def test_the_programs_own_dashes(self, folder: Path) -> None:
        """Everything after the first -- is the program's, a second -- and options of ours too."""
        done = call(
            "run", "--file", "out", "--", "sh", "-c", 'printf "%s|" "$@" > {out}', "sh", "--", "--file", "-x", "--"
        )
        assert done.returncode == 0
        assert Path("out").read_text() == "--|--file|-x|--|"

    def test_placeholders(self) -> None:
        """A destination by its whole name, or by its base name where that is one output's only; other braces stay."""
        names, staged = ["data/a.csv", "more/b/", "x/c", "y/c"], ["/1", "/2", "/3", "/4"]
        command = [
            "{a.csv}",
            "{data/a.csv}",
            "--o={b}",
            "{more/b}",
            "{more/b/}",
            "{c}",
            "{x/c}",
            "{print}",
            "{}",
            "{{b}}",
        ]
        assert fill_in(command, names, staged) == [
            "/1",
            "/1",
            "--o=/2",
            "/2",
            "/2",
            "{c}",
            "/3",
            "{print}",
            "{}",
            "{/2}",
        ]

    def test_variables(self) -> None:
        """Base names that make the same variable are found by number only."""
        found = environment(["x/a.b", "y/a_b", "z/ü-1"], ["/1", "/2", "/3"])
        ours = {key: value for key, value in found.items() if key.startswith("ATOMIK_PATH_")}
        assert ours == {"ATOMIK_PATH_1": "/1", "ATOMIK_PATH_2": "/2", "ATOMIK_PATH_3": "/3", "ATOMIK_PATH__1": "/3"}

    def test_names_with_braces(self) -> None:
        """A destination whose own name has braces is found as a whole."""
        assert fill_in(["{a{1}.txt}", "{1}", "{a|b}"], ["x/a{1}.txt", "a|b"], ["/1", "/2"]) == ["/1", "{1}", "/2"]

    def test_variables_of_numbers(self) -> None:
        """The number of an output wins over the name of another."""
        found = environment(["2", "1"], ["/1", "/2"])
        assert (found["ATOMIK_PATH_1"], found["ATOMIK_PATH_2"]) == ("/1", "/2")


class TestSwap:
    """``atomik swap``."""

    def test_behind_a_link(self, folder: Path) -> None:
        """What is synced is the folder that was changed, also where ``..`` leads elsewhere than it looks; where one log holds
        every change, one of the two is enough."""
        Path("real/sub").mkdir(parents=True)
        Path("link").symlink_to("real/sub")
        Path("real/a").write_text("a")
        Path("b").write_text("b")
        trace = ["strace", "-f", "-y", "-e", "trace=fsync", "-o", "trace"]
        if why := missing_strace():
            pytest.skip(why)
        assert subprocess.run([*trace, *COMMAND, "swap", "link/../a", "b"], env=ENVIRONMENT).returncode == 0
        synced = set(re.findall(r"fsync\(\d+<(.*)>\)", Path("trace").read_text()))
        assert synced & {str(folder), f"{folder}/real"}
        assert all(name.startswith(str(folder)) and "/link" not in name for name in synced)

    def test_failed_sync(self, folder: Path) -> None:
        """They are swapped then, and the exit code says that this is not confirmed durable."""
        Path("a").write_text("a")
        Path("b").write_text("b")
        if why := missing_strace():
            pytest.skip(why)
        trace = ["strace", "-f", "-o", "/dev/null", "-e", "inject=fsync:error=EIO"]
        done = subprocess.run([*trace, *COMMAND, "swap", "a", "b", "--json"], env=ENVIRONMENT, capture_output=True)
        assert (done.returncode, json.loads(done.stdout)["error"]) == (3, "DurabilityError")
        assert Path("a").read_text() == "b"

    def test_swaps(self, folder: Path) -> None:
        """A file and a folder change places."""
        Path("a").write_text("a")
        Path("b").mkdir()
        done = call("swap", "a", "b", "--json")
        assert done.returncode == 0
        assert json.loads(done.stdout) == {"swapped": ["a", "b"], "durable": True}
        assert Path("a").is_dir()
        assert Path("b").read_text() == "a"

    def test_missing(self, folder: Path) -> None:
        """Nothing to swap with is an error of one line, and nothing changed."""
        Path("a").write_text("a")
        done = call("swap", "a", "b")
        assert done.returncode == 1
        assert (
            done.stderr.decode()
            == f"atomik: {folder}/b, {folder}/a: there is nothing to exchange; both names must exist\n"
        )
        assert os.listdir() == ["a"]


def abandon(folder: Path) -> str:
    """Leave what a transaction leaves that was killed while it staged; its id."""
    txid = new_txid()
    (folder / f".atomik-{txid}").mkdir(mode=0o700)
    (folder / f".atomik-{txid}/.atomik-{txid}-0").write_text("half")
    return txid


class TestRecover:
    """``atomik recover``."""

    def test_nothing(self, folder: Path) -> None:
        """A clean folder is said to be so."""
        done = call("recover", ".")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"nothing to recover\n", b"")

    def test_removes(self, folder: Path) -> None:
        """What a dead transaction left is removed, and reported line by line; --dry-run only reports."""
        abandon(folder)
        done = call("recover", "--dry-run", ".")
        assert done.returncode == 0
        assert done.stdout.startswith(b"abandoned: ")
        assert left_in(folder)
        done = call("recover", ".")
        assert done.returncode == 0
        assert done.stdout.startswith(b"removed: ")
        assert os.listdir() == []

    def test_json(self, folder: Path) -> None:
        """The report is data for machines."""
        txid = abandon(folder)
        report = json.loads(call("recover", "--json", ".").stdout)
        assert report["clean"]
        assert [(item["action"], item["txid"]) for item in report["items"]] == [("removed", txid)]

    def test_other_folders_are_looked_after(self, folder: Path) -> None:
        """A folder that fails does not keep the others from being recovered."""
        abandon(folder)
        done = call("recover", "missing", ".")
        assert done.returncode == 1
        said = "cannot recover: No such file or directory; create what is missing, or correct the path"
        assert done.stderr.decode() == f"atomik: {folder}/missing: {said}\n"
        assert os.listdir() == []

    def test_folders_of_one_transaction(self, folder: Path) -> None:
        """Each thing that was done is reported once, whichever folder it was found from."""
        for name in ("a", "b"):
            Path(name).mkdir()
            Path(name, "x").write_text("old")

        def publish() -> None:
            with atomik.transaction(overwrite=True) as tx:
                for name in ("a", "b"):
                    tx.file(f"{name}/x").write("new")

        die_at(publish, "rename", 2)
        done = call("recover", "--json", "a", "b")
        assert [(item["path"], item["action"]) for item in json.loads(done.stdout)["items"]] == [
            (f"{folder}/b/x", "undone"), (f"{folder}/a/x", "undone"),
        ]  # fmt: skip
        assert done.returncode == 0

    def test_recursive(self, folder: Path) -> None:
        """Folders below are searched."""
        Path("x/y").mkdir(parents=True)
        abandon(folder / "x" / "y")
        assert call("recover", ".").stdout == b"nothing to recover\n"
        assert call("recover", "--recursive", ".").stdout.startswith(f"removed: {folder}/x/y/.atomik".encode())
        assert not left_in(folder)

    def test_failures_of_different_weight(self, folder: Path) -> None:
        """What could not be brought back makes exit code 3, whatever failed besides."""
        Path("x").write_text("old")

        def publish() -> None:
            with atomik.transaction(overwrite=True) as tx:
                tx.file("x").write("new")
                tx.file("y").write("new")

        die_at(publish, "rename", 1)
        private = next(path for path in Path().glob(".atomik-*") if path.is_dir())
        private.rename("moved")
        done = call("recover", "missing", ".")
        assert done.returncode == 3
        assert done.stderr.count(b"atomik: ") == 2
        Path("moved").rename(private)
        assert call("recover", ".").returncode == 0
        assert Path("x").read_text() == "old"

    @pytest.mark.leftovers("a stranger's name with our prefix stays")
    def test_attention(self, folder: Path) -> None:
        """What is left for the user to look at makes exit code 3."""
        (folder / ".atomik-0123456789abcdef").write_text("a stranger's")
        done = call("recover", ".")
        assert done.returncode == 3
        assert done.stdout.startswith(b"left: ")

    def test_quick_work_on_a_terminal(self, folder: Path) -> None:
        """What is done within a second shows no progress; test_progress.py has what takes longer."""
        assert on_terminal([*COMMAND, "recover", "."]) == b"nothing to recover\r\n"


def on_terminal(command: list[str], keys: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """Run a command in a terminal of its own; what it showed.  ``keys``: (wait until this shows, then type that)."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command[0], command, ENVIRONMENT)
    shown, waiting = b"", list(keys)
    try:
        while True:
            if waiting and waiting[0][0] in shown:
                os.write(terminal, waiting.pop(0)[1])
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # EIO: the last one that had it open is gone
                break
            if not piece:
                break
            shown += piece
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    assert not waiting, shown
    return shown


class TestDoctor:
    """``atomik doctor``."""

    def test_table(self, folder: Path) -> None:
        """Each folder gets its table of what the filesystem can and of what that promises."""
        done = call("doctor", ".", "..")
        assert done.returncode == 0
        table = re.sub(r"\n\n  programs on a private copy (.+\n)+", "\n", done.stdout.decode())
        assert table == f"{atomik.probe(folder)}\n\n{atomik.probe('..')}\n"
        assert done.stdout.count(b"(atomik run --in)") == done.stdout.count(b"(--changes-only)") == 2
        assert b"exchange" in done.stdout

    def test_json(self, folder: Path) -> None:
        """The same as data."""
        found = json.loads(call("doctor", "--json", ".").stdout)["folders"]
        assert found[0].pop("run_in").keys() == found[0].pop("changes_only").keys() == {"works", "reason"}
        assert found == [json.loads(json.dumps(atomik.probe(folder).as_dict()))]

    def test_missing(self, folder: Path) -> None:
        """A folder that does not exist is reported, and the others are shown."""
        done = call("doctor", "missing", ".")
        assert done.returncode == 1
        assert done.stderr.startswith(b"atomik: ")
        assert b"exchange" in done.stdout

    def test_reader_goes_away(self, folder: Path) -> None:
        """``| head -1`` ends it quietly."""
        done = shell("set -o pipefail; atomik doctor . . . . | true; echo ${PIPESTATUS[0]}")
        assert done.stderr == b""
        assert done.stdout in (b"0\n", b"141\n")  # it may have been done before


class TestEverywhere:
    """What all commands have in common."""

    def test_version(self) -> None:
        """--version says the version of the package."""
        assert call("--version").stdout.decode() == f"atomik {atomik.__version__}\n"

    def test_entry_point(self) -> None:
        """The command that the package installs is this one."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert project["scripts"] == {"atomik": "atomik.cli:main"}
        assert callable(cli.main)

    @pytest.mark.parametrize("command", ["write", "run", "swap", "recover", "doctor"])
    def test_help(self, command: str) -> None:
        """Every command explains itself, and every option of its help is long and explained by name."""
        done = call(command, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: atomik {command}".encode())
        assert b"--json" in done.stdout

    @pytest.mark.parametrize(
        "arguments",
        [[], ["bogus"], ["write"], ["write", "a", "b"], ["write", "--over", "a"], ["swap", "a"],
         ["write", "--lock-timeout", "-1", "a"], ["recover", "--lock-timeout", "nan", "."]],
    )  # fmt: skip
    def test_mistakes(self, arguments: list[str]) -> None:
        """A wrong command line is 2 with a usage line; abbreviations are mistakes too."""
        done = call(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith(b"usage: atomik")

    @pytest.mark.parametrize(
        "arguments",
        [["write", "missing/out"], ["write", ""], ["write", "."], ["write", "a\nb/c"], ["swap", "", ""],
         ["recover", "file"],
         ["doctor", "file"], ["write", "x" * 300], ["write", "--backup", "sub/x", "--overwrite", "file"],
         ["run", "--file", "x", "--file", "./x", "--", "true"]],
    )  # fmt: skip
    def test_no_traceback(self, folder: Path, arguments: list[str]) -> None:
        """Every mistake of a user is reported without a traceback, and as JSON with --json."""
        Path("file").write_text("x")
        done = call(*arguments)
        assert done.returncode in (1, 125)
        assert done.stderr.startswith(b"atomik: ")
        assert b"Traceback" not in done.stderr

    def test_error_as_json(self, folder: Path) -> None:
        """With --json an error is an object too."""
        done = call("write", "--json", "missing/out")
        assert json.loads(done.stdout)["error"] == "MissingPathError"

    @pytest.mark.parametrize(
        ("code", "error", "arguments"),
        [(2, "UsageError", ["write", "--bogus", "a"]), (2, "UsageError", []), (2, "UsageError", ["bogus"]),
         (125, "UsageError", ["run", "--file", "x"]), (127, "NotStartedError", ["run", "--file", "x", "--", "./none"]),
         (126, "NotStartedError", ["run", "--file", "x", "--", "/etc/passwd"]),
         (7, "ProgramFailed", ["run", "--file", "x", "--", "sh", "-c", "exit 7"]),
         (143, "ProgramFailed", ["run", "--file", "x", "--", "sh", "-c", "kill $$"]),
         (1, "MissingPathError", ["swap", "a", "b"])],
    )  # fmt: skip
    def test_every_failure_as_json(self, folder: Path, code: int, error: str, arguments: list[str]) -> None:
        """Whatever the way in which it fails, the last line is an object that names it."""
        done = call(*arguments[:1], "--json", *arguments[1:])
        assert done.returncode == code
        told = json.loads((done.stderr if arguments[:1] == ["run"] else done.stdout).splitlines()[-1])
        assert told["error"] == error
        assert told["message"]

    @pytest.mark.parametrize("command", ["recover", "doctor"])
    def test_failed_folder_as_json(self, folder: Path, command: str) -> None:
        """A folder that could not be looked at is in the object, which is not clean then."""
        done = call(command, "--json", "missing", ".")
        told = json.loads(done.stdout)
        assert (done.returncode, [each["error"] for each in told["errors"]]) == (1, ["MissingPathError"])
        assert "missing" in told["errors"][0]["message"]
        assert "--parents" not in told["errors"][0]["message"]
        assert not told.get("clean")
        assert call("recover", "missing").stdout == b""  # and not "nothing to recover"

    @pytest.mark.parametrize("command", ["write", "run"])
    def test_report_that_cannot_be_written(self, folder: Path, command: str) -> None:
        """The output is published, and the exit code does not say that nothing was changed."""
        calls = {
            "write": (3, "echo x | atomik write --json out > /dev/full"),
            "run": (125, "atomik run --json --file out -- sh -c 'echo x > {out}' 2> /dev/full"),
        }
        code, script = calls[command]
        done = shell(script)
        assert done.returncode == code
        assert Path("out").read_text() == "x\n"
        if command == "write":
            assert b"the work is done, but the report could not be written: No space left on device" in done.stderr
        assert b"Traceback" not in done.stderr

    def test_message_that_nobody_hears(self, folder: Path) -> None:
        """A standard error that is full or closed changes no exit code, and does not stop the work."""
        assert shell("atomik write missing/out 2> /dev/full < /dev/null").returncode == 1
        done = shell("atomik write missing/out 2>&- < /dev/null")
        assert (done.returncode, done.stdout) == (1, b"")
        abandon(folder)
        done = shell("atomik recover . 2>&-")
        assert (done.returncode, os.listdir()) == (0, [])
        assert done.stdout.startswith(b"removed: ")

    def test_message_of_one_line(self, folder: Path) -> None:
        """Control characters of a name neither break the line nor reach the terminal."""
        Path("a\n\x1b[2Jb").touch()
        done = call("write", "a\n\x1b[2Jb")
        assert done.stderr.decode().startswith(f"atomik: {folder}/a\\n\\x1b[2Jb: it already exists")
        assert done.stderr.count(b"\n") == 1

    def test_characters_that_the_encoding_lacks(self, folder: Path) -> None:
        """They are escaped; a message about them is not an error of its own."""
        Path("é\udcff").touch()
        environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run([*COMMAND, "write", "é\udcff"], capture_output=True, env=environment, input=b"")
        assert done.returncode == 1
        assert done.stderr.startswith(f"atomik: {folder}/\\xe9".encode())
        assert b"Traceback" not in done.stderr

    def test_names_that_are_no_text(self, folder: Path) -> None:
        """A name of arbitrary bytes works everywhere, and comes out as these bytes."""
        name = os.fsdecode(b"caf\xe9")
        assert call("write", name, input=b"x").returncode == 0
        done = call("write", name, input=b"x")
        assert b"/caf\xe9: it already exists" in done.stderr
        done = call("write", "--json", "--overwrite", name, input=b"x")
        assert json.loads(done.stdout)["items"][0]["path"] == f"{folder}/{name}"
        done = call("run", "--file", f"{name}2", "--", "sh", "-c", f"echo y > {{{name}2}}")
        assert done.returncode == 0
        assert Path(f"{name}2").read_text() == "y\n"
