"""A folder that others can write to as well: nothing outside is ever touched, nothing staged is read, nothing blocks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pickle
import re
import signal
import stat
import subprocess
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from atomik._protocol.private_folder import _SAMPLE
from tests.filesystems.neighbours import (
    ATTACKS,
    STRANGER,
    VICTIM,
    Shared,
    acting_as,
    ours_for_folders,
    racing,
    root,
    shared,
)
from tests.support.kernels import ALL, Acting, Call, Faulty, installed
from tests.support.state import NOBODY, in_child, left_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.filesystems.neighbours import Attack

pytestmark = [pytest.mark.root, root]

SECRET = "not for the stranger"


@pytest.fixture(autouse=True)
def no_blocking() -> Iterator[None]:
    """What blocks forever on another user's FIFO or lock is killed by the alarm."""
    signal.alarm(500)
    yield
    signal.alarm(0)


def write_file(place: Shared) -> None:
    """A new file, or an overwritten one."""
    with atomik.file(place.inner / "out", overwrite=True, durable=False) as f:
        f.write(SECRET)


def write_copy(place: Shared) -> None:
    """A file that begins with what is there."""
    with atomik.file(place.inner / "out", "a", overwrite=True, durable=False) as f:
        f.write(SECRET)


def write_below(place: Shared) -> None:
    """A file in folders that are made for it, and go again."""
    with contextlib.suppress(KeyError), atomik.file(place.inner / "a" / "b" / "out", parents=True, durable=False) as f:
        f.write(SECRET)
        raise KeyError


def write_several(place: Shared) -> None:
    """A transaction of all kinds over two folders."""
    with atomik.transaction(overwrite=True, durable=False, lock_timeout=0.2) as tx:
        tx.file(place.inner / "out").write(SECRET)
        tx.symlink(place.inner / "link", "out")
        tx.file(place.base / "report").write(SECRET)
        tx.remove(place.inner / "gone", missing_ok=True)


def write_folder(place: Shared) -> None:
    """A folder, filled by its path, which others might make lead elsewhere."""
    with atomik.folder(place.inner / "site", overwrite=True, durable=False) as new:
        (new / "page").write_text(SECRET)
        (new / "sub").mkdir()


def write_path(place: Shared) -> None:
    """The same with a path for another program, in a folder of the user's own below the stranger's."""
    with atomik.path(place.inner / "below" / "out", overwrite=True, durable=False, parents=True) as name:
        name.write_text(SECRET)


def write_through_a_link(place: Shared) -> None:
    """Where the destination leads, if it is a link."""
    with atomik.file(place.inner / "out", overwrite=True, follow_symlinks=True, durable=False) as f:
        f.write(SECRET)


def exchange(place: Shared) -> None:
    """Two names, whatever is there."""
    with contextlib.suppress(FileExistsError), (place.base / "report").open("x") as f:
        f.write(SECRET)
    atomik.swap(place.base / "report", place.inner / "out")


def recover(place: Shared) -> None:
    """What the next one would do."""
    atomik.recover(place.inner, place.base, lock_timeout=0.1)


WORK: tuple[Callable[[Shared], None], ...] = (
    write_file, write_copy, write_below, write_several, write_folder, write_path, write_through_a_link, exchange, recover,
)  # fmt: skip


@pytest.mark.filesystems
@pytest.mark.parametrize("uid", [0, VICTIM])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("work", WORK)
def test_an_attack_between_any_two_calls(work: Callable[[Shared], None], attack: Attack, uid: int) -> None:
    """Whatever the stranger swaps before whichever call: everything outside is as it was, for root and for users."""
    in_child(_attack_at_every_call, work, attack, uid)


