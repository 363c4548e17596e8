"""Logs: one event, one line, on stdout; files, rotation and shipping are the platform's business.

structlog renders. The standard library's loggers, warnings and uncaught exceptions are led to the same lines;
the standard library also keeps the level of each logger, so there is one place to change it.
"""

from __future__ import annotations

import atexit
import contextvars
import functools
import json
import logging
import os
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from .output import Output

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from structlog.typing import EventDict, Processor

_encode = msgspec.json.Encoder(enc_hook=repr).encode
# Seconds that the last lines of a process wait for their reader.
EXIT_PATIENCE = 1.0

_second: tuple[int, str] = (0, "")
_console = False

# structlog's methods that are no level of their own.
_LEVELS = {"warn": "warning", "exception": "error"}
_NONE: Mapping[str, str] = {}

# What the lines of the request at hand have in common; bound once, cheaper than a variable for each.
REQUEST: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("request")


def configure(level: str, format: str) -> None:
    """Send everything that is logged to stdout, from *level* on, as ``json`` or ``console`` lines."""
    render: list[Processor] = [structlog.processors.format_exc_info]
    # The standard library's formatters have to return text.
    last, last_of_handler = [_json_bytes], [_json_line]
    global _console
    _console = format == "console" or (format == "auto" and os.isatty(1))
    if _console:
        console = structlog.dev.ConsoleRenderer(colors=os.isatty(1), exception_formatter=structlog.dev.plain_traceback)
        render, last, last_of_handler = [_printable, console], [], []
    shared: list[Processor] = [structlog.contextvars.merge_contextvars, _begin]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.processors.StackInfoRenderer(),
            *render,
            *last,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=_Logger,
        cache_logger_on_first_use=True,
    )
    handler = _Handler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render, *last_of_handler],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    _catch_the_rest()


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger *name*; every field that is given to it comes out as a field of the line."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger


def write(line: str | bytes) -> None:
    """Put one whole line on stdout."""
    if isinstance(line, str):
        line = line.encode("utf-8", "backslashreplace")
    output().write(line + b"\n")


@functools.cache
def output() -> Output:
    """Return what writes to stdout."""
    out = Output(1)
    out.on_recovery = lambda lost: get_logger("logs").error("lines could not be written", lost=lost)
    atexit.register(out.flush, EXIT_PATIENCE)
    return out


class RequestLines:
    """The lines of requests, as the logger *name* would write them, but by a shorter way.

    One is what each request costs; structlog takes five times as long for it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_enabled = logging.getLogger(name).isEnabledFor
        self._merge = structlog.contextvars.merge_contextvars
        self._lines: list[bytes] = []

    def add(self, fields: dict[str, object]) -> None:
        """Make the line of a request that has *fields*, to be written with others."""
        if not self._is_enabled(logging.INFO):
            return
        if _console:
            get_logger(self._name).info("request", **fields)
            return
        line = _beginning("info", self._name, "request")
        line.update(fields)
        line.update(REQUEST.get(_NONE))
        self._lines.append(_json(self._merge(None, "info", line)) + b"\n")

    def write(self) -> None:
        """Write the lines that were made, in as few system calls as it takes."""
        lines, self._lines = self._lines, []
        output().write(*lines)


class Levels:
    """The levels of loggers, changed for a limited time."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}
        self._timer: threading.Timer | None = None
        self._until = 0.0
        self._lock = threading.Lock()

    def show(self) -> dict[str, object]:
        """Return the level of every known logger, and how many seconds are left until changes are undone."""
        names = sorted(name for name in logging.root.manager.loggerDict)
        levels = {name: logging.getLevelName(logging.getLogger(name).getEffectiveLevel()).lower() for name in names}
        left = round(max(0.0, self._until - time.monotonic()), 1) if self._before else None
        return {"root": logging.getLevelName(logging.root.level).lower(), "loggers": levels, "reverts_in_s": left}

    def change(self, name: str, level: str, seconds: float, by: str) -> None:
        """Set the logger *name* ("root": all that have no level of their own) to *level* for some *seconds*."""
        with self._lock:
            logger = logging.getLogger(None if name == "root" else name)
            self._before.setdefault(name, logger.level)
            logger.setLevel(level.upper())
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(seconds, self.revert, ("the timer",))
            self._timer.daemon = True
            self._until = time.monotonic() + seconds
            self._timer.start()
        get_logger("logs").warning("log level changed", changed=name, to=level, for_s=seconds, by=by)

    def revert(self, by: str) -> None:
        """Set all changed loggers to what they were before the first change."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            before, self._before = self._before, {}
            for name, level in before.items():
                logging.getLogger(None if name == "root" else name).setLevel(level)
        get_logger("logs").warning("log levels are back", reverted=sorted(before), by=by)


class _Logger:
    """What structlog's loggers write to: a name, whose level the standard library keeps."""

    disabled = False

    def __init__(self, name: str = "root") -> None:
        self.name = name
        self.getEffectiveLevel = logging.getLogger(name).getEffectiveLevel

    def debug(self, line: str | bytes) -> None:
        write(line)

    info = warning = error = critical = exception = debug


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:
            # Arguments that don't fit their format string must cost neither the event nor a line on stderr.
            record.msg, record.args = f"{record.msg} {record.args!r}", None
            record.format_error = repr(error)
            line = self.format(record)
        write(line)


def _begin(logger: Any, method: str, event: EventDict) -> EventDict:
    """Put what every line begins with first, and what the lines of a request have in common last."""
    record = event.get("_record")
    line = _beginning(_LEVELS.get(method, method), logger.name if record is None else record.name, event["event"])
    return {**line, **event, **REQUEST.get(_NONE), **event, **line}


def _beginning(level: str, logger: str, event: object) -> EventDict:
    """Begin a line; all but the fraction of the time, which is as RFC 3339 has it, is made once a second."""
    global _second
    now = time.time()
    whole = int(now)
    second, text = _second
    if whole != second:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        _second = whole, text
    timestamp = f"{text}.{int((now - whole) * 1_000_000):06d}Z"
    return {"timestamp": timestamp, "level": level, "logger": logger, "event": event}


def _json_line(_logger: object, _method: str, event: EventDict) -> str:
    return _json(event).decode()


def _json_bytes(_logger: object, _method: str, event: EventDict) -> bytes:
    return _json(event)


def _json(event: EventDict) -> bytes:
    try:
        return _encode(event)
    except Exception:
        # What msgspec refuses: lone surrogates, keys that are no strings, cycles, a repr that fails.
        return json.dumps({str(key): _safe(value) for key, value in event.items()}).encode()


def _safe(value: object) -> object:
    try:
        return json.loads(json.dumps(value, default=repr, allow_nan=False))
    except Exception:
        return f"<{type(value).__name__}>"


def _printable(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Escape what could forge a line on a terminal."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode()
    return event


def _catch_the_rest() -> None:
    log = get_logger("uncaught")

    def main_thread(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        log.critical("uncaught exception", exc_info=(kind, error, trace))

    def other_thread(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else None
        log.critical("uncaught exception in a thread", thread=name, exc_info=args.exc_value)

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        log.error("exception that nobody could catch", where=repr(args.object), exc_info=args.exc_value)

    def warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: object = None,
    ) -> None:
        get_logger("warnings").warning(str(message), category=category.__name__, file=filename, line=lineno)

    sys.excepthook = main_thread
    threading.excepthook = other_thread
    sys.unraisablehook = unraisable
    warnings.showwarning = warning
