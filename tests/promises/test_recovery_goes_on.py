"""Recovery never gives up and never blocks (P4): all journals first, then what can be removed, failures at the end."""

from __future__ import annotations

import errno
import os
import sqlite3
from typing import TYPE_CHECKING

import pytest

import atomik
from atomik import _hidden_names, errors
from atomik._hidden_names import JOURNAL_NAME
from atomik._protocol import records
from tests.crash.deaths import die, die_at
from tests.support.kernels import Faulty, installed
from tests.support.state import left_in

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pair(folder: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        (folder / name).mkdir()
        for each in ("x", "y"):
            (folder / name / each).write_text("old")
    return folder / "a", folder / "b"


def publish(*folders: Path) -> None:
    with atomik.transaction(overwrite=True, durable=False) as tx:
        for folder in folders:
            for name in ("x", "y"):
                tx.file(folder / name).write("new")


def texts(*folders: Path) -> set[str]:
    return {(folder / name).read_text() for folder in folders for name in ("x", "y")}


def abandon(folder: Path) -> None:
    """A process died while it was staging a folder here."""
    child = os.fork()
    if not child:
        try:
            output = atomik.folder(folder / "tree")
            (output.__enter__() / "f").write_text("staged")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert left_in(folder)


def test_what_cannot_be_deleted_stops_nothing(pair: tuple[Path, Path]) -> None:
    """An abandoned tree that cannot be deleted is reported, and the other folder's transaction is undone."""
    abandon(pair[0])
    die_at(lambda: publish(pair[1]), "rename")
    with installed(Faulty(lambda call: errno.EPERM if call.args[0] == "f" else None, {"unlink"})):
        report = atomik.recover(*pair)
    assert texts(pair[1]) == {"old"}
    assert not left_in(pair[1])
    (left,) = (item for item in report.items if item.action == "left")
    assert left.path.endswith("/f")
    assert not report.clean
    assert atomik.recover(*pair).clean
    assert not left_in(pair[0])


def test_a_folder_that_fails_is_raised_at_the_end(pair: tuple[Path, Path]) -> None:
    """After the others; the report of what was done comes with the error."""
    die_at(lambda: publish(pair[1]), "rename")
    with pytest.raises(errors.MissingPathError) as caught:
        atomik.recover(pair[0] / "none", pair[1], pair[0] / "neither")
    assert texts(pair[1]) == {"old"}
    assert isinstance(caught.value.report, atomik.RecoveryReport)
    assert "undone" in [item.action for item in caught.value.report.items]
    assert ["neither" in note for note in caught.value.__notes__] == [True]


def test_a_journal_that_cannot_be_settled_keeps_its_folder_as_it_is(pair: tuple[Path, Path]) -> None:
    """Nothing is removed beside it, because it may be what the journal is about; the other folder is recovered."""
    die_at(lambda: publish(pair[0]), "rename")
    die_at(lambda: publish(pair[1]), "rename")
    journal = pair[0] / ".atomik-journal"
    good = journal.read_bytes()
    journal.write_bytes(good[:100] + b"?" + good[101:])
    before = left_in(pair[0])
    with pytest.raises(errors.JournalError):
        atomik.recover(*pair)
    assert left_in(pair[0]) == before
    assert texts(pair[1]) == {"old"}
    journal.write_bytes(good)
    atomik.recover(*pair)
    assert texts(*pair) == {"old"}


def test_a_marked_transaction_is_finished_in_all_its_folders(pair: tuple[Path, Path]) -> None:
    """From one of them, also when it cannot be finished at once: the journal stays until everything else is gone."""
    die_at(lambda: publish(*pair), "pwrite", 2)
    with installed(Faulty(lambda call: errno.EPERM if "/b/" in call.paths[0] and call.args[0][-1].isdigit() else None,
                          {"unlink"})):  # fmt: skip
        assert not atomik.recover(pair[0]).clean
    assert any(name.endswith("-journal") for name in left_in(pair[0])), "it leads to what is left in the other folder"
    assert atomik.recover(pair[0]).clean
    assert texts(*pair) == {"new"}
    assert not left_in(pair[0].parent)


def test_a_tree_is_searched(pair: tuple[Path, Path]) -> None:
    """Every folder below, but not those that a link leads to."""
    deep = pair[1] / "deep" / "er"
    deep.mkdir(parents=True)
    die_at(lambda: publish(pair[0]), "rename")
    abandon(deep)
    elsewhere = pair[0].parent / "elsewhere"
    elsewhere.mkdir()
    abandon(elsewhere)
    (pair[1] / "link").symlink_to(elsewhere)
    assert [item.action for item in atomik.recover(pair[1], recursive=True, dry_run=True).items] == ["abandoned"]
    atomik.recover(*pair, recursive=True)
    assert texts(pair[0]) == {"old"}
    assert left_in(pair[0].parent) == left_in(elsewhere) != []
    atomik.recover(pair[0].parent, recursive=True)
    assert not left_in(pair[0].parent)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM])
def test_what_cannot_be_undone_can_be_given_up(pair: tuple[Path, Path], number: int) -> None:
    """The folder is not blocked forever: the error names the way out, discard=True, and that works."""
    die_at(lambda: publish(pair[0]), "rename")
    with installed(Faulty.every("rename", number)):
        with pytest.raises(errors.RollbackError, match=r"give it up with recover\(discard=True\)") as caught:
            atomik.recover(pair[0])
        assert caught.value.errno == number
        report = atomik.recover(pair[0], discard=True)
    assert {"left", "discarded"} <= {item.action for item in report.items}
    assert texts(pair[0]) == {"new", "old"}
    assert not left_in(pair[0])
    publish(pair[0])


