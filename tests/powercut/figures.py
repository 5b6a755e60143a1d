"""The figures of a real run, written into the documentation, so that nobody has to copy a number by hand.

They are kept in docs/pictures/powercut.json, from which docs/pictures/powercut.py draws; the tables of
docs/explanation/how-we-know.md are between two comments and are replaced as a whole.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.powercut.campaign import Counts
from tests.powercut.gate import Row
from tests.powercut.tape import KINDS

ROOT = Path(__file__).resolve().parent.parent.parent
FIGURES = ROOT / "docs" / "pictures" / "powercut.json"
PAGE = ROOT / "docs" / "explanation" / "how-we-know.md"


def record_counts(seed: int, minutes: float, counts: Mapping[str, Counts]) -> None:
    """Write down what a campaign explored."""
    rows = {
        kind: {
            "recordings": count.recordings,
            "states": count.states,
            "recoveries": count.recoveries,
            "recovery_states": count.recovery_states,
        }
        for kind, count in counts.items()
    }
    _update({"seed": seed, "minutes": minutes, "kernel": _kernel(), "counts": rows})


def record_gate(rows: Iterable[Row]) -> None:
    """Write down where each mutant was caught."""
    _update({"gate": [{"name": r.mutant.name, "rule": r.mutant.rule, "caught": r.caught} for r in rows]})


def _kernel() -> str:
    """Major and minor version: what matters, and no name of a machine."""
    return ".".join(os.uname().release.split(".")[:2])


def _update(news: dict[str, Any]) -> None:
    old = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    FIGURES.write_text(json.dumps({**old, **news}, indent=1) + "\n", encoding="utf-8")
    write_page()
    subprocess.run([sys.executable, ROOT / "docs" / "pictures" / "build.py"], check=True)


def write_page(page: Path = PAGE) -> None:
    """Bring the tables of the page up to date."""
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """The page's text with its tables as the figures say."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    for name, table in (("counts", _counts(figures)), ("gate", _gate(figures))):
        pattern = rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end of {name} -->)"
        text, found = re.subn(pattern, lambda match, table=table: match[1] + table + match[2], text, flags=re.DOTALL)
        assert found == 1, f"the page has no place for {name}"
    return text


def _counts(figures: dict[str, Any]) -> str:
    rows = [(kind, *figures["counts"][kind].values()) for kind in KINDS if kind in figures["counts"]]
    total = ("together", *(sum(column) for column in list(zip(*rows, strict=True))[1:]))
    lines = [
        "| filesystem | recordings | crash states | recoveries cut | crash states of these |",
        "|---|--:|--:|--:|--:|",
        *(f"| {kind} | {r:,} | {s:,} | {v:,} | {w:,} |" for kind, r, s, v, w in (*rows, total)),
    ]
    head = f"`--seed {figures['seed']} --minutes {figures['minutes']:g}`, Linux {figures['kernel']}: no violation.\n\n"
    return head + "\n".join(lines) + "\n"


def _gate(figures: dict[str, Any]) -> str:
    lines = ["| left out or turned round | what it breaks | ext4 | xfs | btrfs |", "|---|---|---|---|---|"]
    for row in figures.get("gate", []):
        cells = " | ".join(row["caught"].get(kind, "–") for kind in KINDS)
        lines.append(f"| {row['name']} | {row['rule']} | {cells} |")
    return "\n".join(lines) + "\n"
