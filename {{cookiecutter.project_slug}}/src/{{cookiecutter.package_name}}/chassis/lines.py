"""What a log line is made of, for machines (JSON) and for people at a terminal; logs.py sends it."""

import contextlib
import enum
import functools
import json
import math
import os
import re
import time
import traceback
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import structlog
from structlog.typing import EventDict, ExcInfo

# A longer line is cut to this many characters of each of this many fields: it would fill the queue, and collectors
# refuse it.
LINE_BYTES, CUT_CHARACTERS, CUT_FIELDS = 256 * 1024, 1024, 32
# Deeper values are written as their repr, which also ends cycles.
NESTING_LIMIT = 8
# The files of the service's own code.
OWN_CODE = re.compile(re.escape(f"{Path(__file__).parent.parent}{os.sep}") + f"(?!{Path(__file__).parent.name})")

_encode = msgspec.json.Encoder().encode
_console = structlog.dev.ConsoleRenderer(colors=os.isatty(1), pad_event_to=0, sort_keys=False)


def timestamp(seconds: float) -> str:
    """Return *seconds* since 1970 in the form of RFC 3339, in UTC."""
    return f"{_to_the_second(int(seconds))}.{int(seconds % 1 * 1e6):06d}Z"


@functools.lru_cache(maxsize=1)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def renamed(fields: EventDict, taken: Collection[str]) -> dict[str, Any]:
    """Return *fields* with other names for those that are *taken*."""
    return {f"{key}_" if key in taken else str(key): value for key, value in fields.items()}


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


def to_json(line: EventDict) -> bytes:
    """Return a *line* that has plain values only, with its end, for machines."""
    try:
        data = _encode(line)
    except Exception:
        # msgspec refuses lone surrogates and integers of more than 64 bits.
        data = json.dumps(line).encode()
    return data + b"\n" if len(data) < LINE_BYTES else _cut(line, len(data))


def to_text(line: EventDict) -> bytes:
    """Return a *line* that has plain values only, for people: a request is a phrase, its id is short and the last."""
    parts = {**line, "timestamp": time.strftime("%H:%M:%S")}
    match parts:
        case {"event": "request", "method": method, "path": path, "route": route, "duration_ms": float(ms), **parts}:
            parts["event"] = f"{method} {route or path} {parts.pop('status', '')} {ms:.0f} ms"
    if "request_id" in parts:
        parts["request_id"] = str(parts.pop("request_id"))[:8]
    below = [row for name in ("stack", "exception") if name in parts for row in str(parts.pop(name)).split("\n")]
    first = _console(None, "", {_printable(key): _printable(value) for key, value in parts.items()})
    data = "\n".join([first, *map(_printable, below)]).encode("utf-8", "backslashreplace")
    return data + b"\n" if len(data) < LINE_BYTES else _cut(line, len(data))


def _cut(line: EventDict, size: int) -> bytes:
    """Return the beginning of a *line* that is too long."""
    short = {key[:CUT_CHARACTERS]: str(value)[:CUT_CHARACTERS] for key, value in islice(line.items(), CUT_FIELDS)}
    return json.dumps({**short, "cut_bytes": size}).encode() + b"\n"


def _printable(value: Any) -> Any:
    """Escape what could forge a line, or write to the terminal elsewhere."""
    if isinstance(value, str) and not value.isprintable():
        return value.encode("unicode_escape").decode()
    return value


def short_traceback(exc_info: ExcInfo) -> str:
    """Return a traceback from the first frame of the service's own code, if there is one."""
    kind, error, own = exc_info
    while own is not None and not OWN_CODE.match(own.tb_frame.f_code.co_filename):
        own = own.tb_next
    return "".join(traceback.format_exception(kind, error, own or exc_info[2])).rstrip("\n")
