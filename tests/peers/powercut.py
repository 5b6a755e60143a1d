"""Cut the power of the packages that promise durability, as `tests.powercut` does it to atomik; needs root."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from attrs import define

from tests.peers.adapters import OLD, Peer
from tests.peers.kills import _REPOSITORY, _environment, found, plant
from tests.powercut.tape import KINDS
from tests.support.lab.crash_images import CrashImages
from tests.support.lab.recorder import recording

SEED, SAMPLES = 7, 4


@define
class Cuts:
    """``states`` that were mounted; in ``broken`` the files were neither old nor new, in ``lost`` the package had said that
    the new ones are there, and they were not."""

    states: int = 0
    broken: int = 0
    lost: int = 0


def run(peer: Peer, kinds: tuple[str, ...] = KINDS, most: int = 20) -> Cuts:
    """Some crash states of one run on each filesystem."""
    cuts = Cuts()
    for kind in kinds:
        with recording(kind) as tape:
            plant(tape.folder)
            (tape.folder / "tmp").mkdir()
            tape.start()
            _job(peer, "publish", tape.folder)
            tape.mark("published")
            with (tape.folder / "last").open(
                "wb"
            ) as last:  # another program goes on, so that time goes by for the disk
                last.write(b"last")
                last.flush()
                os.fsync(last.fileno())
        images = CrashImages.of(tape)
        states = list(images.states(seed=SEED, samples=SAMPLES))
        random.Random(SEED).shuffle(states)  # they come in the order of the log
        for state in states[:most]:
            with images.mounted(state) as root:
                _judge(peer, root, cuts, said="published" in state.marks)
    return cuts


def _job(peer: Peer, what: str, root: Path) -> None:
    command = [sys.executable, "-m", "tests.peers.job", peer.name, what, str(root)]
    subprocess.run(command, env=_environment(root), cwd=_REPOSITORY, timeout=120, capture_output=True, check=False)


def _judge(peer: Peer, root: Path, cuts: Cuts, *, said: bool) -> None:
    cuts.states += 1
    _job(peer, "recover", root)
    seen = found(root)
    known = {name: seen.get(name) for name in OLD}
    old, new = ({name: state.get(name) for name in OLD} for state in (OLD, peer.new))
    if known not in (old, new):
        cuts.broken += 1
    elif said and known != new:
        cuts.lost += 1
