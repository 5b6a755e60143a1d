"""Change sets: what ``atomik apply`` reads.  JSON in, checked `Change`s out, or a `ChangeSetError` that names the change.

`OPERATIONS` and `_FIELDS` say what there is; the parser and the JSON schema are both made from them.  Nothing here does I/O.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re

from atomik._hidden_names import PREFIX
from atomik._typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

#: operation → (fields that must be there, of which exactly one must be there, fields that may be there)
OPERATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "write": (("path",), ("text", "base64", "source"), ("mode", "overwrite", "expect")),
    "replace": (("path", "old", "new"), (), ("count", "expect_content")),
    "remove": (("path",), (), ("expect_content",)),
    "move": (("from", "to"), (), ("overwrite", "expect")),
    "copy": (("from", "to"), (), ("overwrite", "expect")),
    "symlink": (("path", "target"), (), ("overwrite", "expect")),
}
#: fields that are called otherwise in JSON
_CALLED = {"source": "from", "expect_content": "expect"}

_PATH_MAX = 4096  # limits.h
_DIGEST = "sha256:[0-9A-Fa-f]{64}"


class ChangeSetError(ValueError):
    """The change set is wrong; nothing was touched.  ``change`` is the index of the change, None for the whole."""

    def __init__(self, message: str, change: int | None = None) -> None:
        super().__init__(message if change is None else f"changes[{change}]: {message}")
        self.change = change

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (str(self), self.change)


def _restored(message: str, change: int | None) -> ChangeSetError:
    error = ChangeSetError(message)
    error.change = change
    return error


class Change(NamedTuple):
    """One operation: its ``number`` in the change set, its name, and its fields, checked and decoded.

    Paths are tuples of names; ``text``, ``base64``, ``old`` and ``new`` are bytes; ``mode`` is a number.
    """

    number: int
    op: str
    fields: dict[str, Any]


class _Object(dict[str, object]):
    """A JSON object; ``twice`` is a key that it has more than once."""

    twice: str | None = None


class _NoNumber:
    """NaN and the infinities, which are not JSON."""


def parse(document: bytes) -> list[Change]:
    """The changes of a JSON document; raises `ChangeSetError`."""
    try:
        whole = json.loads(document.decode(), object_pairs_hook=_object, parse_constant=lambda _: _NoNumber())
    except RecursionError:
        raise ChangeSetError("the document is nested too deeply; a change set has three levels") from None
    except UnicodeDecodeError as exc:
        raise ChangeSetError(f"the document is not UTF-8: byte {exc.start} is {document[exc.start]:#04x}") from None
    except ValueError as exc:  # no JSON, or a number of thousands of digits
        raise ChangeSetError(f"the document is not JSON: {exc}") from None
    _check_object(whole, "the document", None)
    if whole.keys() != {"changes"}:
        raise ChangeSetError('the document must be an object with one key, "changes"')
    if not isinstance(whole["changes"], list):
        raise ChangeSetError('"changes" must be a list')
    return [_change(index, given) for index, given in enumerate(whole["changes"])]


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        found.twice = next(key for key in keys if keys.count(key) > 1)
    return found


def _check_object(given: Any, what: str, index: int | None) -> None:
    if not isinstance(given, _Object):
        raise ChangeSetError(f"{what} must be an object, not {_shown(given)}", index)
    if given.twice is not None:
        raise ChangeSetError(f"the key {_shown(given.twice)} occurs twice; give it once", index)


def _change(index: int, given: Any) -> Change:
    _check_object(given, "a change", index)
    op = given.get("op")
    if not isinstance(op, str) or op not in OPERATIONS:
        raise ChangeSetError(f'"op" must be one of {", ".join(OPERATIONS)}, not {_shown(op)}', index)
    required, one_of, optional = OPERATIONS[op]
    keys = {_CALLED.get(field, field): field for field in (*required, *one_of, *optional)}
    if unknown := given.keys() - keys.keys() - {"op"}:
        raise ChangeSetError(f"unknown key {_shown(min(unknown))}; {op} has {', '.join(keys)}", index)
    if missing := [field for field in required if field not in given]:
        raise ChangeSetError(f'the key "{missing[0]}" is missing; {op} needs {", ".join(required)}', index)
    choices = [_CALLED.get(field, field) for field in one_of]
    if one_of and len(given.keys() & set(choices)) != 1:
        raise ChangeSetError(f"{op} needs exactly one of {', '.join(choices)}", index)
    fields = {}
    for key, value in given.items():
        if key != "op":
            try:
                fields[keys[key]] = _FIELDS[keys[key]].check(value)
            except ValueError as exc:
                raise ChangeSetError(f'"{key}" {exc}, not {_shown(value)}', index) from None
    _check_target(index, fields)
    return Change(index, op, fields)


def _shown(value: Any) -> str:
    """A value of the document in short."""
    if isinstance(value, _NoNumber):
        return "NaN or an infinity"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:76]} …"


# --- fields ----------------------------------------------------------------------------------------------------------
class _Field(NamedTuple):
    """What may be in a field: `check` decodes a value or raises ValueError; `schema` says the same."""

    check: Callable[[Any], Any]
    schema: dict[str, Any]


def _refuse(text: str) -> NoReturn:
    raise ValueError(text)


def _string(value: Any) -> str:
    return value if isinstance(value, str) else _refuse("must be a string")


def _encoded(value: Any) -> bytes:
    try:
        return _string(value).encode()
    except UnicodeEncodeError:
        _refuse("must be text without lone surrogates (base64 takes any bytes)")


def _path(value: Any) -> tuple[str, ...]:
    """The names of a path below the root."""
    path = _plain_path(value)
    names = tuple(name for name in path.split("/") if name not in ("", "."))
    if path.startswith("/") or ".." in names or not names or path.endswith(("/", "/.")):
        _refuse("must be a path relative to the root, without '..', that ends with a name")
    if any(name.startswith(PREFIX) for name in names):
        _refuse(f"must not have a name that begins with {PREFIX!r}: those are reserved for atomik")
    return names


def _plain_path(value: Any) -> str:
    path = _string(value)
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        _refuse("must be a path that can be encoded")
    if not 0 < size < _PATH_MAX or "\0" in path:
        _refuse(f"must be a path of 1 to {_PATH_MAX - 1} bytes without NUL")
    return path


def _base64(value: Any) -> bytes:
    try:
        return base64.b64decode(_encoded(value), validate=True)
    except binascii.Error:
        _refuse("must be base64 (RFC 4648), with padding and without line breaks")


def _mode(value: Any) -> int:
    text = _string(value)
    return (
        int(text, 8)
        if re.fullmatch("[0-7]{3,4}", text)
        else _refuse('must be a string of 3 or 4 octal digits, as "0644"')
    )


def _expect(value: Any) -> str:
    if value == "absent":
        return "absent"
    return _expect_content(value, "'absent', ")


def _expect_content(value: Any, or_else: str = "") -> str:
    text = _string(value)
    if text == "any" or re.fullmatch(_DIGEST, text):
        return text
    _refuse(f"must be {or_else}'any' or 'sha256:' with 64 hexadecimal digits")


def _flag(value: Any) -> bool:
    return value if isinstance(value, bool) else _refuse("must be true or false")


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        _refuse("must be a number of 1 or more")
    return value


def _old(value: Any) -> bytes:
    return _encoded(value) or _refuse("must not be empty")


def _check_target(index: int, fields: dict[str, Any]) -> None:
    """A link must not lead out of the root.  No link above it is followed, so its depth is known."""
    target = fields.get("target")
    if target is None:
        return
    names = [name for name in target.split("/") if name not in ("", ".")]
    ups = next((at for at, name in enumerate(names) if name != ".."), len(names))
    if target.startswith("/") or ".." in names[ups:] or ups >= len(fields["path"]):
        text = (
            '"target" must be relative and stay below the root, with ".." at its beginning only; a link that leads out of '
            f"the root is refused, not {_shown(target)}"
        )
        raise ChangeSetError(text, index)


_STRING: dict[str, Any] = {"type": "string"}
_RELATIVE = {
    "type": "string", "minLength": 1, "maxLength": _PATH_MAX - 1,
    "pattern": r"^(?!/)(?![\s\S]*\u0000)(?!([\s\S]*/)?\.\.(/|(?![\s\S])))([\s\S]*/)?(?!\.?(?![\s\S]))[^/]+(?![\s\S])",
    "description": "a path below the root: relative, without '..'; no symbolic link on the way is followed",
}  # fmt: skip
_EXPECT_CONTENT = {
    "type": "string", "pattern": f"^(any|{_DIGEST})$",
    "description": "what must be there now: the SHA-256 of a regular file, or 'any'",
}  # fmt: skip

_FIELDS = {
    "path": _Field(_path, _RELATIVE),
    "from": _Field(_path, _RELATIVE),
    "to": _Field(_path, _RELATIVE),
    "text": _Field(_encoded, {**_STRING, "description": "the content, written as UTF-8"}),
    "base64": _Field(_base64, {**_STRING, "contentEncoding": "base64", "description": "the content, any bytes"}),
    "source": _Field(
        _plain_path,
        {**_STRING, "minLength": 1, "description": "a regular file to copy the content from; it may be outside the root"},
    ),
    "mode": _Field(_mode, {**_STRING, "pattern": "^[0-7]{3,4}$", "description": "permissions, in octal"}),
    "expect": _Field(
        _expect,
        {
            "type": "string", "pattern": f"^(absent|any|{_DIGEST})$",
            "description": "what must be at 'path' or 'to' now: 'absent', the SHA-256 of a regular file, or 'any'",
        },
    ),
    "expect_content": _Field(_expect_content, _EXPECT_CONTENT),
    "overwrite": _Field(
        _flag, {"type": "boolean", "description": "replace what exists; true by default for write, else false"}
    ),
    "old": _Field(_old, {**_STRING, "minLength": 1, "description": "what to look for in the file"}),
    "new": _Field(_encoded, {**_STRING, "description": "what to put in its place"}),
    "count": _Field(
        _count, {"type": "integer", "minimum": 1, "default": 1, "description": "how often 'old' must occur"}
    ),
    "target": _Field(
        _plain_path, {**_STRING, "minLength": 1, "description": "the target of the link; must not lead out of the root"}
    ),
}  # fmt: skip


def schema() -> dict[str, Any]:
    """The JSON schema of change sets.  It cannot say everything: the parser also refuses keys that are there twice."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A change set for atomik apply",
        "type": "object",
        "properties": {"changes": {"type": "array", "items": {"oneOf": [_schema_of(op) for op in OPERATIONS]}}},
        "required": ["changes"],
        "additionalProperties": False,
    }


def _schema_of(op: str) -> dict[str, Any]:
    required, one_of, optional = OPERATIONS[op]
    fields = (*required, *one_of, *optional)
    properties = {"op": {"const": op}} | {_CALLED.get(field, field): _FIELDS[field].schema for field in fields}
    said = {"type": "object", "properties": properties, "required": ["op", *required], "additionalProperties": False}
    if one_of:
        said["oneOf"] = [{"required": [_CALLED.get(field, field)]} for field in one_of]
    return said
