"""A disk that remembers: every write, every flush and every mark, in the order in which they reached it.

    with recording("xfs") as tape:              # a fresh xfs on a recorded disk
        (tape.folder / "before").touch()
        tape.start()                            # everything so far is durable
        save(tape.folder / "x"); tape.mark("saved")
    for state in crash_states(tape.events, seed=7): ...

The disk is one file in a FUSE filesystem of our own (so nothing is lost between
the kernel and the log), with a loop device on it. The filesystem under test is
the kernel's real one.

A mark is logged when :meth:`Recorder.mark` is called: what a program had synced
before has been flushed before the mark, and marks of forked children go to the
same log. Writes are logged when the disk gets them, and a flush counts for every
write that is before it in the log.

What can go wrong: background writeback puts events between those of the workload;
two runs of one workload therefore give different logs. A log is what to keep for
replaying a finding (:func:`save_events`, :func:`load_events`), together with the label
of the state.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.lab import disks, fuse_wire, images, linux, loops, namespace
from tests.support.lab.fuse import FileSystem, FuseMount, missing_fuse
from tests.support.lab.fuse_wire import Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

_RECORD = struct.Struct("=B7xQQ")
_WRITE, _FLUSH, _MARK = 1, 2, 3
_DISK_NODE = 2
_DISK_NAME = b"disk"
_CACHE_SECONDS = 3600
_PATTERN_ROOM = 256
START = "lab: start"
"""The mark of :meth:`Recording.start`."""


@dataclass(frozen=True, slots=True)
class Write:
    """The disk got ``data`` at byte ``offset``."""

    offset: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Flush:
    """The disk was told to make everything before this durable, and did."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The workload said where it is."""

    text: str


Event = Write | Flush | Mark


def missing_recorder() -> str | None:
    """Why nothing can be recorded here, as a reason to skip, or None. See also ``disks.missing_disk``."""
    return missing_fuse() or loops.missing_loop()


