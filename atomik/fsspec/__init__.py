"""``atomik://``: fsspec's interface to local files, whose transactions are all or nothing."""

from .filesystem import AtomikFileSystem, AtomikTransaction

__all__ = ["AtomikFileSystem", "AtomikTransaction"]
