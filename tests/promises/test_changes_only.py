"""``run_in(changes_only=True)``: what a program changed in a layer over a folder is published as one transaction."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from atomik._api.private_layer import PrivateLayer
from atomik._api.run_in import PrivateCopy
from atomik._staging.layer import StagedLayer
from atomik._system.kernel import Kernel
from tests.promises import test_faults
from tests.promises.test_faults import Field
from tests.promises.test_run_in import (  # noqa: F401  fixtures
    COMMAND,
    ENVIRONMENT,
    FIXED,
    PROGRAMS,
    USERS,
    directly,
    fill,
    here,
    killed,
    meanwhile,
    missing,
    run,
    shape,
    state,
    wheel,
    why_not,
)  # fmt: skip
from tests.support.kernels import Acting, every_call, installed
from tests.support.state import eventually, left_in
from tests.support.trees import kernel
from tests.support.users import no_admin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# ruff: noqa: F811  fixtures that are imported

ALL = PROGRAMS | {
    "mv": "mkdir x; mv folder x/y; echo z > x/y/z; mv x/y/setgid s; mv empty full; ln -sfn full moved; chmod 700 full",
    "kinds": "rm -r folder; echo f > folder; rm file moved; mkdir file; echo i > file/i; ln -sf file closed; mkfifo moved",
    "again": "rm -r folder; mkdir folder; echo 1 > folder/inner; mkdir -m 2770 folder/s; mv folder folder2; mkdir folder",
    "attributes": "chmod 711 folder; chmod 4755 file; touch -d 2001-01-01 empty; setfattr -n user.x -v y folder/setgid",
    "links": "echo more >> 'one of two'; mv 'one of two' renamed; ln closed folder/closed; ln closed c2; chmod 600 c2",
    "swap": "mv file t; mv moved file; mv t moved; mv folder t; mv empty folder; mv t empty",
}

OF_ROOT = ("mv", "swap", "links")


@pytest.mark.sweep
@pytest.mark.parametrize("program", ALL)
def test_the_result_is_that_of_a_run_without(run: Callable[..., Any], open_folder: Path, program: str) -> None:  # noqa: F811
    """Content, kinds, modes, owners, links and attributes are those of the same program run in the folder itself."""
    if why := missing("sh" if program not in PROGRAMS else program):
        pytest.skip(why)

    if program in OF_ROOT and (run is not USERS.get("root") or no_admin()):
        pytest.skip("renames a folder of the lower layer, which overlayfs lets only root do")

    def work() -> None:
        os.umask(0o022)
        wheel(open_folder / "wheels")
        for name in ("plain", "inside"):
            (open_folder / name).mkdir()
            fill(open_folder / name / "F")
        command = ["sh", "-ec", ALL[program]]
        subprocess.run(command, check=True, cwd=open_folder / "plain/F", env=FIXED, timeout=60)
        inside = open_folder / "inside/F"
        done = atomik.run_in(inside, command, changes_only=True, cwd=inside, env=FIXED, check=True)
        assert done.receipt is not None
        assert shape(inside) == shape(open_folder / "plain/F")
        assert os.listdir(open_folder / "inside") == ["F"]

    run(work)


@pytest.fixture(autouse=True)
def layers(request: pytest.FixtureRequest, open_folder: Path) -> None:
    """Skips where the filesystem carries no layer, as the overlay of a container does not."""
    who = request.getfixturevalue("run") if "run" in request.fixturenames else directly
    if why := who(PrivateLayer.why_not, open_folder):
        pytest.skip(why)


class NoOverlay(Kernel):
    """A kernel that lets nobody mount an overlay."""

    def mount_overlay(self, lower: int, upper: int, work: int, options: str) -> None:
        """mount(2)."""
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_told_beforehand(here: Path) -> None:
    """Whether it works is tried without a program, for the clone and for the layer; nothing is left of the trials."""
    folder = here / "F"
    assert (PrivateCopy.why_not(folder), PrivateLayer.why_not(folder)) == ("", "")
    with kernel(NoOverlay()):
        assert PrivateCopy.why_not(folder) == ""
        assert PrivateLayer.why_not(folder).endswith("or run it without changes_only: on a clone of the folder")
        with pytest.raises(errors.NamespaceError, match=re.escape(PrivateLayer.why_not(folder))):
            changed(here, "echo new > a")
    assert (left_in(here), os.listdir(here), os.listdir(folder)) == ([], ["F"], ["a"])


# --- all or nothing --------------------------------------------------------------------------------------------------
def changed(here: Path, script: str, **options: Any) -> Any:
    """Run a script in ``F``, its changes only."""
    return atomik.run_in(here / "F", ["sh", "-ec", script], changes_only=True, cwd=here / "F", **options)


@pytest.mark.skipif(
    no_admin() is not None, reason="renames a folder of the lower layer, which overlayfs lets only root do"
)
def test_only_what_changed_changes(here: Path) -> None:
    """Everything else keeps its inode; a renamed folder is moved, with what is in it; and folders get their times."""
    for name in ("same", "sub/gone", "sub/same", "old/in it"):
        (here / "F" / name).parent.mkdir(exist_ok=True)
        (here / "F" / name).write_text(name)
    before = {name: (here / "F" / name).stat().st_ino for name in ("same", "sub", "sub/same", "old", "old/in it")}
    done = changed(here, "echo new > a; rm sub/gone; mv old renamed; touch -d 2001-01-01T00:00:00Z sub")
    assert {Path(item.path).name: item.op for item in done.receipt.items} == {
        "a": "replace", "gone": "remove", "renamed": "move",
    }  # fmt: skip
    after = {name: (here / "F" / name.replace("old", "renamed")).stat().st_ino for name in before}
    assert after == before
    assert (here / "F/sub").stat().st_mtime == 978307200
    assert (left_in(here), os.listdir(here)) == ([], ["F"])


@pytest.mark.parametrize("script", ["true", "cat a; echo x >> a; truncate -s 3 a; touch -d @0 a; exit 1", "kill -9 $$"])
def test_nothing_happens(here: Path, script: str) -> None:
    """A program that changes nothing, or fails."""
    os.utime(here / "F/a", (0, 0))
    before = state(here / "F")
    assert (changed(here, script).receipt is None) == (script != "true")
    assert (state(here / "F"), left_in(here), os.listdir(here)) == (before, [], ["F"])


def test_kept_on_failure(here: Path) -> None:
    """What a failed run would have published is there to look at, as a folder that shares nothing with the original."""
    (here / "F/sub").mkdir()
    (here / "F/sub/b").write_text("b")
    changed(here, "echo half > a; rm -r sub; mkdir -p sub x/y; exit 1", keep_on_failure=here / "kept")
    assert shape(here / "kept").keys() == {".", "a", "sub", "x", "x/y"}
    assert ((here / "kept/a").read_text(), (here / "F/a").read_text()) == ("half\n", "old")
    changed(here, "mv a b; rm -r sub; exit 1", keep_on_failure=here / "kept2")
    assert ((here / "kept2/b").read_text(), os.listdir(here / "kept2")) == ("old", ["b"])
    assert (here / "F/a").stat().st_nlink == 1


@pytest.mark.sweep
def test_a_reader_sees_whole_states_only(here: Path) -> None:
    """Inside ``reading(folder)``, whichever folders in it a run changes."""
    names = [f"{number % 5}/{number}" for number in range(20)]
    for name in names:
        (here / "F" / name).parent.mkdir(exist_ok=True)
        (here / "F" / name).write_text("0\n")
    stop, seen, wrong = threading.Event(), set(), []

    def read() -> None:
        while not stop.is_set():
            with atomik.reading(here / "F"):
                found = {(here / "F" / name).read_text() for name in names}
            seen.update(found)
            if len(found) != 1:
                wrong.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in range(1, 6):
            script = f'for name in ?/*; do echo {version} > "$name"; done'
            command = [*COMMAND, "run", "--changes-only", "--in", str(here / "F"), "--", "sh", "-ec", script]
            subprocess.run(command, cwd=here / "F", env=ENVIRONMENT, check=True)
            assert eventually(lambda version=version: f"{version}\n" in seen or wrong)
    finally:
        stop.set()
        reader.join()
    assert wrong == []


@pytest.mark.parametrize("changes_only", [False, True], ids=["clone", "changes"])
def test_the_next_run_sees_no_half(here: Path, changes_only: bool) -> None:
    """What a run that was killed in its commit left in the folder is brought back before the next program looks."""
    for name in "abcd":
        (here / "F" / name).write_text("old\n")

    def die() -> None:
        kernel = Acting("rename", lambda _: os._exit(0), when=lambda call: "F/c" in str(call))
        with installed(kernel):
            changed(here, "for name in a b c d; do echo new > $name; done")

    pid = os.fork()
    if not pid:
        die()
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert {(here / "F" / name).read_text() for name in "abcd"} == {"old\n", "new\n"}
    done = atomik.run_in(here / "F", "cat F/?", shell=True, cwd=here, changes_only=changes_only, capture_output=True)
    assert done.process.stdout == b"old\n" * 4


@pytest.mark.sweep
def test_killed_at_any_moment(here: Path) -> None:
    """SIGKILL of atomik and the program: after `recover`, from the folder or from the one above, all is old or all is new."""
    names = [f"{number % 7}/{number}" for number in range(40)]
    for name in names:
        (here / "F" / name).parent.mkdir(exist_ok=True)
        (here / "F" / name).write_text("0\n")
    script = 'for name in */*; do echo "$0" > "$name"; done; rm -f a; rm -rf gone; mkdir gone; echo "$0" > gone/1'
    command = [*COMMAND, "run", "--changes-only", "--in", str(here / "F"), "--", "sh", "-c", script]
    started = time.monotonic()
    subprocess.run([*command, "0"], cwd=here / "F", env=ENVIRONMENT, check=True)
    whole = time.monotonic() - started
    chosen = random.Random(7)
    for version in range(1, 31):
        killed([*command, str(version)], here / "F", chosen.uniform(0.3, 1.3) * whole)
        atomik.recover(here / "F" if version % 2 else here)
        found = {(here / "F" / name).read_text() for name in [*names, "gone/1"]}
        assert len(found) == 1
        atomik.recover(here, recursive=True)
        assert left_in(here) == []


#: What programs do to files with several names (``a`` and ``sub/a``, ``c`` and ``deep/er/c``), and who may do it: an ordinary
#: user's overlay does not tell how a file came into a folder into which something was copied up.
LINKED = dict.fromkeys((
    "sed -i s/a/b/ a", "sed -i s/a/b/ sub/a", "rm -r sub", "rm a; echo n > n", "rm -r sub; echo n > n", "chmod 755 .",
    "cp --remove-destination z sub/a", "chmod 711 sub; rm sub/a; echo n > sub/a", "chmod 711 sub; sed -i s/a/b/ sub/a",
    "rm -r deep/er; mkdir deep/er; echo k > deep/er/c", "rm c deep/er/c; echo k > c", "echo x >> a; rm sub/a",
    "echo b > b; ln b b2",
), "root user") | dict.fromkeys((
    "echo x >> a", "echo x >> sub/a; rm sub/a", "echo x >> a; echo y >> sub/a", "chmod 600 a", "touch a", "rm a; mv c a",
    "chmod 711 sub; echo x >> sub/a", "mkdir n; mv sub/a n/a", "mkdir n; mv sub/a n; echo x >> n/a", "mkdir n; ln sub/a n/a",
    "mkdir n; ln a n/a; rm a", "mv a t; cp t a; rm t", "mv a moved; echo x >> moved", "mv sub/a n; rm -r sub",
    "mkdir n; mv sub/a n/n; rm -r sub", "echo x >> z; sed -i s/a/b/ a",
), "root") | dict.fromkeys((
    "chmod 711 .; echo x >> a", "mv deep deep2; echo x >> c", "mkdir n; mv deep n/deep; echo x >> c",
    "mv deep deep2; touch deep2/new; echo x >> c",
), "nobody")  # fmt: skip


@pytest.mark.sweep
@pytest.mark.parametrize("script", LINKED)
def test_hard_links(run: Callable[..., Any], open_folder: Path, script: str) -> None:
    """What is changed by one of its names is changed by all, as without a layer; where that cannot be known it is refused."""

    def work() -> None:
        for name in ("plain", "inside"):
            top = open_folder / name / "F"
            for folder in ("sub", "deep/er"):
                (top / folder).mkdir(parents=True)
            for first, second in (("a", "sub/a"), ("c", "deep/er/c"), ("z", None)):
                (top / first).write_text(first + "\n")
                if second:
                    os.link(top / first, top / second)
        subprocess.run(["sh", "-ec", script], check=True, cwd=open_folder / "plain/F")
        before, here = shape(open_folder / "inside/F"), open_folder / "inside"
        if ("user" if no_admin() else "root") in LINKED[script]:
            changed(here, script)
            assert shape(here / "F") == shape(open_folder / "plain/F")
        else:
            with pytest.raises(
                errors.UnsupportedFilesystemError, match=r"several names .* Run it without changes_only"
            ):
                changed(here, script)
            assert shape(here / "F") == before
        assert os.listdir(here) == ["F"]

    run(work)


#: What programs do with permissions, and who may do it.
CLOSED = dict.fromkeys((
    "chmod 0 closed", "chmod 444 file", "mv closed x", "chmod 0 closed; mv closed y", "chmod 0 gone",
    "chmod 0 sparse; mv sparse x", "touch -d 2001-01-01 closed", "rmdir empty; mkdir -m 500 empty",
    "chmod 644 closed; echo x >> closed; chmod 444 closed",
), "root user") | dict.fromkeys((
    "chmod 000 empty", "chmod 500 folder", "mkdir -m 300 n", "rmdir empty; mkdir -m 0 empty", "chmod 500 .",
), "root")  # fmt: skip


@pytest.mark.sweep
@pytest.mark.parametrize("script", CLOSED)
def test_closed_to_the_owner(run: Callable[..., Any], open_folder: Path, script: str) -> None:
    """Files that their owner may not read or write are as without a layer; folders too, or the error names the cure."""

    def work() -> None:
        for name in ("plain", "inside"):
            (open_folder / name).mkdir()
            fill(open_folder / name / "F")
        subprocess.run(["sh", "-ec", script], check=True, cwd=open_folder / "plain/F")
        inside = open_folder / "inside"
        if ("user" if no_admin() else "root") in CLOSED[script]:
            changed(inside, script)
            assert opened(inside / "F") == opened(open_folder / "plain/F")
        else:
            with pytest.raises(errors.UnsupportedFilesystemError, match=r"new mode .* Run it without changes_only"):
                changed(inside, script)
        assert os.listdir(inside) == ["F"]

    run(work)


def opened(top: Path) -> Any:
    """`shape`, and the modes of what its owner has to be let into for it."""
    modes = {}
    for path in top.iterdir():
        if not path.is_symlink():
            modes[path.name] = path.stat().st_mode
            path.chmod(0o700)
    return modes, shape(top)


# --- other people's changes ------------------------------------------------------------------------------------------
def both(here: Path, mine: str, theirs: str, **options: Any) -> Any:
    """Run a script; a stranger runs another one, in the folder itself, when it is done and has not ended."""

    def change() -> None:
        subprocess.run(["sh", "-ec", theirs], cwd=here / "F", check=True)

    return meanwhile(here, mine, change, changes_only=True, **options)


CONFLICTS = {
    "changed": ("echo mine > a", "echo theirs > a"),
    "changed, and times reset": ("echo mine > a", "touch -r a r; echo 012 > a; touch -r r a; rm r"),
    "mode": ("echo mine > a", "chmod 600 a"),
    "removed by them": ("echo mine > a", "rm a"),
    "removed by the program": ("rm a", "echo theirs > a"),
    "replaced": ("echo mine > a", "echo theirs > t; mv t a"),
    "created": ("echo mine > new", "echo theirs > new"),
    "in a folder that goes": ("rm -r sub", "echo theirs > sub/in/c"),
    "added to a folder that goes": ("rm -r sub", "touch sub/in/d"),
    "a folder that went": ("echo mine > sub/in/c", "rm -r sub"),
    "in a folder that is replaced": ("rm -r sub; mkdir sub", "echo theirs > sub/in/c"),
    "in a folder with a new mode": ("chmod 711 sub", "rm sub/in/c"),
    "renamed": ("mv a b", "echo theirs > a"),
    "the folder itself": ("echo mine > a", "mv ../F ../H; mkdir ../F; echo theirs > ../F/a; cp -r sub ../F"),
}
SWEPT = [pytest.param(which, marks=pytest.mark.sweep) if at > 3 else which for at, which in enumerate(CONFLICTS)]


@pytest.mark.parametrize("which", SWEPT)
def test_conflict(here: Path, which: str) -> None:
    """What the program and someone else changed is kept as someone else left it, unless the caller asks for the opposite."""
    (here / "F/sub/in").mkdir(parents=True)
    (here / "F/sub/in/c").write_text("c")
    mine, theirs = CONFLICTS[which]
    shutil.copytree(here / "F", here / "G/F")
    subprocess.run(["sh", "-ec", theirs], cwd=here / "G/F", check=True)
    found = both(here, mine, theirs)
    assert isinstance(found, errors.ConflictError), found
    assert str(here / "F") in str(found)
    assert shape(here / "F") == shape(here / "G/F")
    assert left_in(here) == []


@pytest.mark.sweep
@pytest.mark.parametrize(
    "which", [which for which in CONFLICTS if which not in ("changed, and times reset", "the folder itself")]
)
def test_the_last_writer_wins_if_asked_to(here: Path, which: str) -> None:
    """``overwrite_changes=True``: what the program changed is as the program left it."""
    (here / "F/sub/in").mkdir(parents=True)
    (here / "F/sub/in/c").write_text("c")
    mine, theirs = CONFLICTS[which]
    shutil.copytree(here / "F", here / "G")
    subprocess.run(["sh", "-ec", mine], cwd=here / "G", check=True)
    found = both(here, mine, theirs, overwrite_changes=True)
    assert found.receipt is not None, found
    assert shape(here / "F") == shape(here / "G") or which == "in a folder with a new mode"
    assert left_in(here) == []


def test_what_others_change_elsewhere_stays(here: Path) -> None:
    """Only names that the program changed are compared."""
    (here / "F/sub").mkdir()
    found = both(here, "echo mine > sub/mine; echo new > a", "echo theirs > sub/theirs; echo b > b")
    assert found.receipt is not None, found
    assert sorted(shape(here / "F")) == [".", "a", "b", "sub", "sub/mine", "sub/theirs"]


def test_a_clock_that_goes_back(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nobody can tell what others changed, and nothing is published."""
    now = StagedLayer._now
    monkeypatch.setattr(StagedLayer, "_now", staticmethod(lambda fd: now(fd) - 10**9 * (here / "gone back").exists()))
    with pytest.raises(errors.ConflictError, match="clock was set back"):
        changed(here, "echo new > a; touch '../gone back'")
    assert (here / "F/a").read_text() == "old"


