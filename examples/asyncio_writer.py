"""Write from an asyncio program that is cancelled at the worst moments.

    python examples/asyncio_writer.py [FOLDER]

``async with`` commits in a thread, while the loop goes on.

* Cancelled before the commit mark, while lines come in or between two swaps: everything is as it was, nothing is left over.
* Cancelled after the commit mark: the commit runs to its end, and all outputs are new.

The task then ends with CancelledError, and ``tx.state`` says which case it was.

Writing blocks the loop.  A few lines do no harm; more can run in threads (`asyncio.to_thread`).  A thread cannot be
stopped: cancelling the task that waits for it would leave it writing in the background.  `finished` waits for the thread
first, and is cancelled then.
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
    async with tx:
        out = tx.file(folder / "lines.txt")
        async for line in lines:
            await finished(out.write, line)
            count += 1
        tx.file(folder / "count.txt").write(f"{count}\n")


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


async def cancelled_during(folder: Path, phase: str, step: int) -> atomik.State:
    """Cancel when the commit has come to that step of that phase."""
    loop, delivered = asyncio.get_running_loop(), threading.Event()

    def progress(current: str, done: int, _total: int) -> None:
        """Called in the commit's thread: cancels the task there and then."""
        if (current, done) == (phase, step):
            loop.call_soon_threadsafe(task.cancel)
            loop.call_soon_threadsafe(delivered.set)
            delivered.wait()

    tx = atomik.transaction(overwrite=True, progress=progress)
    task = asyncio.create_task(publish(folder, lines_of(Path(__file__)), tx))
    await ended(task)
    assert delivered.is_set(), "nobody cancelled during the commit"
    return tx.state


async def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    state = await cancelled_before(folder)
    print(f"cancelled before the commit: {state.value}, there: {sorted(path.name for path in folder.glob('*.txt'))}")
    state = await cancelled_during(folder, "swapping", 1)
    print(f"cancelled between two swaps: {state.value}, there: {sorted(path.name for path in folder.glob('*.txt'))}")
    state = await cancelled_during(folder, "syncing", 3)
    print(f"cancelled after the mark: {state.value}, there: {sorted(path.name for path in folder.glob('*.txt'))}")
    count = int((folder / "count.txt").read_text())
    assert len((folder / "lines.txt").read_text().splitlines()) == count, "the two files do not belong together"


if __name__ == "__main__":
    asyncio.run(main())
