"""What a commit costs, in calls: a regression shows here, whatever the machine is doing."""

from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING

import pytest

import atomik
from atomik.testing import recorded
from tests.support.lab.mounts import missing, mounted
from tests.support.lab.need import need

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SYNCS = ("fsync", "fdatasync", "syncfs")


def calls(action: Callable[[], object]) -> Counter[str]:
    return Counter(name for name, _ in recorded(action))


def syncs(counted: Counter[str]) -> int:
    return sum(counted[name] for name in SYNCS)


def write(path: Path, **options: object) -> None:
    with atomik.file(path, "wb", **options) as f:  # type: ignore[call-overload]
        f.write(b"x" * 4096)


def group(folders: list[Path], count: int, **options: object) -> None:
    with atomik.transaction(**options) as tx:  # type: ignore[arg-type]
        for number in range(count):
            with tx.file(folders[number % len(folders)] / f"f{number}", "wb") as f:
                f.write(b"x")


@pytest.fixture(autouse=True)
def _warm(tmp_path: Path) -> None:
    """What is asked once per mount is asked before anything is counted."""
    write(tmp_path / "warm")
    write(tmp_path / "warm", overwrite=True)


@pytest.mark.usefixtures("no_log")
def test_a_durable_new_file_costs_two_syncs_and_one_link(tmp_path: Path) -> None:
    """A new file is one O_TMPFILE, one linkat, a sync each for content and name, and an open and close for watchers (P10)."""
    counted = calls(lambda: write(tmp_path / "new"))
    assert (syncs(counted), counted["open_tmpfile"], counted["link_fd"], counted["rename"]) == (2, 1, 1, 0)
    assert sum(counted.values()) <= 15, counted


@pytest.mark.usefixtures("no_log")
def test_a_durable_overwrite_costs_two_syncs_and_one_exchange(tmp_path: Path) -> None:
    """An overwrite adds the exchange, the removal of what came out, and the looks at old owner, mode and attributes."""
    counted = calls(lambda: write(tmp_path / "warm", overwrite=True))
    assert (syncs(counted), counted["rename"], counted["unlink"]) == (2, 1, 1)
    assert sum(counted.values()) <= 21, counted


@pytest.mark.parametrize("overwrite", [False, True])
def test_nobody_asks_for_times(tmp_path: Path, overwrite: bool) -> None:
    """Which would make the next change of each file dearer (see `libc`): one file is looked at by statx(2) alone."""
    counted = calls(lambda: write(tmp_path / ("warm" if overwrite else "new"), overwrite=overwrite))
    assert not counted.keys() & {"stat", "lstat", "fstat"}
    output = atomik.file(tmp_path / "other", "wb")
    assert not isinstance(output.output.raw, io.FileIO)  # type: ignore[attr-defined]  # it looks when it is made
    output.abort()


def test_without_durability_nothing_is_synced(tmp_path: Path) -> None:
    """durable=False makes no sync call, alone and in a group."""
    assert syncs(calls(lambda: write(tmp_path / "a", durable=False))) == 0
    assert syncs(calls(lambda: group([tmp_path], 20, durable=False))) == 0


@pytest.mark.parametrize(("folders", "most"), [(1, 6), (4, 12)])
def test_the_syncs_of_a_group_do_not_grow(tmp_path: Path, folders: int, most: int) -> None:
    """Barriers are constant (I10): as many sync calls for 200 files as for 20."""
    made = [tmp_path / f"d{number}" for number in range(folders)]
    for folder in made:
        (folder / "large").mkdir(parents=True)
    small = syncs(calls(lambda: group(made, 20)))
    large = syncs(calls(lambda: group([folder / "large" for folder in made], 200)))
    assert small == large <= most


