"""A FUSE server that ignores the flags of renameat2 and reports success: overwriting is refused, data is safe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from atomik._folder import filesystem as _filesystem
from tests.filesystems.scenarios import look
from tests.support.kernels import Recording, installed
from tests.support.lab import mounts
from tests.support.lab.need import need
from tests.support.state import left_in

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.filesystems]


@pytest.fixture
def liar() -> Iterator[Path]:
    """A folder on the server, with a file and a folder."""
    need(mounts.missing("fuse-ignores"))
    with mounts.mounted("fuse-ignores") as place:
        (place.folder / "report").write_text("old report")
        (place.folder / "site").mkdir()
        (place.folder / "site" / "index").write_text("old index")
        yield place.folder


def _file(folder: Path) -> Any:
    return atomik.file(folder / "report", overwrite=True)


def _folder(folder: Path) -> Any:
    return atomik.folder(folder / "site", overwrite=True)


def _path(folder: Path) -> Any:
    return atomik.path(folder / "report", overwrite=True)


def _transaction(folder: Path) -> Any:
    with atomik.transaction(overwrite=True) as tx:
        tx.file(folder / "new").write("new")
        tx.symlink(folder / "report", "new")


def _update(folder: Path) -> Any:
    return atomik.update(folder / "report")


@pytest.mark.parametrize("overwrite", [_file, _folder, _path, _transaction, _update])
def test_overwriting_is_refused_before_anything_is_touched(liar: Path, overwrite: Any) -> None:
    """The error comes when staged; no call had one of the user's names in it, and both objects are intact."""
    before = look(liar)
    with (
        installed(Recording()) as kernel,
        pytest.raises(errors.UnsupportedFilesystemError, match="lose data") as caught,
    ):
        overwrite(liar)
    assert str(caught.value.filename).startswith(str(liar))
    assert look(liar) == before
    assert not left_in(liar)
    changing = kernel.of("rename", "unlink", "link", "write", "pwrite", "truncate", "fchmod", "rmdir")
    assert changing
    assert not [call for call in changing for path in call.paths if path.endswith(("/report", "/site"))]


def test_what_replaces_nothing_is_safe(liar: Path) -> None:
    """New files and links appear by a hard link; removals and moves to free names work; a rival's file stays."""
    with atomik.transaction() as tx:
        tx.file(liar / "new").write("new")
        tx.symlink(liar / "current", "new")
        tx.remove(liar / "site")
        tx.move(liar / "report", liar / "moved")
    assert look(liar) == {"new": "new", "current": "-> new", "moved": "old report"}
    assert tx.receipt is not None
    assert {item.method for item in tx.receipt.items} == {"link"}
    with pytest.raises(errors.FileAlreadyExistsError), atomik.file(liar / "mine") as f:
        f.write("ours")
        (liar / "mine").write_text("theirs")
    assert (liar / "mine").read_text() == "theirs"


def test_a_failed_transaction_there_is_undone(liar: Path) -> None:
    """Rollback on the lying server uses no flags either."""
    before = look(liar)
    with pytest.raises(errors.FileAlreadyExistsError), atomik.transaction() as tx:
        tx.remove(liar / "site")
        tx.move(liar / "report", liar / "moved")
        tx.file(liar / "late").write("ours")
        (liar / "late").write_text("theirs")
    assert look(liar) == {**before, "late": "theirs"}


def test_the_primitive_refuses_as_well(liar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """atomik.swap, which has no transaction around it, must not destroy what it was to exchange."""
    (liar / "other").write_text("old other")
    before = look(liar)
    with pytest.raises(errors.UnsupportedFilesystemError):
        atomik.swap(liar / "report", liar / "other")
    assert look(liar) == before
    monkeypatch.chdir(liar)
    _filesystem.forget()
    with pytest.raises(errors.UnsupportedFilesystemError):  # -100: the current folder
        atomik.swap("report", "other", first_dir_fd=-100, second_dir_fd=-100)
    assert look(liar) == before


def test_the_probe_names_it(liar: Path) -> None:
    """probe() says that the server lies, which promises that leaves, and leaves nothing itself."""
    before = look(liar)
    can = atomik.probe(liar)
    assert can.lies
    assert not can.exchange
    assert [promise.holds for promise in can.promises[:2]] == ["new", "files"]
    assert "overwriting is refused" in str(can)
    assert look(liar) == before
