"""Where the core suite is played: real mounts, the layers of an overlay, and kernels that lack something.

A ground gives a folder for each scenario, with :func:`scenarios.before` done, and is mounted once for all of them.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any

from attrs import define

from atomik._folder import filesystem as _filesystem
from atomik._system.kernel import EXCHANGE, NOREPLACE
from tests.filesystems.scenarios import SCENARIOS, before
from tests.support.kernels import Call, Faulty, installed
from tests.support.lab import mounts
from tests.support.state import in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path


@define(frozen=True)
class Ground:
    """One column of the table.

    ``about``: what it is.  ``open(names)``: a context manager that gives the folder of a scenario by its name.
    ``missing()``: why it cannot be had here, or None.  ``enter()``: how a child process confines itself before it works
    there; None where it need not.  ``quick``: played by CI.
    """

    name: str
    about: str
    open: Callable[[Collection[str]], contextlib.AbstractContextManager[Callable[[str], Path]]]
    missing: Callable[[], str | None]
    enter: Callable[[], None] | None = None
    quick: bool = False

    def inside(self, work: Callable[[], Any]) -> Any:
        """What `work` returns in a child that has entered the ground."""

        def confined() -> Any:
            forget_all()
            if self.enter is not None:
                self.enter()
            return work()

        return in_child(confined)


def _mounted(kind: str) -> Callable[[Collection[str]], Any]:
    @contextlib.contextmanager
    def open(names: Collection[str]) -> Iterator[Callable[[str], Path]]:
        with mounts.mounted(kind) as place:

            def folder(name: str) -> Path:
                before(place.folder / name)
                return place.folder / name

            yield folder

    return open


def _lower(kind: str) -> Callable[[Collection[str]], Any]:
    @contextlib.contextmanager
    def open(names: Collection[str]) -> Iterator[Callable[[str], Path]]:
        def prepare(lower: Path) -> None:
            for name in names:
                before(lower / "work" / name)

        with mounts.mounted(kind, prepare=prepare) as place:
            yield lambda name: place.folder / name

    return open


class Lacking(Faulty):
    """A kernel without something: ``lacks(call)`` is the errno that it gives, or None."""

    def __init__(self, lacks: Callable[[Call], int | None], among: str) -> None:
        super().__init__(lacks, among.split())


def no_flags(call: Call) -> int | None:
    """renameat2 as NFS has it: EINVAL for any flag."""
    return errno.EINVAL if call.args[4] & (NOREPLACE | EXCHANGE) else None


def no_exchange(call: Call) -> int | None:
    """renameat2 as smb, ext2 or exfat have it: NOREPLACE only."""
    return errno.EINVAL if call.args[4] & EXCHANGE else None


def no_links(call: Call) -> int | None:
    """link(2) as exfat has it."""
    return errno.EPERM


def no_tmpfile(call: Call) -> int | None:
    """O_TMPFILE as NFS has it."""
    return errno.EOPNOTSUPP


def _without(*lacks: tuple[str, Callable[[Call], int | None]]) -> Callable[[Collection[str]], Any]:
    @contextlib.contextmanager
    def open(names: Collection[str]) -> Iterator[Callable[[str], Path]]:
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(mounts.mounted("tmpfs"))
            stack.enter_context(forgetful())
            for among, lack in lacks:
                stack.enter_context(installed(Lacking(lack, among)))

            def folder(name: str) -> Path:
                before(place.folder / name)
                return place.folder / name

            yield folder

    return open


def forget_all() -> None:
    """Nothing is known of any filesystem."""
    _filesystem.forget()


@contextlib.contextmanager
def forgetful() -> Iterator[None]:
    """What is learned of filesystems in the block is forgotten at its end, because its kernel was not the real one."""
    _filesystem.forget()
    try:
        yield
    finally:
        _filesystem.forget()


_RENAME, _LINK, _TMPFILE = ("rename", no_flags), ("link link_fd", no_links), ("open_tmpfile", no_tmpfile)


def _real(name: str, about: str) -> Ground:
    return Ground(name, about, _mounted(name), lambda: mounts.missing(name))


def _tmpfs_without(name: str, about: str, *lacks: tuple[str, Callable[[Call], int | None]]) -> Ground:
    return Ground(name, about, _without(*lacks), lambda: mounts.missing("tmpfs"))


GROUNDS: Mapping[str, Ground] = {
    ground.name: ground
    for ground in (
        _real("ext4", "ext4"),
        _real("xfs", "xfs"),
        _real("btrfs", "btrfs"),
        _real("btrfs-subvolume", "inside a btrfs subvolume"),
        _real("tmpfs", "tmpfs"),
        _real("vfat", "vfat"),
        _real("overlay-redirect-on", "overlay, redirect_dir=on"),
        _real("overlay-redirect-off", "overlay, redirect_dir=off"),
        Ground(
            "overlay-lower-redirect-on", "overlay, redirect_dir=on, lower layer", _lower("overlay-redirect-on"),
            lambda: mounts.missing("overlay-redirect-on"),
        ),
        Ground(
            "overlay-lower-redirect-off", "overlay, redirect_dir=off, lower layer", _lower("overlay-redirect-off"),
            lambda: mounts.missing("overlay-redirect-off"),
        ),
        _real("bind", "inside a bind mount"),
        _real("fuse-honours", "FUSE server that honours the flags"),
        _real("fuse-rejects", "FUSE server that rejects the flags"),
        _real("fuse-ignores", "FUSE server that ignores the flags"),
        _real("bindfs", "bindfs"),
        _tmpfs_without("no-flags", "no flags of renameat2", _RENAME),
        _tmpfs_without("no-exchange", "NOREPLACE, but no EXCHANGE", ("rename", no_exchange)),
        _tmpfs_without("no-tmpfile", "no O_TMPFILE", _TMPFILE),
        _tmpfs_without("no-links", "no hard links, no O_TMPFILE", _LINK, _TMPFILE),
        _tmpfs_without("no-names", "O_TMPFILE, but no hard links", _LINK),
        _tmpfs_without("nothing", "no flags, no hard links, no O_TMPFILE", _RENAME, _LINK, _TMPFILE),
    )
}  # fmt: skip
ALL_NAMES = (*SCENARIOS, "probe")
