"""SPIN: translate the model, compile the checker, run it (spinroot.com; the Debian package ``spin``, and a C compiler)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from attrs import define

MODEL = Path(__file__).parent / "protocol.pml"
_MEGABYTES = 8000
"""What a search may take of the memory; one that needs more is an error, never a result."""


def missing() -> str | None:
    """Why the checker cannot run here."""
    return next((f"{tool} is not installed" for tool in ("spin", "gcc") if shutil.which(tool) is None), None)


@define
class Result:
    """What one search found: ``states`` that are different, and the error with the way to it, or None."""

    states: int
    seconds: float
    error: str | None
    trail: tuple[str, ...] = ()


class Checker:
    """The checker for transactions of this many steps, compiled in a folder."""

    def __init__(self, steps: int, folder: Path) -> None:
        self.folder = folder / f"steps-{steps}"
        self.folder.mkdir(parents=True)
        shutil.copy(MODEL, self.folder)
        self._run(["spin", "-a", f"-DSTEPS={steps}", MODEL.name])
        limits = ["-DVECTORSZ=2048", f"-DMEMLIM={_MEGABYTES}"]
        self._run(["gcc", "-O1", "-DSAFETY", "-DCOLLAPSE", *limits, "-w", "-o", "pan", "pan.c"])

    def check(
        self, rule: int = 0, crashes: int = 1, *, anywhere: bool = False, others: bool = True, kinds: str = ""
    ) -> Result:
        """Search all states; with the rule of this number taken out.  Each step may be in each folder, or they take turns.

        `kinds`: only the transactions that begin with steps of these kinds.  The kinds are part of every state behind the
        choice of them, so what is found for each beginning adds up to the whole.
        """
        told = {"RULE": str(rule), "CRASHES": str(crashes), "KINDS": kinds}
        told |= ({"ANYWHERE": "1"} if anywhere else {}) | ({} if others else {"NOBODY": "1"})
        (self.folder / f"{MODEL.name}.trail").unlink(missing_ok=True)
        found = self._run(["./pan", "-m1000000", "-n", "-w24"], **told)
        for limit in ("max search depth too small", "MEMLIM", "out of memory", "Search not completed"):
            assert limit not in found or "errors: 0" not in found, f"the search is not exhaustive: {limit}"
        states = re.search(r"(\S+) states, stored", found)
        assert states is not None, found
        seconds = re.search(r"elapsed time (\S+) seconds", found)
        error = re.search(r"pan:1: (.*) \(at depth", found)
        trail = self._trail(told) if error is not None else ()
        return Result(
            int(float(states[1])), float(seconds[1]) if seconds else 0.0, None if error is None else error[1], trail
        )

    def _trail(self, told: dict[str, str]) -> tuple[str, ...]:
        """What happened, in words: the model says it as it goes."""
        lines = self._run(["./pan", "-r", "-n"], **told).splitlines()
        words = (
            "T1",
            "T2",
            "KILLED",
            "POWER",
            "step",
            "undo",
            "recovery",
            "a stranger",
            "a reader",
            "the reader",
            "the outcome",
        )
        return tuple(line.strip() for line in lines if line.strip().startswith(words))

    def _run(self, command: list[str], **told: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env={**os.environ, **told}, capture_output=True, text=True, timeout=7200
        )
        # pan ends with the number of errors, and its replay with another number.
        assert done.returncode == 0 or command[0] == "./pan", done.stdout + done.stderr
        return done.stdout
