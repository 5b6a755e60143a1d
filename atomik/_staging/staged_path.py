"""The path that `folder` and `path` give: a real `pathlib.Path` that seals its item on ``with``.

Separate from the file objects, because a program that writes only files need not load pathlib.
"""

from __future__ import annotations

import pathlib
import sys

from .file_objects import Publishing, Sealable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    from atomik._receipt import Receipt

if TYPE_CHECKING:
    _Path = pathlib.Path
else:
    _Path = type(pathlib.Path())


class StagedPath(_Path):
    """The path of a staged folder or file: a real `pathlib.Path` that can be used with ``with``.

    Leaving the block well seals the item, leaving it with an exception discards it; without a block it is sealed at
    the commit.  Paths derived from it are plain paths, and it pickles as one (for worker processes).
    """

    _item: Sealable
    _elsewhere: str
    _transaction: Publishing | None = None
    #: with ``resume=True``: whether it holds what an earlier run has staged
    resumed: bool = False

    @property
    def receipt(self) -> Receipt | None:
        """What the commit did; None before it, and when everything was rolled back."""
        return None if self._transaction is None else self._transaction.receipt

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
    def of(cls, path: str, item: Sealable, elsewhere: str, *, resumed: bool = False) -> StagedPath:
        """The path `path` for `item`; `elsewhere` is the one for processes that it is sent to."""
        self = cls(path)
        self._item = item
        self._elsewhere = elsewhere
        self.resumed = resumed
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
