"""Mistakes show when an output is staged, as the error that they are, naming the thing and the option."""

from __future__ import annotations

import gc
import os
import pickle
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from tests.support.users import NOBODY, as_user, no_devices, root

if TYPE_CHECKING:
    from collections.abc import Callable

STRANGER = 65533


def _refused(stage: Callable[[atomik.Transaction], object], kind: type[BaseException]) -> BaseException:
    """The error of staging; the transaction stays usable."""
    with atomik.transaction(overwrite=True) as tx:
        with pytest.raises(kind) as caught:
            stage(tx)
        tx.file("after").write("x")
    assert Path("after").read_text() == "x"
    return caught.value


@pytest.mark.parametrize("option", ["base", "tmp_dir"])
def test_an_option_that_leads_nowhere(folder: Path, option: str) -> None:
    """The error names the path that was given for the option, not the destination, which exists."""
    Path("site").mkdir()
    options: dict[str, Any] = {option: folder / "templates"}
    exc = _refused(lambda tx: tx.folder("site", **options), errors.MissingPathError)
    assert isinstance(exc, errors.MissingPathError)
    assert exc.filename == str(folder / "templates")
    assert option != "base" or "base=" in str(exc)


@root
@pytest.mark.parametrize("work", ["file", "remove", "move away", "move over", "symlink", "path", "backup"])
def test_a_strangers_file_in_a_sticky_folder(open_folder: Path, work: str) -> None:
    """The kernel would refuse it at the commit, hours later; PermissionError at staging, and nothing is left."""
    open_folder.chmod(0o1777)
    (open_folder / "state").write_text("theirs")
    os.chown(open_folder / "state", STRANGER, STRANGER)
    (open_folder / "state").chmod(0o666)
    (open_folder / "mine").write_text("mine")
    os.chown(open_folder / "mine", NOBODY, NOBODY)
    state, mine = open_folder / "state", open_folder / "mine"

    def stage() -> str:
        tx = atomik.transaction(overwrite=True)
        programs: dict[str, Callable[[], object]] = {
            "file": lambda: tx.file(state),
            "remove": lambda: tx.remove(state),
            "move away": lambda: tx.move(state, open_folder / "else"),
            "move over": lambda: tx.move(mine, state),
            "symlink": lambda: tx.symlink(state, "x"),
            "path": lambda: tx.path(state),
            "backup": lambda: tx.file(mine, backup="state"),
        }
        try:
            programs[work]()
        except PermissionError as exc:
            return f"refused: {exc.filename}"
        finally:
            tx.abort()
        return "accepted"

    assert as_user(NOBODY, stage) == repr(f"refused: {state}")
    assert sorted(os.listdir(open_folder)) == ["mine", "state"]


@root
@pytest.mark.parametrize("work", ["file", "append", "symlink", "path", "move", "update"])
def test_a_device_is_not_replaced(folder: Path, work: str) -> None:
    """--output /dev/null as root must not break the machine."""
    if why := no_devices():
        pytest.skip(why)
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    Path("x").write_text("x")

    def publish() -> None:
        with atomik.transaction(overwrite=True) as tx:
            if work in ("file", "append"):
                tx.file("null", "w" if work == "file" else "a").write("new")
            elif work == "symlink":
                tx.symlink("null", "x")
            elif work == "move":
                tx.move("x", "null")
            elif work == "update":
                with atomik.update("null") as f:
                    f.write("new")
            else:
                tx.path("null").write_text("new")

    with pytest.raises(errors.WrongKindError):
        publish()
    assert stat.S_ISCHR(os.lstat("null").st_mode)
    assert sorted(os.listdir()) == ["null", "x"]


