"""``python -m tests.benchmarks``: measure, and write the page."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import cases, places, report
from tests.benchmarks.report import Row, ratio_row
from tests.lab import strace

DOCS = Path(__file__).parents[2] / "docs" / "explanation"
GIB = 1 << 30


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
                for overwrite in (False, True):
                    word = "overwrite" if overwrite else "new"
                    self.note(
                        f"1 file, {word}",
                        kind,
                        cases.one_file(folder, rounds, self.home, overwrite=overwrite, durable=False),
                    )
                    self.note(
                        f"1 durable file, {word}",
                        kind,
                        cases.one_file(folder, rounds // 5, self.home, overwrite=overwrite, durable=True),
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
        disk, mem = 1.6, 2.2
        limits = {kind: mem if kind == "tmpfs" else disk for kind in self.kinds}

        def all_(limit: float) -> dict[str, float]:
            return dict.fromkeys([*self.kinds, "any"], limit)

        rows = [
            ratio_row(
                f"1 file of 4 KiB, `durable=False`, {word}",
                "by hand",
                "≤ 1.6 (tmpfs 2.2)",
                self.ratio(f"1 file, {word}", "atomik", "by hand"),
                limits,
            )
            for word in ("new", "overwrite")
        ]
        rows += [
            ratio_row(
                f"the same, {word}", "by hand with the same looks", "–",
                self.ratio(f"1 file, {word}", "atomik", "with looks"), all_(float("inf")),
            )
            for word in ("new", "overwrite")
        ]  # fmt: skip
        rows += [
            ratio_row("the same, overwrite", peer, "< 1", self.ratio("1 file, overwrite", "atomik*", peer), all_(1))
            for peer in ("atomik 0.0.3", "boltons", "safer")
        ]
        rows += [
            ratio_row(
                f"1 durable file of 4 KiB, {word}",
                "by hand",
                "≤ 1.1",
                self.ratio(f"1 durable file, {word}", "atomik", "by hand"),
                all_(1.1),
            )
            for word in ("new", "overwrite")
        ]
        rows.append(
            ratio_row(
                "the same, overwrite",
                "atomicwrites",
                "< 1",
                self.ratio("1 durable file, overwrite", "atomik*", "atomicwrites"),
                all_(1),
            )
        )
        rows.append(
            ratio_row(
                "1,000 files in one durable transaction: times faster",
                "1,000 atomicwrites",
                "≥ 10",
                self.ratio("1,000 files", "atomicwrites", "atomik"),
                all_(-10),
            )
        )
        rows.append(
            ratio_row(
                "the same", "whole protocol by hand", "≤ 1.5", self.ratio("1,000 files", "atomik", "by hand"), all_(1.5)
            )
        )
        most = str(max(map(int, next(iter(self.figures["seconds an item"].values())))))
        rows.append(
            ratio_row(
                f"seconds an item, {int(most):,} items",
                "1,000 items",
                "≤ 1.3",
                self.ratio("seconds an item", most, "1000"),
                all_(1.3),
            )
        )
        memory = {kind: found[most] for kind, found in self.figures["memory"].items()}
        rows.append(
            Row(
                f"memory an item at {int(most):,}",
                "–",
                "≤ 1,024 B",
                {k: f"{v:,.0f} B" for k, v in memory.items()},
                {k: v <= 1024 for k, v in memory.items()},
            )
        )
        descriptors = {kind: (found[most], found["1000"]) for kind, found in self.figures["descriptors"].items()}
        rows.append(
            Row(
                f"open descriptors at {int(most):,} items",
                "at 1,000",
                "the same",
                {k: f"{a:.0f} / {b:.0f}" for k, (a, b) in descriptors.items()},
                {k: a == b for k, (a, b) in descriptors.items()},
            )
        )
        largest = str(max(map(int, next(iter(self.figures["swap"].values())))))
        swap = self.ratio("swap", largest, "10")
        rows.append(
            Row(
                f"swap of a folder of {int(largest):,} files",
                "of 10 files",
                "does not grow",
                {k: f"{v:.2f} ({self.figures['swap'][k][largest] * 1e6:.0f} µs)" for k, v in swap.items()},
                {k: v <= 1.5 or self.figures["swap"][k][largest] < 1e-3 for k, v in swap.items()},
            )
        )
        rows.append(
            ratio_row(
                "1 GiB through `file()`: share of the bandwidth",
                "`open` + fsync",
                "≥ 0.95",
                self.ratio("1 GiB", "open + fsync", "atomik"),
                all_(-0.95),
            )
        )
        rows.append(
            ratio_row(
                '`folder(base="copy")` of 10,000 files',
                "`cp -a --reflink=auto`",
                "≤ 1.5",
                self.ratio("clone 10,000", "atomik", "cp -a"),
                all_(1.5),
            )
        )
        return rows

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
