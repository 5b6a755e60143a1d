"""``run_in``: any program works on a private copy of a folder; all of its changes are published, or none."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from atomik._api.run_in import refuse_where_impossible
from tests.support.lab.mounting import attached
from tests.support.seccomp import needs_seccomp, refuse
from tests.support.state import NOBODY, eventually, in_child, left_in
from tests.support.trees import mounts
from tests.support.users import as_executed, needs_root, no_admin, no_root

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND = [sys.executable, "-m", "atomik"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}


def as_nobody(function: Callable[..., Any], *args: Any) -> Any:
    """In a child that is an ordinary user, as if it had been executed as that user, in a folder that it may enter."""

    def work() -> Any:
        if not os.access(os.getcwd(), os.X_OK):
            os.chdir("/")
        as_executed()
        return function(*args)

    return in_child(work, become=NOBODY)


def directly(function: Callable[..., Any], *args: Any) -> Any:
    return in_child(function, *args)


def why_not(run: Callable[..., Any], place: Path) -> str:
    """Why it cannot work for a user here; "" if it can."""

    def ask() -> str:
        try:
            refuse_where_impossible(str(place))
        except errors.NamespaceError as exc:
            return str(exc)
        return ""

    return str(run(ask))


USERS = {"user": directly} if no_root() else {"root": directly, "user": as_nobody}


@pytest.fixture(params=USERS)
def run(request: pytest.FixtureRequest, open_folder: Path) -> Callable[..., Any]:
    """``run(function)``: call it in a child, as root and as an ordinary user."""
    chosen = USERS[request.param]
    if why := why_not(chosen, open_folder):
        pytest.skip(why)
    return chosen


@pytest.fixture
def here(open_folder: Path) -> Path:
    """A folder of root's, where a program can be run in `here / "F"`."""
    if why := why_not(directly, open_folder):
        pytest.skip(why)
    (open_folder / "F").mkdir()
    (open_folder / "F/a").write_text("old")
    return open_folder


# --- real programs ---------------------------------------------------------------------------------------------------
PROGRAMS = {
    "sh": "echo new > file; rm gone; mkdir -p x/y; mv moved x/y; chmod 751 folder; ln file hard; mkfifo pipe; chmod 750 .",
    "sed": "sed -i s/one/two/ file closed; sed -i s/x/y/ folder/inner",
    "tar": "tar -cf all.tar --exclude=all.tar . && mkdir out && tar -xpf all.tar -C out && rm all.tar",
    "make": r"printf 'install: ; install -D -m 755 file $(DESTDIR)/bin/tool && ln -sf tool $(DESTDIR)/bin/t\n' > Makefile"
    " && make -s install DESTDIR=root",
    "git": "git init -q -b main . && git add -A . && git commit -q -m one && git mv file other && git commit -q -m two"
    " && git checkout -q -b side HEAD~1 && rm .git/index",
    "sqlite3": "sqlite3 db 'create table t(x); insert into t values (1), (2); delete from t where x = 1; vacuum'",
    "rsync": "rsync -aHX folder/ copied/ && rsync -a --delete empty/ folder/",
    "patch": r"printf -- '--- file\n+++ file\n@@ -1 +1 @@\n-one\n+three\n' | patch -s -p0",
    "pip": "/usr/bin/python3 -m pip -q install --no-index --no-deps --no-compile --no-cache-dir --target site"
    " --disable-pip-version-check --root-user-action ignore ../../wheels/thing-1.0-py3-none-any.whl",
    "rm": "rm -rf -- * .[!.]*",
}

FIXED = {
    "HOME": "/nonexistent", "LC_ALL": "C", "PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in
       {"NAME": "A", "EMAIL": "a@example.org", "DATE": "2020-01-01T00:00:00Z"}.items()},
}  # fmt: skip


def fill(top: Path) -> None:
    """A folder with something of every kind in it."""
    for name in ("folder", "empty", "folder/setgid"):
        (top / name).mkdir(parents=True)
    (top / "folder/setgid").chmod(0o2775)
    for name, text, mode in (
        ("file", "one\n", 0o640), ("closed", "one\n", 0o444), ("gone", "", 0o644), ("moved", "m", 0o600),
        ("folder/inner", "x\n", 0o755), ("one of two", "linked", 0o644),
    ):  # fmt: skip
        (top / name).write_text(text)
        (top / name).chmod(mode)
    os.link(top / "one of two", top / "folder/two of two")
    os.symlink("nowhere", top / "folder/link")
    with contextlib.suppress(OSError):  # a filesystem without them
        os.setxattr(top / "file", "user.colour", b"red")
        os.setxattr(top / "folder", "user.colour", b"blue")
    with open(top / "sparse", "wb") as file:
        file.truncate(1 << 20)
    top.chmod(0o2755)


