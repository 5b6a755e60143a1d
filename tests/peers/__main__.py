"""Compare: ``python -m tests.peers``, as root (without root the power stays on), with ``pip install '.[peers]'`` and strace.

``--record`` writes the table into docs/explanation/peers.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys

from tests.peers import kills, powercut
from tests.peers.adapters import PEERS, Peer
from tests.support.lab.recorder import missing_recorder
from tests.support.lab.strace import missing_strace
from tests.support.pages import fill


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when all ran, 2 when nothing can run here."""
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__.split("\n")[0])
    parser.add_argument("peers", nargs="*", choices=[[], *PEERS], default=[], help="which (all that are installed)")
    parser.add_argument("--record", action="store_true", help="write the table into the documentation")
    options = parser.parse_args(arguments)
    if reason := missing_strace():
        print(f"cannot kill here: {reason}", file=sys.stderr)
        return 2
    lines = [
        (
            "| package | its promise | its recovery | killed at | mixed | a file missing | litter "
            "| power cut: states | broken | lost |"
        ),
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    print("\n".join(lines))
    for peer in PEERS.values():
        if options.peers and peer.name not in options.peers:
            continue
        version = _version(peer)
        if version is None:
            print(f"{peer.name} is not installed", file=sys.stderr)
            continue
        lines.append(_row(peer, version))
        print(lines[-1], flush=True)
    if options.record:
        fill("peers", "\n".join(lines) + "\n", "explanation/peers.md")
    return 0


def _version(peer: Peer) -> str | None:
    if peer.name.startswith("atomik"):
        import atomik

        return atomik.__version__
    try:
        return importlib.metadata.version(peer.name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _row(peer: Peer, version: str) -> str:
    killed = kills.run(peer)
    for example in killed.examples[:2]:
        print(f"  {peer.name}: {example}", file=sys.stderr)
    cut = powercut.run(peer) if peer.durable and os.geteuid() == 0 and missing_recorder() is None else None
    cells = (
        f"{peer.name} {version}", peer.promises, peer.recovery, killed.points, killed.mixed, killed.missing, killed.litter,
        *(("–",) * 3 if cut is None else (cut.states, cut.broken, cut.lost)),
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    sys.exit(main())
