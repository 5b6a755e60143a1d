"""The steps of a commit: what programs see, and beside it what the disk is sure to hold.

The example replaces ``a.csv`` and creates ``b.csv`` in one transaction.
"""

from __future__ import annotations

from svg import Picture

# What a name leads to: (words, tone).  None: the name is not there.
OLD, NEW_A, NEW_B = ("old a", "old"), ("new a", "new"), ("new b", "new")
INTENT, MARKED = ("intent", "log"), ("marked", "log")
NAMES = ("a.csv", "b.csv", ".atomik-journal", "…-0", "…-1", "…-journal")
MAYBE = ("either", "")

_BEFORE = {"a.csv": OLD}
#: Files have no names yet, so a power cut leaves nothing of them.
_STAGED = {**_BEFORE, "no name": NEW_A, "no name ": NEW_B}
_JOURNAL = {**_BEFORE, "…-0": NEW_A, "…-1": NEW_B, ".atomik-journal": INTENT, "…-journal": INTENT}
_FIRST = {**_JOURNAL, "a.csv": NEW_A, "…-0": OLD}
_BOTH = {"a.csv": NEW_A, "b.csv": NEW_B, ".atomik-journal": INTENT, "…-0": OLD, "…-journal": INTENT}
_MARKED = {**_BOTH, ".atomik-journal": MARKED, "…-journal": MARKED}
_DONE = {"a.csv": NEW_A, "b.csv": NEW_B}


def _maybe(sure: dict, *names: str) -> dict:
    return {**sure, **dict.fromkeys(names, MAYBE)}


STEPS = (
    ("stage", "staged and sealed", _STAGED, _BEFORE),
    ("journal", "locked, verified, journal written", _JOURNAL,
     _maybe(_BEFORE, "…-0", "…-1", ".atomik-journal", "…-journal")),
    ("b1", "barrier B1", _JOURNAL, _JOURNAL),
    ("swap-1", "first swap: exchange", _FIRST, _maybe(_JOURNAL, "a.csv", "…-0")),
    ("swap-2", "second swap: no-replace", _BOTH, _maybe(_JOURNAL, "a.csv", "b.csv", "…-0", "…-1")),
    ("b2", "barrier B2", _BOTH, _BOTH),
    ("b3", "mark and barrier B3", _MARKED, _MARKED),
    ("done", "cleaned up", _DONE,
     _maybe(_DONE, ".atomik-journal", "…-0", "…-journal")),
)  # fmt: skip


def _column(p: Picture, x: float, title: str, state: dict) -> None:
    p.text(x, 20, title, size=12, bold=True, colour="soft")
    p.box(x - 6, 28, 200, 62, radius=5, stroke=1)
    p.box(x - 6, 96, 200, 108, radius=5, stroke=1, dashed=True)
    first, second = ("no name", "no name ") if "no name" in state else ("…-0", "…-1")
    rows = {"a.csv": 32, "b.csv": 60, ".atomik-journal": 100, first: 126, second: 152, "…-journal": 178}
    for name, y in rows.items():
        held = state.get(name)
        bare = name.startswith("no name")
        p.text(x + 2, y + 15, name.strip(), size=11, mono=not bare, italic=bare, colour="ink" if held else "line")
        if held:
            p.chip(x + 110, y + 1, 78, held[0], held[1], dashed=not held[1])
        else:
            p.text(x + 149, y + 15, "–", anchor="middle", size=12, colour="line")


def draw() -> list[Picture]:
    pictures = []
    for number, (key, title, seen, disk) in enumerate(STEPS, 1):
        described = ", ".join(f"{name.strip()}: {held[0]}" for name, held in seen.items())
        sure = ", ".join(f"{name}: {held[0]}" for name, held in disk.items())
        p = Picture(
            f"commit-{key}", 420, 212, f"Step {number}: {title}",
            f"What programs see: {described}. What the disk holds: {sure}. Every other name is absent.",
        )  # fmt: skip
        _column(p, 14, "programs see", seen)
        _column(p, 220, "the disk holds", disk)
        pictures.append(p)
    return pictures
