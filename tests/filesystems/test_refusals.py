"""EXDEV, EBUSY, EROFS, EPERM, ESTALE, EDQUOT, ENOSPC and others: a path, a cause and a cure, all as before, nothing left.

Each is provoked for real where a local filesystem can give it; ESTALE and EDQUOT come from a kernel that says so.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from tests.filesystems.scenarios import look
from tests.support.kernels import Faulty, installed
from tests.support.lab import mounts
from tests.support.lab.mounts import Mounted
from tests.support.lab.need import need
from tests.support.state import left_in

if TYPE_CHECKING:
    from collections.abc import Iterator

root = [pytest.mark.root, pytest.mark.filesystems]


def write(path: Path, **options: Any) -> None:
    """Create or overwrite a file."""
    with atomik.file(path, overwrite=True, **options) as f:
        f.write("new")


def fill(path: Path, **options: Any) -> None:
    """Create or overwrite a folder."""
    with atomik.folder(path, overwrite=True, **options) as new:
        (new / "new").write_text("new")


def remove(path: Path) -> None:
    """Remove it."""
    with atomik.transaction() as tx:
        tx.remove(path)


def move(path: Path, target: Path) -> None:
    """Move it."""
    with atomik.transaction(overwrite=True) as tx:
        tx.move(path, target)


def together(*paths: Path) -> None:
    """Overwrite several files."""
    with atomik.transaction(overwrite=True) as tx:
        for path in paths:
            tx.file(path).write("new")


def refused(
    folder: Path, work: Callable[[], Any], kind: type[errors.AtomikOSError], number: int, cure: str
) -> errors.AtomikOSError:
    """The error: of that class, with errno, a path below the folder and a cure; everything is as it was."""
    before = look(folder)
    with pytest.raises(kind) as caught:
        work()
    exc = caught.value
    assert exc.errno == number, repr(exc)
    assert str(exc.filename).startswith(str(folder)), repr(exc)
    assert cure in exc.strerror, exc.strerror
    assert look(folder) == before
    assert not left_in(folder)
    return exc


@pytest.fixture
def place() -> Iterator[Mounted]:
    """An ext4 with a file, a folder with something in it, and a second folder."""
    need(mounts.missing("ext4"))
    with mounts.mounted("ext4") as mounted:
        furnish(mounted.folder)
        yield mounted


def furnish(folder: Path) -> None:
    """What is there before."""
    (folder / "file").write_text("old")
    (folder / "site").mkdir()
    (folder / "site" / "old").write_text("old")
    (folder / "second").mkdir()


class TestMountPoints:
    """EBUSY."""

    pytestmark = root

    def test_a_mounted_file_or_folder(self, place: Mounted) -> None:
        """A bind-mounted file, or folder, can be neither replaced nor removed nor moved nor moved over."""
        folder = place.folder
        with mounts.bind(folder / "file", folder / "one"), mounts.bind(folder / "second", folder / "many"):
            for work in (
                lambda: write(folder / "one"),
                lambda: together(folder / "file", folder / "one"),
                lambda: remove(folder / "one"),
                lambda: move(folder / "one", folder / "free"),
                lambda: move(folder / "file", folder / "one"),
                lambda: fill(folder / "many"),
                lambda: fill(folder / "many", copy=True),
                lambda: remove(folder / "many"),
                lambda: move(folder / "many", folder / "free"),
            ):
                refused(folder, work, errors.MountPointError, errno.EBUSY, "unmount it")

    def test_a_mount_inside(self, place: Mounted) -> None:
        """A folder that would be displaced with a mount in it: the mounted filesystem is not touched."""
        folder = place.folder
        (folder / "site" / "deep").mkdir()
        with mounts.bind(folder / "second", folder / "site" / "deep" / "mount") as point:
            (point / "precious").write_text("precious")
            for work in (lambda: fill(folder / "site"), lambda: remove(folder / "site")):
                exc = refused(folder, work, errors.MountPointError, errno.EBUSY, "unmount it")
                assert exc.filename == str(point)
            assert (folder / "second" / "precious").read_text() == "precious"

    def test_a_mount_that_comes_later(self, place: Mounted) -> None:
        """Mounted between staging and commit, it is seen by the commit."""
        folder = place.folder
        out = atomik.file(folder / "file", overwrite=True)
        out.output.write("new")
        group = atomik.transaction(overwrite=True)
        (group.folder(folder / "site") / "new").write_text("new")
        group.file(folder / "new").write("new")
        with mounts.bind(folder / "second", folder / "site"), mounts.bind(folder / "file", folder / "file"):
            for work in (out.commit, group.commit):
                with pytest.raises((errors.MountPointError, errors.CommitError, errors.ConflictError)) as caught:
                    work()
                assert caught.value.errno == errno.EBUSY
                assert str(caught.value.filename).startswith(str(folder))
        assert not left_in(folder)
        assert (folder / "file").read_text() == "old"
        assert os.listdir(folder / "site") == ["old"]


class TestOtherFilesystems:
    """EXDEV."""

    pytestmark = root

    def test_other_filesystem_and_other_mount(self, place: Mounted) -> None:
        """A second filesystem, a bind mount or a second mount of the same: refused when staged, both paths named."""
        folder = place.folder
        with mounts.mounted("tmpfs") as other, mounts.second_mount(place) as again, \
                mounts.bind(folder / "second", folder / "bound") as bound:  # fmt: skip
            for elsewhere in (other.folder, again, bound):
                for work in (
                    lambda elsewhere=elsewhere: together(folder / "file", elsewhere / "file"),
                    lambda elsewhere=elsewhere: write(folder / "file", tmp_dir=elsewhere),
                    lambda elsewhere=elsewhere: move(folder / "file", elsewhere / "moved"),
                ):
                    with pytest.raises(errors.CrossFilesystemError) as caught:
                        work()
                    exc = caught.value
                    assert exc.errno == errno.EXDEV
                    assert exc.devices is not None
                    assert {str(exc.filename), str(exc.filename2)} >= {str(exc.filename)}
                    assert exc.filename2 is not None
                    assert any(cure in exc.strerror for cure in ("one transaction for each", "leave tmp_dir out"))
                    assert not left_in(folder)
        assert (folder / "file").read_text() == "old"

    def test_a_folder_of_an_overlays_lower_layer(self) -> None:
        """redirect_dir=off: UnsupportedFilesystemError with the way out, everything rolled back, files not affected."""
        need(mounts.missing("overlay-redirect-off"))
        with mounts.mounted("overlay-redirect-off", prepare=lambda lower: furnish(lower / "work")) as overlay:
            folder = overlay.folder

            def several() -> None:
                with atomik.transaction(overwrite=True) as tx:
                    tx.file(folder / "file").write("new")
                    tx.file(folder / "new").write("new")
                    (tx.folder(folder / "site") / "new").write_text("new")
                    tx.file(folder / "later").write("new")

            for work in (lambda: fill(folder / "site"), lambda: remove(folder / "site"), several,
                         lambda: move(folder / "site", folder / "moved")):  # fmt: skip
                exc = refused(folder, work, errors.UnsupportedFilesystemError, errno.EXDEV, "redirect_dir=on")
                assert exc.filename == str(folder / "site")
            write(folder / "file")
            write(folder / "site" / "old")
            assert look(folder) == {"file": "new", "site": "a folder", "site/old": "new", "second": "a folder"}

    def test_a_destination_that_is_a_subvolume(self) -> None:
        """A btrfs subvolume is replaced, kept, moved and removed like a folder; one inside of it goes with it."""
        need(mounts.missing("btrfs"))
        with mounts.mounted("btrfs") as btrfs:
            folder = btrfs.folder
            for name in ("over", "gone", "moved", "kept"):
                mounts.create_subvolume(folder / name)
                (folder / name / "old").write_text("old")
                mounts.create_subvolume(folder / name / "nested")
                (folder / name / "nested" / "old").write_text("old")
            fill(folder / "over")
            fill(folder / "kept", backup="kept.old", copy=True)
            remove(folder / "gone")
            move(folder / "moved", folder / "here")
            assert sorted(look(folder)) == [
                "here", "here/nested", "here/nested/old", "here/old", "kept", "kept.old", "kept.old/nested",
                "kept.old/nested/old", "kept.old/old", "kept/nested", "kept/nested/old", "kept/new", "kept/old", "over",
                "over/new",
            ]  # fmt: skip
            assert not left_in(folder)


class TestReadOnly:
    """EROFS."""

    pytestmark = root

    def test_a_read_only_mount(self, place: Mounted) -> None:
        """Refused when staged."""
        folder = place.folder
        with mounts.read_only(place.root):
            for work in (
                lambda: write(folder / "file"),
                lambda: write(folder / "new"),
                lambda: fill(folder / "site"),
                lambda: remove(folder / "file"),
                lambda: move(folder / "file", folder / "moved"),
                lambda: atomik.swap(folder / "file", folder / "site"),
                lambda: atomik.probe(folder),
            ):
                refused(folder, work, errors.AtomikOSError, errno.EROFS, "mounted read-only")

    def test_it_becomes_read_only_in_the_middle(self, place: Mounted) -> None:
        """Between staging and commit: everything as it was; what could not be removed goes with the next recovery."""
        folder = place.folder
        tx = atomik.transaction(overwrite=True)
        (tx.folder(folder / "site") / "new").write_text("new")
        tx.symlink(folder / "file", "nowhere")
        with mounts.read_only(place.root):
            with pytest.raises(errors.CommitError, match="mounted read-only") as caught:
                tx.commit()
            assert caught.value.errno == errno.EROFS
            assert (folder / "file").read_text() == "old"
        atomik.recover(folder)
        assert look(folder) == {"file": "old", "site": "a folder", "site/old": "old", "second": "a folder"}


class TestFull:
    """ENOSPC, for real on small disks."""

    pytestmark = root

    @pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs"])
    def test_a_full_disk(self, kind: str) -> None:
        """The user's write, the copy or the commit says so; destinations are as they were, and there is room again."""
        need(mounts.missing(kind))
        with mounts.mounted(kind) as small:
            folder = small.folder
            furnish(folder)
            (folder / "big").write_bytes(os.urandom(4 << 20))
            mounts.fill(small, leave=1 << 20)
            before = sorted(os.listdir(folder))
            for work in (_too_much, _copy_too_much, _several_too_much):
                for _ in range(3):
                    with pytest.raises(OSError, match="No space left") as caught:
                        work(folder)
                    assert caught.value.errno == errno.ENOSPC
                    assert str(caught.value.filename).startswith(str(folder))
                    assert isinstance(caught.value, errors.AtomikError)
                    assert "free some space" in caught.value.strerror
                    assert sorted(os.listdir(folder)) == before
                    assert (folder / "file").read_text() == "old"

    def test_a_quota(self) -> None:
        """EDQUOT, for real in a btrfs subvolume with a limit."""
        need(mounts.missing("btrfs"), None if shutil.which("btrfs") else "needs the btrfs program")
        with mounts.mounted("btrfs") as place:
            folder = place.folder / "limited"
            mounts.create_subvolume(folder)
            for command in (["quota", "enable", place.root], ["qgroup", "limit", "2M", folder]):
                subprocess.run(["btrfs", *command], check=True, capture_output=True)
            furnish(folder)
            refused(folder, lambda: _too_much(folder), errors.AtomikOSError, errno.EDQUOT, "disk quota")