# --- faults ----------------------------------------------------------------------------------------------------------
def everything() -> None:
    """New, changed, removed, replaced by another kind, with another mode, renamed."""
    script = (
        "echo new > index.html; rm 'old only'; mkdir new; echo n > new/n; mv folder moved; chmod 711 kept; echo k > kept/k; "
        "rm -r goes; echo file > goes; echo s > sub/s; mv sub/t new/t"
    )
    atomik.run_in("site", ["sh", "-ec", script], changes_only=True, cwd="site", check=True)


@pytest.fixture
def field(monkeypatch: pytest.MonkeyPatch) -> Iterator[Field]:
    """A folder in memory, on which the run can be repeated."""

    def prepare() -> None:
        for name in (
            "site/folder/f",
            "site/kept/old",
            "site/goes/in/g",
            "site/sub/t",
            "site/index.html",
            "site/old only",
        ):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text("old")

    monkeypatch.setattr(test_faults, "prepare", prepare)
    top = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    before = Path.cwd()
    try:
        if why := why_not(directly, top):
            pytest.skip(why)
        yield Field(top / "field", everything)
    finally:
        os.chdir(before)
        shutil.rmtree(top)


@pytest.mark.sweep
@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOENT, KeyboardInterrupt], ids=["EIO", "ENOENT", "Ctrl-C"])
def test_every_changing_call_fails(field: Field, fault: Any) -> None:
    """All old, or all new; nothing is left, and no descriptor open."""
    outcomes = set()
    for point in every_call(fault):
        exc = field.run(point.kernel)
        if not point.kernel.struck:
            assert exc is None
            break
        where = f"{fault} at {point.kernel.struck[0]}: {exc!r}"
        outcomes.add(field.now())
        if fault is KeyboardInterrupt:
            assert isinstance(exc, KeyboardInterrupt), where
            assert field.now() in ("old", "new"), where
        else:
            assert field.now() == ("new" if exc is None or isinstance(exc, errors.DurabilityError) else "old"), where
            assert exc is None or isinstance(exc, errors.AtomikOSError), where
        if isinstance(exc, errors.DurabilityError):  # at the mark; recovery of the folder leads to all the others
            atomik.recover("site")
            assert field.now() == "new", where
        assert not left_in(field.top), where
        assert not field.leaked(), where
    assert outcomes == {"old", "new"}
