"""A cache that several processes fill at the same time, without a lock and without a server.

    python examples/shared_cache.py [FOLDER]          # default: ./cache

Each result is a file whose name is derived from the input.  A process that does not find it computes it and publishes it
*without* ``overwrite``: the first one wins, and the others find that out when they publish.  No reader ever sees half a
result, a worker that is killed leaves nothing that could be mistaken for one, and no process waits for another.

``durable=False``, because a cache may be computed again after a power cut.  A truncated result would do harm; its
checksum reveals it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import atomik

if TYPE_CHECKING:
    from collections.abc import Callable

KEYS = 20


def cached(cache: Path, question: str, answer: Callable[[str], str]) -> tuple[str, bool]:
    """The answer to a question, and whether we had to find it ourselves."""
    path = cache / hashlib.sha256(question.encode()).hexdigest()[:16]
    found = look(path)
    if found is not None:
        return found, False
    text = answer(question)
    entry = json.dumps({"answer": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    try:
        atomik.write_text(path, entry, durable=False)
    except atomik.errors.FileAlreadyExistsError:
        pass  # another process was faster, with the same answer
    return text, True


def look(path: Path) -> str | None:
    """What is in the cache; None for nothing, and for what a power cut has left."""
    try:
        entry = json.loads(path.read_text())
        if hashlib.sha256(entry["answer"].encode()).hexdigest() == entry["sha256"]:
            return str(entry["answer"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError):
        pass
    path.unlink(missing_ok=True)
    return None


# --- the proof --------------------------------------------------------------------------------------------------------
def answer(question: str) -> str:
    """Something that takes a moment."""
    digest = question.encode()
    for _ in range(2000):
        digest = hashlib.sha256(digest).digest()
    return digest.hex() * 1000


def worker(cache: Path, number: int, ready: object, counts: object) -> None:
    if number == 0:  # this one dies in the middle of a result
        output = atomik.file(cache / "dies")
        output.output.write("half")
        os.kill(os.getpid(), signal.SIGKILL)
    ready.wait()  # type: ignore[attr-defined]
    own = 0
    for key in range(KEYS):
        text, ours = cached(cache, f"question {key}", answer)
        assert text == answer(f"question {key}"), "half an answer"
        own += ours
    counts.put(own)  # type: ignore[attr-defined]


def main() -> None:
    cache = Path(sys.argv[1] if len(sys.argv) > 1 else "cache").absolute()
    cache.mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    ready, counts = context.Barrier(3), context.Queue()
    processes = [context.Process(target=worker, args=(cache, number, ready, counts)) for number in range(4)]
    for process in processes:
        process.start()
    found = [counts.get(timeout=60) for _ in processes[1:]]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0, 0]
    assert len(os.listdir(cache)) == KEYS, "a process that is killed leaves nothing"
    print(f"three processes found {KEYS} answers by {sum(found)} computations; one was killed, and left nothing")


if __name__ == "__main__":
    main()
