"""What users write to: real file objects whose `close` seals the item, and a real path that does so on ``with``.

The descriptor belongs to the item (``closefd=False``).  So whatever a user's program does with the object (close it
early, detach its buffer, hand it to another library that closes it) the content stays in hand until the item is
sealed, and the item, not the file object, decides when the descriptor is closed (I9).

``f.name`` is the destination, for messages and for libraries that look at the extension.
"""

from __future__ import annotations

import io
import pathlib
import sys
from functools import cache
from typing import IO, TYPE_CHECKING, Any, Protocol

from . import errors

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class Sealable(Protocol):
    """The item behind a handle."""

    def seal(self) -> None: ...
    def discard(self, reason: str = ...) -> None: ...


class _Raw(io.FileIO):
    """The unbuffered layer: errors of write(2) name the destination."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as exc:
            raise errors.system_error(exc, "cannot write the staged content", str(self.name)) from exc

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size)
        except OSError as exc:
            raise errors.system_error(exc, "cannot resize the staged content", str(self.name)) from exc


class _Sealing:
    """Mixed into the io classes: ``close`` seals, leaving the block with an exception discards."""

    _item: Sealable | None = None

    def close(self) -> None:
        item, self._item = self._item, None
        if item is None:
            super().close()  # type: ignore[misc]
        else:
            item.seal()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        item = self._item
        if kind is not None and item is not None:
            self._item = None
            item.discard(f"its block was left by {kind.__name__}")
        else:
            self.close()

    def __del__(self) -> None:
        # Forgotten without close: this must not publish anything, so let go of the item before io's finalizer closes.
        self._item = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__!r}: stage a folder and send paths in it instead")


class StagedText(_Sealing, io.TextIOWrapper):
    """A staged text file."""


class StagedWriter(_Sealing, io.BufferedWriter):
    """A staged binary file, opened for writing."""


class StagedRandom(_Sealing, io.BufferedRandom):
    """A staged binary file, opened for reading and writing."""


class StagedRaw(_Sealing, _Raw):
    """A staged binary file without a buffer (``buffering=0``)."""


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
        raise ValueError(f"invalid mode: {value!r}; atomik writes, use open() to read")
    return base.pop(), "+" in letters, "b" in letters


def open_handle(
    fd: int,
    item: Sealable | None,
    name: str,
    mode: tuple[str, bool, bool],
    *,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
) -> IO[Any]:
    """A file object on `fd`, as `open` would build it, that seals `item` when closed."""
    base, readable, binary = mode
    if buffering == 0 and not binary:
        raise ValueError("can't have unbuffered text I/O")
    raw_mode = "rb+" if readable or base == "r" else "wb"
    if binary and buffering == 0:
        handle: Any = StagedRaw(fd, raw_mode, closefd=False)
        handle.name = name
    else:
        raw = _Raw(fd, raw_mode, closefd=False)
        raw.name = name
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        handle = _buffered(raw, size, readable or base == "r", binary, (encoding, errors, newline, buffering == 1))
    if not binary:
        handle.mode = base + ("+" if readable else "")
    if base == "a":
        handle.seek(0, io.SEEK_END)
    handle._item = item
    return handle  # type: ignore[no-any-return]


def _buffered(
    raw: _Raw, size: int, readable: bool, binary: bool, text: tuple[str | None, str | None, str | None, bool]
) -> Any:
    kinds: tuple[type, type] = (StagedRandom, StagedWriter) if binary else (io.BufferedRandom, io.BufferedWriter)
    buffer = kinds[0 if readable else 1](raw, size)
    if binary:
        return buffer
    encoding, error_handler, newline, line_buffering = text
    return StagedText(buffer, encoding, error_handler, newline, line_buffering)


_Path = type(pathlib.Path())


class StagedPath(_Path):  # type: ignore[misc, valid-type]
    """The path of a staged folder or file: a real `pathlib.Path` that can be used with ``with``.

    Leaving the block well seals the item, leaving it with an exception discards it; without a block it is sealed at
    the commit.  Paths derived from it are plain paths, and it pickles as one (for worker processes).
    """

    _item: Sealable
    _elsewhere: str

    if sys.version_info >= (3, 12):

        def with_segments(self, *segments: Any) -> pathlib.Path:
            return pathlib.Path(*segments)

    else:
        # Before with_segments, derived paths are built by these two (3.11 only gets security fixes, so they stay).
        @classmethod
        def _from_parsed_parts(cls, *args: Any) -> Any:
            return _Path._from_parsed_parts(*args)  # type: ignore[attr-defined]

        @classmethod
        def _from_parts(cls, args: Any) -> Any:
            return _Path._from_parts(args)  # type: ignore[attr-defined]

        def __new__(cls, *args: Any) -> Self:
            return _Path._from_parts.__func__(cls, args)  # type: ignore[attr-defined, no-any-return]

    @classmethod
    def of(cls, path: str, item: Sealable, elsewhere: str) -> StagedPath:
        """The path `path` for `item`; `elsewhere` is the one for processes that it is sent to."""
        self = cls(path)
        self._item = item
        self._elsewhere = elsewhere
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._item.seal()
        else:
            self._item.discard(f"its block was left by {kind.__name__}")

    def __reduce__(self) -> tuple[Any, ...]:
        return pathlib.Path, (self._elsewhere,)
