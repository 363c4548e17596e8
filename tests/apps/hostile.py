"""The probe, with routes that only hostile tests need."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import svcs
from my_service.chassis import Limits, Service, run
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from apps import probe

# An allocation that no limit of a test leaves room for.
FAR_TOO_MUCH_BYTES = 1 << 34
# More than a connection's buffers hold, so that a slow reader makes the service wait.
LARGE_BYTES = 300_000

# Little patience, so that tests of slow clients are quick, unless a balancer is to lose its own first.
PATIENCE_S = float(os.environ.get("PATIENCE", "1"))
LIMITS = Limits(head_timeout_s=PATIENCE_S, body_timeout_s=PATIENCE_S, linger_s=0.5)

kept: list[asyncio.Task[None]] = []
leaked: list[int] = []


async def die(request: Request) -> Response:
    async def work() -> None:
        raise RuntimeError("the task died")

    task = asyncio.create_task(work())
    if "kept" in request.query_params:
        kept.append(task)
    return PlainTextResponse("begun")


async def group(request: Request) -> Response:
    async def work(number: int) -> None:
        await asyncio.sleep(0)
        raise RuntimeError(f"part {number}")

    async with asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(work(number))
    return PlainTextResponse("never")


async def leak(request: Request) -> Response:
    """Use up all file descriptors; with `back`, close them again."""
    if "back" in request.query_params:
        while leaked:
            os.close(leaked.pop())
        return PlainTextResponse("given back")
    try:
        while True:
            leaked.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return PlainTextResponse(f"{len(leaked)} {error}")


async def allocate(request: Request) -> Response:
    return PlainTextResponse(str(len(bytearray(FAR_TOO_MUCH_BYTES))))


async def large(request: Request) -> Response:
    return PlainTextResponse(bytes(LARGE_BYTES))


async def connections(request: Request) -> Response:
    """Count what handles connections and is in memory, after a garbage collection."""
    gc.collect()
    alive = (one for one in gc.get_objects() if isinstance(one, asyncio.Protocol))
    return PlainTextResponse(str(sum(hasattr(one, "data_received") for one in alive)))


async def child(request: Request) -> Response:
    said = subprocess.run(["env"], capture_output=True, text=True).stdout
    return PlainTextResponse(said + Path("/proc/self/environ").read_text())


def reachable() -> Iterator[object]:
    """Go through all objects that the garbage collector knows, and those they refer to."""
    # What the start made may be kept from the collector, and so from view.
    gc.unfreeze()
    tracked = gc.get_objects()
    # The collector does not track what holds only texts, so what is referred to is looked at too.
    untracked = (dict, tuple, list, set)
    held = (one for each in tracked for one in gc.get_referents(each) if isinstance(one, untracked))
    for one in itertools.chain(tracked, held):
        if one is not tracked:
            yield one


def create_app(config: probe.Config, registry: svcs.Registry) -> Starlette:
    app = probe.create_app(config, registry)

    async def reach(request: Request) -> Response:
        """Name each object that can be reached and whose repr has a word; words are sent backwards."""
        config.probe.password.reveal()
        found: list[str] = []
        words = [word[::-1] for word in request.query_params.getlist("w")]
        skipped = (types.FrameType, types.CodeType, types.ModuleType)
        for one in reachable():
            if one is words or one is found or isinstance(one, skipped):
                continue
            try:
                said = repr(one)
            except Exception:
                continue
            if any(word in said for word in words):
                found.append(f"{type(one)} {said[:200]}")
        return JSONResponse([len(gc.get_objects()), found])

    async def fail(request: Request) -> Response:
        secret = config.probe.password.reveal()
        raise RuntimeError(f"a message without it, of {len(secret)} and {config.probe.password!r}")

    routes = (die, group, leak, allocate, large, connections, child, reach, fail)
    app.router.routes.extend(Route(f"/{route.__name__}", route) for route in routes)
    return app


def service() -> Service:
    return Service("my-service", probe.Config, probe.register, create_app, [probe.Lamp], LIMITS)


if __name__ == "__main__":
    sys.exit(run(service(), sys.argv[1:], os.environ))
