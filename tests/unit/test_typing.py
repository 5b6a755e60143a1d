"""`atomik._typing`: its stand-in for NamedTuple does what the classes here need of the real one."""

from __future__ import annotations

import copy
import pickle
import typing
from typing import Any

import pytest

from atomik import _typing


class Ours(_typing.NamedTuple):
    """Some values."""

    one: int
    two: str
    three: tuple[int, ...] = ()
    four: int = 4

    @property
    def both(self) -> str:
        return f"{self.one}{self.two}"


class Theirs(typing.NamedTuple):
    """Some values."""

    one: int
    two: str
    three: tuple[int, ...] = ()
    four: int = 4

    @property
    def both(self) -> str:
        return f"{self.one}{self.two}"


GIVEN: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1, "2"), {}), ((1, "2", (3,)), {}), ((1, "2", (3,), 5), {}), ((1,), {"two": "2"}), ((), {"two": "2", "one": 1}),
    ((1, "2"), {"four": 5}), ((), {}), ((1,), {}), ((1,), {"four": 5}), ((1, "2", (), 4, 5), {}), ((1, "2"), {"one": 1}),
    ((1, "2", (), 4), {"four": 4}), ((1, "2"), {"five": 5}),
]  # fmt: skip


@pytest.mark.parametrize(("values", "named"), GIVEN)
def test_made_like_the_real_one(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    """The same values from the same arguments, or a TypeError."""
    try:
        theirs = Theirs(*values, **named)
    except TypeError:
        with pytest.raises(TypeError, match="Ours"):
            Ours(*values, **named)
        return
    ours = Ours(*values, **named)
    assert (tuple(ours), ours.both) == (tuple(theirs), theirs.both)
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
    assert (ours.one, ours.two, ours.three, ours.four) == theirs
    assert ours._replace(two="x", four=0) == theirs._replace(two="x", four=0)
    assert type(ours._replace(one=3)) is Ours


def test_a_tuple_with_nothing_else() -> None:
    """It copies and pickles as what it is, has no other attributes, and takes no place for any."""
    ours = Ours(1, "2", four=5)
    for other in (copy.copy(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert (other, type(other)) == (ours, Ours)
    match ours:
        case Ours(1, two, four=four):
            assert (two, four) == ("2", 5)
    with pytest.raises(AttributeError):
        ours.five = 5  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        ours.one = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        ours._replace(five=5)
    assert (Ours.__doc__, Ours._fields) == (Theirs.__doc__, Theirs._fields)
    assert not hasattr(ours, "__dict__")
