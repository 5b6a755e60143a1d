"""Publish a dataset that Spark writes: all of it, or the old one stays.

    python examples/pyspark_dataset.py [FOLDER]          # default: ./dataset-spark

Spark creates the output folder itself, and refuses an existing one (its mode "errorifexists"); with mode "overwrite" it
deletes the old dataset before it writes the new one.  So it needs a *name at which nothing exists yet*: use `atomik.path`.
When Spark has written its ``_SUCCESS``, the folder is published by one rename.

The driver and its executors must see the folder by the same path (one machine, or a filesystem that all share).  Where
others can rename the folder above it, the staged path begins with /proc/<pid>/fd, which other machines and other users'
processes cannot follow: pass ``tmp_dir=``, a folder of your own on the same filesystem.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession

import atomik


def publish(frame: DataFrame, dataset: Path) -> atomik.Receipt:
    """Write the frame as Parquet, and publish it by one rename."""
    output = atomik.path(dataset, overwrite=True)
    with output as staged:
        frame.write.parquet(Path(staged).as_uri())
        if not (staged / "_SUCCESS").exists():
            raise RuntimeError("Spark has not finished its job")
    assert output.receipt is not None
    return output.receipt


def main() -> None:
    dataset = Path(sys.argv[1] if len(sys.argv) > 1 else "dataset-spark").absolute()
    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    try:
        publish(spark.range(1000).selectExpr("id", "1 AS version").repartition(4), dataset)
        publish(spark.range(1000).selectExpr("id", "2 AS version").repartition(4), dataset)
        rows = spark.read.parquet(dataset.as_uri()).groupBy("version").count().collect()
        assert [tuple(row) for row in rows] == [(2, 1000)]
        print("version 2 has taken the place of version 1, in one step")
        try:
            publish(spark.range(1000).selectExpr("id", "raise_error('row ' || id) AS version"), dataset)
        except Exception as exc:  # noqa: BLE001  Spark has many
            print(f"a job failed ({type(exc).__name__}): version 2 is still there")
        rows = spark.read.parquet(dataset.as_uri()).groupBy("version").count().collect()
        assert [tuple(row) for row in rows] == [(2, 1000)]
    finally:
        spark.stop()
    assert not list(dataset.parent.glob(".atomik*")), "something was left over"


if __name__ == "__main__":
    main()
