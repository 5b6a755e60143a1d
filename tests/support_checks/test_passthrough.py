"""The FUSE pass-through: three answers to rename flags, and an ordinary filesystem in all else."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.lab import linux, passthrough
from tests.support.lab.fuse import FileSystem, FuseMount, FuseServerError
from tests.support.lab.fuse_wire import Request
from tests.support.lab.need import need
from tests.support.lab.passthrough import Mirror, Renames

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    need(passthrough.missing_fuse())
    with passthrough.passthrough(Renames.HONOURS) as served:
        yield served


def two_files(folder: Path) -> tuple[Path, Path]:
    (folder / "a").write_text("content of a")
    (folder / "b").write_text("content of b")
    return folder / "a", folder / "b"


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_honours_exchanges() -> None:
    """EXCHANGE swaps both contents, seen through the mount and below it."""
    need(passthrough.missing_fuse())
    with passthrough.passthrough(Renames.HONOURS) as mirror:
        linux.renameat2(*two_files(mirror.folder), linux.RENAME_EXCHANGE)
        expected = {"a": "content of b", "b": "content of a"}
        assert contents(mirror.folder) == contents(mirror.source) == expected


@pytest.mark.parametrize("server", ["rejects", "bindfs"])
@pytest.mark.parametrize("flag", [linux.RENAME_EXCHANGE, linux.RENAME_NOREPLACE])
def test_rejects_says_einval_and_changes_nothing(server: str, flag: int) -> None:
    """Any flag is EINVAL and both files stay; NOREPLACE onto an existing name is EEXIST, from the VFS."""
    need(passthrough.missing_bindfs() if server == "bindfs" else passthrough.missing_fuse())
    opened = passthrough.bindfs() if server == "bindfs" else passthrough.passthrough(Renames.REJECTS)
    with opened as mirror:
        a, b = two_files(mirror.folder)
        target = b if flag == linux.RENAME_EXCHANGE else mirror.folder / "free"
        with pytest.raises(OSError, match="Invalid argument"):
            linux.renameat2(a, target, flag)
        with pytest.raises(FileExistsError):
            linux.renameat2(a, b, linux.RENAME_NOREPLACE)
        assert contents(mirror.source) == {"a": "content of a", "b": "content of b"}


def test_ignores_reports_success_and_destroys_the_target() -> None:
    """EXCHANGE succeeds, yet the old target is gone, and the mount shows it at once."""
    need(passthrough.missing_fuse())
    with passthrough.passthrough(Renames.IGNORES) as mirror:
        linux.renameat2(*two_files(mirror.folder), linux.RENAME_EXCHANGE)
        assert contents(mirror.folder) == contents(mirror.source) == {"b": "content of a"}


def test_attributes_pass_through(mirror: Mirror) -> None:
    """Mode with set-id bits, owner, nanosecond times, size, links and xattrs are those of the real file."""
    path = mirror.folder / "x"
    path.write_bytes(b"0123456789")
    os.chown(path, 1234, 5678)
    path.chmod(0o6755)
    os.utime(path, ns=(10**18 + 1, 10**18 + 2))
    os.setxattr(path, "user.lab", b"value")
    os.link(path, mirror.folder / "y")
    real = (mirror.source / "y").stat()
    assert stat.S_IMODE(real.st_mode) == 0o6755
    assert (real.st_uid, real.st_gid, real.st_nlink) == (1234, 5678, 2)
    assert (real.st_atime_ns, real.st_mtime_ns) == (10**18 + 1, 10**18 + 2)
    assert os.getxattr(mirror.source / "x", "user.lab") == os.getxattr(path, "user.lab") == b"value"
    assert os.listxattr(path) == ["user.lab"]
    os.truncate(path, 4)
    assert (mirror.source / "x").read_bytes() == b"0123"
    seen = path.stat()
    assert (seen.st_ino, seen.st_size, seen.st_nlink) == (real.st_ino, 4, 2)


def test_special_objects_pass_through(mirror: Mirror) -> None:
    """Symlinks, links to symlinks, FIFOs and devices are made as such."""
    folder = mirror.folder
    (folder / "link").symlink_to("nowhere")
    os.link(folder / "link", folder / "link2", follow_symlinks=False)
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert (mirror.source / "link2").readlink() == Path("nowhere")
    assert (mirror.source / "fifo").is_fifo()
    assert (mirror.source / "null").stat().st_rdev == os.makedev(1, 3)


def test_files_work_open_mapped_and_unlinked(mirror: Mirror) -> None:
    """Append, mmap, fsync and the use of a file without a name give what they give elsewhere."""
    path = mirror.folder / "x"
    with path.open("w+b") as file:
        file.write(b"m" * 8192)
        file.flush()
        with mmap.mmap(file.fileno(), 8192) as mapped:
            mapped[1:4] = b"map"
        os.fsync(file.fileno())
        path.unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.seek(0)
        assert file.read(5) == b"mmapm"
    with path.open("ab") as file:
        file.write(b"one")
        file.flush()
        file.write(b"two")
    assert (mirror.source / "x").read_bytes() == b"onetwo"
    with pytest.raises(OSError, match="not supported") as caught:
        os.open(mirror.folder, os.O_TMPFILE | os.O_RDWR)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_folders_are_locked_synced_and_listed(mirror: Mirror) -> None:
    """flock excludes, fsync of a folder works, and a thousand names are all listed, once."""
    if (hard := resource.getrlimit(resource.RLIMIT_NOFILE)[1]) < 2048:
        pytest.skip(f"the server has a descriptor for each, and the hard limit here is {hard}")
    names = {f"name-{number:04}" for number in range(1000)}
    for name in names:
        (mirror.folder / name).touch()
    listed = os.listdir(mirror.folder)
    assert len(listed) == 1000
    assert set(listed) == names
    first, second = (os.open(mirror.folder, os.O_RDONLY) for _ in range(2))
    try:
        os.fsync(first)
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(first)
        os.close(second)


def test_objects_belong_to_who_made_them(mirror: Mirror) -> None:
    """Another user's file is that user's, in a setgid folder of its group, and root's files stay shut."""
    mirror.folder.chmod(0o777)
    shared = mirror.folder / "shared"
    shared.mkdir()
    os.chown(shared, 0, 4321)
    shared.chmod(0o2777)
    (mirror.folder / "root").touch()
    script = "touch mine shared/mine && if echo x 2>/dev/null > root; then exit 9; fi"
    subprocess.run(["sh", "-c", script], check=True, cwd=mirror.folder, user=1234, group=5678, extra_groups=[])
    mine, grouped = (mirror.source / "mine").stat(), (mirror.source / "shared" / "mine").stat()
    assert (mine.st_uid, mine.st_gid) == (1234, 5678)
    assert (grouped.st_uid, grouped.st_gid) == (1234, 4321)


def test_a_failing_server_is_not_overlooked(capfd: pytest.CaptureFixture[str]) -> None:
    """A method that raises something unexpected gives EIO to the caller and an error at the end."""

    class Broken(FileSystem):
        def lookup(self, request: Request) -> bytes:
            raise ZeroDivisionError

    need(passthrough.missing_fuse())
    mount = FuseMount(Broken())
    with pytest.raises(OSError, match="Input/output"):
        (mount.point / "x").stat()
    with pytest.raises(FuseServerError):
        mount.close()
    assert "ZeroDivisionError" in capfd.readouterr().err
