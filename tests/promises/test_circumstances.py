"""Circumstances that a program does not choose: the promises hold, or the output is refused with everything as it was."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from tests.crash.deaths import die_at
from tests.support.kernels import Faulty, installed
from tests.support.lab import linux, mounting, mounts, namespace, passthrough
from tests.support.lab.need import need
from tests.support.lab.passthrough import Renames
from tests.support.seccomp import needs_seccomp, refuse
from tests.support.state import in_child, left_in, tree
from tests.support.users import NOBODY, root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}


def run(code: str, *before: str, cwd: Path, arguments: Iterable[str] = ()) -> str:
    """What a new interpreter prints."""
    command = [*before, sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_two(folder: Path, **options: Any) -> None:
    with atomik.transaction(overwrite=True, **options) as tx:
        tx.file(folder / "one").write("new")
        tx.file(folder / "two").write("new")


def read_two(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("one", "two")]


# --- the process -------------------------------------------------------------------------------------------------------
#: A program that is upgraded, or enters a chroot, between the first output and the commit.
GONE = """
import os, sys, atomik
JOBS = {
    "group": lambda: staged(atomik.transaction(overwrite=True), "one", "two"),
    "update": lambda: written(atomik.update("one")),
    "append": lambda: written(atomik.file("one", "a", overwrite=True)),
    "backup": lambda: written(atomik.file("one", overwrite=True, backup="one.old")),
    "folder": lambda: filled(atomik.folder("site", overwrite=True)),
    "copy": lambda: filled(atomik.folder("site", overwrite=True, copy=True)),
    "path": lambda: filled(atomik.path("site", overwrite=True), os.mkdir),
    "expected": lambda: written(atomik.file("one", overwrite=True, expect=atomik.observe("one"))),
    "removed": lambda: removed(atomik.transaction()),
}

def staged(tx, *names):
    for name in names:
        tx.file(name).write("new")
    return tx

def written(output):
    output.output.write("new")
    return output

def filled(output, make=lambda path: None):
    make(output.output)
    (output.output / "page").write_text("new")
    return output

def removed(tx):
    tx.remove("site")
    tx.move("two", "three")
    return tx

class Gone:
    def find_spec(self, name, path=None, target=None):
        raise ModuleNotFoundError(f"no module {name!r} any more")

for name, job in JOBS.items():
    child = os.fork()
    if not child:
        os.mkdir(name); os.chdir(name)
        os.mkdir("site")
        for file in ("one", "two"):
            with open(file, "w") as f: f.write("old")
        output = job()
        sys.meta_path.insert(0, Gone())
        assert output.commit().items
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_nothing_can_be_loaded_at_the_commit(folder: Path) -> None:
    """All that a commit needs, and its receipt, was loaded when the output was staged (I14)."""
    said = run(GONE, cwd=folder)
    assert [line.split()[1] for line in said.splitlines()] == ["0"] * 9, said
    assert not left_in(folder)


#: the same, with a dead transaction's journal in the folder: before the output is staged, or after it
GONE_BEFORE_RECOVERY = """
import os, sys, atomik
class Gone:
    def find_spec(self, name, path=None, target=None):
        raise ModuleNotFoundError(f"no module {name!r} any more")

os.rename(*sys.argv[1:3]) if sys.argv[3] == "before" else None
output = atomik.file("new/one", overwrite=True)
output.output.write("newest")
os.rename(*sys.argv[1:3]) if sys.argv[3] == "after" else None
sys.meta_path.insert(0, Gone())
assert "atomik._commit.machinery" in sys.modules or sys.argv[3] == "after"
try:
    output.commit()
except atomik.errors.JournalError as exc:
    print(exc.filename, exc.strerror)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_nothing_can_be_loaded_when_a_dead_transaction_is_met(folder: Path, moment: str) -> None:
    """What recovers it was loaded if its journal was there when the file was staged.  If it came later, that is an error that
    says what to do; nothing is lost or changed."""
    dead = folder / "new"
    dead.mkdir()
    for name in ("one", "two"):
        (dead / name).write_text("old")
    die_at(lambda: write_two(dead), "rename", 1)
    journal, aside = dead / ".atomik-journal", folder / "aside"
    journal.rename(aside)
    before = tree(dead)
    said = run(GONE_BEFORE_RECOVERY, cwd=folder, arguments=(str(aside), str(journal), moment))
    if moment == "before":
        assert said == ""
        assert read_two(dead) == ["newest", "old"]
        assert not left_in(folder)
        return
    assert said.startswith(f"{dead} a dead transaction must be recovered first")
    assert "Run 'atomik recover'" in said
    journal.rename(aside)
    assert tree(dead) == before
    aside.rename(journal)
    assert atomik.recover(dead).clean
    assert read_two(dead) == ["old", "old"]
    assert not left_in(folder)


LEFT_OPEN = """
import atomik
transactions = [atomik.transaction() for _ in range(3)]
for number, tx in enumerate(transactions):
    (tx.folder(f"new-{number}") / "page").write_text("new")
