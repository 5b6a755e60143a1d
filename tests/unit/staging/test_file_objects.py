"""The file objects: all modes of `open` that write, real and seekable; closing seals, and only that."""

from __future__ import annotations

import gc
import io
import json
import os
import pathlib
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import Mode, errors
from atomik._staging.file_objects import parse_mode
from atomik._staging.staged_path import StagedPath

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("mode", ["w", "wt", "w+", "w+t", "wt+", "x", "xt", "x+", "a", "at", "a+", Mode.TEXT, "TEXT"])
def test_text_modes(folder: Path, mode: Any) -> None:
    with atomik.file("x", mode) as f:
        assert isinstance(f, io.TextIOBase)
        assert f.write("hellö\n") == 6
        assert f.writable()
        assert f.seekable()
        assert f.encoding == "utf-8"
        assert f.readable() == ("+" in str(getattr(mode, "value", mode)))
    assert Path("x").read_bytes() == "hellö\n".encode()


@pytest.mark.parametrize("mode", ["wb", "w+b", "wb+", "bw", "xb", "x+b", "ab", "a+b", Mode.BYTES, "BYTES"])
def test_binary_modes(folder: Path, mode: Any) -> None:
    with atomik.file("x", mode) as f:
        f.write(b"\0\xff")
        f.write(bytearray(b"more"))
        f.writelines([b"1", memoryview(b"2")])
        with pytest.raises(TypeError):
            f.write("text")
    assert Path("x").read_bytes() == b"\0\xffmore12"


@pytest.mark.parametrize(
    "mode",
    ["r", "rb", "", "q", "w+x", "ww", "wbt", "rw", "U", "w-", "wtb", "++"],
)
def test_invalid_modes(folder: Path, mode: str) -> None:
    """As `open` says it, and nothing is staged."""
    with pytest.raises(ValueError, match="mode"):
        atomik.file("x", mode)
    assert os.listdir() == []


@pytest.mark.parametrize("mode", [None, 3, b"w"])
def test_mode_of_the_wrong_type(mode: Any) -> None:
    with pytest.raises(TypeError, match="mode"):
        parse_mode(mode)


def test_mode_x(folder: Path) -> None:
    """ "x" never overwrites, whatever the transaction's default."""
    Path("x").write_text("old")
    with atomik.transaction(overwrite=True) as tx:
        with pytest.raises(errors.FileAlreadyExistsError):
            tx.file("x", "x")
        with pytest.raises(ValueError, match="never overwrites"):
            tx.file("y", "x", overwrite=True)
        tx.file("z", "xb").write(b"1")
    assert sorted(os.listdir()) == ["x", "z"]


def test_mode_a(folder: Path) -> None:
    """ "a" starts from a copy and continues at its end; the original stays until the commit."""
    Path("x").write_text("old ")
    with atomik.file("x", "a", overwrite=True) as f:
        assert f.tell() == 4
        f.write("new")
        assert Path("x").read_text() == "old "
    assert Path("x").read_text() == "old new"
    with atomik.file("y", "a") as f:
        f.write("fresh")
    assert Path("y").read_text() == "fresh"


def test_mode_r_plus(folder: Path) -> None:
    """ "r+" starts at the beginning of a copy; nothing to read is an error."""
    Path("x").write_bytes(b"0123456789" * 10_000)
    with atomik.file("x", "r+b", overwrite=True) as f:
        assert f.read(3) == b"012"
        f.write(b"XYZ")
        f.seek(-1, os.SEEK_END)
        f.truncate()
    content = Path("x").read_bytes()
    assert content[:7] == b"012XYZ6"
    assert len(content) == 99_999
    with pytest.raises(errors.MissingPathError, match='mode "w"'):
        atomik.file("missing", "r+")
    assert os.listdir() == ["x"]


def test_modes_that_read_need_overwrite(folder: Path) -> None:
    """Appending replaces the file, so it must be allowed."""
    Path("x").write_text("old")
    for mode in ("a", "r+"):
        with pytest.raises(errors.FileAlreadyExistsError):
            atomik.file("x", mode)


def test_a_folder_cannot_be_appended_to(folder: Path) -> None:
    Path("d").mkdir()
    with pytest.raises(errors.WrongKindError):
        atomik.file("d", "a", overwrite=True)


