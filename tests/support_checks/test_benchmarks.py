"""The table of the benchmarks says what was measured; nothing here measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks import cases, report
from tests.benchmarks.__main__ import Run
from tests.benchmarks.timing import Ratio, Times, interleaved

if TYPE_CHECKING:
    from pathlib import Path


def test_contestants_take_turns() -> None:
    """Each round calls each of them once, with its number, in random order."""
    calls: list[tuple[str, int]] = []
    ticks = iter(range(1000))
    contestants = {name: lambda number, name=name: calls.append((name, number)) for name in "abc"}
    times = interleaved(contestants, 20, lambda: float(next(ticks)))  # type: ignore[arg-type]
    assert sorted(calls) == [(name, number) for name in "abc" for number in range(20)]
    assert len({tuple(name for name, _ in calls[at : at + 3]) for at in range(0, 60, 3)}) > 1
    assert times.median("a") == 1


def test_ratios_are_of_the_same_round() -> None:
    """A slow round of both says nothing about either."""
    times = Times({"a": [1.0, 10.0, 3.0], "b": [2.0, 20.0, 3.0]})
    assert times.ratio("a", "b") == Ratio(0.5, 0.5, 1.0)
    assert times.ratio("b", "b") == Ratio(1.0, 1.0, 1.0)
    assert Times({"a": [3.0], "no": [1.0]}).without("no").median("a") == 2


def test_what_misses_its_goal_is_bold() -> None:
    """By filesystem, from above or from below; what was not measured has an empty cell."""
    rows = [
        report.ratio_row("work", "peer", 1.0, {"ext4": Ratio(1.2, 1.0, 1.4), "xfs": Ratio(0.5, 0.4, 0.6)}),
        report.ratio_row("work", "peer", 3, {"ext4": Ratio(2.0, 1.0, 4.0)}, least=True),
        report.figure_row("syncs", "–", 4, {"xfs": 3.0}, "{:.0f}"),
        report.figure_row("start", "–", 3, {"any": 4.0}),
    ]
    assert report.table(rows, ["ext4", "xfs"]).splitlines()[2:] == [
        "| work | peer | ≤ 1 | **1.20 (1.00–1.40)** | 0.50 (0.40–0.60) |",
        "| work | peer | ≥ 3 | **2.00 (1.00–4.00)** |  |",
        "| syncs | – | ≤ 4 |  | 3 |",
        "| start | – | ≤ 3.00 | **4.00** |  |",
    ]


def test_every_row_has_its_case(tmp_path: Path) -> None:
    """The rows name the cases as they are recorded: with one made-up figure for each, every row shows one."""
    run = Run(quick=True, home=tmp_path, kinds=["ext4"])
    for case in ("running", "importing", "first_use", "commands"):
        assert hasattr(cases, case)
    run.note("2 durable files, new", "ext4", Times({"atomik": [1.0], "atomicwrites": [2.0]}))
    run.note("commands", "any", Times({"nothing": [1.0], "write": [2.0], "run": [4.0]}))
    run.note("syncs", "ext4", {"2": 3, "5": 3})
    shown = [row.work for row in (*run.group_rows(), *run.start_rows()) if row.measured]
    assert shown == [
        "2 files, durable, new", "sync calls, 2 files, durable", "sync calls, 5 files, durable",
        "`atomik write`, start to end", "`atomik run`, start to end",
    ]  # fmt: skip
