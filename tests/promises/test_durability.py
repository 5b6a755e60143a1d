"""In which order the syncs and the swaps happen: content and journal, then the swaps, then the folders, then the mark.

A power cut decides whether these are enough (see powercut/); here is the order, by recorded trace, for what no
filesystem at hand would betray.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik._commit import barriers as _barriers
from atomik._staging.intake import RETAINED
from atomik._tree import sync
from tests.support.kernels import Faulty, Recording, installed

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_log")

WATCHED = {
    "fsync",
    "fdatasync",
    "syncfs",
    "rename",
    "link",
    "link_fd",
    "pwrite",
    "unlink",
    "rmdir",
    "open_tmpfile",
    "mkdir",
}


def trace(job: Callable[[], object]) -> list[str]:
    """The calls, each as "name place", with our own names made short: private folder, slot, journal, well-known name."""
    here = os.getcwd()
    with installed(Recording(WATCHED)) as kernel:
        job()
    return [f"{call.name} {' '.join(shortened(path, here) for path in call.paths)}".strip() for call in kernel.calls]


def shortened(path: str, here: str) -> str:
    name = os.path.basename(path)
    if path == here:
        return "."
    if name.endswith("(deleted)"):
        return "unnamed" if os.path.dirname(path) == here else "unnamed in private folder"
    if name == ".atomik-journal":
        return "well-known name"
    if name.startswith(".atomik-"):
        kind = name.split("-", 2)[2] if name.count("-") > 1 else "private folder"
        return {"journal": "journal", "committed": "mark", "private folder": "private folder"}.get(kind, f"slot{kind}")
    return os.path.relpath(path, here)


def new_file() -> None:
    with atomik.file("a") as f:
        f.write("x")


def overwrite_file() -> None:
    with atomik.file("a", overwrite=True) as f:
        f.write("x")


def new_folder() -> None:
    with atomik.folder("d") as d:
        (d / "sub").mkdir()
        (d / "sub/x").write_text("x")


def test_new_file(folder: Path) -> None:
    """Content, then the name, then the folder: two barriers, each one fsync."""
    assert trace(new_file) == ["open_tmpfile .", "fsync unnamed", "link_fd unnamed a", "fsync ."]


def test_overwritten_file(folder: Path) -> None:
    """The same, with the exchange in place of the link; the old content goes last (I3)."""
    new_file()
    assert trace(overwrite_file) == [
        "open_tmpfile .", "fsync unnamed", "link_fd unnamed slot0", "rename a slot0", "fsync .", "unlink slot0",
    ]  # fmt: skip


def test_folder(folder: Path) -> None:
    """One syncfs for the whole tree before the swap; both folders of the swap after it."""
    assert trace(new_folder) == [
        "mkdir private folder", "mkdir slot0", "syncfs .", "rename slot0 d", "fsync .", "fsync private folder",
        "rmdir private folder",
    ]  # fmt: skip


@pytest.mark.usefixtures("no_syncfs")
def test_folder_one_by_one(folder: Path) -> None:
    """Where syncfs means nothing: every file, every folder bottom-up, before the swap."""
    calls = trace(new_folder)
    swap = calls.index("rename slot0 d")
    synced = [os.path.basename(call.split()[1]) for call in calls[:swap] if call.startswith("fsync")]
    assert set(synced) >= {"sub", "slot0", "x"}
    assert synced.index("sub") < synced.index("slot0")
    assert calls[swap + 1 :] == ["fsync .", "fsync private folder", "rmdir private folder"]


def group(count: int, durable: bool | str = True) -> Callable[[], atomik.Receipt]:
    def job() -> atomik.Receipt:
        tx = atomik.transaction(overwrite=True, durable=durable)  # type: ignore[arg-type]
        for number in range(count):
            with tx.file(f"f{number}") as f:
                f.write("x")
        return tx.commit()

    return job


def kinds(calls: list[str]) -> list[str]:
    """Only what must be in order: syncs, swaps, writes to the journal and its names."""
    return [
        call
        for call in calls
        if call.split()[0] in ("fsync", "syncfs", "pwrite", "rename", "link") or "well-known name" in call
    ]


def test_transaction(folder: Path) -> None:
    """B1 – swaps – B2 – mark – B3 – clean up (I1, I2, I3)."""
    calls = trace(group(2))
    assert kinds(calls) == [
        "pwrite unnamed in private folder",  # the intent
        "link journal well-known name",
        "fsync unnamed", "fsync unnamed", "fsync unnamed in private folder", "fsync .", "fsync private folder",  # B1
        "rename slot0 f0", "rename slot1 f1",
        "fsync .", "fsync private folder",  # B2
        "pwrite unnamed in private folder",  # the mark
        "fsync unnamed in private folder",  # B3
        "unlink well-known name",
    ]  # fmt: skip


@pytest.fixture
def log(one_log: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, with what its barriers call as well."""
    monkeypatch.setattr(f"{__name__}.WATCHED", WATCHED | {"start_writeback", "write_back"})


