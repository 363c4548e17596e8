"""A service in which goes wrong what has gone wrong in others: one route, or one setting, an incident.

It uses the framework of the project whose interpreter runs it; `incident_logs` has the routes about logging.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environ
import svcs
from my_service.chassis import Lifecycle, Limits, Service, Settings, get_logger, run
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from apps import incident_logs
from apps.probe import framework

# Longer than any stop may take.
LONG = 60
log = get_logger("incidents")
kept: list[object] = []


async def misbehave(kind: str) -> None:
    """Hang, refuse to be cancelled, block, leave, fail, reconfigure logging: whatever *kind* says."""
    if kind:
        log.info("misbehaving", kind=kind)
    if kind == "hang":
        await asyncio.sleep(LONG)
    elif kind == "deaf":
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(LONG)
    elif kind == "block":
        time.sleep(LONG)
    elif kind.startswith("exit"):
        code = kind.removeprefix("exit")
        sys.exit(int(code) if code.isdigit() else code or None)
    elif kind == "interrupt":
        raise KeyboardInterrupt
    elif kind == "stop":
        asyncio.get_running_loop().stop()
    elif kind == "raise":
        raise RuntimeError("it went wrong")
    elif kind:
        incident_logs.reconfigure(kind)


@environ.config(frozen=True)
class Incidents:
    register: str = environ.var("", help="what happens while the services are registered")
    start: str = environ.var("", help="what happens in the start-up")
    task: str = environ.var("", help="what happens in a task group of the lifespan a moment after it")
    suppress: str = environ.var("", help="anything: the lifespan hides that")
    stop: str = environ.var("", help="what happens in the end of the lifespan")
    close: str = environ.var("", help="what happens when the registry closes")


@environ.config(prefix="APP", frozen=True)
class Config(Settings):
    incident: Incidents = environ.group(Incidents)


class Closing:
    """A service whose closing misbehaves."""


def register(registry: svcs.Registry, config: Config) -> None:
    async def close() -> None:
        log.info("registry closing")
        await misbehave(config.incident.close)

    registry.register_value(Closing, Closing(), on_registry_close=close)
    if config.incident.register == "block":
        log.info("misbehaving", kind="block")
        time.sleep(LONG)
    if config.incident.register == "raise":
        # Python waits for such a thread at its end; the exit of a start that failed must not.
        threading.Thread(target=time.sleep, args=(LONG,)).start()
        raise ZeroDivisionError
    if config.incident.register == "observe":
        with svcs.Container(registry) as services:
            services.get(Lifecycle).observe(lambda state: [][0])


async def nap(request: Request) -> Response:
    body = await request.body()
    log.info("napping")
    await asyncio.sleep(float(request.query_params.get("s", "0")))
    return PlainTextResponse(f"rested {len(body)}")


async def echo(request: Request) -> Response:
    """Answer with what the body is, without saying how long that is."""

    async def some(body: bytes) -> AsyncIterator[bytes]:
        yield body

    return StreamingResponse(some(await request.body()))


async def thread_behind(request: Request) -> Response:
    return PlainTextResponse("ok", background=BackgroundTask(time.sleep, LONG))


async def task_behind(request: Request) -> Response:
    return PlainTextResponse("ok", background=BackgroundTask(asyncio.sleep, LONG))


class Odd(Coroutine[Any, Any, None]):
    """A coroutine as a compiled library may make one: who asks it for its frame gets an error."""

    def __init__(self) -> None:
        self._inner: Any = asyncio.sleep(LONG)

    def send(self, value: Any) -> Any:
        return self._inner.send(value)

    def throw(self, *error: Any) -> Any:
        return self._inner.throw(*error)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, None]:
        yield from self._inner.__await__()

    @property
    def cr_frame(self) -> object:
        raise RuntimeError("no frame")


async def odd_task(request: Request) -> Response:
    kept.append(asyncio.create_task(Odd()))
    return PlainTextResponse("ok")


async def executor(request: Request) -> Response:
    kept.append(asyncio.get_running_loop().run_in_executor(None, time.sleep, LONG))
    return PlainTextResponse("ok")


async def no_threads(request: Request) -> Response:
    """Let no thread start any more, as on a machine that has none left; with `again`, let them."""
    threading.stack_size(0 if "again" in request.query_params else 2**47)
    return PlainTextResponse("ok")


async def thread(request: Request) -> Response:
    threading.Thread(target=time.sleep, args=(LONG,), name="sleeper").start()
    return PlainTextResponse("ok")


async def at_exit(request: Request) -> Response:
    atexit.register(time.sleep, LONG)
    return PlainTextResponse("ok")


async def pool(request: Request) -> Response:
    """Have a process pool whose only child sleeps."""
    kept.append(
        workers := ProcessPoolExecutor(1, multiprocessing.get_context(request.query_params["method"]))
    )
    child = await asyncio.get_running_loop().run_in_executor(workers, os.getpid)
    kept.append(workers.submit(time.sleep, LONG))
    return PlainTextResponse(str(child))


async def process(request: Request) -> Response:
    """Have a child of `multiprocessing` that sleeps, for which the interpreter waits in its end."""
    method = multiprocessing.get_context(request.query_params["method"])
    kept.append(one := method.Process(target=time.sleep, args=(LONG,)))  # type: ignore[attr-defined]
    one.start()
    return PlainTextResponse(str(one.pid))


async def fork(request: Request) -> Response:
    """Have a child of `os.fork` that sleeps."""
    if (child := os.fork()) == 0:
        time.sleep(LONG)
        os._exit(0)
    return PlainTextResponse(str(child))


async def child(request: Request) -> Response:
    """End a child as `multiprocessing` does, and say how it ended."""
    method = multiprocessing.get_context(request.query_params["method"])
    process: Any = method.Process(target=time.sleep, args=(LONG,))  # type: ignore[attr-defined]
    if "thread" in request.query_params:
        await asyncio.to_thread(process.start)
    else:
        process.start()
    await asyncio.sleep(float(request.query_params.get("s", "0.5")))
    process.terminate()
    await asyncio.to_thread(process.join, 20)
    code = process.exitcode
    process.kill()
    return PlainTextResponse(str(code))


async def task(request: Request) -> Response:
    kept.append(asyncio.create_task(misbehave(request.path_params["kind"])))
    return PlainTextResponse("ok")


async def callback(request: Request) -> Response:
    def leave() -> None:
        raise SystemExit(int(request.path_params["code"]))

    asyncio.get_running_loop().call_later(0.1, leave)
    return PlainTextResponse("ok")


async def thread_exit(request: Request) -> Response:
    leaving = threading.Thread(target=sys.exit, args=(3,))
    leaving.start()
    await asyncio.to_thread(leaving.join)
    return PlainTextResponse("ok")


async def block(request: Request) -> Response:
    log.info("misbehaving", kind="block")
    time.sleep(float(request.query_params["s"]))
    return PlainTextResponse("moved")


async def ticks(until: Callable[[], bool], every: float = 0.05) -> AsyncIterator[bytes]:
    while not until():
        yield b"tick\n"
        await asyncio.sleep(every)


async def endless(request: Request) -> Response:
    return StreamingResponse(ticks(lambda: False))


async def parts(request: Request) -> Response:
    async def some() -> AsyncIterator[bytes]:
        for _ in range(int(request.query_params["n"])):
            yield b"part" * 250

    return StreamingResponse(some())


def polite(registry: svcs.Registry) -> Callable[[Request], Awaitable[Response]]:
    """Return a route with a stream that ends when the service drains."""

    async def stream(request: Request) -> Response:
        async with svcs.Container(registry) as services:
            lifecycle = await services.aget(Lifecycle)
        return StreamingResponse(ticks(lifecycle.draining.is_set))

    return stream


async def live(socket: WebSocket) -> None:
    if how := socket.query_params.get("how"):
        if how == "raise":
            raise RuntimeError("nothing was accepted")
        await (socket.close() if how == "close" else socket.send_denial_response(Response(status_code=401)))
        return
    await socket.accept()
    if "wait" in socket.query_params:
        await socket.receive_text()
    async for text in socket.iter_text():
        if not text:
            raise RuntimeError("nothing was said")
        await socket.send_text(text.upper())


async def item(request: Request) -> Response:
    return PlainTextResponse(str(request.path_params))


async def length(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def unread(request: Request) -> Response:
    return PlainTextResponse("not read")


def routes(registry: svcs.Registry) -> list[BaseRoute]:
    named = [
        nap,
        thread_behind,
        task_behind,
        executor,
        no_threads,
        odd_task,
        thread,
        at_exit,
        pool,
        process,
        fork,
        child,
        thread_exit,
        block,
    ]
    named += [endless, parts]
    plain = [Route(f"/{handler.__name__}", handler, methods=["GET", "POST"]) for handler in named]
    # The first one takes the path of the second, but not its method.
    put = Route("/items/{number}", length, methods=["PUT"])
    items = [put, Route("/items/{item:int}", item), WebSocketRoute("/live", live)]
    return [
        *plain,
        *incident_logs.ROUTES,
        *items,
        Route("/polite", polite(registry)),
        Route("/task/{kind}", task),
        Route("/callback/{code}", callback),
        Route("/echo", echo, methods=["POST"]),
        Route("/length", length, methods=["POST"]),
        Route("/unread", unread, methods=["POST"]),
        Route("/length/small", length, methods=["POST"], max_body_size=100),
        Route("/length/large", length, methods=["POST"], max_body_size=300_000),
        Mount("/v1", routes=items),
        Mount("/shops/{shop}", routes=[Mount("/floors/{floor}", routes=items), *items]),
        Mount("/app", Starlette(routes=[*items, Mount("/inner", Starlette(routes=items))])),
        Mount("/static", StaticFiles(directory=Path(__file__).parent)),
    ]


@dataclass
class Order:
    """What FastAPI's routes take."""

    name: str
    price: float
    number: int = 1
    more: Any = None


