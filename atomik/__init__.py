"""atomik: write a file, a folder, or a group of them, all or nothing.

    with atomik.transaction() as tx:                 # several outputs
        with tx.file("model.bin", "wb") as f: ...
        plots = tx.folder("plots")
    with atomik.file("result.json") as f: ...        # the simple one-off

Start with ``help(atomik.file)`` or ``help(atomik.transaction)``.  There are also `folder`, `path`, `update`, `edit`,
`write_text` and `write_bytes` to write, `run_in` for programs that change a folder, `observe` and `reading` to read,
`recover` and `probe` for operators, and `swap` and `rename`.

Layout, for readers of the code: rooms, from the top down.  Imports point down only, and import-linter checks it.

    cli | fsspec | testing    doors: the shell, other ecosystems, tests
    _api                      what users call: Transaction, file() folder() path() update(), probe(), run_in(), swap()
    _commit                   published or all back: plan (pure), commit, barriers
    _staging | _recovery      outputs before the commit | what a dead owner left.  Neither imports the other
    _protocol                 what both share: step, publish, undo, journal, records, private folders, locks
    _tree                     content by descriptor: walk, delete, sync, clone, compare, metadata
    _folder | rename          a held folder, a name in it, locks, resolving paths | bare system calls
    _system                   every system call: kernel, libc, forked
    _receipt                  what a commit did
    errors | flags | _events | _progress | _hidden_names | _typing    used by all rooms

Every output goes through the same phases: stage, seal, plan, prepare, publish, confirm, clean up.  Start with
`_commit.commit`, which has a diagram, then `_commit.plan`, `_protocol.step`, `_protocol.publish` and `_protocol.undo`.
"""

from __future__ import annotations

from . import errors, flags, rename
from ._api.output import Output
from ._api.shortcuts import edit, file, folder, path, transaction, update, write_bytes, write_text
from ._system import kernel as _kernel
from .errors import AtomikError
from .flags import Flag, Mode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from . import testing as testing
    from ._api.probe import Capabilities, probe
    from ._api.run_in import RunResult, run_in
    from ._api.snapshot import Snapshot, snapshot
    from ._api.swap import swap
    from ._api.transaction import Transaction
    from ._receipt import ItemReceipt, PlannedChange, Receipt
    from ._recovery.reading import reading
    from ._recovery.recover import RecoveryReport, recover
    from ._staging.observe import Observation, observe
    from .flags import State

__version__ = "0.2.0"

__all__ = [
    "AtomikError",
    "Capabilities",
    "Flag",
    "ItemReceipt",
    "Mode",
    "Observation",
    "Output",
    "PlannedChange",
    "Receipt",
    "RecoveryReport",
    "RunResult",
    "Snapshot",
    "State",
    "Transaction",
    "edit",
    "errors",
    "file",
    "flags",
    "folder",
    "observe",
    "path",
    "probe",
    "reading",
    "recover",
    "rename",
    "run_in",
    "snapshot",
    "swap",
    "transaction",
    "update",
    "write_bytes",
    "write_text",
]

#: Loaded when first asked for: most programs need none of these by name, and importing them costs more than the rest.
_LATER = {
    "Capabilities": "_api.probe",
    "ItemReceipt": "_receipt",
    "Observation": "_staging.observe",
    "Promise": "_api.promises",
    "PlannedChange": "_receipt",
    "Receipt": "_receipt",
    "Recovered": "_recovery.takeover",
    "RecoveryReport": "_recovery.recover",
    "RunResult": "_api.run_in",
    "Snapshot": "_api.snapshot",
    "State": "flags",
    "Transaction": "_api.transaction",
    "observe": "_staging.observe",
    "probe": "_api.probe",
    "reading": "_recovery.reading",
    "recover": "_recovery.recover",
    "run_in": "_api.run_in",
    "snapshot": "_api.snapshot",
    "swap": "_api.swap",
    "testing": "testing",
}

# Where a name is defined should not show: pickles, tracebacks and help() name the package.  Functions get it here or
# when they are loaded; classes have it in their bodies, for their objects are seen before anybody asks for the class.
for _each in (edit, file, folder, path, transaction, update, write_bytes, write_text):
    _each.__module__ = __name__
del _each


if not TYPE_CHECKING:  # to a type checker it would say that every name exists, also a mistyped one

    def __getattr__(name: str) -> Any:
        module = _LATER.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        _kernel.refuse_fake()
        loaded = import_module(f".{module}", __name__)
        value = loaded if name == "testing" else getattr(loaded, name)
        if not module[0].isalpha():
            value.__module__ = __name__
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """What is public, for completion and help: not what this module happens to import."""
    return sorted({*__all__, "testing", *(name for name in globals() if name.startswith("__"))})
