"""`AtomikFileSystem`: single writes, transactions, failures, and the same behaviour as the plain local filesystem."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import shutil
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import atomik
from atomik.testing import CrashPoint, crash_points
from tests.support.state import left_in, tree

fsspec = pytest.importorskip("fsspec", reason="needs the extra atomik[fsspec]")
LocalFileSystem = pytest.importorskip("fsspec.implementations.local").LocalFileSystem
AtomikFileSystem: Any = pytest.importorskip("atomik.fsspec").AtomikFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _protocol() -> None:
    """As the entry point does it in an installed package."""
    fsspec.register_implementation("atomik", AtomikFileSystem, clobber=True)


@pytest.fixture
def fs() -> Any:
    return AtomikFileSystem(skip_instance_cache=True, durable=False)


class Boom(Exception):
    """What goes wrong in the middle."""


class TestSingleWrites:
    """Outside a transaction each file is one atomic step."""

    def test_invisible_until_closed(self, folder: Path, fs: Any) -> None:
        """A file appears complete when it is closed, and is not seen before, not even under another name."""
        with fs.open("a", "wb") as file:
            file.write(b"x" * 100_000)
            file.flush()
            assert os.listdir() == []
        assert Path("a").read_bytes() == b"x" * 100_000

    def test_replaces_in_one_step(self, folder: Path, fs: Any) -> None:
        """An overwrite leaves the old content to those who read it, keeps the mode, and is a new inode."""
        Path("a").write_text("old")
        Path("a").chmod(0o640)
        with Path("a").open() as reader, fs.open("a", "w") as file:
            file.write("new")
            file.close()
            assert reader.read() == "old"
        assert Path("a").read_text() == "new"
        assert Path("a").stat().st_mode & 0o777 == 0o640

    @pytest.mark.parametrize("compression", [None, "gzip", "bz2", "zip"])
    @pytest.mark.parametrize("mode", ["wb", "w"])
    def test_failed_block(self, folder: Path, fs: Any, mode: str, compression: str | None) -> None:
        """An exception in the block leaves the old file, whatever layers are on top, and comes through with a note."""
        Path("a").write_text("old")
        data: Any = "new" if mode == "w" else b"new"
        with pytest.raises(Boom) as caught, fs.open("a", mode, compression=compression) as file:
            file.write(data)
            raise Boom
        assert Path("a").read_text() == "old"
        assert "not published" in caught.value.__notes__[0]

    @pytest.mark.parametrize("compression", [None, "gzip"])
    @pytest.mark.parametrize("mode", ["wb", "w"])
    def test_failed_block_of_an_url(self, folder: Path, mode: str, compression: str | None) -> None:
        """`fsspec.open` closes its file when the block fails as when it does not; the old file stays nevertheless."""
        Path("a").write_text("old")
        data: Any = "new" if mode == "w" else b"new"
        opened = fsspec.open(f"atomik://{folder}/a", mode, compression=compression)
        with pytest.raises(Boom), opened as file:
            file.write(data)
            raise Boom
        assert Path("a").read_text() == "old"
        with opened as file:
            file.write(data)
        content = Path("a").read_bytes()
        assert (gzip.decompress(content) if compression else content) == b"new"

    def test_closed_in_finally(self, folder: Path, fs: Any) -> None:
        """``finally: f.close()`` on the way out of a failure does not publish."""

        def program() -> None:
            file = fs.open("a", "w")
            try:
                file.write("half")
                raise Boom
            finally:
                file.close()

        with pytest.raises(Boom):
            program()
        assert os.listdir() == []

    def test_written_while_another_exception_is_handled(self, folder: Path, fs: Any) -> None:
        """A file that is both opened and closed inside an ``except`` block is published: its writing did not fail."""
        try:
            raise Boom
        except Boom:
            with fs.open("error.log", "w") as file:
                file.write("it went wrong")
        assert Path("error.log").read_text() == "it went wrong"

    def test_commit_and_discard(self, folder: Path, fs: Any) -> None:
        """``autocommit=False`` publishes by `commit` only; `discard` drops; both may be repeated."""
        file = fs.open("a", "wb", autocommit=False)
        file.write(b"a")
        file.close()
        assert os.listdir() == []
        file.commit()
        file.commit()
        assert Path("a").read_bytes() == b"a"
        file = fs.open("b", "wb", autocommit=False)
        file.write(b"b")
        file.discard()
        file.discard()
        assert os.listdir() == ["a"]

    @pytest.mark.parametrize("mode", ["wb", "w"])
    def test_forgotten(self, folder: Path, fs: Any, mode: str) -> None:
        """A file that nobody closed is not published, and there is a warning."""
        file = fs.open("a", mode)
        file.write("x" if mode == "w" else b"x")
        held = [file]
        del file
        with pytest.warns(ResourceWarning, match="never closed"):
            held.clear()
        assert os.listdir() == []

    def test_modes(self, folder: Path, fs: Any) -> None:
        """Appending and updating in place start from a copy, and replace at the end."""
        fs.pipe("a", b"one")
        with fs.open("a", "ab") as file:
            file.write(b" two")
            assert Path("a").read_bytes() == b"one"
        with fs.open("a", "r+b") as file:
            assert file.read(3) == b"one"
            file.seek(0)
            file.write(b"ONE")
        assert Path("a").read_bytes() == b"ONE two"
        with pytest.raises(FileExistsError):
            fs.open("a", "xb")
        with pytest.raises(FileNotFoundError):
            fs.open("missing", "r+b")

    def test_text_in_place(self, folder: Path, fs: Any) -> None:
        """Text that is read, line by line, and written in one file object."""
        fs.pipe("a", b"one\ntwo\n")
        with fs.open("a", "r+") as file:
            assert file.readline() == "one\n"
            assert list(file) == ["two\n"]
            file.write("three\n")
        with fs.open("a", "r+b") as file:
            assert file.read1(2) == b"on"
            assert file.readline() == b"e\n"
        assert Path("a").read_text() == "one\ntwo\nthree\n"

    def test_file_object(self, folder: Path, fs: Any) -> None:
        """The object is a file as others: position, size, flags, closed forever."""
        with fs.open("a", "wb") as file:
            assert (file.writable(), file.readable(), file.seekable(), file.closed) == (True, False, True, False)
            assert file.write(b"hello") == 5
            assert file.tell() == 5
            assert file.seek(1) == 1
            assert file.truncate() == 1
            assert os.fstat(file.fileno()).st_size == 1
            with pytest.raises(TypeError):
                pickle.dumps(file)
        assert file.closed
        with pytest.raises(ValueError, match="closed"):
            file.write(b"x")
        file.close()
        file.flush()
        assert Path("a").read_bytes() == b"h"

    def test_through_links(self, folder: Path, fs: Any) -> None:
        """Like the plain local filesystem, writing goes through a link; removing and moving take the link itself."""
        Path("a").write_text("old")
        Path("link").symlink_to("a")
        fs.pipe("link", b"new")
        assert Path("link").is_symlink()
        assert Path("a").read_text() == "new"
        fs.mv("link", "moved")
        assert os.readlink("moved") == "a"
        fs.rm("moved")
        assert Path("a").read_text() == "new"

    def test_rm_is_all_or_nothing(self, folder: Path, fs: Any) -> None:
        """`rm` of a list with one that is missing removes none."""
        for name in "abc":
            Path(name).touch()
        with pytest.raises(FileNotFoundError):
            fs.rm(["a", "b", "missing", "c"])
        assert sorted(os.listdir()) == ["a", "b", "c"]
        fs.rm(["a", "b"])
        assert os.listdir() == ["c"]

    def test_rm_without_a_current_folder(self, folder: Path, fs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Absolute paths need none."""
        for name in ("gone", "set"):
            Path(name).mkdir()
        Path("a").touch()
        monkeypatch.chdir("gone")
        with pytest.raises(ValueError, match="current working directory"):
            fs.rm(f"{folder}/gone", recursive=True)
        (folder / "gone").rmdir()
        fs.rm([f"{folder}/a", f"{folder}/set"], recursive=True)
        monkeypatch.chdir(folder)
        assert os.listdir() == []

    def test_staging_is_not_listed(self, folder: Path, fs: Any) -> None:
        """What other transactions have staged is not found by ls, find, walk or glob."""
        with atomik.folder("set") as staged:
            (staged / "part").touch()
            assert [name for name in os.listdir() if name.startswith(".atomik")]
            assert fs.ls(".") == []
            assert fs.ls(".", detail=True) == []
            assert fs.find(".") == []
            assert fs.glob(f"{folder}/**") == [str(folder)]
        assert fs.find(".") == [f"{folder}/set/part"]

    def test_moves_between_filesystems(self, folder: Path, fs: Any) -> None:
        """`mv` to another filesystem copies, publishes in one step, and then removes."""
        shared = Path("/dev/shm")
        if not shared.is_dir() or shared.stat().st_dev == folder.stat().st_dev:
            pytest.skip("needs a second filesystem at /dev/shm")
        Path("set").mkdir()
        Path("set/part").write_text("x")
        target = shared / f"atomik-test-{os.getpid()}"
        try:
            fs.mv("set", str(target))
            assert (target / "part").read_text() == "x"
            assert os.listdir() == []
            assert left_in(target) == []
            with pytest.raises(atomik.errors.CrossFilesystemError), fs.transaction:
                fs.mv(str(target), "set")
            assert (target / "part").read_text() == "x"
        finally:
            shutil.rmtree(target, ignore_errors=True)


