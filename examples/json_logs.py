"""Log what atomik does as one JSON object per line, through structlog.

    python examples/json_logs.py [FOLDER]

atomik prints nothing.  Its events go to structlog if the program has configured it, otherwise to the logger "atomik" of the
standard library.  All events of one transaction have the same ``tx``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import structlog

import atomik


def main() -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    )
    structlog.contextvars.bind_contextvars(job="nightly")  # your own context is in every event

    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "logged")
    with atomik.transaction(overwrite=True) as tx:
        tx.file(folder / "numbers.txt", parents=True).write("1 2 3\n")
        plots = tx.folder(folder / "plots")
        (plots / "loss.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>\n')
    try:
        with atomik.transaction() as tx:
            tx.file(folder / "more.txt").write("4 5 6\n")
            raise RuntimeError("the job failed")
    except RuntimeError:
        pass


if __name__ == "__main__":
    main()
