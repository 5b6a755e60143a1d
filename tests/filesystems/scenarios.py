"""The core suite as stories: what is there before, what is done, what is there afterwards.

A scenario gets a folder that :func:`before` has filled, does its work through atomik's public interface, and gives the
tree that must be there afterwards as changes to the one before (None: gone).  It may return the receipt, for the methods.
A refusal is an error of atomik's; then the tree must be what it was before: that is checked in :mod:`cells`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define

import atomik
from atomik import errors
from atomik._folder import filesystem as _filesystem
from atomik._system import kernel as _kernel
from atomik.testing import CrashPoint, crash_points
from tests.support.inotify import watching
from tests.support.kernels import Acting, Faulty, installed
from tests.support.state import left_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Changes = dict[str, str | None]

FOLDER = "a folder"
SCENARIOS: dict[str, Scenario] = {}


@define(frozen=True)
class Scenario:
    """One story: ``play(folder)`` gives (changes, receipt, or words for what came of it, or None).  ``about`` is its line in
    the documentation."""

    name: str
    about: str
    play: Callable[[Path], tuple[Changes, atomik.Receipt | str | None]]


def before(folder: Path) -> None:
    """What every scenario starts from.  Made with plain calls, so that it can be a lower layer as well."""
    (folder / "site" / "deep").mkdir(parents=True)
    (folder / "other").mkdir()
    for name, text in _BEFORE.items():
        (folder / name).write_text(text)
    with contextlib.suppress(OSError):  # exFAT and rclone have no links
        (folder / "latest").symlink_to("report.csv")
    with contextlib.suppress(OSError):  # and some servers have no modes
        (folder / "report.csv").chmod(0o640)
        (folder / "site").chmod(0o750)


_BEFORE = {
    "report.csv": "old report", "obsolete": "old obsolete", "site/index.html": "old index", "site/deep/page": "old page",
    "other/data": "old data",
}  # fmt: skip


def look(folder: Path) -> dict[str, str]:
    """Everything below the folder: path → content, link target or "a folder", with the mode of files and folders."""
    found = {}
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where, name)
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = f"-> {path.readlink()}"
            elif path.is_dir():
                found[key] = FOLDER
            elif path.is_file():
                found[key] = path.read_text(errors="replace")
            else:
                found[key] = "special"
    return found


def _scenario(about: str) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    def add(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
        name = function.__name__.removeprefix("_").replace("_", "-")
        SCENARIOS[name] = Scenario(name, about, function)
        return function

    return add


# --- files -----------------------------------------------------------------------------------------------------------
@_scenario("create a file")
def file_new(folder: Path) -> tuple[Changes, Any]:
    out = atomik.file(folder / "new")
    with out as f:
        f.write("new")
    return {"new": "new"}, out.receipt


@_scenario("create a file while someone else creates it: their version is kept")
def file_race(folder: Path) -> tuple[Changes, Any]:
    def rival(call: Any) -> None:
        if call.paths and call.paths[-1].endswith("/new") and not (folder / "new").exists():
            (folder / "new").write_text("theirs")

    with installed(Acting("link link_fd rename", rival)) as kernel:
        try:
            with pytest.raises(errors.FileAlreadyExistsError, match="new"), atomik.file(folder / "new") as f:
                f.write("ours")
        except errors.UnsupportedFilesystemError:
            (folder / "new").unlink(missing_ok=True)  # the rival's, so that the tree is as it was before
            raise
    assert kernel.acted
    return {"new": "theirs"}, None


@_scenario("overwrite a file, its mode kept")
def file_overwrite(folder: Path) -> tuple[Changes, Any]:
    out = atomik.file(folder / "report.csv", overwrite=True)
    before = (folder / "report.csv").stat().st_mode
    with out as f:
        f.write("new report")
    assert (folder / "report.csv").stat().st_mode == before
    return {"report.csv": "new report"}, out.receipt


@_scenario("append to a file through a copy of it")
def file_append(folder: Path) -> tuple[Changes, Any]:
    out = atomik.file(folder / "report.csv", "a", overwrite=True)
    with out as f:
        f.write(" and more")
    return {"report.csv": "old report and more"}, out.receipt


@_scenario("read, change and write a file")
def file_update(folder: Path) -> tuple[Changes, Any]:
    out = atomik.update(folder / "report.csv")
    with out as f:
        text = f.read()
        f.seek(0)
        f.truncate()
        f.write(text.replace("old", "new"))
    return {"report.csv": "new report"}, out.receipt


@_scenario("refuse a change made in the meantime (`expect`)")
def file_expect(folder: Path) -> tuple[Changes, Any]:
    seen = atomik.observe(folder / "report.csv", digest=True)
    out = atomik.file(folder / "report.csv", overwrite=True, expect=seen)
    with all_or_nothing(folder), pytest.raises(errors.ConflictError, match=r"report\.csv"), out as f:
        f.write("ours")
        (folder / "report.csv").write_text("theirs")
    return {"report.csv": "theirs"}, None


@_scenario("keep the previous version under another name")
def file_keep(folder: Path) -> tuple[Changes, Any]:
    out = atomik.file(folder / "report.csv", overwrite=True, backup="report.old")
    with out as f:
        f.write("new report")
    return {"report.csv": "new report", "report.old": "old report"}, out.receipt


@_scenario("a file with the mode that was asked for, in folders that are made for it")
def file_permissions(folder: Path) -> tuple[Changes, Any]:
    out = atomik.file(folder / "a" / "b" / "new", "wb", parents=True, permissions=0o600)
    with out as f:
        f.write(b"new")
    os.close(os.open(folder / "plain", os.O_CREAT, 0o600))
    assert (folder / "a" / "b" / "new").stat().st_mode == (folder / "plain").stat().st_mode
    (folder / "plain").unlink()
    return {"a": FOLDER, "a/b": FOLDER, "a/b/new": "new"}, out.receipt


@_scenario("names of 255 bytes, and names that are no UTF-8")
def file_names(folder: Path) -> tuple[Changes, Any]:
    odd, long = os.fsdecode(b"caf\xe9\n"), "x" * 255
    with atomik.transaction() as tx:
        for name in (odd, long):
            with tx.file(folder / name) as f:
                f.write("new")
    return {odd: "new", long: "new"}, tx.receipt


@_scenario("publish what a program wrote by name")
def path_new(folder: Path) -> tuple[Changes, Any]:
    out = atomik.path(folder / "table.npz")
    with out as name:
        name.write_text("new table")
    return {"table.npz": "new table"}, out.receipt


@_scenario("abandon a file: nothing stays")
def file_abandon(folder: Path) -> tuple[Changes, Any]:
    try:
        with atomik.file(folder / "report.csv", overwrite=True) as f:
            f.write("half")
            raise KeyError("the user's own")
    except KeyError:
        pass
    return {}, None


# --- folders ---------------------------------------------------------------------------------------------------------
@_scenario("create a folder")
def folder_new(folder: Path) -> tuple[Changes, Any]:
    out = atomik.folder(folder / "plots")
    with out as new:
        (new / "loss.svg").write_text("new plot")
    return {"plots": FOLDER, "plots/loss.svg": "new plot"}, out.receipt


@_scenario("overwrite a folder that is not empty, its mode kept")
def folder_overwrite(folder: Path) -> tuple[Changes, Any]:
    out = atomik.folder(folder / "site", overwrite=True)
    before_ = (folder / "site").stat().st_mode
    with out as new:
        (new / "index.html").write_text("new index")
    assert (folder / "site").stat().st_mode == before_
    return {"site/index.html": "new index", "site/deep": None, "site/deep/page": None}, out.receipt


@_scenario("overwrite a folder that began as a copy")
def folder_copy(folder: Path) -> tuple[Changes, Any]:
    out = atomik.folder(folder / "site", overwrite=True, copy=True)
    with out as new:
        (new / "index.html").write_text("new index")
    return {"site/index.html": "new index"}, out.receipt


@_scenario("create a folder, `allow_gap=True`")
def folder_new_weaker(folder: Path) -> tuple[Changes, Any]:
    out = atomik.folder(folder / "plots", allow_gap=True)
    with out as new:
        (new / "loss.svg").write_text("new plot")
    return {"plots": FOLDER, "plots/loss.svg": "new plot"}, out.receipt


@_scenario("overwrite a folder, `allow_gap=True`")
def folder_overwrite_weaker(folder: Path) -> tuple[Changes, Any]:
    out = atomik.folder(folder / "site", overwrite=True, allow_gap=True)
    with out as new:
        (new / "index.html").write_text("new index")
    return {"site/index.html": "new index", "site/deep": None, "site/deep/page": None}, out.receipt


# --- links, removals, moves ------------------------------------------------------------------------------------------
@_scenario("create a symlink")
def symlink_new(folder: Path) -> tuple[Changes, Any]:
    with atomik.transaction() as tx:
        tx.symlink(folder / "current", "site")
    return {"current": "-> site"}, tx.receipt


@_scenario("replace a symlink")
def symlink_overwrite(folder: Path) -> tuple[Changes, Any]:
    with atomik.transaction(overwrite=True) as tx:
        tx.symlink(folder / "latest", "obsolete")
    return {"latest": "-> obsolete"}, tx.receipt


@_scenario("remove a file")
def remove_file(folder: Path) -> tuple[Changes, Any]:
    with atomik.transaction() as tx:
        tx.remove(folder / "obsolete")
    return {"obsolete": None}, tx.receipt


@_scenario("remove a folder")
def remove_folder(folder: Path) -> tuple[Changes, Any]:
    with atomik.transaction() as tx:
        tx.remove(folder / "site")
    return {"site": None, "site/index.html": None, "site/deep": None, "site/deep/page": None}, tx.receipt


@_scenario("move a file to another folder")
def move_file(folder: Path) -> tuple[Changes, Any]:
    with atomik.transaction() as tx:
        tx.move(folder / "obsolete", folder / "other" / "moved")
    return {"obsolete": None, "other/moved": "old obsolete"}, tx.receipt


@_scenario("move a file over another, which is kept")
def move_over(folder: Path) -> tuple[Changes, Any]:
    with atomik.transaction(overwrite=True) as tx:
        tx.move(folder / "obsolete", folder / "other" / "data", backup="data.old")
    return {"obsolete": None, "other/data": "old obsolete", "other/data.old": "old data"}, tx.receipt


@_scenario("move a folder")
def move_folder(folder: Path) -> tuple[Changes, Any]:
    with atomik.transaction() as tx:
        tx.move(folder / "site", folder / "other" / "site")
    moved = {"index.html": "old index", "deep": FOLDER, "deep/page": "old page"}
    changes: Changes = {"site": None, "other/site": FOLDER}
    for name, content in moved.items():
        changes |= {f"site/{name}": None, f"other/site/{name}": content}
    return changes, tx.receipt


# --- several at once -------------------------------------------------------------------------------------------------
def _publish_files(folder: Path, durable: bool = True) -> Any:
    with atomik.transaction(overwrite=True, durable=durable) as tx:
        with tx.file(folder / "new") as f:
            f.write("new")
        with tx.file(folder / "report.csv") as f:
            f.write("new report")
        tx.symlink(folder / "latest", "new")
        with tx.file(folder / "other" / "data") as f:
            f.write("new data")
        tx.remove(folder / "obsolete")
    return tx.receipt


_FILES: Changes = {
    "new": "new", "report.csv": "new report", "latest": "-> new", "other/data": "new data", "obsolete": None,
}  # fmt: skip


def _publish_all(folder: Path, durable: bool = True, allow_gap: bool = False) -> Any:
    with atomik.transaction(overwrite=True, durable=durable) as tx:
        with tx.file(folder / "new", allow_gap=allow_gap) as f:
            f.write("new")
        (tx.folder(folder / "site", allow_gap=allow_gap) / "index.html").write_text("new index")
        (tx.folder(folder / "other" / "plots", allow_gap=allow_gap) / "loss.svg").write_text("new plot")
        with tx.file(folder / "other" / "data", allow_gap=allow_gap) as f:
            f.write("new data")
        tx.remove(folder / "obsolete")
    return tx.receipt


_ALL: Changes = {
    "new": "new", "site/index.html": "new index", "site/deep": None, "site/deep/page": None, "other/plots": FOLDER,
    "other/plots/loss.svg": "new plot", "other/data": "new data", "obsolete": None,
}  # fmt: skip


@_scenario("a transaction of files, links and removals over two folders")
def transaction_files(folder: Path) -> tuple[Changes, Any]:
    return _FILES, _publish_files(folder)


@_scenario("a transaction with folders in it")
def transaction_all(folder: Path) -> tuple[Changes, Any]:
    return _ALL, _publish_all(folder)


def _publish_weaker(folder: Path, durable: bool = True) -> Any:
    return _publish_all(folder, durable, True)


@_scenario("a transaction in one folder")
def transaction_one_folder(folder: Path) -> tuple[Changes, Any]:
    with atomik.transaction() as tx:
        with tx.file(folder / "new") as f:
            f.write("new")
        tx.symlink(folder / "current", "new")
        tx.remove(folder / "obsolete")
    return {"new": "new", "current": "-> new", "obsolete": None}, tx.receipt


@_scenario("a transaction with folders in it, `allow_gap=True`")
def transaction_weaker(folder: Path) -> tuple[Changes, Any]:
    return _ALL, _publish_weaker(folder)


@_scenario("a transaction of files that fails in the middle: all as before")
def rollback_files(folder: Path) -> tuple[Changes, Any]:
    _fail_in_the_middle(folder, _publish_files)
    return {}, None


@_scenario("a transaction with folders that fails in the middle: all as before")
def rollback_all(folder: Path) -> tuple[Changes, Any]:
    _fail_in_the_middle(folder, _publish_all)
    return {}, None


@_scenario("the same with `allow_gap=True`: all as before")
def rollback_weaker(folder: Path) -> tuple[Changes, Any]:
    _fail_in_the_middle(folder, _publish_weaker)
    return {}, None


def _fail_in_the_middle(folder: Path, publish: Callable[[Path], Any]) -> None:
    """The swap of other/data, the fourth, fails (without /proc only its last name is known) as a full disk would.

    Not with EIO: of a link that is the answer of a filesystem without hard links (rclone), and another method serves.
    """
    struck = []

    def plan(call: Any) -> int | None:
        hit = not struck and any(path.endswith("/data") for path in call.paths)
        struck.extend([call] * hit)
        return errno.ENOSPC if hit else None

    with installed(Faulty(plan, ("rename", "link"))), pytest.raises(errors.CommitError) as caught:
        publish(folder)
    assert caught.value.errno == errno.ENOSPC


@_scenario("a transaction of files killed at any call: all or nothing after recovery")
def recover_files(folder: Path) -> tuple[Changes, Any]:
    _kill_everywhere(folder, _publish_files, _FILES)
    return _FILES, None


@_scenario("a transaction with folders killed at any call: all or nothing after recovery")
def recover_all(folder: Path) -> tuple[Changes, Any]:
    _kill_everywhere(folder, _publish_all, _ALL)
    return _ALL, None


@_scenario("the same with `allow_gap=True`: all or nothing after recovery")
def recover_weaker(folder: Path) -> tuple[Changes, Any]:
    _kill_everywhere(folder, _publish_weaker, _ALL)
    return _ALL, None


# --- what else is promised -------------------------------------------------------------------------------------------
@_scenario("killed while a file is written: what is left")
def killed_writing(folder: Path) -> tuple[Changes, Any]:
    child = os.fork()
    if not child:
        try:
            _filesystem.forget()  # a new process knows nothing yet
            atomik.file(folder / "new").write("half")
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    found = left_in(folder)
    atomik.recover(folder)
    return {}, "a private folder" if found else "nothing"


@_scenario("read inside `reading()`")
def reading(folder: Path) -> tuple[Changes, Any]:
    with atomik.reading(folder):
        assert (folder / "report.csv").read_text() == "old report"
    return {}, None


@_scenario("create and overwrite a file while a program watches (inotify): the last event")
def watched(folder: Path) -> tuple[Changes, Any]:
    with all_or_nothing(folder), watching(folder) as watch:
        with atomik.file(folder / "new") as f:
            f.write("new")
        with atomik.file(folder / "report.csv", overwrite=True) as f:
            f.write("new report")
        events = watch.events()
    last = {events[name][-1] for name in ("new", "report.csv")}
    return {"new": "new", "report.csv": "new report"}, ", ".join(sorted(last))


@_scenario("the command line: write, run, apply, doctor, recover")
def command_line(folder: Path) -> tuple[Changes, Any]:
    change = '{"changes": [{"op": "write", "path": "applied", "text": "new"}]}'
    with all_or_nothing(folder):
        for words, text in (
            (("write", "new"), "new"),
            (("write", "report.csv", "--overwrite"), "new report"),
            (("run", "--file", "made", "--", "sh", "-c", 'echo new >"$1"', "sh", "{made}"), ""),
            (("apply", "-"), change),
            (("doctor", "--json", "."), ""),
            (("recover", "."), ""),
        ):
            _command(folder, words, text)
    changes: Changes = {"new": "new", "report.csv": "new report", "made": "new\n", "applied": "new"}
    return changes, None


@contextlib.contextmanager
def all_or_nothing(folder: Path) -> Iterator[None]:
    """Several outputs, each of which is refused by itself: what those before it did is taken back."""
    old = look(folder)
    try:
        yield
    except errors.AtomikError:
        assert not left_in(folder)
        _restore(folder, old)
        raise


def _command(folder: Path, words: tuple[str, ...], text: str) -> None:
    """Run it; a kernel that is only pretended, or a Python that another user may not start, is in this process, and so is the
    command then."""
    if type(_kernel.port) is not _kernel.Kernel or not os.access(sys.executable, os.X_OK):
        done = _forked_command(folder, words, text)
    else:
        environment = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, "-m", "atomik", *words],
            input=text,
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
        )
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode:
        assert done.returncode in (1, 125), done
        raise errors.UnsupportedFilesystemError(
            errno.EOPNOTSUPP, f"atomik {words[0]}: {done.stderr.strip()}; see above", str(folder)
        )


def _forked_command(folder: Path, words: tuple[str, ...], text: str) -> subprocess.CompletedProcess[str]:
    from atomik.cli import main

    given, said = os.memfd_create("given"), os.memfd_create("said")
    os.pwrite(given, text.encode(), 0)
    child = os.fork()
    if not child:
        code = 1
        try:
            os.chdir(folder)
            os.dup2(given, 0)
            os.dup2(said, 2)
            os.dup2(said, 1)
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
            code = main(words)
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    told = os.pread(said, 1 << 16, 0).decode()
    os.close(given)
    os.close(said)
    return subprocess.CompletedProcess(words, os.waitstatus_to_exitcode(status), "", told)


def _kill_everywhere(folder: Path, publish: Callable[[Path], Any], changes: Changes) -> None:
    """At every fifth call (the crash suite takes each of them), starting again from what was there."""
    old = look(folder)
    new = apply(old, changes)

    def prepare() -> None:
        _restore(folder, old)

    def check(point: CrashPoint) -> None:
        atomik.recover(folder, folder / "other")
        found = look(folder)
        assert found in (old, new), (found, old, new)
        assert not point.returned or found == new

    # A refusal shows here, and not as a failing child.
    publish(folder)
    assert look(folder) == new
    assert crash_points(lambda: publish(folder, durable=False), check, prepare=prepare, step=5) > 5


def _restore(folder: Path, tree: dict[str, str]) -> None:
    """Put the names back that a finished transaction changed."""
    for name in sorted(look(folder), reverse=True):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, content in sorted(tree.items()):
        if content == FOLDER:
            (folder / name).mkdir()
        elif content.startswith("-> "):
            (folder / name).symlink_to(content[3:])
        else:
            (folder / name).write_text(content)


def apply(tree: dict[str, str], changes: Changes) -> dict[str, str]:
    """The tree with the changes made."""
    return {name: text for name, text in {**tree, **changes}.items() if text is not None}
