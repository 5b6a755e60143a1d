"""Every program in examples/ runs as a user runs it, twice in the same folder, and its output is checked."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atomik
from tests.support.users import DAC_OVERRIDE, DAC_READ_SEARCH, has_capability

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not here: not a checkout")


def run(
    name: str,
    *arguments: str | Path,
    cwd: Path,
    status: int = 0,
    through: tuple[str, ...] = (),
    quiet: bool = True,
    timeout: int = 120,
) -> subprocess.CompletedProcess[str]:
    """Run an example with the atomik that is being tested; `quiet`: warnings are errors, and it prints none."""
    package = str(Path(atomik.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*through, sys.executable, *(("-W", "error") if quiet else ()), EXAMPLES / f"{name}.py", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == status, done.stdout + done.stderr
    assert status or not done.stderr or not quiet, done.stderr
    assert [path for path in cwd.rglob("*") if ".atomik" in path.name] == [], "something was left over"
    return done


def tree(folder: Path) -> list[str]:
    """The files and links below a folder, by relative path."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


# --- what each must leave: a function of the folder in which it ran, and of what it printed -------------------------
def replace_config(folder: Path, out: str) -> None:
    assert tree(folder) == ["config.json"]
    assert json.loads((folder / "config.json").read_text()) == {"workers": 8, "cache": "/var/cache/app", "debug": True}
    assert (folder / "config.json").stat().st_mode & 0o777 == 0o600
    assert "attempts: 2" in out


def apply_changes(folder: Path, out: str) -> None:
    assert tree(folder / "project") == ["CHANGES.md", "lib.py", "main.py"]
    assert "bar() + 1" in (folder / "project" / "main.py").read_text()
    assert "the other edit was kept" in out


def swap_site(folder: Path, out: str) -> None:
    assert len(list((folder / "site").iterdir())) == 3
    assert len(list((folder / "site.previous").iterdir())) == 5
    assert "no visitor saw anything" in out


def manifest_last(folder: Path, out: str) -> None:
    batches = sorted((folder / "outbox").iterdir())
    assert batches
    for batch in batches:
        manifest = json.loads((batch / "manifest.json").read_text())
        assert {*manifest["parts"], "manifest.json"} == set(os.listdir(batch))
    assert out.rstrip().endswith("manifest.json")


def external_program(folder: Path, out: str) -> None:
    assert tree(folder) == ["json.tar.gz"]
    with tarfile.open(folder / "json.tar.gz", "r:gz") as archive:
        assert "json/decoder.py" in archive.getnames()
    assert "exited with 3" in out


def json_logs(folder: Path, out: str) -> None:
    events = [json.loads(line) for line in out.splitlines()]
    names = [event["event"] for event in events]
    assert {"transaction.begun", "item.staged", "item.swapped", "transaction.committed"} <= {*names}
    assert names[-1] == "transaction.aborted"
    assert len({event["tx"] for event in events}) == 2
    assert {event["job"] for event in events} == {"nightly"}
    assert tree(folder) == ["logged/numbers.txt", "logged/plots/loss.svg"]


def numpy_savez(folder: Path, out: str) -> None:
    assert tree(folder) == ["arrays.npy", "arrays.npz"]
    assert "most frequent" in out


def sqlite_build(folder: Path, out: str) -> None:
    assert tree(folder) == ["modules.sqlite"]
    with closing(sqlite3.connect(folder / "modules.sqlite")) as database:
        assert database.execute("SELECT lines > 100 FROM module WHERE name = 'subprocess'").fetchone() == (1,)
    assert "the longest is" in out


def files_and_sqlite(folder: Path, out: str) -> None:
    assert tree(folder) == ["gallery/pictures.sqlite", "gallery/pictures/circle.svg", "gallery/pictures/latest.txt"]
    assert "neither file nor row" in out


def files_and_sqlalchemy(folder: Path, out: str) -> None:
    assert tree(folder) == ["reports.sqlite", "reports/january.txt"]
    assert "neither file nor row" in out


