"""Logs: one event, one line, on stdout; files, rotation and shipping are the platform's business.

structlog's loggers, the standard library's and requests make the same lines here, and obey the same levels.
"""

import asyncio
import atexit
import contextvars
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import structlog
from structlog.processors import ExceptionRenderer, StackInfoRenderer, format_exc_info
from structlog.typing import EventDict

from . import standard_logging
from .lines import plain, renamed, short_traceback, shown, timestamp, to_json, to_text
from .output import Output
from .standard_logging import LEVELS, LOG_LEVELS

# Seconds that the last lines of a process wait for their reader.
EXIT_FLUSH_TIMEOUT_S = 1.0
# How long the line of a request waits for those of others, with which it is written.
REQUEST_LINES_DELAY_S = 0.01
# Libraries that log whole URLs, with whatever secret stands in a query, or each step of a start.
QUIET = dict.fromkeys(("httpx", "httpx2", "httpcore", "httpcore2", "urllib3"), "warning") | {"uvicorn": "critical"}
QUIET |= {"opentelemetry.baggage": "error", "opentelemetry.trace": "error"}  # They log headers that clients send.
# The ids of the request at hand; every line of the request has them.
REQUEST: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("request", default=MappingProxyType({}))

# How exceptions and lines are rendered; `configure` chooses.
_add_exception, _render = format_exc_info, to_json
_URL = re.compile(r"://(?:[^\s/?#'\"]*@)?([^\s?'\"]*)(?:\?[^\s'\"]*)?")  # The group is what may be logged of it.
_http, _A_REQUEST = logging.getLogger("http"), {"level": "info", "logger": "http", "event": "request"}


def configure(level: str, format: str, levels: Mapping[str, str] | None = None) -> None:
    """Send what is logged to stdout as ``json`` or ``console`` lines; ``auto``: console on a terminal."""
    global _add_exception, _render
    is_for_people = format == "console" or (format == "auto" and os.isatty(1))
    _add_exception = ExceptionRenderer(short_traceback) if is_for_people else format_exc_info
    _render = to_text if is_for_people else to_json
    # A quiet library is not louder than the service.
    quiet = {name: max(level, least, key=LOG_LEVELS.index) for name, least in QUIET.items()}
    LEVELS.configure({**quiet, **(levels or {}), "root": level})
    structlog.configure(**_STRUCTLOG, logger_factory=logging.getLogger)
    standard_logging.install(_write)
    uncaught = get_logger("uncaught")
    sys.excepthook = lambda kind, error, trace: uncaught.critical("uncaught exception", exc_info=(kind, error, trace))
    sys.unraisablehook = lambda args: uncaught.error(
        "unraisable exception", where=shown(args.object), exc_info=args.exc_value
    )
    threading.excepthook = _log_uncaught_in_thread
    # print() arrives line by line, in order with the log.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger *name*; every field that is given to it comes out as a field of the line."""
    # With processors of its own, so that a library may configure structlog for itself.
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(logging.getLogger(name), **_STRUCTLOG)
    return logger


def request_id() -> str:
    """Return the id of the request at hand, for what leaves the service; empty where there is no request."""
    return REQUEST.get().get("request_id", "")


output = Output(1, lambda lost: get_logger("logs").error("log lines lost", lost=lost))
flush = output.flush
atexit.register(flush, EXIT_FLUSH_TIMEOUT_S)


def log_request(fields: Mapping[str, object], ids: Mapping[str, str]) -> None:
    """Log that the request with these *ids* has ended, as ``get_logger("http").info("request", ...)`` would.

    The line is what a request costs most; structlog's chain would take five times as long for it.
    """
    # The first check is the quicker one; the second puts back what a library has taken away.
    if _http.getEffectiveLevel() > logging.INFO and not _http.isEnabledFor(logging.INFO):
        return
    if bound := structlog.contextvars.get_contextvars():
        bound = renamed(plain(bound), {"timestamp", *_A_REQUEST, *fields, *ids})
    line = {"timestamp": timestamp(time.time()), **_A_REQUEST, **fields, **ids, **bound}
    # A system call for each line, which wakes its reader, would be the dearest part of it. Any other line goes at once.
    if output.queue(_render(line)):
        asyncio.get_running_loop().call_later(REQUEST_LINES_DELAY_S, output.drain)


def _write_event(logger: logging.Logger, method: str, event: EventDict) -> NoReturn:
    """Write an event of structlog; it ends here, since the logger has no more than a name and a level."""
    level, args = {"warn": "warning", "exception": "error"}.get(method, method), event.pop("positional_args", ())
    args = args[0] if len(args) == 1 and isinstance(args[0], dict) else args
    _write(level, logger.name, event.pop("event", None), args, event)
    raise structlog.DropEvent


_STRUCTLOG: dict[str, Any] = {
    "processors": [structlog.stdlib.filter_by_level, StackInfoRenderer(), _write_event],
    "wrapper_class": structlog.stdlib.BoundLogger,
    "cache_logger_on_first_use": True,
}


def _write(level: str, logger: str, message: object, args: Any, fields: EventDict) -> None:
    """Write a line, in whatever state its parts are: logging must never raise."""
    try:
        event = str(message) % args if args else str(message)
        fields = _add_exception(None, "", fields)
        if isinstance(trace := fields.get("exception"), str):
            fields["exception"] = _URL.sub(r"://\1", trace)
    except Exception as error:
        event, fields = f"{plain(message)} {shown(args)}", {**fields, "format_error": shown(error)}
    first = {"timestamp": timestamp(time.time()), "level": level, "logger": logger, "event": event}
    ids, fields = REQUEST.get(), {**structlog.contextvars.get_contextvars(), **fields}
    output.write(_render(plain({**first, **ids, **renamed(fields, {*first, *ids})})))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    # As Python does it: sys.exit ends a thread, and is no error there.
    if args.exc_type is not SystemExit:
        name = args.thread.name if args.thread else None
        get_logger("uncaught").critical("uncaught exception in thread", thread=name, exc_info=args.exc_value)


# A child that multiprocessing has started (not forked) logs as its parent does, by the same environment.
if any(word.startswith("from multiprocessing.") for word in sys.orig_argv):
    configure(
        os.environ.get("APP_LOG_LEVEL", "info").lower(),
        os.environ.get("APP_LOG_FORMAT", "auto").lower(),
        dict(re.findall(r"([^\s,=]+)=(\w+)", os.environ.get("APP_LOG_LEVELS", ""))),
    )
