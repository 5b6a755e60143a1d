"""The numbers of system calls, which differ from one machine to the next.  Pure: nothing here makes a call.

They belong to the binary interface of the *process*: a 32-bit program on a 64-bit kernel (and under ``setarch``, where
uname(2) says the opposite) has the numbers of its pointer size.  Sources: the kernel's syscall tables, as the headers of
Linux 6.1 have them.
"""

from __future__ import annotations

#: interface -> the numbers of renameat2, name_to_handle_at and statx
_OLD = {
    "x86_64": (316, 303, 332),
    "x32": (0x40000000 + 316, 0x40000000 + 303, 0x40000000 + 332),
    "i386": (353, 341, 383),
    "generic": (276, 264, 291),
    "arm": (382, 370, 397),
    "powerpc": (357, 345, 383),
    "s390": (347, 335, 379),
    "mips_o32": (4351, 4339, 4366),
    "mips_n32": (6315, 6303, 6330),
    "mips_n64": (5311, 5298, 5326),
    "sparc": (345, 332, 360),
    "parisc": (337, 325, 349),
    "m68k": (351, 340, 379),
    "alpha": (510, 497, 522),
}
_NAMES = ("renameat2", "name_to_handle_at", "statx")

#: Calls since Linux 5.2 have the same number everywhere, above an interface's own first number.
_NEW = {"open_tree": 428, "move_mount": 429, "openat2": 437, "fchmodat2": 452, "listxattrat": 465}
_FIRST = {"x32": 0x40000000, "mips_o32": 4000, "mips_n64": 5000, "mips_n32": 6000, "alpha": 110}

_GENERIC = ("riscv", "loongarch", "arc", "csky", "hexagon", "nios2", "openrisc", "or1k")
_SAME = {"ppc": "powerpc", "powerpc": "powerpc", "s390": "s390", "sparc": "sparc", "parisc": "parisc", "hppa": "parisc"}


def interface(machine: str, pointer: int, multiarch: str = "") -> str | None:
    """The binary interface, by the machine of uname(2), the bytes of a pointer, and ``sys.implementation._multiarch``,
    which tells two interfaces of 32 bits apart; None for a machine that is not known."""
    wide = pointer == 8
    if machine in ("x86_64", "amd64") or (len(machine) == 4 and machine[0] == "i" and machine[2:] == "86"):
        return "x86_64" if wide else "x32" if "x32" in multiarch else "i386"
    if machine.startswith(("aarch64", "arm")):
        return "generic" if wide else "arm"
    if machine.startswith("mips"):
        return "mips_n64" if wide else "mips_n32" if "n32" in multiarch else "mips_o32"
    if machine.startswith(_GENERIC):
        return "generic"
    for prefix, known in _SAME.items():
        if machine.startswith(prefix):
            return known
    return machine if machine in _OLD else None


def number(call: str, known: str | None) -> int | None:
    """The number of a call in an interface; None where it is not known."""
    if known is None:
        return None
    if call in _NEW:
        return _FIRST.get(known, 0) + _NEW[call]
    return _OLD[known][_NAMES.index(call)] if call in _NAMES else None


def magic_size(machine: str, pointer: int) -> int:
    """How many bytes ``f_type`` of ``struct statfs`` has, its first field: a word, but on s390x half of one."""
    return 4 if machine.startswith("s390") else pointer


#: bits in the number of an ioctl(2): the call writes to the kernel, or reads from it
WRITE, READ = 1, 2


def ioctl(known: str | None, direction: int, group: int, number: int, size: int) -> int:
    """``_IOW(group, number, …)``, ``_IOR`` or ``_IOWR`` with an argument of so many bytes (less than 8 KiB): five interfaces
    have the two bits of the direction the other way round."""
    if known is not None and known.startswith(("powerpc", "mips", "sparc", "alpha", "parisc")):
        direction = (direction & WRITE) << 1 | (direction & READ) >> 1
    return direction << 30 | size << 16 | group << 8 | number
