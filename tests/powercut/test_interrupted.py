"""Ctrl-C, SIGTERM or SIGKILL in the middle of a campaign leaves no mount, loop device, FUSE connection or process."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.lab import disks, namespace, residue
from tests.support.lab.need import need
from tests.support.lab.recorder import missing_recorder

pytestmark = [pytest.mark.root, pytest.mark.powercut]

ROOT = Path(__file__).parents[2]
_MOUNT = re.compile(r"\S+ \S+ 0:(\d+) \S+ (\S+) .* - (\S+) ", re.MULTILINE)


def in_the_middle(pid: int) -> tuple[str, frozenset[str], list[int]]:
    """Wait until the campaign has a disk mounted: its folder, FUSE connections, and descriptors of its servers."""
    ours = set(namespace.mount_points())  # a copy of them is in the child's namespace
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        mounts = [found for found in _MOUNT.findall(Path(f"/proc/{pid}/mountinfo").read_text()) if found[1] not in ours]
        folders = [point for _, point, kind in mounts if kind == "tmpfs" and "/atomik-lab-" in point]
        connections = frozenset(number for number, _, kind in mounts if kind.startswith("fuse."))
        children = [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        if folders and connections and children:
            try:
                return folders[0], connections, [os.pidfd_open(child) for child in children]
            except ProcessLookupError:
                continue
        time.sleep(0.001)
    raise AssertionError("the campaign did not begin")


@pytest.mark.parametrize(
    ("end", "run"),
    [*((end, "--minutes=5") for end in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)), (signal.SIGINT, "--gate")],
    ids=str,
)
def test_a_campaign_that_is_stopped_leaves_nothing(end: signal.Signals, run: str) -> None:
    """Whatever ends it, and wherever it is: what it had mounted, attached and started is gone; counts are still printed."""
    need(missing_recorder(), disks.missing_disk("ext4"))
    campaign = subprocess.Popen(
        [sys.executable, "-m", "tests.powercut", "--kinds", "ext4", run],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with campaign:
        folder, connections, servers = in_the_middle(campaign.pid)
        campaign.send_signal(end)
        said, complaints = campaign.communicate(timeout=300)
    if end == signal.SIGKILL:
        assert campaign.returncode == -signal.SIGKILL
    else:
        assert campaign.returncode == (run == "--gate"), complaints
        assert "interrupted" in said
        assert "crash states of" in said or run == "--gate"
    assert "Traceback" not in complaints
    for server in servers:
        assert select.select([server], [], [], 60)[0], "a server is still alive"
        os.close(server)
    assert not residue.left_of(residue.Residue(frozenset(), connections, frozenset()))
    assert not [loop for loop in residue.look().loops if folder in loop]
    assert folder not in namespace.mounts_outside()