"""


def test_the_program_ends_with_several_open_transactions(folder: Path) -> None:
    """All are dropped, although the warning about the first is an error, as under -W error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LEFT_OPEN], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert "was never committed nor aborted" in done.stderr
    assert os.listdir(folder) == []


@root
def test_the_way_to_the_working_folder_is_closed(folder: Path) -> None:
    """``sudo -u app`` from a private home: relative paths work, as they do for open(2)."""
    Path("home/work").mkdir(parents=True)
    for path, mode in (("home/work", 0o777), ("home", 0o700)):
        os.chmod(path, mode)
    os.chdir("home/work")

    def work() -> None:
        for text in ("first", "second"):
            with atomik.file("conf", overwrite=True) as f:
                f.write(text)
        write_two(Path())
        with atomik.folder("site") as new:
            new.joinpath("page").write_text("new")

    in_child(work, become=NOBODY)
    assert sorted(os.listdir()) == ["conf", "one", "site", "two"]
    assert Path("conf").read_text() == "second"


def test_more_folders_than_descriptors(folder: Path) -> None:
    """A file for each day, in a folder of its own: the soft limit of open files is not a limit, the hard one is."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < 1024:
        pytest.skip(f"the hard limit here is {hard}")
    days = [folder / f"day-{number}" for number in range(300)]
    for day in days:
        day.mkdir()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, min(hard, 4096)))
        with atomik.transaction(durable=False) as tx:
            for day in days:
                with tx.file(day / "data") as f:
                    f.write(day.name)

    in_child(work)
    assert all((day / "data").read_text() == day.name for day in days)


# --- what belongs to a file --------------------------------------------------------------------------------------------
def as_path(name: Path) -> None:
    with atomik.path(name, overwrite=True) as new:
        new.write_text("new")


def as_file(name: Path) -> None:
    with atomik.file(name, overwrite=True) as f:
        f.write("new")


def as_move(name: Path) -> None:
    Path("source").write_text("new")
    try:
        with atomik.transaction(overwrite=True) as tx:
            tx.move("source", name)
    finally:
        Path("source").unlink(missing_ok=True)


@pytest.mark.parametrize("log", ["app.db-wal", "app.db-journal"])
@pytest.mark.parametrize("work", [as_path, as_file, as_move])
def test_the_log_of_a_database_that_died(folder: Path, work: Callable[[Path], None], log: str) -> None:
    """SQLite would replay the old log into the new database: refused, and both stay."""
    Path("app.db").write_text("old")
    Path(log).write_text("changes")
    with pytest.raises(errors.ConflictError, match=log):
        work(Path("app.db"))
    assert sorted(os.listdir()) == ["app.db", log]
    assert Path("app.db").read_text() == "old"
    Path(log).unlink()
    work(Path("app.db"))
    assert Path("app.db").read_text() == "new"


@pytest.fixture
def dead_database(folder: Path) -> Path:
    """A database whose program died: its last row is in the log alone."""
    with contextlib.closing(sqlite3.connect("live.db", isolation_level=None)) as live:
        live.execute("PRAGMA journal_mode=WAL")
        live.execute("CREATE TABLE t (x)")
        live.execute("INSERT INTO t VALUES (1)")
        for ending in ("", "-wal"):
            shutil.copy(f"live.db{ending}", f"app.db{ending}")
    for left in ("live.db", "live.db-wal", "live.db-shm"):
        Path(left).unlink(missing_ok=True)
    Path("other.db").write_text("other")
    return folder / "app.db"


def rows(name: str) -> list[tuple[int]]:
    with contextlib.closing(sqlite3.connect(name)) as database:
        return database.execute("SELECT x FROM t").fetchall()


def moved(tx: atomik.Transaction) -> None:
    tx.move("app.db", "new.db")


def copied(tx: atomik.Transaction) -> None:
    tx.copy("app.db", "new.db")


def exchanged(tx: atomik.Transaction) -> None:
    tx.exchange("other.db", "app.db")


def linked(tx: atomik.Transaction) -> None:
    tx.symlink("app.db", "other.db", overwrite=True)


@pytest.mark.parametrize("work", [moved, copied, exchanged, linked])
def test_a_database_is_not_parted_from_its_log(dead_database: Path, work: Callable[[atomik.Transaction], None]) -> None:
    """It would be without its last changes, and another one would get them."""
    before = {name: Path(name).read_bytes() for name in os.listdir()}
    with pytest.raises(errors.ConflictError, match=r"app\.db-wal|new\.db"), atomik.transaction() as tx:
        work(tx)
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before
    assert rows("app.db") == [(1,)]


def test_a_log_that_cannot_be_read(dead_database: Path) -> None:
    """It counts as one that holds changes."""
    kernel = Faulty.every("pread", errno.EIO)
    with installed(kernel), pytest.raises(errors.ConflictError, match=r"app\.db-wal"), atomik.transaction() as tx:
        tx.move("app.db", "new.db")
    assert kernel.struck
    assert rows("app.db") == [(1,)]


def test_a_database_is_not_swapped_away_from_its_log(dead_database: Path) -> None:
    """As above, by `atomik.swap`, whichever of the two it is."""
    for pair in (("app.db", "other.db"), ("other.db", "app.db")):
        with pytest.raises(errors.ConflictError, match=r"app\.db-wal"):
            atomik.swap(*pair)
    assert rows("app.db") == [(1,)]


@pytest.mark.parametrize("order", [("", "-wal"), ("-wal", "")])
@pytest.mark.parametrize("operation", ["move", "copy"])
def test_a_database_goes_with_its_log(dead_database: Path, operation: str, order: tuple[str, str]) -> None:
    """In one transaction, in any order."""
    with atomik.transaction() as tx:
        for ending in order:
            getattr(tx, operation)(f"app.db{ending}", f"new.db{ending}")
    assert rows("new.db") == [(1,)]


def pipe(name: str) -> None:
    with atomik.file(name, "wb", overwrite=True) as f:
        f.write(b"SQLite format 3\0, and so on")


def by_moving(name: str) -> None:
    Path("source").write_bytes(b"new")
    with atomik.transaction(overwrite=True) as tx:
        tx.move("source", name)


@pytest.mark.parametrize("work", [pipe, by_moving])
def test_a_database_that_a_program_has_open(folder: Path, work: Callable[[str], None]) -> None:
    """Its log is empty, and will get what that program writes: into the new database, when that is opened next."""
    with contextlib.closing(sqlite3.connect("app.db", isolation_level=None)) as live:
        live.execute("PRAGMA journal_mode=WAL")
        live.execute("CREATE TABLE t (x)")
        live.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert not Path("app.db-wal").stat().st_size
        with pytest.raises(errors.ConflictError, match=r"app\.db-wal"):
            work("app.db")
        with pytest.raises(errors.ConflictError, match=r"app\.db-wal"), atomik.transaction() as tx:
            tx.move("app.db", "new.db")
        live.execute("INSERT INTO t VALUES (1)")
    assert rows("app.db") == [(1,)]
    work("app.db")


@pytest.mark.parametrize("name", ["History", "app.DB", "data.bin"])
def test_a_database_of_any_name(folder: Path, name: str) -> None:
    """The content says what it is, at the end of the block at the latest."""
    Path(name).write_text("old")
    Path(f"{name}-wal").write_bytes(b"\x37\x7f\x06\x82")
    with pytest.raises(errors.ConflictError, match=f"{name}-wal"):
        pipe(name)
    assert sorted(os.listdir()) == sorted([name, f"{name}-wal"])
    assert Path(name).read_text() == "old"


def test_the_log_of_another_database_at_the_name_of_the_previous_version(folder: Path) -> None:
    """It would be replayed into the version that is kept."""
    Path("app.db").write_text("old")
    Path("app.bak-wal").write_text("changes")
    with pytest.raises(errors.ConflictError, match=r"app\.bak-wal"):
        atomik.write_text("app.db", "new", overwrite=True, backup="app.bak")
    assert sorted(os.listdir()) == ["app.bak-wal", "app.db"]
    assert Path("app.db").read_text() == "old"


def test_a_log_that_is_over(folder: Path) -> None:
    """SQLite's journal_mode=PERSIST leaves a log with a header of zeros; it holds nothing."""
    with contextlib.closing(sqlite3.connect("app.db")) as database:
        database.execute("PRAGMA journal_mode=PERSIST")
        database.execute("CREATE TABLE t (x)")
        database.commit()
    assert Path("app.db-journal").stat().st_size
    as_path(Path("app.db"))
    assert Path("app.db").read_text() == "new"


