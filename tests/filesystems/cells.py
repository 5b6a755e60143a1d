"""One scenario on one ground: what came of it, and whether that is well.

Well is either *passed*: the tree is what the scenario says; or *refused*: an error of atomik's with the path and a
cure in its message, the tree is what it was before.  In both cases nothing of atomik's is left.  Anything else is an
AssertionError here, and so a failing test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define

import atomik
from atomik import errors
from tests.filesystems.scenarios import Scenario, apply, look
from tests.support.state import left_in

if TYPE_CHECKING:
    from pathlib import Path


@define(frozen=True)
class Cell:
    """What came of it: ``outcome`` is "passed" or the name of the error's class; ``methods`` as in the receipt."""

    outcome: str
    methods: tuple[str, ...] = ()
    message: str = ""


def play(scenario: Scenario, folder: Path) -> Cell:
    """Play it in the folder, which was filled by `scenarios.before`."""
    old = look(folder)
    try:
        changes, receipt = scenario.play(folder)
    except errors.AtomikError as exc:
        cell = _refused(exc, folder, old)
    else:
        assert look(folder) == apply(old, changes)
        if isinstance(receipt, atomik.Receipt):
            cell = Cell("passed", tuple(dict.fromkeys(item.method for item in receipt.items)))
        else:
            cell = Cell("passed", (receipt,) if receipt else ())
    assert not left_in(folder)
    return cell


def _refused(exc: errors.AtomikError, folder: Path, old: dict[str, str]) -> Cell:
    assert look(folder) == old, f"changed although refused: {exc!r}"
    check_message(exc, folder)
    return Cell(type(exc).__name__, message=str(exc))


def check_message(exc: errors.AtomikError, folder: Path) -> None:
    """An errno, a path below the folder, and what to do, which follows a semicolon."""
    assert isinstance(exc, OSError), repr(exc)
    assert exc.errno, repr(exc)
    assert str(exc.filename).startswith(str(folder)), repr(exc)
    assert ";" in exc.strerror, f"no cure in {exc.strerror!r}"
