"""Real FUSE servers from Debian's packages, each over folders or an image on the scratch disk.

    with servers.serving("mergerfs") as point:
        (point / "x").write_text("through mergerfs")

`SERVERS` names them; `missing` says why one cannot be had here.  Each runs in the foreground as a child that dies with this
process, in the private mount namespace, and is unmounted at the end of the block.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define

from tests.support.lab import images, linux, mounting, namespace
from tests.support.lab.fuse import missing_fuse
from tests.support.lab.loops import LoopDevice, missing_loop
from tests.support.lab.passthrough import _await_mount, _end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_SFTP = "/usr/lib/openssh/sftp-server"
_NOBODY = ("--force-user=65534", "--force-group=65534")


@define(frozen=True)
class Server:
    """``start(home, point)``: the command that serves in the foreground on ``point``, after preparing ``home``, an empty
    folder.  ``programs``: what it needs.  ``image``: the bytes of a disk that it gets as ``home / "disk"``."""

    about: str
    start: Callable[[Path, str], list[str]]
    programs: tuple[str, ...]
    image: int = 0


def missing(name: str) -> str | None:
    """Why a server cannot run here, or None."""
    lacking = [program for program in SERVERS[name].programs if shutil.which(program) is None]
    return (
        namespace.missing_root()
        or missing_fuse()
        or (f"needs {lacking[0]}" if lacking else None)
        or (missing_loop() if SERVERS[name].image else None)
    )


@contextlib.contextmanager
def serving(name: str) -> Iterator[Path]:
    """The mount point of a fresh filesystem of this server's."""
    server, home, point = SERVERS[name], namespace.scratch("home"), namespace.scratch(name)
    with contextlib.ExitStack() as stack:
        if server.image:
            image = home / "disk"
            with image.open("wb") as file:
                file.truncate(server.image)
        command = server.start(home, str(point))
        if "{loop}" in command:
            loop = stack.enter_context(LoopDevice(home / "disk")).path
            command = [loop if word == "{loop}" else word for word in command]
        yield from _serve(command, point)


def _serve(command: list[str], point: Path) -> Iterator[Path]:
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(command, preexec_fn=linux.die_with(os.getpid()), **quiet)  # type: ignore[call-overload]
    try:
        _await_mount(point, child)
        yield point
    except BaseException:
        mounting.detach(point)
        child.kill()
        raise
    else:
        _end(point, child)
    finally:
        child.wait()


def _folders(home: Path, *names: str) -> list[str]:
    for name in names:
        (home / name).mkdir()
    return [str(home / name) for name in names]


def _made(home: Path, *command: str) -> None:
    """Run a command that prepares."""
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HOME": str(home)})


def _sshfs(*options: str) -> Callable[[Path, str], list[str]]:
    def start(home: Path, point: str) -> list[str]:
        ssh = home / "ssh"
        ssh.write_text(f"#!/bin/sh\nexec {_SFTP}\n")
        ssh.chmod(0o755)
        (far,) = _folders(home, "far")
        return [
            "sshfs",
            "-f",
            "-o",
            ",".join((f"ssh_command={ssh}", "allow_other", *options)),
            f"localhost:{far}",
            point,
        ]

    return start


def _over_one(*command: str) -> Callable[[Path, str], list[str]]:
    """A server over one folder: the command ends with the folder and the mount point."""
    return lambda home, point: [*command, *_folders(home, "far"), point]


def _unionfs(home: Path, point: str) -> list[str]:
    upper, lower = _folders(home, "upper", "lower")
    return ["unionfs-fuse", "-f", "-o", "cow,allow_other", f"{upper}=RW:{lower}=RO", point]


def _mergerfs(*options: str) -> Callable[[Path, str], list[str]]:
    def start(home: Path, point: str) -> list[str]:
        return ["mergerfs", "-f", "-o", ",".join(("allow_other", *options)), ":".join(_folders(home, "a", "b")), point]

    return start


