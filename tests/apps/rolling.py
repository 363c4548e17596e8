"""The probe under load behind a balancer: it says which requests it began to handle.

A request that a balancer repeats is said twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys

import attrs
import svcs
from my_service.chassis import Service, get_logger, run
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from apps import probe

log = get_logger("rolling")


async def work(request: Request) -> Response:
    """Answer after the asked time with a hash of the body."""
    log.info("handled")
    body = await request.body()
    await asyncio.sleep(float(request.query_params["s"]))
    return PlainTextResponse(hashlib.sha256(body).hexdigest())


def create_app(config: probe.Config, registry: svcs.Registry) -> Starlette:
    app = probe.create_app(config, registry)
    app.router.routes.append(Route("/work", work, methods=["GET", "POST"]))
    return app


def service() -> Service:
    return attrs.evolve(probe.service(), create_app=create_app, non_critical=())


if __name__ == "__main__":
    sys.exit(run(service(), sys.argv[1:], os.environ))
