"""A storm of exceptions: one at any point of a publication or a recovery, or two, and what must be true afterwards.

A *point* is a line of the package (by a trace function), or the moment right before or right after a system call of the
port.  Signal handlers run there (and in fewer places), inside whatever ``try`` surrounds the point, and may raise anything::

    points = count(scene, folder)                       # an undisturbed run, and how many points it has
    problems = strike(scene, folder, [Blow(17, KeyboardInterrupt())])

Afterwards (`_Check`) the caller must have the very exception that was thrown, over destinations that are all old or all
new, as ``state`` and ``receipt`` say; with nothing left, nothing locked, and nothing for `recover` to do.

``python -m tests.support.storm --minutes 10`` does the same with real timers (setitimer) at random moments; ``--every``
tries every point.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import gc
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from attrs import define, field

import atomik
from atomik._commit import later
from atomik._system import forked
from atomik._system import kernel as _kernel

from .kernels import ALL, Call, Watching, installed
from .state import descriptors, left_in, tree

PACKAGE = os.path.dirname(atomik.__file__) + os.sep


class Struck(Exception):
    """What some program's handler raises."""


#: what a signal handler may raise, of every kind that a library might take for something else
CLASSES: dict[str, Callable[[], BaseException]] = {
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "TimeoutError": lambda: TimeoutError("late"),
    "OSError": lambda: OSError(errno.ENOENT, os.strerror(errno.ENOENT), "of the handler"),
    "Exception": Struck,
}


# --- scenes ------------------------------------------------------------------------------------------------------------
class Planned(Exception):
    """The failure of the scenes in which everything is rolled back."""


@define(frozen=True)
class Scene:
    """Something to publish in the current folder: what is there before, and the work.

    ``act`` passes its transaction to the function that it is given.  ``planned`` is the class of the exception with which
    an undisturbed run ends.
    """

    name: str
    prepare: Callable[[], None]
    act: Callable[[Callable[[Any], Any]], None]
    planned: type[BaseException] | None = None
    #: it publishes nothing: whether it ends new or old shows when it is repeated without disturbance
    recovery: bool = False
    #: what else must end, or may be left, before one looks what is left
    after: Callable[[], None] = lambda: None


def _write(**files: str) -> None:
    for name, content in files.items():
        Path(name).write_text(content)


def _folder(name: str, content: str) -> None:
    os.mkdir(name)
    Path(name, "inner").write_text(content)


def _single(make: Callable[[], Any], fill: Callable[[Any], object]) -> Callable[[Callable[[Any], Any]], None]:
    def act(tell: Callable[[Any], Any]) -> None:
        output = make()
        tell(output.transaction)
        with output as there:
            fill(there)

    return act


def _fill_text(file: Any) -> None:
    file.write("NEW")


def _fill_update(file: Any) -> None:
    file.read()
    file.seek(0)
    file.truncate()
    file.write("NEW")


def _fill_folder(folder: Path) -> None:
    (folder / "inner").write_text("NEW")
    (folder / "more").mkdir()


def _fill_path(path: Path) -> None:
    path.write_text("NEW")


def _prepare_companions() -> None:
    _write(**{"a.shp": "OLD", "a.shx": "OLD", "a.prj": "OLD"})


def _make_companions() -> Any:
    return atomik.path("a.shp", overwrite=True, also=[".shx", ".dbf", ".prj"])


def _fill_companions(path: Path) -> None:
    for suffix in (".shp", ".shx", ".dbf"):
        path.with_suffix(suffix).write_text("NEW")


def _prepare_in_place() -> None:
    _folder("site", "OLD")
    _write(**{"site/more": "OLD", "site/goes": "OLD"})


def _make_in_place() -> Any:
    return atomik.folder("site", overwrite=True, in_place=True)


def _prepare_group() -> None:
    _write(b="OLD", c="OLD", d="OLD")
    _folder("site", "OLD")


