"""A folder that others may write to: nothing outside our own transactions is touched, read without bound, or waited for.

Most of it is root in a folder of another user's, because that is where a mistake costs most; and an ordinary user the same.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atomik
from atomik import errors
from atomik._hidden_names import JOURNAL_NAME
from atomik._protocol import records as _records
from atomik._protocol.records import COMMITTED, Folder, Intent, StepRecord
from atomik._system import kernel as _kernel
from tests.crash.deaths import die_at
from tests.support.journals import encode_intent
from tests.support.kernels import Acting, installed
from tests.support.state import NOBODY, in_child, left_in, tree
from tests.support.users import needs_root, no_devices, no_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TXID = "0123456789abcdef"
CLAIM = f".atomik-{TXID}"
SLOT = f".atomik-{TXID}-0"

pytestmark = pytest.mark.leftovers("names that look like atomik's, and are not ours to remove")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that everybody may write to, without the sticky bit: the worst there is."""
    place = tmp_path / "shared"
    place.mkdir()
    place.chmod(0o777)
    return place


@pytest.fixture
def reachable(open_folder: Path) -> Path:
    """The same where another user can reach it: `tmp_path` is closed again whenever somebody starts another pytest."""
    place = open_folder / "shared"
    place.mkdir()
    place.chmod(0o777)
    return place


def publish(folder: Path) -> None:
    with atomik.transaction(overwrite=True, lock_timeout=1.0) as tx:
        tx.file(folder / "one").write("new")
        tx.file(folder / "two").write("new")


def one_item(folder: Path) -> None:
    with atomik.file(folder / "one", overwrite=True, lock_timeout=1.0) as f:
        f.write("new")


def read(folder: Path) -> None:
    with atomik.reading(folder, lock_timeout=1.0):
        pass


ACTIONS = {"recover": atomik.recover, "transaction": publish, "one item": one_item, "reading": read}


# --- in the place of the journal ---------------------------------------------------------------------------------------
def _link_to_victim(place: Path) -> None:
    (place.parent / "victim").write_text("secret")
    (place / JOURNAL_NAME).symlink_to(place.parent / "victim")


def _hard_link_to_victim(place: Path) -> None:
    (place.parent / "victim").write_text("secret")
    os.link(place.parent / "victim", place / JOURNAL_NAME)


def _sparse(place: Path) -> None:
    with (place / JOURNAL_NAME).open("wb") as file:
        file.write(_records._HEAD.pack(b"AtmK", 1, 1, 10 << 30))
        file.truncate(10 << 30)


def _film(place: Path) -> None:
    with (place / JOURNAL_NAME).open("wb") as file:
        file.write(os.urandom(4096))
        file.truncate(500 << 20)


def _fifo(place: Path) -> None:
    os.mkfifo(place / JOURNAL_NAME)


def _device(place: Path) -> None:
    if why := no_devices():
        pytest.skip(why)
    os.mknod(place / JOURNAL_NAME, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def _socket(place: Path) -> None:
    os.mknod(place / JOURNAL_NAME, stat.S_IFSOCK | 0o600)


def _folder(place: Path) -> None:
    (place / JOURNAL_NAME).mkdir()
    (place / JOURNAL_NAME / "victim").write_text("secret")


def _dangling(place: Path) -> None:
    (place / JOURNAL_NAME).symlink_to("nowhere")


def _writable_by_group(place: Path) -> None:
    _journal(place)
    (place / JOURNAL_NAME).chmod(0o620)


def _writable_by_others(place: Path) -> None:
    _journal(place)
    (place / JOURNAL_NAME).chmod(0o602)


def _of_another_user(place: Path) -> None:
    if why := no_root():
        pytest.skip(why)
    _journal(place)
    os.chown(place / JOURNAL_NAME, NOBODY, NOBODY)


def _made_by_hand(place: Path) -> None:
    """Valid in every byte, but about folders and objects that its author never had."""
    (place / "one").write_text("victim")
    _journal(place, Intent(TXID, (Folder((), b"h?", True),), _steps("one")))


def _journal(place: Path, intent: Intent | None = None, outcome: int | None = None) -> None:
    data = encode_intent(intent or Intent(TXID, (Folder((), b"h?", True),), ()))
    (place / JOURNAL_NAME).write_bytes(data if outcome is None else data + _records.encode_outcome(outcome, TXID))
    (place / JOURNAL_NAME).chmod(0o600)


def _steps(name: str) -> tuple[StepRecord, ...]:
    return (StepRecord("create", "file", False, 0, name, 0, SLOT, b"h?", None, 0),)


TRAPS = (
    _link_to_victim, _hard_link_to_victim, _dangling, _sparse, _film, _fifo, _device, _socket, _folder, _writable_by_group,
    _writable_by_others, _of_another_user, _made_by_hand,
)  # fmt: skip


def bounded(action: Callable[[], object]) -> str:
    """What comes of it in a process that may not take much memory and not much time."""

    def work() -> str:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        for limit, most in (
            (resource.RLIMIT_AS, pages * resource.getpagesize() + (1 << 29)),
            (resource.RLIMIT_CPU, 30),
        ):
            hard = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        begun = time.monotonic()
        try:
            action()
        except errors.AtomikError as exc:
            return f"{type(exc).__name__}: {exc}"
        finally:
            assert time.monotonic() - begun < 60
        return "done"

    answer: str = in_child(work)
    return answer


@pytest.mark.parametrize("what", ACTIONS)
@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__.lstrip("_"))
def test_what_is_no_journal_of_ours_is_refused(shared: Path, trap: Callable[[Path], None], what: str) -> None:
    """JournalError that names it; nothing was touched, nothing large was read, nothing was waited for."""
    trap(shared)
    before = state(shared.parent)
    assert bounded(lambda: ACTIONS[what](shared)).startswith("JournalError: ")
    assert state(shared.parent) == before


