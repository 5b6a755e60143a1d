"""Copies of folder trees: everything kept, nothing followed, and said what could not be had."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import stat
import struct
from typing import TYPE_CHECKING

import pytest

from atomik import errors
from atomik._folder.place import Place
from atomik._system import kernel as _kernel
from atomik._tree import delete
from atomik._tree.clone import clone
from atomik._tree.content import copy_content
from atomik._tree.fingerprint import Recorder, fingerprint
from atomik._tree.walk import HELD
from atomik.testing import recorded
from tests.support.kernels import Call, Faulty, installed
from tests.support.lab import linux, namespace
from tests.support.lab.mounting import attached
from tests.support.lab.mounts import missing, mounted
from tests.support.trees import (
    Before,
    Raise,
    Without,
    descriptors,
    few_descriptors,
    held,
    in_memory,
    kernel,
    make_deep,
    make_small,
    make_wide,
    mounts,
    tree_with_mount,
)
from tests.support.users import (
    DAC_OVERRIDE,
    NOBODY,
    as_user,
    has_capability,
    known,
    no_admin,
    no_devices,
    no_root,
    root,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"


def copy(src: Path, dst: Path, progress: Callable[[int], None] | None = None) -> list[str]:
    """Clone into a new folder."""
    dst.mkdir(mode=0o700)
    with held(src) as source, held(dst) as target:
        return clone(source, target, progress)


def seen(top: Path) -> dict[str, tuple[object, ...]]:
    """All that can be seen of everything below a folder; hard links by the first of their names."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for folder, folders, files in os.walk(top):
        for name in sorted(folders + files):
            path = os.path.join(folder, name)
            one = os.lstat(path)
            kind = stat.S_IFMT(one.st_mode)
            content: object = None
            if kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    content = file.read()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            group = first.setdefault(one.st_ino, os.path.relpath(path, top)) if kind != stat.S_IFDIR else ""
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            found[os.path.relpath(path, top)] = (
                content, one.st_mode, one.st_uid, one.st_gid, one.st_mtime_ns, one.st_rdev, group, xattrs,
            )  # fmt: skip
    return found


def acl(named: int) -> bytes:
    """An ACL that lets one more user read and write."""
    entries = [(1, 6, -1), (2, 6, known(named)), (4, 4, -1), (16, 6, -1), (32, 0, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def make_rich(top: Path) -> None:
    """Every kind and attribute that a user without privileges can make."""
    make_small(top)
    (top / "sub" / "run").write_text("#!/bin/sh\n")
    (top / "sub" / "run").chmod(0o6755)
    (top / "sub" / "closed").write_text("x")
    (top / "sub" / "closed").chmod(0o400)
    (top / "shared").mkdir()
    (top / "shared").chmod(0o2775)
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    os.link(top / "sub" / "link", top / "shared" / "third")
    os.link(top / "fifo", top / "sub" / "fifo too")
    os.link(top / "dangling", top / "sub" / "dangling too", follow_symlinks=False)
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(top)  # the name of a socket is short
        one.bind("socket")
        os.chdir(here)
    try:
        os.setxattr(top / "file", "user.colour", b"blue\0")
        os.setxattr(top / "sub", "user.colour", b"red")
        os.setxattr(top / "sub" / "closed", ACL, acl(NOBODY))
        os.setxattr(top / "shared", DEFAULT_ACL, acl(NOBODY))
    except OSError as exc:
        if exc.errno != errno.ENOTSUP:
            raise
    for number, path in enumerate([*top.rglob("*"), top]):
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number), follow_symlinks=False)


def test_everything_is_kept(tmp_path: Path) -> None:
    """Kinds, content, modes, times, ids, attributes, ACLs, hard links and odd names are those of the source."""
    make_rich(tmp_path / "src")
    expected = seen(tmp_path / "src")
    told: list[int] = []
    before = descriptors()
    assert copy(tmp_path / "src", tmp_path / "dst", told.append) == []
    assert seen(tmp_path / "dst") == expected
    assert sum(told) == len(expected)
    assert descriptors() == before


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay-redirect-on", "bind"])
@mounts
def test_everything_is_kept_on(kind: str) -> None:
    """The same on every filesystem."""
    if why := missing(kind):
        pytest.skip(why)
    with mounted(kind) as place:
        make_rich(place.folder / "src")
        os.chown(place.folder / "src" / "sub" / "run", 1234, 2345)
        (place.folder / "src" / "sub" / "run").chmod(0o6755)
        os.chown(place.folder / "src" / "dangling", 1234, 2345, follow_symlinks=False)
        os.mknod(place.folder / "src" / "null", stat.S_IFCHR | 0o640, os.makedev(1, 3))
        expected = seen(place.folder / "src")
        assert copy(place.folder / "src", place.folder / "dst") == []
        assert seen(place.folder / "dst") == expected


