"""The HTTP server, and how it stops. The only module that knows which server it is: uvicorn's protocol on uvloop.

uvicorn parses and writes HTTP. Listening, signals and the drain are done here, since uvicorn's own server closes
its listener the moment SIGTERM arrives, while the load balancer still sends requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from .logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import FrameType

    from .config import Settings
    from .health import Health
    from .middleware import App, Message, Middleware

# Longer than load balancers keep idle connections (60 s is usual), so that it is never us who closes one
# while a request is on its way to it.
KEEP_ALIVE = 75
HEADER_TIMEOUT = 20.0
HEADER_GRACE = 0.5
CUT_GRACE = 1.0
CLOSE_GRACE = 1.0
BACKLOG = 2048
JOIN_LIMIT = 65536
LINGER = 5.0

log = get_logger("server")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        OSError: The address can't be had: in use, unknown, not allowed.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


class Server:
    """Serves *middleware* on *sock* from start-up to exit.

    Args:
        on_hangup: Called in the event loop on SIGHUP.
    """

    def __init__(
        self,
        settings: Settings,
        middleware: Middleware,
        health: Health,
        sock: socket.socket,
        on_hangup: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._middleware = middleware
        self._health = health
        self._sock = sock
        self._on_hangup = on_hangup
        self._state = ServerState()
        self._signals: list[int] = []
        self._stop = asyncio.Event()
        self._deadline = 0.0
        self._loop = asyncio.get_running_loop()

    async def run(self) -> int:
        """Start up, serve until a signal asks to stop, drain; return the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not loop.add_signal_handler: a second signal must work while the event loop is stuck.
            signal.signal(number, self._handle_exit)
        self._loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        lifespan = Lifespan(self._middleware.app)
        config = uvicorn.Config(
            self._middleware,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
        )
        config.load()
        self._protocol = lambda: Protocol(config, self._state, lifespan.state)
        self._listener = await self._loop.create_server(self._protocol, sock=self._sock)
        housekeeping = asyncio.create_task(self._keep_house())
        cut = 0
        try:
            started = await self._started(lifespan)
            self._health.state = "ready" if started else "draining"
            self._middleware.started.set()
            if started:
                log.info("ready", after_s=round(time.time() - self._health.started, 3))
                await self._stop.wait()
                cut = await self._drain()
            else:
                # Who waited for the start-up is told that it doesn't come.
                self._deadline = self._loop.time() + CUT_GRACE
                self._end_connections()
                await self._quiet()
                if not self._signals:
                    return 1
        finally:
            self._health.state = "draining"
            self._listener.close()
            # At least a second, at most what the drain has left: an orchestrator's patience is for the whole stop.
            stopped = await lifespan.stop(max(CLOSE_GRACE, self._deadline - self._loop.time()))
            housekeeping.cancel()
        return 0 if stopped and not cut else 1

    def _handle_exit(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
        if len(self._signals) > 1:
            os._exit(128 + number)
        self._loop.call_soon_threadsafe(self._begin_to_stop)

    def _begin_to_stop(self) -> None:
        self._health.state = "draining"
        self._stop.set()

    async def _started(self, lifespan: Lifespan) -> bool:
        """Wait for the service's start-up, or for a signal that makes it pointless."""
        start = asyncio.create_task(lifespan.start())
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not start.done():
            start.cancel()
            return False
        return start.result() and not self._signals

    async def _keep_house(self) -> None:
        """Once a second: the Date header, and an end to connections whose request headers don't come."""
        while True:
            self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            self._close_headerless(HEADER_TIMEOUT)
            await asyncio.sleep(1)

    def _connections(self) -> list[Protocol]:
        return [connection for connection in self._state.connections if isinstance(connection, Protocol)]

    def _close_headerless(self, limit: float) -> None:
        for connection in self._connections():
            if connection.waits_for_headers(limit):
                connection.transport.close()

    async def _drain(self) -> int:
        """Let the load balancer go, then the clients; return how many requests were cut off."""
        delay, timeout = self._settings.drain.delay, self._settings.drain.timeout
        if self._signals[0] == signal.SIGINT:
            delay = 0
        log.info("draining", signal=signal.Signals(self._signals[0]).name, delay_s=delay, timeout_s=timeout)
        await asyncio.sleep(delay)
        self._deadline = self._loop.time() + timeout
        await self._stop_listening()
        self._end_connections(self._arriving())
        self._loop.call_later(HEADER_GRACE, self._end_connections)
        if await self._quiet():
            return 0
        cut = len(self._middleware.traffic.in_flight)
        log.error("requests cut off", requests=cut, after_s=timeout)
        for task in list(self._state.tasks):
            task.cancel()
        self._deadline += CUT_GRACE
        await self._quiet()
        return cut

    async def _stop_listening(self) -> None:
        """Close the listener; who was let in by the kernel but not yet by us would be reset, so they come first."""
        waiting = []
        with contextlib.suppress(OSError):
            while True:
                waiting.append(self._sock.accept()[0])
        self._listener.close()
        for sock in waiting:
            await self._loop.connect_accepted_socket(self._protocol, sock)

    def _arriving(self) -> set[Protocol]:
        """Return the connections that bring something which the event loop has not read yet."""
        found = {item.transport.get_extra_info("socket").fileno(): item for item in self._connections()}
        found.pop(-1, None)
        poll = select.poll()
        for number in found:
            poll.register(number, select.POLLIN)
        return {found[number] for number, _ in poll.poll(0)}

    def _end_connections(self, spared: Collection[Protocol] | None = None) -> None:
        """End connections between requests; without *spared*, those too whose request has only begun to come."""
        if spared is None:
            self._close_headerless(0)
        for connection in self._connections():
            if connection not in (spared or ()):
                connection.shutdown()

    async def _quiet(self) -> bool:
        """Wait until every request is answered and every connection closed; False at the deadline."""
        while self._state.tasks or self._state.connections:
            if self._loop.time() >= self._deadline:
                return False
            await asyncio.sleep(0.01)
        return True


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with one write an answer and a time limit for the headers of a request."""

    _header_began: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._header_began = time.monotonic()
        super().connection_made(JoinedWrites(transport, self.loop, self._brings_body))

    def _brings_body(self) -> bool:
        return self.cycle is not None and self.cycle.more_body

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)

    def on_message_begin(self) -> None:
        self._header_began = time.monotonic()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._header_began = None
        super().on_headers_complete()

    def waits_for_headers(self, limit: float) -> bool:
        """Whether the headers of a request have been on their way for *limit* seconds or more."""
        return self._header_began is not None and time.monotonic() - self._header_began >= limit

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: clients offer h2c and the like all the time, and get a plain answer."""

    def shutdown(self) -> None:
        """End the connection after the request that it may be about to bring."""
        if self._header_began is None:
            super().shutdown()


class JoinedWrites(asyncio.Transport):
    """A transport that makes one system call of what is written in one iteration of the event loop.

    uvicorn writes an answer's head and its body apart; a system call is the dearest part of a small answer.

    Args:
        unread: Whether the client still sends what nobody will read.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, unread: Callable[[], bool]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = 0
        self._unread = unread
        self._lingers = False
        for name in ("get_extra_info", "pause_reading", "resume_reading", "set_protocol"):
            setattr(self, name, getattr(transport, name))

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)
        # Past this, only the transport's own back pressure keeps a fast writer from filling the memory.
        if self._size >= JOIN_LIMIT:
            self._flush()

    def is_closing(self) -> bool:
        return self._lingers or self._transport.is_closing()

    def close(self) -> None:
        self._flush()
        if self._unread() and not self.is_closing():
            # Closed now, the connection would be reset by what still comes, and the client not see the answer.
            self._lingers = True
            self._transport.write_eof()
            self._transport.resume_reading()
            self._loop.call_later(LINGER, self._transport.close)
        elif not self._lingers:
            self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
            self._transport.write(data)


class Lifespan:
    """The service's own start-up and end, by ASGI's lifespan protocol."""

    def __init__(self, app: App) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._started = False
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()

    async def start(self) -> bool:
        """Run the start-up; False, with a line in the log, when it failed."""
        self._task = asyncio.create_task(self._run())
        self._started = await self._exchange("startup")
        return self._started

    async def stop(self, limit: float) -> bool:
        """Give the service *limit* seconds to close what it opened; False when it failed."""
        if self._task is None or self._task.done():
            return True
        try:
            async with asyncio.timeout(limit):
                if not self._started:
                    self._task.cancel()
                    await asyncio.wait({self._task})
                    return True
                return await self._exchange("shutdown")
        except TimeoutError:
            log.error("shutdown failed", error=f"not done after {limit:g} s")
            return False

    async def _exchange(self, phase: str) -> bool:
        await self._to_app.put({"type": f"lifespan.{phase}"})
        message = await self._from_app.get()
        if message["type"].endswith(".complete"):
            return True
        log.error(f"{phase} failed", error=message["message"])
        return False

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._to_app.get, self._from_app.put)
        except BaseException as error:
            await self._from_app.put({"type": "lifespan.failed", "message": repr(error)})
