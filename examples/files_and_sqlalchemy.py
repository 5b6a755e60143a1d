"""Files and rows of an SQLAlchemy session in one commit.

    python examples/files_and_sqlalchemy.py [FOLDER]

`joined` ties a transaction of files to a session, through the session's events: ``session.commit()`` commits both, a
rollback undoes both.  The row with the transaction's id decides after a crash; see files_and_sqlite.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event, orm

import atomik


class Base(orm.DeclarativeBase):
    pass


class Report(Base):
    __tablename__ = "report"
    name: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    size: orm.Mapped[int]


class Published(Base):
    __tablename__ = "published"
    txid: orm.Mapped[str] = orm.mapped_column(primary_key=True)


def is_committed(engine: sa.Engine, txid: str) -> bool:
    """Whether the database has committed this transaction."""
    with engine.connect() as connection:
        return connection.scalar(sa.select(Published.txid).where(Published.txid == txid)) is not None


def joined(session: orm.Session) -> atomik.Transaction:
    """A transaction of files that ends with the session's present transaction."""
    files = atomik.transaction(overwrite=True, coordinator="reports")
    engine = session.get_bind()
    assert isinstance(engine, sa.Engine)

    def before_commit(session: orm.Session) -> None:
        if files.state is atomik.State.OPEN:
            session.flush()  # if the database refuses something, it does so now
            files.prepare()
            session.execute(sa.insert(Published).values(txid=files.txid))

    def after_commit(_: orm.Session) -> None:
        if files.state is atomik.State.SWAPPED:
            files.commit()

    def after_rollback(_: orm.Session) -> None:
        # A commit may fail after the moment that decides: the database knows.
        if files.state is atomik.State.SWAPPED and is_committed(engine, files.txid):
            files.commit()
        elif files.state in (atomik.State.OPEN, atomik.State.SWAPPED):
            files.abort()

    event.listen(session, "before_commit", before_commit)
    event.listen(session, "after_commit", after_commit)
    event.listen(session, "after_rollback", after_rollback)
    return files


def recover(folder: Path, engine: sa.Engine) -> atomik.RecoveryReport:
    """After a crash: the database decides."""
    return atomik.recover(folder, decide=lambda txid, _: is_committed(engine, txid))


def write(folder: Path, engine: sa.Engine, name: str, text: str) -> None:
    """A report: a file, and the row about it."""
    with orm.Session(engine) as session:
        files = joined(session)
        files.file(folder / f"{name}.txt").write(text)
        session.add(Report(name=name, size=len(text)))
        session.commit()


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "reports")
    folder.mkdir(exist_ok=True)
    (folder.parent / "reports.sqlite").unlink(missing_ok=True)
    engine = sa.create_engine(f"sqlite:///{folder.parent / 'reports.sqlite'}")
    Base.metadata.create_all(engine)
    recover(folder, engine)
    write(folder, engine, "january", "all is well\n")
    try:
        write(folder, engine, "january", "written twice\n")
    except sa.exc.IntegrityError:
        print("neither file nor row: there is a report of january")
    assert (folder / "january.txt").read_text() == "all is well\n"
    with orm.Session(engine) as session:
        sizes = {report.name: report.size for report in session.scalars(sa.select(Report))}
    assert sizes == {path.stem: path.stat().st_size for path in folder.iterdir()}
    engine.dispose()
    print(f"{len(sizes)} report, with its row")


if __name__ == "__main__":
    main()