def shape(top: Path) -> dict[str, Any]:
    """Everything about a tree but inodes and times: kinds, modes, owners, content, attributes, and which names are one."""
    found: dict[str, Any] = {}
    first: dict[int, str] = {}
    for where, folders, files in os.walk(top):
        folders.sort()
        for name in (".", *sorted(folders), *sorted(files)):
            path = Path(where, name)
            status = path.lstat()
            content: Any = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes(), first.setdefault(status.st_ino, str(path.relative_to(top)))
            attributes = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            found[str(path.relative_to(top))] = oct(status.st_mode), status.st_uid, status.st_gid, content, attributes
    return found


def wheel(folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "thing-1.0-py3-none-any.whl", "w") as file:
        for name, text in {
            "thing/__init__.py": "x = 1\n",
            "thing-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n",
            "thing-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "thing-1.0.dist-info/RECORD": "thing/__init__.py,,\n",
        }.items():
            file.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text)


def missing(program: str) -> str | None:
    if program == "pip":
        done = (
            subprocess.run(["/usr/bin/python3", "-m", "pip", "--version"], capture_output=True)
            if Path("/usr/bin/python3").exists()
            else None
        )
        return None if done is not None and done.returncode == 0 else "no /usr/bin/python3 with pip"
    return None if shutil.which(program) else f"{program} is not installed"


@pytest.mark.sweep
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_result_is_that_of_a_run_without(run: Callable[..., Any], open_folder: Path, program: str) -> None:
    """Content, kinds, modes, owners, links and attributes are those of the same program run in the folder itself."""
    if why := missing(program):
        pytest.skip(why)

    def work() -> None:
        os.umask(0o022)
        wheel(open_folder / "wheels")
        for name in ("plain", "inside"):
            (open_folder / name).mkdir()
            fill(open_folder / name / "F")
        command = ["sh", "-ec", PROGRAMS[program]]
        subprocess.run(command, check=True, cwd=open_folder / "plain/F", env=FIXED, timeout=60)
        inside = open_folder / "inside/F"
        before = inside.stat().st_ino
        done = atomik.run_in(inside, command, cwd=inside, env=FIXED, check=True)
        assert done.receipt is not None
        assert inside.stat().st_ino != before
        assert shape(inside) == shape(open_folder / "plain/F")
        assert os.listdir(open_folder / "inside") == ["F"]

    run(work)


def test_what_the_program_sees(run: Callable[..., Any], open_folder: Path) -> None:
    """The same paths, the same working folder, the same user, no capabilities that the user did not have; and by no path
    the old content."""

    def work() -> None:
        top = open_folder / "F"
        (top / "sub").mkdir(parents=True)
        (top / "a").write_text("old")
        os.symlink(top, open_folder / "link")
        os.chdir(top / "sub")
        who = "id -u; id -g; grep CapEff /proc/self/status"
        script = f"echo new > ../a; pwd; cat {top}/a ../a ../../F/a {open_folder}/link/a; {who}"
        plain = subprocess.run(["sh", "-c", who], capture_output=True, text=True)
        done = atomik.run_in(top, ["sh", "-ec", script], capture_output=True, text=True)
        assert done.process.stderr == ""
        assert done.process.stdout == f"{top}/sub\n" + "new\n" * 4 + plain.stdout

    run(work)


# --- all or nothing --------------------------------------------------------------------------------------------------
def state(top: Path) -> dict[str, Any]:
    """Also inodes and times."""
    return {
        path: (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_mode)
        for path in map(str, (top, *top.rglob("*")))
        for status in [os.lstat(path)]
    }


@pytest.mark.parametrize("ending", ["exit 3", "kill -9 $$", "kill -TERM $$"])
def test_a_failing_program_changes_nothing(run: Callable[..., Any], open_folder: Path, ending: str) -> None:
    """Bytes, inodes and times are as they were, whatever it did; its exit status is returned."""

    def work() -> None:
        fill(open_folder / "F")
        before, was = shape(open_folder / "F"), state(open_folder)
        done = atomik.run_in(open_folder / "F", ["sh", "-c", f"cd {open_folder}/F; rm -rf *; echo > x; {ending}"])
        assert done.receipt is None
        assert done.process.returncode in (3, -9, -15)
        assert (shape(open_folder / "F"), state(open_folder / "F")) == (
            before, {path: known for path, known in was.items() if path != str(open_folder)},
        )  # fmt: skip
        assert os.listdir(open_folder) == ["F"]

    run(work)


