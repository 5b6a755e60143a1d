"""A mount namespace in which one folder is seen instead of another, or through a layer over it, entered by a child
between fork and exec.

Calling sequence::

    view = View(parent_fd, ".atomik-<txid>/<slot>", "site", shown, hidden, cwd)
    with Entrance(view) as entrance:             # in the parent; a socket for the child's answer
        entrance.try_it()                        # optional: in a child of its own, with no program
        Popen(…, preexec_fn=entrance.enter)      # in the child
        entrance.answer()                        # what failed, if anything
        entrance.members()                       # the processes in the namespace

The child reaches both folders from the parent folder, which is held open, and compares their identities with those that are
known: a path that another process changed leads to a refusal, never to another folder.  All mounts are made by descriptor.

Root creates only a mount namespace.  Everybody else also gets a user namespace, in which the user and group are mapped to
themselves; exec(2) then drops the capabilities that came with it.  User 0 of a container, which may not create a mount
namespace, keeps those that it had: a new user namespace would let its programs gain all.

`enter` runs in a forked child, possibly of a program with threads, so it imports nothing and takes no lock.

The child sends its namespace to the parent, which holds it open: otherwise the kernel could give its number to another
namespace at once, whose processes would be taken for the program's.
"""

from __future__ import annotations

import _socket  # `socket` itself takes longer to load than all of this
import contextlib
import errno
import os
import signal
import sys

from atomik._typing import NamedTuple

from . import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW

#: A folder is not the one that was expected; no errno of a call has this meaning here.
_SWAPPED = errno.ESTALE


class Overlay(NamedTuple):
    """How a layer is laid over a folder: ``work``, an empty folder beside the layer, by a path like the layer's; ``options``
    of mount(2)."""

    work: str
    options: str


class View(NamedTuple):
    """What a child will see.

    ``parent_fd``: the folder that holds both.  ``source`` (a path below it) is shown instead of ``target``, another;
    with ``overlay`` it is the upper layer, and the target shows through.  ``shown``, ``hidden``: their (st_dev, st_ino).
    ``cwd``: the absolute path of the working folder; "" is the folder that holds both.
    """

    parent_fd: int
    source: str
    target: str
    shown: tuple[int, int]
    hidden: tuple[int, int]
    cwd: str
    overlay: Overlay | None = None


class Answer(NamedTuple):
    """What a child said: the step that failed and its errno, or ``""`` and 0."""

    failed: str
    errno: int


