"""The ladder: which method serves where the filesystem lacks something, and that each keeps its promise; and undo."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from atomik._folder import filesystem as _filesystem
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._protocol import publish as _publish
from atomik._protocol import undo as _undo
from atomik._protocol.step import Step, Undone
from atomik._system import kernel as _kernel
from tests.support.kernels import Acting, Answer, Faulty, Poor, every_call, installed
from tests.support.state import left_in, tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No filesystem is known to have the flags: each has to be probed."""
    monkeypatch.setattr(_filesystem, "_TRUSTED_FLAGS", frozenset())
    _filesystem.forget()
    yield
    monkeypatch.undo()
    _filesystem.forget()


NO_FLAGS = ("noreplace", "exchange")
POOR = [
    pytest.param((), id="everything"),
    pytest.param(("exchange",), id="no exchange"),
    pytest.param(NO_FLAGS, id="no flags"),
    pytest.param((*NO_FLAGS, "tmpfile"), id="no flags, no O_TMPFILE"),
    pytest.param(("tmpfile",), id="no O_TMPFILE"),
    pytest.param(("exchange", "tmpfile"), id="no exchange, no O_TMPFILE"),
]


def method(receipt: atomik.Receipt | None) -> list[str]:
    assert receipt is not None
    return [item.method for item in receipt.items]


@pytest.mark.parametrize("lacks", POOR)
@pytest.mark.usefixtures("unknown")
def test_files_everywhere(folder: Path, lacks: tuple[str, ...]) -> None:
    """Without any flags, files are created, replaced and removed nevertheless, alone and in groups; the receipt says how."""
    replaced = "link" if "exchange" in lacks else "renameat2"
    with installed(Poor(*lacks)):
        with atomik.file("a") as f:
            f.write("1")
        output = atomik.file("a", overwrite=True)
        with output as f:
            f.write("2")
        assert method(output.receipt) == [replaced]
        with pytest.raises(errors.FileAlreadyExistsError):
            atomik.file("a")
        with atomik.transaction(overwrite=True) as tx:
            tx.file("a").write("3")
            tx.file("b").write("new")
            tx.symlink("c", "a")
        assert tx.receipt is not None
        created = "link" if "noreplace" in lacks else "renameat2"
        assert method(tx.receipt) == [replaced, created, created]
        with atomik.transaction() as tx:
            tx.remove("b")
            tx.move("a", "d")
    assert {name: Path(name).read_text() for name in ("d",)} == {"d": "3"}
    assert sorted(os.listdir()) == ["c", "d"]


@pytest.mark.sweep
@pytest.mark.parametrize("lacks", POOR)
@pytest.mark.usefixtures("unknown")
def test_a_failing_call_on_a_poor_filesystem(folder: Path, lacks: tuple[str, ...]) -> None:
    """Any call failing on the lower methods: all old or all new, nothing left."""
    place = folder / "x"

    def job() -> None:
        with atomik.transaction(overwrite=True) as tx:
            tx.file("a").write("new")
            tx.file("b").write("new")
            tx.remove("c")

    def reset() -> dict[str, Any]:
        os.chdir(folder)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        os.chdir(place)
        Path("a").write_text("old")
        Path("c").write_text("old")
        return tree(place)

    old = reset()
    with installed(Poor(*lacks)):
        job()
    new = tree(place)
    reset()
    for single in (job, overwrite_one):
        for point in every_call(errno.EIO):
            reset()
            exc: BaseException | None = None
            with installed(Poor(*lacks)), installed(point.kernel):
                try:
                    single()
                except errors.AtomikOSError as error:
                    exc = error
            where = (point.kernel.struck, exc)
            found = {name: value for name, value in tree(place).items() if ".atomik-" not in name}
            if isinstance(exc, errors.DurabilityError):
                atomik.recover(place)
            elif exc is not None:
                assert found == old, where
            elif single is job:
                assert found == new, where
            assert not left_in(place), where
    os.chdir(folder)


def overwrite_one() -> None:
    with atomik.file("a", overwrite=True) as f:
        f.write("new")