class TestTransaction:
    """``with fs.transaction``."""

    def test_everything_at_the_end(self, folder: Path, fs: Any) -> None:
        """Writes, removals, moves and folders show at the end, together; the receipt has them all."""
        for name in ("gone", "here", "replaced"):
            Path(name).write_text(name)
        Path("set").mkdir()
        Path("set/old").touch()
        before = tree(folder)
        with fs.transaction as transaction:
            fs.pipe("new", b"new")
            fs.pipe("replaced", b"again")
            fs.rm("gone")
            fs.mv("here", "there")
            fs.rm("set", recursive=True)
            fs.makedirs("set/deep")
            fs.put(__file__, "set/deep/put")
            fs.touch("set/touched")
            fs.cp("new", "copied")
            fs.symlink("new", "link")
            seen = {name: value for name, value in tree(folder).items() if not name.startswith(".atomik")}
            assert seen == before, "somebody else sees it already"
        found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        assert found == [
            "copied", "link", "new", "replaced", "set", "set/deep", "set/deep/put", "set/touched", "there",
        ]  # fmt: skip
        assert Path("copied").read_text() == "new"
        assert {item.op for item in transaction.receipt.items} == {"create", "replace", "remove", "move"}

    def test_failure(self, folder: Path, fs: Any) -> None:
        """An exception leaves everything as it was, and the filesystem usable."""
        Path("set").mkdir()
        Path("set/old").write_text("old")
        before = tree(folder)
        with pytest.raises(Boom), fs.transaction:
            fs.rm("set", recursive=True)
            fs.makedirs("set")
            fs.pipe("set/new", b"new")
            fs.mv("set", "elsewhere")
            raise Boom
        assert tree(folder) == before
        fs.pipe("after", b"x")
        assert Path("after").exists()

    def test_failed_commit(self, folder: Path, fs: Any) -> None:
        """When the commit itself fails, nothing has changed, and the transaction is over."""
        before = tree(folder)
        with pytest.raises(FileExistsError), fs.transaction:
            fs.pipe("a", b"a")
            fs.mkdir("made")
            Path("made").mkdir()  # someone else
        Path("made").rmdir()
        assert tree(folder) == before
        assert not fs._intrans

    @pytest.mark.parametrize("program", ["a", "r+", "a twice", "a, what was absent", "a, what was moved", "moved into"])
    def test_what_others_write_in_the_meantime(self, folder: Path, fs: Any, program: str) -> None:
        """What starts from a copy of what was there is a conflict then, as outside; their version stays."""
        absent = program == "a, what was absent"
        if not absent:
            Path("log").write_bytes(b"one\n")
        with pytest.raises(atomik.errors.ConflictError), fs.transaction:
            target = "log"
            if program in ("a, what was moved", "moved into"):
                Path("home").mkdir()
                target = "home/moved"
                fs.mv("log", target)
            with fs.open(target, "r+b" if program == "r+" else "ab") as file:
                file.write(b"ours\n")
            with open("log", "ab") as theirs:
                theirs.write(b"theirs\n")
            if program == "a twice":
                with fs.open(target, "ab") as file:
                    file.write(b"ours again\n")
            if program == "moved into":
                fs.pipe("log", b"a new one\n")
        assert Path("log").read_bytes() == (b"" if absent else b"one\n") + b"theirs\n"
        assert left_in(folder) == []
        assert not Path("home/moved").exists()

    def test_what_others_write_is_replaced_by_what_starts_from_nothing(self, folder: Path, fs: Any) -> None:
        """As by any program: the last writer wins."""
        Path("log").write_bytes(b"one\n")
        with fs.transaction:
            fs.pipe("log", b"ours\n")
            fs.pipe("new", b"ours\n")
            for name in ("log", "new"):
                with open(name, "ab") as theirs:
                    theirs.write(b"theirs\n")
            with fs.open("log", "ab") as file:
                file.write(b"more\n")
        assert Path("log").read_bytes() == b"ours\nmore\n"
        assert Path("new").read_bytes() == b"ours\n"

    def test_methods(self, folder: Path, fs: Any) -> None:
        """`start_transaction` and `end_transaction` do the same."""
        fs.start_transaction()
        fs.pipe("a", b"a")
        assert os.listdir() != ["a"]
        fs.end_transaction()
        assert os.listdir() == ["a"]

    def test_looking_starts_nothing(self, folder: Path, fs: Any) -> None:
        """Asking for the transaction, or an empty one, does nothing and leaves nothing."""
        assert fs.transaction is fs.transaction
        with fs.transaction:
            assert fs.ls(".") == []
        assert os.listdir() == []

    def test_failed_file(self, folder: Path, fs: Any) -> None:
        """A file whose writing failed forbids the commit, even if the program swallowed that, until it is written well."""

        def write(good: bool) -> None:
            with fs.open("a", "w") as file:
                file.write("x")
                if not good:
                    raise Boom

        with pytest.raises(atomik.errors.TransactionStateError, match="cannot commit without"), fs.transaction:
            fs.pipe("b", b"b")
            with pytest.raises(Boom):
                write(good=False)
        assert os.listdir() == []
        with fs.transaction:
            with pytest.raises(Boom):
                write(good=False)
            write(good=True)
        assert Path("a").read_text() == "x"

    def test_failed_rewrite_keeps_the_first(self, folder: Path, fs: Any) -> None:
        """What was written before, in the same transaction, is still readable when writing it again fails."""
        with pytest.raises(Boom), fs.transaction:
            fs.pipe("a", b"first")
            with pytest.raises(Boom), fs.open("a", "wb") as file:
                file.write(b"second")
                raise Boom
            assert fs.cat("a") == b"first"
            raise Boom

    def test_open_file_at_the_end(self, folder: Path, fs: Any) -> None:
        """A file that is still open at the end may lack data: nothing is published."""
        with pytest.raises(atomik.errors.TransactionStateError, match="still open"), fs.transaction:
            fs.pipe("b", b"b")
            file = fs.open("a", "w")
            file.write("x")
        assert os.listdir() == []

    def test_exclusive(self, folder: Path, fs: Any) -> None:
        """Mode "x" in a transaction replaces nobody's file, not at the commit either."""
        with pytest.raises(FileExistsError), fs.transaction:
            fs.pipe_file("a", b"mine", mode="create")
            Path("a").write_text("theirs")
        assert Path("a").read_text() == "theirs"

    def test_kinds(self, folder: Path, fs: Any) -> None:
        """What the transaction removes may be replaced by what is of another kind; what others put there may not."""
        Path("a").mkdir()
        Path("b").touch()
        Path("c").touch()
        with fs.transaction:
            fs.rm("a", recursive=True)
            fs.pipe("a", b"x")
            fs.rm("b")
            fs.mkdir("b")
            fs.rm("c")
            fs.mkdir("d")
            fs.mv("d", "c")
        assert (Path("a").is_file(), Path("b").is_dir(), Path("c").is_dir()) == (True, True, True)
        with pytest.raises(atomik.errors.WrongKindError), fs.transaction:
            fs.pipe("e", b"x")
            Path("e").mkdir()
        assert Path("e").is_dir()

    def test_below_a_file(self, folder: Path, fs: Any) -> None:
        """Is another mistake than a missing folder, which a recursive copy of fsspec's would pass over."""
        Path("file").touch()
        Path("set").mkdir()
        Path("set/a").touch()
        with fs.transaction:
            with pytest.raises(NotADirectoryError):
                fs.copy("set/a", "file/x/y", recursive=True)
            with pytest.raises(FileNotFoundError):
                fs.pipe("missing/x/y", b"x")

    def test_modes_of_files(self, folder: Path, fs: Any) -> None:
        """chmod works on what the transaction has written; on what it has not it is refused."""
        Path("a").write_text("a")
        Path("b").write_text("b")
        with fs.transaction:
            fs.pipe("a", b"A")
            fs.chmod("a", 0o600)
            fs.mkdir("set")
            fs.pipe("set/x", b"x")
            fs.chmod("set/x", 0o640)
            with pytest.raises(NotImplementedError):
                fs.chmod("b", 0o600)
        assert (Path("a").stat().st_mode & 0o777, Path("set/x").stat().st_mode & 0o777) == (0o600, 0o640)

    def test_owner_and_mode_of_what_is_replaced(self, folder: Path, fs: Any) -> None:
        """A replaced file keeps its mode, in a transaction as well."""
        Path("a").write_text("a")
        Path("a").chmod(0o604)
        with fs.transaction:
            fs.pipe("a", b"A")
        assert Path("a").stat().st_mode & 0o777 == 0o604

    def test_links(self, folder: Path, fs: Any) -> None:
        """A hard link to an existing file is one at the end; a link above a path leads to the same change."""
        Path("real").mkdir()
        Path("real/a").write_text("a")
        Path("alias").symlink_to("real")
        with fs.transaction:
            fs.link("real/a", "hard")
            fs.pipe("alias/b", b"b")
            assert fs.cat("real/b") == b"b"
            assert fs.exists("alias/b")
        assert Path("hard").samefile("real/a")
        assert Path("real/b").read_text() == "b"
        assert Path("alias").is_symlink()

    def test_none_inside_another(self, folder: Path, fs: Any) -> None:
        """A second one is refused before it does anything, and the first is dropped if that is not caught."""
        with pytest.raises(atomik.errors.TransactionStateError, match="running already"), fs.transaction:
            fs.pipe("a", b"a")
            with fs.transaction:
                fs.pipe("b", b"b")
        assert os.listdir() == []
        fs.start_transaction()
        with pytest.raises(atomik.errors.TransactionStateError, match="running already"):
            fs.start_transaction()
        fs.pipe("a", b"a")
        fs.end_transaction()
        assert os.listdir() == ["a"]

    def test_once(self, folder: Path, fs: Any) -> None:
        """A transaction that is over says so."""
        transaction = fs.transaction
        with transaction:
            fs.pipe("a", b"a")
        with pytest.raises(atomik.errors.TransactionStateError, match="is over"), transaction:
            raise AssertionError
        assert len(transaction.receipt.items) == 1

    def test_threads(self, folder: Path, fs: Any) -> None:
        """Threads that share the instance may write at the same time."""
        from concurrent.futures import ThreadPoolExecutor

        with fs.transaction:
            fs.mkdir("set")
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda number: fs.pipe(f"set/{number}", b"x"), range(100)))
                list(pool.map(lambda number: fs.pipe(f"top{number}", b"x"), range(20)))
                list(pool.map(lambda number: fs.makedirs(f"deep/{number % 3}/er", exist_ok=True), range(300)))
            assert len(fs.ls("set")) == 100
        assert (len(os.listdir("set")), len(os.listdir("deep")), len(os.listdir())) == (100, 3, 22)

    @pytest.mark.sweep
    def test_every_crash(self, folder: Path) -> None:
        """Killed at any call of the commit: after recovery everything is old or everything is new."""

        def prepare() -> None:
            shutil.rmtree(folder)
            folder.mkdir()
            os.chdir(folder)
            Path("a").write_text("old")
            Path("set").mkdir()
            Path("set/old").touch()

        def publish() -> None:
            fs = AtomikFileSystem(skip_instance_cache=True)
            with fs.transaction:
                fs.pipe("a", b"new")
                fs.rm("set", recursive=True)
                fs.mkdir("set")
                fs.pipe("set/new", b"x")

        def check(point: CrashPoint) -> None:
            atomik.recover(folder)
            assert not left_in(folder)
            found = (Path("a").read_text(), os.listdir("set"))
            assert found in ((("new", ["new"]),) if point.returned else (("new", ["new"]), ("old", ["old"])))

        assert crash_points(publish, check, prepare=prepare) > 40


