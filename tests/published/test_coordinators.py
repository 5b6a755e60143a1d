"""The examples in which a database or another filesystem decides: killed at every call, the two agree after recovery."""

from __future__ import annotations

import importlib.util
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from atomik.testing import crash_points
from tests.support.state import left_in

if TYPE_CHECKING:
    from atomik.testing import CrashPoint

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [
    pytest.mark.sweep,
    pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not here: not a checkout"),
]


def load(name: str) -> Any:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # SQLAlchemy looks annotations up there
    spec.loader.exec_module(module)
    return module


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def test_files_and_sqlite(tmp_path: Path) -> None:
    """File and row, a replaced file and a changed row: always of one time."""
    example, folder = load("files_and_sqlite"), tmp_path / "gallery"
    outcomes = set()

    def prepare() -> None:
        (fresh(folder) / "pictures").mkdir()
        example.add(folder, "one.svg", b"<svg/>")

    def check(point: CrashPoint) -> None:
        example.recover(folder)
        with closing(sqlite3.connect(folder / "pictures.sqlite")) as database:
            rows = dict(database.execute("SELECT name, size FROM picture"))
        files = {path.name: path.stat().st_size for path in (folder / "pictures").glob("*.svg")}
        assert rows == files
        latest = (folder / "pictures" / "latest.txt").read_text()
        assert latest == ("two.svg" if "two.svg" in rows else "one.svg")
        assert not left_in(folder)
        outcomes.add("two.svg" in rows)
        assert "two.svg" in rows or not point.returned

    count = crash_points(lambda: example.add(folder, "two.svg", b"<svg>two</svg>"), check, prepare=prepare)
    assert count > 40
    assert outcomes == {True, False}


def test_the_database_fails_behind_its_commit(tmp_path: Path) -> None:
    """An interrupt right after the moment that decides: both are there, and the interrupt is raised."""
    example, folder = load("files_and_sqlite"), tmp_path / "gallery"
    (fresh(folder) / "pictures").mkdir()

    class Interrupted(sqlite3.Connection):
        def commit(self) -> None:
            super().commit()
            raise KeyboardInterrupt

    example.connect(folder).close()
    with closing(sqlite3.connect(folder / "pictures.sqlite", factory=Interrupted)) as database:
        with pytest.raises(KeyboardInterrupt), example.both(database) as files:
            files.file(folder / "pictures" / "one.svg").write("<svg/>")
            database.execute("INSERT INTO picture VALUES ('one.svg', 6)")
        assert database.execute("SELECT name FROM picture").fetchall() == [("one.svg",)]
    assert (folder / "pictures" / "one.svg").read_text() == "<svg/>"
    assert not left_in(folder)


def test_files_and_sqlalchemy(tmp_path: Path) -> None:
    """The same by the events of a session."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    example, folder = load("files_and_sqlalchemy"), tmp_path / "work"

    def engine() -> Any:
        return sqlalchemy.create_engine(f"sqlite:///{folder / 'db.sqlite'}", poolclass=sqlalchemy.pool.NullPool)

    def prepare() -> None:
        (fresh(folder) / "reports").mkdir()
        example.Base.metadata.create_all(engine())

    outcomes = set()

    def check(point: CrashPoint) -> None:
        example.recover(folder / "reports", engine())
        with engine().connect() as connection:
            rows = {row.name: row.size for row in connection.execute(sqlalchemy.text("SELECT name, size FROM report"))}
        files = {path.stem: path.stat().st_size for path in (folder / "reports").iterdir()}
        assert rows == files
        outcomes.add(len(files))

    crash_points(lambda: example.write(folder / "reports", engine(), "june", "warm\n"), check, prepare=prepare)
    assert outcomes == {0, 1}


def test_two_filesystems(tmp_path: Path) -> None:
    """Killed at every call, outputs on both are of one time."""
    example, first, second = load("two_filesystems"), tmp_path / "first", tmp_path / "second"
    outcomes = set()

    def prepare() -> None:
        for folder in (first, second):
            (fresh(folder) / "f").write_text("old")

    def publish() -> None:
        with example.on_both(first) as (one, other):
            one.file(first / "f").write("new")
            other.file(second / "f").write("new")

    def check(point: CrashPoint) -> None:
        example.recover(first, second)
        assert (first / "f").read_text() == (second / "f").read_text()
        assert [path.name for folder in (first, second) for path in folder.iterdir()] == ["f", "f"]
        outcomes.add((first / "f").read_text())

    crash_points(publish, check, prepare=prepare)
    assert outcomes == {"old", "new"}


def test_two_phase(tmp_path: Path) -> None:
    """Any participant's no, at any moment, takes the files back."""
    transaction = pytest.importorskip("transaction")
    example = load("two_phase")
    (tmp_path / "f").write_text("old")
    for method in ("tpc_begin", "commit", "tpc_vote"):

        class Other(example.Files):  # type: ignore[misc,name-defined]
            def sortKey(self) -> str:  # noqa: N802  the protocol's name
                return "~~last"

        def refuse(self: Any, current: Any) -> None:
            raise RuntimeError("no")

        setattr(Other, method, refuse)
        manager = transaction.TransactionManager()
        with pytest.raises(RuntimeError, match="no"), manager:
            example.Files(manager).files.file(tmp_path / "f").write("new")
            Other(manager)
        assert (tmp_path / "f").read_text() == "old"
        assert not left_in(tmp_path)
    manager = transaction.TransactionManager()
    with manager:
        example.Files(manager).files.file(tmp_path / "f").write("new")
    assert (tmp_path / "f").read_text() == "new"
