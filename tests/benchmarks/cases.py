"""What is measured.  A case returns the `Times` of its contestants, or single figures, in seconds, bytes or counts."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import atomik
from atomik.testing import recorded
from tests.benchmarks import by_hand, peers
from tests.benchmarks.timing import Times, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable

Figures = dict[str, float]
TEXT = "x" * 4096
DATA = TEXT.encode()


def one_file(folder: Path, rounds: int, home: Path, *, overwrite: bool, durable: bool) -> dict[str, Times]:
    """One file of 4 KiB: atomik, by hand, and by hand with the same checks; then beside each peer.

    Each peer has a run with atomik alone: some make the disk work, and the next one pays.
    """
    how = {"overwrite": overwrite, "durable": durable}

    def target(who: str, number: int) -> str:
        return str(folder / (who if overwrite else f"{who}-{number}"))

    def ours(number: int) -> None:
        with atomik.file(target("ours", number), "wb", **how) as f:
            f.write(DATA)

    contestants: dict[str, Callable[[int], object]] = {
        "atomik": ours,
        "by hand": lambda number: by_hand.write_file(target("hand", number), DATA, **how),
        "with looks": lambda number: by_hand.write_file_with_looks(target("looks", number), DATA, **how),
    }
    for who in ("ours", "hand", "looks") if overwrite else ():
        (folder / who).write_text("old")
    times = {"": _taking_turns(contestants, rounds)}
    if overwrite and not durable:
        usual = str(folder / "usual")
        contestants = {"atomik": ours, "usual": lambda number: by_hand.replace_usually(usual, DATA)}
        times["usual"] = _taking_turns(contestants, rounds)
    return times | _beside_peers(folder, rounds, peers.durable() if durable else peers.fast(home), target, how)


def _beside_peers(
    folder: Path, rounds: int, writers: dict[str, Callable[[str, str], None]], target: Callable[[str, int], str],
    how: dict[str, bool],
) -> dict[str, Times]:  # fmt: skip
    def text(number: int) -> None:
        with atomik.file(target("text", number), "w", **how) as f:
            f.write(TEXT)

    times = {}
    for name, write in writers.items():
        _empty(folder)  # what is there would be in the way of a new one
        theirs = _bound(write, lambda number, name=name: target(name, number))  # type: ignore[misc]
        times[name] = _taking_turns({"atomik": text, name: theirs}, rounds)
    _empty(folder)
    return times


def _bound(write: Callable[[str, str], None], target: Callable[[int], str]) -> Callable[[int], object]:
    return lambda number: write(target(number), TEXT)


def _taking_turns(contestants: dict[str, Callable[[int], object]], rounds: int) -> Times:
    for contestant in contestants.values():
        contestant(-1)  # loads what is loaded once
    return interleaved(contestants, rounds)


def group(folder: Path, count: int, rounds: int, *, overwrite: bool, durable: bool) -> Times:
    """`count` files of 4 KiB in one transaction; the whole protocol by hand; and one by one: with `atomik.file` where nothing
    is synced, with atomicwrites where everything is."""
    names = [f"f{number}" for number in range(count)]
    jobs = _jobs(names, overwrite=overwrite, durable=durable)

    def target(who: str, number: int) -> Path:
        where = folder / (who if overwrite else f"{who}-{number}")
        if not where.exists():
            where.mkdir()
            for name in names if overwrite else ():
                (where / name).write_text("old")
        return where

    for who in jobs:
        for number in range(-1, rounds):
            target(who, number)
    contestants = {who: lambda number, who=who: jobs[who](target(who, number)) for who in jobs}
    times = _taking_turns(contestants, rounds) if count < 1000 else interleaved(contestants, rounds)  # type: ignore[arg-type]
    _empty(folder)
    return times


def _jobs(names: list[str], *, overwrite: bool, durable: bool) -> dict[str, Callable[[Path], object]]:
    """The function that writes such files into a folder."""

    def ours(where: Path) -> None:
        with atomik.transaction(overwrite=overwrite, durable=durable) as tx:
            for name in names:
                with tx.file(f"{where}/{name}", "wb") as f:
                    f.write(DATA)

    def hand(where: Path) -> None:
        by_hand.write_group(str(where), names, DATA, durable=durable, overwrite=overwrite)

    def loop(where: Path) -> None:
        for name in names:
            with atomik.file(f"{where}/{name}", "wb", overwrite, durable=False) as f:
                f.write(DATA)

    jobs: dict[str, Callable[[Path], object]] = {"atomik": ours, "by hand": hand}
    if not durable:
        jobs["loop"] = loop
    for who, write in (peers.durable() if durable else {}).items():
        jobs[who] = lambda where, write=write: [write(f"{where}/{name}", TEXT) for name in names]  # type: ignore[misc]
    return jobs


def each_synced(folder: Path, count: int, rounds: int) -> Times:
    """`count` files with ``durable="fsync"``, against open, write and fsync one by one."""

    def ours(where: Path) -> None:
        with atomik.transaction(durable="fsync") as tx:
            for number in range(count):
                with tx.file(f"{where}/{number}", "wb") as f:
                    f.write(DATA)

    def one_by_one(where: Path) -> None:
        for number in range(count):
            with open(where / str(number), "wb", buffering=0) as f:
                f.write(DATA)
                os.fsync(f.fileno())

    def fresh(who: str, number: int) -> Path:
        (folder / f"{who}-{number}").mkdir()
        return folder / f"{who}-{number}"

    times = _taking_turns(
        {
            "atomik": lambda number: ours(fresh("ours", number)),
            "one by one": lambda number: one_by_one(fresh("one", number)),
        },
        rounds,
    )
    _empty(folder)
    return times


def syncs(folder: Path, counts: list[int]) -> dict[int, int]:
    """How many sync calls a durable group in one folder makes."""
    found = {}
    for count in counts:
        (where := folder / f"s{count}").mkdir()

        def job(where: Path = where, count: int = count) -> None:
            with atomik.transaction() as tx:
                for number in range(count):
                    with tx.file(where / str(number), "wb") as f:
                        f.write(DATA)

        found[count] = sum(name in ("fsync", "fdatasync", "syncfs") for name, _ in recorded(job))
    _empty(folder)
    return found


def crowd(folder: Path, processes: int, seconds: float) -> Figures:
    """Processes that commit to one folder as fast as they can: the slowest beside the quickest, the longest wait beside the
    median one.  The first commit of each loads the library, and does not count."""
    reader, writer = os.pipe()
    for number in range(processes):
        if os.fork() == 0:
            os.write(writer, f"{' '.join(map(str, _commits(folder, number, seconds)))}\n".encode())
            os._exit(0)
    for _ in range(processes):
        os.wait()
    os.close(writer)
    with open(reader) as lines:
        taken = [[float(word) for word in line.split()] for line in lines]
    every = sorted(seconds for one in taken for seconds in one)
    counts = [len(one) for one in taken]
    return {
        "ratio": max(counts) / max(1, min(counts)), "wait": every[-1] / statistics.median(every),
        "most": every[int(len(every) * 0.99)] / statistics.median(every), "rate": len(every) / seconds,
    }  # fmt: skip


def _commits(folder: Path, number: int, seconds: float) -> list[float]:
    taken = []
    until = time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        with atomik.transaction(overwrite=True, durable=False) as tx:
            for name in "ab":
                with tx.file(folder / f"{number}{name}") as f:
                    f.write("x")
        taken.append(round(time.perf_counter() - started, 5))
    return taken[1:500]  # what a pipe takes at once


def replacing(folder: Path, count: int, rounds: int, *, durable: bool) -> Times:
    """A folder of `count` files takes the place of another: built, exchanged, the old one deleted."""

    def ours(number: int) -> None:
        with atomik.folder(folder / "ours", overwrite=True, durable=durable) as new:
            by_hand.fill(f"{new}/all", count)

    def hand(number: int) -> None:
        by_hand.replace_folder(str(folder / "hand"), count, durable=durable)

    for name in ("ours", "hand"):
        by_hand.fill(str(folder / name), count)
    times = interleaved({"atomik": ours, "by hand": hand}, rounds)
    _empty(folder)
    return times


def mixture(folder: Path, count: int, rounds: int) -> Figures:
    """Seconds in which a reader that does not cooperate can see old and new files side by side."""
    taken = []
    for _ in range(rounds + 1):
        with atomik.transaction(overwrite=True, durable=False) as tx:
            for number in range(count):
                with tx.file(folder / str(number), "wb") as f:
                    f.write(b"x")
        assert tx.receipt is not None
        taken.append(tx.receipt.visible)
    _empty(folder)
    return {"seconds": statistics.median(taken[1:])}


def scaling(folder: Path, counts: list[int]) -> dict[int, Figures]:
    """Seconds, peak memory and open descriptors of overwrites, an item, for several sizes; each in a process of its own."""
    results = {}
    for count in counts:
        target = folder / f"n{count}"
        target.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", _SCALING, str(target), str(count)],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds, memory, descriptors = (float(word) for word in done.stdout.split())
        results[count] = {"seconds": seconds / count, "bytes": memory / count, "descriptors": descriptors}
        shutil.rmtree(target)
    return results


_SCALING = """
import os, sys, time, atomik
folder, count = sys.argv[1], int(sys.argv[2])
def run(folder, count):
    with atomik.transaction(durable=False, overwrite=True) as tx:
        for number in range(count):
            with tx.file(f"{folder}/f{number}", "wb") as f:
                f.write(b"x")
        most = len(os.listdir("/proc/self/fd"))
    return most
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
os.mkdir(folder + "/warm"); run(folder + "/warm", 50)
for number in range(count):
    open(f"{folder}/f{number}", "wb").close()