def _group(**options: Any) -> Callable[[Callable[[Any], Any]], None]:
    def act(tell: Callable[[Any], Any]) -> None:
        tx = tell(atomik.transaction(overwrite=True, **options))
        with tx:
            with tx.file("a") as a:
                a.write("NEW")
            tx.file("b").write("NEW")
            tx.remove("c")
            tx.move("d", "e")
            with tx.folder("site") as site:
                _fill_folder(site)

    return act


def _fail_last(phase: str, done: int, total: int) -> None:
    if phase == "swapping" and done == total:
        raise Planned


def _fail_block(tell: Callable[[Any], Any]) -> None:
    tx = tell(atomik.transaction(overwrite=True))
    with tx:
        tx.file("b").write("NEW")
        tx.folder("site")
        raise Planned


class _Dying(_kernel.Kernel):
    """Kills the process at the third swap, or right after the sync of the mark."""

    def __init__(self, *, marked: bool) -> None:
        self.left, self.marked, self.marking = 3, marked, False

    def rename(self, *args: Any) -> None:
        super().rename(*args)
        self.left -= 1
        if not self.left and not self.marked:
            os._exit(0)

    def pwrite(self, fd: int, data: Any, at: int) -> int:  # type: ignore[override]
        self.marking = at > 0
        return os.pwrite(fd, data, at)

    def link(self, src: str, src_fd: int, dst: str, dst_fd: int) -> None:
        super().link(src, src_fd, dst, dst_fd)
        self.marking = dst.endswith("-committed")

    def fsync(self, fd: int) -> None:  # type: ignore[override]
        os.fsync(fd)
        if self.marking and self.marked:
            os._exit(0)


def _die(*, marked: bool) -> None:
    """Leave what a group leaves whose process was killed."""
    _prepare_group()
    pid = os.fork()
    if not pid:
        try:
            _kernel.install(_Dying(marked=marked))
            _group()(lambda tx: tx)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def _recover(tell: Callable[[Any], Any]) -> None:
    atomik.recover(".")


def _stage_before() -> None:
    """An earlier run was stopped."""
    _folder("site", "OLD")
    with contextlib.suppress(Planned), atomik.folder("site", overwrite=True, resume=True) as new:
        _fill_folder(new)
        raise Planned


def _fill_resumed(folder: Path) -> None:
    assert folder.resumed  # type: ignore[attr-defined]
    assert (folder / "inner").read_text() == "NEW"


def _discard_staged() -> None:
    """What is staged with ``resume=True`` may be left; unlocked, and without a journal."""
    for place in Path().glob(".atomik-*-resume-site"):
        names = os.listdir(place)
        assert all(not name.endswith("-journal") for name in names), names
        fd = os.open(place, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)
        shutil.rmtree(place)


SCENES = {
    scene.name: scene
    for scene in (
        Scene("new file", lambda: None, _single(lambda: atomik.file("a"), _fill_text)),
        Scene("overwrite", lambda: _write(a="OLD"), _single(lambda: atomik.file("a", overwrite=True), _fill_text)),
        Scene("group", _prepare_group, _group()),
        Scene("update", lambda: _write(a="OLD"), _single(lambda: atomik.update("a"), _fill_update)),
        Scene(
            "backup",
            lambda: _write(a="OLD"),
            _single(lambda: atomik.file("a", overwrite=True, backup="a.old"), _fill_text),
        ),
        Scene(
            "folder",
            lambda: _folder("site", "OLD"),
            _single(lambda: atomik.folder("site", overwrite=True), _fill_folder),
        ),
        Scene("path", lambda: _write(a="OLD"), _single(lambda: atomik.path("a", overwrite=True), _fill_path)),
        Scene("companions", _prepare_companions, _single(_make_companions, _fill_companions)),
        Scene("in place", _prepare_in_place, _single(_make_in_place, _fill_folder)),
        Scene("parents", lambda: None, _single(lambda: atomik.folder("p/q/site", parents=True), _fill_folder)),
        Scene("rollback", _prepare_group, _group(progress=_fail_last), Planned),
        Scene("abort", _prepare_group, _fail_block, Planned),
        Scene(
            "later",
            lambda: _folder("site", "OLD"),
            _single(lambda: atomik.folder("site", overwrite=True, cleanup="later"), _fill_folder),
            after=later.wait,
        ),
        Scene(
            "resume",
            _stage_before,
            _single(lambda: atomik.folder("site", overwrite=True, resume=True), _fill_resumed),
            after=_discard_staged,
        ),
        Scene("recovery back", lambda: _die(marked=False), _recover, recovery=True),
        Scene("recovery forward", lambda: _die(marked=True), _recover, recovery=True),
    )
}


