"""The rendered service itself, with a route that the load of tests/kit asks for, and a worker; for images.

It is copied into an image alone. With NEVER_READY in the environment it never becomes ready.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import os
import sys

import svcs
from my_service.app import create_app
from my_service.chassis import Service, Worker, get_logger, run
from my_service.config import Config
from my_service.services import NON_CRITICAL, register_services
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route


class Jobs(Worker):
    """Does one job after the other; each takes a second."""

    async def run(self) -> None:
        number = 0
        while not self.lifecycle.draining.is_set():
            number += 1
            with self.item():
                get_logger("jobs").info("begun", job=number)
                await asyncio.sleep(1)
                get_logger("jobs").info("done", job=number)


class Never:
    """A dependency that is not there."""

    async def ping(self) -> None:
        raise ConnectionError("this image is broken")


async def work(request: Request) -> Response:
    """Answer after the asked time with a hash of the body."""
    body = await request.body()
    await asyncio.sleep(float(request.query_params["s"]))
    return PlainTextResponse(hashlib.sha256(body).hexdigest())


def register(registry: svcs.Registry, config: Config) -> None:
    register_services(registry, config)
    if "NEVER_READY" in os.environ:
        registry.register_value(Never, Never(), ping=Never.ping)


def create_app_with_work(config: Config, registry: svcs.Registry) -> Starlette:
    app = create_app(config, registry)
    app.router.routes.append(Route("/work", work, methods=["GET", "POST"]))
    return app


if __name__ == "__main__":
    # The package is always called like this, the distribution as the test wants it.
    (name,) = importlib.metadata.packages_distributions()["my_service"]
    service = Service(name, Config, register, create_app_with_work, NON_CRITICAL, workers={"jobs": Jobs})
    sys.exit(run(service, sys.argv[1:], os.environ))
