"""examples/dask_dataset.py on a real cluster of processes: workers that are killed, tasks that fail or run twice."""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from tests.support.state import left_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

distributed = pytest.importorskip("distributed", reason="needs distributed (pip install 'atomik[recipes]')")

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples/dask_dataset.py"

#: What the cluster warns of when a worker is killed is what we want it to say.
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(not EXAMPLE.is_file(), reason="the examples are not here: not a checkout"),
]


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """In the place of the suite's own: the cluster keeps its threads and processes from test to test."""
    yield
    assert not left_in(tmp_path)


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    sys.path.insert(0, str(EXAMPLE.parent))  # the workers inherit it
    try:
        yield importlib.import_module("dask_dataset")
    finally:
        sys.path.remove(str(EXAMPLE.parent))


@pytest.fixture(scope="module")
def client(example: ModuleType) -> Iterator[Any]:
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    with cluster, distributed.Client(cluster) as found:
        yield found


def test_published(client: Any, example: ModuleType, tmp_path: Path) -> None:
    """All parts are there at once, durable, and the next version replaces them by one rename."""
    for version in (1, 2):
        receipt = example.publish(client, tmp_path / "set", version)
        assert example.versions(tmp_path / "set") == {str(version)}
        assert receipt.durable
        assert len(receipt.items) == 1


def test_killed_worker(client: Any, example: ModuleType, tmp_path: Path) -> None:
    """A worker that is killed in the middle of a part leaves nothing of it, and its task is run again elsewhere."""
    example.publish(client, tmp_path / "set", 1)
    mark = tmp_path / "killed"
    example.publish(client, tmp_path / "set", 2, functools.partial(example.write_part_and_die, mark))
    assert mark.exists()
    assert example.versions(tmp_path / "set") == {"2"}


def test_failing_task(client: Any, example: ModuleType, tmp_path: Path) -> None:
    """What a task raises reaches the client, and the old dataset is the same object as before."""
    example.publish(client, tmp_path / "set", 1)
    before = (tmp_path / "set").stat().st_ino
    with pytest.raises(ValueError, match="part 5"):
        example.publish(client, tmp_path / "set", 2, example.write_part_or_fail)
    assert (tmp_path / "set").stat().st_ino == before
    assert example.versions(tmp_path / "set") == {"1"}


def test_worker_killed_for_good(client: Any, example: ModuleType, tmp_path: Path) -> None:
    """A worker that dies each time it gets the part makes the publication fail, and the old dataset stays."""
    example.publish(client, tmp_path / "set", 1)

    def die(folder: Path, number: int, version: int) -> str:
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return str(example.write_part(folder, number, version))

    with pytest.raises(distributed.KilledWorker):
        example.publish(client, tmp_path / "set", 2, die)
    assert example.versions(tmp_path / "set") == {"1"}


def test_task_that_runs_twice(client: Any, example: ModuleType, tmp_path: Path) -> None:
    """Two runs of one task write one part: by its name, and each of them wholly."""
    with atomik.folder(tmp_path / "set") as staged:
        folder = Path(staged)
        futures = [client.submit(example.write_part, folder, 7, 1, pure=False) for _ in range(10)]
        assert set(client.gather(futures)) == {"part-0007.csv"}
        assert os.listdir(folder) == ["part-0007.csv"]
    assert len((tmp_path / "set/part-0007.csv").read_text().splitlines()) == example.ROWS


def test_late_task(client: Any, example: ModuleType, tmp_path: Path) -> None:
    """A task that is still running when the dataset has been published, or given up, finds no folder to write to."""
    with atomik.folder(tmp_path / "set") as staged:
        folder = Path(staged)
        example.write_part(folder, 0, 1)
    late = client.submit(example.write_part, folder, 1, 1, pure=False)
    with pytest.raises(atomik.errors.MissingPathError):
        late.result()
    assert os.listdir(tmp_path / "set") == ["part-0000.csv"]


def test_part_that_nobody_asked_for(client: Any, example: ModuleType, tmp_path: Path) -> None:
    """What else is in the staged folder stops the publication."""

    def stray(folder: Path, number: int, version: int) -> str:
        (folder / "core.1234").touch()
        return str(example.write_part(folder, number, version))

    with pytest.raises(RuntimeError, match="not those"):
        example.publish(client, tmp_path / "set", 1, stray)
    assert not (tmp_path / "set").exists()


def test_staged_paths_are_picklable(tmp_path: Path) -> None:
    """What goes to a worker is a plain path; the open file and the transaction stay here."""
    with atomik.folder(tmp_path / "set") as staged:
        for path in (staged, staged / "part"):
            sent = pickle.loads(pickle.dumps(path))
            assert type(sent) is type(Path())
            assert sent == Path(path)
    with atomik.file(tmp_path / "file") as file, pytest.raises(TypeError, match="stage a folder"):
        pickle.dumps(file)


def test_killed_client(example: ModuleType, tmp_path: Path) -> None:
    """When the client is killed the old dataset stays, and recover removes what the workers have staged."""
    with atomik.folder(tmp_path / "set") as staged:
        example.write_part(Path(staged), 0, 1)
    script = (
        "import atomik, os, pathlib, signal, sys\n"
        f"sys.path.insert(0, {str(EXAMPLE.parent)!r})\n"
        "import dask_dataset\n"
        "with atomik.folder('set', overwrite=True) as staged:\n"
        "    dask_dataset.write_part(pathlib.Path(staged), 1, 2)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment).returncode == -signal.SIGKILL
    assert left_in(tmp_path)
    assert [item.action for item in atomik.recover(tmp_path).items] == ["removed"]
    assert os.listdir(tmp_path / "set") == ["part-0000.csv"]


@pytest.mark.slow
def test_the_program(tmp_path: Path) -> None:
    """The example as a user runs it, twice in the same place."""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(EXAMPLE)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            "published version {'1'} in 8 parts",
            "a worker was killed while it wrote a part: the dataset is whole all the same",
            "a task failed (part 5 cannot be computed): version {'2'} is still there",
        ]
        assert os.listdir(tmp_path) == ["dataset"]
