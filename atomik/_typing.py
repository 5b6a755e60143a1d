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
        """Makes a class with annotations a `collections.namedtuple`, as typing.NamedTuple does."""

        def __new__(cls, name, bases, members):
            if not bases:
                return super().__new__(cls, name, bases, members)
            fields = list(members.pop("__annotations__", ()))
            defaults = [members.pop(field) for field in fields if field in members]
            made = collections.namedtuple(name, fields, defaults=defaults, module=members.pop("__module__"))  # noqa: PYI024  that loads typing
            for key, value in members.items():
                setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_NamedTupleType):
        pass

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
