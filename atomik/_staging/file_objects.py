"""What users write to: real file objects whose `close` seals the item, and a real path that does so on ``with``.

The descriptor belongs to the item (``closefd=False``).  So whatever a user's program does with the object (close it
early, detach its buffer, hand it to another library that closes it) the content stays in hand until the item is
sealed, and the item, not the file object, decides when the descriptor is closed (I9).

``f.name`` is the destination, for messages and for libraries that look at the extension.
"""

from __future__ import annotations

import io
import os
from functools import cache, partial

from atomik import errors
from atomik._system import kernel
from atomik._typing import Protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import IO, Any, BinaryIO, ClassVar, NoReturn

    from atomik._receipt import Receipt


class Sealable(Protocol):
    """The item behind a file object."""

    def seal(self) -> None: ...
    def discard(self, reason: str = ...) -> None: ...


class Publishing(Protocol):
    """The transaction of an `Output`."""

    @property
    def receipt(self) -> Receipt | None: ...


if TYPE_CHECKING:

    class StagedBinary(BinaryIO):
        """What a binary file object is for type checkers."""

        @property
        def receipt(self) -> Receipt | None: ...


_close = io.RawIOBase.close


class _Raw(io.RawIOBase):
    """The unbuffered layer: errors of write(2) name the destination, and closing leaves the descriptor open.

    Not an `io.FileIO`, which looks at the file before it is written: a file whose times someone has looked at costs
    the filesystem more when it changes (see `libc`).
    """

    #: The layers above ask at every write, and the base class would take longer to answer.
    closed = False
    #: the mode bits of the file when the descriptor was first asked for, which the caller may change (fchmod)
    first_mode: int | None = None

    def __init__(self, fd: int, name: str, mode: str) -> None:
        self._fd, self.name, self.mode = fd, name, mode

    def fileno(self) -> int:
        if self._fd < 0:
            _refuse()
        if self.first_mode is None:
            self.first_mode = kernel.port.statx(self._fd).mode & 0o7777
        return self._fd

    def chosen_mode(self) -> int | None:
        """The mode bits that the user gave it by the descriptor; None where they did not."""
        if self.first_mode is None:
            return None
        mode = kernel.port.statx(self._fd).mode & 0o7777
        return mode if mode != self.first_mode else None

    def readable(self) -> bool:
        return self.writable() and self.mode != "wb"

    def writable(self) -> bool:
        return self._fd >= 0 or _refuse()

    seekable = writable

    def readinto(self, buffer: Any, /) -> int:
        if not self.readable():
            raise io.UnsupportedOperation("File not open for reading")
        return os.readv(self._fd, [buffer])

    def write(self, data: Any, /) -> int:
        try:
            return kernel.port.write(self._fd, data)
        except OSError as exc:
            if kernel.errno_of(exc) is None:
                raise
            self.writable()  # closed?
            raise errors.system_error(exc, "cannot write the staged content", self.name) from exc

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return os.lseek(self._fd if self._fd >= 0 else _refuse(), offset, whence)

    def tell(self) -> int:
        return os.lseek(self._fd if self._fd >= 0 else _refuse(), 0, os.SEEK_CUR)

    def truncate(self, size: int | None = None, /) -> int:
        size = self.tell() if size is None else size
        with kernel.typed("cannot resize the staged content", self.name):
            kernel.port.truncate(self._fd if self._fd >= 0 else _refuse(), size)
        return size

    def close(self) -> None:
        self._fd = -1
        vars(self).pop("tell", None)  # see `open_file_object`
        _close(self)
        self.closed = True


def _refuse() -> NoReturn:
    raise ValueError("I/O operation on closed file")


class _Sealing:
    """Mixed into the io classes: ``close`` seals, leaving the block with an exception discards."""

    _item: Sealable | None = None
    #: the transaction of the `Output` whose block it was made for
    _transaction: Publishing | None = None

    #: the layer below a text file, which the user may detach and write to
    _below: IO[bytes] | None = None

    #: what closing is without an item
    let_go: ClassVar[Callable[..., None]]

    @property
    def receipt(self) -> Receipt | None:
        """What the commit of its `Output` did: None before, after a failure that left everything as it was, and for a file
        of a larger transaction, which has a receipt of its own."""
        return None if self._transaction is None else self._transaction.receipt

    def close(self) -> None:
        item, self._item = self._item, None
        if item is None:
            self.let_go()
        else:
            item.seal()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        item, self._item = self._item, None
        if item is None:
            self.let_go()
        elif kind is None:
            item.seal()
        else:
            item.discard(f"its block was left by {kind.__name__}")

    def __del__(self) -> None:
        # Forgotten without close: this must not publish anything, so let go of the item before io's finalizer closes.
        self._item = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__!r}: stage a folder and send paths in it instead")


class StagedText(_Sealing, io.TextIOWrapper):
    """A staged text file."""

    let_go = io.TextIOWrapper.close


class StagedWriter(_Sealing, io.BufferedWriter):
    """A staged binary file, opened for writing."""

    let_go = io.BufferedWriter.close


class StagedRandom(_Sealing, io.BufferedRandom):
    """A staged binary file, opened for reading and writing."""

    let_go = io.BufferedRandom.close


class StagedRaw(_Sealing, _Raw):
    """A staged binary file without a buffer (``buffering=0``)."""

    let_go = _Raw.close


@cache
def parse_mode(mode: str) -> tuple[str, bool, bool]:
    """(base letter, readable, binary) of a mode as `open` knows it; ValueError like `open` otherwise."""
    value = {"TEXT": "w", "BYTES": "wb"}.get(getattr(mode, "value", mode), getattr(mode, "value", mode))
    if not isinstance(value, str):
        raise TypeError(f"mode must be a str or atomik.Mode, not {type(mode).__name__}")
    letters = set(value)
    base = letters & set("wxar")
    if len(value) != len(letters) or letters - set("wxar+bt") or len(base) != 1 or {"b", "t"} <= letters:
        raise ValueError(f"invalid mode: {value!r}")
    if "r" in base and "+" not in letters:
        raise ValueError(f"invalid mode: {value!r}; atomik only writes; use open() to read")
    return base.pop(), "+" in letters, "b" in letters


def open_file_object(
    fd: int,
    item: Sealable | None,
    name: str,
    mode: tuple[str, bool, bool],
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
) -> IO[Any]:
    """A file object on `fd`, as `open` would build it, that seals `item` when closed."""
    base, readable, binary = mode
    reads = readable or base == "r"
    raw = (_Raw if buffering or not binary else StagedRaw)(fd, name, "rb+" if reads else "wb")
    if buffering or not binary:
        # In C: the layers above drop every exception when they ask, also that of a signal handler.
        raw.tell = partial(os.lseek, fd, 0, os.SEEK_CUR)  # type: ignore[method-assign]
    size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
    if not binary:
        buffer = (io.BufferedRandom if reads else io.BufferedWriter)(raw, size)
        file_object: Any = StagedText(buffer, encoding, errors, newline, buffering == 1)
        file_object._below = buffer
        file_object.mode = base + ("+" if readable else "")
    elif buffering:
        file_object = (StagedRandom if reads else StagedWriter)(raw, size)
    else:
        file_object = raw
    if base == "a":
        file_object.seek(0, io.SEEK_END)
    file_object._item = item
    return file_object  # type: ignore[no-any-return]
