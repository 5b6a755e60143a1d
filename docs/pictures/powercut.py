"""How many crash states were checked, per filesystem; the numbers come from powercut.json, written by the run itself."""

from __future__ import annotations

import json
from pathlib import Path

from svg import Picture

_FIGURES = Path(__file__).with_suffix(".json")
_LEFT, _WIDTH, _ROW = 70, 330, 58


def draw() -> list[Picture]:
    figures = json.loads(_FIGURES.read_text(encoding="utf-8"))
    counts = figures["counts"]
    most = max(one["states"] + one["recovery_states"] for one in counts.values())
    told = "; ".join(
        f"{kind}: {one['states']:,} states of {one['recordings']:,} recorded commits and "
        f"{one['recovery_states']:,} states of {one['recoveries']:,} recorded recoveries"
        for kind, one in counts.items()
    )
    p = Picture(
        "powercut", 440, 44 + _ROW * len(counts), "Crash states checked",
        f"Bars, one for each filesystem. {told}. The promise held in all of them.",
    )  # fmt: skip
    p.chip(_LEFT, 6, 112, "of commits", "new")
    p.chip(_LEFT + 122, 6, 112, "of recoveries", "log")
    for number, (kind, one) in enumerate(counts.items()):
        _bar(p, 40 + number * _ROW, kind, one, _WIDTH / most)
    return [p]


def _bar(p: Picture, y: float, kind: str, one: dict[str, int], scale: float) -> None:
    commits, recoveries = one["states"] * scale, one["recovery_states"] * scale
    p.text(_LEFT - 10, y + 19, kind, anchor="end", bold=True)
    p.box(_LEFT, y, commits, 28, tone="new", radius=2)
    p.box(_LEFT + commits, y, recoveries, 28, tone="log", radius=2)
    words = f"{one['states']:,} + {one['recovery_states']:,} crash states of {one['recordings']:,} recordings"
    p.text(_LEFT, y + 43, words, size=11.5, colour="soft")
