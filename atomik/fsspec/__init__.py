"""``atomik://``: fsspec's interface to local files, whose transactions are all or nothing.

`filesystem` is the interface that fsspec calls, `transaction` begins and ends, `changes` records what a transaction has
done, `view` shows the tree as it will be, `writers` are the file objects, `pyarrow_guard` protects old files from pyarrow.
"""

from .filesystem import AtomikFileSystem
from .transaction import AtomikTransaction

__all__ = ["AtomikFileSystem", "AtomikTransaction"]
