"""P3: what arrived first is what the caller gets, although cleaning up after it fails."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

import atomik
from atomik._hidden_names import JOURNAL_NAME
from atomik._system.kernel import Kernel
from tests.support.kernels import installed

if TYPE_CHECKING:
    from pathlib import Path


def _interrupt() -> None:
    raise KeyboardInterrupt


class Interrupted(Kernel):
    """Ctrl-C arrives at one call, and the next removal of a name fails."""

    failing = False

    def _struck(self) -> None:
        self.failing = True
        _interrupt()

    def unlink(self, name: str, dir_fd: int) -> None:
        """Fail once."""
        self._fail_once()
        super().unlink(name, dir_fd)

    def rmdir(self, name: str, dir_fd: int | None) -> None:
        """Fail once."""
        self._fail_once()
        super().rmdir(name, dir_fd)

    def _fail_once(self) -> None:
        if self.failing:
            self.failing = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class AtTheJournal(Interrupted):
    """When the journal gets its well-known name."""

    def link(self, src: str, src_fd: int, dst: str, dst_fd: int) -> None:
        """Strike after it."""
        super().link(src, src_fd, dst, dst_fd)
        if dst == JOURNAL_NAME:
            self._struck()


class InTheGap(Interrupted):
    """Between the two calls that publish a folder where the flags of renameat2 are missing."""

    def rename(self, src: str, src_fd: int, dst: str, dst_fd: int, flags: int) -> None:
        """Strike before the rename without flags to a user's name."""
        if flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if dst == "new":
            self._struck()
        super().rename(src, src_fd, dst, dst_fd, flags)


def test_while_the_journal_is_removed_again(folder: Path) -> None:
    """The interrupt goes on unchanged, everything is as it was, and nothing is left."""
    for name in "ab":
        (folder / name).write_text("old")
    with installed(AtTheJournal()), pytest.raises(KeyboardInterrupt), atomik.transaction(overwrite=True) as tx:
        for name in "ab":
            tx.write_text(folder / name, "new")
    assert {name: (folder / name).read_text() for name in os.listdir(folder)} == {"a": "old", "b": "old"}


def test_while_the_placeholder_is_removed_again(folder: Path) -> None:
    """The empty folder that reserved the name is removed nevertheless."""
    with installed(InTheGap()), pytest.raises(KeyboardInterrupt), atomik.folder(folder / "new", allow_gap=True) as new:
        (new / "file").touch()
    assert os.listdir(folder) == []