@pytest.mark.parametrize(
    ("newline", "expected"),
    [(None, b"a\nb\n"), ("", b"a\nb\n"), ("\n", b"a\nb\n"), ("\r\n", b"a\r\nb\r\n"), ("\r", b"a\rb\r")],
)
def test_newline(folder: Path, newline: str | None, expected: bytes) -> None:
    with atomik.file("x", newline=newline) as f:
        f.write("a\nb\n")
    assert Path("x").read_bytes() == expected


def test_encoding_and_errors(folder: Path) -> None:
    """utf-8 whatever the locale; others on request; what cannot be encoded is the user's error and publishes nothing."""
    with atomik.file("x", encoding="latin-1", errors="replace") as f:
        f.write("é€")
    assert Path("x").read_bytes() == b"\xe9?"
    with pytest.raises(UnicodeEncodeError), atomik.file("y", encoding="ascii") as f:
        f.write("é")
    with pytest.raises(LookupError):
        atomik.file("y", encoding="no such")
    assert os.listdir() == ["x"]


@pytest.mark.parametrize(("buffering", "visible"), [(0, 3), (1, 0), (2, 3), (-1, 0), (100, 0)])
def test_buffering(folder: Path, buffering: int, visible: int) -> None:
    """0 writes through, a buffer of few bytes soon, anything else collects."""
    with atomik.file("x", "wb", buffering=buffering) as f:
        f.write(b"abc")
        assert os.fstat(f.fileno()).st_size == visible
    assert Path("x").read_bytes() == b"abc"


def test_line_buffering(folder: Path) -> None:
    with atomik.file("x", "w", buffering=1) as f:
        f.write("a line\nhalf")
        assert os.fstat(f.fileno()).st_size >= 7
        assert f.line_buffering


def test_unbuffered_text_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="unbuffered"):
        atomik.file("x", buffering=0)
    assert os.listdir() == []


def test_name_is_the_destination(folder: Path) -> None:
    """Messages and libraries see the destination's name."""
    for mode in ("w", "wb", "w+b"):
        with atomik.file("x", mode, overwrite=True) as f:
            assert f.name == str(folder / "x")
    with atomik.file("x", "wb", overwrite=True, buffering=0) as f:
        assert f.name == str(folder / "x")
    with atomik.file("x", "w+", overwrite=True) as f:
        assert f.mode == "w+"


def test_other_libraries_write_to_it(folder: Path) -> None:
    """Whatever takes a file object: zipfile, json, shutil, a TextIOWrapper around it."""
    with atomik.file("z.zip", "wb") as f, zipfile.ZipFile(f, "w") as z:
        z.writestr("a", "b")
    assert zipfile.ZipFile("z.zip").read("a") == b"b"
    with atomik.file("j.json") as f:
        json.dump({"a": 1}, f)
    with open("z.zip", "rb") as source, atomik.file("copy.zip", "wb") as f:
        shutil.copyfileobj(source, f)
    assert Path("copy.zip").read_bytes() == Path("z.zip").read_bytes()
    with atomik.file("t", "wb") as f:
        text = io.TextIOWrapper(f, encoding="utf-16")
        text.write("wrapped")
        text.close()  # which closes ours, and so seals it
    assert Path("t").read_text(encoding="utf-16") == "wrapped"


def test_detached_buffer(folder: Path) -> None:
    """A user who detaches the buffer has to flush it; the content is published nevertheless."""
    with atomik.file("x") as f:
        f.write("text")
        buffer = f.detach()
        buffer.write(b" and bytes")
        buffer.flush()
    assert Path("x").read_text() == "text and bytes"


def test_descriptor_may_be_duplicated(folder: Path) -> None:
    """A program may write to a duplicate of the descriptor, as subprocess does."""
    with atomik.file("x", "wb") as f:
        copy = os.dup(f.fileno())
        os.write(copy, b"by descriptor")
        os.close(copy)
    assert Path("x").read_bytes() == b"by descriptor"


def test_seek_tell_truncate(folder: Path) -> None:
    with atomik.file("x", "w+b") as f:
        f.write(b"0123456789")
        assert f.tell() == 10
        f.seek(2)
        assert f.read(2) == b"23"
        f.seek(5)
        f.truncate()
    assert Path("x").read_bytes() == b"01234"


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("mode", ["wb", "w+b"])
def test_it_does_as_a_file_of_open_does(folder: Path, mode: str, buffering: int) -> None:
    """Every method, with the same answers and errors; after closing too."""
    output = atomik.file("ours", mode, buffering=buffering)
    with open("plain", mode, buffering=buffering) as plain:
        assert _use(output.output) == _use(plain)
    output.commit()
    assert Path("ours").read_bytes() == Path("plain").read_bytes()


