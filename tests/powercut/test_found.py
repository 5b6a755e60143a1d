"""Crash states that broke the promise once, made by hand, so that they need no recorder."""

from __future__ import annotations

import os
from pathlib import Path

import atomik
from tests.powercut.histories import Phase, Write, look, plant
from tests.powercut.tape import killed
from tests.support.kernels import Recording, installed


def test_an_object_with_three_names_loses_the_right_two(tmp_path: Path) -> None:
    """btrfs, ``backup=``, a recovery cut by a second power cut: the original had its kept name, the slot and the slot's
    twin.  The rename of one to the other did nothing, for they were one inode, and the kept name stayed."""
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
    """A second mark behind the first could survive a power cut alone, on a page of its own.  Recovery then undid everything
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
