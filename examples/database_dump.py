"""Dump a database into a file; a dump that fails half-way never replaces a complete one.

    python examples/database_dump.py [FOLDER]          # default: ./backup

``pg_dump shop > shop.sql`` empties yesterday's dump before today's has begun, and leaves half a dump if it fails.  With
``atomik run --stdout`` the old one stays until the program has exited with 0:

    atomik run --overwrite --stdout shop.sql -- pg_dump shop
    atomik run --overwrite --stdout shop.sql.gz -- bash -o pipefail -c 'pg_dump shop | gzip'

Here the database is one of SQLite, and the dumper a few lines of Python, which can be told to fail.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import atomik

_DUMPER = """
import sqlite3, sys
from contextlib import closing
with closing(sqlite3.connect(sys.argv[1])) as database:
    for number, line in enumerate(database.iterdump()):
        if number == int(sys.argv[2]):
            sys.exit("the connection to the database is lost")
        print(line)
"""


def dump(database: Path, into: Path, fail_at: int = -1) -> int:
    """Dump the database; the exit code."""
    command = [sys.executable, "-m", "atomik", "run", "--overwrite", "--stdout", into, "--"]
    program = [sys.executable, "-c", _DUMPER, database, str(fail_at)]
    return subprocess.run([*command, *program], check=False, stderr=subprocess.DEVNULL).returncode


def rows(dumped: Path) -> int:
    """How many rows a dump brings back."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(dumped.read_text())
        (count,) = database.execute("SELECT count(*) FROM orders").fetchone()
    return int(count)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "backup")
    folder.mkdir(exist_ok=True)
    shop, dumped = folder / "shop.sqlite", folder / "shop.sql"
    with atomik.path(shop, overwrite=True) as path, closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE orders (item TEXT)")
        database.executemany("INSERT INTO orders VALUES (?)", [(f"item {number}",) for number in range(1000)])
        database.commit()

    assert dump(shop, dumped) == 0
    print(f"a dump of {rows(dumped)} orders")
    assert dump(shop, dumped, fail_at=500) == 1
    print(f"a dump failed half-way: the previous one, of {rows(dumped)} orders, is still there")


if __name__ == "__main__":
    main()
