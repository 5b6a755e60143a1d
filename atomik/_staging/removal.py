"""`Transaction.remove`: the destination is renamed into a slot, and deleted after the commit."""

from __future__ import annotations

import errno

from atomik import errors

from . import checks
from .existing import OfExisting
from .item import Found, Operation, kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atomik._folder.place import Place
    from atomik._system.libc import Status

    from .intake import Intake
    from .options import Expectation, ItemOptions, StrPath


def stage(intake: Intake, path: StrPath, *, missing_ok: bool, order: int, expect: Expectation) -> None:
    """Stage the removal of what exists at `path`."""
    intake.require_open()
    if missing_ok and not intake.will_exist(path):
        return
    options: ItemOptions = {"order": order, "preserve": "none", "expect": expect, "if_changed": missing_ok}
    item = intake.add(Removal, path, True, None, options)  # noqa: FBT003
    intake.open(item, item.open)


class Removal(OfExisting):
    """The destination is removed."""

    __slots__ = ()

    kind = "removal"
    content = False

    def step_kind(self) -> str:
        return ""  # that of what exists there, whatever it is

    def look(self) -> Status | None:
        found = self.place.status()
        if found is None:
            text = "there is nothing to remove; pass missing_ok=True if that is fine"
            errors.fail(errors.MissingPathError, errno.ENOENT, text, self.path)
        if self.expectation is not None:
            super().look()
        self.found = kind_of(found.mode)
        return found

    def would_change_nothing(self) -> bool:
        """With ``missing_ok``: whether others have removed it in the meantime."""
        # Asked twice, because a "no such file" may be wrong.
        return self.options.if_changed and not (self.follows or self.place.status() or self.place.status())

    def leaves(self) -> None:
        return None

    def origin(self) -> None:
        return None

    def follow(self, leaves: str | None) -> None:
        super().follow(leaves)
        if leaves is None:
            text = "an earlier operation of this transaction removes it already"
            errors.fail(errors.MissingPathError, errno.ENOENT, text, self.path)

    def find(self, found: dict[Place, Found | None], *, alone: bool) -> None:
        if self.follows and self.place in found:
            return
        there = self.look()
        assert there is not None
        checks.refuse_mounts(self.place, there, self.path)
        found[self.place] = Found(self.found, self.place.identity())

    def operation(self, *, alone: bool) -> Operation:
        assert self.slot is not None
        return Operation("remove", self.place, self.slot, order=self.order)
