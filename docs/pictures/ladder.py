"""The methods as a decision tree: which one publishes, and when there is none."""

from __future__ import annotations

from svg import Picture


def _question(p: Picture, y: float, words: str, height: float = 44) -> None:
    p.box(20, y, 210, height)
    p.lines(125, y + (27 if "\n" not in words else 19), words, anchor="middle", size=12, leading=16)


def _answer(p: Picture, y: float, title: str, words: str, tone: str, height: float = 58) -> None:
    p.box(300, y, 190, height, tone=tone)
    p.text(312, y + 20, title, bold=True, size=12.5, colour=tone)
    p.lines(312, y + 36, words, size=11, colour="ink", leading=14)


_ROWS = (
    (
        "a new file without a name,\nand the only output?",
        "linkat",
        "one linkat(2): no name before,\nthe destination now",
        "new",
    ),
    (
        "FUSE or unknown: does a trial\nshow that flags are ignored?",
        "refused",
        "for overwriting, before\nanything is touched",
        "bad",
    ),
    ("does it have the flag\nof renameat2?", "renameat2", "NOREPLACE or EXCHANGE:\none step", "new"),
    ("not a folder, and\nhard links exist?", "link", "hard link, then unlink\nor rename over", "new"),
    ("a single file that\noverwrites another?", "rename", "a plain rename: one step,\nbut it cannot be undone", "old"),
    ("allow_gap=True\npassed?", "gap", "missing or empty\nfor a moment", "old"),
)


def draw() -> list[Picture]:
    p = Picture(
        "ladder", 500, 588, "Methods",
        "A new file without a name (O_TMPFILE) that is the only output: linkat. Else, if a trial shows that the "
        "filesystem ignores the flags, overwriting is refused. If it has the flag: renameat2. If not, and it is not a "
        "folder, and there are hard links: link. Without hard links, a single file that overwrites another: a plain "
        "rename. Else the method with a gap, if allow_gap=True was passed, or a refusal.",
    )  # fmt: skip
    for at, (question, title, words, tone) in enumerate(_ROWS):
        y = 14 + at * 84
        _question(p, y, question)
        _answer(p, y - 7, title, words, tone)
        p.line([(230, y + 22), (298, y + 22)], colour="ink", arrow=True)
        p.text(262, y + 16, "yes", size=11.5, anchor="middle")
        p.line([(125, y + 44), (125, y + 82)], colour="ink", arrow=True)
        p.text(133, y + 66, "no", size=11.5)
    p.box(20, 518, 210, 58, tone="bad")
    p.text(32, 538, "refused", bold=True, size=12.5, colour="bad")
    p.lines(32, 554, "UnsupportedFilesystemError,\nall destinations as before", size=11, leading=14)
    return [p]
