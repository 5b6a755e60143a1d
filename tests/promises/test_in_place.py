"""``in_place=True``: the folder stays, whatever it is mounted on, and what is in it changes all or nothing."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

import atomik
from atomik import errors
from tests.crash.deaths import die_at
from tests.support.kernels import Acting, installed
from tests.support.lab import mounts as lab
from tests.support.lab.mounting import attached
from tests.support.lab.need import need
from tests.support.state import eventually, left_in, tree
from tests.support.trees import mounts
from tests.support.users import as_user, root


def seen(folder: Path) -> dict[str, Any]:
    return {
        entry.name: seen(entry) if entry.is_dir() and not entry.is_symlink() else entry.read_text()
        for entry in folder.iterdir()
        if not entry.name.startswith(".atomik-")
    }


def plant(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        if isinstance(content, dict):
            (folder / name).mkdir()
            plant(folder / name, content)
        else:
            (folder / name).write_text(content)


def publish(folder: Path | str, files: dict[str, Any], **options: Any) -> atomik.Receipt:
    with atomik.folder(folder, in_place=True, **{"overwrite": True, "durable": False, **options}) as new:
        plant(new, files)
    assert new.receipt is not None
    return new.receipt


OLD = {
    "index": "old",
    "goes": "old",
    "dir": {"x": "old"},
    "dir goes": {"y": "old"},
    "becomes dir": "old",
    "becomes file": {},
}
NEW = {"index": "new", "added": "new", "dir": {"z": "new"}, "becomes dir": {"w": "new"}, "becomes file": "new"}


@pytest.fixture
def public(folder: Path) -> Path:
    """A folder with something in it."""
    plant(folder, {"public": OLD})
    return folder / "public"


@pytest.fixture
def reachable(open_folder: Path) -> Path:
    """The same where another user can reach it: `tmp_path` is closed again whenever somebody starts another pytest."""
    open_folder.chmod(0o755)
    plant(open_folder, {"public": OLD})
    return open_folder / "public"


def test_the_folder_stays_and_its_entries_change(public: Path) -> None:
    """Same inode, mode and owner; exactly the new content, entries of another kind too; the receipt names each."""
    public.chmod(0o2751)
    before = public.stat()
    receipt = publish(public, NEW)
    assert seen(public) == NEW
    after = public.stat()
    assert (after.st_ino, after.st_mode, after.st_uid, after.st_gid) == (
        before.st_ino, before.st_mode, before.st_uid, before.st_gid,
    )  # fmt: skip
    assert [(os.path.basename(item.path), item.op, item.kind) for item in receipt.items] == [
        ("added", "create", "file"), ("becomes dir", "replace", "folder"), ("becomes file", "replace", "file"),
        ("dir", "replace", "folder"), ("index", "replace", "file"), ("dir goes", "remove", "removal"),
        ("goes", "remove", "removal"),
    ]  # fmt: skip
    assert not left_in(public)


def test_a_program_that_works_in_it_sees_the_new_content(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every spelling of the path, the present folder's among them."""
    monkeypatch.chdir(public)
    for spelling in (".", "./", "../public", str(public), f"{public}/", f"{public}/."):
        publish(spelling, {"from": spelling})
        assert Path("from").read_text() == spelling
        assert os.listdir() == ["from"]


def test_nothing_is_replaced_without_being_asked_for(public: Path) -> None:
    """It must be empty, when staged and at the commit; then it is filled."""
    with pytest.raises(errors.FileAlreadyExistsError, match="not empty") as caught:
        atomik.folder(public, in_place=True)
    assert caught.value.filename == str(public)
    empty = public.parent / "empty"
    empty.mkdir()
    with (
        pytest.raises(errors.FileAlreadyExistsError),
        atomik.folder(empty, in_place=True, durable=False) as new,
    ):
        plant(new, NEW)
        (empty / "theirs").write_text("theirs")
    assert seen(empty) == {"theirs": "theirs"}
    (empty / "theirs").unlink()
    publish(empty, NEW, overwrite=False)
    assert seen(empty) == NEW