def two_phase(folder: Path, out: str) -> None:
    assert tree(folder) == ["out/letter.txt"]
    assert "nothing was changed" in out


def two_filesystems(folder: Path, out: str) -> None:
    assert tree(folder) == ["archive/2026.txt", "index/2026.txt"]
    assert "neither was changed" in out


def zip_build(folder: Path, out: str) -> None:
    assert tree(folder) == ["json.zip"]
    with zipfile.ZipFile(folder / "json.zip") as archive:
        assert archive.read("json/tool.py") == Path(json.__file__).with_name("tool.py").read_bytes()
    assert "all intact" in out


def static_site(folder: Path, out: str) -> None:
    assert tree(folder) == ["public/about.html", "public/index.html", "public/news.html"]
    assert "&lt;Nobody&gt; &amp; friends" in (folder / "public" / "about.html").read_text()
    assert "the same again: unchanged" in out


def jinja_config(folder: Path, out: str) -> None:
    assert tree(folder) == ["upstream.conf", "upstream.conf.bak"]
    assert "server two:8080" in (folder / "upstream.conf").read_text()
    assert (folder / "upstream.conf.bak").read_text() == "server old:80\n"
    assert "nothing changed: 'port' is undefined" in out


def pandas_dataset(folder: Path, out: str) -> None:
    parts = tree(folder)
    assert len(parts) >= 5
    assert all(re.fullmatch(r"modules/package=\w+/\S+\.parquet", part) for part in parts)
    assert "modules/package=json" not in {os.path.dirname(part) for part in parts}, "no module there is that long"
    assert "rows, then" in out


def pyarrow_dataset(folder: Path, out: str) -> None:
    assert {os.path.dirname(part) for part in tree(folder)} == {f"lengths/day=2026-01-0{day}" for day in range(1, 6)}
    assert "half a batch never appeared" in out


def checkpoint(folder: Path, out: str) -> None:
    extension = "safetensors" if find_spec("safetensors") else "npz"
    names = [f"optimizer.{extension}", "state.json", f"weights.{extension}"]
    assert tree(folder) == [f"checkpoint/{name}" for name in names]
    assert json.loads((folder / "checkpoint" / "state.json").read_text()) == {"step": 30}
    assert "a failed save changed nothing" in out
    assert "slope 3.0" in out


def resumable_training(folder: Path, out: str) -> None:
    assert tree(folder) == ["model/model.json", "undisturbed/model.json"]
    assert re.search(r"killed \d+ times; the same model", out)


def asyncio_writer(folder: Path, out: str) -> None:
    assert tree(folder) == ["count.txt", "lines.txt"]
    assert (folder / "lines.txt").read_bytes() == (EXAMPLES / "asyncio_writer.py").read_bytes()
    assert "before the commit: aborted" in out
    assert "between two swaps: aborted" in out
    assert "after the mark: committed" in out


def write_shapefile(folder: Path, out: str) -> None:
    assert tree(folder) == ["map/places.dbf", "map/places.shp", "map/places.shx"]
    assert (folder / "map" / "places.shp").read_bytes()[:4] == (9994).to_bytes(4, "big")
    assert "2 points in places.dbf, places.prj, places.shp, places.shx" in out
    assert "remove places.prj" in out
    assert "the old one is complete" in out
    if find_spec("shapefile"):  # pyshp: another reader of the format
        import shapefile as pyshp

        with pyshp.Reader(str(folder / "map" / "places"), encoding="latin-1") as reader:
            assert [
                (record[0], tuple(shape.points[0]))
                for shape, record in zip(*(reader.shapes(), reader.records()), strict=True)
            ] == [
                ("Mainz", (8.27, 50.0)),
                ("Köln", (6.96, 50.94)),
                ("Bonn", (7.1, 50.73)),
            ]


