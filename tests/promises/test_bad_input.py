"""Bad input and hostile circumstances: the exact error, with path and cure; all as before; nothing left."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from tests.support.kernels import Acting, Answer, installed
from tests.support.lab import mounts, namespace
from tests.support.lab.need import need
from tests.support.state import tree

if TYPE_CHECKING:
    from collections.abc import Callable

Staging = "Callable[[Any, str], object]"


def stage_file(tx: atomik.Transaction, path: str) -> object:
    return tx.file(path)


def stage_folder(tx: atomik.Transaction, path: str) -> object:
    return tx.folder(path)


def stage_path(tx: atomik.Transaction, path: str) -> object:
    return tx.path(path)


def stage_symlink(tx: atomik.Transaction, path: str) -> object:
    return tx.symlink(path, "target")


ALL_KINDS = [stage_file, stage_folder, stage_path, stage_symlink]
kinds = pytest.mark.parametrize("stage", ALL_KINDS, ids=lambda stage: stage.__name__[6:])


def refused(
    kind: type[errors.AtomikOSError], number: int, stage: Callable[..., object], path: str, words: str = ""
) -> errors.AtomikOSError:
    """Stage it in a transaction with another item, which stays usable afterwards; the error."""
    before = tree(".")
    with atomik.transaction() as tx:
        with pytest.raises(kind) as caught:
            stage(tx, path)
        assert tx.state is atomik.State.OPEN
        tx.abort()
    error = caught.value
    assert type(error) is kind
    assert error.errno == number
    assert isinstance(error.filename, str)
    assert words in str(error)
    assert tree(".") == before
    return error


@kinds
def test_missing_parent(folder: Path, stage: Callable[..., object]) -> None:
    """The folder is named, and parents=True as the cure."""
    error = refused(errors.MissingPathError, errno.ENOENT, stage, "no/where/x", "parents=True")
    assert error.filename == str(folder / "no/where")


@pytest.mark.parametrize(
    "call",
    [
        lambda: atomik.recover("no"),
        lambda: atomik.reading("no").__enter__(),
        lambda: atomik.probe("no"),
        lambda: atomik.observe("no/x"),
        lambda: atomik.swap("no/x", "no/y"),
        lambda: atomik.rename.rename("no", "x"),
        lambda: atomik.file("x", tmp_dir="no"),
    ],
    ids=["recover", "reading", "probe", "observe", "swap", "rename", "tmp_dir"],
)
def test_the_cure_is_one_that_the_call_has(folder: Path, call: Callable[[], object]) -> None:
    """No message advises parents=True where that is not an option, or would not help."""
    with pytest.raises(errors.MissingPathError) as caught:
        call()
    assert "parents=True" not in str(caught.value)
    assert re.search("create|correct", str(caught.value))
    assert "no" in str(caught.value.filename)


@kinds
def test_parent_is_a_file(folder: Path, stage: Callable[..., object]) -> None:
    """A file where a folder should be is ENOTDIR, and not taken for a missing folder."""
    (folder / "f").touch()
    error = refused(errors.WrongKindError, errno.ENOTDIR, stage, "f/x")
    assert isinstance(error, NotADirectoryError)


@kinds
@pytest.mark.parametrize(
    ("path", "number", "words"),
    [
        ("", errno.ENOENT, "empty"),
        (".", errno.EINVAL, "must end with a name"),
        ("..", errno.EINVAL, "must end with a name"),
        ("a/..", errno.EINVAL, "must end with a name"),
        ("a\0b", errno.EINVAL, "NUL"),
        ("x" * 256, errno.ENAMETOOLONG, "shorter"),
        ("ü" * 128, errno.ENAMETOOLONG, "shorter"),
        (".atomik-journal", errno.EINVAL, "reserved for atomik"),
    ],
    ids=["empty", "dot", "dotdot", "ends in dotdot", "NUL", "256 bytes", "256 bytes in UTF-8", "ours"],
)
def test_no_usable_name(folder: Path, stage: Callable[..., object], path: str, number: int, words: str) -> None:
    """Not a name: said before anything is opened or written."""
    error = refused(errors.InvalidDestinationError, number, stage, path, words)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("stage", [stage_folder, stage_path])
def test_root(folder: Path, stage: Callable[..., object]) -> None:
    """The root folder has no name in any folder."""
    refused(errors.InvalidDestinationError, errno.EINVAL, stage, "/", "must end with a name")


@kinds
def test_name_max_is_enough(folder: Path, stage: Callable[..., object]) -> None:
    """A name of exactly NAME_MAX bytes works, for slots are shorter than any destination may be."""
    name = "x" * 255
    with atomik.transaction() as tx:
        made = stage(tx, name)
        if stage is stage_path:
            Path(str(made)).touch()
    assert os.path.lexists(name)


@pytest.mark.parametrize("stage", [stage_file, stage_symlink])
def test_trailing_slash_on_a_file(folder: Path, stage: Callable[..., object]) -> None:
    """A file's name does not end with a slash; a folder's may."""
    refused(errors.InvalidDestinationError, errno.EISDIR, stage, "x/", "slash")
    with atomik.folder("d/") as new:
        (new / "f").touch()
    assert os.listdir("d") == ["f"]


@kinds
def test_existing_destination(folder: Path, stage: Callable[..., object]) -> None:
    """Nothing is replaced that nobody asked to replace, whatever it is; said when staged."""
    for make in (Path("there").touch, Path("there").mkdir, lambda: Path("there").symlink_to("nowhere")):
        make()
        error = refused(errors.FileAlreadyExistsError, errno.EEXIST, stage, "there", "overwrite=True")
        assert isinstance(error, FileExistsError)
        assert error.filename == str(folder / "there")
        Path("there").rmdir() if os.path.isdir("there") else Path("there").unlink()


@pytest.mark.parametrize("stage", [stage_file, stage_symlink, stage_folder])
def test_file_over_folder_and_the_reverse(folder: Path, stage: Callable[..., object]) -> None:
    """A file never replaces a folder, nor a folder a file, even with overwrite=True."""
    wants_folder = stage is stage_folder
    (folder / "there").touch() if wants_folder else (folder / "there").mkdir()
    with atomik.transaction(overwrite=True) as tx:
        with pytest.raises(errors.WrongKindError, match="remove it first") as caught:
            stage(tx, "there")
        tx.abort()
    assert isinstance(caught.value, NotADirectoryError if wants_folder else IsADirectoryError)
    assert caught.value.errno == (errno.ENOTDIR if wants_folder else errno.EISDIR)


def test_program_leaves_the_other_kind(folder: Path) -> None:
    """What kind a program leaves is known at the end only; over the other kind it is refused then."""
    (folder / "there").mkdir()
    with pytest.raises(errors.WrongKindError), atomik.path("there", overwrite=True) as name:
        name.touch()
    assert os.listdir(folder) == ["there"]


def test_second_filesystem(folder: Path) -> None:
    """Two filesystems in one transaction: said when staged, with both paths and both st_dev."""
    need(namespace.missing_root())
    with mounts.mounted("tmpfs") as place:
        other = str(place.folder / "x")
        with atomik.transaction() as tx:
            tx.file("here").write("1")
            with pytest.raises(errors.CrossFilesystemError, match="one transaction for each") as caught:
                tx.file(other)
            error = caught.value
            assert (error.errno, error.filename, error.filename2) == (errno.EXDEV, other, str(folder / "here"))
            assert error.devices == (os.stat(place.folder).st_dev, os.stat(folder).st_dev)
            assert errors.InvalidCrossDeviceError is errors.CrossFilesystemError
            tx.abort()
        assert os.listdir(place.folder) == []


def test_second_mount_of_one_filesystem(folder: Path) -> None:
    """The same st_dev and yet another mount: no rename can join them, so it is refused when staged."""
    need(namespace.missing_root())
    with mounts.bind(folder, folder.parent / "bound") as bound, atomik.transaction() as tx:
        tx.file("here")
        with pytest.raises(errors.CrossFilesystemError, match="different mounts"):
            tx.file(bound / "there")
        tx.abort()


@pytest.mark.parametrize("shortcut", [atomik.file, atomik.folder, atomik.path])
def test_tmp_dir_on_another_filesystem(folder: Path, shortcut: Callable[..., Any]) -> None:
    """tmp_dir elsewhere is refused before anything is written there."""
    need(namespace.missing_root())
    with mounts.mounted("tmpfs") as place:
        with pytest.raises(errors.CrossFilesystemError, match="leave tmp_dir out") as caught:
            shortcut("x", tmp_dir=place.folder)
        assert (caught.value.filename, caught.value.filename2) == (str(place.folder), str(folder / "x"))
        assert os.listdir(place.folder) == []


def test_missing_tmp_dir(folder: Path) -> None:
    """A tmp_dir that is not there is named."""
    with pytest.raises(errors.MissingPathError) as caught:
        atomik.file("x", tmp_dir="nowhere")
    assert caught.value.filename == str(folder / "nowhere")


@pytest.mark.parametrize(
    "second", ["x", "./x", "sub/../x", "link/x"], ids=["same", "dot", "dotdot", "symlinked parent"]
)
@kinds
def test_same_destination_twice(folder: Path, stage: Callable[..., object], second: str) -> None:
    """However it is spelled; the error names both spellings."""
    (folder / "sub").mkdir()
    (folder / "link").symlink_to(folder)
    with atomik.transaction() as tx:
        tx.file("x")
        with pytest.raises(errors.DuplicateDestinationError, match="twice") as caught:
            stage(tx, second)
        assert (caught.value.filename, caught.value.filename2) == (os.path.join(folder, second), str(folder / "x"))
        tx.abort()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("there", errors.FileAlreadyExistsError),
        ("dangling", errors.FileAlreadyExistsError),
        ("staged", errors.DuplicateDestinationError),
        ("/staged", errors.DuplicateDestinationError),
        (".atomik-mine", errors.InvalidDestinationError),
        ("slash/", errors.InvalidDestinationError),
        ("..", errors.InvalidDestinationError),
        ("n" * 256, errors.InvalidDestinationError),
        ("nul\0", errors.InvalidDestinationError),
        ("displaced/inside", errors.NestedDestinationError),
        ("missing/inside", errors.MissingPathError),
    ],
)
def test_one_more_file_in_a_known_folder_is_refused_like_the_first(folder: Path, path: str, kind: type) -> None:
    """That a folder is known by now spares looks, and no rule; what is refused is not taken in."""
    Path("there").touch()
    os.symlink("nowhere", "dangling")
    Path("displaced").mkdir()
    for before in (["staged"], ["staged", "known"]):
        with atomik.transaction() as tx:
            for name in before:
                tx.file(folder / name)
            if kind is errors.NestedDestinationError:
                tx.folder("displaced", overwrite=True)
            with pytest.raises(kind):
                tx.file(f"{folder}/{path}")
            tx.file(folder / "after")
            assert [os.path.basename(item.path) for item in tx.items if item.kind == "file"] == [*before, "after"]
            tx.abort()


def test_each_operation_sees_the_earlier_ones(folder: Path) -> None:
    """A name that an earlier operation fills exists, and one that it empties is free."""
    Path("a").touch()
    Path("b").touch()
    with atomik.transaction() as tx:
        tx.remove("a")
        tx.move("b", "c")
        with pytest.raises(errors.DuplicateDestinationError, match="overwrite=True"):
            tx.file("c")
        for action in (lambda: tx.remove("b"), lambda: tx.move("a", "d"), lambda: tx.exchange("a", "c")):
            with pytest.raises(errors.MissingPathError):
                action()
        tx.file("a").write("new")
        tx.file("c", overwrite=True).write("newer")
    assert (Path("a").read_text(), Path("c").read_text(), Path("b").exists()) == ("new", "newer", False)


@pytest.mark.parametrize("inner", ["d/x", "link/d/x", "d/sub/x"])
def test_file_inside_a_staged_folder(folder: Path, inner: str) -> None:
    """A destination inside a folder that the same transaction replaces, in either order and by any spelling."""
    (folder / "d/sub").mkdir(parents=True)
    (folder / "link").symlink_to(folder)
    with atomik.transaction(overwrite=True) as tx:
        tx.folder("d")
        with pytest.raises(errors.NestedDestinationError, match="into the staged folder") as caught:
            tx.file(inner)
        assert caught.value.filename2 == str(folder / "d")
        tx.abort()
    with atomik.transaction(overwrite=True) as tx:
        tx.file(inner)
        with pytest.raises(errors.NestedDestinationError) as caught:
            tx.folder("d")
        assert (caught.value.filename, caught.value.filename2) == (str(folder / inner), str(folder / "d"))
        tx.abort()


def test_file_inside_a_new_staged_folder(folder: Path) -> None:
    """The same when the folder does not exist yet, also with parents=True, which must not make it."""
    for more in ({}, {"parents": True}):
        with atomik.transaction() as tx:
            tx.folder("d")
            with pytest.raises(errors.NestedDestinationError):
                tx.file("d/x", **more)
            tx.abort()
    assert os.listdir(folder) == []


def test_folder_staged_over_made_parent(folder: Path) -> None:
    """A parent that parents=True made is not a place for a folder of the same transaction."""
    with atomik.transaction(overwrite=True) as tx:
        tx.file("d/x", parents=True)
        with pytest.raises(errors.NestedDestinationError):
            tx.folder("d")
        tx.abort()
    assert os.listdir(folder) == []


def test_removal_of_a_parent(folder: Path) -> None:
    """Nor can the folder be removed in which something is published."""
    (folder / "d").mkdir()
    with atomik.transaction() as tx:
        tx.file("d/x")
        with pytest.raises(errors.NestedDestinationError):
            tx.remove("d")
        tx.abort()


def test_tmp_dir_inside_the_destination(folder: Path) -> None:
    """Staging in a folder that will be displaced is refused, and hurts nobody's later transaction."""
    (folder / "d/tmp").mkdir(parents=True)
    with pytest.raises(errors.NestedDestinationError):
        atomik.folder("d", overwrite=True, tmp_dir="d/tmp")
    with atomik.folder("d", overwrite=True) as new:
        (new / "f").touch()
    assert os.listdir("d") == ["f"]


