"""Metadata for real: what an overwritten destination's successor keeps, and what new objects inherit, per filesystem."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

import atomik
from atomik import errors
from tests.filesystems.neighbours import VICTIM, root
from tests.support.lab import mounts
from tests.support.lab.need import need
from tests.support.state import in_child, left_in, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.filesystems, root]

KINDS = ["ext4", "xfs", "btrfs", "tmpfs", "overlay-redirect-on", "fuse-honours", "bindfs"]
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
_IMMUTABLE, _APPEND_ONLY = 0x10, 0x20


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty folder on each of them."""
    need(mounts.missing(request.param))
    with mounts.mounted(request.param) as place:
        place.folder.chmod(0o755)
        yield place.folder


@pytest.fixture(params=["ext4", "xfs", "btrfs", "tmpfs"])
def disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The same on filesystems with inode flags."""
    need(mounts.missing(request.param))
    with mounts.mounted(request.param) as place:
        yield place.folder


def replace(path: Path, **options: object) -> atomik.ItemReceipt:
    """Overwrite a file or folder, and return what the receipt says of it."""
    opened = atomik.folder if path.is_dir() else atomik.file
    options.setdefault("allow_gap", True)  # for folders on bindfs; where the flags are, they serve
    out = opened(path, overwrite=True, **options)  # type: ignore[operator]
    with out as new:
        (new / "new").write_text("new") if isinstance(new, Path) else new.write("new")
    assert out.receipt is not None
    item: atomik.ItemReceipt = out.receipt.items[0]
    return item


@contextlib.contextmanager
def flagged(path: Path, flag: int) -> Iterator[None]:
    """Have an inode flag set, as chattr(1) does."""
    before = _flags(path)
    _set_flags(path, before | flag)
    try:
        yield
    finally:
        _set_flags(path, before)


def _flags(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return int(struct.unpack("l", fcntl.ioctl(fd, _GET_FLAGS, bytes(8)))[0])
    finally:
        os.close(fd)


def _set_flags(path: Path, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("l", flags))
    finally:
        os.close(fd)


# --- what is kept ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_mode_owner_group_and_attributes_stay(folder: Path, kind: str) -> None:
    """The successor has the mode (set-group-id too), owner, group, and attributes of what it replaced."""
    path = folder / "it"
    path.mkdir() if kind == "folder" else path.write_text("old")
    os.chown(path, 1234, 2345)
    path.chmod(0o2751)
    os.setxattr(path, "user.note", b"kept")
    os.setxattr(path, "trusted.note", b"kept by root")
    item = replace(path)
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o2751, 1234, 2345)
    assert os.getxattr(path, "user.note") == b"kept"
    assert os.getxattr(path, "trusted.note") == b"kept by root"
    assert item.not_preserved == ()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_acls_stay(folder: Path, kind: str) -> None:
    """Access and default ACLs, as setfacl(1) made them, are those of the successor."""
    _need_acls(folder)
    path = folder / "it"
    path.mkdir() if kind == "folder" else path.write_text("old")
    _setfacl(path, "u:1234:rw,g:2345:r,m::rw")
    if kind == "folder":
        _setfacl(path, "d:u:1234:rwx")
    before = _acl(path)
    item = replace(path)
    assert _acl(path) == before
    assert item.not_preserved == ()


def test_a_security_label_stays(folder: Path) -> None:
    """A label in the security namespace, as SELinux and Smack have them, goes over to the successor."""
    path = folder / "it"
    path.write_text("old")
    try:
        os.setxattr(path, "security.atomik", b"label")
    except OSError as exc:
        pytest.skip(f"no security attributes here: {exc}")
    assert replace(path).not_preserved == ()
    assert os.getxattr(path, "security.atomik") == b"label"


def test_what_a_user_may_not_keep_is_named(folder: Path) -> None:
    """A user who overwrites another's file in a shared folder gets it for himself, and the receipt says so."""
    folder.chmod(0o777)
    path = folder / "theirs"
    path.write_text("old")
    path.chmod(0o666)
    item = in_child(replace, path, become=VICTIM)
    assert path.stat().st_uid == VICTIM
    assert {"owner", "group"} <= set(item.not_preserved)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666


