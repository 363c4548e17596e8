"""The server of the admin port: the standard library's, on threads; its clients are probes, scrapers and people."""

import contextlib
import re
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from .endpoints import Admin, reply

# Clients at once; a probe, a scraper and some people are a handful. One more, and the oldest is disconnected.
MAX_CLIENTS = 16
# The thread of a disconnected client lives on until its response is made. From this number on, new clients are refused.
MAX_THREADS = 64
# How long a client may be silent, and not read.
CLIENT_TIMEOUT_S = 5.0
# The only body is a change of a log level.
MAX_BODY_BYTES = 4096
HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


def serve(sock: socket.socket, admin: Admin) -> None:
    """Serve *admin* on the listening socket *sock*, from daemon threads, for the life of the process."""
    threading.Thread(target=_Server(sock, admin).serve_forever, name="admin", daemon=True).start()


class _Server(ThreadingHTTPServer):
    def __init__(self, sock: socket.socket, admin: Admin) -> None:
        super().__init__(sock.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.admin = sock, admin
        # The clients that have a thread, oldest first.
        self._clients: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            # There is no descriptor left, but a client waits: at once, it would be the same again.
            time.sleep(0.1)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._clients) >= MAX_THREADS:
            return self.shutdown_request(request)
        self._clients.append(request)
        # Not the newest, which may be a probe. A probe sends its request at once; the oldest client did not.
        for client in self._clients[:-MAX_CLIENTS]:
            _disconnect(client)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection at the end of its thread."""
        with contextlib.suppress(ValueError):
            self._clients.remove(request)
        _disconnect(request)
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: a probe that resets its connection is no event."""


def _disconnect(client: socket.socket) -> None:
    """Shut down both directions of a connection, which wakes up the thread that reads from it."""
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_TIMEOUT_S

    def handle_one_request(self) -> None:
        """Answer one request with one send: HAProxy resets the connection of a check once it has a response."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            return
        response = self._respond()
        head = f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in {**HEADERS, **response.headers}.items())
        self.request.sendall(head.encode() + b"\r\n" + (b"" if self.command == "HEAD" else bytes(response.body)))
        self.close_connection = True

    def _respond(self) -> Response:
        length = self.headers.get("Content-Length", "0")
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > MAX_BODY_BYTES:
            return reply(f"A body may have {MAX_BODY_BYTES} bytes at most.", 413)
        body, client = self.rfile.read(int(length)), self.client_address[0].partition("%")[0]
        try:
            target = urlsplit(self.path)
            scope = {"type": "http", "method": self.command, "path": target.path, "query_string": target.query.encode()}
            headers = [(name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in self.headers.items()]
            request = Request({**scope, "headers": headers, "client": (client, 0), "state": {"body": body}})
            return cast("_Server", self.server).admin.respond(request)
        except HTTPException as refusal:
            return reply(refusal.detail, refusal.status_code, headers=refusal.headers)
        except ValueError:
            return reply("The target, the Host or the Origin of this request is not valid.", 400)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: requests on the admin port are not logged."""