@pytest.mark.parametrize(
    ("order", "kind"), [(2**63, ValueError), (-(2**64), ValueError), (1.5, TypeError), ("1", TypeError)]
)
def test_an_order_that_the_journal_has_no_room_for(folder: Path, order: Any, kind: type[Exception]) -> None:
    """Said when staged, and not by the commit."""
    with atomik.transaction() as tx:
        with pytest.raises(kind):
            tx.file("a", order=order)
        with pytest.raises(kind):
            tx.symlink("a", "b", order=order)
        tx.file("a", order=2**63 - 1).write("x")
        tx.file("b", order=-(2**63)).write("x")
    assert sorted(tree(folder)) == ["a", "b"]


def test_staging_after_the_end(folder: Path) -> None:
    """A transaction that is over accepts nothing more, and says how it ended."""
    for end, word in (("commit", "committed"), ("abort", "aborted")):
        tx = atomik.transaction()
        getattr(tx, end)()
        for stage in (*ALL_KINDS, lambda tx, path: tx.remove(path), lambda tx, path: tx.move(path, "z")):
            with pytest.raises(errors.TransactionStateError, match=word):
                stage(tx, "x")
        with pytest.raises(errors.TransactionStateError, match=word):
            tx.commit()
        with pytest.raises(errors.TransactionStateError), tx:
            pass
    assert os.listdir(folder) == []


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_exception_in_the_block(folder: Path, kind: type[BaseException]) -> None:
    """Every exception goes on unchanged, and everything is dropped."""
    (folder / "there").write_text("old")
    before = tree(folder)
    mine = kind("mine")
    with pytest.raises(kind) as caught, atomik.transaction(overwrite=True) as tx:
        tx.file("there").write("new")
        (tx.folder("plots") / "x").touch()
        tx.symlink("link", "x")
        raise mine
    assert caught.value is mine
    assert tx.state is atomik.State.ABORTED
    assert tree(folder) == before


