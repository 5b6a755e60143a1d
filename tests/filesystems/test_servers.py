"""What one server or filesystem does otherwise than all others, each with the way that atomik found around it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import atomik
from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.filesystem import forget
from atomik._system import kernel
from tests.filesystems.neighbours import root
from tests.support import landlock
from tests.support.inotify import watching
from tests.support.lab import mounts, servers
from tests.support.lab.need import need
from tests.support.seccomp import needs_seccomp, refuse
from tests.support.state import in_child, left_in

pytestmark = [pytest.mark.root, pytest.mark.filesystems, root]


@pytest.mark.parametrize("kind", ["btrfs", "btrfs-subvolume", "ext4", "tmpfs", "overlay-redirect-on"])
def test_a_held_folder_lists_new_names(kind: str) -> None:
    """btrfs lists what was there when a folder was opened or rewound: the library's listing has what came later."""
    need(mounts.missing(kind))
    with mounts.mounted(kind) as place:
        held = Directory.open(str(place.folder))
        try:
            for count in range(3):
                (place.folder / f"new-{count}").touch()
                with kernel.port.scandir(held.fd) as entries:
                    assert sorted(entry.name for entry in entries) == [f"new-{number}" for number in range(count + 1)]
        finally:
            held.close()


@pytest.mark.parametrize("name", ["disorderfs", "sshfs", "bindfs"])
def test_a_server_s_held_folder_lists_new_names(name: str) -> None:
    """disorderfs lists forever what was there when the folder was opened, and sshfs tells no types of entries."""
    need(servers.missing(name))
    with servers.serving(name) as point:
        (point / "work").mkdir()
        atomik.probe(point / "work")
        assert os.listdir(point / "work") == []
        held = Directory.open(str(point / "work"))
        try:
            (point / "work" / "new").mkdir()
            with kernel.port.scandir(held.fd) as entries:
                assert [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries] == [("new", True)]
        finally:
            held.close()


def test_a_server_that_renumbers_what_is_renamed() -> None:
    """rclone: single files work, its EIO for attributes and links is not a failed device; groups are refused untouched."""
    need(servers.missing("rclone"))
    with servers.serving("rclone") as point:
        for name in ("one", "two"):
            (point / name).write_text("old")
        with atomik.file(point / "one", overwrite=True) as f:
            f.write("new")
        assert (point / "one").read_text() == "new"
        with pytest.raises(errors.UnsupportedFilesystemError, match=r"new inode numbers|no hard links"):
            _group(point)
        assert {(point / name).read_text() for name in ("one", "two")} == {"new", "old"}
        assert not left_in(point)
        said = {promise.name: promise.holds for promise in atomik.probe(point).promises}
        assert (said["P3"], said["P4"]) == ("no", "no")
        assert said["P9"] != "no"


def _group(point: os.PathLike[str]) -> None:
    with atomik.transaction(overwrite=True) as tx:
        tx.file(os.path.join(point, "one")).write("never")
        tx.file(os.path.join(point, "two")).write("never")


def test_a_server_that_refuses_chmod() -> None:
    """A file that cannot be given its old mode is published with a narrower one, and refused if that would be wider."""
    need(servers.missing("bindfs-closed"))
    with servers.serving("bindfs-closed") as point:
        before = os.umask(0o077)
        try:
            (point / "closed").touch()
            os.umask(0o022)
            (point / "open").touch()
            with pytest.raises(errors.AccessDeniedError, match="cannot narrow the permissions"):
                _write(point / "closed")
            os.umask(0o077)
            assert _write(point / "open").not_preserved == ("mode",)
        finally:
            os.umask(before)
        assert ((point / "open").read_text(), (point / "closed").read_text()) == ("new", "")


def _write(path: os.PathLike[str]) -> atomik.ItemReceipt:
    out = atomik.file(path, overwrite=True)
    with out as f:
        f.write("new")
    assert out.receipt is not None
    item: atomik.ItemReceipt = out.receipt.items[0]
    return item


def test_watchers_of_a_server_without_flags() -> None:
    """What came by link(2) is announced: the last event is CLOSE_WRITE."""
    need(servers.missing("bindfs"))
    with servers.serving("bindfs") as point, watching(point) as watch:
        with atomik.file(point / "one") as f:
            f.write("new")
        with atomik.transaction() as tx:
            tx.file(point / "two").write("new")
            tx.file(point / "three").write("new")
        events = watch.events()
        assert [events[name][-1] for name in ("one", "two", "three")] == ["CLOSE_WRITE"] * 3