@pytest.mark.parametrize("call", ["open_beneath", "clone", "copy_range", "both", "listxattr"])
def test_poorer_kernels(tmp_path: Path, call: str) -> None:
    """Without openat2, reflinks, copy_file_range or attributes the content is the same."""
    make_rich(tmp_path / "src")
    (tmp_path / "src" / "large").write_bytes(os.urandom(3 << 20))
    with (tmp_path / "src" / "holes").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"island")
        file.truncate(5 << 20)
    poor = Without("clone" if call == "both" else call, errno.ENOTSUP if call == "listxattr" else errno.ENOSYS)
    if call == "both":
        poor.__dict__["copy_range"] = Without("copy_range", errno.EXDEV).copy_range
    with kernel(poor):
        copy(tmp_path / "src", tmp_path / "dst")
    contents = [{name: one[0] for name, one in seen(tmp_path / top).items()} for top in ("src", "dst")]
    assert contents[0] == contents[1]


def test_refused_ways_are_not_tried_again(tmp_path: Path) -> None:
    """A filesystem without reflinks is asked once per clone."""
    make_wide(tmp_path / "src", 20)
    for file in (tmp_path / "src").iterdir():
        file.write_bytes(b"x")
    asked: list[int] = []

    class NoReflink(_kernel.Kernel):
        def clone(self, dst_fd: int, src_fd: int) -> None:
            asked.append(src_fd)
            raise OSError(errno.EOPNOTSUPP, "no")

    with kernel(NoReflink()):
        copy(tmp_path / "src", tmp_path / "dst")
    assert len(asked) == 1


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
@mounts
def test_reflinks(kind: str) -> None:
    """Where extents can be shared, a clone of 64 MiB takes no room for them."""
    if why := missing(kind):
        pytest.skip(why)
    with mounted(kind, size=400 << 20) as place:
        (place.folder / "src").mkdir()
        (place.folder / "src" / "large").write_bytes(os.urandom(64 << 20))
        linux.sync_filesystem(place.root)
        before = os.statvfs(place.root).f_bfree * os.statvfs(place.root).f_frsize
        copy(place.folder / "src", place.folder / "dst")
        linux.sync_filesystem(place.root)
        after = os.statvfs(place.root).f_bfree * os.statvfs(place.root).f_frsize
        assert before - after < 8 << 20
        assert (place.folder / "dst" / "large").read_bytes() == (place.folder / "src" / "large").read_bytes()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("shape", ["all", "head", "tail", "islands"])
def test_sparse(tmp_path: Path, shape: str, ranges: bool) -> None:
    """Holes stay holes, wherever they lie, with and without copy_file_range."""
    source, target = tmp_path / "src", tmp_path / "dst"
    size, at = 32 << 20, {"all": [], "head": [31 << 20], "tail": [0], "islands": [1 << 20, 9 << 20, 30 << 20]}[shape]
    with source.open("wb") as file:
        for place in at:
            file.seek(place)
            file.write(os.urandom(70_000))
        file.truncate(size)
    refusing = Without("clone", errno.EOPNOTSUPP)
    if not ranges:
        refusing.__dict__["copy_range"] = Without("copy_range", errno.EINVAL).copy_range
    with source.open("rb") as one, target.open("xb") as two, kernel(refusing):
        copy_content(one.fileno(), two.fileno())
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 <= 1 << 20


def test_content_of_an_empty_looking_file(tmp_path: Path) -> None:
    """A file that says it has no size, as in /proc, is read to its end."""
    with open("/proc/self/maps", "rb") as one, (tmp_path / "copy").open("xb") as two:
        copy_content(one.fileno(), two.fileno())
    assert b"[stack]" in (tmp_path / "copy").read_bytes()


