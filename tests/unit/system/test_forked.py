"""What a forked child gives up."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sys
from typing import TYPE_CHECKING

import pytest

from atomik._folder.directory import Directory
from atomik._system import forked
from tests.support.state import in_child

if TYPE_CHECKING:
    from pathlib import Path


def _forked_without_a_free_descriptor(path: str) -> tuple[bool, int]:
    """Whether the lock is free once its owner has closed the folder, while a child lives; and the child's exit code, which
    says whether the numbers that it gave up are still in use."""
    folder, again = Directory.open(path), Directory.open(path)
    folder.lock(0)
    told, tell = os.pipe()
    reader, writer = os.pipe()
    resource.setrlimit(resource.RLIMIT_NOFILE, (writer + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with contextlib.suppress(OSError):
        while True:
            os.dup(reader)
    child = os.fork()
    if not child:
        os.write(tell, b"x")  # it has begun its own life
        os.read(reader, 1)
        os._exit(0 if os.readlink(f"/proc/self/fd/{folder.fd}") == "/" else 1)
    os.read(told, 1)
    folder.close()
    free = again.try_lock()
    os.write(writer, b"x")
    return free, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_gives_its_locks_up_where_nothing_can_be_opened(tmp_path: Path) -> None:
    """Where all descriptors are taken, too; the numbers stay in use."""
    assert in_child(_forked_without_a_free_descriptor, str(tmp_path)) == (True, 0)


def _handler(exception: BaseException) -> None:
    raise exception


def _forked_while_it_arrives(path: str, exception: BaseException) -> tuple[str, int]:
    """What a child tells of what arrived while it closed the second of three folders, and how many it has given up."""
    told: list[BaseException | None] = []
    sys.unraisablehook = lambda unraised: told.append(unraised.exc_value)
    folders = [Directory.open(path) for _ in range(3)]
    for folder in folders:
        forked.guard(folder.fd)
    reader, writer = os.pipe()
    close = os.close

    def interrupted(fd: int) -> None:
        close(fd)
        if fd == folders[1].fd and not told:
            _handler(exception)

    os.close = interrupted
    child = os.fork()
    if not child:
        given_up = sum(os.readlink(f"/proc/self/fd/{folder.fd}") == "/" for folder in folders)
        os.write(writer, f"{told[0]!r} {given_up}".encode())
        os._exit(0)
    os.close = close
    os.waitpid(child, 0)
    said, _, count = os.read(reader, 999).decode().rpartition(" ")
    return said, int(count)


@pytest.mark.parametrize("exception", [KeyboardInterrupt(), OSError(errno.EBADF, "of the handler"), TimeoutError()])
def test_a_child_gives_all_its_locks_up_whatever_arrives(tmp_path: Path, exception: BaseException) -> None:
    """A signal handler may raise anything in the middle of it, also what closing a descriptor twice raises (I13)."""
    assert in_child(_forked_while_it_arrives, str(tmp_path), exception) == (repr(exception), 3)