def through_moved_folder(fs: Any, top: Path) -> None:
    fs.mv(top / "current", top / "previous")
    fs.pipe(str(top / "previous/x"), b"new")
    fs.rm(str(top / "previous/y"))


def through_moved_file(fs: Any, top: Path) -> None:
    fs.mv(top / "link", top / "moved")
    append(fs, str(top / "moved"), 1)


def through_new_folder(fs: Any, top: Path) -> None:
    fs.mkdir(top / "new")
    fs.symlink(top / "data", top / "new/data")
    fs.pipe(str(top / "new/data/x"), b"new")
    fs.rm(str(top / "new/data/y"))


def through_new_link(fs: Any, top: Path) -> None:
    fs.symlink(top / "data", top / "once")
    fs.symlink(top / "once/x", top / "twice")
    fs.pipe(str(top / "twice"), b"new")
    fs.mkdir(top / "once/z")


def beside_what_is_gone(fs: Any, top: Path) -> None:
    fs.rm(str(top / "data"), recursive=True)
    assert not fs.exists(top / "current")
    assert not fs.isdir(top / "current")
    fs.rm(str(top / "current"))


def over_its_own_target(fs: Any, top: Path) -> None:
    fs.mv(top / "link", top / "file")
    fs.pipe(str(top / "link"), b"new")


