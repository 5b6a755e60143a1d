"""Files and a database row in one commit: both are there, or neither, whenever the process dies.

    python examples/files_and_sqlite.py [FOLDER]

The files are prepared: published, durable and still undoable.  Then the database commits, with the transaction's id among
the rows: that is the one moment that decides.  Then the files are committed.  After a crash `recover` asks the database
whether it has the id.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import atomik

COORDINATOR = "pictures.sqlite"


def connect(folder: Path) -> sqlite3.Connection:
    """The database, with the table that decides."""
    database = sqlite3.connect(folder / "pictures.sqlite")
    database.execute("CREATE TABLE IF NOT EXISTS picture (name TEXT PRIMARY KEY, size INTEGER NOT NULL)")
    database.execute("CREATE TABLE IF NOT EXISTS published (txid TEXT PRIMARY KEY)")
    return database


def is_committed(database: sqlite3.Connection, txid: str) -> bool:
    """Whether the database has committed this transaction."""
    return database.execute("SELECT 1 FROM published WHERE txid = ?", (txid,)).fetchone() is not None


@contextmanager
def both(database: sqlite3.Connection) -> Iterator[atomik.Transaction]:
    """A transaction of files that ends like the database's."""
    files = atomik.transaction(overwrite=True, coordinator=COORDINATOR)
    try:
        yield files
        files.prepare()
        database.execute("INSERT INTO published VALUES (?)", (files.txid,))
        database.commit()
    except BaseException:
        database.rollback()
        # The commit may have failed after the moment that decides: the database knows.
        if files.state is atomik.State.SWAPPED and is_committed(database, files.txid):
            files.commit()
        else:
            files.abort()
        raise
    files.commit()
    # It will not be needed any more.
    database.execute("DELETE FROM published WHERE txid = ?", (files.txid,))
    database.commit()


def add(folder: Path, name: str, picture: bytes) -> None:
    """Add a picture: a file, and the row about it."""
    with closing(connect(folder)) as database, both(database) as files:
        with files.file(folder / "pictures" / name, "wb") as f:
            f.write(picture)
        with files.file(folder / "pictures" / "latest.txt") as f:
            f.write(name)
        database.execute("INSERT OR REPLACE INTO picture VALUES (?, ?)", (name, len(picture)))


def recover(folder: Path) -> atomik.RecoveryReport:
    """After a crash, before anything else uses the folder: the database decides."""
    with closing(connect(folder)) as database:
        return atomik.recover(folder / "pictures", decide=lambda txid, _: is_committed(database, txid))


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "gallery")
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    recover(folder)
    add(folder, "circle.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><circle r="9"/></svg>')
    try:
        with closing(connect(folder)) as database, both(database) as files:
            files.file(folder / "pictures" / "lost.svg").write("<svg/>")
            database.execute("INSERT INTO picture VALUES ('circle.svg', 0)")  # it is there already
    except sqlite3.IntegrityError as error:
        print(f"neither file nor row: {error}")
    with closing(connect(folder)) as database:
        rows = dict(database.execute("SELECT name, size FROM picture"))
    files = {path.name: path.stat().st_size for path in (folder / "pictures").glob("*.svg")}
    assert rows == files
    print(f"{len(rows)} picture, with its row")


if __name__ == "__main__":
    main()
