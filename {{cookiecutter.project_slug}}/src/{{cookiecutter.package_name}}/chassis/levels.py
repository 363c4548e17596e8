"""The one table of log levels: what structlog's loggers obey, and what the standard library's are set to."""

import logging
from collections.abc import Mapping


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
            logging.getLogger(None if name == "root" else name).setLevel(level.upper())


LEVELS = Levels()
