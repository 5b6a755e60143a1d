"""The limit: the same work by bare system calls, as a careful programmer would write them in Python."""

from __future__ import annotations

import ctypes
import fcntl
import os
import subprocess
import tempfile

_libc = ctypes.CDLL(None, use_errno=True)
_status = ctypes.create_string_buffer(256)
NOREPLACE, EXCHANGE = 1, 2


def rename(folder: int, source: str, other: int, target: str, flags: int) -> None:
    """renameat2(2)."""
    if _libc.renameat2(folder, os.fsencode(source), other, os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def write_file(path: str, data: bytes, *, overwrite: bool, durable: bool) -> None:
    """O_TMPFILE, write, linkat to a hidden name, renameat2; with fsync of the file and of the folder."""
    head, name = os.path.split(path)
    folder = os.open(head, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fd = os.open(head, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    os.write(fd, data)
    if durable:
        os.fsync(fd)
    slot = f".slot-{os.getpid()}"
    os.link(f"/proc/self/fd/{fd}", slot, dst_dir_fd=folder, follow_symlinks=True)
    rename(folder, slot, folder, name, EXCHANGE if overwrite else NOREPLACE)
    if durable:
        os.fsync(folder)
    if overwrite:
        os.unlink(slot, dir_fd=folder)
    os.close(fd)
    os.close(folder)


def write_file_with_looks(path: str, data: bytes, *, overwrite: bool, durable: bool) -> None:
    """The same with every look that atomik takes: links on the way, mounts, kind, mode, attributes, journal, folder.

    And as atomik takes them, without times: an fstat(2) of the new file would make each sync dearer (see `_libc`).
    """
    head, name = os.path.split(path)
    folder = openat2(head)
    fstatx(folder, b"")
    fstatx(folder, os.fsencode(name))
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666, dir_fd=folder)
    os.write(fd, data)
    if overwrite:
        fstatx(folder, os.fsencode(name))
        os.listxattr(f"/proc/self/fd/{folder}/{name}", follow_symlinks=False)
        fstatx(fd, b"")
        os.listxattr(fd)
    if durable:
        os.fsync(fd)
    fstatx(folder, b".atomik-journal")
    fstatx(-100, os.fsencode(head))
    if overwrite:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
        slot = f".slot-{os.getpid()}"
        os.link(f"/proc/self/fd/{fd}", slot, dst_dir_fd=folder, follow_symlinks=True)
        rename(folder, slot, folder, name, EXCHANGE)
        fstatx(folder, os.fsencode(slot))
    else:
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=folder, follow_symlinks=True)
    if durable:
        os.fsync(folder)
    if overwrite:
        os.unlink(slot, dir_fd=folder)
    os.close(fd)
    os.close(folder)


def openat2(path: str) -> int:
    """openat2(2) with RESOLVE_NO_SYMLINKS, of a folder."""
    how = (ctypes.c_uint64 * 3)(os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, 0, 4)
    return int(_libc.syscall(437, -100, os.fsencode(path), ctypes.byref(how), 24))


def fstatx(folder: int, name: bytes) -> None:
    """statx(2), with the mount id and without times."""
    _libc.statx(folder, name, 0x100 if name else 0x1000, 0x511F, _status)


def replace_usually(path: str, data: bytes) -> None:
    """What most programs do: a temporary file in the same folder, and os.replace(); nothing is synced."""
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False) as file:
        file.write(data)
    os.replace(file.name, path)


def replace_folder(path: str, count: int, *, durable: bool) -> None:
    """Build a folder beside the old one, rename both, and delete the old one."""
    fill(f"{path}.new", count)
    if durable:
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        _libc.syncfs(folder)
    os.rename(path, f"{path}.old")
    os.rename(f"{path}.new", path)
    if durable:
        os.fsync(folder)
        os.close(folder)
    subprocess.run(["rm", "-rf", f"{path}.old"], check=True)


def fill(path: str, count: int) -> None:
    """A folder of `count` small files in folders of a hundred."""
    for number in range(count):
        if number % 100 == 0:
            os.makedirs(f"{path}/{number // 100}")
        with open(f"{path}/{number // 100}/{number}", "wb") as file:
            file.write(b"x")


def write_group(head: str, names: list[str], data: bytes, *, durable: bool, overwrite: bool = False) -> None:
    """The whole protocol: a private folder, slots, a journal with both identities, three barriers, one rename each."""
    folder = os.open(head, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(folder, fcntl.LOCK_EX)
    os.mkdir(".private folder", 0o700, dir_fd=folder)
    private_folder = os.open(".private folder", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    fcntl.flock(private_folder, fcntl.LOCK_EX)
    lines = []
    for number, name in enumerate(names):
        fd = os.open(head, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        os.write(fd, data)
        os.link(f"/proc/self/fd/{fd}", str(number), dst_dir_fd=private_folder, follow_symlinks=True)
        os.close(fd)
        found = os.stat(str(number), dir_fd=private_folder, follow_symlinks=False)
        old = os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino if overwrite else 0
        lines.append(f"{number} {found.st_ino} {old} {name}")
    journal = os.open(head, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.write(journal, "\n".join(lines).encode())
    os.link(f"/proc/self/fd/{journal}", ".journal", dst_dir_fd=folder, follow_symlinks=True)
    if durable:
        _libc.syncfs(folder)
    for number, name in enumerate(names):
        rename(private_folder, str(number), folder, name, EXCHANGE if overwrite else NOREPLACE)
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    if durable:
        os.fsync(folder)
        os.fsync(private_folder)
    os.write(journal, b"\ncommitted")
    if durable:
        os.fsync(journal)
    os.unlink(".journal", dir_fd=folder)
    for number in range(len(names) if overwrite else 0):
        os.unlink(str(number), dir_fd=private_folder)
    os.rmdir(".private folder", dir_fd=folder)
    for fd in (journal, private_folder, folder):
        os.close(fd)