@pytest.mark.usefixtures("log")
def test_transaction_where_one_log_holds_every_change(folder: Path) -> None:
    """Content and journal are written back before the swaps, the mark is a name that is made after them, and the sync of
    what was changed last brings everything along."""
    calls = trace(group(2))
    assert [call for call in calls if call.split()[0] == "start_writeback"] == ["start_writeback unnamed"] * 2
    assert calls.index("write_back unnamed") > calls.index("link journal well-known name")
    assert [call for call in calls if call.split()[0] in ("fsync", "fdatasync", "write_back", "pwrite", "rename")] == [
        "pwrite unnamed in private folder",
        "write_back unnamed", "write_back unnamed", "write_back unnamed in private folder",  # B1
        "rename slot0 f0", "rename slot1 f1",
        "fsync private folder",  # B2 and B3
    ]  # fmt: skip
    marked, last = calls.index("link journal mark"), calls.index("rename slot1 f1")
    assert last < marked < calls.index("fsync private folder")


@pytest.mark.usefixtures("log")
def test_a_mark_that_is_a_record_where_one_log_holds_every_change(folder: Path) -> None:
    """With several parents recovery may not find a name in one private folder, and what a coordinator decides is durable
    before it is asked: then B2 comes first, and the mark is written where zeros were, so that its sync forces no log."""
    for name in "ab":
        Path(name).mkdir()
    kinds = ("fsync", "fdatasync")

    def two_parents() -> None:
        with atomik.transaction() as tx:
            for name in "ab":
                tx.file(f"{name}/f").write("x")

    assert [call.split()[0] for call in trace(two_parents) if call.split()[0] in kinds] == ["fsync", "fdatasync"]
    tx = atomik.transaction(coordinator="test")
    tx.file("one").write("x")
    tx.file("two").write("x")
    assert [call.split()[0] for call in trace(tx.prepare) if call.split()[0] in kinds] == ["fsync"]
    assert [call.split()[0] for call in trace(lambda: tx.commit()) if call.split()[0] in kinds] == ["fdatasync"]


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize(
    ("job", "swap"), [(new_file, ["link_fd unnamed a"]), (overwrite_file, ["link_fd unnamed slot0", "rename a slot0"])]
)
def test_one_file_where_one_log_holds_every_change(folder: Path, job: Callable[[], None], swap: list[str]) -> None:
    """Its content is written back before it is published, and durable with its name."""
    Path("a").write_text("old") if job is overwrite_file else None
    calls = trace(job)
    assert calls[: len(swap) + 3] == ["open_tmpfile .", "write_back unnamed", *swap, "fsync ."]


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize(("count", "whole"), [(16, False), (17, True)])
def test_few_files_are_written_back_many_by_syncfs(folder: Path, count: int, whole: bool) -> None:
    """Files that are still open need no sync of their own."""
    calls = trace(group(count))
    syncs = [call.split()[0] for call in calls if call.split()[0] in ("fsync", "fdatasync", "syncfs")]
    assert syncs == ["syncfs"] * whole + ["fsync"]


@pytest.mark.usefixtures("log")
def test_a_log_that_fails_behind_the_swaps(folder: Path) -> None:
    """That it may be lost is said; whoever comes next finds the mark, and finishes."""
    for number in range(2):
        Path(f"f{number}").write_text("old")
    broken = Faulty.at(1, errno.EIO, among={"fsync"})
    with installed(broken), pytest.raises(atomik.errors.DurabilityError):
        group(2)()
    assert broken.struck
    assert {Path(f"f{number}").read_text() for number in range(2)} == {"x"}
    assert [item.action for item in atomik.recover(folder).items] == ["finished"] * 2
    assert sorted(os.listdir()) == ["f0", "f1"]


