"""What happens to every request before and after the service sees it: one pure ASGI middleware.

Request id, trace context, the log line, metrics, the size limit, errors, and the answers of an instance
that is starting or draining.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import random
import re
import time
from collections import deque
from http import HTTPStatus
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec

from .forwarded import is_host
from .health import timestamp
from .logs import REQUEST, RequestLines, get_logger
from .metrics import METHODS
from .stacks import await_chain, where

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping, Sequence

    from .forwarded import TrustedProxies
    from .health import Health
    from .metrics import Metrics

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]
    Headers = Sequence[tuple[bytes, bytes]]

REQUEST_ID = re.compile(rb"[A-Za-z0-9._~:=+/@-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header
TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")
# What nginx logs for a client that did not wait for its answer.
CLIENT_CLOSED_REQUEST = 499
# What a balancer may send to another instance when this one can't answer yet.
REPEATABLE = ("GET", "HEAD", "OPTIONS")
# Less than the 60 s for which balancers commonly wait.
START_PATIENCE = 50.0

log = get_logger("http")
request_lines = RequestLines("http")
# An id has to be unique, not a secret; asking the kernel for each costs a system call.
_ids = random.Random()  # noqa: S311
_READY = SimpleNamespace(path="/-/ready")
# Envoy takes an instance out of its rotation at the first answer that says so, not only at its next check.
_DRAINING = ((b"connection", b"close"), (b"x-envoy-immediate-health-check-fail", b"true"))


class BodyTooLargeError(Exception):
    """Raised by ``receive`` where the body goes over the limit."""


class Traffic:
    """The requests in flight, and the twenty slowest of the last five to ten minutes."""

    KEEP = 20
    PERIOD: float = 300

    def __init__(self) -> None:
        self.in_flight: set[Request] = set()
        self._since = time.monotonic()
        # Seconds; no request that took less is one of the slowest.
        self._enough: float = -1
        self._serial = itertools.count()
        self._slowest: list[tuple[float, int, dict[str, object]]] = []
        self._before: list[tuple[float, int, dict[str, object]]] = []

    def note(self, duration: float, request: Request, status: int) -> None:
        """Remember a finished request if it is one of the slowest; *duration* in seconds."""
        now = time.monotonic()
        if now - self._since > self.PERIOD:
            self._since, self._before, self._slowest, self._enough = now, self._slowest, [], -1
        if duration <= self._enough:
            return
        what = {"ended": timestamp(time.time()), "duration_ms": round(duration * 1000, 3), "status": status}
        heapq.heappush(self._slowest, (duration, next(self._serial), what | request.as_dict()))
        if len(self._slowest) > self.KEEP:
            heapq.heappop(self._slowest)
        if len(self._slowest) == self.KEEP:
            self._enough = self._slowest[0][0]

    def slowest(self) -> list[dict[str, object]]:
        """Return the slowest requests, slowest first."""
        return [what for *_, what in heapq.nlargest(self.KEEP, [*self._slowest, *self._before])]

    def waiting(self) -> list[dict[str, object]]:
        """Return the requests in flight, oldest first, each with the places it waits at."""
        now = time.perf_counter()
        requests = sorted(self.in_flight.copy(), key=lambda request: request.began)
        rows = []
        for request in requests:
            chain = await_chain(request.task) if request.task is not None else ()
            age = round((now - request.began) * 1000, 3)
            rows.append({"age_ms": age, **request.as_dict(), "where": where(chain), "awaits": chain})
        return rows

    def running(self, loop: asyncio.AbstractEventLoop | None) -> dict[str, object] | None:
        """Return the request whose task *loop* runs at this moment."""
        task = asyncio.current_task(loop) if loop is not None else None
        return next((request.as_dict() for request in self.in_flight.copy() if request.task is task), None)


class Middleware:
    """Wraps the service's ASGI *app*; bodies over *max_body* bytes are answered with 413."""

    def __init__(
        self, app: App, health: Health, metrics: Metrics, traffic: Traffic, proxies: TrustedProxies, max_body: int
    ) -> None:
        self.app = app
        self.health = health
        self.metrics = metrics
        self.observe = metrics.durations.observe
        self.traffic = traffic
        self.proxies = proxies
        self.started = asyncio.Event()
        self.max_body = max_body
        # Requests that ended, each with its duration in seconds and the context that its line is of.
        self._ended: deque[tuple[Request, float, contextvars.Context]] = deque()
        self._due = False

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        self.proxies.apply(scope)
        return Request(self, scope, receive, send).handle()

    def end(self, request: Request, duration: float) -> None:
        """Count and log a *request*, but not before the answers of others that came at the same time."""
        self._ended.append((request, duration, contextvars.copy_context()))
        if not self._due:
            self._due = True
            loop = asyncio.get_running_loop()
            # The next time around answers are written, the time after that this.
            loop.call_soon(loop.call_soon, self._account)

    def _account(self) -> None:
        self._due = False
        while self._ended:
            request, duration, context = self._ended.popleft()
            context.run(request.account, duration)
        request_lines.write()


