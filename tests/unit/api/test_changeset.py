"""Change sets: what the parser takes, what it refuses, and that the schema says the same."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
from typing import Any

import hypothesis.strategies as st
import jsonschema
import pytest
from hypothesis import given, settings

from atomik._api.changeset import OPERATIONS, ChangeSetError, parse, schema

WRITE = {"op": "write", "path": "a", "text": "t"}
SHA = "sha256:" + "0" * 64


def changes(*given: Any) -> bytes:
    return json.dumps({"changes": given}).encode()


def test_what_it_means() -> None:
    """Paths become names, content bytes, modes numbers."""
    found = parse(
        changes(
            {"op": "write", "path": "./a//b/./c", "text": "é", "mode": "0640", "expect": "absent", "overwrite": False},
            {"op": "write", "path": "a", "base64": "/wA=", "expect": SHA},
            {"op": "write", "path": "a", "from": "/else/where"},
            {"op": "replace", "path": "a", "old": "x", "new": "", "count": 3, "expect": "any"},
            {"op": "remove", "path": "a", "expect": SHA.upper().replace("SHA", "sha")},
            {"op": "move", "from": "a", "to": "b", "overwrite": True},
            {"op": "copy", "from": "a", "to": "b", "expect": "absent"},
            {"op": "symlink", "path": "d/l", "target": "../a"},
        )
    )
    assert [change.number for change in found] == list(range(8))
    assert [change.op for change in found][:4] == ["write", "write", "write", "replace"]
    assert found[0].fields == {
        "path": ("a", "b", "c"), "text": "é".encode(), "mode": 0o640, "expect": "absent", "overwrite": False,
    }  # fmt: skip
    assert found[1].fields["base64"] == b"\xff\0"
    assert found[2].fields["source"] == "/else/where"
    assert found[3].fields["old"] == b"x"
    assert found[3].fields["count"] == 3
    assert parse(b'{"changes": []}') == []


REFUSED = {
    '{"changes": []': "not JSON",
    "": "not JSON",
    "[]": "must be an object",
    "{}": 'one key, "changes"',
    '{"changes": [], "more": 1}': 'one key, "changes"',
    '{"changes": [], "changes": []}': '"changes" occurs twice',
    '{"changes": {}}': "must be a list",
    '{"changes": NaN}': "must be a list",
    '{"changes": [1]}': r"changes\[0\]: a change must be an object, not 1",
    '{"changes": [{"op": "write", "path": "a", "text": "", "path": "b"}]}': r'changes\[0\]: the key "path" occurs twice',
    "[" * 100_000: "too deeply",
    '{"changes": ' + '{"a":' * 100_000: "too deeply",
    '{"changes": [' + "9" * 5000 + "]}": "not JSON",
    '{"changes": [{"op": "replace", "path": "a", "old": "x", "new": "", "count": Infinity}]}': "NaN or an infinity",
    '{"changes": [{"op": "replace", "path": "a", "old": "x", "new": "", "count": 1e999}]}': "1 or more",
}


@pytest.mark.parametrize("document", REFUSED, ids=lambda text: text[:30])
def test_documents_refused(document: str) -> None:
    with pytest.raises(ChangeSetError, match=REFUSED[document]):
        parse(document.encode())


def test_not_utf8() -> None:
    with pytest.raises(ChangeSetError, match="not UTF-8: byte 13 is 0xff"):
        parse(b'{"changes": "\xff"}')


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"path": "a"}, '"op" must be one of write,'),
    ({"op": ["write"]}, '"op" must be'),
    ({"op": "chmod", "path": "a"}, 'not "chmod"'),
    ({**WRITE, "txt": ""}, 'unknown key "txt"; write has path, text, base64, from'),
    ({"op": "write", "text": ""}, 'the key "path" is missing'),
    ({"op": "write", "path": "a"}, "exactly one of text, base64, from"),
    ({**WRITE, "base64": ""}, "exactly one of"),
    ({**WRITE, "text": 1}, '"text" must be a string, not 1'),
    ({**WRITE, "text": "\ud800"}, "lone surrogates"),
    ({**WRITE, "path": "\ud800"}, "can be encoded"),
    ({**WRITE, "text": None}, "not null"),
    ({**WRITE, "mode": 420}, '"mode" must be a string'),
    ({**WRITE, "mode": "0o644"}, "octal digits"),
    ({**WRITE, "mode": "644\n"}, "octal digits"),
    ({**WRITE, "overwrite": 1}, "true or false"),
    ({**WRITE, "expect": "sha256:12"}, "64 hexadecimal"),
    ({**WRITE, "expect": "md5:" + "0" * 64}, "64 hexadecimal"),
    ({"op": "write", "path": "a", "base64": "aGk"}, "base64"),
    ({"op": "write", "path": "a", "base64": "aG\nk="}, "base64"),
    ({"op": "write", "path": "a", "from": ""}, "1 to 4095 bytes"),
    ({"op": "replace", "path": "a", "old": "", "new": "x"}, "must not be empty"),
    ({"op": "replace", "path": "a", "old": "x", "new": "y", "count": 0}, "1 or more"),
    ({"op": "replace", "path": "a", "old": "x", "new": "y", "count": True}, "1 or more"),
    ({"op": "replace", "path": "a", "old": "x", "new": "y", "count": 1.0}, "1 or more"),
    ({"op": "remove", "path": "a", "expect": "absent"}, "'any' or 'sha256:'"),
    ({"op": "remove", "path": "a", "overwrite": True}, "unknown key"),
    *(({"op": "remove", "path": path}, "'..'|bytes without NUL") for path in (
        "", "/", "/etc/passwd", "..", "../a", "a/..", "a/../b", ".", "./", "a/", "a/.", "a\0b", "x" * 4096, "//a",
    )),
    ({"op": "remove", "path": "a/.atomik-journal"}, "reserved for atomik"),
    ({"op": "write", "path": ".atomik-0123456789abcdef/x", "text": ""}, "reserved for atomik"),
    *(({"op": "symlink", "path": path, "target": target}, "leads out of the root") for path, target in (
        ("l", "/etc/passwd"), ("l", ".."), ("l", "../a"), ("d/l", "../../a"), ("d/l", "x/../../../a"), ("l", "a/../.."),
        ("d/l", "./../.."),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("change", "why"), WRONG)
def test_changes_refused(change: dict[str, Any], why: str) -> None:
    """Each error names the change by its index."""
    with pytest.raises(ChangeSetError, match=why) as caught:
        parse(changes(WRITE, change))
    assert str(caught.value).startswith("changes[1]: ")
    assert caught.value.change == 1
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.change) == (str(caught.value), 1)


# --- the schema ------------------------------------------------------------------------------------------------------
VALID = jsonschema.Draft202012Validator(schema())
#: what only the parser can see
BEYOND = ("surrogates", "encoded", "base64", "leads out", "reserved for atomik", r"octal.*\\n", "4095 bytes")


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert json.loads(json.dumps(schema())) == schema()


@pytest.mark.parametrize(("change", "why"), WRONG)
def test_the_schema_refuses_the_same(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ChangeSetError) as caught:
        parse(changes(change))
    if change.get("count") == 1.0 and change["count"] is not True:
        return  # to JSON schema 1.0 is an integer
    if not any(re.search(text, str(caught.value)) for text in BEYOND):
        assert not VALID.is_valid({"changes": [change]})


PATHS = st.one_of(
    st.sampled_from(
        ["a", "a/b", "./a", "a//b", "..", "../a", "/a", "a/", "", "a/./b", "..a", "a..", "...", "a\n/b", "\n"]
    ),
    st.text(st.sampled_from("ab./\n\0é"), max_size=8),
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "path": PATHS, "from": PATHS, "to": PATHS, "target": PATHS,
    "text": st.text(max_size=5), "old": st.text(max_size=3), "new": st.text(max_size=3),
    "base64": st.sampled_from(["", "aGk=", "aGk", "?"]),
    "mode": st.sampled_from(["644", "0644", "9", "", "00644"]),
    "expect": st.sampled_from(["absent", "any", SHA, SHA[:-1], "", "ANY"]),
    "overwrite": st.booleans(), "count": st.integers(-1, 3),
}  # fmt: skip
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
CHANGES = st.fixed_dictionaries(
    {"op": st.sampled_from([*OPERATIONS])},
    optional={key: st.one_of(value, value, value, ANYTHING) for key, value in VALUES.items()},
).flatmap(lambda change: st.just(change) | st.sets(st.sampled_from([*change])).map(
    lambda gone: {key: value for key, value in change.items() if key not in gone or key == "op"}
))  # fmt: skip


@pytest.mark.sweep
@settings(max_examples=100, deadline=None)
@given(st.lists(CHANGES, max_size=3))
def test_what_the_parser_takes_is_valid(given_changes: list[dict[str, Any]]) -> None:
    """The parser accepts or raises its error, and what it accepts the schema accepts; no path of it leaves the root."""
    try:
        found = parse(changes(*given_changes))
    except ChangeSetError:
        return
    assert VALID.is_valid({"changes": given_changes})
    for change in found:
        for field in ("path", "from", "to"):
            names = change.fields.get(field, ("a",))
            assert names
            assert all(name and name not in (".", "..") and not set(name) & {"/", "\0"} for name in names)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*OPERATIONS]), st.data())
def test_what_is_valid_the_parser_takes(op: str, data: st.DataObject) -> None:
    """And the other way round, except for what only the parser can see."""
    required, one_of, optional = OPERATIONS[op]
    called = {"source": "from", "expect_content": "expect"}
    fields = [
        *required,
        *([data.draw(st.sampled_from(one_of))] if one_of else []),
        *data.draw(st.sets(st.sampled_from(optional))),
    ]
    change = {"op": op} | {called.get(field, field): data.draw(VALUES[called.get(field, field)]) for field in fields}
    if VALID.is_valid({"changes": [change]}):
        try:
            parse(changes(change))
        except ChangeSetError as exc:
            if not any(re.search(text, str(exc)) for text in BEYOND):
                raise


SCRAPS = st.text(st.sampled_from('{}[]":,changes0 NaN\\u'), max_size=40).map(str.encode)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=60), ANYTHING.map(lambda value: json.dumps(value).encode()), SCRAPS))
def test_noise(document: bytes) -> None:
    """Whatever comes in, the answer is a list of changes or a `ChangeSetError`."""
    with contextlib.suppress(ChangeSetError):
        assert isinstance(parse(document), list)
