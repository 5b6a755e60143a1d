"""Publish a report about a folder tree – two files and a web site – all or nothing.

    python examples/publish_report.py [FOLDER] [--output report] [--overwrite]

Reads FOLDER (default: this Python's own standard library), leaving out compiled caches, and publishes, in ONE transaction,
into the output folder

* ``index.json``: path, size and SHA-256 of every file,
* ``by_extension.csv``: how many files and bytes of each extension,
* ``site/``: one HTML page per package, and ``site/index.html`` with a chart; tables sort by a click on a heading.

Then it proves what the transaction promises: runs that fail in three ways change nothing at all, and a run with
``--overwrite`` replaces everything at once.  A report that was there before is replaced only with ``--overwrite``;
without it, the refusal is itself one of the proofs, and the old report is left as it was.

Exit status: 0 when everything held, 1 when a promise was broken, 2 when the folder cannot be read or written.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import html
import json
import math
import os
import stat
import sys
import sysconfig
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

import atomik

if TYPE_CHECKING:
    from collections.abc import Iterator

OUTPUTS = ("index.json", "by_extension.csv", "site")

#: folders that hold nothing but what Python makes again by itself
CACHES = {"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


@dataclass(frozen=True)
class Entry:
    """One file of the tree.  A name that is not UTF-8 is escaped as Python does it: os.fsencode() gives the bytes."""

    path: str
    size: int
    sha256: str | None = None
    link_to: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Report:
    """What was read: the tree, its files, and the package that each belongs to."""

    tree: str
    generated: str
    entries: list[Entry]
    packages: dict[str, list[Entry]]


# --- reading the tree ----------------------------------------------------------------------------------------------
def read_tree(tree: Path, left_out: set[Path]) -> Report:
    """Read every file below `tree`, except in the folders `left_out`."""
    unreadable: list[OSError] = []
    paths: list[str] = []
    packages: set[str] = set()
    for folder, folders, names in os.walk(tree, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if name not in CACHES and Path(folder, name) not in left_out)
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        if "__init__.py" in names:
            packages.add(relative(tree, folder))
        paths += (os.path.join(folder, name) for name in sorted(names + linked))
    entries: list[Entry] = []
    with Meter("reading", len(paths)) as meter:
        for path in paths:
            entries.append(read_entry(tree, path))
            meter.step()
    entries += (Entry(relative(tree, exc.filename), 0, error=f"folder: {exc.strerror}") for exc in unreadable)
    entries.sort(key=lambda entry: entry.path)
    # A tree without Python packages has a page for each folder instead.
    packages = packages or {os.path.dirname(entry.path) for entry in entries}
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(package_of(entry.path, packages), []).append(entry)
    return Report(str(tree), time.strftime("%Y-%m-%d %H:%M:%S %z"), entries, dict(sorted(grouped.items())))


def read_entry(tree: Path, path: str) -> Entry:
    """Size and SHA-256 of one file.  One that cannot be read is listed with the reason: a report has no holes."""
    size = 0
    try:
        found = os.lstat(path)
        size = found.st_size
        if stat.S_ISLNK(found.st_mode):
            return Entry(relative(tree, path), size, link_to=os.readlink(path))
        if not stat.S_ISREG(found.st_mode):
            return Entry(relative(tree, path), size, error="not a regular file")
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return Entry(relative(tree, path), file.tell(), digest)  # the size that the digest is of
    except OSError as exc:
        return Entry(relative(tree, path), size, error=exc.strerror or str(exc))


def relative(tree: Path, path: str) -> str:
    """The path below `tree`; "" for the tree itself."""
    return "" if path == str(tree) else os.path.relpath(path, tree)


def package_of(path: str, packages: set[str]) -> str:
    """The nearest package above a file; "" is the top of the tree."""
    folder = os.path.dirname(path)
    while folder and folder not in packages:
        folder = os.path.dirname(folder)
    return folder


class Meter:
    """A line that shows how far the work is, if standard error is a terminal."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done, self.shown = what, total, 0, -1

    def step(self) -> None:
        self.done += 1
        filled = 30 * self.done // self.total
        if filled != self.shown and sys.stderr.isatty():
            self.shown = filled
            line = f"{self.what} {'█' * filled}{'░' * (30 - filled)} {self.done:,} of {self.total:,} files"
            print(f"\r{line}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown >= 0:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


# --- publishing it -------------------------------------------------------------------------------------------------
def publish(report: Report, output: Path, *, overwrite: bool, sabotage: str = "") -> atomik.Receipt:
    """Write the three outputs; nobody ever sees some of them new and others missing after a failure."""
    with atomik.transaction(overwrite=overwrite) as tx:
        with tx.file(output / "index.json", parents=True) as file:
            write_index(report, file)
        with tx.file(output / "by_extension.csv", newline="") as file:
            write_table(report, file)
        with tx.folder(output / "site") as site:
            for name, page in site_pages(report):
                (site / name).write_text(page, encoding="utf-8")
                if sabotage == "block":
                    raise RuntimeError("the second page could not be drawn")
        if sabotage == "commit":  # someone else creates one of the files, after all our work is done
            with tx.file(output / "notes.txt", overwrite=False) as file:
                file.write("too late")
            (output / "notes.txt").write_text("theirs\n")
        return tx.commit()


def write_index(report: Report, file: TextIO) -> None:
    files = [{name: value for name, value in asdict(entry).items() if value is not None} for entry in report.entries]
    index = {"tree": report.tree, "generated": report.generated, "files": files}
    json.dump(index, file, indent=1)


def write_table(report: Report, file: TextIO) -> None:
    table = csv.writer(file)
    table.writerow(["extension", "files", "bytes"])
    table.writerows(by_extension(report))


def by_extension(report: Report) -> list[tuple[str, int, int]]:
    """(extension, files, bytes), those with the most bytes first."""
    totals: dict[str, list[int]] = {}
    for entry in report.entries:
        total = totals.setdefault(os.path.splitext(entry.path)[1].lower(), [0, 0])
        total[0] += 1
        total[1] += entry.size
    ordered = sorted(totals.items(), key=lambda each: (-each[1][1], each[0]))
    return [(shown(extension) or "(none)", files, size) for extension, (files, size) in ordered]


# --- the web site --------------------------------------------------------------------------------------------------
#: how many kinds of files the chart shows
KINDS = 10

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #667085; --line: #e4e7ec; --bar: #7c9ff8; --paper: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #2c3442; --bar: #2d4a8a; --paper: #12161d } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; overflow-wrap: anywhere }
a { color: #4f7cf7; text-decoration: none } a:hover { text-decoration: underline }
p, footer, small { color: var(--soft); overflow-wrap: anywhere } footer { margin-top: 3rem; font-size: .85rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; margin-top: 1.5rem; font-size: .93rem }
th { text-align: left; color: var(--soft); font-weight: 600 }
td:first-child { overflow-wrap: anywhere; min-width: 9rem }
th, td { padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
code { font: .82rem ui-monospace, monospace; color: var(--soft); overflow-wrap: anywhere } .bar { width: 22% }
i { display: block; height: .6rem; border-radius: .3rem; background: var(--bar) } .bar i { margin-top: .5rem }
th[data-by] { cursor: pointer } th[data-by]:hover { color: var(--ink) }
th[data-by]:after { content: " ↕"; opacity: .35 } th[data-up]:after { content: " ↑"; opacity: 1 }
th[data-down]:after { content: " ↓"; opacity: 1 }
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0 } .facts div { flex: 1 1 8rem; padding: .7rem 1rem;
       border: 1px solid var(--line); border-radius: .6rem; color: var(--soft); font-size: .85rem }
.facts b { display: block; font-size: 1.35rem; color: var(--ink); font-variant-numeric: tabular-nums }
.chart { display: grid; grid-template-columns: max-content 1fr max-content max-content; gap: .35rem .9rem;
       align-items: center; font-size: .93rem; margin: 1rem 0 .5rem } h2 { font-size: 1.1rem; margin: 2rem 0 0 }
.chart i { height: .85rem; min-width: 2px }
"""

#: Sorts a table by the column whose heading is clicked: by the number in data-v, else by the text.
SCRIPT = """
for (const head of document.querySelectorAll("th[data-by]")) head.onclick = () => {
  const row = head.parentNode, body = row.parentNode, at = head.cellIndex, down = "up" in head.dataset
  const key = tr => { const cell = tr.cells[at]; return "v" in cell.dataset ? +cell.dataset.v : cell.textContent }
  const rows = [...body.rows].slice(1).sort((a, b) => {
    const x = key(a), y = key(b); return typeof x == "number" ? x - y : x.localeCompare(y) })
  for (const other of row.cells) { delete other.dataset.up; delete other.dataset.down }
  head.dataset[down ? "down" : "up"] = ""
  body.append(row, ...(down ? rows.reverse() : rows))
}
"""


def site_pages(report: Report) -> Iterator[tuple[str, str]]:
    """(file name, HTML) of the index page and of each package's page."""
    names = page_names(report.packages)
    total = sum(entry.size for entry in report.entries)
    widest = max((sum(e.size for e in entries) for entries in report.packages.values()), default=0)
    rows = (package_row(names[package], package, entries, widest) for package, entries in report.packages.items())
    facts = {"files": f"{len(report.entries):,}", "packages": f"{len(report.packages):,}", "in total": human(total)}
    summary = "Every file with its size and SHA-256, published all or nothing."
    summary += (
        f'\n<div class="facts">{"".join(f"<div><b>{fact}</b>{name}</div>" for name, fact in facts.items())}</div>'
    )
    head = "<th data-by>package<th class=n data-by>files<th class=n data-by>size<th class=bar>"
    yield "index.html", page(report.tree, summary + chart(report), head, rows, report)
    for package, entries in report.packages.items():
        summary = f'<a href="index.html">All packages</a> · {len(entries):,} files'
        head = "<th data-by>file<th class=n data-by>size<th>SHA-256"
        yield names[package], page(title(package), summary, head, map(file_row, entries), report)


def chart(report: Report) -> str:
    """The kinds of files with the most bytes, on a logarithmic scale: one of them is often a hundred times the next."""
    kinds = by_extension(report)[:KINDS]
    widest = max((size for _, _, size in kinds), default=0)
    bars = "".join(
        f'<span>{escape(kind)}</span><i style="width:{share(size, widest):.1f}%"></i>'
        f"<span class=n>{files:,} file{'s' * (files != 1)}</span><span class=n>{human(size)}</span>\n"
        for kind, files, size in kinds
    )
    return (
        f'\n<h2>Bytes by type</h2><small>logarithmic scale</small>\n<div class="chart">{bars}</div><h2>Packages</h2>'
        if kinds
        else ""
    )


def share(size: int, widest: int) -> float:
    """How long a bar is, in per cent of the longest, on a logarithmic scale that begins at about 1 kB."""
    return 100 * math.log1p(size / 1000) / math.log1p(widest / 1000) if widest else 0.0


def package_row(link: str, package: str, entries: list[Entry], widest: int) -> str:
    size = sum(entry.size for entry in entries)
    return (
        f'<tr><td><a href="{link}">{escape(title(package))}</a>'
        f"<td class=n data-v={len(entries)}>{len(entries):,}<td class=n data-v={size}>{human(size)}"
        f'<td class=bar><i style="width:{share(size, widest):.1f}%"></i>'
    )


def file_row(entry: Entry) -> str:
    what = entry.sha256 or (f"→ {entry.link_to}" if entry.link_to is not None else entry.error or "")
    return f"<tr><td>{escape(entry.path)}<td class=n data-v={entry.size}>{human(entry.size)}<td><code>{escape(what)}</code>"


def page(name: str, summary: str, head: str, rows: Iterator[str], report: Report) -> str:
    heading = escape(name)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{heading}</title>'
        f"<style>{STYLE}</style>\n<h1>{heading}</h1>\n<p>{summary}</p>\n"
        f'<div class="scroll"><table><tr>{head}\n' + "\n".join(rows) + "\n</table></div>\n"
        f"<footer>{escape(report.tree)} as of {escape(report.generated)}</footer>\n<script>{SCRIPT}</script>\n</html>\n"
    )


def page_names(packages: dict[str, list[Entry]]) -> dict[str, str]:
    """A file name for each package's page: plain ASCII, of bounded length, each different."""
    names: dict[str, str] = {}
    taken = {"index.html"}
    for package in packages:
        dotted = package.replace(os.sep, ".") or "top-level"
        stem = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in dotted)[:120]
        name, number = f"{stem}.html", 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}.html"
        taken.add(name.lower())
        names[package] = name
    return names


