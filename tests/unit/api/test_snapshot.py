"""`snapshot`: one version of a folder, for as long as its reader wants."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import atomik
from atomik import errors
from atomik._system import kernel as _kernel
from tests.support.kernels import Acting, Faulty, installed
from tests.support.state import NOBODY, in_child, left_in
from tests.support.users import needs_root


def publish(version: str, where: str | Path = "ds") -> atomik.Receipt:
    output = atomik.folder(where, overwrite=True, durable=False)
    with output as new:
        (new / "data").write_text(version)
        (new / "deep").mkdir()
        (new / "deep" / "data").write_text(version)
    assert output.receipt is not None
    return output.receipt


def pinned() -> list[str]:
    return [name for name in os.listdir() if name.endswith("-pinned")]


def test_it_stays_with_its_version(folder: Path) -> None:
    """Publishers go on; the path leads to what was there; the next publication deletes what nobody reads any more."""
    publish("one")
    with atomik.snapshot("ds") as path:
        for version in ("two", "three"):
            assert publish(version).leftovers == ()
            assert (path / "data").read_text() == "one"
        assert [entry.name for entry in sorted((path / "deep").iterdir())] == ["data"]
        assert (Path("ds", "data").read_text(), len(pinned())) == ("three", 1)
        with atomik.snapshot("ds") as other:
            publish("four")
            assert ((path / "data").read_text(), (other / "data").read_text(), len(pinned())) == ("one", "three", 2)
        publish("five")
        assert len(pinned()) == 1, "the version of the second reader went with it"
    publish("six")
    assert os.listdir() == ["ds"]


def test_recover_deletes_what_was_read(folder: Path) -> None:
    """Not while it is read; that is nothing that wants attention."""
    publish("one")
    with atomik.snapshot("ds") as path:
        publish("two")
        for options in ({"dry_run": True}, {}, {"discard": True}):
            report = atomik.recover(".", **options)  # type: ignore[arg-type]
            assert [(item.action, item.path) for item in report.items] == [("pinned", str(folder / pinned()[0]))]
            assert report.clean
        assert (path / "data").read_text() == "one"
    assert [item.action for item in atomik.recover(".").items] == ["removed"]
    assert os.listdir() == ["ds"]


def test_what_is_removed_or_moved(folder: Path) -> None:
    """A folder that is removed, a previous version that is replaced, an exchange: nothing is taken from under a reader."""
    publish("one")
    publish("kept", "ds.before")
    with atomik.snapshot("ds") as path, atomik.snapshot("ds.before") as before:
        with atomik.folder("ds", True, backup="ds.before") as new:
            (new / "data").write_text("two")
        assert ((path / "data").read_text(), (before / "data").read_text()) == ("one", "kept")
        atomik.swap("ds", "ds.before")
        with atomik.transaction() as tx:
            tx.remove("ds")
            tx.remove("ds.before")
        assert ((path / "data").read_text(), (before / "data").read_text()) == ("one", "kept")
    atomik.recover(".")
    assert os.listdir() == []


def test_a_resumable_output(folder: Path) -> None:
    """What it displaces is where it was staged: the next job there starts from nothing."""
    publish("one")
    with atomik.snapshot("ds") as path:
        for version in ("two", "three"):
            with atomik.folder("ds", overwrite=True, resume=True) as new:
                assert not new.resumed
                (new / "data").write_text(version)
        assert (path / "data").read_text() == "one"
        assert len(pinned()) == 1
    publish("four")
    assert os.listdir() == ["ds"]


def test_a_link_leads_to_the_version(folder: Path) -> None:
    """A release that the link led to when the block began."""
    publish("one", "release-1")
    publish("two", "release-2")
    os.symlink("release-1", "current")
    with atomik.snapshot("current") as path, atomik.transaction(overwrite=True) as tx:
        tx.symlink("current", "release-2")
        tx.remove("release-1")
        tx.commit()
        assert (path / "data").read_text() == "one"
    atomik.recover(".")
    assert sorted(os.listdir()) == ["current", "release-2"]


def test_a_program_that_is_started_with_it(folder: Path) -> None:
    """With all of its descriptors closed; and with the descriptor, which outlives the block."""
    publish("one")
    snapshot = atomik.snapshot("ds")
    with snapshot as path:
        publish("two")
        assert subprocess.run(["cat", path / "data"], capture_output=True, check=True).stdout == b"one"
        code = f"import sys; input(); print(open('/proc/self/fd/{snapshot.fd}/data').read())"
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[snapshot.fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    publish("three")
    assert len(pinned()) == 1, "the child reads it still"
    assert child.communicate("\n")[0] == "one\n"
    publish("four")
    assert os.listdir() == ["ds"]


def test_a_reader_that_is_killed(folder: Path) -> None:
    """Its pin goes with it."""
    publish("one")
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with atomik.snapshot("ds"):
            os.write(writer, b"x")
            signal.pause()
    os.read(reader, 1)
    publish("two")
    assert len(pinned()) == 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    publish("three")
    assert os.listdir() == ["ds"]


@needs_root
def test_another_user_who_may_only_read(open_folder: Path) -> None:
    """Root publishes in a folder of its own; the reader may not write there, nor enter the private folder."""
    open_folder.chmod(0o755)
    publish("one", open_folder / "ds")
    ready, told = os.pipe()
    go, tell = os.pipe()

    def read() -> list[str]:
        with atomik.snapshot(open_folder / "ds") as path:
            os.write(told, b"x")
            os.read(go, 1)
            return [(path / name).read_text() for name in ("data", "deep/data")]

    def publish_meanwhile() -> None:
        os.read(ready, 1)
        publish("two", open_folder / "ds")
        publish("three", open_folder / "ds")
        os.write(tell, b"x")

    publisher = threading.Thread(target=publish_meanwhile, daemon=True)
    publisher.start()
    assert in_child(read, become=NOBODY) == ["one", "one"]
    publisher.join()
    for fd in (ready, told, go, tell):
        os.close(fd)
    publish("four", open_folder / "ds")
    assert os.listdir(open_folder) == ["ds"]


def test_replaced_between_open_and_pin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the pin may have come too late: the reader takes the version that is there now."""
    publish("one")
    left = [2]

    def replace(_: object) -> None:
        if left[0]:
            left[0] -= 1
            publish("new")

    with installed(Acting("pin", replace)), atomik.snapshot("ds") as path:
        assert ((path / "data").read_text(), left) == ("new", [0])
    monkeypatch.setattr("atomik._api.snapshot._ATTEMPTS", 3)
    with pytest.raises(errors.ConflictError), installed(Acting("pin", lambda _: publish("new"))):
        atomik.snapshot("ds").__enter__()
    atomik.recover(".")
    assert os.listdir() == ["ds"]


