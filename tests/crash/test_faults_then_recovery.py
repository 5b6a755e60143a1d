"""Every call fails with an errno, once or forever: the error says what is so, and recovery settles the rest.

* no error: everything is new.
* `DurabilityError`: everything is new.
* `RollbackError`: anything; the journal stays, and with the fault gone `recover` makes everything old, or everything new.
* any other error: everything is old.

And a sync that failed is not asked again on the same descriptor, because it would say "fine" without being so (I9).
"""

from __future__ import annotations

import errno
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest

from atomik import errors
from atomik._system.kernel import MUTATING
from tests.crash import scenarios
from tests.crash.deaths import die, recover_all, recover_one
from tests.crash.scenarios import Expected, World
from tests.support.kernels import Faulty, installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.kernels import Call

    Job = Callable[[World, bool | str], object]

pytestmark = pytest.mark.sweep

ERRNOS = (
    errno.EIO, errno.ENOSPC, errno.EPERM, errno.ENOENT, errno.EEXIST, errno.EDQUOT, errno.EMFILE, errno.ENOMEM,
    errno.EROFS, errno.ESTALE, errno.EINTR,
)  # fmt: skip

SYNCS = frozenset({"fsync", "fdatasync", "syncfs"})

#: what these cannot do is told by the receipt and is not a failure (see tests/unit/tree/test_metadata.py)
ATTRIBUTES = frozenset(
    {
        "fchmod",
        "fchown",
        "lchown",
        "chmod",
        "setxattr",
        "removexattr",
        "setxattr_of",
        "removexattr_of",
        "utime",
        "futime",
    }
)


class Strict(Faulty):
    """Also watches that no descriptor on which a sync failed is synced again before it was closed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.failed: set[int] = set()
        self.repeated: list[Call] = []

    def around(self, call: Call, go: Callable[[], Any]) -> Any:
        if call.name == "close":
            self.failed.discard(call.args[0])
            return go()
        if call.name in SYNCS and call.args[0] in self.failed:
            self.repeated.append(call)
        try:
            return super().around(call, go)
        except OSError:
            if call.name in SYNCS:
                self.failed.add(call.args[0])
            raise


def failing(number: int, fault: int, *, forever: bool) -> Strict:
    """The `number`-th call that changes something fails; with `forever`, so do all later ones of its name."""
    name: list[str] = []
    seen = 0

    def plan(call: Call) -> int | None:
        nonlocal seen
        if call.name == "close":
            return None
        seen += 1
        if seen == number:
            name.append(call.name)
            return fault
        return fault if forever and call.name in name else None

    return Strict(plan, (MUTATING - ATTRIBUTES) | {"close"})


def run(kernel: Strict, action: Callable[[], object]) -> BaseException | None:
    with installed(kernel):
        try:
            action()
        except errors.AtomikError as exc:
            return exc
    return None


def check(world: World, expected: Expected, error: BaseException | None, what: str) -> None:
    """What is seen now is what the error says, and recovery leaves nothing over."""
    before = None
    if error is None or isinstance(error, errors.DurabilityError):
        before = expected.which(world, what)
        assert before == "new", f"{what}: {error!r}, and yet the old is there"
    elif not isinstance(error, errors.RollbackError):
        before = expected.which(world, what)
        assert before == "old", f"{what}: {error!r}, and yet the new is there"
    recover_all(world)
    after = expected.which(world, f"{what}, recovered")
    assert before in (None, after), f"{what}: recovery changed its mind"
    assert not world.leftovers(), f"{what}: {world.leftovers()}"


def points(action: Callable[[Strict], bool], faults: Iterator[int], *, forever: bool, step: int = 1) -> int:
    """Call `action` with a failing kernel for every call in turn; the number of calls that failed."""
    for struck, number in enumerate(range(1, 10_000, step)):
        kernel = failing(number, next(faults), forever=forever)
        if not action(kernel):
            return struck
    raise AssertionError("it never ended")


def faults_in_commit(
    world: World, job: Job, faults: Iterator[int], *, forever: bool, durable: bool | str = True
) -> int:
    expected = Expected.of(world, job)

    def one(kernel: Strict) -> bool:
        world.build()
        error = run(kernel, lambda: job(world, durable))
        if not kernel.struck:
            return False
        what = f"{kernel.struck[0]} failed: {error!r}"
        assert not kernel.repeated, f"{what}; synced again: {kernel.repeated[0]}"
        check(world, expected, error, what)
        return True

    return points(one, faults, forever=forever)


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("job", [scenarios.mixed, scenarios.moves, scenarios.kept], ids=lambda job: job.__name__)
def test_the_error_says_what_is_so(world: World, job: Job, forever: bool) -> None:
    """Each call fails with one errno after the other."""
    assert faults_in_commit(world, job, cycle(ERRNOS), forever=forever) > 25


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("job", scenarios.ONE, ids=lambda job: job.__name__)
def test_the_error_says_what_is_so_of_one_item(world: World, job: Job, forever: bool) -> None:
    """The same for one item."""
    assert faults_in_commit(world, job, cycle((errno.EIO, errno.ENOSPC)), forever=forever) > 2


@pytest.mark.slow
@pytest.mark.parametrize("durable", [True, "fsync", False])
@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("number", ERRNOS, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("job", [*scenarios.SEVERAL, *scenarios.ONE], ids=lambda job: job.__name__)
def test_every_errno_at_every_call(world: World, job: Job, number: int, forever: bool, durable: bool | str) -> None:
    """All of it."""
    faults_in_commit(world, job, cycle((number,)), forever=forever, durable=durable)


def faults_in_recovery(
    world: World, job: Job, deaths: Iterator[tuple[int, str]], faults: Iterator[int], *, forever: bool, step: int
) -> int:
    expected = Expected.of(world, job)
    struck = 0
    for death, when in deaths:

        def one(kernel: Strict, death: int = death, when: str = when) -> bool:
            world.build()
            point = die(lambda: job(world, False), death, when)
            error = run(kernel, lambda: recover_one(world))
            if not kernel.struck:
                return False
            what = f"{point}, then in recovery {kernel.struck[0]}: {error!r}"
            assert not kernel.repeated, f"{what}; synced again: {kernel.repeated[0]}"
            if error is None:
                expected.which(world, what)
            recover_all(world)
            expected.which(world, f"{what}, recovered")
            assert not world.leftovers(), f"{what}: {world.leftovers()}"
            return True

        struck += points(one, faults, forever=forever, step=step)
    return struck


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
def test_a_recovery_that_fails_leaves_the_journal_to_the_next(world: World, forever: bool) -> None:
    """Whatever fails in a recovery, the next one without the fault ends all old or all new, with nothing left."""
    deaths = iter([(40, "after"), (48, "before"), (55, "after")])
    assert faults_in_recovery(world, scenarios.mixed, deaths, cycle(ERRNOS), forever=forever, step=2) > 30


@pytest.mark.slow
@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("number", ERRNOS, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("job", scenarios.SEVERAL, ids=lambda job: job.__name__)
def test_every_errno_in_every_recovery(world: World, job: Job, number: int, forever: bool) -> None:
    """All of it."""
    deaths = ((at, when) for at in range(10, 60, 5) for when in ("before", "after"))
    faults_in_recovery(world, job, deaths, cycle((number,)), forever=forever, step=2)