def title(package: str) -> str:
    return package.replace(os.sep, ".") or "(top level)"


def shown(name: str) -> str:
    """A name as text that can be encoded, whatever bytes it has."""
    return os.fsencode(name).decode("utf-8", "replace")


def escape(text: str) -> str:
    return html.escape(shown(text))


def human(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


# --- proving it ----------------------------------------------------------------------------------------------------
def fingerprint(output: Path) -> dict[str, tuple[int, int, str]]:
    """Inode, mode and content of all that was published, and of hidden names that should not be there."""
    found = {}
    published = [output / name for name in OUTPUTS if os.path.lexists(output / name)]
    for path in [*published, *(output / "site").rglob("*"), *output.glob(".atomik*")]:
        info = path.lstat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(output))] = (info.st_ino, info.st_mode, digest)
    return found


def prove_failures(report: Report, output: Path) -> None:
    """Three ways to fail; after each, everything published must be bit by bit what it was."""
    before = fingerprint(output)
    prove_failure("without overwrite", FileExistsError, report, output, overwrite=False)
    assert fingerprint(output) == before, "a refused run changed something"
    prove_failure("an error while the site is drawn", RuntimeError, report, output, overwrite=True, sabotage="block")
    assert fingerprint(output) == before, "a run that failed half-way changed something"
    theirs = output / "notes.txt"
    if os.path.lexists(theirs):
        print(f"  not tried, because {theirs.name} exists: someone else creates one of the files first")
        return
    try:
        what = "someone else creates one of the files before the commit"
        prove_failure(what, FileExistsError, report, output, overwrite=True, sabotage="commit")
        assert theirs.read_text() == "theirs\n", "someone else's file was touched"
    finally:
        theirs.unlink(missing_ok=True)
    assert fingerprint(output) == before, "a run that lost a race changed something"


