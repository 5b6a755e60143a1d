"""Let a pool of workers produce the parts of one transaction: threads stage items, processes write into a folder.

    python examples/worker_pool.py [FOLDER]

A transaction belongs to the process that began it, and all its threads may stage into it.  Worker processes get the
path of a staged folder, which pickles as a plain path, and write there.  When any worker fails, nothing at all is
published.  Leave the pool before the transaction, as here, so that no worker is still writing when it commits.
"""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import sys
import sysconfig
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import atomik


def digest(tx: atomik.Transaction, source: Path, folder: Path) -> None:
    """In a thread: stage one small file."""
    with tx.file(folder / f"{source.stem}.sha256", parents=True) as file:
        file.write(f"{hashlib.sha256(source.read_bytes()).hexdigest()}  {source.name}\n")


def compress(source: Path, staged: Path) -> int:
    """In a process: write one part into the staged folder."""
    part = staged / f"{source.name}.gz"
    part.write_bytes(gzip.compress(source.read_bytes(), mtime=0))
    return part.stat().st_size


def publish(sources: list[Path], folder: Path) -> int:
    """Digests and compressed parts, all or nothing; returns the number of bytes of the parts."""
    processes = multiprocessing.get_context("spawn")  # fork and threads do not go together
    with atomik.transaction(overwrite=True) as tx:
        parts = tx.folder(folder / "parts", parents=True)
        with ThreadPoolExecutor(4) as threads, ProcessPoolExecutor(2, mp_context=processes) as workers:
            digests = [threads.submit(digest, tx, source, folder) for source in sources]
            sizes = [workers.submit(compress, source, parts) for source in sources]
            for future in digests:
                future.result()  # the first failure leaves the block and so aborts
            return sum(future.result() for future in sizes)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "packed")
    sources = sorted(Path(sysconfig.get_path("stdlib"), "json").glob("*.py"))
    before = sorted(folder.rglob("*"))
    try:
        publish([*sources, Path("missing.py")], folder)
    except FileNotFoundError as exc:
        assert sorted(folder.rglob("*")) == before, "a failed worker left something"
        print(f"one worker failed, so nothing was published: no {exc.filename}")
    size = publish(sources, folder)
    print(f"{folder}: {len(sources)} digests, parts of {size} bytes in {len(list((folder / 'parts').iterdir()))} files")


if __name__ == "__main__":
    main()
