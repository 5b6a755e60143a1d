"""Processes against each other: writers for one destination, and readers of what is being overwritten.

The full numbers of rounds are run with ``-m slow``; a plain run takes a tenth of them, or fewer.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from tests.support.state import Rounds, in_children

if TYPE_CHECKING:
    from collections.abc import Callable


def scaled(name: str, plain: int, full: int) -> pytest.MarkDecorator:
    """A parameter that is small in a plain run, and large in a slow one."""
    return pytest.mark.parametrize(name, [plain, pytest.param(full, marks=pytest.mark.slow)])


# --- writers -----------------------------------------------------------------------------------------------------------
def nothing() -> None:
    pass


def write_file(path: str, who: int, staged: Callable[[], None] = nothing) -> None:
    with atomik.file(path, durable=False) as f:
        f.write(str(who))
        staged()


def write_folder(path: str, who: int, staged: Callable[[], None] = nothing) -> None:
    with atomik.folder(path, durable=False) as d:
        (d / "who").write_text(str(who))
        staged()


def write_two(path: str, who: int, staged: Callable[[], None] = nothing) -> None:
    with atomik.transaction(durable=False) as tx:
        tx.file(path).write(str(who))
        tx.file(f"{path}-second").write(str(who))
        staged()


def winner(path: str) -> int:
    return int(Path(path, "who").read_text() if os.path.isdir(path) else Path(path).read_text())


@scaled("rounds", 100, 1000)
@pytest.mark.parametrize("write", [write_file, write_folder, write_two])
def test_race_for_one_destination(folder: Path, write: Callable[..., None], rounds: int) -> None:
    """P2: of two processes exactly one wins each time, and the loser is told so by exactly FileAlreadyExistsError.

    In every second round they meet when both have staged their outputs, and find the destination free; in the others
    before anything is staged.  Which of them wins is nobody's promise: on a busy machine one may win all the time.
    """
    meeting = Rounds(2)

    def contend(who: int) -> list[Any]:
        results: list[Any] = []
        pauses = random.Random(who)

        def meet() -> None:
            meeting.meet(who, number + 1)
            start = time.perf_counter() + pauses.random() * 1e-4
            while time.perf_counter() < start:
                os.sched_yield()

        for number in range(rounds):
            try:
                if number % 2:
                    write(f"x{number}", who, staged=meet)
                else:
                    meet()
                    write(f"x{number}", who)
            except errors.AtomikError as exc:
                results.append((type(exc).__name__, exc.errno, exc.filename))  # type: ignore[attr-defined]
            else:
                results.append("won")
        return results

    first, second = in_children(lambda: contend(0), lambda: contend(1))
    for number, results in enumerate(zip(first, second, strict=True)):
        assert sorted(map(str, results))[1] == "won", (number, results)
        (lost,) = [result for result in results if result != "won"]
        assert lost[:2] == ("FileAlreadyExistsError", 17)
        # Of two destinations, the second may be the one that is found taken when it is staged.
        assert lost[2] in {str(folder / f"x{number}"), str(folder / f"x{number}-second")}
        assert winner(f"x{number}") == results.index("won")
        if write is write_two:
            assert winner(f"x{number}-second") == results.index("won")


@pytest.mark.sweep
@scaled("rounds", 100, 1000)
def test_race_of_overwriters(folder: Path, rounds: int) -> None:
    """Two that overwrite never disturb each other: the last one wins, and neither sees an error."""
    meeting = Rounds(2)

    def overwrite(who: int) -> None:
        for number in range(rounds):
            meeting.meet(who, number + 1)
            with atomik.file("x", overwrite=True, durable=False) as f:
                f.write(f"{who} {number}")
            with atomik.folder("d", overwrite=True, durable=False) as d:
                (d / "x").write_text(f"{who} {number}")

    in_children(lambda: overwrite(0), lambda: overwrite(1))
    assert Path("x").read_text()[2:] == Path("d/x").read_text()[2:] == str(rounds - 1)
    assert sorted(os.listdir()) == ["d", "x"]


@scaled("rounds", 50, 500)
def test_transactions_never_interleave(folder: Path, rounds: int) -> None:
    """P6: two processes overwrite the same pair of files and a folder; in the end, as ever, all are of one of them."""
    meeting = Rounds(2)
    for name in ("a", "b"):
        Path(name).touch()

    def overwrite(who: int) -> int:
        mixed = 0
        for number in range(rounds):
            meeting.meet(who, number + 1)
            names = ("a", "b") if who else ("b", "a")  # the locks are taken in one order nevertheless (I8)
            with atomik.transaction(overwrite=True, durable=False) as tx:
                for name in names:
                    tx.file(name).write(f"{who} {number}")
                (tx.folder("d") / "x").write_text(f"{who} {number}")
            with atomik.reading("."):
                found = {Path(name).read_text() for name in ("a", "b", "d/x")}
            mixed += len(found) != 1
        return mixed

    assert in_children(lambda: overwrite(0), lambda: overwrite(1)) == [0, 0]
    assert sorted(os.listdir()) == ["a", "b", "d"]


@scaled("rounds", 100, 1000)
def test_counter_by_update(folder: Path, rounds: int) -> None:
    """Compare-and-swap loses no update: two processes count to the sum, repeating on ConflictError."""
    Path("n").write_text("0")

    def count() -> int:
        conflicts = 0
        done = 0
        while done < rounds // 4:
            try:
                with atomik.update("n", durable=False) as f:
                    value = int(f.read())
                    f.seek(0)
                    f.write(str(value + 1))
            except errors.ConflictError:
                conflicts += 1
            else:
                done += 1
        return conflicts

    in_children(count, count)
    assert Path("n").read_text() == str(rounds // 4 * 2)


def test_creation_and_removal_race(folder: Path) -> None:
    """Creating, overwriting and removing one name at the same time: errors are exact, and nothing is left."""
    rounds = 150

    def work(action: Callable[[], None]) -> Counter[str]:
        seen: Counter[str] = Counter()
        for _ in range(rounds):
            try:
                action()
            except errors.AtomikError as exc:
                seen[type(exc).__name__] += 1
            else:
                seen["done"] += 1
        return seen

    def create() -> None:
        write_file("x", 1)

    def overwrite() -> None:
        with atomik.file("x", overwrite=True, durable=False) as f:
            f.write("2")

    def remove() -> None:
        with atomik.transaction(durable=False) as tx:
            tx.remove("x")

    created, overwritten, removed = in_children(lambda: work(create), lambda: work(overwrite), lambda: work(remove))
    assert set(created) <= {"FileAlreadyExistsError", "done"}
    assert set(overwritten) == {"done"}
    assert set(removed) <= {"MissingPathError", "done"}


# --- readers -----------------------------------------------------------------------------------------------------------
FILES = 4
SIZE = 3000


def content(number: int) -> str:
    return f"{number:08}" * (SIZE // 8)


def whole(text: str) -> bool:
    return len(text) == SIZE and text == text[:8] * (SIZE // 8)


def overwrite_while(rounds: int, write: Callable[[int], None], look: Callable[[Counter[str]], None]) -> Counter[str]:
    """Overwrite as often as told while another process looks; what it has seen.

    Before every tenth round the writer waits for two more looks: one of them was begun and ended while it waited.  So the
    reader looks often, and at a version that stays, however the machine divides its time.
    """
    meeting = Rounds(2)

    def writer() -> None:
        try:
            for number in range(rounds):
                if not number % 10:
                    meeting.wait(1, meeting.of(1) + 2)
                write(number)
        finally:
            meeting.say(0, -1)

    def reader() -> Counter[str]:
        seen: Counter[str] = Counter()
        while meeting.of(0) >= 0:
            look(seen)
            seen["looks"] += 1
            meeting.say(1, seen["looks"])
        return seen

    seen: Counter[str]
    _, seen = in_children(writer, reader)
    return seen


@pytest.mark.parametrize(
    "rounds", [200, pytest.param(1000, marks=pytest.mark.sweep), pytest.param(10_000, marks=pytest.mark.slow)]
)
def test_reader_of_an_overwritten_file(folder: Path, rounds: int) -> None:
    """P1: never missing, never empty, never half of one and half of another."""
    Path("x").write_text(content(0))

    def write(number: int) -> None:
        with atomik.file("x", overwrite=True, durable=False) as f:
            f.write(content(number))

    def look(seen: Counter[str]) -> None:
        try:
            text = Path("x").read_text()
        except FileNotFoundError:
            seen["missing"] += 1
        else:
            seen["empty"] += not text
            seen["mixed"] += bool(text) and not whole(text)

    seen = overwrite_while(rounds, write, look)
    assert (seen["missing"], seen["empty"], seen["mixed"]) == (0, 0, 0), seen


@pytest.mark.sweep
@scaled("rounds", 100, 10_000)
def test_reader_of_an_overwritten_folder(folder: Path, rounds: int) -> None:
    """P1 for a non-empty folder: whatever is at the name is there, complete, and of one version.

    A reader that holds the folder open keeps the old one, and sees that emptied once it is displaced; so what was
    seen counts only if the folder was still the destination afterwards.
    """

    def write(number: int) -> None:
        with atomik.folder("d", overwrite=True, durable=False) as d:
            for name in range(FILES):
                (d / str(name)).write_text(content(number))

    write(0)

    def look(seen: Counter[str]) -> None:
        try:
            text = Path("d/0").read_text()
            seen["torn"] += not whole(text)
            fd = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            seen["missing"] += 1
            return
        try:
            names = sorted(os.listdir(fd))
            texts = {read_at(fd, name) for name in names}
            if os.stat("d").st_ino == os.fstat(fd).st_ino:
                seen["valid"] += 1
                seen["incomplete"] += names != [str(name) for name in range(FILES)]
                seen["mixed"] += len(texts) != 1 or not whole(texts.pop() or "")
        finally:
            os.close(fd)

    seen = overwrite_while(rounds, write, look)
    assert seen["valid"] >= rounds // 10
    assert (seen["missing"], seen["incomplete"], seen["mixed"], seen["torn"]) == (0, 0, 0, 0), seen


def read_at(fd: int, name: str) -> str | None:
    try:
        with open(os.open(name, os.O_RDONLY, dir_fd=fd)) as f:
            return f.read()
    except FileNotFoundError:
        return None


@scaled("rounds", 40, 1000)
def test_cooperating_reader_sees_whole_transactions(folder: Path, rounds: int) -> None:
    """P6: inside atomik.reading() the outputs of one transaction are all of one version."""

    def write(number: int) -> None:
        with atomik.transaction(overwrite=True, durable=False) as tx:
            for name in ("a", "b", "c"):
                tx.file(name).write(content(number))

    write(0)

    def look(seen: Counter[str]) -> None:
        with atomik.reading("."):
            texts = {Path(name).read_text() for name in ("a", "b", "c")}
        seen["mixed"] += len(texts) != 1

    seen = overwrite_while(rounds, write, look)
    assert seen["mixed"] == 0


@pytest.mark.sweep
@scaled("rounds", 100, 1000)
def test_update_of_a_folder_under_readers(folder: Path, rounds: int) -> None:
    """copy=True grows a folder by one file at a time; a reader by path never misses a file that was there."""
    with atomik.folder("d", durable=False) as d:
        (d / "0").touch()

    def write(number: int) -> None:
        with atomik.folder("d", overwrite=True, copy=True, durable=False) as new:
            (new / str(number % 7)).touch()

    def look(seen: Counter[str]) -> None:
        seen["missing"] += not os.path.exists("d/0")

    assert overwrite_while(rounds, write, look)["missing"] == 0
    assert sorted(os.listdir("d")) == [str(n) for n in range(7)]
