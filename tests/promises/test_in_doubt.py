"""When even the undo of a one-item write fails: the original is kept, and recovery does not delete it."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik._commit import later
from atomik._folder import filesystem
from atomik._system import kernel as _kernel
from tests.support.kernels import Faulty, installed

if TYPE_CHECKING:
    from pathlib import Path


class Stuck(_kernel.Kernel):
    """Ctrl-C comes in the sync after the swap, and from then on `renames` renames fail."""

    def __init__(self, renames: int) -> None:
        self.renames, self.swapped, self.struck = renames, False, False

    def rename(self, *args: Any) -> None:
        if self.struck and self.renames:
            self.renames -= 1
            raise OSError(errno.EIO, "Input/output error")
        super().rename(*args)
        self.swapped = True

    def fsync(self, fd: int) -> None:
        if self.swapped and not self.struck:
            self.struck = True
            raise KeyboardInterrupt
        super().fsync(fd)


@pytest.mark.leftovers("the original that could not be brought back")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_original_survives_recovery(folder: Path, kind: str) -> None:
    """A RollbackError names where the original is; recover() reports it, and deletes it only with discard=True."""
    dest = folder / "dest"
    if kind == "file":
        dest.write_text("old")
    else:
        dest.mkdir()
        (dest / "inner").write_text("old")
    output: Any = (atomik.file if kind == "file" else atomik.folder)(dest, overwrite=True)
    output.__enter__()
    before = _kernel.install(Stuck(renames=2))
    try:
        with pytest.raises(atomik.errors.RollbackError) as caught:
            output.__exit__(None, None, None)
    finally:
        _kernel.install(before)
    report = atomik.recover(folder)
    assert [item.action for item in report.kept] == ["kept"]
    assert atomik.recover(folder, dry_run=True).kept == report.kept
    kept = folder / report.kept[0].path
    assert str(kept) == caught.value.filename2
    assert (kept if kind == "file" else kept / "inner").read_text() == "old"
    again = atomik.recover(folder, discard=True)
    assert "discarded" in [item.action for item in again.items]
    assert [entry.name for entry in folder.iterdir()] == ["dest"]


def test_a_failure_of_the_moment_does_not_leave_it_in_doubt(folder: Path) -> None:
    """An undo that fails once is tried again; the interrupt goes on, and everything is as it was."""
    dest = folder / "dest"
    dest.write_text("old")
    before = _kernel.install(Stuck(renames=1))
    try:
        with pytest.raises(KeyboardInterrupt), atomik.file(dest, overwrite=True) as f:
            f.write("new")
    finally:
        _kernel.install(before)
    assert dest.read_text() == "old"
    assert [entry.name for entry in folder.iterdir()] == ["dest"]


def test_a_detached_text_file_keeps_what_was_written_to_its_buffer(folder: Path) -> None:
    """Who detaches the buffer of a text file and writes to that has written to the file."""
    with atomik.file(folder / "a") as f:
        buffer = f.detach()  # type: ignore[attr-defined]
        buffer.write(b"hello")
    assert (folder / "a").read_text() == "hello"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_warning_that_is_an_error_does_not_stop_the_clean_up(folder: Path) -> None:
    """Filters may turn the ResourceWarning into an exception; by then nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        tx = atomik.transaction()
        tx.folder(folder / "site")
        del tx
        gc.collect()
    assert list(folder.iterdir()) == []


#: every call of the port that reaches a server
_SERVED = sorted(
    name
    for name in vars(_kernel.Kernel)
    if not name.startswith("_") and name not in ("close", "flock", "announce_writer")
)
_MOMENTS = [("swapping", 1), ("swapping", 2), ("syncing", 0), ("syncing", 1)]
_GROUNDS = [
    *(("one_log", moment) for moment in _MOMENTS),
    *(("no_log", moment) for moment in [*_MOMENTS, ("syncing", 2)]),
]


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ECONNABORTED])
@pytest.mark.parametrize(("ground", "moment"), _GROUNDS)
def test_the_server_dies(
    folder: Path, request: pytest.FixtureRequest, ground: str, moment: tuple[str, int], number: int
) -> None:
    """Every call fails from then on: an error of atomik's that says so, and recovery brings everything back later."""
    request.getfixturevalue(ground)
    for name in ("one", "two"):
        (folder / name).write_text("old")
    dead = Faulty(lambda _: number if dead_now else None, _SERVED)
    dead_now: list[bool] = []

    def progress(phase: str, done: int, _: int) -> None:
        if (phase, done) == moment:
            dead_now.append(True)

    with installed(dead), pytest.raises(atomik.errors.AtomikOSError) as caught:  # noqa: SIM117
        with atomik.transaction(overwrite=True, progress=progress) as tx:
            tx.file(folder / "one").write("new")
            tx.file(folder / "two").write("new")
    assert dead.struck
    assert caught.value.errno == number
    assert "hard links" not in str(caught.value)
    filesystem.forget()
    atomik.recover(folder)
    assert {(folder / name).read_text() for name in ("one", "two")} == {"old"}
    assert sorted(entry.name for entry in folder.iterdir()) == ["one", "two"]


