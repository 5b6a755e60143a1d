"""`Transaction.symlink`: a symbolic link."""

from __future__ import annotations

import errno
import os

from atomik import errors
from atomik._folder.paths import decoded
from atomik._system import kernel

from . import companions
from .item import Item

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .intake import Intake
    from .options import ItemOptions, StrPath


def stage(intake: Intake, path: StrPath, target: StrPath, overwrite: bool | None, options: ItemOptions) -> None:
    """Stage a link at `path` that says `target`."""
    said = decoded(target, "target")
    if not said or "\0" in said:
        text = "the target of a link cannot be empty, nor contain a NUL"
        errors.fail(errors.InvalidDestinationError, errno.EINVAL, text, os.fsdecode(path))
    item = intake.add(StagedSymlink, path, overwrite, None, options)
    intake.open(item, item.open, said)


#: errno of symlink(2) on FAT (EPERM), with a server that has none (ENOSYS, EOPNOTSUPP; rclone: EIO)
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP})


class StagedSymlink(Item):
    """A symbolic link."""

    __slots__ = ()

    kind = "symlink"
    content = False

    def open(self, target: str) -> None:
        """Make the link in a slot."""
        slot = self.workspace.slot(self.stage)
        self.slot = slot  # before it exists: an interrupt may come right after the call
        try:
            kernel.port.symlink(target, slot.name, slot.fd)
        except OSError as exc:
            number = kernel.errno_of(exc)
            if number not in _NO_LINKS and not (number == errno.EIO and self.stage.fs.name == "fuse"):
                raise
            text = (
                "the filesystem has no symbolic links (or a sandbox refuses them); write a copy of the target instead"
            )
            errors.fail(errors.UnsupportedFilesystemError, errno.EOPNOTSUPP, text, self.path)
        self.seal()

    def refuse_companions(self) -> None:
        if companions.is_database(self.place.name):
            companions.refuse_log(self.place, self.workspace, self.path)
