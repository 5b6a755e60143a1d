"""Files as a participant in the two-phase commit of the ``transaction`` package (Zope, Pyramid, ZODB).

    python examples/two_phase.py [FOLDER]

`Files` is a data manager: join it, and files are published when the transaction commits, with everything else that has
joined.  The vote prepares them, so everything that can fail has happened before any participant finishes.

Limit: that package does not record its decision.  If the process dies between two participants' ``tpc_finish``, the
files are undone by the next transaction in their folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import transaction

import atomik


class Files:
    """A data manager; ``files`` is the `atomik.Transaction` to stage in."""

    def __init__(self, manager: Any = transaction.manager) -> None:
        self.transaction_manager = manager
        self.files = atomik.transaction(overwrite=True)
        manager.get().join(self)

    def sortKey(self) -> str:  # noqa: N802  the protocol's name
        """Late among the participants: this vote costs the most."""
        return f"~atomik:{self.files.txid}"

    def abort(self, _: Any) -> None:
        """Left before the commit."""
        self.files.abort()

    def tpc_begin(self, _: Any) -> None:
        """The commit begins."""

    def commit(self, _: Any) -> None:
        """Everything is staged."""

    def tpc_vote(self, _: Any) -> None:
        """Published, durable, and still undoable; raises if that is not possible."""
        self.files.prepare()

    def tpc_finish(self, _: Any) -> None:
        """All have voted yes."""
        self.files.commit()

    def tpc_abort(self, _: Any) -> None:
        """A participant has voted no."""
        self.files.abort()


class Refusing(Files):
    """A participant that says no."""

    def sortKey(self) -> str:  # noqa: N802  the protocol's name
        return "~~last"

    def tpc_vote(self, _: Any) -> None:
        raise RuntimeError("the other participant says no")


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    folder.mkdir(exist_ok=True)
    with transaction.manager:
        Files().files.file(folder / "letter.txt").write("Dear reader\n")
    try:
        with transaction.manager:
            Files().files.file(folder / "letter.txt").write("never\n")
            Refusing()
    except RuntimeError as error:
        print(f"nothing was changed: {error}")
    assert (folder / "letter.txt").read_text() == "Dear reader\n"
    print(f"{folder / 'letter.txt'} was published")


if __name__ == "__main__":
    main()
