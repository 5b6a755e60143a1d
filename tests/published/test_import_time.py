"""``import atomik`` costs next to nothing: what is heavy is loaded by the first call that needs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import atomik

#: Heavy, or not needed before something is written.
HEAVY = [
    "structlog", "ssl", "asyncio", "subprocess", "shutil", "ctypes", "hashlib", "tempfile", "socket", "inspect",
    "pathlib", "json", "multiprocessing", "concurrent.futures", "email", "importlib.metadata", "fsspec",
    "atomik._api.transaction", "atomik._commit.commit", "atomik._recovery.recover", "atomik._system.libc",
    "atomik._tree.delete",
]  # fmt: skip

#: None of these is ever needed to write a file or a folder.
NEVER = [
    "structlog", "ctypes", "ssl", "asyncio", "subprocess", "shutil", "hashlib", "socket", "tempfile", "multiprocessing",
]  # fmt: skip

#: Single files, folders and a transaction.
WRITING = """
import os, atomik
with atomik.file("a") as f: f.write("x")
with atomik.file("a", overwrite=True) as f: f.write("y")
with atomik.folder("d") as d: os.mkdir(os.path.join(d, "x"))
with atomik.folder("d", overwrite=True): pass
with atomik.transaction(overwrite=True) as tx:
    tx.file("a").write("z")
    tx.remove("d")
"""


def run(code: str, *flags: str, cwd: Path | None = None) -> str:
    env = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}
    env.pop("COVERAGE_PROCESS_START", None)
    env.pop("COVERAGE_PROCESS_CONFIG", None)
    command = [sys.executable, *flags, "-c", code]
    done = subprocess.run(
        command, env=env, cwd=cwd, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def loaded_by(code: str, among: list[str], cwd: Path | None = None) -> list[str]:
    """Which of the modules `code` loads, beyond what a bare interpreter and ``import attrs, logging`` do."""
    start = "import sys, attrs, logging; before = set(sys.modules)\n"
    end = f"\nprint(*[name for name in {among!r} if name in sys.modules and name not in before])"
    return run(start + code + end, cwd=cwd).split()


def test_import_loads_nothing_heavy() -> None:
    """Neither structlog nor ctypes nor our own machinery."""
    assert loaded_by("import atomik", HEAVY) == []


def test_writing_loads_only_what_it_needs(tmp_path: Path) -> None:
    """A file, a folder and a transaction work without any of these."""
    assert loaded_by(WRITING, NEVER, cwd=tmp_path) == []


def test_writing_does_without_typing(tmp_path: Path) -> None:
    """It loads `re` and more, and takes longer than many a first file (see `atomik._typing`).  Folders need pathlib."""
    files = "\n".join(line for line in WRITING.splitlines() if "folder" not in line and "remove" not in line)
    code = f"import sys\n{files}\nprint(*{{'typing', 're', 'attrs'}} & set(sys.modules))"
    assert run(code, "-S", cwd=tmp_path).split() == []
    assert os.listdir(tmp_path) == ["a"]


def test_a_command_loads_only_what_it_needs(tmp_path: Path) -> None:
    """A short one would take longer to start than to work."""
    code = "import sys; from atomik.cli import main; main(['write', 'a'])"
    code += f"\nprint(*{{*{NEVER!r}, 'signal', 'threading', 'locale', 'typing', 'json'}} & set(sys.modules))"
    assert run(code, "-S", cwd=tmp_path).split() == []


def test_import_has_no_side_effects(tmp_path: Path) -> None:
    """Importing opens nothing, starts nothing and writes nothing."""
    code = """
import os, sys, threading
before = len(os.listdir("/proc/self/fd"))
import atomik
assert len(os.listdir("/proc/self/fd")) == before
assert threading.active_count() == 1
assert os.listdir() == []
"""
    assert run(code, cwd=tmp_path) == ""


def cost(modules: str) -> int:
    """Microseconds of the whole import, the best of some."""

    def once() -> int:
        lines = run(f"import {modules}", "-X", "importtime").splitlines()
        top = [line.split("|") for line in lines if line.startswith("import time:") and "cumulative" not in line]
        return sum(int(line[0].split(":")[1]) for line in top)

    return min(once() for _ in range(3))


@pytest.mark.slow
def test_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not asserted: a time is the machine's, what is loaded is ours."""
    base, ours = cost("attrs, logging"), cost("attrs, logging, atomik")
    with capsys.disabled():
        print(f"\nimport attrs, logging: {base} µs; with atomik: {ours} µs; ratio {ours / base:.2f}")
    assert ours > 0
