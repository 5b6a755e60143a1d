"""Add partitions to a dataset with pyarrow: either all of a batch appears, or nothing.  Needs pyarrow.

    python examples/pyarrow_dataset.py [FOLDER]

Two ways.  ``copy=True`` clones the folder (sharing its blocks where the filesystem can), pyarrow writes into the
clone, and the whole is published by one rename.  Or stage each new partition as an item of one transaction: nothing
is copied, and a failure takes all of them back; for a moment a reader may see some of them without the others.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

import atomik


def rows(*days: str) -> pa.Table:
    """Sizes of this program's lines, once per day."""
    lines = [len(line) for line in Path(__file__).read_text(encoding="utf-8").splitlines()]
    return pa.table({"day": [day for day in days for _ in lines], "length": lines * len(days)})


def write(dataset: Path, table: pa.Table, base: str | None = None) -> None:
    """A new dataset, or with ``copy=True`` the present one with the table's days added or replaced."""
    with atomik.folder(dataset, overwrite=True, base=base) as parts:
        ds.write_dataset(
            table, parts, format="parquet", partitioning=["day"], partitioning_flavor="hive",
            existing_data_behavior="delete_matching",
        )  # fmt: skip


def add_partitions(dataset: Path, table: pa.Table) -> None:
    """New days as items of one transaction."""
    with atomik.transaction() as tx:  # no overwrite: a day that is there already is a FileExistsError
        for day in table["day"].unique().to_pylist():
            part = tx.folder(dataset / f"day={day}")
            of_day = table.filter(pa.compute.equal(table["day"], day)).drop_columns("day")
            ds.write_dataset(of_day, part, format="parquet")


def read(dataset: Path) -> dict[str, int]:
    """Number of rows of each day."""
    table = ds.dataset(dataset, partitioning="hive").to_table(columns=["day"])
    return {str(day["values"]): day["counts"] for day in table["day"].value_counts().to_pylist()}


def main() -> None:
    dataset = Path(sys.argv[1] if len(sys.argv) > 1 else "lengths")
    write(dataset, rows("2026-01-01", "2026-01-02"))
    write(dataset, rows("2026-01-02", "2026-01-03"), copy=True)
    add_partitions(dataset, rows("2026-01-04", "2026-01-05"))
    before = read(dataset)
    try:
        add_partitions(dataset, rows("2026-01-06", "2026-01-05"))  # the second day is there already
    except FileExistsError:
        assert read(dataset) == before, "half of a batch appeared"
    print(f"{dataset}: {len(before)} days of {set(before.values())} rows; half a batch never appeared")


if __name__ == "__main__":
    main()
