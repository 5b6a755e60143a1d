"""What a replaced file or folder carries besides its content, and what becomes of it on the new one."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

import pytest

from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._system import kernel as _kernel
from atomik._tree.metadata import ACL, DEFAULT_ACL, Metadata, apply
from tests.support.users import NOBODY, as_user, known, no_admin, no_root, root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from atomik._tree.metadata import What

USER_OBJ, USER, GROUP_OBJ, MASK, OTHER = 1, 2, 4, 16, 32


def acl(owner: int, group: int, other: int, *, user: tuple[int, int] | None = None, mask: int = 7) -> bytes:
    """The bytes of a POSIX ACL, with one named user, and so with a mask."""
    entries = [(USER_OBJ, owner, -1)]
    if user:
        entries.append((USER, user[1], known(user[0])))
    entries.append((GROUP_OBJ, group, -1))
    if user:
        entries.append((MASK, mask, -1))
    entries.append((OTHER, other, -1))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Directory]:
    """The test's folder, held."""
    folder = Directory.open(str(tmp_path))
    yield folder
    folder.close()


def give(path: Path, **attributes: bytes) -> None:
    """Set attributes ("__" in a name stands for a dot); skips where the filesystem has none."""
    for name, value in attributes.items():
        try:
            os.setxattr(path, name.replace("__", "."), value)
        except OSError as exc:
            if exc.errno != errno.ENOTSUP:
                raise
            pytest.skip(f"no {name.replace('__', '.')} on this filesystem")


def of(path: Path) -> Metadata:
    """The metadata of something that is there."""
    folder = Directory.open(str(path.parent))
    try:
        found = Metadata.of(Place(folder, path.name))
    finally:
        folder.close()
    assert found is not None
    return found


def put(path: Path, metadata: Metadata, what: What = "all") -> tuple[str, ...]:
    """Apply to an existing path."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return apply(fd, metadata, what)
    finally:
        os.close(fd)


def mode(path: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(path.lstat().st_mode)


class Recording(_kernel.Kernel):
    """Counts the calls by name."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> object:
        found = object.__getattribute__(self, name)
        if callable(found):
            object.__getattribute__(self, "calls").append(name)
        return found


@pytest.fixture
def recording() -> Iterator[list[str]]:
    """The names of the calls made from here on."""
    kernel = Recording()
    before = _kernel.install(kernel)
    yield object.__getattribute__(kernel, "calls")
    _kernel.install(before)


class Refusing(_kernel.Kernel):
    """Some calls that fail with one errno."""

    def __init__(self, names: str, number: int) -> None:
        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        for name in names.split():
            setattr(self, name, fail)


# --- reading -----------------------------------------------------------------------------------------------------


def test_nothing_there(here: Directory) -> None:
    """A missing place has no metadata."""
    assert Metadata.of(Place(here, "missing")) is None


def test_link(here: Directory, tmp_path: Path) -> None:
    """A link has none either, whatever it leads to."""
    (tmp_path / "file").touch()
    (tmp_path / "good").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert Metadata.of(Place(here, "good")) is None
    assert Metadata.of(Place(here, "dangling")) is None


def test_read(tmp_path: Path) -> None:
    """Mode, ids, links, stamp and attributes are those of the file."""
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o4751)
    os.link(file, tmp_path / "second")
    give(file, user__colour=b"blue\0green")
    found, seen = of(file), file.stat()
    assert (found.mode, found.uid, found.gid, found.nlink) == (0o4751, seen.st_uid, seen.st_gid, 2)
    assert found.stamp == (seen.st_ino, seen.st_ctime_ns)
    assert found.xattrs["user.colour"] == b"blue\0green"
    assert found.unread == ()


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_read_other_kinds(tmp_path: Path, kind: str) -> None:
    """Folders and FIFOs are read without being opened, so a FIFO without a writer does not block."""
    path = tmp_path / kind
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    path.chmod(0o710)
    assert of(path).mode == 0o710


@root
def test_read_without_permission(here: Directory, tmp_path: Path) -> None:
    """A file that its reader may not open still tells mode and owner; attributes that cannot be read are named."""
    tmp_path.chmod(0o755)
    file = tmp_path / "file"
    file.touch()
    give(file, user__colour=b"blue")
    file.chmod(0o600)

    def work() -> object:
        found = Metadata.of(Place(here, "file"))
        assert found is not None
        return found.mode, found.uid, found.xattrs, found.unread

    assert as_user(NOBODY, work) == repr((0o600, 0, {}, ("user.colour",)))


def test_calls_of_reading(here: Directory, tmp_path: Path, recording: list[str]) -> None:
    """Reading plain metadata costs two calls."""
    (tmp_path / "file").touch()
    recording.clear()
    found = Metadata.of(Place(here, "file"))
    assert found is not None
    if found.xattrs:
        pytest.skip("a security module labels every file here")
    assert recording == ["lstat", "has_xattrs"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT])
