"""`swap`: two paths exchanged at once: a transaction with `tx.exchange` alone.

`rename.swap` is the bare system call, which waits for nobody.
"""

from __future__ import annotations

import os

from atomik import errors
from atomik._system import kernel
from atomik.flags import formerly

from .transaction import Transaction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atomik.rename import StrOrBytesPath


@formerly(a="first", b="second")
def swap(
    first: StrOrBytesPath,
    second: StrOrBytesPath,
    *,
    first_dir_fd: int | None = None,
    second_dir_fd: int | None = None,
    durable: bool = False,
    lock_timeout: float | None = 60.0,
) -> None:
    """Exchange what is at two paths, in one step: files, folders and links, in any combination; both must exist.

    :param first, second: str, bytes or path object, on the same filesystem; a relative one starts from `first_dir_fd` or
        `second_dir_fd`, descriptors of open folders, if given.
    :param bool durable: as for `transaction`: when it returns, the exchange and all content of the two survive a power cut.
    :param float lock_timeout: seconds to wait for transactions and readers (`reading`) in the folders of the two; None waits
        as long as it takes.
    :raises atomik.errors.UnsupportedFilesystemError: the filesystem or kernel lacks the flag (EINVAL, ENOSYS), or it
        reported an exchange of two scratch files that it did not do.
    :raises atomik.errors.CrossFilesystemError: two filesystems or mounts (EXDEV); ``devices`` has both ``st_dev``.
    :raises atomik.errors.MissingPathError: one of them is missing (ENOENT).
    :raises atomik.errors.ConflictError: one of them is a database with changes in a log next to it, which would be replayed
        into the other.
    :raises atomik.errors.AccessDeniedError: a path leads through another user's link to a folder that is not theirs, or
        this user may not change one of the two folders.
    :raises atomik.errors.LockTimeoutError: another transaction or reader held a folder for longer than `lock_timeout`.
    :raises atomik.errors.AtomikOSError: everything else, with errno.  An error about one of the two has both paths, as
        ``filename`` and ``filename2``.

    Guarantee: that of `Transaction.exchange`: no observer sees one of them missing, and no `reading` sees both versions.
    Limit: on a FUSE, network or unknown filesystem the first call tries two scratch files in a private folder next to them.

    Source: renameat2(2), RENAME_EXCHANGE (Linux 3.15).
    """
    one, two = _from(first, first_dir_fd), _from(second, second_dir_fd)
    try:
        with Transaction(durable=durable, lock_timeout=lock_timeout) as tx:
            tx.exchange(one, two)
    except errors.AtomikOSError as exc:
        if exc.filename in (one, two, os.path.abspath(one), os.path.abspath(two)):
            exc.filename, exc.filename2 = os.fsdecode(first), os.fsdecode(second)
        raise


def _from(path: StrOrBytesPath, dir_fd: int | None) -> str:
    path = os.fsdecode(path)
    if dir_fd in (None, kernel.AT_FDCWD) or os.path.isabs(path):
        return path
    return f"/proc/self/fd/{dir_fd}/{path}"
