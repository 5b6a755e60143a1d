"""The barriers on a time line: what a power cut leaves, by when it comes."""

from __future__ import annotations

from svg import Picture

_STRETCHES = (
    ("stage and seal", "write the new content\nunder names of its own", "all old", "old", "nothing was swapped"),
    ("B1", "", "", "", ""),
    ("swap … swap", "one renameat2 for\neach destination", "all old", "old", "recovery undoes what\nthe disk kept"),
    ("B2", "", "", "", ""),
    (
        "mark",
        "append “committed”\nto the journal",
        "all old or all new",
        "log",
        "whether the mark\nreached the disk decides",
    ),
    ("B3", "", "", "", ""),
    ("clean up", "delete the old versions", "all new", "new", "recovery deletes\nwhat is left over"),
)
_WHAT = {
    "B1": "content, slots and journal are on disk",
    "B2": "every swap is on disk",
    "B3": "the mark is on disk: commit() may return",
}


def draw() -> list[Picture]:
    p = Picture(
        "barriers", 440, 452, "Three barriers",
        "Time runs down. Before barrier B1, and between B1 and B2, a power cut leaves all old after recovery. Between "
        "B2 and B3 it leaves all old or all new, depending on whether the mark reached the disk. After B3 it leaves "
        "all new.",
    )  # fmt: skip
    p.text(44, 20, "what the commit does", bold=True, size=12.5)
    p.text(250, 20, "power cut, then recovery:", bold=True, size=12.5)
    y = 34.0
    p.line([(22, 34), (22, 446)], colour="ink", arrow=True)
    for name, does, left, tone, why in _STRETCHES:
        if name in _WHAT:
            p.add(
                f'<rect x="8" y="{y:g}" width="424" height="26" rx="3" fill="var(--ink)"/>'
                f'<text x="44" y="{y + 17.5:g}" fill="var(--paper)" '
                f"style=\"font:600 12px system-ui,'DejaVu Sans',sans-serif\">{name}: {_WHAT[name]}</text>"
            )
            y += 26
            continue
        p.text(44, y + 24, name, bold=True, size=12.5)
        p.lines(44, y + 42, does, size=11.5, colour="soft", leading=15)
        p.chip(250, y + 11, 130, left, tone)
        p.lines(250, y + 47, why, size=11.5, colour="soft", leading=15)
        y += 82
    return [p]
