"""uvicorn's server, with a drain: after a stop signal it serves on until the load balancer has noticed."""

import asyncio
import errno
import functools
import resource
import socket
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, cast

import uvicorn

from ..config import Settings
from ..lifecycle import State
from ..logs import get_logger
from .connection import TOO_MANY, Connection, HttpProtocol
from .middleware import Middleware

# Connections that the kernel keeps for the service while it is busy.
BACKLOG = 2048
# Descriptors that clients leave to the service itself: its files, its own connections, the admin port.
RESERVED_DESCRIPTORS = 128
# Seconds that the rest of a header block, which has begun to arrive when the listener closes, may take.
ARRIVING_TIMEOUT_S = 0.5
# Seconds that requests may take to end once they are cancelled, and the application to close.
CANCEL_TIMEOUT_S = 1

log = get_logger("server")


def listen(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket for each address of *host*; a port of 0 is the same free one for all.

    Raises:
        OSError: An address can't be had: in use, unknown, not allowed.
    """
    sockets: list[socket.socket] = []
    free = port
    try:
        # The wildcard of IPv6 gets a second socket: on one socket for both, IPv4 clients are called ::ffff:192.0.2.1.
        for name in ("::", "0.0.0.0") if host == "::" else (host,):
            for family, _, _, _, address in socket.getaddrinfo(
                name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                at = (address[0], free, *address[2:])
                sockets.append(socket.create_server(at, family=family, backlog=BACKLOG))
                free = sockets[-1].getsockname()[1]
    except OSError as error:
        for sock in sockets:
            sock.close()
        if port == 0 and sockets and error.errno == errno.EADDRINUSE:
            # What is free for one address is not always free for the other.
            return listen(host, 0)
        raise
    return sockets


def connection_limit(wanted: int) -> int:
    """Return how many clients may be connected at once: *wanted*, or what this process's descriptors allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - RESERVED_DESCRIPTORS))


class Server(uvicorn.Server):
    """Serves *app* from start-up to exit; what stops it is the lifecycle."""

    def __init__(self, app: Middleware, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=cast("Any", self._make_connection),
                lifespan="on",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=True,
                forwarded_allow_ips=settings.http.trusted_proxies,
                timeout_keep_alive=settings.http.keep_alive,
                timeout_graceful_shutdown=CANCEL_TIMEOUT_S,
                reset_contextvars=True,
                # Otherwise uvicorn reads the platform's WEB_CONCURRENCY.
                workers=1,
            )
        )
        self._lifecycle, self._requests, self._metrics = app.lifecycle, app.requests, app.metrics
        self._limits = app.limits
        self._metrics.connections.set_function(lambda: len(self.server_state.connections))
        self._most_connections = connection_limit(settings.http.max_connections)
        self._turned_away = 0
        self._lifecycle.observe(self._on_state)
        self._lifecycle.keep_from_children(
            lambda: [connection.transport.get_extra_info("socket") for connection in self.server_state.connections]
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Leave signals to the lifecycle."""
        self._lifecycle.handle_exit(sig, frame)

    def _on_state(self, state: State) -> None:
        if state is State.DRAINING:
            asyncio.get_running_loop().call_later(self._lifecycle.delay_s, setattr, self, "should_exit", True)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept connections."""
        try:
            await super().startup(sockets)
        except SystemExit:
            # The application has said that it can't start. The end of its lifespan says why, and cancels this.
            await asyncio.Event().wait()
        self._housekeeping = asyncio.create_task(self._keep_house())
        self._lifecycle.advance(State.READY)

    def _make_connection(self, *, app_state: dict[str, Any], **_: Any) -> Connection:
        http = HttpProtocol(self.config, self.server_state, app_state, limits=self._limits, on_refused=self._on_refused)
        if len(self.server_state.connections) >= self._most_connections:
            http.app = cast("Any", TOO_MANY)
            self._metrics.count_refusal("connections")
            self._turned_away += 1
        return Connection(http, self._requests.client_left)

    def _on_refused(self, reason: str, status: int, client: str | None) -> None:
        self._metrics.count_refusal(reason)
        log.warning("request refused", reason=reason, status=status, client=client)

    async def _keep_house(self) -> None:
        """Once a second, close connections whose header block is overdue, and say how many clients were too many."""
        while True:
            overdue = time.monotonic() - self._limits.head_timeout_s
            for connection in list(self.server_state.connections):
                if not isinstance(connection, HttpProtocol) or connection.is_busy:
                    continue
                if (connection.head_began or overdue) < overdue:
                    if connection.framing_bytes:
                        self._metrics.count_refusal("slow")
                    connection.transport.close()
            if self._turned_away:
                # One line a second: a flood of clients must not become a flood of lines.
                log.warning("connections refused", count=self._turned_away, limit=self._most_connections)
                self._turned_away = 0
            await asyncio.sleep(1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners, wait for requests until the deadline, cut off the rest, and end the application."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._lifecycle.timeout_s
        await self._stop_listening(sockets or [])
        # The event loop reads once more, so that what has already arrived counts as a request.
        await asyncio.sleep(0.001)
        self._close_idle(spare_arriving=True)
        loop.call_later(ARRIVING_TIMEOUT_S, self._close_idle)
        # uvicorn has no event for it.
        while (self._pending() or self.server_state.connections) and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        self._housekeeping.cancel()
        pending, connections = len(self._pending()), len(self.server_state.connections)
        if pending or connections:
            requests = min(len(self._requests), pending)
            counts = {"requests": requests, "background": pending - requests, "connections": connections}
            log.error("requests cut off", **counts, after_s=self._lifecycle.timeout_s)
            self._lifecycle.exit_with(1)
        for task in list(self.server_state.tasks):
            task.cancel()
        try:
            async with asyncio.timeout_at(max(deadline, loop.time()) + CANCEL_TIMEOUT_S + 0.3):
                await super().shutdown(sockets)
        except TimeoutError:
            log.error("shutdown timed out", hint="the application's lifespan did not end in time")
            self._lifecycle.exit_with(1)

    def _pending(self) -> set[asyncio.Task[None]]:
        """Return the tasks that somebody waits for: not those of requests whose client has left."""
        return self.server_state.tasks - self._requests.abandoned

    async def _stop_listening(self, sockets: Sequence[socket.socket]) -> None:
        """Close the listeners, but serve whom the kernel has already let in: they would be reset otherwise."""
        accepted: list[socket.socket] = []
        for sock in sockets:
            try:
                while True:
                    accepted.append(sock.accept()[0])
            except OSError:
                # Shut down, not only closed: a forked child may hold it too.
                sock.shutdown(socket.SHUT_RDWR)
        for server in self.servers:
            server.close()
        make = functools.partial(self._make_connection, app_state=self.lifespan.state)
        for client in accepted:
            await asyncio.get_running_loop().connect_accepted_socket(make, client)

    def _close_idle(self, spare_arriving: bool = False) -> None:
        """Close connections between requests; *spare_arriving*: but those that a request may be on its way on."""
        for connection in list(self.server_state.connections):
            if not (spare_arriving and isinstance(connection, HttpProtocol) and connection.head_began is not None):
                connection.shutdown()
