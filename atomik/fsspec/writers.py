"""The file objects that `AtomikFileSystem` gives for writing: publish on `close`, never on the way out of a failure.

Libraries close a file whose writing failed like any other: a ``with`` around ``fsspec.open``, pandas' own file objects,
``finally: f.close()``.  So `close` checks whether an exception is being handled that was not when the file was opened.
If so, what was written is dropped, the destination stays as it was, and the exception gets a note that says so.  `commit`
publishes in any case; `discard` drops.

A file that is forgotten without `close` is dropped, with a ResourceWarning.  A forked child can neither write nor end
its parent's file: attempts are refused, and nothing happens when it forgets it (I11).
"""

from __future__ import annotations

import errno
import io
import sys
import warnings

from atomik import _events, errors
from atomik._system import forked, kernel

from .pyarrow_guard import protect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

#: what a disk answers when the rest of a file does not fit on it
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Writer(io.BufferedIOBase):
    """A binary file.  ``layers``: the staged file, and on top of it what compresses; ``publish`` and ``drop`` end it."""

    def __init__(
        self, path: str, mode: str, layers: list[Any], publish: Callable[[], object], drop: Callable[[], object],
        *, autocommit: bool = True, failed: Callable[[str], object] | None = None,
    ) -> None:  # fmt: skip
        self.path = self.name = path
        self.mode = mode
        self.autocommit = autocommit
        self.blocksize = io.DEFAULT_BUFFER_SIZE
        self._layers = layers
        self._publish, self._drop, self._failed = publish, drop, failed
        self._handled = sys.exception()
        self._pid = forked.me
        self._sealed = self._over = False

    # --- writing -----------------------------------------------------------------------------------------------------
    def _require_owner(self) -> None:
        if self._pid != forked.me:
            text = f"this is a forked child, and {self.path!r} is written by its parent; open the file in the child"
            raise errors.TransactionStateError(text)

    def _top(self) -> Any:
        self._require_owner()
        if self._sealed or self._over:
            raise ValueError("I/O operation on closed file.")
        return self._layers[-1]

    def write(self, data: Any, /) -> int:
        """As of any binary file."""
        return int(self._top().write(data))

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any binary file, in modes with "+"."""
        return bytes(self._top().read(-1 if size is None else size))

    def read1(self, size: int = -1, /) -> bytes:
        """As of any binary file; the text layer reads by it."""
        return self.read(io.DEFAULT_BUFFER_SIZE if size < 0 else size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As of any binary file."""
        return int(self._top().seek(offset, whence))

    def tell(self) -> int:
        """As of any binary file."""
        return int(self._top().tell())

    def truncate(self, size: int | None = None, /) -> int:
        """As of any binary file."""
        return int(self._top().truncate(size))

    def flush(self) -> None:
        """As of any binary file; it makes nothing visible."""
        if not (self._sealed or self._over):
            self._layers[-1].flush()

    def fileno(self) -> int:
        """The descriptor of the staged file."""
        self._top()
        return int(self._layers[0].fileno())

    def readable(self) -> bool:
        """Whether the mode has a "+"."""
        return len(self._layers) == 1 and bool(self._layers[0].readable())

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Unless it is compressed on the way."""
        return len(self._layers) == 1

    # --- ending ------------------------------------------------------------------------------------------------------
    @property
    def closed(self) -> bool:
        """Whether it cannot be written any more."""
        return self._sealed or self._over

    def close(self) -> None:
        """Publish what was written (or drop it, see the module); with ``autocommit=False``, only finish it."""
        if self.closed or self.abandoned():
            return
        self._seal()
        if self.autocommit:
            self.commit()

    def abandoned(self) -> bool:
        """Drop what was written if an exception is being handled; whether it is dropped."""
        failure = sys.exception()
        if not self.closed:
            self._require_owner()
            if failure is not None and failure is not self._handled:
                self._abandon(failure)
        return self._over

    def _abandon(self, failure: BaseException) -> None:
        self.discard()
        reason = f"it was closed while {type(failure).__name__} was being handled"
        if self._failed is not None:
            self._failed(reason)
        protect(self.path, failure)
        failure.add_note(f"atomik: {self.path!r} was not published, because {reason}")
        if _events.heard(_events.WARNING):
            _events.emit(_events.WARNING, "file.dropped", path=self.path, reason=reason)

    def _seal(self) -> None:
        try:
            for layer in reversed(self._layers):
                layer.close()
        except BaseException as exc:
            protect(self.path, exc)
            self.discard()
            raise
        self._sealed = True

    def commit(self) -> None:
        """Publish what was written."""
        if self._over:
            return
        self._require_owner()
        if not self._sealed:
            self._seal()
        self._over = True
        try:
            self._publish()
        except BaseException as exc:
            protect(self.path, exc)
            raise

    def discard(self) -> None:
        """Drop what was written."""
        if self._over or self._pid != forked.me:
            return
        self._over = True
        try:
            for layer in reversed(self._layers[1:]):
                _close_unwanted(layer)
        finally:
            self._drop()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is not None and not self.closed:
            self._abandon(exc)
        else:
            self.close()

    def forgotten(self) -> None:
        """The file object is collected, and was never closed."""
        if self._pid != forked.me:
            return
        if not self.closed:
            text = f"{self.path!r} was never closed, and so not published"
            self.discard()
            if self._failed is not None:
                self._failed("it was never closed")
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)
        elif not self._over:
            self.discard()  # finished, and never committed

    def __del__(self) -> None:
        # Not io's own finalizer, which closes, and so would publish.
        if hasattr(self, "_over"):
            self.forgotten()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"cannot pickle {self.path!r}, which is being written: open it in the process that writes")


def _close_unwanted(layer: Any) -> None:
    """Close what compresses while the layer below is still open: its finalizer would complain later."""
    try:
        layer.close()
    except ValueError:  # the layer below is closed
        pass
    except OSError as exc:
        # gzip and zipfile write to the layer below themselves, so `errno_of` does not know their errors.
        if kernel.errno_of(exc) is None and exc.errno not in _DISK:
            raise


class TextWriter(io.TextIOWrapper):
    """The text layer on a `Writer`, which neither publishes when its block failed, nor when it is forgotten."""

    _writer: Writer

    @classmethod
    def of(cls, writer: Writer, **text: Any) -> TextWriter:
        """Text on `writer`; the keywords are those of `io.TextIOWrapper`."""
        self = cls(writer, **text)
        self._writer = writer
        return self

    def close(self) -> None:
        """As `Writer.close`; a failure spares the flush that closing begins with."""
        if not self._writer.abandoned():
            super().close()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is not None:
            self._writer.__exit__(kind, exc, trace)
        else:
            self.close()

    def __del__(self) -> None:
        writer = getattr(self, "_writer", None)
        if writer is not None:
            writer.forgotten()
