"""The command ``atomik``."""

from .commands import main, parser

__all__ = ["main", "parser"]
