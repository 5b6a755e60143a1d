"""``atomik run --in FOLDER``: a program on a private copy of a folder, whenever a signal comes."""

from __future__ import annotations

import os
import subprocess

from atomik._api.run_in import Private, PrivateCopy, private_layer
from atomik._api.shortcuts import transaction
from atomik._system import kernel
from atomik._tree.changes import Change, counts

from .child import spawn
from .signals import Signals, guarded

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from atomik._api.transaction import Transaction
    from atomik._receipt import Receipt

    from .progress import Progress


class Listing:
    """What a dry run would have published."""

    folder: str
    changes: list[Change]

    def __init__(self, folder: str, changes: list[Change]) -> None:
        self.folder, self.changes = folder, changes

    def as_dict(self) -> dict[str, Any]:
        """For a machine."""
        return {
            "dry_run": True,
            "folder": self.folder,
            "changes": [each.as_dict() for each in self.changes],
            "counts": counts(self.changes),
        }

    def __str__(self) -> str:
        numbers = ", ".join(f"{number} {kind}" for kind, number in counts(self.changes).items())
        return "\n".join([*map(str, self.changes), numbers])


def run_in(arguments: argparse.Namespace, progress: Progress) -> tuple[int, Receipt | Listing | None]:
    """Run the program; (the exit code, what was or would be published)."""
    with Signals() as signals, progress:
        tx = transaction(
            overwrite=True, durable=arguments.durable, lock_timeout=arguments.lock_timeout, progress=progress.wanted
        )

        def work() -> tuple[int, Receipt | Listing | None]:
            private = private_layer() if arguments.changes_only else PrivateCopy
            with private(
                tx, arguments.inside, overwrite_changes=arguments.overwrite_changes, keep=arguments.keep_on_failure,
                allow_gap=arguments.allow_gap,
            ) as copy:  # fmt: skip
                return _work_on(copy, tx, arguments, signals, progress)

        result: tuple[int, Receipt | Listing | None] = guarded(signals, tx, work)
        return result


def _work_on(
    copy: Private, tx: Transaction, arguments: argparse.Namespace, signals: Signals, progress: Progress
) -> tuple[int, Receipt | Listing | None]:
    if arguments.dry_run:
        copy.remember()
    kernel.port.adopt_orphans()  # so that no process of the program's gets out of sight
    try:
        code = _run(copy, arguments.program, signals)
        if code == 0:
            signals.check()  # it was told to stop, and said that all is well; its output is not to be trusted
            copy.settle(arguments.background or "refuse", os.getpid(), signals.check)
    except BaseException as exc:
        copy.keep_after(exc)
        raise
    if code:
        copy.keep()
        return code, None
    if arguments.dry_run:
        return 0, Listing(copy.path, copy.changes())
    progress.start()
    copy.stage()
    receipt = tx.commit()
    copy.published()
    return 0, receipt


def _run(copy: Private, program: list[str], signals: Signals) -> int:
    try:
        return spawn(signals, program, dict(os.environ), {}, copy.enter)
    except subprocess.SubprocessError as exc:
        copy.raise_if_not_entered(exc)
        raise
