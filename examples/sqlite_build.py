"""Build an SQLite database and publish it complete; readers use the old one until then.

    python examples/sqlite_build.py [OUTPUT.sqlite]

The database is built at a private path and closed; then it replaces the destination in one step.  A connection that has the
old database open keeps it.  If the new one still has a journal next to it, atomik refuses to publish it.
"""

from __future__ import annotations

import sqlite3
import sys
import sysconfig
from contextlib import closing
from pathlib import Path

import atomik


def build(output: Path) -> None:
    """A searchable table of the standard library's modules."""
    with (
        atomik.path(output, overwrite=True) as name,
        closing(sqlite3.connect(name)) as database,  # closed first, published after
        database,
    ):
        database.execute("PRAGMA synchronous = OFF")  # atomik syncs the finished file, once
        database.execute("CREATE TABLE module (name TEXT PRIMARY KEY, lines INTEGER NOT NULL)")
        modules = Path(sysconfig.get_path("stdlib")).glob("*.py")
        rows = ((path.stem, path.read_bytes().count(b"\n")) for path in modules)
        database.executemany("INSERT INTO module VALUES (?, ?)", rows)


def main() -> None:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "modules.sqlite")
    build(output)
    with closing(sqlite3.connect(output)) as reader:  # a reader of the first version …
        before = reader.execute("SELECT count(*) FROM module").fetchone()[0]
        build(output)  # … while the next one is published
        assert reader.execute("SELECT count(*) FROM module").fetchone()[0] == before
    with closing(sqlite3.connect(output)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        name, lines = database.execute("SELECT name, lines FROM module ORDER BY lines DESC").fetchone()
    print(f"{output}: {before} modules, the longest is {name} with {lines} lines")


if __name__ == "__main__":
    main()
