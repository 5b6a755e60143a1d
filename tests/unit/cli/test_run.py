"""``atomik run``: what the program prints, placeholders that a shell would misread, and progress of commands."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik.cli.run import PlaceholderError, fill_in
from tests.support.command import forked as call
from tests.support.state import left_in

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND = [sys.executable, "-m", "atomik"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1]), "PYTHONWARNINGS": "error"}


class TestStreams:
    """``--stdout`` and ``--stderr``."""

    def test_published_together(self, folder: Path) -> None:
        """What the program prints is published with its other outputs, in one transaction; nothing comes out of us."""
        script = 'cat; echo warning >&2; echo table > "$1"; echo plot > "$2/plot"'
        outputs = ["--stdout", "log", "--file", "out.csv", "--stderr", "errors", "--folder", "plots"]
        done = call("run", "--json", *outputs, "--", "sh", "-c", script, "sh", "{out.csv}", "{plots}", input=b"in\0put")
        receipt = json.loads(done.stderr)
        assert (done.returncode, done.stdout) == (0, b"")
        assert {os.path.basename(item["path"]) for item in receipt["items"]} == {"log", "out.csv", "errors", "plots"}
        assert (Path("log").read_bytes(), Path("errors").read_text()) == (b"in\0put", "warning\n")
        assert (Path("out.csv").read_text(), Path("plots/plot").read_text()) == ("table\n", "plot\n")

    @pytest.mark.parametrize("ending", ["exit 3", "kill -9 $$"])
    def test_failure(self, folder: Path, ending: str) -> None:
        """A program that fails has published nothing: the old log stays, whatever it printed."""
        Path("log").write_text("old")
        done = call("run", "--overwrite", "--stdout", "log", "--stderr", "new", "--", "sh", "-c", f"echo x; {ending}")
        assert done.returncode in (3, 137)
        assert (os.listdir(), Path("log").read_text()) == (["log"], "old")

    def test_large_and_empty(self, folder: Path) -> None:
        """Megabytes are published whole, and a program that prints nothing publishes an empty file."""
        done = call("run", "--stdout", "zeros", "--stderr", "none", "--", "head", "-c", "5000000", "/dev/zero")
        assert done.returncode == 0
        assert (os.stat("zeros").st_size, os.stat("none").st_size) == (5_000_000, 0)

    def test_existing(self, folder: Path) -> None:
        """What exists is refused before the program runs; overwritten, it keeps its mode."""
        Path("log").write_text("old")
        Path("log").chmod(0o640)
        assert call("run", "--stdout", "log", "--", "touch", "ran").returncode == 125
        assert os.listdir() == ["log"]
        assert call("run", "--overwrite", "--stdout", "log", "--", "echo", "new").returncode == 0
        assert (Path("log").read_text(), os.stat("log").st_mode & 0o777) == ("new\n", 0o640)

    def test_only_the_stream(self, folder: Path) -> None:
        """The other stream, and standard input, stay the program's; there is no path to fill in for a stream."""
        script = 'cat; echo "$1 $ATOMIK_PATH_1" >&2'
        done = call("run", "--stdout", "o", "--", "sh", "-c", script, "sh", "{o}", input=b"through")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"{o} \n")
        assert Path("o").read_bytes() == b"through"

    @pytest.mark.parametrize(
        ("outputs", "said"),
        [(["--stdout", "a", "--stdout", "b"], b"given twice"), (["--stdout", "a", "--stderr", "a"], b"a: "),
         (["--overwrite", "--stdout", "a", "--stderr", "a"], b"2>&1"),
         (["--folder", "a", "--also", ".x"], b"after the --file"), (["--file", "a", "--in-place"], b"after the --folder"),
         (["--file", "a", "--also", "../x"], b"also="), (["--folder", "no", "--in-place"], b"no: "),
         (["--stdout", "/dev/null"], b"a device"), (["--stdout", "a/"], b"a/"), (["--stdout", "no/a"], b"no")],
    )  # fmt: skip
    def test_mistakes(self, folder: Path, outputs: list[str], said: bytes) -> None:
        """One line, 125, and the program has not run."""
        done = call("run", *outputs, "--", "touch", "ran")
        assert done.returncode == 125
        assert said in done.stderr
        assert b"Traceback" not in done.stderr
        assert os.listdir() == []

    def test_stopped(self, folder: Path) -> None:
        """A signal while the program prints: the old log stays, nothing is left."""
        Path("log").write_text("old")
        os.mkfifo("told")
        ours = subprocess.Popen(
            [*COMMAND, "run", "--overwrite", "--stdout", "log", "--", "sh", "-c", "echo half; echo > told; exec sleep 99"],
            env=ENVIRONMENT, stderr=subprocess.PIPE,
        )  # fmt: skip
        Path("told").read_text()
        ours.send_signal(signal.SIGTERM)
        ours.communicate(timeout=30)
        assert ours.returncode == 143
        os.unlink("told")
        assert (os.listdir(), Path("log").read_text()) == (["log"], "old")


