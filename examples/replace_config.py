"""Change a setting in a configuration file, without losing someone else's change.

    python examples/replace_config.py [FILE]

`atomik.update` reads, lets you modify, and writes: at every moment the file is the old or the new version, and it
keeps its mode and owner.  If another program changed it in the meantime, you get a `ConflictError`, and their version is
kept.  Then repeat the update.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import atomik
from atomik.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULTS = {"workers": 4, "cache": "/var/cache/app", "debug": False}


def change(path: Path, edit: Callable[[dict[str, object]], None], attempts: int = 5) -> int:
    """Apply `edit` to the configuration; returns how many attempts it took."""
    for attempt in range(1, attempts + 1):
        try:
            with atomik.update(path) as file:
                config = json.load(file)
                edit(config)
                file.seek(0)
                file.truncate()
                json.dump(config, file, indent=2)
            return attempt
        except ConflictError:
            if attempt == attempts:
                raise
    raise ValueError("at least one attempt is needed")


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "config.json")
    if not path.exists():
        with atomik.file(path, permissions=0o600) as file:
            json.dump(DEFAULTS, file, indent=2)

    others = iter([True])  # another program changes the file once, at the worst moment: while we are editing

    def eight_workers(config: dict[str, object]) -> None:
        if next(others, False):
            change(path, lambda theirs: theirs.update(debug=True))
        config["workers"] = 8

    attempts = change(path, eight_workers)
    config = json.loads(path.read_text())
    assert config["workers"] == 8, "our change is missing"
    assert config["debug"] is True, "the other program's change was lost"
    print(f"attempts: {attempts}; both changes are there: {config}")


if __name__ == "__main__":
    main()
