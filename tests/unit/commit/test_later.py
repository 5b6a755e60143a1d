"""``cleanup="later"``: a thread deletes what was displaced."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

import atomik
from atomik._commit import later
from tests.support.kernels import Acting, Faulty, installed
from tests.support.state import left_in

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def joined() -> Iterator[None]:
    """No thread is left, whatever the test does."""
    yield
    later.wait()


class Held:
    """A kernel in which the deletion waits at its first unlink in a displaced folder."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.kernel = Acting("unlink", self._wait, when=lambda call: call.args[0] == "old")

    def _wait(self, _: object) -> None:
        self.reached.set()
        assert self.go_on.wait(30)


def make_old(name: str = "ds") -> None:
    os.mkdir(name)
    Path(name, "old").write_text("old")


def publish(name: str = "ds", **options: object) -> atomik.Receipt:
    output = atomik.folder(name, overwrite=True, cleanup="later", **options)  # type: ignore[arg-type]
    with output as new:
        (new / "new").write_text("new")
    assert output.receipt is not None
    return output.receipt


def test_the_commit_does_not_wait(folder: Path) -> None:
    """It is published, durable and unlocked, and the old version is still being deleted; others publish in the meantime."""
    make_old()
    held = Held()
    with installed(held.kernel):
        receipt = publish()
        assert held.reached.wait(30)
        assert (os.listdir("ds"), receipt.state, receipt.leftovers) == (["new"], atomik.State.COMMITTED, ())
        assert [name for name in os.listdir() if name != "ds"], "the old version is still there"
        assert [item.action for item in atomik.recover(".").items] == ["live"]
        publish(resume=True)
        atomik.write_text("other", "other")
        held.go_on.set()
        later.wait()
    assert (sorted(os.listdir()), os.listdir("ds")) == (["ds", "other"], ["new"])


def test_in_a_transaction(folder: Path) -> None:
    """Of several folders in several parents; files need no thread."""
    os.mkdir("b")
    for name in ("ds", "b/ds"):
        make_old(name)
    held = Held()
    with installed(held.kernel):
        with atomik.transaction(overwrite=True, cleanup="later") as tx:
            (tx.folder("ds") / "new").touch()
            tx.remove("b/ds")
            tx.file("b/file").write("new")
        assert held.reached.wait(30)
        held.go_on.set()
        later.wait()
    assert (left_in(folder), os.listdir("b")) == ([], ["file"])
    with atomik.transaction(overwrite=True, cleanup="later") as tx:
        tx.file("b/file").write("newer")
        tx.file("b/other").write("new")
    assert not later._threads, "nothing to delete but files"


def test_a_failure_is_logged(folder: Path) -> None:
    """It is not in the receipt, because that was returned before; recovery deletes the rest."""
    make_old()
    with installed(Faulty.every("rmdir", errno.EIO)), structlog.testing.capture_logs() as events:
        assert publish().leftovers == ()
        later.wait()
    failed = [event for event in events if event["event"] == "cleanup.failed"]
    assert [(event["log_level"], os.path.dirname(event["path"]).startswith(str(folder))) for event in failed] == [
        ("warning", True)
    ]
    assert left_in(folder)
    assert atomik.recover(".").clean
    assert os.listdir() == ["ds"]


def test_what_readers_have_pinned(folder: Path) -> None:
    make_old()
    with atomik.snapshot("ds") as path:
        publish()
        later.wait()
        assert (path / "old").read_text() == "old"
    publish()
    later.wait()
    assert os.listdir() == ["ds"]


def test_a_rollback_deletes_at_once(folder: Path) -> None:
    """What was staged is not a displaced folder."""
    make_old()
    with pytest.raises(RuntimeError), atomik.folder("ds", overwrite=True, cleanup="later") as new:
        (new / "new").touch()
        raise RuntimeError
    assert (later._threads, os.listdir(), os.listdir("ds")) == (set(), ["ds"], ["old"])


def test_without_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none can be started, the commit does it."""

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    make_old()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    publish()
    assert os.listdir() == ["ds"]


@pytest.mark.parametrize("exception", [RuntimeError("of a handler"), IndexError(), TimeoutError(), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["starting", "deleting"])
def test_what_a_handler_raises_there_goes_on(folder: Path, where: str, exception: BaseException) -> None:
    """While the thread is started, or while there are none and the commit deletes: it says nothing about threads, and is no
    failure of the deletion (I13).  The new version stays."""
    arrived: list[object] = []

    def strike(_: object) -> None:
        arrived.append(exception)
        raise exception

    def start(thread: threading.Thread) -> None:
        if where == "starting" and not arrived:
            strike(thread)
        raise RuntimeError("can't start new thread")

    make_old()
    kernel = Acting("unlink", strike, when=lambda _: where == "deleting" and not arrived)
    with pytest.MonkeyPatch.context() as patch, installed(kernel), pytest.raises(type(exception)) as caught:
        patch.setattr(threading.Thread, "start", start)
        publish()
    assert caught.value is exception
    assert os.listdir("ds") == ["new"]
    atomik.recover(folder)
    assert os.listdir() == ["ds"]


def test_a_wrong_word(folder: Path) -> None:
    with pytest.raises(ValueError, match="'now' or 'later'"):
        atomik.transaction(cleanup="never")  # type: ignore[arg-type]


def test_a_forked_child_does_not_touch_it(folder: Path) -> None:
    """I11: neither the jobs nor their descriptors."""
    make_old()
    held = Held()
    with installed(held.kernel):
        publish()
        assert held.reached.wait(30)
        child = os.fork()
        if not child:
            later.wait()
            os._exit(10 if later._jobs or left_in(folder) == [] else 0)
        assert os.waitpid(child, 0)[1] == 0
        held.go_on.set()
        later.wait()
    assert left_in(folder) == []


PROGRAM = """
import os, sys, time, threading, atomik
from atomik._commit import later
from atomik._system import kernel

class Slow(kernel.Kernel):
    def unlink(self, name, fd):
        if name == "old":
            os.write(1, b"x")
            time.sleep(float(sys.argv[1]))
        super().unlink(name, fd)

kernel.install(Slow())
with atomik.folder("ds", overwrite=True, cleanup="later") as new:
    (new / "new").touch()
"""


def _program(seconds: float) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(seconds)], stdout=subprocess.PIPE, env=environment)


@pytest.mark.parametrize("killed", [False, True])
def test_the_end_of_the_program(folder: Path, killed: bool) -> None:
    """It waits for the thread; a death leaves the rest to recovery."""
    make_old()
    program = _program(60 if killed else 0.2)
    assert program.stdout is not None
    with program.stdout:
        assert program.stdout.read(1) == b"x"
        if killed:
            program.send_signal(signal.SIGKILL)
        assert program.wait(30) == (-signal.SIGKILL if killed else 0)
    assert (bool(left_in(folder)), os.listdir("ds")) == (killed, ["new"])
    assert atomik.recover(".").clean
    assert os.listdir() == ["ds"]
