"""Where to measure: real filesystems on loop devices whose image is on the disk, and tmpfs."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.lab import disks, images, mounts, namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("ext4", "xfs", "btrfs", "tmpfs")


@contextlib.contextmanager
def place(kind: str, size: int) -> Iterator[Path]:
    """A fresh folder on `kind`; without root, a temporary folder whatever it is on."""
    if namespace.missing_root() is not None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    elif kind == "tmpfs":
        with mounts.mounted(kind, size=size) as mounted:
            yield mounted.folder
    else:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as home:
            fresh = images.fresh_image(kind, size)
            image = Path(home) / "disk.img"
            images.copy_sparse(fresh, image)
            fresh.unlink()
            with disks.disk(kind, image) as disk:
                folder = disk.root / "work"
                folder.mkdir()
                yield folder


def kinds() -> list[str]:
    """The filesystems that can be made here."""
    if namespace.missing_root() is not None:
        return ["here"]
    return [kind for kind in KINDS if mounts.missing(kind) is None]
