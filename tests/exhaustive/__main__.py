"""All transactions of up to three items: ``python -m tests.exhaustive``; neither root nor a disk is needed.

It takes hours on two processors, so it writes down in a file what is done (``--progress``), may be stopped at any time, and
goes on from there.  The order is such that what is done is complete: first one item, then two, then three in one order of
every combination, then their other orders; a count is given for each.  It stops at the first violation.  ``--record``
writes the counts into docs/explanation/how-we-know.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.exhaustive.explore import Counts, Explorer, Known, Violation
from tests.exhaustive.transactions import OPERATIONS, Case, cases
from tests.support.pages import fill

_ORDER = {name: number for number, name in enumerate(OPERATIONS)}


def main(arguments: list[str] | None = None) -> int:
    """Run, and return 0 when all that was tried holds, 1 for a violation, 130 when it was interrupted."""
    options = _parse(arguments)
    done = _read(options.progress)
    wanted = sorted(cases(options.items, tuple(options.durable)), key=_simple_first)
    left: dict[tuple[str, ...], list[Case]] = {}
    for case in wanted:
        if str(case) not in done:
            left.setdefault(case.names, []).append(case)
    print(f"{len(wanted)} transactions, of which {sum(str(case) in done for case in wanted)} are done", flush=True)
    code = 0
    try:
        with options.progress.open("a", encoding="utf-8") as file:
            for row in _explored(list(left.values()), options.jobs):
                done[row["case"]] = row
                file.write(json.dumps(row) + "\n")
                file.flush()
                if "violation" in row:
                    print(f"FOUND: {row['violation']}")
                    code = 1
                    break
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here")
        code = 130
    print(_table(done))
    if options.record and code != 1:
        fill("exhaustive", _table(done))
    return code


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.exhaustive", description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=3, help="how many items a transaction has at most (3)")
    parser.add_argument("--durable", nargs="+", choices=("fsync", "syncfs"), default=("fsync", "syncfs"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (one for each processor)")
    parser.add_argument(
        "--progress", type=Path, default=Path("exhaustive.jsonl"), help="what is done (exhaustive.jsonl)"
    )
    parser.add_argument("--record", action="store_true", help="write the counts into the documentation")
    return parser.parse_args(arguments)


def _simple_first(case: Case) -> tuple[int, bool, int, str]:
    if len(case.names) < 3:
        return len(case.names), False, 0, str(case)
    return len(case.names), not _first_order(case.names), max(map(_ORDER.__getitem__, case.names)), str(case)


def _first_order(names: Sequence[str]) -> bool:
    """Whether these operations are in the order of `OPERATIONS`: of each combination one transaction has that."""
    return list(names) == sorted(names, key=_ORDER.__getitem__)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {row["case"]: row for row in rows if "violation" not in row}


def _explored(left: list[list[Case]], jobs: int) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        yield from itertools.chain.from_iterable(map(_explore, left))
        return
    with multiprocessing.get_context("fork").Pool(jobs, initializer=_quiet, maxtasksperchild=50) as pool:
        yield from itertools.chain.from_iterable(pool.imap_unordered(_explore, left))


def _quiet() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that gave out the work is interrupted, and ends the others


def _explore(same: list[Case]) -> list[dict[str, Any]]:
    """The same operations, synced in each way: almost all disks are common, and each of them is recovered once."""
    known, rows = Known(), []
    for case in same:
        explorer = Explorer(case, known=known)
        row: dict[str, Any] = {"case": str(case), "names": case.names, "durable": case.syncs}
        try:
            explorer.explore()
        except Violation as exc:
            row["violation"] = str(exc)
        rows.append(row | {name: getattr(explorer.counts, name) for name in ("crashes", "disks", "kills", "refused")})
    return rows


def _table(done: dict[str, dict[str, Any]]) -> str:
    """What was explored, by the number of items."""
    lines = [
        "| items | transactions (refused) | crash states | different disks, each recovered | kills, each recovered |",
        "|---|--:|--:|--:|--:|",
    ]
    total = Counts()
    transactions = 0
    for items in sorted({len(row["names"]) for row in done.values()}):
        rows = [row for row in done.values() if len(row["names"]) == items]
        counts = Counts()
        for row in rows:
            counts += Counts(row["crashes"], row["disks"], row["kills"], row["refused"])
        lines.append(_line(f"{items}{_extent(items, rows)}", len(rows), counts))
        total += counts
        transactions += len(rows)
    return "\n".join([*lines, _line("together", transactions, total), ""])


def _line(head: str, transactions: int, counts: Counts) -> str:
    return (
        f"| {head} | {transactions:,} ({counts.refused:,}) | {counts.crashes:,} | {counts.disks:,} | {counts.kills:,} |"
    )


def _extent(items: int, rows: list[dict[str, Any]]) -> str:
    """Whether that is all of them."""
    done = {(row["durable"], tuple(row["names"])) for row in rows}
    parts = []
    for how in ("fsync", "syncfs"):
        every = [case.names for case in cases(items, (how,)) if len(case.names) == items]
        have = sum((how, names) in done for names in every)
        if have == len(every):
            parts.append(f"all with {how}")
        elif have:
            firsts = [names for names in every if _first_order(names)]
            once = sum((how, names) in done for names in firsts)
            parts.append(
                f"{have:,} of {len(every):,} with {how}, {once:,} of {len(firsts):,} combinations in one order"
            )
    return f", {'; '.join(parts)}" if parts else ""


if __name__ == "__main__":
    sys.exit(main())
