"""What is measured: a small JSON route, one that computes, one that takes a body; served in several ways."""

import os
import time

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


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


async def length(request: Request) -> Response:
    """Answer how long the body is."""
    size = 0
    async for piece in request.stream():
        size += len(piece)
    return Response(msgspec.json.encode(size), media_type="application/json")


# Routes that are looked at before the one that is asked for.
others = [Route(f"/other{number}/{{name}}", hello) for number in range(int(os.environ.get("ROUTES", "0")))]
own = [Route("/hello/{name}", hello), Route("/work", work), Route("/length", length, methods=["POST"])]
app = Starlette(routes=others + own)