class _Full(_kernel.Kernel):
    """The mark cannot be written, and no folder can be opened any more while the staged file `size` bytes long is open."""

    def __init__(self, size: int) -> None:
        self.size, self.struck, self.refused = size, False, 0

    def pwrite(self, fd: int, data: Any, at: int) -> int:  # type: ignore[override]
        if at > 0 and not self.struck:
            self.struck = True
            raise OSError(errno.EIO, "Input/output error")
        return os.pwrite(fd, data, at)

    def open(self, path: Any, flags: int, dir_fd: Any = None) -> int:  # type: ignore[override]
        if self.struck and path == "." and self._held():
            self.refused += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return os.open(path, flags | os.O_CLOEXEC, dir_fd=dir_fd)

    def _held(self) -> bool:
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/self/fd/{name}").st_size == self.size:
                    return True
        return False


@pytest.mark.usefixtures("no_log")
def test_a_rollback_makes_room_for_the_descriptors_that_it_needs(folder: Path) -> None:
    """At the hard limit of open files a rollback closes what it does not need any more, and does not end in doubt."""
    (folder / "log").write_text("old")
    kernel, output = _Full(54321), atomik.file("log", "a", overwrite=True)
    output.output.write("x" * (54321 - 3))
    with pytest.raises(atomik.errors.CommitError), installed(kernel):
        output.commit()
    assert (kernel.struck, kernel.refused) == (True, 0)
    assert os.listdir() == ["log"]
    assert (folder / "log").read_text() == "old"


@pytest.mark.parametrize("cleanup", ["now", "later"])
@pytest.mark.parametrize("ground", ["no_log", "one_log"])
def test_a_journal_that_cannot_be_removed(
    folder: Path, request: pytest.FixtureRequest, ground: str, cleanup: Any
) -> None:
    """As where the folder has become immutable: the commit stays, and whoever finds the journal later finishes it."""
    request.getfixturevalue(ground)
    for name in ("one", "two"):
        (folder / name).write_text("old")
    (folder / "site").mkdir()
    with installed(
        Faulty(lambda call: errno.EPERM if call.paths[0].endswith("/.atomik-journal") else None, {"unlink"})
    ):
        with atomik.transaction(overwrite=True, cleanup=cleanup) as tx:
            tx.file(folder / "one").write("new")
            tx.file(folder / "new").write("new")
            (tx.folder(folder / "site") / "page").write_text("new")
            tx.remove(folder / "two")
        assert tx.state is atomik.State.COMMITTED
        assert tx.receipt is not None
        assert any(".atomik-journal" in text for text in tx.receipt.leftovers)
        later.wait()
    for _ in range(2):
        assert {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} == {"one", "new", "site"}
        assert [(folder / name).read_text() for name in ("one", "new", "site/page")] == ["new"] * 3
        report = atomik.recover(folder)
        assert report.clean
    assert sorted(entry.name for entry in folder.iterdir()) == ["new", "one", "site"]


@pytest.mark.parametrize("ground", ["no_log", "one_log"])
def test_a_journal_that_cannot_be_removed_after_a_rollback(
    folder: Path, request: pytest.FixtureRequest, ground: str
) -> None:
    """All is as it was, nothing staged is left, and recovery removes the journal."""
    request.getfixturevalue(ground)
    (folder / "one").write_text("old")

    def stop(phase: str, done: int, _: int) -> None:
        if (phase, done) == ("swapping", 2):
            raise KeyboardInterrupt

    broken = Faulty(lambda call: errno.EPERM if call.paths[0].endswith("/.atomik-journal") else None, {"unlink"})
    with installed(broken), pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with atomik.transaction(overwrite=True, progress=stop) as tx:
            tx.file(folder / "one").write("new")
            tx.file(folder / "new").write("new")
    assert sorted(entry.name for entry in folder.iterdir()) == [".atomik-journal", "one"]
    assert (folder / "one").read_text() == "old"
    assert atomik.recover(folder).clean
    assert [entry.name for entry in folder.iterdir()] == ["one"]
