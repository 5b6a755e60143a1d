"""What only a commit with a journal needs, loaded separately: most programs write one plain file and never need it.

Code that stages something that may need it calls `load` first (I14): at the commit it may be impossible to load anything,
after an upgrade, a chroot, or dropped rights.
"""

from __future__ import annotations

import resource  # noqa: F401  for `descriptors.hold`

from atomik import _receipt  # noqa: F401
from atomik._protocol import journal, records
from atomik._recovery.leftovers import remove_unpinned
from atomik._recovery.unfinished_journal import wait_or_recover

__all__ = ["journal", "load", "records", "remove_unpinned", "wait_or_recover"]


def load() -> None:
    """Importing this module does it; the rest is for outputs other than files."""
    from atomik._folder import mounts  # noqa: F401
    from atomik._tree import compare, delete, metadata, sync  # noqa: F401