def _use(file: Any) -> list[object]:
    uses: list[Callable[[], object]] = [
        lambda: file.mode, file.readable, file.writable, file.seekable, file.isatty, lambda: file.fileno() > 2,
        lambda: file.write(b"0123456789"), file.tell, lambda: file.seek(-4, os.SEEK_END), lambda: file.read(2),
        lambda: file.readinto(bytearray(3)), lambda: file.seek(2), file.truncate, lambda: file.truncate(6), file.tell,
        lambda: file.seek(0) or file.read(), lambda: file.seek(-1), lambda: file.truncate(-1), file.flush,
    ]  # fmt: skip
    answers = [_answer(use) for use in uses]
    file.close()
    return [*answers, file.closed, *(_answer(use) for use in uses[1:])]


def _answer(use: Callable[[], object]) -> object:
    try:
        return use()
    except (OSError, ValueError) as exc:
        return type(exc).__mro__[-3:], exc.args[0] if isinstance(exc, OSError) and exc.args else None


def test_block_of_its_own_in_a_transaction(folder: Path) -> None:
    """Leaving the item's block well seals it, and nothing is published yet; reuse is refused like a closed file."""
    with atomik.transaction() as tx:
        with tx.file("x") as f:
            f.write("x")
        assert f.closed
        with pytest.raises(ValueError, match="closed"):
            f.write("y")
        assert not os.path.exists("x")
    assert Path("x").read_text() == "x"


def test_no_pickle(folder: Path) -> None:
    """A handle cannot go to another process; the error says what can."""
    with atomik.file("x", "wb") as f:
        with pytest.raises(TypeError, match="stage a folder"):
            pickle.dumps(f)
        f.write(b"1")


def test_reference_cycle_with_the_handle(folder: Path) -> None:
    """A program that stores the handle in itself leaks nothing."""
    with atomik.transaction() as tx:
        f: Any = tx.file("x")
        f.myself = f if hasattr(f, "__dict__") else None
        f.write("x")
    del f, tx
    gc.collect()
    assert Path("x").read_text() == "x"


def test_staged_path_is_a_path(folder: Path) -> None:
    """folder() and path() give real paths, whose derived paths are plain ones, and which pickle as such."""
    with atomik.transaction() as tx:
        staged = tx.folder("d")
        assert isinstance(staged, StagedPath)
        assert isinstance(staged, pathlib.Path)
        for derived in (
            staged / "x",
            staged.parent,
            staged.with_name("y"),
            staged.joinpath("a", "b"),
            staged.resolve(),
        ):
            assert type(derived) is type(Path())
        again = pickle.loads(pickle.dumps(staged))
        assert type(again) is type(Path())
        assert again == Path(str(staged))
        assert hash(staged) == hash(again)
        assert os.fspath(staged) == str(again)
        (Path(staged, "x")).write_text("1")
        with open(os.path.join(staged, "y"), "w") as f:
            f.write("2")
        assert sorted(path.name for path in staged.iterdir()) == ["x", "y"]
        assert staged.stat().st_mode & 0o077 == Path().stat().st_mode & 0o055


def test_staged_path_with_its_own_block(folder: Path) -> None:
    """Leaving it well seals, leaving it otherwise discards."""
    with atomik.transaction() as tx:
        with tx.folder("d") as d:
            (d / "x").touch()
        with tx.path("p") as p:
            p.write_text("1")
        with pytest.raises(ZeroDivisionError), tx.path("q"):
            raise ZeroDivisionError
        assert [item.path for item in tx.items] == [str(folder / "d"), str(folder / "p")]
        with tx.path("q") as q:
            q.touch()
    assert sorted(os.listdir()) == ["d", "p", "q"]


def test_nobody_else_can_enter_a_staged_folder(folder: Path) -> None:
    """What is staged is in a folder of mode 0700, so nobody reads half of it."""
    with atomik.transaction() as tx:
        staged = tx.folder("d")
        assert staged.parent.stat().st_mode & 0o777 == 0o700
        program = tx.path("p")
        assert program.parent.stat().st_mode & 0o777 == 0o700
        assert program.name == "p"
        program.touch()
