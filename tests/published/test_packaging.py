"""What is uploaded: a source distribution that holds what it needs, and metadata that an index can show."""

from __future__ import annotations

import compileall
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from importlib.util import find_spec
from pathlib import Path

import pytest

import atomik

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not a checkout")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, and the wheel that is built from it and not from the checkout."""
    if find_spec("build") is None or find_spec("hatchling") is None:
        pytest.skip("needs build and hatchling")
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder


def members(built: Path) -> set[str]:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}


@pytest.mark.sweep
def test_the_sdist_is_whole(built: Path) -> None:
    """The package, its tests, its examples and its documentation; nothing that a machine made."""
    found = members(built)
    assert {"atomik/__init__.py", "atomik/py.typed", "README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"} <= found
    for folder in ("atomik", "tests", "examples", "docs"):
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}
        assert sources <= found, sources - found
    assert "docs/pictures/report.png" in found
    assert not [name for name in found if "__pycache__" in name or name.endswith(".pyc")]


@pytest.mark.sweep
def test_the_wheel_has_the_package_alone(built: Path) -> None:
    """Every module is installed, and no tests next to it in site-packages."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "atomik").rglob("*.py")}
    assert {name for name in names if ".dist-info" not in name} == package | {"atomik/py.typed"}
    assert metadata["Version"] == atomik.__version__
    assert {"fsspec", "progress"} <= set(metadata.get_all("Provides-Extra", []))


WITHOUT_SOURCES = """
import atomik
with atomik.transaction() as tx:
    for name in ("a", "b"):
        tx.file(name).write("new")
try:
    atomik.file("a")
except atomik.errors.FileAlreadyExistsError:
    print(atomik.__file__)
"""


@pytest.mark.sweep
@pytest.mark.parametrize("how", ["bytecode", "archive"])
def test_without_sources(how: str, tmp_path: Path) -> None:
    """The answers of the kernel are known by the code that got them, also where that has no source file: as bytecode that was
    compiled elsewhere (frozen programs, small images), and in an archive."""
    made, used = tmp_path / "made", tmp_path / "used"
    shutil.copytree(ROOT / "atomik", made / "atomik", ignore=shutil.ignore_patterns("__pycache__"))
    if how == "bytecode":
        assert compileall.compile_dir(made, quiet=1, legacy=True, stripdir=str(made))
        for source in made.rglob("*.py"):
            source.unlink()
        made.rename(used)
    else:
        used = Path(shutil.make_archive(str(used), "zip", made))
    command = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(used)!r}){WITHOUT_SOURCES}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(used))


def test_classifiers() -> None:
    """Each Python that is tested, and the one implementation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: "
    found = {each.removeprefix(prefix) for each in project["classifiers"] if each.startswith(prefix)}
    assert {"3.11", "3.12", "3.13", "3.14", "Implementation :: CPython"} <= found


def test_install_lines_name_the_version() -> None:
    """An index may still offer only 0.0.3, which has nothing of what the pages show."""
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for line in page.read_text(encoding="utf-8").splitlines():
            if re.search(r"pip install .*atomik", line):
                assert ">=0.2" in line, f"{page.name}: {line}"
