"""``run --in`` on real filesystems: the result is that of a run without, on a clone and with ``changes_only``."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from tests.promises.test_changes_only import ALL, OF_ROOT
from tests.promises.test_run_in import FIXED, USERS, fill, missing, shape, wheel, why_not
from tests.support.lab import mounts
from tests.support.lab.need import need
from tests.support.state import left_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.filesystems, pytest.mark.root]

KINDS = ("ext4", "xfs", "btrfs", "tmpfs", "overlay-redirect-off")
#: Programs that are not on every machine, or take seconds.
MORE = {
    "npm": 'printf \'{"name":"x","version":"1.0.0"}\' > dep.json; mkdir dep; mv dep.json dep/package.json; '
    'echo \'module.exports = 1\' > dep/index.js; printf \'{"name":"y","version":"1.0.0"}\' > package.json; '
    "npm install --offline --no-audit --no-fund --install-links --cache ../npm ./dep > /dev/null; rm -rf ../npm; "
    "sed -i 's|file:.*|file:dep|' node_modules/.package-lock.json",
    "python": "mkdir -p proj/thing; echo 'x = 1' > proj/thing/__init__.py; printf 'from setuptools import setup\\n"
    'setup(name="thing", version="1.0", packages=["thing"])\\n\' > proj/setup.py; cd proj; '
    "/usr/bin/python3 setup.py -q build",
}


def lacks(program: str) -> str | None:
    if program != "python":
        return missing("sh" if program in ALL and program not in SHELLS else program)
    done = shutil.which("/usr/bin/python3") and subprocess.run(
        ["/usr/bin/python3", "-c", "import setuptools"], capture_output=True
    )
    return None if done and not done.returncode else "no /usr/bin/python3 with setuptools"


SHELLS = ("tar", "make", "git", "sqlite3", "rsync", "patch", "pip")


@pytest.fixture(scope="module", params=KINDS)
def ground(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """A mount, in which everybody may write."""
    need(mounts.missing(request.param))
    with mounts.mounted(request.param) as place:
        place.folder.chmod(0o777)
        yield request.param, place.folder


@pytest.mark.parametrize("changes_only", [False, True], ids=["clone", "changes"])
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("program", [*ALL, *MORE])
def test_the_result_is_that_of_a_run_without(
    ground: tuple[str, Path], program: str, user: str, changes_only: bool
) -> None:
    """Content, kinds, modes, owners, links and attributes; to gather changes on an overlay is refused beforehand."""
    need(lacks(program))
    kind, folder = ground
    if changes_only and user == "user" and program in OF_ROOT:
        pytest.skip("renames a folder of the lower layer, which overlayfs lets only root do")

    def work() -> None:
        os.umask(0o022)
        top = folder / f"{program}-{user}-{changes_only}"
        top.mkdir()
        wheel(top / "wheels")
        for name in ("plain", "inside"):
            (top / name).mkdir()
            fill(top / name / "F")
        command = ["sh", "-ec", (ALL | MORE)[program]]
        inside = top / "inside/F"
        options: Any = {"cwd": inside, "env": FIXED, "check": True, "changes_only": changes_only}
        if changes_only and kind.startswith("overlay"):
            with pytest.raises(errors.NamespaceError, match="overlay itself"):
                atomik.run_in(inside, ["touch", "ran"], **options)
            assert (os.listdir(top / "inside"), (inside / "ran").exists()) == (["F"], False)
            return
        subprocess.run(command, check=True, cwd=top / "plain/F", env=FIXED, timeout=120)
        assert atomik.run_in(inside, command, **options).receipt is not None
        assert shape(inside) == shape(top / "plain/F")
        assert (os.listdir(top / "inside"), left_in(inside)) == (["F"], [])

    run = USERS[user]
    need(why_not(run, folder) or None)
    run(work)


def test_a_folder_of_a_lower_layer(tmp_path: Path) -> None:
    """It cannot be exchanged without redirect_dir, which is said before the program runs; with it the run works."""
    for kind in ("overlay-redirect-off", "overlay-redirect-on"):
        need(mounts.missing(kind))

        def prepare(lower: Path) -> None:
            (lower / "F").mkdir()
            (lower / "F/a").write_text("old")

        with mounts.mounted(kind, prepare=prepare) as place:
            command: list[Any] = ["sh", "-c", f"touch {tmp_path}/ran; echo new > a"]
            if kind == "overlay-redirect-off":
                with pytest.raises(errors.UnsupportedFilesystemError, match="redirect_dir=on"):
                    atomik.run_in(place.root / "F", command, cwd=place.root / "F")
                assert not (tmp_path / "ran").exists()
                assert (place.root / "F/a").read_text() == "old"
            else:
                atomik.run_in(place.root / "F", command, cwd=place.root / "F", check=True)
                assert (place.root / "F/a").read_text() == "new\n"
            assert left_in(place.root) == []


def test_a_subvolume() -> None:
    """A folder that is a btrfs subvolume works on a clone; to gather changes is refused before the program runs."""
    need(mounts.missing("btrfs") or (None if shutil.which("btrfs") else "btrfs-progs is not installed"))
    with mounts.mounted("btrfs") as place:
        top = place.folder / "F"
        subprocess.run(["btrfs", "-q", "subvolume", "create", top], check=True)
        options: Any = {"cwd": top, "check": True}
        with pytest.raises(errors.UnsupportedFilesystemError, match="subvolume"):
            atomik.run_in(top, ["touch", "ran"], changes_only=True, **options)
        assert os.listdir(top) == []
        assert atomik.run_in(top, ["touch", "ran"], **options).receipt is not None
        assert (os.listdir(top), left_in(place.folder)) == (["ran"], [])
