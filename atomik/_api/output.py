"""What `file`, `folder`, `path` and `update` return: a transaction of one output."""

from __future__ import annotations

from atomik._system import forked
from atomik._typing import Generic, ParamSpec, TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import NoReturn

    from atomik._receipt import Receipt

    from .transaction import Transaction

_T = TypeVar("_T")
_P = ParamSpec("_P")


class Output(Generic[_T]):
    """A transaction of one output: ``with`` (or ``async with``) gives the file object or path, and publishes at its end.

    Made by `file`, `folder`, `path` and `update`.  ``output`` is what ``with`` gives; ``transaction`` is the `Transaction`.
    Without ``with``, call `commit` or `abort`.
    """

    __module__ = "atomik"

    __slots__ = ("__weakref__", "output", "transaction")

    output: _T
    #: the `Transaction` of this one output
    transaction: Transaction

    def __init__(self, transaction: Transaction, stage: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> None:
        self.transaction = transaction
        try:
            self.output = stage(*args, **kwargs)
        except BaseException as exc:
            self.__exit__(type(exc), exc, exc.__traceback__)
            raise

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            cls = type(self).__name__
            hint = "use it with 'with', or take what 'with' gives from its attribute 'output', and call commit()"
            raise AttributeError(f"{cls!r} object has no attribute {name!r}; {hint}", name=name, obj=self)

    def commit(self) -> Receipt:
        """Publish now, and return what was done; `Transaction.commit` says what it raises."""
        return self.transaction.commit()

    def abort(self) -> None:
        """Drop what was written; see `Transaction.abort`."""
        self.transaction.abort()

    @property
    def receipt(self) -> Receipt | None:
        """What the commit did; None before it, and if everything is as it was.  ``f.receipt`` of ``with … as f`` is the
        same."""
        return self.transaction.receipt

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("cannot pickle 'Output': it belongs to this process; stage a folder, and send paths in it")

    def __enter__(self) -> _T:
        intake = self.transaction._intake
        if intake.closed or intake.pid != forked.me:
            intake.require_open()
        output = self.output
        output._transaction = self.transaction  # type: ignore[attr-defined]  # for its receipt
        return output

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.transaction.__exit__(kind, exc, trace)
        except BaseException as failure:  # it may have arrived right before the handlers there
            if self.transaction._goes_on(failure, exc):
                raise

    async def __aenter__(self) -> _T:
        from . import in_worker  # before it is needed (I14)

        in_worker.running()
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        from .in_worker import Ending

        await Ending(self.transaction, self.__exit__).run(kind, exc, trace)
