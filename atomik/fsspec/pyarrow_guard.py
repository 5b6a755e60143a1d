"""Keeps the old file from pyarrow, which removes the path of a file whose writing failed.

``pyarrow.parquet.write_table(table, path, filesystem=fs)``, and so ``DataFrame.to_parquet("atomik://…")``, clean up after
a failure with ``os.remove(path)``, past the filesystem that they were given (pyarrow/parquet/core.py, seen in 16 to 26).
On other filesystems that removes half a file, or nothing.  Here the path holds the complete old version, and a full disk
would delete it.

Only an audit hook (PEP 578) can refuse that: it makes this one call fail with an OSError, which pyarrow expects.  Python
cannot remove a hook again, so it is added when the first file is dropped in a program that uses pyarrow.
"""

from __future__ import annotations

import errno
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MARK = "_atomik_dropped"
_added = False


def protect(path: str, failure: BaseException) -> None:
    """While `failure` is handled, pyarrow cannot remove `path`."""
    global _added  # noqa: PLW0603  one hook in a process
    if "pyarrow" not in sys.modules:
        return
    vars(failure).setdefault(_MARK, []).append(path)
    if not _added:
        _added = True
        sys.addaudithook(_hook)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event != "os.remove":
        return
    dropped = getattr(sys.exception(), _MARK, ())
    if args[0] in dropped and str(sys._getframe(1).f_globals.get("__name__")).startswith("pyarrow."):
        raise PermissionError(errno.EPERM, "this is the old version, not the file that failed", args[0])
