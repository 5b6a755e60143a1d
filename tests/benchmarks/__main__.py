"""``python -m tests.benchmarks``: measure, and write the page."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks import cases, places, report
from tests.benchmarks.report import Row, at_least, ratio_row
from tests.support.lab import strace

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[2] / "docs" / "explanation"
GIB = 1 << 30
WORDS = ("new", "overwrite")


class Run:
    """One run: figures by filesystem, collected into rows."""

    def __init__(self, *, quick: bool, home: Path) -> None:
        self.quick, self.home = quick, home
        self.kinds = places.kinds()
        self.figures: dict[str, dict[str, dict[str, float]]] = {}
        self.scaling: dict[int, dict[str, float]] = {}
        self.items: dict[str, dict[int, float]] = {}
        self.sizes: dict[str, dict[int, float]] = {}

    def note(self, case: str, kind: str, figures: dict[str, float]) -> None:
        """Keep figures, and say them."""
        self.figures.setdefault(case, {})[kind] = figures
        said = "  ".join(f"{name} {value * 1e6:,.1f} µs" for name, value in figures.items())
        print(f"{kind:6} {case:28} {said}", file=sys.stderr, flush=True)

    def measure(self) -> None:
        """Everything, one filesystem after the other."""
        rounds = 100 if self.quick else 1000
        for kind in self.kinds:
            with places.place(kind, 5 * GIB) as folder:  # old, new and plain of 1 GiB each, and room
                for overwrite, word in enumerate(WORDS):
                    self.note(
                        f"1 file, {word}",
                        kind,
                        cases.one_file(folder, rounds, self.home, overwrite=bool(overwrite), durable=False),
                    )
                    self.note(
                        f"1 durable file, {word}",
                        kind,
                        cases.one_file(folder, rounds // 5, self.home, overwrite=bool(overwrite), durable=True),
                    )
                self.note("1,000 files", kind, cases.many_files(folder, 1000, 3 if self.quick else 7))
                self.note(
                    "1 GiB", kind, cases.bandwidth(folder, GIB // 8 if self.quick else GIB, 3 if self.quick else 7)
                )
                self.note(
                    "clone 10,000", kind, cases.cloning(folder, 1000 if self.quick else 10_000, 3 if self.quick else 7)
                )
                swaps = cases.visibility(folder, [10, 1000 if self.quick else 100_000], 3)
                self.note("swap", kind, {str(count): found["seconds"] for count, found in swaps.items()})
                counts = [1000, 10_000] if self.quick else [1000, 10_000, 100_000]
                scaling = cases.scaling(folder, counts)
                self.note("seconds an item", kind, {str(count): found["seconds"] for count, found in scaling.items()})
                self.figures.setdefault("memory", {})[kind] = {str(c): f["bytes"] for c, f in scaling.items()}
                self.figures.setdefault("descriptors", {})[kind] = {
                    str(c): f["descriptors"] for c, f in scaling.items()
                }
                if kind == self.kinds[0]:
                    self.curves(folder)
        self.note("import", "any", cases.importing(10 if self.quick else 40))
        self.note("unheard event", "any", cases.unheard_event())

    def curves(self, folder: Path) -> None:
        """Cost against the number of items, and against the size of a file, with the limit by hand."""
        for count in (1, 10, 100, 1000):
            for who, seconds in cases.many_files(folder, count, 3 if self.quick else 5).items():
                self.items.setdefault(who, {})[count] = seconds / count * 1e6
        for power in range(12, 25, 3):
            figures = cases.sized(folder, 1 << power, 20 if self.quick else 60)
            for who, seconds in figures.items():
                self.sizes.setdefault(who, {})[1 << power] = seconds * 1e6

    def ratio(self, case: str, over: str, under: str) -> dict[str, float]:
        """By filesystem."""
        return {
            kind: figures[over] / figures[under]
            for kind, figures in self.figures.get(case, {}).items()
            if over in figures and under in figures
        }

    def rows(self) -> list[Row]:
        """The table of goals."""
        return [*self.one_file(), *self.one_durable_file(), *self.many_files(), *self.large()]

    def goal(
        self,
        work: str,
        against: str,
        said: str,
        case: str,
        over: str,
        under: str,
        limit: float,
        mem: float | None = None,
    ) -> Row:
        """A row: the figure `over` of a case divided by another, and what it may be (in memory, where that differs)."""
        limits = {kind: mem if mem is not None and kind == "tmpfs" else limit for kind in [*self.kinds, "any"]}
        return ratio_row(work, against, said, self.ratio(case, over, under), limits)

    def one_file(self) -> Iterator[Row]:
        """Without durability: against the same calls by hand, and the peers."""
        for word in WORDS:
            work, case = f"1 file of 4 KiB, `durable=False`, {word}", f"1 file, {word}"
            yield self.goal(work, "by hand", "≤ 1.6 (tmpfs 2.2)", case, "atomik", "by hand", 1.6, 2.2)
        for word in WORDS:
            work, case = f"the same, {word}", f"1 file, {word}"
            yield self.goal(work, "by hand with the same looks", "–", case, "atomik", "with looks", math.inf)
        for peer in ("atomik 0.0.3", "boltons", "safer"):
            for word in WORDS:
                beside = f"atomik beside {peer}"
                yield self.goal(f"the same, {word}", peer, "< 1", f"1 file, {word}", beside, peer, 1)

    def one_durable_file(self) -> Iterator[Row]:
        """The same with two syncs."""
        for word in WORDS:
            work, case = f"1 durable file of 4 KiB, {word}", f"1 durable file, {word}"
            yield self.goal(work, "by hand", "≤ 1.1", case, "atomik", "by hand", 1.1)
        for word in WORDS:
            beside, peer = "atomik beside atomicwrites", "atomicwrites"
            yield self.goal(f"the same, {word}", peer, "< 1", f"1 durable file, {word}", beside, peer, 1)

    def many_files(self) -> Iterator[Row]:
        """In one transaction."""
        work, case = "1,000 files in one durable transaction", "1,000 files"
        yield self.goal(
            f"{work}: times faster", "1,000 atomicwrites", "≥ 10", case, "atomicwrites", "atomik", at_least(10)
        )
        yield self.goal("the same", "whole protocol by hand", "≤ 1.5", case, "atomik", "by hand", 1.5)
        most = str(max(map(int, next(iter(self.figures["seconds an item"].values())))))
        work, case = f"seconds an item, {int(most):,} items", "seconds an item"
        yield self.goal(work, "1,000 items", "≤ 1.3", case, most, "1000", 1.3)
        memory = {kind: found[most] for kind, found in self.figures["memory"].items()}
        yield Row(
            f"memory an item at {int(most):,}",
            "–",
            "≤ 1,024 B",
            {k: f"{v:,.0f} B" for k, v in memory.items()},
            {k: v <= 1024 for k, v in memory.items()},
        )
        descriptors = {kind: (found[most], found["1000"]) for kind, found in self.figures["descriptors"].items()}
        yield Row(
            f"open descriptors at {int(most):,} items",
            "at 1,000",
            "the same",
            {k: f"{a:.0f} / {b:.0f}" for k, (a, b) in descriptors.items()},
            {k: a == b for k, (a, b) in descriptors.items()},
        )

    def large(self) -> Iterator[Row]:
        """Whole folders and large files."""
        largest = str(max(map(int, next(iter(self.figures["swap"].values())))))
        swap = self.ratio("swap", largest, "10")
        yield Row(
            f"swap of a folder of {int(largest):,} files",
            "of 10 files",
            "does not grow",
            {k: f"{v:.2f} ({self.figures['swap'][k][largest] * 1e6:.0f} µs)" for k, v in swap.items()},
            {k: v <= 1.5 or self.figures["swap"][k][largest] < 1e-3 for k, v in swap.items()},
        )
        work = "1 GiB through `file()`: share of the bandwidth"
        yield self.goal(work, "`open` + fsync", "≥ 0.95", "1 GiB", "open + fsync", "atomik", at_least(0.95))
        work, against = '`folder(copy=True)` of 10,000 files', "`cp -a --reflink=auto`"
        yield self.goal(work, against, "≤ 1.5", "clone 10,000", "atomik", "cp -a", 1.5)

    def remarks(self) -> str:
        """What does not depend on the filesystem, and the plots."""
        imports = self.figures["import"]["any"]
        ours, base = imports["atomik"], imports["attrs, logging"]
        event = self.figures["unheard event"]["any"]["seconds"]
        calls, least = cases.system_calls(self.home) if strace.missing_strace() is None else (0, 0)
        lines = [
            f"- `import atomik`: {ours * 1e3:.1f} ms, {ours / base:.2f} of `import attrs, logging` (goal ≤ 1.3).",
            f"- An event that nobody hears: {event * 1e6:.2f} µs (goal ≤ 1 µs).",
        ]
        if calls:
            lines.append(
                f"- System calls of one durable `file()`: {calls}, against {least} by hand for a new file with the same "
                f"looks at folder and destination ({calls / least:.2f}, goal ≤ 1.3)."
            )
        return "\n".join(lines) + (
            "\n\n![Cost an item against the number of items](performance-items.svg)\n\n"
            "![Cost against the size of a file](performance-sizes.svg)\n"
        )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds and smaller sizes: a look, not a measurement"
    )
    parser.add_argument("--output", default=str(DOCS / "performance.md"), help="the page to write, - to print")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        run = Run(quick=chosen.quick, home=Path(home))
        run.measure()
        rows, remarks = run.rows(), run.remarks()
    if chosen.output == "-":
        print(report.table(rows, run.kinds), remarks, sep="\n\n")
        return
    page = Path(chosen.output)
    report.write(page, rows, run.kinds, remarks)
    first = run.kinds[0]
    report.plot(
        page.parent / "performance-items.svg", run.items, f"items in the transaction ({first}, durable)", "µs an item"
    )
    report.plot(page.parent / "performance-sizes.svg", run.sizes, f"bytes in the file ({first}, durable)", "µs a file")


if __name__ == "__main__":
    main()
