"""More grounds: FUSE servers from Debian's packages, sandboxes, old kernels, other users, and several of these at once.

Each is played as a whole in children that have entered it (`play_all`), and what happens is compared with the doctor's answer
(`foretold.faults`).  The grounds of `grounds` are among them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any

import atomik
from atomik._system.kernel import libc
from tests.filesystems.cells import Cell, play
from tests.filesystems.grounds import ALL_NAMES, GROUNDS, Ground, Lacking, forgetful
from tests.filesystems.scenarios import SCENARIOS, before
from tests.support import landlock, seccomp
from tests.support.kernels import installed
from tests.support.lab import linux, mounts, namespace, servers
from tests.support.state import NOBODY

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from tests.support.kernels import Call

    Opened = contextlib.AbstractContextManager[Callable[[str], Path]]

_SECONDS = 300


# --- places ----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _served(name: str, names: Collection[str]) -> Iterator[Callable[[str], Path]]:  # noqa: ARG001  as the others
    with servers.serving(name) as point:
        yield partial(_filled, point / "work")


def _filled(top: Path, name: str) -> Path:
    before(top / name)
    return top / name


@contextlib.contextmanager
def _on(kind: str, names: Collection[str], **options: Any) -> Iterator[Callable[[str], Path]]:  # noqa: ARG001
    with mounts.mounted(kind, **options) as place:
        yield partial(_filled, place.folder)


@contextlib.contextmanager
def _overlay_on(kind: str, names: Collection[str], options: str = "") -> Iterator[Callable[[str], Path]]:  # noqa: ARG001
    with mounts.mounted(kind) as below, mounts.overlay(redirect_dir=True, base=below.folder, options=options) as place:
        yield partial(_filled, place.folder)


@contextlib.contextmanager
def _projects(names: Collection[str]) -> Iterator[Callable[[str], Path]]:  # noqa: ARG001
    """xfs with a project id that was set when the files were there already, as chattr(1) does without -R."""

    def filled(name: str) -> Path:
        folder = _filled(place.folder, name)
        subprocess.run(["chattr", "-p", "42", folder], check=True)
        subprocess.run(["chattr", "+P", folder], check=True)
        return folder

    with mounts.mounted("xfs") as place:
        yield filled


@contextlib.contextmanager
def _of_everybody(names: Collection[str]) -> Iterator[Callable[[str], Path]]:  # noqa: ARG001
    """Folders that everybody may write to, on tmpfs."""

    def filled(name: str) -> Path:
        folder = _filled(place.folder, name)
        for where, _, files in os.walk(folder):
            for each in (where, *(os.path.join(where, file) for file in files)):
                os.chown(each, NOBODY, NOBODY, follow_symlinks=False)
        folder.chmod(0o777)
        return folder

    with mounts.mounted("tmpfs") as place:
        place.folder.chmod(0o777)
        yield filled


@contextlib.contextmanager
def _lacking(among: str, lack: Callable[[Call], Any], names: Collection[str]) -> Iterator[Callable[[str], Path]]:
    with _on("tmpfs", names) as folder_for, forgetful(), installed(Lacking(lack, among)):
        yield folder_for


# --- ways in ---------------------------------------------------------------------------------------------------------
def _refusing(number: int, *calls: str) -> Callable[[], None]:
    def enter() -> None:
        libc()
        seccomp.refuse(number, *calls)

    return enter


def _both(*ways: Callable[[], None]) -> Callable[[], None]:
    def enter() -> None:
        for way in ways:
            way()

    return enter


def _no_proc() -> None:
    """As in a chroot without /proc: something empty is mounted over it, in a namespace of the child's own."""
    linux.unshare_mounts()
    linux.mount("none", "/", "none", linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("none", "/proc", "tmpfs", 0, "")


def _nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # A process that has given up root is no longer dumpable, and the programs that it starts cannot read its /proc/PID/fd.
    linux.be_dumpable()


def _no_mountinfo(call: Call) -> OSError | None:
    hidden = str(call.args[0]).endswith("/mountinfo")
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), call.args[0]) if hidden else None


# --- all of them -----------------------------------------------------------------------------------------------------
#: What Docker's default profile refuses an ordinary container (EPERM), of what is used here; and older ones (before 20.10).
_DOCKER = ("unshare", "mount", "open_tree", "move_mount", "name_to_handle_at")
_OLD_DOCKER = (*_DOCKER, "statx", "openat2", "fchmodat2", "listxattrat")


def _missing_landlock() -> str | None:
    return mounts.missing("tmpfs") or (None if landlock.version() >= 2 else "needs Landlock with REFER (Linux 5.19)")


def _missing_seccomp() -> str | None:
    return mounts.missing("tmpfs") or ("no numbers for seccomp here" if seccomp.needs_seccomp.args[0] else None)


def _missing_projects() -> str | None:
    return mounts.missing("xfs")


def _server(name: str) -> Ground:
    return Ground(name, servers.SERVERS[name].about, partial(_served, name), partial(servers.missing, name))


