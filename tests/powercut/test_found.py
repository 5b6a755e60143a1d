"""Crash states that broke the promise once, made by hand, so that they need no recorder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import atomik
from tests.powercut.histories import Move, Operation, Phase, Write, look, plant
from tests.powercut.tape import killed
from tests.support.kernels import Acting, Recording, installed


def test_an_object_with_three_names_loses_the_right_two(tmp_path: Path) -> None:
    """btrfs, ``backup=``, a recovery cut by a second power cut: the original had its kept name, the slot and the slot's
    twin.  The rename of one to the other did nothing, because they were one inode, and the kept name stayed."""
    old = {"a": None, "a/f": b"old"}
    plant(tmp_path, old)
    phase = Phase((Write("a/f", b"new", backup="f.before"),), durable=False)
    assert killed(lambda: phase.perform(tmp_path), "rename", 2)
    (private_folder,) = (tmp_path / "a").glob(".atomik-*[!l]")
    slot = private_folder / f"{private_folder.name}-0"
    for name in (slot, f"{slot}-new"):
        os.link(tmp_path / "a" / "f.before", name)
    assert atomik.recover(tmp_path / "a").clean
    assert look(tmp_path) == old


def test_again_when_that_recovery_was_cut_as_well(tmp_path: Path) -> None:
    """However many names it has by then."""
    old = {"a": None, "a/f": b"old"}
    plant(tmp_path, old)
    phase = Phase((Write("a/f", b"new", backup="f.before"),), durable=False)
    assert killed(lambda: phase.perform(tmp_path), "rename", 2)
    (private_folder,) = (tmp_path / "a").glob(".atomik-*[!l]")
    slot = private_folder / f"{private_folder.name}-0"
    for name in (slot, f"{slot}-new", f"{slot}-new1", f"{slot}-new2"):
        os.link(tmp_path / "a" / "f.before", name)
    assert atomik.recover(tmp_path / "a").clean
    assert look(tmp_path) == old


def test_a_mark_that_recovery_writes_again_is_in_its_place(tmp_path: Path) -> None:
    """A second mark after the first could survive a power cut alone, on a page of its own.  Recovery then undid everything
    and wrote "undone" where the first had been, and from then on the journal said both: no recovery would trust it."""
    old = {"a": None, "a/f": b"old"}
    plant(tmp_path, old)
    phase = Phase((Write("a/f", b"new"), Write("a/g", b"new")), durable="fsync")
    assert killed(lambda: phase.perform(tmp_path), "pwrite", 2)
    journal = (tmp_path / "a" / ".atomik-journal").read_bytes()
    with installed(Recording({"pwrite"})) as kernel:
        assert atomik.recover(tmp_path / "a").clean
    assert [(bytes(call.args[1]), call.args[2]) for call in kernel.calls] == [(journal[-64:], len(journal) - 64)]
    assert look(tmp_path) == phase.apply(old)


@pytest.mark.parametrize(
    "staged", [Write("a/f", b"new", backup="f.before"), Move("a/f", "a/g")], ids=["backup", "move"]
)
def test_a_stranger_in_a_shared_slot_returns_to_where_they_were(staged: Operation, tmp_path: Path) -> None:
    """A stranger replaced the first name of a chain between check and swap, and we were killed before we looked at what came
    out.  Recovery took it for what the last step of the chain had displaced, and put it at that one's name."""
    plant(tmp_path, {"a": None, "a/f": b"old"})
    theirs = {"a": None, "a/f": b"a stranger's"}

    def publish() -> None:
        (tmp_path / "a" / "theirs").write_bytes(b"a stranger's")
        come = Acting("rename", lambda _: os.replace(tmp_path / "a" / "theirs", tmp_path / "a" / "f"))
        come.when = lambda call: call.number == 1
        with installed(come):
            Phase((staged,), durable=False).perform(tmp_path)

    assert killed(publish, "rename", 1)
    atomik.recover(tmp_path / "a")
    assert look(tmp_path) == theirs
