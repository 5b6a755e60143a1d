"""Worlds to die in."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash.deaths import recover_all
from tests.crash.scenarios import World

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY = "/dev/shm"  # noqa: S108


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """In memory where there is that: a death takes no sync with it, so what a disk costs would be for nothing."""
    in_memory = Path(MEMORY).is_dir() and os.access(MEMORY, os.W_OK)
    top = Path(tempfile.mkdtemp(prefix="atomik-", dir=MEMORY)) if in_memory else tmp_path
    try:
        yield World(top / "world")
    finally:
        shutil.rmtree(top, ignore_errors=True)


@pytest.fixture
def world_on_disk(tmp_path: Path) -> Iterator[World]:
    """Where pytest has its temporary folders."""
    yield World(tmp_path / "world")
    with contextlib.suppress(FileNotFoundError):
        recover_all(World(tmp_path / "world"))
