"""The small vocabularies of the interface, and the names that its parameters had elsewhere before."""

from __future__ import annotations

import functools
from enum import Enum, IntFlag
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Flag", "Flags", "Mode"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Flag(str, Enum):
    """How `atomik.rename.rename` treats what stands at the target; names as in renameat2(2), Linux 3.15."""

    __module__ = "atomik"

    #: Replace the target, as rename(2) does.
    RENAME = "REPLACE"
    #: Fail with `FileAlreadyExistsError` when the target exists (RENAME_NOREPLACE).
    RENAME_NOREPLACE = "NO_REPLACE"
    #: Exchange source and target in one step; both must exist (RENAME_EXCHANGE).
    RENAME_EXCHANGE = "EXCHANGE"


class Flags(IntFlag):
    """The bits of renameat2(2), for `atomik.rename.renameat2`; named as in the package renameat2."""

    RENAME_NOREPLACE = 1
    RENAME_EXCHANGE = 2
    RENAME_WHITEOUT = 4


class Mode(str, Enum):
    """The two modes of atomik 0.0.3, still understood by `atomik.file`; any mode of `open` that writes works too."""

    __module__ = "atomik"

    TEXT = "TEXT"
    BYTES = "BYTES"


class State(Enum):
    """Where a transaction is::

        OPEN ──prepare──▶ PREPARED ──swap──▶ SWAPPED ──mark──▶ COMMITTED
          │                  │                  │
          └──── abort ───────┴─── roll back ────┴──▶ ABORTED

    OPEN: destinations old, staging possible.  PREPARED: destinations old, everything that is likely to fail is done.
    SWAPPED: destinations new and durable, the mark not yet.  COMMITTED: new.  ABORTED: old, nothing of ours left.
    IN_DOUBT: undoing, or the sync of the mark, failed; the journal stays, and `atomik.recover` decides.
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
