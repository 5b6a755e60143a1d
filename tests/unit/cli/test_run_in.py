"""``atomik run --in FOLDER``: options, exit codes, what is told, signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import atomik
from atomik import errors
from atomik._api.private_layer import PrivateLayer
from atomik._api.run_in import refuse_where_impossible
from tests.support.command import forked
from tests.support.state import identity, in_child, left_in, tree
from tests.support.users import no_admin

COMMAND = [sys.executable, "-m", "atomik"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1]), "PYTHONWARNINGS": "error"}


@pytest.fixture(autouse=True)
def site(folder: Path) -> Path:
    try:
        refuse_where_impossible(str(folder))
    except errors.NamespaceError as exc:
        pytest.skip(str(exc))
    place = folder / "site"
    place.mkdir()
    (place / "a").write_text("old\n")
    return place


def call(*arguments: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return forked("run", *arguments, input=input)


def test_published(site: Path) -> None:
    """Standard input and output are the program's; nothing comes out of us."""
    done = call("--in", "site", "--", "sh", "-c", "cat; echo new > site/a; echo said >&2", input=b"in\0put")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"in\0put", b"said\n")
    assert (site / "a").read_text() == "new\n"
    assert left_in(site.parent) == []


def test_receipt(site: Path) -> None:
    """``--json`` has the receipt: one folder, replaced in one step."""
    told = json.loads(call("--json", "--in", "site", "--", "touch", "site/b").stderr)
    assert [(item["path"], item["kind"], item["op"], item["method"]) for item in told["items"]] == [
        (str(site), "folder", "replace", "renameat2")
    ]


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        (["sh", "-c", "echo x > site/a; exit 7"], 7, b""),
        (["sh", "-c", "kill -9 $$"], 137, b""),
        (["./site/a"], 126, b"atomik: cannot run './site/a': Permission denied\n"),
        (["nosuch"], 127, b"atomik: cannot run 'nosuch': No such file or directory\n"),
    ],
)
def test_failure(site: Path, program: list[str], code: int, said: bytes) -> None:
    """The program's exit code is ours, 126 and 127 as env has them; nothing was published."""
    before = tree(site.parent)
    done = call("--in", "site", "--", *program)
    assert (done.returncode, done.stderr, tree(site.parent)) == (code, said, before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--in", "site", "--overwrite"], b"--overwrite cannot be combined with --in"),
        (["--in", "site", "--parents"], b"--parents cannot be combined with --in"),
        (["--in", "site", "--file", "x"], b"an output cannot be combined with --in"),
        (["--background", "wait", "--file", "x"], b"--background needs --in"),
        (["--changes-only", "--file", "x"], b"--changes-only needs --in"),
        (["--overwrite-changes", "--file", "x"], b"--overwrite-changes needs --in"),
        (["--keep-on-failure", "y", "--file", "x"], b"--keep-on-failure needs --in"),
        (["--in", "site", "--background", "never"], b"invalid choice"),
        (["--in", "none"], b"does not exist|No such file"),
        (["--in", "site/a"], b"Not a directory"),
        (["--in", "/"], b"must end with a name"),
        (["--in", "site", "--keep-on-failure", "site"], b"exists there already"),
    ],
)
def test_mistakes(site: Path, arguments: list[str], said: bytes) -> None:
    """One line, 125, and the program has not run."""
    done = call(*arguments, "--", "touch", "ran")
    assert done.returncode == 125
    assert any(each in done.stderr for each in said.split(b"|"))
    assert b"Traceback" not in done.stderr
    assert os.listdir() == ["site"]


def test_dry_run(site: Path) -> None:
    """What would be published is listed on standard error, and nothing is."""
    (site / "moved").write_text("m")
    before = tree(site)
    script = "cd site; echo new > a; mv moved to; mkdir d; echo x > d/x"
    done = call("--in", "site", "--dry-run", "--", "sh", "-c", script)
    lines = b"M a\n+ d/\n+ d/x\nR moved -> to\n2 new, 0 removed, 1 changed, 1 renamed\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", lines)
    assert (tree(site), os.listdir()) == (before, ["site"])
    told = json.loads(call("--json", "--in", "site", "--dry-run", "--", "rm", "site/a").stderr)
    assert told["dry_run"] is True
    assert (told["changes"], told["counts"]["removed"]) == ([{"change": "-", "path": "a", "old": None}], 1)