def _attack_at_every_call(work: Callable[[Shared], None], attack: Attack, uid: int) -> None:
    for number in count(1):
        with shared(owner=uid) as place:
            before = place.untouched()
            (place.inner / "out").write_text("old")

            def strike(call: Call, place: Shared = place) -> None:
                os.seteuid(0)
                with acting_as(STRANGER), contextlib.suppress(OSError):
                    attack(place)
                os.seteuid(uid)

            kernel = Acting(" ".join(ALL), strike, when=lambda call, number=number: call.number == number)  # type: ignore[misc]
            os.setegid(uid)
            os.seteuid(uid)
            try:
                with installed(kernel), contextlib.suppress(errors.AtomikError):
                    work(place)
            finally:
                os.seteuid(0)
                os.setegid(0)
            assert place.untouched() == before, f"{attack.__name__} before call {number}"
        if not kernel.acted:
            assert number > 5
            return


@pytest.mark.parametrize("work", [write_several, write_copy])
def test_a_staging_folder_that_was_swapped(work: Callable[[Shared], None]) -> None:
    """Right after its mkdir the private folder is replaced by one that the stranger can read: nothing is written there."""
    with shared() as place:
        (place.inner / "out").write_text("old")

        def strike(call: Call) -> None:
            with acting_as(STRANGER):
                ours_for_folders(place)

        first = Acting("open", strike, when=lambda call: str(call.args[0]).startswith(".atomik-") and not first.acted)
        with installed(first), pytest.raises(errors.AtomikError) as caught:
            work(place)
        assert first.acted == 1
        assert "put another folder in the place" in str(caught.value)
        assert (place.inner / "out").read_text() == "old"
        assert not _readable(place.base)


@pytest.mark.sweep
def test_a_racing_stranger() -> None:
    """A privileged program at work in a stranger's folder, 2,000 rounds: no write, chmod, chown or unlink outside."""
    _race(2000)


@pytest.mark.slow
def test_a_racing_stranger_for_long() -> None:
    """The same, 10,000 rounds."""
    _race(10_000)


def _race(rounds: int) -> None:
    with shared() as place:
        before = place.untouched()
        with racing(place, seed=rounds):
            for number in range(rounds):
                with contextlib.suppress(errors.AtomikError):
                    WORK[number % len(WORK)](place)
                if not number % 100:
                    assert place.untouched() == before
        assert place.untouched() == before


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("kind", ["folder", "path"])
def test_what_is_written_by_path_stays_inside(kind: str, above: bool) -> None:
    """A program that fills a staged folder by its path, while the private folder, or one above it, makes room for a way
    to the outside; with another program of the same user, too."""
    with shared() as place:
        before = place.untouched()
        parent = place.inner / "roots" if above else place.inner
        parent.mkdir(exist_ok=True)
        publish: Any = atomik.folder if kind == "folder" else atomik.path
        with contextlib.suppress(errors.ConflictError), publish(parent / "site", durable=False) as new:
            (private_folder,) = parent.glob(".atomik-*")
            with acting_as(STRANGER):
                (parent if above else private_folder).rename(place.inner / "aside")
                private_folder.mkdir(parents=True)
                (private_folder / f"{private_folder.name}-0").symlink_to(place.outside)
            if kind == "path":
                new.mkdir()
            (new / "page").write_text(SECRET)
            subprocess.run(["sh", "-c", 'echo more > "$1/more"', "sh", str(new)], check=True)
            assert (new / "more").read_text() == "more\n"
        assert place.untouched() == before


def test_the_path_is_plain_where_nobody_else_can_lead_it_elsewhere() -> None:
    """In a folder of the user's own, also below a sticky one, and for the user's own group; not where others may rename."""
    with shared() as place:
        own = place.outside / "empty"
        assert _staged_in(own).parent.parent == own
        os.chown(own, 0, os.getegid())
        own.chmod(0o775)
        assert _staged_in(own).parent.parent == own
        os.chown(own, 0, STRANGER)
        assert _staged_in(own).parts[:2] == ("/", "proc")
        own.chmod(0o1775)
        assert _staged_in(own).parent.parent == own
        (place.inner / "way").symlink_to(own)
        assert _staged_in(place.inner / "way").parts[:2] == ("/", "proc")
        assert _pickled_in(place.inner).startswith("/proc/")
        assert in_child(_pickled_in, place.inner, become=VICTIM).startswith(f"{place.inner}/.atomik-")
        assert in_child(_pickled_in, place.outside, become=0).startswith(f"{place.outside}/.atomik-")


