"""What libraries and teams do to logging, a route each; part of `incidents`."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import enum
import io
import logging
import logging.config
import multiprocessing
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import attrs
import msgspec
import structlog
from my_service.chassis import get_logger
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

# Loggers that are there before anybody reconfigures logging, which disables them.
library = logging.getLogger("lib")
child_of_library = logging.getLogger("lib.noisy")
own = get_logger("incidents")

# What `alembic init` writes.
ALEMBIC_INI = """
[loggers]
keys = root,sqlalchemy,alembic
[handlers]
keys = console
[formatters]
keys = generic
[logger_root]
level = WARNING
handlers = console
qualname =
[logger_sqlalchemy]
level = WARNING
handlers =
qualname = sqlalchemy.engine
[logger_alembic]
level = INFO
handlers =
qualname = alembic
[handler_console]
class = StreamHandler
args = (sys.stderr,)
level = NOTSET
formatter = generic
[formatter_generic]
format = %(levelname)-5.5s [%(name)s] %(message)s
"""
STREAMS = {"version": 1, "handlers": {"err": {"class": "logging.StreamHandler"}}}


def reconfigure(kind: str) -> None:
    """Do to logging what libraries do to it."""
    root = logging.getLogger()
    if kind == "alembic":
        logging.config.fileConfig(io.StringIO(ALEMBIC_INI))
    elif kind == "alembic-twice":
        for _ in range(2):
            logging.config.fileConfig(io.StringIO(ALEMBIC_INI))
    elif kind == "dict":
        logging.config.dictConfig({**STREAMS, "root": {"level": "ERROR", "handlers": ["err"]}})
    elif kind == "dict-without-root":
        logging.config.dictConfig({**STREAMS, "loggers": {"other": {"handlers": ["err"], "level": "ERROR"}}})
    elif kind == "basic":
        logging.basicConfig(force=True, level=logging.ERROR)
    elif kind == "removed":
        for handler in root.handlers[:]:
            root.removeHandler(handler)
        logging.basicConfig()
    elif kind == "cleared":
        root.handlers.clear()
    elif kind == "level":
        root.setLevel(logging.CRITICAL)
    elif kind == "disable":
        logging.disable(logging.CRITICAL)
    elif kind == "alone":
        library.propagate = False
    elif kind == "structlog":
        quiet = structlog.make_filtering_bound_logger(logging.CRITICAL)
        structlog.configure(processors=[structlog.dev.ConsoleRenderer()], wrapper_class=quiet)
    elif kind == "structlog-reset":
        structlog.reset_defaults()
    else:
        raise LookupError(kind)


def say(when: str) -> None:
    """Log a line by each road there is."""
    library.info(f"library {when}")
    child_of_library.warning(f"child of the library {when}")
    own.info(f"own {when}")
    logging.getLogger(f"new.{when}").info(f"new {when}")


async def configured(request: Request) -> Response:
    """Reconfigure logging in the route or in a thread, and log at once."""
    kind = request.path_params["kind"]
    if "thread" in request.query_params:
        await asyncio.to_thread(reconfigure, kind)
    else:
        reconfigure(kind)
    say("at once")
    return PlainTextResponse("ok")


async def says(request: Request) -> Response:
    say("later")
    return PlainTextResponse("ok")


async def levels(request: Request) -> Response:
    """Log at every level, as a library that writes URLs, a library and its child, and as the service."""
    for name in (
        "httpx2",
        "httpx2._client",
        "httpcore2.http11",
        "urllib3.connectionpool",
        *("lib", "lib.noisy"),
    ):
        for level in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger(name), level)("%s", level)
    for level in ("debug", "info"):
        getattr(get_logger("lib.structured"), level)(level)
    return PlainTextResponse("ok")


def in_child(why: str) -> None:
    structlog.get_logger("child").info("structlog", why=why)
    library.warning("standard %s", "library")
    logging.getLogger("lib.noisy").debug("noise")
    print("printed")


async def process(request: Request) -> Response:
    """Log in a child."""
    method = multiprocessing.get_context(request.path_params["method"])
    process: Any = method.Process(target=in_child, args=("test",))
    process.start()
    await asyncio.to_thread(process.join)
    return PlainTextResponse(str(process.exitcode))


async def prints(request: Request) -> Response:
    kind = request.path_params["kind"]
    if kind == "flush":
        print("printed", flush=True)
    elif kind == "thread":
        await asyncio.to_thread(print, "printed")
    elif kind == "unfinished":
        print("printed", end="")
    elif kind == "bytes":
        sys.stdout.buffer.write(b"printed\n")
    else:
        print("printed")
    return PlainTextResponse("ok")


@dataclasses.dataclass
class Account:
    user: str
    password: str = dataclasses.field(repr=False)


@attrs.define
class Attrs:
    user: str
    password: str = attrs.field(repr=False)


class Struct(msgspec.Struct):
    password: str

    def __repr__(self) -> str:
        return "Struct()"


class Pydantic:
    """As pydantic's models: a dict of its own, and a repr that knows what to hide."""

    def __init__(self) -> None:
        self.__dict__["password"] = "hunter2"

    def __iter__(self) -> Any:
        yield "password", "hunter2"

    def __repr__(self) -> str:
        return "Pydantic(user='ada')"


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Key(enum.Enum):
    MASTER = "hunter2"

    def __repr__(self) -> str:
        return "<Key>"