def test_unlistable(here: Directory, tmp_path: Path, number: int) -> None:
    """If the list of attributes cannot be read (no permission, no /proc), that is remembered and reported later."""
    (tmp_path / "file").touch()
    before = _kernel.install(Refusing("has_xattrs listxattr_of", number))
    try:
        found = Metadata.of(Place(here, "file"))
    finally:
        _kernel.install(before)
    assert found is not None
    assert found.unread == ("*",)
    assert put(tmp_path / "file", found) == ("xattr *",)


def test_failing_device_is_not_hidden(here: Directory, tmp_path: Path) -> None:
    """EIO while reading attributes is an error."""
    (tmp_path / "file").touch()
    before = _kernel.install(Refusing("has_xattrs listxattr_of", errno.EIO))
    try:
        with pytest.raises(OSError, match="Input/output error"):
            Metadata.of(Place(here, "file"))
    finally:
        _kernel.install(before)


def test_reading_leaves_no_descriptor(here: Directory, tmp_path: Path) -> None:
    """Descriptors are closed, for files, links and nothing."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    before = os.listdir("/proc/self/fd")
    for name in ("file", "link", "missing"):
        Metadata.of(Place(here, name))
    assert len(os.listdir("/proc/self/fd")) == len(before)


# --- applying ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """An old file (0640) and a new one (0600)."""
    old, new = tmp_path / "old", tmp_path / "new"
    for path, bits in ((old, 0o640), (new, 0o600)):
        path.touch()
        path.chmod(bits)
    return old, new


def test_nothing_to_do(pair: tuple[Path, Path], recording: list[str]) -> None:
    """Where nothing differs, applying is one fstat and one flistxattr."""
    old, new = pair
    new.chmod(0o640)
    found = of(old)
    if found.xattrs:
        pytest.skip("a security module labels every file here")
    recording.clear()
    assert put(new, found) == ()
    assert recording == ["fstat", "listxattr"]


@pytest.mark.parametrize("bits", [0o000, 0o444, 0o777, 0o1644, 0o2755, 0o4755, 0o6711])
@pytest.mark.parametrize("what", ["all", "mode"])
def test_mode(pair: tuple[Path, Path], bits: int, what: What) -> None:
    """Every mode is kept, set-id and sticky bits too while the owner is the same."""
    old, new = pair
    old.chmod(bits)
    assert put(new, of(old), what) == ()
    assert mode(new) == bits


def test_none(pair: tuple[Path, Path], recording: list[str]) -> None:
    """With "none" the new file is left alone, without a call."""
    old, new = pair
    found = of(old)
    recording.clear()
    assert put(new, found, "none") == ()
    assert recording == []
    assert mode(new) == 0o600


def test_xattrs(pair: tuple[Path, Path]) -> None:
    """Attributes are carried over, changed values corrected, and what only the new file has stays."""
    old, new = pair
    give(old, user__a=b"1", user__b=b"")
    give(new, user__a=b"2", user__own=b"mine")
    assert put(new, of(old)) == ()
    kept = {name: os.getxattr(new, name) for name in os.listxattr(new) if name.startswith("user.")}
    assert kept == {"user.a": b"1", "user.b": b"", "user.own": b"mine"}


def test_mode_alone_leaves_attributes(pair: tuple[Path, Path]) -> None:
    """With "mode" no attributes are carried over."""
    old, new = pair
    give(old, user__a=b"1")
    assert put(new, of(old), "mode") == ()
    assert mode(new) == 0o640
    assert "user.a" not in os.listxattr(new)


def test_acl(pair: tuple[Path, Path]) -> None:
    """An ACL is carried over with the mask that shows as the mode's group bits."""
    old, new = pair
    os_acl = acl(6, 4, 0, user=(NOBODY, 7), mask=6)
    give(old, system__posix_acl_access=os_acl)
    assert mode(old) == 0o660
    assert put(new, of(old)) == ()
    assert os.getxattr(new, ACL) == os_acl
    assert mode(new) == 0o660


def test_inherited_acl_goes(tmp_path: Path) -> None:
    """An ACL that the new file inherited from its folder is removed when the old file had none."""
    old = tmp_path / "old"
    old.touch()
    old.chmod(0o640)
    give(tmp_path, system__posix_acl_default=acl(7, 7, 7, user=(NOBODY, 7)))
    new = tmp_path / "new"
    new.touch()
    assert ACL in os.listxattr(new)
    assert put(new, of(old)) == ()
    assert ACL not in os.listxattr(new)
    assert mode(new) == 0o640


def test_default_acl_of_a_folder(tmp_path: Path) -> None:
    """A folder's default ACL is carried over, and an inherited one that the old folder lacked is removed."""
    old, new, plain = (tmp_path / name for name in ("old", "new", "plain"))
    for path in (old, new, plain):
        path.mkdir()
    value = acl(7, 5, 5, user=(NOBODY, 5))
    give(old, system__posix_acl_default=value)
    assert put(new, of(old)) == ()
    assert os.getxattr(new, DEFAULT_ACL) == value
    assert put(new, of(plain)) == ()
    assert DEFAULT_ACL not in os.listxattr(new)


