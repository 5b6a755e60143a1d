"""The states of a transaction."""

from __future__ import annotations

from svg import Picture

_BOXES = {
    "OPEN": (20, 24, "", "destinations old; staging possible"),
    "PREPARED": (20, 138, "", "destinations old; journal written"),
    "SWAPPED": (20, 252, "", "destinations new; can be undone"),
    "COMMITTED": (20, 366, "new", "destinations new"),
}


def draw() -> list[Picture]:
    p = Picture(
        "states", 490, 430, "The states of a transaction",
        "OPEN leads by prepare to PREPARED, by the swaps and barrier B2 to SWAPPED, by the mark and barrier B3 to "
        "COMMITTED. From OPEN an abort, and from PREPARED and SWAPPED a rollback, lead to ABORTED: destinations old, "
        "nothing left. If undoing fails, or the sync of the mark fails, the state is IN DOUBT: the journal stays, and "
        "recover leads from there to all old or all new.",
    )  # fmt: skip
    for name, (x, y, tone, facts) in _BOXES.items():
        p.box(x, y, 200, 48, tone=tone)
        p.text(x + 100, y + 20, name, anchor="middle", bold=True, colour=tone or "ink")
        p.text(x + 100, y + 38, facts, anchor="middle", size=11, colour="soft")
    p.box(340, 112, 130, 62, tone="old")
    p.text(405, 133, "ABORTED", anchor="middle", bold=True, colour="old")
    p.lines(405, 150, "destinations old,\nnothing left", anchor="middle", size=11, colour="soft", leading=14)
    p.box(340, 268, 130, 62, tone="bad")
    p.text(405, 289, "IN DOUBT", anchor="middle", bold=True, colour="bad")
    p.lines(405, 306, "the journal stays:\nrecover() decides", anchor="middle", size=11, colour="soft", leading=14)
    p.box(254, 205, 74, 26, radius=13)
    p.text(291, 222, "roll back", anchor="middle", size=11.5)

    for top, words in ((72, "lock, verify,\njournal, B1"), (186, "swap … swap,\nB2"), (300, "mark, B3")):
        p.line([(120, top), (120, top + 64)], colour="ink", arrow=True)
        p.lines(128, top + (28 if "\n" in words else 36), words, size=11.5, leading=15)
    p.line([(220, 48), (405, 48), (405, 110)], arrow=True)
    p.text(232, 42, "abort, or prepare fails", size=11.5, colour="soft")
    p.line([(220, 166), (268, 203)], arrow=True)
    p.line([(220, 268), (268, 233)], arrow=True)
    p.line([(314, 204), (352, 176)], arrow=True)
    p.line([(314, 232), (352, 266)], colour="bad", arrow=True)
    p.text(342, 244, "undo fails", size=11, colour="bad")
    p.line([(220, 292), (338, 300)], colour="bad", arrow=True)
    p.text(240, 312, "B3 fails", size=11, colour="bad")
    p.line([(440, 268), (440, 176)], dashed=True, arrow=True)
    p.text(434, 222, "recover", size=11.5, colour="soft", anchor="end")
    p.line([(405, 330), (405, 390), (222, 390)], dashed=True, arrow=True)
    p.text(310, 384, "recover", size=11.5, colour="soft", anchor="middle")
    return [p]
