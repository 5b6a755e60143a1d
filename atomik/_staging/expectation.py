"""`Transaction.expect`: what must exist at a name that was only read; nothing changes there."""

from __future__ import annotations

from .existing import OfExisting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atomik._folder.place import Place
    from atomik._system.libc import Status

    from .intake import Intake
    from .item import Found
    from .options import Expectation, StrPath


def stage(intake: Intake, path: StrPath, expected: Expectation) -> None:
    """Stage the expectation that `path` is as `expected`."""
    if expected is None:
        raise TypeError("expected must be what observe() returned, 'absent' or 'sha256:<hex>', not None")
    item = intake.add(Expected, path, True, None, {"expect": expected, "preserve": "none"})  # noqa: FBT003
    intake.open(item, item.seal)


class Expected(OfExisting):
    """A name that must be as the caller saw it, checked when staged and under the locks, before the first swap."""

    __slots__ = ()

    kind = "expectation"
    content = False
    changes = False

    def step_kind(self) -> str:
        return ""

    def look(self) -> Status | None:
        if self.expectation == "absent" and self.place.status() is not None:
            self.conflict("not what was expected: something exists there")
        return super().look()

    def find(self, found: dict[Place, Found | None], *, alone: bool) -> None:
        if not self.follows:
            self.look()

    def follow(self, leaves: str | None) -> None:
        if leaves is not None and self.expectation == "absent":
            self.conflict("an earlier operation of this transaction puts something there")
        super().follow(leaves)
