"""What the doctor's answers mean for each scenario: that it passes, that it is refused, or nothing.

A promise is about what may go wrong, and a scenario is a program: this is how docs/reference/capabilities.md should be read.
`foretold` is about one scenario, `faults` about a whole run, where a yes that does not work and a no that does count alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import atomik
    from tests.filesystems.cells import Cell

_NEW_FILES = frozenset({"file-new", "file-race", "file-permissions", "path-new"})
_KEEPING = frozenset({"file-append", "file-update", "file-keep", "file-expect"})
_FILES = frozenset({"transaction-files", "rollback-files", "recover-files"})
_ALL = frozenset({"transaction-all", "rollback-all", "recover-all"})
_MOVING = (
    _FILES
    | _ALL
    | frozenset(
        "file-keep remove-file remove-folder move-file move-over move-folder transaction-one-folder".split()  # noqa: SIM905
    )
)
_WEAKER = frozenset({"transaction-weaker", "rollback-weaker", "recover-weaker"})


def foretold(can: atomik.Capabilities, scenario: str) -> bool | None:
    """Whether the scenario passes according to the doctor; None if it says nothing about that."""
    holds = {promise.name: promise.holds for promise in can.promises}
    blind = "mount" in can.promises[0].reason  # nothing tells what is a mount, and some of what is moved may be one
    if (can.fixed and scenario in _MOVING) or (blind and scenario in ("move-file", "move-over")):
        return None  # it depends on whose project each object is
    if can.fsync is False and scenario not in ("file-abandon", "killed-writing", "reading"):
        return False
    creates, overwrites = holds["P2"] != "no", holds["P1"] not in ("new", "no", "unknown")
    names, removes = creates and holds["P2"] != "single files", overwrites and holds["P1"] != "single files"
    undoes, links = holds["P3"] == "yes", bool(can.symlinks)
    here, there = holds["P4"] in ("yes", "one folder"), holds["P4"] == "yes"
    new_folders, old_folders = holds["P2"] == "yes", holds["P1"] == "yes"
    if scenario in _NEW_FILES:
        return (names and can.paths) if scenario == "path-new" else creates
    if scenario == "file-overwrite":
        return overwrites
    if scenario in _KEEPING:
        return False if not overwrites else True if undoes else None
    if scenario in _FILES:
        return overwrites and undoes and there and links
    if scenario in _ALL:
        return old_folders and new_folders and undoes and there
    if scenario in _WEAKER:
        return None if can.fixed else True if old_folders and new_folders and undoes and there else None
    return {
        "folder-new": new_folders,
        "folder-overwrite": old_folders,
        "folder-copy": old_folders,
        "folder-new-weaker": True if holds["P4"] != "no" else None,
        "folder-overwrite-weaker": True if old_folders else None,
        "file-abandon": overwrites or None,
        "symlink-new": names and links,
        "symlink-overwrite": removes and links,
        "remove-file": None if not overwrites else removes,
        "remove-folder": True if old_folders else None,
        "move-file": creates and there if can.lies is False else None,
        "move-over": overwrites and undoes and there,
        "move-folder": new_folders and there if old_folders or (not new_folders and can.paths) else None,
        "transaction-one-folder": names and here and links,
        "killed-writing": True,
        "reading": holds["P6"] == "yes" if holds["P6"] != "unknown" else None,
        "watched": creates and overwrites,
        "command-line": names and overwrites,
    }.get(scenario)


def faults(can: atomik.Capabilities, cells: Mapping[str, Cell]) -> list[str]:
    """Where what happened is not what the doctor said."""
    found = []
    holds = {promise.name: promise.holds for promise in can.promises}
    for name, cell in cells.items():
        said, passed = foretold(can, name), cell.outcome == "passed"
        if said is not None and said != passed:
            found.append(f"{name}: the doctor says {'yes' if said else 'no'}, and it {_what(cell)}")
    killed = cells.get("killed-writing")
    if (
        killed is not None and killed.methods != ("nothing",) and holds["P7"] == "yes"
    ):  # a no may be luck, with the first file
        found.append(f"P7 yes, and {' '.join(killed.methods)} was left ({killed.message})")
    if "watched" in cells and cells["watched"].outcome == "passed":
        complete = set(cells["watched"].methods[0].split(", ")) <= {"MOVED_TO", "CLOSE_WRITE"}
        if holds["P10"] != "unknown" and complete != (holds["P10"] == "yes"):
            found.append(f"P10 {holds['P10']}, and the last events were {cells['watched'].methods[0]}")
    if holds["P9"] != "yes":
        found.append(f"P9 {holds['P9']}")
    return found


def _what(cell: Cell) -> str:
    return "passed" if cell.outcome == "passed" else f"failed ({cell.outcome}: {cell.message})"
