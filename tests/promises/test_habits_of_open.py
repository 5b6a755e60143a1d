"""What people do with `open` from habit works, or says what to do; and what a one-liner did can be asked afterwards."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import State, errors
from tests.support.kernels import Faulty, installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


# --- the receipt of a one-liner ----------------------------------------------------------------------------------------
def test_a_file_has_its_receipt_after_the_block(tmp_path: Path) -> None:
    """None in the block; afterwards what was done."""
    for opened in ("w", "wb", "w+b"):
        with atomik.file(tmp_path / opened, opened) as f:  # type: ignore[call-overload]
            f.write("x" if opened == "w" else b"x")
            assert f.receipt is None
        assert f.receipt is not None
        assert (f.receipt.state, f.receipt.items[0].path) == (State.COMMITTED, str(tmp_path / opened))
    with atomik.file(tmp_path / "raw", "wb", buffering=0) as f:
        f.write(b"x")
    assert f.receipt is not None


def test_a_folder_and_a_path_have_their_receipts(tmp_path: Path) -> None:
    """The paths that `folder` and `path` give tell it too; paths derived from them are plain."""
    with atomik.folder(tmp_path / "folder") as folder:
        (folder / "x").write_text("x")
        assert folder.receipt is None
    with atomik.path(tmp_path / "path") as name:
        name.write_text("x")
    assert [each.receipt and each.receipt.items[0].kind for each in (folder, name)] == ["folder", "path"]
    assert not hasattr(folder / "x", "receipt")


@pytest.mark.usefixtures("no_log")
def test_the_receipt_tells_what_is_true_after_an_exception(tmp_path: Path) -> None:
    """None when everything is as it was; a receipt when the file is in place although the last sync failed."""
    with pytest.raises(LookupError), atomik.file(tmp_path / "a") as f:
        raise LookupError
    assert f.receipt is None
    (tmp_path / "b").write_text("theirs")
    with pytest.raises(FileExistsError), atomik.file(tmp_path / "c") as f:
        (tmp_path / "c").write_text("theirs")
    assert f.receipt is None
    f = (output := atomik.file(tmp_path / "d")).output
    with installed(Faulty.at(2, errno.EIO, among={"fsync"})), pytest.raises(errors.DurabilityError), output:
        f.write("x")
    assert f.receipt is not None
    assert f.receipt.state is State.COMMITTED


def test_receipts_are_readable_and_plain(tmp_path: Path) -> None:
    """`str()` is for people, `as_dict` survives JSON."""
    (tmp_path / "a").write_text("old")
    with atomik.file(tmp_path / "a", overwrite=True, backup="a.old") as f:
        f.write("x")
    assert f.receipt is not None
    first, item = str(f.receipt).splitlines()
    assert first.startswith("committed: 1 in ")
    assert item.split() == ["replace", "file", str(tmp_path / "a"), "(previous", "version:", f"{tmp_path / 'a.old'})"]
    plain = json.loads(json.dumps(f.receipt.as_dict()))
    assert (plain["state"], plain["items"][0]["path"]) == ("committed", str(tmp_path / "a"))
    assert plain["items"][0] == json.loads(json.dumps(f.receipt.items[0].as_dict()))


# --- links -------------------------------------------------------------------------------------------------------------
def test_a_replaced_link_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """open() writes to a link's target, atomik replaces the link: the receipt and an event say so."""
    (tmp_path / "target").write_text("target")
    (tmp_path / "link").symlink_to("target")
    with caplog.at_level(logging.INFO, "atomik"), atomik.file(tmp_path / "link", overwrite=True) as f:
        f.write("new")
    assert (tmp_path / "target").read_text() == "target"
    assert f.receipt is not None
    assert f.receipt.items[0].replaced_link
    assert "replaced a symbolic link" in str(f.receipt)
    told = [record for record in caplog.records if record.getMessage().startswith("event=item.link_replaced")]
    assert [record.path for record in told] == [str(tmp_path / "link")]  # type: ignore[attr-defined]


def test_a_followed_link_is_not_replaced(tmp_path: Path) -> None:
    """A link that was followed and an ordinary file are not reported as replaced links."""
    (tmp_path / "link").symlink_to("target")
    with atomik.transaction(overwrite=True) as tx:
        tx.file(tmp_path / "link", follow_symlinks=True).write("x")
        tx.file(tmp_path / "other").write("x")
    assert tx.receipt is not None
    assert [item.replaced_link for item in tx.receipt.items] == [False, False]


# --- modes -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("opened", ["w", "wb", "w+", "wb0"])
@pytest.mark.parametrize("early", [True, False], ids=["closed", "left to the commit"])
def test_fchmod_of_the_user_is_respected(tmp_path: Path, opened: str, early: bool) -> None:
    """An explicit os.fchmod wins over the mode of what is replaced; without it the old mode stays."""
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o664)
    for wanted in (0o600, 0o444, 0o755):
        with atomik.transaction(overwrite=True) as tx:
            f = tx.file(tmp_path / "a", opened.rstrip("0"), buffering=0 if opened.endswith("0") else -1)
            f.write("new" if "b" not in opened else b"new")
            os.fchmod(f.fileno(), wanted)
            if early:
                f.close()
        assert mode(tmp_path / "a") == wanted
    (tmp_path / "a").chmod(0o664)
    with atomik.file(tmp_path / "a", overwrite=True) as g:
        g.write("new")
        assert g.fileno() >= 0
    assert mode(tmp_path / "a") == 0o664


