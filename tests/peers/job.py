"""One process of the harness: ``python -m tests.peers.job PEER publish|recover FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.peers.adapters import PEERS

if __name__ == "__main__":
    peer, what, root = PEERS[sys.argv[1]], sys.argv[2], Path(sys.argv[3])
    (peer.publish if what == "publish" else peer.recover)(root)
