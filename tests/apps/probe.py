"""A service for the tests of the chassis, with a route for each kind of trouble.

It uses the framework of the project whose interpreter runs it.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import importlib.util
import json
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from typing import Any, NoReturn, cast

import environ
import svcs
from my_service.chassis import Limits, Secret, Service, Settings, boolean, get_logger, run, seconds, secret
from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from apps.managers import NOTIFY

log = get_logger("probe")


@environ.config(frozen=True)
class Mail:
    note: str = "a field that is no setting"
    host: str = environ.var(help="mail server")
    password: Secret = secret(help="its password")


@environ.config(frozen=True)
class Probe:
    name: str = environ.var(help="what to call it")
    password: Secret = secret(help="a required secret")
    key: Secret = secret(optional=True, help="an optional secret")
    flag: bool = environ.var(False, boolean, help="a switch")
    start_delay: float = environ.var(0, seconds(0, 60), help="how long the start-up takes")
    broken_metric: bool = environ.var(False, boolean, help="have a metric that can't be collected")
    start_error: str = environ.var("", help="what goes wrong in the start-up")
    stop_delay: float = environ.var(0, seconds(0, 60), help="how long the end takes")


@environ.config(prefix="APP", frozen=True)
class Config(Settings):
    probe: Probe = environ.group(Probe)
    mail: Mail | None = environ.group(Mail, optional=True)

    def __attrs_post_init__(self) -> None:
        if self.http.port == self.http.max_body == 4242:
            raise ValueError("the port and the limit must differ")


class Gate:
    """A dependency that is open, shut or hangs, as it is told."""

    mode = "open"
    asked = 0

    async def ping(self) -> None:
        self.asked += 1
        if self.mode == "hang":
            await asyncio.sleep(60)
        if self.mode == "shut":
            raise ConnectionError("the gate is shut")


class Lamp(Gate):
    """A dependency whose check is not critical."""


class Broken(Collector):
    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> NoReturn:
        raise RuntimeError("no figures")


def register(registry: svcs.Registry, config: Config) -> None:
    if config.probe.broken_metric:
        REGISTRY.register(Broken())
    registry.register_value(Gate, Gate(), ping=Gate.ping)
    registry.register_value(
        Lamp, Lamp(), ping=Lamp.ping, on_registry_close=lambda: log.info("registry closed")
    )


class Unraisable:
    def __del__(self) -> None:
        raise OSError("in __del__")


async def trouble(request: Request) -> Response:
    kind = request.path_params["kind"]
    if kind == "exception":
        raise RuntimeError("boom")
    elif kind == "url":
        urls = (
            "'http://ada:canary@hub:1/x?key=canary' postgresql://:canary@hub:2?a=canary 'https://hub:3/end'."
        )
        raise RuntimeError(f"no answer from {urls}")
    elif kind == "exit":
        sys.exit(3)
    elif kind == "cancel":
        raise asyncio.CancelledError
    elif kind == "cancelled":
        # As a library does that takes the task for one of its own.
        cast("asyncio.Task[Response]", asyncio.current_task()).cancel()
        await asyncio.sleep(60)
    elif kind == "header":
        return PlainTextResponse("split", headers={"X-Name": "Ada\r\nSet-Cookie: a=b"})
    elif kind == "name":
        return PlainTextResponse("name", headers={"X Name": "Ada"})
    elif kind == "length":
        return PlainTextResponse("length", headers={"Content-Length": "6.0"})
    elif kind == "status":
        return PlainTextResponse("status", 1000)
    elif kind == "unusual":
        raise HTTPException(599, "nobody has registered this status")
    elif kind == "library":
        logging.getLogger("a.library").warning("from a %s", "library", extra={"shelf": 3})
        logging.getLogger("a.library").warning("bad %d", "format")
    elif kind == "warning":
        warnings.warn("old", UserWarning, stacklevel=1)
    elif kind == "thread":
        thread = threading.Thread(target=lambda: [][0], name="worker")
        thread.start()
        thread.join()
    elif kind == "task":
        asyncio.get_running_loop().call_soon(lambda: [][0])
    elif kind == "unraisable":
        Unraisable()
    elif kind == "odd":
        loop: list[object] = []
        loop.append(loop)
        log.info("odd", surrogate="\udc80", cycle=loop)
        get_logger("odd").info("with %s", "arguments")
    elif kind == "deliberate":
        return JSONResponse({"mine": True}, 500)
    elif kind == "unmodified":
        raise HTTPException(304, headers={"ETag": '"7"'})
    elif kind == "conflict":
        # FastAPI's own takes any detail.
        raise HTTPException(409, cast("Any", {"owner": "Ada", "since": date(2026, 11, 26)}))
    elif kind == "stream":
        return StreamingResponse(iter([b"a", b"b"]), 500)
    return PlainTextResponse(kind)


async def slow(request: Request) -> Response:
    log.info("slow begins")
    await asyncio.sleep(float(request.query_params["s"]))
    return PlainTextResponse("done")


async def stubborn(request: Request) -> Response:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            log.info("cancel ignored")


async def block(request: Request) -> Response:
    """Stand still for *s* seconds, or until there is a file *until*."""
    end, until = time.monotonic() + float(request.query_params["s"]), request.query_params.get("until")
    while (left := end - time.monotonic()) > 0 and not (until and os.access(until, os.F_OK)):
        time.sleep(min(left, 0.1) if until else left)
    return PlainTextResponse("moved")


async def spin(request: Request) -> Response:
    """Work for *s* seconds, or until there is a file *until*."""
    end, until = time.monotonic() + float(request.query_params["s"]), request.query_params.get("until")
    while time.monotonic() < end and not (until and os.access(until, os.F_OK)):
        pass
    return PlainTextResponse("moved")


async def hold(request: Request) -> Response:
    """Hold the GIL: in this thread, in another one, or asleep."""
    how = request.query_params.get("how")
    if how == "asleep":
        ctypes.PyDLL(None).usleep(1_500_000)
    elif how == "thread":
        await asyncio.to_thread(backtrack)
    else:
        backtrack()
    return PlainTextResponse("let go")


def backtrack() -> None:
    took, size = 0.0, 18
    while took < 1.3:
        # In its own CPU: time in which a busy machine does not let the process run is no stall.
        began = time.thread_time()
        # A match that goes back and forth in C, with the GIL held.
        re.match(r"(a+)+$", "a" * size + "b")
        took, size = time.thread_time() - began, size + 1


async def length(request: Request) -> Response:
    size = len(await request.body())
    return PlainTextResponse(str(size), headers={"X-Seen": " ".join(request.headers)})


async def stream(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(int(request.query_params["n"])):
            yield b"x" * 1000
        if "raise" in request.query_params:
            raise RuntimeError("half way")

    return StreamingResponse(chunks())


async def bodiless(request: Request) -> Response:
    """Answer with a body where HTTP has none, and announce it, as a relay does."""
    status, headers = int(request.query_params["status"]), {"Content-Length": "5"}
    if "stream" in request.query_params:
        return StreamingResponse(iter([b"hello"] * 9), status)
    return Response(b"hello", status, headers if "length" in request.query_params else None)


async def address(request: Request) -> Response:
    client = request.client.host if request.client else ""
    return PlainTextResponse(f"{request.url.scheme} {client} {request.url.netloc}")


class Silent:
    """An ASGI app that answers nothing."""

    async def __call__(self, scope: object, receive: object, send: object) -> None: ...


def framework() -> type[Starlette]:
    """Return the application class of the framework that the project depends on."""
    if importlib.util.find_spec("fastapi"):
        application: type[Starlette] = importlib.import_module("fastapi").FastAPI
        return application
    return Starlette


def create_app(config: Config, registry: svcs.Registry) -> Starlette:
    async def gate(request: Request) -> Response:
        async with svcs.Container(registry) as services:
            service = await services.aget({"gate": Gate, "lamp": Lamp}[request.path_params["name"]])
        service.mode = request.query_params.get("mode", service.mode)
        return PlainTextResponse(str(service.asked))

    async def reveal(request: Request) -> Response:
        return JSONResponse([config.probe.password.reveal(), config.probe.key.reveal()])

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await asyncio.sleep(config.probe.start_delay)
        if config.probe.start_error:
            raise RuntimeError(config.probe.start_error)
        yield
        await asyncio.sleep(config.probe.stop_delay)
        log.info("service closed")

    routes: list[BaseRoute] = [
        Route("/trouble/{kind}", trouble),
        Route("/slow", slow),
        Route("/stubborn", stubborn),
        Route("/block", block),
        Route("/spin", spin),
        Route("/hold", hold),
        Route("/length", length, methods=["POST"]),
        Route("/stream", stream),
        Route("/bodiless", bodiless),
        Route("/address/{name}", address),
        Route("/silent", Silent()),
        Route("/gate/{name}", gate),
        Route("/reveal", reveal),
    ]
    return framework()(routes=routes, lifespan=lifespan)


def service() -> Service:
    # Some limits are too long for a test.
    limits = Limits(**json.loads(os.environ.get("PROBE_LIMITS", "{}")))
    return Service("my-service", Config, register, create_app, [Lamp], limits, notify=NOTIFY)


if __name__ == "__main__":
    sys.exit(run(service(), sys.argv[1:], os.environ))
