"""What mypy and pyright say of right and of wrong programs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atomik
from tests.published.test_readme import README, blocks

pytest.importorskip("mypy", reason="needs mypy")
pytestmark = pytest.mark.sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(atomik.__file__).parents[1]

#: Each line with a comment must be an error, and no other.
WRONG = """\
import atomik
with atomik.transaction() as tx:
    made = tx.folder("plots")
    (made / "x.svg").write_txt("<svg/>")  # no such method
    made.mkdirr()  # no such method
    number: int = tx.path("x")  # a path is no int
    tx.file("a", "wb").write("text")  # text into a binary file
    tx.file("b").write(b"bytes")  # bytes into a text file
    tx.file("c", overwrit=True)  # no such option
    tx.file("d", preserve="everything")  # no such value
    tx.folder("e", base=True)  # a path is wanted
with atomik.folder("site", copy=True) as site:
    site.write_txt("x")  # no such method
with atomik.path("data.npz") as name:
    name.suffixx  # no such attribute
atomik.flie("x")  # no such function
atomik.recovr(".")  # no such function
atomik.testing.crash_pionts(1)  # no such function
atomik.Transactoin  # no such class
with atomik.update("c.json") as text:
    text.write(b"bytes")  # bytes into a text file
with atomik.update("c.bin", "r+b") as binary:
    binary.write("text")  # text into a binary file
with atomik.update("c.bin", "rb+") as also:
    also.write("text")  # text into a binary file
receipt = atomik.file("x").commit()
if receipt.items[0].op == "created":  # never equal
    pass
if receipt.items[0].method == "renameat":  # never equal
    pass
if receipt.synced_by == "sync":  # never equal
    pass
receipt.barrier  # no such attribute
atomik.file("x").transaction.receipt.items  # there may be none
atomik.observe("x").mtime  # no such attribute
with atomik.file("y") as one:
    one.receipt.items  # there may be none
atomik.transaction(progress=False)  # a function or True
"""

RIGHT = """\
from pathlib import Path
from typing import BinaryIO, TextIO
import atomik
with atomik.transaction(overwrite=True, durable="syncfs") as tx:
    text: TextIO = tx.file("a")
    binary: BinaryIO = tx.file("b", "wb", expect="absent")
    made: Path = tx.folder("plots", copy=True)
    (made / "loss.svg").write_text("<svg/>")
    path: Path = tx.path("c.npz", permissions=0o640)
    tx.move("old", "older", backup=lambda path: path + ".bak")
    receipt = tx.commit()
    print([item.op == "create" for item in receipt.items], receipt.synced_by == "fsync+syncfs")
with atomik.file("x", "ab", expect="any") as log:
    log.write(b"line")
with atomik.update("c.json") as file:
    file.write("text")
with atomik.update("c.bin", "r+b") as data:
    data.write(b"bytes")
seen = atomik.observe(Path("x"), digest=True)
with atomik.file("x", expect=seen) as f:
    f.write("x")
try:
    with atomik.path(Path("data.npz"), True) as name:
        name.with_suffix(".txt").read_bytes()
except atomik.errors.DurabilityError as exc:
    print(exc.filename)
with atomik.file("y") as one, atomik.file("z", "wb") as two, atomik.folder("d", progress=True) as three:
    one.write("x")
    two.write(b"x")
json_or_text: TextIO = one
raw: BinaryIO = two
print([each.receipt.as_dict() for each in (one, two, three) if each.receipt is not None])
async def publish() -> None:
    async with atomik.file("x") as f, atomik.transaction() as tx:
        f.write("x")
        tx.file("y").write("y")
    async with atomik.path("z") as name:
        name.write_text("z")
for promise in atomik.probe(".").promises:
    print(promise.name, promise.holds == "yes")
"""


def mypy(folder: Path) -> dict[tuple[str, int], str]:
    """The lines with an error in the programs of a folder, and what it is."""
    names = sorted(path.name for path in folder.glob("*.py"))
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", *names]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)
    assert done.returncode in (0, 1), done.stderr + done.stdout
    found = re.findall(r"^(\w+\.py):(\d+): error: (.*)", done.stdout, re.MULTILINE)
    assert found or done.returncode == 0, done.stdout
    return {(name, int(line)): text for name, line, text in found}


def pyright(folder: Path) -> dict[tuple[str, int], str]:
    """The same."""
    pytest.importorskip("pyright", reason="needs pyright")
    options = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "reportUnusedImport": False}
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)], **options}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)
    if not done.stdout.lstrip().startswith("{"):
        pytest.skip(f"pyright cannot run here: {(done.stderr or done.stdout)[-200:]}")
    said = json.loads(done.stdout)
    assert said["summary"]["filesAnalyzed"] == len(list(folder.glob("*.py")))
    return {
        (os.path.basename(each["file"]), each["range"]["start"]["line"] + 1): each["message"]
        for each in said["generalDiagnostics"]
        if each["severity"] == "error"
    }


CHECKERS = {"mypy": mypy, "pyright": pyright}
EACH_CHECKER = pytest.mark.parametrize("found", CHECKERS, indirect=True)


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], str]:
    """What one checker finds in all the programs, right and wrong; it takes seconds to start."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "wrong.py").write_text(WRONG)
    (folder / "right.py").write_text(RIGHT)
    for line, text in programs() if README.exists() else ():
        (folder / f"readme_{line}.py").write_text(text)
    return CHECKERS[request.param](folder)


@EACH_CHECKER
def test_mistakes_are_found(found: dict[tuple[str, int], str]) -> None:
    """Each wrong line is an error, and no other line of that program is."""
    wrong = {("wrong.py", number) for number, line in enumerate(WRONG.splitlines(), 1) if "  # " in line}
    told = {at for at in found if at[0] == "wrong.py"}
    assert told == wrong, {at: found.get(at, "not found") for at in wrong ^ told}


@EACH_CHECKER
def test_right_programs_pass(found: dict[tuple[str, int], str]) -> None:
    """What the documentation recommends is not an error to a strict checker, nor are the README's programs."""
    assert {at: text for at, text in found.items() if at[0] != "wrong.py"} == {}


def programs() -> Iterator[tuple[int, str]]:
    """(line, program) of each Python block, completed by the imports and functions of the ones before."""
    known: dict[str, str] = {}
    for line, text in blocks("python"):
        own = dict(re.findall(r"^((?:import|from) .*?(\w+))$", text, re.MULTILINE))
        names = {name: statement for statement, name in own.items()}
        if defined := re.search(r"^def (\w+)\(.*?(?=^\S)", text + "\nx", re.MULTILINE | re.DOTALL):
            names[defined[1]] = defined[0]
        yield line, "\n".join(_needed(text, {**known, **dict.fromkeys(names, "")})) + "\n" + text
        known |= names


def _needed(text: str, known: dict[str, str]) -> list[str]:
    """The definitions of the names that occur in `text`, and of those that occur in these."""
    found: dict[str, str] = {}
    while more := [
        name for name in known if name not in found and re.search(rf"\b{name}\b", text + "".join(found.values()))
    ]:
        found |= {name: known[name] for name in more}
    return sorted(filter(None, found.values()), key=lambda each: not each.startswith(("import", "from")))
