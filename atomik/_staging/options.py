"""The options of an output: as a caller passes them, and as they are after the check."""

from __future__ import annotations

import os
from operator import index

from atomik._typing import NamedTuple, TypedDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal, TypeAlias

    from atomik._tree.metadata import What

    from .observe import Digest, Observation

    Progress = Callable[[str, int, int], None]

    StrPath: TypeAlias = str | os.PathLike[str]

    #: what may be given to ``expect=``: an `Observation`, "absent", "any", or "sha256:" and 64 hexadecimal digits
    Expectation: TypeAlias = Observation | str | None

    TextMode = Literal["w", "w+", "x", "x+", "a", "a+", "r+", "wt", "w+t", "xt", "x+t", "at", "a+t", "r+t"]
    BytesMode = Literal["wb", "wb+", "w+b", "xb", "xb+", "x+b", "ab", "ab+", "a+b", "rb+", "r+b"]


class ItemOptions(TypedDict, total=False):
    """Keyword arguments that every output takes; `atomik.file` describes them."""

    order: int
    follow_symlinks: bool
    parents: bool
    preserve: What
    permissions: int | None
    expect: Observation | str | None
    backup: str | Callable[[str], str] | None
    if_changed: bool
    allow_gap: bool


class Options(NamedTuple):
    """The options with which an item will be published."""

    overwrite: bool = False
    preserve: What = "all"
    permissions: int | None = None
    expect: Observation | Digest | str | None = None
    backup: str | Callable[[str], str] | None = None
    if_changed: bool = False
    allow_gap: bool = False


#: Most outputs say nothing special; they share these.
PLAIN = Options()
OVERWRITING = Options(overwrite=True)

_FORMER = {"keep": "backup=", "fallback": "allow_gap=True"}


def checked(given: ItemOptions, *, overwrite: bool) -> Options:
    """The options that were given, or TypeError and ValueError as `open` would raise them."""
    if not given:
        return OVERWRITING if overwrite else PLAIN
    if unknown := given.keys() - ItemOptions.__annotations__.keys():
        name = min(unknown)
        hint = f"; did you mean {_FORMER[name]}?" if name in _FORMER else ""
        raise TypeError(f"unexpected keyword argument {name!r}{hint}")
    preserve, permissions = given.get("preserve", "all"), given.get("permissions")
    if preserve not in ("all", "mode", "none"):
        raise ValueError(f"preserve must be 'all', 'mode' or 'none', not {preserve!r}")
    if permissions is not None and not isinstance(permissions, int):
        raise TypeError(f"permissions must be mode bits such as 0o640, not {permissions!r}")
    if permissions is not None:
        _check_mode_bits(permissions)
    if not hasattr(type(given.get("order", 0)), "__index__"):
        raise TypeError(f"order must be an int, not {given['order']!r}")
    if not -(2**63) <= index(given.get("order", 0)) < 2**63:  # as wide as the journal has room for
        raise ValueError(f"order is a number of 64 bits, not {given['order']!r}")
    expect, overwrite = _expected(given.get("expect"), overwrite=overwrite)
    return Options(
        overwrite, preserve, permissions, expect, given.get("backup"),
        bool(given.get("if_changed")), bool(given.get("allow_gap")),
    )  # fmt: skip


def _check_mode_bits(permissions: int) -> None:
    """Refuse numbers that are not mode bits, and decimal numbers that were meant in octal (777)."""
    octal = 0 < permissions <= 7777 and set(str(permissions)) <= set("01234567")
    hint = f"; did you mean 0o{permissions}?" if octal else ""
    if not 0 <= permissions <= 0o7777:
        raise ValueError(f"permissions are mode bits from 0 to 0o7777, not {permissions!r}{hint}")
    if octal and 0o1000 <= permissions <= 777:
        raise ValueError(f"permissions={permissions} are the mode bits 0o{permissions:o}{hint}")


def _expected(expect: object, *, overwrite: bool) -> tuple[Observation | Digest | str | None, bool]:
    """What is expected, and whether something may be replaced: an observation of something, or a digest, allows it."""
    if expect is None or expect in ("absent", "any"):
        return expect, overwrite
    from .observe import Observation, parse_digest

    if isinstance(expect, str):
        return parse_digest(expect), True
    if not isinstance(expect, Observation):
        text = (
            "expect takes what atomik.observe() returned, 'absent', 'any' or 'sha256:' with 64 hexadecimal digits, not"
        )
        raise TypeError(f"{text} {expect!r}")
    return expect, not expect.absent
