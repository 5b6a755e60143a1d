"""The ladder as a decision tree: which rung publishes, and when there is none."""

from __future__ import annotations

from svg import Picture


def _question(p: Picture, y: float, words: str, height: float = 44) -> None:
    p.box(20, y, 210, height)
    p.lines(125, y + (27 if "\n" not in words else 19), words, anchor="middle", size=12, leading=16)


def _answer(p: Picture, y: float, title: str, words: str, tone: str, height: float = 58) -> None:
    p.box(300, y, 190, height, tone=tone)
    p.text(312, y + 20, title, bold=True, size=12.5, colour=tone)
    p.lines(312, y + 36, words, size=11, colour="ink", leading=14)


def draw() -> list[Picture]:
    p = Picture(
        "ladder", 516, 516, "The ladder",
        "A new file that is the only output: linkat. Else, if a probe shows that the filesystem ignores the flags, "
        "overwriting is refused. If it knows the flag: renameat2. If not, and it is no folder: hard links, and where "
        "there are none, a refusal. A folder without the flags: a refusal, unless the caller asked for the weaker rung.",
    )  # fmt: skip
    rows = (
        (14, "a new file, and the\nonly output?", "yes", "linkat", "one linkat(2) of a file that\nhad no name until now", "new", "no"),
        (98, "FUSE or unknown: does the\nprobe show it lying?", "yes", "refused", "for overwriting, before\nanything is touched", "bad", "no"),
        (182, "does it know the flag\nof renameat2?", "yes", "renameat2", "NOREPLACE or EXCHANGE:\none step", "new", "no"),
        (266, "is it a folder?", "no", "link", "hard link, then unlink\nor rename over", "new", "yes"),
        (350, 'fallback="weaker"\nasked for?', "yes", "weaker", "a moment with an empty\nfolder, or none", "old", "no"),
    )  # fmt: skip
    for y, question, across, title, words, tone, down in rows:
        _question(p, y, question)
        _answer(p, y - 7, title, words, tone)
        p.line([(230, y + 22), (298, y + 22)], colour="ink", arrow=True)
        p.text(262, y + 16, across, size=11.5, anchor="middle")
        p.line([(125, y + 44), (125, y + 82)], colour="ink", arrow=True)
        p.text(133, y + 66, down, size=11.5)
    p.box(20, 434, 210, 66, tone="bad")
    p.text(32, 454, "refused", bold=True, size=12.5, colour="bad")
    p.lines(32, 470, "UnsupportedFilesystemError,\nall destinations as before", size=11, leading=14)
    p.line([(490, 288), (502, 288), (502, 467), (232, 467)], colour="bad", dashed=True, arrow=True)
    p.text(494, 482, "no hard links either", size=11, colour="bad", anchor="end")
    return [p]
