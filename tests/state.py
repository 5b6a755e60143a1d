"""What a test looks at and compares: trees, descriptors, children, names of ours; and work done in a child process."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 65534


def descriptors() -> dict[int, str]:
    """The open descriptors of this process, and where each leads."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def child_processes() -> set[str]:
    """The ids of this process's children."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def left_in(top: Path) -> list[str]:
    """Every name of atomik's anywhere below `top`."""
    return sorted(
        os.path.join(where, name)
        for where, folders, files in os.walk(top)
        for name in (*folders, *files)
        if name.startswith(".atomik")
    )


def tree(top: Path | str) -> dict[str, Any]:
    """What lies below `top`, to compare: type, mode, owner and content of everything, but for times and inodes."""
    found: dict[str, Any] = {}
    for where, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(where, name)
            stat = path.lstat()
            content: Any = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            found[str(path.relative_to(top))] = (oct(stat.st_mode), stat.st_uid, stat.st_gid, content)
    return found


def in_child(function: Callable[..., Any], *args: Any, become: int | None = None) -> Any:
    """Run `function` in a forked child and return its result; an exception of its own is raised here.

    With `become`, the child first gives up root for that user and group id, and all other groups.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os._exit(_child(writer, function, args, become))
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with status {status}"
    good, value = pickle.loads(data)
    if not good:
        raise value
    return value


def _child(writer: int, function: Callable[..., Any], args: tuple[Any, ...], become: int | None) -> int:
    try:
        if become is not None:
            os.setgroups([])
            os.setresgid(become, become, become)
            os.setresuid(become, become, become)
        answer = (True, function(*args))
    except BaseException as exc:
        answer = (False, exc)
    with os.fdopen(writer, "wb") as pipe:
        pickle.dump(answer, pipe)
    return 0
