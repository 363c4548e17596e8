"""Logs: one event, one line, on stdout; files, rotation and shipping are the platform's business.

structlog and the standard library's loggers end in the same lines. `LEVELS` says what is logged, because any library
may overwrite the standard library's configuration; where one did, ours is put back.
"""

import asyncio
import atexit
import contextlib
import contextvars
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import structlog
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.typing import EventDict, Processor

from . import standard_logging
from .lines import LINE_BYTES, first_fields, people_chain, plain, renamed, shown, to_json
from .output import Output
from .standard_logging import LEVELS

# Seconds that the last lines of a process wait for their reader.
EXIT_FLUSH_TIMEOUT_S = 1.0
# Libraries that log whole URLs, with whatever secret stands in a query, or each step of a start.
QUIET = dict.fromkeys(("httpx", "httpx2", "httpcore", "httpcore2", "urllib3"), "warning") | {"uvicorn": "critical"}
# structlog's methods that are not named after their level.
LEVEL_OF = {"warn": "warning", "exception": "error", "fatal": "critical"}

# The ids of the request at hand; every line of the request has them.
REQUEST: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("request")
_NO_REQUEST: Mapping[str, str] = {}
# What renders lines for people; nothing while they are for machines. And request lines that are not written yet.
_people: list[Processor] = []
_request_lines: list[bytes] = []
_format_arguments = structlog.stdlib.PositionalArgumentsFormatter()


def configure(level: str, format: str, levels: Mapping[str, str] | None = None) -> None:
    """Send what is logged to stdout as ``json`` or ``console`` lines; ``auto``: console on a terminal."""
    numbers = logging.getLevelNamesMapping()
    quiet = {name: least for name, least in QUIET.items() if numbers[least.upper()] > numbers[level.upper()]}
    LEVELS.configure({**quiet, **(levels or {}), "root": level})
    is_for_people = format == "console" or (format == "auto" and os.isatty(1))
    _people[:] = people_chain(colors=os.isatty(1)) if is_for_people else []
    shared: list[Processor] = [structlog.contextvars.merge_contextvars, _begin]
    structlog.configure(
        processors=[_filter_by_level, _add_arguments, structlog.processors.StackInfoRenderer(), *shared, _render],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=_Sink,
        cache_logger_on_first_use=True,
    )
    formatter = ProcessorFormatter(
        foreign_pre_chain=[_add_extra, *shared], processors=[ProcessorFormatter.remove_processors_meta, _render]
    )
    standard_logging.install(standard_logging.Handler(formatter, _write))
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    # print() arrives line by line, in order with the log.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger *name*; every field that is given to it comes out as a field of the line."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger


def request_id() -> str:
    """Return the id of the request at hand, for what leaves the service; empty where there is no request."""
    return REQUEST.get(_NO_REQUEST).get("request_id", "")


@functools.cache
def output() -> Output:
    """Return what writes to stdout."""
    out = Output(1, lambda lost: get_logger("logs").error("log lines lost", lost=lost))
    atexit.register(flush, EXIT_FLUSH_TIMEOUT_S)
    return out


def log_request(fields: Mapping[str, object], ids: Mapping[str, str]) -> None:
    """Log that the request with these *ids* has ended, as ``get_logger("http").info("request", ...)`` would.

    The line is what a request costs most; structlog's chain would take five times as long for it.
    """
    if LEVELS.threshold("http") > logging.INFO:
        return
    if _people:
        get_logger("http").info("request", **fields, **ids)
        return
    line = {**first_fields("info", "http", "request"), **fields, **ids}
    if bound := structlog.contextvars.get_contextvars():
        line = {**plain(bound), **line}
    if not _request_lines:
        # Requests come in crowds; a system call for each line would be the dearest part of it.
        asyncio.get_running_loop().call_soon(_write_request_lines)
    _request_lines.append(to_json(line) + b"\n")


def _write_request_lines() -> None:
    lines = _request_lines[:]
    del _request_lines[: len(lines)]
    output().write(*lines)


def flush(timeout_s: float) -> None:
    """Write what is left, and wait for its reader, *timeout_s* seconds at most."""
    _write_request_lines()
    output().flush(timeout_s)


def configure_child() -> None:
    """Log as the parent does, by the same environment, in a process that multiprocessing has started (not forked)."""
    main, processes = sys.modules.get("__mp_main__"), sys.modules.get("multiprocessing")
    if getattr(main, "__name__", "") == "__mp_main__" or (
        processes is not None and processes.current_process().name != "MainProcess"
    ):
        level, format, levels = (os.environ.get(f"APP_LOG_{name}", "") for name in ("LEVEL", "FORMAT", "LEVELS"))
        single = {name: level.lower() for name, level in re.findall(r"([^\s,=]+)=(\w+)", levels)}
        configure(level.lower() or "info", format.lower() or "auto", single)


def _write(line: str) -> None:
    output().write(line.encode("utf-8", "backslashreplace") + b"\n")


class _Sink:
    """What structlog's loggers write to."""

    def __init__(self, name: str = "root") -> None:
        self.name = name

    def debug(self, line: str) -> None:
        _write(line)

    info = warning = error = critical = exception = fatal = warn = debug


def _filter_by_level(logger: Any, method: str, event: EventDict) -> EventDict:
    standard_logging.restore()
    level = logging.getLevelNamesMapping()[LEVEL_OF.get(method, method).upper()]
    if level < LEVELS.threshold(logger.name):
        raise structlog.DropEvent
    return event


def _add_arguments(logger: Any, method: str, event: EventDict) -> EventDict:
    """Format the event with its arguments; those that don't fit must not cost the event."""
    try:
        return _format_arguments(logger, method, dict(event))
    except Exception as error:
        text = f"{plain(event['event'])} {shown(event.pop('positional_args'))}"
        return {**event, "event": text, "format_error": shown(error)}


def _add_extra(logger: Any, method: str, event: EventDict) -> EventDict:
    """Add the ``extra`` of a record, but never in place of its message."""
    return {**renamed(ExtraAdder()(logger, method, {"_record": event["_record"]})), **event}


def _begin(logger: Any, method: str, event: EventDict) -> EventDict:
    """Put first what every line begins with, and last the ids of the request; a field that clashes is renamed."""
    record = event.get("_record")
    name = logger.name if record is None else record.name
    line = first_fields(LEVEL_OF.get(method, method), name, event.pop("event"))
    fields = renamed(event)
    return {**line, **fields, **REQUEST.get(_NO_REQUEST), **fields}


def _render(logger: Any, method: str, event: EventDict) -> str:
    """Render a line, in whatever state its fields are: logging must never raise."""
    with contextlib.suppress(Exception):
        line: Any = dict(event)
        for processor in _people:
            line = processor(logger, method, line)
        if isinstance(line, str) and len(line) <= LINE_BYTES:
            return line
    with contextlib.suppress(Exception):
        event = structlog.processors.format_exc_info(logger, method, dict(event))
    return to_json(plain(event)).decode()


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    get_logger("uncaught").critical("uncaught exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    # As Python does it: sys.exit ends a thread, and is no error there.
    if args.exc_type is SystemExit:
        return
    name = args.thread.name if args.thread else None
    get_logger("uncaught").critical("uncaught exception in thread", thread=name, exc_info=args.exc_value)


def _log_unraisable(args: Any) -> None:
    get_logger("uncaught").error("unraisable exception", where=repr(args.object), exc_info=args.exc_value)


configure_child()
