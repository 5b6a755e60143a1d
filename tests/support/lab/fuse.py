"""A FUSE filesystem without libfuse: requests are read from /dev/fuse and answered by plain methods.

    class Hello(FileSystem):
        def lookup(self, request): ...

    with FuseMount(Hello()) as mount:
        os.listdir(mount.point)

The server is a forked child with a mount namespace of its own, in which it keeps
none of the lab's mounts (see :func:`tests.support.lab.namespace.drop_inherited_mounts`).
It dies with the thread that started it, which takes the mount down: whoever
still uses it then gets ENOTCONN. It ignores SIGINT, so that Ctrl-C leaves the
cleanup to its parent.

What can go wrong: a parent that waits for a lock held by its own server (the
server must not touch its own mount); a server that raises something other than
OSError answers EIO, prints the traceback and makes :meth:`FuseMount.close` raise.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NoReturn

from tests.support.lab import fuse_wire, linux, mounting, namespace
from tests.support.lab.fuse_wire import Opcode, Request

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_PATIENCE_MS = 60_000
_UNANSWERED = (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT)

Handler = Callable[[Request], bytes | None]


class FuseServerError(RuntimeError):
    """The server process failed: its traceback is on stderr."""


def missing_fuse() -> str | None:
    """Why FUSE filesystems cannot be served here, as a reason to skip; None when they can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "needs /dev/fuse"
    return namespace.missing_root()


class FileSystem:
    """What a server answers. A subclass has one method for each request it serves, named like the opcode.

    A method takes the :class:`Request` and returns the bytes of the reply's body
    (None for an empty one), or raises OSError, whose errno becomes the answer.
    What has no method is answered ENOSYS, which the kernel takes for "not
    supported" and, for most requests, remembers.
    """

    def descriptors(self) -> Iterable[int]:
        """Open files that the server needs; all others are closed in its process."""
        return ()

    def destroy(self, request: Request) -> bytes | None:
        """The filesystem was unmounted."""


class FuseMount:
    """A served filesystem at ``point``, until :meth:`close`. A context manager.

    ``options`` are mount options such as "default_permissions,allow_other".
    Without allow_other, root alone can enter.
    """

    def __init__(self, filesystem: FileSystem, *, name: str = "lab", options: str = "") -> None:
        namespace.enter()
        self.point: Path = namespace.scratch(f"fuse-{name}")
        self._owner = os.getpid()
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            basic = f"fd={device},rootmode=40000,user_id=0,group_id=0"
            linux.mount(name, self.point, f"fuse.{name}", 0, ",".join(filter(None, (basic, options))))
            try:
                self._pid = os.fork()
            except BaseException:
                mounting.detach(self.point)
                raise
            if self._pid == 0:
                _server_process(filesystem, device, self._owner)
        finally:
            os.close(device)
        self._closed = False

    @property
    def server_pid(self) -> int:
        """The process that answers."""
        return self._pid

    def close(self) -> None:
        """Unmount and end the server; a second call, or one in a forked child, does nothing.

        Raises StillInUseError if files are open in it, FuseServerError if the
        server failed. Mount and server are gone in either case.
        """
        if self._closed or self._owner != os.getpid():
            return
        self._closed = True
        try:
            mounting.unmount(self.point)
        except BaseException:
            # Anyone who has files open must not hang: the connection ends with the server.
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            raise
        self._reap()

    def _reap(self) -> None:
        """Wait for the server, which ends when it is unmounted, and kill it if it does not."""
        watch = os.pidfd_open(self._pid)
        try:
            ended = select.poll()
            ended.register(watch, select.POLLIN)
            if not ended.poll(_PATIENCE_MS):
                os.kill(self._pid, signal.SIGKILL)
        finally:
            os.close(watch)
            _, status = os.waitpid(self._pid, 0)
        if status:
            raise FuseServerError(f"the FUSE server of {self.point} ended with status {status}")

    def __enter__(self) -> FuseMount:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            with contextlib.suppress(mounting.StillInUseError, FuseServerError):
                self.close()


def _server_process(filesystem: FileSystem, device: int, parent: int) -> NoReturn:
    """The life of the forked child; it never returns into the program that forked it."""
    failed = True
    try:
        linux.die_with(parent)()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gc.freeze()  # the parent's objects are not ours to finalise
        _close_all_but({0, 1, 2, device, *filesystem.descriptors()})
        # A test runner may have put its own, now closed, file in this place.
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        namespace.drop_inherited_mounts()
        os.chdir("/")
        os.umask(0)  # the kernel has applied the caller's
        failed = _serve(filesystem, device)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1 if failed else 0)


def _close_all_but(kept: set[int]) -> None:
    """Close what was inherited: an open file would keep its mount busy, a pipe would never end."""
    edges = [-1, *sorted(kept), os.sysconf("SC_OPEN_MAX")]
    for low, high in itertools.pairwise(edges):
        if low + 1 < high:  # for an empty range, closerange may close what is at its edges
            os.closerange(low + 1, high)


def _serve(filesystem: FileSystem, device: int) -> bool:
    """Answer until unmounted. Returns whether a method failed with anything but OSError."""
    handlers = _handlers(filesystem)
    buffer = bytearray(fuse_wire.BUFFER_SIZE)
    view = memoryview(buffer)
    failed = False
    while True:
        try:
            size = os.readv(device, [buffer])
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return failed
            if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):  # the asker was interrupted
                continue
            raise
        request = fuse_wire.parse(view[:size])
        code, body = 0, b""
        try:
            body = handlers.get(request.opcode, _unsupported)(request) or b""
        except OSError as error:
            code = error.errno or errno.EIO
        except Exception:
            traceback.print_exc()
            failed, code = True, errno.EIO
        if request.opcode not in _UNANSWERED:
            _reply(device, request.unique, code, body)


def _handlers(filesystem: FileSystem) -> dict[int, Handler]:
    found: dict[int, Handler] = {Opcode.INIT: _init}
    for opcode in Opcode:
        method = getattr(filesystem, opcode.name.lower(), None)
        if method is not None:
            found[opcode] = method
    return found


def _init(request: Request) -> bytes:
    _, minor, max_readahead = request.unpack(fuse_wire.INIT_IN)
    if minor < fuse_wire.MINOR:
        raise OSError(errno.EPROTO, "kernel too old for this FUSE protocol")
    return fuse_wire.pack_init(max_readahead)


def _unsupported(_: Request) -> bytes:
    raise OSError(errno.ENOSYS, "not served")


def _reply(device: int, unique: int, code: int, body: bytes) -> None:
    if code:
        body = b""
    header = fuse_wire.OUT_HEADER.pack(fuse_wire.OUT_HEADER.size + len(body), -code, unique)
    try:
        os.writev(device, [header, body])
    except OSError as error:
        # ENOENT: the asker was killed in the meantime. ENODEV: unmounted; the next read says so too.
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
