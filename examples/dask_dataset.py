"""Publish a dataset that the workers of a Dask cluster write: all of its parts, or the old dataset stays.

    python examples/dask_dataset.py [FOLDER]          # default: ./dataset

The client stages a folder on a filesystem that all workers share.  Each task writes one part into it, atomically and under
a name derived from the task, so that a task that runs twice writes the same part again, not a second one.
When all parts are there, the client publishes the folder by one rename.

The program proves it on a cluster of processes: a worker is killed in the middle of its part, its task is run again
elsewhere, and the dataset is complete; a task that fails leaves the old dataset as it was.
"""

from __future__ import annotations

import csv
import functools
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from distributed import Client, LocalCluster

import atomik

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PARTS = 8
ROWS = 1000


# --- on the workers ---------------------------------------------------------------------------------------------------
def write_part(folder: Path, number: int, version: int) -> str:
    """Write one part durably, because only this machine can sync what it has written; return its name."""
    name = f"part-{number:04}.csv"
    with atomik.file(folder / name, overwrite=True, newline="") as file:
        table = csv.writer(file)
        table.writerows((version, number, row) for row in range(ROWS))
    return name


def write_part_and_die(mark: Path, folder: Path, number: int, version: int) -> str:
    """The same, but the first worker that comes to part 3 is killed when it has written half of it."""
    if number == 3 and first_time(mark):
        with atomik.file(folder / f"part-{number:04}.csv", overwrite=True) as file:
            file.write("half a part\n" * 100_000)
            os.kill(os.getpid(), signal.SIGKILL)
    return write_part(folder, number, version)


def write_part_or_fail(folder: Path, number: int, version: int) -> str:
    """The same, but part 5 cannot be computed."""
    if number == 5:
        raise ValueError("part 5 cannot be computed")
    return write_part(folder, number, version)


def first_time(mark: Path) -> bool:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


# --- on the client ----------------------------------------------------------------------------------------------------
def publish(
    client: Client, dataset: Path, version: int, part: Callable[[Path, int, int], str] = write_part, parts: int = PARTS
) -> atomik.Receipt:
    """Have the parts written, and publish them by one rename; if anything fails before, the old dataset stays."""
    output = atomik.folder(dataset, overwrite=True)
    with output as staged:
        folder = Path(staged)  # a plain path: that is all that goes to the workers
        futures = [client.submit(part, folder, number, version, pure=False) for number in range(parts)]
        try:
            names = client.gather(futures)  # raises what a task raised
        except BaseException:
            client.cancel(futures, force=True)
            raise
        atomik.recover(folder)  # what a killed worker may have left in there must not be published
        check(folder, names)
    assert output.receipt is not None
    return output.receipt


def check(folder: Path, names: Iterable[str]) -> None:
    """The folder holds the parts that were asked for, and nothing else."""
    if sorted(os.listdir(folder)) != sorted(names):
        raise RuntimeError(f"the parts in {folder} are not those that the tasks wrote")


# --- the proof --------------------------------------------------------------------------------------------------------
def versions(dataset: Path) -> set[str]:
    """The versions in the rows of all parts; one, if the dataset is whole."""
    parts = sorted(dataset.iterdir())
    assert [part.name for part in parts] == [f"part-{number:04}.csv" for number in range(PARTS)]
    rows = [row for part in parts for row in csv.reader(part.read_text().splitlines())]
    assert len(rows) == PARTS * ROWS
    return {row[0] for row in rows}


def main() -> None:
    dataset = Path(sys.argv[1] if len(sys.argv) > 1 else "dataset").absolute()
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    with cluster, Client(cluster) as client, tempfile.TemporaryDirectory() as scratch:
        publish(client, dataset, 1)
        print(f"published version {versions(dataset)} in {len(os.listdir(dataset))} parts")

        mark = Path(scratch, "killed")
        publish(client, dataset, 2, functools.partial(write_part_and_die, mark))
        assert mark.exists()
        assert versions(dataset) == {"2"}
        print("a worker was killed while it wrote a part: the dataset is complete nevertheless")

        before = dataset.stat().st_ino
        try:
            publish(client, dataset, 3, write_part_or_fail)
        except ValueError as exc:
            print(f"a task failed ({exc}): version {versions(dataset)} is still there")
        assert dataset.stat().st_ino == before
    assert not list(dataset.parent.glob(".atomik*")), "something was left over"


if __name__ == "__main__":
    main()
