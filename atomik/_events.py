"""Events: what happened, for programs that listen; nothing is ever printed (I12).

An event goes to structlog if the program has configured it (``structlog.testing.capture_logs()`` does); otherwise to the
standard library's logger "atomik", if that is enabled for the level and has a handler; otherwise nowhere.  Whether there
is a listener is decided by `sys.modules` and the logger's cached level, before any argument is built: hot loops ask `heard`
first.

structlog is never imported here.  A bare structlog would print to stdout in a program that never configured it, so its
configuration is checked.

Through the standard library the fields of an event are attributes of its record (``record.tx``, ``record.path``), where
JSON formatters find them, and the record's file, line and function are those of the code that called atomik.
"""

from __future__ import annotations

import contextlib
import os
import sys
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from types import FrameType
    from typing import Any

DEBUG, INFO, WARNING = 10, 20, 30  # as in logging, which is not imported for them: a listener has imported it

_modules = sys.modules
_logger: logging.Logger | None = None


def _present() -> logging.Logger | None:
    """The logger "atomik", once the program has loaded logging."""
    global _logger  # noqa: PLW0603  made once, when there may be a listener
    module = _modules.get("logging")
    if _logger is None and hasattr(module, "getLogger"):  # not in the middle of its import
        logger: logging.Logger = module.getLogger("atomik")  # type: ignore[union-attr]
        # Without a handler in the program, logging would write warnings to stderr as a last resort.
        logger.addHandler(module.NullHandler())  # type: ignore[union-attr]
        _logger = logger
    return _logger


_NAMES = {DEBUG: "debug", INFO: "info", WARNING: "warning"}


def heard(level: int) -> bool:
    """Whether anybody would hear an event of that level."""
    if "structlog" not in _modules and "logging" not in _modules:
        return False
    if _structlog() is not None:
        return True
    logger = _logger or _present()
    return logger is not None and logger.isEnabledFor(level) and _has_handler(logger)


def emit(level: int, event: str, **fields: Any) -> None:
    """Pass an event to the listeners.  `event` is a dotted past-tense name; fields are plain values."""
    structlog = _structlog()
    if structlog is not None:
        getattr(structlog.get_logger("atomik"), _NAMES[level])(event, **fields)
        return
    logger = _logger or _present()
    if logger is not None and logger.isEnabledFor(level) and _has_handler(logger):
        logger.handle(_record(logger, level, event, fields))


def _record(logger: logging.Logger, level: int, event: str, fields: dict[str, Any]) -> logging.LogRecord:
    """The event for the standard library: ``event=… tx=… …`` for people, and an attribute for each field."""
    frame = caller()
    where = (frame.f_code.co_filename, frame.f_lineno) if frame is not None else ("(unknown file)", 0)
    function = frame.f_code.co_name if frame is not None else "(unknown function)"
    fields = {"event": event, **fields}
    text = " ".join(f"{name}={value if isinstance(value, str) else repr(value)}" for name, value in fields.items())
    record = logger.makeRecord(logger.name, level, *where, text, (), None, function)
    for name, value in fields.items():
        # A program's own record factory may have set an attribute of that name: that is the program's.
        setattr(record, f"atomik_{name}" if hasattr(record, name) else name, value)
    return record


#: Code between an event and the caller of atomik: the package, and the context managers in between.
_PACKAGE = os.path.dirname(emit.__code__.co_filename) + os.sep
_BETWEEN = contextlib.contextmanager.__code__.co_filename


#: thread that works for another one -> the frame there that called atomik
called_by: dict[int, FrameType | None] = {}


def caller() -> FrameType | None:
    """The frame that called atomik; None where there is none, as when the interpreter ends."""
    if (me := get_ident()) in called_by:
        return called_by[me]
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((_PACKAGE, _BETWEEN)):
        frame = frame.f_back
    return frame


def _structlog() -> Any:
    """structlog, if the program imported and configured it in a way that is not its bare default of printing."""
    structlog = sys.modules.get("structlog")
    if structlog is None or not structlog.is_configured():
        return None
    # capture_logs leaves "configured" set, with the defaults that it found.  Those print, so they do not count.
    return None if _are_defaults(structlog) else structlog


def _are_defaults(structlog: Any) -> bool:
    """Whether everything is as in a structlog that was never configured."""
    config, builtin = structlog.get_config(), structlog._config
    usual = getattr(builtin, "_BUILTIN_DEFAULT_PROCESSORS", ())
    return (
        config["logger_factory"] is getattr(builtin, "_BUILTIN_DEFAULT_LOGGER_FACTORY", None)
        and config["wrapper_class"] is getattr(builtin, "_BUILTIN_DEFAULT_WRAPPER_CLASS", None)
        and [*map(id, config["processors"])] == [*map(id, usual)]
    )


def _has_handler(logger: logging.Logger) -> bool:
    """Whether a record would reach a handler other than our own silent one."""
    silent = _modules["logging"].NullHandler
    above: logging.Logger | None = logger
    while above is not None:
        if any(not isinstance(handler, silent) for handler in above.handlers):
            return True
        above = above.parent if above.propagate else None
    return False