before, started = resident(), time.perf_counter()
most = run(folder, count)
taken = time.perf_counter() - started
# not ru_maxrss, which a new program inherits from the process that started it
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
print(taken, max(0, peak - before), most)
"""


def visibility(folder: Path, counts: list[int], rounds: int) -> dict[int, Figures]:
    """Seconds that the swap of a whole folder takes, by the number of files in it (`Receipt.visible`).

    Writing many files empties the processor's caches of everything else, which is no fault of the swap; so they are emptied
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


def bandwidth(folder: Path, size: int, rounds: int) -> Times:
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
    return Times({name: times[1:] for name, times in taken.items()})


def cloning(folder: Path, count: int, rounds: int) -> Times:
    """Seconds to start a new version of a folder of `count` files: ``copy=True`` against ``cp -a --reflink=auto``."""
    source = folder / "tree"
    _parts(source, count, 50)

    def ours(number: int) -> None:
        output = atomik.folder(source, overwrite=True, copy=True, durable=False)
        output.abort()

    def cp(number: int) -> None:
        subprocess.run(["cp", "-a", "--reflink=auto", source, folder / "copy"], check=True)
        shutil.rmtree(folder / "copy")  # an abort removes its clone as well

    times = interleaved({"atomik": ours, "cp -a": cp}, rounds)
    _empty(folder)
    return times


