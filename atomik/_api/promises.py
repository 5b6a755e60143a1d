"""Which of atomik's promises hold on a filesystem, by what it can do: rules, and no system call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define

if TYPE_CHECKING:
    from .probe import Capabilities

#: What is lost when the machine goes down, whatever is synced.
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


@define(frozen=True)
class Promise:
    """One promise of atomik's, and whether it holds on a filesystem; in `atomik.Capabilities`.

    ``name``: "P1" … "P7".  ``text``: what is promised.  ``holds``: "yes"; "files" (for everything but folders, which
    are refused); "new" (for what is created, overwriting is refused); "one folder" (for transactions within one
    folder); "no".  ``reason``: why not, or what it rests on; "" where there is nothing to say.
    """

    __module__ = "atomik"

    name: str
    text: str
    holds: str
    reason: str = ""


def _p1(can: Capabilities) -> Promise:
    text = "a destination is old or new, never missing"
    if can.lies:
        return Promise("P1", text, "new", "overwriting is refused, for the filesystem exchanges names only in words")
    if not can.exchange:
        return Promise("P1", text, "files", "overwriting a folder is refused, for names cannot be exchanged")
    if not can.noreplace:
        return Promise("P1", text, "files", "creating a folder is refused, for renames cannot be kept from replacing")
    reason = (
        "but a folder of the lower layer only if mounted with redirect_dir=on" if can.filesystem == "overlay" else ""
    )
    return Promise("P1", text, "yes", reason)


def _p2(can: Capabilities) -> Promise:
    text = "without overwrite=True nothing is replaced"
    if can.noreplace:
        return Promise("P2", text, "yes")
    if can.hard_links:
        return Promise("P2", text, "files", "by link and unlink; creating a folder is refused")
    return Promise("P2", text, "no", "creating is refused; allow_gap=True looks first, and may lose a race")


def _p3(can: Capabilities) -> Promise:
    text = "a failed transaction leaves all as it was"
    if can.exchange or can.hard_links or can.lies:
        return Promise("P3", text, "yes")
    return Promise(
        "P3", text, "new", "several overwrites at once are refused, for the originals could not be brought back"
    )


def _p4(can: Capabilities) -> Promise:
    text = "after a crash, recover() makes all old or all new"
    if not can.hard_links:
        return Promise("P4", text, "one folder", "the journal needs a hard link in every further folder")
    reason = "" if can.file_handles else "objects are told apart by inode numbers, which must not change meanwhile"
    return Promise("P4", text, "yes", reason)


def _p5(can: Capabilities) -> Promise:
    text = "what commit() returned survives a power cut"
    if can.filesystem in _IN_MEMORY:
        return Promise("P5", text, "no", "it lives in memory")
    if not can.dir_fsync:
        return Promise("P5", text, "no", "folders cannot be synced")
    reason = "" if can.syncfs else "as far as its server, or driver, syncs when it is told to"
    return Promise("P5", text, "yes", reason)


def _p6(can: Capabilities) -> Promise:
    text = "cooperating writers and readers do not mix"
    if not can.flock:
        return Promise("P6", text, "no", "locks on folders do not exclude each other")
    reason = "" if can.syncfs or can.filesystem in _IN_MEMORY else "between machines only if the server shares locks"
    return Promise("P6", text, "yes", reason)


def _p7(can: Capabilities) -> Promise:
    text = "an unfinished file has no name, leaves nothing"
    if not can.tmpfile:
        return Promise(
            "P7", text, "no", "it has a name in a private folder, for there is no O_TMPFILE; recover() removes it"
        )
    return Promise("P7", text, "yes")


_RULES = (_p1, _p2, _p3, _p4, _p5, _p6, _p7)


def promises_of(can: Capabilities) -> tuple[Promise, ...]:
    """P1 to P7, in order."""
    return tuple(rule(can) for rule in _RULES)
