"""What classes and functions need of `typing` while the program runs, without loading it.

`typing` and what it loads (`re`, above all) took a fifth of the processor time from ``import atomik`` to the end of the first
`file()`, and nothing there needs them.  Type checkers read the real names.  They also understand ``TYPE_CHECKING = False``,
which every module uses instead of importing the name.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Generic, NamedTuple, ParamSpec, Protocol, TypedDict, TypeVar, cast, overload
else:
    import collections
    import types

    class _NamedTupleType(type):
        def __new__(cls, name, bases, members):
            fields = tuple(members.get("__annotations__", ()))
            defaults = {field: members[field] for field in fields if field in members}
            members |= {field: collections._tuplegetter(at, "") for at, field in enumerate(fields)}
            members |= {"__slots__": (), "__match_args__": fields, "_fields": fields, "_defaults": defaults}
            return super().__new__(cls, name, bases, members)

    class NamedTuple(tuple, metaclass=_NamedTupleType):
        """What atomik needs of the one in `typing`, which takes 0.2 ms for each class: it compiles a constructor for it."""

        __slots__ = ()

        def __new__(cls, *values, **named):
            if named or len(values) != len(cls._fields):
                values = cls._complete(values, named)
            return tuple.__new__(cls, values)

        @classmethod
        def _complete(cls, values, named):
            rest, known = cls._fields[len(values) :], cls._defaults | named
            if len(values) > len(cls._fields) or not named.keys() <= set(rest) <= known.keys():
                raise TypeError(f"{cls.__name__} takes {', '.join(cls._fields)}")
            return (*values, *[known[field] for field in rest])

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(map('{}={!r}'.format, self._fields, self))})"

        def _replace(self, **named):
            return type(self)(**dict(zip(self._fields, self, strict=True)) | named)

    class Protocol:
        __slots__ = ()

    class TypedDict:
        def __init_subclass__(cls, *, total=True):
            pass

    class Generic:
        __slots__ = ()
        __class_getitem__ = classmethod(types.GenericAlias)

    def TypeVar(name, **_):  # noqa: N802
        return name

    ParamSpec = TypeVar

    def cast(_, value):
        return value

    def overload(function):
        return function


__all__ = ["Generic", "NamedTuple", "ParamSpec", "Protocol", "TypedDict", "TypeVar", "cast", "overload"]
