"""The requests in flight, the slowest of late, and the template of the route that took a request."""

import asyncio
import contextvars
import functools
import ipaddress
import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from starlette.routing import BaseRoute, Mount, WebSocketRoute
from starlette.types import Scope

from ..lines import timestamp
from ..stacks import await_chain, where

# The request at hand, for what passes its trace on.
SCOPE: contextvars.ContextVar[Scope] = contextvars.ContextVar("scope")


class Exchange(Protocol):
    """A request on its way, as far as others may look at it."""

    task: asyncio.Task[Any] | None
    began: float

    def as_dict(self) -> dict[str, object]: ...
    def finish(self) -> None: ...


class RequestsInFlight:
    """The requests in flight, and the twenty slowest of the last five to ten minutes."""

    SLOWEST_KEPT = 20
    PERIOD_S = 300.0

    def __init__(self) -> None:
        # By the identity of the scope that the server gave to each.
        self._requests: dict[int, Exchange] = {}
        # Tasks of requests whose client has left: nobody waits for them.
        self.abandoned: set[asyncio.Task[Any]] = set()
        self._period_began = time.monotonic()
        # With their durations in seconds, slowest first; of this period and of the one before it.
        self._slowest: list[tuple[float, dict[str, object]]] = []
        self._before: list[tuple[float, dict[str, object]]] = []

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, scope: Scope, exchange: Exchange) -> None:
        """Take in a request that begins."""
        self._requests[id(scope)] = exchange

    def remove(self, scope: Scope, exchange: Exchange, status: int, duration_s: float) -> None:
        """Let go of a request that has ended, and remember it if it is one of the slowest."""
        del self._requests[id(scope)]
        if (now := time.monotonic()) - self._period_began > self.PERIOD_S:
            self._period_began, self._before, self._slowest = now, self._slowest, []
        if len(self._slowest) < self.SLOWEST_KEPT or duration_s > self._slowest[-1][0]:
            ended, took_ms = timestamp(time.time()), round(duration_s * 1000, 3)
            what = {"ended": ended, "duration_ms": took_ms, "status": status, **exchange.as_dict()}
            self._slowest = self._most([*self._slowest, (duration_s, what)])

    def client_left(self, scope: Scope) -> None:
        """Abandon the request with this *scope*: nobody waits for its answer any more."""
        exchange = self._requests.get(id(scope))
        if exchange is not None and exchange.task is not None:
            exchange.finish()
            self.abandoned.add(exchange.task)
            exchange.task.add_done_callback(self.abandoned.discard)

    def slowest(self) -> list[dict[str, object]]:
        """Return the slowest requests, slowest first."""
        return [what for _, what in self._most([*self._slowest, *self._before])]

    def _most(self, requests: list[tuple[float, dict[str, object]]]) -> list[tuple[float, dict[str, object]]]:
        return sorted(requests, key=lambda request: request[0], reverse=True)[: self.SLOWEST_KEPT]

    def waiting(self) -> list[dict[str, object]]:
        """Return the requests in flight, oldest first, each with the places it waits at."""
        rows, now = [], time.perf_counter()
        for exchange in sorted(self._requests.copy().values(), key=lambda exchange: exchange.began):
            chain = await_chain(exchange.task) if exchange.task is not None else ()
            age_ms = round((now - exchange.began) * 1000, 3)
            rows.append({"age_ms": age_ms, **exchange.as_dict(), "where": where(chain), "awaits": chain})
        return rows

    def running(self, loop: asyncio.AbstractEventLoop | None) -> dict[str, object] | None:
        """Return the request whose task *loop* runs at this moment."""
        task = asyncio.current_task(loop) if loop is not None else None
        found = (exchange.as_dict() for exchange in self._requests.copy().values() if exchange.task is task)
        return next(found, None)


def route_template(scope: Scope, routes: Iterable[BaseRoute]) -> str | None:
    """Return the template of the route that took a request, with those of the mounts above it; None: no route did.

    It has few values whatever clients send, as OpenTelemetry wants it of ``http.route``.
    """
    above = scope.get("app_root_path", "")
    if (route := scope.get("route")) is None:
        # FastAPI names only routes of its own.
        endpoint = scope.get("endpoint")
        return None if endpoint is None else _template(routes, scope["path"].removeprefix(above), endpoint)
    # FastAPI's included routers keep their prefix in a context of their own.
    included = scope.get("fastapi", {}).get("effective_route_context", route)
    path = "" if isinstance(route, Mount) else str(getattr(included, "path_format", None) or getattr(route, "path", ""))
    mounted = scope.get("root_path", "").removeprefix(above)
    return _template(routes, f"{mounted}/") + path if mounted else path


def _template(routes: Iterable[BaseRoute], path: str, endpoint: object = None) -> str:
    """Return the templates of the mounts that take *path*, and that of the route with *endpoint* below them."""
    for route in _included(routes):
        regex = getattr(route, "path_regex", None)
        if regex is None or (match := regex.match(path)) is None:
            continue
        if isinstance(route, Mount):
            return route.path + _template(route.routes, f"/{match['path']}", endpoint)
        if endpoint is not None and route.endpoint is endpoint:
            return str(route.path_format)
    return ""


def _included(routes: Iterable[BaseRoute]) -> Iterator[Any]:
    """Yield *routes*, but for each router that FastAPI has included the routes of that."""
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            yield from (context.starlette_route or context.original_route for context in contexts())


def websocket_paths(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[str]:
    """Yield the templates of all routes that are WebSockets."""
    for route in _included(routes):
        path = prefix + getattr(route, "path", "")
        if isinstance(route, WebSocketRoute):
            yield path
        yield from websocket_paths(getattr(route, "routes", None) or [], path)


@functools.lru_cache(maxsize=1024)
def spell(client: str) -> str | None:
    """Return an address in the one spelling that everybody looks for (RFC 5952; IPv4 as IPv4), None if it is none."""
    address = parse_address(client)
    return str(address) if address is not None else None


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return *text* as an address, None if it is none. A socket for both families shows IPv4 clients as mapped ones."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
