"""fsspec's own abstract suites, unchanged, on `AtomikFileSystem`: outside and inside a transaction."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("fsspec", reason="needs the extra atomik[fsspec]")

import fsspec.tests.abstract as abstract

from atomik.fsspec.filesystem import AtomikFileSystem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


#: Of fixtures in the suites of older versions.
#: fsspec's own suite
pytestmark = [pytest.mark.sweep, pytest.mark.filterwarnings("ignore:Class-scoped fixtures")]


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    """A fresh folder for each test, with durability left out for speed."""

    @pytest.fixture
    def fs(self) -> AtomikFileSystem:
        return AtomikFileSystem(auto_mkdir=True, durable=False)

    @pytest.fixture
    def fs_path(self, tmp_path: Path) -> str:
        place = tmp_path / "remote"
        place.mkdir()
        return str(place)

    @pytest.fixture
    def local_path(self, tmp_path: Path) -> str:
        place = tmp_path / "local"
        place.mkdir()
        return str(place)


class InTransaction(Fixtures):
    """The same, with the whole test inside one transaction, so that it sees its own work; then everything is dropped."""

    @pytest.fixture
    def fs(self, fs_path: str) -> Iterator[AtomikFileSystem]:
        fs = AtomikFileSystem(auto_mkdir=True, durable=False, skip_instance_cache=True)
        with pytest.raises(_DropError), fs.transaction:
            yield fs
            raise _DropError
        assert os.listdir(fs_path) == []


class _DropError(Exception):
    pass


class TestCopy(abstract.AbstractCopyTests, Fixtures):  # type: ignore[misc]
    pass


class TestGet(abstract.AbstractGetTests, Fixtures):  # type: ignore[misc]
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):  # type: ignore[misc]
    pass


class TestOpen(abstract.AbstractOpenTests, Fixtures):  # type: ignore[misc]
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):  # type: ignore[misc]
    pass


class TestCopyInTransaction(abstract.AbstractCopyTests, InTransaction):  # type: ignore[misc]
    pass


class TestGetInTransaction(abstract.AbstractGetTests, InTransaction):  # type: ignore[misc]
    pass


class TestPutInTransaction(abstract.AbstractPutTests, InTransaction):  # type: ignore[misc]
    pass


class TestOpenInTransaction(abstract.AbstractOpenTests, InTransaction):  # type: ignore[misc]
    pass


class TestPipeInTransaction(abstract.AbstractPipeTests, InTransaction):  # type: ignore[misc]
    pass


def test_every_suite_is_run() -> None:
    """A suite that a new fsspec brings is noticed here."""
    suites = {name for name in dir(abstract) if name.startswith("Abstract") and name.endswith("Tests")}
    run: Any = {base.__name__ for cls in globals().values() if isinstance(cls, type) for base in cls.__mro__}
    assert suites <= run