class Entrance:
    """The way of one child into a namespace with a `View`."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._step = ""
        kernel.libc()  # nothing is imported in the child
        self._namespace = -1
        self._answer: Answer | None = None
        self._ours, self._childs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the socket and of the namespace; may be repeated."""
        self.answer()  # the namespace may be on its way
        self._ours.close()
        self._childs.close()
        namespace, self._namespace = self._namespace, -1
        if namespace >= 0:
            os.close(namespace)

    # --- in the child ------------------------------------------------------------------------------------------------
    def enter(self) -> None:
        """Enter the namespace, and report to the parent."""
        try:
            namespace = self._enter()
        except OSError as exc:
            self._childs.send(f"{self._step} {exc.errno or 0}".encode())
            raise
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, namespace.to_bytes(4, sys.byteorder))
        self._childs.sendmsg([b"- 0"], [rights])
        os.close(namespace)

    def _enter(self) -> int:
        """Returns a descriptor of the mount namespace."""
        view, port = self.view, kernel.port
        self._step = "folder"
        port.fchdir(view.parent_fd)  # unshare takes the working folder along, and no other descriptor
        self._unshare()
        self._step = "private"
        port.make_mounts_private()
        self._step = "folder"
        source = _opened(view.source, view.shown)
        target = _opened(view.target, view.hidden)
        if view.overlay is None:
            self._attach(source, target)
        else:
            self._lay_over(source, target, view.overlay)
        port.close(source)
        port.close(target)
        self._step = "cwd"
        if view.cwd:
            port.chdir(view.cwd)
        self._step = "proc"
        return port.open("/proc/self/ns/mnt", os.O_RDONLY)

    def _attach(self, source: int, target: int) -> None:
        self._step = "open_tree"
        tree = kernel.port.copy_mount(source)
        self._step = "move_mount"
        kernel.port.attach_mount(tree, target)
        kernel.port.close(tree)

    def _lay_over(self, upper: int, lower: int, overlay: Overlay) -> None:
        work = kernel.port.open(overlay.work, _FOLDER)
        self._step = "overlay"
        kernel.port.mount_overlay(lower, upper, work, overlay.options)
        kernel.port.close(work)

    def _unshare(self) -> None:
        user, group = os.geteuid(), os.getegid()
        self._step = "unshare"
        try:
            kernel.port.unshare(_CLONE_NEWNS)
        except OSError as exc:
            if kernel.errno_of(exc) != errno.EPERM:
                raise
        else:
            return
        had = kernel.port.bounding_set()
        self._step = "userns"
        kernel.port.unshare(_CLONE_NEWUSER | _CLONE_NEWNS)
        self._step = "map"
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
        kernel.port.bound(had)

    # --- in the parent -----------------------------------------------------------------------------------------------
    def answer(self) -> Answer | None:
        """What the child said; None when it said nothing, because it was killed or has not begun."""
        if self._answer is None and self._ours.fileno() >= 0:
            flags = _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
            try:
                said, rights, _, _ = self._ours.recvmsg(256, _socket.CMSG_LEN(4), flags)  # recv_fds ignores the flags
            except BlockingIOError as exc:
                if kernel.errno_of(exc) is None:
                    raise
                return None
            step, number = said.split()
            self._answer = Answer("" if step == b"-" else step.decode(), int(number))
            self._namespace = int.from_bytes(rights[0][2][:4], sys.byteorder) if rights else -1
        return self._answer

    def members(self, parent: int | None = None) -> list[Process]:
        """The living processes in the namespace, and the children of `parent`.

        A process that may not be asked (it changed its credentials or made itself undumpable) is only found as a child.
        """
        self.answer()
        if self._namespace < 0:
            return []
        key = _key(os.fstat(self._namespace))
        pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
        return [process for pid in pids if (process := _member(pid, key, parent))]

    def send(self, process: Process, number: int, parent: int | None = None) -> None:
        """Send a signal to a process in the namespace, and to no other that has its id by now."""
        try:
            fd = os.pidfd_open(process.pid)
        except OSError as exc:
            if kernel.errno_of(exc) is None:
                raise
            return  # it has ended
        try:
            if self._namespace >= 0 and _member(process.pid, _key(os.fstat(self._namespace)), parent):
                signal.pidfd_send_signal(fd, number)
        except OSError as exc:
            if kernel.errno_of(exc) not in (errno.ESRCH, errno.EPERM):  # EPERM: it became another user's
                raise
        finally:
            os.close(fd)

    def try_it(self, action: Callable[[], None] = lambda: None) -> Answer | None:
        """Enter in a child that runs no program; it calls `action`, and what that raises is not reported."""
        child = os.fork()
        if child == 0:
            try:
                self.enter()
                action()
            finally:
                os._exit(0)  # what happened was reported, or nothing can be
        try:
            try:
                os.waitpid(child, 0)
            except ChildProcessError as exc:  # SIGCHLD is ignored: the kernel reaped it
                if kernel.errno_of(exc) is None:
                    raise
        except BaseException:
            # The exception that arrived counts, not a second one; the child may have ended before.
            for end in (lambda: os.kill(child, signal.SIGKILL), lambda: os.waitpid(child, 0)):
                with contextlib.suppress(OSError):
                    end()
            raise
        return self.answer()


def _opened(path: str, key: tuple[int, int]) -> int:
    fd = kernel.port.open(path, _FOLDER)
    found = kernel.port.fstat(fd)
    if _key(found) != key:
        raise OSError(_SWAPPED, os.strerror(_SWAPPED), path)
    return fd


def _write(path: str, text: str) -> None:
    fd = kernel.port.open(path, os.O_WRONLY)
    try:
        kernel.port.write(fd, text.encode())
    finally:
        kernel.port.close(fd)


# --- who is in it ----------------------------------------------------------------------------------------------------
class Process(NamedTuple):
    """A process that is alive."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.pid} ({self.name})"


def _key(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _member(pid: int, namespace: tuple[int, int], parent: int | None) -> Process | None:
    try:
        inside = _key(os.stat(f"/proc/{pid}/ns/mnt")) == namespace
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        inside = False
    if not inside and parent is None:
        return None
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            told = os.read(fd, 1024)
        finally:
            os.close(fd)
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return None  # it has ended
    name, _, rest = told.partition(b"(")[2].rpartition(b")")
    state, above = rest.split()[:2]
    if state in b"ZX" or not (inside or int(above) == parent):
        return None
    return Process(pid, name.decode(errors="replace"))