@pytest.mark.parametrize(("what", "lost"), [("mode", ("mode",)), ("all", ("acl", "mode"))])
def test_lost_acl_gives_the_group_no_more(pair: tuple[Path, Path], what: What, lost: tuple[str, ...]) -> None:
    """Without its ACL a file's group bits are the group's own rights, not the mask."""
    old, new = pair
    give(old, system__posix_acl_access=acl(6, 4, 0, user=(NOBODY, 6), mask=6))
    found = of(old)
    assert found.mode == 0o660
    before = _kernel.install(Refusing("setxattr", errno.ENOTSUP))
    try:
        assert put(new, found, what) == lost
    finally:
        _kernel.install(before)
    assert mode(new) == 0o640


@root
def test_owner(pair: tuple[Path, Path]) -> None:
    """Root keeps owner, group, set-id bits and ACL together, although chown clears set-id bits."""
    old, new = pair
    os.chown(old, 1234, 2345)
    value = acl(7, 5, 5, user=(NOBODY, 4), mask=5)
    give(old, system__posix_acl_access=value)
    old.chmod(0o6755)
    assert put(new, of(old)) == ()
    seen = new.stat()
    assert (seen.st_uid, seen.st_gid, mode(new)) == (1234, 2345, 0o6755)
    assert os.getxattr(new, ACL) == value


@root
def test_capability_is_not_copied(pair: tuple[Path, Path]) -> None:
    """A file capability vouches for the old program: it is reported, not copied."""
    old, new = pair
    give(old, security__capability=struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    assert put(new, of(old)) == ("xattr security.capability",)
    assert "security.capability" not in os.listxattr(new)


@root
def test_another_user(tmp_path: Path) -> None:
    """A user who replaces root's set-id file gets the plain mode, and owner and group are named."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    old.chmod(0o6755)
    new.touch()
    os.chown(new, NOBODY, NOBODY)
    found, fd = of(old), os.open(new, os.O_RDWR)
    try:
        assert as_user(NOBODY, lambda: apply(fd, found, "all")) == repr(("owner", "group", "mode"))
    finally:
        os.close(fd)
    assert (new.stat().st_uid, mode(new)) == (NOBODY, 0o755)


@root
def test_group_alone(tmp_path: Path) -> None:
    """A member of the old file's group keeps the group, with set-gid, though not the owner."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    os.chown(old, 0, 4321)
    old.chmod(0o6770)
    new.touch()
    os.chown(new, NOBODY, NOBODY)
    found, fd = of(old), os.open(new, os.O_RDWR)
    try:
        assert as_user(NOBODY, lambda: apply(fd, found, "all"), (4321,)) == repr(("owner", "mode"))
    finally:
        os.close(fd)
    assert (new.stat().st_uid, new.stat().st_gid, mode(new)) == (NOBODY, 4321, 0o2770)


@root
def test_trusted_attribute_of_another_user(tmp_path: Path) -> None:
    """An attribute that needs a capability is named when it cannot be set."""
    if why := no_admin():
        pytest.skip(why)
    old, new = tmp_path / "old", tmp_path / "new"
    for path in (old, new):
        path.touch()
        os.chown(path, NOBODY, NOBODY)
    give(old, trusted__mark=b"x")
    found, fd = of(old), os.open(new, os.O_RDWR)
    try:
        assert as_user(NOBODY, lambda: apply(fd, found, "all")) == repr(("xattr trusted.mark",))
    finally:
        os.close(fd)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL, errno.ENOSPC, errno.E2BIG])
@pytest.mark.parametrize(
    ("call", "lost"), [("fchown", ("owner", "group")), ("fchmod", ("mode",)), ("setxattr", ("xattr user.a",))]
)
def test_refusals_are_named(pair: tuple[Path, Path], call: str, number: int, lost: tuple[str, ...]) -> None:
    """A refused call is named, and all the others are made."""
    _, new = pair
    ids = new.stat().st_uid + (call == "fchown"), new.stat().st_gid + (call == "fchown")
    xattrs = {} if call != "setxattr" else {"user.a": b"1"}
    before = _kernel.install(Refusing(call, number))
    try:
        assert put(new, Metadata(0o644, *ids, xattrs, (), 1, (0, 0))) == lost
    finally:
        _kernel.install(before)
    assert mode(new) == (0o600 if call == "fchmod" else 0o644)


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["fchown", "fchmod", "setxattr", "listxattr", "getxattr", "removexattr"])
def test_failures_propagate(pair: tuple[Path, Path], call: str, number: int) -> None:
    """What a broken device says is never taken for a refusal."""
    _, new = pair
    give(new, user__a=b"0", system__posix_acl_access=acl(6, 4, 0, user=(NOBODY, 6)))
    wanted = Metadata(0o644, new.stat().st_uid + 1, new.stat().st_gid, {"user.a": b"1"}, (), 1, (0, 0))
    if no_root() and call != "fchown":
        wanted = Metadata(0o644, new.stat().st_uid, new.stat().st_gid, {"user.a": b"1"}, (), 1, (0, 0))
    before = _kernel.install(Refusing(call, number))
    try:
        with pytest.raises(OSError, match=os.strerror(number)):
            put(new, wanted)
    finally:
        _kernel.install(before)
