"""``python -m tests.benchmarks``: measure, and write the page."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks import cases, places, report
from tests.benchmarks.report import Row, figure_row, ratio_row
from tests.benchmarks.timing import Times
from tests.support.lab import strace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.benchmarks.timing import Ratio

DOCS = Path(__file__).parents[2] / "docs" / "explanation"
GIB = 1 << 30
WORDS = ("new", "overwrite")
DISKS = ("ext4", "xfs", "btrfs")


class Run:
    """One run: what was measured, by case and filesystem, made into rows."""

    def __init__(self, *, quick: bool, home: Path, kinds: list[str]) -> None:
        self.quick, self.home, self.kinds = quick, home, kinds
        self.times: dict[str, dict[str, Times]] = {}
        self.figures: dict[str, dict[str, Mapping[str, float]]] = {}
        self.items: dict[str, dict[int, float]] = {}
        self.sizes: dict[str, dict[int, float]] = {}
        self.started = time.monotonic()

    def note(self, case: str, kind: str, found: Times | Mapping[str, float]) -> None:
        """Keep what was found, and say it."""
        if isinstance(found, Times):
            self.times.setdefault(case, {})[kind] = found
        else:
            self.figures.setdefault(case, {})[kind] = found
        print(f"{time.monotonic() - self.started:6.0f} s  {kind:6} {case:32} {found}", file=sys.stderr, flush=True)

    def rounds(self, many: int) -> int:
        """So many, or a tenth for a quick look."""
        return max(3, many // 10) if self.quick else many

    # --- measuring -----------------------------------------------------------------------------------------------
    def measure(self) -> None:
        """Everything, one filesystem after the other."""
        for kind in self.kinds:
            with places.place(kind, 5 * GIB) as folder:  # old, new and plain of 1 GiB each, and room
                self.files(kind, folder)
                self.groups(kind, folder)
                self.folders(kind, folder)
                if kind in (self.kinds[0], "tmpfs"):
                    self.scale(kind, folder)
                if kind == self.kinds[0]:
                    self.curves(folder)
        with tempfile.TemporaryDirectory(dir=self.home) as folder_:
            self.note("import", "any", cases.importing(self.rounds(40)))
            self.note("first use", "any", cases.first_use(Path(folder_), self.rounds(40)))
            self.note("commands", "any", cases.commands(Path(folder_), self.rounds(40)))
        self.note("unheard event", "any", cases.unheard_event())

    def files(self, kind: str, folder: Path) -> None:
        """One file."""
        for overwrite, word in enumerate(WORDS):
            for durable, many in ((False, 300), (True, 40)):
                found = cases.one_file(folder, self.rounds(many), self.home, overwrite=bool(overwrite), durable=durable)
                for peer, times in found.items():
                    self.note(f"1 {'durable ' * durable}file, {word}, {peer}", kind, times)
        self.note("1 GiB", kind, cases.bandwidth(folder, GIB // 8 if self.quick else GIB, 3))

    def groups(self, kind: str, folder: Path) -> None:
        """Several files in one transaction."""
        for overwrite, word in enumerate(WORDS):
            for count, fast, slow in ((2, 200, 40), (10, 60, 20), (1000, 5, 3)):
                for durable, many in ((False, fast), (True, slow)):
                    if durable and kind not in DISKS:
                        continue
                    times = cases.group(folder, count, self.rounds(many), overwrite=bool(overwrite), durable=durable)
                    self.note(f"{count} {'durable ' * durable}files, {word}", kind, times)
        if kind in DISKS:
            self.note("each synced", kind, cases.each_synced(folder, 300, self.rounds(5)))
            self.note("syncs", kind, {str(count): made for count, made in cases.syncs(folder, [2, 5]).items()})
        self.note("crowd", kind, cases.crowd(folder, 8, 1 if self.quick else 5))
        self.note("mixture", kind, cases.mixture(folder, 1000, self.rounds(9)))

    def folders(self, kind: str, folder: Path) -> None:
        """Whole folders."""
        many = 1000 if self.quick else 10_000
        for durable in (False, True) if kind in DISKS else (False,):
            self.note(f"replacing, {durable}", kind, cases.replacing(folder, many, 3, durable=durable))
        self.note("clone", kind, cases.cloning(folder, many, 3))
        if kind in DISKS:
            self.note("run in", kind, cases.running(folder, many, self.rounds(9)))
        swaps = cases.visibility(folder, [10, many], 3)
        self.note("swap", kind, {str(count): found["seconds"] for count, found in swaps.items()})

    def scale(self, kind: str, folder: Path) -> None:
        """Time, memory and descriptors of large transactions."""
        found = cases.scaling(folder, [1000, 10_000] if self.quick else [1000, 100_000])
        for what in ("seconds", "bytes", "descriptors"):
            self.note(what, kind, {str(count): figures[what] for count, figures in found.items()})

    def curves(self, folder: Path) -> None:
        """Cost against the number of items, and against the size of a file, with the limit by hand."""
        for count in (1, 10, 100, 1000):
            times = cases.group(folder, count, 3, overwrite=False, durable=True)
            for who in times.taken:
                self.items.setdefault(who, {})[count] = times.median(who) / count * 1e6
        for power in range(12, 25, 3):
            times = cases.sized(folder, 1 << power, self.rounds(30))
            for who in times.taken:
                self.sizes.setdefault(who, {})[1 << power] = times.median(who) * 1e6

    # --- rows ----------------------------------------------------------------------------------------------------
    def row(
        self, work: str, against: str, limit: float | None, case: str, over: str, under: str, *, least: bool = False
    ) -> Iterator[Row]:
        """A row of ratios, if anything was measured for it; with `least` the goal is to be that many times faster."""
        found: dict[str, Ratio] = {
            kind: times.ratio(over, under)
            for kind, times in self.times.get(case, {}).items()
            if over in times and under in times
        }
        if found:
            yield ratio_row(work, against, limit, found, least=least)

    def figure(self, case: str, name: str) -> dict[str, float]:
        """One figure of a case, by filesystem."""
        return {kind: found[name] for kind, found in self.figures.get(case, {}).items()}

    def rows(self) -> list[Row]:
        """The table of goals."""
        return [*self.file_rows(), *self.group_rows(), *self.folder_rows(), *self.scale_rows(), *self.start_rows()]

    def file_rows(self) -> Iterator[Row]:
        """One file."""
        for word in WORDS:
            yield from self.row(f"1 file, no sync, {word}", "by hand", 1.75, f"1 file, {word}, ", "atomik", "by hand")
        case = "1 file, overwrite, usual"
        yield from self.row("1 file, no sync, overwrite", "the usual way", 1.5, case, "atomik", "usual")
        for word in WORDS:
            case = f"1 file, {word}, "
            yield from self.row(f"1 file, no sync, {word}", "by hand, same checks", None, case, "atomik", "with looks")
        for peer in ("atomik 0.0.3", "boltons", "safer"):
            for word in WORDS:
                yield from self.row(f"1 file, no sync, {word}", peer, 1, f"1 file, {word}, {peer}", "atomik", peer)
        for word in WORDS:
            case = f"1 durable file, {word}, "
            yield from self.row(f"1 file, durable, {word}", "by hand", 1.1, case, "atomik", "by hand")
        for word in WORDS:
            case, peer = f"1 durable file, {word}, atomicwrites", "atomicwrites"
            yield from self.row(f"1 file, durable, {word}", peer, 1, case, "atomik", peer)
        yield from self.row("1 GiB, durable, new", "`open` + fsync", 1.05, "1 GiB", "atomik", "open + fsync")

    def group_rows(self) -> Iterator[Row]:
        """Several files in one transaction."""
        for count, limit in ((2, 1.0), (10, 0.35)):
            for word in WORDS:
                work, case = f"{count} files, durable, {word}", f"{count} durable files, {word}"
                yield from self.row(work, f"{count} atomicwrites", limit, case, "atomik", "atomicwrites")
        for word in WORDS:
            work, case = f"1,000 files, durable, {word}: times faster", f"1000 durable files, {word}"
            yield from self.row(work, "1,000 atomicwrites", 15, case, "atomicwrites", "atomik", least=True)
        for count, limit in ((2, 1.6), (10, 1.5), (1000, 1.4)):
            for word in WORDS:
                work, case = f"{count:,} files, no sync, {word}", f"{count} files, {word}"
                yield from self.row(work, "protocol by hand", limit, case, "atomik", "by hand")
        case = "1000 files, overwrite"
        yield from self.row("1,000 files, no sync, overwrite", "1,000 `atomik.file`", 1, case, "atomik", "loop")
        work = '300 files, `durable="fsync"`: times faster'
        yield from self.row(work, "fsync one by one", 3, "each synced", "one by one", "atomik", least=True)
        for count, most in (("2", 5), ("5", 4)):
            yield figure_row(f"sync calls, {count} files, durable", "–", most, self.figure("syncs", count), "{:.0f}")
        seconds = self.figure("mixture", "seconds")
        yield figure_row("1,000 overwrites: old and new can be seen for", "–", 5e-3, seconds, "{:.1f} ms", scale=1e3)
        work = "8 processes, one folder"
        yield figure_row(f"{work}: commits of the quickest", "of the slowest", 2, self.figure("crowd", "ratio"))
        yield figure_row(f"{work}: longest wait", "median wait", 4, self.figure("crowd", "wait"), "{:.1f}")
        yield figure_row(f"{work}: 99th of 100 waits", "median wait", 4, self.figure("crowd", "most"), "{:.1f}")

    def folder_rows(self) -> Iterator[Row]:
        """Whole folders."""
        many = f"{1000 if self.quick else 10_000:,}"
        for durable, word in ((False, "no sync"), (True, "durable")):
            case = f"replacing, {durable}"
            yield from self.row(
                f"replacing a folder of {many} files, {word}", "by hand", 1.1, case, "atomik", "by hand"
            )
        yield from self.row(
            f"`folder(copy=True)`, {many} files", "`cp -a --reflink=auto`", 1.5, "clone", "atomik", "cp -a"
        )
        work = f"`atomik run --in` on {many} files, durable"
        yield from self.row(work, "copy, sync and rename by hand", 1.3, "run in", "atomik", "by hand")
        largest = self.figure("swap", many.replace(",", ""))
        small = self.figure("swap", "10")
        ratios = {kind: f"{largest[kind] / small[kind]:.2f} ({largest[kind] * 1e6:.0f} µs)" for kind in largest}
        met = {kind: largest[kind] <= max(1.5 * small[kind], 1e-3) for kind in largest}
        yield Row(f"swap of a folder of {many} files", "of 10 files", "does not grow", ratios, met)

    def scale_rows(self) -> Iterator[Row]:
        """What grows with the number of items."""
        most = "10000" if self.quick else "100000"
        work = f"{int(most):,} overwrites, no sync"
        seconds, base = self.figure("seconds", most), self.figure("seconds", "1000")
        yield figure_row(
            f"{work}: seconds an item", "1,000", 1.3, {kind: seconds[kind] / base[kind] for kind in seconds}
        )
        yield figure_row(f"{work}: peak memory an item", "–", 1024, self.figure("bytes", most), "{:,.0f} B")
        many, few = self.figure("descriptors", most), self.figure("descriptors", "1000")
        measured = {kind: f"{many[kind]:.0f} / {few[kind]:.0f}" for kind in many}
        met = {kind: many[kind] == few[kind] for kind in many}
        yield Row(f"{work}: open descriptors", "1,000", "the same", measured, met)

    def start_rows(self) -> Iterator[Row]:
        """What a process costs before it works."""
        yield from self.row("first `file()` of a process, CPU", "the usual way", 2.5, "first use", "atomik", "usual")
        for name in ("write", "run"):
            work = f"`atomik {name}`, start to end"
            yield from self.row(work, "`python -c pass`", 3, "commands", name, "nothing")
        yield from self.row("`import atomik`", "`import attrs, logging`", 1.3, "import", "atomik", "attrs, logging")
        yield figure_row(
            "an event that nobody hears", "–", 1e-6, self.figure("unheard event", "seconds"), "{:.2f} µs", scale=1e6
        )

    def remarks(self) -> str:
        """What is counted, and the plots."""
        calls, least = cases.system_calls(self.home) if strace.missing_strace() is None else (0, 0)
        text = (
            f"System calls of one durable `file()`: {calls}; by hand, with the same checks: {least}.\n" if calls else ""
        )
        text += "\n![Cost an item against the number of items](performance-items.svg)\n\n"
        return text + "![Cost against the size of a file](performance-sizes.svg)\n"


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds and smaller sizes: a look, not a measurement"
    )
    parser.add_argument("--output", default=str(DOCS / "performance.md"), help="the page to write, - to print")
    parser.add_argument("--only", action="append", metavar="FILESYSTEM", help="measure only there; may be repeated")
    chosen = parser.parse_args()
    kinds = [kind for kind in places.kinds() if chosen.only is None or kind in chosen.only]
    with tempfile.TemporaryDirectory() as home:
        run = Run(quick=chosen.quick, home=Path(home), kinds=kinds)
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
