"""Outputs on two filesystems, all or nothing: one transaction decides about the other.

    python examples/two_filesystems.py [FIRST SECOND]

A transaction is limited to one filesystem.  So there are two: the one on SECOND is prepared first.  The one on FIRST
publishes, together with its own outputs, a file with the id of the other: that is the moment that decides.  After a crash,
`recover` looks for that file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import atomik


def note(first: Path, txid: str) -> Path:
    """What says that the transaction `txid` on the second filesystem is committed."""
    return first / f"committed-{txid}"


@contextmanager
def on_both(first: Path) -> Iterator[tuple[atomik.Transaction, atomik.Transaction]]:
    """Two transactions of which either both are committed or none."""
    follows = atomik.transaction(overwrite=True, coordinator=str(first))
    decides = atomik.transaction(overwrite=True)
    try:
        yield decides, follows
        follows.prepare()
        decides.file(note(first, follows.txid)).write("")
        decides.commit()
    except BaseException:
        decided = note(first, follows.txid).exists()  # a failure after the mark, such as of its last sync
        (follows.commit if decided else follows.abort)()
        if decides.state is atomik.State.OPEN:
            decides.abort()
        raise
    follows.commit()
    note(first, follows.txid).unlink()


def recover(first: Path, second: Path) -> None:
    """After a crash: the first filesystem comes first, and then decides about the second."""
    atomik.recover(first)
    atomik.recover(second, decide=lambda txid, _: note(first, txid).exists())
    for old in first.glob("committed-*"):
        old.unlink()


def main() -> None:
    first, second = map(Path, sys.argv[1:3] if len(sys.argv) > 2 else ("index", "archive"))
    for folder in (first, second):
        folder.mkdir(exist_ok=True)
    recover(first, second)
    with on_both(first) as (index, archive):
        archive.file(second / "2026.txt").write("a long story\n")
        index.file(first / "2026.txt").write(f"see {second / '2026.txt'}\n")
    try:
        with on_both(first) as (index, archive):
            archive.file(second / "2026.txt").write("another story\n")
            index.file(first / "2026.txt").write(f"{1 / 0}")
    except ZeroDivisionError:
        print("neither was changed")
    assert (second / "2026.txt").read_text() == "a long story\n"
    print((first / "2026.txt").read_text().strip())


if __name__ == "__main__":
    main()
