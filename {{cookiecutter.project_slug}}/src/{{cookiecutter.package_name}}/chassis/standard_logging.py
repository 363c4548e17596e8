"""The standard library's loggers: their records become our lines, and no library takes that away by accident."""

import logging
import sys
from collections.abc import Callable
from typing import Any, ClassVar

from .levels import LEVELS
from .lines import plain, shown


class Handler(logging.Handler):
    """Renders the records of the standard library by *formatter*, and has them written by *write*."""

    # The one that all records go to, once there is one.
    installed: "ClassVar[Handler | None]" = None
    is_displaced = False

    def __init__(self, formatter: logging.Formatter, write: Callable[[str], None]) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; arguments that don't fit their format string must not cost the event."""
        try:
            line = self.format(record)
        except Exception as error:
            record.format_error = shown(error)
            record.msg, record.args = f"{plain(record.msg)} {shown(record.args)}", None
            line = self.format(record)
        self._write(line)

    def close(self) -> None:
        """Notice that a library replaces the configuration of logging: it closes all handlers then."""
        self.is_displaced = True
        super().close()


class Logger(logging.Logger):
    """A logger that nobody disables: ``fileConfig`` and ``dictConfig`` do that to all that exist by then."""

    @property
    def disabled(self) -> bool:
        restore()
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None: ...


# From the import on, because modules have their loggers before anything is configured.
logging.setLoggerClass(Logger)


def install(handler: Handler) -> None:
    """Let *handler* have all records from now on."""
    Handler.installed = handler
    logging.basicConfig(handlers=[handler], force=True)
    logging.setLogRecordFactory(_make_record)
    logging.captureWarnings(True)


def restore() -> None:
    """Put our handler and levels back if a library has replaced them (``fileConfig``, ``basicConfig(force=True)``)."""
    root, ours = logging.getLogger(), Handler.installed
    is_ours = ours in root.handlers and root.level == LEVELS.threshold("root") and not root.manager.disable
    if ours is None or (is_ours and not ours.is_displaced):
        return
    ours.is_displaced = False
    logging.disable(logging.NOTSET)
    for logger in (root, *map(logging.getLogger, list(root.manager.loggerDict))):
        logger.disabled = False
        for handler in logger.handlers[:]:
            if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr):
                logger.removeHandler(handler)
    root.addHandler(ours)
    LEVELS.apply()
    logging.getLogger("logs").warning(
        "logging restored", extra={"hint": "a library had replaced the configuration of logging"}
    )


def _make_record(*args: Any, **fields: Any) -> logging.LogRecord:
    restore()
    return logging.LogRecord(*args, **fields)
