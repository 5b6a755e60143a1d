"""Events reach all listeners, by structlog or by logging; without one nothing is seen, or costs anything."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

import atomik
from atomik import _events, errors
from tests.support.kernels import Call, Faulty, installed

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def quiet() -> Iterator[None]:
    """No handler on any logger above ours: pytest itself installs some."""
    root, ours = logging.getLogger(), logging.getLogger("atomik")
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(logging.NOTSET)


def publish() -> None:
    with atomik.transaction(overwrite=True) as tx:
        with tx.file("a") as f:
            f.write("x")
        tx.folder("d")


class Failing(logging.Handler):
    """A listener that raises at one event."""

    def __init__(self, event: str) -> None:
        super().__init__()
        self.event = event

    def emit(self, record: logging.LogRecord) -> None:
        """Raise, as a handler should not."""
        if getattr(record, "event", "") == self.event:
            raise RuntimeError(self.event)


@pytest.mark.parametrize(
    ("event", "content"),
    [
        ("item.staged", "old"),
        ("transaction.prepared", "old"),
        ("item.swapped", "old"),
        ("transaction.committed", "new"),
    ],
)
def test_what_a_listener_raises(folder: Path, quiet: None, event: str, content: str) -> None:
    """Is raised; before the commit point everything is as it was, after it everything is new, and the state says which."""
    for name in "ab":
        Path(name).write_text("old")
    logger, listener = logging.getLogger("atomik"), Failing(event)
    logger.setLevel(logging.DEBUG)
    logger.addHandler(listener)
    tx = atomik.transaction(overwrite=True)
    try:
        with pytest.raises(RuntimeError, match=event), tx:
            for name in "ab":
                tx.write_text(name, "new")
    finally:
        logger.removeHandler(listener)
    assert {name: Path(name).read_text() for name in os.listdir()} == {"a": content, "b": content}
    assert tx.state is (atomik.State.COMMITTED if content == "new" else atomik.State.ABORTED)


def fail() -> None:
    with installed(Faulty.at(2, 5, among={"rename"})), pytest.raises(errors.CommitError):
        publish()


#: What a good commit of a file and a folder tells, in order.
GOOD = [
    "transaction.begun",
    "item.staged",
    "item.sealed",
    "item.staged",
    "item.sealed",
    "transaction.prepared",
    "item.swapped",
    "item.swapped",
    "transaction.committed",
]


def test_capture_logs(folder: Path) -> None:
    """structlog.testing.capture_logs() sees every event, all bound with the transaction's id."""
    with structlog.testing.capture_logs() as events:
        publish()
    assert [event["event"] for event in events] == GOOD
    assert len({event["tx"] for event in events}) == 1
    staged, swapped, committed = events[1], events[6], events[-1]
    assert staged["path"] == str(folder / "a")
    assert (staged["kind"], staged["order"]) == ("file", 0)
    assert staged["st_dev"] == os.stat(folder).st_dev
    assert (swapped["op"], swapped["method"], swapped["kind"]) == ("create", "renameat2", "file")
    assert committed["log_level"] == "info"
    assert committed["items"] == 2
    assert committed["duration"] >= 0


def test_capture_logs_of_a_failure(folder: Path) -> None:
    """A rollback is reported step by step."""
    with structlog.testing.capture_logs() as events:
        fail()
    names = [event["event"] for event in events]
    assert names[-3:] == ["item.undone", "item.undone", "transaction.rolled_back"]
    assert events[-1]["steps"] == 2
    assert [event["result"] for event in events[-3:-1]] == ["untouched", "undone"]
    with structlog.testing.capture_logs() as events:
        tx = atomik.transaction()
        tx.file("z")
        tx.abort()
    assert [event["event"] for event in events] == ["transaction.begun", "item.staged", "transaction.aborted"]


@pytest.mark.parametrize("names", [["a"], ["b", "a"]])
def test_a_commit_that_failed_before_its_swaps_is_told(folder: Path, names: list[str]) -> None:
    """It has a last event like any other, with the reason."""
    tx = atomik.transaction()
    for name in names:
        tx.file(name).write("x")
    Path("a").touch()
    with structlog.testing.capture_logs() as events, pytest.raises(errors.FileAlreadyExistsError):
        tx.commit()
    (event,) = [
        event for event in events if event["event"].startswith("transaction.") and "begun" not in event["event"]
    ]
    assert (event["event"], event["tx"], event["items"]) == ("transaction.aborted", tx.txid, len(names))
    assert "exists" in event["cause"]


@pytest.mark.parametrize("names", [["a"], ["b", "a"]])
@pytest.mark.usefixtures("no_log")
def test_what_is_visible_and_perhaps_not_durable_is_told(folder: Path, names: list[str]) -> None:
    """It is a warning, because someone must check the disk."""

    def strike(call: Call) -> int | None:
        is_folder = os.path.isdir(call.paths[0])
        return (
            errno.EIO if Path("a").exists() and is_folder == (len(names) == 1) else None
        )  # the journal, or the folder

    tx = atomik.transaction()
    for name in names:
        tx.file(name).write("x")
    broken = Faulty(strike, {"fsync"})
    with structlog.testing.capture_logs() as events, installed(broken), pytest.raises(errors.DurabilityError):
        tx.commit()
    (event,) = [event for event in events if event["log_level"] == "warning"]
    assert (event["event"], event["tx"]) == ("transaction.in_doubt", tx.txid)
    assert "sync" in event["error"]
    atomik.recover(folder)
    assert Path("a").read_text() == "x"