def volume_site(folder: Path, out: str) -> None:
    assert len(tree(folder)) == 22
    assert (folder / "volume" / "index.html").read_text() == "style-two-4.css"
    assert "no visitor missed the first page" in out


def database_dump(folder: Path, out: str) -> None:
    assert tree(folder) == ["backup/shop.sql", "backup/shop.sqlite"]
    assert "of 1000 orders, is still there" in out


def releases(folder: Path, out: str) -> None:
    names = sorted(os.listdir(folder / "app" / "releases"))
    assert len(names) == 5
    assert os.readlink(folder / "app" / "current") == f"releases/{names[-2]}"
    assert "is still served" in out


def shared_cache(folder: Path, out: str) -> None:
    assert len(tree(folder)) == 20
    assert "one was killed, and left nothing" in out


def pyspark_dataset(folder: Path, out: str) -> None:
    assert "dataset-spark/_SUCCESS" in tree(folder)
    assert "a job failed" in out


def ray_dataset(folder: Path, out: str) -> None:
    assert all(re.fullmatch(r"dataset-ray/\S+\.parquet", part) for part in tree(folder))
    assert "a task failed" in out


def worker_pool(folder: Path, out: str) -> None:
    sources = sorted(Path(json.__file__).parent.glob("*.py"))
    parts = [f"packed/parts/{source.name}.gz" for source in sources]
    assert tree(folder) == sorted([*parts, *(f"packed/{source.stem}.sha256" for source in sources)])
    assert "so nothing was published" in out


CHECKS: dict[Callable[[Path, str], None], tuple[str, ...]] = {
    replace_config: (),
    apply_changes: (),
    swap_site: (),
    manifest_last: (),
    external_program: (),
    json_logs: ("structlog",),
    numpy_savez: ("numpy",),
    sqlite_build: (),
    files_and_sqlite: (),
    files_and_sqlalchemy: ("sqlalchemy",),
    two_phase: ("transaction",),
    two_filesystems: (),
    zip_build: (),
    static_site: (),
    jinja_config: ("jinja2",),
    pandas_dataset: ("pandas", "pyarrow"),
    pyarrow_dataset: ("pyarrow",),
    checkpoint: ("numpy",),
    resumable_training: (),
    asyncio_writer: (),
    worker_pool: (),
    write_shapefile: (),
    volume_site: (),
    database_dump: (),
    releases: (),
    shared_cache: (),
}

#: the same for those that start a cluster or many processes, which takes seconds; with what they need
HEAVY: dict[Callable[[Path, str], None], tuple[str, ...]] = {
    pyspark_dataset: ("pyspark",),
    ray_dataset: ("ray", "pyarrow"),
}