@pytest.mark.filesystems
@pytest.mark.root
@pytest.mark.parametrize(("kind", "one", "few", "many"), [("ext4", 1, 1, 2), ("xfs", 1, 1, 2), ("btrfs", 2, 4, 4)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_syncs_in_one_folder(kind: str, one: int, few: int, many: int, overwrite: bool) -> None:
    """Where one log holds every change, one stands for all barriers; btrfs syncs the private folder as well (powercut/
    proves both)."""
    need(missing(kind))
    with mounted(kind, size=512 << 20) as place:
        write(place.folder / "warm")  # until something was synced, nobody knows whether ext4 makes fast commits
        if overwrite:
            write(place.folder / "one", durable=False)
        assert syncs(calls(lambda: write(place.folder / "one", overwrite=overwrite))) == one
        for count in (2, 5, 16, 17, 30):
            (folder := place.folder / str(count)).mkdir()
            if overwrite:
                group([folder], count)
            counted = calls(lambda folder=folder, count=count: group([folder], count, overwrite=overwrite))  # type: ignore[misc]
            assert syncs(counted) == (few if count <= 16 else many)


def test_calls_an_item_do_not_grow(tmp_path: Path) -> None:
    """A journalled transaction makes the same calls for every item, and few of them."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    small = sum(calls(lambda: group([tmp_path / "a"], 100)).values())
    large = sum(calls(lambda: group([tmp_path / "b"], 300)).values())
    assert (large - small) / 200 <= 9


def test_the_commit_looks_for_many_new_names_at_once(tmp_path: Path) -> None:
    """Staging asks for each name, to fail early; under the lock one listing answers for all of them, or each its own look
    where the folder has more names than that is worth."""
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    for number in range(200):
        (tmp_path / f"many/{number}").touch()
    journal = 1  # is looked for in every commit
    assert calls(lambda: group([tmp_path / "few"], 100))["exists"] == 100 + journal
    assert calls(lambda: group([tmp_path / "many"], 100))["exists"] == 200 + journal
    assert calls(lambda: group([tmp_path], 3))["exists"] == 6 + journal


@pytest.mark.parametrize(("ground", "most", "syncs"), [("no_log", 3, 9), ("one_log", 2, 1)])
def test_three_barriers_a_transaction_and_two_an_item(
    tmp_path: Path, request: pytest.FixtureRequest, ground: str, most: int, syncs: int
) -> None:
    """The receipt counts the barriers: three with a journal, two without, and where the mark is a name (I10)."""
    request.getfixturevalue(ground)
    with atomik.transaction() as tx:
        for name in "abc":
            tx.file(tmp_path / name).write(name)
    assert tx.receipt is not None
    assert tx.receipt.barriers == most
    assert tx.receipt.sync_calls == syncs
    output = atomik.file(tmp_path / "single")
    with output as f:
        f.write("x")
    assert output.receipt is not None
    assert output.receipt.barriers == 2


def test_a_folder_is_one_rename_whatever_is_in_it(tmp_path: Path) -> None:
    """Publishing a folder renames once; its files add nothing between the first swap and the end of the last."""
    for count in (1, 100):

        def publish(count: int = count) -> None:
            with atomik.folder(tmp_path / "site", overwrite=True) as site:
                for number in range(count):
                    (site / f"{number}").write_text("x")

        names = [name for name, _ in recorded(publish)]
        assert names.count("rename") == 1


def test_descriptors_do_not_grow_with_sealed_files(tmp_path: Path) -> None:
    """However many files were sealed, the same number of descriptors is open (I10)."""
    from pathlib import Path as RealPath

    def opened(count: int) -> int:
        tx = atomik.transaction(durable=False)
        for number in range(count):
            with tx.file(tmp_path / f"{count}-{number}") as f:
                f.write("x")
        now = len(list(RealPath("/proc/self/fd").iterdir()))
        tx.abort()
        return now

    assert opened(40) == opened(400)


def test_swaps_of_a_group_are_nothing_but_renames_in_a_row(tmp_path: Path) -> None:
    """While readers can see a mixture, nothing else is done: names and identities were prepared, and the checks come behind
    the last swap."""
    group([tmp_path], 20, durable=False)
    names = [name for name, _ in recorded(lambda: group([tmp_path], 20, overwrite=True, durable=False))]
    first, last = names.index("rename"), len(names) - 1 - names[::-1].index("rename")
    assert names[first : last + 1] == ["rename"] * 20
    assert names[last + 1 : last + 41] == ["handle"] * 40  # each destination and each slot (I4)


@pytest.mark.parametrize("count", [1, 3])
def test_a_transaction_leaves_no_cycle_of_objects(tmp_path: Path, count: int) -> None:
    """What it held goes with the last reference, and does not wait for the collector."""
    import gc
    import weakref

    group([tmp_path], count, overwrite=True, durable=False)
    gc.collect()
    gc.disable()
    try:
        tx = atomik.transaction(overwrite=True, durable=False)
        for number in range(count):
            tx.write_bytes(tmp_path / f"f{number}", b"x")
        workspace = weakref.ref(tx._intake.workspace)
        tx.commit()
        del tx
        assert workspace() is None
    finally:
        gc.enable()
