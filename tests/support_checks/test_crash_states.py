"""The arithmetic of crash states, on small logs written by hand. Needs no root."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.lab.crash_states import BLOCK, CrashState, crash_states, state_at
from tests.support.lab.recorder import START, Event, Flush, Mark, Write, load_events, save_events

if TYPE_CHECKING:
    from pathlib import Path

DISK = 8 * BLOCK


def block(number: int, fill: bytes, count: int = 1) -> Write:
    return Write(number * BLOCK, fill * (count * BLOCK))


def disk_of(events: list[Event], state: CrashState) -> bytes:
    disk = bytearray(DISK)
    for write in (*events[: state.durable], *state.writes):
        if isinstance(write, Write):
            disk[write.offset : write.offset + len(write.data)] = write.data
    return bytes(disk)


def given(events: list[Event], samples: int = 6) -> set[tuple[bytes, tuple[str, ...]]]:
    return {(disk_of(events, state), state.marks) for state in crash_states(events, seed=1, samples=samples)}


def picture(*fills: bytes) -> bytes:
    return b"".join(fill * BLOCK for fill in fills).ljust(DISK, b"\0")


def test_what_a_flush_followed_is_in_every_later_state() -> None:
    """A flushed write is never missing from a state with a later mark; an unflushed one sometimes is."""
    events: list[Event] = [block(0, b"a"), Flush(), Mark("flushed"), block(1, b"b"), Mark("written")]
    assert given(events) == {
        (picture(), ()),
        (picture(b"a"), ()),
        (picture(b"a"), ("flushed",)),
        (picture(b"a", b"b"), ("flushed",)),
        (picture(b"a"), ("flushed", "written")),
        (picture(b"a", b"b"), ("flushed", "written")),
    }


def test_small_cuts_are_explored_completely() -> None:
    """Of one write of two blocks, every one of the four subsets is given."""
    assert given([block(0, b"a", count=2)]) == {
        (picture(), ()),
        (picture(b"a"), ()),
        (picture(b"\0", b"a"), ()),
        (picture(b"a", b"a"), ()),
    }


def test_of_two_writes_to_one_block_the_later_wins() -> None:
    """A block written twice without a flush holds the first, the second or neither, but never goes back."""
    events: list[Event] = [block(0, b"a"), block(0, b"b")]
    assert {disk for disk, _ in given(events)} == {picture(), picture(b"a"), picture(b"b")}


def test_unaligned_writes_are_cut_at_block_boundaries() -> None:
    """A write across a boundary can be torn there, and nowhere else."""
    half = BLOCK // 2
    events: list[Event] = [Write(half, b"x" * BLOCK)]
    first, second = bytes(half) + b"x" * half, b"x" * half
    assert {disk.rstrip(b"\0") for disk, _ in given(events)} == {
        b"",
        first,
        bytes(BLOCK) + second,
        first + second,
    }


def test_nothing_before_the_start_mark_can_be_lost() -> None:
    """The last start mark makes all before it durable, and is not among the marks."""
    events: list[Event] = [block(0, b"a"), Mark(START), block(1, b"b")]
    assert given(events) == {(picture(b"a"), ()), (picture(b"a", b"b"), ())}


def test_no_disk_is_given_twice_with_the_same_marks() -> None:
    """Each state differs from all others in content or marks, and de-duplication loses none."""
    events: list[Event] = [event for n in range(6) for event in (block(n % 3, b"ab"[n % 2 : n % 2 + 1], 3), Flush())]
    distinct = [(disk_of(events, state), state.marks) for state in crash_states(events, seed=5, distinct=True)]
    everything = {(disk_of(events, state), state.marks) for state in crash_states(events, seed=5, distinct=False)}
    assert len(distinct) == len(set(distinct))
    assert set(distinct) == everything


def test_a_label_gives_the_same_state_again() -> None:
    """Every label replays to its state; another seed chooses other subsets."""
    events: list[Event] = [block(0, b"a", 8), Mark("half"), block(0, b"b", 8), Flush()]
    states = list(crash_states(events, seed=7))
    assert [state_at(events, state.label) for state in states] == states
    assert {state.writes for state in crash_states(events, seed=8)} != {state.writes for state in states}


def test_a_foreign_label_is_refused() -> None:
    """A label whose cut is not in the log raises LookupError instead of giving some state."""
    with pytest.raises(LookupError):
        state_at([block(0, b"a"), Flush()], "1/77/all")


def test_a_saved_log_is_the_same_log(tmp_path: Path) -> None:
    """Events survive being kept in a file."""
    events: list[Event] = [block(2, b"a"), Flush(), Mark("naïve")]
    save_events(events, tmp_path / "log")
    assert load_events(tmp_path / "log") == events