NOTHING = (*NO_FLAGS, "link", "tmpfile")  # as on vfat without its flags, or a minimal FUSE server


@pytest.mark.usefixtures("unknown")
def test_neither_flags_nor_links(folder: Path) -> None:
    """One overwritten file is still one rename; what nothing can do in one step is refused, or done on request."""
    Path("a").write_text("old")
    with installed(Poor(*NOTHING)):
        output = atomik.file("a", overwrite=True)
        with output as f:
            f.write("new")
        assert method(output.receipt) == ["rename"]
        with pytest.raises(errors.UnsupportedFilesystemError, match="allow_gap"), atomik.file("b") as f:
            f.write("new")
        with pytest.raises(errors.FileAlreadyExistsError), atomik.file("a", allow_gap=True) as f:
            f.write("newer")
        output = atomik.file("b", allow_gap=True)
        with output as f:
            f.write("new")
        assert method(output.receipt) == ["gap"]
    assert {name: Path(name).read_text() for name in os.listdir()} == {"a": "new", "b": "new"}


@pytest.mark.usefixtures("unknown")
def test_a_plain_rename_has_no_way_back(folder: Path) -> None:
    """The last method: a failure after it leaves the new version, and says so."""
    Path("a").write_text("old")
    with (
        installed(Poor(*NOTHING)),
        installed(Faulty(fails_on_folders, {"fsync"})),
        pytest.raises(errors.DurabilityError),
    ):
        overwrite_one()
    assert Path("a").read_text() == "new"


def fails_on_folders(call: Any) -> int | None:
    return errno.EIO if os.path.isdir(call.paths[0]) else None


@pytest.mark.usefixtures("unknown")
def test_groups_without_flags_and_links(folder: Path) -> None:
    """A group needs a way back, so it is refused with everything as it was, unless a gap is allowed."""
    Path("a").write_text("old")
    with installed(Poor(*NOTHING)):
        with pytest.raises(errors.UnsupportedFilesystemError), atomik.transaction(overwrite=True) as tx:
            tx.file("a").write("new")
            tx.file("b").write("new")
        assert tree(folder).keys() == {"a"}
        with atomik.transaction(overwrite=True) as tx:
            tx.file("a", allow_gap=True).write("new")
            tx.file("b", allow_gap=True).write("new")
        Path("sub").mkdir()
        with pytest.raises(errors.UnsupportedFilesystemError, match="hard links"), atomik.transaction() as tx:
            tx.file("c", allow_gap=True)
            tx.file("sub/c", allow_gap=True)
    assert sorted(tree(folder)) == ["a", "b", "sub"]


def test_exchange_says_EXDEV_inside_one_mount(folder: Path) -> None:
    """A folder in an overlay's lower layer: the error says what helps, and nothing is changed."""
    Path("d").mkdir()
    broken = Faulty.every("rename", errno.EXDEV)
    wanted = pytest.raises(errors.UnsupportedFilesystemError, match="redirect_dir=on")
    with installed(broken), wanted as caught, atomik.folder("d", overwrite=True):
        pass
    assert caught.value.errno == errno.EXDEV
    assert os.listdir() == ["d"]


@pytest.mark.usefixtures("unknown")
def test_folders_are_refused_when_staged(folder: Path) -> None:
    """Where no flag works, a folder cannot be published in one step: said before anything is written, with the cure."""
    Path("d").mkdir()
    with installed(Poor(*NO_FLAGS)):
        for path, overwrite in (("new", False), ("d", True)):
            with pytest.raises(errors.UnsupportedFilesystemError, match="allow_gap=True") as caught:
                atomik.folder(path, overwrite=overwrite)
            assert caught.value.filename == str(folder / path)
    assert os.listdir() == ["d"]


@pytest.mark.usefixtures("unknown")
def test_folders_with_a_gap_on_request(folder: Path) -> None:
    """allow_gap=True creates and replaces folders with a moment of visibility, and says so."""
    with installed(Poor(*NO_FLAGS)):
        for content in ("1", "2"):
            output = atomik.folder("d", overwrite=content == "2", allow_gap=True)
            with output as d:
                (d / content).touch()
            assert method(output.receipt) == ["gap"]
            assert os.listdir("d") == [content]


