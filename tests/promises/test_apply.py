"""``atomik apply``: a change set is applied whole or not at all, and nothing outside its root is touched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings

import atomik
from atomik import errors
from atomik._api.apply import Applier
from atomik._api.changeset import ChangeSetError, parse
from tests.support.command import forked
from tests.support.kernels import Acting, installed
from tests.support.state import left_in
from tests.support.users import no_devices

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def call(*arguments: str, changes: Any = None, root: Path | None = None) -> subprocess.CompletedProcess[str]:
    where = [] if root is None else ["--root", str(root)]
    document = [] if changes is None else ["-"]
    done = forked("apply", *where, *arguments, *document, input=json.dumps({"changes": changes}).encode())
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def apply(changes: list[dict[str, Any]], root: str | Path = ".", *, dry_run: bool = False) -> Any:
    """As the command does it, in this process."""
    with atomik.transaction(durable=False) as tx:
        applier = Applier(tx, str(root))
        applier.stage(parse(json.dumps({"changes": changes}).encode()))
        with applier.naming_by_path():
            if dry_run:
                plan = tx.plan()
                tx.abort()
                return plan
            return applier.as_dict(tx.commit())


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below a folder."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(root))] = (status.st_mode, status.st_ino, content)
    return found


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture
def project(folder: Path, request: pytest.FixtureRequest) -> Path:
    """As many files of a real project as are asked for: Python's own library, some of it twice where that has fewer."""
    source = Path(os.__file__).parent / ("email" if request.param < 100 else "")
    paths = [path for path in sorted(source.rglob("*.py")) if "site-packages" not in path.parts and path.stat().st_size]
    for number in range(request.param):
        path = paths[number % len(paths)]
        target = folder / "project" / str(number // len(paths)) / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder / "project"


def edits_of(project: Path) -> list[dict[str, Any]]:
    """An edit of every file, each with the digest of what it was made for."""
    edits = []
    for number, path in enumerate(sorted(project.rglob("*.py"))):
        data, name = path.read_bytes(), str(path.relative_to(project))
        if number % 2 and data.count(b"import"):
            edit = {"op": "replace", "path": name, "old": "import", "new": "IMPORT", "count": data.count(b"import")}
        else:
            edit = {"op": "write", "path": name, "text": f"# {number}\n"}
        edits.append({**edit, "expect": sha(data)})
    return edits


@pytest.mark.sweep
@pytest.mark.parametrize("project", [1000], indirect=True)
def test_a_thousand_edits(project: Path) -> None:
    """All are there, and the receipt says what was written."""
    edits = edits_of(project)
    assert len(edits) == 1000
    before = {path: path.read_bytes() for path in project.rglob("*.py")}
    done = call("--json", changes=edits, root=project)
    assert (done.returncode, done.stderr) == (0, "")
    items = {item["path"]: item for item in json.loads(done.stdout)["items"]}
    assert len(items) == 1000
    for number, edit in enumerate(edits):
        path = project / edit["path"]
        expected = edit["text"].encode() if "text" in edit else before[path].replace(b"import", b"IMPORT")
        assert path.read_bytes() == expected
        assert items[str(path)]["change"] == number
        assert f"sha256:{items[str(path)]['sha256']}" == sha(expected)
    assert not left_in(project)


@pytest.mark.parametrize("project", [40, pytest.param(1000, marks=pytest.mark.sweep)], indirect=True)
def test_a_wrong_digest_in_the_last_changes_nothing(project: Path) -> None:
    edits = edits_of(project)
    last = len(edits) - 1
    edits[last]["expect"] = sha(b"something else")
    before = tree(project)
    done = call("--json", changes=edits, root=project)
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert (said["error"], said["change"]) == ("ConflictError", last)
    assert f"changes[{last}] (" in said["message"]
    assert f"changes[{last}] (" in done.stderr
    assert tree(project) == before
    assert not left_in(project)


def test_a_dry_run_leaves_nothing(folder: Path) -> None:
    """It tells the plan; folders that had to be made for it are gone again."""
    Path("x").write_text("old")
    before = tree(folder)
    changes = [
        {"op": "write", "path": "new/a", "text": "a"},
        {"op": "replace", "path": "x", "old": "old", "new": "new"},
        {"op": "move", "from": "x", "to": "y"},
    ]
    done = call("--dry-run", changes=changes)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(line.split() for line in done.stdout.splitlines()) == [
        ["create", "file", f"{folder}/new/a"], ["create", "file", f"{folder}/y"], ["remove", "file", f"{folder}/x"],
    ]  # fmt: skip
    assert tree(folder) == before
    said = json.loads(call("--dry-run", "--json", changes=changes).stdout)
    assert said["dry_run"] is True
    assert {entry["path"] for entry in said["plan"]} == {f"{folder}/{name}" for name in ("new/a", "x", "y")}
    done = call("--dry-run", changes=[{"op": "remove", "path": "missing"}])
    assert (done.returncode, "missing_ok" in done.stderr) == (1, False)


def test_each_change_sees_the_earlier_ones(folder: Path) -> None:
    """Edits of one file add up, a new file can be edited and copied, modes stay."""
    Path("run.sh").write_text("one two")
    os.chmod("run.sh", 0o755)
    apply(
        [
            {"op": "replace", "path": "run.sh", "old": "one", "new": "1"},
            {"op": "replace", "path": "run.sh", "old": "two", "new": "2"},
            {"op": "write", "path": "new", "text": "x", "mode": "0750"},
            {"op": "replace", "path": "new", "old": "x", "new": "xx"},
            {"op": "copy", "from": "new", "to": "copy"},
            {"op": "move", "from": "new", "to": "moved"},
            {"op": "replace", "path": "moved", "old": "xx", "new": "y"},
            {"op": "write", "path": "gone", "text": ""},
            {"op": "remove", "path": "gone"},
        ]
    )
    assert {path: text for path, (_, _, text) in tree(folder).items()} == {
        "run.sh": b"1 2",
        "copy": b"xx",
        "moved": b"y",
    }
    assert stat.S_IMODE(os.stat("run.sh").st_mode) == 0o755
    assert stat.S_IMODE(os.stat("moved").st_mode) == stat.S_IMODE(os.stat("copy").st_mode) == 0o750


def test_counts_are_exact(folder: Path) -> None:
    Path("x").write_text("a a a")
    with pytest.raises(
        atomik.errors.ConflictError, match=r"changes\[0\] \(replace\): 'old' occurs 3 times, not 2"
    ) as caught:
        apply([{"op": "replace", "path": "x", "old": "a", "new": "b", "count": 2}])
    assert (caught.value.expected, caught.value.found) == (2, 3)
    apply([{"op": "replace", "path": "x", "old": "a", "new": "b", "count": 3}])
    assert Path("x").read_text() == "b b b"


def test_a_change_between_reading_and_the_commit_is_a_conflict(folder: Path) -> None:
    """A replacement expects what it read, without being asked."""
    Path("x").write_text("a")
    tx = atomik.transaction()
    Applier(tx, ".").stage(parse(b'{"changes": [{"op": "replace", "path": "x", "old": "a", "new": "b"}]}'))
    Path("x").write_text("theirs, a")
    with pytest.raises(atomik.errors.ConflictError):
        tx.commit()
    assert Path("x").read_text() == "theirs, a"


@pytest.mark.parametrize("at_last", [False, True])
@pytest.mark.parametrize("moves", [["b"], ["b", "c"], ["a/b"]], ids="-".join)
def test_a_change_of_what_an_earlier_change_moves_is_a_conflict(
    folder: Path, moves: list[str], *, at_last: bool
) -> None:
    """The replacement expects what it read, wherever that is until the commit; their version is kept where it was."""
    Path("x").write_text("a")
    names = ["x", *moves]
    changes = [{"op": "move", "from": source, "to": to} for source, to in pairwise(names)]
    changes += [{"op": "replace", "path": moves[-1], "old": old, "new": new} for old, new in ("ab", "bc")]
    tx = atomik.transaction()
    Applier(tx, ".").stage(parse(json.dumps({"changes": changes}).encode()))
    kernel = Acting("rename", lambda _: Path("x").write_text("theirs, a"), when=lambda _: kernel.acted == 0)
    if not at_last:
        Path("x").write_text("theirs, a")
    with installed(kernel) if at_last else contextlib.nullcontext(), pytest.raises(errors.ConflictError) as caught:
        tx.commit()
    assert "its content is sha256:" in str(caught.value)
    assert os.listdir() == ["x"]
    assert Path("x").read_text() == "theirs, a"


def test_what_is_written_and_moved_and_replaced(folder: Path) -> None:
    """What the change set itself wrote is nobody else's, and so is a copy."""
    Path("x").write_text("a")
    apply([
        {"op": "write", "path": "new", "text": "a"},
        {"op": "move", "from": "new", "to": "moved"},
        {"op": "replace", "path": "moved", "old": "a", "new": "b"},
        {"op": "copy", "from": "x", "to": "copy"},
        {"op": "replace", "path": "copy", "old": "a", "new": "b"},
        {"op": "move", "from": "x", "to": "y"},
        {"op": "replace", "path": "y", "old": "a", "new": "b"},
        {"op": "replace", "path": "y", "old": "b", "new": "c"},
    ])  # fmt: skip
    assert {name: Path(name).read_text() for name in os.listdir()} == {"moved": "b", "copy": "b", "y": "c"}


def test_overwriting(folder: Path) -> None:
    """A write replaces, the others only when told to."""
    for name in "ab":
        Path(name).write_text(name)
    Path("l").symlink_to("a")
    for change in (
        {"op": "move", "from": "a", "to": "b"},
        {"op": "copy", "from": "a", "to": "b"},
        {"op": "symlink", "path": "b", "target": "a"},
        {"op": "write", "path": "b", "text": "", "overwrite": False},
        {"op": "write", "path": "b", "text": "", "expect": "absent"},
    ):
        with pytest.raises(FileExistsError, match=r"changes\[0\].*\"overwrite\": true"):
            apply([change])
    apply(
        [{"op": "write", "path": "l", "text": "no link now"}, {"op": "copy", "from": "a", "to": "b", "overwrite": True}]
    )
    assert (Path("a").read_text(), Path("b").read_text(), Path("l").is_symlink()) == ("a", "a", False)


def test_a_database_is_written_with_its_log(folder: Path) -> None:
    """From a file elsewhere, as by a copy; the log may come before or after it."""
    Path("root").mkdir()
    content = {"data": b"SQLite format 3\0, and so on", "data-wal": b"\x37\x7f\x06\x82, and so on"}
    for name, each in content.items():
        Path(name).write_bytes(each)
    os.symlink("data", "link")
    changes = [{"op": "write", "path": name, "from": str(folder / name)} for name in content]
    for first in (changes[0], {**changes[0], "from": str(folder / "link")}):
        with pytest.raises(errors.ConflictError, match=r"changes\[0\] \(write\): a log next to the source"):
            apply([first], "root")
        assert os.listdir("root") == []
    for both in (changes, changes[::-1]):
        apply(both, "root")
        assert {name: Path("root", name).read_bytes() for name in os.listdir("root")} == content
        shutil.rmtree("root")
        Path("root").mkdir()


@pytest.mark.sweep
def test_killed_at_every_call(folder: Path) -> None:
    """After the recovery all changes are there, or none."""
    root = folder / "root"
    changes = [
        {"op": "write", "path": "a", "text": "new"},
        {"op": "replace", "path": "sub/b", "old": "old", "new": "new"},
        {"op": "replace", "path": "sub/b", "old": "new", "new": "newer"},
        {"op": "move", "from": "c", "to": "sub/c"},
        {"op": "copy", "from": "a", "to": "copy"},
        {"op": "remove", "path": "d"},
    ]
    old = {"a": b"old", "sub/b": b"old", "c": b"c", "d/x": b"x"}
    new = {"a": b"new", "sub/b": b"newer", "sub/c": b"c", "copy": b"new"}

    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        for name, content in old.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)

    def check(point: atomik.testing.CrashPoint) -> None:
        atomik.recover(root, recursive=True)
        found = {path: content for path, (mode, _, content) in tree(root).items() if stat.S_ISREG(mode)}
        assert found in ([new] if point.returned else [old, new])
        assert not left_in(root)

    assert atomik.testing.crash_points(lambda: apply(changes, root), check, prepare=prepare) > 50


