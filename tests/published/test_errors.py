"""Errors are data: a root, the builtin class each stands for, paths, a cure; and they survive pickling."""

from __future__ import annotations

import builtins
import copy
import errno
import inspect
import os
import pickle

import pytest

from atomik import errors
from atomik._system import kernel

CLASSES = [getattr(errors, name) for name in errors.__all__]
SYSTEM = [kind for kind in CLASSES if issubclass(kind, errors.AtomikOSError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_one_root(kind: type[Exception]) -> None:
    """All are AtomikError, and each says in its docstring when it is raised."""
    assert issubclass(kind, errors.AtomikError)
    assert len(inspect.getdoc(kind) or "") > 20


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.AccessDeniedError, PermissionError),
        (errors.MissingPathError, FileNotFoundError),
        (errors.FileAlreadyExistsError, FileExistsError),
        (errors.DuplicateDestinationError, FileExistsError),
        (errors.WrongKindError, IsADirectoryError),
        (errors.WrongKindError, NotADirectoryError),
        (errors.InvalidDestinationError, ValueError),
        (errors.LockTimeoutError, TimeoutError),
        (errors.TransactionStateError, RuntimeError),
        *((kind, OSError) for kind in SYSTEM),
    ],
    ids=lambda kind: kind.__name__,
)
def test_builtin_class_too(kind: type[Exception], builtin: type[Exception]) -> None:
    """Anyone who catches the builtin class catches ours."""
    assert issubclass(kind, builtin)


@pytest.mark.parametrize("kind", SYSTEM, ids=lambda kind: kind.__name__)
def test_pickling_and_copying(kind: type[errors.AtomikOSError]) -> None:
    """Class, errno, message, both paths and the facts of its own come back."""
    error = kind(*errors.os_args(errno.EXDEV, "cannot do that; do this", "/a", "/b"))
    if isinstance(error, errors.CrossFilesystemError):
        error.devices = (1, 2)
    if isinstance(error, errors.DurabilityError):
        error.receipt = ("any",)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert (again.errno, again.strerror, again.filename, again.filename2) == (
            errno.EXDEV, "cannot do that; do this", "/a", "/b",
        )  # fmt: skip
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_state_error_pickles() -> None:
    again = pickle.loads(pickle.dumps(errors.TransactionStateError("too late")))
    assert str(again) == "too late"


def test_message_names_what_where_why_and_cure() -> None:
    """What was tried, the system's reason, what helps, and both paths."""
    error = errors.system_error(
        OSError(errno.ENOSPC, "No space left on device"), "cannot stage the file", "/d/x", "/d/y"
    )
    assert str(error) == (
        "[Errno 28] cannot stage the file: No space left on device; free some space on the filesystem, then repeat: "
        "'/d/x' -> '/d/y'"
    )


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, errors.AccessDeniedError),
        (errno.EPERM, errors.AccessDeniedError),
        (errno.ENOENT, errors.MissingPathError),
        (errno.EXDEV, errors.CrossFilesystemError),
        (errno.EBUSY, errors.MountPointError),
        (errno.ENAMETOOLONG, errors.InvalidDestinationError),
        (errno.EISDIR, errors.WrongKindError),
        (errno.ENOTDIR, errors.WrongKindError),
        (errno.EIO, errors.AtomikOSError),
        (errno.ENOSPC, errors.AtomikOSError),
        (errno.EEXIST, errors.AtomikOSError),
        (errno.ELIBBAD, errors.AtomikOSError),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else None,
)
def test_errno_decides_the_class(number: int, kind: type[errors.AtomikOSError]) -> None:
    """One class per cause, and never a narrower one than is known."""
    error = errors.system_error(OSError(number, "x"), "cannot", "/x")
    assert type(error) is kind
    assert error.errno == number


def test_no_errno_becomes_EIO() -> None:
    """An OSError without errno (some library made it) is still an error with one."""
    assert errors.system_error(OSError("odd"), "cannot", None).errno == errno.EIO


def test_typed_leaves_our_own_alone() -> None:
    """Only the system's errors are turned; ours and everybody else's pass."""
    mine = errors.ConflictError(errno.EBUSY, "x")
    with pytest.raises(errors.ConflictError) as caught, kernel.typed("cannot", "/x"):
        raise mine
    assert caught.value is mine
    with pytest.raises(ZeroDivisionError), kernel.typed("cannot", "/x"):
        raise ZeroDivisionError
    with pytest.raises(PermissionError), kernel.typed("cannot look", "/x"):  # a signal handler's
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(errors.MissingPathError) as turned, kernel.typed("cannot look", "/x"):
        kernel.port.open("/none such", os.O_RDONLY)
    assert turned.value.filename == "/x"
    assert isinstance(turned.value.__cause__, FileNotFoundError)


def test_old_name() -> None:
    """The name of 0.0.3 is the same class."""
    assert errors.InvalidCrossDeviceError is errors.CrossFilesystemError


def test_no_builtin_is_shadowed() -> None:
    """``from atomik.errors import *`` hides nothing."""
    assert not set(errors.__all__) & set(dir(builtins))
