"""What is measured: one small JSON route, served in four ways. It is run inside a baked project."""

import asyncio
import importlib
import logging
import os
import sys
import time
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

PACKAGE = next(path.parent.name for path in Path("src").glob("*/__main__.py"))


class Greeting(msgspec.Struct):
    """What is answered."""

    text: str


async def hello(request: Request) -> Response:
    """Answer at once."""
    greeting = Greeting("Hello, " + request.path_params["name"])
    return Response(msgspec.json.encode(greeting), media_type="application/json")


async def work(_: Request) -> Response:
    """Answer after three milliseconds of computing."""
    end = time.thread_time() + 0.003
    while time.thread_time() < end:
        pass
    return Response(b"{}", media_type="application/json")


app = Starlette(routes=[Route("/hello/{name}", hello), Route("/work", work)])


def wired() -> None:
    """On the chassis, with all that it brings."""
    cli = importlib.import_module(f"{PACKAGE}.chassis.cli")
    own = importlib.import_module(f"{PACKAGE}.__main__").service()

    def service() -> object:
        return cli.Service(own.name, own.config, own.register, lambda *_: app, own.informs)

    sys.exit(cli.main(own.name, service, (), os.environ))


def joined(port: int) -> None:
    """On the chassis' joined writes, without its middleware."""
    writes = importlib.import_module(f"{PACKAGE}.chassis.server").JoinedWrites

    class Joined(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(writes(transport, self.loop, lambda: False))

    uvicorn.run(app, http=Joined, port=port, loop="uvloop", access_log=False, log_level="warning")


def log_lines(kind: str, count: int) -> None:
    """Log *count* lines by the chassis or by the standard library; print how many a second to stderr."""
    fields = {"customer": "c-4711", "items": 3, "total": 17.5}
    if kind == "wired":
        logs = importlib.import_module(f"{PACKAGE}.chassis.logs")
        logs.configure("info", "json")
        chassis = logs.get_logger("shop")
        began = time.perf_counter()
        for _ in range(count):
            chassis.info("ordered", **fields)
    else:
        formatter = importlib.import_module("pythonjsonlogger.json").JsonFormatter
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logging.basicConfig(handlers=[handler], level="INFO")
        shop = logging.getLogger("shop")
        began = time.perf_counter()
        for _ in range(count):
            shop.info("ordered", extra=fields)
    print(count / (time.perf_counter() - began), file=sys.stderr)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["wired"]:
            wired()
        case ["joined", port]:
            joined(int(port))
        case ["logs", kind, count]:
            log_lines(kind, int(count))
