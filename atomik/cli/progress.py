"""A line on a terminal about work that takes longer than a second; in a pipe, nothing."""

from __future__ import annotations

from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

#: seconds until the line shows, and between two drawings of it
AFTER, EVERY = 1.0, 0.2

_WIPE = "\r\033[K"
_WIDTH = 30


class Progress:
    """Call it with (phase, done, total), as the library does.  It shows from `start` to the end of its block.

    ``show`` writes to the terminal; None: there is none, and nothing is ever drawn.  A thread draws, so that a single
    sync that takes long shows too; it must not run yet when a child is forked.
    """

    def __init__(self, show: Callable[[str], None] | None) -> None:
        self._show = show
        self._text = ""
        self._drawn = False
        self._lock = allocate_lock()
        self._over: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        """As the ``progress=`` of the library."""
        self._text = line(phase, done, total)

    @property
    def wanted(self) -> Progress | None:
        """What the library gets as ``progress=``: nothing where nobody would see it, because it is called for each file."""
        return None if self._show is None else self

    def start(self) -> None:
        """From now on it takes a second until the line shows."""
        if self._show is not None:
            import threading  # in a pipe, nobody needs it

            from atomik._system import kernel

            self._over = threading.Event()
            thread = threading.Thread(target=self._draw, args=(self._over,), name="atomik progress", daemon=True)
            try:
                thread.start()
            except RuntimeError as exc:
                if not kernel.is_no_thread(exc):
                    raise
                return  # the work matters more
            self._thread = thread

    def _draw(self, over: threading.Event) -> None:
        wait = AFTER
        while not over.wait(wait):
            wait = EVERY
            with self._lock:
                if self._text and self._show is not None:
                    self._drawn = True
                    self._show(_WIPE + self._text)

    def clear(self) -> None:
        """Wipe the line away, so that something else can be printed."""
        with self._lock:
            if self._drawn and self._show is not None:
                self._drawn = False
                self._show(_WIPE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._over is not None:
            self._over.set()
        if self._thread is not None:
            self._thread.join()
        self.clear()


def line(phase: str, done: int, total: int) -> str:
    """What is shown; a total of 0 is unknown."""
    if total <= 0:
        return f"{phase}: {done}"
    filled = _WIDTH * min(done, total) // total
    return f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {done} of {total} {phase}"