@pytest.mark.parametrize("at", range(1, 7))
def test_ctrl_c_between_two_swaps(folder: Path, at: int) -> None:
    """KeyboardInterrupt right after any swap, before the mark: everything is old again."""
    from tests.promises.test_faults import prepare, six_items

    prepare()
    before = tree(folder)

    def interrupt(_: object) -> None:
        if kernel.acted == at:
            raise KeyboardInterrupt

    kernel = Acting("rename", interrupt, after=True)
    with pytest.raises(KeyboardInterrupt), installed(kernel):
        six_items()
    assert tree(folder) == before


def small_disk(size: int) -> Any:
    need(namespace.missing_root())
    return mounts.mounted("tmpfs", size=size)


def test_full_disk_while_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The write itself says that the disk is full, naming the destination."""
    with small_disk(256 * 1024) as place:
        monkeypatch.chdir(place.folder)
        with pytest.raises(errors.AtomikOSError, match="free some space") as caught, atomik.file("x", "wb") as f:
            for _ in range(100):
                f.write(bytes(64 * 1024))
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(place.folder / "x")
        assert os.listdir() == []
        monkeypatch.undo()


def test_full_disk_while_sealing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was in the buffer only fails when the file is closed: the same error, for one item and among several."""
    with small_disk(256 * 1024) as place:
        monkeypatch.chdir(place.folder)
        with pytest.raises(errors.AtomikOSError) as caught, atomik.file("x", "wb", buffering=1 << 20) as f:
            f.write(bytes(512 * 1024))
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(place.folder / "x"))
        with pytest.raises(errors.AtomikOSError) as caught, atomik.transaction() as tx:
            tx.file("small").write("1")
            tx.file("large", "wb", buffering=1 << 20).write(bytes(512 * 1024))
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(place.folder / "large"))
        assert os.listdir() == []
        with atomik.file("x") as g:
            g.write("there is room again")
        monkeypatch.undo()


