"""The enumerations of the interface, and the former names of its parameters."""

from __future__ import annotations

import functools
from enum import Enum, IntFlag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec, TypeVar

    _P = ParamSpec("_P")
    _R = TypeVar("_R")

__all__ = ["Flag", "Flags", "Mode"]


class Flag(str, Enum):
    """What `atomik.rename.rename` does if the target exists; named as in renameat2(2), Linux 3.15."""

    __module__ = "atomik"

    #: Replace the target, as rename(2) does.
    RENAME = "REPLACE"
    #: Fail with `FileAlreadyExistsError` if the target exists (RENAME_NOREPLACE).
    RENAME_NOREPLACE = "NO_REPLACE"
    #: Exchange source and target in one step; both must exist (RENAME_EXCHANGE).
    RENAME_EXCHANGE = "EXCHANGE"


class Flags(IntFlag):
    """The bits of renameat2(2), for `atomik.rename.renameat2`; named as in the package renameat2."""

    RENAME_NOREPLACE = 1
    RENAME_EXCHANGE = 2
    RENAME_WHITEOUT = 4


class Mode(str, Enum):
    """The two modes of atomik 0.0.3, which `atomik.file` still accepts; it also accepts every mode of `open` that writes."""

    __module__ = "atomik"

    TEXT = "TEXT"
    BYTES = "BYTES"


class State(Enum):
    """How far a transaction is::

        OPEN ──prepare──▶ PREPARED ──swap──▶ SWAPPED ──mark──▶ COMMITTED
          │                  │                  │
          └──── abort ───────┴─── roll back ────┴──▶ ABORTED

    OPEN: the destinations are old, and outputs can be staged.  PREPARED: the destinations are old, and everything that is
    likely to fail has been done.  SWAPPED: the destinations are new, but the commit mark is missing.
    COMMITTED: the destinations are new.  ABORTED: the destinations are old, and nothing of atomik's is left.  IN_DOUBT:
    undoing failed, or the sync of the commit mark failed; the journal stays, and `atomik.recover` decides.
    """

    __module__ = "atomik"

    OPEN = "open"
    PREPARED = "prepared"
    SWAPPED = "swapped"
    COMMITTED = "committed"
    ABORTED = "aborted"
    IN_DOUBT = "in doubt"


def formerly(**new: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let programs of 0.0.3 pass parameters by their old names: ``formerly(old="new")``.  Unknown to type checkers."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            for old, name in new.items():
                if old in kwargs and name not in kwargs:
                    kwargs[name] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