def test_cleanup_that_failed_is_told(folder: Path) -> None:
    """What could not be cleaned up is a warning, and is in the receipt."""
    Path("a").touch()
    output = atomik.file("a", overwrite=True)
    with structlog.testing.capture_logs() as events, installed(Faulty.every("unlink", 5)), output:
        pass
    (event,) = [event for event in events if event["event"] == "cleanup.failed"]
    assert event["log_level"] == "warning"
    assert output.receipt is not None
    assert len(output.receipt.leftovers) == 1
    atomik.recover(folder)


def test_standard_logging(folder: Path, quiet: None) -> None:
    """logging.basicConfig(level=DEBUG) is enough."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    publish()
    assert [record.getMessage().split()[0] for record in records] == [f"event={name}" for name in GOOD]
    assert all(record.name == "atomik" for record in records)
    assert "tx=" in records[0].getMessage()
    logging.getLogger().setLevel(logging.INFO)
    records.clear()
    publish()
    assert [record.levelname for record in records] == ["INFO"]


def test_nobody_listens(folder: Path, quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event without a listener is not built: `emit` is reached a fixed number of times, whatever the number of items."""

    def count(items: int) -> int:
        reached: list[str] = []
        monkeypatch.setattr(_events, "emit", lambda level, event, **fields: reached.append(event))
        with atomik.transaction(overwrite=True) as tx:
            for number in range(items):
                tx.file(f"f{number}")
        return len(reached)

    assert count(2) == count(50) == 0


def run(code: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, env=env, cwd=folder, check=False
    )


EVERYTHING = """
import atomik, errno, os
from atomik._system import kernel as _kernel
class Broken(_kernel.Kernel):
    def unlink(self, name, fd):
        raise OSError(errno.EIO, "broken")
class Swaps(_kernel.Kernel):
    def rename(self, *args):
        raise OSError(errno.EIO, "broken")
def attempt(job, *kinds):
    try:
        job()
    except kinds:
        return
    assert not kinds, kinds
def commit(overwrite=True):
    with atomik.transaction(overwrite=overwrite) as tx:
        tx.file("a").write("1")
        (tx.folder("d") / "x").touch()
        tx.symlink("l", "a")
commit()
attempt(lambda: commit(False), FileExistsError)
_kernel.install(Broken())
commit()
_kernel.install(Swaps())
attempt(commit, atomik.AtomikError)
_kernel.install(_kernel.Kernel())
atomik.recover(".")
def crash():
    with atomik.file("b") as f:
        raise KeyError
attempt(crash, KeyError)
atomik.file("forgotten")
tx = atomik.transaction(); tx.folder("open at the end")
"""


def test_nothing_is_printed(folder: Path) -> None:
    """I12: commits, refusals, failed cleanups, rollbacks, forgotten transactions: not a byte on stdout or stderr."""
    done = run(EVERYTHING, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_is_printed_with_structlog_imported(folder: Path) -> None:
    """A bare structlog would print to stdout; having it imported, or having captured once, is not having configured it."""
    start = "import structlog\nstructlog.get_logger()\nwith structlog.testing.capture_logs(): pass\n"
    done = run(start + EVERYTHING, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_but_warnings_in_development_mode(folder: Path) -> None:
    """With -X dev the forgotten transactions are warned of, and nothing else."""
    done = run(EVERYTHING, folder, "-X", "dev")
    assert done.returncode == 0
    assert done.stdout == ""
    assert "never committed" in done.stderr
    assert all("ResourceWarning" in line or line.startswith(" ") for line in done.stderr.splitlines()), done.stderr


CONFIGURED = {
    "JSON": "structlog.configure(processors=[structlog.processors.JSONRenderer()])",
    "console": "structlog.configure(processors=[structlog.dev.ConsoleRenderer(colors=False)])",
    "filtering": "structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(10))",
    "factory": "structlog.configure(logger_factory=structlog.WriteLoggerFactory())",
}


@pytest.mark.parametrize("how", CONFIGURED)
def test_configured_structlog(folder: Path, how: str) -> None:
    """However the program configured structlog, it gets what its own loggers would get."""
    code = f"import atomik, structlog\n{CONFIGURED[how]}\nwith atomik.file('a') as f: f.write('x')\n"
    done = run(code, folder)
    assert done.stderr == ""
    for event in ("item.staged", "item.swapped", "transaction.committed"):
        assert event in done.stdout
    if how == "JSON":
        assert [json.loads(line)["event"] for line in done.stdout.splitlines()][-1] == "transaction.committed"


def test_configured_structlog_keeps_its_context(folder: Path) -> None:
    """contextvars of the program are merged into ours."""
    heard: list[Any] = []
    structlog.contextvars.bind_contextvars(job="nightly")
    try:
        with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as heard:
            publish()
    finally:
        structlog.contextvars.clear_contextvars()
    assert {event["job"] for event in heard} == {"nightly"}


def test_basic_config(folder: Path) -> None:
    """The two lines of every script are enough to see what happens."""
    code = (
        "import logging, atomik\nlogging.basicConfig(level=logging.DEBUG)\nwith atomik.file('a') as f: f.write('x')\n"
    )
    done = run(code, folder)
    assert done.stdout == ""
    assert "DEBUG:atomik:event=item.staged" in done.stderr
    assert "INFO:atomik:event=transaction.committed" in done.stderr


def test_silent_until_somebody_listens(folder: Path) -> None:
    """structlog is not even imported by a program that does not listen."""
    code = "import sys, atomik\nwith atomik.file('a') as f: f.write('x')\nassert 'structlog' not in sys.modules\n"
    done = run(code, folder)
    assert (done.returncode, done.stderr) == (0, "")
