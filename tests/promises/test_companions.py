"""``also=``: files that belong together by their names are published together, whichever of them the program wrote."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from tests.support.state import left_in

if TYPE_CHECKING:
    from collections.abc import Callable

ALSO = [".shx", ".dbf", ".prj", "data.shp.xml"]


def write(path: Path, text: str, *suffixes: str) -> None:
    path.write_text(text)
    for suffix in suffixes:
        path.with_suffix(suffix).write_text(text)


def seen(folder: Path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in folder.iterdir()}


@pytest.fixture
def old(folder: Path) -> Path:
    """A published version, with two of the four companions."""
    with atomik.path("data.shp", also=ALSO, durable=False) as path:
        write(path, "old", ".shx", ".prj")
    assert seen(folder) == {"data.shp": "old", "data.shx": "old", "data.prj": "old"}
    return folder


def test_new_ones_come_and_what_the_new_version_lacks_goes(old: Path) -> None:
    """The names in the folder are those that the program wrote, and the receipt says what became of each."""
    with atomik.path("data.shp", overwrite=True, also=ALSO, durable=False) as path:
        write(path, "new", ".shx", ".dbf")
        (path.parent / "data.shp.xml").write_text("new")
    assert seen(old) == dict.fromkeys(("data.shp", "data.shx", "data.dbf", "data.shp.xml"), "new")
    assert path.receipt is not None
    assert [(Path(item.path).name, item.op) for item in path.receipt.items] == [
        ("data.shx", "replace"), ("data.dbf", "create"), ("data.prj", "remove"), ("data.shp.xml", "create"),
        ("data.shp", "replace"),
    ]  # fmt: skip


def test_the_main_one_comes_last(old: Path) -> None:
    """Who watches for it finds the others there."""
    order: list[str] = []

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "swapping":
            order.append(Path("data.shp").read_text())

    with atomik.path("data.shp", overwrite=True, also=ALSO, progress=progress, durable=False) as path:
        write(path, "new", ".shx", ".prj")
    assert order == ["old", "old", "new"]


def test_a_failure_of_the_block_leaves_all_of_the_old_version(old: Path) -> None:
    """Nothing of the companions stays, and the transaction wants the main one again, with others or without."""
    before = seen(old)
    with atomik.transaction(overwrite=True, durable=False) as tx:
        with pytest.raises(ZeroDivisionError), tx.path("data.shp", also=ALSO) as path:
            write(path, "half", ".shx")
            _ = 1 / 0
        assert len(tx.items) == 0
        with pytest.raises(errors.TransactionStateError, match=r"data\.shp"):
            tx.commit()
        with tx.path("data.shp", also=[".dbf"]) as path:
            write(path, "new", ".dbf")
    assert seen(old) == {**before, "data.shp": "new", "data.dbf": "new"}


def test_what_else_lies_there_is_an_error_with_the_names(old: Path) -> None:
    """With the cure, and nothing is changed."""
    before = seen(old)
    with (
        pytest.raises(errors.ConflictError, match=r"'data\.qix'.*also="),
        atomik.path("data.shp", overwrite=True, also=ALSO) as path,
    ):
        write(path, "new", ".shx", ".qix")
    assert seen(old) == before


def test_without_the_main_one_there_is_nothing(old: Path) -> None:
    """A companion alone is not an output."""
    with (
        pytest.raises(errors.MissingPathError, match="nothing was written"),
        atomik.path("data.shp", overwrite=True, also=ALSO) as path,
    ):
        path.with_suffix(".shx").write_text("new")
    assert not left_in(old)


def test_nothing_is_replaced_without_being_asked_for(folder: Path) -> None:
    """P2 for each of them: a companion that exists is found before the program runs, and again at the commit."""
    Path("data.prj").write_text("theirs")
    with pytest.raises(errors.FileAlreadyExistsError) as caught:
        atomik.path("data.shp", also=ALSO)
    assert caught.value.filename == str(folder / "data.prj")
    Path("data.prj").unlink()
    for written in ([".prj"], []):
        with pytest.raises(errors.FileAlreadyExistsError), atomik.path("data.shp", also=ALSO) as path:
            write(path, "new", *written)
            Path("data.prj").write_text("theirs")
        assert seen(folder) == {"data.prj": "theirs"}
        Path("data.prj").unlink()
    assert not left_in(folder)


@pytest.mark.parametrize(
    ("also", "error"),
    [
        ([".shx", ".shx"], errors.DuplicateDestinationError),
        ([".shx", "data.shx"], errors.DuplicateDestinationError),
        ([".shp"], errors.DuplicateDestinationError),
        (["data.shp"], errors.DuplicateDestinationError),
        (["../data.shx"], errors.InvalidDestinationError),
        (["sub/data.shx"], errors.InvalidDestinationError),
        (["/data.shx"], errors.InvalidDestinationError),
        ([".."], errors.InvalidDestinationError),
        (["."], errors.InvalidDestinationError),
        ([""], errors.InvalidDestinationError),
        (["./x"], errors.InvalidDestinationError),
        ([".x\0y"], errors.InvalidDestinationError),
        (["." + "x" * 300], errors.InvalidDestinationError),
        (["data.shp-wal"], errors.InvalidDestinationError),
        (".shx", TypeError),
        (b".shx", TypeError),
        ([7], TypeError),
    ],
    ids=lambda value: str(value)[:30],
)
def test_hostile_names_are_refused_before_anything_is_made(folder: Path, also: Any, error: type[Exception]) -> None:
    """Early, and nothing is left, in a transaction either."""
    with pytest.raises(error):
        atomik.path("data.shp", also=also)
    with atomik.transaction(durable=False) as tx:
        with pytest.raises(error):
            tx.path("data.shp", also=[".ok", *also] if isinstance(also, list) else also)
        assert tx.items == ()
        with tx.path("data.shp", also=[".ok"]) as path:
            write(path, "new", ".ok")
    assert seen(folder) == {"data.shp": "new", "data.ok": "new"}


def test_a_name_without_a_suffix_gets_one(folder: Path) -> None:
    """Also one with a dot in front, or several dots."""
    for name, companion in (("data", "data.shx"), (".hidden", ".hidden.shx"), ("a.tar.gz", "a.tar.shx")):
        with atomik.path(name, also=[".shx"], durable=False) as path:
            path.write_text("new")
            (path.parent / companion).write_text("new")
        assert Path(companion).read_text() == "new"


def test_folders_and_links_are_companions_too(folder: Path) -> None:
    """What the program leaves there, whatever it is."""
    for text in ("old", "new"):
        with atomik.path("book.html", overwrite=True, also=["book_files", "latest"], durable=False) as path:
            path.write_text(text)
            (path.parent / "book_files").mkdir()
            (path.parent / "book_files" / text).write_text(text)
            (path.parent / "latest").symlink_to("book.html")
        assert os.listdir("book_files") == [text]
        assert os.readlink("latest") == "book.html"
    with atomik.path("book.html", overwrite=True, also=["book_files", "latest"], durable=False) as path:
        path.write_text("alone")
    assert seen(folder) == {"book.html": "alone"}


def test_previous_versions_of_all_of_them(old: Path) -> None:
    """Each under a name of its own, those that go as well; one name for all is refused."""
    with atomik.path("data.shp", overwrite=True, also=ALSO, backup=lambda path: path + "~", durable=False) as path:
        write(path, "new", ".dbf")
    assert seen(old) == {
        "data.shp": "new", "data.dbf": "new", "data.shp~": "old", "data.shx~": "old", "data.prj~": "old",
    }  # fmt: skip
    assert path.receipt is not None
    assert {item.backup for item in path.receipt.items} == {
        None, str(old / "data.shp~"), str(old / "data.shx~"), str(old / "data.prj~"),
    }  # fmt: skip
    with pytest.raises(ValueError, match="backup must be a function"):
        atomik.path("data.shp", overwrite=True, also=ALSO, backup="data.bak")


@pytest.mark.parametrize("change", ["data.shp", "data.shx", "data.prj", "data.dbf"])
def test_an_expectation_covers_what_belongs_to_it(old: Path, change: str) -> None:
    """A change to one of them while the program works is not lost, whether the new version has it or lacks it."""
    with (
        pytest.raises(errors.ConflictError) as caught,
        atomik.path("data.shp", also=ALSO, expect=atomik.observe("data.shp"), durable=False) as path,
    ):
        write(path, "new", ".shx", ".dbf")
        Path(change).write_text("theirs, and longer")
    assert caught.value.path == str(old / change)
    assert Path(change).read_text() == "theirs, and longer"
    assert not left_in(old)


def test_a_companion_that_went_away_is_a_change_too(old: Path) -> None:
    """Even where the new version lacks it as well."""
    with (
        pytest.raises(errors.ConflictError),
        atomik.path("data.shp", also=ALSO, expect=atomik.observe("data.shp"), durable=False) as path,
    ):
        write(path, "new")
        Path("data.prj").unlink()
    assert Path("data.shp").read_text() == "old"


def test_an_expectation_that_is_met(old: Path) -> None:
    """It allows all of them to be replaced."""
    with atomik.path("data.shp", also=ALSO, expect=atomik.observe("data.shp"), durable=False) as path:
        write(path, "new", ".dbf")
    assert seen(old) == {"data.shp": "new", "data.dbf": "new"}


def test_the_transaction_sees_what_will_be(old: Path) -> None:
    """plan(), exists() and open(), while the program works and afterwards; copy() and drop() too."""
    with atomik.transaction(overwrite=True, durable=False) as tx:
        path = tx.path("data.shp", also=ALSO)
        write(path, "new", ".dbf")
        for _ in range(2):
            planned = {Path(change.path).name: change.op for change in tx.plan()}
            assert planned == {
                "data.shp": "replace", "data.dbf": "create", "data.shx": "remove", "data.prj": "remove",
            }  # fmt: skip
            assert tx.exists("data.dbf")
            assert not tx.exists("data.shx")
            with tx.open("data.dbf") as file:
                assert file.read() == "new"
            with path:
                pass
        tx.copy("data.dbf", "copy.dbf")
        tx.drop("data.prj")
        assert [Path(item.path).name for item in tx.items] == ["copy.dbf"]
        with pytest.raises(errors.MissingPathError):
            tx.drop("data.shp")
    assert seen(old) == {**dict.fromkeys(("data.shp", "data.shx", "data.prj"), "old"), "copy.dbf": "new"}


def test_a_later_operation_builds_on_a_companion(old: Path) -> None:
    """So that cannot be dropped; an earlier one of the same name is refused."""
    with atomik.transaction(overwrite=True, durable=False) as tx:
        with tx.path("data.shp", also=[".dbf"]) as path:
            write(path, "new", ".dbf")
        tx.move("data.dbf", "moved.dbf")
        with pytest.raises(errors.DuplicateDestinationError):
            tx.drop("data.shp")
        with pytest.raises(errors.DuplicateDestinationError, match="also="):
            tx.path("other.shp", also=["moved.dbf"])
    assert seen(old) == {
        "data.shp": "new", "moved.dbf": "new", "data.shx": "old", "data.prj": "old",
    }  # fmt: skip


def test_equal_ones_stay(old: Path) -> None:
    """``if_changed`` is about each of them."""
    inode = os.stat("data.shx").st_ino
    with atomik.path("data.shp", overwrite=True, also=ALSO, if_changed=True, durable=False) as path:
        write(path, "new", ".prj")
        path.with_suffix(".shx").write_text("old")
    assert seen(old) == {"data.shp": "new", "data.shx": "old", "data.prj": "new"}
    assert os.stat("data.shx").st_ino == inode


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_prepared(old: Path, end: str) -> None:
    """All of them wait for the decision."""
    before = seen(old)
    tx = atomik.transaction(overwrite=True, durable=False)
    write(tx.path("data.shp", also=ALSO), "new", ".dbf")
    tx.prepare()
    assert tx.state is atomik.State.SWAPPED
    getattr(tx, end)()
    assert seen(old) == ({"data.shp": "new", "data.dbf": "new"} if end == "commit" else before)


def test_async(old: Path) -> None:
    """In a worker thread."""

    async def publish() -> None:
        async with atomik.path("data.shp", overwrite=True, also=ALSO, durable=False) as path:
            write(path, "new", ".dbf")

    asyncio.run(publish())
    assert seen(old) == {"data.shp": "new", "data.dbf": "new"}


def test_metadata_is_each_ones_own(old: Path) -> None:
    """A companion takes over the mode of its own predecessor, and permissions= are for all of them."""
    Path("data.shx").chmod(0o600)
    Path("data.prj").chmod(0o640)

    def publish(**options: Any) -> list[int]:
        with atomik.path("data.shp", overwrite=True, also=ALSO, durable=False, **options) as path:
            write(path, "new", ".shx", ".prj")
        return [os.stat(f"data{suffix}").st_mode & 0o777 for suffix in (".shx", ".prj")]

    assert publish() == [0o600, 0o640]
    assert publish(permissions=0o604) == [0o604, 0o604]


def test_parents_are_made_for_all(folder: Path) -> None:
    """And go again when it fails."""

    def publish(fill: Callable[[Path], object]) -> None:
        with atomik.path("deep/down/data.shp", parents=True, also=ALSO, durable=False) as path:
            fill(path)

    with pytest.raises(errors.MissingPathError):
        publish(lambda path: None)
    assert not os.listdir(folder)
    publish(lambda path: write(path, "new", ".shx"))
    assert seen(folder / "deep" / "down") == {"data.shp": "new", "data.shx": "new"}


def test_a_link_is_followed_for_all(old: Path) -> None:
    """They go beside the target."""
    Path("here").mkdir()
    Path("here/latest.shp").symlink_to("../data.shp")
    with atomik.path("here/latest.shp", overwrite=True, also=ALSO, follow_symlinks=True, durable=False) as path:
        write(path, "new", ".shx")
    assert os.readlink("here/latest.shp") == "../data.shp"
    Path("here/latest.shp").unlink()
    Path("here").rmdir()
    assert seen(old) == {"data.shp": "new", "data.shx": "new"}


def test_a_companion_that_is_still_open_is_refused(folder: Path) -> None:
    """The last of it may be missing."""
    with pytest.raises(errors.ConflictError, match="still holds it open"), atomik.path("data.shp", also=ALSO) as path:
        write(path, "new", ".shx")
        held = open(path.with_suffix(".dbf"), "w")  # noqa: SIM115
    held.close()
    assert not os.listdir(folder)
