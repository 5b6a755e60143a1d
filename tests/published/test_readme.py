"""The README is a program: its Python runs from top to bottom, its commands and links are what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import atomik
from atomik._api.run_in import refuse_where_impossible

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not here: not a checkout")

COMMANDS = [
    "python -m venv .venv && .venv/bin/pip install . && .venv/bin/python examples/publish_report.py",
    "python -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/python -m pytest",
]


def blocks(language: str) -> list[tuple[int, str]]:
    """(line, text) of every fenced block of a language."""
    text = README.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in found]


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python blocks run in order, in one namespace, and leave exactly the outputs that they name."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    found = blocks("python")
    for line, text in found:
        exec(compile("\n" * line + text, str(README), "exec"), namespace)
    assert len(found) == 4
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["latest", "model.bin", "plots", "results.json"]
    assert json.loads(Path("results.json").read_text()) == {"accuracy": 0.93}
    assert Path("latest").read_bytes() == b"weights"
    assert not capsys.readouterr().out


def test_shell_runs(tmp_path: Path) -> None:
    """The shell block runs as it is, with the command that belongs to the package being tested."""
    try:
        refuse_where_impossible(str(tmp_path))
    except atomik.errors.NamespaceError as exc:
        pytest.skip(str(exc))
    ((_, text),) = blocks("bash")
    prelude = 'set -euo pipefail; atomik() { "$PYTHON" -m atomik "$@"; }\n'
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}
    done = subprocess.run(
        ["bash", "-c", prelude + text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert done.stdout == "failed, and conf is as it was\n"
    assert [path.name for path in (tmp_path / "conf").iterdir()] == ["web.conf"]
    assert (tmp_path / "conf" / "web.conf").read_text() == "port = 80\n"


def test_naive_code_breaks_as_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The naive code loses the old results, and the changed code keeps them, in the same failure."""
    monkeypatch.chdir(tmp_path)
    naive, failing, changed = (text for _, text in blocks("python")[:3])
    before, after = (re.search(r"def save.*?\n\n", text + "\n\n", re.DOTALL) for text in (naive, changed))
    assert before is not None
    assert after is not None
    different = [
        pair for pair in zip(before.group().splitlines(), after.group().splitlines(), strict=False) if len({*pair}) > 1
    ]
    assert len(different) == 1, "more than one line differs"
    with pytest.raises(AssertionError):
        exec(naive.replace(before.group().strip(), "import atomik\n\n" + after.group().strip()) + failing, {})


def test_commands() -> None:
    """There are exactly two blocks of set-up, one command each, and each command is there once."""
    assert [text.strip() for _, text in blocks("sh")] == COMMANDS
    assert not blocks("console")
    text = README.read_text(encoding="utf-8")
    assert [text.count(command) for command in COMMANDS] == [1, 1]


def test_a_stranger_decides_in_a_minute() -> None:
    """Broken code, one changed line, a group, any program, the promises and their limits; only then what to install."""
    text = README.read_text(encoding="utf-8")
    order = ['open("results.json", "w")', "atomik.file(", "atomik.transaction(", "atomik run --in", "| Promise |"]
    order += ["**Not promised:**", "## When not to use it", *COMMANDS, "## Documentation"]
    places = [text.index(each) for each in order]
    assert places == sorted(places)
    assert len(text[: places[-4]].split()) < 900


def test_links() -> None:
    """Every link to a file of the project leads somewhere."""
    if not (ROOT / "docs" / "tutorial.md").exists():
        pytest.skip("the documentation is not here")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", README.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
