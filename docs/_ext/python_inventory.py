"""The few names of the standard library that our pages refer to, as an inventory for intersphinx.

The real one is fetched from the network at every build; a build should not need that.  A name that is missing
here makes the build fail (``-n -W``): add it.
"""

from __future__ import annotations

import zlib
from pathlib import Path

_BASES = "library/exceptions.html"
_CLASSES = {
    "Exception": _BASES,
    "FileExistsError": _BASES,
    "FileNotFoundError": _BASES,
    "IsADirectoryError": _BASES,
    "KeyboardInterrupt": _BASES,
    "NotADirectoryError": _BASES,
    "OSError": _BASES,
    "PermissionError": _BASES,
    "ResourceWarning": _BASES,
    "RuntimeError": _BASES,
    "TimeoutError": _BASES,
    "ValueError": _BASES,
}
_OTHERS = {
    ("py:class", "enum.Enum"): "library/enum.html",
    ("py:class", "pathlib.Path"): "library/pathlib.html",
    ("py:class", "str"): "library/stdtypes.html",
    ("py:class", "int"): "library/functions.html",
    ("py:class", "object"): "library/functions.html",
    ("py:class", "bool"): "library/functions.html",
    ("py:exception", "subprocess.SubprocessError"): "library/subprocess.html",
    ("py:function", "open"): "library/functions.html",
    ("py:function", "os.replace"): "library/os.html",
    ("py:function", "os.fsync"): "library/os.html",
}


def write(folder: Path) -> Path:
    """Write the inventory below `folder`, which is no part of the sources, and return its path."""
    lines = [f"{name} py:exception 1 {page}#$ -" for name, page in _CLASSES.items()]
    lines += [f"{name} {role} 1 {page}#$ -" for (role, name), page in _OTHERS.items()]
    head = "# Sphinx inventory version 2\n# Project: Python\n# Version: 3\n# The rest is compressed using zlib.\n"
    folder.mkdir(exist_ok=True)
    path = folder / "python.inv"
    path.write_bytes(head.encode() + zlib.compress("".join(line + "\n" for line in lines).encode()))
    return path
