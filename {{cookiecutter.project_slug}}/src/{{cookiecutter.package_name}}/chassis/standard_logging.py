"""The standard library's loggers: their levels and their handler are ours, and no library takes them away by accident.

structlog's loggers and the lines of requests obey the same levels.
"""

import logging
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LONGEST_CHANGE_S = 3600
UNITS_S = {"s": 1, "m": 60, "h": 3600}
# What a record has of its own; the rest is its `extra`.
RECORD = vars(logging.makeLogRecord({})).keys()
# Takes a level, the name of a logger, a message, its arguments, and fields.
Write = Callable[[str, str, object, Any, dict[str, Any]], None]


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


class Levels:
    """The levels that loggers were given by name; others inherit, in the end from "root". Changes hold for a time."""

    def __init__(self) -> None:
        # Told of each change.
        self.note: Callable[[str], None] = lambda _: None
        self._settings, self._changes, self._applied = {"root": "info"}, dict[str, str](), dict[str, str]()
        # The root logger's level, as a number of the standard library; and when changes end.
        self.root, self.until = logging.INFO, math.inf
        self._lock = threading.RLock()

    def configure(self, levels: Mapping[str, str]) -> None:
        """Replace all levels by *levels*, which has one for "root"."""
        self._settings = dict(levels)
        self.apply()

    def apply(self) -> None:
        """Give the standard library's loggers their levels, and let those inherit that have lost theirs."""
        before, self._applied = self._applied, {**self._settings, **self._changes}
        for name, level in {**dict.fromkeys(before, "notset"), **self._applied}.items():
            logging.getLogger(name).setLevel(level.upper())
        self.root = logging.getLogger().level

    def change(self, change: Change, by: str) -> None:
        """Apply *change*; *by* tells the log who asked for it. When the last change ends, all are undone."""
        with self._lock:
            self._changes[change.logger], self.until = change.level, time.monotonic() + change.seconds
            self.apply()
        self.note(f"the log level of {change.logger} is {change.level}, for {change.seconds} s")
        fields = {"changed": change.logger, "to": change.level, "for_s": change.seconds, "by": by}
        logging.getLogger("logs").warning("log level changed", extra=fields)

    def revert(self, by: str) -> None:
        """Undo all changes."""
        with self._lock:
            reverted, self._changes, self.until = sorted(self._changes), {}, math.inf
            self.apply()
        self.note("all log levels are what they were")
        logging.getLogger("logs").warning("log levels reverted", extra={"reverted": reverted, "by": by})

    def show(self) -> dict[str, object]:
        """Return the level of every known logger, and in how many seconds changes are undone."""
        restore()
        names = ["root", *sorted(logging.root.manager.loggerDict)]
        levels = {name: logging.getLevelName(logging.getLogger(name).getEffectiveLevel()).lower() for name in names}
        left_s = round(self.until - time.monotonic(), 1) if self._changes else None
        return {"root": levels.pop("root"), "loggers": levels, "reverts_in_s": left_s}


LEVELS = Levels()


class Handler(logging.Handler):
    """Hands the records of the standard library on, to what `install` was given."""

    # There is none before `install`.
    write: Write

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record* with its ``extra``."""
        fields = {name: value for name, value in vars(record).items() if name not in RECORD}
        own = {"exc_info": record.exc_info, "stack": record.stack_info}
        fields |= {name: value for name, value in own.items() if value}
        self.write(record.levelname.lower(), record.name, record.msg, record.args, fields)


HANDLER = Handler()


class Logger(logging.Logger):
    """A logger that nobody disables: ``fileConfig`` and ``dictConfig`` do that to all that exist by then."""

    @property
    def disabled(self) -> bool:
        restore()
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None: ...


# Of the ordinary class: who disables all loggers, those too that libraries had before this import, disables it.
_canary = logging.getLogger("logs.canary")
# From the import on, because modules have their loggers before anything is configured.
logging.setLoggerClass(Logger)


def install(write: Write) -> None:
    """Let *write* have all records from now on."""
    HANDLER.write = write
    logging.basicConfig(handlers=[HANDLER], force=True)
    # For a library's logger that has no handler, and does not propagate to ours either.
    logging.lastResort = HANDLER
    logging.setLogRecordFactory(_make_record)
    logging.captureWarnings(True)


def restore() -> None:
    """Put our handler and levels back if a library has replaced them (``fileConfig``, ``basicConfig(force=True)``).

    It runs ten times a second and whenever somebody logs, so it ends the changes of levels, too.
    """
    if time.monotonic() > LEVELS.until:
        LEVELS.revert("the timer")
    root = logging.getLogger()
    is_ours = HANDLER in root.handlers and root.level == LEVELS.root
    if not hasattr(HANDLER, "write") or (is_ours and not root.manager.disable and not _canary.disabled):
        return
    logging.disable(logging.NOTSET)
    for logger in (root, *map(logging.getLogger, list(root.manager.loggerDict))):
        logger.disabled = False
        for handler in logger.handlers[:]:
            if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr):
                logger.removeHandler(handler)
    root.addHandler(HANDLER)
    LEVELS.apply()
    logging.getLogger("logs").warning(
        "logging restored", extra={"hint": "a library had replaced the configuration of logging"}
    )


def _make_record(*args: Any, **fields: Any) -> logging.LogRecord:
    restore()
    return logging.LogRecord(*args, **fields)
