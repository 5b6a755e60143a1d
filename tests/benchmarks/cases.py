"""What is measured.  A case returns figures: one value each, named, in seconds, bytes or counts."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import atomik
from tests.benchmarks import by_hand, peers
from tests.benchmarks.timing import interleaved

if TYPE_CHECKING:
    from collections.abc import Callable

Figures = dict[str, float]
TEXT = "x" * 4096
DATA = TEXT.encode()


def one_file(folder: Path, rounds: int, home: Path, *, overwrite: bool, durable: bool) -> Figures:
    """One file of 4 KiB: atomik, by hand, and by hand with the same looks; then, as text, beside each peer."""

    def target(who: str, number: int) -> str:
        return str(folder / (who if overwrite else f"{who}-{number}"))

    def ours(number: int) -> None:
        with atomik.file(target("ours", number), "wb", overwrite, durable=durable) as f:
            f.write(DATA)

    def hand(number: int) -> None:
        by_hand.write_file(target("hand", number), DATA, overwrite=overwrite, durable=durable)

    def looks(number: int) -> None:
        by_hand.write_file_with_looks(target("looks", number), DATA, overwrite=overwrite, durable=durable)

    if overwrite:
        for who in ("ours", "text", "hand", "looks"):
            (folder / who).write_text("old")
    figures = _taking_turns({"atomik": ours, "by hand": hand, "with looks": looks}, rounds)

    def text(number: int) -> None:
        with atomik.file(target("text", number), "w", overwrite, durable=durable) as f:
            f.write(TEXT)

    for name, write in (peers.durable() if durable else peers.fast(home)).items():
        if not overwrite:  # what is there would be in the way of a new one
            _empty(folder)
        figures |= _beside(name, text, lambda number, name=name, write=write: write(target(name, number), TEXT), rounds)
    _empty(folder)
    return figures


def _beside(peer: str, ours: Callable[[int], object], theirs: Callable[[int], object], rounds: int) -> Figures:
    """Each peer has a run with atomik alone: some make the disk work, and whoever comes next pays."""
    found = _taking_turns({"atomik": ours, peer: theirs}, rounds)
    return {f"atomik beside {peer}": found["atomik"], peer: found[peer]}


def _taking_turns(contestants: dict[str, Callable[[int], object]], rounds: int) -> Figures:
    for contestant in contestants.values():
        contestant(-1)  # loads what is loaded once
    return interleaved(contestants, rounds)


def many_files(folder: Path, count: int, rounds: int) -> Figures:
    """`count` files of 4 KiB in one durable transaction; by hand; and one by one with atomicwrites."""
    names = [f"f{number}" for number in range(count)]

    def ours(number: int) -> None:
        target = _fresh(folder, "ours", number)
        with atomik.transaction() as tx:
            for name in names:
                with tx.file(f"{target}/{name}", "wb") as f:
                    f.write(DATA)

    def hand(number: int) -> None:
        by_hand.write_group(str(_fresh(folder, "hand", number)), names, DATA, durable=True)

    contestants: dict[str, Callable[[int], object]] = {"atomik": ours, "by hand": hand}
    for who, write in peers.durable().items():

        def one_by_one(number: int, who: str = who, write: Callable[[str, str], None] = write) -> None:
            target = _fresh(folder, who, number)
            for name in names:
                write(f"{target}/{name}", TEXT)

        contestants[who] = one_by_one
    for who in contestants:
        for number in range(rounds):
            _fresh(folder, "ours" if who == "atomik" else "hand" if who == "by hand" else who, number).mkdir()
    figures = interleaved(contestants, rounds)
    _empty(folder)
    return figures


def scaling(folder: Path, counts: list[int]) -> dict[int, Figures]:
    """Seconds, bytes of memory and open descriptors an item, for transactions of several sizes; each in a process."""
    results = {}
    for count in counts:
        target = folder / f"n{count}"
        target.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", _SCALING, str(target), str(count)], capture_output=True, text=True, check=True
        )
        seconds, memory, descriptors = (float(word) for word in done.stdout.split())
        results[count] = {"seconds": seconds / count, "bytes": memory / count, "descriptors": descriptors}
        shutil.rmtree(target)
    return results


_SCALING = """
import os, sys, time, atomik
folder, count = sys.argv[1], int(sys.argv[2])
def run(folder, count):
    with atomik.transaction(durable=False) as tx:
        for number in range(count):
            with tx.file(f"{folder}/f{number}", "wb") as f:
                f.write(b"x")
        most = len(os.listdir("/proc/self/fd"))
    return most
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
os.mkdir(folder + "/warm"); run(folder + "/warm", 50)
before, started = resident(), time.perf_counter()
most = run(folder, count)
# not ru_maxrss, which a new program inherits from the process that started it
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
print(time.perf_counter() - started, max(0, peak - before), most)
"""


def visibility(folder: Path, counts: list[int], rounds: int) -> dict[int, Figures]:
    """Seconds that the swap of a whole folder takes, by the number of files in it (`Receipt.visible`).

    Writing many files empties the processor's caches of everything else, which is no work of the swap; so they are emptied
    for all.
    """
    results, filler = {}, bytearray(64 << 20)
    for count in counts:
        taken = []
        for _ in range(rounds):
            output = atomik.folder(folder / "site", overwrite=True, durable=False)
            with output as new:
                for number in range(count):
                    (new / f"{number}").write_bytes(b"x")
                filler.count(1)
            assert output.receipt is not None
            taken.append(output.receipt.visible)
        results[count] = {"seconds": statistics.median(taken)}
        shutil.rmtree(folder / "site")
    return results


def bandwidth(folder: Path, size: int, rounds: int) -> Figures:
    """Seconds to write `size` bytes to a new file, durably: ``atomik.file`` against ``open`` and fsync.

    A new file each time, deleted between the rounds, and one round more than counts: the first to touch a part of the
    image makes the disk below find room for it.
    """
    block = os.urandom(1 << 20)

    def ours(path: Path) -> None:
        with atomik.file(path, "wb") as f:
            for _ in range(size >> 20):
                f.write(block)

    def plain(path: Path) -> None:
        with open(path, "wb") as f:
            f.writelines(block for _ in range(size >> 20))
            f.flush()
            os.fsync(f.fileno())

    taken: dict[str, list[float]] = {"atomik": [], "open + fsync": []}
    for _ in range(rounds + 1):
        for name, write in (("atomik", ours), ("open + fsync", plain)):
            started = time.perf_counter()
            write(folder / "large")
            taken[name].append(time.perf_counter() - started)
            (folder / "large").unlink()
            os.sync()
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def cloning(folder: Path, count: int, rounds: int) -> Figures:
    """Seconds to start a new version of a folder of `count` files: ``copy=True`` against ``cp -a --reflink=auto``."""
    source = folder / "tree"
    for number in range(count):
        part = source / f"{number % 50}"
        part.mkdir(parents=True, exist_ok=True)
        (part / f"{number}").write_bytes(DATA)

    def ours(number: int) -> None:
        output = atomik.folder(source, overwrite=True, copy=True, durable=False)
        output.abort()

    def cp(number: int) -> None:
        subprocess.run(["cp", "-a", "--reflink=auto", source, folder / "copy"], check=True)
        shutil.rmtree(folder / "copy")  # an abort removes its clone as well

    figures = interleaved({"atomik": ours, "cp -a": cp}, rounds)
    _empty(folder)
    return figures


def importing(rounds: int) -> Figures:
    """Seconds that an interpreter needs more for an import."""

    def run(code: str) -> Callable[[int], object]:
        return lambda number: subprocess.run([sys.executable, "-c", code], check=True)

    taken = interleaved(
        {"nothing": run("pass"), "atomik": run("import atomik"), "attrs, logging": run("import attrs, logging")}, rounds
    )
    return {name: seconds - taken["nothing"] for name, seconds in taken.items() if name != "nothing"}


def unheard_event() -> Figures:
    """Seconds of an event that nobody hears."""
    from atomik import _events

    times = 100_000
    started = time.perf_counter()
    for _ in range(times):
        _events.emit(_events.DEBUG, "item.swapped", tx="0", path="p", order=1)
    return {"seconds": (time.perf_counter() - started) / times}


def _fresh(folder: Path, who: str, number: int) -> Path:
    return folder / f"{who.replace(' ', '-')}-{number}"


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def sized(folder: Path, size: int, rounds: int) -> Figures:
    """Seconds of one durable overwrite of `size` bytes: atomik, by hand, and the peers."""
    data, text = b"x" * size, "x" * size

    def ours(number: int) -> None:
        with atomik.file(folder / "ours", "wb", overwrite=True) as f:
            f.write(data)

    def hand(number: int) -> None:
        by_hand.write_file(str(folder / "hand"), data, overwrite=True, durable=True)

    (folder / "hand").write_text("old")
    contestants: dict[str, Callable[[int], object]] = {"atomik": ours, "by hand": hand}
    for name, write in peers.durable().items():
        contestants[name] = lambda number, write=write, name=name: write(str(folder / name), text)
    figures = interleaved(contestants, rounds)
    _empty(folder)
    return figures


_ONE = """
import os, sys
sys.path[:0] = {path!r}
import atomik
os.chdir(sys.argv[1])
def write(name):
    with atomik.file(name, "wb") as f:
        f.write(b"x" * 4096)
write("first")
os.getpgid(0)
write("second")
os.getpgid(0)
"""


def system_calls(home: Path) -> tuple[int, int]:
    """System calls between two marks: one durable new file by atomik, and the least that does the same.

    The least: open, look at and close the folder; look for a journal, at the destination and whether the folder is still
    there; open, write, sync, link and close the file; sync the folder.  A file object of Python's adds fstat and lseek.
    """
    least = 12
    program = home / "one.py"
    program.write_text(_ONE.format(path=[str(Path(atomik.__file__).parents[1])]))
    target = home / "calls"
    target.mkdir()
    trace = home / "trace"
    subprocess.run(["strace", "-o", trace, sys.executable, program, target], check=True, capture_output=True)
    lines = trace.read_text().splitlines()
    marks = [at for at, line in enumerate(lines) if line.startswith("getpgid")]
    # What the interpreter does by itself (memory, locks, its own file objects' fstat and lseek) is no call of ours.
    own = [line for line in lines[marks[0] + 1 : marks[1]] if not line.startswith(("brk", "mmap", "munmap", "futex"))]
    return len(own), least
