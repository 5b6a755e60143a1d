"""P8: no new version is open to more users than the old one, at any moment, with any set of capabilities."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import struct
from typing import TYPE_CHECKING

import pytest

from atomik import errors
from atomik._system import kernel as _kernel
from atomik._tree.clone import clone
from atomik._tree.metadata import ACL, DEFAULT_ACL, Metadata, apply
from tests.support.trees import Without, held, kernel
from tests.support.users import CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, NOBODY, as_user, root, without

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from atomik._tree.metadata import What

OWNER, GROUP = 1000, 2000
NAMED, NAMED_GROUP = 4000, 5000
#: (uid, groups) of those whose rights are compared; the writer, who has the content anyway, is none of them
SUBJECTS = (
    (OWNER, ()),
    (OWNER, (0,)),
    (3000, (GROUP,)),
    (3000, (0,)),
    (3000, (NOBODY,)),
    (NAMED, ()),
    (NAMED, (GROUP,)),
    (3000, (NAMED_GROUP,)),
    (3000, (GROUP, NAMED_GROUP)),
    (6000, ()),
)
USER_OBJ, USER, GROUP_OBJ, GROUP_TAG, MASK, OTHER = 1, 2, 4, 8, 16, 32


def acl(owner: int, group: int, other: int, mask: int, user: int, named_group: int) -> bytes:
    """A POSIX ACL that names a user and a group."""
    entries = (
        (USER_OBJ, owner, -1),
        (USER, user, NAMED),
        (GROUP_OBJ, group, -1),
        (GROUP_TAG, named_group, NAMED_GROUP),
        (MASK, mask, -1),
        (OTHER, other, -1),
    )
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


MODES = (0o000, 0o400, 0o600, 0o604, 0o640, 0o660, 0o664, 0o644, 0o777, 0o1777, 0o2755, 0o4755, 0o6750, 0o077)
ACLS = (
    None,
    acl(6, 4, 0, 6, 6, 0),
    acl(7, 0, 4, 7, 0, 4),  # who is named has less than others
    acl(6, 6, 6, 7, 4, 7),
    acl(4, 7, 1, 0, 7, 7),  # the mask lets nobody in
)
CAPABILITIES = [one for n in range(5) for one in itertools.combinations((CHOWN, DAC_OVERRIDE, FOWNER, FSETID), n)]


def rights(found: os.stat_result, value: bytes | None) -> list[int]:
    """What each of `SUBJECTS` may do (acl(5)); an owner may do everything, because owners can change the mode."""
    bits = found.st_mode
    entries = [struct.unpack_from("<HHi", value, at) for at in range(4, len(value), 8)] if value else []
    mask = next((perm for tag, perm, _ in entries if tag == MASK), 7)
    own_group = next((perm for tag, perm, _ in entries if tag == GROUP_OBJ), bits >> 3 & 7)

    def one(uid: int, groups: tuple[int, ...]) -> int:
        if uid == found.st_uid:
            return 7
        for tag, perm, name in entries:
            if tag == USER and name == uid:
                return perm & mask
        granted = [own_group & mask] if found.st_gid in groups else []
        granted += [perm & mask for tag, perm, name in entries if tag == GROUP_TAG and name in groups]
        if granted:
            return granted[0] | (granted[1] if len(granted) > 1 else 0)
        return bits & 7

    return [one(uid, groups) for uid, groups in SUBJECTS]


def rights_of(path: str | int) -> list[int]:
    """The same for what is at a path, or open."""
    try:
        value = os.getxattr(path, ACL)
    except OSError:
        value = None
    return rights(os.stat(path), value)


class Observer(_kernel.Kernel):
    """Looks at the object behind the descriptor after every call that changes its metadata."""

    def __init__(self) -> None:
        self.widest = [0] * len(SUBJECTS)
        self.set_id: set[tuple[int, int, int]] = set()
        for name in ("fchmod", "fchown", "setxattr", "removexattr", "create", "pwrite"):
            setattr(self, name, self._observed(getattr(_kernel.Kernel, name), name))

    def _observed(self, real: Callable[..., object], name: str) -> Callable[..., object]:
        bound = real if name != "create" else real.__get__(self)  # type: ignore[attr-defined]

        def call(*args: object) -> object:
            result = bound(*args)
            fd = result if name == "create" else args[0]
            assert isinstance(fd, int)
            self.look(fd)
            return result

        return call

    def look(self, fd: int) -> None:
        """Add what the object allows now."""
        self.widest = [a | b for a, b in zip(self.widest, rights_of(fd), strict=True)]
        found = os.fstat(fd)
        if found.st_mode & (stat.S_ISUID | stat.S_ISGID):
            self.set_id.add((found.st_uid, found.st_gid, found.st_mode & 0o6000))


def wider(new: list[int], old: list[int]) -> list[tuple[object, int, int]]:
    """The subjects with a right that they did not have."""
    return [(who, b, a) for who, a, b in zip(SUBJECTS, old, new, strict=True) if b & ~a]


def make(path: Path, folder: bool, owner: tuple[int, int], mode: int, value: bytes | None) -> None:
    """An old version."""
    path.mkdir() if folder else path.touch()
    os.chown(path, *owner)
    if value is None:
        path.chmod(mode)
    else:
        os.setxattr(path, ACL, value)


@pytest.mark.sweep
@root
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("dropped", CAPABILITIES, ids=str)
def test_apply(tmp_path: Path, folder: bool, dropped: tuple[int, ...]) -> None:
    """Every mode and ACL, owned by another user, by another group or by us; into a folder with and without a default ACL."""
    tmp_path.chmod(0o777)
    cases = []
    owners = ((0, 0), (0, GROUP), (OWNER, 0), (OWNER, GROUP))
    kinds = [(mode, None) for mode in MODES] + [(0, value) for value in ACLS if value]
    for number, (owner, (mode, value)) in enumerate(itertools.product(owners, kinds)):
        old = tmp_path / f"old{number}"
        make(old, folder, owner, mode, value)
        with held(tmp_path):
            fd = os.open(old, os.O_RDONLY)
            cases.append((Metadata.held(fd, os.fstat(fd)), rights_of(fd), str(tmp_path / f"new{number}")))
            os.close(fd)

    def work() -> object:
        wrong: list[object] = []
        for what, (metadata, allowed, new) in itertools.product(("all",), cases):
            if found := _applied(metadata, allowed, new, what, folder):
                wrong.append((metadata, found))
        return wrong

    for inherited in (None, acl(7, 7, 7, 7, 7, 7)):
        if inherited:
            os.setxattr(tmp_path, DEFAULT_ACL, inherited)
        assert without(dropped, work) == "[]"


def _applied(metadata: Metadata, allowed: list[int], new: str, what: What, folder: bool) -> object:
    """What was wrong with one application."""
    if folder:
        os.mkdir(new, 0o700)
    else:
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    fd = os.open(new, os.O_RDONLY)
    try:
        with kernel(Observer()) as observer:
            assert isinstance(observer, Observer)
            apply(fd, metadata, what)
            observer.look(fd)
        ids = os.fstat(fd).st_uid, os.fstat(fd).st_gid
        lent = [one for one in observer.set_id if (one[0] != metadata.uid and one[2] & stat.S_ISUID)]
        lent += [one for one in observer.set_id if (one[1] != metadata.gid and one[2] & stat.S_ISGID)]
        return wider(observer.widest, allowed) or lent or (ids[0] not in (0, metadata.uid))
    finally:
        os.close(fd)
        os.rmdir(new) if folder else os.unlink(new)


@root
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o400])
def test_without_fowner_the_mode_is_kept(tmp_path: Path, mode: int) -> None:
    """Without CAP_FOWNER, and without CAP_DAC_OVERRIDE, a file of another user keeps owner, group, mode and ACL."""
    old, new = tmp_path / "old", tmp_path / "new"
    make(old, False, (OWNER, GROUP), mode, None)
    new.touch(0o600)
    fd, source = os.open(new, os.O_RDWR), os.open(old, os.O_RDONLY)
    try:
        metadata = Metadata.held(source, os.fstat(source))
        for dropped in ((FOWNER,), (FOWNER, DAC_OVERRIDE, DAC_READ_SEARCH)):
            os.chown(new, 0, 0)
            new.chmod(0o600)
            assert without(dropped, lambda: apply(fd, metadata, "all")) == "()"
            found = new.stat()
            assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (OWNER, GROUP, mode)
    finally:
        os.close(fd)
        os.close(source)


@root
def test_lost_group(tmp_path: Path) -> None:
    """A user who cannot give the file to the old group does not open it to his own."""
    tmp_path.chmod(0o777)
    for number, (mode, expected) in enumerate(((0o640, 0o600), (0o664, 0o644), (0o604, 0o600), (0o660, 0o600))):
        new = tmp_path / f"new{number}"
        new.touch(0o600)
        os.chown(new, NOBODY, NOBODY)
        fd = os.open(new, os.O_RDWR)
        metadata = Metadata(mode, OWNER, GROUP, {}, (), 1, (0, 0))
        assert as_user(NOBODY, lambda fd=fd, metadata=metadata: apply(fd, metadata, "all")) in (  # type: ignore[misc]
            "('owner', 'group', 'mode')",
            "('owner', 'group')",
        )
        os.close(fd)
        assert stat.S_IMODE(new.stat().st_mode) == expected


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_mode_that_cannot_be_narrowed(tmp_path: Path, number: int) -> None:
    """Where fchmod is refused, a file that would stay more open is an error, and nothing is published."""
    new = tmp_path / "new"
    new.touch()
    new.chmod(0o644)
    fd = os.open(new, os.O_RDWR)
    wanted = Metadata(0o600, os.getuid(), os.getgid(), {}, (), 1, (0, 0))
    try:
        with kernel(Without("fchmod", number)), pytest.raises(errors.AccessDeniedError, match="0644") as caught:
            apply(fd, wanted, "all", path="/some/where")
        assert caught.value.filename == "/some/where"
    finally:
        os.close(fd)


def test_mode_alone_does_not_let_in_whom_the_folder_names(tmp_path: Path) -> None:
    """With "mode", an ACL that the new file has from its folder goes."""
    try:
        os.setxattr(tmp_path, DEFAULT_ACL, acl(7, 7, 7, 7, 7, 7))
    except OSError:
        pytest.skip("no ACLs on this filesystem")
    new = tmp_path / "new"
    new.touch(0o600)
    fd = os.open(new, os.O_RDWR)
    try:
        assert ACL in os.listxattr(fd)
        apply(fd, Metadata(0o640, os.getuid(), os.getgid(), {}, (), 1, (0, 0)), "mode")
        assert ACL not in os.listxattr(fd)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
    finally:
        os.close(fd)


@root
@pytest.mark.parametrize("dropped", CAPABILITIES, ids=str)
def test_clone(tmp_path: Path, dropped: tuple[int, ...]) -> None:
    """Each file and folder of a copy is at no moment more open than its original, whatever the new folder hands down."""
    tmp_path.chmod(0o755)
    source, target = tmp_path / "src", tmp_path / "dst"
    source.mkdir()
    target.mkdir(0o700)
    kinds = [(mode, None) for mode in MODES] + [(0, value) for value in ACLS if value]
    for number, (mode, value) in enumerate(kinds):
        for folder in (False, True):
            make(source / f"{'d' if folder else 'f'}{number}", folder, (OWNER, GROUP), mode, value)
            if not folder:
                (source / f"f{number}").write_text("secret")
    os.setxattr(target, DEFAULT_ACL, acl(7, 7, 7, 7, 7, 7))
    allowed = {name: rights_of(str(source / name)) for name in os.listdir(source)}

    def work() -> object:
        widest: dict[str, list[int]] = {}

        class ByName(Observer):
            def look(self, fd: int) -> None:
                name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
                before = widest.get(name, [0] * len(SUBJECTS))
                widest[name] = [a | b for a, b in zip(before, rights_of(fd), strict=True)]

        with held(source) as one, held(target) as other, kernel(ByName()):
            try:
                clone(one, other)
            except errors.AccessDeniedError as exc:  # files that may not be read without CAP_DAC_OVERRIDE
                if DAC_OVERRIDE not in dropped:
                    return repr(exc)
        return [(name, found) for name in widest if (found := wider(widest[name], allowed[name]))]

    assert without(dropped, work) == "[]"