def test_changes_only(site: Path) -> None:
    """``--changes-only``: the receipt has an item for each name, a dry run a line; what did not change stays as it is."""
    (site / "moved").write_text("m")
    (site / "d").mkdir()
    (site / "d/x").write_text("x")
    (site / "same").write_text("same")
    before, same = tree(site), identity(site / "same")
    script = "cd site; echo new > a; mv moved to; rm -r d; mkdir -p e/f; touch same; rm -r e/f; echo > d; chmod 750 e"
    if why := no_admin() or in_child(PrivateLayer.why_not, site):  # renames in the lower layer of an overlay
        pytest.skip(why)
    done = call("--in", "site", "--changes-only", "--dry-run", "--", "sh", "-c", script)
    lines = b"M a\nM d\n- d/x\n+ e/\nR moved -> to\n1 new, 1 removed, 2 changed, 1 renamed\n"
    if b"overlay" in done.stderr:
        pytest.skip(done.stderr.decode())
    assert (done.returncode, done.stderr) == (0, lines)
    assert (tree(site), left_in(site.parent), identity(site / "same")) == (before, [], same)
    told = json.loads(call("--json", "--in", "site", "--changes-only", "--", "sh", "-c", script).stderr)
    assert sorted((os.path.relpath(item["path"], site), item["op"]) for item in told["items"]) == [
        ("a", "replace"), ("d", "replace"), ("d", "replace"), ("e", "create"), ("moved", "remove"), ("same", "replace"),
        ("to", "create"),
    ]  # fmt: skip
    assert ((site / "to").read_text(), (site / "d").read_text(), os.listdir(site / "e")) == ("m", "\n", [])


def test_kept_on_failure(site: Path) -> None:
    """``--keep-on-failure`` keeps the copy."""
    assert (
        call("--in", "site", "--keep-on-failure", "kept", "--", "sh", "-c", "echo half > site/a; exit 1").returncode
        == 1
    )
    assert (Path("kept/a").read_text(), (site / "a").read_text()) == ("half\n", "old\n")
    assert left_in(site.parent) == []


def test_background(site: Path) -> None:
    """``--background wait`` waits for a daemon; without it one is refused, in the words of the command line."""
    os.mkfifo("gate")
    script = "setsid sh -c 'read x < gate; echo late > site/a' > /dev/null 2>&1 & :"
    done = call("--in", "site", "--", "sh", "-c", script)
    assert (done.returncode, (site / "a").read_text()) == (125, "old\n")
    Path("gate").write_text("go on\n")
    late = "while kill -0 $1; do sleep 0.01; done; echo late > site/a"  # when the program has ended
    script = f"setsid sh -c '{late}' sh $$ > /dev/null 2>&1 & :"
    assert b"pass --background wait or kill" in done.stderr
    assert call("--in", "site", "--background", "wait", "--", "sh", "-c", script).returncode == 0
    assert (site / "a").read_text() == "late\n"


@pytest.mark.sweep
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ending", ["exec sleep 60", "trap 'exit 0' INT TERM HUP; sleep 60 >/dev/null 2>&1 & wait"])
def test_stopped(site: Path, number: signal.Signals, ending: str) -> None:
    """A signal goes on to the program; when that has ended nothing is published, even if it says that all is well."""
    os.mkfifo("told")
    before = tree(site)
    script = f"echo half > site/a; echo > told; {ending}"
    ours = subprocess.Popen(
        [*COMMAND, "run", "--in", "site", "--", "sh", "-c", script], env=ENVIRONMENT, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    Path("told").read_text()
    ours.send_signal(number)
    _, said = ours.communicate(timeout=30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(ours.pid, signal.SIGKILL)
    assert (ours.returncode, b"Traceback" in said) == (128 + number, False)
    assert (tree(site), left_in(site.parent)) == (before, [])


def test_stopped_while_it_waits(site: Path) -> None:
    """A signal while atomik waits for what the program left: nothing is published."""
    os.mkfifo("told")
    half = "while kill -0 $1; do sleep 0.01; done; echo half > site/a; echo $$ > told; exec sleep 60"
    script = f"setsid sh -c '{half}' sh $$ > /dev/null 2>&1 & :"
    ours = subprocess.Popen(
        [*COMMAND, "run", "--in", "site", "--background", "wait", "--", "sh", "-c", script], env=ENVIRONMENT,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    daemon = int(Path("told").read_text())
    ours.send_signal(signal.SIGTERM)
    _, said = ours.communicate(timeout=30)
    os.kill(daemon, signal.SIGKILL)
    assert (ours.returncode, said) == (143, b"atomik: stopped by SIGTERM; nothing was changed\n")
    assert ((site / "a").read_text(), left_in(site.parent)) == ("old\n", [])