def test_full_disk_in_its_own_block_spoils_the_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that could not be written cannot be forgotten: the commit refuses until it is staged again."""
    with small_disk(256 * 1024) as place:
        monkeypatch.chdir(place.folder)
        with atomik.transaction() as tx:
            with pytest.raises(errors.AtomikOSError), tx.file("x", "wb") as f:
                f.write(bytes(512 * 1024))
            with pytest.raises(errors.TransactionStateError, match="stage it again, drop it"):
                tx.commit()
            with tx.file("x", "wb") as f:
                f.write(b"small")
        assert Path("x").read_bytes() == b"small"
        monkeypatch.undo()


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "among others"])
def test_destination_appears_meanwhile(folder: Path, alone: bool) -> None:
    """Someone else's new file is left alone."""
    for stage in (stage_file, stage_folder, stage_symlink):
        Path("x").unlink(missing_ok=True)
        with pytest.raises(errors.FileAlreadyExistsError, match="already exists") as caught, atomik.transaction() as tx:
            stage(tx, "x")
            if not alone:
                tx.file("y")
            Path("x").write_text("theirs")
        assert caught.value.filename == str(folder / "x")
        assert tree(folder) == {"x": (oct(Path("x").stat().st_mode), os.getuid(), os.getgid(), b"theirs")}


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "among others"])
def test_destination_appears_at_the_last_moment(folder: Path, alone: bool) -> None:
    """The same between the last look and the swap: the kernel decides."""
    with atomik.transaction() as tx:
        tx.file("x").write("ours")
        if not alone:
            tx.file("y")
        kernel = Acting(
            "link_fd rename", lambda call: Path("x").write_text("theirs"), when=lambda c: c.paths[-1].endswith("/x")
        )
        with installed(kernel), pytest.raises(errors.FileAlreadyExistsError, match="already exists"):
            tx.commit()
    assert kernel.acted == 1
    assert Path("x").read_text() == "theirs"
    assert os.listdir(folder) == ["x"]


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "among others"])
def test_destination_disappears_meanwhile(folder: Path, alone: bool) -> None:
    """overwrite=True does not mind, a removal does."""
    Path("x").write_text("old")
    with atomik.transaction(overwrite=True) as tx:
        tx.file("x").write("new")
        if not alone:
            tx.file("y")
        Path("x").unlink()
    assert Path("x").read_text() == "new"
    with pytest.raises(errors.MissingPathError, match="nothing to remove"), atomik.transaction() as tx:
        tx.remove("x")
        if not alone:
            tx.file("z")
        Path("x").unlink()
    assert not os.path.lexists("z")


