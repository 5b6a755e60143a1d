"""``cleanup="later"``: displaced folders are deleted by a thread; only the end of the program waits for it.

A `Job` has the private folders of a transaction that is committed, and descriptors of its own for the folders in which they
lie; `hand_over` gives it to the thread, which is started when there is work, ends when there is none, and is joined by the
interpreter at exit.  If the process dies, the private folders are left as by any death after the commit mark, and recovery
deletes them: their locks go with the process, and the journal in them says "committed".  A forked child forgets the jobs of
its parent (I11).

What cannot be deleted is logged as ``cleanup.failed``, because the receipt was returned before.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque

from atomik import _events
from atomik._protocol.locks import close_all
from atomik._system import kernel
from atomik._typing import cast

from .machinery import remove_unpinned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from atomik._folder.directory import Directory
    from atomik._protocol.private_folder import PrivateFolder


class Job:
    """What is left to do of a commit.  ``claim``: locked once a thread has it."""

    def __init__(self, txid: str, pause: float, folders: Iterable[PrivateFolder], parents: Iterable[Directory]) -> None:
        self.txid, self.pause, self.claim = txid, pause, threading.Lock()
        self.folders = list(folders)
        #: in which folders were displaced, and readers may have given up others since
        self.parents: list[Directory] = []
        try:
            self.parents.extend(parent.reopened() for parent in parents)
            for made in self.folders:  # the transaction closes its own
                made.hand_over()
        except BaseException:
            close_all(self.parents)
            raise

    def run(self) -> None:
        """Delete; what cannot be deleted is logged, and left to recovery."""
        try:
            kernel.sleep(self.pause)  # see `Commit.pause`
            for made in self.folders if len(self.folders) > 1 else ():
                self._attempt(made.empty, "")  # `dissolve` tries once more, and says so
            for made in self.folders:
                self._attempt(made.dissolve, made.path)
            for parent in self.parents:
                self._attempt(functools.partial(remove_unpinned, parent), parent.path)
        finally:
            close_all([*self.parents, *cast("list[Directory]", self.folders), *(made.parent for made in self.folders)])

    def _attempt(self, action: Callable[[], object], path: str) -> None:
        try:
            action()
        except OSError as exc:
            if not kernel.is_failure(exc):
                raise
            if path:
                _events.emit(
                    _events.WARNING, "cleanup.failed", tx=self.txid, path=str(exc.filename or path), error=str(exc)
                )


_jobs: deque[Job] = deque()
#: those at work: one as a rule.  No lock guards any of this: an exception that arrives while one is held might leave it held.
_threads: set[threading.Thread] = set()


def hand_over(job: Job) -> None:
    """Let the thread do it; may be repeated after an interrupt.  Where no thread can be started, it is done at once."""
    if not job.claim.locked() and job not in _jobs:
        _jobs.append(job)
    if _threads:  # each looks for jobs once more after it has left
        return
    thread = threading.Thread(target=_work, name="atomik-cleanup", daemon=False)
    try:
        thread.start()
    except RuntimeError as exc:
        if not kernel.is_no_thread(exc):
            raise
        _work(alone=False)


def _work(*, alone: bool = True) -> None:
    """Do all jobs; `alone`: in a thread of its own, where exceptions reach nobody."""
    me = threading.current_thread()
    while _jobs:
        _threads.add(me)
        try:
            _run_next(alone=alone)
        finally:
            _threads.discard(me)


def _run_next(*, alone: bool) -> None:
    while _jobs:
        try:
            job = _jobs.popleft()
        except IndexError as exc:
            if kernel.came_from_elsewhere(exc):
                raise
            return  # another thread was quicker
        if not job.claim.acquire(blocking=False):  # it was handed over twice
            continue
        try:
            job.run()
        except Exception as exc:
            if not alone:  # a signal handler's, in the program's thread; the next call of `hand_over` does the others
                raise
            # Of a thread of its own it can only be told; the next one must be done nevertheless.
            _events.emit(_events.WARNING, "cleanup.failed", tx=job.txid, path="", error=str(exc) or type(exc).__name__)


def wait() -> None:
    """Wait until everything that was handed over is done."""
    while _jobs or _threads:
        for thread in list(_threads):
            if thread is not threading.current_thread():
                thread.join()
        kernel.sleep(0)


def _in_child() -> None:
    _jobs.clear()
    _threads.clear()


os.register_at_fork(after_in_child=_in_child)
