"""The grammar of atomik's own names."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

import atomik
from atomik import _hidden_names as names

ID = "0123456789abcdef"


def test_what_is_made_is_understood() -> None:
    """Each kind of name is parsed back to its kind and the transaction's id."""
    slot = names.slot_name(ID, 9_999_999_999)
    assert names.parse(names.private_folder_name(ID)) == (names.PRIVATE_FOLDER, ID)
    assert names.parse(names.journal_name(ID)) == (names.JOURNAL, ID)
    assert names.parse(slot) == (names.SLOT, ID)
    assert names.parse(names.kept_name(slot)) == (names.KEPT_ORIGINAL, ID)
    assert names.parse(names.resumable_name(ID, "run-7")) == (names.RESUMABLE, ID)
    assert names.parse(names.pinned_name(ID)) == (names.PINNED, ID)
    for suffix in ("old", "new", "new1", "new20"):
        assert names.parse(names.twin_name(slot, suffix)) == (names.TWIN, ID)


@pytest.mark.parametrize(
    "name",
    [
        names.JOURNAL_NAME, "", "x", ".atomik-", f".atomik-{ID}-", f".atomik-{ID}0", f".atomik-{ID[1:]}",
        f".atomik-{ID.upper()}", f".atomik-{ID}\n", f".atomik-{ID}-0\n", f".atomik-{ID}-12345678901", f".atomik-{ID}--kept",
        f".atomik-{ID}-0-", f".atomik-{ID}-0-older", f".atomik-{ID}-0-new-", f".atomik-{ID}-0-newer", f".atomik-{ID}-0/x",
        f".atomik-{ID}-\N{SUPERSCRIPT TWO}", f".atomik-{ID}-0-kept-kept", f"x.atomik-{ID}", f".atomik-{ID}-journal-",
    ],
)  # fmt: skip
def test_other_names_are_not_ours(name: str) -> None:
    """A name that differs in a single character is not atomik's."""
    assert names.parse(name) is None


#: The same grammar as regular expressions.
GRAMMAR = {
    names.PRIVATE_FOLDER: r"\.atomik-([0-9a-f]{16})",
    names.JOURNAL: r"\.atomik-([0-9a-f]{16})-journal",
    names.SLOT: r"\.atomik-([0-9a-f]{16})-[0-9]{1,10}",
    names.TWIN: r"\.atomik-([0-9a-f]{16})-[0-9]{1,10}-(?:old|new[0-9]*)",
    names.KEPT_ORIGINAL: r"\.atomik-([0-9a-f]{16})-[0-9]{1,10}-kept",
    names.RESUMABLE: r"\.atomik-([0-9a-f]{16})-resume-(?s:.*)",
    names.PINNED: r"\.atomik-([0-9a-f]{16})-pinned",
}
_PIECES = some.sampled_from(
    [".atomik-", ID, "-", "0", "12345", "old", "new", "kept", "journal", "resume", "pinned", "f", "\n", "é", "F"]
)


@given(some.one_of(some.lists(_PIECES, max_size=6).map("".join), some.text(max_size=40)))
@example(f".atomik-{ID}-0-new")
def test_it_is_the_grammar(name: str) -> None:
    """The parser accepts exactly what the regular expressions of the format accept."""
    expected = [(kind, found[1]) for kind, rule in GRAMMAR.items() if (found := re.fullmatch(rule, name))]
    assert [names.parse(name)] == (expected or [None])


def test_a_long_name_is_cut() -> None:
    """In bytes, because that is what the filesystem counts; half a character does no harm."""
    name = names.resumable_name(ID, "\N{SNOWMAN}" * 85)
    assert len(os.fsencode(name)) == len(f".atomik-{ID}-resume-") + 80
    assert names.parse(name) == (names.RESUMABLE, ID)


def test_ids_are_not_shared_with_a_forked_child() -> None:
    """A child draws ids of its own, however many its parent had ready."""
    names.new_txid()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, names.new_txid().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 99).decode()
    os.close(read)
    os.close(write)
    assert names.is_txid(theirs)
    assert theirs not in {names.new_txid() for _ in range(64)}


def test_names_that_a_server_makes() -> None:
    """libfuse's and the NFS client's names for what was deleted while open, and nothing that only looks like them."""
    for name in (".fuse_hidden0000000400000001", ".nfs" + 22 * "0" + "3f"):
        assert names.is_servers(name)
    for name in (".fuse_hidden", ".fuse_hidden000000040000000x", ".nfs0", ".atomik-0123456789abcdef", "file"):
        assert not names.is_servers(name)


def test_what_a_server_has_renamed_in_a_private_folder(folder: Path) -> None:
    """It was ours, so recovery removes it with the folder; anything else in there stays."""
    hidden = ".fuse_hidden0000000400000001"
    for txid, others in (("0123456789abcdef", ()), ("fedcba9876543210", ("somebody's",))):
        private = folder / f".atomik-{txid}"
        private.mkdir(mode=0o700)
        for entry in (hidden, *others):
            (private / entry).touch()
    actions = {item.txid: item.action for item in atomik.recover(folder).items}
    assert actions == {"0123456789abcdef": "removed", "fedcba9876543210": "left"}
    assert os.listdir(folder) == [".atomik-fedcba9876543210"]
    (folder / ".atomik-fedcba9876543210" / "somebody's").unlink()
    assert atomik.recover(folder).clean
    assert os.listdir(folder) == []
