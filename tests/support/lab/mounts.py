"""A fresh folder on any filesystem that the machine can mount.

    with mounted("ext4") as place:
        (place.folder / "x").write_text("on a real ext4")

:data:`FILESYSTEMS` names them all; :func:`missing` says why one cannot be had
here, in words fit for ``pytest.skip``. Everything is mounted in the process's
private namespace (see :mod:`tests.support.lab.namespace`) and let go at the end of the
block, also on KeyboardInterrupt, and by the kernel if the process is killed.

A block that leaves a file open in the mount ends with StillInUseError.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.lab import disks, images, linux, namespace, passthrough
from tests.support.lab.mounting import attached, read_only, remount, unmount
from tests.support.lab.passthrough import Mirror, Renames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = [
    "FILESYSTEMS",
    "Kind",
    "Mounted",
    "bind",
    "create_subvolume",
    "fill",
    "missing",
    "mounted",
    "overlay",
    "read_only",
    "remount",
    "second_mount",
    "unmount",
]

_SUBVOL_CREATE = 0x5000940E
_SMALLEST_STEP = 4096


@dataclass
class Mounted:
    """A mounted filesystem, good for the length of the ``with`` block that gave it."""

    kind: str
    """Its name in :data:`FILESYSTEMS`."""
    root: Path
    """The mount point: pass it to :func:`read_only` or :func:`remount`."""
    folder: Path
    """An empty folder inside, made for the test; its parent is on the same mount."""
    disk: disks.Disk | None = None
    """For ext4, xfs, btrfs and vfat: the image and device, with ``unmount()`` and ``mount()``."""
    lower: Path | None = None
    """For overlays: the lower folder. It must not be changed while mounted."""
    upper: Path | None = None
    """For overlays: the upper folder, the same rule."""
    source: Path | None = None
    """For bind mounts and FUSE pass-through: the folder that shows in ``folder`` too."""


@dataclass(frozen=True)
class Kind:
    """One way to get a mounted folder: ``open(**options)`` and ``missing()``."""

    open: Callable[..., AbstractContextManager[Mounted]] = field(repr=False)
    missing: Callable[[], str | None] = field(repr=False)


def missing(kind: str) -> str | None:
    """Why ``kind`` (a key of FILESYSTEMS) cannot be made on this machine, or None if it can."""
    return namespace.missing_root() or FILESYSTEMS[kind].missing()


def mounted(kind: str, **options: object) -> AbstractContextManager[Mounted]:
    """A context manager that mounts a fresh filesystem of ``kind`` and gives a :class:`Mounted`.

    Options by kind (all may be left out):

    - ext4, xfs, btrfs, btrfs-subvolume, vfat: ``size`` in bytes (ValueError if too
      small for mkfs), ``options`` for mount(8), such as "acl" or "data=journal".
    - tmpfs: ``size`` in bytes, ``options``.
    - overlay-redirect-on, overlay-redirect-off: ``prepare``, called with the lower
      folder before it is mounted, to make lower-layer objects *below the name*
      "work" (which is ``folder``); ``options``, such as "xino=off".
    - bind: ``source``, an existing folder.
    - fuse-honours, fuse-rejects, fuse-ignores, bindfs: ``source``, an existing
      folder (default: one on the scratch tmpfs).
    """
    return FILESYSTEMS[kind].open(**options)


@contextlib.contextmanager
def _disk(kind: str, size: int | None = None, options: str = "") -> Iterator[Mounted]:
    with disks.disk(kind, size=size, options=options) as disk:
        folder = disk.root / "work"
        folder.mkdir()
        yield Mounted(kind, disk.root, folder, disk=disk)


@contextlib.contextmanager
def _subvolume(size: int | None = None, options: str = "") -> Iterator[Mounted]:
    with disks.disk("btrfs", size=size, options=options) as disk:
        folder = disk.root / "work"
        create_subvolume(folder)
        yield Mounted("btrfs-subvolume", disk.root, folder, disk=disk)


@contextlib.contextmanager
def _tmpfs(size: int = 64 * images.MIB, options: str = "") -> Iterator[Mounted]:
    everything = ",".join(filter(None, (f"size={size}", options)))
    with attached("tmpfs", namespace.scratch("mnt"), "tmpfs", 0, everything) as root:
        folder = root / "work"
        folder.mkdir()
        yield Mounted("tmpfs", root, folder)


@contextlib.contextmanager
def overlay(
    *,
    redirect_dir: bool,
    prepare: Callable[[Path], object] | None = None,
    options: str = "",
    base: Path | None = None,
) -> Iterator[Mounted]:
    """An overlay of a fresh lower and upper folder, both inside ``base`` (default: the scratch tmpfs).

    ``prepare(lower)`` fills the lower layer; a folder "work" is always there, and
    is ``Mounted.folder``. With ``redirect_dir=False`` the kernel answers EXDEV to
    the rename of a lower folder.
    """
    home = namespace.scratch("overlay") if base is None else base
    lower, upper, work, root = (home / name for name in ("lower", "upper", "workdir", "merged"))
    for folder in (lower, upper, work, root, lower / "work"):
        folder.mkdir()
    if prepare is not None:
        prepare(lower)
    on = "on" if redirect_dir else "off"
    layers = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir={on}"
    with attached("overlay", root, "overlay", 0, ",".join(filter(None, (layers, options)))):
        yield Mounted(f"overlay-redirect-{on}", root, root / "work", lower=lower, upper=upper)


@contextlib.contextmanager
def bind(source: Path, target: Path) -> Iterator[Path]:
    """Show the file or folder ``source`` at ``target`` too, as a mount point of its own.

    ``target`` is made (empty file or folder) if it is not there, and stays
    afterwards. While bound, renaming ``target`` itself gives EBUSY.
    """
    namespace.enter()
    if not target.exists():
        if stat.S_ISDIR(source.stat().st_mode):
            target.mkdir()
        else:
            target.touch()
    with attached(source, target, "none", linux.MS_BIND):
        yield target


@contextlib.contextmanager
def _bind(source: Path | None = None) -> Iterator[Mounted]:
    origin = namespace.scratch("origin") if source is None else source
    with bind(origin, namespace.scratch("mnt")) as root:
        folder = root / "work"
        folder.mkdir()
        yield Mounted("bind", root, folder, source=origin / "work")


@contextlib.contextmanager
def second_mount(place: Mounted) -> Iterator[Path]:
    """Mount the same disk filesystem once more; gives the other path of ``place.folder``.

    st_dev is the same through both, yet a rename from one to the other is EXDEV.
    """
    if place.disk is None:
        raise ValueError(f"{place.kind} has no device to mount twice")
    with place.disk.mounted_again() as root:
        yield root / place.folder.relative_to(place.root)


def create_subvolume(path: Path) -> None:
    """Make the btrfs subvolume ``path``, without the btrfs program."""
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(parent, _SUBVOL_CREATE, disks.btrfs_argument(path.name))
    finally:
        os.close(parent)


def fill(place: Mounted, leave: int) -> Path:
    """Fill the filesystem so that about ``leave`` bytes can be written, and return the ballast file.

    Delete the ballast to undo. ``leave=0`` is a full disk. Measured by writing
    until ENOSPC, for statvfs also counts blocks that ext4, xfs and btrfs hold back.
    """
    ballast = place.root / ".ballast"
    with ballast.open("wb") as file:
        position, step = 0, 1 << 40
        while step >= _SMALLEST_STEP:
            try:
                os.posix_fallocate(file.fileno(), position, step)
                position += step
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EFBIG):
                    raise
                step //= 2
        file.truncate(max(0, position - leave))
        os.fsync(file.fileno())
    linux.sync_filesystem(place.root)
    return ballast


@contextlib.contextmanager
def _mirror(kind: str, opened: Callable[..., AbstractContextManager[Mirror]], **options: object) -> Iterator[Mounted]:
    with opened(**options) as mirror:
        folder = mirror.folder / "work"
        folder.mkdir(exist_ok=True)
        yield Mounted(kind, mirror.folder, folder, source=mirror.source / "work")


def _missing_overlay() -> str | None:
    return images.missing_in_kernel("overlay")


def _nothing_missing() -> None:
    return None


FILESYSTEMS: Mapping[str, Kind] = {
    **{
        name: Kind(functools.partial(_disk, name), functools.partial(disks.missing_disk, name))
        for name in ("ext4", "xfs", "btrfs", "vfat")
    },
    "btrfs-subvolume": Kind(_subvolume, functools.partial(disks.missing_disk, "btrfs")),
    "tmpfs": Kind(_tmpfs, _nothing_missing),
    "overlay-redirect-on": Kind(functools.partial(overlay, redirect_dir=True), _missing_overlay),
    "overlay-redirect-off": Kind(functools.partial(overlay, redirect_dir=False), _missing_overlay),
    "bind": Kind(_bind, _nothing_missing),
    **{
        f"fuse-{renames.value}": Kind(
            functools.partial(_mirror, f"fuse-{renames.value}", functools.partial(passthrough.passthrough, renames)),
            passthrough.missing_fuse,
        )
        for renames in Renames
    },
    "bindfs": Kind(functools.partial(_mirror, "bindfs", passthrough.bindfs), passthrough.missing_bindfs),
}
