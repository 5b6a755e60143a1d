"""Publish data files and, after them, the manifest that names them.

    python examples/manifest_last.py [FOLDER]

A log shipper, or any other program that knows nothing of atomik, waits for ``manifest.json`` and then reads the
files in it.  ``order=`` makes the manifest the last name to change, so a program that sees it finds every file in it
complete; if anything fails before, none of them is there.  Each batch has a folder of its own, so that no file of an old
manifest ever changes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import sys
import sysconfig
from pathlib import Path

import atomik


def publish(folder: Path, parts: dict[str, bytes]) -> atomik.Receipt:
    """Publish the parts and their manifest; the manifest is staged first here, and still swapped last."""
    manifest = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in parts.items()}
    with atomik.transaction() as tx:
        with tx.file(folder / "manifest.json", order=1, parents=True) as file:
            json.dump({"made_by": platform.node(), "parts": manifest}, file, indent=2)
        for name, data in parts.items():
            with tx.file(folder / name, "wb") as part:
                part.write(data)
        return tx.commit()


def ship(folder: Path) -> int:
    """The shipper: trusts the manifest, and checks it anyway."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, facts in manifest["parts"].items():
        data = (folder / name).read_bytes()
        assert len(data) == facts["size"], f"{name} is incomplete"
        assert hashlib.sha256(data).hexdigest() == facts["sha256"], f"{name} is not what the manifest says"
    return len(manifest["parts"])


def main() -> None:
    outbox = Path(sys.argv[1] if len(sys.argv) > 1 else "outbox")
    folder = next(batch for n in itertools.count(1) if not (batch := outbox / f"batch-{n}").exists())
    modules = sorted(Path(sysconfig.get_path("stdlib"), "json").glob("*.py"))
    receipt = publish(folder, {path.name: path.read_bytes() for path in modules})
    assert Path(receipt.items[-1].path).name == "manifest.json"
    order = ", ".join(Path(item.path).name for item in receipt.items)
    print(f"shipped {ship(folder)} files of {folder}; they were swapped in this order: {order}")


if __name__ == "__main__":
    main()