class Recorder:
    """A recorded block device, ``path``, that starts with the content of the file ``image``.

    ``image`` is changed by what is written to the device. A context manager; the
    device must be unmounted before its end.
    """

    def __init__(self, image: Path) -> None:
        namespace.enter()
        with contextlib.ExitStack() as stack:
            content = _opened(stack, image, os.O_RDWR)
            self._log = namespace.scratch("log") / "events"
            # One descriptor for server and marks: O_APPEND keeps every record whole.
            self._log_fd = _opened(stack, self._log, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            self._failing = mmap.mmap(-1, _PATTERN_ROOM)
            served = _RecordedDisk(content, self._log_fd, self._failing)
            mount = stack.enter_context(FuseMount(served, name="recorder"))
            self._loop = stack.enter_context(loops.LoopDevice(mount.point / os.fsdecode(_DISK_NAME)))
            self._stack = stack.pop_all()

    @property
    def path(self) -> str:
        """The block device to mount."""
        return self._loop.path

    def mark(self, text: str) -> None:
        """Write ``text`` into the log, after everything that has reached the disk."""
        raw = text.encode()
        os.writev(self._log_fd, [_RECORD.pack(_MARK, len(raw), 0), raw])

    def events(self) -> list[Event]:
        """The log so far, oldest first."""
        return parse_log(self._log.read_bytes())

    @contextlib.contextmanager
    def failing_writes(self, prefix: bytes) -> Iterator[None]:
        """For the length of the block, answer EIO to every write whose data begins with ``prefix``.

        An empty prefix means every write. What failed is neither kept nor logged.
        Data is written from the page cache in whole blocks and merged requests,
        so let the file consist of nothing but the prefix, repeated.
        """
        if len(prefix) > _PATTERN_ROOM - 2:
            raise ValueError("the prefix is too long")
        self._failing[1 : 2 + len(prefix)] = bytes([len(prefix)]) + prefix
        self._failing[0] = 1
        try:
            yield
        finally:
            self._failing[0] = 0

    def close(self) -> None:
        """Let go of device, server and files; the log is gone, too."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.unlink(missing_ok=True)
        self._stack.__exit__(kind, error, trace)


class _RecordedDisk(FileSystem):
    """The server: a folder with the one file ``disk``, whose writes and fsyncs are the log."""

    def __init__(self, content: int, log: int, failing: mmap.mmap) -> None:
        self._content = content
        self._log = log
        self._failing = failing
        self._size = os.fstat(content).st_size

    def descriptors(self) -> Iterable[int]:
        return self._content, self._log

    def lookup(self, request: Request) -> bytes:
        if request.name() != _DISK_NAME:
            raise OSError(errno.ENOENT, "there is only the disk")
        return fuse_wire.pack_entry(_DISK_NODE, self._attr(_DISK_NODE), _CACHE_SECONDS)

    def getattr(self, request: Request) -> bytes:
        return fuse_wire.ATTR_OUT.pack(_CACHE_SECONDS, 0, 0) + self._attr(request.node)

    def setattr(self, request: Request) -> bytes:
        return self.getattr(request)  # the loop driver only touches times

    def open(self, request: Request) -> bytes:
        # Direct: no page cache between the block device and the log.
        return fuse_wire.OPEN_OUT.pack(0, fuse_wire.FOPEN_DIRECT_IO)

    def read(self, request: Request) -> bytes:
        _, offset, size = request.unpack(fuse_wire.READ_IN)
        return os.pread(self._content, size, offset)

    def write(self, request: Request) -> bytes:
        _, offset, size = request.unpack(fuse_wire.WRITE_IN)
        data = request.rest(fuse_wire.WRITE_IN)[:size]
        if self._failing[0]:
            self._fail_if_asked(data)
        os.writev(self._log, [_RECORD.pack(_WRITE, size, offset), data])
        os.pwrite(self._content, data, offset)
        return fuse_wire.WRITE_OUT.pack(size)

    def fsync(self, request: Request) -> None:
        os.write(self._log, _RECORD.pack(_FLUSH, 0, 0))

    def flush(self, request: Request) -> None:
        """A descriptor was closed: nothing to do with the disk's flush."""

    def release(self, request: Request) -> None:
        """Nothing is held for an open file."""

    def fallocate(self, request: Request) -> None:
        # Discards and zeroing are refused: the kernel then writes zeros where it needs them.
        raise OSError(errno.EOPNOTSUPP, "only plain writes")

    def _fail_if_asked(self, data: memoryview) -> None:
        length = self._failing[1]
        if data[:length] == self._failing[2 : 2 + length]:
            raise OSError(errno.EIO, "asked to fail")

    def _attr(self, node: int) -> bytes:
        mode, size = (stat.S_IFREG | 0o600, self._size) if node == _DISK_NODE else (stat.S_IFDIR | 0o755, 0)
        return fuse_wire.ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


class Recording:
    """A mounted filesystem on a recorded disk; made by :func:`recording`."""

    def __init__(self, kind: str, recorder: Recorder, disk: disks.Disk, pristine: Path) -> None:
        self.kind = kind
        self.recorder = recorder
        self.disk = disk
        self.pristine = pristine
        """The image before the first event."""
        self.folder = disk.root / "work"
        self.events: list[Event] = []
        """All events, from the mount on; filled when the block ends."""

    def start(self) -> None:
        """Make everything so far durable, and let the crash states begin here."""
        linux.sync_filesystem(self.disk.root)
        self.recorder.mark(START)

    def mark(self, text: str) -> None:
        """See :meth:`Recorder.mark`."""
        self.recorder.mark(text)


@contextlib.contextmanager
def recording(
    kind: str, *, size: int | None = None, options: str = "", image: Path | None = None
) -> Iterator[Recording]:
    """A filesystem of ``kind`` (ext4, xfs, btrfs) on a recorded disk; ``folder`` is "work" on it.

    It is fresh and the folder empty, unless ``image`` is given: then it starts as
    that disk (a crash state, to record its recovery), whose file is only read.

    The recording ends with the block, before the unmount: the last crash states
    are those of a machine that lost power right then. ``recording.events`` and
    ``recording.pristine`` are there afterwards, as long as someone holds the recording.
    """
    pristine = images.fresh_image(kind, size) if image is None else image
    live = namespace.scratch("live") / f"{kind}.img"
    images.copy_sparse(pristine, live)
    try:
        with Recorder(live) as recorder, disks.device(kind, recorder.path, options=options) as disk:
            tape = Recording(kind, recorder, disk, pristine)
            if image is None:
                namespace.remove_with(tape, pristine.parent)
            tape.folder.mkdir(exist_ok=True)
            yield tape
            tape.events = recorder.events()
    finally:
        live.unlink()


def parse_log(raw: bytes) -> list[Event]:
    """The events of a log; their data are views into ``raw``."""
    view, position = memoryview(raw), 0
    events: list[Event] = []
    while position < len(view):
        kind, length, offset = _RECORD.unpack_from(view, position)
        position += _RECORD.size
        if kind == _FLUSH:
            events.append(Flush())
            continue
        data = view[position : position + length]
        position += length
        events.append(Write(offset, data) if kind == _WRITE else Mark(bytes(data).decode()))
    return events


def save_events(events: Iterable[Event], path: Path) -> None:
    """Keep a log in a file, to replay a finding another day."""
    with path.open("wb") as file:
        for event in events:
            match event:
                case Write(offset, data):
                    file.write(_RECORD.pack(_WRITE, len(data), offset))
                    file.write(data)
                case Flush():
                    file.write(_RECORD.pack(_FLUSH, 0, 0))
                case Mark(text):
                    raw = text.encode()
                    file.write(_RECORD.pack(_MARK, len(raw), 0) + raw)


def load_events(path: Path) -> list[Event]:
    """The log that :func:`save_events` kept."""
    return parse_log(path.read_bytes())


def _opened(stack: contextlib.ExitStack, path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, fd)
    return fd