@pytest.mark.sweep
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_example(check: Callable[[Path, str], None], tmp_path: Path) -> None:
    """The example works in an empty folder, and again over its own output."""
    missing = [package for package in CHECKS[check] if find_spec(package) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    for _ in range(2):
        check(tmp_path, run(check.__name__, cwd=tmp_path).stdout)


@pytest.mark.sweep
@pytest.mark.parametrize("check", HEAVY, ids=lambda check: check.__name__)
def test_example_on_a_cluster(check: Callable[[Path, str], None], tmp_path: Path) -> None:
    """On a real one, over its own output as well; they print and warn a lot by themselves."""
    missing = [package for package in HEAVY[check] if find_spec(package) is None]
    if check is pyspark_dataset and shutil.which("java") is None:
        missing.append("java")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    check(tmp_path, run(check.__name__, cwd=tmp_path, quiet=False, timeout=300).stdout)


def test_asyncio_writer_without_its_folder(tmp_path: Path) -> None:
    """A task that fails before it is cancelled does not leave the program waiting for it."""
    done = run("asyncio_writer", "missing", cwd=tmp_path, status=1)
    assert "MissingPathError" in done.stderr
    assert tree(tmp_path) == []


def test_every_example_is_tested() -> None:
    """No program in examples/ is without a test."""
    there = {path.stem for path in EXAMPLES.glob("*.py")}
    assert there == {check.__name__ for check in (*CHECKS, *HEAVY)} | {"publish_report"} | ELSEWHERE


#: examples that need more than a process, tested beside what they show
ELSEWHERE: set[str] = {path.stem for path in EXAMPLES.glob("dask_*.py")}


# --- the main job ---------------------------------------------------------------------------------------------------
def compare(report: Path, source: Path) -> dict[str, dict[str, object]]:
    """The index must be what a fresh look at the tree finds, the table and the site must agree with it."""
    index = json.loads((report / "index.json").read_text())
    entries = {entry["path"]: entry for entry in index["files"]}
    found = {}
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if Path(folder, name) != report and name != "__pycache__"]
        for name in names + [name for name in folders if Path(folder, name).is_symlink()]:
            path = Path(folder, name)
            found[os.path.relpath(path, source)] = path
    assert set(found) <= set(entries)
    assert not [path for path in entries if path.endswith(".pyc")]
    for path, entry in entries.items():
        if "sha256" in entry:
            data = found[path].read_bytes()
            assert (entry["size"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest()), path
    with open(report / "by_extension.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["files"]) for row in rows) == len(entries)
    assert sum(int(row["bytes"]) for row in rows) == sum(entry["size"] for entry in entries.values())
    compare_site(report / "site", len(entries))
    return entries


def compare_site(site: Path, files: int) -> None:
    """Each page is linked from the index page, and each file is on one of them."""
    index = (site / "index.html").read_text(encoding="utf-8")
    linked = re.findall(r'<tr><td><a href="([^"]+)">', index)
    assert sorted([*linked, "index.html"]) == sorted(os.listdir(site))
    assert sum((site / name).read_text(encoding="utf-8").count("<tr><td>") for name in linked) == files


def identity(report: Path) -> dict[str, tuple[int, bytes]]:
    """Inode and content of everything published."""
    files = {path: report / path for path in tree(report)}
    return {name: (path.stat().st_ino, path.read_bytes()) for name, path in files.items()}


def test_publish_report(tmp_path: Path) -> None:
    """A real package's tree is described exactly; again leaves it alone, --overwrite replaces everything."""
    source = Path(json.__file__).parents[1] / "email"
    out = run("publish_report", source, cwd=tmp_path).stdout
    report = tmp_path / "report"
    assert sorted(os.listdir(report)) == ["by_extension.csv", "index.json", "site"]
    assert "email.mime" not in out
    assert {"index.html", "top-level.html", "mime.html"} <= {*os.listdir(report / "site")}
    compare(report, source)
    assert out.count("failed as it should") == 3
    assert "replaced all" in out

    first = identity(report)
    again = run("publish_report", source, cwd=tmp_path).stdout
    assert "left as it is" in again
    assert "replaced all" not in again
    assert identity(report) == first

    for name in ("index.json", "by_extension.csv", "site/index.html", "site/of-last-year.html"):
        (report / name).write_text("old")
    out = run("publish_report", source, "--overwrite", cwd=tmp_path).stdout
    assert "replaced all" in out
    assert set(identity(report)) == set(first)
    compare(report, source)


@pytest.mark.sweep
def test_publish_report_of_the_standard_library(tmp_path: Path) -> None:
    """The default is this Python's standard library, without what pip installed into it."""
    run("publish_report", "--output", "deep/down", cwd=tmp_path)
    report = tmp_path / "deep" / "down"
    index = json.loads((report / "index.json").read_text())
    paths = {entry["path"] for entry in index["files"]}
    assert {"json/decoder.py", "os.py", "xml/etree/ElementTree.py"} <= paths
    assert not [path for path in paths if path.startswith(("site-packages/", "dist-packages/"))]
    compare_site(report / "site", len(paths))
    assert "ElementTree.py" in (report / "site" / "xml.etree.html").read_text(encoding="utf-8")


def test_publish_report_of_a_nasty_tree(tmp_path: Path) -> None:
    """Names that are not text, markup, links, pipes and unreadable files are all in the report, and escaped."""
    files = [b"bad\xff.t\xfet", b"<script>&.html", b"new\nline", b"a.b/f", b"a/b/f", b"locked/inside", b"secret"]
    for name in files:
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(name)
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "folder-link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "secret").chmod(0)
    (tmp_path / "locked").chmod(0)
    try:
        run("publish_report", ".", cwd=tmp_path, through=unprivileged())
    finally:
        (tmp_path / "locked").chmod(0o700)
    (tmp_path / "locked" / "inside").unlink()
    entries = compare(tmp_path / "report", tmp_path)
    assert {os.fsencode(path) for path in entries} == {*files, b"link", b"folder-link", b"pipe", b"locked"} - {
        b"locked/inside"
    }
    assert entries["secret"]["error"] == "Permission denied"
    assert entries["locked"]["error"] == "folder: Permission denied"
    assert entries["link"]["link_to"] == "nowhere"
    assert entries["pipe"]["error"] == "not a regular file"
    pages = [path.read_text(encoding="utf-8") for path in (tmp_path / "report" / "site").iterdir()]
    assert {page.count("<script") for page in pages} == {1}, "the one that sorts the tables, and no file's name"
    assert sum("&lt;script&gt;&amp;.html" in page for page in pages) == 1


def unprivileged() -> tuple[str, ...]:
    """How to run a program that may not read everything; root needs a helper for that."""
    if not has_capability(DAC_OVERRIDE) and not has_capability(DAC_READ_SEARCH):
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("root may read everything, and there is no setpriv here to change that")
    return (setpriv, "--bounding-set=-dac_override,-dac_read_search")


@pytest.mark.sweep
def test_publish_report_after_a_kill(tmp_path: Path) -> None:
    """A run killed while it draws the site leaves the old report, and the next run clears up and replaces it."""
    source = Path(json.__file__).parent
    run("publish_report", source, cwd=tmp_path)
    report = tmp_path / "report"
    before = identity(report)
    killed = (
        "import os, pathlib, runpy, signal, sys; sys.argv = sys.argv[1:]; write = pathlib.Path.write_text\n"
        "def die(path, *args, **named): write(path, *args, **named); os.kill(os.getpid(), signal.SIGKILL)\n"
        "pathlib.Path.write_text = die; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", killed, EXAMPLES / "publish_report.py", source, "--overwrite"]
    environment = {**os.environ, "PYTHONPATH": str(Path(atomik.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = {path.name for path in report.iterdir()} - {"index.json", "by_extension.csv", "site"}
    assert all(name.startswith(".atomik-") for name in left)
    assert left, "the kill came too early to leave anything"
    assert {name: what for name, what in identity(report).items() if not name.startswith(".atomik-")} == before

    out = run("publish_report", source, "--overwrite", cwd=tmp_path).stdout
    assert "a run before was killed" in out
    compare(report, source)


def test_publish_report_of_nothing(tmp_path: Path) -> None:
    """An empty folder has a report too, with the same promises."""
    source = tmp_path / "empty"
    source.mkdir()
    out = run("publish_report", source, cwd=tmp_path).stdout
    assert "all promises held" in out
    assert compare(tmp_path / "report", source) == {}


def test_publish_report_refusals(tmp_path: Path) -> None:
    """What cannot work is said in one line, without a traceback, and makes nothing."""
    done = run("publish_report", "nowhere", cwd=tmp_path, status=2)
    assert "not a folder: " in done.stderr
    (tmp_path / "taken").write_text("a file")
    done = run("publish_report", Path(json.__file__).parent, "--output", "taken", cwd=tmp_path, status=2)
    assert "Traceback" not in done.stderr
    assert tree(tmp_path) == ["taken"]