def _too_much(folder: Path) -> None:
    with atomik.file(folder / "file", "wb", overwrite=True, buffering=0) as f:
        for _ in range(64):
            f.write(os.urandom(1 << 20))


def _copy_too_much(folder: Path) -> None:
    with atomik.file(folder / "big", "ab", overwrite=True) as f:
        f.write(os.urandom(64 << 20))


def _several_too_much(folder: Path) -> None:
    with atomik.transaction(overwrite=True) as tx:
        tx.file(folder / "file").write("new")
        tx.file(folder / "big", "wb").write(os.urandom(64 << 20))


# --- what only a network or a quota says -----------------------------------------------------------------------------
@pytest.mark.sweep
@pytest.mark.parametrize(
    ("number", "cure"), [(errno.ESTALE, "begin again"), (errno.EDQUOT, "disk quota"), (errno.EIO, "kernel log")]
)
@pytest.mark.parametrize("call", ["rename", "link_fd", "create", "mkdir", "write", "fsync", "syncfs", "open_tmpfile"])
def test_errors_of_servers_and_quotas(folder: Path, call: str, number: int, cure: str) -> None:
    """Whatever call says it: an error with path, cause and cure, and everything as it was."""
    furnish(folder)
    works = (
        lambda: write(folder / "file"), lambda: write(folder / "new"), lambda: fill(folder / "site"),
        lambda: together(folder / "file", folder / "second" / "new"),
    )  # fmt: skip
    struck = 0
    for work in works:
        kernel = Faulty.at(1, number, among={call})
        before = look(folder)
        with installed(kernel):
            try:
                work()
            except errors.AtomikOSError as exc:
                _check(exc, number, cure, folder)
                if isinstance(exc, errors.DurabilityError):
                    before = look(folder)  # everything is new, as it says
            else:
                before = look(folder)
        struck += len(kernel.struck)
        atomik.recover(folder)
        assert look(folder) == before
        assert not left_in(folder)
    assert struck or call in ("create", "write")


def _check(exc: errors.AtomikOSError, number: int, cure: str, folder: Path) -> None:
    assert exc.errno == number
    assert str(exc.filename).startswith(str(folder)), repr(exc)
    assert cure in exc.strerror or isinstance(exc, errors.DurabilityError), exc.strerror


def test_a_folder_that_went_away(folder: Path) -> None:
    """The parent is removed, or replaced, between staging and commit: ConflictError, and the new one is not touched."""
    (folder / "parent").mkdir()
    tx = atomik.transaction()
    tx.file(folder / "parent" / "one").write("1")
    (folder / "parent").rename(folder / "away")
    (folder / "parent").mkdir()
    with pytest.raises(errors.ConflictError, match="stage again") as caught:
        tx.commit()
    assert caught.value.filename == str(folder / "parent")
    assert os.listdir(folder / "parent") == os.listdir(folder / "away") == []
