"""Other libraries, each writing one file; only those that are installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@cache
def atomik_003(home: Path) -> Any:
    """atomik 0.0.3rc1 from the package index, under another name; None if it cannot be installed."""
    target = home / "atomik-0.0.3"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), "atomik==0.0.3rc1"]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        return None
    package = target / "atomik"
    spec = importlib.util.spec_from_file_location(
        "atomik_003", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["atomik_003"] = module
    spec.loader.exec_module(module)
    return module


def fast(home: Path) -> dict[str, Callable[[str, str], None]]:
    """Writers that sync nothing: atomik 0.0.3, boltons, safer."""
    writers: dict[str, Callable[[str, str], None]] = {}
    old = atomik_003(home)
    if old is not None:

        def atomik_old(path: str, text: str) -> None:
            with old.file(path, overwrite=True, tmp_dir=Path(path).parent) as f:
                f.write(text)

        writers["atomik 0.0.3"] = atomik_old
    if importlib.util.find_spec("boltons"):
        from boltons.fileutils import atomic_save

        def boltons(path: str, text: str) -> None:
            with atomic_save(path, text_mode=True) as f:
                f.write(text)

        writers["boltons"] = boltons
    if importlib.util.find_spec("safer"):
        import safer

        def safer_write(path: str, text: str) -> None:
            with safer.open(path, "w", temp_file=True) as f:
                f.write(text)

        writers["safer"] = safer_write
    return writers


def durable() -> dict[str, Callable[[str, str], None]]:
    """Writers that sync file and folder: atomicwrites."""
    if not importlib.util.find_spec("atomicwrites"):
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from atomicwrites import atomic_write

    def atomicwrites(path: str, text: str) -> None:
        with atomic_write(path, overwrite=True) as f:
            f.write(text)

    return {"atomicwrites": atomicwrites}
