"""A program sees a folder through an overlay, which collects its changes: ``run_in(changes_only=True)``.

The changes become a transaction when the program has ended (`_staging.layer`).  Before that it is tried whether an overlay
works where the folder is, and records changes as they are read here.
"""

from __future__ import annotations

import errno
import os
import stat

from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._staging.layer import StagedLayer
from atomik._system import kernel
from atomik._system.namespace import Answer, Entrance, Overlay, View
from atomik._tree.layer import TRUSTED, USER

from .run_in import Private, not_entered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from atomik._tree.changes import Change

    from .transaction import Transaction

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

#: What overlayfs is asked for: to write renamed folders down, and which names are one file (index); both for root alone …
_FOR_ROOT, _FOR_USERS = "redirect_dir=on", "userxattr"
#: … and not to wait for the disk when it is unmounted, because the commit does that (Linux 5.10).
_OVERLAYS = tuple(
    f"{marks},index=on,metacopy=off{more}" for marks in (_FOR_ROOT, _FOR_USERS) for more in (",volatile", "")
)


class PrivateLayer(Private):
    """A layer over a folder, in which the program's changes are gathered (overlayfs)."""

    def _prepare(self, tx: Transaction, cwd: str, *, allow_gap: bool) -> View:  # noqa: ARG002  for folders, which are exchanged where this works
        self._layer, options = self._begun(tx, self.path)
        layer = self._layer
        self.slot = Place(layer.private, "upper")
        place, below = layer.place, os.path.join(os.path.basename(layer.slot.directory.path), layer.slot.name)
        return View(
            place.fd, f"{below}/upper", place.name, layer.layer.upper.key, layer.folder.key, cwd,
            Overlay(f"{below}/work", options),
        )  # fmt: skip

    @staticmethod
    def _begun(tx: Transaction, path: str) -> tuple[StagedLayer, str]:
        """A layer over the folder, and the options of the overlay that it takes."""
        layer = StagedLayer(tx._intake, path)
        try:
            options = overlay_options(layer.place.directory, layer.private, path)
            layer.begin(USER if "userxattr" in options.split(",") else TRUSTED)
        except BaseException:
            layer.close()
            raise
        return layer, options

    @classmethod
    def _try(cls, tx: Transaction, path: str) -> None:
        cls._begun(tx, path)[0].close()

    def __exit__(self, *what: Any) -> None:  # noqa: PYI036
        try:
            super().__exit__(*what)
        finally:
            self._layer.close()

    def changes(self) -> list[Change]:
        self._layer.read()
        return self._layer.listing()

    def stage(self) -> None:
        self._layer.read()
        with kernel.typed("cannot publish what the program changed", self.path):
            self._layer.stage(overwrite_changes=self._overwrite_changes)

    def published(self) -> None:
        self._layer.give_times()

    def keep(self) -> None:
        if self._kept is not None:
            self._layer.complete("", "")
        super().keep()


def overlay_options(parent: Directory, private: Directory, path: str) -> str:
    """Try in a child of our own, with scratch folders in `private`, a folder below `parent`, whether an overlay works here:
    the options that it takes.  Raises `NamespaceError`."""
    below = os.path.relpath(private.path, parent.path)
    answer: Answer | None = None
    for number, options in enumerate(_OVERLAYS):
        if _FOR_ROOT in options and os.geteuid():
            continue
        answer = _try_overlay(parent, private, f"{below}/try{number}", options)
        if answer is not None and not answer.failed:
            return options
    raise not_entered(answer, path, "/")


def _try_overlay(parent: Directory, private: Directory, place: str, options: str) -> Answer | None:
    """Lay an overlay over a scratch folder, change what is in there, and see how that was written down."""
    name = os.path.basename(place)
    kernel.port.mkdir(name, 0o700, private.fd)
    with Place(private, name).open() as scratch:
        for each in ("lower", "upper", "work", "lower/gone", "lower/new", "lower/kept"):
            kernel.port.mkdir(each, 0o700, scratch.fd)
        kernel.port.close(kernel.port.create("lower/file", os.O_WRONLY, 0o600, scratch.fd))
        kernel.port.link("lower/file", scratch.fd, "lower/kept/file", scratch.fd)
        upper, lower = (kernel.port.lstat(each, scratch.fd) for each in ("upper", "lower"))
        view = View(
            parent.fd, f"{place}/upper", f"{place}/lower", (upper.st_dev, upper.st_ino), (lower.st_dev, lower.st_ino), "",
            Overlay(f"{place}/work", options),
        )  # fmt: skip

        def change() -> None:
            kernel.port.rmdir(f"{place}/lower/gone", None)
            kernel.port.rmdir(f"{place}/lower/new", None)
            kernel.port.mkdir(f"{place}/lower/new", 0o700, None)
            kernel.port.mkdir(f"{place}/lower/kept/new", 0o700, None)
            fd = kernel.port.open(f"{place}/lower/file", os.O_WRONLY)
            kernel.port.write(fd, b"x")

        with Entrance(view) as entrance:
            answer = entrance.try_it(change)
        if answer is None or answer.failed:
            return answer
        return answer if _as_understood(scratch, options) else Answer("marks", errno.EOPNOTSUPP)


def _as_understood(scratch: Directory, options: str) -> bool:
    """Whether what the trial did is written down as `atomik._tree.layer` reads it."""
    marks = USER if "userxattr" in options else TRUSTED
    try:
        gone = kernel.port.lstat("upper/gone", scratch.fd)
        found = [
            _mark(f"upper{name}", scratch, marks + mark)
            for name, mark in (("/new", "opaque"), ("", "impure"), ("/kept", "impure"))
        ]
    except OSError as exc:
        if kernel.errno_of(exc) is None:
            raise
        return False
    return stat.S_ISCHR(gone.st_mode) and not gone.st_rdev and found == [b"y", b"y", None]


def _mark(name: str, scratch: Directory, mark: str) -> bytes | None:
    fd = kernel.port.open(name, _FOLDER, scratch.fd)
    try:
        return kernel.port.getxattr(fd, mark) if mark in kernel.port.listxattr(fd) else None
    finally:
        kernel.port.close(fd)