@pytest.mark.usefixtures("log")
def test_one_file_whose_content_cannot_be_written_back(folder: Path) -> None:
    """Nothing is published, and what was there stays."""
    Path("a").write_text("old")
    with installed(Faulty.every("write_back", errno.EIO)), pytest.raises(OSError, match="Input/output error"):
        overwrite_file()
    assert Path("a").read_text() == "old"
    assert os.listdir() == ["a"]


@pytest.mark.usefixtures("log")
def test_a_sandbox_without_sync_file_range_has_every_file_synced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where content cannot be written back it is synced."""
    refusing = Faulty.every("write_back", errno.EPERM)
    monkeypatch.setattr(
        "atomik._system.kernel.sandboxed", lambda call: "a filter" if call == "sync_file_range" else None
    )
    with installed(refusing), installed(Recording({"fsync"})) as kernel:
        group(2)()
    assert refusing.struck
    assert [os.path.basename(call.paths[0]).startswith("#") for call in kernel.calls] == [True, True, True, False]


@pytest.mark.usefixtures("log")
def test_content_that_cannot_be_written_back_is_an_error(folder: Path) -> None:
    """And nothing is published."""
    with installed(Faulty.every("write_back", errno.EIO)), pytest.raises(OSError, match="Input/output error"):
        group(2)()
    assert os.listdir() == []


def phases(calls: list[str]) -> list[str]:
    """The commit in letters: J well-known name, S sync of content or names, R swap, M the mark, U well-known name gone."""
    letters = []
    for call in calls:
        name, _, rest = call.partition(" ")
        if name == "link" and "well-known name" in rest:
            letters.append("J")
        elif name in ("fsync", "syncfs"):
            letters.append("S")
        elif name == "rename":
            letters.append("R")
        elif name == "pwrite":
            letters.append("W")
        elif name == "unlink" and "well-known name" in rest:
            letters.append("U")
    text = "".join(letters)
    while "SS" in text:
        text = text.replace("SS", "S")
    while "RR" in text:
        text = text.replace("RR", "R")
    return list(text)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
@pytest.mark.parametrize("durable", [True, "fsync", "syncfs"])
def test_three_barriers_whatever_the_number(folder: Path, count: int, durable: bool | str) -> None:
    """I1, I2, I10: intent, its name, B1, swaps, B2, mark, B3, and only then the journal goes; with any way to sync."""
    receipts = []
    calls = trace(lambda: receipts.append(group(count, durable)()))
    assert phases(calls) in (list("WJSRSWSU"), list("SWJSRSWSU"))
    assert receipts[0].barriers == 3
    assert receipts[0].synced_by in ("fsync", "syncfs", "fsync+syncfs")
    if durable == "fsync":
        assert not any(call.startswith("syncfs") for call in calls)


def test_syncs_do_not_grow_with_the_items(folder: Path) -> None:
    """I10: with syncfs the number of sync calls is the same for 10 and for 200 files."""
    few, many = group(10)(), group(200)()
    assert few.sync_calls == many.sync_calls <= 5


def test_every_parent_is_synced(folder: Path) -> None:
    """B2 covers source and destination folders, and tmp_dir's; a common ancestor would not do."""
    for name in ("one", "two", "tmp"):
        Path(name).mkdir()
    Path("one/gone").touch()

    def job() -> None:
        with atomik.transaction(durable="fsync") as tx:
            tx.file("two/a", tmp_dir="tmp").write("x")
            tx.move("one/gone", "two/b")

    calls = trace(job)
    last_swap = max(at for at, call in enumerate(calls) if call.startswith("rename"))
    mark = max(at for at, call in enumerate(calls) if call.startswith("pwrite"))
    synced = {call.split(" ", 1)[1] for call in calls[last_swap:mark] if call.startswith("fsync")}
    assert {"one", "two", "private folder"} <= synced


@pytest.mark.parametrize("job", [new_file, overwrite_file, new_folder, group(3, durable=False)])
def test_not_durable_syncs_nothing(folder: Path, job: Callable[[], None]) -> None:
    """durable=False leaves every sync out, and keeps the rest."""
    if job in (new_file, overwrite_file, new_folder):

        def job_(job: Callable[[], None] = job) -> None:
            options: dict[str, Any] = {"durable": False}
            if job is new_folder:
                with atomik.folder("d", **options):
                    pass
            else:
                with atomik.file("a", overwrite=job is overwrite_file, **options) as f:
                    f.write("x")
    else:
        job_ = job  # type: ignore[assignment]
    assert not [call for call in trace(job_) if "sync" in call.split()[0]]


