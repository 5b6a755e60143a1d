"""Test your own code against crashes: kill it at every system call that atomik makes, and check what is left.

    from atomik.testing import crash_points

    def test_publish_survives(tmp_path):
        def prepare():                       # the state before, made again for every point
            shutil.rmtree(tmp_path); tmp_path.mkdir()
            (tmp_path / "model").write_text("old"); (tmp_path / "config").write_text("old")

        def check(point):
            atomik.recover(tmp_path)
            found = {(tmp_path / name).read_text() for name in ("model", "config")}
            assert found == ({"new"} if point.returned else found) and len(found) == 1

        assert crash_points(lambda: publish(tmp_path), check, prepare=prepare) > 20

Each point is a fork of the process whose k-th call that changes something kills it with SIGKILL, before or after the call.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

from attrs import define

from ._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["CrashPoint", "crash_points", "recorded"]


@define(frozen=True)
class CrashPoint:
    """One place to die; `crash_points` passes it to ``check``.

    ``number``: which call it was, counting those that change something, from 1.  ``call``: its name, as in atomik's kernel
    port, e.g. "rename" or "fsync".  ``when``: whether it died "before" or "after" the call.  ``returned``: the function
    returned, and nothing was killed (the last point).
    """

    number: int
    call: str
    when: str
    returned: bool

    def __str__(self) -> str:
        return "at the end" if self.returned else f"{self.when} call {self.number} ({self.call})"


class _Dying(kernel.Kernel):
    """A kernel that dies at one call, and writes the name of that call to a pipe."""

    def __init__(self, number: int, when: str, pipe: int) -> None:
        self.left, self.when, self.pipe = number, when, pipe

    def _call(self, name: str, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        self.left -= 1
        if self.left == 0:
            os.write(self.pipe, name.encode())
            if self.when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
        try:
            return getattr(super(), name)(*args, **keywords)
        finally:  # also when the call failed: "after" is a point of its own
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _dying(name: str) -> Callable[..., Any]:
    def method(self: _Dying, *args: Any, **keywords: Any) -> Any:
        return self._call(name, args, keywords)

    return method


for _name in kernel.MUTATING:
    setattr(_Dying, _name, _dying(_name))


def crash_points(
    function: Callable[[], object],
    check: Callable[[CrashPoint], object],
    *,
    prepare: Callable[[], object] | None = None,
    first: int = 1,
    step: int = 1,
) -> int:
    """Run `function` once for every call in it that changes something on disk, and kill it there.

    :param function: the code under test; it runs in a forked child, so its changes to memory are lost.
    :param check: called in this process after every death, with the `CrashPoint`; it should recover, and assert.
    :param prepare: called in this process before every run, to make the state that `function` starts from.
    :param int first: begin at this call, counted from 1.
    :param int step: take every `step`-th call only, to save time.
    :returns: the number of points, an int.
    :raises ValueError: `first` or `step` is less than 1.
    :raises AssertionError: `function` failed by itself in the child (its traceback goes to stderr).  What `check` raises
        goes on, with the point added as a note.

    Limit: only system calls made by atomik count, including writes to its file objects; what `function` itself does in a
    staged folder is not a crash point.  A power cut loses more than the death of a process: see "How we know" in the
    documentation.
    """
    if first < 1 or step < 1:
        raise ValueError(f"calls are counted from 1, in steps of 1 or more, not first={first!r}, step={step!r}")
    number = first
    count = 0
    while True:
        for when in ("before", "after"):
            if prepare is not None:
                prepare()
            point = _run(function, number, when)
            count += 1
            try:
                check(point)
            except BaseException as exc:
                exc.add_note(f"crashed {point}")
                raise
            if point.returned:
                return count
        number += step


def _run(function: Callable[[], object], number: int, when: str) -> CrashPoint:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(function, number, when, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        name = told.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return CrashPoint(number, name, when, returned=False)
    if status != 0:
        raise AssertionError(f"the function failed by itself (wait status {status}); its traceback is on stderr")
    return CrashPoint(number, name, when, returned=True)


def _child(function: Callable[[], object], number: int, when: str, writer: int) -> None:
    """The rest of the child's life.  It never returns into the caller's stack, whose clean-up is not its own."""
    code = 1
    try:
        kernel.install(_Dying(number, when, writer))
        function()
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it is reported, and must not unwind into the parent's frames
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def recorded(function: Callable[[], object]) -> list[tuple[str, tuple[Any, ...]]]:
    """Run `function` here, in this process, and return the system calls that it made through atomik.

    :param function: the code to watch; what it raises goes on unchanged.
    :returns: a list of (name, arguments), in order; the names are those of atomik's kernel port, such as "rename" or
        "fsync".  Names and number of calls may change in any version.

    Limit: calls of all threads are recorded, but only those made by atomik.
    """
    recording = _Recording()
    before = kernel.install(recording)
    try:
        function()
    finally:
        kernel.install(before)
    return recording.calls


class _Recording(kernel.Kernel):
    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name.startswith("_") or not callable(value):
            return value

        def method(*args: Any, **keywords: Any) -> Any:
            object.__getattribute__(self, "calls").append((name, args))
            return value(*args, **keywords)

        return method