def test_errors(folder: Path) -> None:
    Path("file").touch()
    for path, kind in (("missing", errors.MissingPathError), ("file", errors.WrongKindError)):
        with pytest.raises(kind) as raised, atomik.snapshot(path):
            pass
        assert raised.value.filename == str(folder / path)
    publish("one")
    with (
        pytest.raises(errors.UnsupportedFilesystemError, match="reading"),
        installed(Faulty.every("pin", errno.EINVAL)),
        atomik.snapshot("ds"),
    ):
        pass
    with installed(Faulty.every("is_pinned", errno.EINVAL)):
        publish("two")  # nobody can pin there, so nothing is
    with installed(Faulty.every("stat", errno.ENOENT)), pytest.raises(errors.UnsupportedFilesystemError, match="/proc"):
        atomik.snapshot("ds").__enter__()
    snapshot = atomik.snapshot("ds")
    with pytest.raises(errors.TransactionStateError):
        _ = snapshot.path
    with snapshot as path:
        assert (snapshot.path, repr(path) in repr(snapshot) or str(path) in repr(snapshot)) == (path, True)
        with pytest.raises(errors.TransactionStateError):
            snapshot.__enter__()
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(snapshot)
    assert snapshot.fd == -1
    with snapshot as path:
        assert (path / "data").read_text() == "two"


def test_async_with(folder: Path) -> None:
    publish("one")

    async def read() -> str:
        async with atomik.snapshot("ds") as path:
            publish("two")
            return (path / "data").read_text()

    assert asyncio.run(read()) == "one"
    atomik.recover(".")


def test_it_is_no_sign_of_a_waiting_writer(folder: Path) -> None:
    """Readers who lock the folder do not give way to a reader who has pinned it."""
    publish("one")
    with atomik.snapshot("ds"):
        fd = os.open("ds", os.O_RDONLY)
        assert not _kernel.port.writer_is_waiting(fd)
        assert _kernel.port.earlier(fd, 0, 0) is None
        _kernel.port.announce_writer(fd, 12345)
        assert _kernel.port.is_pinned(fd)
        os.close(fd)
    assert not left_in(folder)