class TestShapes:
    """``--also`` and ``--in-place``."""

    def test_together(self, folder: Path) -> None:
        """One transaction; what the program did not write goes; companions have names to fill in."""
        os.mkdir("volume")
        for name in ("a.shp", "a.shx", "a.prj", "volume/old"):
            Path(name).write_text("old")
        script = 'echo 1 > "$1"; echo 2 > "${2#--x=}"; echo 3 > "$3/new"'
        outputs = ["--file", "a.shp", "--also", ".shx", ".prj", ".dbf", "--folder", "volume", "--in-place"]
        program = ["--", "sh", "-c", script, "sh", "{a.shp}", "--x={a.dbf}", "{volume}"]
        planned = json.loads(call("run", "--json", "--dry-run", "--overwrite", *outputs, *program).stderr)
        done = json.loads(call("run", "--json", "--overwrite", *outputs, *program).stderr)
        expected = {
            "a.shp": "replace", "a.shx": "remove", "a.prj": "remove", "a.dbf": "create", "new": "create", "old": "remove",
        }  # fmt: skip
        for told in (planned, done):
            changes = told.get("items") or told["plan"]
            assert {os.path.basename(item["path"]): item["op"] for item in changes} == expected
        assert {path: Path(path).read_text() for path in ("a.shp", "a.dbf", "volume/new")} == {
            "a.shp": "1\n", "a.dbf": "2\n", "volume/new": "3\n",
        }  # fmt: skip
        assert (sorted(os.listdir()), os.listdir("volume")) == (["a.dbf", "a.shp", "volume"], ["new"])


