"""Filesystem images: made once for each kind and size, then copied without their holes.

An image is a sparse file on the scratch disk, so a 320 MiB xfs costs about a
megabyte of memory and a millisecond to copy.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.lab import linux, namespace
from tests.support.lab.linux import StrPath

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 1 << 20
_BLOCK = 4096


@dataclass(frozen=True)
class Format:
    """How one kind of disk filesystem is made and mounted."""

    name: str
    mkfs: tuple[str, ...]
    size: int
    """Bytes of an image when nobody asks for more: the smallest that is comfortable."""
    smallest: int
    """Bytes below which mkfs or the kernel refuses."""
    mount_options: str = ""
    copies: bool = True
    """Whether copies of one image can be mounted beside each other."""


FORMATS: Mapping[str, Format] = {
    fmt.name: fmt
    for fmt in (
        # Eager inode tables: the lazy thread would write to the disk at moments of its own.
        Format(
            "ext4",
            ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"),
            64 * MIB,
            2 * MIB,
        ),
        # Images are copies of one another, and xfs refuses a second filesystem of the same UUID.
        Format("xfs", ("mkfs.xfs", "-q", "-f", "-K"), 320 * MIB, 300 * MIB, "nouuid"),
        # Before Linux 6.7, a copy of a mounted btrfs is taken for the mounted one itself.
        Format("btrfs", ("mkfs.btrfs", "-q", "-f", "-K"), 128 * MIB, 110 * MIB, copies=False),
        Format("vfat", ("mkfs.vfat",), 16 * MIB, 1 * MIB),
    )
}


def missing_format(name: str) -> str | None:
    """Why images of this kind cannot be made and mounted here (tool or kernel), or None."""
    tool = FORMATS[name].mkfs[0]
    if shutil.which(tool) is None:
        return f"needs {tool}"
    return missing_in_kernel(name)


@functools.cache
def missing_in_kernel(fstype: str) -> str | None:
    """Why this kernel cannot mount ``fstype``, or None; loads the module if there is one. Needs root."""
    if fstype in Path("/proc/filesystems").read_text().split():
        return None
    try:
        linux.mount("none", namespace.scratch("probe"), fstype)
    except OSError as error:
        # ENODEV is the answer for an unknown type, before the (absent) device is looked at.
        if error.errno == errno.ENODEV:
            return f"needs a kernel with {fstype}"
    return None


def fresh_image(name: str, size: int | None = None) -> Path:
    """A new image file of this kind on the scratch disk, empty and ready to be mounted.

    Raises ValueError for a size that is too small for the filesystem.
    """
    fmt = FORMATS[name]
    size = fmt.size if size is None else size
    if size < fmt.smallest:
        raise ValueError(f"{name} needs {fmt.smallest} bytes, not {size}")
    image = namespace.scratch("image") / f"{name}.img"
    if fmt.copies:
        copy_sparse(_template(fmt, size), image)
    else:
        _make(fmt, size, image)
    return image


@functools.cache
def _template(fmt: Format, size: int) -> Path:
    folder = namespace.scratch("template")
    raw, image = folder / "raw.img", folder / f"{fmt.name}.img"
    _make(fmt, size, raw)
    _copy_without_zeros(raw, image)
    raw.unlink()
    return image


def _make(fmt: Format, size: int, image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([*fmt.mkfs, image], check=True, capture_output=True)


def copy_sparse(source: StrPath, target: StrPath) -> None:
    """Copy a file over ``target``, holes left holes; whatever ``target`` held before is gone."""
    with Path(source).open("rb") as reading, Path(target).open("wb") as writing:
        size = os.fstat(reading.fileno()).st_size
        writing.truncate(size)
        for start, end in extents(reading.fileno()):
            _copy_range(reading.fileno(), writing.fileno(), start, end)


def extents(fd: int) -> list[tuple[int, int]]:
    """The (start, end) byte ranges of an open file that hold data, holes left out."""
    size, end, found = os.fstat(fd).st_size, 0, []
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole remains
            break
        end = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, end))
    return found


def _copy_range(reading: int, writing: int, start: int, end: int) -> None:
    while start < end:
        data = os.pread(reading, min(end - start, MIB), start)
        start += os.pwrite(writing, data, start)


def _copy_without_zeros(source: Path, target: Path) -> None:
    """Like :func:`copy_sparse`, with every block of zeros made a hole: mkfs.xfs writes 64 MiB of them."""
    zeros = bytes(_BLOCK)
    with source.open("rb") as reading, target.open("wb") as writing:
        writing.truncate(os.fstat(reading.fileno()).st_size)
        for start, end in extents(reading.fileno()):
            for offset in range(start, end, _BLOCK):
                block = os.pread(reading.fileno(), _BLOCK, offset)
                if block != zeros[: len(block)]:
                    os.pwrite(writing.fileno(), block, offset)
