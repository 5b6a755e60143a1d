"""Waiting for a journal's owner, or taking it over: not for oneself, and by the path that was given."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atomik
from atomik import errors
from tests.crash.deaths import die_at
from tests.support.kernels import Acting, installed
from tests.support.state import in_child, left_in
from tests.support.users import root

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 65534


def publish(*folders: Path | str) -> None:
    with atomik.transaction(overwrite=True, durable=False) as tx:
        for folder in folders:
            tx.file(Path(folder) / "one").write("new")
            tx.file(Path(folder) / "two").write("new")


def checkpoint(folder: Path) -> None:
    with atomik.file(folder / "checkpoint", overwrite=True) as f:
        f.write("saved")


def read(folder: Path) -> None:
    with atomik.reading(folder):
        pass


@pytest.mark.parametrize("action", [checkpoint, publish, read, atomik.recover])
def test_a_handler_in_the_midst_of_its_own_threads_commit(folder: Path, action: Callable[[Path], object]) -> None:
    """It gets an error at once, rather than after waiting for itself."""
    caught = []

    def handler(_: object) -> None:
        began = time.monotonic()
        with pytest.raises(errors.LockTimeoutError, match="this thread is committing to it") as refused:
            action(folder)
        caught.append((refused.value.errno, time.monotonic() - began < 30))

    first = [True]
    with installed(Acting("rename", handler, when=lambda _: bool(first and first.pop()))):
        publish(folder)
    assert caught == [(errno.EDEADLK, True)]
    assert sorted(os.listdir(folder)) == ["one", "two"]


def test_a_handler_in_a_reading_block(folder: Path) -> None:
    """A group and a folder would wait for the reader that they interrupt; a single file waits for nobody."""
    (folder / "set").mkdir()

    def replace(folder: Path) -> None:
        with atomik.folder(folder / "set", overwrite=True):
            pass

    with atomik.reading(folder):
        for action in (publish, replace):
            with pytest.raises(errors.LockTimeoutError, match="this thread is reading it") as refused:
                action(folder)
            assert refused.value.errno == errno.EDEADLK
        checkpoint(folder)
    assert sorted(os.listdir(folder)) == ["checkpoint", "set"]


@root
def test_relative_paths_below_a_closed_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are opened as they were given; messages name the whole path."""
    with tempfile.TemporaryDirectory() as home:
        work = Path(home, "work")
        (work / "x" / "y").mkdir(parents=True)
        for path in (Path(home), work, work / "x", work / "x" / "y"):
            path.chmod(0o777)
        for action in (_read_there, _recover_there):
            in_child(lambda: die_at(lambda: publish(work / "x", work / "x" / "y"), "rename", 2), become=NOBODY)
            monkeypatch.chdir(work)
            os.chmod(home, 0o700)
            assert in_child(action, become=NOBODY) == f"{work}/gone"
            os.chmod(home, 0o777)
            assert not left_in(work)


def _read_there() -> str:
    with atomik.reading("x", "."):
        assert not Path("x/one").exists()
    with pytest.raises(errors.MissingPathError) as caught, atomik.reading("gone"):
        pass
    return str(caught.value.filename)


def _recover_there() -> str:
    report = atomik.recover(".", recursive=True)
    assert {item.action for item in report.items} == {"undone", "untouched"}, report
    with pytest.raises(errors.MissingPathError) as caught:
        atomik.recover("gone")
    return str(caught.value.filename)


@pytest.mark.parametrize("recursive", [False, True])
def test_an_empty_path_is_no_folder(recursive: bool) -> None:
    """Least of all the uppermost one."""
    with pytest.raises(errors.MissingPathError):
        atomik.recover("", recursive=recursive)


@pytest.mark.sweep
def test_more_folders_than_descriptors(folder: Path) -> None:
    """The soft limit is raised while they are needed, as for the commit."""
    folders = [folder / str(number) for number in range(120)]
    for each in folders:
        each.mkdir()
        (each / "one").write_text("old")
        (each / "two").write_text("old")

    def work() -> tuple[int, int]:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        report = atomik.recover(folders[0])
        return len(report.items), resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    die_at(lambda: publish(*folders), "rename", 200)
    assert in_child(work) == (240, 128)
    assert {(each / name).read_text() for each in folders for name in ("one", "two")} == {"old"}
    assert not left_in(folder)
