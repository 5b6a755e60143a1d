"""The public surface is pinned: what is exported, how it is called, and that it is all typed and documented."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import types
from pathlib import Path
from typing import Any

import pytest

import atomik

EXPORTS = {
    "AtomikError", "Capabilities", "Flag", "ItemReceipt", "Mode", "Observation", "Output", "Receipt", "RecoveryReport",
    "State", "Transaction", "errors", "file", "flags", "folder", "observe", "path", "probe", "reading", "recover",
    "rename", "swap", "transaction", "update",
}  # fmt: skip

ERRORS = {
    "AccessDeniedError", "AtomikError", "AtomikOSError", "CommitError", "ConflictError", "CrossFilesystemError",
    "DuplicateDestinationError", "DurabilityError", "FileAlreadyExistsError", "InvalidCrossDeviceError",
    "InvalidDestinationError", "JournalError", "LockTimeoutError", "MissingPathError", "MountPointError",
    "NestedDestinationError", "RollbackError", "TransactionStateError", "UnsupportedFilesystemError", "WrongKindError",
}  # fmt: skip

#: Positional parameters, "*", keyword-only ones; the contract that callers rely upon.
SIGNATURES = {
    "file": "path mode=w overwrite=False tmp_dir=None * encoding=utf-8 errors=None newline=None buffering=-1 **options",
    "folder": "path overwrite=False tmp_dir=None * base=None **options",
    "path": "path overwrite=False tmp_dir=None **options",
    "update": "path mode=r+ * encoding=utf-8 errors=None newline=None **options",
    "transaction": "* overwrite=False durable=True journal=True lock_timeout=60.0 progress=None",
    "Transaction.file": "self path mode=w overwrite=None tmp_dir=None * encoding=utf-8 errors=None newline=None "
    "buffering=-1 **options",
    "Transaction.folder": "self path overwrite=None tmp_dir=None * base=None **options",
    "Transaction.path": "self path overwrite=None tmp_dir=None **options",
    "Transaction.symlink": "self path target overwrite=None * order=0 parents=False",
    "Transaction.remove": "self path * missing_ok=False order=0",
    "Transaction.move": "self src dest overwrite=None * order=0 keep=None",
    "Transaction.commit": "self",
    "Transaction.abort": "self",
    "observe": "path * digest=False",
    "swap": "first second * first_dir_fd=None second_dir_fd=None",
    "rename.rename": "src dst flag=Flag.RENAME_NOREPLACE * src_dir_fd=None dst_dir_fd=None replace=None whiteout=False",
    "rename.renameat2": "src_dir_fd src dst_dir_fd dst flags=0",
}


def test_exports() -> None:
    """Exactly these, and each is really there."""
    assert set(atomik.__all__) == EXPORTS
    for name in EXPORTS:
        assert getattr(atomik, name) is not None
    assert set(dir(atomik)) >= EXPORTS
    assert set(atomik.errors.__all__) == ERRORS


def test_nothing_else_is_public() -> None:
    """Whatever else can be seen in the package begins with an underscore, or is one of its modules."""
    for name in dir(atomik):
        if not name.startswith("_") and name not in EXPORTS:
            value = getattr(atomik, name)
            assert isinstance(value, types.ModuleType) or name in (
                "annotations",
                "import_module",
                "TYPE_CHECKING",
                "Any",
            ), name


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        atomik.nonsense  # type: ignore[attr-defined]  # noqa: B018


def found(dotted: str) -> Any:
    value: Any = atomik
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def shown(function: Any) -> str:
    """A signature in one line, without types."""
    parts: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        default = "" if parameter.default is parameter.empty else f"={parameter.default}"
        default = re.sub(r"=<(.+?):.*>|=(Flag\.\w+)", r"=\1\2", default)
        parts.append({parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + parameter.name + default)
    return " ".join(parts)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    """Names, order, kinds and defaults of parameters."""
    expected = SIGNATURES[name].replace("Flag.RENAME_NOREPLACE", str(atomik.Flag.RENAME_NOREPLACE))
    assert shown(found(name)) == expected


OPTIONS = "durable expect fallback follow_symlinks if_changed keep lock_timeout parents permissions preserve progress"


def test_options() -> None:
    """The keyword options of the shortcuts, and of the items of a transaction."""
    from atomik._shortcuts import OutputOptions
    from atomik._stager import ItemOptions

    assert sorted(OutputOptions.__annotations__) == OPTIONS.split()
    own = {"durable", "lock_timeout", "progress"}
    assert set(ItemOptions.__annotations__) == {*OPTIONS.split(), "order"} - own


def modules() -> list[str]:
    return [name for _, name, _ in pkgutil.iter_modules(atomik.__path__, "atomik.")]


@pytest.mark.parametrize("name", modules())
def test_modules_say_what_they_are_for(name: str) -> None:
    """Each begins with a docstring."""
    try:
        module = importlib.import_module(name)
    except ImportError as exc:
        pytest.skip(f"needs an extra: {exc}")
    assert module.__doc__


@pytest.mark.parametrize("name", sorted(EXPORTS - {"errors", "flags", "rename"}))
def test_everything_public_is_documented(name: str) -> None:
    """With a docstring of its own, and on every public method."""
    value = getattr(atomik, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        for attribute, member in vars(value).items():
            if not attribute.startswith("_") and callable(member) and not isinstance(member, type):
                assert inspect.getdoc(getattr(value, attribute)), attribute


def test_typed() -> None:
    """The marker that lets type checkers read the annotations is part of the package."""
    assert Path(str(atomik.__file__)).with_name("py.typed").exists()


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", atomik.__version__)


def test_states_and_values() -> None:
    """The words that programs compare with."""
    assert [state.value for state in atomik.State] == [
        "open",
        "prepared",
        "swapped",
        "committed",
        "aborted",
        "in doubt",
    ]
    assert atomik.rename.__all__ == ["exchange", "rename", "renameat2", "swap"]