def test_a_program_that_is_not_there(here: Path) -> None:
    """The error is that of subprocess, and nothing is left."""
    with pytest.raises(FileNotFoundError):
        atomik.run_in(here / "F", ["/no/such/program"])
    with pytest.raises(FileNotFoundError):
        atomik.run_in(here / "F", ["true"], cwd=here / "no such folder")
    with pytest.raises(subprocess.CalledProcessError):
        atomik.run_in(here / "F", ["false"], check=True)
    with pytest.raises(subprocess.TimeoutExpired):
        atomik.run_in(here / "F", ["sleep", "99"], timeout=0.1)
    assert os.listdir(here) == ["F"]


def test_a_program_inside_the_folder(here: Path) -> None:
    """A relative path to the program is one in the copy."""
    (here / "F/tool").write_text("#!/bin/sh\necho new > a\n")
    (here / "F/tool").chmod(0o755)
    atomik.run_in(here / "F", ["./tool"], cwd=here / "F", check=True)
    assert (here / "F/a").read_text() == "new\n"


@pytest.mark.sweep
def test_a_stranger_sees_whole_states_only(here: Path) -> None:
    """A reader in a loop finds all files of one version, and never a file missing."""
    names = [str(number) for number in range(30)]
    for name in names:
        (here / "F" / name).write_text("0")
    (here / "F/a").unlink()
    stop, seen, wrong = threading.Event(), set(), []

    def read() -> None:
        while not stop.is_set():
            fd = os.open(here / "F", os.O_RDONLY)
            found = []
            for name in names:
                with contextlib.suppress(FileNotFoundError), open(os.open(name, os.O_RDONLY, dir_fd=fd)) as file:
                    found.append(file.read())
            # Of a version that was displaced in the meantime, the files may be gone already.
            replaced = os.fstat(fd).st_ino != os.stat(here / "F").st_ino
            os.close(fd)
            seen.update(found)
            if len(set(found)) != 1 or not (replaced or len(found) == len(names)):
                wrong.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in range(1, 6):
            script = f'for name in *; do rm "$name"; sleep 0.002; echo {version} > "$name"; done'
            in_child(lambda script=script: atomik.run_in(here / "F", ["sh", "-ec", script], cwd=here / "F", check=True))
            assert eventually(lambda version=version: f"{version}\n" in seen or wrong)
    finally:
        stop.set()
        reader.join()
    assert wrong == []


def killed(command: list[str], folder: Path, seconds: float) -> None:
    """Run a command, and kill all of its processes after a time."""
    ours = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, start_new_session=True, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(ours.pid, signal.SIGKILL)
    ours.wait()
    assert eventually(lambda: not _runs(ours.pid))  # one that is dying holds its locks a moment longer


def _runs(group: int) -> bool:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its = path.read_text().rpartition(") ")[2].split()[:3]
            if int(its) == group and state not in "ZX":
                return True
    return False


@pytest.mark.sweep
def test_killed_at_any_moment(here: Path) -> None:
    """SIGKILL of atomik and the program: all old or all new, and `recover` removes what is left."""
    names = [str(number) for number in range(40)]
    script = 'for name in *; do echo "$0" > "$name"; done'
    (here / "F/a").unlink()
    for name in names:
        (here / "F" / name).write_text("0\n")
    chosen = random.Random(7)
    started = time.monotonic()
    command = [*COMMAND, "run", "--in", str(here / "F"), "--", "sh", "-c", script]
    subprocess.run([*command, "0"], cwd=here / "F", env=ENVIRONMENT, check=True)
    whole = time.monotonic() - started
    for version in range(1, 16):
        killed([*command, str(version)], here / "F", chosen.uniform(0.2, 1.6) * whole)
        found = {(here / "F" / name).read_text() for name in names}
        assert len(found) == 1
        atomik.recover(here)
        assert os.listdir(here) == ["F"]


