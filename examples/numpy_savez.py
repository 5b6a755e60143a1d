"""Write arrays with `numpy.savez`, all or nothing.  Needs numpy.

    python examples/numpy_savez.py [OUTPUT.npz]

`atomik.path` keeps the extension, so numpy does not append another; `atomik.file` works too, because numpy
accepts file objects.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import atomik


def main() -> None:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "arrays.npz")
    text = np.frombuffer(Path(__file__).read_bytes(), dtype=np.uint8)
    arrays = {"bytes": text, "histogram": np.bincount(text, minlength=256)}

    with atomik.path(output, overwrite=True) as name:
        np.savez_compressed(name, **arrays)

    single = output.with_suffix(".npy")
    with atomik.file(single, "wb", overwrite=True) as file:
        np.save(file, arrays["histogram"])

    with np.load(output) as found:
        assert set(found) == {"bytes", "histogram"}
        assert np.array_equal(found["histogram"], np.load(single))
        print(f"{output}: {found['bytes'].size} bytes, most frequent {chr(found['histogram'].argmax())!r}")


if __name__ == "__main__":
    main()