#: Where pure Python cannot hold an exception off: the first and the last bytecodes of a block's ends, and the program's own
#: code between making an output and entering its block.  The end of the object cleans up then.
_UNCURED = ("__exit__", "__enter__", "require_open", "_is_prepared", "act", "<lambda>")


# --- the storm ---------------------------------------------------------------------------------------------------------
@define
class Blow:
    """An exception at a point, counted from 1; a second one counts from the first."""

    at: int
    exception: BaseException
    #: where it came
    where: str = ""
    function: str = ""
    #: while an object was finalized, where no exception can be passed on
    lost: bool = False


class Storm:
    """Counts the points of the block, and throws the blows; ``points`` of the present count, ``struck`` what was thrown."""

    def __init__(self, blows: list[Blow], *, lines: bool = True) -> None:
        self.left, self.struck, self.points, self.lines = list(blows), list[Blow](), 0, lines
        #: where each point of a counting run is
        self.places: list[str] = []

    @contextlib.contextmanager
    def blowing(self) -> Iterator[None]:
        """Throw in this block."""
        with installed(_Around(self)):
            if self.lines:
                sys.settrace(self._call)
            try:
                yield
            finally:
                sys.settrace(None)
                sys.setprofile(None)

    over = False

    def stop(self) -> None:
        """Raise nothing any more."""
        self.over = True

    # Trace functions are made anew by every access to the method; the frames keep them.
    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or code.co_name in ("<module>", "__del__"):
            return None
        return self._line

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.point(frame, "line")
        return self._line

    def _again(self, frame: FrameType, event: str, arg: Any) -> None:
        """Python stops tracing when the trace function raises: go on with the first call or return after that."""
        sys.setprofile(None)
        above: FrameType | None = frame
        while above is not None:
            above.f_trace = self._call(above, "call", None)
            above = above.f_back
        sys.settrace(self._call)

    def point(self, frame: FrameType, kind: str) -> None:
        """Here an exception may come."""
        if _finalizing(frame):
            return
        self.points += 1
        code = frame.f_code
        if not self.left:
            return
        blow = self.left[0]
        if self.points == blow.at:
            blow.where, blow.function = f"{_file(code)}:{frame.f_lineno} {code.co_name} ({kind})", code.co_name
            self.struck.append(self.left.pop(0))
            self.points = 0
            if self.left and self.lines:
                sys.setprofile(self._again)
            _handler(blow.exception)


def _handler(exception: BaseException) -> None:
    """What a signal handler does: raise, in a frame of its own."""
    raise exception


def _file(code: CodeType) -> str:
    return code.co_filename.removeprefix(PACKAGE)


def _finalizing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


class _Around(Watching):
    """Points right before and right after every system call."""

    def __init__(self, storm: Storm) -> None:
        super().__init__(ALL)
        self.storm = storm

    def around(self, call: Call, go: Callable[[], Any]) -> Any:
        if threading.current_thread() is not threading.main_thread():  # where no signal handler runs
            return go()
        above = sys._getframe(2)
        if call.name != "close":  # on one line with what precedes it: no handler can run between the two
            self.storm.point(above, f"before {call.name}")
        result = go()
        self.storm.point(above, f"behind {call.name}")
        return result


