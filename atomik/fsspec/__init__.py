from .filesystem import AtomikFileSystem, AtomikTransaction

__all__ = ["AtomikFileSystem", "AtomikTransaction"]