def test_without_proc_a_path_that_others_can_lead_elsewhere_is_refused() -> None:
    """Then there is no path to return; tmp_dir= is the way out."""
    with shared() as place:
        before = place.untouched()

        def no_proc(call: Call) -> OSError | None:
            return FileNotFoundError(errno.ENOENT, "") if str(call.args[0]).startswith("/proc/") else None

        with installed(Faulty(no_proc, {"stat"})):
            for publish in (atomik.folder, atomik.path):
                with pytest.raises(errors.AccessDeniedError, match="tmp_dir=") as caught:
                    publish(place.inner / "site")
                assert caught.value.filename == str(place.inner)
            assert not left_in(place.base)
            with atomik.folder(place.base / "site", tmp_dir=place.outside) as new:
                (new / "page").write_text("x")
        assert place.untouched().keys() == before.keys()


def _pickled_in(folder: Path) -> str:
    with contextlib.suppress(KeyError), atomik.path(folder / "site") as new:
        found = str(pickle.loads(pickle.dumps(new)))
        raise KeyError
    return found


def _staged_in(folder: Path) -> Path:
    with contextlib.suppress(KeyError), atomik.folder(folder / "site") as new:
        (new / "x").touch()
        found = Path(new)
        raise KeyError
    return found


def test_a_sample_that_is_swapped_vouches_for_nothing() -> None:
    """A stranger's folder is no private folder, whatever happens to the file that is made in it to see whose it is."""
    with shared() as place:

        def swap_claim(call: Call) -> None:
            with acting_as(STRANGER):
                ours_for_folders(place)

        def swap_sample(call: Call) -> None:
            with acting_as(STRANGER), contextlib.suppress(OSError):
                sample = next(place.inner.glob(f".atomik-*/.atomik-*-{_SAMPLE}"))
                sample.rename(sample.with_name("aside"))
                sample.mkdir() if call.name == "mkdir" else sample.touch()
                sample.chmod(0o777)

        first = Acting(
            "open", swap_claim, when=lambda call: str(call.args[0]).startswith(".atomik-") and not first.acted
        )
        then = Acting("mkdir create", swap_sample, when=lambda call: call.args[0].endswith(f"-{_SAMPLE}"), after=True)
        with installed(first), installed(then), pytest.raises(errors.ConflictError, match="put another folder"):
            write_folder(place)
        assert (first.acted, then.acted) == (1, 1)


def test_a_tree_in_the_place_of_a_slot_is_left_alone() -> None:
    """Right before a write of one output deletes what it displaced, another user's folder gets that name."""
    with shared() as place:
        (place.inner / "out").write_text("old")
        (place.inner / "roots").mkdir()
        (place.inner / "roots" / "kept").touch()

        def strike(call: Call) -> None:
            with acting_as(STRANGER):
                (slot,) = place.inner.glob(".atomik-*-0")
                slot.rename(place.inner / "aside")
                (place.inner / "roots").rename(slot)

        with installed(Acting("unlink", strike, when=lambda call: call.args[0].endswith("-0"))) as kernel:
            write_file(place)
        assert kernel.acted == 1
        assert len(list(place.inner.glob(".atomik-*-0/kept"))) == 1