def test_a_read_only_file_is_replaced_and_stays_read_only(folder: Path) -> None:
    """What decides is the folder, as with rename(2): a 0444 file can be replaced by who may write there."""
    os.chown(folder, VICTIM, VICTIM)
    path = folder / "it"
    path.write_text("old")
    os.chown(path, VICTIM, VICTIM)
    path.chmod(0o444)
    in_child(replace, path, become=VICTIM)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_a_read_only_folder_is_replaced_by_its_user(folder: Path) -> None:
    """A 0555 folder can be renamed within its parent only; it is overwritten, kept, moved and removed nevertheless."""
    os.chown(folder, VICTIM, VICTIM)
    in_child(_read_only_folders, folder, become=VICTIM)
    assert not left_in(folder)
    found = {name: values[0] for name, values in tree(folder).items()}
    assert found == {
        "site": "0o40555", "site/new": "0o100644", "site.old": "0o40555", "site.old/new": "0o100644",
        "moved": "0o40555", "moved/new": "0o100644",
    }  # fmt: skip


def _read_only_folders(folder: Path) -> None:
    can = atomik.probe(folder)
    allow_gap = not (can.exchange and can.noreplace)
    for name in ("site", "other", "gone"):
        with atomik.folder(folder / name, permissions=0o555, allow_gap=allow_gap) as new:  # type: ignore[arg-type]
            (new / "new").write_text("new")
    replace(folder / "site", allow_gap=allow_gap)
    replace(folder / "site", allow_gap=allow_gap, backup="site.old")
    with atomik.transaction() as tx:
        tx.remove(folder / "gone")
    if not allow_gap:
        with atomik.transaction() as tx:
            tx.move(folder / "other", folder / "moved")
    else:
        (folder / "other").rename(folder / "moved")


# --- what is inherited -----------------------------------------------------------------------------------------------
def test_new_objects_inherit_as_plain_ones_do(folder: Path) -> None:
    """In a set-group-id folder with a default ACL, and under any umask: like what open(2) and mkdir(2) create there."""
    _need_acls(folder)
    os.chown(folder, -1, 2345)
    folder.chmod(0o2775)
    for umask, acl in ((0o022, None), (0o077, None), (0o027, "d:u:1234:rwx,d:g:2345:r-x,d:o::---")):
        if acl:
            _setfacl(folder, acl)
        before = os.umask(umask)
        try:
            (folder / "plain").write_text("plain")
            (folder / "plain.d").mkdir()
            with atomik.file(folder / "ours") as f:
                f.write("ours")
            if atomik.probe(folder).noreplace:
                with atomik.folder(folder / "ours.d"):
                    pass
            else:
                (folder / "ours.d").mkdir()
            with atomik.path(folder / "ours.p") as name:
                name.write_text("ours")
        finally:
            os.umask(before)
        for plain, ours in (("plain", "ours"), ("plain.d", "ours.d"), ("plain", "ours.p")):
            one, other = (folder / plain).stat(), (folder / ours).stat()
            assert (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid), (umask, ours)
            assert _acl(folder / plain) == _acl(folder / ours)
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


# --- hard links ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("preserve", ["all", "none"])
def test_hard_links_are_broken_counted_and_logged(folder: Path, preserve: str) -> None:
    """The other names keep the old content; how many there are is in the receipt and in the log."""
    path = folder / "it"
    path.write_text("old")
    for name in ("second", "third"):
        os.link(path, folder / name)
    with structlog.testing.capture_logs() as log:
        item = replace(path, preserve=preserve)
    assert item.broken_links == 2
    assert [(event["path"], event["links"]) for event in log if event["event"] == "item.links_broken"] == [
        (str(path), 2)
    ]
    assert (path.read_text(), (folder / "second").read_text()) == ("new", "old")
    assert ((folder / "second").stat().st_nlink, path.stat().st_nlink) == (2, 1)
    assert replace(folder / "it").broken_links == 0


# --- flags -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("flag", [_IMMUTABLE, _APPEND_ONLY])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_immutable_and_append_only_destinations_stay(disk: Path, kind: str, flag: int) -> None:
    """EPERM with the path and where to look; the others of the transaction are as they were, too."""
    path = disk / "it"
    path.mkdir() if kind == "folder" else path.write_text("old")
    (disk / "ok").write_text("old")
    before = tree(disk)
    with flagged(path, flag):
        for work in (lambda: replace(path), lambda: _with_others(disk, path), lambda: _removed(path)):
            with pytest.raises(errors.CommitError, match="lsattr") as caught:
                work()
            assert caught.value.errno == errno.EPERM
            assert caught.value.filename == str(path)
            assert not left_in(disk)
    assert tree(disk) == before


def _with_others(folder: Path, path: Path) -> None:
    with atomik.transaction(overwrite=True) as tx:
        tx.file(folder / "ok").write("new")
        tx.folder(path) if path.is_dir() else tx.file(path)
        tx.file(folder / "later").write("new")


