"""Publish a dataset that Ray writes: all of it, or the old one stays.

    python examples/ray_dataset.py [FOLDER]          # default: ./dataset-ray

Ray Data writes into an *existing folder*, one file for each block, and by default adds to what is there: use `atomik.folder`.
If a task runs twice, the rows of its first attempt must not be in the dataset too, so the rows are counted before anything is
published.

All nodes must share the filesystem, and see the folder by the same path.  Where others can rename the folder above it, the
staged path begins with /proc/<pid>/fd, which other machines cannot follow: pass ``tmp_dir=``, a folder of your own on the
same filesystem.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.dataset as arrow
import ray

import atomik


def publish(data: ray.data.Dataset, dataset: Path) -> atomik.Receipt:
    """Have the parts written, and publish them by one rename."""
    rows = data.count()
    output = atomik.folder(dataset, overwrite=True)
    with output as staged:
        data.write_parquet(str(staged))
        written = arrow.dataset(staged, format="parquet").count_rows()
        if written != rows:
            raise RuntimeError(f"{written} rows were written, and there are {rows}")
    assert output.receipt is not None
    return output.receipt


def versions(dataset: Path) -> dict[int, int]:
    """How many rows there are of each version."""
    table = arrow.dataset(dataset, format="parquet").to_table()
    counts = table.column("version").value_counts().to_pylist()
    return {each["values"]: each["counts"] for each in counts}


def main() -> None:
    dataset = Path(sys.argv[1] if len(sys.argv) > 1 else "dataset-ray").absolute()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        for version in (1, 2):
            numbers = ray.data.range(1000, override_num_blocks=4)
            publish(numbers.map(lambda row, version=version: {**row, "version": version}), dataset)
        assert versions(dataset) == {2: 1000}
        print("version 2 has taken the place of version 1, in one step")

        def fail(row: dict[str, int]) -> dict[str, int]:
            if row["id"] == 700:
                raise ValueError("row 700 cannot be computed")
            return {**row, "version": 3}

        try:
            publish(ray.data.range(1000, override_num_blocks=4).map(fail), dataset)
        except Exception as exc:  # noqa: BLE001  Ray wraps what a task raised
            print(f"a task failed ({type(exc).__name__}): version 2 is still there")
        assert versions(dataset) == {2: 1000}
    finally:
        ray.shutdown()
    assert not list(dataset.parent.glob(".atomik*")), "something was left over"


if __name__ == "__main__":
    main()
