"""Two writers in endless loops over the same three files, killed at random; a reader sees only whole generations."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

import atomik
from tests.support.state import left_in

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("one", "two", "three")


class Writers:
    """Two processes, each of which publishes one generation after the other until it is killed."""

    def __init__(self, *places: Path) -> None:
        self.places = places
        self.pids = [self._begin(), self._begin()]

    def _begin(self) -> int:
        pid = os.fork()
        if pid == 0:
            self._write_for_ever()
        return pid

    def _write_for_ever(self) -> NoReturn:
        try:
            for generation in range(1_000_000):
                with atomik.transaction(overwrite=True, durable=generation % 8 == 0) as tx:
                    for place in self.places:
                        tx.file(place).write(f"{os.getpid()}:{generation}")
        except BaseException:
            traceback.print_exc()
        os._exit(1)

    def replace(self, which: int) -> None:
        """Kill one, and begin another."""
        self._end(self.pids[which])
        self.pids[which] = self._begin()

    def _end(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "a writer ended by itself; its traceback is on stderr"

    def end(self) -> None:
        while self.pids:
            self._end(self.pids.pop())


@contextlib.contextmanager
def writers(*places: Path) -> Iterator[Writers]:
    for place in places:
        place.write_text("0:0")
    both = Writers(*places)
    try:
        yield both
    finally:
        both.end()


def generation(places: tuple[Path, ...]) -> str:
    """What a reader sees, which must be one and the same everywhere."""
    with atomik.reading(*{place.parent for place in places}):
        seen = {place.read_text() for place in places}
    assert len(seen) == 1, f"half of one, half of another: {seen}"
    return seen.pop()


def news(places: tuple[Path, ...], seen: set[str]) -> str:
    """A generation that was not seen before, waited for."""
    deadline = time.monotonic() + 60
    while (found := generation(places)) in seen | {"0:0"}:
        assert time.monotonic() < deadline, "nobody publishes"
        time.sleep(0.002)
    return found


def kill_at_random(places: tuple[Path, ...], times: int) -> set[str]:
    chance = random.Random(times)  # noqa: S311  the same moments each time, as far as the machine has it
    seen = set()
    with writers(*places) as both:
        for number in range(times):
            if number % 4 == 0:  # on a busy machine they may all die before they have published anything
                seen.add(news(places, seen))
            time.sleep(chance.uniform(0, 0.03))  # when it dies is what is tried
            both.replace(chance.randrange(2))
            seen.add(generation(places))
    seen.add(generation(places))
    folders = {place.parent for place in places}
    atomik.recover(*folders)
    for folder in folders:
        assert not left_in(folder), "left over after everything"
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no lock has outlived its owner
        finally:
            os.close(fd)
    return seen


@pytest.mark.sweep
def test_killed_writers_and_a_reader(folder: Path) -> None:
    """P4 and P6 with real processes, in one folder."""
    assert len(kill_at_random(tuple(folder / name for name in NAMES), 40)) > 3


@pytest.mark.parametrize("times", [5, pytest.param(15, marks=pytest.mark.sweep)])
def test_killed_writers_in_two_folders(folder: Path, times: int) -> None:
    """The same, with the files in two folders, so that recovery finds one from the other."""
    for name in ("a", "b"):
        (folder / name).mkdir()
    assert len(kill_at_random((folder / "a" / "one", folder / "b" / "two", folder / "a" / "three"), times)) > 1


@pytest.mark.slow
def test_writers_killed_five_hundred_times(folder: Path) -> None:
    """The same, 500 times."""
    assert len(kill_at_random(tuple(folder / name for name in NAMES), 500)) > 50
