"""The core suite on every filesystem: each cell passes, or is refused as documented with nothing changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.filesystems.cells import Cell, play
from tests.filesystems.expected import REFUSED, outcome
from tests.filesystems.grounds import GROUNDS
from tests.filesystems.scenarios import SCENARIOS
from tests.filesystems.table import _shown, documented_cells

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.filesystems]


#: What came of the cells so far.
_played: dict[str, dict[str, Cell]] = {}


@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_cell(ground: tuple[str, Callable[[str], Path]], scenario: str) -> None:
    """The scenario gives what it promises here, or the refusal that the documentation names."""
    name, folder_for = ground
    cell = play(SCENARIOS[scenario], folder_for(scenario))
    _played.setdefault(name, {})[scenario] = cell
    assert cell.outcome == outcome(name, scenario), cell


def test_what_is_expected_is_asked() -> None:
    """Every refusal in the table is of a ground and a scenario that there are."""
    for name, scenarios in REFUSED.items():
        assert name in GROUNDS
        assert scenarios <= SCENARIOS.keys()


def test_the_page_shows_this_run() -> None:
    """docs/reference/capabilities.md holds what came of the cells (python -m tests.filesystems.table writes it)."""
    page = documented_cells()
    for name, cells in _played.items():
        shown = page[GROUNDS[name].about]
        for scenario, cell in cells.items():
            assert shown[SCENARIOS[scenario].about] == _shown(cell), (name, scenario)
