"""What started from a copy, or expects what was observed, never silently loses someone else's change."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from tests.support.kernels import ALL, Acting, installed
from tests.support.state import left_in, tick

if TYPE_CHECKING:
    from collections.abc import Callable


def site() -> None:
    """A small tree."""
    Path("site/news").mkdir(parents=True)
    Path("site/news/page").write_text("v1")
    Path("site/index").symlink_to("news/page")
    tick(Path.cwd())


def same_size_and_times() -> None:
    """An edit that only the content shows."""
    page = Path("site/news/page")
    times = page.stat()
    page.write_text("v2")
    os.utime(page, ns=(times.st_atime_ns, times.st_mtime_ns))


def retarget() -> None:
    """Another target of a link."""
    Path("site/index").unlink()
    Path("site/index").symlink_to("news/elsewhere")


CHANGES: dict[str, tuple[Callable[[], Any], str]] = {
    "edited": (lambda: Path("site/news/page").write_text("theirs"), "news/page"),
    "edited, same size and times": (same_size_and_times, "news/page"),
    "new": (lambda: Path("site/news/other").write_text("theirs"), "news/other"),
    "new folder": (lambda: Path("site/news/deep/er").mkdir(parents=True), "news/deep"),
    "removed": (lambda: Path("site/news/page").unlink(), "news"),
    "mode": (lambda: Path("site/news").chmod(0o700), "news"),
    "link": (retarget, "index"),
}


@pytest.mark.parametrize("moment", ["before the commit", "at the last moment"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", ["copy", "expect", "expect, in a group"])
def test_a_folder(folder: Path, how: str, change: str, moment: str) -> None:
    """A change anywhere in the tree is a conflict that names it; their version is kept."""
    site()
    act, where = CHANGES[change]
    options: dict[str, Any] = {"copy": True} if how == "copy" else {"expect": atomik.observe("site", digest=True)}
    tx = atomik.transaction(overwrite=True)
    new = tx.folder("site", **options)
    (new / "ours").write_text("ours")
    if how.endswith("group"):
        tx.file("beside").write("ours")
    if moment == "before the commit":
        act()
        with pytest.raises(errors.ConflictError) as caught:
            tx.commit()
    else:
        kernel = Acting("rename", lambda call: act(), when=lambda call: kernel.acted == 0)
        with installed(kernel), pytest.raises(errors.ConflictError) as caught:
            tx.commit()
        assert kernel.acted == 1
    assert where in str(caught.value)
    assert caught.value.filename == str(folder / "site")
    assert not Path("site/ours").exists()
    assert os.listdir() == ["site"]
    assert not left_in(folder)


@pytest.mark.parametrize(("how", "change"), [*(("copy", change) for change in CHANGES), ("expect", "edited")])
def test_a_folder_that_stays(folder: Path, how: str, change: str) -> None:
    """The same where the folder stays: each entry is compared once more when it was displaced, for syncs take their time."""
    site()
    act, where = CHANGES[change]
    options: dict[str, Any] = {"copy": True} if how == "copy" else {"expect": atomik.observe("site", digest=True)}
    tx = atomik.transaction(overwrite=True)
    new = tx.folder("site", in_place=True, **options)
    (new / "ours").write_text("ours")
    kernel = Acting("link", lambda call: act(), when=lambda call: kernel.acted == 0)  # the journal's name
    with installed(kernel), pytest.raises(errors.ConflictError, match=where.partition("/")[0]):
        tx.commit()
    assert kernel.acted == 1
    assert not Path("site/ours").exists()
    assert not left_in(folder)


@pytest.mark.parametrize("there", [True, False])
def test_what_comes_into_a_folder_that_stays(folder: Path, there: bool) -> None:
    """While the folder is compared, someone else makes a name that the new version has, or lacks: it is kept."""
    site()
    name = "site/ours" if there else "site/theirs"
    tx = atomik.transaction(overwrite=True)
    new = tx.folder("site", in_place=True, copy=True)
    (new / "ours").write_text("ours")
    kernel = Acting(
        "open",
        lambda call: Path(name).write_text("theirs"),
        when=lambda call: call.args[0] == "news" and not kernel.acted,
    )
    with installed(kernel), contextlib.suppress(errors.ConflictError):
        tx.commit()
    assert kernel.acted == 1
    assert Path(name).read_text() == "theirs"
    assert not left_in(folder)


def test_a_folder_that_nobody_changed(folder: Path) -> None:
    """Reading or copying it is not a change."""
    site()
    seen = atomik.observe("site", digest=True)
    os.listdir("site/news")
    Path("site/news/page").read_text()
    with atomik.folder("site", expect=seen) as new:
        (new / "first").write_text("x")
    with atomik.folder("site", overwrite=True, copy=True) as new:
        (new / "second").write_text("x")
    assert sorted(os.listdir("site")) == ["first", "second"]


def test_two_publishers_of_copies(folder: Path) -> None:
    """The one that started first and ends last gets the conflict; its work can be repeated."""
    site()
    with pytest.raises(errors.ConflictError), atomik.folder("site", overwrite=True, copy=True) as slow:
        with atomik.folder("site", overwrite=True, copy=True) as quick:
            (quick / "quick").write_text("x")
        (slow / "slow").write_text("x")
    assert sorted(os.listdir("site")) == ["index", "news", "quick"]


@pytest.mark.parametrize("mode", ["a", "a+", "ab", "r+", "rb+"])
def test_overlapping_appends(folder: Path, mode: str) -> None:
    """A file that started from a copy, alone or in a group, conflicts when the original was changed."""
    data: Any = b"line\n" if "b" in mode else "line\n"
    for group in (False, True):
        Path("log").write_text("start\n")
        with pytest.raises(errors.ConflictError), atomik.transaction(overwrite=True) as tx:
            slow = tx.file("log", mode)
            with open("log", "a") as quick:
                quick.write("quick\n")
            slow.write(data)
            if group:
                tx.file("beside").write("x")
        assert Path("log").read_text() == "start\nquick\n"
        assert os.listdir() == ["log"]


def test_an_append_that_created(folder: Path) -> None:
    """Mode "a" began with nothing, and then something is there."""
    with pytest.raises(errors.AtomikError), atomik.file("log", "a", overwrite=True) as slow:
        Path("log").write_text("quick\n")
        slow.write("slow\n")
    assert Path("log").read_text() == "quick\n"


#: how something gets to the name "new" before an operation starts from it
BEFORE: dict[str, Callable[[atomik.Transaction], object]] = {
    "move": lambda tx: tx.move("old", "new"),
    "moves": lambda tx: (tx.move("old", "between"), tx.move("between", "new")),
    "exchange": lambda tx: (
        (Path("new").mkdir() if Path("old").is_dir() else Path("new").touch()) or tx.exchange("old", "new")
    ),
    "backup": lambda tx: (tx.folder if Path("old").is_dir() else tx.file)("old", backup="new"),
}


@pytest.mark.parametrize("at_last", [False, True])
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("output", ["folder", "append", "change"])
def test_what_an_earlier_operation_puts_there(folder: Path, output: str, before: str, *, at_last: bool) -> None:
    """An output that starts from it is checked against the name at which it is until the commit."""
    if output == "folder":
        Path("old").mkdir()
    theirs = Path("old/page" if output == "folder" else "old")
    theirs.write_text("v1")
    tick(Path.cwd())
    tx = atomik.transaction(overwrite=True)
    BEFORE[before](tx)
    if output == "folder":
        (tx.folder("new", copy=True) / "page").write_text("ours")
    else:
        tx.file("new", "a" if output == "append" else "r+").write("ours")
    kernel = Acting("rename", lambda _: theirs.write_text("theirs"), when=lambda _: kernel.acted == 0)
    if not at_last:
        theirs.write_text("theirs")
    with installed(kernel) if at_last else contextlib.nullcontext(), pytest.raises(errors.ConflictError) as caught:
        tx.commit()
    assert caught.value.filename == str(folder / "new")
    assert theirs.read_text() == "theirs"


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("output", ["folder", "append"])
def test_what_an_earlier_operation_puts_there_and_nobody_changed(folder: Path, output: str, before: str) -> None:
    """Then both count."""
    if output == "folder":
        Path("old").mkdir()
    Path("old/page" if output == "folder" else "old").write_text("v1")
    with atomik.transaction(overwrite=True) as tx:
        BEFORE[before](tx)
        if output == "folder":
            (tx.folder("new", copy=True) / "other").write_text("ours")
        else:
            tx.file("new", "a").write("ours")
    if output == "folder":
        assert sorted(os.listdir("new")) == ["other", "page"]
    else:
        assert Path("new").read_text() == "v1ours"


@pytest.mark.parametrize("output", ["folder", "append", "update in place"])
def test_the_last_writer_may_win(folder: Path, output: str) -> None:
    """``expect="any"`` says that the change is not wanted."""
    site()
    Path("log").write_text("start\n")
    if output == "folder":
        with atomik.folder("site", overwrite=True, copy=True, expect="any") as new:
            Path("site/theirs").touch()
            (new / "ours").touch()
        assert sorted(os.listdir("site")) == ["index", "news", "ours"]
        return
    with atomik.file("log", "a" if output == "append" else "r+", overwrite=True, expect="any") as log:
        Path("log").write_text("theirs\n")
        log.write("ours!\n")
    assert Path("log").read_text() == ("start\nours!\n" if output == "append" else "ours!\n")


@pytest.mark.sweep
@pytest.mark.parametrize("mode", ["a", "w"])
def test_what_comes_where_nothing_was(folder: Path, mode: str) -> None:
    """Someone else creates the file between any two calls: it is started from, a conflict, or too late; never lost."""
    at, came = 0, True
    options: Any = {"expect": atomik.observe("log")} if mode == "w" else {}
    while came:
        at, came, late = at + 1, False, False

        def create(_: object) -> None:
            nonlocal came, late
            came = True
            try:
                with open("log", "x") as log:
                    log.write("theirs")
            except FileExistsError:
                late = True

        kernel = Acting(" ".join(ALL), create, when=lambda call, at=at: call.number == at)  # type: ignore[misc]
        with (
            contextlib.suppress(errors.AtomikError),
            installed(kernel),
            atomik.transaction(overwrite=True, durable=False) as tx,
        ):
            tx.file("log", mode, **options).write("+ours")
        assert not came or late or Path("log").read_text() in ("theirs", "theirs+ours"), at
        Path("log").unlink()
    assert at > 40