def first() -> Callable[[object], bool]:
    """Holds once."""
    return lambda _, seen=[]: not seen and not seen.append(1)  # type: ignore[func-returns-value]  # noqa: B006


def test_destination_changes_kind_meanwhile(folder: Path) -> None:
    """A folder where a file was is not replaced, alone or among others, whenever it came."""
    for others in (0, 1):
        for moment in ("staged", "looked at"):
            Path("x").write_text("old")

            def change(_: object = None) -> None:
                Path("x").unlink()
                Path("x").mkdir()
                Path("x/theirs").touch()

            with atomik.transaction(overwrite=True) as tx:
                tx.file("x").write("new")
                for number in range(others):
                    tx.file(f"other {number}")
                if moment == "staged":
                    change()
                    with pytest.raises(errors.WrongKindError):
                        tx.commit()
                else:
                    kernel = Acting("rename", change, when=first())
                    with installed(kernel), pytest.raises((errors.WrongKindError, errors.ConflictError)):
                        tx.commit()
            assert os.listdir() == ["x"]
            assert os.listdir("x") == ["theirs"]
            Path("x/theirs").unlink()
            Path("x").rmdir()


def test_destination_replaced_at_the_last_moment(folder: Path) -> None:
    """In a group, a destination replaced between check and swap is a conflict: their version is given back, all is old."""
    for name in ("a", "b"):
        Path(name).write_text("old")

    def replace(_: object) -> None:
        Path("theirs").write_text("theirs")
        os.rename("theirs", "b")

    with atomik.transaction(overwrite=True) as tx:
        tx.file("a").write("new")
        tx.file("b").write("new")
        kernel = Acting(
            "rename", replace, when=lambda call: "/b" in [path[-2:] for path in call.paths] and kernel.acted == 0
        )
        with installed(kernel), pytest.raises(errors.ConflictError, match="repeat") as caught:
            tx.commit()
    assert caught.value.filename == str(folder / "b")
    assert {name: Path(name).read_text() for name in os.listdir()} == {"a": "old", "b": "theirs"}


