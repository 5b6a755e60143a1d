"""The documentation is true: its code runs, its outputs are what comes out, its lists are those of the code.

In the pages, a ``python`` block is executed (all of one page in one namespace, in a fresh folder), a ``console`` block
is given to a shell line by line, and an ``output`` block behind a ``python`` block must be what that block printed; ``…``
stands for whatever varies.  Blocks in other languages are not run.  ``% skip: next "reason"`` leaves one out.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import functools
import importlib
import inspect
import io
import itertools
import json
import logging
import os
import re
import subprocess
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

import atomik
from atomik._api.run_in import refuse_where_impossible
from atomik._protocol.step import Undone

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
#: Languages of blocks: those that run, and those that are only shown.
RUN = {"python", "console", "output"}
SHOWN = {"text", "ini", "toml", "yaml", "json", "c", "sh"}
DIRECTIVES = {
    "toctree",
    "picture",
    "eval-rst",
    "note",
    "warning",
    "list-table",
    "only",
    "image",
    "figure",
    "raw",
    "tip",
}


def like(wanted: str, got: str) -> bool:
    """Whether `got` is `wanted`, in which ``…`` stands for anything."""
    parts = [re.escape(part) for part in re.split(r"\s*…\s*", wanted.strip())]
    return re.fullmatch(r"\s*.*?\s*".join(parts), got.strip(), re.DOTALL) is not None


#: packages that pages are about, and that a plain test environment has not
OPTIONAL = {"dask", "distributed", "fsspec", "jinja2", "numpy", "pandas", "pyarrow", "xarray", "zarr"}


class Runner:
    """Evaluates the blocks of one page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed = ""
        self.out = io.StringIO()  # one for the whole page: a logger that a block sets up goes on writing to it

    def python(self, example) -> str | None:
        source = "\n" * (example.line + example.parsed.line_offset) + example.parsed
        try:
            with contextlib.redirect_stdout(self.out):
                exec(compile(source, example.path, "exec", dont_inherit=True), example.namespace)
        except ModuleNotFoundError as exc:
            if exc.name not in OPTIONAL:
                raise
            pytest.skip(f"needs {exc.name}, which is not installed")
        self.printed = self.out.getvalue()
        self.out.seek(0)
        self.out.truncate()
        return None

    def output(self, example) -> str | None:
        wanted, got = str(example.parsed), self.printed
        return None if like(wanted, got) else f"wanted:\n{wanted}\ngot:\n{got}"

    def console(self, example) -> str | None:
        for command, wanted in commands(str(example.parsed)):
            done = subprocess.run(
                ["bash", "-c", command], cwd=self.folder, env=self.environment(), text=True, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
            )  # fmt: skip
            if not like(wanted, done.stdout):
                return f"$ {command}\nwanted:\n{wanted}\ngot (exit code {done.returncode}):\n{done.stdout}"
        return None

    def environment(self) -> dict[str, str]:
        """An environment in which ``python`` and ``atomik`` are the ones under test."""
        programs = self.folder.parent / "bin"
        if not programs.exists():
            programs.mkdir()
            for name, arguments in (("python", ""), ("atomik", " -m atomik")):
                (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable}{arguments} "$@"\n')
                (programs / name).chmod(0o755)
        path = f"{programs}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"}


def commands(block: str) -> list[tuple[str, str]]:
    """(command, output) of a console block: lines that begin with ``$ `` and go on after a backslash."""
    found: list[list[str]] = []
    goes_on = False
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append([line[2:], ""])
        elif goes_on:
            found[-1][0] += "\n" + line.removeprefix("> ")
        else:
            found[-1][1] += line + "\n"
        goes_on = found[-1][1] == "" and line.endswith("\\")
    return [(command, output) for command, output in found]


@pytest.fixture
def settings_of_the_process() -> Iterator[None]:
    """What a page may change for the whole process, and is put back afterwards."""
    root = logging.getLogger()
    umask, handlers, level = os.umask(0o022), root.handlers[:], root.level
    yield
    os.umask(umask)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


#: these pages start many programs, so a plain run leaves them to the sweeps
OF_PROGRAMS = {page for page in PAGES if page.parent.name == "howto"} | {
    DOCS / "reference" / "command-line.md",
    DOCS / "tutorial.md",
}
EACH_PAGE = [pytest.param(page, marks=pytest.mark.sweep) if page in OF_PROGRAMS else page for page in PAGES]