def test_an_empty_version_and_a_missing_folder(public: Path) -> None:
    """Nothing is content too.  A folder that does not exist is made only when asked for, and goes again."""
    assert publish(public, {}).items != ()
    assert os.listdir(public) == []
    assert publish(public, {}).items == ()
    with pytest.raises(errors.MissingPathError):
        atomik.folder("missing", in_place=True)
    with pytest.raises(ZeroDivisionError), atomik.folder("made/public", in_place=True, parents=True):
        _ = 1 / 0
    assert not Path("made").exists()
    publish("made/public", NEW, parents=True)
    assert seen(Path("made/public")) == NEW


def test_a_failed_block_changes_nothing(public: Path) -> None:
    """Nothing is left in it either."""
    before = tree(public)
    with pytest.raises(ZeroDivisionError), atomik.folder(public, overwrite=True, in_place=True) as new:
        plant(new, NEW)
        _ = 1 / 0
    assert tree(public) == before


@pytest.mark.parametrize(
    "wrong",
    [{"backup": "old"}, {"permissions": 0o755}, {"preserve": "none"}, {"resume": True}, {"copy": True, "base": "."}],
    ids=str,
)
def test_options_that_cannot_go_with_it(public: Path, wrong: dict[str, Any]) -> None:
    """Said at once."""
    with pytest.raises(ValueError, match=r"in_place|copy=True"):
        atomik.folder(public, overwrite=True, in_place=True, **wrong)
    assert not left_in(public)


@pytest.mark.parametrize("name", ["", "/", "a\0b", "x" * 300, "public/index", "link"])
def test_what_is_no_folder(public: Path, name: str) -> None:
    """An atomik error, at once."""
    Path("link").symlink_to("nowhere")
    with pytest.raises(errors.AtomikError):
        atomik.folder(name, overwrite=True, in_place=True)


def test_a_folder_that_was_moved_meanwhile(public: Path) -> None:
    """The new one at its path is another folder, perhaps another user's: neither of them is touched."""
    output = atomik.folder(public, overwrite=True, in_place=True, durable=False)
    plant(output.output, NEW)
    public.rename("moved")
    public.mkdir()
    with pytest.raises(errors.ConflictError, match="moved, removed or replaced"):
        output.commit()
    assert os.listdir(public) == []
    assert seen(Path("moved")) == OLD


def test_names_of_atomiks_are_no_content(public: Path) -> None:
    """Names of atomik's that are in the folder stay; those in the new version are refused."""
    with (
        pytest.raises(errors.InvalidDestinationError, match="belongs to atomik"),
        atomik.folder(public, overwrite=True, in_place=True, durable=False) as new,
    ):
        (new / ".atomik-0123456789abcdef").mkdir()
    assert seen(public) == OLD
    with atomik.transaction(durable=False) as other:  # is at work in it all the time
        other.folder("elsewhere", tmp_dir=public)
        publish(public, NEW)
        (private,) = {Path(path).parent for path in left_in(public) if path.endswith("-0")}
        assert private.is_dir()
    assert Path("elsewhere").is_dir()
    assert seen(public) == NEW


def test_starting_from_what_is_there(public: Path) -> None:
    """``copy`` begins with the present content, without ours; with ``if_changed`` only what differs is touched."""
    inodes = {name: (public / name).stat().st_ino for name in OLD}
    with atomik.folder(public, overwrite=True, in_place=True, copy=True, if_changed=True, durable=False) as new:
        assert seen(new) == OLD
        (new / "index").write_text("new")
        (new / "goes").unlink()
    assert seen(public) == {name: "new" if name == "index" else what for name, what in OLD.items() if name != "goes"}
    assert {name for name in OLD if (public / name).exists() and (public / name).stat().st_ino == inodes[name]} == (
        OLD.keys() - {"index", "goes"}
    )
    assert new.receipt is not None
    assert new.receipt.items[0].not_preserved == ()


def test_another_base(public: Path) -> None:
    """Also one that the folder is in."""
    publish(public, {}, base=".")
    assert seen(public) == {"public": OLD}