@pytest.mark.parametrize("target", ["/dev/null", "/proc/self/fd/1", "/proc/self/fd"])
@pytest.mark.parametrize("work", ["file", "path", "move", "copy"])
def test_a_link_to_a_device_is_not_replaced(folder: Path, target: str, work: str) -> None:
    """Nor may --output /dev/stdout, which is a link; another link may take its place, and anything once it is removed."""
    os.symlink(target, "stdout")
    Path("x").write_text("x")

    def publish(tx: atomik.Transaction) -> None:
        if work == "path":
            tx.path("stdout").write_text("new")
        elif work == "file":
            tx.file("stdout").write("new")
        else:
            getattr(tx, work)("x", "stdout")

    with pytest.raises(errors.WrongKindError, match=target), atomik.transaction(overwrite=True) as tx:
        publish(tx)
    assert os.readlink("stdout") == target
    assert sorted(os.listdir()) == ["stdout", "x"]
    with atomik.transaction(overwrite=True) as tx:
        tx.symlink("stdout", "elsewhere")
    with atomik.transaction() as tx:
        tx.remove("stdout")
        publish(tx)
    assert not os.path.islink("stdout")


def test_progress_of_a_copy(folder: Path) -> None:
    """ "cloning" says how much is done; "syncing" comes to its total."""
    Path("src").mkdir()
    for number in range(5):
        Path("src", str(number)).touch()
    seen: list[tuple[str, int, int]] = []
    with atomik.folder("new", base="src", progress=lambda *told: seen.append(told)):
        pass
    assert [done for phase, done, _ in seen if phase == "cloning"] == [1, 2, 3, 4, 5]


def test_what_was_forgotten_is_named(folder: Path) -> None:
    """The ResourceWarning of an output that was never ended says which one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output = atomik.file("forgotten")
        del output
        gc.collect()
    (said,) = [str(each.message) for each in caught if each.category is ResourceWarning]
    assert str(folder / "forgotten") in said
    assert os.listdir() == []


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "path": (lambda: atomik.file(3), "path"),  # type: ignore[call-overload]
    "permissions": (lambda: atomik.file("x", permissions="0640"), "permissions"),  # type: ignore[call-overload]
    "order": (lambda: atomik.transaction().file("x", order="first"), "order"),  # type: ignore[call-overload]
    "lock_timeout": (lambda: atomik.transaction(lock_timeout="1"), "lock_timeout"),  # type: ignore[arg-type]
    "backup": (lambda: atomik.file("x", backup=3), "backup"),  # type: ignore[call-overload]
    "expect": (lambda: atomik.file("x", expect=True), "expect"),  # type: ignore[call-overload]
    "base": (lambda: atomik.folder("x", base=3), "base"),  # type: ignore[arg-type]
    "tmp_dir": (lambda: atomik.file("x", tmp_dir=3), "tmp_dir"),  # type: ignore[call-overload]
    "target": (lambda: atomik.transaction().symlink("x", 3), "target"),  # type: ignore[arg-type]
    "progress": (lambda: atomik.transaction(progress=3), "progress"),  # type: ignore[arg-type]
    "unknown": (lambda: atomik.file("x", overwrit=True), "overwrit"),  # type: ignore[call-overload]
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("option", WRONG)
def test_a_wrong_type_names_its_option(folder: Path, option: str) -> None:
    """TypeError with the option's name, when it is given, and nothing is left."""
    call, name = WRONG[option]
    with pytest.raises(TypeError, match=name):
        call()
    gc.collect()
    assert os.listdir() == []


def test_what_cannot_be_pickled_names_itself(folder: Path) -> None:
    """Transactions, outputs and file objects belong to this process, and say what to send instead."""
    Path("x").write_text("x")
    with atomik.transaction() as tx:
        file = tx.file("a")
        for thing in (tx, file):
            with pytest.raises(TypeError, match=r"cannot pickle.*(Transaction|Staged)"):
                pickle.dumps(thing)
    output = atomik.file("b")
    with pytest.raises(TypeError, match=r"cannot pickle.*Output"):
        pickle.dumps(output)
    output.abort()
