"""The public surface is pinned: what is exported, how it is called, and that it is all typed and documented."""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import atomik

EXPORTS = {
    "AtomikError", "Capabilities", "Flag", "ItemReceipt", "Mode", "Observation", "Output", "PlannedChange", "Receipt",
    "RecoveryReport", "RunResult", "Snapshot", "State", "Transaction", "edit", "errors", "file", "flags", "folder",
    "observe", "path", "probe", "reading", "recover", "rename", "run_in", "snapshot", "swap", "transaction", "update",
    "write_bytes", "write_text",
}  # fmt: skip

ERRORS = {
    "AccessDeniedError", "AtomikError", "AtomikOSError", "CommitError", "ConflictError", "CrossFilesystemError",
    "DuplicateDestinationError", "DurabilityError", "FileAlreadyExistsError", "InvalidCrossDeviceError",
    "InvalidDestinationError", "JournalError", "LockTimeoutError", "MissingPathError", "MountPointError",
    "NamespaceError", "NestedDestinationError", "RollbackError", "StillRunningError", "TransactionStateError",
    "UndecidedError", "UnsupportedFilesystemError", "WrongKindError",
}  # fmt: skip

#: Positional parameters, "*", keyword-only ones; the contract that callers rely upon.
SIGNATURES = {
    "file": "path=None mode=w overwrite=False tmp_dir=None * encoding=utf-8 errors=None newline=None buffering=-1 **options",
    "folder": "path overwrite=False tmp_dir=None * base=None copy=False resume=False in_place=False **options",
    "path": "path overwrite=False tmp_dir=None * resume=False also=() **options",
    "update": "path mode=r+ * encoding=utf-8 errors=None newline=None **options",
    "transaction": "* overwrite=False durable=True lock_timeout=60.0 progress=None coordinator= cleanup=now",
    "edit": "path function * binary=False encoding=utf-8 errors=None newline= attempts=10 **options",
    "write_bytes": "path data overwrite=False **options",
    "write_text": "path data overwrite=False * encoding=utf-8 errors=None newline=None **options",
    "Transaction.file": "self path mode=w overwrite=None tmp_dir=None * encoding=utf-8 errors=None newline=None "
    "buffering=-1 **options",
    "Transaction.folder": "self path overwrite=None tmp_dir=None * base=None copy=False resume=False "
    "in_place=False **options",
    "Transaction.path": "self path overwrite=None tmp_dir=None * resume=False also=() **options",
    "Transaction.symlink": "self path target overwrite=None * order=0 parents=False expect=None",
    "Transaction.remove": "self path * missing_ok=False order=0 expect=None",
    "Transaction.move": "self src dest overwrite=None * order=0 backup=None expect=None",
    "Transaction.copy": "self src dest overwrite=None **options",
    "Transaction.exchange": "self first second * order=0 expect=None",
    "Transaction.write_text": "self path data overwrite=None * encoding=utf-8 errors=None newline=None **options",
    "Transaction.write_bytes": "self path data overwrite=None **options",
    "Transaction.exists": "self path",
    "Transaction.open": "self path mode=r buffering=-1 * encoding=utf-8 errors=None newline=None",
    "Transaction.expect": "self path expected",
    "Transaction.drop": "self path",
    "Transaction.plan": "self",
    "Transaction.prepare": "self",
    "Transaction.commit": "self",
    "Transaction.abort": "self",
    "observe": "path * digest=False",
    "run_in": "folder args * changes_only=False overwrite_changes=False background=refuse keep_on_failure=None durable=True "
    "lock_timeout=60.0 progress=None **subprocess_options",
    "swap": "first second * first_dir_fd=None second_dir_fd=None durable=False lock_timeout=60.0",
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
    """Completion and help offer the exports, the module for tests, and nothing that the package happens to import."""
    offered = {name for name in dir(atomik) if not name.startswith("__")}
    assert offered == EXPORTS | {"testing"}


#: What each class offers; the rest of its names begin with an underscore.
MEMBERS = {
    "Transaction": "abort commit copy drop exchange exists expect file folder items move open path plan prepare receipt "
    "remove state symlink txid write_bytes write_text",
    "Output": "abort commit output receipt transaction",
    "Observation": "absent ctime_ns digest identity mtime_ns path size tree",
    "Receipt": "as_dict barriers durable duration items leftovers state sync_calls synced_by txid visible",
    "ItemReceipt": "as_dict backup broken_links kind method not_preserved op order path replaced replaced_link",
    "PlannedChange": "as_dict kind method op order path",
    "RecoveryReport": "clean items kept",
    "testing.CrashPoint": "call number returned when",
}


@pytest.mark.parametrize("name", MEMBERS)
def test_classes_offer_nothing_internal(name: str) -> None:
    """Methods that only atomik's own modules call do not look as if they were for users."""
    assert [member for member in dir(found(name)) if not member.startswith("_")] == MEMBERS[name].split()


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


OPTIONS = (
    "allow_gap backup cleanup durable expect follow_symlinks if_changed lock_timeout parents permissions preserve "
    "progress"
)


def test_options() -> None:
    """The keyword options of the shortcuts, and of the items of a transaction."""
    from atomik._api.shortcuts import OutputOptions
    from atomik._staging.options import ItemOptions

    assert sorted(OutputOptions.__annotations__) == OPTIONS.split()
    own = {"cleanup", "durable", "lock_timeout", "progress"}
    assert set(ItemOptions.__annotations__) == {*OPTIONS.split(), "order"} - own


DESCRIBED = [
    "file", "folder", "path", "update", "transaction", "observe", "reading", "recover", "probe", "swap",
    "rename.rename", "rename.renameat2", "rename.swap", "testing.crash_points", "testing.recorded",
    "Transaction.symlink", "Transaction.remove", "Transaction.move", "Transaction.copy", "Transaction.exchange",
    "Transaction.open", "edit", "write_bytes", "write_text",
]  # fmt: skip


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_parameter_is_described(name: str) -> None:
    """Help names each parameter, and none that is not there; shared options are those of `file`."""
    function = found(name)
    text = inspect.getdoc(function) or ""
    parameters = {each for each in inspect.signature(function).parameters if each not in ("self", "options")}
    for parameter in parameters:
        assert re.search(rf"[`: ,]{parameter}[`:,=]", text), parameter
    told = {
        each
        for names in re.findall(r":param (?:int |str |bool |float )?([\w, ]+):", text)
        for each in names.split(", ")
    }
    assert told <= parameters | set(OPTIONS.split()), told - parameters


def test_help_of_a_transaction_is_enough() -> None:
    """It shows every method, every option of an output, and every error."""
    text = inspect.getdoc(atomik.transaction) or ""
    for method in "file folder path symlink remove move copy exchange expect drop commit abort".split():
        assert f"tx.{method}(" in text
    for option in {*OPTIONS.split(), "order", "overwrite", "tmp_dir"}:
        assert re.search(rf"\b{option}[=:`]", text), option
    for error in ERRORS - {"AtomikOSError", "InvalidCrossDeviceError", "NamespaceError", "StillRunningError"}:
        assert f"`{error}`" in text, error


def modules() -> list[str]:
    return [name for _, name, _ in pkgutil.walk_packages(atomik.__path__, "atomik.") if name != "atomik.__main__"]


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


@pytest.mark.parametrize("name", sorted(EXPORTS - {"errors", "flags", "rename"} | {"Recovered", "Promise"}))
def test_where_a_thing_is_defined_does_not_show(name: str) -> None:
    """Pickles, tracebacks and help() name the package alone, so that no later move breaks them."""
    value = getattr(atomik, name)
    assert value.__module__ == "atomik"
    assert pickle.loads(pickle.dumps(value)) is value


def test_what_users_get_survives_pickling(folder: Path) -> None:
    """Also in a process that never named its class; and what a new process reads is equal."""
    Path("x").write_text("old")
    output = atomik.file("x", overwrite=True, backup="x.bak")
    with output:
        pass
    got = [
        output.receipt,
        atomik.State.OPEN,
        atomik.observe("x"),
        atomik.probe("."),
        atomik.recover("."),
        atomik.Mode.TEXT,
    ]
    blob = pickle.dumps(got)
    assert set(re.findall(rb"atomik[\w.]*", blob)) <= {b"atomik"}, "a pickle names a module"
    assert pickle.loads(blob) == got
    code = "import pickle, sys; sys.stdout.write(repr(pickle.load(sys.stdin.buffer)))"
    env = {**os.environ, "PYTHONPATH": str(Path(str(atomik.__file__)).parents[1])}
    assert subprocess.run(
        [sys.executable, "-c", code], input=blob, env=env, stdout=subprocess.PIPE, check=True
    ).stdout.decode() == repr(got)


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
