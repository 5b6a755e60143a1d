"""Immutable values with named fields, for what the first commit of a process returns.

All others are made with attrs; loading attrs would take half the time of that commit.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn, Self


class _Attrs(type):
    """Lets `attrs.evolve`, `attrs.asdict` and `attrs.fields` take a class for one of theirs."""

    @property
    def __attrs_attrs__(cls) -> Any:
        import attrs

        return attrs.fields(attrs.make_class(cls.__name__, list(_names(cls))))


def _names(cls: type) -> tuple[str, ...]:
    """Declared by each class for itself, so that type checkers know the names."""
    names: tuple[str, ...] = getattr(cls, "__match_args__", ())
    return names


class Values(metaclass=_Attrs):
    """A base for classes whose ``__match_args__`` name their values, in order; compared, shown and pickled by them."""

    __slots__ = ("__weakref__",)

    def _set(self, *values: object) -> None:
        for name, value in zip(_names(type(self)), values, strict=True):
            object.__setattr__(self, name, value)

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in _names(type(self))])

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, self.__class__) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in _names(type(self)))
        return f"{type(self).__name__}({fields})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__!r} says what was done; nothing of it can be changed")

    def __delattr__(self, name: str) -> NoReturn:
        self.__setattr__(name, None)

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), self._values()


class PlainValues(Values):
    """Those whose values are plain."""

    __slots__ = ()

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return dict(zip(_names(type(self)), self._values(), strict=True))
