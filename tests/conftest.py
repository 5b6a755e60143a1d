"""Fixtures for the whole suite, and the check that no test leaves anything of atomik's behind."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from atomik._commit.barriers import Barriers
from atomik._folder.filesystem import Filesystem
from atomik._system import kernel as _kernel
from tests.support.state import NOBODY, child_processes, descriptors, eventually, in_child, left_in
from tests.support.users import no_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


#: seconds until what a test has left is taken for left
PATIENCE = 30.0

#: The same examples on every machine, however long it takes it to make them; --hypothesis-profile=default tries others.
settings.register_profile("any machine", deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leftovers(reason): the test leaves names of atomik's on purpose")
    _usual_signals()
    _usual_surroundings()
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        _keep_bytecode(config)


def _usual_signals() -> None:
    """A shell ignores some signals in what it runs in the background, nohup one more; that would be inherited."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # which Python itself ignores
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _usual_surroundings() -> None:
    """What a shell, a container or a user has set otherwise, and what tests and the programs that they start would see."""
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for name in ("PYTHONDEVMODE", "PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONUNBUFFERED", "PYTHONIOENCODING", "PYTHONINSPECT",
                 "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CDPATH", "POSIXLY_CORRECT"):  # fmt: skip
        os.environ.pop(name, None)
    places = os.environ.get("PATH", os.defpath).split(
        os.pathsep
    )  # in one that may not be entered, no program is missing
    os.environ["PATH"] = os.pathsep.join(place for place in places if os.access(place, os.X_OK))
    os.environ |= {"LC_ALL": "C.UTF-8", "TZ": "UTC", "TERM": "dumb"}
    time.tzset()


def _keep_bytecode(config: pytest.Config) -> None:
    """Hundreds of programs are started, and each would compile all that it loads; nothing is written to the sources."""
    cache = tempfile.mkdtemp(prefix="atomik-bytecode-")
    os.chmod(cache, 0o755)  # noqa: S103  tests become other users
    os.environ["PYTHONPYCACHEPREFIX"] = cache
    config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))


def pytest_collection_finish() -> None:
    # Many tests collect garbage, to see what is left: then only what tests made is looked at, not thousands of tests.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder, which is also the current one; nothing but what the test makes is in it."""
    fresh = tmp_path / "work"
    fresh.mkdir()
    monkeypatch.chdir(fresh)
    return fresh


@pytest.fixture
def no_syncfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem on which syncfs means nothing."""
    _syncfs(monkeypatch, serves=False)


@pytest.fixture
def no_log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem on which no sync brings anything else along and none is dear, and on which syncfs serves unless
    `no_syncfs` is there as well; whatever the tests run on."""
    monkeypatch.setattr(Barriers, "one_log", lambda *_: False)
    monkeypatch.setattr("atomik._commit.barriers._is_btrfs", lambda _: False)
    _syncfs(monkeypatch, serves="no_syncfs" not in request.fixturenames)


@pytest.fixture
def one_log(no_log: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem on which one log holds every change."""
    monkeypatch.setattr(Barriers, "one_log", lambda self, _: self.durable is True)


def _syncfs(monkeypatch: pytest.MonkeyPatch, *, serves: bool) -> None:
    """Of every filesystem, also of those that are known already."""
    told = property(lambda _: serves, lambda fs, value: fs.__dict__.update(syncfs=value))
    monkeypatch.setattr(Filesystem, "syncfs", told, raising=False)


@pytest.fixture
def open_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that every user can reach and write to; tmp_path can be entered by its owner alone."""
    place = Path(tempfile.mkdtemp(prefix="atomik-open-"))
    place.chmod(0o777)
    try:
        yield place
        if request.node.get_closest_marker("leftovers") is None:
            assert not left_in(place), "the test left something of atomik's"
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """After every test: no name of ours, no descriptor, thread or child more than before, and the real kernel in place.

    ``@pytest.mark.leftovers("why")`` on a test says that it leaves names on purpose; the rest is still looked at.
    """
    if "support_checks" in request.path.parts:  # the laboratory keeps its servers, and looks after them itself
        yield
        return
    kernel, before, threads, children = _kernel.port, descriptors(), threading.active_count(), child_processes()
    yield
    os.chdir(request.config.invocation_params.dir)  # whatever a test has done
    assert _kernel.port is kernel, "a test's kernel is still installed"
    # What is about to end may end a little later: a watcher's own thread closes its descriptors when it comes to that.
    assert eventually(lambda: _children() <= children, PATIENCE), "a child process is left"
    assert eventually(lambda: threading.active_count() <= threads, PATIENCE), (
        f"a thread is left: {threading.enumerate()}"
    )
    if _new(before):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it is told below, more plainly
            gc.collect()
        assert eventually(lambda: not _new(before), PATIENCE), f"descriptors are left open: {_new(before)}"
    if request.node.get_closest_marker("leftovers") is None:
        assert not left_in(tmp_path), "the test left something of atomik's"


def _children() -> set[str]:
    """Those that are left; process 1 of a container is also given what nobody waits for any more, and must do so itself."""
    if os.getpid() == 1:
        for child in child_processes():
            os.waitpid(int(child), os.WNOHANG)
    return child_processes()


def _new(before: dict[int, str]) -> dict[int, str]:
    """Descriptors that were not there before; those that the laboratory holds for the rest of the process aside."""
    now = descriptors()
    return {fd: to for fd, to in now.items() if before.get(fd) != to and "atomik-lab-" not in to}


@pytest.fixture
def unprivileged() -> Callable[..., Any]:
    """``unprivileged(function, *args)``: run it in a forked child as user and group 65534, and return its result.

    The child reaches `open_folder`, and not `folder`.  Skips, with the reason, where this process is not root.
    """
    if why := no_root():
        pytest.skip(why)
    return lambda function, *args: in_child(function, *args, become=NOBODY)
