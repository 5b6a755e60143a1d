"""As an ordinary user: folders that may not be written to, sticky folders, other owners."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from tests.support.kernels import Faulty, installed
from tests.support.state import NOBODY, left_in, tree

if TYPE_CHECKING:
    from collections.abc import Callable

Run = "Callable[..., Any]"


@pytest.fixture
def mine(open_folder: Path, unprivileged: Callable[..., Any]) -> Path:
    """A folder of the other user's own."""
    place = open_folder / "mine"
    unprivileged(os.mkdir, place)
    return place


@pytest.mark.sweep
@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("new_mode", [0o755, 0o555])
@pytest.mark.parametrize("old_mode", [None, 0o755, 0o555, 0o500])
def test_folders_without_write_permission(
    mine: Path, unprivileged: Callable[..., Any], old_mode: int | None, new_mode: int, others: int
) -> None:
    """A folder that its owner may not write to can be renamed within its parent only; it is published nevertheless."""

    def work() -> None:
        os.chdir(mine)
        if old_mode is not None:
            Path("d").mkdir()
            Path("d/old").touch()
            os.chmod("d", old_mode)
        with atomik.transaction(overwrite=True) as tx:
            for _ in range(others):
                tx.file("y")
            d = tx.folder("d", preserve="none")
            (d / "new").touch()
            os.chmod(d, new_mode)
        assert os.listdir("d") == ["new"]
        assert stat.S_IMODE(os.stat("d").st_mode) == new_mode
        assert left_in(mine) == []

    unprivileged(work)


@pytest.mark.parametrize("others", [0, 1])
def test_such_folders_are_undone(mine: Path, unprivileged: Callable[..., Any], others: int) -> None:
    """The same when the commit fails: the old one is back, with its mode."""

    def work() -> None:
        os.chdir(mine)
        Path("d").mkdir()
        Path("d/old").touch()
        os.chmod("d", 0o555)
        before = tree(mine)
        for number in range(1, 40):
            kernel = Faulty.at(number, 5)
            exc: Any = None
            with installed(kernel):
                try:
                    with atomik.transaction(overwrite=True) as tx:
                        for _ in range(others):
                            tx.file("y")
                        (tx.folder("d") / "new").touch()
                except errors.AtomikError as error:
                    exc = error
            if not kernel.struck or exc is None or isinstance(exc, errors.DurabilityError):
                atomik.recover(mine)
                assert os.listdir("d") == ["new"]
                return
            assert tree(mine) == before, (kernel.struck, exc)

    unprivileged(work)
    assert left_in(mine) == []


def test_path_of_a_folder_without_write_permission(mine: Path, unprivileged: Callable[..., Any]) -> None:
    """A program leaves a folder of mode 0555: published with that mode."""

    def work() -> None:
        with atomik.path(mine / "d") as name:
            name.mkdir()
            (name / "x").touch()
            name.chmod(0o555)
        assert stat.S_IMODE(os.stat(mine / "d").st_mode) == 0o555

    unprivileged(work)


def test_owner_that_cannot_be_kept(open_folder: Path, unprivileged: Callable[..., Any]) -> None:
    """A user who overwrites another's file becomes its owner, and the receipt says so; the user's own group gets nothing."""
    (open_folder / "x").write_text("root's")
    os.chmod(open_folder / "x", 0o640)

    def work() -> Any:
        output = atomik.file(open_folder / "x", overwrite=True)
        with output as f:
            f.write("mine")
        assert output.receipt is not None
        return output.receipt.items[0].not_preserved

    assert set(unprivileged(work)) >= {"owner", "group"}
    found = os.stat(open_folder / "x")
    assert found.st_uid == NOBODY
    assert stat.S_IMODE(found.st_mode) == 0o600


def test_root_keeps_the_owner(open_folder: Path, unprivileged: Callable[..., Any]) -> None:
    """Root's overwrite leaves a file to its owner."""
    unprivileged((open_folder / "x").touch)
    with atomik.file(open_folder / "x", overwrite=True) as f:
        f.write("by root")
    assert os.stat(open_folder / "x").st_uid == NOBODY


def test_sticky_folder(open_folder: Path, unprivileged: Callable[..., Any]) -> None:
    """In a sticky folder another user's file can be neither replaced nor removed; the user's own can."""
    sticky = open_folder / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "theirs").write_text("root's")

    def work() -> list[str]:
        os.chdir(sticky)
        with atomik.file("own") as f:
            f.write("1")
        with atomik.file("own", overwrite=True) as f:
            f.write("2")
        said = []
        for attempt in (overwrite, remove, both):
            try:
                attempt()
            except errors.AtomikError as exc:
                said.append(type(exc).__name__)
        return said

    def overwrite() -> None:
        with atomik.file("theirs", overwrite=True) as f:
            f.write("mine")

    def remove() -> None:
        with atomik.transaction() as tx:
            tx.remove("theirs")

    def both() -> None:
        with atomik.transaction(overwrite=True) as tx:
            tx.file("own").write("3")
            tx.file("theirs").write("3")

    assert len(unprivileged(work)) == 3
    assert (sticky / "theirs").read_text() == "root's"
    assert (sticky / "own").read_text() == "2"
    assert sorted(os.listdir(sticky)) == ["own", "theirs"]


def test_setgid_folder(open_folder: Path, unprivileged: Callable[..., Any]) -> None:
    """In a set-group-id folder, new files and folders get its group, as they would if made there."""
    place = open_folder / "shared"
    place.mkdir()
    os.chown(place, NOBODY, 4242)
    place.chmod(0o2775)

    def work() -> None:
        os.chdir(place)
        with atomik.transaction() as tx:
            tx.file("f")
            tx.folder("d")
            tx.path("p").touch()
        with atomik.file("g"):
            pass

    unprivileged(work)
    for name in "fdpg":
        assert os.stat(place / name).st_gid == 4242, name
    assert os.stat(place / "d").st_mode & stat.S_ISGID


def test_nobody_can_look_into_a_claim(open_folder: Path, unprivileged: Callable[..., Any]) -> None:
    """What root stages for 0600 is never readable for others, not even its names."""
    tx = atomik.transaction()
    staged = tx.folder(open_folder / "secret")
    (staged / "password").write_text("hush")

    def peep() -> str:
        with contextlib.suppress(PermissionError):
            return "".join(os.listdir(staged.parent))
        with contextlib.suppress(PermissionError):
            return (staged / "password").read_text()
        return ""

    assert unprivileged(peep) == ""
    tx.abort()
