"""`Transaction.exchange`: what exists at two names changes places, in one step."""

from __future__ import annotations

import errno

from atomik import errors
from atomik._folder.paths import absolute
from atomik._system import kernel

from . import checks, companions
from .destinations import UNTOUCHED, Entry, key_of
from .existing import OfTwoNames
from .item import Found, Operation, kind_of, sync_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atomik._folder.place import Place
    from atomik._system.libc import Status

    from .intake import Intake
    from .item import Item
    from .options import Expectation, ItemOptions, StrPath


def stage(intake: Intake, first: StrPath, second: StrPath, *, order: int, expect: Expectation) -> None:
    """Stage the exchange of what exists at two names."""
    with kernel.typed("cannot exchange", absolute(second)), intake.lock:
        intake.require_open()
        other = intake.workspace.locate(absolute(second), folder=True, parents=None)
        options: ItemOptions = {"order": order, "preserve": "none", "expect": expect}
        item = intake.add(Exchange, first, True, None, options, lambda item: item.take(other))  # noqa: FBT003
        item.register(intake, Entry(item, item.kinds[0], item.origins[0], key_of(item.there[1])))
    intake.open(item, item.open)


class Exchange(OfTwoNames):
    """What exists at the destination and at ``other`` changes places."""

    __slots__ = ("kinds", "origins", "there")

    kind = "exchange"

    def take(self, other: Place) -> None:
        """Name what will be exchanged: what exists at both names, or what the operations so far leave there."""
        self.name(other)
        if other == self.place:
            text = "both paths are the same name; an exchange needs two"
            errors.fail(errors.InvalidDestinationError, errno.EINVAL, text, self.path)
        #: what is there: what an item staged, or what exists at a name now
        self.origins = [self.workspace.destinations.origin(place) for place in (self.place, other)]
        looked = [self._look_at(place) for place in (self.place, other)]
        #: the kinds of what is there, the destination's first
        self.kinds = [kind for kind, _ in looked]
        #: the status of folders that move away
        self.there = [status if kind == "folder" else None for kind, status in looked]

    def _look_at(self, place: Place) -> tuple[str, Status | None]:
        leaves = self.workspace.destinations.leaves(place)
        found = place.status() if leaves == UNTOUCHED else None
        if leaves is None or (leaves == UNTOUCHED and found is None):
            text = "there is nothing to exchange; both names must exist"
            errors.fail(errors.MissingPathError, errno.ENOENT, text, str(place), self.path)
        if found is None:
            return leaves, None
        checks.refuse_mounts(place, found, self.path)
        checks.refuse_sticky(place.directory, found, str(place))
        return kind_of(found.mode), found

    def step_kind(self) -> str:
        return ""  # anything can take the place of anything

    def leaves(self) -> str | None:
        return self.kinds[1]

    def origin(self) -> Item | Place | None:
        return self.origins[1]

    def follow(self, leaves: str | None) -> None:
        if self.expectation is not None:  # what is there, `take` has asked
            self.conflict("an earlier operation of this transaction changes it, so it cannot be what was observed")

    def places(self) -> tuple[Place, ...]:
        return (self.place, self.other) if self.registered else (self.place,)

    def folders_there(self) -> tuple[Place, ...]:
        pairs = zip(self.there, (self.place, self.other), strict=True)
        return tuple(place for status, place in pairs if status is not None)

    def find(self, found: dict[Place, Found | None], *, alone: bool) -> None:
        if self.expectation is not None and not (self.follows and self.place in found):
            self.look()
        for place in (self.place, self.other):
            if place not in found:
                there = place.status()
                if there is not None and kernel.is_file(there.mode):
                    companions.refuse_left_log(place, self.workspace, self.path)
                found[place] = None if there is None else Found(kind_of(there.mode), place.identity())

    def operation(self, *, alone: bool) -> Operation:
        assert self.slot is not None
        return Operation("exchange", self.place, self.slot, None, -1, self.other, None, True, False, self.order)  # noqa: FBT003

    def _sync_new(self) -> int:
        return sync_place(self.place) + sync_place(self.other)