def test_files_that_were_written_beside_it(folder: Path) -> None:
    """A library that writes three files for one name: the new one is not paired with two old ones."""
    endings = (".shp", ".shx", ".dbf")
    for ending in endings:
        Path(f"map{ending}").write_text("old")
    with (
        pytest.raises(errors.ConflictError, match=r"map\.shx|map\.dbf"),
        atomik.path("map.shp", overwrite=True) as name,
    ):
        for ending in endings:
            name.with_suffix(ending).write_text("new")
    assert {Path(f"map{ending}").read_text() for ending in endings} == {"old"}


# --- the system ----------------------------------------------------------------------------------------------------------
HIDDEN = """
import ctypes, os, atomik
assert ctypes.CDLL(None).mount(b"none", b"/proc", b"tmpfs", 0, None) == 0
with atomik.transaction(overwrite=True) as tx:
    tx.file("one").write("new")
    tx.file("two").write("new")
with atomik.update("one") as f:
    f.write("er")
with atomik.file("two", overwrite=True, backup="two.old") as f:
    f.write("newest")
with atomik.folder("site") as new:
    (new / "page").write_text("new")
with atomik.folder("site", overwrite=True, copy=True) as new:
    (new / "page").write_text("newer")
promised = {promise.name: promise.holds for promise in atomik.probe(".").promises}
del promised["P5"]  # not in memory
assert set(promised.values()) <= {"yes", "new", "unknown"}
assert atomik.recover(".").clean
"""


