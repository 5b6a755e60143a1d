"""A small pencil: boxes, text, arrows, in colours that follow the reader's light or dark theme.

Colours are the variables --ink, --soft, --line, --paper, --panel and, in pairs of ink and background, --old, --new,
--bad and --log.  A picture that stands alone sets them by ``prefers-color-scheme``; inside the documentation the page
sets them.  Meaning never hangs on colour alone: whatever is coloured is also labelled.
"""

from __future__ import annotations

from html import escape

_LIGHT = (
    "--ink:#1f2328;--soft:#59636e;--line:#8a939c;--paper:#fff;--panel:#f5f6f8;"
    "--old:#8a5a00;--old-back:#fdf1d6;--new:#0b6b3a;--new-back:#dff5e6;"
    "--bad:#a3262b;--bad-back:#fde4e4;--log:#2a4f9e;--log-back:#e3ebfb"
)
_DARK = (
    "--ink:#e6e8ea;--soft:#aab2ba;--line:#7d868f;--paper:#131416;--panel:#1f2125;"
    "--old:#f0c36a;--old-back:#3b2e12;--new:#7fd6a0;--new-back:#12351f;"
    "--bad:#f2969a;--bad-back:#421a1c;--log:#a3bdf5;--log-back:#1b2948"
)
_SANS = "system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif"
_MONO = "ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace"


class Picture:
    """A drawing of `width` by `height` units; a unit is a pixel where there is room."""

    def __init__(self, name: str, width: int, height: int, title: str, description: str) -> None:
        self.name, self.width, self.height = name, width, height
        self.title, self.description = title, description
        self._parts: list[str] = []

    def add(self, markup: str) -> None:
        self._parts.append(markup)

    def text(
        self, x: float, y: float, words: str, *, size: float = 13, anchor: str = "start", colour: str = "ink",
        mono: bool = False, bold: bool = False, italic: bool = False,
    ) -> None:  # fmt: skip
        """One line of text, its baseline at `y`."""
        style = f"font:{'italic ' if italic else ''}{600 if bold else 400} {size:g}px {_MONO if mono else _SANS}"
        self.add(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="var(--{colour})" style="{escape(style)}">'
            f"{escape(words)}</text>"
        )

    def lines(self, x: float, y: float, words: str, *, leading: float = 16, **how: object) -> None:
        """Several lines, divided by newlines."""
        for at, line in enumerate(words.split("\n")):
            self.text(x, y + at * leading, line, **how)  # type: ignore[arg-type]

    def box(
        self, x: float, y: float, width: float, height: float, *, tone: str = "", dashed: bool = False,
        radius: float = 6, stroke: float = 1.4,
    ) -> None:  # fmt: skip
        """A rectangle; `tone` is one of old, new, bad, log, or "" for a plain one."""
        fill, line = (f"{tone}-back", tone) if tone else ("panel", "line")
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.add(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" '
            f'fill="var(--{fill})" stroke="var(--{line})" stroke-width="{stroke:g}"{dash}/>'
        )

    def chip(self, x: float, y: float, width: float, words: str, tone: str, *, dashed: bool = False) -> None:
        """A small labelled box, 20 high."""
        self.box(x, y, width, 20, tone=tone, dashed=dashed, radius=4, stroke=1.2)
        self.text(x + width / 2, y + 14, words, size=11.5, anchor="middle", colour=tone or "soft", bold=bool(tone))

    def line(self, points: list[tuple[float, float]], *, colour: str = "line", width: float = 1.4, dashed: bool = False,
             arrow: bool = False, curve: bool = False) -> None:  # fmt: skip
        """A line through the points, with a head at its end if it is an arrow."""
        first, *rest = points
        if curve and len(rest) == 3:
            path = f"M{first[0]:g} {first[1]:g} C" + " ".join(f"{x:g} {y:g}" for x, y in rest)
        else:
            path = f"M{first[0]:g} {first[1]:g} " + " ".join(f"L{x:g} {y:g}" for x, y in rest)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        head = f' marker-end="url(#{self.name}-head-{colour})"' if arrow else ""
        self.add(
            f'<path d="{path}" fill="none" stroke="var(--{colour})" stroke-width="{width:g}" '
            f'stroke-linejoin="round"{dash}{head}/>'
        )

    def svg(self) -> str:
        """The whole picture."""
        name = self.name
        heads = "".join(
            f'<marker id="{name}-head-{colour}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" fill="var(--{colour})"/></marker>'
            for colour in ("line", "ink", "old", "new", "bad", "log")
            if f"{name}-head-{colour})" in "".join(self._parts)
        )
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="atomik-picture" viewBox="0 0 {self.width} {self.height}" '
            f'role="img" aria-labelledby="{name}-title {name}-desc" style="max-width:{self.width * 1.3:g}px">\n'
            f'<title id="{name}-title">{escape(self.title)}</title>\n'
            f'<desc id="{name}-desc">{escape(self.description)}</desc>\n'
            f"<style>.atomik-picture{{{_LIGHT}}}@media (prefers-color-scheme:dark){{.atomik-picture{{{_DARK}}}}}</style>\n"
            f"<defs>{heads}</defs>\n{body}\n</svg>\n"
        )