def test_a_folder_in_the_place_of_a_slot_keeps_its_mode() -> None:
    """The same for a read-only folder, which waits beside its destination: only it gets the new mode, and is deleted."""
    with shared(owner=VICTIM) as place:
        other = place.inner / "other"
        other.mkdir(mode=0o700)
        (other / "kept").touch()
        os.chown(other, VICTIM, VICTIM)

        def strike(call: Call) -> None:
            os.seteuid(0)
            with acting_as(STRANGER):
                (slot,) = place.inner.glob(".atomik-*-?")
                slot.rename(place.inner / "aside")
                other.rename(slot)
            os.seteuid(VICTIM)

        def work() -> None:
            os.setegid(VICTIM)
            os.seteuid(VICTIM)
            waiting = Acting(
                "open", strike, when=lambda call: bool(_SLOT.fullmatch(str(call.args[0]))) and _moved(place)
            )
            waiting.when = lambda call, real=waiting.when: not waiting.acted and real(call)  # type: ignore[misc]
            with (
                installed(waiting),
                pytest.raises(errors.ConflictError),
                atomik.folder(place.inner / "site", permissions=0o555, durable=False) as new,
            ):
                (new / "page").touch()
            assert waiting.acted == 1
            os.seteuid(0)
            (kept,) = place.inner.rglob("kept")  # under whatever name
            assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700

        in_child(work)


_SLOT = re.compile(r"\.atomik-[0-9a-f]+-[0-9]")


def _moved(place: Shared) -> bool:
    """Whether a folder waits beside its destination."""
    return any(path.is_dir() for path in place.inner.glob(".atomik-*-?"))


# --- staged content --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder", "path", "several"])
def test_staged_content_is_read_by_nobody(kind: str, overwrite: bool) -> None:
    """Before every call of a whole transaction another user opens all that he can: he sees nothing before it is there.

    One exception is known: a single overwritten file has a name of its own for the moment of its exchange.
    """
    with shared() as place:
        place.inner.chmod(0o755)
        os.chown(place.inner, 0, 0)
        if overwrite:
            (place.inner / "out").mkdir() if kind == "folder" else (place.inner / "out").write_text("old")
        early: list[tuple[str, str]] = []

        def look(call: Call) -> None:
            with acting_as(STRANGER):
                published = {place.inner / "out", place.inner / "out" / "f", place.inner / "link"}
                seen = [path for path in _readable(place.inner) if path not in published]
            early.extend((call.name, str(path.relative_to(place.inner))) for path in seen)

        with installed(Acting(" ".join(ALL), look)) as kernel:
            _stage(kind, place.inner, overwrite)
        assert kernel.acted > 10
        if kind == "file" and overwrite:
            early = [(call, path) for call, path in early if call != "rename"]
        assert early == []


def _readable(top: Path) -> list[Path]:
    """Every file below with the secret in it that can be read."""
    found = []
    for where, _, files in os.walk(top):
        for name in files:
            with contextlib.suppress(OSError):
                if SECRET in Path(where, name).read_text():
                    found.append(Path(where, name))
    return found


def _stage(kind: str, folder: Path, overwrite: bool) -> None:
    if kind == "file":
        with atomik.file(folder / "out", overwrite=overwrite) as f:
            f.write(SECRET)
    elif kind == "folder":
        with atomik.folder(folder / "out", overwrite=overwrite) as new:
            (new / "f").write_text(SECRET)
    elif kind == "path":
        with atomik.path(folder / "out", overwrite=overwrite) as name:
            name.write_text(SECRET)
            name.chmod(0o644)
    else:
        with atomik.transaction(overwrite=overwrite) as tx:
            tx.file(folder / "out").write(SECRET)
            tx.symlink(folder / "link", "out")


def test_a_read_only_folder_is_closed_while_it_waits() -> None:
    """A 0555 folder waits beside its destination, because its user may not move it; others cannot look in before the swap."""
    with shared() as place:
        seen: list[str] = []

        def look(call: Call) -> None:
            os.seteuid(0)
            with acting_as(STRANGER):
                seen.extend(call.name for path in _readable(place.base) if path.parent.name != "out")
            os.seteuid(VICTIM)

        def work() -> None:
            os.setegid(VICTIM)
            os.seteuid(VICTIM)
            watch = Acting("rename fsync syncfs link link_fd flock mkdir", look)
            with installed(watch), atomik.folder(place.base / "out", permissions=0o555) as new:
                (new / "f").write_text(SECRET)
            os.seteuid(0)
            assert watch.acted > 5
            assert stat.S_IMODE((place.base / "out").stat().st_mode) == 0o555
            assert seen in ([], ["rename"])  # at the very moment of its swap
            assert not left_in(place.base)

        in_child(work)