@root
def test_without_proc(folder: Path) -> None:
    """A chroot, a build root: groups, updates, previous versions, folders and the doctor."""
    need(namespace.missing_root())
    for name in ("one", "two"):
        (folder / name).write_text("old")
    run(HIDDEN, "unshare", "-m", "--propagation", "private", cwd=folder)
    assert sorted(os.listdir(folder)) == ["one", "site", "two", "two.old"]
    assert (folder / "site" / "page").read_text() == "newer"


@root
@needs_seccomp
def test_a_mount_below_on_an_old_kernel() -> None:
    """Linux 5.4 has neither openat2(2) nor mount ids in statx(2), but a bind mount is not taken for a part of the folder."""
    need(namespace.missing_root())
    home = namespace.scratch("site")
    for name in ("site/uploads", "uploads"):
        (home / name).mkdir(parents=True)
    (home / "uploads" / "picture").write_text("the only copy")

    def work() -> None:
        refuse(38, "openat2", "statx")
        with pytest.raises(errors.MountPointError), atomik.folder(home / "site", overwrite=True) as new:
            (new / "index.html").write_text("new")

    with mounts.bind(home / "uploads", home / "site" / "uploads"):
        in_child(work)
        assert os.listdir(home / "uploads") == ["picture"]
    assert not left_in(home)


# --- the filesystem ------------------------------------------------------------------------------------------------------
@root
@pytest.mark.filesystems
def test_a_server_that_ignores_flags_and_is_believed() -> None:
    """With libfuse's usual second of caching: new files are created, an overwrite works or is refused, the doctor answers."""
    need(passthrough.missing_fuse())
    with passthrough.passthrough(Renames.IGNORES, seconds=1) as server:
        work = server.folder / "work"
        work.mkdir()
        for number in (1, 2):
            with atomik.file(work / f"new-{number}") as f:
                f.write("new")
        (work / "old").write_text("old")
        with contextlib.suppress(errors.UnsupportedFilesystemError):
            as_file(work / "old")
        assert (work / "old").read_text() in ("old", "new")
        promises = {promise.name: promise.holds for promise in atomik.probe(work).promises}
        assert promises["P1"] != "yes"
        assert not left_in(work)


