"""A FUSE filesystem that passes everything through to a folder, but has its own mind about rename flags.

    with passthrough(Renames.IGNORES) as mirror:
        mirror.folder          # what a program sees
        mirror.source          # what is really there

Real servers differ in one point that decides whether data survives: what they do
with RENAME_EXCHANGE and RENAME_NOREPLACE. The three behaviours here are those met
in the wild. Everything else is complete enough for ordinary programs: files,
folders, links, symlinks, devices, modes, owners, times, xattrs, fsync, mmap,
flock and POSIX locks (the last two kept by the kernel). Missing: O_TMPFILE
(EOPNOTSUPP), fallocate other than the plain kind, ioctl.

Nothing is cached, so what the server really did is seen at once; with ``seconds``
the kernel believes each name for so long, as with most servers (libfuse's default is 1).
Permissions are checked by the kernel against the source's modes (default_permissions).
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.lab import linux, mounting, namespace
from tests.support.lab.fuse import FuseMount, missing_fuse
from tests.support.lab.mirror_fs import MirrorFileSystem, Renames

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Mirror", "Renames", "bindfs", "missing_bindfs", "missing_fuse", "passthrough"]

_PATIENCE_MS = 60_000


@dataclass(frozen=True)
class Mirror:
    """A mounted pass-through filesystem, good for the length of the block that gave it."""

    folder: Path
    """The mount point: what a program sees."""
    source: Path
    """The real folder behind it."""
    server_pid: int


@contextlib.contextmanager
def passthrough(renames: Renames, source: Path | None = None, *, seconds: int = 0) -> Iterator[Mirror]:
    """Serve ``source`` (default: a fresh folder on the scratch tmpfs) with this rename behaviour."""
    real = namespace.scratch("source") if source is None else source
    filesystem = MirrorFileSystem(real, renames, seconds)
    try:
        mount = FuseMount(filesystem, name="passthrough", options="default_permissions,allow_other")
    finally:
        filesystem.close()
    with mount:
        yield Mirror(mount.point, real, mount.server_pid)


def missing_bindfs() -> str | None:
    """Why bindfs cannot be used here, as a reason to skip; None when it can."""
    if shutil.which("bindfs") is None:
        return "needs bindfs"
    return missing_fuse()


@contextlib.contextmanager
def bindfs(source: Path | None = None, *options: str) -> Iterator[Mirror]:
    """The real program bindfs over ``source`` (default as above), with its command line ``options``.

    It runs in the foreground as a child that dies with this process.
    """
    real = namespace.scratch("source") if source is None else source
    point = namespace.scratch("bindfs")
    server = subprocess.Popen(
        ["bindfs", "-f", *options, real, point],
        stdin=subprocess.DEVNULL,
        preexec_fn=linux.die_with(os.getpid()),
    )
    try:
        _await_mount(point, server)
        yield Mirror(point, real, server.pid)
    except BaseException:
        mounting.detach(point)
        server.kill()
        raise
    else:
        _end(point, server)
    finally:
        server.wait()


def _end(point: Path, server: subprocess.Popen[bytes]) -> None:
    try:
        mounting.unmount(point)
        server.wait(_PATIENCE_MS / 1000)
    except BaseException:
        server.kill()
        raise


def _await_mount(point: Path, server: subprocess.Popen[bytes]) -> None:
    """Wait until ``point`` is mounted: the kernel tells of every change of the mount table."""
    watch = os.pidfd_open(server.pid)
    try:
        with Path("/proc/self/mountinfo").open() as table:
            changes = select.poll()
            changes.register(table, select.POLLPRI | select.POLLERR)
            changes.register(watch, select.POLLIN)
            while str(point) not in namespace.mount_points():
                happened = changes.poll(_PATIENCE_MS)
                if not happened or any(fd == watch for fd, _ in happened):
                    raise RuntimeError(f"{server.args!r} did not mount anything")
    finally:
        os.close(watch)
