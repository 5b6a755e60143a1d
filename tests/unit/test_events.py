"""`_events` through the standard library: fields, the caller's line, and nothing that a program's own set-up can break."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import _events

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What a handler of the program gets."""
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign]
    logger = logging.getLogger("atomik")
    before, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield heard
    logger.removeHandler(handler)
    logger.setLevel(before)
    logger.propagate = propagate


def test_fields_are_attributes(folder: Path, records: list[logging.LogRecord]) -> None:
    """Every field has its own type and name; the message is for people."""
    with atomik.transaction() as tx:
        tx.file("a").write("x")
        tx.folder("d")
    staged = next(record for record in records if record.event == "item.staged")  # type: ignore[attr-defined]
    found = {name: getattr(staged, name) for name in ("tx", "path", "kind", "order")}
    assert found == {"tx": tx.txid, "path": f"{folder}/a", "kind": "file", "order": 0}
    assert staged.getMessage().startswith(f"event=item.staged tx={tx.txid} path={folder}/a kind=file order=0")
    committed: Any = records[-1]
    assert (committed.event, committed.items, type(committed.duration)) == ("transaction.committed", 2, float)
    assert (committed.name, committed.levelname) == ("atomik", "INFO")


def here() -> int:
    """The line that called this function."""
    return sys._getframe(1).f_lineno


def test_the_callers_line(folder: Path, records: list[logging.LogRecord]) -> None:
    """File, line and function are those of the code that called atomik, not of atomik's own."""
    tx = atomik.transaction()
    begun = here() - 1
    tx.file("a").write("x")
    staged = here() - 1
    tx.commit()
    committed = here() - 1
    assert {record.pathname for record in records} == {__file__}
    assert {record.funcName for record in records} == {"test_the_callers_line"}
    lines = {record.event: record.lineno for record in records}  # type: ignore[attr-defined]
    wanted = {"transaction.begun": begun, "item.staged": staged, "transaction.committed": committed}
    assert wanted.items() <= lines.items()


def test_the_callers_line_behind_context_managers(folder: Path, records: list[logging.LogRecord]) -> None:
    """contextlib, in atomik or between it and the caller, is nobody's code to look for."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(atomik.transaction(overwrite=True)).file("a").write("x")
    atomik.recover(folder)
    assert {(record.pathname, record.funcName) for record in records} == {
        (__file__, "test_the_callers_line_behind_context_managers")
    }


def test_without_a_caller(records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    """When the interpreter ends there may be no caller left; the event is logged nevertheless."""
    monkeypatch.setattr(_events, "_PACKAGE", "")
    _events.emit(_events.INFO, "something.happened", path="a")
    assert (records[0].pathname, records[0].lineno, records[0].getMessage()) == (
        "(unknown file)", 0, "event=something.happened path=a",
    )  # fmt: skip


def test_a_program_with_its_own_records(folder: Path, records: list[logging.LogRecord]) -> None:
    """A record factory that uses one of our names keeps it, and no name of logging's own is ever overwritten."""
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **keywords: Any) -> logging.LogRecord:
        record = before(*args, **keywords)
        record.path = "the program's"
        return record

    logging.setLogRecordFactory(factory)
    try:
        with atomik.transaction() as tx:
            tx.file("a").write("x")
        _events.emit(_events.INFO, "odd", name="n", message="m", args=(1,), lineno="l")
    finally:
        logging.setLogRecordFactory(before)
    staged: Any = next(record for record in records if record.event == "item.staged")  # type: ignore[attr-defined]
    assert (staged.path, staged.atomik_path) == ("the program's", f"{folder}/a")
    odd: Any = records[-1]
    assert (odd.name, odd.args, odd.atomik_name, odd.atomik_args, odd.atomik_lineno) == ("atomik", (), "n", (1,), "l")
    assert "100%" in logging.Formatter("100%% %(message)s").format(odd)


PROGRAM = """
import json, logging, sys
import atomik

class Json(logging.Formatter):
    usual = set(vars(logging.makeLogRecord({})))
    def format(self, record):
        found = {name: value for name, value in vars(record).items() if name not in self.usual}
        return json.dumps({"message": record.getMessage(), "line": record.lineno, "file": record.pathname, **found})

handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(Json())
logging.basicConfig(level=logging.DEBUG, handlers=[handler])
with atomik.transaction() as tx:
    tx.file("a").write("x")
assert "structlog" not in sys.modules
"""


def test_json_without_structlog(folder: Path) -> None:
    """The usual JSON formatter, which prints what is new in a record, prints the fields; structlog is not needed."""
    Path("program.py").write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}
    done = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True, env=env, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["event"] for each in told][-1] == "transaction.committed"
    assert len({each["tx"] for each in told}) == 1
    assert {os.path.basename(each["file"]) for each in told} == {"program.py"}
    assert told[-1]["items"] == 1
