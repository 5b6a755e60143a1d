"""What a caller may say about an output, and what became of it once checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from operator import index
from typing import Literal, TypedDict

from attrs import define

from atomik._tree.metadata import What

from .observe import Observation

StrPath = str | os.PathLike[str]
Progress = Callable[[str, int, int], None]

TextMode = Literal["w", "w+", "x", "x+", "a", "a+", "r+", "wt", "w+t", "xt", "x+t", "at", "a+t", "r+t"]
BytesMode = Literal["wb", "wb+", "w+b", "xb", "xb+", "x+b", "ab", "ab+", "a+b", "rb+", "r+b"]


class ItemOptions(TypedDict, total=False):
    """Keyword arguments that every output takes; `atomik.file` describes them."""

    order: int
    follow_symlinks: bool
    parents: bool
    preserve: What
    permissions: int | None
    expect: Observation | Literal["absent"] | None
    keep: str | Callable[[str], str] | None
    if_changed: bool
    fallback: Literal["weaker"] | None


@define(frozen=True)
class Options:
    """How an item is to be published, as the user said."""

    overwrite: bool = False
    preserve: What = "all"
    permissions: int | None = None
    expect: Observation | str | None = None
    keep: str | Callable[[str], str] | None = None
    if_changed: bool = False
    allow_gap: bool = False


#: Most outputs say nothing special; they share these.
PLAIN = Options()
_OVERWRITING = Options(overwrite=True)


def checked(given: ItemOptions, *, overwrite: bool) -> Options:
    """The options that were given, or TypeError and ValueError as `open` would raise them."""
    if not given:
        return _OVERWRITING if overwrite else PLAIN
    if unknown := given.keys() - ItemOptions.__annotations__.keys():
        raise TypeError(f"unexpected keyword argument {min(unknown)!r}")
    preserve, fallback, expect = given.get("preserve", "all"), given.get("fallback"), given.get("expect")
    permissions = given.get("permissions")
    if preserve not in ("all", "mode", "none"):
        raise ValueError(f"preserve must be 'all', 'mode' or 'none', not {preserve!r}")
    if fallback not in (None, "weaker"):
        raise ValueError(f"fallback must be None or 'weaker', not {fallback!r}")
    if permissions is not None and not 0 <= permissions <= 0o7777:
        raise ValueError(f"permissions are mode bits from 0 to 0o7777, not {permissions!r}")
    if not -(2**63) <= index(given.get("order", 0)) < 2**63:  # as wide as the journal has room for
        raise ValueError(f"order is a number of 64 bits, not {given['order']!r}")
    if isinstance(expect, Observation):
        overwrite = not expect.absent
    elif expect not in (None, "absent"):
        raise TypeError(f"expect takes what atomik.observe() returned, or 'absent', not {expect!r}")
    return Options(
        overwrite, preserve, permissions, expect, given.get("keep"), bool(given.get("if_changed")), fallback == "weaker"
    )
