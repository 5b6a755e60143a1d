"""``atomik apply``: read a change set, and commit it or print what a commit would do."""

from __future__ import annotations

import errno
import os
import sys

from atomik import errors
from atomik._api.apply import Applier
from atomik._api.changeset import parse, schema
from atomik._api.shortcuts import transaction
from atomik._system import kernel

from .signals import Signals, guarded, stoppable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from atomik._receipt import PlannedChange, Receipt

    from .progress import Progress

    Done = tuple[Receipt | tuple[PlannedChange, ...], dict[str, Any] | None]

__all__ = ["apply", "schema"]


def apply(arguments: argparse.Namespace, progress: Progress) -> Done:
    """Apply a change set; returns what was or would be done, and for a receipt the object for ``--json``."""
    with stoppable("nothing was changed"):
        changes = parse(_read(arguments.changes))
    with Signals() as signals, progress:
        tx = transaction(durable=arguments.durable, lock_timeout=arguments.lock_timeout, progress=progress.wanted)

        def work() -> Done:
            progress.start()
            applier = Applier(tx, arguments.root)
            applier.stage(changes)
            with applier.naming_by_path():
                if arguments.dry_run:
                    return tx.plan(), None
                receipt = tx.commit()
            return receipt, applier.as_dict(receipt)

        done: Done = guarded(signals, tx, work)
        return done


def _read(name: str) -> bytes:
    """The document."""
    if name == "-":
        if sys.stdin is None:
            errors.fail(errors.AtomikOSError, errno.EBADF, "standard input is closed; redirect a file to it", "-")
        fd = os.dup(0)
    else:
        with kernel.typed("cannot read the change set", name):
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    with kernel.typed("cannot read the change set", name), open(fd, "rb") as f:
        return f.read()