# --- the root --------------------------------------------------------------------------------------------------------
@pytest.fixture
def hostile(folder: Path) -> Path:
    return make_hostile(folder)


def make_hostile(folder: Path) -> Path:
    """A root with all that may lead out of it, and next to it what must not be touched."""
    root = folder / "root"
    (root / "inner").mkdir(parents=True)
    (folder / "outside").mkdir()
    (folder / "outside" / "secret").write_text("secret")
    (root / "up").symlink_to("..")
    (root / "out").symlink_to(folder / "outside")
    (root / "file").symlink_to(folder / "outside" / "secret")
    (root / "within").symlink_to("inner")
    (root / "proc").symlink_to("/proc/self/cwd")
    (root / "plain").write_text("plain")
    os.mkfifo(root / "pipe")
    return root


THROUGH = [
    "up/outside/secret",
    "out/secret",
    "within/x",
    "proc/outside/secret",
    "plain/x",
    "pipe/x",
    "up/x",
    "out/new/x",
]


@pytest.mark.parametrize("path", THROUGH)
@pytest.mark.parametrize(
    "change",
    [
        {"op": "write", "path": "PATH", "text": "x"},
        {"op": "replace", "path": "PATH", "old": "s", "new": "x"},
        {"op": "remove", "path": "PATH"},
        {"op": "move", "from": "plain", "to": "PATH"},
        {"op": "move", "from": "PATH", "to": "new"},
        {"op": "copy", "from": "PATH", "to": "new"},
        {"op": "copy", "from": "plain", "to": "PATH"},
        {"op": "symlink", "path": "PATH", "target": "plain"},
    ],
    ids=lambda change: "-".join(key for key, value in change.items() if value == "PATH") + "-" + change["op"],
)
def test_no_way_out(hostile: Path, path: str, change: dict[str, Any]) -> None:
    """Through links, files or pipes: refused, the change is named, and root and outside are as they were."""
    before = tree(hostile.parent)
    filled = {key: path if value == "PATH" else value for key, value in change.items()}
    with pytest.raises(atomik.AtomikError, match=r"changes\[1\] "):
        apply([{"op": "write", "path": "first", "text": "x"}, filled], hostile)
    assert tree(hostile.parent) == before


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../outside/secret", "inner/../../outside/secret", "..", ".", "", "a\0b"]
)
def test_paths_that_are_none(hostile: Path, path: str) -> None:
    before = tree(hostile.parent)
    done = call("--json", changes=[{"op": "write", "path": path, "text": "x"}], root=hostile)
    assert done.returncode == 2
    assert json.loads(done.stdout)["change"] == 0
    assert tree(hostile.parent) == before


