"""The reference page "capabilities", made from a run of the core suite:

    python -m tests.filesystems.table          # as root; writes docs/reference/capabilities.md

Grounds that give the same in every row share a column.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Mapping
from pathlib import Path

import atomik
from tests.filesystems.cells import Cell, play
from tests.filesystems.grounds import ALL_NAMES, GROUNDS
from tests.filesystems.scenarios import SCENARIOS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "capabilities.md"
_BEGIN, _END = "<!-- begin of the table: made by python -m tests.filesystems.table -->", "<!-- end of the table -->"

Results = Mapping[str, Mapping[str, Cell]]

_FLAGS = {
    "noreplace": "no-replace",
    "exchange": "exchange",
    "tmpfile": "`O_TMPFILE`",
    "hard_links": "hard links",
    "file_handles": "file handles",
    "reflink": "reflink",
    "syncfs": "syncfs",
    "acls": "ACLs",
}


def run() -> tuple[Results, Mapping[str, atomik.Capabilities]]:
    """Play everything that can be played here; what cannot is said on stderr."""
    results, probed = {}, {}
    for name, ground in GROUNDS.items():
        if (why := ground.missing()) is not None:
            print(f"{name}: {why}", file=sys.stderr)
            continue
        with ground.open(ALL_NAMES) as folder_for:
            results[name] = {key: play(scenario, folder_for(key)) for key, scenario in SCENARIOS.items()}
            probed[name] = atomik.probe(folder_for("probe"))
    return results, probed


def render(results: Results, probed: Mapping[str, atomik.Capabilities]) -> str:
    """Both tables, in Markdown."""
    return "\n\n".join((_abilities(probed), matrix(results)))


def _abilities(probed: Mapping[str, atomik.Capabilities]) -> str:
    rows = []
    for name, can in probed.items():
        if "-lower-" in name:
            continue  # the same mount as another
        flags = ["yes" if getattr(can, flag) else "–" for flag in _FLAGS]
        promises = ["" if promise.holds == "yes" else promise.holds for promise in can.promises]
        limits = ", ".join(f"{p.name}: {how}" for p, how in zip(can.promises, promises, strict=True) if how)
        rows.append([GROUNDS[name].about, *flags, limits or "all hold"])
    return _table(["", *_FLAGS.values(), "promises"], rows)


def matrix(results: Results) -> str:
    """Every scenario on every ground; a letter stands for the grounds of a column, which would not fit above it."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for name, cells in results.items():
        columns.setdefault(tuple(_shown(cells[key]) for key in SCENARIOS), []).append(name)
    letters = string.ascii_uppercase[: len(columns)]
    told = ("; ".join(GROUNDS[name].about for name in names) for names in columns.values())
    legend = "\n".join(f"* **{letter}**: {grounds}" for letter, grounds in zip(letters, told, strict=True))
    rows = [[SCENARIOS[key].about, *(column[at] for column in columns)] for at, key in enumerate(SCENARIOS)]
    return f"{legend}\n\n{_table(['', *letters], rows)}"


def _shown(cell: Cell) -> str:
    if cell.outcome != "passed":
        return "refused"
    return ", ".join(filter(None, cell.rungs)) or "yes"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def documented() -> str:
    """What the page holds at present."""
    return PAGE.read_text().split(_BEGIN)[1].split(_END)[0].strip()


def main() -> None:
    """Replace the tables on the page."""
    head, rest = PAGE.read_text().split(_BEGIN)
    tail = rest.split(_END)[1]
    PAGE.write_text(f"{head}{_BEGIN}\n\n{render(*run())}\n\n{_END}{tail}")


if __name__ == "__main__":
    main()
