"""The standard library's loggers: their records become our lines, and no library takes that away by accident.

The one table of levels is here: what these loggers are set to, and what structlog's obey.
"""

import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import msgspec

from .lines import plain, shown

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LONGEST_CHANGE_S = 3600
UNITS_S = {"s": 1, "m": 60, "h": 3600}


class Levels:
    """The level of each logger, by its dotted name; one without has its nearest ancestor's, in the end "root"'s."""

    def __init__(self) -> None:
        self._own = {"root": "info"}
        self._thresholds: dict[str, int] = {}

    def configure(self, levels: Mapping[str, str]) -> None:
        """Replace all levels by *levels*, which has one for "root"."""
        self._own = dict(levels)
        self.apply()

    def set(self, name: str, level: str | None) -> None:
        """Give the logger *name* a *level*; None lets it inherit again."""
        if level is None:
            self._own.pop(name)
            logging.getLogger(name).setLevel(logging.NOTSET)
        else:
            self._own[name] = level
        self.apply()

    def own(self, name: str) -> str | None:
        """Return the level that *name* was given, or None if it inherits."""
        return self._own.get(name)

    def threshold(self, name: str) -> int:
        """Return the lowest level that *name* logs, as a number of the standard library."""
        try:
            return self._thresholds[name]
        except KeyError:
            pass
        above = name
        while above and above not in self._own:
            above = above.rpartition(".")[0]
        number: int = logging.getLevelNamesMapping()[self._own[above or "root"].upper()]
        return self._thresholds.setdefault(name, number)

    def show(self) -> dict[str, str]:
        """Return the level of every known logger, "root" first."""
        names = sorted({*logging.root.manager.loggerDict, *self._own, *self._thresholds} - {"root"})
        return {name: logging.getLevelName(self.threshold(name)).lower() for name in ("root", *names)}

    def apply(self) -> None:
        """Set the standard library's loggers to these levels."""
        self._thresholds = {}
        for name, level in self._own.items():
            logging.getLogger(name).setLevel(level.upper())


LEVELS = Levels()


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


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a change: a level for one logger, or for all, and a time such as 30s, 10m or 1h."""

    level: str
    logger: str = "root"
    for_: str = msgspec.field(name="for", default="10m")

    def __post_init__(self) -> None:
        if self.level not in LOG_LEVELS:
            raise ValueError(f"level: use one of {', '.join(LOG_LEVELS)}")
        if not re.fullmatch("[0-9]{1,4}[smh]", self.for_) or not 0 < self.seconds <= LONGEST_CHANGE_S:
            raise ValueError("for: use a time such as 30s, 10m or 1h, an hour at most")

    @property
    def seconds(self) -> int:
        """How long the change holds."""
        return int(self.for_[:-1]) * UNITS_S[self.for_[-1]]


class TemporaryLevels:
    """The levels of all loggers, and how to change them for a time; *note* is told of each change."""

    def __init__(self, note: Callable[[str], None] = lambda _: None) -> None:
        self._note = note
        self._before: dict[str, str | None] = {}
        self._timer = threading.Timer(0, self.revert)
        self._until = 0.0
        self._lock = threading.Lock()

    def show(self) -> dict[str, object]:
        """Return the level of every known logger, and in how many seconds changes are undone."""
        loggers = LEVELS.show()
        left_s = round(max(0.0, self._until - time.monotonic()), 1) if self._before else None
        return {"root": loggers.pop("root"), "loggers": loggers, "reverts_in_s": left_s}

    def change(self, change: Change, by: str) -> None:
        """Apply *change*; *by* tells the log who asked for it. When the last change ends, all are undone."""
        with self._lock:
            self._before.setdefault(change.logger, LEVELS.own(change.logger))
            LEVELS.set(change.logger, change.level)
            self._timer.cancel()
            self._timer = threading.Timer(change.seconds, self.revert, ("the timer",))
            self._timer.daemon = True
            self._timer.start()
            self._until = time.monotonic() + change.seconds
        self._note(f"the log level of {change.logger} is {change.level}, for {change.seconds} s")
        fields = {"changed": change.logger, "to": change.level, "for_s": change.seconds, "by": by}
        logging.getLogger("logs").warning("log level changed", extra=fields)

    def revert(self, by: str) -> None:
        """Undo all changes."""
        with self._lock:
            self._timer.cancel()
            before, self._before = self._before, {}
            for name, level in before.items():
                LEVELS.set(name, level)
        self._note("all log levels are what they were")
        logging.getLogger("logs").warning("log levels reverted", extra={"reverted": sorted(before), "by": by})