def test_entries_of_another_project() -> None:
    """XFS lets the new file in, if it goes first: overwriting works and is undone, watchers hear, the rest is refused, and
    the doctor knows."""
    need(mounts.missing("xfs"), None if shutil.which("chattr") else "needs chattr")
    with mounts.mounted("xfs") as place:
        for name in ("one", "two", "three"):
            (place.folder / name).write_text("old")
        for flags in (["-p", "42"], ["+P"]):
            subprocess.run(["chattr", *flags, place.folder], check=True)
        with watching(place.folder) as watch:
            assert _write(place.folder / "one").method == "renameat2"
            assert watch.events()["one"][-1] == "CLOSE_WRITE"

        def fail(phase: str, done: int, total: int) -> None:
            if phase == "swapping" and done == 1:
                raise KeyError

        with pytest.raises(KeyError), atomik.transaction(overwrite=True, progress=fail) as tx:
            tx.file(place.folder / "two").write("never")
            tx.file(place.folder / "three").write("never")
        with pytest.raises(errors.UnsupportedFilesystemError, match="another project id"), atomik.transaction() as tx:
            tx.remove(place.folder / "two")
        assert [(place.folder / name).read_text() for name in ("one", "two", "three")] == ["new", "old", "old"]
        assert not left_in(place.folder)
        said = atomik.probe(place.folder).promises[0]
        assert said.holds == "yes"
        assert "another project id" in said.reason


def test_the_lower_layer_s_folders() -> None:
    """P1 of a folder that came with the image, and of one made in the container (on btrfs nobody can tell)."""
    need(mounts.missing("overlay-redirect-off"))
    for redirect, lower in ((True, "yes"), (False, "files and new folders")):
        with mounts.overlay(redirect_dir=redirect) as place:
            (place.folder / "made").mkdir()
            assert atomik.probe(place.folder / "made").promises[0].holds == "yes"
            assert atomik.probe(place.folder).promises[0].holds == lower


@pytest.mark.parametrize("name", ["encfs", "exfat-fuse"])
def test_a_server_with_ideas_of_its_own(name: str) -> None:
    """encfs cuts the times of a file that is renamed to seconds, which is not a conflict; exfat-fuse has no links."""
    need(servers.missing(name))
    with servers.serving(name) as point:
        (point / "one").write_text("old")
        links = bool(atomik.probe(point).symlinks)
        assert links == (name == "encfs")
        if links:
            with atomik.update(point / "one") as f:
                f.write("new")
            assert (point / "one").read_text() == "new"
        else:
            with (
                pytest.raises(errors.UnsupportedFilesystemError, match="has no symbolic links"),
                atomik.transaction() as tx,
            ):
                tx.symlink(point / "two", "one")
            assert os.listdir(point) == ["one"]


def test_nothing_is_left_where_open_files_are_renamed_instead_of_deleted() -> None:
    """libfuse learns of a close a little later: what is deleted before that stays under another name, perhaps forever."""
    need(servers.missing("fuse2fs"))
    with servers.serving("fuse2fs") as point:
        for _ in range(100):
            with contextlib.suppress(KeyError), atomik.file(point / "one") as f:
                f.write("never")
                raise KeyError
            assert not left_in(point)


@needs_seccomp
@pytest.mark.parametrize("name", ["sshfs", "bindfs", "mergerfs"])
def test_before_linux_6_8(name: str) -> None:
    """Without mount ids that are never reused, all folders of a transaction share what was found out about their server."""
    need(servers.missing(name))
    with servers.serving(name) as point:
        (point / "one").write_text("old")

        def work() -> str:
            kernel.libc()
            refuse(errno.ENOSYS, "statx")
            return _write(point / "one").method

        assert in_child(work) in ("rename", "link")
        assert (point / "one").read_text() == "new"


@pytest.mark.skipif(landlock.version() < 2, reason="needs Landlock with REFER (Linux 5.19)")
def test_landlock_lets_single_files_through(tmp_path: Path) -> None:
    """Without REFER: whatever has to be renamed from one folder to another is refused by name, and the doctor says so."""
    (tmp_path / "one").write_text("old")

    def update() -> None:
        with atomik.update(tmp_path / "one") as f:
            f.write("never")

    def path() -> None:
        with atomik.path(tmp_path / "two") as name:
            name.write_text("never")

    def link() -> None:
        with atomik.transaction() as tx:
            tx.symlink(tmp_path / "two", "one")

    def work() -> list[str]:
        forget()
        landlock.enter(refer=False)
        _write(tmp_path / "one")
        for refused in (update, path, link):
            with pytest.raises(errors.UnsupportedFilesystemError, match="Landlock without REFER"):
                refused()
        return [promise.holds for promise in atomik.probe(tmp_path).promises[:4]]

    assert in_child(work) == ["single files", "single files", "new", "no"]
    assert (os.listdir(tmp_path), (tmp_path / "one").read_text()) == (["one"], "new")