def test_a_lost_update_is_refused(public: Path) -> None:
    """By ``copy``, and by ``expect``: their version is kept."""
    for options in ({"copy": True}, {"expect": atomik.observe(public)}):
        with (
            pytest.raises(errors.ConflictError) as caught,
            atomik.folder(public, overwrite=True, in_place=True, durable=False, **options) as new,
        ):
            (new / "index").write_text("new")
            (public / "dir" / "x").write_text("theirs, and longer")
        assert caught.value.path == str(public)
        assert (public / "dir" / "x").read_text() == "theirs, and longer"
    publish(public, NEW, expect=atomik.observe(public))
    assert seen(public) == NEW


def test_what_others_put_there_is_replaced_with_the_rest(public: Path) -> None:
    """Two publishers who overlap never mix: the last one wins."""
    with atomik.folder(public, overwrite=True, in_place=True, durable=False) as first:
        plant(first, NEW)
        publish(public, {"of the second": "x"})
        (public / "of a stranger").write_text("x")
    assert seen(public) == NEW


def test_publishers_at_the_same_time_never_mix(public: Path) -> None:
    """Under the folder's lock."""

    def work(name: str) -> None:
        for number in range(12):
            publish(public, {f"{name}{number}.{part}": name for part in range(3)})

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({name.partition(".")[0] for name in os.listdir(public)}) == 1
    assert len(os.listdir(public)) == 3


def test_the_transaction_sees_what_will_be(public: Path) -> None:
    """plan(), exists(), open() and copy(), while it is built and afterwards."""
    with atomik.transaction(overwrite=True, durable=False) as tx:
        new = tx.folder(public, in_place=True)
        plant(new, NEW)
        for _ in range(2):
            planned = {os.path.basename(change.path): change.op for change in tx.plan()}
            assert planned == {
                "added": "create", "becomes dir": "replace", "becomes file": "replace", "dir": "replace",
                "index": "replace", "dir goes": "remove", "goes": "remove",
            }  # fmt: skip
            assert not tx.exists(public / "goes")
            assert tx.exists(public / "dir/z")
            with tx.open(public / "index") as file:
                assert file.read() == "new"
            with new:
                pass
        tx.copy(public / "added", "copied")
        assert seen(public) == OLD
    assert Path("copied").read_text() == "new"
    assert seen(public) == NEW


def test_other_operations_in_it_are_refused(public: Path) -> None:
    """Before and after; and nothing may take the folder away."""
    with atomik.transaction(overwrite=True, durable=False) as tx:
        plant(tx.folder(public, in_place=True), NEW)
        with pytest.raises(errors.NestedDestinationError):
            tx.file(public / "index")
        with pytest.raises(errors.NestedDestinationError):
            tx.file(public / "dir" / "x")
        with pytest.raises(errors.NestedDestinationError):
            tx.remove(public)
        with pytest.raises(errors.NestedDestinationError):
            tx.folder(public)
        with pytest.raises(errors.DuplicateDestinationError):
            tx.folder(public, in_place=True)
        tx.file("beside").write("new")
    assert seen(public) == NEW
    for first in (lambda tx: tx.file(public / "index").close(), lambda tx: tx.folder(public)):
        with atomik.transaction(overwrite=True, durable=False) as tx:
            first(tx)
            with pytest.raises(errors.NestedDestinationError):
                tx.folder(public, in_place=True)
            tx.abort()
    assert seen(public) == NEW


def test_dropped_and_staged_again(public: Path) -> None:
    """As every other output."""
    with atomik.transaction(overwrite=True, durable=False) as tx:
        with tx.folder(public, in_place=True) as new:
            plant(new, {"dropped": "x"})
        tx.drop(public)
        with pytest.raises(ZeroDivisionError), tx.folder(public, in_place=True) as new:
            _ = 1 / 0
        with pytest.raises(errors.TransactionStateError):
            tx.commit()
        plant(tx.folder(public, in_place=True), NEW)
    assert seen(public) == NEW


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_prepared(public: Path, end: str) -> None:
    """All of it waits for the decision."""
    tx = atomik.transaction(overwrite=True, durable=False)
    plant(tx.folder(public, in_place=True), NEW)
    tx.prepare()
    getattr(tx, end)()
    assert seen(public) == (NEW if end == "commit" else OLD)


