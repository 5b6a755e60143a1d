"""An exception of a signal handler is never taken for the kernel's answer (I13), and nothing is left when it arrives."""

from __future__ import annotations

import errno
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.kernels import Acting, Watching, installed
from tests.support.state import left_in

AtomikFileSystem: Any = pytest.importorskip("atomik.fsspec", reason="needs the extra atomik[fsspec]").AtomikFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def fs() -> Any:
    return AtomikFileSystem(skip_instance_cache=True, durable=False)


def striking(call: Callable[..., Any], victim: str) -> Callable[..., Any]:
    """The call, and when it is about `victim` a handler that raises right after it."""

    def called(path: Any, *args: Any, **keywords: Any) -> Any:
        result = call(path, *args, **keywords)
        if os.path.basename(os.fspath(path)) == victim:
            raise FileNotFoundError(errno.ENOENT, "the handler's")
        return result

    return called


@pytest.mark.parametrize("question", ["isfile", "isdir", "islink", "lexists"])
def test_asking(folder: Path, fs: Any, monkeypatch: pytest.MonkeyPatch, question: str) -> None:
    """Whether something is there is not answered by it; outside a transaction and inside."""
    Path("victim").touch()
    with fs.transaction:
        assert getattr(fs, question)("victim") in (True, False)
        monkeypatch.setattr(os, "stat", striking(os.stat, "victim"))
        with pytest.raises(FileNotFoundError, match="the handler's"):
            getattr(fs, question)("victim")
    with pytest.raises(FileNotFoundError, match="the handler's"):
        getattr(fs, question)("victim")
    monkeypatch.undo()
    os.chdir(folder)
    assert getattr(fs, question)("missing") is False


def test_listing(folder: Path, fs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry is not left out because of it."""
    Path("victim").touch()
    with fs.transaction, monkeypatch.context() as patch:
        patch.setattr(os, "lstat", striking(os.lstat, "victim"))
        with pytest.raises(FileNotFoundError, match="the handler's"):
            fs.ls(str(folder), detail=True)


def handler(_: Any) -> None:
    raise FileNotFoundError(errno.ENOENT, "the handler's")


@pytest.mark.parametrize("change", ["rm", "mv", "pipe"])
def test_changing(folder: Path, fs: Any, change: str) -> None:
    """A removal, move or replacement is not left out of what will be published, whichever look a handler's error comes in."""
    changes = {"rm": fs.rm, "mv": lambda name: fs.mv(name, "b"), "pipe": lambda name: fs.pipe(name, b"new")}

    def program() -> None:
        with fs.transaction:
            changes[change]("a")

    Path("a").write_text("old")
    with installed(Watching({"stat", "lstat"})) as watched:
        program()
    assert watched.count > 0
    Path("b").unlink(missing_ok=True)
    for at in range(1, watched.count + 1):
        Path("a").write_text("old")
        striking = Acting("stat lstat", handler, when=lambda call, at=at: call.number == at)  # type: ignore[misc]
        with installed(striking), pytest.raises(FileNotFoundError, match="the handler's"):
            program()
        assert (os.listdir(), Path("a").read_text()) == (["a"], "old")
        assert not left_in(folder)


@pytest.mark.parametrize("call", ["stat", "lstat", "readlink"])
def test_working_in_a_transaction(folder: Path, fs: Any, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The program gets the handler's exception, everything is as it was, and nothing is left."""
    Path("victim").symlink_to("target")
    Path("target").write_text("old")

    def program() -> None:
        with fs.transaction, monkeypatch.context() as patch:
            fs.pipe("other", b"new")
            patch.setattr(os, call, striking(getattr(os, call), "target" if call == "stat" else "victim"))
            fs.pipe("victim", b"new")

    with pytest.raises(FileNotFoundError, match="the handler's"):
        program()
    assert (sorted(os.listdir()), Path("target").read_text()) == (["target", "victim"], "old")
    assert not left_in(folder)


@pytest.mark.parametrize("inside", [False, True])
def test_dropping_a_compressed_file(folder: Path, fs: Any, inside: bool) -> None:
    """A file is dropped whole, whatever arrives while its compression is closed; a full disk does not matter then."""

    def drop(error: BaseException) -> None:
        file = fs.open("a", "wb", compression="gzip", autocommit=False)
        file.write(b"x")
        layer = file._layers[1]
        close = layer.close

        def closing() -> None:
            close()
            raise error

        layer.close = closing
        file.discard()

    for error in (TimeoutError("the handler's"), OSError(errno.ENOSPC, "full")):
        if inside:
            fs.start_transaction()
        if isinstance(error, TimeoutError):
            with pytest.raises(TimeoutError):
                drop(error)
        else:
            drop(error)
        if inside:
            fs.end_transaction()
        assert os.listdir() == []


class _Stop(Exception):
    pass


def _stopping(at: int) -> tuple[Callable[..., Any], list[int]]:
    """A trace function that raises at the `at`-th line of atomik.fsspec.transaction, and the count of the lines."""
    lines = [0]

    def trace(frame: Any, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.endswith(os.path.join("fsspec", "transaction.py")):
            return None
        if event == "line" and frame.f_code.co_name not in ("__exit__", "__init__"):
            lines[0] += 1
            if lines[0] == at:
                raise _Stop
        return trace

    return trace, lines


@pytest.mark.sweep
@pytest.mark.parametrize("leave", [False, True])
def test_a_filesystem_is_never_left_in_a_transaction_that_is_over(folder: Path, leave: bool) -> None:
    """At whatever line of its beginning or end a handler raises: instances are cached, so later writes would be lost."""
    at, stopped = 0, True
    while stopped:
        at, stopped, fs = at + 1, False, AtomikFileSystem(skip_instance_cache=True, durable=False)
        trace, lines = _stopping(at)
        sys.settrace(trace)
        try:
            with fs.transaction:
                fs.pipe(str(folder / "a"), b"new")
                if leave:
                    raise KeyError
        except KeyError:
            pass
        except _Stop:
            stopped = True
        finally:
            sys.settrace(None)
        assert stopped == (lines[0] >= at)
        fs.pipe(str(folder / "b"), b"%d" % at)
        assert (folder / "b").read_bytes() == b"%d" % at
        with fs.transaction:
            fs.pipe(str(folder / "c"), b"%d" % at)
        assert (folder / "c").read_bytes() == b"%d" % at
    assert at > 8
    gc.collect()
    assert not left_in(folder)
