"""Skip a test, with the reason, where the machine lacks something.

need(mounts.missing("xfs"), strace.missing_strace())
"""

from __future__ import annotations

import pytest


def need(*reasons: str | None) -> None:
    """Skip the running test if any of the ``missing…()`` answers is a reason."""
    for reason in reasons:
        if reason is not None:
            pytest.skip(reason)