def test_seek_unknown(tmp_path: Path) -> None:
    """Where the filesystem cannot tell data from holes, all is copied."""
    with (tmp_path / "src").open("wb") as file:
        file.write(b"x")
        file.truncate(100_000)
    refusing = Without("clone", errno.EOPNOTSUPP)
    refusing.__dict__["seek"] = Without("seek", errno.EINVAL).seek
    with (tmp_path / "src").open("rb") as one, (tmp_path / "dst").open("xb") as two, kernel(refusing):
        copy_content(one.fileno(), two.fileno())
    assert (tmp_path / "dst").read_bytes() == (tmp_path / "src").read_bytes()


def test_short_ranges_and_writes(tmp_path: Path) -> None:
    """copy_file_range and pwrite may do less than asked, and copy_file_range may stop too early."""
    data = os.urandom(100_000)
    (tmp_path / "src").write_bytes(data)

    class Short(_kernel.Kernel):
        def clone(self, dst_fd: int, src_fd: int) -> None:
            raise OSError(errno.EXDEV, "no")

        def copy_range(self, src_fd: int, dst_fd: int, count: int, src_at: int, dst_at: int) -> int:
            return 0 if src_at > 50_000 else super().copy_range(src_fd, dst_fd, min(count, 7001), src_at, dst_at)

        def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            return super().pwrite(fd, data[:5003], offset)

    with (tmp_path / "src").open("rb") as one, (tmp_path / "dst").open("xb") as two, kernel(Short()):
        copy_content(one.fileno(), two.fileno())
    assert (tmp_path / "dst").read_bytes() == data


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory."""
    with in_memory() as path:
        yield path


@pytest.mark.sweep
@pytest.mark.parametrize("openat2", [True, False])
def test_deep(memory: Path, openat2: bool) -> None:
    """2,000 levels, with hard links from the deepest to the top and back, with a fixed number of descriptors."""
    top = memory / "src"
    make_deep(top, 2000)
    fd = os.open(top, os.O_RDONLY)
    chain = [fd]
    for _ in range(2000):
        below = os.open("d", os.O_RDONLY, dir_fd=chain[-1])
        if len(chain) > 1:
            os.close(chain.pop())
        chain.append(below)
    os.link("file", "bottom", src_dir_fd=chain[0], dst_dir_fd=chain[1])
    os.mkdir("side", dir_fd=chain[0])
    os.symlink("x", "deep", dir_fd=chain[1])
    os.link("deep", "side/deep", src_dir_fd=chain[1], dst_dir_fd=chain[0], follow_symlinks=False)
    for one in chain:
        os.close(one)
    instead = _kernel.port if openat2 else Without("open_beneath", errno.ENOSYS)
    told: list[int] = []
    (memory / "dst").mkdir()
    before = descriptors()
    with held(top) as source, held(memory / "dst") as target, held(memory) as parent:
        with kernel(instead), few_descriptors(2 * HELD + 12):
            assert clone(source, target, told.append) == []
        assert os.stat(memory / "dst" / "file").st_nlink == 2
        assert os.lstat(memory / "dst" / "side" / "deep").st_nlink == 2
        delete.delete_tree(Place(parent, "src"))
        delete.delete_tree(Place(parent, "dst"))
    assert sum(told) == 2 * 2000 + 4
    assert descriptors() == before


@pytest.mark.sweep
@pytest.mark.parametrize("files", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
@mounts
def test_wide(files: int) -> None:
    """A folder of very many files."""
    with mounted("tmpfs", size=512 << 20) as place:
        make_wide(place.folder / "src", files)
        before = descriptors()
        assert copy(place.folder / "src", place.folder / "dst") == []
        assert len(os.listdir(place.folder / "dst")) == files
        assert descriptors() == before


def test_default_acl_of_the_new_folder(tmp_path: Path) -> None:
    """What the copies inherit from their new folder is removed."""
    make_small(tmp_path / "src")
    expected = seen(tmp_path / "src")
    (tmp_path / "dst").mkdir()
    try:
        os.setxattr(tmp_path / "dst", DEFAULT_ACL, acl(NOBODY))
    except OSError as exc:
        if exc.errno != errno.ENOTSUP:
            raise
        pytest.skip("no ACLs on this filesystem")
    with held(tmp_path / "src") as source, held(tmp_path / "dst") as target:
        assert clone(source, target) == []
    assert seen(tmp_path / "dst") == expected


@root
def test_strange_umask(tmp_path: Path) -> None:
    """A umask that takes the owner's own permissions away does no harm."""
    tmp_path.chmod(0o755)
    make_small(tmp_path / "src")
    (tmp_path / "src" / "sub" / "below").mkdir()
    (tmp_path / "src" / "sub" / "below" / "file").touch()
    for path in [tmp_path / "src", *(tmp_path / "src").rglob("*")]:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    expected = seen(tmp_path / "src")
    (tmp_path / "dst").mkdir()
    os.chown(tmp_path / "dst", NOBODY, NOBODY)

    def work() -> object:
        os.umask(0o777)
        return clone(source, target)

    with held(tmp_path / "src") as source, held(tmp_path / "dst") as target:
        assert as_user(NOBODY, work) == "[]"
    assert seen(tmp_path / "dst") == expected


