"""Compare-and-swap: what was observed must still be there, before the swap and after it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import Observation, errors, observe
from tests.support.kernels import Acting, installed
from tests.support.state import tree

if TYPE_CHECKING:
    from collections.abc import Callable


def replace(path: str) -> None:
    Path("theirs").write_text("old")
    os.utime("theirs", ns=(0, os.stat(path).st_mtime_ns))
    os.rename("theirs", path)


CHANGES: dict[str, Callable[[str], Any]] = {
    "replaced": replace,
    "removed": os.unlink,
    "longer": lambda path: Path(path).write_text("longer than before"),
    "touched": lambda path: os.utime(path, ns=(0, 0)),
    "chmod": lambda path: os.chmod(path, 0o600),
}


@pytest.mark.parametrize("digest", [False, True])
def test_unchanged(folder: Path, digest: bool) -> None:
    """What is still there is overwritten, without overwrite=True."""
    Path("x").write_text("old")
    seen = observe("x", digest=digest)
    assert (seen.path, seen.size, seen.absent) == (str(folder / "x"), 3, False)
    assert (seen.digest is not None) == digest
    with atomik.file("x", expect=seen) as f:
        f.write("new")
    assert Path("x").read_text() == "new"


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_before_the_commit(folder: Path, change: str, others: int) -> None:
    """Every change between observation and commit is a conflict; their version is kept, and no other item is published."""
    Path("x").write_text("old")
    seen = observe("x")
    with atomik.transaction() as tx:
        tx.file("x", expect=seen).write("new")
        for _ in range(others):
            tx.file("y")
        CHANGES[change]("x")
        after = {name: value for name, value in tree(folder).items() if ".atomik-" not in name}
        with pytest.raises(errors.ConflictError, match="observe it again") as caught:
            tx.commit()
    assert caught.value.filename == str(folder / "x")
    assert tree(folder) == after


@pytest.mark.parametrize("change", ["replaced", "removed", "longer", "touched"])
def test_changed_at_the_last_moment(folder: Path, change: str) -> None:
    """Between the last check and the swap: found after it, because what was displaced is in the slot, and given back."""
    Path("x").write_text("old")
    seen = observe("x", digest=True)
    with atomik.transaction() as tx:
        tx.file("x", expect=seen).write("new")
        kernel = Acting("rename", lambda call: CHANGES[change]("x"), when=lambda call: kernel.acted == 0)
        with installed(kernel), pytest.raises(errors.ConflictError):
            tx.commit()
    assert kernel.acted == 1
    assert os.path.exists("x") == (change != "removed")
    if change == "longer":
        assert Path("x").read_text() == "longer than before"
    elif change != "removed":
        assert Path("x").read_text() == "old"


def test_content_changed_behind_equal_times(folder: Path) -> None:
    """The digest sees what inode, size and times do not show."""
    Path("x").write_text("old")
    seen = observe("x", digest=True)
    with pytest.raises(errors.ConflictError), atomik.file("x", expect=seen):
        times = os.stat("x")
        with open("x", "r+") as f:
            f.write("OLD")
        os.utime("x", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert Path("x").read_text() == "OLD"


@pytest.mark.parametrize("expect", ["absent", "observed"])
def test_absent(folder: Path, expect: str) -> None:
    """Expected to be absent: created when it is, an error when it is not."""
    seen: Any = observe("x") if expect == "observed" else "absent"
    if expect == "observed":
        assert seen.absent
        assert seen.identity is None
    with atomik.transaction(overwrite=True) as tx:
        tx.file("x", expect=seen).write("1")
    assert Path("x").read_text() == "1"
    with pytest.raises((errors.ConflictError, errors.FileAlreadyExistsError)), atomik.transaction(overwrite=True) as tx:
        tx.file("x", expect=seen)
    assert Path("x").read_text() == "1"


def test_absent_and_then_there(folder: Path) -> None:
    """Created by someone else between staging and commit."""
    seen = observe("x")
    with pytest.raises((errors.ConflictError, errors.FileAlreadyExistsError)), atomik.file("x", expect=seen):
        Path("x").write_text("theirs")
    with pytest.raises(errors.FileAlreadyExistsError), atomik.file("z", expect="absent", overwrite=True):
        Path("z").write_text("theirs")
    assert {name: Path(name).read_text() for name in os.listdir()} == {"x": "theirs", "z": "theirs"}


def test_folders_and_links(folder: Path) -> None:
    """Folders are compared by identity and the changes of their own entries, links as themselves."""
    Path("d").mkdir()
    Path("link").symlink_to("nowhere")
    seen, link = observe("d"), observe("link", digest=True)
    assert link.digest is None
    with atomik.transaction() as tx:
        tx.file("link", expect=link).write("1")
        tx.folder("d", expect=seen)
    assert Path("link").read_text() == "1"
    seen = observe("d")
    with pytest.raises(errors.ConflictError), atomik.folder("d", expect=seen):
        Path("d/theirs").touch()
    assert os.listdir("d") == ["theirs"]


def test_observation_is_a_value(folder: Path) -> None:
    """It can be compared, hashed, and sent to another process."""
    Path("x").touch()
    first, second = observe("x"), observe(b"x")  # type: ignore[arg-type]
    assert first == second
    assert hash(first) == hash(second)
    assert pickle.loads(pickle.dumps(first)) == first
    Path("d/sub").mkdir(parents=True)
    tree = pickle.loads(pickle.dumps(observe("d")))
    Path("d/sub/y").touch()
    with pytest.raises(errors.ConflictError, match="'sub/y' in it was changed"), atomik.folder("d", True, expect=tree):  # noqa: FBT003
        pass
    with pytest.raises(AttributeError):
        first.size = 3  # type: ignore[misc]
    assert isinstance(first, Observation)


def test_observing_what_cannot_be(folder: Path) -> None:
    """A missing folder is an error, a missing name is an observation."""
    with pytest.raises(errors.MissingPathError):
        observe("no/x")
    with pytest.raises(errors.InvalidDestinationError):
        observe("")
    os.mkfifo("fifo")
    assert observe("fifo", digest=True).digest is None


def test_a_fifo_does_not_block(folder: Path) -> None:
    """Neither observing nor updating waits for a process at the other end."""
    os.mkfifo("x")
    with pytest.raises(errors.AtomikError), atomik.update("x"):
        pass