# --- links -----------------------------------------------------------------------------------------------------------
def test_a_strangers_link_into_ones_own_folder_is_not_followed() -> None:
    """On the way to a destination, or as tmp_dir: refused, with both paths' owners named and a cure."""
    with shared(owner=VICTIM) as place:
        os.symlink(place.outside, place.base / "trap")
        os.lchown(place.base / "trap", STRANGER, STRANGER)
        for uid in (0, VICTIM):
            message = in_child(_refusal, place.base / "trap" / "new", None, become=uid)
            assert "name the real path" in message
            assert str(STRANGER) in message
            assert "name the real path" in in_child(_refusal, place.base / "new", place.base / "trap", become=uid)
        assert not (place.outside / "new").exists()


def _refusal(path: Path, tmp_dir: Path | None) -> str:
    with pytest.raises(errors.AccessDeniedError) as caught, atomik.file(path, tmp_dir=tmp_dir) as f:
        f.write("x")
    return str(caught.value)


def test_honest_links_are_followed() -> None:
    """The user's own links, root's, and a stranger's into the stranger's folder are followed."""
    with shared(owner=VICTIM) as place:
        for name, owner, target in (
            ("mine", VICTIM, place.outside), ("roots", 0, place.outside), ("theirs", STRANGER, place.inner),
        ):  # fmt: skip
            os.symlink(target, place.base / name)
            os.lchown(place.base / name, owner, owner)
            in_child(_write, place.base / name / name, become=VICTIM)
            assert (target / name).read_text() == "x"
        in_child(_write, Path(f"/proc/self/fd/{_kept(place.outside)}/by-descriptor"), become=VICTIM)
        assert (place.outside / "by-descriptor").read_text() == "x"
        (place.base / "loop").symlink_to("loop")
        with pytest.raises(errors.AtomikOSError, match="symbolic links"):
            atomik.file(place.base / "loop" / "x")


_open: list[int] = []


def _kept(folder: Path) -> int:
    _open.append(os.open(folder, os.O_RDONLY))
    return _open[-1]


@pytest.fixture(autouse=True)
def close_kept() -> Iterator[None]:
    yield
    while _open:
        os.close(_open.pop())


def _write(path: Path) -> None:
    with atomik.file(path, overwrite=True) as f:
        f.write("x")


# --- sticky folders, locks, special files ----------------------------------------------------------------------------
def test_a_sticky_folder() -> None:
    """In a folder like /tmp: new files work; another user's file cannot be replaced, and the error says why."""
    with shared() as place:
        os.chown(place.base, 0, 0)
        place.base.chmod(0o1777)
        (place.base / "theirs").write_text("theirs")
        (place.base / "theirs").chmod(0o666)
        os.chown(place.base / "theirs", STRANGER, STRANGER)
        in_child(_write, place.base / "mine", become=VICTIM)
        in_child(_write, place.base / "mine", become=VICTIM)
        message = in_child(_commit_error, place.base, become=VICTIM)
        assert "sticky" in message
        assert str(place.base / "theirs") in message
        assert (place.base / "theirs").read_text() == "theirs"
        assert (place.base / "mine").read_text() == "x"
        assert not left_in(place.base)


def _commit_error(folder: Path) -> str:
    messages = []
    for work in (_write_theirs, _write_both, _remove_theirs):
        with pytest.raises(errors.AccessDeniedError) as caught:
            work(folder)
        messages.append(str(caught.value))
    return min(messages, key=lambda text: ("sticky" in text, str(folder / "theirs") in text))