@root
def test_capabilities_are_kept(tmp_path: Path) -> None:
    """The content is the same, so the file keeps its capabilities."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "program").touch()
    value = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
    os.setxattr(tmp_path / "src" / "program", "security.capability", value)
    assert copy(tmp_path / "src", tmp_path / "dst") == []
    assert os.getxattr(tmp_path / "dst" / "program", "security.capability") == value


@root
def test_as_another_user(tmp_path: Path) -> None:
    """What another user may not keep is listed: owners, devices, trusted attributes; the rest is copied."""
    if why := no_devices():
        pytest.skip(why)
    tmp_path.chmod(0o755)
    src, dst = tmp_path / "src", tmp_path / "dst"
    (src / "sub").mkdir(parents=True)
    (src / "sub" / "file").write_text("x")
    (src / "sub" / "file").chmod(0o6755)
    os.mknod(src / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (src / "link").symlink_to("sub")
    dst.mkdir()
    os.chown(dst, NOBODY, NOBODY)
    with held(src) as source, held(dst) as target:
        said = as_user(NOBODY, lambda: sorted(clone(source, target)))
    expected = [f"{what} of {where}" for where in ("link", "sub", "sub/file") for what in ("group", "owner")]
    assert said == repr(sorted([*expected, "existence of null", "mode of sub/file"]))
    assert sorted(os.listdir(dst)) == ["link", "sub"]
    assert stat.S_IMODE((dst / "sub" / "file").stat().st_mode) == 0o755


@root
def test_unreadable(tmp_path: Path) -> None:
    """A file or folder that this user may not read is an error with its path, and its mode is left alone."""
    tmp_path.chmod(0o755)
    src = tmp_path / "src"
    src.mkdir()
    (src / "sub").mkdir()
    os.chown(src / "sub", NOBODY, NOBODY)
    (src / "sub").chmod(0)
    (tmp_path / "dst").mkdir()
    os.chown(tmp_path / "dst", NOBODY, NOBODY)

    def attempt() -> object:
        with pytest.raises(errors.AccessDeniedError) as caught:
            clone(source, target)
        return caught.value.filename

    with held(src) as source, held(tmp_path / "dst") as target:
        assert as_user(NOBODY, attempt) == repr(str(src / "sub"))
        assert stat.S_IMODE((src / "sub").stat().st_mode) == 0
        (src / "sub").rmdir()
        (src / "file").touch()
        (src / "file").chmod(0o600)
        assert as_user(NOBODY, attempt) == repr(str(src / "file"))


@pytest.mark.parametrize("number", [errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EIO, errno.ERANGE])
def test_no_hard_links(tmp_path: Path, number: int) -> None:
    """Where there are no hard links there are copies, and they are listed."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a").write_text("x")
    os.link(tmp_path / "src" / "a", tmp_path / "src" / "b")
    with kernel(Without("link", number)):
        lost = copy(tmp_path / "src", tmp_path / "dst")
    assert len(lost) == 1
    assert re.fullmatch("hard link of [ab]", lost[0])
    assert [(tmp_path / "dst" / name).read_text() for name in "ab"] == ["x", "x"]


def test_transactions_are_left_out(tmp_path: Path) -> None:
    """What a transaction has in the source is not copied, so a slot inside the source does not make an endless tree."""
    (tmp_path / "src" / ".atomik-1" / "slot").mkdir(parents=True)
    (tmp_path / "src" / "file").touch()
    with held(tmp_path / "src") as source, held(tmp_path / "src" / ".atomik-1" / "slot") as target:
        assert clone(source, target) == ["unfinished transaction of .atomik-1"]
    (tmp_path / "src" / ".atomik-1").rename(tmp_path / "not ours")  # so that the check for leftovers finds none
    assert os.listdir(tmp_path / "not ours" / "slot") == ["file"]


