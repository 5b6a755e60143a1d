"""``python -m atomik``: the same as the command ``atomik``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