def test_links_and_pipes_at_the_end(hostile: Path) -> None:
    """A link is replaced, removed, moved and copied itself; its target is never written to.  A pipe is not replaced."""
    secret = hostile.parent / "outside" / "secret"
    with pytest.raises(atomik.errors.WrongKindError, match="a link is not followed"):
        apply([{"op": "replace", "path": "file", "old": "secret", "new": "x"}], hostile)
    for change in (
        {"op": "write", "path": "pipe", "text": ""},
        {"op": "replace", "path": "pipe", "old": "a", "new": "b"},
    ):
        with pytest.raises(atomik.errors.WrongKindError):
            apply([change], hostile)
    with pytest.raises(atomik.errors.WrongKindError, match="regular file"):
        apply([{"op": "write", "path": "x", "from": str(hostile / "pipe")}], hostile)
    apply([{"op": "copy", "from": "file", "to": "again"}, {"op": "write", "path": "file", "text": "x"}], hostile)
    apply([{"op": "remove", "path": "out"}, {"op": "remove", "path": "up"}], hostile)
    assert os.readlink(hostile / "again") == str(secret)
    assert (hostile / "file").read_text() == "x"
    assert secret.read_text() == "secret"


def test_a_link_of_the_same_set_is_no_way_either(hostile: Path) -> None:
    before = tree(hostile.parent)
    with pytest.raises(atomik.errors.NestedDestinationError, match=r"changes\[1\]"):
        apply([{"op": "symlink", "path": "d", "target": "inner"}, {"op": "write", "path": "d/x", "text": "x"}], hostile)
    with pytest.raises(atomik.errors.NestedDestinationError, match=r"changes\[1\]"):
        apply([{"op": "copy", "from": "out", "to": "d"}, {"op": "write", "path": "d/x", "text": "x"}], hostile)
    assert tree(hostile.parent) == before


