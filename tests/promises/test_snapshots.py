"""A reader with a snapshot sees one whole version, for as long as it wants, whatever happens to publishers and readers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atomik
from tests.crash.deaths import every_death
from tests.support.state import NOBODY, eventually, in_child, left_in
from tests.support.users import no_root

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.sweep

FILES = 40

PUBLISHER = """
import sys, time, atomik
number = 0
while True:
    number += 1
    began = time.monotonic()
    with atomik.folder(sys.argv[1], overwrite=True, durable=False, cleanup=sys.argv[2]) as new:
        for each in range(40):
            (new / str(each)).write_text(str(number))
    if number == 2:
        print("publishes", flush=True)
    atomik.write_text(sys.argv[3], str(number), overwrite=True, durable=False)
    time.sleep(max(0, 0.01 - (time.monotonic() - began)))
"""


@pytest.fixture(params=["now", "later"])
def publisher(request: pytest.FixtureRequest, open_folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that replaces ``ds`` every 10 ms, or as fast as it can."""
    environment = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}
    arguments = [str(open_folder / "ds"), request.param, str(open_folder / "number")]
    command = [sys.executable, "-c", PUBLISHER, *arguments]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, umask=0o022)
    assert program.stdout is not None
    with program.stdout:
        assert program.stdout.readline() == "publishes\n"
    yield program
    program.kill()
    program.wait()
    atomik.recover(open_folder)


def read_slowly(folder: Path, seconds: float) -> tuple[set[str], int]:
    """What the files say, read one by one over this many seconds, or longer until the publisher has gone on; and how many
    there were."""
    number = folder / "number"
    with atomik.snapshot(folder / "ds") as path:
        before, found = int(number.read_text()), []
        for each in range(FILES):
            found.append((path / str(each)).read_text())
            time.sleep(seconds / FILES)
        assert eventually(lambda: int(number.read_text()) > before + 1), "the publisher waited for the reader"
        found.append((path / "0").read_text())
        names = os.listdir(path)
    return set(found), len(names)


@pytest.mark.parametrize("who", [None, pytest.param(NOBODY, marks=pytest.mark.root)], ids=["same user", "other user"])
def test_a_reader_that_takes_a_second(publisher: subprocess.Popen[str], open_folder: Path, who: int | None) -> None:
    """It sees one version; the publisher goes on all the time, and keeps only what is being read."""
    if who is not None and (why := no_root()):
        pytest.skip(why)
    open_folder.chmod(0o755)
    for _ in range(3):
        if who is None:
            versions, names = read_slowly(open_folder, 1.0)
        else:
            versions, names = in_child(read_slowly, open_folder, 1.0, become=who)
        assert (len(versions), names) == (1, FILES), "two versions, or one that was being deleted"
    _only_one_is_left(publisher, open_folder)


def _only_one_is_left(publisher: subprocess.Popen[str], folder: Path) -> None:
    """When the readers have ended, so have the versions that they read."""
    gone = eventually(lambda: not any(name.endswith("-pinned") for name in os.listdir(folder)))
    assert gone, "the publisher does not delete what nobody reads any more"
    assert publisher.poll() is None


def test_readers_and_publisher_are_killed(publisher: subprocess.Popen[str], open_folder: Path) -> None:
    """A killed reader keeps nothing; a killed publisher deletes nothing that is read."""
    ready, tell = os.pipe()
    reader = os.fork()
    if not reader:
        try:
            with atomik.snapshot(open_folder / "ds"):
                os.write(tell, b"x")
                signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    os.kill(reader, signal.SIGKILL)
    os.waitpid(reader, 0)
    _only_one_is_left(publisher, open_folder)
    with atomik.snapshot(open_folder / "ds") as path:
        version = (path / "0").read_text()
        time.sleep(0.1)
        publisher.kill()
        publisher.wait()
        atomik.recover(open_folder, discard=True)
        assert {(path / str(each)).read_text() for each in range(FILES)} == {version}
    atomik.recover(open_folder)
    assert left_in(open_folder) == []


@pytest.mark.parametrize("resume", [False, True], ids=["plain", "resume"])
def test_a_publisher_dies_at_every_call(folder: Path, resume: bool) -> None:
    """And so may the recovery of that, which deletes nothing that is read either."""

    def publish() -> None:
        with atomik.folder("ds", overwrite=True, resume=resume) as new:
            _fill(new, "new")

    Path("ds").mkdir()
    _fill(Path("ds"), "old")
    for point in every_death(publish):
        seen = _look(Path("ds"))
        with atomik.snapshot("ds") as path:
            _recovery_dies(path, seen, str(point))
            publish()
            assert _look(path) == seen, str(point)
        atomik.recover(".", discard=True)
        assert (os.listdir(), _look(Path("ds"))) == (["ds"], {"new"}), str(point)
        _fill(Path("ds"), "old")


def _fill(folder: Path, text: str) -> None:
    for each in "abc":
        (folder / each).write_text(text)


def _look(folder: Path) -> set[str]:
    return {(folder / each).read_text() for each in "abc"}


def _recovery_dies(path: Path, seen: set[str], where: str) -> None:
    """At every so manieth call, as far as there is something to recover; then it comes to its end."""
    for again in every_death(lambda: atomik.recover("."), step=3):
        assert _look(path) == seen, f"{where}, {again}"
    atomik.recover(".")


def test_a_publisher_dies_under_a_reader(folder: Path) -> None:
    """The reader was there before: what it reads survives every death, its recovery, and the next publication."""
    with atomik.folder("ds") as new:
        (new / "a").write_text("0")
    number = 0

    def publish() -> None:
        with atomik.folder("ds", overwrite=True) as new:
            (new / "a").write_text(str(number))

    for number in range(1, 100):
        with atomik.snapshot("ds") as path:
            before = (path / "a").read_text()
            point = next(iter(every_death(publish, first=number)))
            atomik.recover(".")
            publish()
            assert (path / "a").read_text() == before, str(point)
            assert any(name.endswith("-pinned") for name in os.listdir()), str(point)
        publish()
        assert os.listdir() == ["ds"], str(point)
        if point.returned:
            return
    pytest.fail("it never came to its end")
