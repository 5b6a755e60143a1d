"""A transaction of `AtomikFileSystem` does not leave its process: a copy elsewhere would write into the live files."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik

fsspec = pytest.importorskip("fsspec", reason="needs the extra atomik[fsspec]")
AtomikFileSystem: Any = pytest.importorskip("atomik.fsspec").AtomikFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable


class Boom(Exception):
    """What goes wrong in the middle."""


@pytest.fixture
def fs() -> Any:
    return AtomikFileSystem(skip_instance_cache=True, durable=False)


#: What programs send to workers, made from a filesystem.
SENT: dict[str, Callable[[Any], Any]] = {
    "filesystem": lambda fs: fs,
    "method": lambda fs: fs.pipe,
    "mapper": lambda fs: fs.get_mapper("set"),
    "open file": lambda fs: fsspec.core.OpenFile(fs, "a", "wb"),
    "arguments of a task": lambda fs: ("set", {"filesystem": [fs]}),
}

WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "oldest pickle": lambda thing: pickle.dumps(thing, 0),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sent", SENT)
def test_refused_while_open(folder: Path, fs: Any, sent: str, way: str) -> None:
    """Whatever holds the filesystem cannot be copied while a transaction is open; before and after, it can."""
    Path("set").mkdir()
    thing = SENT[sent](fs)
    WAYS[way](thing)
    with pytest.raises(TypeError, match=r"transaction is open: .*outside fs.transaction"), fs.transaction:
        WAYS[way](thing)
    WAYS[way](thing)


def test_as_json(fs: Any) -> None:
    """fsspec's own serialisation is refused as well."""
    fs.to_json()
    with pytest.raises(TypeError, match="transaction is open"), fs.transaction:
        fs.to_json()


def test_file_that_is_read(folder: Path, fs: Any) -> None:
    """A file opened for reading can be sent, unless a transaction is open: its content may lie in a private place."""
    Path("a").write_text("a")
    with fs.open("a", "rb") as file:
        with pickle.loads(pickle.dumps(file)) as again:
            assert again.read() == b"a"
        with pytest.raises(TypeError, match="transaction is open"), fs.transaction:
            pickle.dumps(file)


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_file_that_is_written(folder: Path, fs: Any, mode: str) -> None:
    """It never can, and the transaction itself cannot either."""
    with fs.open("a", mode) as file, pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(file)
    with pytest.raises(TypeError, match="belongs to the process that began it"):
        pickle.dumps(fs.transaction)


def test_the_live_files_stay(folder: Path, fs: Any) -> None:
    """The handed case: a block that sends the filesystem to a worker fails, and the part is what it was."""
    Path("part").write_text("good")
    worker = "import pickle, sys; pickle.load(sys.stdin.buffer).pipe(sys.argv[1], b'bad')"
    with pytest.raises(TypeError), fs.transaction:
        sent = pickle.dumps(fs)
        subprocess.run([sys.executable, "-c", worker, f"{folder}/part"], input=sent, check=True)
    assert Path("part").read_text() == "good"


def in_fork(job: Callable[[], object]) -> str:
    """Run it in a forked child; the class of the exception that ended it, or ""."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        name = "unfinished"
        try:
            job()
            name = ""
        except BaseException as exc:
            name = type(exc).__name__
            if name not in ("TransactionStateError", "Boom"):
                traceback.print_exc()
        finally:
            os.write(writer, name.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        name = told.read()
    os.waitpid(pid, 0)
    return name


#: What a forked child may try with its parent's transaction, or with a file that its parent writes.
TRIES: dict[str, Callable[[Any, Any, Any], object]] = {
    "pipe": lambda fs, binary, text: fs.pipe("a", b"child"),
    "rm": lambda fs, binary, text: fs.rm("old"),
    "mkdir": lambda fs, binary, text: fs.mkdir("made"),
    "cat": lambda fs, binary, text: fs.cat("old"),
    "end": lambda fs, binary, text: fs.end_transaction(),
    "write": lambda fs, binary, text: binary.write(b"child"),
    "close": lambda fs, binary, text: binary.close(),
    "text": lambda fs, binary, text: (text.write("child"), text.close()),
}


@pytest.mark.parametrize("attempt", TRIES)
def test_forked_child(folder: Path, fs: Any, attempt: str) -> None:
    """multiprocessing forks: a child gets an error at once, and what its parent has staged stays."""
    Path("old").write_text("old")
    with fs.transaction:
        fs.pipe("a", b"parent")
        with fs.open("b", "wb") as binary, fs.open("c", "w") as text:
            assert in_fork(lambda: TRIES[attempt](fs, binary, text)) == "TransactionStateError"
            binary.write(b"b")
            text.write("c")
    assert [Path(name).read_text() for name in ("a", "b", "c", "old")] == ["parent", "b", "c", "old"]


def test_forked_child_that_leaves_the_block(folder: Path, fs: Any) -> None:
    """A child whose own exception ends the block, or that forgets a file of its parent's, takes nothing away."""

    def leave() -> None:
        held.clear()
        fs.transaction.__exit__(Boom, Boom(), None)
        raise Boom

    with fs.transaction:
        fs.pipe("a", b"parent")
        file = fs.open("b", "wb")
        file.write(b"b")
        held = [file]
        del file
        assert in_fork(leave) == "Boom"
        held.pop().close()
    assert (Path("a").read_text(), Path("b").read_text()) == ("parent", "b")


def test_its_own_instance_in_a_child(folder: Path, fs: Any) -> None:
    """A child that makes a filesystem of its own writes at once, as a program of its own would."""
    with fs.transaction:
        fs.pipe("a", b"parent")
        assert in_fork(lambda: AtomikFileSystem(skip_instance_cache=True, durable=False).pipe("b", b"child")) == ""
        assert Path("b").read_text() == "child"
    assert sorted(os.listdir()) == ["a", "b"]


def test_public_names() -> None:
    """Classes carry the name that users import them by; a later move does not show in pickles."""
    from atomik.fsspec import AtomikTransaction

    assert {AtomikFileSystem.__module__, AtomikTransaction.__module__} == {"atomik.fsspec"}
    assert atomik.fsspec.AtomikFileSystem is AtomikFileSystem