def test_async(public: Path) -> None:
    """In a worker thread."""

    async def work() -> None:
        async with atomik.folder(public, overwrite=True, in_place=True, durable=False) as new:
            plant(new, NEW)

    asyncio.run(work())
    assert seen(public) == NEW


def test_what_is_new_comes_first_and_what_goes_goes_last(public: Path) -> None:
    """Nothing that a new entry refers to is missing in between."""
    states: list[set[str]] = []

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "swapping":
            states.append({name for name in os.listdir(public) if not name.startswith(".atomik-")})

    publish(public, NEW, progress=progress)
    assert states[0] == OLD.keys() | {"added"}
    assert all(state >= NEW.keys() for state in states)
    assert states[-1] == NEW.keys()


def test_other_objects(public: Path) -> None:
    """Links are content, FIFOs and sockets go and come, links to the outside are left alone."""
    os.mkfifo(public / "pipe")
    (public / "link").symlink_to("/nowhere")
    with atomik.folder(public, overwrite=True, in_place=True, durable=False) as new:
        (new / "index").symlink_to("dir")
        (new / "link").mkdir()
        os.mkfifo(new / "dir")
    assert os.readlink(public / "index") == "dir"
    assert stat.S_ISFIFO((public / "dir").lstat().st_mode)
    assert sorted(os.listdir(public)) == ["dir", "index", "link"]


def test_what_is_built_inherits_as_in_the_folder_itself(public: Path) -> None:
    """Set-group-id, here."""
    public.chmod(0o2755)
    for options in ({}, {"copy": True}):
        with atomik.folder(public, overwrite=True, in_place=True, durable=False, **options) as new:
            (new / "made").mkdir(exist_ok=True)
        assert (public / "made").stat().st_mode & stat.S_ISGID
        (public / "made").rmdir()


@root
@pytest.mark.leftovers("folders of root's, which the user could not delete")
def test_a_folder_whose_owner_may_do_less_than_we(reachable: Path) -> None:
    """What is staged belongs to us, and is ours to write."""
    reachable.chmod(0o077)
    assert as_user(65534, lambda: publish(reachable, NEW).durable) == "False"
    assert seen(reachable) == NEW


def test_many_entries(folder: Path) -> None:
    """A constant number of syncs and of descriptors."""
    publish(folder, {str(number): "old" for number in range(60)})
    receipt = publish(folder, {str(number): "new" for number in range(20, 80)}, durable=True)
    assert receipt.sync_calls < 10
    assert len(receipt.items) == 80
    assert len(os.listdir(folder)) == 60


def test_entries_that_others_take_away(public: Path) -> None:
    """Between the listing and the look there is nothing left to remove; that is what was asked for."""
    output = atomik.folder(public, overwrite=True, in_place=True, durable=False)
    plant(output.output, NEW)
    theirs = Acting(
        "statx", lambda call: (public / "goes").unlink(missing_ok=True), when=lambda call: "goes" in call.args
    )
    with installed(theirs):
        receipt = output.commit()
    assert theirs.acted
    assert seen(public) == NEW
    assert "goes" not in {os.path.basename(item.path) for item in receipt.items}


@mounts
@pytest.mark.filesystems
@pytest.mark.parametrize("kind", ["vfat", "fuse-rejects", "fuse-honours", "overlay-redirect-off"])
def test_other_filesystems(kind: str) -> None:
    """Files in a folder that stays need no flags of renameat2; folders do, or are refused with everything as it was."""
    need(lab.missing(kind))
    with lab.mounted(kind) as place:
        public = place.folder / "public"
        files = {name: what for name, what in OLD.items() if isinstance(what, str)}
        public.mkdir()
        publish(public, files)
        try:
            publish(public, {"index": "new", "more": "new"})
        except errors.UnsupportedFilesystemError:
            assert seen(public) == files
        else:
            assert seen(public) == {"index": "new", "more": "new"}
        before = seen(public)
        try:
            publish(public, NEW)
        except errors.UnsupportedFilesystemError:
            assert seen(public) == before
        else:
            assert seen(public) == NEW
            publish(public, OLD)
            assert seen(public) == OLD
        assert not left_in(public)