def _write_theirs(folder: Path) -> None:
    _write(folder / "theirs")


def _write_both(folder: Path) -> None:
    with atomik.transaction(overwrite=True) as tx:
        tx.file(folder / "mine").write("never")
        tx.file(folder / "theirs").write("never")


def _remove_theirs(folder: Path) -> None:
    with atomik.transaction() as tx:
        tx.remove(folder / "theirs")


def test_a_lock_held_for_ever() -> None:
    """Everyone who may read a folder may lock it: a transaction gives up after its timeout; single writes do not wait."""
    with shared() as place:
        fd = os.open(place.base, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with pytest.raises(errors.LockTimeoutError, match="lock_timeout") as caught, \
                    atomik.transaction(overwrite=True, lock_timeout=0.1) as tx:  # fmt: skip
                tx.file(place.base / "one").write("1")
                tx.file(place.base / "two").write("2")
            assert caught.value.filename == str(place.base)
            for _ in range(2):
                _write(place.base / "one")
            with atomik.folder(place.base / "site", overwrite=True) as new:
                (new / "f").write_text("x")
        finally:
            os.close(fd)
        assert sorted(os.listdir(place.base)) == ["inner", "one", "site"]


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


def _socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o666)


def test_a_device_stays_a_device(tmp_path: Path) -> None:
    """``--output /dev/null`` as root is refused, whatever would be written; nothing opens it."""
    path = tmp_path / "null"
    _device(path)
    with installed(Acting("open", lambda _: None, when=lambda call: call.args[0] == "null")) as kernel:
        for work in (
            lambda: atomik.file(path, overwrite=True),
            lambda: atomik.file(path, "a", overwrite=True),
            lambda: atomik.file(path, overwrite=True, expect="any"),
            lambda: atomik.path(path, overwrite=True),
            lambda: atomik.folder(path, overwrite=True),
            lambda: atomik.update(path),
        ):
            with pytest.raises(errors.WrongKindError, match="it is a device"):
                work().abort()
    assert kernel.acted == 0
    assert stat.S_ISCHR(path.lstat().st_mode)
    with atomik.transaction() as tx:
        tx.remove(path)
        tx.file(path).write("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("make", [_fifo, _socket])
def test_special_files_are_replaced_and_never_opened(make: Any, tmp_path: Path) -> None:
    """A FIFO or socket at a destination is replaced; what would have to read it is refused; nothing blocks."""
    path = tmp_path / "special"
    make(path)
    opened: list[Call] = []
    watch = Acting("open", opened.append, when=lambda call: call.args[0] == "special" and not call.args[1] & os.O_PATH)
    with installed(watch):
        for work in (lambda: atomik.file(path, "a", overwrite=True), lambda: atomik.update(path)):
            with pytest.raises(errors.WrongKindError, match='mode "w"'):
                work()
        with pytest.raises(errors.WrongKindError):
            atomik.folder(path, overwrite=True)
        with atomik.file(path, overwrite=True, if_changed=True, backup="special.old") as f:
            f.write("new")
        with atomik.transaction() as tx:
            tx.move(tmp_path / "special.old", tmp_path / "moved")
        with atomik.transaction() as tx:
            tx.remove(tmp_path / "moved")
    assert opened == []
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["special"]


def test_somebody_else_s_staging_folder_is_left_alone(tmp_path: Path) -> None:
    """A private folder that belongs to another user is reported by recovery and not touched, by root either."""
    theirs = tmp_path / ".atomik-0123456789abcdef"
    theirs.mkdir(mode=0o700)
    (theirs / ".atomik-0123456789abcdef-0").write_text("theirs")
    os.chown(theirs, NOBODY, NOBODY)
    report = atomik.recover(tmp_path)
    assert [item.action for item in report.items] == ["left"]
    assert (theirs / ".atomik-0123456789abcdef-0").read_text() == "theirs"
    os.chown(theirs, 0, 0)
    atomik.recover(tmp_path)
