"""Going down a tree, and what is closed on the way out."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from atomik._folder.directory import Directory
from atomik._system import kernel as _kernel
from atomik._tree.walk import TreeWalk
from tests.support.kernels import installed

if TYPE_CHECKING:
    from pathlib import Path


def _handler(exception: BaseException) -> None:
    raise exception


class Interrupted(_kernel.Kernel):
    """An exception of a signal handler arrives when the first descriptor is closed."""

    def __init__(self, exception: BaseException) -> None:
        self.closed: list[int] = []
        self.exception = exception

    def close(self, fd: int) -> None:  # type: ignore[override]
        """Close, and note."""
        os.close(fd)
        self.closed.append(fd)
        if len(self.closed) == 1:
            _handler(self.exception)


@pytest.mark.parametrize("exception", [KeyboardInterrupt(), TimeoutError("alarm")])
def test_all_levels_are_closed(tmp_path: Path, exception: BaseException) -> None:
    """A block that is left early lets go of every level, whatever arrives in the meantime; that is raised."""
    (tmp_path / "a/b/c").mkdir(parents=True)
    with closing(Directory.open(str(tmp_path))) as top, installed(Interrupted(exception)) as kernel:
        with pytest.raises(type(exception)) as caught, TreeWalk(top, "look") as down:
            for name in "abc":
                down.enter(name)
            held = [level.fd for level in down.levels[1:]]
            raise RuntimeError
        assert caught.value is exception
        assert sorted(kernel.closed) == sorted(held)
