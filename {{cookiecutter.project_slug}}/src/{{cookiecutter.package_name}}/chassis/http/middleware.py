"""What happens to every request before and after the service sees it: one pure ASGI middleware.

It is one object a request, since a layer for each concern would cost a small request half as much again.
"""

import asyncio
import contextlib
import random
import re
import time
from types import SimpleNamespace
from typing import Any

import attrs
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from ..errors import problem
from ..health import Health
from ..lifecycle import Lifecycle, State, run_lifespan
from ..logs import REQUEST, get_logger, log_request
from ..metrics import METHODS, Metrics
from ..service import EndSpan, Limits, Tracing
from .body import RequestBody
from .connection import let_begin_again
from .requests import SCOPE, RequestsInFlight, route_template, spell

REQUEST_ID = re.compile(rb"[A-Za-z0-9._~:=+/@-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header
TRACEPARENT = re.compile(rb"(?!ff|00.{54})[\da-f]{2}-(?!0{32})([\da-f]{32})-(?!0{16})([\da-f]{16})-[\da-f]{2}(?:-.*)?")
# RFC 9110, section 7.2: uri-host [ ":" port ]
HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(:[0-9]*)?")
BODILESS, FRAMING = frozenset({204, 304}), frozenset({b"content-length", b"transfer-encoding"})  # RFC 9110, 6.4.1
# Envoy takes an instance out of its rotation at the first answer that says so, not only at its next check.
DRAINING_HEADERS = [(b"connection", b"close"), (b"x-envoy-immediate-health-check-fail", b"true")]
READY_PATH = "/-/ready"
TURN_S = 0.01  # A stream that never waits lets others run this often. So it also learns that its client has left.

log = get_logger("http")
# An id has to be unique, not secret; asking the kernel for each costs a system call.
_ids = random.Random()  # noqa: S311


@attrs.frozen
class Middleware:
    """Wraps the service's ASGI *app*; *max_body* is the limit in bytes of routes that have none of their own."""

    app: ASGIApp
    lifecycle: Lifecycle
    health: Health
    metrics: Metrics
    requests: RequestsInFlight
    max_body: int
    limits: Limits
    tracing: Tracing | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(self.app, self.lifecycle, scope, receive, send)
        else:
            exchange = Exchange(self, scope, receive, send)
            await (exchange.handle() if scope["type"] == "http" else exchange.carry_websocket())


class Exchange:
    """One request and its response."""

    status, _is_finished, _paused_at = 0, False, 0.0
    _body: RequestBody | None = None
    _end_span: EndSpan | None = None
    _is_dropped = False  # Whether what the application sends is thrown away.

    def __init__(self, middleware: Middleware, scope: Scope, receive: Receive, send: Send) -> None:
        self.middleware = middleware
        self.scope = self._server_scope = scope
        self._receive, self._send = receive, send
        self._ids: dict[str, str] = {}
        self.task, self.began = asyncio.current_task(), time.perf_counter()
        middleware.requests.add(scope, self)

    @property
    def route(self) -> str | None:
        """The template of the route that took the request."""
        return route_template(self.scope, getattr(self.middleware.app, "routes", []))

    def as_dict(self) -> dict[str, object]:
        """Say which request it is, in what is fit for operators' eyes."""
        method, ids = self._server_scope.get("method", "GET"), self._ids
        known = method if method in METHODS else "_OTHER"
        return {"method": known, "route": self.route, **{key: ids.get(key) for key in ("request_id", "trace_id")}}

    async def handle(self) -> None:
        """Answer the request, whatever the service does."""
        try:
            if not self._identify():
                await self._answer(400, "A request needs one valid Host.", {"Connection": "close"})
            elif self.scope["path"] == READY_PATH:
                self.scope["route"] = SimpleNamespace(path=READY_PATH)
                report = await self.middleware.health.ready()
                out = PlainTextResponse(f"{report.word}\n", 200 if report.ready else 503, {"Cache-Control": "no-store"})
                await out(self.scope, self._receive, self.send)
            else:
                await self._call()
        finally:
            self.finish()

    async def carry_websocket(self) -> None:
        """Carry a WebSocket, which is one request from its handshake to its end."""

        async def send(message: Message) -> None:
            if not self.status:
                self.status = message.get("status", 101 if message["type"] == "websocket.accept" else 403)
            await self._send(message)

        self._identify()
        try:
            with contextlib.suppress(WebSocketDisconnect):
                await self.middleware.app(self.scope, self._receive, send)
        except Exception as error:
            self.status = self.status or 500
            log.error("unhandled exception", exc_info=error)
            if self.status == 101:
                with contextlib.suppress(RuntimeError):  # The application has closed it already.
                    await self._send({"type": "websocket.close", "code": 1011})
        finally:
            self.finish()

    def _identify(self) -> bool:
        """Take over or make the ids of the request, bind them to its log lines; return whether its Host is valid."""
        request_id, traceparent, hosts, length = b"", b"", [], -1
        for name, value in self.scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == b"x-request-id" and REQUEST_ID.fullmatch(value):
                request_id = value
            elif name == b"traceparent":
                traceparent += value  # Two of them are none.
            elif name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                length = 0
        request_id = request_id or b"%032x" % _ids.getrandbits(128)
        self._ids["request_id"] = request_id.decode()
        self._own_headers = [(b"x-request-id", request_id)]
        if traceparent and (match := TRACEPARENT.fullmatch(traceparent)):
            self._own_headers.append((b"traceparent", traceparent))
            self._ids["trace_id"], self._ids["span_id"] = match[1].decode(), match[2].decode()
        REQUEST.set(self._ids)
        SCOPE.set(self.scope)
        own = self.middleware
        self._end_span = own.tracing.begin(self.scope, self._ids) if own.tracing is not None else None
        if length >= 0:
            count = own.metrics.count_refusal
            self._body = RequestBody(self._receive, self.scope, length, own.max_body, own.limits, count)
            self._receive = self._body.receive
        # RFC 9112, section 3.2: exactly one, which HTTP/1.0 may leave out.
        hosts = hosts or [b""] * (self.scope["http_version"] == "1.0")
        return len(hosts) == 1 and HOST.fullmatch(hosts[0]) is not None

    async def _call(self) -> None:
        app = self.middleware.app
        try:
            if self.scope["method"] == "HEAD":
                self.scope = dict(self._server_scope)  # A router writes into it; the second try needs it as it was.
            await app(self.scope, self._receive, self.send)
            if self._is_dropped and not self.status:
                self._is_dropped, self.scope = False, {**self._server_scope, "method": "GET"}
                await app(self.scope, self._receive, self.send)
            if not self._is_finished:
                raise RuntimeError("the application returned without a complete answer")
        except HTTPException as error:
            # The limits of a body raise it; frameworks answer it themselves, a bare ASGI application does not.
            await self._answer(error.status_code, error.detail, error.headers)
        except ClientDisconnect:
            pass
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self.middleware.lifecycle.state is State.DRAINING:
                # The end of the drain cancels requests: tell the client while there is a connection.
                await self._answer(503, "The service is stopping.")
            else:
                log.error("unhandled exception", exc_info=error)
                await self._answer(500, None, request_id=self._ids["request_id"])

    async def _answer(self, status: int, detail: str | None, headers: Any = None, **more: object) -> None:
        """Answer with a problem, unless another answer has begun."""
        if not self.status:
            self._is_dropped = False
            let_begin_again(self._send)
            await problem(status, detail, headers, **more)(self.scope, self._receive, self.send)

    async def send(self, message: Message) -> None:
        """Pass on what the service answers, with the headers that every answer has."""
        begins = message["type"] == "http.response.start"
        if begins and message["status"] == 405 and self.scope["method"] == "HEAD":
            # RFC 9110, section 9.1: HEAD works wherever GET does. FastAPI leaves that to each route.
            self._is_dropped = True
        elif begins and message["status"] == 413 and self._body is not None and not self._body.is_refused:
            # A route's own limit, which Starlette answers in plain text.
            self._body.is_refused = True
            await self._answer(413, "The request body is larger than this route takes.", {"Connection": "close"})
            self._is_dropped = True
        if message.get("more_body") and time.perf_counter() - self._paused_at > TURN_S:
            await asyncio.sleep(0)
            self._paused_at = time.perf_counter()
        if self._is_dropped:
            return
        if begins:
            headers = [*message.get("headers", ()), *self._own_headers]
            if message["status"] in BODILESS:
                headers = [header for header in headers if header[0].lower() not in FRAMING]
            headers += DRAINING_HEADERS if self.middleware.lifecycle.state is State.DRAINING else ()
            message = {**message, "headers": headers}
        elif self._server_scope["method"] == "HEAD" or self.status in BODILESS:
            message, self._is_dropped = {"type": "http.response.body"}, True  # A stream ends here, with no body.
        ends = not begins and not message.get("more_body", False)
        if ends and self._body is not None and self._body.is_refused:
            await self._send({**message, "more_body": True})
            await self._body.drop()
            message = {"type": "http.response.body"}
        await self._send(message)
        if begins:
            self.status = message["status"]
        elif ends:
            self.finish()

    def finish(self) -> None:
        """Count and log the request, once: when its answer is complete or nobody waits for it any more."""
        if self._is_finished:
            return
        self._is_finished = True
        duration_s, middleware, scope = time.perf_counter() - self.began, self.middleware, self._server_scope
        method, status, route = scope.get("method", "GET"), self.status or 499, self.route  # 499: as nginx has it.
        middleware.requests.remove(scope, self, status, duration_s)
        exemplar = self._end_span(status, route) if self._end_span is not None else None
        if scope["type"] == "http":
            middleware.metrics.observe_request(method, route or "", status, duration_s, exemplar)
        fields = {
            "method": method,
            "path": scope["raw_path"].decode("ascii", "backslashreplace"),
            "route": route,
            "status": status,
            "duration_ms": round(duration_s * 1000, 3),
            "client": spell(scope["client"][0]) if scope["client"] else None,
        }
        log_request(fields, self._ids)
