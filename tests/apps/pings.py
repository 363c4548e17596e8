"""A service whose dependencies, metrics and threads misbehave as a test wants it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator

import environ
import svcs
from my_service.chassis import Secret, Service, Settings, run, secret
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

ORDERS = Counter("orders", "What a team counts at module level.")


@environ.config(frozen=True)
class Broker:
    password: Secret = secret(optional=True, help="what a driver might show")


@environ.config(prefix="APP", frozen=True)
class Config(Settings):
    broker: Broker = environ.group(Broker)


class Database:
    """A dependency whose ping is a plain function; *mode* says what it does."""

    mode = "open"
    asked = 0

    def __init__(self, config: Config) -> None:
        self._config = config

    def ping(self) -> None:
        self.asked += 1
        if self.mode.startswith("sleep"):
            time.sleep(float(self.mode.removeprefix("sleep")))
        if self.mode == "leak":
            raise ConnectionError(f"no answer from amqp://app:{self._config.broker.password.reveal()}@broker")


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even its text can be had")


class Queue(Database):
    """The same, but awaited, and not critical."""

    async def aping(self) -> None:
        self.asked += 1
        if self.mode == "leak":
            raise LookupError(f"login failed: {self._config.broker.password.reveal()!r}")
        if self.mode == "broken":
            raise Broken
        while self.mode == "deaf":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue


class Hangs(Collector):
    """A collector that takes *seconds*."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        time.sleep(self.seconds)
        yield from Gauge("slow_figures", "Late.", registry=None).collect()


def register(registry: svcs.Registry, config: Config) -> None:
    registry.register_value(Database, Database(config), ping=Database.ping)
    registry.register_value(Queue, Queue(config), ping=Queue.aping)
    # As an exporter of OpenTelemetry's does: the standard's names, in the registry that all share.
    if "OTHER_EXPORTER" in os.environ:
        Histogram("http_server_request_duration_seconds", "Another's.", ["http_route"]).labels("/").observe(1)
        Gauge("http_server_active_requests", "Another's.").set(77)


def create_app(config: Config, registry: svcs.Registry) -> Starlette:
    async def mode(request: Request) -> PlainTextResponse:
        async with svcs.Container(registry) as services:
            of = await services.aget({"database": Database, "queue": Queue}[request.path_params["name"]])
        of.mode = request.path_params["mode"]
        return PlainTextResponse(str(of.asked))

    async def nap(request: Request) -> PlainTextResponse:
        await asyncio.sleep(float(request.path_params["seconds"]))
        return PlainTextResponse("rested")

    async def hang(request: Request) -> PlainTextResponse:
        REGISTRY.register(Hangs(float(request.path_params["seconds"])))
        return PlainTextResponse("registered")

    async def order(request: Request) -> PlainTextResponse:
        ORDERS.inc()
        return PlainTextResponse("ordered")

    async def linger(request: Request) -> PlainTextResponse:
        threading.Thread(target=time.sleep, args=(60,)).start()
        return PlainTextResponse("started")

    return Starlette(
        routes=[
            Route("/mode/{name}/{mode}", mode),
            Route("/nap/{seconds}", nap),
            Route("/hang/{seconds}", hang),
            Route("/order", order),
            Route("/linger", linger),
        ]
    )


def service() -> Service:
    return Service("my-service", Config, register, create_app, [Queue])


if __name__ == "__main__":
    sys.exit(run(service(), sys.argv[1:], os.environ))