@mounts
def test_mount(tmp_path: Path) -> None:
    """A mount in the source is refused before anything is copied, also one that the table did not show."""
    with tree_with_mount() as (_, home, point):
        for instead in (_kernel.port, Without("readlink", errno.ENOENT)):
            target = tmp_path / type(instead).__name__
            with kernel(instead), pytest.raises(errors.MountPointError) as caught:
                copy(home / "tree", target)
            assert caught.value.filename == str(point)
        assert os.listdir(tmp_path / "Kernel") == []


@mounts
def test_bound_file(tmp_path: Path) -> None:
    """A single mounted file is a mount as well."""
    home = namespace.scratch("tree")
    (home / "origin").write_text("other")
    (home / "tree").mkdir()
    (home / "tree" / "file").touch()
    with (
        attached(home / "origin", home / "tree" / "file", "none", linux.MS_BIND),
        pytest.raises(errors.MountPointError, match="mount"),
    ):
        copy(home / "tree", tmp_path / "dst")


@pytest.mark.parametrize(
    ("kind", "becomes"),
    [
        (kind, becomes)
        for kind in ("file", "folder", "link")
        for becomes in ("nothing", "link", "fifo", "folder")
        if kind != becomes
    ],
)
def test_changes_meanwhile(tmp_path: Path, kind: str, becomes: str) -> None:
    """A source that vanishes or becomes something else is a ConflictError with its path, and no link is followed."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").touch()
    victim = tmp_path / "src" / "victim"
    victim.parent.mkdir()
    if kind == "link":
        victim.symlink_to("x")
    else:
        victim.mkdir() if kind == "folder" else victim.touch()

    def change() -> None:
        victim.rename(tmp_path / "away")
        if becomes == "link":
            victim.symlink_to(tmp_path / "outside")
        elif becomes == "fifo":
            os.mkfifo(victim)
        elif becomes == "folder":
            victim.mkdir()

    before = descriptors()
    # The two folders of the test are opened by path, which is openat2; then the table of mounts, by open.
    attack = Before("open_beneath", 3, change) if kind == "folder" else Before("open", 2, change)
    with kernel(attack):
        if (kind, becomes) == ("link", "fifo"):
            copy(tmp_path / "src", tmp_path / "dst")  # neither is entered: the FIFO is copied as it is
        else:
            with pytest.raises(errors.ConflictError, match=re.escape(str(victim))):
                copy(tmp_path / "src", tmp_path / "dst")
    assert "secret" not in os.listdir(tmp_path / "dst")
    assert descriptors() == before


@mounts
def test_full_disk() -> None:
    """A disk that is full is an error with both paths, and no descriptor stays open."""
    with mounted("tmpfs", size=4 << 20) as place:
        (place.folder / "src" / "sub").mkdir(parents=True)
        (place.folder / "src" / "sub" / "file").write_bytes(b"x" * (3 << 20))
        before = descriptors()
        with pytest.raises(errors.AtomikOSError) as caught:
            copy(place.folder / "src", place.folder / "dst")
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(place.folder / "src" / "sub" / "file")
        assert caught.value.filename2 == str(place.folder / "dst" / "sub" / "file")
        assert descriptors() == before


class FailingClose(_kernel.Kernel):
    """close(2) that does its work and then reports an error, once, as network filesystems do."""

    failed = False

    def close(self, fd: int) -> None:
        """Close."""
        super().close(fd)
        if not self.failed:
            self.failed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))


CALLS = {"open", "open_beneath", "fstat", "listxattr", "listxattr_of", "create", "mkdir", "symlink", "mknod"} | {
    "link", "copy_range", "fchmod", "futime", "utime", "readlink", "scandir", "close"
}  # fmt: skip


@pytest.mark.parametrize("call", sorted(CALLS))
def test_failing_calls(tmp_path: Path, call: str) -> None:
    """Whichever call fails: an error, and no descriptor stays open.  (EIO of link(2) is how rclone says that it has none.)"""
    number = errno.ENOSPC if call == "link" else errno.EIO
    make_rich(tmp_path / "src")
    (tmp_path / "dst").mkdir()
    with held(tmp_path / "src") as source, held(tmp_path / "dst") as target:
        before = descriptors()
        every = (
            call == "listxattr_of"
        )  # the first may be asked of a link only whether more is to be done, as the names come
        failing = Before(call, 1, Raise(number), every) if call != "close" else FailingClose()
        failing.__dict__["clone"] = Without("clone", errno.EOPNOTSUPP).clone
        with kernel(failing), pytest.raises(OSError, match=os.strerror(number)):
            clone(source, target)
        assert descriptors() == before


@pytest.mark.parametrize("inherited", [False, True], ids=["plain", "inherited ACL"])
def test_files_after_the_first(tmp_path: Path, inherited: bool) -> None:
    """If the mode is enough for a folder's first file, the others still get more than the mode where they need it."""
    (tmp_path / "src").mkdir()
    closed = 0 if has_capability(DAC_OVERRIDE) else 0o400
    modes = (0o644, 0o600, 0o444, 0o1644, 0o4755, 0o2755, 0o777, closed, 0o644, 0o644)
    for number, mode in enumerate(modes):
        (tmp_path / "src" / f"{number}").write_text(str(number))
        (tmp_path / "src" / f"{number}").chmod(mode)
    os.setxattr(tmp_path / "src/8", "user.colour", b"red")
    if not no_root():
        os.chown(tmp_path / "src/9", 1234, 2345)
    (tmp_path / "dst").mkdir(mode=0o700)
    if inherited:  # lets a stranger read and write what is made in there
        entries = ((1, 7, -1), (2, 6, known(1234)), (4, 7, -1), (16, 7, -1), (32, 7, -1))
        acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
        os.setxattr(tmp_path / "dst", DEFAULT_ACL, acl)
    with held(tmp_path / "src") as source, held(tmp_path / "dst") as target:
        assert clone(source, target) == []
    assert seen(tmp_path / "dst") == seen(tmp_path / "src")


