"""What is known of a filesystem: whether one log holds every change."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from atomik._folder import filesystem
from atomik._folder.directory import Directory
from atomik._system import kernel
from tests.support.kernels import Faulty, installed
from tests.support.lab.mounts import missing, mounted
from tests.support.lab.need import need


def one_log(path: Path) -> bool:
    """What is known about the filesystem at `path`, asked again."""
    filesystem.forget()
    directory = Directory.open(str(path))
    try:
        return filesystem.has_one_log(directory.fs, directory.fd, directory.dev)
    finally:
        directory.close()


@pytest.mark.filesystems
@pytest.mark.root
@pytest.mark.parametrize(
    ("kind", "expected"), [("ext4", True), ("xfs", True), ("btrfs", False), ("tmpfs", False), ("vfat", False)]
)
def test_one_log(kind: str, expected: bool) -> None:
    """ext4 with a journal and xfs; not where nobody can say: no list of journals, no answer about the geometry."""
    need(missing(kind))
    with mounted(kind) as place:
        if kind == "ext4":
            assert not one_log(place.folder)  # nothing was synced yet
        with (place.folder / "file").open("w") as file:
            os.fsync(file)
        assert one_log(place.folder) is expected
        with installed(Faulty(lambda call: errno.EACCES, {"readlink"})):
            assert one_log(place.folder) is (kind == "xfs")


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.18.44-fc", True),
        ("5.2.0", True),
        ("5.2-rc1", True),
        ("5.1.9", False),
        ("4.19.0-arch1", False),
        ("odd", False),
    ],
)
def test_the_kernel_must_wait_for_all_pages(release: str, expected: bool) -> None:
    """sync_file_range(2) does since Linux 5.2; an unreadable version is an old one."""
    assert filesystem._is_since(5, 2, release) is expected


@pytest.mark.filesystems
@pytest.mark.root
def test_fast_commits(tmp_path: Path) -> None:
    """They do not hold every earlier change, so there is no one log; before and after one was made."""
    need(missing("ext4"))
    with mounted("ext4") as place:
        assert place.disk is not None
        place.disk.unmount()
        subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "fast_commit", place.disk.device], check=True)
        place.disk.mount()
        for number in range(3):
            assert not one_log(place.root)
            with (place.root / str(number)).open("w") as file:
                os.fsync(file)


_FAST = b"fc stats:\n%d commits\n%d ineligible\n0 numblks\n0us avg_commit_time\nIneligible reasons:\n"
_FULL = b"%d transactions (%d requested), each up to 1365 blocks\naverage: \n"


@pytest.mark.parametrize(
    ("fast", "full", "expected"),
    [
        (_FAST % (0, 0), _FULL % (3, 1), True),
        (_FAST % (0, 0), _FULL % (3, 0), None),
        (_FAST % (7, 0), _FULL % (3, 1), False),
        (_FAST % (0, 1), _FULL % (3, 1), False),
        (_FAST % (0, 0), b"", False),
        (b"", _FULL % (3, 1), False),  # it cannot be read, on this kernel
        (b"of another form", _FULL % (3, 1), False),
    ],
)
def test_fast_commits_show_in_the_statistics(fast: bytes, full: bytes, expected: bool | None) -> None:
    """Where they are on, the first sync counts as one, or as one that was not possible."""
    assert filesystem._has_no_fast_commits(fast, full) is expected


def test_a_device_that_nobody_knows_has_no_journal() -> None:
    """Neither has one that /sys has no link for."""
    assert not filesystem._commits_in_order(os.makedev(4000, 1))


def test_a_handle_that_is_made_up_of_the_inode_number_is_none(folder: Path) -> None:
    """AT_HANDLE_FID gives one on an overlay that was mounted in a user namespace: a folder with the number of a file that is
    gone would pass for it."""

    class MadeUp(kernel.Kernel):
        def handle(self, name: str, dir_fd: int, flags: int) -> bytes:
            if not flags:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            found = os.stat(name, dir_fd=dir_fd) if name else os.fstat(dir_fd)
            return struct.pack("=IQQ", 0x81, found.st_ino, 0)

    before = kernel.install(MadeUp())
    filesystem.forget()
    try:
        with Directory.open(".") as here:
            Path("x").touch()
            as_file = here.identity("x")
            assert as_file == b"i%d:%d" % (stat.S_IFREG, os.stat("x").st_ino)
    finally:
        kernel.install(before)
        filesystem.forget()


def test_a_handle_of_that_type_that_is_given_plainly_is_real(folder: Path) -> None:
    """xfs has such handles, with a generation that tells two objects with one inode number apart."""

    class Xfs(kernel.Kernel):
        def handle(self, name: str, dir_fd: int, flags: int) -> bytes:
            return struct.pack("=IQI", 0x81, 5, 7)

    before = kernel.install(Xfs())
    filesystem.forget()
    try:
        with Directory.open(".") as here:
            assert here.identity("x") == b"h" + struct.pack("=IQI", 0x81, 5, 7)
    finally:
        kernel.install(before)
        filesystem.forget()


def test_another_exception_goes_on(tmp_path: Path) -> None:
    """A signal handler's OSError is not an answer of the kernel (I13)."""
    with installed(Faulty(lambda call: TimeoutError("a handler"), {"readlink"})), pytest.raises(TimeoutError):
        filesystem._commits_in_order(os.stat(tmp_path).st_dev)
