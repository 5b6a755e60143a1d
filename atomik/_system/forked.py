"""A lock ends with its owner, not with the last copy of its descriptor (I11).

flock(2) belongs to the open file description, which a forked child shares: its copies would keep the lock alive after
its owner's death, and recovery would wait for a process that knows nothing of it.  So a child gives up its copies of
the descriptors that are guarded here::

    guard(fd)        # before the lock is tried
    release(fd)      # before the descriptor is closed

The numbers stay in use in the child, because the objects that it inherited may close them; they lead to "/", opened with
O_PATH, which needs neither a free descriptor nor /dev.

``me`` is the id of this process, for objects that must not be used in a child; asking the kernel each time costs a call.
"""

from __future__ import annotations

import errno
import os

#: descriptor -> what `_folder.lock` knows of its lock: the folder's key, the thread that took it, whether it is shared
guarded: dict[int, tuple[tuple[int, int, int], int, bool] | None] = {}


def guard(fd: int) -> None:
    """A descriptor of this process holds, or is about to hold, a lock."""
    guarded[fd] = None


def release(fd: int) -> None:
    """The descriptor holds no lock any more."""
    guarded.pop(fd, None)


me = os.getpid()


def _in_child() -> None:
    global me  # noqa: PLW0603  it is another process now
    me = os.getpid()
    ours = list(guarded)
    guarded.clear()
    try:
        _close_all(ours.copy())  # first of all, and whatever arrives: the locks are the parent's alone
    finally:
        _keep_numbers(set(ours))


def _keep_numbers(left: set[int]) -> None:
    while left:
        fd = os.open("/", os.O_PATH | os.O_CLOEXEC)  # the lowest free number: one of them, or one to be moved there
        if fd not in left:
            os.dup2(fd, left.pop(), inheritable=False)
            os.close(fd)
        left.discard(fd)


def _close_all(fds: list[int]) -> None:
    try:
        while fds:
            try:
                os.close(fds.pop())
            except OSError as exc:
                if exc.errno != errno.EBADF or exc.__traceback__ is None or exc.__traceback__.tb_next is not None:
                    raise  # else it is closed already
    finally:
        if fds:
            _close_all(fds)


os.register_at_fork(after_in_child=_in_child)