class Request:
    """One request on its way through the middleware."""

    status = 0
    request_id = ""
    trace_id: str | None = None
    _body = 0
    _disconnected = False
    _too_large = False
    _bad_host = False
    _held: Sequence[Message] = ()
    _headers: Headers = ()

    def __init__(self, middleware: Middleware, scope: Scope, receive: Receive, send: Send) -> None:
        self.middleware = middleware
        self.scope = scope
        self.task = asyncio.current_task()
        self._receive = receive
        self._send = send
        self.began = time.perf_counter()

    @property
    def route(self) -> str | None:
        """The template of the route that took the request."""
        route: str | None = getattr(self.scope.get("route"), "path", None)
        return route

    def as_dict(self) -> dict[str, object]:
        """Say which request it is, in what is fit for operators' eyes."""
        method = self.scope["method"]
        known = method if method in METHODS else "_OTHER"
        return {"method": known, "route": self.route, "request_id": self.request_id, "trace_id": self.trace_id}

    async def handle(self) -> None:
        """Answer the request, whatever the service does."""
        middleware = self.middleware
        length = self._identify()
        middleware.traffic.in_flight.add(self)
        try:
            if self._bad_host:
                await self._answer(400, [(b"connection", b"close")], detail="A request needs one valid Host.")
            elif self.scope["path"] == "/-/ready":
                await self._ready()
            elif middleware.health.state == "starting" and not await self._started():
                await self._answer(503, [(b"retry-after", b"1")], detail="The service is starting.")
            elif length > middleware.max_body:
                await self._refuse_body()
            else:
                await self._call()
        finally:
            self._finish()

    def _identify(self) -> int:
        """Take over or make the ids of the request, bind them to its log lines; return its Content-Length."""
        request_id, traceparent, host, length, hosts = b"", b"", b"", 0, 0
        for name, value in self.scope["headers"]:
            if name == b"host":
                host = value
                hosts += 1
            elif name == b"x-request-id" and REQUEST_ID.fullmatch(value):
                request_id = value
            elif name == b"traceparent":
                traceparent = value
            elif name == b"content-length":
                length = int(value)
        # https://www.rfc-editor.org/rfc/rfc9112#section-3.2-6
        self._bad_host = hosts > 1 or not is_host(host) or (hosts == 0 and self.scope["http_version"] != "1.0")
        request_id = request_id or b"%032x" % _ids.getrandbits(128)
        self.request_id = request_id.decode()
        self._headers = [(b"x-request-id", request_id)]
        common = {"request_id": self.request_id}
        if traceparent and (match := TRACEPARENT.fullmatch(traceparent)):
            self._headers = [*self._headers, (b"traceparent", traceparent)]
            self.trace_id = common["trace_id"] = match[1].decode()
            common["span_id"] = match[2].decode()
        REQUEST.set(common)
        return length

    async def _started(self) -> bool:
        """Wait for the start-up with a request that would be lost: no balancer may repeat it elsewhere."""
        if self.scope["method"] not in REPEATABLE:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.middleware.started.wait(), START_PATIENCE)
        return self.middleware.health.state == "ready"

    async def _ready(self) -> None:
        self.scope["route"] = _READY
        report = await self.middleware.health.ready()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
        status = 200 if report.ready else 503
        await self._forward({"type": "http.response.start", "status": status, "headers": headers})
        await self._forward({"type": "http.response.body", "body": report.word.encode() + b"\n"})

    async def _call(self) -> None:
        try:
            await self.middleware.app(self.scope, self.receive, self.send)
            for message in self._held:
                await self._forward(message)
            if not (self.status or self._disconnected):
                raise RuntimeError("the application returned without an answer")
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self.task is not None and self.task.cancelling():
                # Only the end of the drain cancels requests: tell the client while there is a connection.
                await self._answer(503, detail="The service is stopping.")
            elif self._too_large:
                await self._refuse_body()
            elif not self._disconnected:
                log.error("unhandled exception", exc_info=error)
                await self._answer(500, request_id=self.request_id)

    async def receive(self) -> Message:
        """Hand the body to the service, up to the limit."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._disconnected = True
        self._body += len(message.get("body", b""))
        if self._body > self.middleware.max_body:
            self._too_large = True
            raise BodyTooLargeError
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Pass on what the service answers.

        A whole answer of 500 waits until the service returns: frameworks send one before they raise the
        exception that it stands for.
        """
        if self._held or (self._too_large and not self.status) or message.get("status") == 500:
            return self._hold(message)
        return self._forward(message)

    async def _hold(self, message: Message) -> None:
        if self._too_large and not self.status:
            return
        self._held = [*self._held, message]
        if not message.get("more_body", False):
            return
        held, self._held = self._held, ()
        for earlier in held:
            await self._forward(earlier)

    def _forward(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), *self._headers]
            if self.middleware.health.state == "draining":
                headers += _DRAINING
            return self._send({**message, "headers": headers})
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            return self._complete(message)
        return self._send(message)

    async def _complete(self, message: Message) -> None:
        await self._send(message)
        self._finish()

    async def _answer(self, status: int, headers: Headers = (), **members: object) -> None:
        """Answer with a problem, unless another answer has begun."""
        if self.status:
            return
        body = msgspec.json.encode({"status": status, "title": HTTPStatus(status).phrase, **members})
        own = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
        await self._forward({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
        await self._forward({"type": "http.response.body", "body": body})

    async def _refuse_body(self) -> None:
        limit = f"A request body may have {self.middleware.max_body} bytes at most."
        # The rest of the body is still on its way: the connection can't be used again.
        await self._answer(413, [(b"connection", b"close")], detail=limit)

    def _finish(self) -> None:
        """End the request, once: when its answer is complete or nobody waits for it any more."""
        in_flight = self.middleware.traffic.in_flight
        if self in in_flight:
            in_flight.discard(self)
            self.middleware.end(self, time.perf_counter() - self.began)

    def account(self, duration: float) -> None:
        """Count and log the request."""
        middleware, scope = self.middleware, self.scope
        status = self.status or CLIENT_CLOSED_REQUEST
        route = self.route
        middleware.traffic.note(duration, self, status)
        middleware.observe(scope["method"], route or "", status, duration)
        request_lines.add(
            {
                "method": scope["method"],
                "path": scope["raw_path"].decode("ascii", "backslashreplace"),
                "route": route,
                "status": status,
                "duration_ms": round(duration * 1000, 3),
                "client": scope["client"][0] if scope["client"] else None,
            }
        )
