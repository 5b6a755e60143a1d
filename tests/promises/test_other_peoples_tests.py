"""Programs that use atomik are tested with other people's tools: those work, or are told what to do."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atomik
from atomik import errors

if TYPE_CHECKING:
    from collections.abc import Callable


def one(folder: Path) -> None:
    with atomik.file(folder / "a", overwrite=True) as f:
        f.write("x")


def group(folder: Path) -> None:
    with atomik.transaction(overwrite=True) as tx:
        tx.file(folder / "a").write("x")
        (tx.folder(folder / "b") / "page").write_text("x")


PUBLISHERS = pytest.mark.parametrize("publish", [one, group])


@PUBLISHERS
def test_pyfakefs_is_refused_with_the_cure(tmp_path: Path, publish: Callable[[Path], None]) -> None:
    """A fake filesystem is not a place for atomik; nothing is written, neither there nor on the real disk."""
    fake = pytest.importorskip("pyfakefs.fake_filesystem_unittest")
    with fake.Patcher() as patcher:
        patcher.fs.create_dir(tmp_path)
        with pytest.raises(errors.UnsupportedFilesystemError, match=r"pyfakefs.*tmp_path"):
            publish(Path(tmp_path))
        with pytest.raises(errors.UnsupportedFilesystemError, match="pyfakefs"):
            atomik.recover(tmp_path)
        patcher.pause()
        publish(tmp_path)
        patcher.resume()
    assert (tmp_path / "a").read_text() == "x"


@PUBLISHERS
def test_freezegun(tmp_path: Path, publish: Callable[[Path], None]) -> None:
    """Time stands still, and everything works; waiting for a lock still ends."""
    freezegun = pytest.importorskip("freezegun")
    with freezegun.freeze_time("2020-02-02"):
        assert datetime.date.today().year == 2020
        publish(tmp_path)
        publish(tmp_path)
        with atomik.reading(tmp_path), pytest.raises(errors.LockTimeoutError):
            tx = atomik.transaction(overwrite=True, lock_timeout=0.1)
            with tx:
                tx.folder(tmp_path / "b")
                tx.file(tmp_path / "a")


@PUBLISHERS
def test_nothing_is_printed(tmp_path: Path, publish: Callable[[Path], None], capfd: pytest.CaptureFixture[str]) -> None:
    """Neither capsys nor capfd sees anything of atomik's."""
    publish(tmp_path)
    assert capfd.readouterr() == ("", "")


@PUBLISHERS
def test_caplog_sees_the_events(
    tmp_path: Path, publish: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """With their fields as attributes, once the level of the logger "atomik" lets them through."""
    publish(tmp_path)
    assert caplog.records == []
    with caplog.at_level("INFO", logger="atomik"):
        publish(tmp_path)
    assert [record.event for record in caplog.records] == ["transaction.committed"]  # type: ignore[attr-defined]
    assert caplog.records[0].filename == Path(__file__).name