@pytest.mark.parametrize("inherited", [False, True], ids=["plain", "inherited ACL"])
@pytest.mark.parametrize("first", ["file", "link"])
def test_links_and_acls_after_the_first(tmp_path: Path, first: str, inherited: bool) -> None:
    """Whatever a folder's first object needs, links and files with ACLs get all that they had."""
    src, dst = tmp_path / "src", tmp_path / "dst"
    src.mkdir()
    for number in range(4):
        (src / f"file{number}").write_text("x")
        (src / f"file{number}").chmod(0o640 + number)
        os.setxattr(src / f"file{number}", ACL, acl(NOBODY + number % 2))
        os.symlink("nowhere", src / f"link{number}")
        os.utime(src / f"link{number}", ns=(10**18, 10**18 + number), follow_symlinks=False)
    os.setxattr(src / "file3", "user.colour", b"red")
    if not no_root():
        os.lchown(src / "link2", 1234, 2345)
    if not no_admin():
        os.setxattr(src / "link3", "trusted.colour", b"blue", follow_symlinks=False)
    dst.mkdir(mode=0o700)
    if inherited:
        os.setxattr(dst, DEFAULT_ACL, acl(NOBODY))

    class Sorted(_kernel.Kernel):
        @contextlib.contextmanager
        def scandir(self, fd: int) -> Iterator[Iterator[os.DirEntry[str]]]:
            with super().scandir(fd) as entries:
                yield iter(sorted(entries, key=lambda entry: (not entry.name.startswith(first), entry.name)))

    with kernel(Sorted()), held(src) as source, held(dst) as target:
        assert clone(source, target) == []
    assert seen(dst) == seen(src)


def test_an_acl_that_is_refused_later(tmp_path: Path) -> None:
    """Then the copy is open to nobody whom the ACL kept out, and that it is missing is reported."""
    (tmp_path / "src").mkdir()
    for name in "abc":
        (tmp_path / "src" / name).write_text(name)
        os.setxattr(tmp_path / "src" / name, ACL, acl(NOBODY))  # the group reads, and its bits say read and write
    refusing = Faulty(lambda call: errno.ENOTSUP if call.number > 1 else None, ["setxattr"])
    with installed(refusing):
        lost = copy(tmp_path / "src", tmp_path / "dst")
    kept = {name for name in "abc" if os.listxattr(tmp_path / "dst" / name)}
    assert len(kept) == 1
    assert sorted(lost) == sorted(f"{what} of {name}" for name in set("abc") - kept for what in ("acl", "mode"))
    modes = {name: (tmp_path / "dst" / name).stat().st_mode & 0o777 for name in "abc"}
    assert {name: mode for name, mode in modes.items() if name not in kept} == dict.fromkeys(set("abc") - kept, 0o640)


