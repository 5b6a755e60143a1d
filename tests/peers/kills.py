"""Kill a package before each call that changes a name, from outside (strace), and see what it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from attrs import define, field

from tests.peers.adapters import OLD, Peer
from tests.support.lab import strace

#: The calls that change a name.
CALLS = "rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat mkdir mkdirat rmdir".split()
_REPOSITORY = Path(__file__).resolve().parent.parent.parent


@define
class Kills:
    """``points``: places to die; of these ``mixed`` left a mixture of old and new, ``missing`` took away a file that both
    have, ``litter`` left a file that neither has, each after the package's own recovery."""

    points: int = 0
    mixed: int = 0
    missing: int = 0
    litter: int = 0
    examples: list[str] = field(factory=list)


def plant(root: Path) -> None:
    """The old files."""
    for name, text in OLD.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def found(root: Path) -> dict[str, str]:
    """What is there, except for a package's own store."""
    return {
        str(path.relative_to(root)): path.read_text(errors="replace") for top in "ab" for path in (root / top).rglob("*")
        if path.is_file()
    }  # fmt: skip


def run(peer: Peer) -> Kills:
    """Every place to die."""
    kills = Kills()
    with tempfile.TemporaryDirectory(prefix="peers-") as top:
        whole = _publish(peer, Path(top, "whole"), ())
        assert whole.returncode == 0, whole.stderr
        seen = found(Path(top, "whole"))
        assert {name: seen[name] for name in OLD if name in seen} == peer.new, seen
        for call in CALLS:  # strace shows calls that it does not know as well
            count = whole.count(call)
            for nth in range(1, count + 1):
                root = Path(top, f"{call}-{nth}")
                if _publish(peer, root, (strace.kill_at(call, nth),)).returncode not in (-9, 137):
                    continue
                _job(peer, "recover", root)
                _judge(peer, root, kills, f"{call} {nth}")
    return kills


def _publish(peer: Peer, root: Path, inject: tuple[str, ...]) -> strace.Trace:
    plant(root)
    (root / "tmp").mkdir()
    return strace.run(
        _command(peer, "publish", root),
        calls=CALLS,
        inject=inject,
        env=_environment(root),
        cwd=_REPOSITORY,
        timeout=120,
    )


def _job(peer: Peer, what: str, root: Path) -> None:
    subprocess.run(
        _command(peer, what, root),
        env=_environment(root),
        cwd=_REPOSITORY,
        timeout=120,
        capture_output=True,
        check=False,
    )


def _command(peer: Peer, what: str, root: Path) -> list[str]:
    return [sys.executable, "-m", "tests.peers.job", peer.name, what, str(root)]


def _environment(root: Path) -> dict[str, str]:
    """Its temporary files are on the same filesystem, and so is its store, if it has one outside."""
    return {**os.environ, "TMPDIR": str(root / "tmp"), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(_REPOSITORY)}


def _judge(peer: Peer, root: Path, kills: Kills, label: str) -> None:
    kills.points += 1
    seen = found(root)
    known = {name: seen.get(name) for name in OLD}
    wanted = [{name: state.get(name) for name in OLD} for state in (OLD, peer.new)]
    missing = [name for name in OLD if name in peer.new and name not in seen]
    if missing:
        kills.missing += 1
    elif known not in wanted:
        kills.mixed += 1
    kills.litter += bool(seen.keys() - OLD.keys())
    if known not in wanted:
        kills.examples.append(f"{label}: {dict(Counter(_of(text) for text in known.values()))}")


def _of(text: str | None) -> str:
    return (
        "nothing"
        if text is None
        else text.split(" ")[0]
        if text in {*OLD.values()} or text.startswith("new ")
        else "other"
    )