class Timers(Storm):
    """The same by real timers: an exception of a random class after a random time, and perhaps another one after it."""

    def __init__(self, rng: random.Random, longest: float) -> None:
        super().__init__([])
        self._rng, self._longest, self._armed = rng, longest, False
        self._second = rng.random() < 0.3

    @contextlib.contextmanager
    def blowing(self) -> Iterator[None]:
        """Let the timer fire in this block."""
        signal.signal(signal.SIGALRM, self._ring)
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, self._rng.uniform(1e-6, self._longest))
        yield
        self.stop()

    def stop(self) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.over = True

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if not self._armed or frame is None:
            return
        if _finalizing(frame):
            signal.setitimer(signal.ITIMER_REAL, 5e-5)
            return
        blow = Blow(0, CLASSES[self._rng.choice(list(CLASSES))]())
        blow.where, blow.function = (
            f"{_file(frame.f_code)}:{frame.f_lineno} {frame.f_code.co_name}",
            frame.f_code.co_name,
        )
        self.struck.append(blow)
        if self._second:
            self._second = False
            signal.setitimer(signal.ITIMER_REAL, self._rng.uniform(1e-6, self._longest / 4))
        _handler(blow.exception)


# --- what must be true afterwards --------------------------------------------------------------------------------------
@define
class Trial:
    """One run of a scene: what was thrown, what the caller got, and what is wrong about that."""

    scene: Scene
    blows: list[Blow]
    caught: BaseException | None = None
    tx: Any = None
    problems: list[str] = field(factory=list)
    #: it was stopped where only the object's end can clean up
    open: bool = False

    def wrong(self, text: str) -> None:
        self.problems.append(text)

    def __str__(self) -> str:
        at = " then ".join(f"{type(blow.exception).__name__} at {blow.where}" for blow in self.blows if blow.where)
        return f"{self.scene.name}: {at}: {'; '.join(self.problems)}"


@define
class Field:
    """Where scenes are played: a folder for each run, and the trees that each scene may end with."""

    top: Path
    _known: dict[str, tuple[Any, Any, int]] = field(factory=dict)
    _number: int = 0

    def fresh(self) -> Path:
        """A new current folder."""
        self._number += 1
        folder = self.top / f"run{self._number}"
        folder.mkdir()
        os.chdir(folder)
        return folder

    def leave(self, folder: Path) -> None:
        """Remove it."""
        os.chdir(self.top)
        shutil.rmtree(folder)

    def known(self, scene: Scene) -> tuple[Any, Any, int]:
        """(old tree, new tree, number of points) of an undisturbed run; the first one loads what is loaded late."""
        if scene.name not in self._known:
            for _ in range(2):
                folder = self.fresh()
                scene.prepare()
                old = {name: what for name, what in tree(".").items() if not name.startswith(".atomik")}
                storm = Storm([])
                with storm.blowing(), contextlib.suppress(*(scene.planned,) if scene.planned else ()):
                    scene.act(lambda tx: tx)
                scene.after()
                new = tree(".")
                assert not left_in(folder)
                _publish_two()  # as `_Check` does: what is learned by that is known before the points are counted
                self.leave(folder)
            self._known[scene.name] = old, new, storm.points
        return self._known[scene.name]

    def run(self, scene: Scene, *blows: Blow, storm: Storm | None = None) -> Trial:
        """Play the scene in a storm, and look at what is left of it."""
        known = self.known(scene)
        folder = self.fresh()
        scene.prepare()
        before, trial = descriptors(), Trial(scene, list(blows))
        storm = Storm(list(blows)) if storm is None else storm

        def tell(tx: Any) -> Any:
            trial.tx = tx
            return tx

        try:
            with storm.blowing():
                scene.act(tell)
        except BaseException as exc:
            trial.caught = exc
        while not storm.over:
            try:
                storm.stop()
            except BaseException as exc:  # it came too late to be about the scene
                storm.struck = [blow for blow in storm.struck if blow.exception is not exc]
        trial.blows = storm.struck
        try:
            _Check(trial, folder, before, known).check()
        finally:
            if trial.caught is not None:
                trial.caught.__traceback__ = None
            trial.tx = None
            self.leave(folder)
        return trial


def _publish_two() -> None:
    """A transaction in the current folder that waits for nobody."""
    with atomik.transaction(lock_timeout=0, durable=False) as tx:
        tx.file("other").write("x")
        tx.file("another").write("x")


