"""``run_in``: programs that do what programs do: daemons, locks, watches, other users' rights, a full disk; in both ways."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from atomik._api.private_layer import PrivateLayer
from tests.promises.test_run_in import COMMAND, ENVIRONMENT, directly, here, run, shape  # noqa: F401  fixtures
from tests.support.lab import mounts
from tests.support.lab.need import need
from tests.support.state import left_in
from tests.support.users import no_admin

if TYPE_CHECKING:
    from collections.abc import Callable

# ruff: noqa: F811  fixtures that are imported

pytestmark = pytest.mark.sweep

both = pytest.mark.parametrize("changes_only", [False, True], ids=["clone", "changes"])


@pytest.fixture(autouse=True)
def layers(request: pytest.FixtureRequest, open_folder: Path) -> None:
    """Skips where the filesystem carries no layer, as the overlay of a container does not."""
    if request.node.callspec.params.get("changes_only") and (why := directly(PrivateLayer.why_not, open_folder)):
        pytest.skip(why)


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


@both
def test_a_daemon(here: Path, changes_only: bool) -> None:
    """A process that the program leaves behind is refused, waited for, or ended; it cannot change what is published later."""
    script = "setsid sh -c 'sleep 60; echo late > a' > /dev/null 2>&1 & echo new > b"
    options: Any = {"cwd": here / "F", "changes_only": changes_only}
    with pytest.raises(errors.StillRunningError) as caught:
        atomik.run_in(here / "F", ["sh", "-c", script], **options)
    for pid in caught.value.pids:
        os.kill(pid, 9)
    assert (os.listdir(here / "F"), left_in(here)) == (["a"], [])
    assert atomik.run_in(here / "F", ["sh", "-c", script], background="kill", **options).receipt is not None
    assert sorted(os.listdir(here / "F")) == ["a", "b"]
    assert (here / "F/a").read_text() == "old"
    script = "setsid sh -c 'sleep 0.2; echo late > a' > /dev/null 2>&1 &"
    assert atomik.run_in(here / "F", ["sh", "-c", script], background="wait", **options).receipt is not None
    assert (here / "F/a").read_text() == "late\n"


@both
def test_it_changes_its_working_folder(run: Callable[..., Any], open_folder: Path, changes_only: bool) -> None:
    """Away and back, and into a folder that it has made and renamed."""

    def work() -> None:
        top = open_folder / "F"
        top.mkdir()
        script = (
            f"cd /; cd {top}; mkdir x; cd x; mv ../x ../y; echo here > file; cd ..; cat y/file; cd ..; cat F/y/file"
        )
        done = atomik.run_in(top, ["sh", "-ec", script], changes_only=changes_only, capture_output=True, text=True)
        assert (done.process.stdout, done.process.stderr) == ("here\nhere\n", "")
        assert (top / "y/file").read_text() == "here\n"

    run(work)


@both
@pytest.mark.parametrize("script", ["rmdir F", "mv F G", "rm -rf F", "mv F/a F/b; ln -s F G; rm -rf G/ F"])
def test_the_folder_itself_stays(here: Path, script: str, changes_only: bool) -> None:
    """It can be neither removed nor renamed; a program that tries fails, and nothing happens to the folder."""
    done = atomik.run_in(
        here / "F", ["sh", "-c", script], cwd=here, stderr=subprocess.DEVNULL, changes_only=changes_only
    )
    assert (done.receipt, (here / "F/a").read_text(), os.listdir(here / "F")) == (None, "old", ["a"])


@both
def test_locks(here: Path, changes_only: bool) -> None:
    """flock and fcntl locks work among the processes of the program."""
    code = """
import fcntl, os, sys
file = open("a", "r+")
fcntl.flock(file, fcntl.LOCK_EX)
pid = os.fork()
if pid == 0:
    try:
        fcntl.flock(open("a", "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os._exit(0)
    os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("new")
"""
    assert atomik.run_in(here / "F", python(code), cwd=here / "F", changes_only=changes_only).receipt is not None
    assert (here / "F/a").read_text() == "new"


@both
def test_watches(here: Path, changes_only: bool) -> None:
    """inotify tells the program of its own changes."""
    code = """
import ctypes, os
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(os.O_NONBLOCK)
assert libc.inotify_add_watch(fd, b".", 0x180) > 0
open("new", "w").close()
os.rename("new", "newer")
assert os.read(fd, 4096).count(b"new") == 2
"""
    assert atomik.run_in(here / "F", python(code), cwd=here / "F", changes_only=changes_only).receipt is not None


@both
def test_mapped_memory(here: Path, changes_only: bool) -> None:
    """What was written through a shared mapping is published, also when nobody synced it."""
    code = """
import mmap
with open("a", "r+b") as file:
    file.truncate(8192)
    memory = mmap.mmap(file.fileno(), 8192)
memory[4096:4099] = b"new"
"""
    assert atomik.run_in(here / "F", python(code), cwd=here / "F", changes_only=changes_only).receipt is not None
    assert (here / "F/a").read_bytes()[4096:4099] == b"new"


@both
@pytest.mark.root
def test_a_set_user_id_program(here: Path, changes_only: bool) -> None:
    """For root it changes the user as always, and set-id bits that the program sets are kept."""
    if why := no_admin():  # else it runs in a user namespace, which has no other user
        pytest.skip(why)
    (here / "F").chmod(0o777)
    code = "import os; os.setuid(1); os.setgid; open('b', 'w').close(); os.chmod('b', 0o4755)"
    assert atomik.run_in(here / "F", python(code), cwd=here / "F", changes_only=changes_only).receipt is not None
    found = (here / "F/b").stat()
    assert (found.st_uid, oct(found.st_mode)) == (1, "0o104755")


@both
@pytest.mark.filesystems
@pytest.mark.root
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_disk(kind: str, changes_only: bool) -> None:
    """The program gets ENOSPC; that it fails leaves everything as it was, and nothing behind."""
    need(mounts.missing(kind))
    with mounts.mounted(kind) as place:
        top = place.folder / "F"
        top.mkdir()
        (top / "a").write_text("old")
        free = os.statvfs(top)
        size = (free.f_bavail * free.f_frsize >> 20) + 64
        before = shape(place.folder)
        code = f"""
import os
fd = os.open('big', os.O_CREAT | os.O_WRONLY)
for _ in range({size}):
    os.write(fd, bytes(1 << 20))
"""
        done = atomik.run_in(top, python(code), cwd=top, changes_only=changes_only, stderr=subprocess.PIPE)
        assert os.strerror(errno.ENOSPC).encode() in done.process.stderr
        assert (done.receipt, shape(place.folder), left_in(place.folder)) == (None, before, [])


@both
def test_atomik_itself(here: Path, changes_only: bool) -> None:
    """A program that uses atomik, on files and on a private copy of a folder within."""
    inner = [*COMMAND, "run", "--in", "sub", "--", "sh", "-c", "echo inner > sub/b"]
    (here / "F/sub").mkdir()
    script = f'printf new | {sys.executable} -m atomik write --overwrite a && exec "$@"'
    options: Any = {"cwd": here / "F", "changes_only": changes_only, "env": ENVIRONMENT, "capture_output": True}
    done = atomik.run_in(here / "F", ["sh", "-c", script, "sh", *inner], **options)
    assert (done.process.returncode, done.process.stderr) == (0, b"")
    assert ((here / "F/a").read_text(), (here / "F/sub/b").read_text(), left_in(here)) == ("new", "inner\n", [])
