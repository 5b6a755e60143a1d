"""One exchange, and the same exchange again to undo it."""

from __future__ import annotations

from svg import Picture


def _panel(p: Picture, top: float, title: str, swapped: bool) -> None:
    p.text(20, top, title, bold=True)
    for at, name in enumerate(("report.csv", ".atomik-5f3c…-0")):
        p.box(20, top + 12 + at * 40, 150, 28, radius=4)
        p.text(95, top + 31 + at * 40, name, anchor="middle", mono=True, size=12)
    for at, (words, tone) in enumerate((("the old file", "old"), ("the new file", "new"))):
        p.box(260, top + 12 + at * 40, 120, 28, tone=tone, radius=4)
        p.text(320, top + 31 + at * 40, words, anchor="middle", colour=tone, bold=True, size=12.5)
    one, two = (top + 26, top + 66)
    p.line([(170, one), (258, two if swapped else one)], colour="new" if swapped else "old", width=1.8, arrow=True)
    p.line([(170, two), (258, one if swapped else two)], colour="old" if swapped else "new", width=1.8, arrow=True)


def draw() -> list[Picture]:
    p = Picture(
        "exchange", 400, 430, "A swap, and its undo, are the same exchange",
        "Before: the name report.csv leads to the old file and the slot to the new one. One renameat2 with "
        "RENAME_EXCHANGE crosses the two names: report.csv leads to the new file, the slot to the old one. The same "
        "call again brings both back.",
    )  # fmt: skip
    _panel(p, 22, "staged", swapped=False)
    _panel(p, 172, "swapped", swapped=True)
    _panel(p, 322, "undone", swapped=False)
    for top, words in ((122, "renameat2(report.csv, slot, EXCHANGE)"), (272, "the same call again")):
        p.line([(95, top), (95, top + 30)], colour="ink", arrow=True)
        p.text(108, top + 20, words, mono=top == 122, size=11.5)
    return [p]