_BY_HAND = """
cp -a --reflink=auto "$1" "$1.new" && touch "$1.new/stamp" && sync -f "$1.new" &&
mv -T "$1" "$1.old" && mv -T "$1.new" "$1" && rm -rf "$1.old"
"""


def running(folder: Path, count: int, rounds: int) -> Times:
    """Seconds of ``atomik run --in`` with a program that makes one file in a folder of `count`, and of a shell script that
    copies the folder, runs the program, syncs, renames twice and deletes the old folder."""

    def ours(_: int) -> None:
        where = folder / "ours"
        command = [sys.executable, "-m", "atomik", "run", "--in", where, "--", "touch", where / "stamp"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def hand(_: int) -> None:
        subprocess.run(["sh", "-c", _BY_HAND, "sh", folder / "hand"], check=True)

    for name in ("ours", "hand"):
        _parts(folder / name, count, 100)
    times = _taking_turns({"atomik": ours, "by hand": hand}, rounds)
    _empty(folder)
    return times


def _parts(tree: Path, count: int, parts: int) -> None:
    """`count` files, spread over as many folders."""
    for number in range(count):
        part = tree / f"{number % parts}"
        part.mkdir(parents=True, exist_ok=True)
        (part / f"{number}").write_bytes(DATA)


def importing(rounds: int) -> Times:
    """Seconds that an interpreter needs more for an import."""
    return interleaved(
        {
            "nothing": lambda _: _python("pass"), "atomik": lambda _: _python("import atomik"),
            "attrs, logging": lambda _: _python("import attrs, logging"),
        },
        rounds,
    ).without("nothing")  # fmt: skip


def first_use(folder: Path, rounds: int) -> Times:
    """Processor seconds that an interpreter needs more to import what writes a file, and to write its first one."""
    usual = "import os, tempfile\nwith tempfile.NamedTemporaryFile(dir=sys.argv[1], delete=False) as f: f.write(b'x')\n"
    usual += "os.replace(f.name, sys.argv[1] + '/usual')"
    ours = "import atomik\nwith atomik.file(sys.argv[1] + '/ours', 'wb', overwrite=True, durable=False) as f: f.write(b'x')"
    codes = {"nothing": "pass", "usual": usual, "atomik": ours}
    contestants = {who: lambda _, code=code: _python("import sys\n" + code, folder) for who, code in codes.items()}
    for contestant in contestants.values():
        contestant(-1)

    def spent() -> float:
        found = resource.getrusage(resource.RUSAGE_CHILDREN)
        return found.ru_utime + found.ru_stime

    times = interleaved(contestants, rounds, spent).without("nothing")  # type: ignore[arg-type]
    _empty(folder)
    return times


def commands(folder: Path, rounds: int) -> Times:
    """Seconds from start to end of ``atomik write`` and ``atomik run``, and of an interpreter that does nothing."""
    out = folder / "out"
    run = [
        "run",
        "--no-durable",
        "--overwrite",
        "--file",
        str(out),
        "--",
        "/bin/sh",
        "-c",
        'echo x > "$1"',
        "sh",
        f"{{{out}}}",
    ]
    write = ["write", "--no-durable", "--overwrite", str(out)]

    def atomik_(*arguments: str) -> None:
        command = [sys.executable, "-m", "atomik", *arguments]
        subprocess.run(command, input=b"x", check=True, env=_environment(), capture_output=True)

    times = _taking_turns(
        {"nothing": lambda _: _python("pass"), "write": lambda _: atomik_(*write), "run": lambda _: atomik_(*run)},
        rounds,
    )
    _empty(folder)
    return times


def _python(code: str, *arguments: object) -> None:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    subprocess.run(command, check=True, env=_environment())


def _environment() -> dict[str, str]:
    """As users have it: with compiled modules, from this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}


def unheard_event() -> Figures:
    """Seconds that an event without a listener takes."""
    from atomik import _events

    times = 100_000
    started = time.perf_counter()
    for _ in range(times):
        _events.emit(_events.DEBUG, "item.swapped", tx="0", path="p", order=1)
    return {"seconds": (time.perf_counter() - started) / times}


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def sized(folder: Path, size: int, rounds: int) -> Times:
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
    times = interleaved(contestants, rounds)
    _empty(folder)
    return times


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
    # What the interpreter does by itself (memory, locks, its own file objects' fstat and lseek) is not a call of ours.
    own = [line for line in lines[marks[0] + 1 : marks[1]] if not line.startswith(("brk", "mmap", "munmap", "futex"))]
    return len(own), least
