"""Replace a partitioned dataset written by pandas, as a whole.  Needs pandas and pyarrow.

    python examples/pandas_dataset.py [FOLDER]

A partitioned dataset is a folder, so it can be published by one rename: a reader sees the partitions of
one version, and partitions that the new version does not have are removed.  Overwriting file by file does neither.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pandas as pd

import atomik


def modules() -> pd.DataFrame:
    """What there is in the standard library: one row per Python file."""
    root = Path(sysconfig.get_path("stdlib"))
    packages = ["asyncio", "collections", "concurrent", "email", "html", "http", "json", "logging"]
    files = [(package, path) for package in packages for path in sorted((root / package).rglob("*.py"))]
    return pd.DataFrame(
        {"package": package, "module": path.stem, "lines": path.read_bytes().count(b"\n")} for package, path in files
    )


def main() -> None:
    dataset = Path(sys.argv[1] if len(sys.argv) > 1 else "modules")
    table = modules()

    with atomik.folder(dataset, overwrite=True) as parts:
        table.to_parquet(parts, partition_cols=["package"])
    assert len(pd.read_parquet(dataset)) == len(table)

    try:
        with atomik.folder(dataset, overwrite=True) as parts:
            table.head(1).to_parquet(parts, partition_cols=["package"])
            raise RuntimeError("the job was stopped half-way")
    except RuntimeError:
        assert len(pd.read_parquet(dataset)) == len(table), "a failed job changed the dataset"

    fewer = table[table.lines > 500]
    with atomik.folder(dataset, overwrite=True) as parts:
        fewer.to_parquet(parts, partition_cols=["package"])
    assert len(pd.read_parquet(dataset)) == len(fewer), "rows of the old version survived"
    partitions = sorted(path.name for path in dataset.iterdir())
    print(f"{dataset}: {len(table)} rows, then {len(fewer)} in {len(partitions)} partitions: {', '.join(partitions)}")


if __name__ == "__main__":
    main()
