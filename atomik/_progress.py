"""How far long work is: counting for the user's progress function, and the bar of ``progress=True``.

A progress function is called with (phase, done, total).  A total of 0 is unknown; every phase ends with ``done == total``.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal, TypeAlias

    Progress: TypeAlias = Callable[[str, int, int], None]


class Counting:
    """Adds up the counts of what is newly done, for a phase whose total is known only at the end.

    It reports a sum when the next count comes, so that the last sum is reported once, with the total.
    """

    def __init__(self, progress: Progress, phase: str) -> None:
        self._progress, self._phase, self._done = progress, phase, 0

    def __call__(self, count: int) -> None:
        if self._done:
            self._progress(self._phase, self._done, 0)
        self._done += count

    def finish(self) -> None:
        """Report the last sum, which is the total."""
        if self._done:
            self._progress(self._phase, self._done, self._done)


def progress_of(given: Progress | Literal[True] | None) -> Progress | None:
    """What was passed as ``progress=``; a `Bar` for True."""
    if given is True:
        return Bar()
    if given is None:
        return None
    if not callable(given):
        raise TypeError(f"progress must be a function of (phase, done, total), or True for a bar, not {given!r}")

    def tell(phase: str, done: int, total: int) -> None:
        given(phase, done, total)  # called from here, it is known for the program's (see `kernel.errno_of`)

    return tell


class Bar:
    """A bar on the terminal for each phase in turn, by rich or tqdm, on standard error; nothing where that is no terminal.

    `close` removes what is drawn; calling it again draws again.
    """

    def __init__(self) -> None:
        from importlib.util import find_spec

        if find_spec("rich") is not None:
            import rich.progress  # noqa: F401  now, and not in the middle of a commit (I14)

            self._make: type[_Rich | _Tqdm] = _Rich
        elif find_spec("tqdm") is not None:
            import tqdm  # noqa: F401

            self._make = _Tqdm
        else:
            text = "progress=True draws with rich or tqdm, and neither is installed: pip install 'atomik[progress]'"
            raise ModuleNotFoundError(f"{text}, or pass a function of (phase, done, total)", name="rich")
        self._drawn: _Rich | _Tqdm | None = None
        self._phase, self._done = "", 0

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase or done < self._done:
            self.close()
        if self._drawn is None:
            self._drawn = self._make(phase)
        self._phase, self._done = phase, done
        self._drawn.show(done, total)
        if done == total:
            self.close()

    def close(self) -> None:
        """The work is over, or continues in another phase."""
        drawn, self._drawn = self._drawn, None
        self._phase, self._done = "", 0
        if drawn is not None:
            drawn.close()


class _Rich:
    """One phase, by rich."""

    def __init__(self, phase: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(phase, total=None)
        self._bar.start()

    def show(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total or None)

    def close(self) -> None:
        self._bar.stop()


class _Tqdm:
    """One phase, by tqdm."""

    def __init__(self, phase: str) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(desc=phase, file=sys.stderr, leave=False, disable=None)

    def show(self, done: int, total: int) -> None:
        self._bar.total = total or None
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()