@pytest.mark.sweep
@pytest.mark.usefixtures("unknown")
def test_folders_with_a_gap_are_undone(folder: Path) -> None:
    """Whatever call fails on the method with a gap, all is old or all is new."""
    place = folder / "x"
    for point in every_call(errno.EIO):
        os.chdir(folder)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        os.chdir(place)
        Path("d").mkdir()
        Path("d/old").touch()
        exc = None
        with installed(Poor(*NO_FLAGS)), installed(point.kernel):
            try:
                with atomik.transaction(overwrite=True) as tx:
                    (tx.folder("d", allow_gap=True) / "new").touch()
                    (tx.folder("e", allow_gap=True) / "new").touch()
            except errors.AtomikOSError as error:
                exc = error
        where = (point.kernel.struck, exc)
        if isinstance(exc, (errors.DurabilityError, errors.RollbackError)):
            atomik.recover(place)
        wanted = ["old"] if exc is not None and not isinstance(exc, errors.DurabilityError) else ["new"]
        assert os.listdir("d") == wanted, where
        assert os.path.exists("e") == (wanted == ["new"]), where
        assert not left_in(place), where
    os.chdir(folder)


@pytest.mark.usefixtures("unknown")
def test_a_server_that_lies_about_exchange(folder: Path) -> None:
    """It answers yes and destroys the target: found out with scratch files, so that nothing of the user's is lost."""
    Path("a").write_text("precious")
    Path("d").mkdir()
    with installed(Poor("lies")):
        for attempt in (lambda: atomik.file("a", overwrite=True), lambda: atomik.folder("d", overwrite=True)):
            with pytest.raises(errors.UnsupportedFilesystemError, match=r"would lose data|cannot"):
                attempt()
        with atomik.file("new") as f:
            f.write("creating is no problem")
    assert Path("a").read_text() == "precious"
    assert sorted(os.listdir()) == ["a", "d", "new"]


def test_a_trusted_filesystem_is_not_given_up(folder: Path) -> None:
    """One EINVAL on ext4 is about two names, and does not take the flag from the filesystem forever."""
    Path("d").mkdir()
    once = [True]

    def refuse(call: Any) -> None:
        if call.args[4] == _kernel.EXCHANGE and once and once.pop():
            raise Answer(errno.EINVAL)

    with installed(Acting("rename", refuse)):
        with pytest.raises(errors.AtomikOSError), atomik.folder("d", overwrite=True) as d:
            (d / "first").touch()
        with atomik.folder("d", overwrite=True) as d:
            (d / "second").touch()
    assert os.listdir("d") == ["second"]


# --- undo, by identity only ------------------------------------------------------------------------------------------


@pytest.fixture
def here(folder: Path) -> Iterator[Directory]:
    directory = Directory.open(str(folder))
    yield directory
    directory.close()


def make(name: str, kind: str) -> None:
    if kind == "folder":
        Path(name).mkdir()
        Path(name, name).touch()
    else:
        Path(name).write_text(name)


def a_step(here: Directory, op: str, kind: str) -> Step:
    """A step that is about to be swapped: "dest" and "slot" hold what they should."""
    dest, slot = Place(here, "dest"), Place(here, "slot")
    if op != "create":
        make("dest", kind)
    if op != "remove":
        make("slot", kind)
    return Step(op, kind, dest, slot, slot.identity(), dest.identity())


steps = pytest.mark.parametrize("op", ["create", "replace", "remove"])
kinds = pytest.mark.parametrize("kind", ["file", "folder"])


@steps
@kinds
def test_undo_is_idempotent(here: Directory, op: str, kind: str) -> None:
    """I5: before the swap, after it and after an undo, undoing gives the original, however often."""
    step = a_step(here, op, kind)
    before = tree(".")
    assert _undo.undo(step) is Undone.UNTOUCHED
    _publish.publish(step)
    assert step.method == "renameat2"
    assert tree(".") != before
    assert _undo.undo(step) is Undone.UNDONE
    assert tree(".") == before
    assert _undo.undo(step) is Undone.UNTOUCHED
    _publish.publish(step)
    assert _undo.undo(step) is Undone.UNDONE
    assert tree(".") == before


