"""The grammar of the names that atomik uses for itself; everything that makes or reads one of them is here.

::

    .atomik-journal                 the journal of an unfinished transaction, in each folder that takes part
    .atomik-TXID                    a private folder
    .atomik-TXID-journal            the journal, inside a private folder
    .atomik-TXID-committed          the same there: a commit mark that is a name
    .atomik-TXID-N                  a slot
    .atomik-TXID-N-old, -new, -new1 a second name next to a slot, for the methods and undos that need one
    .atomik-TXID-N-kept             an original that could not be brought back, and that only the user may delete
    .atomik-ID-resume-NAME          the private folder of a resumable output of that name; ID is derived from the destination,
                                    and the names in it have ID instead of TXID
    .atomik-TXID-pinned             a private folder of an ended transaction, which holds what readers still use

TXID and ID are 16 lower-case hexadecimal digits, N is a decimal number of at most ten.  This is part of the journal format
(docs/reference/journal-format.md): another version of atomik must be able to read it.
"""

from __future__ import annotations

import errno
import os

PREFIX = ".atomik-"
JOURNAL_NAME = PREFIX + "journal"

#: After a slot's name: an original that could not be brought back, and that only the user may delete.
KEPT = "-kept"

#: What `parse` says about a name.
PRIVATE_FOLDER, JOURNAL, SLOT, TWIN, KEPT_ORIGINAL = "private folder", "journal", "slot", "twin", "kept original"
RESUMABLE, PINNED, MARK = "resumable", "pinned", "mark"

#: How many bytes of the destination's name are part of the name of a resumable output's private folder.
_SHOWN = 80

#: what a name is that ends in one of these words
_WORDS = {"journal": JOURNAL, "committed": MARK, "pinned": PINNED}

_HEX = "0123456789abcdef"
_DIGITS = "0123456789"

#: random bytes from the kernel, fetched for many ids at once
_random: list[bytes] = []


def new_txid() -> str:
    """A transaction id: 64 random bits in hex, so that nobody can guess the names made of it."""
    try:
        return _random.pop().hex()
    except IndexError:
        fresh = random_bytes(8 * 64)
        _random.extend(fresh[at : at + 8] for at in range(8, len(fresh), 8))
        return fresh[:8].hex()


#: gives random bytes where a sandbox refuses getrandom(2)
_DEVICE = "/dev/urandom"


def random_bytes(count: int) -> bytes:
    """Random bytes from the kernel, like os.urandom, which falls back to the device only for some errors of a sandbox."""
    try:
        return os.urandom(count)
    except OSError as exc:
        if exc.__traceback__ is not None and exc.__traceback__.tb_next is not None:
            raise  # a signal handler's (I13)
    try:
        with open(_DEVICE, "rb", 0) as device:
            return device.read(count)
    except OSError as exc:
        if exc.__traceback__ is not None and exc.__traceback__.tb_next is not None:
            raise
        text = (
            f"no random numbers for the names of temporary files: a sandbox refuses getrandom, and {_DEVICE} cannot be "
            f"read ({exc.strerror}); allow one of the two"
        )
        raise OSError(errno.ENOSYS, text) from exc


os.register_at_fork(after_in_child=_random.clear)  # otherwise parent and child would use the same ids


def private_folder_name(txid: str) -> str:
    return PREFIX + txid


def journal_name(txid: str) -> str:
    """The name of the journal inside a private folder."""
    return f"{PREFIX}{txid}-journal"


def mark_name(txid: str) -> str:
    """The name that the journal gets inside a private folder when the transaction commits, where a name is the mark."""
    return f"{PREFIX}{txid}-committed"


def slot_name(txid: str, number: int | str) -> str:
    """The name of a slot; with ``""`` for its number, what all slots' names begin with."""
    return f"{PREFIX}{txid}-{number}"


def twin_name(slot: str, suffix: str) -> str:
    """A second name next to a slot: `suffix` is ``old``, ``new``, or ``new`` and a number."""
    return f"{slot}-{suffix}"


def kept_name(slot: str) -> str:
    """The name of an original that could not be brought back."""
    return slot + KEPT


def resumable_name(id: str, name: str) -> str:
    """The name of the private folder for a resumable output `name`, by the id that is derived from the destination."""
    return f"{PREFIX}{id}-resume-{os.fsdecode(os.fsencode(name)[:_SHOWN])}"


def pinned_name(txid: str) -> str:
    """The name of a private folder that holds what readers still use."""
    return f"{PREFIX}{txid}-pinned"


def is_txid(text: str) -> bool:
    """Whether `text` has the form of a transaction id."""
    return len(text) == 16 and not text.strip(_HEX)


def is_servers(name: str) -> bool:
    """Whether libfuse or the NFS client has made the name, for something that was deleted while it was open, or just after.

    libfuse may forget to delete it when it is closed at the same time.  In a private folder such a file was ours."""
    for prefix, digits in ((".fuse_hidden", 16), (".nfs", 24)):
        if name.startswith(prefix) and len(name) == len(prefix) + digits:
            return not name[len(prefix) :].strip(_HEX)
    return False


def kind_of(name: str) -> str | None:
    """What `parse` says that a name is."""
    parsed = parse(name)
    return None if parsed is None else parsed[0]


def parse(name: str) -> tuple[str, str] | None:
    """(what it is, transaction id) of a name that carries an id; None for every other name."""
    if not name.startswith(PREFIX):
        return None
    txid, behind, rest = name[len(PREFIX) :].partition("-")
    if not is_txid(txid):
        return None
    if rest.isdecimal() and rest.isascii() and len(rest) <= 10:
        return SLOT, txid
    if not behind:
        return PRIVATE_FOLDER, txid
    if rest in _WORDS:
        return _WORDS[rest], txid
    if rest.startswith("resume-"):
        return RESUMABLE, txid
    number, behind, suffix = rest.partition("-")
    if not 1 <= len(number) <= 10 or number.strip(_DIGITS):
        return None
    if suffix == "kept":
        return KEPT_ORIGINAL, txid
    is_twin = suffix == "old" or (suffix[:3] == "new" and not suffix[3:].strip(_DIGITS))
    return (TWIN, txid) if is_twin else None