def test_what_an_object_costs_after_the_first(tmp_path: Path) -> None:
    """A file takes nine calls and a link seven, of which none looks at the copy; an ACL adds two."""
    (tmp_path / "src").mkdir()

    def calls(make: Callable[[Path], object]) -> int:
        counts = []
        for number in (1, 2):
            make(tmp_path / "src" / f"{number}")
            (tmp_path / "dst").mkdir()
            with held(tmp_path / "src") as source, held(tmp_path / "dst") as target:
                counts.append(len(list(recorded(lambda: clone(source, target)))))
            shutil.rmtree(tmp_path / "dst")
        for path in (tmp_path / "src").iterdir():
            path.unlink()
        return counts[1] - counts[0]

    def with_acl(path: Path) -> None:
        path.write_text("x")
        os.setxattr(path, ACL, acl(NOBODY))

    assert calls(lambda path: path.symlink_to("x")) == 7
    file = calls(lambda path: path.write_text("x"))
    assert file <= 9
    assert calls(with_acl) == file + 2


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_a_mode_that_is_refused_later(tmp_path: Path, number: int) -> None:
    """A filesystem that has one mode for all files: what would be more open than the original is refused."""
    (tmp_path / "src").mkdir()
    for name in "abc":
        (tmp_path / "src" / name).write_text(name)
        (tmp_path / "src" / name).chmod(0o400)
    with installed(Faulty(lambda call: number if call.number == 2 else None, ["fchmod"])) as refusing:
        assert copy(tmp_path / "src", tmp_path / "dst") == []
    assert len(refusing.struck) == 1
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "dst").iterdir()} == {0o400}


def test_an_attribute_that_is_refused_later(tmp_path: Path) -> None:
    """A file after the first of its folder whose attributes do not fit is copied without them, and that is reported."""
    (tmp_path / "src").mkdir()
    for name in "abc":
        (tmp_path / "src" / name).write_text(name)
        os.setxattr(tmp_path / "src" / name, "user.colour", name.encode())
        (tmp_path / "src" / name).chmod(0o640)

    def full(call: Call) -> int | None:
        return errno.ENOSPC if call.number > 1 else None

    with installed(Faulty(full, ["setxattr"])):
        lost = copy(tmp_path / "src", tmp_path / "dst")
    kept = {name for name in "abc" if os.listxattr(tmp_path / "dst" / name)}
    assert len(kept) == 1
    assert sorted(lost) == [f"xattr user.colour of {name}" for name in sorted(set("abc") - kept)]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "dst").iterdir()} == {0o640}


def test_observed_in_the_same_walk(tmp_path: Path) -> None:
    """What a clone records of its source is the fingerprint, and the values of the folders in it."""
    make_rich(tmp_path / "src")
    (tmp_path / "src/a-b").mkdir()
    (tmp_path / "src/a").mkdir(exist_ok=True)
    (tmp_path / "src/a/b").mkdir()
    (tmp_path / "src/.atomik-0123456789abcdef").mkdir()
    (tmp_path / "src/.atomik-journal").touch()
    (tmp_path / "dst").mkdir()
    folders: dict[str, bytes] = {}
    with held(tmp_path / "src") as source, held(tmp_path / "dst") as target:
        told = Recorder(source)
        clone(source, target, seen=told)
        assert told.value() == fingerprint(source, folders=folders)
    assert told.folders == folders
    (tmp_path / "src/.atomik-0123456789abcdef").rmdir()
    (tmp_path / "src/.atomik-journal").unlink()


def test_shared(tmp_path: Path) -> None:
    """With ``share`` the files are the same ones by second names, and folders are new."""
    make_rich(tmp_path / "src")
    (tmp_path / "dst").mkdir()
    before = seen(tmp_path / "src")
    with held(tmp_path / "src") as source, held(tmp_path / "dst") as target:
        assert clone(source, target, share=True) == []
    assert seen(tmp_path / "dst") == before
    for path in (tmp_path / "dst").rglob("*"):
        found, other = path.lstat(), (tmp_path / "src" / path.relative_to(tmp_path / "dst")).lstat()
        assert (found.st_ino == other.st_ino) is not stat.S_ISDIR(found.st_mode), path
