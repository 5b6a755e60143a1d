"""The small vocabularies of the interface."""

from enum import Enum


class Flag(str, Enum):
    """How `atomik.rename.rename` treats what stands at the target; names as in renameat2(2), Linux 3.15."""

    #: Replace the target, as rename(2) does.
    RENAME = "REPLACE"
    #: Fail with `FileAlreadyExistsError` when the target exists (RENAME_NOREPLACE).
    RENAME_NOREPLACE = "NO_REPLACE"
    #: Exchange source and target in one step; both must exist (RENAME_EXCHANGE).
    RENAME_EXCHANGE = "EXCHANGE"


class Mode(str, Enum):
    """The two modes of atomik 0.0.3, still understood by `atomik.file`; any mode of `open` that writes works too."""

    TEXT = "TEXT"
    BYTES = "BYTES"
