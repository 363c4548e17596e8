"""What can be asked on the admin port, and what can be changed there."""

import contextlib
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import attrs
import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..config import LoadedConfig, Settings
from ..event_loop import EventLoop, Watchdog
from ..health import Health
from ..http.requests import RequestsInFlight
from ..lifecycle import Lifecycle, State
from ..lines import timestamp
from ..logs import get_logger
from ..metrics import Metrics
from ..stacks import describe
from ..standard_logging import LEVELS, Change
from .access import check_access, check_host, has_token
from .page import History, render

CHECK_PATH = "/-/ready/"
HEALTH_JSON = "application/health+json"

log = get_logger("admin")


@attrs.frozen
class Request:
    """One request on the admin port; the names of its *headers* are in lower case."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    client: str
    body: bytes = b""


def reply(value: object, status: int = 200, media_type: str | None = None) -> Response:
    """Make a response of *value*: a text as it is, anything else as JSON, indented for people."""
    if isinstance(value, str):
        return Response(value.encode("utf-8", "backslashreplace") + b"\n", status, None, media_type or "text/plain")
    body = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    return Response(body, status, None, media_type or "application/json")


class Endpoint(NamedTuple):
    """What can be done at one path, by method; whoever is elsewhere needs the token for a guarded one."""

    description: str
    methods: Mapping[str, Callable[["Admin", Request], object]]
    guarded: bool = False


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
        """Respond to *request*, if this client may send it; raise HTTPException otherwise."""
        check_host(request.headers, request.client, self.settings.admin.host)
        method = "GET" if request.method == "HEAD" else request.method
        endpoint = ONE_CHECK if request.path.startswith(CHECK_PATH) else ENDPOINTS.get(request.path)
        if endpoint is None:
            raise HTTPException(404, "There is nothing here; / lists what there is.")
        if (answer := endpoint.methods.get(method)) is None:
            allowed = ", ".join([*endpoint.methods, "HEAD"])
            raise HTTPException(405, f"Only {allowed}.", {"Allow": allowed})
        check_access(request.headers, request.client, self.settings.admin.token, method != "GET", endpoint.guarded)
        try:
            value = answer(self, request)
            return value if isinstance(value, Response) else reply(value)
        except HTTPException:
            raise
        except Exception:
            log.exception("admin request failed", path=request.path)
            return reply("This failed; the log says why.", 500)

    def page(self, request: Request) -> Response:
        links = {path: endpoint.description for path, endpoint in ENDPOINTS.items() if path != "/"}
        links["/-/requests?group=where"] = "where requests wait"
        report, detailed = self.health.ready_from_thread(), self._may_see_details(request)
        slowest, lately = None, (self.history.slots.copy(), self.changes())
        with contextlib.suppress(HTTPException):
            check_access(request.headers, request.client, self.settings.admin.token, False, is_guarded=True)
            slowest = self.requests.slowest()[:5]
        html = render(self.about(), report, detailed, self.config(), links, *lately, slowest)
        return reply(html, media_type="text/html")

    def healthy(self, _: Request) -> Response | str:
        if self.lifecycle.state is State.STOPPED:
            return reply("stopped", 503)
        late_s, place = self.event_loop.stalled(), self.event_loop.stuck_at(self.settings.health.stall_limit)
        if place is None:
            stuck = self.lifecycle.stuck()
            return "healthy" if stuck is None else reply(stuck, 503)
        return reply(f"no progress of the event loop for {late_s:.1f} s; it is at\n{place}", 503)

    def ready(self, request: Request) -> Response:
        report = self.health.ready_from_thread()
        body = report.as_dict(self._may_see_details(request))
        return reply(body, 200 if report.ready else 503, HEALTH_JSON)

    def check(self, request: Request) -> Response:
        report = self.health.ready_from_thread()
        checks = {check.name: check for check in report.checks}
        check = checks.get(request.path.removeprefix(CHECK_PATH))
        if check is None:
            raise HTTPException(404, f"No such check while {report.word}; there are: {', '.join(checks) or 'none'}.")
        age_s = round(time.monotonic() - check.ended, 3)
        body = {**check.as_dict(self._may_see_details(request)), "age_s": age_s, "critical": check.critical}
        return reply(body, 503 if check.status == "fail" else 200, HEALTH_JSON)

    def _may_see_details(self, request: Request) -> bool:
        """Say whether the client may see the text of a failing check's exception, which is a driver's and not ours."""
        return has_token(request.headers, self.settings.admin.token)

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
        if request.query.get("group") == ["where"]:
            return dict(Counter(str(row["where"]) for row in waiting).most_common())
        return {"in_flight": waiting, "slowest": self.requests.slowest()}

    def stalls(self, _: Request) -> object:
        return [
            {"at": timestamp(one.at), "for_s": round(one.length_s, 3), "stack": one.stack, "request": one.request}
            for one in reversed(self.watchdog.stalls.copy())
        ]

    def change_level(self, request: Request) -> object:
        try:
            LEVELS.change(msgspec.json.decode(request.body, type=Change), request.client)
        except (ValueError, msgspec.DecodeError) as error:
            example = '{"level": "debug", "logger": "http", "for": "10m"}'
            raise HTTPException(400, f"{error}\nAn example: {example}") from None
        return LEVELS.show()

    def revert_levels(self, request: Request) -> object:
        LEVELS.revert(request.client)
        return LEVELS.show()

    def expose(self, request: Request) -> Response:
        if exposed := self.metrics.expose(request.headers.get("accept", "")):
            return Response(exposed[0], media_type=exposed[1])
        return reply("A collector does not finish; /-/stacks shows where the thread metrics waits.", 503)


ONE_CHECK = Endpoint("one readiness check", {"GET": Admin.check})
STACKS = {"GET": lambda admin, _: describe(admin.event_loop.loop)}
LOG_LEVEL = {"GET": lambda *_: LEVELS.show(), "PUT": Admin.change_level, "DELETE": Admin.revert_levels}
ENDPOINTS = {
    "/": Endpoint("the page for people", {"GET": Admin.page}),
    "/-/healthy": Endpoint("liveness: does the event loop make progress?", {"GET": Admin.healthy}),
    "/-/ready": Endpoint("readiness: may requests be sent here?", {"GET": Admin.ready}),
    "/-/requests": Endpoint("in-flight requests, and the slowest of late", {"GET": Admin.in_flight}, guarded=True),
    "/-/stacks": Endpoint("every thread and task", STACKS, guarded=True),
    "/-/stalls": Endpoint("when the event loop stood still", {"GET": Admin.stalls}, guarded=True),
    "/-/config": Endpoint("every setting", {"GET": lambda admin, _: admin.config()}),
    "/-/version": Endpoint("what runs here", {"GET": lambda admin, _: admin.about()}),
    "/-/log-level": Endpoint("the level of every logger", LOG_LEVEL),
    "/metrics": Endpoint("metrics for Prometheus", {"GET": Admin.expose}),
}
