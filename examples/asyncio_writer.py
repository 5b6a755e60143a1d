"""Write from an asyncio program, and be cancelled at the worst moments.

    python examples/asyncio_writer.py [FOLDER]

Files block, so the work runs in threads (`asyncio.to_thread`).  A thread cannot be stopped: cancelling the task that
waits for it would leave it writing behind our back.  `finished` waits for the thread first and is cancelled then, so

* cancelled before the commit: the transaction is aborted, every destination is as it was, nothing is left over;
* cancelled during the commit: the commit runs to its end.  All outputs are new (or, if it failed, all are old); then
  the task ends with CancelledError, and ``tx.state`` tells which it was.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import atomik

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

T = TypeVar("T")


async def finished(function: Callable[..., T], *args: object) -> T:
    """`asyncio.to_thread`, but a cancellation is delivered when the thread is done."""
    thread = asyncio.ensure_future(asyncio.to_thread(function, *args))
    cancelled: asyncio.CancelledError | None = None
    while not thread.done():
        try:
            await asyncio.wait([thread])  # wait() never cancels what it waits for
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled from thread.exception()
    return thread.result()


async def publish(folder: Path, lines: AsyncIterator[str], tx: atomik.Transaction) -> None:
    """Write lines as they come, and publish them together with their number."""
    count = 0
    with tx:
        out = tx.file(folder / "lines.txt")
        async for line in lines:
            await finished(out.write, line)
            count += 1
        await finished(tx.file(folder / "count.txt").write, f"{count}\n")
        await finished(tx.commit)


# --- what happens when it is cancelled -----------------------------------------------------------------------------
async def lines_of(path: Path) -> AsyncIterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        yield line


async def endless(started: asyncio.Event) -> AsyncIterator[str]:
    yield "the first line\n"
    started.set()
    await asyncio.Event().wait()  # the second never comes


async def ended(task: asyncio.Task[None]) -> None:
    """Wait until the task has ended as cancelled; if it failed by itself, raise what it raised."""
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
        raise AssertionError("the task did not end as cancelled")


async def cancelled_before(folder: Path) -> atomik.State:
    """Cancel while the writer waits for its second line."""
    started, tx = asyncio.Event(), atomik.transaction(overwrite=True)
    task = asyncio.create_task(publish(folder, endless(started), tx))
    first_line = asyncio.create_task(started.wait())
    await asyncio.wait([first_line, task], return_when=asyncio.FIRST_COMPLETED)  # the task may fail before
    task.cancel()
    await ended(task)
    return tx.state


async def cancelled_during(folder: Path) -> atomik.State:
    """Cancel between the swap of the first output and that of the second."""
    loop, delivered = asyncio.get_running_loop(), threading.Event()

    def between_two_swaps(phase: str, done: int, total: int) -> None:
        """Called in the commit's thread: cancels the task there and then."""
        if phase == "swapping" and done < total:
            loop.call_soon_threadsafe(task.cancel)
            loop.call_soon_threadsafe(delivered.set)
            delivered.wait()

    tx = atomik.transaction(overwrite=True, progress=between_two_swaps)
    task = asyncio.create_task(publish(folder, lines_of(Path(__file__)), tx))
    await ended(task)
    assert delivered.is_set(), "nobody cancelled during the commit"
    return tx.state


async def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    state = await cancelled_before(folder)
    print(f"cancelled before the commit: {state.value}, there: {sorted(path.name for path in folder.glob('*.txt'))}")
    state = await cancelled_during(folder)
    print(f"cancelled during the commit: {state.value}, there: {sorted(path.name for path in folder.glob('*.txt'))}")
    count = int((folder / "count.txt").read_text())
    assert len((folder / "lines.txt").read_text().splitlines()) == count, "the two files do not belong together"


if __name__ == "__main__":
    asyncio.run(main())
