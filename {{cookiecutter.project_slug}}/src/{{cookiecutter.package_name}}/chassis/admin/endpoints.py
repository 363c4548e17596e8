"""What can be asked on the admin port, and what can be changed there."""

import contextlib
import hmac
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs
import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..config import LoadedConfig, Settings
from ..event_loop import EventLoop, Watchdog
from ..health import Health
from ..http.requests import RequestsInFlight, parse_address
from ..lifecycle import Lifecycle, State
from ..lines import timestamp
from ..logs import get_logger
from ..metrics import Metrics
from ..stacks import describe, thread_stack
from ..standard_logging import LEVELS, Change
from .page import History, render

READY = "/-/ready"
HEALTH_JSON = "application/health+json"

log = get_logger("admin")


def reply(
    value: object, status: int = 200, media_type: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Make a response of *value*: a text as it is, anything else as JSON, indented for people."""
    if isinstance(value, str):
        body, kind = value.encode("utf-8", "backslashreplace"), "text/plain"
    else:
        # A team's default may be an object of any class.
        body, kind = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2), "application/json"
    return Response(body + b"\n", status, headers, media_type or kind)


@attrs.define
class Admin:
    """The endpoints of the admin port; each may be asked from any thread at any time.

    An endpoint returns a `Response`, or what `reply` makes one of.
    """

    name: str
    version: str
    settings: Settings
    loaded: LoadedConfig[Any]
    lifecycle: Lifecycle
    event_loop: EventLoop
    health: Health
    metrics: Metrics
    requests: RequestsInFlight
    watchdog: Watchdog
    history: History

    def respond(self, request: Request) -> Response:
        """Respond to *request*, whose body is in its state; raise HTTPException if this client may not send it."""
        self._check_host(request)
        path, method = request.scope["path"], "GET" if request.method == "HEAD" else request.method
        path = READY if path.startswith(f"{READY}/") else path
        if (methods := ENDPOINTS.get(path)) is None:
            raise HTTPException(404, "There is nothing here; / lists what there is.")
        if (answer := methods.get(method)) is None:
            allowed = ", ".join([*methods, "HEAD"])
            raise HTTPException(405, f"Only {allowed}.", {"Allow": allowed})
        self._check_access(request, path in GUARDED, is_change=method != "GET")
        try:
            value = answer(self, request)
            return value if isinstance(value, Response) else reply(value)
        except HTTPException:
            raise
        except Exception:
            log.exception("admin request failed", path=path)
            return reply("This failed; the log says why.", 500)

    def _check_host(self, request: Request) -> None:
        """Refuse a browser on this machine that came by a foreign name, which resolves to loopback (DNS rebinding)."""
        host = urlsplit(f"//{request.headers.get('host', 'localhost')}").hostname or ""
        if _is_local(request) and host not in {"localhost", self.settings.admin.host} and parse_address(host) is None:
            raise HTTPException(403, "This Host is not one of this port: use its address, or localhost.")

    def _check_access(self, request: Request, is_guarded: bool, is_change: bool = False) -> None:
        """Raise an HTTPException if the client may not send this request."""
        headers, token = request.headers, self.settings.admin.token
        # A client on this machine needs no token, but a wrong one is refused there too.
        may_lack_token = _is_local(request) and "authorization" not in headers
        if (is_change or is_guarded) and not may_lack_token and not self._has_token(request):
            needs = "the header Authorization: Bearer with the secret admin_token"
            raise HTTPException(403, f"This needs {needs}{'' if token.is_set else ', which is not set'}.")
        # A foreign page can have somebody's browser send a change, but not without an Origin or with this Content-Type.
        if is_change and "origin" in headers and urlsplit(headers["origin"]).netloc != headers.get("host"):
            raise HTTPException(403, "Not from a page of another origin.")
        if is_change and headers.get("content-type", "").partition(";")[0] != "application/json":
            raise HTTPException(415, "Send Content-Type: application/json.")

    def _has_token(self, request: Request) -> bool:
        """Say whether the client may also see what a driver says of a failing check."""
        sent, token = request.headers.get("authorization", "").encode("latin-1"), self.settings.admin.token
        return token.is_set and hmac.compare_digest(sent, f"Bearer {token.reveal()}".encode())

    def page(self, request: Request) -> Response:
        report, detailed, slowest = self.health.ready_from_thread(), self._has_token(request), None
        with contextlib.suppress(HTTPException):
            self._check_access(request, is_guarded=True)
            slowest = self.requests.slowest()[:5]
        lately = self.history.slots.copy(), self.changes(), slowest
        return reply(render(self.about(), report, detailed, self.config(), *lately), media_type="text/html")

    def healthy(self, _: Request) -> Response | str:
        if self.lifecycle.state is State.STOPPED:
            return reply("stopped", 503)
        if (late_s := self.event_loop.stalled()) >= self.settings.health.stall_limit:
            place = "\n".join(thread_stack(self.event_loop.thread))
            return reply(f"no progress of the event loop for {late_s:.1f} s; it is at\n{place}", 503)
        stuck = self.lifecycle.stuck()
        return "healthy" if stuck is None else reply(stuck, 503)

    def ready(self, request: Request) -> Response:
        """Answer for all checks, or below the path for one."""
        report, detailed = self.health.ready_from_thread(), self._has_token(request)
        name = request.scope["path"].removeprefix(READY).removeprefix("/")
        if not name:
            return reply(report.as_dict(detailed), 200 if report.ready else 503, HEALTH_JSON)
        checks = {check.name: check for check in report.checks}
        if (check := checks.get(name)) is None:
            raise HTTPException(404, f"No such check while {report.word}; there are: {', '.join(checks) or 'none'}.")
        return reply(check.as_dict(detailed), 503 if check.status == "fail" else 200, HEALTH_JSON)

    def about(self) -> dict[str, object]:
        """Say what runs here, and since when."""
        return {
            "name": self.name,
            "version": self.version,
            "revision": self.settings.build.revision or None,
            "build_time": self.settings.build.time or None,
            "python": platform.python_version(),
            "start_time": timestamp(self.lifecycle.started),
            "uptime_seconds": round(self.lifecycle.uptime, 3),
        }

    def config(self) -> dict[str, dict[str, object]]:
        """Return each setting with its value, its source and its help; of a secret, only whether it is set."""
        secrets, shown = self.loaded.secrets, dict[str, dict[str, object]]()
        for setting in self.loaded.values:
            known: dict[str, object] = {"value": setting.value, "default": setting.default}
            if (file := setting.file) is not None:
                changed = secrets.changed.get(file)
                known = {"set": file in secrets.values, "last_change": timestamp(changed) if changed else None}
            shown[setting.label] = {**known, "source": setting.source, "help": setting.help}
        return shown

    def changes(self) -> list[tuple[float, str]]:
        """Return what has changed of late, newest first, each with its time in seconds since 1970."""
        secrets, found = self.loaded.secrets, [*self.history.changes.copy()]
        found += ((time.time(), f"{name} can't be reloaded: the old secret is in use") for name in secrets.problems)
        found += ((at, f"new secret: {name}") for name, at in secrets.changed.items() if at > self.lifecycle.started)
        return sorted(found, reverse=True)

    def in_flight(self, request: Request) -> object:
        waiting = self.requests.waiting()
        if request.query_params.get("group") == "where":
            return dict(Counter(str(row["where"]) for row in waiting).most_common())
        return {"in_flight": waiting, "slowest": self.requests.slowest()}

    def stalls(self, _: Request) -> object:
        return [
            {"at": timestamp(one.at), "for_s": round(one.length_s, 3), "stack": one.stack, "request": one.request}
            for one in reversed(self.watchdog.stalls.copy())
        ]

    def change(self, request: Request) -> object:
        try:
            LEVELS.change(msgspec.json.decode(request.state.body, type=Change), _client(request))
        except (ValueError, msgspec.DecodeError) as error:
            example = '{"level": "debug", "logger": "http", "for": "10m"}'
            raise HTTPException(400, f"{error}\nAn example: {example}") from None
        return LEVELS.show()

    def revert(self, request: Request) -> object:
        LEVELS.revert(_client(request))
        return LEVELS.show()

    def expose(self, request: Request) -> Response:
        if exposed := self.metrics.expose(request.headers.get("accept", "")):
            return Response(exposed[0], media_type=exposed[1])
        return reply("A collector does not finish; /-/stacks shows where the thread metrics waits.", 503)


def _client(request: Request) -> str:
    return request.client.host if request.client is not None else ""


def _is_local(request: Request) -> bool:
    address = parse_address(_client(request))
    return address is not None and address.is_loopback


# What answers at each path, by method; page.html says what for. Elsewhere, the guarded ones need the token.
ENDPOINTS: dict[str, dict[str, Callable[[Admin, Request], object]]] = {
    "/": {"GET": Admin.page},
    "/-/healthy": {"GET": Admin.healthy},
    READY: {"GET": Admin.ready},
    "/-/requests": {"GET": Admin.in_flight},
    "/-/stacks": {"GET": lambda admin, _: describe(admin.event_loop.loop)},
    "/-/stalls": {"GET": Admin.stalls},
    "/-/config": {"GET": lambda admin, _: admin.config()},
    "/-/version": {"GET": lambda admin, _: admin.about()},
    "/-/log-level": {"GET": lambda *_: LEVELS.show(), "PUT": Admin.change, "DELETE": Admin.revert},
    "/metrics": {"GET": Admin.expose},
}
GUARDED = frozenset({"/-/requests", "/-/stacks", "/-/stalls"})
