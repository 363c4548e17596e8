"""The admin port: health, metrics and introspection.

On threads of its own, so that a stuck event loop can't silence it. The standard library's server
is enough: its clients are a probe, a scraper, and a person now and then.
"""

from __future__ import annotations

import platform
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import attrs
import msgspec

from .logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .config import Entry
    from .health import Health
    from .metrics import Metrics

THREADS = 16
CLIENT_TIMEOUT = 5.0
log = get_logger("admin")
TEXT = "text/plain; charset=utf-8"


@attrs.frozen
class Answer:
    """What one admin request is told."""

    status: int
    body: bytes
    content_type: str = TEXT
    headers: Mapping[str, str] = attrs.field(factory=dict)

    @classmethod
    def of_json(cls, value: object, status: int = 200, content_type: str = "application/json") -> Answer:
        """Make one of JSON, indented for people."""
        return cls(status, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n", content_type)


class Admin:
    """The endpoints of the admin port, by path; each may be asked from any thread at any time."""

    def __init__(self, name: str, version: str, entries: Sequence[Entry], health: Health, metrics: Metrics) -> None:
        self._name = name
        self._version = version
        self._entries = entries
        self._health = health
        self._metrics = metrics
        self.routes: dict[str, Callable[[Mapping[str, str]], Answer]] = {
            "/-/healthy": self.healthy,
            "/-/ready": self.ready,
            "/-/version": self.version,
            "/-/config": self.config,
            "/metrics": self.expose,
        }

    def answer(self, method: str, target: str, headers: Mapping[str, str]) -> Answer:
        """Answer one request."""
        path = urlsplit(target).path
        endpoint = self.routes.get(path)
        if endpoint is None:
            known = "\n".join(self.routes)
            return Answer(404, f"There is nothing here. What there is:\n{known}\n".encode())
        if method not in {"GET", "HEAD"}:
            return Answer(405, b"Only GET and HEAD.\n", headers={"Allow": "GET, HEAD"})
        try:
            return endpoint(headers)
        except Exception:
            log.exception("admin request failed", path=path)
            return Answer(500, b"This failed; the log says why.\n")

    def healthy(self, _headers: Mapping[str, str]) -> Answer:
        """Liveness: does the event loop make progress?"""
        stuck = self._health.stuck_at()
        if stuck is None:
            return Answer(200, b"healthy\n")
        seconds = self._health.stalled()
        return Answer(503, f"no progress of the event loop for {seconds:.1f} s; it is at\n{stuck}\n".encode())

    def ready(self, _headers: Mapping[str, str]) -> Answer:
        """Readiness: may requests be sent here?"""
        report = self._health.ready_from_thread()
        return Answer.of_json(report.as_dict(), 200 if report.ready else 503, "application/health+json")

    def version(self, _headers: Mapping[str, str]) -> Answer:
        """What runs here, and since when."""
        settings = {entry.setting.name: entry.value for entry in self._entries}
        started = datetime.fromtimestamp(self._health.started, UTC)
        return Answer.of_json(
            {
                "name": self._name,
                "version": self._version,
                "revision": settings["APP_BUILD_REVISION"] or None,
                "build_time": settings["APP_BUILD_TIME"] or None,
                "python": platform.python_version(),
                "start_time": started.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "uptime_seconds": round(time.time() - self._health.started, 3),
            }
        )

    def config(self, _headers: Mapping[str, str]) -> Answer:
        """Every setting: its value, where that is from, and what it means."""
        return Answer.of_json(
            {
                entry.setting.label: {"value": entry.value, "source": entry.source, "help": entry.setting.help}
                for entry in self._entries
            }
        )

    def expose(self, headers: Mapping[str, str]) -> Answer:
        """All metrics."""
        body, content_type = self._metrics.expose(headers.get("Accept") or "")
        return Answer(200, body, content_type)


def serve(sock: socket.socket, admin: Admin) -> ThreadingHTTPServer:
    """Answer for *admin* on the listening *sock* from daemon threads, from now on."""
    server = _Server(sock.getsockname(), _Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = sock
    server.admin = admin
    threading.Thread(target=server.serve_forever, name="admin", daemon=True, kwargs={"poll_interval": 60}).start()
    return server


class _Server(ThreadingHTTPServer):
    admin: Admin
    daemon_threads = True

    def __init__(self, *args: object, **options: bool) -> None:
        self._free = threading.BoundedSemaphore(THREADS)
        super().__init__(*args, **options)  # type: ignore[arg-type]

    def process_request(self, request: object, client_address: object) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)  # type: ignore[arg-type]
        else:
            self.shutdown_request(request)  # type: ignore[arg-type]

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a probe that resets its connection is no event."""


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_TIMEOUT

    def handle_one_request(self) -> None:
        """Answer one request in one send: HAProxy resets a check's connection once it has its answer."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            return
        admin = cast("_Server", self.server).admin
        answer = admin.answer(self.command, self.path, dict(self.headers))
        head = [
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
            "Cache-Control: no-store",
            "Connection: close",
            *(f"{name}: {value}" for name, value in answer.headers.items()),
        ]
        body = b"" if self.command == "HEAD" else answer.body
        self.request.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: requests on the admin port are not logged."""
