"""Nothing outlives a user of the lab: not after a normal end, Ctrl-C, SIGTERM or SIGKILL."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.lab import disks, mounts, namespace, passthrough, recorder, residue
from tests.support.lab.need import need

pytestmark = pytest.mark.root

# Everything at once, some of it with files open and data dirty, and then a word to the parent.
USER = """
import contextlib, json, signal, sys
from tests.support.lab import mounts, namespace, passthrough, recorder, residue
before = residue.look()
with contextlib.ExitStack() as stack:
    kinds = sys.argv[1].split(",")
    places = [stack.enter_context(mounts.mounted(kind)) for kind in kinds]
    tapes = [stack.enter_context(recorder.recording(kind)) for kind in ("ext4", "xfs")]
    for folder in [place.folder for place in places] + [tape.folder for tape in tapes]:
        file = stack.enter_context((folder / "open").open("w"))
        file.write("dirty" * 10000)
        file.flush()
    mine = residue.look() - before
    root = str(namespace.enter())
    loops = [loop for loop in mine.loops if root in loop]  # another process may have attached some meanwhile
    print(json.dumps([root, loops, list(mine.connections)]), flush=True)
    signal.pause()
"""


@pytest.mark.sweep
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_a_user_that_was_stopped(end: signal.Signals) -> None:
    """Every loop device, FUSE connection and server of the stopped process goes, whatever stopped it."""
    need(namespace.missing_root(), recorder.missing_recorder(), passthrough.missing_fuse())
    need(disks.missing_disk("ext4"), disks.missing_disk("xfs"))
    kinds = [kind for kind in mounts.FILESYSTEMS if mounts.missing(kind) is None]
    user = subprocess.Popen(
        [sys.executable, "-c", USER, ",".join(kinds)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with user:
        assert user.stdout is not None
        root, loops, connections = json.loads(user.stdout.readline())
        servers = [os.pidfd_open(pid) for pid in children_of(user.pid)]
        assert len(loops) >= 4
        assert len(connections) >= 5
        assert len(servers) >= 5
        user.send_signal(end)
    theirs = residue.Residue(frozenset(loops), frozenset(connections), frozenset())
    assert not residue.left_of(theirs)
    assert [has_ended(server) for server in servers] == [True] * len(servers)
    assert root not in namespace.mounts_outside()
    sweep()
    assert not Path(root).exists()


def test_a_normal_end_leaves_not_even_a_folder() -> None:
    """A process that used the lab and ended well has removed its folder."""
    need(namespace.missing_root())
    script = "from tests.support.lab import namespace; print(namespace.scratch('x'))"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not Path(ended.stdout.strip()).parent.exists()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def has_ended(pidfd: int) -> bool:
    """Whether the process ends within a minute; closes its descriptor."""
    try:
        return bool(select.select([pidfd], [], [], 60)[0])
    finally:
        os.close(pidfd)


def sweep() -> None:
    """What the next lab process does first of all."""
    subprocess.run(
        [sys.executable, "-c", "from tests.support.lab import namespace; namespace.enter()"],
        cwd=Path(__file__).parents[2],
        check=True,
    )
