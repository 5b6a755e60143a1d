"""Inside `reading` a folder is of one version, whichever way the publisher chose (P6)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARTS = [f"part{number}" for number in range(5)]


def _fill(new: Any, version: str) -> None:
    for part in PARTS:
        (new / part).write_text(version)


def by_folder(place: Path, version: str) -> None:
    with atomik.folder(place, overwrite=True, durable=False) as new:
        _fill(new, version)


def by_transaction(place: Path, version: str) -> None:
    with atomik.transaction(overwrite=True, durable=False) as tx:
        _fill(tx.folder(place), version)


def by_several(place: Path, version: str) -> None:
    with atomik.transaction(overwrite=True, durable=False) as tx:
        _fill(tx.folder(place), version)
        tx.file(place.with_name("version")).write(version)


def by_swap(place: Path, version: str) -> None:
    """Two folders change places all the time, as in a blue-green deployment."""
    other = place.with_name("other")
    for each, said in ((place, version), (other, version + " too")):
        if not each.exists():
            each.mkdir()
            _fill(each, said)
    atomik.swap(place, other)


def in_place(place: Path, version: str) -> None:
    with atomik.folder(place, overwrite=True, in_place=True, parents=True, durable=False) as new:
        _fill(new, version)


@pytest.mark.parametrize("pause", [0.001, pytest.param(0.3, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("lock", ["parent", "folder"])
@pytest.mark.parametrize(
    "publish", [by_folder, by_transaction, by_several, by_swap, in_place], ids=lambda way: way.__name__
)
def test_a_reader_sees_one_version(folder: Path, publish: Callable[[Path, str], None], lock: str, pause: float) -> None:
    """Five files are read in one block, while the folder is published all the time."""
    place = folder / "ds"
    publish(place, "first")
    done = threading.Event()

    def keep_publishing() -> None:
        number = 0
        while not done.is_set():
            number += 1
            publish(place, str(number))
            time.sleep(0.002)

    writer = threading.Thread(target=keep_publishing)
    writer.start()
    seen: list[set[str]] = []
    try:
        for _ in range(3 if pause > 0.1 else 30):
            with atomik.reading(folder if lock == "parent" else place):
                versions = set()
                for part in PARTS:
                    versions.add((place / part).read_text())
                    time.sleep(pause / len(PARTS))
            seen.append(versions)
            time.sleep(0.001)
    finally:
        done.set()
        writer.join()
    assert [len(versions) for versions in seen] == [1] * len(seen)


@pytest.mark.parametrize("lock", ["parent", "folder"])
@pytest.mark.parametrize("publish", [by_folder, by_transaction, by_several, in_place], ids=lambda way: way.__name__)
def test_who_publishes_into_what_he_reads_is_told_at_once(
    folder: Path, publish: Callable[[Path, str], None], lock: str
) -> None:
    """He would wait for himself."""
    place = folder / "ds"
    publish(place, "first")
    started = time.monotonic()
    with atomik.reading(folder if lock == "parent" else place), pytest.raises(errors.LockTimeoutError):
        publish(place, "second")
    assert time.monotonic() - started < 30
    assert (place / PARTS[0]).read_text() == "first"
