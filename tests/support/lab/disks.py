"""A disk filesystem from an image file: loop device, mount, and mount again after a crash.

with disk("xfs") as one:
    (one.root / "x").write_text("kept")
    one.unmount()
    one.mount()          # the same image; the journal is replayed if needed
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.lab import images, linux, loops, mounting, namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORGET_DEVICE = 0x50009405
_FLUSH_BUFFERS = 0x1261  # BLKFLSBUF


def missing_disk(kind: str) -> str | None:
    """Why an ext4, xfs, btrfs or vfat image cannot be mounted here, or None."""
    return namespace.missing_root() or loops.missing_loop() or images.missing_format(kind)


@contextlib.contextmanager
def disk(kind: str, image: Path | None = None, *, size: int | None = None, options: str = "") -> Iterator[Disk]:
    """A mounted :class:`Disk` of ``kind``, on a fresh image of ``size`` bytes or on the ``image`` given.

    Raises OSError if it cannot be mounted (a damaged image gives EUCLEAN or EINVAL).
    A fresh image is removed at the end, one that was given is kept.
    """
    namespace.enter()
    path = images.fresh_image(kind, size) if image is None else image
    try:
        with loops.LoopDevice(path) as loop, device(kind, loop.path, options=options, image=path) as mounted:
            yield mounted
    finally:
        if image is None:
            path.unlink()


@contextlib.contextmanager
def device(kind: str, path: str, *, options: str = "", image: Path | None = None) -> Iterator[Disk]:
    """A mounted :class:`Disk` on the block device ``path``, which already holds a filesystem of ``kind``."""
    one = Disk(kind, path, options, image)
    one.mount()
    try:
        yield one
    except BaseException:
        mounting.detach(one.root)
        raise
    else:
        one.unmount()
    finally:
        _forget(kind, path)


class Disk:
    """A filesystem on a block device, mounted at ``root``; made by :func:`disk` and :func:`device`."""

    def __init__(self, kind: str, path: str, options: str, image: Path | None) -> None:
        self.kind = kind
        self.device = path
        self.image = image
        self.root = namespace.scratch(kind)
        self._mounted = False
        self._options = ",".join(filter(None, (images.FORMATS[kind].mount_options, options)))

    def mount(self) -> None:
        """Mount it (again) at ``root``, replaying the filesystem's journal."""
        linux.mount(self.device, self.root, self.kind, 0, self._options)
        self._mounted = True

    def unmount(self) -> None:
        """Unmount it; nothing happens if it is not mounted. StillInUseError when files are open in it."""
        if self._mounted:
            self._mounted = False
            mounting.unmount(self.root)
            _drop_cache(self.device)

    def remount(self) -> None:
        """Unmount and mount again: drops every cache, and gives a btrfs another st_dev."""
        self.unmount()
        self.mount()

    @contextlib.contextmanager
    def mounted_again(self) -> Iterator[Path]:
        """Have it mounted a second time elsewhere; gives that mount point."""
        point = namespace.scratch(f"{self.kind}-again")
        with mounting.attached(self.device, point, self.kind, 0, self._options):
            yield point


def _drop_cache(path: str) -> None:
    """Have the kernel forget what it caches of the device itself, which stays while somebody holds that open, as the owner of
    a loop device does: after a shutdown it may hold blocks that were never written, and no crash leaves any."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _FLUSH_BUFFERS, 0)
    finally:
        os.close(fd)


def _forget(kind: str, path: str) -> None:
    """Have btrfs forget the device: it would take an older image on another device for a stale copy of it."""
    if kind != "btrfs":
        return
    with contextlib.suppress(OSError), Path("/dev/btrfs-control").open("r+b", buffering=0) as control:
        fcntl.ioctl(control, _FORGET_DEVICE, btrfs_argument(path))


def btrfs_argument(name: str) -> bytearray:
    """A ``struct btrfs_ioctl_vol_args`` that names a device or a subvolume."""
    return bytearray(struct.pack("=q4088s", 0, os.fsencode(name)))
