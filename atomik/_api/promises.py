"""Which of atomik's promises hold in a folder, by what came of the trials there: rules, and no system call."""

from __future__ import annotations

from attrs import define

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from .probe import Capabilities
    from .trials import Outcome

    Trials = Mapping[str, Outcome]

    Holds = Literal["yes", "files", "files and new folders", "single files", "new", "one folder", "no", "unknown"]


@define(frozen=True)
class Promise:
    """One promise of atomik's, and whether it holds in a folder; in `atomik.Capabilities`.

    ``name``: "P1" … "P10".  ``text``: what is promised.  ``holds``: "yes"; "files" (for everything but folders, which
    are refused); "files and new folders" (it may be impossible to replace a folder that exists); "single files" (for
    what `atomik.file` and the like write alone; the rest is refused); "new" (for what is created, overwriting is
    refused); "one folder" (for transactions within one folder); "no" (refused beforehand, or not kept); "unknown" (it
    could not be tried).  ``reason``: why not, or what it rests on; "" where there is nothing to say.
    """

    __module__ = "atomik"

    name: str
    text: str
    holds: Holds
    reason: str = ""


def _first(trials: Trials, *names: str) -> Outcome | None:
    """The first of the trials that did not work, before those that could not be made; None if all worked."""
    failed = [trials[name] for name in names if not trials[name].works]
    return min(failed, key=lambda outcome: outcome.works is None, default=None)


def _answer(name: str, text: str, outcome: Outcome | None, otherwise: Holds = "no", reason: str = "") -> Promise:
    """ "yes", with a reason that it rests on; or what a trial that did not work means."""
    if outcome is None:
        return Promise(name, text, "yes", reason)
    return Promise(name, text, "unknown" if outcome.works is None else otherwise, outcome.why)


def _p1(can: Capabilities, trials: Trials) -> Promise:
    text = "a destination is old or new, never missing"
    if failed := _first(trials, "overwrite"):
        return _answer("P1", text, failed, "new" if trials["create"].works else "no")
    if failed := _first(trials, "remove"):
        return _answer("P1", text, failed, "single files")
    if can.fixed and can.filesystem != "xfs":
        return Promise("P1", text, "new", can.fixed)
    failed = _first(trials, "create folder", "overwrite folder")
    if trials["overwrite"].works and trials["move"].refused and not can.lies:
        failed = trials["move"]  # because nothing tells what is a mount
    if failed is None and can.fixed_folders:
        return Promise("P1", text, "files and new folders", can.fixed_folders)
    reason = can.fixed
    if not reason and trials["stay closed"].refused:
        reason = f"a file with fewer permissions than new files get is not replaced: {trials['stay closed'].why}"
    return _answer("P1", text, failed, "files", reason and f"but {reason}")


def _p2(can: Capabilities, trials: Trials) -> Promise:
    text = "without overwrite=True nothing is replaced"
    if failed := _first(trials, "create", "lose the race"):
        return _answer("P2", text, failed)
    if failed := _first(trials, "create symlink" if can.symlinks else "create path"):
        return _answer("P2", text, failed, "single files")
    reason = "" if can.noreplace is not False else "by link and unlink"
    return _answer("P2", text, _first(trials, "create folder", "lose the race for a folder"), "files", reason)


def _p3(can: Capabilities, trials: Trials) -> Promise:
    text = "a failed transaction leaves all as it was"
    if can.lies:  # overwriting is refused, so nothing has to be brought back
        return Promise("P3", text, "yes")
    return _answer("P3", text, _first(trials, "roll back"), "new" if trials["create"].works else "no")


def _p4(can: Capabilities, trials: Trials) -> Promise:
    text = "after a crash, recover() makes all old or all new"
    if can.lies:
        return Promise("P4", text, "yes", "overwriting is refused")
    if failed := _first(trials, "recover"):
        return _answer("P4", text, failed)
    reason = (
        "" if can.file_handles else "objects are identified by inode numbers, which must not change in the meantime"
    )
    return _answer("P4", text, _first(trials, "recover two folders"), "one folder", reason)


def _p5(can: Capabilities, _: Trials) -> Promise:
    text = "what commit() returned survives a power cut"
    if can.fsync is False:
        return Promise("P5", text, "no", "files cannot be synced, so durable=True is refused")
    if can.volatile:
        return Promise("P5", text, "no", can.volatile)
    if None in (can.fsync, can.dir_fsync, can.volatile):
        why = (can.unknown.get(name) for name in ("fsync", "dir_fsync", "volatile"))
        return Promise("P5", text, "unknown", next(filter(None, why), ""))
    if not can.dir_fsync:
        return Promise("P5", text, "no", "folders cannot be synced")
    reason = "" if can.syncfs else "if its server or driver syncs when it is asked to"
    if can.unflushed:
        reason = f"only if the device has no cache that a power cut empties, because {can.unflushed}"
    return Promise("P5", text, "yes", reason)


def _p6(can: Capabilities, _: Trials) -> Promise:
    text = "cooperating writers and readers do not mix"
    if can.flock is None:
        return Promise("P6", text, "unknown", can.unknown.get("flock", ""))
    if not can.flock:
        return Promise("P6", text, "no", can.unknown.get("flock", "locks on folders do not exclude each other"))
    reason = "" if can.syncfs or can.volatile else "between machines only if the server shares locks"
    return Promise("P6", text, "yes", reason)


def _p7(_: Capabilities, trials: Trials) -> Promise:
    return _answer("P7", "an unfinished file has no name and leaves nothing", _first(trials, "write unseen"))


def _p8(_: Capabilities, trials: Trials) -> Promise:
    text = "a new version is never more open than the old"
    if _first(trials, "overwrite"):
        return Promise("P8", text, "yes", "overwriting is refused")
    if trials["stay closed"].refused:
        return Promise("P8", text, "yes", "where it cannot be kept, overwriting is refused")
    return _answer("P8", text, _first(trials, "stay closed"))


def _p9(_: Capabilities, trials: Trials) -> Promise:
    text = "what cannot be kept here is refused beforehand"
    behind = {name: outcome for name, outcome in trials.items() if name in _PROMISED}
    for name, outcome in behind.items():
        if outcome.left or (outcome.works is False and not outcome.refused):
            return Promise("P9", text, "no", f"{name}: {outcome.left or outcome.why}")
    return _answer("P9", text, _first(trials, *(name for name, outcome in behind.items() if outcome.works is None)))


#: the trials of what is refused where it cannot be kept (P1 to P4)
_PROMISED = frozenset(
    {
        "create", "overwrite", "create symlink", "create path", "move", "remove", "create folder", "overwrite folder",
        "lose the race", "lose the race for a folder", "roll back", "recover", "recover two folders", "clean up",
    }
)  # fmt: skip


def _p10(can: Capabilities, trials: Trials) -> Promise:
    reason = "" if can.syncfs or can.volatile else "no events for changes on other machines, or in the filesystem below"
    return _answer(
        "P10", "the last event of a name says that it is complete", _first(trials, "be heard"), reason=reason
    )


_RULES = (_p1, _p2, _p3, _p4, _p5, _p6, _p7, _p8, _p9, _p10)


def promises_of(can: Capabilities, trials: Trials) -> tuple[Promise, ...]:
    """P1 to P10, in order."""
    return tuple(rule(can, trials) for rule in _RULES)