@pytest.mark.usefixtures("settings_of_the_process")
@pytest.mark.parametrize("page", EACH_PAGE, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_code_in_a_page_does_what_the_page_says(page: Path, folder: Path) -> None:
    """Every block of code in the documentation runs, and prints what is said to be printed."""
    sybil = pytest.importorskip("sybil", reason="needs sybil (pip install '.[docs]')")
    myst = pytest.importorskip("sybil.parsers.myst")
    if page.name == "run-in.md":
        skip_without_namespaces(folder)
    runner = Runner(folder)
    kinds = {name: getattr(runner, name) for name in RUN}
    parsers = [myst.CodeBlockParser(language, evaluator) for language, evaluator in kinds.items()]
    document = sybil.Sybil([*parsers, myst.SkipParser()]).parse(page)
    for example in document.examples():
        with contextlib.suppress(unittest.SkipTest):
            example.evaluate()


def fences(page: Path) -> list[str]:
    """The info strings of the page's fenced blocks, those inside other blocks too."""
    found, open_ones = [], []
    for line in page.read_text(encoding="utf-8").splitlines():
        match = re.match(r"\s*(`{3,}|:{3,})\s*([^`]*)$", line)
        if match is None:
            continue
        if open_ones and match[1] == open_ones[-1] and not match[2]:
            open_ones.pop()
        else:
            open_ones.append(match[1])
            found.append(match[2].strip())
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_block_of_a_page_is_run_or_said_not_to_be_code(page: Path) -> None:
    """Every block of code has a language, and one that is run."""
    for info in fences(page):
        directive = re.match(r"\{([\w-]+)\}\s*(\S*)", info)
        if directive is None:
            assert info in RUN | SHOWN, f"a block of {info or 'no language'!r} is not run"
        elif directive[1] == "code-block":
            assert directive[2] in RUN | SHOWN, f"a block of {directive[2]!r} is not run"
        else:
            assert directive[1] in DIRECTIVES, directive[1]
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("% skip:"):
            assert re.match(r'% skip: next "[^"]{10,}"$', line), "a block that is left out must say why"


def test_the_pictures_are_drawn_from_their_sources() -> None:
    """The SVG files are what docs/pictures/*.py draw."""
    done = subprocess.run(
        [sys.executable, str(DOCS / "pictures" / "build.py"), "--check"], text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_picture_is_shown_and_described() -> None:
    """Every picture is used, and has a text for readers who cannot see it."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for picture in (DOCS / "pictures").glob("*.svg"):
        assert f"{{picture}} {picture.stem}\n" in text, picture.name
        assert re.search(r"<desc[^>]*>[^<]{60,}</desc>", picture.read_text(encoding="utf-8")), picture.name


def skip_without_namespaces(folder: Path) -> None:
    try:
        refuse_where_impossible(str(folder))
    except atomik.errors.NamespaceError as exc:
        pytest.skip(str(exc))


class Frame:
    """Stands in for a data frame and for numpy: what matters is how they write."""

    def to_parquet(self, path: str, partition_cols: list[str], filesystem: object) -> None:
        for part in ("a", "b"):
            folder = f"{path}/{partition_cols[0]}={part}"
            filesystem.makedirs(folder)  # type: ignore[attr-defined]
            filesystem.pipe(f"{folder}/0", b"rows")  # type: ignore[attr-defined]

    def savez(self, path: Path, **arrays: object) -> None:
        path.write_bytes(repr(arrays).encode())


#: each help text with an example, and what the example leaves
EXAMPLES = {
    "transaction": ["model.bin", "plots/loss.svg"],
    "file": ["result.json"],
    "folder": ["site/index.html"],
    "path": ["data.npz"],
    "update": ["config.json"],
    "edit": ["config.json"],
    "write_text": ["version.txt"],
    "observe": ["config.json"],
    "reading": [],
    "snapshot": [],
    "probe": [],
    "run_in": ["out/done"],
    "fsspec.AtomikFileSystem": ["set/year=a/0", "set/year=b/0"],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_in_a_help_text_runs(name: str, folder: Path) -> None:
    """What help() shows can be typed."""
    names: dict[str, object] = {"atomik": atomik, "json": json, "frame": Frame(), "numpy": Frame(), "arrays": {"x": 1}}
    names |= {"result": {}, "weights": b"w", "page": "<h1/>", "config": {}, "load": lambda path: Path(path).read_text()}
    names |= {"draw": lambda path: path.write_text("<svg/>")}
    function: object = atomik
    if name.startswith("fsspec"):
        names["fsspec"] = pytest.importorskip("fsspec", reason="needs the extra atomik[fsspec]")
        importlib.import_module("atomik.fsspec")
        names["fsspec"].register_implementation("atomik", atomik.fsspec.AtomikFileSystem, clobber=True)
    if name == "run_in":
        skip_without_namespaces(folder)
    for part in name.split("."):
        function = getattr(function, part)
    before = {"model.old": "m", "config.json": '{"workers": 1}', "out/model.bin": "m", "out/index.json": "{}"}
    for path, content in before.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(content)
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(function) or "")
    assert examples
    with contextlib.redirect_stdout(io.StringIO()):
        for example in examples:
            exec(compile(example.source, name, "exec", dont_inherit=True), names)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    gone = {"model.old"} if name == "transaction" else set()
    assert left == ({*before} - gone) | {*EXAMPLES[name]}
    if name == "update":
        assert json.loads(Path("config.json").read_text()) == {"workers": 8}


@functools.cache
def sources() -> dict[Path, list[ast.AST]]:
    """Each module of the package, and every node of its syntax tree."""
    paths = sorted((ROOT / "atomik").rglob("*.py"))
    return {path: list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))) for path in paths}


def test_every_example_in_a_help_text_is_among_them() -> None:
    """Every one is checked."""
    for node in itertools.chain.from_iterable(sources().values()):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ">>> " in (ast.get_docstring(node) or ""):
            assert node.name in {name.split(".")[-1] for name in EXAMPLES}, node.name


def emitted() -> dict[str, set[str]]:
    """Event name → fields, as the source has them."""
    found: dict[str, set[str]] = {}
    for node in itertools.chain.from_iterable(sources().values()):
        if not (isinstance(node, ast.Call) and len(node.args) >= 2):
            continue
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called not in ("emit", "event"):
            continue
        name = node.args[1]
        fields = {keyword.arg for keyword in node.keywords if keyword.arg}
        bound = {"tx"} if called == "event" else set()  # the method of a commit binds it
        if isinstance(name, ast.Constant):
            found.setdefault(name.value, set()).update(fields | bound)
        elif isinstance(name, ast.JoinedStr) and isinstance(name.values[0], ast.Constant):
            found.setdefault(f"{name.values[0].value}<action>", set()).update(fields | bound)
    return found


def test_the_list_of_events_is_that_of_the_code() -> None:
    """Every event that atomik can tell is in the reference with exactly its fields, and no other is."""
    page = (DOCS / "reference" / "events.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+\.[a-z_<>]+)` \| \w+ \| ([^|]*) \|", page, re.MULTILINE)
    listed = {name: set(re.findall(r"`(\w+)`", fields)) for name, fields in rows}
    assert listed == emitted()


def test_the_list_of_recovery_actions_is_that_of_the_code() -> None:
    """Every action that recovery reports is explained in the reference."""
    page = (DOCS / "reference" / "events.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(\w+)` \| (?:event|dry run)", page, re.MULTILINE))
    told = {result.value for result in Undone}
    for module in sorted((ROOT / "atomik" / "_recovery").glob("*.py")):
        for node in sources()[module]:
            given: list[ast.expr] = []
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                given = node.args if called in ("tell", "Recovered", "_report", "_survey_journal") else []
            elif isinstance(node, ast.Assign):
                target, value = node.targets[0], node.value
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    target, value = target.elts[0], value.elts[0]
                given = [value] if getattr(target, "id", "") == "action" else []
            constants = {each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)}
            told |= {word for word in constants if re.fullmatch("[a-z]+", word)}
    assert explained == told


def test_every_error_is_in_the_reference() -> None:
    """The page of errors shows every public class, with its cause and cure."""
    page = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    for name in atomik.errors.__all__:
        if getattr(atomik.errors, name).__name__ == name:  # an alias is shown under its class
            assert f"autoexception:: {name}\n" in page, name


@pytest.mark.parametrize("name", [n for n in atomik.errors.__all__ if n not in ("AtomikError", "AtomikOSError")])
def test_every_error_says_its_cause_and_its_cure(name: str) -> None:
    """The docstring of each error has both."""
    text = getattr(atomik.errors, name).__doc__
    assert "Cause:" in text, name
    assert "Cure:" in text, name


def test_every_module_is_on_the_map() -> None:
    """The architecture page names every room, in its row every module of it, and no module that does not exist."""
    page = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    rows = {
        match[1]: set(re.findall(r"`(\w+)`", match[2]))
        for match in re.finditer(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
    }
    rooms = {path.parent.name: path.parent for path in (ROOT / "atomik").glob("*/__init__.py")}
    for name, room in rooms.items():
        assert rows[name] >= {path.stem for path in room.glob("*.py")} - {"__init__"}, name
    for path in (ROOT / "atomik").glob("*.py"):
        if path.stem not in ("__init__", "__main__"):
            assert f"`{path.stem}`" in page, path.name
    for named in re.findall(r"`(_?[a-z]\w*(?:/\w+)+)`", page):
        assert (ROOT / "atomik" / f"{named}.py").exists(), named


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    """Sphinx, with -n and -W, has nothing to say: no dead link, no name that does not exist."""
    for module in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
        pytest.importorskip(module, reason=f"needs {module} (pip install '.[docs]')")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path / "html")],
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