def test_a_failure_of_the_moment_is_not_given_up(pair: tuple[Path, Path]) -> None:
    """A device error may be gone the next time: the journal stays, with discard=True too."""
    die_at(lambda: publish(pair[0]), "rename")
    with installed(Faulty.every("rename", errno.EIO)), pytest.raises(errors.RollbackError):
        atomik.recover(pair[0], discard=True)
    atomik.recover(pair[0])
    assert texts(pair[0]) == {"old"}


# --- a coordinator -------------------------------------------------------------------------------------------------------
@pytest.fixture
def prepared(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A transaction whose outcome a database decides died right before its mark."""
    plain = records.encode
    monkeypatch.setattr(records, "encode", lambda *args, **kw: plain(*args[:5], "my database", *args[6:]))
    die_at(lambda: publish(pair[0]), "pwrite", 2, after=False)
    assert texts(pair[0]) == {"new"}
    return pair[0]


def test_nothing_touches_it_before_the_decision(prepared: Path) -> None:
    """Neither recovery, nor a reader, nor a writer; and a dry run says what it is."""
    before = left_in(prepared)

    def read() -> None:
        with atomik.reading(prepared):
            pytest.fail("it was entered")

    for action in (lambda: atomik.recover(prepared), read, lambda: publish(prepared)):
        with pytest.raises(errors.UndecidedError, match="coordinator 'my database'") as caught:
            action()
        assert caught.value.coordinator == "my database"
        assert caught.value.txid in before[0]
    assert left_in(prepared) == before
    assert texts(prepared) == {"new"}
    (item,) = atomik.recover(prepared, dry_run=True).items
    assert item.action == "prepared"
    atomik.recover(prepared, decide=lambda txid, who: False)


@pytest.mark.parametrize("answer", [True, False])
def test_the_coordinator_decides(prepared: Path, answer: bool) -> None:
    """It is asked once, with id and name; then it is all new or all old, with nothing left."""
    asked: list[tuple[str, str]] = []

    def decide(txid: str, coordinator: str) -> bool:
        asked.append((txid, coordinator))
        return answer

    assert atomik.recover(prepared, decide=decide).clean
    assert [name for _, name in asked] == ["my database"]
    assert texts(prepared) == {"new" if answer else "old"}
    assert not left_in(prepared)


def test_what_decide_raises_goes_on_unchanged(prepared: Path) -> None:
    """Also an OSError, and a mistake in its answer; nothing was touched."""
    before = left_in(prepared)
    for raised in (
        ConnectionRefusedError(errno.ECONNREFUSED, "no database"),
        sqlite3.Error("locked"),
        KeyboardInterrupt(),
        errors.ConflictError(errno.EBUSY, "of another transaction"),
    ):

        def decide(txid: str, coordinator: str, raised: BaseException = raised) -> bool:
            raise raised

        with pytest.raises(type(raised)) as caught:
            atomik.recover(prepared, decide=decide)
        assert caught.value is raised
        assert getattr(raised, "report", None) is None, "it is not a failure of the folder"
    with pytest.raises(TypeError, match="True \\(commit\\) or False"):
        atomik.recover(prepared, decide=lambda txid, who: None)  # type: ignore[arg-type,return-value]
    assert left_in(prepared) == before
    atomik.recover(prepared, decide=lambda txid, who: False)


def test_what_was_never_prepared_cannot_be_committed(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It died between its swaps: a coordinator that says "commit" is wrong."""
    plain = records.encode
    monkeypatch.setattr(records, "encode", lambda *args, **kw: plain(*args[:5], "my database", *args[6:]))
    die_at(lambda: publish(pair[0]), "rename")
    with pytest.raises(errors.RollbackError, match="never completely prepared"):
        atomik.recover(pair[0], decide=lambda txid, who: True)
    atomik.recover(pair[0], decide=lambda txid, who: False)
    assert texts(pair[0]) == {"old"}
    assert not left_in(pair[0])


def test_what_was_not_even_journalled_cannot_be_committed(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died with its journal in one private folder only; the other one is gone, and its slots cannot be asked."""
    plain = records.encode
    monkeypatch.setattr(records, "encode", lambda *args, **kw: plain(*args[:5], "my database", *args[6:]))
    die_at(lambda: publish(*pair), "link_fd", 5)
    home = next(folder for folder in pair if any("journal" in name for name in left_in(folder)))
    other = next(folder for folder in pair if folder != home)
    atomik.recover(other)
    assert not left_in(other)
    with pytest.raises(errors.RollbackError, match="never completely prepared"):
        atomik.recover(home, decide=lambda txid, who: True)
    assert atomik.recover(home, decide=lambda txid, who: False).clean
    assert texts(*pair) == {"old"}
    assert not left_in(home)


# --- the clean-up of a commit ---------------------------------------------------------------------------------------------
@pytest.mark.sweep
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_clean_up_that_was_killed_is_finished_from_any_folder(pair: tuple[Path, Path], name: str) -> None:
    """Wherever it died, no content stays in the other folder: at most the private folder itself, empty, or with the journal
    that leads to the rest."""
    seen = set()
    for number in range(1, 1_000):
        for each in pair:
            for old in ("x", "y"):
                (each / old).write_text("old")
        if die(lambda: publish(*pair), number, "after").returned:
            break
        if texts(*pair) == {"new"} and not any(path.endswith(JOURNAL_NAME) for path in left_in(pair[0].parent)):
            atomik.recover(pair[0].parent / name)
            left = [os.path.basename(path) for path in left_in(pair[0].parent)]
            assert all(_hidden_names.parse(path)[0] != _hidden_names.SLOT for path in left), (number, left)
            seen.add(len(left))
        atomik.recover(*pair)
        assert not left_in(pair[0].parent)
    assert 0 in seen