def test_permissions_win_over_fchmod(tmp_path: Path) -> None:
    """What is said to atomik is more explicit."""
    (tmp_path / "a").write_text("old")
    with atomik.file(tmp_path / "a", overwrite=True, permissions=0o640) as f:
        os.fchmod(f.fileno(), 0o777)
    assert mode(tmp_path / "a") == 0o640


@pytest.mark.parametrize("meant", [600, 640, 644, 660, 664, 700, 750, 755, 775, 777, 4755])
def test_decimal_permissions_are_recognised(tmp_path: Path, meant: int) -> None:
    """permissions=640 is what 0o640 looks like from habit of chmod(1)."""
    with pytest.raises(ValueError, match=f"did you mean 0o{meant}"):
        atomik.file(tmp_path / "a", permissions=meant)


# --- arguments -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("argument", [{"encoding": "latin-1"}, {"errors": "replace"}, {"newline": ""}])
def test_binary_takes_no_text_arguments(tmp_path: Path, argument: dict[str, str]) -> None:
    """The same error as open's."""
    with pytest.raises(ValueError, match="binary mode doesn't take a") as ours:
        atomik.file(tmp_path / "a", "wb", **argument)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="binary mode doesn't take a") as theirs:
        (tmp_path / "a").open("wb", **argument)  # type: ignore[call-overload]
    assert str(ours.value) == str(theirs.value)


def test_the_name_is_the_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For messages and for libraries that look at the extension."""
    monkeypatch.chdir(tmp_path)
    with atomik.file("data.csv") as f, atomik.file("data.bin", "wb") as g:
        assert (f.name, g.name) == (str(tmp_path / "data.csv"), str(tmp_path / "data.bin"))


def test_no_lock_timeout_waits_for_ever(tmp_path: Path) -> None:
    """lock_timeout=None: until the other one is done."""
    taken, go, order = threading.Event(), threading.Event(), list[str]()

    def read() -> None:
        with atomik.reading(tmp_path):
            taken.set()
            go.wait(60)
            order.append("read")

    other = threading.Thread(target=read)
    other.start()
    assert taken.wait(60)
    timer = threading.Timer(0.3, go.set)
    timer.start()
    with atomik.transaction(lock_timeout=None) as tx:
        tx.file(tmp_path / "a").write("x")
        tx.file(tmp_path / "b").write("x")
    order.append("published")
    other.join()
    timer.join()
    assert order == ["read", "published"]


@pytest.mark.parametrize("status", [0, 3])
def test_sys_exit_in_the_block_publishes_nothing(tmp_path: Path, status: int) -> None:
    """Also sys.exit(0): it is an exception.  The program ends with that status nevertheless."""
    program = "import atomik, sys\nwith atomik.file('a') as f:\n    f.write('x')\n    sys.exit(int(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", program, str(status)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    assert os.listdir(tmp_path) == []


# --- mistakes that say what was meant ----------------------------------------------------------------------------------
def test_a_third_argument_that_is_no_overwrite(tmp_path: Path) -> None:
    """An encoding, as for Path.write_text, replaces nothing by mistake (P2)."""
    target = tmp_path / "a"
    target.write_text("old")
    for mistake in (
        lambda: atomik.write_text(target, "new", "utf-8"),  # type: ignore[arg-type]
        lambda: atomik.file(target, "w", "no"),  # type: ignore[call-overload]
        lambda: atomik.file(target, overwrite=b"1"),  # type: ignore[call-overload]
    ):
        with pytest.raises(TypeError, match="overwrite must be a bool"):
            mistake()
    with atomik.transaction(overwrite="no") as tx, pytest.raises(TypeError, match="overwrite must be a bool"):  # type: ignore[arg-type]
        tx.write_text(target, "new")
    assert target.read_text() == "old"


def test_an_output_is_no_file_object(tmp_path: Path) -> None:
    """Without `with` the error says where the file object is."""
    output = atomik.file(tmp_path / "a")
    with pytest.raises(AttributeError, match="'write'; use it with 'with'"):
        output.write("x")  # type: ignore[attr-defined]
    output.output.write("x")
    output.commit()
    assert not hasattr(output, "missing")


def test_nothing_to_start_from(tmp_path: Path) -> None:
    """`edit` and `update` name no mode that nobody has passed."""
    with pytest.raises(FileNotFoundError, match="no file to start from"):
        atomik.edit(tmp_path / "a", str.upper)


def test_a_device_is_no_destination(tmp_path: Path) -> None:
    """And the message does not advise to remove it."""
    with pytest.raises(errors.WrongKindError, match=r"use open\(\)") as caught:
        atomik.file("/dev/null", overwrite=True)
    assert "remove" not in str(caught.value)


def test_an_expectation_of_nothing_in_particular(tmp_path: Path) -> None:
    """A look that never happened would silently guard nothing."""
    with atomik.transaction() as tx, pytest.raises(TypeError, match="not None"):
        tx.expect(tmp_path / "a", None)


@pytest.mark.parametrize("bits", [0o1644, 0o1600, 0o2755, 0o4711, 0o6750])
@pytest.mark.parametrize("work", [atomik.file, atomik.path])
def test_every_bit_of_the_mode_stays(folder: Path, bits: int, work: Callable[..., Any]) -> None:
    """The sticky bit, and those that say as whom a program runs, if they were there before."""
    Path("f").touch()
    Path("f").chmod(bits)
    with work("f", overwrite=True) as new:
        _ = new.write_text("new") if isinstance(new, Path) else new.write("new")
    assert oct(stat.S_IMODE(Path("f").stat().st_mode)) == oct(bits)
