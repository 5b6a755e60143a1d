"""A server that gives everything one owner and mode, as FAT does: atomik recognises its own files nevertheless."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import atomik
from tests.filesystems.neighbours import VICTIM, root
from tests.support.lab import passthrough
from tests.support.lab.need import need
from tests.support.state import in_child, left_in

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.filesystems, root]

_SAME = ("-p", "0755", "--chmod-ignore", "--chown-ignore", "--create-as-mounter")


@pytest.mark.parametrize("uid", [0, VICTIM])
def test_work_and_recovery(uid: int) -> None:
    """Files are written and overwritten, and what a killed process left is removed, by the owner shown and by root."""
    need(passthrough.missing_bindfs())
    with passthrough.bindfs(None, f"--force-user={VICTIM}", f"--force-group={VICTIM}", *_SAME) as server:
        folder = server.folder / "work"
        folder.mkdir()
        in_child(_work, folder, become=uid)
        assert not left_in(folder)
        assert sorted(os.listdir(folder)) == ["one", "two"]
        assert (folder / "one").read_text() == "third"


def _work(folder: Path) -> None:
    for text in ("first", "second"):
        with atomik.file(folder / "one", overwrite=True) as f:
            f.write(text)
    with atomik.transaction(overwrite=True) as tx:
        tx.file(folder / "one").write("third")
        tx.file(folder / "two").write("third")
    child = os.fork()
    if not child:
        tx = atomik.transaction(overwrite=True)
        tx.file(folder / "one").write("never")
        tx.path(folder / "three").write_text("never")
        os._exit(0)
    os.waitpid(child, 0)
    assert left_in(folder)
    assert [item.action for item in atomik.recover(folder, dry_run=True).items] == ["left"]
    assert left_in(folder)
    assert [item.action for item in atomik.recover(folder).items] == ["removed"]
