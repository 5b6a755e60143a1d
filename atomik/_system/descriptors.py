"""Room for many open folders: the soft limit of descriptors is raised while they are needed (RLIMIT_NOFILE).

A transaction holds one descriptor for each folder (I10), and the usual soft limit of 1,024 is there for programs that use
select(2), not to save anything.  So, as Go's runtime does, it is raised towards the hard limit, but only when a descriptor
comes near it, and it is put back when the last such descriptor is closed::

    if fd >= descriptors.low:
        hold(fd, path)           # raises OSError (EMFILE) with the cure where the hard limit is near
    …
    if fd >= descriptors.low:
        let_go(fd)               # after close(2)

The kernel always gives the lowest free number, so the number of a descriptor says how many are open.
"""

from __future__ import annotations

import errno

from . import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_LOW = 40

#: Below this number no check is needed; 0 while the limit is raised.
low = _LOW

_RESERVE = 64


def reserve(limit: int) -> int:
    """Descriptors that stay free for the files of a transaction, what a commit opens, and the rest of the program."""
    return min(_RESERVE, limit // 8)


_high: set[int] = set()
#: the soft limit before it was raised, and what it was raised to
_before: int | None = None
_ours = 0


def hold(fd: int, path: str) -> None:
    """Make sure that there is room above `fd`, the descriptor of a folder that stays open for long.

    Raises `OSError` with EMFILE, as open(2) does, where there is none; `fd` is the caller's to close.
    """
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft != resource.RLIM_INFINITY and fd + reserve(soft) >= soft:
        make_room(fd + reserve(soft), path)
    if _before is not None and fd + reserve(_before) >= _before:
        _high.add(fd)


def make_room(needed: int, path: str) -> None:
    """Raise the soft limit above `needed`, doubling it as far as the hard one allows; or raise the error."""
    global _before, _ours, low  # noqa: PLW0603  there is one limit for the whole process
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(2 * soft, needed + _RESERVE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if wanted <= max(soft, needed):
        _refuse(soft, hard, path)
    if soft != _ours or _before is None:
        _before = soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as exc:
        if kernel.came_from_elsewhere(exc):
            raise
        _refuse(soft, hard, path)
    _ours, low = wanted, 0


def _refuse(soft: int, hard: int, path: str) -> NoReturn:
    text = f"too many folders at once: each takes descriptors, and this process may have {soft} (hard limit {hard})"
    raise OSError(errno.EMFILE, text, path)


def let_go(fd: int) -> None:
    """Call it when the descriptor is closed.  After the last one that needed the higher limit, the old limit is restored,
    unless someone else changed it."""
    global _before, low  # noqa: PLW0603
    _high.discard(fd)
    if _high or _before is None:
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == _ours:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_before, hard))
    _before, low = None, _LOW
