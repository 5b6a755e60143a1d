"""Room for many open folders."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

import atomik
from atomik import errors
from atomik._folder.directory import Directory
from atomik._system import descriptors, kernel
from tests.support.state import descriptors as opened
from tests.support.state import in_child, left_in


def limited(soft: int, hard: int, work: Callable[[], object]) -> None:
    """In a child with these limits, and with few descriptors, however many this process has."""

    before = opened()  # without the pipe through which the answer goes

    def child() -> None:
        for fd in before:
            if fd > 2:
                os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        work()

    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip(f"the hard limit here is lower than {hard}")
    in_child(child)


def soft() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@pytest.mark.sweep
def test_five_thousand_folders(tmp_path: Path) -> None:
    """At a soft limit of 1,024: the limit goes up while they are open, and is afterwards what it was."""
    for number in range(5000):
        (tmp_path / str(number)).mkdir()

    def work() -> None:
        held = [Directory.open(str(tmp_path / str(number))) for number in range(5000)]
        assert 5000 < soft() <= 16384
        os.close(os.open("/", os.O_RDONLY))  # there is still room for others
        for directory in held[1000:]:
            directory.close()
        assert soft() > 1024, "those that are left need more than 960"
        for directory in held[:1000]:
            directory.close()
        assert soft() == 1024

    limited(1024, 16384, work)


def test_where_the_hard_limit_is_near(tmp_path: Path) -> None:
    """The folder that has no room is refused when it is opened, with the cure, before the last descriptor is taken."""

    def work() -> None:
        held = []
        with pytest.raises(OSError, match="too many folders at once") as caught:
            while True:
                held.append(Directory.open(str(tmp_path)))
        assert (caught.value.errno, caught.value.filename) == (errno.EMFILE, str(tmp_path))
        assert 300 - descriptors.reserve(300) - 16 < len(held) < 300 - descriptors.reserve(300)
        spare = [os.dup(0) for _ in range(descriptors.reserve(300) - 4)]
        assert len(spare) > 32, "there is room to roll back and to close"
        for directory in held:
            directory.close()

    limited(300, 300, work)


def test_a_small_limit_that_is_used_up_by_others(tmp_path: Path) -> None:
    """EMFILE below the number from which atomik checks: the limit is raised nevertheless."""
    kernel.libc()  # whose import needs a descriptor

    def work() -> None:
        others = []
        try:
            while True:
                others.append(os.dup(0))
        except OSError:
            pass
        directory = Directory.open(str(tmp_path))
        assert soft() > 64
        directory.close()
        assert soft() == 64

    limited(64, 256, work)


def test_a_limit_that_somebody_else_changed_stays(tmp_path: Path) -> None:
    """Only what atomik raised is put back."""

    def work() -> None:
        held = [Directory.open(str(tmp_path)) for _ in range(300)]
        assert soft() > 256
        resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 4096))
        for directory in held:
            directory.close()
        assert soft() == 2048

    limited(256, 4096, work)


@pytest.mark.parametrize(
    ("limit", "hard", "others"),
    [(64, 64, 20), (64, 1024, 1), (128, 128, 0), (128, 128, 1), (128, 1024, 0), (128, 1024, 1)],
)
def test_a_transaction_under_a_small_limit(tmp_path: Path, limit: int, hard: int, others: int) -> None:
    """It works, up to the hard limit; where that is as low, too many folders are a clear error, and nothing is left.

    That does not depend on how many descriptors the program has itself.
    """

    def publish(count: int) -> None:
        top = tmp_path / f"{count}"
        for number in range(count):
            (top / str(number)).mkdir(parents=True)
        with atomik.transaction(durable=False) as tx:
            for number in range(count):
                tx.write_bytes(top / str(number) / "f", b"x")

    def work() -> None:
        held = [os.dup(0) for _ in range(others)]
        publish((limit - others) // 6)
        if hard > limit:
            publish(limit)
        else:
            with pytest.raises(errors.AtomikOSError, match=r"too many folders at once.*ulimit -n") as caught:
                publish(limit)
            assert caught.value.errno == errno.EMFILE
            assert str(caught.value.filename).startswith(str(tmp_path))
        assert len(left_in(tmp_path)) == 0
        assert soft() == limit
        assert len(held) == others

    limited(limit, hard, work)


def test_an_exception_at_the_call_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a signal handler raises while the limit is raised is not a refusal of the kernel (I13)."""

    def alarm(*_: object) -> None:
        raise PermissionError(errno.EPERM, "alarm")

    monkeypatch.setattr(resource, "setrlimit", alarm)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    with pytest.raises(PermissionError, match="alarm") as caught:
        descriptors.make_room(1000, "folder")
    assert not isinstance(caught.value, errors.AtomikError)
