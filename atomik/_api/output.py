"""What `file`, `folder` and `path` return: a transaction of one output, with the output at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from atomik._receipt import Receipt

    from .transaction import Transaction

_T = TypeVar("_T")


class Output(Generic[_T]):
    """A one-item transaction: enter it for the file object or path, leave it to publish.

    Made by `file`, `folder`, `path` and `update`.  ``output`` is what ``with`` gives; ``transaction`` the `Transaction`
    behind it.  Without ``with``, end it by `commit` or `abort`.
    """

    output: _T
    _transaction: Transaction | None

    def __init__(self, transaction: Transaction, stage: Callable[[], _T]) -> None:
        self._transaction = transaction
        try:
            self.output = stage()
        except BaseException:
            transaction.abort()
            raise

    @property
    def transaction(self) -> Transaction:
        """The transaction behind it."""
        assert self._transaction is not None
        return self._transaction

    def commit(self) -> Receipt:
        """Publish now, and return what was done; `Transaction.commit` says what it raises."""
        return self.transaction.commit()

    def abort(self) -> None:
        """Drop what was written; see `Transaction.abort`."""
        self.transaction.abort()

    @property
    def receipt(self) -> Receipt | None:
        """What the commit did; None before it."""
        return self.transaction.receipt

    def __enter__(self) -> _T:
        self.transaction.__enter__()
        return self.output

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.transaction.__exit__(kind, exc, trace)
