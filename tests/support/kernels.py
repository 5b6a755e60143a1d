"""Kernels to put in the place of the real one: they record, fail, interrupt or act at a chosen call.

All of atomik's system calls go through ``atomik._system.kernel.port``.  Each class here is a `Kernel` that really makes the
calls (or passes them to the kernel that was installed before it, so they can be stacked) and does one thing more::

    with installed(Recording()) as kernel:
        publish()
    kernel.names()                        # ["open", "look", "open_tmpfile", …]

    for number in count(1):               # fail at every call that changes something, one after the other
        with installed(Faulty.at(number, errno.EIO)) as kernel:
            …
        if not kernel.struck:             # there were fewer calls than that: each was struck
            break

* `Recording`: every call with its arguments, and the paths that its descriptors led to at that moment.
* `Faulty`: raises at the calls that a plan chooses: `Faulty.at` the n-th one (once or from then on), `Faulty.every` call
  of some names.  ``KeyboardInterrupt()`` may be given in the place of an errno.
* `Acting`: calls a function before or after chosen calls: the place for "someone else does X between these two".

Calls are numbered from 1, each kernel by itself and only those that it was asked to look at (``among``; by default
`MUTATING`).  A fault strikes *before* the call, so that nothing has happened, with one exception: close(2) always
closes, so its fault strikes afterwards, or a descriptor would leak that no real kernel leaves open.

`installed` puts the former kernel back whatever happens.  Forked children inherit the present one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

from attrs import define, field

from atomik._folder import filesystem as _filesystem
from atomik._system import kernel as _kernel
from atomik._system.kernel import MUTATING, Kernel

#: Every system call of the port, the harmless ones too.
ALL = frozenset(name for name in vars(Kernel) if not name.startswith("_"))

_K = TypeVar("_K", bound="Watching")

#: For each call: where its paths are, as positions of (name, dir_fd) or of a descriptor.
_NAMED: dict[str, tuple[tuple[int, ...], ...]] = {
    "rename": ((0, 1), (2, 3)),
    "link": ((0, 1), (2, 3)),
    "link_fd": ((0,), (1, 2)),
    "symlink": ((1, 2),),
    "mkdir": ((0, 2),),
    "create": ((0, 3),),
    "unlink": ((0, 1),),
    "rmdir": ((0, 1),),
    **dict.fromkeys(("fsync", "fdatasync", "syncfs", "flock", "fchmod", "fchown", "close"), ((0,),)),
    **dict.fromkeys(("write", "pwrite", "truncate", "open_tmpfile", "start_writeback", "write_back"), ((0,),)),
}


@define(frozen=True)
class Call:
    """One system call: its number among those looked at, its name and arguments, and the paths it was about."""

    number: int
    name: str
    args: tuple[Any, ...]
    paths: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"#{self.number} {self.name}({', '.join(self.paths) or ', '.join(map(repr, self.args))})"


class Watching(Kernel):
    """The base: every call passes through `around`, with the numbers of those ``among`` which to look."""

    def __init__(self, among: Collection[str] = MUTATING) -> None:
        self.among = among
        self.count = 0
        self.under: Kernel = _kernel.port

    def around(self, call: Call, go: Callable[[], Any]) -> Any:
        """Called instead of a system call; ``go()`` makes it."""
        return go()


def _through(name: str) -> Callable[..., Any]:
    def method(self: Watching, *args: Any, **kwargs: Any) -> Any:
        def go() -> Any:
            return getattr(self.under, name)(*args, **kwargs)

        if name not in self.among:
            return go()
        self.count += 1
        return self.around(Call(self.count, name, args, paths_of(name, args)), go)

    return method


for _name in ALL:
    setattr(Watching, _name, _through(_name))


def paths_of(name: str, args: tuple[Any, ...]) -> tuple[str, ...]:
    """The absolute paths that the descriptors and names of a call lead to now; () for calls not listed above."""
    found = []
    for positions in _NAMED.get(name, ()):
        first = args[positions[0]]
        if len(positions) == 1:
            found.append(_path_of(first))
        else:
            above = args[positions[1]]
            found.append(os.path.join("" if above is None or above < 0 else _path_of(above), first))
    return tuple(found)


def _path_of(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return f"<{fd}>"


class Recording(Watching):
    """Remembers every call, whether it went well or not."""

    def __init__(self, among: Collection[str] = ALL) -> None:
        super().__init__(among)
        self.calls: list[Call] = []

    def around(self, call: Call, go: Callable[[], Any]) -> Any:
        self.calls.append(call)
        return go()

    def names(self) -> list[str]:
        """The names of the calls, in order."""
        return [call.name for call in self.calls]

    def of(self, *names: str) -> list[Call]:
        """The calls of these names, in order."""
        return [call for call in self.calls if call.name in names]


#: From a call to what is raised there, or None.
Plan = Callable[[Call], "BaseException | int | None"]


_OPENING = frozenset({"open", "open_beneath", "open_tmpfile", "create"})


class Faulty(Watching):
    """Raises what `plan` says for a call: an errno, an exception, or None to let it happen.

    ``struck`` holds the calls that were failed.
    """

    def __init__(self, plan: Plan, among: Collection[str] = MUTATING) -> None:
        super().__init__(among)
        self.plan = plan
        self.struck: list[Call] = []

    @classmethod
    def at(
        cls,
        number: int,
        fault: int | BaseException,
        *,
        among: Collection[str] = MUTATING,
        forever: bool = False,
        after: bool = False,
    ) -> Faulty:
        """Fail the `number`-th call among those; with `forever` every later one of the same name too.

        With `after`, the call is made and then fails: a Ctrl-C that comes when it has returned.
        """
        name: list[str] = []

        def plan(call: Call) -> BaseException | int | None:
            if call.number == number:
                name.append(call.name)
                return fault
            return fault if forever and call.name in name else None

        return _Late(plan, among) if after else cls(plan, among)

    @classmethod
    def every(cls, names: str, fault: int | BaseException) -> Faulty:
        """Fail every call of these names (separated by blanks)."""
        return cls(lambda call: fault, names.split())

    def around(self, call: Call, go: Callable[[], Any]) -> Any:
        fault = self.plan(call)
        if fault is None:
            return go()
        self.struck.append(call)
        if call.name == "close" or self._late(call):
            with contextlib.suppress(OSError):  # it may have failed by itself
                result = go()
                if call.name in _OPENING:
                    # Between the return of the call and the store of its result nothing in Python can hold a descriptor.
                    os.close(result)
        raise _exception(fault, call)

    def _late(self, call: Call) -> bool:
        return False


class _Late(Faulty):
    def _late(self, call: Call) -> bool:
        return True


def _exception(fault: int | BaseException, call: Call) -> BaseException:
    if isinstance(fault, BaseException):
        return fault
    named = len(_NAMED.get(call.name, ((),))[0]) == 2  # what got a descriptor only, cannot say a name
    return OSError(fault, os.strerror(fault), call.args[_NAMED[call.name][0][0]] if named else None)


class Answer(Exception):
    """Raised by an action of `Acting`: the kernel answers the call with this errno.

    An OSError that the action raised itself would be a signal handler's, which atomik passes on unchanged (I13).
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Acting(Watching):
    """Calls ``action(call)`` before (or ``after``) each call of the names in `among` for which ``when`` holds."""

    def __init__(
        self,
        among: str,
        action: Callable[[Call], object],
        *,
        when: Callable[[Call], bool] = lambda call: True,
        after: bool = False,
    ) -> None:
        super().__init__(among.split())
        self.action, self.when, self.after = action, when, after
        self.acted = 0

    def around(self, call: Call, go: Callable[[], Any]) -> Any:
        chosen = self.when(call)
        result = None
        if self.after or not chosen:
            result = go()
        if chosen:
            self.acted += 1
            try:
                self.action(call)
            except Answer as answer:
                raise _exception(answer.number, call) from None
            if not self.after:
                result = go()
        return result


