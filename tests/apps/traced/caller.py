"""A service that calls another one, with traces if the environment says where they go to.

``/call/{method}`` calls what UPSTREAM names in the environment, and answers what that has answered.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys

import environ
import svcs
from my_service.chassis import Service, Settings, get_logger, run
from my_service.chassis.outgoing import HttpClient, OutgoingSettings, register_http_client
from my_service.chassis.tracing import start_tracing
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

log = get_logger("caller")


@environ.config(prefix="APP", frozen=True)
class Config(Settings):
    outgoing: OutgoingSettings = environ.group(OutgoingSettings)


class Upstream:
    """The other service, whose failure informs."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client

    async def ping(self) -> None:
        if url := os.environ.get("UPSTREAM"):
            await self._client.get(f"{url}/ping")


async def make_upstream(services: svcs.Container) -> Upstream:
    return Upstream(await services.aget(HttpClient))


def register(registry: svcs.Registry, config: Config) -> None:
    register_http_client(registry, config.outgoing, **json.loads(os.environ.get("CLIENT", "{}")))
    if "PING" in os.environ:
        registry.register_factory(Upstream, make_upstream, ping=Upstream.ping)


def create_app(config: Config, registry: svcs.Registry) -> Starlette:
    async def call(request: Request) -> Response:
        log.info("calling")
        async with svcs.Container(registry) as services:
            client = await services.aget(HttpClient)
        # As a webhook does, whose host a client has named.
        base = request.query_params.get("url", os.environ["UPSTREAM"])
        url = f"{base}/leaf/{request.path_params['kind']}?key=canary-query"
        answer = await client.request(request.method, url)
        return Response(answer.content, answer.status_code)

    async def leaf(request: Request) -> Response:
        log.info("called")
        if request.path_params["kind"] == "error":
            raise RuntimeError("as asked")
        names = ("traceparent", "tracestate", "x-request-id", "cookie")
        seen = " ".join(f"{name}={request.headers[name]}" for name in names if name in request.headers)
        return PlainTextResponse(seen, headers={"Set-Cookie": "session=canary-cookie"})

    handlers, methods = {"/call/{kind}": call, "/leaf/{kind}": leaf}, ["GET", "POST", "PUT", "MKCOL"]
    if importlib.util.find_spec("fastapi") is None:
        return Starlette(routes=[Route(path, each, methods=methods) for path, each in handlers.items()])
    made: Starlette = importlib.import_module("fastapi").FastAPI()
    for path, each in handlers.items():
        made.add_api_route(path, each, methods=methods)  # type: ignore[attr-defined]
    return made


def service() -> Service:
    return Service("my-service", Config, register, create_app, [Upstream], tracing=start_tracing)


if __name__ == "__main__":
    sys.exit(run(service(), sys.argv[1:], os.environ))
