"""The HTTP server, and how it stops. The only module that knows which server it is: uvicorn's protocol on uvloop.

uvicorn parses and writes HTTP. Listening, signals and the drain are done here, since uvicorn's own server closes
its listener the moment SIGTERM arrives, while the load balancer still sends requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import fcntl
import gc
import os
import resource
import select
import signal
import socket
import struct
import termios
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httptools
import msgspec
import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from .logs import get_logger, output

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
# Seconds between two looks at the connections.
ROUND = 1.0
# Seconds for which a client may bring or take less than this rate, while it is the one that is waited for.
SLOW_LIMIT = 20.0
SLOW_RATE = 1000
# Bytes of a request line with headers, and of anything else that is no body.
HEAD_LIMIT = 65536
# Bytes that are parsed at a time; bounds how much of a flood of requests is taken in at once.
PIECE = 8192
# Clients above the limit of connections that are told so at one time, and seconds that they have to hear it.
REFUSALS = 64
REFUSAL_GRACE = 1.0
# Descriptors that clients leave to the service itself: its files, its own connections, the admin port.
RESERVED = 128
HEADER_GRACE = 0.5
CUT_GRACE = 1.0
CLOSE_GRACE = 1.0
HURRIED_FLUSH = 0.2
BACKLOG = 2048
JOIN_LIMIT = 65536
LINGER = 5.0

log = get_logger("server")

# A part of uvicorn asks the package for this, which would then import the rest as well: see later.
vars(uvicorn).setdefault("Config", Config)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        OSError: The address can't be had: in use, unknown, not allowed.
    """
    # A str would import the codec for international names, whatever is in it.
    name = host.encode() if host.isascii() else host
    family, kind, protocol, _, address = socket.getaddrinfo(
        name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
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


def connections_limit(wished: int) -> int:
    """Return how many clients may be connected at once: *wished*, or what the descriptors of this process allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wished if soft == resource.RLIM_INFINITY else max(1, min(wished, soft - RESERVED - REFUSALS))


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
        self.max_body = settings.http.max_body
        self.max_connections = connections_limit(settings.http.max_connections)
        self.refusing: set[Protocol] = set()
        self._turned_away = 0

    async def run(self) -> int:
        """Start up, serve until a signal asks to stop, drain; return the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not loop.add_signal_handler: a second signal must work while the event loop is stuck.
            signal.signal(number, self._handle_exit)
        # Nor for this: the loop would take its handler away when it closes, and a late SIGHUP end the process.
        signal.signal(signal.SIGHUP, lambda *_: self._tell(self._on_hangup))
        lifespan = Lifespan(self._middleware.app)
        config = Config(
            self._middleware,
            interface="asgi3",
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
        config.load()
        self.context = contextvars.copy_context()
        self._protocol = lambda: Protocol(config, self._state, lifespan.state, self)
        self._listener = await self._loop.create_server(self._protocol, sock=self._sock)
        housekeeping = asyncio.create_task(self._keep_house())
        cut = 0
        try:
            started = await self._started(lifespan)
            self._health.state = "ready" if started else "draining"
            self._middleware.started.set()
            if started:
                # What start-up made stays: the collector need not go through it again and again.
                gc.freeze()
                log.info("ready", after_s=round(self._health.uptime, 3))
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
            output().flush(HURRIED_FLUSH)
            os._exit(128 + number)
        self._tell(self._begin_to_stop)

    def _tell(self, what: Callable[[], None]) -> None:
        """Call *what* in the event loop, while there is one."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what)

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

    def refused(self, reason: str, status: int, client: str | None) -> None:
        """Count and log what was not taken from a client."""
        self._middleware.metrics.refused.labels(reason).inc()
        if reason == "connections":
            # Told once a round: a flood of clients must not become one of lines.
            self._turned_away += 1
        else:
            log.warning("refused", reason=reason, status=status, client=client)

    async def _keep_house(self) -> None:
        """Once a second: the Date header, and an end to clients that are too slow."""
        last = time.monotonic()
        while True:
            self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            now = time.monotonic()
            self._close_headerless(HEADER_TIMEOUT)
            for connection in self._connections():
                connection.check_pace(now - last)
                if connection.idle_since is not None and now - connection.idle_since >= KEEP_ALIVE:
                    connection.transport.close()
            last = now
            if self._turned_away:
                log.warning("connections refused", refused=self._turned_away, limit=self.max_connections)
                self._turned_away = 0
            await asyncio.sleep(ROUND)

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
    """uvicorn's protocol, with limits to what a client may bring and to the time that it may take."""

    flow: Flow
    _writes: JoinedWrites
    _header_began: float | None = None
    # When the last answer was complete, if nothing came since.
    idle_since: float | None = None
    # Whether the body of a request is still to come, all or in part; how much of it came.
    _brings_body = False
    _body = 0
    # What came since the last message began or the last piece of a body.
    _no_body = 0
    # Seconds that the client was too slow of late, and what it had brought or taken then.
    _slow = 0.0
    _brought = 0
    _taken = 0

    def __init__(self, config: Config, state: ServerState, app_state: dict[str, Any], server: Server) -> None:
        super().__init__(config, state, app_state)
        self._server = server
        # What was read and not parsed yet.
        self._unparsed = bytearray()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # A request that was sent before the last one was answered would otherwise run in that one's context.
        task = self.loop.create_task(cycle.run_asgi(app), context=self._server.context.copy())
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._header_began = time.monotonic()
        self._writes = JoinedWrites(transport, self.loop, lambda: self._brings_body)
        super().connection_made(self._writes)
        self.flow = Flow(self._writes, self.is_crowded)
        if len(self.connections) > self._server.max_connections:
            self._turn_away()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.refusing.discard(self)
        super().connection_lost(exc)
        # Without circles of references it goes now, not when garbage is looked for, which is seldom. bool() is no.
        self._writes.unread = self.flow.is_crowded = bool

    def _turn_away(self) -> None:
        """Tell a client that there are too many, if there are not too many of those either."""
        self.connections.discard(self)
        if len(self._server.refusing) >= REFUSALS:
            self._server.refused("connections", 0, None)
            self._writes.abort()
            return
        self._server.refusing.add(self)
        self._refuse("connections", 503, "The service has as many connections as it may have.")

    def is_crowded(self) -> bool:
        """Whether there are requests that wait for the answers of earlier ones on this connection."""
        return bool(self.pipeline or self._unparsed)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self.idle_since = None
        if self._unparsed or len(data) > PIECE:
            self._unparsed += data
            self._parse_more()
        else:
            self._parse(data)

    def _parse_more(self) -> None:
        """Parse what was read, as far as no request has to wait for another one's answer."""
        while self._unparsed and not self.pipeline and not self.transport.is_closing():
            size = self._piece()
            piece = bytes(self._unparsed[:size])
            del self._unparsed[:size]
            self._parse(piece)
        if self.is_crowded():
            self.flow.pause_reading()
        elif not self._is_busy() or len(self.cycle.body) <= HIGH_WATER_LIMIT:
            # Else uvicorn has paused it, until the service takes what is there.
            self.flow.resume_reading()

    def _piece(self) -> int:
        """Return how many bytes to parse at a time: more of what is known to be a body, which uvicorn joins."""
        if not self._brings_body:
            return PIECE
        length = next((int(value) for name, value in self.scope["headers"] if name == b"content-length"), 0)
        return max(PIECE, min(HEAD_LIMIT, length - self._body))

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            self._take_as_plain(data[stop.args[0] :])
        except httptools.HttpParserError:
            self._refuse("malformed", 400, "This is not HTTP/1.1.")
        else:
            if self._header_began is not None or self._brings_body:
                self._no_body += len(data)
                if self._no_body > HEAD_LIMIT:
                    self._refuse("head", 431, f"A request may have {HEAD_LIMIT} bytes besides its body at most.")
            elif self.cycle is None or self.cycle.response_complete:
                # Line ends between requests; they took the connection's time limit away.
                self._header_began = time.monotonic()

    def _take_as_plain(self, rest: bytes) -> None:
        """Parse the request again without its Upgrade: the parser takes what follows that for another protocol."""
        if self.parser.get_method() == b"CONNECT":
            self._refuse("malformed", 400, "This is no proxy.")
            return
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(b"\r\n".join([*lines, b"", rest]))

    def on_message_begin(self) -> None:
        self._header_began = time.monotonic()
        self._no_body = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_headers_complete()
        self._header_began = None
        self._brings_body = True
        self._body = 0
        # Fields after a chunked body would else join the headers, unseen by whoever checked those.
        self.headers = NOWHERE

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        self._no_body = 0
        if self._body > self._server.max_body and self.cycle.response_complete:
            # Nobody will read it, and the answer has been sent.
            self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._brings_body = False
        if self.cycle.response_complete:
            self.idle_since = time.monotonic()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
        else:
            # As uvicorn has it, but without a timer for each answer: the server looks for idle connections itself.
            self.server_state.total_requests += 1
            self.flow.resume_reading()
            self.idle_since = time.monotonic()
        if self._unparsed:
            self._parse_more()

    def _refuse(self, reason: str, status: int, detail: str) -> None:
        """Answer what can't be taken, unless another answer would be hit, and end the connection."""
        cycle = self.cycle
        busy = self._is_busy()
        # When the body of a request is at fault, that one's answer may be this one.
        if (self._brings_body and (not busy or cycle.response_started or self.pipeline)) or (
            busy and not self._brings_body
        ):
            status = 0
        self._server.refused(reason, status, self.client[0] if self.client else None)
        if status == 0:
            if self._brings_body:
                self.transport.close()
            else:
                # The requests before it get their answers.
                self.parser = DEAF  # type: ignore[assignment]
                self._header_began = None
                self._unparsed.clear()
                cycle.keep_alive = False
            return
        if busy:
            cycle.disconnected = True
            cycle.message_event.set()
        body = msgspec.json.encode({"status": status, "title": HTTPStatus(status).phrase, "detail": detail})
        lines = [
            b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()),
            *(b"%s: %s" % header for header in self.server_state.default_headers),
            b"content-type: application/problem+json",
            b"content-length: %d" % len(body),
            b"connection: close",
            *([b"retry-after: 1"] if status == 503 else []),
        ]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        self._writes.linger(REFUSAL_GRACE if reason == "connections" else LINGER)

    def check_pace(self, passed: float) -> None:
        """End the connection if the client has been too slow; *passed* is the seconds since the last check."""
        left = self._writes.left()
        brings = self._brings_body and not (
            self.flow.read_paused or self.cycle.waiting_for_100_continue or self.transport.is_closing()
        )
        if not left and not brings:
            self._slow = 0.0
            return
        brought, taken = self._body, self._writes.taken()
        moved = abs(brought - self._brought) + taken - self._taken
        self._slow = max(0.0, self._slow + passed - moved / SLOW_RATE)
        self._brought, self._taken = brought, taken
        if self._slow <= SLOW_LIMIT:
            return
        if left:
            self._server.refused("slow", 0, self.client[0] if self.client else None)
            self._writes.abort()
        else:
            self._refuse("slow", 408, "The body of the request did not come in time.")

    def waits_for_headers(self, limit: float) -> bool:
        """Whether the headers of a request have been on their way for *limit* seconds or more."""
        if self._header_began is None:
            return False
        if self._is_busy():
            # They wait for an earlier request's answer, not the other way round.
            self._header_began = time.monotonic()
            return False
        return time.monotonic() - self._header_began >= limit

    def shutdown(self) -> None:
        """End the connection after the request that it may be about to bring."""
        if self._header_began is None or self._is_busy():
            super().shutdown()

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete


class _Nowhere(list[tuple[bytes, bytes]]):
    """A list that stays empty."""

    def append(self, _: object) -> None: ...


class _Deaf:
    """A parser that takes nothing in."""

    def feed_data(self, _: object) -> None: ...


NOWHERE = _Nowhere()
DEAF = _Deaf()


class Flow(FlowControl):
    """uvicorn's flow control, but nothing more is read while requests wait that came on the same connection."""

    def __init__(self, transport: asyncio.Transport, is_crowded: Callable[[], bool]) -> None:
        super().__init__(transport)
        self.is_crowded = is_crowded

    def resume_reading(self) -> None:
        if not self.is_crowded():
            super().resume_reading()


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
        self._written = 0
        self.unread = unread
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
        if self.unread() and not self.is_closing():
            self.linger(LINGER)
        elif not self._lingers:
            self._transport.close()

    def linger(self, seconds: float) -> None:
        """Close when the client has, or after *seconds*: what still comes would reset a connection that is closed
        at once, and the client not see the answer.
        """
        self._flush()
        self._lingers = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(seconds, self._transport.close)

    def abort(self) -> None:
        """Close at once, whatever was not sent yet."""
        self._parts.clear()
        self._transport.abort()

    def left(self) -> int:
        """Return how many bytes wait for room in the kernel's buffer."""
        return self._transport.get_write_buffer_size()

    def taken(self) -> int:
        """Return how many bytes the client's side has taken.

        Not how many the kernel has: it asks for more in steps of a third of its buffer, which may be megabytes.
        """
        queued = 0
        with contextlib.suppress(OSError):
            answer = fcntl.ioctl(self.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            [queued] = struct.unpack("i", answer)
        return self._written - self.left() - queued

    def _flush(self) -> None:
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
            self._written += len(data)
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