def _fuse_overlayfs(home: Path, point: str) -> list[str]:
    lower, upper, work = _folders(home, "lower", "upper", "work")
    return ["fuse-overlayfs", "-f", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", point]


def _encfs(home: Path, point: str) -> list[str]:
    (far,) = _folders(home, "far")
    return ["encfs", "-f", "--standard", "--extpass=echo secret", far, point]


def _rclone(*options: str) -> Callable[[Path, str], list[str]]:
    def start(home: Path, point: str) -> list[str]:
        (far,) = _folders(home, "far")
        return ["rclone", "mount", "--config", "", "--cache-dir", str(home / "cache"), *options, f":local:{far}", point]

    return start


def _ntfs(*options: str) -> Callable[[Path, str], list[str]]:
    def start(home: Path, point: str) -> list[str]:
        _made(home, "mkfs.ntfs", "-F", "-q", str(home / "disk"))
        return ["ntfs-3g", "-o", ",".join(("no_detach", *options)), "{loop}", point]

    return start


def _exfat(home: Path, point: str) -> list[str]:
    _made(home, "mkfs.exfat", str(home / "disk"))
    return ["mount.exfat-fuse", "-d", "{loop}", point]


def _fuse2fs(home: Path, point: str) -> list[str]:
    _made(home, *images.FORMATS["ext4"].mkfs, str(home / "disk"))
    return ["fuse2fs", "-f", "-o", "fakeroot", str(home / "disk"), point]


SERVERS: Mapping[str, Server] = {
    "sshfs": Server("sshfs", _sshfs(), ("sshfs", _SFTP)),
    "sshfs-no-links": Server("sshfs, `disable_hardlink`", _sshfs("disable_hardlink"), ("sshfs", _SFTP)),
    "sshfs-direct": Server("sshfs, `direct_io`", _sshfs("direct_io"), ("sshfs", _SFTP)),
    "bindfs": Server("bindfs", _over_one("bindfs", "-f"), ("bindfs",)),
    "bindfs-open": Server(
        "bindfs, everything 0777 and one owner",
        _over_one("bindfs", "-f", *_NOBODY, "-p", "0777", "--chmod-ignore", "--chown-ignore"), ("bindfs",),
    ),
    "bindfs-squash": Server(
        "bindfs, one owner, chown refused (as NFS with `root_squash`)",
        _over_one("bindfs", "-f", *_NOBODY, "--chown-deny"), ("bindfs",),
    ),
    "bindfs-closed": Server(
        "bindfs, one owner, chown and chmod refused",
        _over_one("bindfs", "-f", *_NOBODY, "--chown-deny", "--chmod-deny"), ("bindfs",),
    ),
    "unionfs": Server("unionfs-fuse", _unionfs, ("unionfs-fuse",)),
    "mergerfs": Server("mergerfs", _mergerfs(), ("mergerfs",)),
    "mergerfs-path-hash": Server("mergerfs, `inodecalc=path-hash`", _mergerfs("inodecalc=path-hash"), ("mergerfs",)),
    "fuse-overlayfs": Server("fuse-overlayfs", _fuse_overlayfs, ("fuse-overlayfs",)),
    "encfs": Server("encfs", _encfs, ("encfs",)),
    "rclone": Server("rclone mount, `--vfs-cache-mode writes`", _rclone("--vfs-cache-mode", "writes"), ("rclone",)),
    "ntfs-3g": Server("ntfs-3g", _ntfs(), ("ntfs-3g", "mkfs.ntfs"), 64 << 20),
    "ntfs-3g-permissions": Server("ntfs-3g, `permissions`", _ntfs("permissions"), ("ntfs-3g", "mkfs.ntfs"), 64 << 20),
    "exfat-fuse": Server("exfat-fuse", _exfat, ("mount.exfat-fuse", "mkfs.exfat"), 64 << 20),
    "fuse2fs": Server("fuse2fs", _fuse2fs, ("fuse2fs", "mkfs.ext4"), 64 << 20),
    "disorderfs": Server("disorderfs", _over_one("disorderfs", "-f"), ("disorderfs",)),
}  # fmt: skip