def add_fastapi(app: Any, fastapi: Any) -> None:
    """Give FastAPI routes of its own kind."""

    whole_body = fastapi.Body()

    async def find(item: int, q: float = 0) -> dict[str, float]:
        return {"item": item, "q": q}

    async def order(order: Order) -> Order:
        return order

    async def anything(body: Any = whole_body) -> Any:
        return body

    async def upload(body: bytes = whole_body) -> int:
        return len(body)

    async def part(body: dict[str, Any]) -> int:
        return len(body)

    async def chat(socket: WebSocket) -> None:
        await live(socket)

    shop, back = fastapi.APIRouter(prefix="/shop"), fastapi.APIRouter(prefix="/back")
    shop.add_api_route("/items/{item}", find, methods=["GET"])
    shop.add_api_route("/orders", order, methods=["POST"])
    shop.add_api_websocket_route("/chat", chat)
    back.include_router(shop)
    app.include_router(shop)
    app.include_router(back, prefix="/office")
    app.add_api_route("/things", anything, methods=["POST"])
    app.add_api_route("/part", part, methods=["PUT"])
    for name, size in (("small", 100), ("large", 300_000)):
        shop.add_api_route(f"/uploads/{name}", upload, methods=["POST"], max_body_size=size)
    inner = fastapi.FastAPI()
    inner.include_router(shop)
    app.mount("/sub/{tenant}", inner)


def create_app(config: Config, registry: svcs.Registry) -> Starlette:
    wanted = config.incident

    async def later() -> None:
        if wanted.task:
            await asyncio.sleep(0.3)
            await misbehave(wanted.task)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await misbehave(wanted.start)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(later())
                yield
        except BaseException as error:
            if not wanted.suppress:
                raise
            log.info("hidden", error=repr(error))
        log.info("lifespan closing")
        await misbehave(wanted.stop)

    app = framework()(routes=routes(registry), lifespan=lifespan)
    if importlib.util.find_spec("fastapi"):
        add_fastapi(app, importlib.import_module("fastapi"))
    return app


def service() -> Service:
    limits = Limits(
        body_timeout_s=float(os.environ.get("BODY_TIMEOUT", "20")),
        half_close_s=float(os.environ.get("HALF_CLOSE", "0.1")),
    )
    return Service("my-service", Config, register, create_app, limits=limits)


if __name__ == "__main__":
    sys.exit(run(service(), sys.argv[1:], os.environ))