@pytest.mark.root
def test_devices(hostile: Path) -> None:
    if why := no_devices():
        pytest.skip(why)
    os.mknod(hostile / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    before = tree(hostile.parent)
    for change in (
        {"op": "write", "path": "null", "text": "x"},
        {"op": "replace", "path": "null", "old": "x", "new": "y"},
        {"op": "write", "path": "x", "from": "/dev/zero"},
        {"op": "copy", "from": "plain", "to": "null", "overwrite": True},
        {"op": "symlink", "path": "null", "target": "plain", "overwrite": True},
    ):
        with pytest.raises(atomik.errors.WrongKindError, match=r"changes\[0\]"):
            apply([change], hostile)
    assert tree(hostile.parent) == before


NAMES = st.sampled_from(
    ["up", "out", "file", "within", "proc", "plain", "pipe", "inner", "..", ".", "", "outside", "secret", "new"]
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
CHANGE = st.one_of(
    st.builds(lambda path: {"op": "write", "path": path, "text": "x"}, PATHS),
    st.builds(lambda path: {"op": "replace", "path": path, "old": "s", "new": "x"}, PATHS),
    st.builds(lambda path: {"op": "remove", "path": path}, PATHS),
    st.builds(lambda path, target: {"op": "symlink", "path": path, "target": target, "overwrite": True}, PATHS, PATHS),
    st.builds(
        lambda op, a, b: {"op": op, "from": a, "to": b, "overwrite": True}, st.sampled_from(["move", "copy"]), PATHS, PATHS
    ),
)  # fmt: skip


@pytest.mark.sweep
@settings(max_examples=150, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.lists(CHANGE, max_size=5))
def test_whatever_it_says_outside_stays(folder: Path, changes: list[dict[str, Any]]) -> None:
    """Random change sets over hostile names: nothing outside of the root changes, and a refused one changes nothing."""
    shutil.rmtree(folder / "root", ignore_errors=True)
    shutil.rmtree(folder / "outside", ignore_errors=True)
    make_hostile(folder)
    before = tree(folder)
    outside = {path: found for path, found in before.items() if not path.startswith("root")}
    try:
        apply(changes, folder / "root")
    except (atomik.AtomikError, ChangeSetError):
        assert tree(folder) == before
    assert {path: found for path, found in tree(folder).items() if not path.startswith("root")} == outside
    assert not left_in(folder)


# --- the command -----------------------------------------------------------------------------------------------------
def test_from_a_file_and_other_roots(folder: Path) -> None:
    """The change set is read from a file; ``from`` may be anywhere; nothing is printed unless asked."""
    Path("root").mkdir()
    Path("source").write_text("content")
    Path("set.json").write_text(json.dumps({"changes": [{"op": "write", "path": "a/b", "from": f"{folder}/source"}]}))
    done = call("set.json", root=folder / "root")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert Path("root/a/b").read_text() == "content"


def test_mistakes(folder: Path) -> None:
    """Their exit codes: 2 for what was said, 1 for what was found."""
    Path("bad.json").write_text("{")
    for arguments, code, said in (
        (["bad.json"], 2, "not JSON"),
        ([], 2, "give the change set"),
        (["missing.json"], 1, "missing.json"),
    ):
        done = call(*arguments)
        assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (code, True, False)
    assert call(changes=[], root=folder / "missing").returncode == 1
    assert call(changes=[]).returncode == 0


def test_schema(folder: Path) -> None:
    done = call("--schema")
    jsonschema.Draft202012Validator.check_schema(json.loads(done.stdout))


class TestDryRuns:
    """Every command that commits has one."""

    def test_write(self, folder: Path) -> None:
        Path("a").write_text("old")
        command = [sys.executable, "-m", "atomik", "write", "--dry-run", "--overwrite", "a"]
        done = subprocess.run(command, input="new", capture_output=True, text=True, env=ENVIRONMENT)
        assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["replace", "file", f"{folder}/a"], "")
        assert Path("a").read_text() == "old"

    def test_run(self, folder: Path) -> None:
        command = [sys.executable, "-m", "atomik", "run", "--dry-run", "--json", "--stdout", "a", "--", "echo", "x"]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
        assert done.returncode == 0
        assert [entry["op"] for entry in json.loads(done.stderr)["plan"]] == ["create"]
        assert os.listdir() == []

    def test_swap(self, folder: Path) -> None:
        Path("a").write_text("a")
        Path("b").write_text("b")
        command = [sys.executable, "-m", "atomik", "swap", "--dry-run", "a"]
        done = subprocess.run([*command, "b"], capture_output=True, text=True, env=ENVIRONMENT)
        assert done.returncode == 0
        assert done.stdout.split() == ["exchange", "file", str(folder / "a"), "exchange", "file", str(folder / "b")]
        assert subprocess.run([*command, "c"], capture_output=True, env=ENVIRONMENT).returncode == 1
        assert Path("a").read_text() == "a"


def test_a_source_that_cannot_be_read(folder: Path) -> None:
    """Like every other error it names the change, and the source."""
    with pytest.raises(atomik.errors.AtomikOSError, match=r"changes\[1\] \(write\): cannot read the source") as caught:
        apply([{"op": "write", "path": "a", "text": ""}, {"op": "write", "path": "b", "from": "/proc/self/mem"}])
    assert caught.value.filename == "/proc/self/mem"
    assert list(folder.iterdir()) == []
