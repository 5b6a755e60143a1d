"""pandas, pyarrow, zarr and xarray over ``atomik://``: they write, and a failure in the middle changes nothing."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomik
from tests.support.state import left_in, tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

fsspec = pytest.importorskip("fsspec", reason="needs the extra atomik[fsspec]")
AtomikFileSystem: Any = pytest.importorskip("atomik.fsspec").AtomikFileSystem

#: What these libraries warn of among themselves is not ours to judge.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(autouse=True)
def _protocol() -> None:
    fsspec.register_implementation("atomik", AtomikFileSystem, clobber=True)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """In the place of the suite's own: these libraries keep their threads, with their descriptors, for the next time."""
    yield
    assert not left_in(tmp_path)


@pytest.fixture
def fs() -> Any:
    return AtomikFileSystem(skip_instance_cache=True, durable=False)


class BoomError(Exception):
    """What goes wrong in the middle."""


class Rotten:
    """A value that cannot be written."""

    def __str__(self) -> str:
        raise BoomError

    def __reduce__(self) -> Any:
        raise BoomError


@contextmanager
def full_disk(size: int = 100_000) -> Iterator[None]:
    """No file of this process can grow further than that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


class TestPandas:
    """`pandas`, by URL and with the filesystem."""

    @pytest.fixture
    def pd(self) -> Any:
        return pytest.importorskip("pandas")

    @pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.csv.zip", "out.pickle"])
    def test_one_file(self, folder: Path, pd: Any, name: str) -> None:
        """A table by URL is written in one step; one that cannot be written to its end leaves the old file."""
        url = f"atomik://{folder}/{name}"
        kind = name.split(".")[1]
        good = pd.DataFrame({"a": range(1000)})
        getattr(good, f"to_{kind}")(url)
        read = getattr(pd, f"read_{kind}")(url)
        assert list(read["a"]) == list(range(1000))
        before = tree(folder)
        # Large enough that much is written before the row that cannot be.
        bad = pd.DataFrame({"a": [*range(100_000), Rotten()]}, dtype=object)
        with pytest.raises(BoomError):
            getattr(bad, f"to_{kind}")(url)
        assert tree(folder) == before

    def test_parquet(self, folder: Path, pd: Any) -> None:
        """Parquet by URL, and a failure in the middle."""
        pytest.importorskip("pyarrow")
        url = f"atomik://{folder}/out.parquet"
        pd.DataFrame({"a": range(10)}).to_parquet(url)
        assert list(pd.read_parquet(url)["a"]) == list(range(10))
        before = tree(folder)
        with pytest.raises(Exception, match=r"[Cc]onver|Rotten|Boom"):
            pd.DataFrame({"a": [1, object()]}).to_parquet(url)
        assert tree(folder) == before

    def test_partitioned_in_a_transaction(self, folder: Path, pd: Any, fs: Any) -> None:
        """A partitioned dataset is replaced as a whole, and an exception after it leaves the old one."""
        pytest.importorskip("pyarrow")

        def write(years: list[int], fail: bool) -> None:
            with fs.transaction:
                if fs.exists("set"):
                    fs.rm("set", recursive=True)
                fs.makedirs("set")
                table = pd.DataFrame({"year": years, "x": range(len(years))})
                table.to_parquet(f"{folder}/set", partition_cols=["year"], filesystem=fs)
                assert len(pd.read_parquet(f"{folder}/set", filesystem=fs)) == len(years), "it reads its own work"
                if fail:
                    raise BoomError

        write([2001, 2002, 2002], fail=False)
        assert sorted(os.listdir("set")) == ["year=2001", "year=2002"]
        before = tree(folder)
        with pytest.raises(BoomError):
            write([2003], fail=True)
        assert tree(folder) == before
        write([2004], fail=False)
        assert os.listdir("set") == ["year=2004"]


class TestPyarrow:
    """`pyarrow`, which writes from threads of its own."""

    @pytest.fixture
    def pa(self) -> Any:
        return pytest.importorskip("pyarrow")

    def batches(self, pa: Any, good: int) -> Iterator[Any]:
        for number in range(good):
            yield pa.record_batch({"part": [number % 4] * 1000, "x": list(range(1000))})
        raise BoomError

    def test_one_file(self, folder: Path, pa: Any, fs: Any) -> None:
        """A file of many row groups: the failure of a later one leaves the old file."""
        import pyarrow.parquet as pq

        table = pa.table({"x": list(range(1000))})
        pq.write_table(table, f"{folder}/a.parquet", filesystem=fs)
        assert pq.read_table(f"{folder}/a.parquet", filesystem=fs).equals(table)
        before = tree(folder)

        def write() -> None:
            with pq.ParquetWriter(f"{folder}/a.parquet", table.schema, filesystem=fs) as writer:
                writer.write_table(table)
                raise BoomError

        with pytest.raises(BoomError):
            write()
        assert tree(folder) == before

    def test_dataset(self, folder: Path, pa: Any, fs: Any) -> None:
        """A dataset written by many threads is there as a whole; a source that fails leaves the old one."""
        import pyarrow.dataset as ds

        schema = pa.schema({"part": pa.int64(), "x": pa.int64()})

        def write(batches: Any) -> None:
            with fs.transaction:
                ds.write_dataset(
                    batches, f"{folder}/set", schema=schema, format="parquet", partitioning=["part"], filesystem=fs,
                    existing_data_behavior="delete_matching",
                )  # fmt: skip

        write(pa.table({"part": [1, 2, 3], "x": [1, 2, 3]}))
        assert sorted(os.listdir("set")) == ["1", "2", "3"]
        before = tree(folder)
        with pytest.raises(BoomError):
            write(self.batches(pa, good=20))
        assert tree(folder) == before
        write(pa.table({"part": [2], "x": [7]}))
        assert sorted(os.listdir("set")) == ["1", "2", "3"]
        assert ds.dataset(f"{folder}/set/2", filesystem=fs).to_table()["x"].to_pylist() == [7]


class TestRemovalOfWhatFailed:
    """pyarrow removes, with os.remove, the path that it could not write: that would be the old file."""

    @pytest.fixture
    def table(self) -> Any:
        return pytest.importorskip("pyarrow").table({"x": [float(number) ** 0.5 for number in range(100_000)]})

    def ways(self, table: Any, fs: Any, path: str) -> dict[str, Callable[[], object]]:
        import pyarrow.parquet as pq

        pd = pytest.importorskip("pandas")

        def in_transaction() -> None:
            with fs.transaction:
                pq.write_table(table, path, filesystem=fs)

        return {
            "pyarrow": lambda: pq.write_table(table, path, filesystem=fs),
            "transaction": in_transaction,
            "pandas by url": lambda: pd.DataFrame({"x": table["x"]}).to_parquet(f"atomik://{path}"),
            "pandas": lambda: pd.DataFrame({"x": table["x"]}).to_parquet(path, filesystem=fs),
        }

    @pytest.mark.parametrize("way", ["pyarrow", "transaction", "pandas by url", "pandas"])
    def test_the_old_file_stays(self, folder: Path, table: Any, fs: Any, way: str) -> None:
        """A disk that fills up in the middle of a parquet file leaves the old one."""
        path = f"{folder}/out.parquet"
        Path(path).write_text("old")
        with pytest.raises(OSError, match="File too large"), full_disk():
            self.ways(table, fs, path)[way]()
        assert Path(path).read_text() == "old"
        self.ways(table, fs, path)[way]()
        assert Path(path).stat().st_size > 100_000

    def test_a_commit_that_fails(self, folder: Path, table: Any, fs: Any) -> None:
        """What someone put there in the meantime stays as well."""
        path = f"{folder}/out.parquet"
        (Path(path)).mkdir()
        with pytest.raises(atomik.errors.WrongKindError):
            self.ways(table, fs, path)["pyarrow"]()
        assert Path(path).is_dir()

    def test_others_may_remove(self, folder: Path, table: Any, fs: Any) -> None:
        """Only pyarrow is stopped, only while it handles the failure, and only at that path."""
        path = f"{folder}/out.parquet"
        Path(path).write_text("old")
        Path("other").touch()
        try:
            with full_disk():
                self.ways(table, fs, path)["pyarrow"]()
        except OSError:
            os.remove("other")
            os.remove(path)
        assert os.listdir() == []

    def test_failure_that_is_caught(self, folder: Path, fs: Any) -> None:
        """On a full disk, too, the transaction cannot commit without the file whose writing failed."""
        refused = pytest.raises(atomik.errors.TransactionStateError, match="cannot commit without")
        with refused, full_disk(), fs.transaction:
            fs.pipe("fine", b"x")
            with pytest.raises(OSError, match="File too large") as caught, fs.open("big", "wb") as file:
                file.write(b"x" * 200_000)
            assert "was not published" in caught.value.__notes__[0]
        assert os.listdir() == []


class TestZarr:
    """`zarr` 3, which wraps the filesystem into an asynchronous one and calls it from threads."""

    @pytest.fixture
    def zarr(self) -> Any:
        return pytest.importorskip("zarr", minversion="3")

    def store(self, fs: Any, path: str) -> Any:
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
        from zarr.storage import FsspecStore

        return FsspecStore(AsyncFileSystemWrapper(fs, asynchronous=True), path=path)

    def fill(self, zarr: Any, fs: Any, path: str, value: int) -> Any:
        group = zarr.open_group(self.store(fs, path), mode="w")
        array = group.create_array("x", shape=(40, 40), chunks=(10, 10), dtype="i4")
        array[:] = value
        array[5:15, 5:15] = value + 1  # reads chunks, changes and writes them
        assert int(array[7, 7]) == value + 1
        return group

    def test_transaction(self, folder: Path, zarr: Any) -> None:
        """An array is replaced as a whole, chunks and metadata; a failure leaves the old one readable."""
        fs = AtomikFileSystem(auto_mkdir=True, skip_instance_cache=True, durable=False)
        path = f"{folder}/data.zarr"
        with fs.transaction:
            self.fill(zarr, fs, path, 1)
            assert not Path(path).exists()
        assert int(zarr.open_group(path, mode="r")["x"][0, 0]) == 1
        before = tree(folder)

        def fail() -> None:
            with fs.transaction:
                self.fill(zarr, fs, path, 7)
                raise BoomError

        with pytest.raises(BoomError):
            fail()
        assert tree(folder) == before
        with fs.transaction:
            self.fill(zarr, fs, path, 9)
        group = zarr.open_group(path, mode="r")
        assert (int(group["x"][0, 0]), int(group["x"][7, 7])) == (9, 10)

    def test_by_url(self, folder: Path, zarr: Any) -> None:
        """By URL each chunk is one atomic write."""
        url = f"atomik://{folder}/data.zarr"
        options = {"auto_mkdir": True, "durable": False}
        array = zarr.create_array(url, shape=(20,), chunks=(5,), dtype="i4", storage_options=options)
        array[:] = 3
        assert zarr.open_array(url, mode="r", storage_options=options)[:].tolist() == [3] * 20


class TestXarray:
    """`xarray`, which writes many arrays and consolidates their metadata at the end."""

    def test_to_zarr(self, folder: Path) -> None:
        """A dataset in one transaction: all of it, or what was there."""
        np = pytest.importorskip("numpy")
        xr = pytest.importorskip("xarray")
        pytest.importorskip("zarr", minversion="3")
        fs = AtomikFileSystem(auto_mkdir=True, skip_instance_cache=True, durable=False)
        path = f"{folder}/data.zarr"

        def write(value: float, fail: bool = False) -> None:
            values = np.full((6, 6), value)
            dataset = xr.Dataset(dict.fromkeys(("t", "p"), (("y", "x"), values)), {"x": range(6)})
            with fs.transaction:
                dataset.to_zarr(TestZarr().store(fs, path), mode="w")
                if fail:
                    raise BoomError

        write(1.0)
        before = tree(folder)
        with pytest.raises(BoomError):
            write(2.0, fail=True)
        assert tree(folder) == before
        with xr.open_zarr(path) as found:
            assert float(found["t"][0, 0]) == 1.0
        write(3.0)
        with xr.open_zarr(path) as found:
            assert float(found["p"].mean()) == 3.0
