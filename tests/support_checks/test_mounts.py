"""Every filesystem of the lab is what its name says, and lets go of what it took."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.lab import images, linux, mounts, namespace
from tests.support.lab.mounting import StillInUseError
from tests.support.lab.need import need
from tests.support.lab.shutdown import shutdown

pytestmark = pytest.mark.root

_TYPES = {"btrfs-subvolume": "btrfs", "bind": "tmpfs", "bindfs": "fuse"}


@pytest.fixture(params=list(mounts.FILESYSTEMS))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    need(mounts.missing(name))
    return name


def type_of(point: Path) -> str:
    """The filesystem type that the kernel names for the mount point."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ")
        if before.split()[4] == str(point):
            return after.split()[0]
    raise LookupError(point)


def test_each_kind_mounts_what_it_says_and_lets_go(kind: str) -> None:
    """The folder is empty, writable and of the named type; after the block nothing is mounted."""
    namespace.enter()
    before = namespace.lab_mounts()
    with mounts.mounted(kind) as place:
        expected = _TYPES.get(kind, "fuse.passthrough" if kind.startswith("fuse-") else kind.split("-", maxsplit=1)[0])
        assert type_of(place.root) == expected
        assert list(place.folder.iterdir()) == []
        (place.folder / "x").write_text("there")
        assert (place.folder / "x").read_text() == "there"
    assert namespace.lab_mounts() == before


def test_a_mount_goes_when_the_block_is_interrupted(kind: str) -> None:
    """KeyboardInterrupt with a file open in the mount still takes the mount away."""
    namespace.enter()
    before = namespace.lab_mounts()
    with pytest.raises(KeyboardInterrupt), mounts.mounted(kind) as place, (place.folder / "x").open("w"):
        raise KeyboardInterrupt
    assert namespace.lab_mounts() == before


def test_an_open_file_is_reported() -> None:
    """A block that forgets to close a file ends with an error that names the file."""
    need(mounts.missing("tmpfs"))
    with pytest.raises(StillInUseError, match="forgotten"), mounts.mounted("tmpfs") as place:
        forgotten = (place.folder / "forgotten").open("w")
    forgotten.close()


def test_read_only_holds_for_the_block(kind: str) -> None:
    """EROFS inside the block, writable again after it."""
    with mounts.mounted(kind) as place:
        with mounts.read_only(place.root), pytest.raises(OSError, match="Read-only") as caught:
            (place.folder / "x").touch()
        assert caught.value.errno == errno.EROFS
        (place.folder / "x").touch()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_second_mount_is_the_same_and_yet_another(kind: str) -> None:
    """Both paths show one file with one st_dev, and a rename between them is EXDEV."""
    need(mounts.missing(kind))
    with mounts.mounted(kind) as place, mounts.second_mount(place) as other:
        (place.folder / "x").write_text("one")
        assert (other / "x").stat().st_dev == (place.folder / "x").stat().st_dev
        with pytest.raises(OSError, match="cross-device") as caught:
            (place.folder / "x").rename(other / "y")
        assert caught.value.errno == errno.EXDEV


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_a_filled_filesystem_has_the_room_that_was_left(kind: str) -> None:
    """After fill, about a megabyte can be written, then ENOSPC; without the ballast, more."""
    need(mounts.missing(kind))
    with mounts.mounted(kind) as place:
        ballast = mounts.fill(place, leave=images.MIB)
        written = 0
        with (place.folder / "x").open("wb", buffering=0) as file:
            with pytest.raises(OSError, match="No space"):
                while written < 8 * images.MIB:
                    written += file.write(bytes(65536))
            assert written >= images.MIB // 2
        ballast.unlink()
        (place.folder / "y").write_bytes(bytes(4 * images.MIB))


@pytest.mark.parametrize("redirect", ["on", "off"])
def test_lower_folders_of_an_overlay_move_only_with_redirects(redirect: str) -> None:
    """Renaming a folder of the lower layer works with redirect_dir=on and is EXDEV with it off."""
    need(mounts.missing(f"overlay-redirect-{redirect}"))

    def prepare(lower: Path) -> None:
        (lower / "work" / "below").mkdir()

    with mounts.mounted(f"overlay-redirect-{redirect}", prepare=prepare) as place:
        if redirect == "on":
            (place.folder / "below").rename(place.folder / "moved")
            assert (place.folder / "moved").is_dir()
        else:
            with pytest.raises(OSError, match="cross-device"):
                linux.renameat2(place.folder / "below", place.folder / "moved", linux.RENAME_NOREPLACE)


def test_a_bound_file_is_a_mount_point() -> None:
    """A file with another bound over it cannot be replaced: EBUSY."""
    need(mounts.missing("tmpfs"))
    with mounts.mounted("tmpfs") as place:
        (place.folder / "source").write_text("bound")
        (place.folder / "new").write_text("new")
        target = place.folder / "target"
        with mounts.bind(place.folder / "source", target):
            assert target.read_text() == "bound"
            with pytest.raises(OSError, match="busy") as caught:
                (place.folder / "new").replace(target)
            assert caught.value.errno == errno.EBUSY


def test_a_subvolume_has_a_device_of_its_own() -> None:
    """The btrfs subvolume differs in st_dev from the folder that holds it."""
    need(mounts.missing("btrfs-subvolume"))
    with mounts.mounted("btrfs-subvolume") as place:
        assert place.folder.stat().st_dev != place.root.stat().st_dev


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_shutdown_loses_what_was_not_synced(kind: str) -> None:
    """After the shutdown ioctl and a remount, the synced file is there and the other one is not."""
    need(mounts.missing(kind))
    with mounts.mounted(kind) as place:
        assert place.disk is not None
        (place.folder / "kept").write_text("kept")
        linux.sync_filesystem(place.root)
        (place.folder / "lost").write_text("lost")
        shutdown(place.root)
        with pytest.raises(OSError, match="Input/output"):
            (place.folder / "after").touch()
        place.disk.remount()
        assert [path.name for path in place.folder.iterdir()] == ["kept"]
        assert (place.folder / "kept").read_text() == "kept"


def test_nothing_shows_outside_the_namespace() -> None:
    """A process that never entered the namespace (here: init) sees none of the lab's mounts."""
    need(mounts.missing("tmpfs"))
    with mounts.mounted("tmpfs") as place:
        assert os.fspath(place.root) in Path("/proc/self/mountinfo").read_text()
        assert os.fspath(place.root) not in namespace.mounts_outside()
