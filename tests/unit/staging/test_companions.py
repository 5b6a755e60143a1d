"""What ``also=`` means, without a filesystem."""

from __future__ import annotations

import pytest

from atomik import errors
from atomik._staging.companions import checked, names_of


@pytest.mark.parametrize(
    ("name", "also", "names"),
    [
        ("data.shp", [".shx", "data.shp.xml"], ["data.shx", "data.shp.xml"]),
        ("data", [".shx"], ["data.shx"]),
        (".data", [".shx"], [".data.shx"]),
        ("a.tar.gz", [".sig", "a.tar.gz.sig"], ["a.tar.sig", "a.tar.gz.sig"]),
        ("data.shp", [], []),
    ],
)
def test_names(name: str, also: list[str], names: list[str]) -> None:
    """A suffix takes the place of the destination's own, everything else is a name."""
    assert names_of(also, name, f"/x/{name}") == names


@pytest.mark.parametrize(
    "also", [["/x"], ["a/b"], [".."], ["."], [""], ["../x"], ["data.shp-wal"], ["data.shp-journal"]]
)
def test_no_names(also: list[str]) -> None:
    """What leads elsewhere, and a database's log."""
    with pytest.raises(errors.InvalidDestinationError) as caught:
        names_of(also, "data.shp", "/x/data.shp")
    assert caught.value.filename2 == "/x/data.shp"


@pytest.mark.parametrize("also", [[".shp"], ["data.shp"], [".shx", ".shx"], [".shx", "data.shx"]])
def test_twice(also: list[str]) -> None:
    """Each name once, and not the destination's own."""
    with pytest.raises(errors.DuplicateDestinationError):
        names_of(also, "data.shp", "/x/data.shp")


def test_checked() -> None:
    """A single name is a common mistake; one name for all previous versions cannot be."""
    assert checked((name for name in (".a", ".b")), {}) == (".a", ".b")
    assert checked([], {"backup": "old"}) == ()
    for wrong in (".shx", b".shx", [3]):
        with pytest.raises(TypeError):
            checked(wrong, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a function"):
        checked([".a"], {"backup": "old"})