def test_theirs_on_top_of_ours_stays(folder: Path) -> None:
    """Someone replaces what we have just published, then the transaction fails: their version is kept."""
    for name in ("a", "b"):
        Path(name).write_text("old")

    def replace(call: Any) -> None:
        if any(path.endswith("/b") for path in call.paths):
            Path("theirs").write_text("theirs")
            os.rename("theirs", "a")
            raise Answer(errno.EIO)

    with atomik.transaction(overwrite=True) as tx:
        tx.file("a").write("new")
        tx.file("b").write("new")
        with installed(Acting("rename", replace)), pytest.raises(errors.CommitError):
            tx.commit()
    assert {name: Path(name).read_text() for name in ("a", "b")} == {"a": "theirs", "b": "old"}
    atomik.recover(folder, discard=True)


@pytest.mark.parametrize("how", ["moved", "replaced", "removed"])
@pytest.mark.parametrize("others", [0, 1])
def test_parent_moved_away_meanwhile(folder: Path, how: str, others: int) -> None:
    """The folder at the path is another one by now: a conflict, and neither of the two is written to."""
    Path("d").mkdir()
    with atomik.transaction() as tx:
        tx.file("d/x").write("new")
        for _ in range(others):
            tx.file("d/y")
        os.rename("d", "elsewhere")
        if how == "replaced":
            Path("d").mkdir()
        elif how == "removed" and not others:
            os.rmdir("elsewhere")
        with pytest.raises(errors.ConflictError, match="stage again") as caught:
            tx.commit()
    assert caught.value.filename == str(folder / "d")
    assert all(not os.listdir(place) for place in ("d", "elsewhere") if os.path.exists(place))