def state(top: Path) -> dict[str, object]:
    """Everything, but the content of what is large."""
    found: dict[str, object] = {}
    for where, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(where, name)
            seen = path.lstat()
            small = stat.S_ISREG(seen.st_mode) and seen.st_size < 1 << 20
            found[str(path)] = (
                seen.st_mode,
                seen.st_uid,
                seen.st_ino,
                seen.st_size,
                path.read_bytes() if small else None,
            )
    return found


def test_an_empty_file_of_that_name_is_a_torn_journal(shared: Path) -> None:
    """Space that was never written: it holds no intent, and stops nobody."""
    (shared / JOURNAL_NAME).touch(mode=0o600)
    publish(shared)
    assert sorted(os.listdir(shared)) == ["one", "two"]


@pytest.mark.parametrize("name", ["/etc/passwd", "..", "../victim", "a/b", ".", "", "nul\0"])
def test_names_that_lead_elsewhere_are_refused(shared: Path, name: str) -> None:
    """Also in a journal whose folder and own identity are true."""
    (shared.parent / "victim").write_text("secret")
    forge(shared, lambda me: Intent(TXID, (Folder((), me, True),), _steps(name)))
    before = state(shared.parent)
    for action in ACTIONS.values():
        with pytest.raises(errors.JournalError):
            action(shared)
    assert state(shared.parent) == before


def forge(place: Path, intent: Callable[[bytes], Intent], outcome: int | None = None) -> None:
    """A journal with true identities: what an attacker with our rights, and so nobody else, could make."""
    from atomik._folder.directory import Directory

    (place / JOURNAL_NAME).touch(mode=0o600)
    directory = Directory.open(str(place))
    try:
        me, own = directory.identity(""), directory.identity(JOURNAL_NAME)
        assert me
        assert own
    finally:
        directory.close()
    _journal(place, intent(me)._replace(journal=own), outcome)


def test_folders_above_are_known_by_identity(shared: Path) -> None:
    """A journal may say that another folder takes part: what is there is another folder, and is left alone."""
    other = shared.parent / "other"
    other.mkdir()
    (other / "x").write_text("victim")
    forge(
        shared,
        lambda me: Intent(
            TXID,
            (Folder(("shared",), me, True), Folder(("other",), b"h not that one", True)),
            (StepRecord("create", "file", False, 1, "x", 1, SLOT, b"h?", None, 0),),
        ),
    )
    with pytest.raises(errors.RollbackError):
        atomik.recover(shared)
    atomik.recover(shared, discard=True)
    assert (other / "x").read_text() == "victim"


def test_only_recorded_identities_are_touched(shared: Path) -> None:
    """I4 and I6: objects at the recorded names that are not the recorded ones stay, committed or not."""
    for outcome in (None, COMMITTED):
        (shared / "x").write_text("victim")
        (shared / SLOT).mkdir()
        (shared / SLOT / "y").write_text("victim")
        forge(shared, lambda me: Intent(TXID, (Folder((), me, True),), _steps("x")), outcome)
        atomik.recover(shared)
        assert (shared / "x").read_text() == "victim"
        assert (shared / SLOT / "y").read_text() == "victim"
        shutil.rmtree(shared / SLOT)