@define
class _Check:
    trial: Trial
    folder: Path
    before: dict[int, str]
    known: tuple[Any, Any, int]

    def check(self) -> None:
        self._exception()
        self._drop_open()
        self.trial.scene.after()
        if not self.trial.scene.recovery:
            self._trees()
        self._recovered()
        self._unlocked()
        self._works()

    def _exception(self) -> None:
        trial, caught = self.trial, self.trial.caught
        first = trial.blows[0].exception if trial.blows else None
        allowed = [blow.exception for blow in trial.blows]
        planned = trial.scene.planned
        if first is None and planned is None:
            if caught is not None:
                trial.wrong(f"undisturbed, but {caught!r}")
        elif caught is None:
            trial.wrong("the exception was swallowed")
        elif planned is not None and isinstance(caught, planned):
            pass  # it came first, and what comes later while it is handled may give way
        elif not any(caught is exception for exception in allowed):  # of two, as always, the second may be seen
            trial.wrong(f"the caller got {type(caught).__name__}: {caught}")

    def _drop_open(self) -> None:
        """Where only the object's end cleans up, let it end."""
        trial = self.trial
        if trial.tx is None and not trial.scene.recovery and tree(".") != self.known[0]:
            trial.open, state = True, None
            self._let_go()
        elif trial.tx is None or trial.tx.state is not atomik.State.OPEN:
            state = None if trial.tx is None else trial.tx.state
        else:
            trial.open, state = True, None
            if not any(blow.function in _UNCURED for blow in trial.blows):
                trial.wrong("the transaction is still open")
            self._let_go()
        self.state = state

    def _let_go(self) -> None:
        """The exception was dealt with: objects end that only its tracebacks hold."""
        trial = self.trial
        for chain in (trial.caught, *(blow.exception for blow in trial.blows)):
            while chain is not None:
                chain.__traceback__, chain = None, chain.__context__
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            trial.tx = None
            gc.collect()

    state: Any = None

    def _trees(self) -> None:
        trial, (old, new, _) = self.trial, self.known
        now = tree(".")
        if left := left_in(self.folder):
            trial.wrong(f"left: {[os.path.relpath(path, self.folder) for path in left]}, state {self.state}")
            return
        done = now == new and (now != old or self.state is atomik.State.COMMITTED)
        if not done and now != old:
            trial.wrong(f"a mixture, state {self.state}")
        if self.state is not None and self.state is not (atomik.State.COMMITTED if done else atomik.State.ABORTED):
            trial.wrong(f"state {self.state}, but everything is {'new' if done else 'old'}")
        if trial.tx is not None and (trial.tx.receipt is not None) != done:
            trial.wrong(f"receipt {trial.tx.receipt}, but everything is {'new' if done else 'old'}")

    def _recovered(self) -> None:
        now = tree(".")
        try:
            report = atomik.recover(".", lock_timeout=0)
        except Exception as exc:
            self.trial.wrong(f"recover(): {exc!r}")
            return
        if self.trial.scene.recovery:
            if tree(".") != self.known[1]:
                self.trial.wrong("another recover() did not finish it")
        elif report.items or tree(".") != now:
            self.trial.wrong(f"recover() found something: {report}")

    def _unlocked(self) -> None:
        trial = self.trial
        new = self._new()
        if new or forked.guarded:
            self._let_go()
            new = self._new()
        for fd, to in new.items():
            if "lock:" in Path(f"/proc/self/fdinfo/{fd}").read_text():
                trial.wrong(f"a lock stays on {to}")
        # What was opened and is not yet in anybody's hands, or no longer.
        if len(new) > 2 * len(trial.blows):
            trial.wrong(f"descriptors stay open: {list(new.values())}")
        stale = [fd for fd in forked.guarded if fd not in self.before]
        if stale:
            trial.wrong(f"a child would lose the descriptors {stale}")
        for fd in stale:
            forked.guarded.pop(fd)
        for fd in new:
            os.close(fd)

    def _new(self) -> dict[int, str]:
        return {fd: to for fd, to in descriptors().items() if self.before.get(fd) != to}

    def _works(self) -> None:
        try:
            _publish_two()
        except Exception as exc:
            self.trial.wrong(f"the folder is blocked: {exc!r}")


