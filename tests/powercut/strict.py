"""The strictest disk there can be: nothing lasts that was not synced by name, and in the order in which it was synced.

Real filesystems carry more along with a sync than they must: a journal commits whole, so that on ext4 one fsync often
makes everything before it durable.  A barrier that no filesystem at hand shows to be missing is still needed on another,
or on the next version of this one.  So this kernel watches the calls and holds them against the invariants:

* I1  before the first swap: all that is staged, every name of it, the private folders' own names, and the journal under all
  its names are durable; a transaction without journal: the content that it publishes;
* I2  before an outcome is written into the journal: every folder of a swapped name is durable;
* I3  before anything of a transaction is deleted that has swapped: its outcome is durable (without journal: its swap);
* P5  when the commit returns: swaps, made folders and outcome are durable.

It needs neither root nor a filesystem of its own: the recorded trace of calls is the test.  ``broken`` says what was
not as it must be.  The calls are really made, by the kernel below.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from typing import Any

from attrs import define, field

from tests.powercut.histories import PREFIX
from tests.powercut.noise import is_swap
from tests.support.kernels import Call, Watching

Key = tuple[int, int]

_TXID = re.compile(r"/\.atomik-([0-9a-f]{16})")
_WATCHED = frozenset(
    "open_tmpfile create mkdir mknod link link_fd symlink rename unlink rmdir write pwrite truncate clone copy_range "
    "fsync syncfs fchmod fchown chmod setxattr removexattr futime".split()
)
_CHANGES_FD = frozenset("write pwrite truncate clone fchmod fchown setxattr removexattr futime".split())
_MAGIC, _INTENT = b"AtmK", 1


@define
class _Transaction:
    """What is known of one: its journal, whether it swapped, and how it ended."""

    journal: Key | None = None
    prepared: bool = False
    swapped: bool = False
    outcome: bool = False
    private_folders: set[str] = field(factory=set)


class StrictDisk(Watching):
    """See the module.  With `recovering`, swaps are undos: what they bring back was durable before."""

    def __init__(self, *, recovering: bool = False) -> None:
        super().__init__(_WATCHED)
        self.recovering = recovering
        self.broken: list[str] = []
        self.checked = 0
        self._known: dict[str, _Transaction] = {}
        self._changed: set[Key] = set()  # objects with content that is not durable
        self._synced: set[Key] = set()  # objects synced by name since they were made
        self._moded: set[Key] = set()  # folders that got their mode late
        self._whole = False  # a syncfs since something was staged last
        #: folder -> why its names are not durable: "stage TXID", "swap TXID" or "made"
        self._names: dict[Key, set[str]] = {}

    # --- the calls -----------------------------------------------------------------------------------------------
    def around(self, call: Call, go: Callable[[], Any]) -> Any:
        txid = self._txid(call)
        if call.name == "pwrite":
            self._before_pwrite(call)
        elif call.name == "fsync":
            self._before_fsync(_key(call.args[0]))
        elif is_swap(call):
            self._before_swap(call, txid)
        elif call.name in ("unlink", "rmdir") and txid is not None:
            self._before_deletion(call, txid)
        lost = self._key_of(call.args[0], call.args[1]) if call.name in ("unlink", "rmdir") else None
        result = go()
        self._after(call, txid, result)
        if lost is not None:
            self._changed.discard(lost)
            self._synced.discard(lost)  # its number may be given out again
        return result

    def returned(self, *, durable: bool = True) -> None:
        """The commit has returned: with `durable`, all of it must last."""
        self.checked += 1
        for key, reasons in self._names.items():
            if durable and any(reason == "made" or reason.startswith("swap") for reason in reasons):
                self._break(f"P5: the commit returned, and the names in {self._say(key)} are not durable")
        for txid, transaction in self._known.items():
            journal = transaction.journal
            if durable and journal is not None and transaction.swapped and journal in self._changed:
                self._break(f"P5: the commit of {txid} returned, and its mark is not durable")

    def lasts(self, path: str) -> None:
        """What was published at `path`, whoever wrote it, must last (P5)."""
        self._require_tree(path)

    def _after(self, call: Call, txid: str | None, result: Any) -> None:
        name, args = call.name, call.args
        if name == "fsync":
            key = _key(args[0])
            self._synced.add(key)
            self._changed.discard(key)
            self._moded.discard(key)
            self._names.pop(key, None)
        elif name == "syncfs":
            self._whole = True
            self._changed.clear()
            self._moded.clear()
            self._names.clear()
        elif name in ("open_tmpfile", "create"):
            self._changed.add(_key(result))
            self._synced.discard(_key(result))
            if name == "create":
                self._name(args[3], f"stage {txid}")
        elif name in _CHANGES_FD:
            self._changed.add(_key(args[0]))
        elif name == "copy_range":
            self._changed.add(_key(args[1]))
        elif name == "chmod":  # of /proc/self/fd/N, right before a swap; the sync may come after all swaps
            self._moded.add(_stat(args[0]))
        elif name in ("mkdir", "symlink", "link", "link_fd", "rename"):
            self._named(call, txid)

    def _named(self, call: Call, txid: str | None) -> None:
        name, args = call.name, call.args
        if name == "mkdir":
            self._whole = False  # what the user puts into it is not seen here
            made = self._key_of(args[0], args[2])
            assert made is not None
            self._changed.add(made)
            self._synced.discard(made)
            if txid is not None and call.paths[0].endswith(f".atomik-{txid}"):
                self._transaction(txid).private_folders.add(call.paths[0])
            self._name(
                args[2] if args[2] is not None else os.path.dirname(args[0]), f"stage {txid}" if txid else "made"
            )
        elif is_swap(call):
            if txid is not None:  # a new file goes straight to its destination, without a slot
                self._transaction(txid).swapped = True
            for fd in (args[1], args[3]) if name == "rename" else (args[2],):
                self._name(fd, f"swap {txid}")
        else:
            target = {"symlink": 2, "link": 3, "link_fd": 2, "rename": 3}[name]
            self._name(args[target], f"stage {txid or self._owner_of_signpost(call)}")

    # --- the rules -----------------------------------------------------------------------------------------------
    def _before_swap(self, call: Call, txid: str | None) -> None:
        if txid is None and self.recovering:
            return
        if txid is None:
            if call.name == "link_fd":  # a new file, straight to its destination
                self._require_content(_key(call.args[0]), call.paths[1])
            elif not call.paths[-1].endswith("/.atomik-journal"):
                self._break(f"{call} changes a destination, and is no transaction's")
            return
        transaction = self._transaction(txid)
        undoing = transaction.journal is None and transaction.swapped
        if self.recovering or transaction.outcome or transaction.prepared or undoing:
            return
        self.checked += 1
        if transaction.journal is None:
            exchange = call.name == "rename" and call.args[4] == 2
            source = call.paths[1 if exchange else 0]  # the slot is the second argument, for watchers
            if f".atomik-{txid}" in source:
                self._require_tree(source)
            return
        transaction.prepared = True
        if transaction.journal in self._changed:
            self._break("I1: the first swap comes before the journal is durable")
        for key, reasons in self._names.items():
            if "made" in reasons or f"stage {txid}" in reasons:
                self._break(f"I1: the first swap comes before the names in {self._say(key)} are durable")
        for private_folder in transaction.private_folders:
            for where, folders, files in os.walk(private_folder):
                for entry in (*folders, *files):
                    self._require_one(os.path.join(where, entry))

    def _before_pwrite(self, call: Call) -> None:
        fd, data, offset = call.args
        if data[:4] != _MAGIC:
            return
        txid, kind = bytes(data[16:32]).decode(), int.from_bytes(data[6:8], "little")
        transaction = self._transaction(txid)
        transaction.journal = _key(fd)
        if kind == _INTENT and offset == 0:
            return
        self.checked += 1
        transaction.outcome = True
        if self._moded:
            self._break("I2: the outcome is written before the mode of what was published is durable")
        for key, reasons in self._names.items():
            if f"swap {txid}" in reasons:
                self._break(f"I2: the outcome is written before the names in {self._say(key)} are durable")

    def _before_fsync(self, key: Key) -> None:
        """A journal that lasts must not name a folder that does not: recovery would look for it and not find it."""
        if any(key == one.journal and not one.swapped for one in self._known.values()):
            for folder, reasons in self._names.items():
                if "made" in reasons:
                    self._break(f"I1: the journal is made durable before the new folder in {self._say(folder)}")

    def _before_deletion(self, call: Call, txid: str) -> None:
        transaction = self._transaction(txid) if self.recovering else self._known.get(txid)
        if transaction is None or not (transaction.swapped or self.recovering):
            return
        self.checked += 1
        if transaction.journal is not None:
            if not transaction.outcome:
                self._break(f"I3: {_say(call)} comes before the outcome is written")
            elif transaction.journal in self._changed:
                self._break(f"I3: {_say(call)} comes before the outcome is durable")
        elif self.recovering and not self._asked(call):
            self._break(f"I3: {_say(call)} comes before what its owner had swapped is made durable")
        elif any(f"swap {txid}" in reasons for reasons in self._names.values()):
            self._break(f"I3: {_say(call)} comes before the swap is durable")

    def _asked(self, call: Call) -> bool:
        """Whether a recovery without a journal has synced the folders that the dead owner may have swapped in."""
        before, private_folder, _ = call.paths[0].partition(f"/{PREFIX}")
        inside = call.paths[0][len(before) + 1 :]
        folders = [before, f"{before}/{inside.partition('/')[0]}"] if private_folder and "/" in inside else [before]
        return self._whole or all(_stat(folder) in self._synced for folder in folders)

    def _require_tree(self, path: str) -> None:
        self._require_one(path)
        for where, folders, files in os.walk(path):
            for entry in (*folders, *files):
                self._require_one(os.path.join(where, entry))

    def _require_one(self, path: str) -> None:
        if not os.path.islink(path):  # a link's content is its name's
            found = os.lstat(path)
            self._require_content((found.st_dev, found.st_ino), path)

    def _require_content(self, key: Key, path: str) -> None:
        self.checked += 1
        if key in self._changed or not (self._whole or key in self._synced):
            self._break(f"I1: {path} is published, and its content is not durable")

    # --- names ---------------------------------------------------------------------------------------------------
    def _txid(self, call: Call) -> str | None:
        found = [match[1] for path in call.paths if (match := _TXID.search(path))]
        if not found and call.name == "unlink" and call.args[0] == ".atomik-journal":
            return self._owner_of_signpost(call)
        if not found and is_swap(call) and call.name == "rename" and call.args[4] == 2:
            # Two destinations change places: a step of the transaction that is at work.
            found = [txid for txid, one in self._known.items() if one.journal is not None and not one.outcome]
        return found[0] if found else None

    def _owner_of_signpost(self, call: Call) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(call.paths[-1])
            for txid, transaction in self._known.items():
                if transaction.journal == (found.st_dev, found.st_ino):
                    return txid
        return None

    def _transaction(self, txid: str) -> _Transaction:
        return self._known.setdefault(txid, _Transaction())

    def _name(self, folder: int | str, reason: str) -> None:
        found = os.stat(folder)
        self._names.setdefault((found.st_dev, found.st_ino), set()).add(reason)

    def _key_of(self, name: str, dir_fd: int | None) -> Key | None:
        try:
            found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _say(self, key: Key) -> str:
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if _key(int(name)) == key:
                    return os.readlink(f"/proc/self/fd/{name}")
        return f"folder {key[1]}"

    def _break(self, text: str) -> None:
        if text not in self.broken:
            self.broken.append(text)


def _key(fd: int) -> Key:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _stat(path: str) -> Key:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _say(call: Call) -> str:
    return f"{call.name} of {_TXID.sub('/private_folder', call.paths[0])}"
