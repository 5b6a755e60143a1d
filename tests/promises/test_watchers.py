"""P10: programs that watch hear of a published name last as there and complete, and never last as gone."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from tests.filesystems.grounds import Lacking, forgetful, no_flags, no_tmpfile
from tests.support.inotify import watching
from tests.support.kernels import installed
from tests.support.state import eventually
from tests.support.users import DAC_OVERRIDE, NOBODY, as_user, has_capability, root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THERE = {"MOVED_TO", "CLOSE_WRITE"}


def _write(**options: Any) -> None:
    with atomik.file("conf", **options) as f:
        f.write("new")


def _group(**options: Any) -> None:
    with atomik.transaction(overwrite=True, **options) as tx:
        tx.file("conf").write("new")
        tx.file("conf2").write("new")


def _update() -> None:
    with atomik.update("conf") as f:
        f.write("new")


def _path() -> None:
    with atomik.path("conf", overwrite=True) as name:
        name.write_text("new")


def _companions() -> None:
    with atomik.path("conf2", overwrite=True, also=["conf", "source", "other"]) as name:
        name.write_text("new")
        (name.parent / "conf").write_text("new")
        (name.parent / "other").write_text("new")


def _in_place() -> None:
    with atomik.folder(".", overwrite=True, in_place=True) as new:
        for name in ("conf", "other"):
            (new / name).write_text("new")


def _move(source: str) -> None:
    with atomik.transaction(overwrite=True) as tx:
        tx.move(source, "conf")


def _symlink() -> None:
    with atomik.transaction(overwrite=True) as tx:
        tx.symlink("conf", "elsewhere")


def _fail_half_way() -> None:
    def fail(phase: str, done: int, total: int) -> None:
        if phase == "swapping" and done == 2:
            raise LookupError

    with contextlib.suppress(LookupError):
        _group(progress=fail)


#: name → (whether "conf" is there before, what is done, the content afterwards)
FILES: dict[str, tuple[bool, Callable[[], object], str]] = {
    "new": (False, _write, "new"),
    "new, not durable": (False, lambda: _write(durable=False), "new"),
    "new, read-only": (False, lambda: _write(permissions=0o444), "new"),
    "new in a group": (False, _group, "new"),
    "new path": (False, _path, "new"),
    "overwrite": (True, lambda: _write(overwrite=True), "new"),
    "overwrite in a group": (True, _group, "new"),
    "companion": (True, _companions, "new"),
    "in a folder that stays": (True, _in_place, "new"),
    "append": (True, lambda: _write(mode="a", overwrite=True), "oldnew"),
    "update": (True, _update, "new"),
    "path": (True, _path, "new"),
    "backup": (True, lambda: _write(overwrite=True, backup="conf.bak"), "new"),
    "moved here": (False, lambda: _move("source"), "source"),
    "moved over": (True, lambda: _move("source"), "source"),
    "rolled back": (True, _fail_half_way, "old"),
}


@pytest.mark.parametrize("job", FILES)
def test_a_file(folder: Path, job: str) -> None:
    """The kernel's last word on the name is that it is there."""
    before, publish, after = FILES[job]
    Path("source").write_text("source")
    Path("conf2").write_text("old")
    if before:
        Path("conf").write_text("old")
    with watching(folder) as watch:
        publish()
        events = watch.events()
    assert Path("conf").read_text() == after
    assert events["conf"][-1] in THERE, events["conf"]
    for name, told in events.items():
        # "#…" is what the kernel calls a file that has no name (O_TMPFILE).
        assert name.startswith((".atomik-", "#")) or os.path.lexists(name) == (told[-1] in THERE), (name, told)


@pytest.mark.parametrize("job", [job for job in FILES if has_capability(DAC_OVERRIDE) or "read-only" not in job])
def test_a_file_where_renameat2_has_no_flags(folder: Path, job: str) -> None:
    """The same where files get their names by link(2), as on most FUSE servers."""
    with forgetful(), installed(Lacking(no_flags, "rename")), installed(Lacking(no_tmpfile, "open_tmpfile")):
        test_a_file(folder, job)


@pytest.mark.parametrize("job", ["new", "overwrite", "copy", "backup", "group", "moved over", "rolled back"])
def test_a_folder(folder: Path, job: str) -> None:
    """The same for a folder, and for what was there before it."""
    Path("beside").write_text("old")
    Path("source").mkdir()
    if job != "new":
        Path("site").mkdir()
    options: dict[str, Any] = {"copy": {"copy": True}, "backup": {"backup": "site.bak"}}.get(job, {})

    def fail(phase: str, done: int, total: int) -> None:
        if phase == "swapping" and done == 2 and job == "rolled back":
            raise LookupError

    with watching(folder) as watch:
        with contextlib.suppress(LookupError), atomik.transaction(overwrite=True, progress=fail) as tx:
            if job == "moved over":
                tx.move("source", "site")
            else:
                tx.folder("site", **options)
            if job in ("group", "rolled back"):
                tx.file("beside").write("new")
        events = watch.events()
    assert events["site"][-1] == "MOVED_TO", events
    assert (job == "backup") == (events.get("site.bak", [""])[-1] == "MOVED_TO")


@root
def test_a_read_only_file_of_an_ordinary_user(open_folder: Path) -> None:
    """Nobody can open it for writing once it is there, so it has to arrive."""
    for permissions in (0o444, 0o400, 0o644):

        def publish(permissions: int = permissions) -> None:
            os.chdir(open_folder)
            _write(permissions=permissions, overwrite=permissions == 0o400)

        with watching(open_folder) as watch:
            assert as_user(NOBODY, publish) == "None"
            events = watch.events()
        assert events["conf"][-1] in THERE, (permissions, events)
        assert (open_folder / "conf").stat().st_mode & 0o777 == permissions
        (open_folder / "conf").unlink()