# --- in the place of the private folder -----------------------------------------------------------------------------------
def _claim_is_a_link(place: Path) -> None:
    (place.parent / "victim").mkdir()
    (place.parent / "victim" / SLOT).write_text("secret")
    (place / CLAIM).symlink_to(place.parent / "victim")


def _claim_is_a_file(place: Path) -> None:
    (place / CLAIM).write_text("secret")


def _claim_is_a_fifo(place: Path) -> None:
    os.mkfifo(place / CLAIM)


def _claim_of_another(place: Path) -> None:
    (place / CLAIM).mkdir(mode=0o700)
    (place / CLAIM / SLOT).write_text("theirs")
    if why := no_root():
        pytest.skip(why)
    os.chown(place / CLAIM, NOBODY, NOBODY)


def _claim_open_to_others(place: Path) -> None:
    (place / CLAIM).mkdir()
    (place / CLAIM / SLOT).write_text("who knows whose")
    (place / CLAIM).chmod(0o755)


def _private_folder_of_ours(place: Path) -> None:
    """Renamed by an attacker to look like a private folder."""
    (place / CLAIM).mkdir(mode=0o700)
    (place / CLAIM / "letters").write_text("secret")
    (place / CLAIM / "sub").mkdir()
    (place / CLAIM / "sub" / "more").write_text("secret")


def _private_folder_with_links(place: Path) -> None:
    """The same, with a link instead of its journal."""
    _private_folder_of_ours(place)
    (place.parent / "victim").write_text("secret")
    (place / CLAIM / f"{CLAIM}-journal").symlink_to(place.parent / "victim")


def _slot_of_another(place: Path) -> None:
    (place / SLOT).write_text("theirs")
    if why := no_root():
        pytest.skip(why)
    os.chown(place / SLOT, NOBODY, NOBODY)


def _slot_is_a_folder(place: Path) -> None:
    (place / SLOT).mkdir()
    (place / SLOT / "x").write_text("secret")


LURES = (
    _claim_is_a_link, _claim_is_a_file, _claim_is_a_fifo, _claim_of_another, _claim_open_to_others, _private_folder_of_ours,
    _slot_of_another, _slot_is_a_folder,
)  # fmt: skip


@pytest.mark.parametrize("lure", LURES, ids=lambda lure: lure.__name__.lstrip("_"))
def test_what_only_looks_like_ours_is_left_and_told(shared: Path, lure: Callable[[Path], None]) -> None:
    """Recovery reports it as "left", and why; writers do not care."""
    lure(shared)
    before = state(shared.parent)
    report = atomik.recover(shared)
    assert [item.action for item in report.items if item.action != "removed"] == ["left"]
    assert report.items[-1].detail
    assert not report.clean
    assert state(shared.parent) == before
    publish(shared)
    one_item(shared)
    assert sorted(name for name in os.listdir(shared) if not name.startswith(".")) == ["one", "two"]


def test_a_link_in_the_place_of_a_claims_journal_is_refused(shared: Path) -> None:
    """And the folder's contents survive."""
    _private_folder_with_links(shared)
    before = state(shared.parent)
    with pytest.raises(errors.JournalError):
        atomik.recover(shared)
    assert state(shared.parent) == before


def test_a_link_to_our_file_in_the_place_of_a_slot_costs_only_the_link(shared: Path) -> None:
    """An unlinked name is not an emptied file, and what a link points to is not the link."""
    victim = shared.parent / "victim"
    victim.write_text("secret")
    os.link(victim, shared / SLOT)
    (shared / f".atomik-{TXID}-1").symlink_to(victim)
    atomik.recover(shared)
    assert victim.read_text() == "secret"
    assert os.listdir(shared) == []


def test_a_tree_that_takes_the_place_of_a_slot_is_not_deleted(shared: Path) -> None:
    """Looked at as a file, and exchanged for a victim's folder before it is removed."""
    (shared / SLOT).write_text("bait")
    (shared / "victim").mkdir()
    (shared / "victim" / "x").write_text("secret")

    def exchange(_: object) -> None:
        (shared / SLOT).rename(shared / "bait")
        (shared / "victim").rename(shared / SLOT)

    with installed(Acting("unlink", exchange, when=lambda call: call.args[0] == SLOT)):
        report = atomik.recover(shared)
    assert [item.action for item in report.items] == ["left"]
    assert (shared / SLOT / "x").read_text() == "secret"


# --- a real one, tampered with -------------------------------------------------------------------------------------------
@pytest.fixture
def hot(shared: Path) -> Iterator[Path]:
    """A transaction of ours died here after its first swap."""
    (shared / "one").write_text("old")
    (shared / "two").write_text("old")
    die_at(lambda: publish(shared), "rename")
    yield shared
    assert not left_in(shared), "what was ours is gone at the end"