def test_a_snapshot_of_an_entry(public: Path) -> None:
    """A folder in it is exchanged whole, so its reader keeps the old version; deleted when the reader is gone."""
    with atomik.snapshot(public / "dir") as old:
        publish(public, NEW)
        assert seen(old) == {"x": "old"}
    assert seen(public) == NEW
    publish(public, OLD)
    assert not left_in(public)


def test_deleting_later(public: Path) -> None:
    """What was displaced may be deleted by a thread."""
    publish(public, NEW, cleanup="later")
    assert seen(public) == NEW
    publish(public, OLD)
    assert eventually(lambda: not left_in(public))


def test_a_killed_commit_is_undone(public: Path) -> None:
    """In the middle of the swaps, by recovery of the folder."""
    before = tree(public)
    die_at(lambda: publish(public, NEW), "rename", 8)
    assert {name for name in os.listdir(public) if not name.startswith(".atomik")} != OLD.keys()
    assert atomik.recover(public).clean
    assert tree(public) == before


@mounts
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_mount_point(kind: str) -> None:
    """The root of a mounted filesystem, with the folder that the kernel keeps there; what is mounted inside is refused."""
    need(lab.missing(kind))
    with lab.mounted(kind) as place:
        top = place.root
        assert os.path.ismount(top)
        kept = {name for name in os.listdir(top) if name == "lost+found"}
        for entry in top.iterdir():
            if entry.name != "lost+found":
                os.rmdir(entry)
        assert bool(kept) == (kind == "ext4")
        publish(top, OLD, overwrite=False, durable=True)
        publish(top, NEW, durable=True)
        assert set(os.listdir(top)) == NEW.keys() | kept
        with atomik.folder(top, overwrite=True, in_place=True, copy=True) as new:
            assert set(os.listdir(new)) == NEW.keys()
        assert set(os.listdir(top)) == NEW.keys() | kept
        with attached("tmpfs", top / "dir", "tmpfs", 0, "size=1m"):
            (top / "dir" / "theirs").write_text("x")
            for options in ({}, {"copy": True}):
                with pytest.raises(errors.MountPointError) as caught:
                    atomik.folder(top, overwrite=True, in_place=True, **options)
                assert caught.value.filename == str(top / "dir")
            assert (top / "dir" / "theirs").read_text() == "x"
        assert not left_in(top)


@mounts
def test_a_mount_that_comes_while_it_is_built() -> None:
    """Seen under the lock; all is as it was."""
    with lab.mounted("tmpfs") as place:
        public = place.folder / "public"
        plant(place.folder, {"public": OLD})
        output = atomik.folder(public, overwrite=True, in_place=True, durable=False)
        plant(output.output, NEW)
        with attached("tmpfs", public / "dir", "tmpfs", 0, "size=1m"), pytest.raises(errors.MountPointError):
            output.commit()
        assert seen(public) == OLD


@root
@pytest.mark.leftovers("folders of root's, which the user could not delete")
def test_entries_of_another_user(reachable: Path) -> None:
    """In a folder that both may write to: folders of theirs that we may not write to are exchanged within it, and what we may
    not delete is reported, never lost or half done."""
    os.chmod(reachable.parent, 0o777)
    reachable.chmod(0o777)
    theirs = reachable / "dir"
    os.chown(theirs, 65533, 65533)

    def work() -> None:
        receipt = publish(reachable, NEW)
        assert len(receipt.leftovers) == 2, receipt

    assert as_user(65534, work) == "None"
    assert seen(reachable) == NEW
    assert [item.action for item in atomik.recover(reachable).items] == ["left", "left"]


@root
def test_a_sticky_folder(reachable: Path) -> None:
    """Where others' entries may not be replaced: said when it is staged."""
    reachable.chmod(0o1777)

    def work() -> None:
        with pytest.raises(errors.AccessDeniedError, match="sticky"):
            atomik.folder(reachable, overwrite=True, in_place=True)

    assert as_user(65534, work) == "None"
    assert seen(reachable) == OLD
