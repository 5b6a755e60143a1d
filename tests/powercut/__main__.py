"""The long run: ``python -m tests.powercut --seed 7 --minutes 30``, as root, from the root of the repository.

It prints the crash states explored per filesystem, and stops at the first that breaks the promise: that one is saved in
a file, and ``--replay FILE`` shows it again, crash state for crash state.  ``--record`` writes the counts down for the
documentation (docs/explanation/how-we-know.md), and draws them; ``--gate`` runs the mutants instead.
"""

from __future__ import annotations

import argparse
import pickle
import signal
import sys
from pathlib import Path

from tests.powercut import campaign, figures, gate
from tests.powercut.tape import KINDS
from tests.support.lab import disks
from tests.support.lab.recorder import missing_recorder


def main(arguments: list[str] | None = None) -> int:
    """Run, and return 0 when nothing was found, 1 for a finding, 2 when nothing could be tried."""
    options = _parse(arguments)
    reason = missing_recorder() or next((why for kind in options.kinds if (why := disks.missing_disk(kind))), None)
    if reason is not None:
        print(f"cannot record here: {reason}", file=sys.stderr)
        return 2
    # So that every mount and server is let go, as at a Ctrl-C; which a shell's background jobs would ignore.
    for end in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end, signal.default_int_handler)
    if options.replay is not None:
        return _replay(options.replay)
    if options.gate:
        return _gate(options)
    return _campaign(options)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.powercut", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=7, help="which histories, noises and crash states (7)")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (1)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="filesystems (all)")
    parser.add_argument("--limit", type=int, default=60, help="crash states of one recording (60)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="show a saved finding again")
    parser.add_argument("--gate", action="store_true", help="which mutants a crash state gives away, and where")
    parser.add_argument("--record", action="store_true", help="write the figures into the documentation")
    return parser.parse_args(arguments)


def _campaign(options: argparse.Namespace) -> int:
    run = campaign.Campaign(options.seed, options.minutes, tuple(options.kinds), options.limit)
    interrupted = False
    finding = None
    try:
        finding = run.run()
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted")
    for kind, count in run.counts.items():
        print(
            f"{kind:6} {count.states:7} crash states of {count.recordings} recordings, "
            f"{count.recovery_states:6} of {count.recoveries} recoveries, {count.seconds:6.0f} s"
        )
    if finding is not None:
        path = campaign.keep(finding)
        print(f"FOUND on {finding}\nagain: python -m tests.powercut --replay {path}")
        return 1
    print("no violation")
    if options.record and not interrupted:
        figures.record_counts(options.seed, options.minutes, run.counts)
    return 0


def _replay(path: Path) -> int:
    try:
        finding = campaign.Finding.load(path)
    except (OSError, EOFError, pickle.UnpicklingError, LookupError) as exc:
        print(f"cannot replay: {path} is no finding that was saved here: {exc}", file=sys.stderr)
        return 2
    print(f"saved: {finding}")
    problem = finding.replay()
    print(f"now:   {problem or 'the promise holds in this state'}")
    return 0 if problem is None else 1


def _gate(options: argparse.Namespace) -> int:
    rows = []
    try:
        for row in gate.table(tuple(options.kinds)):
            print(row, flush=True)
            rows.append(row)
    except KeyboardInterrupt:
        print("interrupted")
        return 1
    if options.record:
        figures.record_gate(rows)
    return 0 if all(row.caught for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