def test_handle_closed_already(folder: Path) -> None:
    """A user who closes the file early has sealed it; the commit publishes what was written."""
    with atomik.file("x") as f:
        f.write("all of it")
        f.close()
        f.close()
    assert Path("x").read_text() == "all of it"


def test_handle_used_after_the_commit(folder: Path) -> None:
    """Writing after the end is the ValueError of every closed file, and changes nothing."""
    with atomik.file("x") as f:
        f.write("1")
    for attempt in (lambda: f.write("2"), f.flush, lambda: f.seek(0), f.fileno):
        with pytest.raises(ValueError, match=r"closed|detached"):
            attempt()
    assert Path("x").read_text() == "1"


def test_handle_used_after_an_abort(folder: Path) -> None:
    tx = atomik.transaction()
    f = tx.file("x", "wb")
    f.write(b"1")
    tx.abort()
    with pytest.raises(ValueError, match="closed"):
        f.write(b"2")
    assert os.listdir() == []


def test_no_permission_on_the_parent(open_folder: Path, unprivileged: Callable[..., Any]) -> None:
    """EACCES as AccessDeniedError, as another user than root."""
    closed = open_folder / "closed"
    closed.mkdir(mode=0o755)
    (closed / "there").write_text("old")
    before = tree(open_folder)

    def work() -> list[tuple[str, Any, Any]]:
        found = []
        for stage in (*ALL_KINDS, lambda tx, path: tx.remove(str(closed / "there"))):
            with atomik.transaction() as tx:
                try:
                    stage(tx, str(closed / "x"))
                except errors.AtomikError as exc:
                    found.append((type(exc).__name__, exc.errno, exc.filename))
                tx.abort()
        return found

    found = unprivileged(work)
    assert [(name, number) for name, number, _ in found] == [("AccessDeniedError", errno.EACCES)] * 5
    assert {path for _, _, path in found} <= {str(closed / "x"), str(closed), str(closed / "there")}
    assert tree(open_folder) == before


def test_unreadable_parent(open_folder: Path, unprivileged: Callable[..., Any]) -> None:
    """A folder that may be written but not read can be neither synced nor locked: refused when staged."""
    (open_folder / "blind").mkdir()
    (open_folder / "blind").chmod(0o333)

    def work() -> None:
        with pytest.raises(errors.AccessDeniedError, match="permissions"):
            atomik.file(open_folder / "blind/x")

    unprivileged(work)


FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, IMMUTABLE = 0x80086601, 0x40086602, 0x10


