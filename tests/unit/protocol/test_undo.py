"""Undo looks at identities; what a signal handler raises is not for it to answer (I13)."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._protocol.step import Step, Undone
from atomik._protocol.undo import undo
from atomik._system import kernel as _kernel
from tests.support.kernels import installed

if TYPE_CHECKING:
    from pathlib import Path


def _handler() -> None:
    raise FileExistsError(errno.EEXIST, "alarm")


class Raced(_kernel.Kernel):
    """Someone creates the destination right before the rename; with `alarm`, a handler raises there as well."""

    def __init__(self, place: str, *, alarm: bool) -> None:
        self.place, self.alarm = place, alarm

    def rename(self, src: str, src_fd: int, dst: str, dst_fd: int, flags: int) -> None:
        """Another program is quicker."""
        with open(self.place, "x"):
            pass
        if self.alarm:
            _handler()
        super().rename(src, src_fd, dst, dst_fd, flags)


@pytest.mark.parametrize("alarm", [False, True])
def test_a_removal_whose_name_was_taken(tmp_path: Path, alarm: bool) -> None:
    """It is foreign and stays; but a FileExistsError of a signal handler is raised unchanged."""
    (tmp_path / "slot").write_text("old")
    with closing(Directory.open(str(tmp_path))) as folder:
        slot = Place(folder, "slot")
        step = Step("remove", "file", Place(folder, "dest"), slot, None, slot.identity())
        with installed(Raced(os.path.join(tmp_path, "dest"), alarm=alarm)):
            if alarm:
                with pytest.raises(FileExistsError, match="alarm"):
                    undo(step)
            else:
                assert undo(step) is Undone.FOREIGN
    assert sorted(os.listdir(tmp_path)) == ["dest", "slot"]
