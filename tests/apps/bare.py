"""A service whose application is ASGI without a framework: one path or setting, a case. It logs its spans."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping

import environ
import structlog
import svcs
from my_service.chassis import Service, Settings, get_logger, run
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LARGE_BYTES = 32 * 1024 * 1024

log = get_logger("bare")


@environ.config(frozen=True)
class Bare:
    lifespan: str = environ.var("", help="what goes wrong in the lifespan: fails, ends")


@environ.config(prefix="APP", frozen=True)
class Config(Settings):
    bare: Bare = environ.group(Bare)


class Spans:
    """Begins and ends a span for each request, and tells the log."""

    def begin(self, scope: Scope, ids: dict[str, str]) -> Ending:
        ids["trace_id"] = ids.get("trace_id", "0" * 31 + "1")
        return Ending(scope, ids["trace_id"])

    async def close(self, timeout_s: float) -> None:
        log.info("spans closed", has_time=timeout_s > 0)


class Ending:
    """Ends a span; only those of successes are sent."""

    def __init__(self, scope: Scope, trace: str) -> None:
        self._scope, self._trace = scope, trace

    def __call__(self, status: int, route: str | None) -> Mapping[str, str] | None:
        log.info("span ended", path=self._scope["path"], status=status, route=route)
        return {"trace_id": self._trace} if status == 200 else None


async def run_lifespan(kind: str, receive: Receive, send: Send) -> None:
    await receive()
    if kind == "fails":
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        # As a layer does that still has something to close.
        await asyncio.sleep(0.3)
        return
    await send({"type": "lifespan.startup.complete"})
    if kind == "ends":
        await asyncio.sleep(0.3)
    else:
        await receive()
        await send({"type": "lifespan.shutdown.complete"})


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    path, request = scope["path"], Request(scope, receive)
    text = path
    if path == "/bound":
        structlog.contextvars.bind_contextvars(shop="Ada's", status="open")
    elif path == "/read":
        text = str(len(await request.body()))
    elif path == "/large":
        # More than the buffers of both kernels hold.
        text = "x" * LARGE_BYTES
    elif path == "/again":
        try:
            await request.body()
        except HTTPException:
            # The body is refused as often as somebody asks for it.
            await receive()
    await PlainTextResponse(text)(scope, receive, send)


def create_app(config: Config, registry: svcs.Registry) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(config.bare.lifespan, receive, send)
        elif scope["type"] == "websocket":
            if scope["path"] != "/refused":
                raise RuntimeError("no sockets here")
            await receive()
            await send({"type": "websocket.close"})
        else:
            await answer(scope, receive, send)

    return app


def service() -> Service:
    return Service(
        "my-service", Config, lambda registry, config: None, create_app, tracing=lambda *_: Spans()
    )


if __name__ == "__main__":
    sys.exit(run(service(), sys.argv[1:], os.environ))