class Point(NamedTuple):
    x: int
    y: int


class Login(NamedTuple):
    password: str

    def __repr__(self) -> str:
        return "Login()"


class Text(str):
    def __repr__(self) -> str:
        return "<text>"


class Map(dict[str, str]):
    def __repr__(self) -> str:
        return "Map()"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("it has no repr")


def nested(depth: int) -> object:
    return [nested(depth - 1)] if depth else Account("ada", "hunter2")


FIELDS: dict[str, Callable[[], object]] = {
    "dataclass": lambda: Account("ada", "hunter2"),
    "attrs": lambda: Attrs("ada", "hunter2"),
    "struct": lambda: Struct("hunter2"),
    "pydantic": Pydantic,
    "list": lambda: [Account("ada", "hunter2"), (Attrs("ada", "hunter2"),)],
    "dict": lambda: {"account": Account("ada", "hunter2"), 3: Struct("hunter2")},
    "key": lambda: {Account("ada", "hunter2").user: 1, (1, 2): 2, None: 3},
    "nested": lambda: nested(30),
    "enum": lambda: Colour.RED,
    "int_enum": lambda: Level.HIGH,
    "hidden_enum": lambda: Key.MASTER,
    "named_tuple": lambda: Point(1, 2),
    "hidden_tuple": lambda: Login("hunter2"),
    "text": lambda: Text("hunter2"),
    "mapping": lambda: Map(password="hunter2"),
    "counter": lambda: collections.Counter("aab"),
    "set": lambda: {1},
    "bytes": lambda: b"\xff",
    "exception": lambda: ValueError("no value"),
    "nan": lambda: [float("nan"), float("inf")],
    "huge": lambda: 10**30,
    "surrogate": lambda: "\ud800",
    "broken": Broken,
}


async def field(request: Request) -> Response:
    """Log a field of this kind, by both roads."""
    value = FIELDS[request.path_params["kind"]]()
    own.info("own field", value=value)
    library.info("library field", extra={"value": value})
    library.info("with an argument: %s", value if not isinstance(value, (tuple, dict)) else [value])
    return PlainTextResponse("ok")


async def clash(request: Request) -> Response:
    """Log with fields that are named as what every line has."""
    names = ("event", "level", "logger", "timestamp", "request_id")
    library.warning(
        "the real message", extra={**dict.fromkeys(names, "mine"), "exception": "mine", "stack": ["a"]}
    )
    get_logger("own").warning(
        "the real message", **dict.fromkeys(names[1:], "mine"), message="mine", stack=["a"]
    )
    return PlainTextResponse("ok")


async def odd(request: Request) -> Response:
    """Log in every way that may raise."""
    own.info("bad %d", "number")
    own.info("100 %", "left over")
    own.info("exc_info", exc_info=("not", "a", "triple"))
    own.info("exc_info of a class", exc_info=ValueError)
    own.info(None)
    own.info("rows", stack=["a"], exception=("b",))
    own.info("rows", **{"1": 1}, event_={2: 3, "a": 4})
    own.bind(**{"a b": 1}).info("bound", stack_info=True)
    library.info("bad %d", "number")
    library.info(Broken())
    library.info("exc_info", exc_info=("not", "a", "triple"))  # type: ignore[arg-type]
    library.info("keys", extra={1: "one", None: "none"})  # type: ignore[dict-item]
    library.info("rows", extra={"stack": ["a"], "exception": ("b",)})
    own.info("the last")
    return PlainTextResponse("ok")


async def long(request: Request) -> Response:
    """Log lines of 2 MiB: in the message, in a field, in many fields, in an exception."""
    much = "x" * 2 * 1024 * 1024
    logging.getLogger("lib.long").warning(much)
    get_logger("long.field").info("long", short="kept", much=much)
    get_logger("long.fields").info("many", **{f"field{n}": "y" * 900 for n in range(2000)})
    get_logger("long.error").error("failed", exc_info=ValueError(much))
    get_logger("long.nested").info("deep", rows=[{"row": n} for n in range(200_000)])
    return PlainTextResponse("ok")


ROUTES = [
    Route("/configure/{kind}", configured),
    Route("/says", says),
    Route("/levels", levels),
    Route("/process/{method}", process),
    Route("/prints/{kind}", prints),
    Route("/field/{kind}", field),
    Route("/clash", clash),
    Route("/odd", odd),
    Route("/long", long),
]
