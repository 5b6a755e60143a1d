"""How each package does the work: three files are replaced and one is removed, or where it knows one path only, one replaced.

Each is used as its documentation says, with the options that promise most, and recovered by what it offers for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from attrs import define

OLD = {"a/one": "old one", "a/two": "old two", "b/three": "old three", "b/gone": "old gone"}
GROUP = {"a/one": "new one", "a/two": "new two", "b/three": "new three"}
ONE = {**OLD, "a/one": "new one"}


@define(frozen=True)
class Peer:
    """``promises`` and ``recovery`` in its own words, shortened; ``durable`` if it says that what it has written lasts."""

    name: str
    publish: Callable[[Path], None]
    new: dict[str, str]
    promises: str
    recovery: str
    recover: Callable[[Path], None] = lambda root: None
    durable: bool = False


def _atomik(root: Path) -> None:
    import atomik

    with atomik.transaction(overwrite=True) as tx:
        for name, text in GROUP.items():
            tx.file(root / name).write(text)
        tx.remove(root / "b/gone")


def _plain(root: Path) -> None:
    import atomik

    with atomik.file(root / "a/one", overwrite=True) as file:
        file.write("new one")


def _recover_atomik(root: Path) -> None:
    import atomik

    atomik.recover(root / "a", root / "b")


def _atomicwrites(root: Path) -> None:
    from atomicwrites import atomic_write

    with atomic_write(root / "a/one", overwrite=True) as file:
        file.write("new one")


def _safer(root: Path) -> None:
    import safer

    with safer.open(root / "a/one", "w", temp_file=True) as file:
        file.write("new one")


def _boltons(root: Path) -> None:
    from boltons.fileutils import atomic_save

    with atomic_save(str(root / "a/one"), text_mode=True) as file:
        file.write("new one")


def _fs_transaction(root: Path) -> None:
    from fs_transaction import Transaction

    with Transaction(fsync=True) as tx:
        for name, text in GROUP.items():
            tx.write(root / name, text, overwrite=True)
        tx.delete(root / "b/gone")


def _filetx(root: Path) -> None:
    from filetx import Transaction

    for name, text in GROUP.items():  # it moves and deletes; the new content is written beside
        (root / f"{name}.new").write_text(text)
    with Transaction(journal=root / "journal") as tx:
        for name in GROUP:
            tx.move(root / f"{name}.new", root / name, overwrite=True)
        tx.delete(root / "b/gone")


def _recover_filetx(root: Path) -> None:
    from filetx import recover

    if (root / "journal").exists() and (root / "journal").stat().st_size:
        recover(root / "journal")


def _vsh(root: Path) -> None:
    from vsh import RunMode, RunRequest, Runtime

    lines = [f"Path('/workspace/{name}').write_text({text!r})" for name, text in GROUP.items()]
    code = "\n".join(["from pathlib import Path", *lines, "Path('/workspace/b/gone').unlink()"])
    runtime, now = Runtime.open(str(root)), int(time.time() * 1000)
    receipt = runtime.run(RunRequest(code, mode=RunMode.AUTO))
    if receipt.state == "pending_approval":  # a removal wants a yes
        runtime.approve(receipt.transaction, "the harness", now, now + 600_000)
        receipt = runtime.commit(receipt.transaction, now)
    if receipt.state != "committed":
        raise RuntimeError(f"it did not commit: {receipt.state}")


def _recover_vsh(root: Path) -> None:
    from vsh import Runtime

    Runtime.open(str(root)).recover()


def _safefile(root: Path) -> None:
    import safefile

    names = [*GROUP, "b/gone"]
    with safefile.transaction(*(str(root / name) for name in names)):
        for name, text in GROUP.items():
            (root / name).write_text(text)
        (root / "b/gone").unlink()


def _recover_safefile(root: Path) -> None:
    import safefile

    safefile.recover_orphaned()


def _repoze(root: Path) -> None:
    import transaction
    from repoze.filesafe import create_file, delete_file

    with transaction.manager:
        for name, text in GROUP.items():
            with create_file(str(root / name), "w") as file:
                file.write(text)
        delete_file(str(root / "b/gone"))


def _fsspec(root: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("file")
    with fs.transaction:
        for name, text in GROUP.items():
            with fs.open(str(root / name), "w") as file:
                file.write(text)
    fs.rm_file(str(root / "b/gone"))  # its transaction knows writes only


PEERS = {
    peer.name: peer
    for peer in (
        Peer("atomik", _atomik, GROUP, "all old or all new, after recovery; durable", "`recover()`", _recover_atomik,
             durable=True),
        Peer("atomik, one file", _plain, ONE, "old or new; durable", "none needed", _recover_atomik, durable=True),
        Peer("atomicwrites", _atomicwrites, ONE, "old or new; synced, with its folder", "none", durable=True),
        Peer("safer", _safer, ONE, "not replaced unless all was written", "none"),
        Peer("boltons", _boltons, ONE, "old or new; the file is synced", "none", durable=True),
        Peer("fs-transaction", _fs_transaction, GROUP, "all succeed or all are rolled back; fsync “for crash safety”", "none",
             durable=True),
        Peer("filetx", _filetx, GROUP, "all or none, with a journal", "`recover(journal)`", _recover_filetx),
        Peer("vsh-python", _vsh, GROUP, "a recoverable commit", "at the next `Runtime.open`", _recover_vsh, durable=True),
        Peer("safefile", _safefile, GROUP, "restored on an exception or, with its journal, after a crash",
             "`recover_orphaned()`", _recover_safefile),
        Peer("repoze.filesafe", _repoze, GROUP, "with the transaction, or not", "none"),
        Peer("fsspec", _fsspec, GROUP, "writes are finalized together at the end of the block", "none"),
    )
}  # fmt: skip
"""In each: every call of it that changes a name is a place to die."""
