"""Save a checkpoint of three files, as torch programs do, so that a restart never finds half of one.  Needs numpy.

    python examples/checkpoint.py [FOLDER]

Weights, optimizer state and step count change together: one transaction replaces all three, and `atomik.reading`
keeps writers out while a reader loads them.  Uses safetensors where it is installed, else numpy's own format; with
torch, write ``torch.save(state, name)`` instead.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import atomik

Tensors = dict[str, np.ndarray]

if find_spec("safetensors"):
    from safetensors.numpy import load_file as load_tensors
    from safetensors.numpy import save_file as save_tensors

    EXTENSION = "safetensors"
else:
    EXTENSION = "npz"

    def save_tensors(tensors: Tensors, name: Path) -> None:
        np.savez(name, **tensors)

    def load_tensors(name: Path) -> Tensors:
        with np.load(name) as found:
            return dict(found)


def save(folder: Path, step: int, weights: Tensors, optimizer: Tensors) -> None:
    """Replace the checkpoint in `folder`, all three files or none."""
    with atomik.transaction(overwrite=True) as tx:
        save_tensors(weights, tx.path(folder / f"weights.{EXTENSION}", parents=True))
        save_tensors(optimizer, tx.path(folder / f"optimizer.{EXTENSION}"))
        with tx.file(folder / "state.json") as file:
            json.dump({"step": step}, file)


def load(folder: Path) -> tuple[int, Tensors, Tensors]:
    """The checkpoint; all its parts are of one step."""
    with atomik.reading(folder):
        state = json.loads((folder / "state.json").read_text())
        weights, optimizer = (load_tensors(folder / f"{name}.{EXTENSION}") for name in ("weights", "optimizer"))
    return state["step"], weights, optimizer


def train(folder: Path, steps: int) -> None:
    """Fit a line to noisy points, with a checkpoint after every step."""
    points = np.random.default_rng(7).normal(size=64)
    weights, velocity = {"w": np.zeros(2)}, {"v": np.zeros(2)}
    inputs = np.stack([points, np.ones_like(points)])
    for step in range(1, steps + 1):
        error = weights["w"] @ inputs - (3 * points + 1)
        velocity["v"] = 0.5 * velocity["v"] - 0.2 * inputs @ error / points.size
        weights["w"] = weights["w"] + velocity["v"]
        save(folder, step, weights, velocity)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "checkpoint")
    train(folder, steps=30)
    step, weights, optimizer = load(folder)
    try:
        save(folder, 31, {"w": np.zeros(2)}, {"v": (n for n in ())})  # no tensor: fails after the weights were written
    except Exception as exc:  # noqa: BLE001 - each format has its own
        assert load(folder)[0] == step, "a failed save changed the checkpoint"
        assert np.array_equal(load(folder)[1]["w"], weights["w"])
        print(f"a failed save changed nothing: {type(exc).__name__}")
    slope, offset = weights["w"]
    names = sorted(path.name for path in folder.iterdir())
    print(f"step {step}: slope {slope:.2f}, offset {offset:.2f}, moving by {np.abs(optimizer['v']).max():.0e}; {names}")


if __name__ == "__main__":
    main()