def test_receipt_of_a_commit_that_is_not_durable(folder: Path) -> None:
    receipt = group(3, durable=False)()
    assert not receipt.durable
    assert (receipt.barriers, receipt.sync_calls, receipt.synced_by) == (0, 0, "")


def test_the_descriptor_that_wrote_is_synced(folder: Path) -> None:
    """I9: a few files are synced through the descriptor that wrote them, which stays open until then."""
    with installed(Recording({"fsync", "open_tmpfile"})) as kernel:
        tx = atomik.transaction()
        first = tx.file("a")
        fd = first.fileno()
        first.write("x")
        first.close()
        tx.file("b")
        tx.commit()
    assert fd in [call.args[0] for call in kernel.of("fsync")]


@pytest.mark.usefixtures("no_syncfs")
def test_a_spilled_file_is_synced_before_its_descriptor_goes(folder: Path) -> None:
    """I9: one that gives its descriptor up early is synced at that moment, unless syncfs will do it."""
    count = 20
    with installed(Recording({"fsync", "close"})) as kernel:
        tx = atomik.transaction()
        for number in range(count):
            with tx.file(f"f{number}") as f:
                f.write("x")
        early = len(kernel.of("fsync"))
        tx.commit()
    assert early == count - 16
    files = [
        call
        for call in kernel.of("fsync")
        if "/f" in call.paths[0] or ".atomik" in call.paths[0] or "#" in call.paths[0]
    ]
    assert len(files) >= count


@pytest.mark.usefixtures("no_syncfs")
def test_a_spilled_file_that_follows_a_later_mode_is_synced_again(folder: Path) -> None:
    """What was synced early, and changed when the destination's mode was seen to have changed, is synced before its swap."""
    for number in range(20):
        Path(f"f{number}").touch()
    with atomik.transaction(overwrite=True) as tx:
        for number in range(20):
            tx.file(f"f{number}").close()
        Path("f0").chmod(0o600)
        calls = trace(tx.commit)
    assert calls.index("fsync slot0") < next(at for at, call in enumerate(calls) if call.startswith("rename"))
    assert Path("f0").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", range(1, 6))
def test_a_failed_sync_is_never_repeated(folder: Path, number: int) -> None:
    """I9: the kernel reports an error once; asking again would get a wrong "fine"."""
    kernel = Faulty.at(number, errno.EIO, among={"fsync"})
    syncs = Recording({"fsync"})
    with installed(syncs), installed(kernel), pytest.raises(atomik.errors.AtomikOSError):
        group(2)()
    target = kernel.struck[0].paths[0]
    if not os.path.isdir(target):  # folders are synced again by the rollback, as new names
        assert target not in [path for call in syncs.calls[number - 1 :] for path in call.paths]


def test_a_folder_that_cannot_be_synced(folder: Path) -> None:
    """EINVAL for a folder means that there is nothing to wait for (vfat, old CIFS); EIO is never swallowed with it."""

    def is_folder(call: Any) -> bool:
        return os.path.isdir(call.paths[0])

    with installed(Faulty(lambda call: errno.EINVAL if is_folder(call) else None, {"fsync"})):
        new_file()
        group(3)()
    broken = Faulty(lambda call: errno.EIO if is_folder(call) else None, {"fsync"})
    with installed(broken), pytest.raises(atomik.errors.DurabilityError, match="check the disk"):
        overwrite_file()
    assert Path("a").read_text() == "x"


def test_limits_are_what_the_documentation_says() -> None:
    """Up to four files one by one, more of them by syncfs; where one log holds every change, up to as many as are open."""
    assert _barriers.FEW == 4
    assert _barriers.FEW_WRITTEN_BACK == RETAINED == 16