def prove_failure(
    what: str, expected: type[Exception], report: Report, output: Path, *, overwrite: bool, sabotage: str = ""
) -> None:
    try:
        publish(report, output, overwrite=overwrite, sabotage=sabotage)
    except expected as exc:
        print(f"  failed as it should: {what}\n      {type(exc).__name__}: {exc}")
    else:
        raise AssertionError(f"{what}: this had to fail")


def prove_overwrite(report: Report, output: Path) -> None:
    """Everything old must be gone, also a page that the new report does not have."""
    stale = output / "site" / "page-of-last-year.html"
    stale.write_text("old")
    try:
        before = fingerprint(output)
        publish(report, output, overwrite=True)
        after = fingerprint(output)
        assert not stale.exists(), "a page of the old site survived"
    finally:
        stale.unlink(missing_ok=True)
    assert all(before[name][0] != after[name][0] for name in OUTPUTS), "something was not replaced"
    assert not [name for name in after if name.startswith(".atomik")], "something was left over"
    print(f"  replaced all: {', '.join(OUTPUTS)}; a page that only the old site had is gone too")


def print_summary(report: Report) -> None:
    """What there is most of, as a small table."""
    kinds = by_extension(report)[:5]
    widest = max((size for _, _, size in kinds), default=0)
    for kind, files, size in kinds:
        print(f"  {kind:<10.10} {files:>7,} files {human(size):>9}  {'█' * round(share(size, widest) / 5)}")
    print("  (bars on a logarithmic scale)" if kinds else "  nothing to show")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="the tree to read (default: the standard library)")
    parser.add_argument("--output", type=Path, default=Path("report"), help="where to publish (default: ./report)")
    parser.add_argument("--overwrite", action="store_true", help="replace a report that is there already")
    arguments = parser.parse_args()
    output = Path(os.path.abspath(arguments.output))
    tree = Path(os.path.abspath(arguments.folder or sysconfig.get_path("stdlib")))
    left_out = {output}
    if arguments.folder is None:  # what pip installed is not part of the standard library
        left_out |= {tree / "site-packages", tree / "dist-packages"}
    if not os.path.isdir(tree):
        parser.error(f"not a folder: {shown(str(tree))}")
    try:
        return run(tree, left_out, output, overwrite=arguments.overwrite)
    except AssertionError as exc:
        print(f"PROMISE BROKEN: {exc}", file=sys.stderr)
        return 1
    except OSError as exc:
        print(shown(str(exc)), file=sys.stderr)
        return 2


def run(tree: Path, left_out: set[Path], output: Path, *, overwrite: bool) -> int:
    started = time.perf_counter()
    report = read_tree(tree, left_out)
    total = human(sum(entry.size for entry in report.entries))
    taken = time.perf_counter() - started
    print(f"read {len(report.entries):,} files, {total}, of {shown(str(tree))} in {taken:.1f} s")
    print_summary(report)
    if output.is_dir() and (recovered := atomik.recover(output)).items:
        print(f"  a run before was killed; cleared up after it:\n      {shown(str(recovered).splitlines()[0])}")
    there = any(os.path.lexists(output / name) for name in OUTPUTS)
    if there and not overwrite:
        print(f"{shown(str(output))} has a report already: it is left as it is; --overwrite would replace it")
    else:
        receipt = publish(report, output, overwrite=overwrite)
        print(f"published {len(receipt.items)} outputs in {shown(str(output))}: {', '.join(OUTPUTS)}")
        print(f"  commit {receipt.duration * 1e3:.0f} ms, of which {receipt.visible * 1e3:.2f} ms for the swaps")
    prove_failures(report, output)
    if overwrite or not there:
        prove_overwrite(report, output)
    print(f"all promises held; open {shown(str(output / 'site' / 'index.html'))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
