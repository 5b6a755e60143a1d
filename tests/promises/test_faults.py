"""Every system call of a commit fails, in turn and in every way: all old, or all new, and nothing left.

The commit is of six mixed items: a file that is new and one that is overwritten, a folder that is new and one that is
overwritten, a symlink, a removal.  What must come of a failure (the outcome rules of `atomik.errors`):

* before the commit mark: an error, every destination as it was;
* at the sync of the mark: `DurabilityError`, every destination new, and the journal stays until recovery;
* after it: no error, every destination new.

The same for every kind of transaction with one item, whose only failure that leaves the new version in place is the
last fsync of the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from atomik import errors
from atomik._system.kernel import MUTATING
from tests.support.kernels import ALL, Faulty, Recording, every_call, installed
from tests.support.state import descriptors, left_in, tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ERRNOS = (errno.ENOSPC, errno.EIO, errno.EPERM, errno.ENOENT, errno.EEXIST)
by_name = [errno.errorcode[number] for number in ERRNOS]


def prepare() -> None:
    """What is there before."""
    Path("report.csv").write_text("old report")
    Path("site").mkdir()
    Path("site/index.html").write_text("old index")
    Path("site/old only").write_text("old")
    Path("obsolete").write_text("goes away")


def six_items() -> None:
    with atomik.transaction(overwrite=True) as tx:
        with tx.file("model.bin", "wb") as f:
            f.write(b"new model")
        with tx.file("report.csv") as g:
            g.write("new report")
        (tx.folder("plots") / "loss.svg").write_text("new plot")
        (tx.folder("site") / "index.html").write_text("new index")
        tx.symlink("latest", "model.bin")
        tx.remove("obsolete")


def new_file() -> None:
    with atomik.file("model.bin") as f:
        f.write("new")


def overwritten_file() -> None:
    with atomik.file("report.csv", overwrite=True) as f:
        f.write("new")


def new_folder() -> None:
    with atomik.folder("plots") as new:
        (new / "loss.svg").write_text("new plot")


def overwritten_folder() -> None:
    with atomik.folder("site", overwrite=True) as new:
        (new / "index.html").write_text("new index")


def program() -> None:
    with atomik.path("report.csv", overwrite=True) as name:
        name.write_text("new")


def parents() -> None:
    with atomik.file("a/b/c", parents=True) as f:
        f.write("new")


def symlink() -> None:
    with atomik.transaction(overwrite=True) as tx:
        tx.symlink("obsolete", "elsewhere")


def removal() -> None:
    with atomik.transaction() as tx:
        tx.remove("site")


def move() -> None:
    with atomik.transaction(overwrite=True) as tx:
        tx.move("report.csv", "obsolete")


def keep() -> None:
    with atomik.file("report.csv", overwrite=True, backup="report.bak") as f:
        f.write("new")


def update() -> None:
    with atomik.update("report.csv") as f:
        f.write("new")


def companions() -> None:
    """One is new, one is replaced, one goes."""
    with atomik.path("report.csv", overwrite=True, also=[".idx", "obsolete", "site"]) as name:
        name.write_text("new")
        name.with_suffix(".idx").write_text("new index")
        (name.parent / "obsolete").write_text("not any more")


def in_place() -> None:
    """Entries that are new, that are replaced, that become of another kind, and that go."""
    with atomik.folder(".", overwrite=True, in_place=True) as new:
        (new / "added").write_text("new")
        (new / "report.csv").write_text("new")
        (new / "obsolete").mkdir()
        (new / "obsolete" / "inner").write_text("new")


SINGLE = [new_file, overwritten_file, new_folder, overwritten_folder, program, parents, symlink, removal]
CHAINS = [move, keep, update]
#: outputs of several names
SHAPES = [companions, in_place]

#: Six items with every errno; a plain run tries the others with two that differ in what they mean, the slow one with all.
CASES = [
    pytest.param(
        job, number, id=f"{job.__name__}-{name}",
        marks=() if job is six_items or number in (errno.ENOSPC, errno.ENOENT) else pytest.mark.slow,
    )
    for job in (six_items, *SINGLE, *CHAINS, *SHAPES)
    for number, name in zip(ERRNOS, by_name, strict=True)
]  # fmt: skip


class Field:
    """A place where a job is run again and again, from the same start."""

    def __init__(self, top: Path, job: Callable[[], None]) -> None:
        self.top, self.job = top, job
        self.old = self.reset()
        with installed(Recording(MUTATING)) as kernel:
            job()
        self.calls = kernel.calls
        self.new = tree(top)
        self.open = descriptors()

    def reset(self) -> dict[str, Any]:
        os.chdir("/")
        shutil.rmtree(self.top, ignore_errors=True)
        self.top.mkdir()
        os.chdir(self.top)
        prepare()
        return tree(self.top)

    def run(self, kernel: Faulty) -> BaseException | None:
        """What the job raised."""
        self.reset()
        with installed(kernel):
            try:
                self.job()
            except BaseException as exc:
                return exc
        return None

    def now(self) -> str:
        """ "old", "new" or "mixed", whatever there is of ours besides."""
        found = {name: value for name, value in tree(self.top).items() if ".atomik-" not in name}
        return "old" if found == self.old else "new" if found == self.new else "mixed"

    def left(self) -> list[str]:
        return [os.path.relpath(name, self.top) for name in left_in(self.top)]

    def leaked(self) -> dict[int, str]:
        return {fd: to for fd, to in descriptors().items() if self.open.get(fd) != to}


@pytest.fixture
def field(folder: Path) -> Iterator[Callable[[Callable[[], None]], Field]]:
    """Makes a `Field`; in memory if possible, because thousands of real syncs would take minutes."""
    memory = Path("/dev/shm")
    top = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else folder, prefix="atomik-faults-"))
    yield lambda job: Field(top / "field", job)
    os.chdir(folder)
    shutil.rmtree(top)


def check(field: Field, exc: BaseException | None, kernel: Faulty, number: int) -> None:
    """The outcome rules, for one failed call."""
    where = f"{errno.errorcode[number]} at {kernel.struck[0]}: {exc!r}"
    now = field.now()
    if exc is None:
        assert now == "new", where
    elif isinstance(exc, errors.DurabilityError):
        assert now == "new", where
        assert kernel.struck[0].name in ("fsync", "syncfs"), where
        receipt = exc.receipt
        assert isinstance(receipt, atomik.Receipt), where
        assert receipt.items, where
        if field.left():
            assert f"{field.top}/.atomik-journal" in left_in(field.top), where
            atomik.recover(field.top)
            assert field.now() == "new", where
    else:
        assert now == "old", where
        assert isinstance(exc, errors.AtomikOSError), where
        assert not isinstance(exc, errors.RollbackError), where
        assert isinstance(exc.filename, str), where
        assert exc.filename.startswith(str(field.top)), where
        # If something is there that should not be, or the reverse, another program did it, or the server lies.
        kinds = (errors.ConflictError, errors.UnsupportedFilesystemError)
        believed = isinstance(exc, kinds) or kernel.struck[0].name == "mkdir"
        no_links = kernel.struck[0].name == "symlink" and exc.errno == errno.EOPNOTSUPP  # symlink(2) says it by EPERM
        assert exc.errno == number or no_links or (believed and number in (errno.ENOENT, errno.EEXIST)), where
    assert not field.left(), where
    assert not field.leaked(), where


@pytest.mark.sweep
@pytest.mark.parametrize(("job", "number"), CASES)
def test_every_changing_call_fails(field: Callable[..., Field], job: Callable[[], None], number: int) -> None:
    """Whatever call that changes something fails, all is old with an exact error, or all is new; nothing is left."""
    ground = field(job)
    for point in every_call(number):
        exc = ground.run(point.kernel)
        if not point.kernel.struck:
            assert exc is None
        else:
            check(ground, exc, point.kernel, number)


@pytest.mark.sweep
@pytest.mark.parametrize(("job", "number"), CASES)
def test_every_call_fails(field: Callable[..., Field], job: Callable[[], None], number: int) -> None:
    """Nor does it matter when one fails that only looks."""
    ground = field(job)
    for point in every_call(number, among=ALL):
        exc = ground.run(point.kernel)
        if point.kernel.struck:
            check(ground, exc, point.kernel, number)


@pytest.mark.sweep
@pytest.mark.usefixtures("one_log")
@pytest.mark.parametrize("number", ERRNOS, ids=by_name)
def test_every_call_fails_where_the_mark_is_a_name(field: Callable[..., Field], number: int) -> None:
    """The same where one sync stands for B2 and B3."""
    named = [call.name for call in field(six_items).calls if call.paths[-1].endswith("-committed")]
    assert named == ["link", "unlink"]
    test_every_call_fails(field, six_items, number)


@pytest.mark.sweep
@pytest.mark.usefixtures("one_log")
@pytest.mark.parametrize("late", [False, True], ids=["before", "behind"])
def test_ctrl_c_at_every_call_where_the_mark_is_a_name(field: Callable[..., Field], late: bool) -> None:
    """The same again."""
    test_ctrl_c_at_every_call(field, six_items, late)


@pytest.mark.sweep
@pytest.mark.parametrize("late", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize(
    "job",
    [six_items, *SINGLE, *CHAINS, *(pytest.param(job, marks=pytest.mark.sweep) for job in SHAPES)],
    ids=lambda job: job.__name__,
)
def test_ctrl_c_at_every_call(field: Callable[..., Field], job: Callable[[], None], late: bool) -> None:
    """KeyboardInterrupt before or right after any call that changes something: all old or all new, nothing left.

    Behind a call that opens something, the descriptor is lost with the interrupt; no Python program can help that.
    """
    ground = field(job)
    outcomes = []
    for point in every_call(KeyboardInterrupt, after=late):
        exc = ground.run(point.kernel)
        if not point.kernel.struck:
            break
        call = point.kernel.struck[0]
        assert isinstance(exc, KeyboardInterrupt), (call, exc)
        assert ground.now() in ("old", "new"), call
        assert not ground.left(), call
        if late and call.name in ("open_tmpfile", "create"):
            for fd in ground.leaked():
                os.close(fd)
        assert not ground.leaked(), call
        outcomes.append(ground.now())
    assert outcomes == sorted(outcomes, reverse=True), "old again after a later interrupt than one that left all new"
    assert "old" in outcomes


@pytest.mark.sweep
@pytest.mark.usefixtures("no_log")
@pytest.mark.parametrize("number", [*ERRNOS, KeyboardInterrupt, SystemExit], ids=[*by_name, "Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("first", ["third swap", "last swap", "B2", "mark"])
def test_a_second_fault_during_rollback(field: Callable[..., Field], first: str, number: Any) -> None:
    """One call fails, and then another one while all is being undone: everything is old nevertheless, nothing is left.

    The one exception is a sync: it is never repeated, so whether the undo lasts is in doubt; recovery settles it.
    """
    ground = field(six_items)
    start = first_fault(ground, first)
    for offset in range(1, 100):
        fault = number if isinstance(number, int) else number()
        faults = {start: errno.EIO, start + offset: fault}
        kernel = Faulty(lambda call, faults=faults: faults.get(call.number))  # type: ignore[misc]
        exc = ground.run(kernel)
        if len(kernel.struck) < 2:
            break
        assert ground.now() == "old", kernel.struck
        if isinstance(exc, errors.RollbackError):
            assert kernel.struck[1].name in ("fsync", "syncfs", "pwrite"), (kernel.struck, exc)
            atomik.recover(ground.top)
            assert ground.now() == "old", kernel.struck
        else:
            assert isinstance(exc, (errors.AtomikError, KeyboardInterrupt, SystemExit)), exc
        assert not ground.left(), kernel.struck
        assert not ground.leaked(), kernel.struck
    assert offset > 10


def first_fault(ground: Field, which: str) -> int:
    swaps = [call.number for call in ground.calls if call.name == "rename"]
    syncs = [call.number for call in ground.calls if call.name == "fsync"]
    return {"third swap": swaps[2], "last swap": swaps[-1], "B2": syncs[0], "mark": syncs[1] + 1}[which]


@pytest.mark.usefixtures("no_log")
@pytest.mark.parametrize("number", ERRNOS, ids=by_name)
def test_a_call_that_fails_for_ever_during_rollback(field: Callable[..., Field], number: int) -> None:
    """Where undoing is made impossible, the error says so, and recovery brings everything back afterwards."""
    ground = field(six_items)
    start = first_fault(ground, "last swap")
    in_doubt = 0
    for name in ("rename", "fsync", "pwrite", "unlink", "rmdir"):
        kernel = Faulty(lambda call, name=name: number if call.number >= start and call.name == name else None)  # type: ignore[misc]
        if name != "rename":
            kernel.plan = lambda call, plan=kernel.plan: errno.EIO if call.number == start else plan(call)  # type: ignore[misc]
        exc = ground.run(kernel)
        assert isinstance(exc, errors.AtomikOSError)
        in_doubt += isinstance(exc, errors.RollbackError)
        if not isinstance(exc, errors.RollbackError):
            assert ground.now() == "old"
        atomik.recover(ground.top)
        assert ground.now() == "old"
        assert not ground.left()
        assert not ground.leaked()
    assert in_doubt >= 2


@pytest.mark.usefixtures("no_log")
def test_in_doubt_names_journal_and_cure(field: Callable[..., Field]) -> None:
    """RollbackError carries the folder to recover, both causes and the state IN_DOUBT; nothing more can be done with it."""
    ground = field(six_items)
    start = first_fault(ground, "last swap")
    ground.reset()
    kernel = Faulty(lambda call: errno.EIO if call.number >= start and call.name == "rename" else None)
    with installed(kernel), pytest.raises(errors.RollbackError, match=r"atomik\.recover\(\)") as caught:
        six_items()
    assert caught.value.filename == str(ground.top)
    assert caught.value.errno == errno.EIO
    assert ground.now() == "mixed"
    assert Path(".atomik-journal").exists()
    atomik.recover(".")
    assert ground.now() == "old"


def test_a_full_disk_is_told_once_and_the_next_try_works(folder: Path) -> None:
    """After a failed commit, the same transaction can be repeated and succeeds."""
    prepare()
    with contextlib.suppress(errors.CommitError), installed(Faulty.every("rename", errno.ENOSPC)):
        six_items()
    assert Path("report.csv").read_text() == "old report"
    six_items()
    assert Path("report.csv").read_text() == "new report"
    assert sorted(os.listdir()) == ["latest", "model.bin", "plots", "report.csv", "site"]
