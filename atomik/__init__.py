"""atomik: outputs written all or nothing – a file, a folder, or a whole group of them.

    with atomik.transaction() as tx:                 # several outputs
        with tx.file("model.bin", "wb") as f: ...
        plots = tx.folder("plots")
    with atomik.file("result.json") as f: ...        # the simple one-off

Begin with ``help(atomik.transaction)`` or ``help(atomik.file)``; then there are `folder`, `path` and `update` to write,
`observe` and `reading` to look, `recover` and `probe` for operators, `swap` and `rename` as primitives.

Layout, for those who read the code, from the top down (arrows of import point down only):

    cli, fsspec, testing      doors for the shell and for other ecosystems
    _shortcuts, _output       file(), folder(), path(), update(): one-item transactions
    _plain                    the short way of one plain file
    _transaction, _stager     Transaction: how outputs get in and out
    _reading, _recovery       readers, and what is done about a dead transaction
    _group, _prepare          the commit of several steps, with a journal
    _single, _commit          the commit of one step; what both share
    _barriers                 which syncs make what durable
    _staged, _names, _items   what is to happen at one destination: stage, seal, discard (_program, _refuse)
    _swap, _undo, _step       the ladder: publish one step, undo one step; _probe tries it
    _journal, _records        the journal on disk, and its bytes
    _workspace, _claim        held folders, private staging folders
    _destinations, _paths     rules between destinations; from what a user says to a folder and a name
    _tree, _clone, _metadata  trees and attributes, by descriptor
    _directory, _filesystem   a held folder; what is known of the filesystem
    rename, flags             public primitives
    _kernel                   the only module that makes system calls
    _events, errors           what is told, and what goes wrong
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors, flags, rename
from ._api.output import Output
from ._api.shortcuts import file, folder, path, transaction, update
from .errors import AtomikError
from .flags import Flag, Mode

if TYPE_CHECKING:
    from . import testing as testing
    from ._api.probe import Capabilities, probe
    from ._api.swap import swap
    from ._api.transaction import Transaction
    from ._receipt import ItemReceipt, Receipt, State
    from ._recovery.reading import reading
    from ._recovery.recover import RecoveryReport, recover
    from ._staging.observe import Observation, observe

__version__ = "0.2.0"

__all__ = [
    "AtomikError",
    "Capabilities",
    "Flag",
    "ItemReceipt",
    "Mode",
    "Observation",
    "Output",
    "Receipt",
    "RecoveryReport",
    "State",
    "Transaction",
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
    "swap",
    "transaction",
    "update",
]

#: Loaded when first asked for: most programs need none of these by name, and importing them costs more than the rest.
_LATER = {
    "Capabilities": "_api.probe",
    "ItemReceipt": "_receipt",
    "Observation": "_staging.observe",
    "Receipt": "_receipt",
    "RecoveryReport": "_recovery.recover",
    "State": "_receipt",
    "Transaction": "_api.transaction",
    "observe": "_staging.observe",
    "probe": "_api.probe",
    "reading": "_recovery.reading",
    "recover": "_recovery.recover",
    "swap": "_api.swap",
    "testing": "testing",
}


if not TYPE_CHECKING:  # to a type checker it would say that every name exists, also a mistyped one

    def __getattr__(name: str) -> Any:
        module = _LATER.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        loaded = import_module(f".{module}", __name__)
        value = loaded if name == "testing" else getattr(loaded, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """What is public, for completion and help: not what this module happens to import."""
    return sorted({*__all__, "testing", *(name for name in globals() if name.startswith("__"))})