def test_a_link_and_a_removal(folder: Path) -> None:
    """A link is there when it has arrived; what was removed is gone, last of all."""
    Path("gone").write_text("x")
    with watching(folder) as watch:
        _symlink()
        _symlink()
        with atomik.transaction() as tx:
            tx.remove("gone")
        events = watch.events()
    assert events["conf"][-1] == "MOVED_TO"
    assert events["gone"][-1] in ("MOVED_FROM", "DELETE")


# --- programs that build on it -----------------------------------------------------------------------------------------
def _publish_all() -> None:
    """Two orders of each kind."""
    for _ in range(2):
        _write(overwrite=True)
        _update()
        with atomik.transaction(overwrite=True) as tx:
            tx.file("one").write("1")
            tx.file("two").write("2")


@pytest.mark.parametrize("second", ["file", "folder"])
@pytest.mark.parametrize("first", ["file", "folder"])
def test_an_exchange(folder: Path, first: str, second: str) -> None:
    """The last event of a file says that it is there, at either name; of two folders, that of one does."""
    for name, kind in (("a", first), ("b", second)):
        (folder / name).touch() if kind == "file" else (folder / name).mkdir()
    with watching(folder) as watch:
        atomik.swap("a", "b")
        last = {name: told[-1] for name, told in watch.events().items() if name in "ab"}
    both = first == second == "folder"
    assert sorted(last.values()) == (["MOVED_FROM", "MOVED_TO"] if both else ["CLOSE_WRITE", "MOVED_TO"])


def test_inotifywait(folder: Path) -> None:
    """The usual ``inotifywait -e close_write -e moved_to`` reports everything."""
    if shutil.which("inotifywait") is None:
        pytest.skip("needs inotifywait (inotify-tools)")
    command = ["inotifywait", "-m", "-e", "close_write", "-e", "moved_to", "--format", "%f", "."]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert watcher.stderr is not None
        heard: set[str] = set()

        def listen() -> None:
            assert watcher.stdout is not None
            heard.update(line.strip() for line in watcher.stdout)

        try:
            while "Watches established" not in (said := watcher.stderr.readline()):
                assert said, "inotifywait has ended"
            listener = threading.Thread(target=listen)
            listener.start()
            _publish_all()
            assert eventually(lambda: {"conf", "one", "two"} <= heard), heard
        finally:
            watcher.terminate()
        listener.join()


def test_watchdog(folder: Path) -> None:
    """watchdog: what its handler believes to be there is there."""
    events = pytest.importorskip("watchdog.events", reason="needs watchdog")
    observers = pytest.importorskip("watchdog.observers")
    believed: dict[str, bool] = {}

    class Mirror(events.FileSystemEventHandler):  # type: ignore[misc,name-defined]
        def dispatch(self, event: Any) -> None:
            name = os.path.basename(event.src_path)
            if event.event_type == "moved":
                believed[name] = False
                believed[os.path.basename(event.dest_path)] = True
            elif event.event_type in ("created", "closed", "deleted"):
                believed[name] = event.event_type != "deleted"

    observer = observers.Observer()
    observer.schedule(Mirror(), str(folder))
    observer.start()
    try:
        _publish_all()
        (folder / "last").touch()  # it tells of everything in order
        assert eventually(lambda: "last" in believed), believed
        assert all(believed[name] for name in ("conf", "one", "two")), believed
    finally:
        observer.stop()
        observer.join()


def test_watchfiles(folder: Path) -> None:
    """watchfiles: the last batch of each name is not just a deletion."""
    watchfiles = pytest.importorskip("watchfiles", reason="needs watchfiles")
    last: dict[str, set[str]] = {}  # what the last batch says of each name; within one there is no order
    stop = threading.Event()

    def watch() -> None:
        for changes in watchfiles.watch(
            folder, stop_event=stop, debounce=50, step=10, rust_timeout=200, yield_on_timeout=True
        ):
            batch: dict[str, set[str]] = {}
            for change, path in changes:
                batch.setdefault(os.path.basename(path), set()).add(change.name)
            last.update(batch)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        assert eventually(lambda: (folder / "first").write_text("x") and "first" in last), last  # now it watches
        _publish_all()
        (folder / "last").touch()  # of what comes in one batch, nothing comes in a later one
        assert eventually(lambda: {"conf", "one", "two", "last"} <= last.keys()), last
    finally:
        stop.set()
        thread.join()
    assert all(last[name] != {"deleted"} for name in ("conf", "one", "two")), last


@contextlib.contextmanager
def _lsyncd(source: Path, target: Path, home: Path) -> Iterator[None]:
    config = home / "lsyncd.lua"
    config.write_text(
        "settings { nodaemon = true, insist = true }\n"
        f'sync {{ default.direct, source = "{source}", target = "{target}", delay = 0 }}\n'
    )
    with (home / "log").open("w") as log, subprocess.Popen(["lsyncd", str(config)], stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.terminate()


@pytest.mark.sweep
def test_lsyncd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror has what was published, and keeps it."""
    if shutil.which("lsyncd") is None or shutil.which("rsync") is None:
        pytest.skip("needs lsyncd and rsync")
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "first").write_text("x")
    monkeypatch.chdir(source)
    with _lsyncd(source, target, tmp_path):
        assert eventually((target / "first").exists), (tmp_path / "log").read_text()
        _publish_all()
        wanted = ("conf", "one", "two")
        assert eventually(lambda: all((target / name).exists() for name in wanted)), (tmp_path / "log").read_text()
        _publish_all()
        (source / "last").touch()
        assert eventually((target / "last").exists), (tmp_path / "log").read_text()
        assert all((target / name).exists() for name in wanted), (tmp_path / "log").read_text()
