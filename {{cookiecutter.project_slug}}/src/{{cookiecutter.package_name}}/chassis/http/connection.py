"""One client's connection: uvicorn's protocol, with limits to a request's header block and what RFC 9112 asks for.

An answer costs one system call: uvicorn writes header block and body apart, and each call costs more than the rest.

Only here is something used that uvicorn does not publish: four of its methods are overridden. docs/upstream.md of the
template says which change in uvicorn would make each of them unnecessary.
"""

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Self, cast

import httptools
from starlette.types import Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..errors import problem
from ..service import Limits

# Above this size, only the transport's own back pressure keeps a fast writer from filling the memory.
JOIN_LIMIT_BYTES = 64 * 1024

TOO_MANY = problem(
    503, "The service has as many connections as it may have.", {"Retry-After": "1", "Connection": "close"}
)


class AnyLength(int):
    """A length to uvicorn, which takes the bytes that it sends from it, and expects 0 at the end."""

    def __lt__(self, other: object) -> bool:
        return False

    def __sub__(self, other: object) -> Self:
        return self


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, but for trailers, an ``Upgrade`` to what nobody offers, and errors in plain text."""

    def __init__(self, *args: Any, limits: Limits, on_refused: Callable[[str, int, str | None], None]) -> None:
        super().__init__(*args)
        self.limits = limits
        self._on_refused = on_refused
        # When the awaited header block began, and when the last request was complete, by the monotonic clock.
        self.head_began: float | None = time.monotonic()
        self.message_ended = 0.0
        # Whether the body of the last request, or what belongs to it, is still on its way.
        self.is_receiving = False
        # Bytes since the last header block or the last part of a body.
        self.framing_bytes = 0
        self.is_refused = False

    @property
    def is_busy(self) -> bool:
        """Whether a request has not been answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, but a request with an ``Upgrade`` that nobody offers keeps its body (uvicorn #2722)."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            elif self.parser.get_method() == b"CONNECT":
                self.send_400_response("This is not a proxy.")
            else:
                # The parser takes what follows an Upgrade for another protocol: parse again without it.
                version = self.parser.get_http_version().encode()
                head = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
                head += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.data_received(b"\r\n".join([*head, b"", data[stop.args[0] :]]))
        except httptools.HttpParserError:
            if not self.is_refused:
                self.send_400_response("This is not HTTP/1.1.")

    def on_headers_complete(self) -> None:
        """As uvicorn's, but trailers don't join the headers, which others have checked by then."""
        if self.parser.should_upgrade():
            if self._should_upgrade():
                super().on_headers_complete()
            return
        is_old = self.parser.get_http_version() == "1.0"
        if is_old:
            # RFC 9110, section 10.1.1: a client of HTTP/1.0 does not know 100 (Continue).
            self.expect_100_continue = False
        most = self.limits.head_bytes
        if self.framing_bytes > most and sum(len(name) + len(value) for name, value in self.headers) > most:
            self.refuse_head()
            raise OverflowError
        super().on_headers_complete()
        if is_old:
            # Nor does it know chunks (RFC 9112, section 6.1): a response of unknown length ends with the connection.
            self.cycle.chunked_encoding, self.cycle.expected_content_length = False, AnyLength()
        self.headers = []
        self.is_receiving = True
        self.head_began = None
        self.framing_bytes = 0

    def on_message_complete(self) -> None:
        """As uvicorn's, but not for a request that is about to be parsed again."""
        if not self.parser.should_upgrade() or self._should_upgrade():
            self.message_ended, self.is_receiving = time.monotonic(), False
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, as problem+json."""
        self.refuse("malformed", 400, msg)

    def refuse_head(self) -> None:
        """Refuse a header block, or anything else around a body, that is too long."""
        self.refuse("head", 431, f"A request may have {self.limits.head_bytes} bytes besides its body.")

    def refuse(self, reason: str, status: int, detail: str) -> None:
        """Answer what can't be accepted and close, but never in the middle of another answer."""
        self.is_refused = True
        self._on_refused(reason, status, self.client[0] if self.client else None)
        if self.is_busy and not self.cycle.more_body:
            # The fault is behind a whole request, which still gets its answer.
            self.cycle.keep_alive = False
            self.transport.pause_reading()
        elif self.is_receiving and self.cycle.response_started:
            self.transport.close()
        else:
            if self.is_busy:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            answer = problem(status, detail, {"Connection": "close"})
            fields = [*self.server_state.default_headers, *answer.raw_headers]
            head = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()), *(b"%s: %s" % f for f in fields)]
            self.transport.write(b"\r\n".join([*head, b"", bytes(answer.body)]))
            self.transport.write_eof()
            self.loop.call_later(self.limits.linger_s, self.transport.close)


def let_begin_again(send: Send) -> None:
    """Let another response begin, after uvicorn has refused the status or a header of one, of which it sent nothing."""
    if isinstance(cycle := getattr(send, "__self__", None), RequestResponseCycle):
        cycle.response_started, cycle.chunked_encoding = False, None


class JoinedWrites:
    """An asyncio transport that sends together what is written in one iteration of the event loop."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._bytes = 0
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send *data* with whatever else is written before the event loop goes round."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes >= JOIN_LIMIT_BYTES:
            self._flush()

    def write_eof(self) -> None:
        """End this direction after what was written."""
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Close the connection after what was written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        data = b"".join(self._parts)
        self._parts.clear()
        self._bytes = 0
        # A client may have reset the connection since.
        if data and not self.is_closing():
            self._transport.write(data)


class Connection(asyncio.Protocol):
    """What the event loop calls: *http* behind a transport that joins its writes. It tells *on_left* who has left."""

    def __init__(self, http: HttpProtocol, on_left: Callable[[Scope], None]) -> None:
        self._http = http
        self._on_left = on_left

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._http.connection_made(cast("asyncio.Transport", JoinedWrites(transport, self._http.loop)))

    def data_received(self, data: bytes) -> None:
        http = self._http
        if http.is_refused:
            return
        if http.head_began is None and not http.is_busy:
            http.head_began = time.monotonic()
        body_bytes = len(http.cycle.body) if http.cycle is not None else 0
        http.framing_bytes += len(data)
        http.data_received(data)
        if http.cycle is not None and http.scope is not http.cycle.scope and http.head_began is None:
            # The next header block came in one piece with the end of a request.
            http.head_began = time.monotonic()
        if http.cycle is not None and len(http.cycle.body) > body_bytes:
            http.framing_bytes = 0
        elif http.framing_bytes > http.limits.head_bytes and not http.is_refused:
            http.refuse_head()

    def eof_received(self) -> bool:
        """Let a client that only ended its own direction have its answer (RFC 9112, section 9.6)."""
        http = self._http
        if not http.is_busy or time.monotonic() - http.message_ended > http.limits.half_close_s:
            # Not by returning False: that closes the transport beneath, and a response may not have got there yet.
            http.transport.close()
            return True
        last = http.pipeline[0][0] if http.pipeline else http.cycle
        last.keep_alive = False
        return not last.more_body

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        left = self._http.cycle.scope if self._http.is_busy else None
        # Not *exc*: after a reset uvicorn leaves its keep-alive timer running, which holds all of this in memory.
        self._http.connection_lost(None)
        if left is not None:
            self._on_left(cast("Scope", left))
