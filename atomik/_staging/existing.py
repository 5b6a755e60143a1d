"""What the operations on what exists have in common: nothing is staged for them, and their slot takes what is displaced."""

from __future__ import annotations

from .item import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atomik._folder.place import Place

    from .destinations import Entry
    from .intake import Intake


class OfExisting(Item):
    """An operation on what exists: a removal, a move, an exchange; or an expectation, which needs no slot."""

    __slots__ = ()

    makes_parents = False

    def open(self) -> None:
        """Reserve the slot."""
        self.slot = self.workspace.slot(self.stage)
        self.seal()

    def would_change_nothing(self) -> bool:
        return False

    def _drop(self) -> None:
        pass  # what the slot may hold belongs to the user: undo brings it back


class OfTwoNames(OfExisting):
    """One that changes ``other`` as well as its destination."""

    __slots__ = ("other", "registered")

    #: the programs that wrote what is there may not have synced it (P5)
    content = True

    def name(self, other: Place) -> None:
        self.other = other
        #: whether it is among the destinations
        self.registered = False

    def register(self, intake: Intake, entry: Entry) -> None:
        """The other name is a destination too, where `entry` is left; or take the item back."""
        try:
            intake.workspace.destinations.register(self.other, entry)
        except BaseException:
            intake.forget(self)
            raise
        self.registered = True

    def places(self) -> tuple[Place, ...]:
        return (self.other, self.place) if self.registered else (self.place,)
