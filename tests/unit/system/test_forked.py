"""What a forked child gives up."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import TYPE_CHECKING

from atomik._folder.directory import Directory
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