class TestPlaceholders:
    """``{name}`` inside a longer argument."""

    @pytest.mark.parametrize("argument", ["echo x > {a}", "'{a}'", "$(cat {a})", "f({a})", "{a};rm {a}", "{b} {a}"])
    @pytest.mark.parametrize("place", ["/my data/a", "/x/$(rm)", "/it's/a", "/a;b", "/a\nb", "/a*", "/a~b/{}"])
    def test_refused(self, argument: str, place: str) -> None:
        """A path with anything that a shell reads as more than a letter is refused in what a shell may read."""
        with pytest.raises(PlaceholderError, match=r"an argument of its own.*\$1.* sh \{a\}"):
            fill_in(["sh", "-c", argument], ["a", "b"], [place, "/plain/b"])

    @pytest.mark.parametrize("argument", ["{a}", "--out={a}", "prefix{a}", "{a}.log", "-o{a}:{a}", "file://{a}"])
    def test_words(self, argument: str) -> None:
        """A whole argument, or a part of a word, is one argument whatever the path is."""
        place = "/my data/it's"
        assert fill_in([argument, "x > {b}"], ["a"], [place]) == [argument.replace("{a}", place), "x > {b}"]

    @pytest.mark.parametrize("place", ["/plain/a-1_2.csv", "/caf\udce9/é"])
    def test_plain_paths(self, place: str) -> None:
        """A path of letters, digits and ``_./-`` cannot be misread anywhere, nor bytes that are not ASCII."""
        assert fill_in(["echo > {a}"], ["a"], [place]) == [f"echo > {place}"]

    def test_nothing_is_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The program does not run, one line says what to do, and that works."""
        place = tmp_path / "my data; touch ran"
        place.mkdir()
        monkeypatch.chdir(place)
        done = call("run", "--json", "--file", "out", "--", "sh", "-c", "echo x > {out}")
        said, told = done.stderr.splitlines()
        assert (done.returncode, json.loads(told)["error"]) == (125, "PlaceholderError")
        assert said.startswith(b"atomik: {out} inside 'echo x > {out}'")
        assert (os.listdir(), left_in(tmp_path)) == ([], [])
        for script in ('echo x > "$1"', 'echo x > "$ATOMIK_PATH_1"'):
            assert call("run", "--overwrite", "--file", "out", "--", "sh", "-c", script, "sh", "{out}").returncode == 0
            assert (os.listdir(), Path("out").read_text()) == (["out"], "x\n")


class TestOptions:
    """Options that reach the library."""

    def test_allow_gap(self, folder: Path) -> None:
        """Both commands accept ``--allow-gap``; if no gap is needed, there is none."""
        assert call("write", "--allow-gap", "a", input=b"a").returncode == 0
        done = call("run", "--json", "--allow-gap", "--folder", "d", "--stdout", "o", "--", "echo", "x")
        methods = {item.get("method", item.get("rung")) for item in json.loads(done.stderr)["items"]}
        assert (done.returncode, "gap" in methods) == (0, False)

    @pytest.mark.skipif(
        "recursive" not in inspect.signature(atomik.recover).parameters, reason="not in the library yet"
    )
    def test_recover_recursive(self, folder: Path) -> None:
        """``atomik recover --recursive`` finds what is further down."""
        deep = Path("a/b")
        deep.mkdir(parents=True)
        (deep / ".atomik-0123456789abcdef-0").write_text("half")
        assert call("recover", ".").stdout == b"nothing to recover\n"
        done = call("recover", "--recursive", ".")
        assert (done.returncode, done.stdout.startswith(b"removed: ")) == (0, True)
        assert os.listdir(deep) == []


def refuse(*arguments: Any, **keywords: Any) -> Any:
    raise AssertionError


def test_the_closed_input_is_seen_before_anything_is_staged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python says by None that it was closed; no descriptor is looked at, which may be another file's by now."""
    from atomik.cli import commands, run

    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(run, "file", refuse)
    check: Callable[[list[str]], int] = commands.main
    assert check(["write", "out"]) == 1
    assert os.listdir() == []


class TestResume:
    """``--resume``: what a program wrote outlives it, and us."""

    def test_the_next_run_goes_on(self, folder: Path) -> None:
        """The paths are the same, and the environment says so; `recover` lists what waits, and ``--discard`` deletes it."""
        script = 'echo "$ATOMIK_RESUMED_1$ATOMIK_RESUMED_2" "$1" "$2"; echo x >> "$1"; echo x >> "$2/part"; exit $3'
        outputs = ["--resume", "--file", "data", "--folder", "parts"]
        arguments = ["--", "sh", "-c", script, "sh", "{data}", "{parts}"]
        failed = call("run", *outputs, *arguments, "3")
        assert (failed.returncode, os.path.lexists("data")) == (3, False)
        listed = call("recover", ".")
        assert (listed.returncode, listed.stdout.count(b"resumable: ")) == (0, 2)
        done = call("run", *outputs, *arguments, "0")
        assert done.returncode == 0
        first, second = failed.stdout.split(), done.stdout.split()
        assert second == [b"11", *first]
        assert (Path("data").read_text(), Path("parts/part").read_text()) == ("x\nx\n", "x\nx\n")
        call("run", "--overwrite", *outputs, *arguments, "3")
        discarded = call("recover", "--discard", ".")
        assert (discarded.stdout.count(b"discarded: "), sorted(os.listdir())) == (2, ["data", "parts"])

    def test_not_with_in(self, folder: Path) -> None:
        Path("site").mkdir()
        refused = call("run", "--in", "site", "--resume", "--", "true")
        assert (refused.returncode, b"--resume cannot be combined with --in" in refused.stderr) == (125, True)
