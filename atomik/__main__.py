"""``python -m atomik``: the same as the command ``atomik``."""

from __future__ import annotations

import sys

from .cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