@contextlib.contextmanager
def installed(kernel: _K) -> Iterator[_K]:
    """Replace the present kernel by `kernel` for the duration of the block."""
    kernel.under = _kernel.install(kernel)
    try:
        yield kernel
    finally:
        _kernel.install(kernel.under)
        _filesystem.forget()  # what a faulty kernel said about the filesystem holds for nobody else


@define
class Looped:
    """What `every_call` gives for each point: the kernel to install, and which call it was."""

    number: int
    kernel: Faulty = field(repr=False)


def every_call(
    fault: Callable[[], int | BaseException] | int, *, among: Collection[str] = MUTATING, step: int = 1, **how: Any
) -> Iterator[Looped]:
    """One `Faulty.at` for each call in turn, or every `step`-th, until one does not strike: there are no more calls.

    The loop's body must use each kernel (``with installed(point.kernel)``); an error is raised when none ever struck.
    """
    number = 1
    while True:
        kernel = Faulty.at(number, fault() if callable(fault) else fault, among=among, **how)
        yield Looped(number, kernel)
        if not kernel.struck:
            assert number > 1, "no call was looked at: the loop tested nothing"
            return
        number += step


class Poor(Watching):
    """A filesystem that lacks things: any of "noreplace", "exchange" (EINVAL), "link" (EPERM), "tmpfile" (EOPNOTSUPP).

    With "lies", it says yes to an exchange and makes a plain rename of it, as some FUSE servers do.
    """

    def __init__(self, *lacks: str) -> None:
        super().__init__({"rename", "link", "link_fd", "open_tmpfile"})
        self.lacks = lacks

    def around(self, call: Call, go: Callable[[], Any]) -> Any:
        lacks = self.lacks
        if call.name == "rename":
            flags = call.args[4]
            if flags == _kernel.EXCHANGE and "lies" in lacks:
                return self.under.rename(*call.args[:4], 0)
            if (flags == _kernel.NOREPLACE and "noreplace" in lacks) or (
                flags == _kernel.EXCHANGE and "exchange" in lacks
            ):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        elif "link" in call.name and "link" in lacks:
            if call.name == "link":
                self.under.lstat(*call.args[:2])  # a kernel looks for the source first: ENOENT comes before EPERM
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        elif call.name == "open_tmpfile" and "tmpfile" in lacks:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return go()