def claim_of(place: Path) -> Path:
    (private_folder,) = (path for path in place.iterdir() if path.is_dir())
    return private_folder


def contents(place: Path) -> list[str]:
    return [(place / name).read_text() for name in ("one", "two")]


def test_a_claim_renamed_to_another_id_keeps_its_contents(hot: Path) -> None:
    """Someone renamed it: nothing in it is deleted, and the transaction waits for it."""
    private_folder = claim_of(hot)
    moved = private_folder.rename(hot / CLAIM)
    inside = os.listdir(moved)
    with pytest.raises(errors.RollbackError):
        atomik.recover(hot)
    assert os.listdir(moved) == inside
    moved.rename(private_folder)
    atomik.recover(hot)
    assert contents(hot) == ["old", "old"]


def test_another_folder_in_the_place_of_the_claim(hot: Path) -> None:
    """It has the name, but not the identity."""
    private_folder = claim_of(hot)
    aside = private_folder.rename(hot.parent / "aside")
    private_folder.mkdir(mode=0o700)
    (private_folder / f"{private_folder.name}-1").write_text("innocent")
    with pytest.raises(errors.RollbackError):
        publish(hot)
    assert os.listdir(private_folder) == [f"{private_folder.name}-1"]
    shutil.rmtree(private_folder)
    aside.rename(private_folder)
    atomik.recover(hot)
    assert contents(hot) == ["old", "old"]


def test_a_link_in_the_place_of_a_parent(tmp_path: Path) -> None:
    """The way to the other parent leads through a link now: it is not followed."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("old")

    def work() -> None:
        with atomik.transaction(overwrite=True) as tx:
            tx.file(tmp_path / "a" / "x").write("new")
            tx.file(tmp_path / "b" / "x").write("new")

    die_at(work, "rename", 2)
    (tmp_path / "b").rename(tmp_path / "real")
    (tmp_path / "b").symlink_to("real")
    with pytest.raises(errors.RollbackError):
        atomik.recover(tmp_path / "a")
    (tmp_path / "b").unlink()
    (tmp_path / "real").rename(tmp_path / "b")
    atomik.recover(tmp_path / "a")
    assert not left_in(tmp_path)


@needs_root
def test_another_users_dead_transaction_is_not_ours(reachable: Path) -> None:
    """Root neither undoes nor finishes nor deletes it; it says whose it is. Its owner can."""

    def die() -> None:
        for name in ("one", "two"):
            (reachable / name).write_text("old")
        die_at(lambda: publish(reachable), "rename")

    in_child(die, become=NOBODY)
    before = tree(reachable)
    with pytest.raises(errors.JournalError, match=f"it belongs to user {NOBODY}"):
        atomik.recover(reachable)
    assert tree(reachable) == before
    (reachable / JOURNAL_NAME).rename(reachable.parent / "aside")
    assert [item.action for item in atomik.recover(reachable).items] == ["left"]
    (reachable.parent / "aside").rename(reachable / JOURNAL_NAME)
    assert tree(reachable) == before
    in_child(lambda: str(atomik.recover(reachable)), become=NOBODY)
    assert contents(reachable) == ["old", "old"]
    assert not left_in(reachable)


@needs_root
def test_roots_journal_is_not_an_ordinary_users_to_settle(reachable: Path) -> None:
    """An error that says so, and nothing touched."""
    (reachable / "one").write_text("old")
    die_at(lambda: publish(reachable), "rename")
    with pytest.raises(errors.JournalError, match="Let its owner run"):
        in_child(lambda: str(atomik.recover(reachable)), become=NOBODY)
    atomik.recover(reachable)
    assert (reachable / "one").read_text() == "old"


@needs_root
def test_a_folder_that_takes_the_place_of_a_new_claim_is_refused(shared: Path) -> None:
    """Between making it and opening it: root does not stage in an attacker's folder."""

    def exchange(call: object) -> None:
        name = call.args[0]  # type: ignore[attr-defined]
        (shared / name).rename(shared / "aside")
        (shared / name).mkdir(mode=0o777)
        os.chown(shared / name, NOBODY, NOBODY)

    private_folders = Acting("mkdir", exchange, when=lambda call: call.args[0].startswith(".atomik-"), after=True)
    with installed(private_folders), pytest.raises(errors.ConflictError) as caught:
        publish(shared)
    assert caught.value.errno == errno.EBUSY
    assert _kernel.is_folder((shared / "aside").stat().st_mode)
