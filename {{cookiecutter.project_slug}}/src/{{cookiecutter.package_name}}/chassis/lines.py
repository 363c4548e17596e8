"""What a log line is made of, for machines (JSON) and for people at a terminal; logs.py sends it."""

import contextlib
import enum
import functools
import io
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, ExcInfo, Processor

# Each line begins with these; a field of one of these names is renamed.
RESERVED = frozenset({"timestamp", "level", "logger", "event"})
# A longer line is cut: it would fill the queue, and collectors refuse it.
LINE_BYTES = 256 * 1024
# What is left of it: this many characters of each of this many fields.
CUT_CHARACTERS = 1024
CUT_FIELDS = 32
# Deeper values are written as their repr, which also ends cycles.
NESTING_LIMIT = 8
# Where the chassis and the service's own code are.
CHASSIS = str(Path(__file__).parent)
SERVICE = str(Path(__file__).parent.parent)

_encode = msgspec.json.Encoder().encode


def first_fields(level: str, logger: str, event: object) -> EventDict:
    """Return what every line begins with."""
    now = time.time()
    at = f"{_to_the_second(int(now))}.{int(now % 1 * 1e6):06d}Z"
    return {"timestamp": at, "level": level, "logger": logger, "event": event}


def timestamp(seconds: float) -> str:
    """Return *seconds* since 1970 in the form of RFC 3339, in UTC."""
    return f"{_to_the_second(int(seconds))}.{int(seconds % 1 * 1e3):03d}Z"


@functools.lru_cache(maxsize=1)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def renamed(fields: EventDict) -> EventDict:
    """Return *fields* with other names for those that clash with a line's own."""
    return {f"{key}_" if key in RESERVED else str(key): value for key, value in fields.items()}


def plain(value: Any, depth: int = 0) -> Any:
    """Return *value* as JSON's own types; anything else goes by its repr, so that what a repr hides stays hidden."""
    kind: Any = type(value)
    if kind in (str, int, bool, type(None)) or (kind is float and math.isfinite(value)):
        return value
    if isinstance(value, enum.Enum) and kind.__repr__ is enum.Enum.__repr__:
        return plain(value.value, depth + 1)
    # Another thread may change a dict meanwhile, which is a RuntimeError.
    with contextlib.suppress(RuntimeError):
        if depth < NESTING_LIMIT and kind is dict:
            return {str(plain(key, NESTING_LIMIT)): plain(item, depth + 1) for key, item in value.items()}
        if depth < NESTING_LIMIT and kind in (list, tuple):
            return [plain(item, depth + 1) for item in value]
    return shown(value)


def shown(value: object) -> str:
    """Return the repr of *value*, or its class if that fails."""
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def to_json(event: EventDict) -> bytes:
    """Return the line of an *event* that has plain values only."""
    try:
        line = _encode(event)
    except Exception:
        # msgspec refuses lone surrogates and integers of more than 64 bits.
        line = json.dumps(event).encode()
    if len(line) <= LINE_BYTES:
        return line
    short: EventDict = {}
    for key, value in list(event.items())[:CUT_FIELDS]:
        text = str(value)
        short[key[:CUT_CHARACTERS]] = value if len(text) <= CUT_CHARACTERS else f"{text[:CUT_CHARACTERS]}…"
    return json.dumps({**short, "cut_bytes": len(line)}).encode()


def people_chain(colors: bool) -> list[Processor]:
    """Return the processors that render a line for people, with *colors* or without."""
    return [_shorten, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_traceback, pad_event_to=0)]


def _shorten(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Say a request in one phrase, put the request's id last, and escape what could forge a line."""
    event["timestamp"] = time.strftime("%H:%M:%S")
    if event.get("event") == "request" and "duration_ms" in event:
        where = event.pop("route") or event["path"]
        del event["path"]
        phrase = f"{event.pop('method')} {where} {event.pop('status')} {event.pop('duration_ms'):.0f} ms"
        event["event"] = phrase
    if request_id := event.pop("request_id", None):
        event["request_id"] = str(request_id)[:8]
    # The renderer takes these two for text that it prints below the line.
    for name in ("stack", "exception"):
        if name in event and not isinstance(event[name], str):
            event[f"{name}_"] = event.pop(name)
    return {key: _printable(value) for key, value in event.items()}


def _printable(value: object) -> object:
    if isinstance(value, str) and type(value) is not str:
        return shown(value)
    if isinstance(value, str) and not value.isprintable():
        return value.encode("unicode_escape").decode()
    return value


def _traceback(out: TextIO, exc_info: ExcInfo) -> None:
    """Print a traceback from the first frame of the service's own code, if there is one."""
    kind, error, trace = exc_info
    own = trace
    while own is not None and not _is_the_services(own.tb_frame.f_code.co_filename):
        own = own.tb_next
    text = io.StringIO()
    structlog.dev.plain_traceback(text, (kind, error.with_traceback(own or trace), own or trace))
    out.write("\n".join(str(_printable(line)) for line in text.getvalue().split("\n")))


def _is_the_services(file: str) -> bool:
    return file.startswith(SERVICE) and not file.startswith((CHASSIS, sys.prefix))
