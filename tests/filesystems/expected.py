"""What is expected of every cell: it passes, except for the refusals named here."""

from __future__ import annotations

UNSUPPORTED = "UnsupportedFilesystemError"

_CREATES_FOLDER = frozenset({"folder-new"})
_OVERWRITES_FOLDER = frozenset({"folder-overwrite", "folder-copy"})
_MOVES_FOLDER = frozenset({"move-folder"})
_MIXED = frozenset({"transaction-all", "rollback-all", "recover-all"})
_OVERWRITES_FILE = frozenset(
    """
    file-overwrite file-append file-update file-expect file-keep file-abandon symlink-overwrite move-over
    transaction-files rollback-files recover-files
    """.split()  # noqa: SIM905
)
_WEAKER = frozenset(
    "folder-new-weaker folder-overwrite-weaker transaction-weaker rollback-weaker recover-weaker".split()  # noqa: SIM905
)
_BOTH = frozenset({"watched", "command-line"})  # they create and overwrite
_TWO_FOLDERS = frozenset(
    """
    move-file move-over move-folder transaction-files rollback-files recover-files transaction-all rollback-all
    recover-all transaction-weaker rollback-weaker recover-weaker
    """.split()  # noqa: SIM905
)

_NO_FLAGS = _CREATES_FOLDER | _OVERWRITES_FOLDER | _MOVES_FOLDER | _MIXED

REFUSED: dict[str, frozenset[str]] = {
    # The lower layer's folders cannot be renamed at all, and a transaction with one of them fails as a whole.
    "overlay-lower-redirect-off": (
        _OVERWRITES_FOLDER | _MOVES_FOLDER | _MIXED | {"remove-folder", "folder-overwrite-weaker"}
        | {"transaction-weaker", "rollback-weaker", "recover-weaker"}
    ),
    "fuse-rejects": _NO_FLAGS,
    "bindfs": _NO_FLAGS,
    "no-flags": _NO_FLAGS,
    "no-exchange": _OVERWRITES_FOLDER | _MIXED,
    # Overwriting is refused altogether; folders in any way.
    "fuse-ignores": _NO_FLAGS | _OVERWRITES_FILE | _BOTH | (_WEAKER - {"folder-new-weaker"}),
    "no-links": _TWO_FOLDERS,
    "no-names": _TWO_FOLDERS,
}  # fmt: skip
REFUSED["nothing"] = (
    _NO_FLAGS | _TWO_FOLDERS | _BOTH
    # Nothing keeps a rename from replacing, so nothing is created …
    | {"file-new", "file-race", "file-permissions", "file-names", "path-new", "symlink-new", "transaction-one-folder"}
    # … and the previous version cannot be had back.
    | {"file-keep", "file-update", "file-append"}
)  # fmt: skip


def outcome(ground: str, scenario: str) -> str:
    """What must come of it: "passed" or the name of the error's class."""
    return UNSUPPORTED if scenario in REFUSED.get(ground, frozenset()) else "passed"
