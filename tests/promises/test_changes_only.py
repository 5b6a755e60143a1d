"""``run_in(changes_only=True)``: what a program changed in a layer over a folder is published as one transaction."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from tests.promises.test_run_in import FIXED, PROGRAMS, USERS, fill, missing, run, shape, wheel  # noqa: F401  run is a fixture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ALL = PROGRAMS | {
    "mv": "mkdir x; mv folder x/y; echo z > x/y/z; mv x/y/setgid s; mv empty full; ln -sfn full moved; chmod 700 full",
    "kinds": "rm -r folder; echo f > folder; rm file moved; mkdir file; echo i > file/i; ln -sf file closed; mkfifo moved",
    "again": "rm -r folder; mkdir folder; echo 1 > folder/inner; mkdir -m 2770 folder/s; mv folder folder2; mkdir folder",
    "attributes": "chmod 711 folder; chmod 4755 file; touch -d 2001-01-01 empty; setfattr -n user.x -v y folder/setgid",
    "swap": "mv file t; mv moved file; mv t moved; mv folder t; mv empty folder; mv t empty",
}

OF_ROOT = ("mv", "swap")


@pytest.mark.sweep
@pytest.mark.parametrize("program", ALL)
def test_the_result_is_that_of_a_run_without(run: Callable[..., Any], open_folder: Path, program: str) -> None:  # noqa: F811
    """Content, kinds, modes, owners, links and attributes are those of the same program run in the folder itself."""
    if why := missing("sh" if program not in PROGRAMS else program):
        pytest.skip(why)

    if program in OF_ROOT and run is not USERS.get("root"):
        pytest.skip("renames a folder of the lower layer, which overlayfs lets only root do")

    def work() -> None:
        os.umask(0o022)
        wheel(open_folder / "wheels")
        for name in ("plain", "inside"):
            (open_folder / name).mkdir()
            fill(open_folder / name / "F")
        command = ["sh", "-ec", ALL[program]]
        subprocess.run(command, check=True, cwd=open_folder / "plain/F", env=FIXED, timeout=60)
        inside = open_folder / "inside/F"
        done = atomik.run_in(inside, command, changes_only=True, cwd=inside, env=FIXED, check=True)
        assert done.receipt is not None
        assert shape(inside) == shape(open_folder / "plain/F")
        assert os.listdir(open_folder / "inside") == ["F"]

    run(work)