@pytest.fixture
def immutable(folder: Path) -> Any:
    """Make a path immutable for the test; skips where that cannot be."""
    done = []

    def make(path: str, on: bool = True) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            flags = int.from_bytes(fcntl.ioctl(fd, FS_IOC_GETFLAGS, b"\0" * 8), "little")
            flags = flags | IMMUTABLE if on else flags & ~IMMUTABLE
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags.to_bytes(8, "little"))
        except OSError as exc:
            pytest.skip(f"no immutable flag here: {exc}")
        finally:
            os.close(fd)
        if on:
            done.append(path)

    yield make
    for path in done:
        make(path, on=False)


@pytest.mark.parametrize("others", [0, 1])
def test_immutable_file(folder: Path, immutable: Callable[..., None], others: int) -> None:
    """EPERM at the swap: rolled back, with lsattr as the hint."""
    Path("a").write_text("old")
    Path("x").write_text("old")
    immutable("x")
    with pytest.raises(errors.CommitError, match="lsattr") as caught, atomik.transaction(overwrite=True) as tx:
        for _ in range(others):
            tx.file("a").write("new")
        tx.file("x").write("new")
    assert (caught.value.errno, caught.value.filename) == (errno.EPERM, str(folder / "x"))
    assert {name: Path(name).read_text() for name in os.listdir()} == {"a": "old", "x": "old"}


def test_immutable_parent(folder: Path, immutable: Callable[..., None]) -> None:
    Path("d").mkdir()
    immutable("d")
    with pytest.raises(errors.AtomikOSError) as caught, atomik.file("d/x") as f:
        f.write("new")
    assert caught.value.errno in (errno.EPERM, errno.EACCES)
    assert os.listdir("d") == []


def test_read_only_filesystem() -> None:
    """EROFS says to remount or go elsewhere."""
    need(namespace.missing_root())
    with mounts.mounted("tmpfs") as place, mounts.read_only(place.root):
        with pytest.raises(errors.AtomikOSError, match="read-only") as caught:
            atomik.file(place.folder / "x")
        assert caught.value.errno == errno.EROFS


def test_mount_point(folder: Path) -> None:
    """A mounted file or folder, and a mount inside a folder, are not displaced; the mount is named."""
    need(namespace.missing_root())
    for name, kind in (("f", "file"), ("d", "folder"), ("outer/inner", "inside")):
        source = folder.parent / f"source-{kind}"
        if kind == "file":
            source.write_text("mounted")
        else:
            source.mkdir()
        (folder / "outer").mkdir(exist_ok=True)
        with mounts.bind(source, folder / name):
            target = {"file": "f", "folder": "d", "inside": "outer"}[kind]
            with atomik.transaction(overwrite=True) as tx:
                with pytest.raises(errors.MountPointError, match="unmount") as caught:
                    tx.file(target) if kind == "file" else tx.folder(target)
                assert caught.value.filename == str(folder / name)
                with pytest.raises(errors.MountPointError):
                    tx.remove(target)
                tx.abort()


def test_current_folder_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path in a folder that is gone is a missing folder, not a crash."""
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    with pytest.raises(errors.MissingPathError):
        atomik.file("x")
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_special_files_are_replaced_like_files(folder: Path, kind: str) -> None:
    """A FIFO at the destination blocks nobody: it is displaced like any name, and put back on failure."""
    if kind == "fifo":
        os.mkfifo("x")
    else:
        os.mknod("x", stat.S_IFSOCK | 0o600)
    with pytest.raises(ZeroDivisionError), atomik.file("x", overwrite=True) as f:
        raise ZeroDivisionError
    with atomik.file("x", overwrite=True) as f:
        f.write("now a file")
    assert Path("x").read_text() == "now a file"


@pytest.mark.parametrize("path", [".atomik-journal/f", "a/.atomik-0123456789abcdef/b/f"])
def test_no_parent_gets_a_reserved_name(folder: Path, path: str) -> None:
    """A folder that is called like a journal would block the folder that it is in."""
    with pytest.raises(errors.InvalidDestinationError, match="reserved for atomik"):
        atomik.write_text(path, "x", parents=True)
    assert os.listdir() == []