@pytest.mark.parametrize(("count", "how"), [(4, "fsync"), (5, "syncfs")])
def test_few_files_by_fsync_many_by_syncfs(folder: Path, count: int, how: str) -> None:
    calls = trace(group(count))
    first_swap = next(at for at, call in enumerate(calls) if call.startswith("rename"))
    assert any(call.startswith("syncfs") for call in calls[:first_swap]) == (how == "syncfs")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few files are many, because a sync may take long."""
    monkeypatch.setattr(_barriers, "FEW_SEALED", 2)
    monkeypatch.setattr(_barriers, "BATCH", 6)
    monkeypatch.setattr(sync, "FEW", 3)


def stage(tx: atomik.Transaction, count: int, first: int = 0) -> None:
    for number in range(first, count):
        with tx.file(f"f{number}") as f:
            f.write("x")


@pytest.mark.usefixtures("small_batches")
def test_many_files_that_are_each_synced_are_synced_together(folder: Path) -> None:
    """durable="fsync": the writeback of a batch is under way before its first fsync, each file is synced once, few
    descriptors are open, and no thread stays."""
    before, opened = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with installed(Recording({"fsync", "start_writeback"})) as kernel:
        with atomik.transaction(durable="fsync") as tx:
            stage(tx, 31)
            assert len(os.listdir("/proc/self/fd")) < opened + 16 + 6 + 4
        names = kernel.names()
    folders_and_journal = 6
    assert names.count("fsync") == 31 + folders_and_journal
    assert names[:8] == ["fsync"] * 2 + ["start_writeback"] * 6
    assert threading.active_count() == before
    assert tx.receipt is not None
    assert tx.receipt.synced_by == "fsync"


@pytest.mark.usefixtures("small_batches")
def test_a_file_of_many_that_cannot_be_synced_is_named(folder: Path) -> None:
    """The error names it; nothing of its batch is taken for durable, and nothing stays."""
    wanted: list[str] = []
    strikes = Faulty(
        lambda call: errno.EIO if os.readlink(f"/proc/self/fd/{call.args[0]}") in wanted else None, {"fsync"}
    )
    tx = atomik.transaction(durable="fsync")
    stage(tx, 4)
    with tx.file("broken") as file:
        wanted.append(os.readlink(f"/proc/self/fd/{file.fileno()}"))
    with installed(strikes), pytest.raises(OSError, match=r"cannot stage the file.*broken'"):
        stage(tx, 24, 4)
    with pytest.raises(atomik.errors.TransactionStateError):
        tx.commit()
    tx.abort()
    assert os.listdir() == []


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("later", [False, True])
def test_files_that_gave_up_their_descriptors_are_synced_again(folder: Path, later: bool) -> None:
    """A mode that is set after the sync of the content is made durable as well, for many files at once."""
    for number in range(28):
        Path(f"f{number}").write_text("old")
    with atomik.transaction(durable="fsync", overwrite=True) as tx:
        stage(tx, 28)
        for number in range(28 if later else 0):
            Path(f"f{number}").chmod(0o600)
        with installed(Recording({"fsync", "rename"})) as kernel:
            tx.commit()
    before = kernel.names()[: kernel.names().index("rename")]
    folders_and_journal = 3
    assert len(before) == (28 if later else 28 - 2 - 6) + folders_and_journal
    assert {Path(f"f{number}").stat().st_mode & 0o777 for number in range(28)} == {0o600 if later else 0o644}


@pytest.mark.usefixtures("log")
def test_a_mark_is_a_record_without_hard_links(folder: Path) -> None:
    """The journal cannot have a second name then, as where a sandbox refuses link(2)."""
    refusing = Faulty.every("link", errno.EPERM)
    with installed(refusing):
        calls = trace(group(2))
    assert refusing.struck
    assert [call for call in calls if call.split()[0] in ("rename", "pwrite", "fdatasync")][-2:] == [
        "pwrite unnamed in private folder",
        "fdatasync unnamed in private folder",
    ]
    assert sorted(os.listdir()) == ["f0", "f1"]


@pytest.mark.usefixtures("log")
def test_the_record_of_a_rollback_has_room(folder: Path) -> None:
    """So that a full disk does not leave it in doubt: it is written where zeros were, also where the mark is a name."""
    ends: list[int] = []

    class Full(Recording):
        def pwrite(self, fd: int, data: Any, at: int) -> int:
            ends.append(at + len(data))
            return os.pwrite(fd, data, at)

    def stop(phase: str, done: int, _: int) -> None:
        if (phase, done) == ("swapping", 2):
            raise KeyboardInterrupt

    with installed(Full(set())), pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with atomik.transaction(progress=stop) as tx:
            tx.file("one").write("x")
            tx.file("two").write("x")
    intent, undone = ends
    assert undone == intent
    assert os.listdir() == []
