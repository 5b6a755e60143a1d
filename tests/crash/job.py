"""A program that does one scenario and nothing else: ``python job.py FOLDER SCENARIO [record|recover]``.

With ``record`` it prints, call by call, what atomik asked its own port for; with ``recover`` it recovers instead.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path


def main() -> None:
    """Do it."""
    import atomik
    from atomik._system import kernel as _kernel
    from tests.crash import scenarios
    from tests.support.kernels import Recording

    world = scenarios.World(Path(sys.argv[1]))
    job = getattr(scenarios, sys.argv[2])
    how = sys.argv[3] if len(sys.argv) > 3 else ""
    # those that only ask what a sandbox allows are calls all the same
    kernel = Recording(_kernel.MUTATING | {"rename_to_itself", "unlink_folder"})
    if how == "record":
        _kernel.install(kernel)
    gc.disable()
    if how == "recover":
        atomik.recover(*world.parents)
    else:
        job(world, True)
    print(" ".join(kernel.names()))


if __name__ == "__main__":
    main()
