"""Log levels that are changed for a limited time, and are then what they were before the first change."""

import re
import threading
import time
from collections.abc import Callable

import msgspec

from ..config import LOG_LEVELS
from ..levels import LEVELS
from ..logs import get_logger

LONGEST_CHANGE_S = 3600
UNITS_S = {"s": 1, "m": 60, "h": 3600}

log = get_logger("logs")


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
        log.warning("log level changed", changed=change.logger, to=change.level, for_s=change.seconds, by=by)

    def revert(self, by: str) -> None:
        """Undo all changes."""
        with self._lock:
            self._timer.cancel()
            before, self._before = self._before, {}
            for name, level in before.items():
                LEVELS.set(name, level)
        self._note("all log levels are what they were")
        log.warning("log levels reverted", reverted=sorted(before), by=by)
