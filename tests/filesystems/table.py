"""The reference page "capabilities", made from a run of the core suite:

    python -m tests.filesystems.table              # as root, some 25 minutes; writes docs/reference/capabilities.md
    python -m tests.filesystems.table sshfs ext4   # only these grounds, to be looked at

Each outcome is compared with the doctor's answer; what differs is told at the end, and is the exit code.  Grounds that give
the same in every row share a column.
"""

from __future__ import annotations

import string
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import atomik
from tests.filesystems.cells import Cell
from tests.filesystems.everywhere import EVERYWHERE, play_all
from tests.filesystems.foretold import faults
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


def run(names: Collection[str] = ()) -> tuple[Results, Mapping[str, atomik.Capabilities], list[str]]:
    """Play the grounds (by default all that there can be here); what is not as the doctor says, or worse, comes third."""
    results, probed, wrong = {}, {}, []
    for name in names or EVERYWHERE:
        ground = EVERYWHERE[name]
        if (why := ground.missing()) is not None:
            print(f"{name}: {why}", file=sys.stderr)
            continue
        cells, probed[name] = play_all(ground)
        results[name] = {key: cell for key, cell in cells.items() if isinstance(cell, Cell)}
        found = [f"{key}: {cell}" for key, cell in cells.items() if isinstance(cell, str)]
        found += faults(probed[name], results[name])
        wrong += [f"{name}: {one}" for one in found]
        print(f"{name}: {len(cells)} scenarios, {len(found)} faults", file=sys.stderr)
    return results, probed, wrong


def render(results: Results, probed: Mapping[str, atomik.Capabilities]) -> str:
    """Both tables, in Markdown."""
    return "\n\n".join((_abilities(probed), matrix(results)))


def _abilities(probed: Mapping[str, atomik.Capabilities]) -> str:
    rows = []
    for name, can in probed.items():
        flags = ["yes" if getattr(can, flag) else "–" for flag in _FLAGS]
        promises = ["" if promise.holds == "yes" else promise.holds for promise in can.promises]
        limits = ", ".join(f"{p.name}: {how}" for p, how in zip(can.promises, promises, strict=True) if how)
        rows.append([EVERYWHERE[name].about, *flags, limits or "all hold"])
    return _table(["", *_FLAGS.values(), "promises"], rows)


def matrix(results: Results) -> str:
    """Every scenario on every filesystem; letters head the columns, because the names would not fit there."""
    columns = _columns(results)
    letters = [f"{'' if at < 26 else 'A'}{string.ascii_uppercase[at % 26]}" for at in range(len(columns))]
    told = ("; ".join(EVERYWHERE[name].about for name in names) for _, names in columns)
    legend = "\n".join(f"* **{letter}**: {grounds}" for letter, grounds in zip(letters, told, strict=True))
    rows = [[SCENARIOS[key].about, *(column.get(key, "–") for column, _ in columns)] for key in SCENARIOS]
    return f"{legend}\n\n{_table(['', *letters], rows)}"


def _columns(results: Results) -> list[tuple[dict[str, str], list[str]]]:
    """What is shown of grounds that give the same, wherever they give anything; the complete ones first."""
    columns: list[tuple[dict[str, str], list[str]]] = []
    for name in sorted(results, key=lambda name: -len(results[name])):
        shown = {key: _shown(cell) for key, cell in results[name].items()}
        for column, names in columns:
            if column.items() >= shown.items():
                names.append(name)
                break
        else:
            columns.append((shown, [name]))
    return columns


def documented_cells() -> dict[str, dict[str, str]]:
    """What the page shows: ground → scenario → cell, all by what they are called there."""
    lines = documented().splitlines()
    legend = {
        line[4:].split("**")[0]: line.split("**: ", 1)[1].split("; ") for line in lines if line.startswith("* **")
    }
    head = next(at for at, line in enumerate(lines) if line.startswith("|  | A |"))
    letters = lines[head].strip("| ").split(" | ")
    found: dict[str, dict[str, str]] = {}
    for line in lines[head + 2 :]:
        about, *cells = line[2:-2].split(" | ")
        for letter, cell in zip(letters, cells, strict=True):
            for ground in legend[letter]:
                found.setdefault(ground, {})[about] = cell
    return found


def _shown(cell: Cell) -> str:
    if cell.outcome != "passed":
        return "refused"
    return ", ".join(filter(None, cell.methods)) or "yes"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def documented() -> str:
    """What the page holds at present."""
    return PAGE.read_text().split(_BEGIN)[1].split(_END)[0].strip()


def main() -> int:
    """Play everything, or the grounds that are named; with all of them, replace the tables on the page."""
    names = sys.argv[1:]
    results, probed, wrong = run(names)
    if names:
        print(render(results, probed))
    else:
        head, rest = PAGE.read_text().split(_BEGIN)
        PAGE.write_text(f"{head}{_BEGIN}\n\n{render(results, probed)}\n\n{_END}{rest.split(_END)[1]}")
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
