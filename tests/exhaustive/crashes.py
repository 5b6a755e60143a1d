"""Every disk that a power cut can leave, from the log of what was changed and synced.

What is assumed of a disk (docs/explanation/proof.md has the same in words):

* a change that was synced is there: bytes by fsync of the file, entries by fsync of their folder, all of it by syncfs;
* of the others any part is there, in any combination, with two exceptions.  Changes of one entry come in their order: a later
  one is there only with the earlier ones.  And a change of two entries (a rename, an exchange) is there as a whole; except
  that a file renamed to another folder may have both names when only the new one's folder was synced, as btrfs has it;
* a record of a journal that was not synced is there, or not, or is as many zeros.

What was put into an output and not synced - bytes of a file, names in a new folder - is never there: the worst case, and
enough, for recovery does not look into outputs but to delete them.  Where they last without a sync, more is well.

`Cut` keeps what is pending while it goes through a log, and gives for each record the disks that are new with it: those in
which that change is there.  Those in which it is not were given before.  What cannot be reached from the root makes no
difference, so nothing is chosen about it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from enum import Enum

from attrs import define, evolve, field

from .memory import ROOT, Bytes, Disk, Entry, Made, Names, Record, Sync

_JOURNAL = b"AtmK"


class _Lasts(Enum):
    NO = 0
    HALF = 1  # the new name does, the old one may be there as well
    YES = 2


@define(eq=False)
class _Pending:
    """``entries`` that it changes, in the folders ``above``; ``made``: the inode that it gives its first name."""

    record: Names | Bytes
    lasts: _Lasts = _Lasts.NO
    entries: frozenset[Entry] = frozenset()
    above: frozenset[int] = frozenset()
    made: frozenset[int] = frozenset()

    @classmethod
    def of(cls, record: Names | Bytes) -> _Pending:
        """One that nothing is known about yet."""
        if isinstance(record, Bytes):
            return cls(record)
        sets = record.sets
        made = frozenset(ino for _, ino in sets if ino is not None and len(sets) == 1)
        return cls(
            record, _Lasts.NO, frozenset(entry for entry, _ in sets), frozenset(ino for (ino, _), _ in sets), made
        )


@define
class Cut:
    """``disk`` is what surely lasts; ``pending`` what else was done, in order."""

    disk: Disk
    pending: list[_Pending] = field(factory=list)

    def copy(self) -> Cut:
        """Another one, to go on from here."""
        return Cut(self.disk.copy(), [evolve(one) for one in self.pending])

    def after(self, record: Record, made: dict[int, Made]) -> Iterator[Disk]:
        """Take in the next record of the log; the disks that are new with it."""
        self.disk.made = made
        if isinstance(record, Sync):
            halves = self._sync(record.ino)
            if halves:
                yield from self._disks(halves)
            return
        newest = _Pending.of(record)
        self.pending.append(newest)
        yield from self._disks([newest])

    def everything(self) -> Iterator[Disk]:
        """Every disk that there can be now."""
        yield from self._disks([])

    # --- syncs ---------------------------------------------------------------------------------------------------
    def _sync(self, ino: int) -> list[_Pending]:
        """What was synced lasts; those changes of which half does from now on."""
        halves: list[_Pending] = []
        needed: set[Entry] = set()
        for one in reversed(self.pending):
            record = one.record
            if isinstance(record, Bytes):
                if ino in (0, record.ino):
                    one.lasts = _Lasts.YES
                continue
            if self._is_half(one, record, ino):
                one.lasts = _Lasts.HALF
                halves.append(one)
            elif (
                ino == 0
                or (ino in one.above and (one.lasts, ino) != (_Lasts.HALF, record.goal))
                or (one.lasts is _Lasts.NO and not needed.isdisjoint(one.entries))
            ):
                one.lasts = _Lasts.YES
            if one.lasts is not _Lasts.NO:
                needed |= one.entries
        self._settle()
        return halves

    def _is_half(self, one: _Pending, record: Names, ino: int) -> bool:
        if one.lasts is not _Lasts.NO or record.goal != ino or record.source == ino:
            return False
        return any(new is not None and not stat.S_ISDIR(self.disk.made[new].mode) for _, new in record.sets)

    def _settle(self) -> None:
        """What lasts goes to the disk, unless something before it about the same entry is still open."""
        left: list[_Pending] = []
        open_entries: set[Entry] = set()
        for one in self.pending:
            if one.lasts is _Lasts.YES and open_entries.isdisjoint(one.entries):
                self.disk.apply(one.record)
            else:
                left.append(one)
                open_entries |= one.entries
        self.pending = left

    # --- choices -------------------------------------------------------------------------------------------------
    def _disks(self, must: list[_Pending]) -> Iterator[Disk]:
        """Every choice in which one of `must` is there (or, of halves, both names are)."""
        if any(self._is_of_output(one) for one in must):
            return
        names = [one for one in self.pending if isinstance(one.record, Names) and not self._is_of_output(one)]
        bytes_ = [one for one in self.pending if isinstance(one.record, Bytes) and not self._is_of_output(one)]
        for chosen in self._choose_names(names, 0, [], frozenset(), frozenset(), must):
            disk = Disk(dict(self.disk.names), self.disk.data, self.disk.made)
            for record in chosen:
                disk.apply(record)
            if bytes_:
                reached = reachable(disk)
                yield from self._choose_bytes(disk, [one for one in bytes_ if one.record.ino in reached], must)
            else:
                yield disk

    def _is_of_output(self, one: _Pending) -> bool:
        """Whether it adds to an output, and need not last."""
        record = one.record
        if isinstance(record, Bytes):
            return not record.data.startswith(_JOURNAL)
        (above, _), new = record.sets[0]
        return one.lasts is _Lasts.NO and len(record.sets) == 1 and new is not None and above in self.disk.outputs

    def _choose_names(
        self,
        names: list[_Pending],
        at: int,
        chosen: list[Names],
        absent: frozenset[Entry],
        gone: frozenset[int],
        must: list[_Pending],
    ) -> Iterator[list[Names]]:
        """`absent`: entries of which a change is left out; `gone`: folders that were never made."""
        if at == len(names):
            yield chosen
            return
        one = names[at]
        record = one.record
        assert isinstance(record, Names)
        needed = one in must
        if absent.isdisjoint(one.entries) and not one.above <= gone:
            if one.lasts is not _Lasts.HALF or not needed:
                yield from self._choose_names(names, at + 1, [*chosen, record], absent, gone, must)
            if one.lasts is _Lasts.HALF:
                both = Names(tuple(change for change in record.sets if change[1] is not None))
                yield from self._choose_names(names, at + 1, [*chosen, both], absent, gone, must)
        if one.lasts is _Lasts.NO and not needed:
            yield from self._choose_names(names, at + 1, chosen, absent | one.entries, gone | one.made, must)

    def _choose_bytes(self, disk: Disk, bytes_: list[_Pending], must: list[_Pending]) -> Iterator[Disk]:
        if must and isinstance(must[0].record, Bytes) and must[0] not in bytes_:
            return  # what was written cannot be reached
        found: list[dict[int, bytes]] = [disk.data]
        for one in bytes_:
            record = one.record
            assert isinstance(record, Bytes)
            variants: list[Bytes | None] = [record]
            if record.data.startswith(_JOURNAL):
                variants.append(Bytes(record.ino, record.offset + len(record.data), b""))
            if one not in must:
                variants.append(None)
            found = [_written(data, variant) for data in found for variant in variants]
        for data in found:
            yield Disk(disk.names, data, disk.made)


def _written(data: dict[int, bytes], record: Bytes | None) -> dict[int, bytes]:
    if record is None:
        return data
    fresh = Disk({}, dict(data))
    fresh.apply(record)
    return fresh.data


def reachable(disk: Disk) -> set[int]:
    """The inodes that have a way from the root."""
    found, before = {ROOT}, 0
    while len(found) > before:
        before = len(found)
        found.update(ino for (above, _), ino in disk.names.items() if above in found)
    return found


Key = tuple[frozenset[tuple[Entry, int, Made]], frozenset[tuple[int, bytes]]]


def key_of(disk: Disk) -> Key:
    """Equal for disks that no program can distinguish: the same names lead to the same inodes, and these hold the same.

    Inode numbers belong to it, because a journal records them; what has no name does not.
    """
    reached = reachable(disk)
    names = frozenset((entry, ino, disk.made[ino]) for entry, ino in disk.names.items() if entry[0] in reached)
    return names, frozenset((ino, data) for ino, data in disk.data.items() if ino in reached)


def bare(disk: Disk) -> Disk:
    """The disk without what cannot be reached."""
    reached = reachable(disk)
    return Disk(
        {entry: ino for entry, ino in disk.names.items() if entry[0] in reached},
        {ino: data for ino, data in disk.data.items() if ino in reached},
        dict(disk.made),
    )
