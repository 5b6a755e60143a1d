"""Edit several files at once, as a coding agent would: all edits are applied, or none.

    python examples/apply_changes.py [FOLDER]

The agent has read two files and wants to rename a function in both.  It says what it has seen (`expect`), so if
someone else edits a file in the meantime, the whole change set is refused; the agent reads again and repeats.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FILES = {"lib.py": "def foo():\n    return 1\n", "main.py": "from lib import foo\n\nprint(foo())\n"}


def rename_function(root: Path) -> list[dict[str, Any]]:
    """The agent's edits, made for the files as they are now."""
    changes: list[dict[str, Any]] = []
    for name in FILES:
        content = (root / name).read_bytes()
        seen = f"sha256:{hashlib.sha256(content).hexdigest()}"
        count = content.count(b"foo")
        changes.append({"op": "replace", "path": name, "old": "foo", "new": "bar", "count": count, "expect": seen})
    changes.append({"op": "write", "path": "CHANGES.md", "text": "foo is called bar\n", "expect": "absent"})
    return changes


def apply(root: Path, changes: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """Give a change set to ``atomik apply``; returns the exit code and the answer."""
    command = [sys.executable, "-m", "atomik", "apply", "--json", "--root", root, "-"]
    document = json.dumps({"changes": changes})
    done = subprocess.run(
        command, input=document, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    )
    return done.returncode, json.loads(done.stdout)


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "project")
    root.mkdir(exist_ok=True)
    for name, text in FILES.items():
        (root / name).write_text(text)
    (root / "CHANGES.md").unlink(missing_ok=True)

    changes = rename_function(root)
    (root / "main.py").write_text("from lib import foo\n\nprint(foo() + 1)\n")  # someone else, in the meantime
    code, answer = apply(root, changes)
    assert (code, answer["error"], answer["change"]) == (1, "ConflictError", 1)
    assert "foo" in (root / "lib.py").read_text(), "half of the change set was applied"

    code, answer = apply(root, rename_function(root))  # read again, and repeat
    assert code == 0, answer
    for item in answer["items"]:
        content = Path(item["path"]).read_bytes()
        assert item["sha256"] == hashlib.sha256(content).hexdigest()
        print(item["op"], item["path"])
    assert (
        subprocess.run([sys.executable, root / "main.py"], stdout=subprocess.PIPE, text=True, check=True).stdout
        == "2\n"
    )
    print("the function was renamed in both files, and the other edit was kept")


if __name__ == "__main__":
    main()
