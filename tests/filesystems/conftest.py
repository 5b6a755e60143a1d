"""One mount for each kind of ground and module: the fixture that the core suite runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.filesystems.grounds import ALL_NAMES, GROUNDS
from tests.support.lab.need import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module", params=list(GROUNDS))
def ground(request: pytest.FixtureRequest) -> Iterator[tuple[str, Callable[[str], Path]]]:
    """(its name, from a scenario's name to its folder): mounted once for all the scenarios of a module."""
    chosen = GROUNDS[request.param]
    need(chosen.missing())
    with chosen.open(ALL_NAMES) as folder_for:
        yield chosen.name, folder_for
