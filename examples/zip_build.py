"""Write a zip archive that is either complete or not there.

    python examples/zip_build.py [OUTPUT.zip]

`zipfile` writes the directory of an archive at its end, so half an archive cannot be opened.  `atomik.file` gives it
the real, seekable file object that it needs.
"""

from __future__ import annotations

import sys
import sysconfig
import zipfile
from pathlib import Path

import atomik


def main() -> None:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "json.zip")
    source = Path(sysconfig.get_path("stdlib"), "json")
    with (
        atomik.file(output, "wb", overwrite=True) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,  # closed first, published after
    ):
        for path in sorted(source.glob("*.py")):
            archive.write(path, path.relative_to(source.parent))

    with zipfile.ZipFile(output) as archive:
        assert archive.testzip() is None, "the archive is damaged"
        print(f"{output}: {len(archive.namelist())} files, all intact")


if __name__ == "__main__":
    main()