# --- other people's changes ------------------------------------------------------------------------------------------
def meanwhile(here: Path, script: str, change: Callable[[], object], **options: Any) -> Any:
    """Run a script in ``F``; `change` happens when it is done and has not ended.  What `run_in` returns or raises."""
    os.mkfifo(here / "gate")
    done: list[Any] = []
    never: list[int] = []

    def work() -> None:
        command = ["sh", "-ec", f"{script}; read x < ../gate"]
        try:
            done.append(atomik.run_in(here / "F", command, cwd=here / "F", **options))
        except errors.AtomikError as exc:
            done.append(exc)
        finally:  # if it never reached the gate, nothing must wait for it there
            never.append(os.open(here / "gate", os.O_RDONLY | os.O_NONBLOCK))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with open(here / "gate", "w") as gate:  # opens when the program has come that far
            change()
            gate.write("go on\n")
    finally:
        thread.join()
        os.close(never.pop())
        os.unlink(here / "gate")
    return done[0]


CHANGES = {
    "written": lambda top: (top / "a").write_text("theirs"),
    "created": lambda top: (top / "c").write_text("theirs"),
    "removed": lambda top: (top / "a").unlink(),
    "mode": lambda top: (top / "a").chmod(0o600),
    "replaced": lambda top: (top.rename(top.parent / "G"), top.mkdir(), (top / "a").write_text("theirs")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_their_change_is_kept(here: Path, change: str) -> None:
    """What someone else changed in the folder in the meantime is a ConflictError, and their version is there afterwards."""
    theirs: dict[str, Any] = {}

    def do() -> None:
        CHANGES[change](here / "F")
        theirs.update(shape(here / "F"))

    found = meanwhile(here, "echo mine > b", do)
    assert isinstance(found, errors.ConflictError)
    assert shape(here / "F") == theirs
    assert left_in(here) == []


def test_the_last_writer_wins_if_asked(here: Path) -> None:
    """With `overwrite_changes` the result replaces what someone else changed."""
    write = lambda: (here / "F/a").write_text("theirs")  # noqa: E731
    found = meanwhile(here, "echo mine > b", write, overwrite_changes=True)
    assert found.receipt is not None
    assert ((here / "F/a").read_text(), (here / "F/b").read_text()) == ("old", "mine\n")


# --- processes that are left -----------------------------------------------------------------------------------------
LEAVING = "(trap '' TERM; sleep {seconds}; echo late > late) > /dev/null 2>&1 & :"


def test_background_refused(here: Path) -> None:
    """By default nothing is published while a process of the program's is alive; the error names it."""
    with pytest.raises(errors.StillRunningError, match=r"sleep|sh") as caught:
        atomik.run_in(here / "F", ["sh", "-c", "echo new > a;" + LEAVING.format(seconds=120)], cwd=here / "F")
    assert caught.value.pids
    assert ((here / "F/a").read_text(), os.listdir(here)) == ("old", ["F"])
    for pid in caught.value.pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_background_waited_for(here: Path) -> None:
    """``wait``: what it writes is a part of the result."""
    script = LEAVING.format(seconds=0.3)
    assert atomik.run_in(here / "F", ["sh", "-c", script], cwd=here / "F", background="wait").receipt
    assert (here / "F/late").read_text() == "late\n"


def test_background_killed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``kill``: also one that ignores SIGTERM; what it would have written is not there, and nobody else is hit."""
    from atomik._api import run_in

    monkeypatch.setattr(run_in, "_GRACE", 0.3)
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        script = "setsid sh -c \"trap '' TERM; while :; do sleep 0.1; done; echo late > late\" > /dev/null 2>&1 & :"
        assert atomik.run_in(here / "F", ["sh", "-c", script], cwd=here / "F", background="kill").receipt
        assert os.listdir(here / "F") == ["a"]
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.sweep
def test_a_daemon_that_hides_is_found_by_the_command(here: Path) -> None:
    """A process in another mount namespace, or one that may not be inspected, is still a descendant of ``atomik run``."""
    script = "import os, time, ctypes\nif os.fork(): os._exit(0)\nctypes.CDLL(None).unshare(0x20000)\ntime.sleep(8)"
    if no_admin():
        script = script.replace("unshare(0x20000)", "prctl(4, 0, 0, 0, 0)")
    done = subprocess.run(
        [*COMMAND, "run", "--in", "F", "--", sys.executable, "-c", script], cwd=here, env=ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=30,
    )  # fmt: skip
    assert done.returncode == 125
    assert b"left processes running" in done.stderr


# --- before the program starts ---------------------------------------------------------------------------------------
@needs_seccomp
@pytest.mark.parametrize(
    ("call", "number", "said"),
    [("unshare", errno.EPERM, "no user namespace"), ("unshare", errno.ENOSYS, "no mount namespace"),
     ("open_tree", errno.EPERM, "open_tree"), ("move_mount", errno.ENOSYS, "older than Linux 5.2, or a sandbox")],
)  # fmt: skip
def test_where_it_cannot_work(here: Path, call: str, number: int, said: str) -> None:
    """A sandbox that forbids a call is named before the program starts, and before anything is copied."""

    def work() -> None:
        refuse(number, call)
        with pytest.raises(errors.NamespaceError, match=said):
            atomik.run_in(here / "F", ["touch", str(here / "ran")])

    in_child(work)
    assert os.listdir(here) == ["F"]


@needs_root
def test_a_process_that_changed_its_user(open_folder: Path) -> None:
    """It belongs to root for the kernel until it executes a program; the error says so."""
    if why := why_not(as_nobody, open_folder):
        pytest.skip(why)

    def work() -> None:
        (open_folder / "F").mkdir()
        with pytest.raises(errors.NamespaceError, match="execute a program as the new user"):
            atomik.run_in(open_folder / "F", ["true"])

    in_child(work, become=NOBODY)


@mounts
def test_mounts_inside(here: Path) -> None:
    """A mount inside the folder, or the folder as a mount point, is refused."""
    (here / "F/m").mkdir()
    with attached("none", here / "F/m", "tmpfs"), pytest.raises(errors.MountPointError):
        atomik.run_in(here / "F", ["touch", str(here / "ran")])
    with attached("none", here / "F", "tmpfs"), pytest.raises(errors.MountPointError):
        atomik.run_in(here / "F", ["touch", str(here / "ran")])
    assert os.listdir(here) == ["F"]


def test_mistakes(here: Path) -> None:
    """Options that make no sense, and what is not a folder."""
    for option in ("preexec_fn", "user", "group", "extra_groups"):
        with pytest.raises(TypeError, match=option):
            atomik.run_in(here / "F", ["true"], **{option: 1})
    with pytest.raises(ValueError, match="background"):
        atomik.run_in(here / "F", ["true"], background="later")  # type: ignore[arg-type]
    with pytest.raises(errors.MissingPathError):
        atomik.run_in(here / "G", ["true"])
    with pytest.raises(errors.AtomikOSError):
        atomik.run_in(here / "F/a", ["true"])
    with pytest.raises(errors.FileAlreadyExistsError):
        atomik.run_in(here / "F", ["true"], keep_on_failure=here / "F")


def test_a_link_and_a_dot(here: Path) -> None:
    """A link means the folder it leads to; ``.`` the working folder."""
    os.symlink("F", here / "link")
    assert atomik.run_in(here / "link", ["sh", "-c", "echo 1 > link/a"], cwd=here).receipt
    assert (os.readlink(here / "link"), (here / "F/a").read_text()) == ("F", "1\n")

    def inside() -> None:
        os.chdir(here / "F")
        assert atomik.run_in(".", ["sh", "-c", "echo 2 > a"]).receipt

    in_child(inside)
    assert (here / "F/a").read_text() == "2\n"


def test_kept_on_failure(here: Path) -> None:
    """The copy of a failed run is there to look at; after one that succeeded nothing is."""
    kept = here / "kept"
    atomik.run_in(here / "F", ["sh", "-c", "echo half > a; exit 1"], cwd=here / "F", keep_on_failure=kept)
    assert ((kept / "a").read_text(), (here / "F/a").read_text()) == ("half\n", "old")
    shutil.rmtree(kept)
    atomik.run_in(here / "F", ["true"], keep_on_failure=kept)
    assert sorted(os.listdir(here)) == ["F"]


def test_what_cannot_be_kept_hides_no_exception(here: Path) -> None:
    """The program has taken the name for itself; the caller gets its own exception, with a note."""
    program = ["sh", "-c", "mkdir ../kept; exit 1"]
    with pytest.raises(subprocess.CalledProcessError) as caught:
        atomik.run_in(here / "F", program, cwd=here / "F", keep_on_failure=here / "kept", check=True)
    assert "cannot keep the result" in "".join(caught.value.__notes__)
    assert (sorted(os.listdir(here)), os.listdir(here / "kept")) == (["F", "kept"], [])


def test_doctor_says_the_same(here: Path) -> None:
    """``atomik doctor`` tries it."""
    done = subprocess.run([*COMMAND, "doctor", "--json", str(here)], capture_output=True, env=ENVIRONMENT, check=True)
    assert json.loads(done.stdout)["folders"][0]["run_in"] == {"works": True, "reason": ""}
