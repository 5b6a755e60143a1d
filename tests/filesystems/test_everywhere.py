"""What happens is what the doctor says, on the grounds of `everywhere` that are quickly made.

The others, and the scenarios that kill and fail at many calls, are for ``python -m tests.filesystems.table``.
"""

from __future__ import annotations

import pytest

from tests.filesystems.cells import Cell
from tests.filesystems.everywhere import EVERYWHERE, play_all
from tests.filesystems.foretold import faults
from tests.filesystems.grounds import GROUNDS
from tests.filesystems.neighbours import root
from tests.filesystems.scenarios import SCENARIOS
from tests.support.lab.need import need

pytestmark = [pytest.mark.root, pytest.mark.filesystems, root]

QUICK = [name for name, ground in EVERYWHERE.items() if ground.quick and name not in GROUNDS]
_SCENARIOS = [
    name for name in SCENARIOS if not name.endswith("-weaker") and not name.startswith(("recover-", "rollback-"))
]


@pytest.mark.parametrize("name", QUICK)
def test_the_doctor_is_right(name: str) -> None:
    """Every scenario passes or is refused as the answers say, and nothing else goes wrong."""
    need(EVERYWHERE[name].missing())
    cells, can = play_all(EVERYWHERE[name], [*_SCENARIOS, "recover-files"])
    assert [(key, cell) for key, cell in cells.items() if not isinstance(cell, Cell)] == []
    assert faults(can, {key: cell for key, cell in cells.items() if isinstance(cell, Cell)}) == []
