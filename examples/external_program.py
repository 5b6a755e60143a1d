"""Publish what an external program writes, if and only if it succeeds.

    python examples/external_program.py [OUTPUT.tar.gz]

Programs want a file name, and many check its extension.  `atomik.path` gives them the destination's own name in a private
folder.  A program that fails half-way has written only there.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import atomik

ARCHIVE = [sys.executable, "-m", "tarfile", "--create"]
#: a program that stops half-way
HALF = [sys.executable, "-c", "import sys; f = open(sys.argv[1], 'wb'); f.write(b'half'); f.close(); sys.exit(3)"]


def main() -> None:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "json.tar.gz")
    source = Path(sysconfig.get_path("stdlib"), "json")

    before = output.read_bytes() if output.exists() else None
    try:
        with atomik.path(output, overwrite=True) as name:
            subprocess.run([*HALF, str(name)], check=True)
    except subprocess.CalledProcessError as exc:
        assert (output.read_bytes() if output.exists() else None) == before, "a failed program changed the output"
        print(f"the first program exited with {exc.returncode}: {output} is as it was")

    with atomik.path(output, overwrite=True) as name:
        subprocess.run([*ARCHIVE, str(name), source.name], check=True, cwd=source.parent)
    with tarfile.open(output) as archive:  # gzip, because tarfile saw the extension
        print(f"the second one succeeded: {output} holds {len(archive.getnames())} names")


if __name__ == "__main__":
    main()