class TestLinksInTransactions:
    """Links are followed in the tree as it will be; what one leads to is changed by the commit, like everything."""

    @pytest.fixture(params=[str, os.path.basename], ids=["absolute", "relative"])
    def tops(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
        tops = tmp_path / "plain", tmp_path / "ours"
        for top in tops:
            (top / "data").mkdir(parents=True)
            for name in ("data/x", "data/y", "file"):
                (top / name).write_text("old")
            (top / "current").symlink_to(request.param(str(top / "data")))
            (top / "link").symlink_to(request.param(str(top / "file")))
        return tops

    PROGRAMS = pytest.mark.parametrize(
        "program",
        [through_moved_folder, through_moved_file, through_new_folder, through_new_link, beside_what_is_gone,
         over_its_own_target],
    )  # fmt: skip

    @PROGRAMS
    def test_as_if_at_once(self, tops: tuple[Path, Path], fs: Any, program: Callable[[Any, Path], None]) -> None:
        """The commit makes what the plain filesystem makes, and until then nothing has changed."""
        plain, ours = tops
        before = tree(ours)
        program(LocalFileSystem(), plain)
        with fs.transaction:
            program(fs, ours)
            now = {name: entry for name, entry in tree(ours).items() if ".atomik-" not in name}
            assert now == before
        shown = repr(tree(ours)).replace(str(ours), str(plain))
        assert shown == repr(tree(plain))

    @PROGRAMS
    def test_dropped(self, tops: tuple[Path, Path], fs: Any, program: Callable[[Any, Path], None]) -> None:
        """An exception leaves everything as it was, also what is behind the links."""
        _, ours = tops
        before = tree(ours)
        with pytest.raises(Boom), fs.transaction:
            program(fs, ours)
            raise Boom
        assert tree(ours) == before

    def test_listed_as_they_are(self, folder: Path, fs: Any) -> None:
        """A link that leads nowhere, to itself or to the folder above is listed, and not walked into."""
        Path("set").mkdir()
        Path("set/a").write_text("a")
        for name, target in (("dangling", "nowhere"), ("loop", "loop"), ("up", ".."), ("fine", "a")):
            Path("set", name).symlink_to(target)
        wanted = LocalFileSystem().find(str(folder), detail=True)
        with fs.transaction:
            fs.touch("set/b")
            found = fs.find(str(folder), detail=True)
            assert found.pop(f"{folder}/set/b")["size"] == 0
            assert found == wanted
            assert not fs.exists("set/loop")
            assert not fs.isfile("set/loop")
            with pytest.raises(OSError, match="Too many levels"):
                fs.pipe("set/loop", b"x")
            fs.rm("set/loop")

    def test_moved_onto_a_link_to_itself(self, folder: Path, fs: Any) -> None:
        """A folder does not take the place of a link, also if that leads to the folder."""
        Path("set").mkdir()
        Path("link").symlink_to("set")
        with pytest.raises(NotADirectoryError):
            fs.mv("set", "link")
        assert sorted(os.listdir()) == ["link", "set"]


NAMES = st.sampled_from(["a", "b", "c", "a/x", "a/y", "b/x", "c/x/z", "a/x/z"])
ONE = st.tuples(
    st.sampled_from(["write", "append", "mkdir", "makedirs", "rm", "rmtree", "rmdir", "touch", "create"]), NAMES
)
TWO = st.tuples(st.sampled_from(["mv", "cp"]), NAMES, NAMES)


def do(fs: Any, top: Path, step: tuple[str, ...], number: int) -> str:
    """One operation; how it ended."""
    paths = [str(top / name) for name in step[1:]]
    actions: dict[str, Callable[..., Any]] = {
        "write": lambda path: fs.pipe_file(path, b"%d" % number),
        "create": lambda path: fs.pipe_file(path, b"%d" % number, mode="create"),
        "append": lambda path: append(fs, path, number),
        "mkdir": lambda path: fs.mkdir(path, create_parents=False),
        "makedirs": lambda path: fs.makedirs(path, exist_ok=True),
        "rm": fs.rm_file,
        "rmtree": lambda path: fs.rm(path, recursive=True),
        "rmdir": fs.rmdir,
        "touch": lambda path: fs.touch(path, truncate=False),
        "mv": lambda one, two: move(fs, one, two),
        "cp": fs.cp_file,
    }
    try:
        actions[step[0]](*paths)
    except (OSError, ValueError, shutil.Error):
        return "failed"
    return "done"


def append(fs: Any, path: str, number: int) -> None:
    with fs.open(path, "ab") as file:
        file.write(b"+%d" % number)


def move(fs: Any, one: str, two: str) -> None:
    # The plain one falls back to copying when rename(2) fails, and then makes folders that are missing above.
    if not fs.isdir(os.path.dirname(two)):
        raise FileNotFoundError(two)
    fs.mv(one, two)


def seen(fs: Any, top: Path) -> dict[str, Any]:
    """What a filesystem shows below `top`."""
    found = fs.find(str(top), withdirs=True, detail=True)
    return {
        os.path.relpath(path, top): entry["type"] if entry["type"] != "file" else fs.cat_file(path)
        for path, entry in found.items()
    }


class TestLikeTheLocalFileSystem:
    """Random programs do the same on `AtomikFileSystem` as on fsspec's own local filesystem."""

    @pytest.fixture
    def tops(self, tmp_path: Path) -> Callable[[], tuple[Path, Path]]:
        def fresh() -> tuple[Path, Path]:
            both = tmp_path / "plain", tmp_path / "ours"
            for top in both:
                shutil.rmtree(top, ignore_errors=True)
                (top / "a").mkdir(parents=True)
                (top / "a/x").write_text("old x")
                (top / "b").write_text("old b")
            return both

        return fresh

    @settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
    @given(steps=st.lists(ONE | TWO, max_size=12))
    def test_transaction(self, tops: Callable[[], tuple[Path, Path]], steps: list[tuple[str, ...]]) -> None:
        """Inside a transaction each step ends and shows the same, and the commit makes the same tree."""
        self.alike(tops, steps)

    @pytest.mark.sweep
    @settings(max_examples=150, deadline=None, suppress_health_check=[*HealthCheck])
    @given(steps=st.lists(ONE | TWO, max_size=12))
    def test_many_transactions(self, tops: Callable[[], tuple[Path, Path]], steps: list[tuple[str, ...]]) -> None:
        """The same, six times as many."""
        self.alike(tops, steps)

    def alike(self, tops: Callable[[], tuple[Path, Path]], steps: list[tuple[str, ...]]) -> None:
        plain, ours = tops()
        local, fs = LocalFileSystem(), AtomikFileSystem(skip_instance_cache=True, durable=False)
        with fs.transaction:
            for number, step in enumerate(steps):
                assert do(fs, ours, step, number) == do(local, plain, step, number), step
                assert seen(fs, ours) == seen(local, plain), step
        assert tree(ours) == tree(plain)
        assert not left_in(ours)

    @settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
    @given(steps=st.lists(ONE | TWO, max_size=10))
    def test_dropped(self, tops: Callable[[], tuple[Path, Path]], steps: list[tuple[str, ...]]) -> None:
        """A transaction that ends by an exception has changed nothing, whatever it did."""
        _, ours = tops()
        fs = AtomikFileSystem(skip_instance_cache=True, durable=False)
        before = tree(ours)
        with pytest.raises(Boom), fs.transaction:
            for number, step in enumerate(steps):
                do(fs, ours, step, number)
            raise Boom
        assert tree(ours) == before

    @settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
    @given(steps=st.lists(ONE | TWO, max_size=12))
    def test_single(self, tops: Callable[[], tuple[Path, Path]], steps: list[tuple[str, ...]]) -> None:
        """Without a transaction each step does the same at once."""
        plain, ours = tops()
        local, fs = LocalFileSystem(), AtomikFileSystem(skip_instance_cache=True, durable=False)
        for number, step in enumerate(steps):
            assert do(fs, ours, step, number) == do(local, plain, step, number), step
            assert tree(ours) == tree(plain), step


def test_entry_point() -> None:
    """The package announces the protocol to fsspec."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["fsspec.specs"] == {"atomik": "atomik.fsspec:AtomikFileSystem"}


def test_instances(folder: Path) -> None:
    """Instances are made and pickled by options, as fsspec does it; the real fsspec is the one that is used."""
    fs = fsspec.filesystem("atomik", auto_mkdir=True, durable=False)
    assert isinstance(fs, AtomikFileSystem)
    again = pickle.loads(pickle.dumps(fs))
    assert (again.auto_mkdir, again.durable, again.lock_timeout) == (True, False, 60.0)
    assert fs.unstrip_protocol("/a") == "atomik:///a"
    found, paths = fsspec.core.url_to_fs(f"atomik://{folder}/a/b", auto_mkdir=True)
    found.pipe(paths, b"x")
    assert Path("a/b").read_bytes() == b"x"
    assert not Path(fsspec.__file__).is_relative_to(Path(atomik.__file__).parent)


# --- databases -------------------------------------------------------------------------------------------------------
@pytest.fixture
def database(folder: Path) -> dict[str, bytes]:
    """One whose last changes are in its log; the names say nothing."""
    content = {"data": b"SQLite format 3\0, and so on", "data-wal": b"\x37\x7f\x06\x82, and so on"}
    for name, each in content.items():
        Path(name).write_bytes(each)
    return content


def _cp(fs: Any, source: str, target: str) -> None:
    fs.cp(source, target)


def _cp_link(fs: Any, source: str, target: str) -> None:
    os.makedirs("elsewhere")
    Path(f"elsewhere/{source}").symlink_to(f"../{source}")
    fs.cp(f"elsewhere/{source}", target)


def _cp_folder(fs: Any, source: str, target: str) -> None:
    fs.makedirs("d", exist_ok=True)
    fs.cp(source, "d")


def _put(fs: Any, source: str, target: str) -> None:
    fs.put(source, target)


def _mv(fs: Any, source: str, target: str) -> None:
    fs.mv(source, target)


def _mv_into_what_is_staged(fs: Any, source: str, target: str) -> None:
    fs.makedirs("d", exist_ok=True)
    fs.mv(source, f"d/{source}")


def _mv_and_on(fs: Any, source: str, target: str) -> None:
    _mv_into_what_is_staged(fs, source, target)
    fs.mv(f"d/{source}", target)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("work", [_cp, _cp_link, _cp_folder, _put, _mv, _mv_into_what_is_staged, _mv_and_on])
def test_a_database_is_not_parted_from_its_log(
    database: dict[str, bytes], fs: Any, work: Callable[[Any, str, str], None], *, within: bool
) -> None:
    """The copy would lack its last changes: a conflict, and everything is as it was."""
    with (
        pytest.raises(atomik.errors.ConflictError, match="log"),
        fs.transaction if within else contextlib.nullcontext(),
    ):
        work(fs, "data", "copy")
    assert {name: Path(name).read_bytes() for name in os.listdir() if name.startswith("data")} == database
    assert not any((*Path().rglob("copy"), *Path().rglob("d/data")))


@pytest.mark.parametrize("order", [("", "-wal"), ("-wal", "")])
@pytest.mark.parametrize("work", [_cp, _put, _mv, _mv_into_what_is_staged, _mv_and_on])
def test_a_database_goes_with_its_log(
    database: dict[str, bytes], fs: Any, work: Callable[[Any, str, str], None], order: tuple[str, str]
) -> None:
    """In one transaction, in any order."""
    with fs.transaction:
        for suffix in order:
            work(fs, f"data{suffix}", f"copy{suffix}")
    found = {path.name: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    copied = {name.replace("data", "copy"): content for name, content in database.items()}
    assert found == (database | copied if work in (_cp, _put) else database if "staged" in work.__name__ else copied)


def test_a_folder_is_copied_with_its_databases(database: dict[str, bytes], fs: Any) -> None:
    """In a transaction, where all of it is there at once."""
    os.mkdir("old")
    for name in database:
        os.rename(name, f"old/{name}")
    with pytest.raises(atomik.errors.ConflictError):
        fs.cp("old", "new", recursive=True)
    shutil.rmtree("new")
    with fs.transaction:
        fs.cp("old", "new", recursive=True)
    assert {name: Path("new", name).read_bytes() for name in os.listdir("new")} == database


def test_a_copy_of_a_database_that_is_replaced_or_removed_again(database: dict[str, bytes], fs: Any) -> None:
    """Then it lacks nothing."""
    with fs.transaction:
        fs.cp("data", "copy")
        fs.pipe_file("copy", b"no database")
        fs.cp("data", "other")
        fs.rm("other")
    assert sorted(os.listdir()) == ["copy", "data", "data-wal"]
