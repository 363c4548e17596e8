"""The admin port: health, metrics and introspection.

On threads of its own, so that a stuck event loop can't silence it. The standard library's server
is enough: its clients are a probe, a scraper, and a person now and then.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import platform
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, urlsplit

import msgspec

from .health import timestamp
from .logs import Levels, get_logger
from .page import render
from .stacks import describe

if TYPE_CHECKING:
    from .config import Entry, Settings
    from .health import Health
    from .metrics import Metrics
    from .middleware import Traffic
    from .secrets import Secrets
    from .stacks import Watchdog

THREADS = 16
# Seconds that a client may take for its request, all in all.
CLIENT_TIMEOUT = 5.0
MAX_BODY = 4096
TEXT = "text/plain; charset=utf-8"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
GUARDED = frozenset({"/-/requests", "/-/stacks", "/-/stalls"})
LONGEST_CHANGE = 3600.0
EXAMPLE = '{"level": "debug", "logger": "http", "for": "10m"}'

log = get_logger("admin")


class Question(msgspec.Struct, frozen=True):
    """One request on the admin port."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    client: str
    body: bytes = b""


class Answer(msgspec.Struct, frozen=True):
    """What it is told."""

    status: int
    body: bytes
    content_type: str = TEXT
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)

    @classmethod
    def of_text(cls, status: int, text: str, **headers: str) -> Answer:
        """Make one of a line or more for people."""
        return cls(status, text.encode("utf-8", "backslashreplace") + b"\n", headers=headers)

    @classmethod
    def of_json(cls, value: object, status: int = 200, content_type: str = "application/json") -> Answer:
        """Make one of JSON, indented for people."""
        return cls(status, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n", content_type)


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """What is to become of a log level: of one logger, or of all; for a time such as 30s, 10m or 1h."""

    level: str
    logger: str = "root"
    for_: str = msgspec.field(name="for", default="10m")


class Admin(msgspec.Struct):
    """The endpoints of the admin port; each may be asked from any thread at any time."""

    name: str
    version: str
    config: Settings
    entries: list[Entry]
    secrets: Secrets
    health: Health
    metrics: Metrics
    traffic: Traffic
    watchdog: Watchdog
    levels: Levels = msgspec.field(default_factory=Levels)

    def routes(self, path: str) -> dict[str, Callable[[Question], Answer]]:
        """Return what can be done at *path*, by method; nothing for an unknown one."""
        if path.startswith("/-/ready/"):
            return {"GET": self.check}
        known: dict[str, dict[str, Callable[[Question], Answer]]] = {
            "/": {"GET": self.page},
            "/metrics": {"GET": self.expose},
            "/-/healthy": {"GET": self.healthy},
            "/-/ready": {"GET": self.ready},
            "/-/version": {"GET": lambda _: Answer.of_json(self.about())},
            "/-/config": {"GET": lambda _: Answer.of_json(self.settings())},
            "/-/requests": {"GET": self.requests},
            "/-/stacks": {"GET": lambda _: Answer.of_text(200, describe(self.health.loop))},
            "/-/stalls": {"GET": self.stalls},
            "/-/log-level": {"GET": self.log_levels, "PUT": self.change_level, "DELETE": self.revert_levels},
        }
        return known.get(path, {})

    def answer(self, question: Question) -> Answer:
        """Answer one request, if the one who asks may have it."""
        if not self._host_is_ours(question):
            return Answer.of_text(403, "This Host is not one of this port: use its address, or localhost.")
        methods = self.routes(question.path)
        if not methods:
            return Answer.of_text(404, "There is nothing here; / lists what there is.")
        endpoint = methods.get("GET" if question.method == "HEAD" else question.method)
        if endpoint is None:
            allowed = ", ".join([*methods, "HEAD"])
            return Answer.of_text(405, f"Only {allowed}.", Allow=allowed)
        is_change = question.method not in {"GET", "HEAD"}
        refusal = self._refusal(question) if is_change or question.path in GUARDED else None
        if is_change and refusal is None:
            refusal = _foreign(question)
        try:
            return refusal or endpoint(question)
        except Exception:
            log.exception("admin request failed", path=question.path)
            return Answer.of_text(500, "This failed; the log says why.")

    def _host_is_ours(self, question: Question) -> bool:
        """Say no to a browser on this machine that was led here by a foreign name (DNS rebinding)."""
        if "host" not in question.headers or not _is_loopback(question.client):
            return True
        host = urlsplit(f"//{question.headers['host']}").hostname or ""
        return host in {"localhost", self.config.admin.host} or _is_address(host)

    def _refusal(self, question: Question) -> Answer | None:
        """Say why the one who asks may not have what is guarded; None: they may."""
        if _is_loopback(question.client) and "authorization" not in question.headers:
            return None
        token = self.config.admin.token
        if not token.is_set:
            return Answer.of_text(403, "Not from another machine while the secret admin_token is not set.")
        shown = question.headers.get("authorization", "").encode()
        if not hmac.compare_digest(shown, f"Bearer {token.reveal()}".encode()):
            return Answer.of_text(403, "This needs the header Authorization: Bearer with the secret admin_token.")
        return None

    def healthy(self, _: Question) -> Answer:
        """Liveness: does the event loop make progress?"""
        stuck = self.health.stuck_at()
        if stuck is None:
            return Answer.of_text(200, "healthy")
        seconds = self.health.stalled()
        return Answer.of_text(503, f"no progress of the event loop for {seconds:.1f} s; it is at\n{stuck}")

    def ready(self, _: Question) -> Answer:
        """Readiness: may requests be sent here?"""
        report = self.health.ready_from_thread()
        return Answer.of_json(report.as_dict(), 200 if report.ready else 503, "application/health+json")

    def check(self, question: Question) -> Answer:
        """One readiness check."""
        report = self.health.ready_from_thread()
        checks = {check.name: check for check in report.checks}
        check = checks.get(question.path.removeprefix("/-/ready/"))
        if check is None:
            return Answer.of_text(404, f"No such check while {report.word}; there are: {', '.join(checks) or 'none'}.")
        body = {**check.as_dict(), "age_s": round(check.age, 3), "gates": check.gates}
        return Answer.of_json(body, 503 if check.status == "fail" else 200, "application/health+json")

    def about(self) -> dict[str, object]:
        """What runs here, and since when."""
        return {
            "name": self.name,
            "version": self.version,
            "revision": self.config.build.revision or None,
            "build_time": self.config.build.time or None,
            "python": platform.python_version(),
            "start_time": timestamp(self.health.started),
            "uptime_seconds": round(self.health.uptime, 3),
        }

    def settings(self) -> dict[str, dict[str, object]]:
        """Every setting: its value, where that is from, and what it means; of a secret only whether it is set."""
        shown: dict[str, dict[str, object]] = {}
        for entry in self.entries:
            setting = entry.setting
            if setting.file is None:
                known: dict[str, object] = {"value": entry.value, "default": setting.default}
            else:
                changed = self.secrets.changed.get(setting.file)
                known = {
                    "set": setting.file in self.secrets.values,
                    "last_change": timestamp(changed) if changed is not None else None,
                }
            shown[setting.label] = {**known, "source": entry.source, "help": setting.help}
        return shown

    def requests(self, question: Question) -> Answer:
        """The requests in flight, and the slowest of late."""
        waiting = self.traffic.waiting()
        if question.query.get("group") == ["where"]:
            return Answer.of_json(dict(Counter(str(one["where"]) for one in waiting).most_common()))
        return Answer.of_json({"in_flight": waiting, "slowest": self.traffic.slowest()})

    def stalls(self, _: Question) -> Answer:
        """The last times that the event loop stood still, newest first."""
        return Answer.of_json(
            [
                {
                    "at": timestamp(stall.at),
                    "for_s": round(stall.length, 3),
                    "stack": stall.stack,
                    "request": stall.request,
                }
                for stall in reversed(self.watchdog.stalls.copy())
            ]
        )

    def log_levels(self, _: Question) -> Answer:
        """The level of every logger."""
        return Answer.of_json(self.levels.show())

    def change_level(self, question: Question) -> Answer:
        """Change a level for a limited time."""
        try:
            change = msgspec.json.decode(question.body, type=Change)
            match = re.fullmatch(r"(\d{1,6})([smh])", change.for_)
            seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
            if not 0 < seconds <= LONGEST_CHANGE:
                raise ValueError("for: use a time such as 30s, 10m or 1h, an hour at most")
            if change.level not in {"debug", "info", "warning", "error", "critical"}:
                raise ValueError("level: use one of debug, info, warning, error, critical")
        except (ValueError, msgspec.DecodeError) as error:
            return Answer.of_text(400, f"{error}\nAn example: {EXAMPLE}")
        self.levels.change(change.logger, change.level, seconds, question.client)
        return Answer.of_json(self.levels.show())

    def revert_levels(self, question: Question) -> Answer:
        """Undo all changes now."""
        self.levels.revert(question.client)
        return Answer.of_json(self.levels.show())

    def expose(self, question: Question) -> Answer:
        """All metrics."""
        body, content_type = self.metrics.expose(question.headers.get("accept", ""))
        return Answer(200, body, content_type)

    def page(self, _: Question) -> Answer:
        """The page for people."""
        html = render(self.about(), self.health.ready_from_thread(), self.settings(), self.metrics.routes())
        return Answer(200, html.encode("utf-8", "backslashreplace"), "text/html; charset=utf-8")


def _is_loopback(client: str) -> bool:
    address = ipaddress.ip_address(client)
    # What an IPv4 client looks like to a socket that takes both.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _foreign(question: Question) -> Answer | None:
    """Refuse a change that a page from elsewhere could have made in somebody's browser; None: it can't have."""
    origin = question.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != question.headers.get("host"):
        return Answer.of_text(403, "Not from a page of another origin.")
    if question.headers.get("content-type", "").partition(";")[0] != "application/json":
        return Answer.of_text(415, "Send Content-Type: application/json.")
    return None


def serve(sock: socket.socket, admin: Admin) -> None:
    """Answer for *admin* on the listening *sock* from daemon threads, from now on."""
    server = _Server(sock.getsockname(), _Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = sock
    server.admin = admin
    threading.Thread(target=server.serve_forever, name="admin", daemon=True).start()


class _Server(ThreadingHTTPServer):
    admin: Admin
    daemon_threads = True

    def __init__(self, *args: object, **options: bool) -> None:
        self._clients: dict[socket.socket, float] = {}
        super().__init__(*args, **options)  # type: ignore[arg-type]

    def process_request(self, request: object, client_address: object) -> None:
        client = cast("socket.socket", request)
        if len(self._clients) >= THREADS:
            # The newest may be a probe, which asks at once; the oldest is one that does not.
            self._hang_up(next(iter(self._clients.copy()), client))
        self._clients[client] = time.monotonic() + CLIENT_TIMEOUT
        super().process_request(client, client_address)

    def service_actions(self) -> None:
        """End clients that take too long, however busy they look; called twice a second."""
        for client, deadline in list(self._clients.items()):
            if time.monotonic() > deadline:
                self._hang_up(client)

    def _hang_up(self, client: socket.socket) -> None:
        """End the connection in both directions: only that wakes a thread that reads from it."""
        self._clients.pop(client, None)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: object) -> None:
        client = cast("socket.socket", request)
        self._clients.pop(client, None)
        super().shutdown_request(client)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a probe that resets its connection is no event."""


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_TIMEOUT

    def handle_one_request(self) -> None:
        """Answer one request in one send: HAProxy resets a check's connection once it has its answer."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            return
        answer = self._answer()
        head = [
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
            f"Content-Type: {answer.content_type}",
            f"Content-Length: {len(answer.body)}",
            "Cache-Control: no-store",
            "Connection: close",
            f"Content-Security-Policy: {POLICY}",
            "X-Content-Type-Options: nosniff",
            *(f"{name}: {value}" for name, value in answer.headers.items()),
        ]
        body = b"" if self.command == "HEAD" else answer.body
        self.request.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        self.close_connection = True

    def _answer(self) -> Answer:
        headers = {name.lower(): value for name, value in self.headers.items()}
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY:
            return Answer.of_text(413, f"A body may have {MAX_BODY} bytes at most.")
        target = urlsplit(self.path)
        client = self.client_address[0].partition("%")[0]
        body = self.rfile.read(int(length))
        admin = cast("_Server", self.server).admin
        return admin.answer(Question(self.command, target.path, parse_qs(target.query), headers, client, body))

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: requests on the admin port are not logged."""