@contextlib.contextmanager
def sshfs() -> Iterator[Path]:
    """A folder on another machine, as far as sshfs can tell: it talks to the server through a pipe."""
    server = Path("/usr/lib/openssh/sftp-server")
    need(
        passthrough.missing_fuse(), None if shutil.which("sshfs") and server.exists() else "needs sshfs and sftp-server"
    )
    point, ssh = namespace.scratch("sshfs"), namespace.scratch("ssh") / "ssh"
    ssh.write_text(f"#!/bin/sh\nexec {server}\n")
    ssh.chmod(0o755)
    there = f"localhost:{namespace.scratch('far')}"
    client = subprocess.Popen(
        ["sshfs", "-f", "-o", f"ssh_command={ssh}", there, point], preexec_fn=linux.die_with(os.getpid())
    )
    try:
        passthrough._await_mount(point, client)
        yield point
    finally:
        mounting.detach(point)
        client.kill()
        client.wait()


@root
@pytest.mark.filesystems
def test_two_names_of_one_file_have_two_inode_numbers() -> None:
    """sshfs, unionfs-fuse, mergerfs: an overwrite works, a group works or is refused untouched, and nothing is blocked."""
    with sshfs() as folder:
        for name in ("one", "two"):
            (folder / name).write_text("old")
        as_file(folder / "one")
        assert read_two(folder) == ["new", "old"]
        done = True
        try:
            write_two(folder)
        except errors.UnsupportedFilesystemError:
            done = False
        assert read_two(folder) == ["new", "new" if done else "old"]
        assert not left_in(folder)
        with atomik.file(folder / "later") as f:
            f.write("new")
        assert atomik.recover(folder).clean
        undoing = {promise.name: promise.holds for promise in atomik.probe(folder).promises}["P3"]
        assert done or undoing != "yes"


@contextlib.contextmanager
def ntfs() -> Iterator[Path]:
    """A disk of ntfs-3g with its defaults, on which everybody may do everything."""
    tools = shutil.which("ntfs-3g") and shutil.which("mkfs.ntfs") and shutil.which("losetup")
    need(passthrough.missing_fuse(), None if tools else "needs ntfs-3g")
    image, point = namespace.scratch("disk") / "disk", namespace.scratch("ntfs")
    with image.open("wb") as file:
        file.truncate(60 << 20)
    subprocess.run(["mkfs.ntfs", "-F", "-q", image], check=True, capture_output=True)
    loop = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True).stdout.strip()
    try:
        subprocess.run(["ntfs-3g", loop, point], check=True)
        try:
            (point / "work").mkdir()
            yield point / "work"
        finally:
            mounting.unmount(point)
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)


@root
@pytest.mark.filesystems
def test_everybody_may_write_to_everything() -> None:
    """NTFS, CIFS and FAT with their usual options have no owners: what a killed group left is recovered there too."""
    with ntfs() as folder:
        for name in ("one", "two"):
            (folder / name).write_text("old")

        def die(phase: str, done: int, total: int) -> None:
            if phase == "swapping" and done == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        with pytest.raises(AssertionError, match="the child ended"):
            in_child(lambda: write_two(folder, progress=die))
        assert sorted(read_two(folder)) == ["new", "old"]
        assert atomik.recover(folder).clean
        assert read_two(folder) == ["old", "old"]
        as_file(folder / "one")
        assert not left_in(folder)
        assert {promise.name: promise.holds for promise in atomik.probe(folder).promises}["P4"] == "yes"


@root
@pytest.mark.filesystems
def test_old_files_are_of_another_project() -> None:
    """XFS lets a new file into a folder with a quota project, and the old one not back: if a group fails, both are old."""
    need(mounts.missing("xfs"), None if shutil.which("chattr") else "needs chattr")
    with mounts.mounted("xfs") as place:
        folder = place.folder / "project"
        folder.mkdir()
        for name in ("one", "two"):
            (folder / name).write_text("old")
        for flags in (["-p", "42"], ["+P"]):
            subprocess.run(["chattr", *flags, folder], check=True)
        subprocess.run(["chattr", "+i", folder / "two"], check=True)
        try:
            with pytest.raises(errors.AtomikError):
                write_two(folder)
        finally:
            subprocess.run(["chattr", "-i", folder / "two"], check=True)
        assert read_two(folder) == ["old", "old"]
        assert not left_in(folder)
        assert atomik.recover(folder).clean
        with atomik.file(folder / "three") as f:
            f.write("new")
