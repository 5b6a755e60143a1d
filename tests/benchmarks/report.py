"""The page: a table of ratios with their spread and goals, two plots, and the machine that they come from."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.benchmarks.timing import Ratio


@define
class Row:
    """One line of the table: ``measured`` by filesystem, as it is shown; ``met`` whether it meets the goal."""

    work: str
    against: str
    goal: str
    measured: Mapping[str, str]
    met: Mapping[str, bool]


def ratio_row(work: str, against: str, limit: float | None, ratios: Mapping[str, Ratio], *, least: bool = False) -> Row:
    """A row of ratios by filesystem, with a limit from above, or (`least`) from below."""
    goal = "–" if limit is None else f"{'≥' if least else '≤'} {limit:g}"
    met = {
        kind: limit is None or (ratio.median >= limit if least else ratio.median <= limit)
        for kind, ratio in ratios.items()
    }
    return Row(work, against, goal, {kind: str(ratio) for kind, ratio in ratios.items()}, met)


def figure_row(
    work: str, against: str, limit: float, figures: Mapping[str, float], shown: str = "{:.2f}", *, scale: float = 1
) -> Row:
    """A row of single figures, which must not be above the limit."""
    measured = {kind: shown.format(value * scale) for kind, value in figures.items()}
    met = {kind: value <= limit for kind, value in figures.items()}
    return Row(work, against, f"≤ {shown.format(limit * scale)}", measured, met)


def table(rows: list[Row], kinds: list[str]) -> str:
    """Markdown: what misses its goal is in bold.  What does not depend on the filesystem ("any") is in the first column."""
    lines = [
        "| work | against | goal | " + " | ".join(kinds) + " |",
        "|---|---|---|" + "---|" * len(kinds),
    ]
    for row in rows:
        if "any" in row.measured:
            cells = [_cell(row, "any"), *[""] * (len(kinds) - 1)]
        else:
            cells = [_cell(row, kind) for kind in kinds]
        lines.append(f"| {row.work} | {row.against} | {row.goal} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Row, kind: str) -> str:
    shown = row.measured.get(kind, "")
    return shown if row.met.get(kind, True) or not shown else f"**{shown}**"


def machine() -> str:
    """The machine, in a line."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return (
        f"{datetime.datetime.now(tz=datetime.UTC).date()}, Linux {platform.release()}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores ({cpu}), load {os.getloadavg()[0]:.0f}"
    )


def plot(path: Path, curves: Mapping[str, Mapping[int, float]], across: str, up: str) -> None:
    """A plot with logarithmic axes, readable on light and on dark."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "atomik", "font.size": 11, "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    grey = "#808890"
    figure, axes = plt.subplots(figsize=(7, 4))
    styles: list[dict[str, Any]] = [
        {"color": "#2a78d6", "marker": "o"},
        {"color": grey, "linestyle": "--"},
        {"color": "#e07b39", "marker": "s"},
        {"color": "#3a9b63", "marker": "^"},
    ]
    for (name, points), style in zip(curves.items(), styles, strict=False):
        axes.plot(list(points), list(points.values()), label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
    axes.tick_params(colors=grey, which="both")
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set_color(grey)
    for spine in axes.spines.values():
        spine.set_color(grey)
    axes.grid(visible=True, color=grey, alpha=0.25)
    axes.legend(labelcolor=grey, framealpha=0)
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def write(path: Path, rows: list[Row], kinds: list[str], remarks: str) -> None:
    """Replace what is between the markers of the page, or make the page."""
    command = " ".join(["python -m tests.benchmarks", *sys.argv[1:]])
    body = f"Measured {machine()}, by `{command}`.\n\n{table(rows, kinds)}\n\n{remarks}"
    begin, end = "<!-- measured: begin -->", "<!-- measured: end -->"
    text = path.read_text() if path.exists() else f"# Performance\n\n{begin}\n{end}\n"
    pattern = re.escape(begin) + r".*?" + re.escape(end)
    path.write_text(re.sub(pattern, lambda _: f"{begin}\n{body}\n{end}", text, flags=re.DOTALL))