# --- campaigns ---------------------------------------------------------------------------------------------------------
def singles(
    ground: Field, scene: Scene, *, step: int = 1, start: int = 1, classes: list[str] | None = None
) -> Iterator[Trial]:
    """One exception at every `step`-th point; its class changes with the point, unless `classes` are given: then each."""
    points = ground.known(scene)[2]
    names = list(CLASSES)
    for at in range(start, points + 1, step):
        for name in classes if classes is not None else [names[(at // step) % len(names)]]:
            trial = ground.run(scene, Blow(at, CLASSES[name]()))
            if not trial.blows:
                return
            yield trial


def pairs(ground: Field, scene: Scene, *, step: int, second: int, seed: int = 1) -> Iterator[Trial]:
    """Two exceptions: the second at every `second`-th point while the first, at every `step`-th one, is handled."""
    rng = random.Random(seed)
    points, names = ground.known(scene)[2], list(CLASSES)
    for at in range(rng.randint(1, step), points + 1, step):
        later = rng.randint(1, second)
        while True:
            blows = Blow(at, CLASSES[rng.choice(names)]()), Blow(later, CLASSES[rng.choice(names)]())
            trial = ground.run(scene, *blows)
            yield trial
            if len(trial.blows) < 2:
                break
            later += second


def timed(ground: Field, seconds: float, seed: int) -> Iterator[Trial]:
    """Scene after scene under `Timers`, for this many seconds."""
    rng = random.Random(seed)
    lasts = {}
    for scene in SCENES.values():
        ground.known(scene)
        started = time.perf_counter()
        ground.run(scene, storm=Storm([], lines=False))
        lasts[scene.name] = (time.perf_counter() - started) / 3  # the rest are the checks
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        scene = rng.choice(list(SCENES.values()))
        yield ground.run(scene, storm=Timers(rng, lasts[scene.name]))


def _timed(arguments: argparse.Namespace) -> int:
    """In a child process, which may be left in any state."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    sys.unraisablehook = lambda _: None
    ground = Field(Path(tempfile.mkdtemp(prefix="storm-", dir=arguments.dir)))
    tried = struck = bad = 0
    for trial in timed(ground, 60 * arguments.minutes, arguments.start):
        tried += 1
        struck += bool(trial.blows)
        if trial.problems:
            bad += 1
            print(str(trial)[: arguments.width], flush=True)
    shutil.rmtree(ground.top)
    print(f"{tried} runs, {struck} struck, {bad} wrong", flush=True)
    os._exit(bad > 0)


def _explore(arguments: argparse.Namespace) -> int:
    bad: Counter[str] = Counter()
    examples: dict[str, Trial] = {}
    tried = opened = 0
    ground = Field(Path(tempfile.mkdtemp(prefix="storm-", dir=arguments.dir)))
    started = time.monotonic()
    for name in arguments.scene or SCENES:
        scene = SCENES[name]
        trials = (
            pairs(ground, scene, step=arguments.step, second=arguments.pairs)
            if arguments.pairs
            else singles(
                ground,
                scene,
                step=arguments.step,
                start=arguments.start,
                classes=list(CLASSES) if arguments.every else None,
            )
        )
        for trial in trials:
            tried += 1
            opened += trial.open
            if trial.problems:
                key = f"{scene.name}: {trial.blows[0].where if not arguments.pairs else ''} {trial.problems[0][:60]}"
                bad[key] += 1
                examples.setdefault(key, trial)
        print(
            f"{scene.name}: {ground.known(scene)[2]} points, {tried} tried so far, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    for key, number in bad.items():
        print(number, str(examples[key])[: arguments.width])
    print(f"{tried} tried, {sum(bad.values())} wrong, {opened} left open until the object ended")
    shutil.rmtree(ground.top)
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.storm", description=__doc__)
    parser.add_argument("--scene", action="append", choices=list(SCENES))
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--start", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--dir")
    parser.add_argument("--width", type=int, default=300)
    arguments = parser.parse_args()
    return _timed(arguments) if arguments.minutes else _explore(arguments)


if __name__ == "__main__":
    sys.exit(main())