def _sandbox(name: str, about: str, enter: Callable[[], None], on: str = "tmpfs", *, quick: bool = True) -> Ground:
    return Ground(name, about, partial(_on, on), _missing_seccomp, enter, quick=quick)


def _grounds() -> Iterator[Ground]:
    yield from GROUNDS.values()
    for name in servers.SERVERS:
        if name != "bindfs":  # it is among the others
            yield _server(name)
    memory, quiet = partial(_overlay_on, "tmpfs"), partial(_overlay_on, "ext4", options="volatile")
    yield Ground("overlay-on-tmpfs", "overlay over tmpfs", memory, lambda: mounts.missing("overlay-redirect-on"))
    yield Ground("overlay-volatile", "overlay, `volatile`", quiet, lambda: mounts.missing("overlay-redirect-on"))
    yield Ground("xfs-projects", "xfs, a project id over older files", _projects, _missing_projects)
    yield Ground(
        "everybody", "a world-writable folder, as an ordinary user", _of_everybody, namespace.missing_root, _nobody
    )
    for number in (errno.EPERM, errno.ENOSYS):
        word = errno.errorcode[number]
        for call in seccomp.CALLS:
            yield _sandbox(
                f"{call}-{word}", f"seccomp: {word} for {call}", _refusing(number, call), quick=number == errno.EPERM
            )
        yield _sandbox(f"all-{word}", f"seccomp: {word} for all of these", _refusing(number, *seccomp.CALLS))
    yield _sandbox("docker", "seccomp as in a container of Docker", _refusing(errno.EPERM, *_DOCKER), "ext4")
    yield _sandbox("old-docker", "seccomp as in an old container", _refusing(errno.EPERM, *_OLD_DOCKER), "ext4")
    old = _refusing(errno.ENOSYS, "statx", "openat2", "fchmodat2", "listxattrat", "open_tree", "move_mount")
    yield _sandbox("linux-4.18", "no system call that is newer than Linux 4.10", old, "ext4")
    older = _both(old, _refusing(errno.ENOSYS, "renameat2", "O_TMPFILE"))
    yield _sandbox("linux-3.10", "nor one newer than Linux 3.10", older, "xfs")
    yield Ground("no-proc", "no /proc", partial(_on, "tmpfs"), namespace.missing_root, _no_proc, quick=True)
    hidden = partial(_lacking, "open", _no_mountinfo)
    yield Ground("no-mountinfo", "/proc without mountinfo", hidden, lambda: mounts.missing("tmpfs"), quick=True)
    both = _both(_no_proc, _refusing(errno.EPERM, *seccomp.CALLS[:2], "name_to_handle_at", "fchmodat2", "listxattrat"))
    yield _sandbox("no-proc-no-statx", "neither /proc nor newer system calls", both)
    for refer in (True, False):
        word = "with" if refer else "without"
        for closed in (None, "/proc"):
            name = f"landlock{'' if refer else '-no-refer'}{'-no-proc' if closed else ''}"
            about = f"Landlock {word} REFER{', /proc closed' if closed else ''}"
            enter = partial(landlock.enter, refer=refer, closed=closed)
            yield Ground(name, about, partial(_on, "tmpfs"), _missing_landlock, enter, quick=True)
    enter = _both(partial(landlock.enter, refer=False), _refusing(errno.ENOSYS, "renameat2"))
    yield Ground(
        "landlock-no-renameat2", "Landlock without REFER, no renameat2", partial(_on, "ext4"), _missing_landlock, enter
    )
    for name in ("sshfs", "ntfs-3g", "fuse-overlayfs"):
        about = f"{servers.SERVERS[name].about}, seccomp as in an old container"
        filtered = _refusing(errno.EPERM, *_OLD_DOCKER)
        yield Ground(f"{name}-old-docker", about, partial(_served, name), partial(servers.missing, name), filtered)


EVERYWHERE: Mapping[str, Ground] = {ground.name: ground for ground in _grounds()}


def play_all(
    ground: Ground, names: Collection[str] = tuple(SCENARIOS)
) -> tuple[dict[str, Cell | str], atomik.Capabilities]:
    """The scenarios there, each in a child of its own, and the doctor's answer; what went wrong otherwise is a str."""
    found: dict[str, Cell | str] = {}
    with ground.open(ALL_NAMES) as folder_for:
        for key in names:
            scenario = SCENARIOS[key]
            if ground.enter is not None and key.endswith("-weaker"):
                continue  # a sandbox has no weaker methods of its own
            folder = folder_for(key)
            try:
                found[key] = ground.inside(
                    lambda scenario=scenario, folder=folder: _timed(partial(play, scenario, folder))
                )
            except Exception as exc:  # noqa: BLE001  whatever it is, it is told with its ground
                found[key] = f"{type(exc).__name__}: {exc}"
        folder = folder_for("probe")
        can = ground.inside(lambda: _timed(lambda: atomik.probe(folder)))
    return found, can


def _timed(work: Callable[[], Any]) -> Any:
    signal.alarm(_SECONDS)
    return work()
