"""Events: what happened, for whoever listens; nothing is ever printed (I12).

An event goes to structlog when the program has configured structlog (``structlog.testing.capture_logs()`` does), else
to the stdlib logger "atomik" when that is enabled for the level, else nowhere.  Nobody listening is decided by a look
into `sys.modules` and the logger's cached level, before any argument is built: callers in hot loops ask `heard` first.

A bare structlog would print to stdout in a program that never configured it, hence the look; and it takes longer to
import than all of atomik, hence it is imported only when there is something to say.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

DEBUG, INFO, WARNING = logging.DEBUG, logging.INFO, logging.WARNING

_logger = logging.getLogger("atomik")
# Without a handler in the program, logging would write warnings to stderr as a last resort.
_logger.addHandler(logging.NullHandler())

_modules, _enabled = sys.modules, _logger.isEnabledFor  # looked up once, for they are asked at every turn

_NAMES = {DEBUG: "debug", INFO: "info", WARNING: "warning"}
_wrapped: Any = None


def heard(level: int) -> bool:
    """Whether anybody would hear an event of that level."""
    if "structlog" in _modules and _structlog() is not None:
        return True
    return _enabled(level) and _has_handler()


def emit(level: int, event: str, **fields: Any) -> None:
    """Tell whoever listens.  `event` is a dotted past-tense name; fields are plain values."""
    structlog = _structlog()
    if structlog is not None:
        getattr(structlog.get_logger("atomik"), _NAMES[level])(event, **fields)
    elif _logger.isEnabledFor(level) and _has_handler():
        getattr(_stdlib(), _NAMES[level])(event, **fields)


def _structlog() -> Any:
    """structlog, if the program imported and configured it in a way that is not its bare default of printing."""
    structlog = sys.modules.get("structlog")
    if structlog is None or not structlog.is_configured():
        return None
    # capture_logs leaves "configured" behind, with the defaults that it found.  Those print, so they do not count.
    return None if _are_defaults(structlog) else structlog


def _are_defaults(structlog: Any) -> bool:
    """Whether everything is as in a structlog that nobody configured."""
    config, builtin = structlog.get_config(), structlog._config
    usual = getattr(builtin, "_BUILTIN_DEFAULT_PROCESSORS", ())
    return (
        config["logger_factory"] is getattr(builtin, "_BUILTIN_DEFAULT_LOGGER_FACTORY", None)
        and config["wrapper_class"] is getattr(builtin, "_BUILTIN_DEFAULT_WRAPPER_CLASS", None)
        and [*map(id, config["processors"])] == [*map(id, usual)]
    )


def _has_handler() -> bool:
    """Whether a record would reach a handler other than our own silent one."""
    logger: logging.Logger | None = _logger
    while logger is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


def _stdlib() -> Any:
    """The stdlib logger, behind structlog's interface: ``event key=value …`` with the fields in order."""
    global _wrapped  # noqa: PLW0603  made once, when first needed
    if _wrapped is None:
        import structlog

        _wrapped = structlog.wrap_logger(
            _logger,
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.format_exc_info,
                structlog.processors.KeyValueRenderer(
                    key_order=["event", "tx"], drop_missing=True, repr_native_str=False
                ),
            ],
            wrapper_class=structlog.BoundLogger,
        )
    return _wrapped
