"""Apply a change set: stage each `Change` in a transaction, below a root that no path of it can leave.

Every folder on the path to a name is opened from the folder above it, by descriptor, and never through a symbolic link
(O_NOFOLLOW); the transaction then works in these folders (I7).  Missing parent folders of a destination are created.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from hashlib import sha256

from atomik import errors
from atomik._folder.directory import Directory
from atomik._folder.place import Place
from atomik._folder.resolve import real
from atomik._staging import companions
from atomik._staging.destinations import UNTOUCHED
from atomik._staging.observe import parse_digest
from atomik._system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from atomik._receipt import Receipt

    from .changeset import Change
    from .transaction import Transaction

_FOLLOWED_NOT = frozenset({errno.ELOOP, errno.ENOTDIR})
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_CHUNK = 1 << 20


class Applier:
    """A change set on its way into a transaction."""

    def __init__(self, tx: Transaction, root: str) -> None:
        self.tx = tx
        self._workspace = tx._intake.workspace
        with kernel.typed("cannot open the root", root):
            self._root = self._workspace.adopt(Directory.open(root))
        #: destination → the change that staged it last, and the SHA-256 of what it wrote
        self.changes: dict[str, Change] = {}
        self.digests: dict[str, str] = {}
        #: destination → the change that copied a file to it, and what the logs of that are called if it is a database
        self._half: dict[str, tuple[Change, list[str]]] = {}

    def stage(self, changes: Sequence[Change]) -> None:
        """Stage all of them; an error names the change, and leaves the transaction to be aborted."""
        for change in changes:
            with naming(change):
                getattr(self, f"_{change.op}")(change, **change.fields)
        for path, (change, logs) in self._half.items():
            with naming(change):
                place = self._workspace.locate(path, folder=False, parents=False)
                companions.refuse_half_copy(logs, place, self._workspace, path)

    def as_dict(self, receipt: Receipt) -> dict[str, Any]:
        """The receipt for JSON: each destination once, with the index of the last change and the digest of what it wrote."""
        plain = receipt.as_dict()
        plain["items"] = list({item["path"]: item for item in plain["items"]}.values())
        for item in plain["items"]:
            change = self.changes.get(item["path"])
            item["change"] = None if change is None else change.number
            item["sha256"] = self.digests.get(item["path"])
        return plain

    @contextmanager
    def naming_by_path(self) -> Iterator[None]:
        """As `naming`, for errors that are raised when everything is staged: found by the path of the error."""
        try:
            yield
        except errors.AtomikOSError as exc:
            for path in (exc.filename, exc.filename2):
                if path in self.changes:
                    _name(exc, self.changes[path])
                    break
            raise

    # --- paths ---------------------------------------------------------------------------------------------------
    def _place(self, names: tuple[str, ...], change: Change, *, source: bool = False) -> str:
        """The absolute path of a destination (or source), whose folder is held from now on."""
        at = self._root
        for name in names[:-1]:
            at = self._enter(Place(at, name), make=not source)
        path = at.child(names[-1])
        if not source:
            self.changes[path] = change
            self.digests.pop(path, None)
            self._half.pop(path, None)
        return path

    def _enter(self, place: Place, *, make: bool) -> Directory:
        path = str(place)
        if self._workspace.destinations.leaves(place) != UNTOUCHED:
            text = (
                "an earlier change creates, moves or removes this folder; nothing in it can be changed in the same set"
            )
            errors.fail(errors.NestedDestinationError, errno.EINVAL, text, path)
        held = self._workspace.held(path)
        if held is not None:
            return held
        try:
            below = place.open()
        except OSError as exc:
            number = kernel.errno_of(exc)
            if number in _FOLLOWED_NOT:
                self._refuse(place, exc)
            if number != errno.ENOENT or not make:
                raise errors.system_error(exc, "cannot open the folder", path) from exc
            with kernel.typed("cannot create the folder", path):
                self._workspace.make_folder(place)
                below = place.open()
        return self._workspace.adopt(below)

    def _refuse(self, place: Place, cause: OSError) -> None:
        found = place.status()
        text = "a part of the path is not a folder; correct the path, or remove what is there"
        if found is not None and kernel.is_link(found.mode):
            text = "the path leads through a symbolic link, which is not followed; use the real path below the root"
        raise errors.WrongKindError(*errors.os_args(errno.ENOTDIR, text, str(place))) from cause

    # --- operations ----------------------------------------------------------------------------------------------
    def _write(
        self, change: Change, path: tuple[str, ...], text: bytes | None = None, base64: bytes | None = None,
        source: str | None = None, mode: int | None = None, overwrite: bool = True, expect: str | None = None,
    ) -> None:  # fmt: skip
        data = text if text is not None else base64
        full = self._place(path, change)
        self._refuse_special(full)
        if data is None:
            assert source is not None
            with _reading(source) as fd:
                self._half[full] = change, _logs_of(source)
                self._put(full, _pieces(fd, source), mode, expect, overwrite=overwrite)
        else:
            self._put(full, (data,), mode, expect, overwrite=overwrite)

    def _refuse_special(self, path: str) -> None:
        """A FIFO or device would be replaced by a file, which is probably a mistake."""
        place = self._workspace.locate(path, folder=False, parents=False)
        found = place.status() if self._workspace.destinations.leaves(place) == UNTOUCHED else None
        if found is not None and not any(of(found.mode) for of in (kernel.is_file, kernel.is_link, kernel.is_folder)):
            text = "a device, FIFO or socket is there; remove it with a change before this one if it may be replaced"
            errors.fail(errors.WrongKindError, errno.EINVAL, text, path)

    def _put(
        self, path: str, pieces: Iterator[bytes] | Sequence[bytes], mode: int | None, expect: str | None, *,
        overwrite: bool = True, read: bool = False,
    ) -> None:  # fmt: skip
        """Stage the content; `read`: what `expect` says was read just now, wherever an earlier change takes it from."""
        digest = sha256()
        with self.tx.file(path, "wb", overwrite, permissions=mode, expect=None if read else expect) as f:
            item = self.tx._intake.items[-1]
            if read and expect is not None and item.expected_at is not None:  # else this change set wrote it
                item.expectation = parse_digest(expect)
            for piece in pieces:
                digest.update(piece)
                f.write(piece)
        self.digests[path] = digest.hexdigest()

    def _replace(
        self, change: Change, path: tuple[str, ...], old: bytes, new: bytes, count: int = 1,
        expect_content: str | None = None,
    ) -> None:  # fmt: skip
        full = self._place(path, change, source=True)
        place = self._workspace.locate(full, folder=False, parents=False)
        data = self._content(place)
        seen = f"sha256:{sha256(data).hexdigest()}"
        if expect_content not in (None, "any", seen) and expect_content.lower() != seen:
            _conflict(
                full, f"its content is {seen}, not {expect_content}; read it again and repeat", expect_content, seen
            )
        found = data.count(old)
        if found != count:
            text = f"'old' occurs {found} times, not {count} times; read the file again, or correct 'old' and 'count'"
            _conflict(full, text, count, found)
        self._place(path, change)
        # The commit requires that the file is still what was read, also one that an earlier change moves here.
        self._put(full, (data.replace(old, new),), None, seen, read=True)

    def _content(self, place: Place) -> bytes:
        """The content of a regular file as the changes so far leave it."""
        path, leaves = str(place), self._workspace.destinations.leaves(place)
        if leaves is None:
            errors.fail(errors.MissingPathError, errno.ENOENT, "an earlier change removes it", path)
        if leaves != UNTOUCHED:
            if leaves != "file":
                errors.fail(
                    errors.WrongKindError,
                    errno.EISDIR,
                    "an earlier change puts something there that is not a file",
                    path,
                )
            with self.tx.open(path, "rb") as staged:
                content: bytes = staged.read()
                return content
        with kernel.typed("cannot read the file", path):
            found = place.status()
            if found is not None and not kernel.is_file(found.mode):
                text = "text can be replaced only in a regular file; a link is not followed"
                errors.fail(errors.WrongKindError, errno.EINVAL, text, path)
            fd = kernel.port.open(place.name, _READ, place.fd)
            with open(fd, "rb") as f:
                return f.read()

    def _remove(self, change: Change, path: tuple[str, ...], expect_content: str | None = None) -> None:
        self._place(path, change, source=True)
        self.tx.remove(self._place(path, change), expect=expect_content)

    def _move(
        self, change: Change, to: tuple[str, ...], overwrite: bool = False, expect: str | None = None, **source: Any
    ) -> None:
        src = self._place(source["from"], change, source=True)
        self.tx.move(src, self._place(to, change), overwrite, expect=expect)

    def _copy(
        self, change: Change, to: tuple[str, ...], overwrite: bool = False, expect: str | None = None, **source: Any
    ) -> None:
        src = self._place(source["from"], change, source=True)
        self.tx.copy(src, self._place(to, change), overwrite, expect=expect)

    def _symlink(
        self, change: Change, path: tuple[str, ...], target: str, overwrite: bool = False, expect: str | None = None
    ) -> None:
        self.tx.symlink(self._place(path, change), target, overwrite, expect=expect)


@contextmanager
def _reading(path: str) -> Iterator[int]:
    """A regular file to read, which may be anywhere."""
    with kernel.typed("cannot read the source", path):
        fd = kernel.port.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(kernel.port.fstat(fd).st_mode):
            text = "the source of a write must be a regular file; use copy for a folder below the root"
            errors.fail(errors.WrongKindError, errno.EINVAL, text, path)
        yield fd
    finally:
        kernel.port.close(fd)


def _logs_of(path: str) -> list[str]:
    whole = real(path)
    with Directory.open(os.path.dirname(whole)) as above:
        return companions.log_suffixes(Place(above, os.path.basename(whole)))


def _pieces(fd: int, path: str) -> Iterator[bytes]:
    at = 0
    while True:
        with kernel.typed("cannot read the source", path):
            piece = kernel.port.pread(fd, _CHUNK, at)
        if not piece:
            return
        yield piece
        at += len(piece)


def _conflict(path: str, text: str, expected: object, found: object) -> None:
    error = errors.ConflictError(*errors.os_args(errno.EBUSY, text, path))
    error.path, error.expected, error.found = path, expected, found
    raise error


@contextmanager
def naming(change: Change) -> Iterator[None]:
    """Make the errors of the block name the change."""
    try:
        yield
    except errors.AtomikError as exc:
        _name(exc, change)
        raise


def _name(exc: errors.AtomikError, change: Change) -> None:
    where = f"changes[{change.number}] ({change.op})"
    if isinstance(exc, OSError) and exc.strerror is not None:
        said = exc.strerror.replace("pass overwrite=True", 'add "overwrite": true')
        said = said.replace("; pass missing_ok=True if that is fine", "")  # there is no such key
        exc.strerror = f"{where}: {said}"
    else:
        exc.args = (f"{where}: {exc}",)
    exc.change = change.number  # type: ignore[attr-defined]