def _removed(path: Path) -> None:
    with atomik.transaction() as tx:
        tx.remove(path)


def test_immutable_and_append_only_folders_are_refused_when_staged(disk: Path) -> None:
    """In an immutable folder nothing works, in an append-only one a new file does; nothing is ever left there."""
    (disk / "it").write_text("old")
    with flagged(disk, _IMMUTABLE):
        for work in (lambda: atomik.file(disk / "new"), lambda: replace(disk / "it"), lambda: atomik.probe(disk)):
            with pytest.raises(errors.AccessDeniedError, match="lsattr"):
                work()
    with flagged(disk, _APPEND_ONLY):
        with atomik.file(disk / "new") as f:
            f.write("new")
        for work in (lambda: replace(disk / "it"), lambda: atomik.folder(disk / "d"), lambda: atomik.probe(disk)):
            with pytest.raises(errors.AccessDeniedError, match=r"chattr \+a"):
                work()
    assert {name: values[3] for name, values in tree(disk).items()} == {"it": b"old", "new": b"new"}


def test_an_immutable_file_inside_a_replaced_folder_is_told(disk: Path) -> None:
    """The folder is replaced; what of the old one cannot be deleted is in the receipt, and goes later."""
    (disk / "site").mkdir()
    (disk / "site" / "fixed").write_text("old")
    _set_flags(disk / "site" / "fixed", _flags(disk / "site" / "fixed") | _IMMUTABLE)
    out = atomik.folder(disk / "site", overwrite=True)
    with out as new:
        (new / "new").write_text("new")
    assert out.receipt is not None
    assert "fixed" in out.receipt.leftovers[0]
    assert os.listdir(disk / "site") == ["new"]
    (fixed,) = disk.glob(".atomik-*/*/fixed")
    _set_flags(fixed, 0)
    atomik.recover(disk)
    assert os.listdir(disk) == ["site"]


# --- copies ----------------------------------------------------------------------------------------------------------
def test_sparse_files_stay_sparse(folder: Path) -> None:
    """copy=True and modes "a" and "r+" keep holes: 64 MiB with one block in it does not take 64 MiB."""
    if atomik.probe(folder).filesystem.startswith("fuse"):
        pytest.skip("these servers do not tell where the holes are (no SEEK_DATA)")
    (folder / "site").mkdir()
    for path in (folder / "site" / "holes", folder / "holes"):
        with path.open("wb") as file:
            file.truncate(64 << 20)
            file.seek(32 << 20)
            file.write(b"data")
    if atomik.probe(folder).exchange:
        replace(folder / "site", copy=True)
    with atomik.file(folder / "holes", "ab", overwrite=True) as f:
        f.write(b"end")
    for path, size in ((folder / "site" / "holes", 64 << 20), (folder / "holes", (64 << 20) + 3)):
        found = path.stat()
        assert found.st_size == size
        assert found.st_blocks * 512 < 1 << 20
        with path.open("rb") as file:
            file.seek(32 << 20)
            assert file.read(4) == b"data"


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_copies_share_their_blocks(kind: str) -> None:
    """copy=True takes no room on filesystems with reflinks: 32 MiB more would not fit."""
    need(mounts.missing(kind))
    with mounts.mounted(kind) as place:
        assert atomik.probe(place.folder).reflink
        (place.folder / "site").mkdir()
        (place.folder / "site" / "big").write_bytes(os.urandom(32 << 20))
        mounts.fill(place, leave=8 << 20)
        replace(place.folder / "site", copy=True)
        assert (place.folder / "site" / "big").stat().st_size == 32 << 20
        with atomik.file(place.folder / "site" / "big", "ab", overwrite=True) as f:
            f.write(b"end")
        assert (place.folder / "site" / "big").stat().st_size == (32 << 20) + 3


# --- helpers ---------------------------------------------------------------------------------------------------------
def _need_acls(folder: Path) -> None:
    need(None if shutil.which("setfacl") else "needs setfacl")
    probe = folder / "acl?"
    probe.write_text("")
    done = subprocess.run(["setfacl", "-m", "u:1:r", probe], capture_output=True, check=False)
    probe.unlink()
    if done.returncode:
        pytest.skip(f"no ACLs here: {done.stderr.decode().strip()}")


def _setfacl(path: Path, acl: str) -> None:
    subprocess.run(["setfacl", "-m", acl, path], check=True)


def _acl(path: Path) -> str:
    said = subprocess.run(["getfacl", "-n", "-p", "-c", path], check=True, capture_output=True)
    return said.stdout.decode()