@steps
@kinds
def test_undo_leaves_strangers_alone(here: Directory, op: str, kind: str) -> None:
    """I4: what is neither the old nor the new object stays, and the original stays in the slot."""
    step = a_step(here, op, kind)
    _publish.publish(step)
    if op != "remove":
        os.rename("dest", "ours")
    make("theirs", kind)
    os.rename("theirs", "dest")
    before = tree(".")
    assert _undo.undo(step) is Undone.FOREIGN
    assert tree(".") == before


@steps
@kinds
def test_undo_meets_a_stranger_at_the_last_moment(here: Directory, op: str, kind: str) -> None:
    """What a stranger publishes between the check and the rename is given back."""
    step = a_step(here, op, kind)
    _publish.publish(step)
    make("theirs", kind)

    def come(_: object) -> None:
        if os.path.exists("dest"):
            os.rename("dest", "pushed aside")
        os.rename("theirs", "dest")

    kernel = Acting("rename", come, when=lambda call: kernel.acted == 0)
    with installed(kernel):
        result = _undo.undo(step)
    assert result is Undone.FOREIGN
    there = os.listdir("dest") == ["theirs"] if kind == "folder" else Path("dest").read_text() == "theirs"
    assert there


@pytest.mark.parametrize("op", ["create", "replace", "remove"])
def test_lower_methods_are_undone_too(here: Directory, op: str) -> None:
    """What was published by links is undone by links."""
    step = a_step(here, op, "file")
    before = tree(".")
    with installed(Poor(*NO_FLAGS)):
        _publish.publish(step)
        assert step.method == "link"
        assert _undo.undo(step) is Undone.UNDONE
    assert tree(".").get("dest") == before.get("dest")  # the twins lie in the private folder, and go with it


@kinds
def test_swap_checks_what_it_did(here: Directory, kind: str) -> None:
    """I4: an exchange that brought out something unexpected is a conflict, and is given back."""
    step = a_step(here, "replace", kind)

    def replace(_: object) -> None:
        make("theirs", kind)
        os.rename("dest", "old")
        os.rename("theirs", "dest")

    kernel = Acting("rename", replace, when=lambda call: kernel.acted == 0)
    with installed(kernel), pytest.raises(errors.ConflictError, match="someone else replaced"):
        _publish.publish(step)
        _publish.check(step)
    assert (os.listdir("dest") == ["theirs"]) if kind == "folder" else (Path("dest").read_text() == "theirs")


def test_lost_race_by_kind_of_step(here: Directory, folder: Path) -> None:
    """EEXIST for a creation is a lost race; with overwrite it is a conflict."""
    step = a_step(here, "create", "file")
    Path("dest").write_text("theirs")
    with pytest.raises(errors.FileAlreadyExistsError, match="overwrite=True"):
        _publish.publish(step)
    step.overwriting = True
    with pytest.raises(errors.ConflictError, match="in the meantime"):
        _publish.publish(step)
    assert Path("dest").read_text() == "theirs"


def call_counts(job: Callable[[], None]) -> int:
    kernel = Acting("rename", lambda call: None)
    with installed(kernel):
        job()
    return kernel.acted


def test_one_rename_for_each_item(folder: Path) -> None:
    """P1: one renameat2 publishes one item; an overwritten file takes no more."""
    Path("a").touch()
    assert call_counts(overwrite_one) == 1


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize("dir_fd", [None, -100])
def test_swap_refuses_a_liar_also_by_descriptor(folder: Path, dir_fd: int | None) -> None:
    """-100, AT_FDCWD, is the current folder, and is looked at like one."""
    for name in "ab":
        Path(name).write_text(name)
    with installed(Poor("lies")), pytest.raises(errors.UnsupportedFilesystemError):
        atomik.swap("a", "b", second_dir_fd=dir_fd)
    assert {name: Path(name).read_text() for name in os.listdir()} == {"a": "a", "b": "b"}
