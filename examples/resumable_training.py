"""Train for a long time, lose nothing when killed, and publish the model when it is complete.

    python examples/resumable_training.py [FOLDER]

The model is a folder that is staged with ``resume=True``: its checkpoints are written into it, and if the job is
killed (SIGKILL, the out-of-memory killer, a pre-empted node), they are there for the next run.  Nobody sees the model
before it is complete.  Here the job is killed again and again; at the end the model is the one that an undisturbed job makes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import atomik

STEPS = 400


def train(model: Path) -> None:
    """Fit a line to noisy points; every tenth step is a checkpoint."""
    numbers = random.Random(7)
    points = [(x, 3 * x + 1 + numbers.gauss(0, 0.1)) for x in (numbers.uniform(-1, 1) for _ in range(256))]
    with atomik.folder(model, overwrite=True, resume=True) as new:
        checkpoint = new / "checkpoint.json"
        state = {"step": 0, "slope": 0.0, "offset": 0.0}
        if checkpoint.exists():  # new.resumed says that there is something; a checkpoint says how far it is
            state = json.loads(checkpoint.read_text())
        print(f"{'continues' if new.resumed else 'begins'} at step {state['step']}", flush=True)
        while state["step"] < STEPS:
            state = improve(state, points)
            if state["step"] % 10 == 0:
                with atomik.file(checkpoint, overwrite=True) as f:  # all or nothing, and durable: a kill may come now
                    json.dump(state, f)
        (new / "model.json").write_text(json.dumps({"slope": state["slope"], "offset": state["offset"]}))
        checkpoint.unlink()


def improve(state: dict[str, float], points: list[tuple[float, float]]) -> dict[str, float]:
    """One step of gradient descent, which takes a while."""
    time.sleep(0.0005)
    errors = [(state["slope"] * x + state["offset"] - y, x) for x, y in points]
    slope = state["slope"] - 0.1 * sum(error * x for error, x in errors) / len(errors)
    offset = state["offset"] - 0.1 * sum(error for error, _ in errors) / len(errors)
    return {"step": state["step"] + 1, "slope": slope, "offset": offset}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".").absolute()
    train(folder / "undisturbed")
    kills = 0
    while True:
        job = subprocess.Popen([sys.executable, __file__, "--train", str(folder / "model")])
        try:
            code = job.wait(timeout=0.25 * 1.25**kills)
        except subprocess.TimeoutExpired:
            os.kill(job.pid, signal.SIGKILL)
            job.wait()
            kills += 1
            continue
        assert code == 0
        break
    published, expected = ((folder / name / "model.json").read_text() for name in ("model", "undisturbed"))
    assert published == expected, "a kill has changed the result"
    print(f"killed {kills} times; the same model: {published}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(Path(sys.argv[2]))
    else:
        main()
