"""probe(): true on every ground, leaves nothing, and its promises agree with what the core suite found there."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atomik
from atomik import errors
from atomik._system.kernel import MUTATING
from atomik.testing import CrashPoint, crash_points
from tests.filesystems.expected import outcome
from tests.filesystems.grounds import GROUNDS
from tests.support.kernels import Faulty, Recording, every_call, installed
from tests.support.lab.need import need
from tests.support.state import descriptors, in_child, left_in, tree
from tests.support.users import no_root

if TYPE_CHECKING:
    from collections.abc import Callable

ABILITIES = (
    "tmpfile", "noreplace", "exchange", "lies", "hard_links", "symlinks", "file_handles", "reflink", "syncfs", "flock",
    "xattrs", "acls", "fsync", "dir_fsync", "paths",
)  # fmt: skip


#: which calls of the many that the trials make; neighbouring ones are much alike
some_or_all = pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])


def test_it_is_readable_and_plain(folder: Path) -> None:
    """A table for people, plain values for programs, frozen."""
    (folder / "there").write_text("there")
    can = atomik.probe(str(folder))
    plain = json.loads(json.dumps(can.as_dict()))
    assert [name for name in ABILITIES if not isinstance(plain[name], bool)] == []
    assert plain["folder"] == str(folder)
    assert plain["st_dev"] == folder.stat().st_dev
    assert list(plain["promises"]) == [f"P{number}" for number in range(1, 11)]
    text = str(can)
    assert text.startswith(f"{folder}: {can.filesystem} on {can.mount} ")
    for promise in can.promises:
        assert promise.text in text
    assert all(len(line) < 120 for line in text.splitlines()[1:])
    with pytest.raises(AttributeError):
        can.exchange = False  # type: ignore[misc]
    assert os.listdir(folder) == ["there"]


def test_the_mount_is_the_one_that_the_system_names(folder: Path) -> None:
    """Mount point and type are those of /proc/self/mounts, seen from the folder and from a relative path."""
    can = atomik.probe(".")
    assert can.folder == str(folder)
    assert os.path.ismount(can.mount)
    assert os.stat(can.mount).st_dev == folder.stat().st_dev
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    assert [line[2] for line in lines if line[1] == can.mount][-1] == can.filesystem


def test_no_name_of_the_users_is_touched(folder: Path) -> None:
    """All that it changes is in a private folder of its own, which is gone afterwards."""
    before = descriptors()
    with installed(Recording(MUTATING)) as kernel:
        atomik.probe(folder)
    paths = [path for call in kernel.calls for path in call.paths]
    assert paths
    assert all("/.atomik-" in path or "#" in path or "(deleted)" in path for path in paths), paths
    assert os.listdir(folder) == []
    assert descriptors() == before


@pytest.mark.sweep
@some_or_all
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_it_fails_with_a_path_and_leaves_nothing(folder: Path, number: int, step: int) -> None:
    """Whichever call fails: an error of atomik's with the folder's path, or an answer less; never anything left."""
    for point in every_call(number, step=step):
        with installed(point.kernel):
            try:
                atomik.probe(folder)
            except errors.AtomikOSError as exc:
                said = exc.errno, str(exc.filename).startswith(str(folder))
            else:
                said = number, True
        assert said == (number, True)
        atomik.recover(folder)
        assert os.listdir(folder) == []


@pytest.mark.sweep
@some_or_all
def test_it_may_be_killed(folder: Path, step: int) -> None:
    """Dying at any call, it leaves at most a private folder, which recovery removes."""

    def check(point: CrashPoint) -> None:
        atomik.recover(folder)
        assert not left_in(folder)

    assert crash_points(lambda: atomik.probe(folder), check, step=step) > 20


def test_what_cannot_be_probed(folder: Path) -> None:
    """Nothing there, no folder, no permission: typed errors with the path."""
    (folder / "file").write_text("x")
    for name, kind in (("missing", errors.MissingPathError), ("file", errors.WrongKindError)):
        with pytest.raises(kind) as caught:
            atomik.probe(folder / name)
        assert caught.value.filename == str(folder / name)


def test_a_full_disk_is_no_missing_ability(folder: Path) -> None:
    """ENOSPC of an attribute or a file is not taken for "not supported": nobody knows, and the reason is given."""
    for call, ability in (("setxattr", "xattrs"), ("pwrite", "reflink"), ("create", "exchange")):
        with installed(Faulty.every(call, errno.ENOSPC)):
            can = atomik.probe(folder)
        assert getattr(can, ability) is None
        assert can.unknown[ability] == "No space left on device"
    assert os.listdir(folder) == []


def test_without_permission(open_folder: Path) -> None:
    """A folder that this user may not write to: AccessDeniedError."""
    if why := no_root():
        pytest.skip(why)
    open_folder.chmod(0o755)
    with pytest.raises(errors.AccessDeniedError):
        in_child(_probed, open_folder, become=65534)


def _probed(folder: Path) -> str:
    return str(atomik.probe(folder))


#: For an ability, a scenario that passes just where it is, on kernels that lack nothing but what the ground says.
_SHOWN = {"exchange": "folder-overwrite", "noreplace": "folder-new"}


@pytest.mark.root
@pytest.mark.filesystems
def test_it_tells_the_truth(ground: tuple[str, Callable[[str], Path]]) -> None:
    """On every ground: nothing changes, and the abilities agree with what the core suite found there."""
    name, folder_for = ground
    need(GROUNDS[name].missing())
    folder = folder_for("probe")
    before = tree(folder)
    can = atomik.probe(folder)
    assert tree(folder) == before
    for ability, scenario in _SHOWN.items():
        if name != "overlay-lower-redirect-off":
            assert getattr(can, ability) == (outcome(name, scenario) == "passed")
    holds = {promise.name: promise.holds for promise in can.promises}
    if name == "overlay-lower-redirect-off":
        assert holds["P1"] == "files and new folders"
    else:
        assert (holds["P1"] == "yes") == (can.exchange and can.noreplace)
    assert (holds["P4"] == "yes") == can.hard_links
    assert (holds["P7"] == "yes") == can.tmpfile
    assert can.lies == (name == "fuse-ignores")
    assert can.reflink == (name in ("xfs", "btrfs", "btrfs-subvolume"))
    for promise in can.promises:
        assert promise.holds == "yes" or promise.reason
