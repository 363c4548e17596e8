"""Contract, section 6: look into the process, on a port of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, cast

import pytest
from kit.service import PATIENCE_SECONDS, Answer, Asking, Service, exchange, rest, wait_for
from my_service.chassis.admin import server as admin_server
from my_service.chassis.admin.endpoints import ENDPOINTS, GUARDED, Admin, reply
from my_service.chassis.http.requests import RequestsInFlight
from my_service.chassis.stacks import describe
from my_service.chassis.standard_logging import LEVELS, Change, Levels
from starlette.requests import Request
from starlette.responses import Response

from .start import Start, elsewhere

JSON = {"Content-Type": "application/json"}


def admin(process: Service, path: str, method: str = "GET", body: Any = None, **headers: str) -> Answer:
    """Ask the admin port; *headers* with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return process.ask(path, port="admin", method=method, body=body, headers=named)


def change(process: Service, body: str, **headers: str) -> Answer:
    return admin(process, "/-/log-level", "PUT", body, **{"Content-Type": "application/json", **headers})


def test_a_client_waits_while_there_is_no_descriptor_left(own: Service) -> None:
    usual = resource.prlimit(own.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(own.pid, resource.RLIMIT_NOFILE, (1, usual[1]))
    with own.dial("admin") as client:
        client.sendall(b"GET /-/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.settimeout(1)
        before = own.cpu_seconds()
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert own.cpu_seconds() - before < 0.5, "it asks for the client again and again"
        resource.prlimit(own.pid, resource.RLIMIT_NOFILE, usual)
        client.settimeout(PATIENCE_SECONDS)
        assert rest(client).startswith(b"HTTP/1.1 200 ")


def test_version_and_config_say_what_runs(start: Start, secrets: Path) -> None:
    (secrets / "probe_key").write_text("t0psecret")
    process = start(APP_BUILD_REVISION="abc", APP_PROBE_FLAG="on", APP_SECRETS_REFRESH="0.05").ready()
    version = admin(process, "/-/version").json()
    assert version.keys() == {
        *("name", "version", "revision", "build_time", "python", "start_time", "uptime_seconds")
    }
    assert (version["revision"], version["build_time"]) == ("abc", None)
    assert 0 < version["uptime_seconds"] < 60
    answer = admin(process, "/-/config")
    config = answer.json()
    flag = {"value": "on", "default": False, "source": "environment APP_PROBE_FLAG", "help": "a switch"}
    assert config["APP_PROBE_FLAG"] == flag
    assert config["APP_LOG_LEVEL"]["source"] == "default"
    assert (config["probe_key"]["set"], config["probe_key"]["source"]) == (True, f"file {secrets}/probe_key")
    assert (config["admin_token"]["set"], config["admin_token"]["last_change"]) == (False, None)
    (secrets / "probe_key").write_text("t0psecret2")
    process.line("secrets reloaded")
    changed = admin(process, "/-/config").json()
    assert changed["probe_key"]["last_change"] > config["probe_key"]["last_change"]
    assert b"t0psecret" not in answer.body


def test_requests_in_flight_and_slow_ones_are_shown(own: Service) -> None:
    headers = {"X-Request-ID": "mine", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    slow = Asking(own, "/slow?s=3", headers=headers)
    own.line("slow begins")
    [request] = admin(own, "/-/requests").json()["in_flight"]
    assert (request["method"], request["route"]) == ("GET", "/slow")
    assert (request["request_id"], request["trace_id"]) == ("mine", "a" * 32)
    assert 0 < request["age_ms"] < 10_000
    assert re.search(r"probe\.py:\d+ slow$", request["where"])
    assert request["awaits"][-1].endswith(" sleep")
    assert admin(own, "/-/requests?group=where").json() == {request["where"]: 1}
    slow.join()
    for number in range(25):
        own.ask(f"/trouble/{number}?secret=hunter2")
    wait_for(lambda: len(own.lines("request")) == 26)
    answer = admin(own, "/-/requests")
    slowest = answer.json()["slowest"]
    assert len(slowest) == 20
    assert (slowest[0]["route"], slowest[0]["status"], slowest[0]["request_id"]) == ("/slow", 200, "mine")
    assert slowest == sorted(slowest, key=lambda one: one["duration_ms"], reverse=True)
    assert b"hunter2" not in answer.body


def test_stacks_of_threads_and_tasks_are_shown_once_each(own: Service) -> None:
    own.signal(signal.SIGHUP)
    own.line("secrets unchanged")
    slow = [Asking(own, "/slow?s=1") for _ in range(3)]
    wait_for(lambda: len(own.lines("slow begins")) == 3)
    text = own.look("/-/stacks")
    assert re.search(r"3 x task\n(  .*\n)*  .*probe\.py:\d+ slow\n  .* sleep\n", text)
    assert re.search(r"\d+ threads; \d+ tasks\n", text)
    assert "thread MainThread\n" in text
    assert "thread watchdog\n" in text
    for one in slow:
        one.join()


def test_a_log_level_changes_for_a_time_and_goes_back(own: Service) -> None:
    assert admin(own, "/-/log-level", "DELETE", **JSON).json()["root"] == "info"
    assert change(own, '{"level": "debug", "for": "1h"}').json()["root"] == "debug"
    answer = change(own, '{"level": "error", "logger": "a.library", "for": "30m"}').json()
    assert answer["loggers"]["a.library"] == "error"
    assert 1700 < answer["reverts_in_s"] <= 1800
    own.ask("/trouble/library")
    own.request_line("/trouble/library")
    assert own.lines("from a library") == []
    assert change(own, '{"level": "warning"}').json()["root"] == "warning"
    answer = admin(own, "/-/log-level", "DELETE", **JSON).json()
    assert (answer["root"], answer["loggers"]["a.library"], answer["reverts_in_s"]) == ("info", "info", None)
    assert own.lines("log level changed")[0]["by"] == "127.0.0.1"
    own.ask("/trouble/library")
    own.line("from a library")
    change(own, '{"level": "error", "for": "1s"}')
    wait_for(lambda: admin(own, "/-/log-level").json()["root"] == "info")
    assert own.lines("log levels reverted")[-1]["by"] == "the timer"


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{}",
        "[]",
        '{"level": "loud"}',
        '{"level": "INFO"}',
        '{"level": "info", "for": "2h"}',
        '{"level": "info", "for": "0s"}',
        '{"level": "info", "for": "x"}',
        '{"level": "info", "for": "\\u0663s"}',
        '{"level": "info", "colour": "red"}',
        "\xff",
    ],
)
def test_a_change_that_makes_no_sense_is_explained(probe: Service, body: str) -> None:
    answer = change(probe, body)
    assert (answer.status, b"An example: " in answer.body) == (400, True)


def test_a_page_from_elsewhere_can_change_nothing(probe: Service) -> None:
    body = '{"level": "critical"}'
    host = f"127.0.0.1:{probe.port('admin')}"
    assert change(probe, body, Origin="http://evil.test").status == 403
    assert change(probe, body, Origin="null").status == 403
    assert change(probe, body, **{"Content-Type": "text/plain"}).status == 415
    assert admin(probe, "/-/log-level", "DELETE", Origin="http://evil.test").status == 403
    assert admin(probe, "/-/log-level", "DELETE").status == 415
    for path in ("/", "/-/config", "/-/ready", "/-/log-level"):
        assert admin(probe, path, Host="evil.test").status == 403
    assert admin(probe, "/-/log-level").json()["root"] == "info"
    assert change(probe, '{"level": "info"}', Origin=f"http://{host}").status == 200
    for ours in ("localhost:1", "[::1]:1", "192.0.2.1"):
        assert admin(probe, "/-/version", Host=ours).status == 200


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::", "::1"])
def test_loopback_is_loopback_for_both_families(start: Start, host: str) -> None:
    process = start(APP_ADMIN_HOST=host, APP_HTTP_HOST=host).ready()
    for address in ("::1", "127.0.0.1") if host == "::" else ("::1",):
        connection = HTTPConnection(address, process.port("admin"), timeout=60)
        with contextlib.closing(connection):
            assert exchange(connection, "/-/stacks").status == 200
            assert exchange(connection, "/-/config", headers={"Host": "evil.test"}).status == 403


@pytest.mark.skipif(elsewhere() is None, reason="this machine has no address but loopback")
@pytest.mark.parametrize("token", ["t0ken", "tök€n"])
def test_from_elsewhere_the_guarded_needs_the_token(start: Start, secrets: Path, token: str) -> None:
    def status(process: Service, path: str, method: str = "GET", **headers: str) -> int:
        connection = HTTPConnection(elsewhere() or "", process.port("admin"), timeout=60)
        body = '{"level": "info"}' if method == "PUT" else None
        raw = {name: value.encode() for name, value in {**JSON, **headers}.items()}
        with contextlib.closing(connection):
            return exchange(connection, path, method, cast("dict[str, str]", raw), body).status

    process = start(APP_ADMIN_HOST="0.0.0.0", APP_SECRETS_REFRESH="0.05").ready()
    for path in sorted(ENDPOINTS.keys() - GUARDED):
        assert status(process, path) == 200
    assert sorted(GUARDED) == ["/-/requests", "/-/stacks", "/-/stalls"]
    for path in GUARDED:
        assert status(process, path) == 403
        assert status(process, path, Authorization="Bearer ") == 403
    assert status(process, "/-/log-level", "PUT") == 403
    (secrets / "admin_token").write_text(token)
    process.line("secrets reloaded")
    for path in GUARDED:
        assert status(process, path) == 403
        assert status(process, path, Authorization="Bearer wrong") == 403
        assert status(process, path, Authorization=f"Bearer {token}") == 200
    assert status(process, "/-/log-level", "PUT", Authorization=f"Bearer {token}") == 200
    assert token not in process.out.read_text()


def test_the_page_shows_the_state_at_a_glance(own: Service) -> None:
    own.ask("/gate/lamp?mode=shut")
    answer = admin(own, "/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for text in (
        *("ready</span>", "ConnectionError: see the log", "non-critical"),
        *("APP_DRAIN_DELAY", "&lt;secret&gt;", "not set"),
    ):
        assert text in answer.text
    assert "<script" not in answer.text
    assert "hunter2" not in answer.text
    links = re.findall(r"href='([^']+)'", answer.text)
    assert {link.partition("?")[0] for link in links} == ENDPOINTS.keys() - {"/"}
    for link in links:
        assert admin(own, link).status == 200


def test_one_check_can_be_asked_for(own: Service) -> None:
    answer = admin(own, "/-/ready/Gate")
    assert (answer.status, answer.json()["critical"], answer.json()["status"]) == (200, True, "pass")
    assert 0 <= answer.json()["age_s"] < 30
    missing = admin(own, "/-/ready/Moat")
    assert (missing.status, b"Gate, Lamp" in missing.body) == (404, True)
    own.ask("/gate/lamp?mode=shut")
    wait_for(lambda: admin(own, "/-/ready/Lamp").json()["status"] == "warn")
    assert (admin(own, "/-/ready/Lamp").status, admin(own, "/-/ready/Lamp").json()["critical"]) == (
        200,
        False,
    )
    own.ask("/gate/gate?mode=shut")
    wait_for(lambda: admin(own, "/-/ready/Gate").status == 503)


def test_the_port_says_what_it_has_and_what_one_can_do(probe: Service) -> None:
    assert admin(probe, "/nothing").status == 404
    refused = admin(probe, "/-/ready", "POST")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
    assert admin(probe, "/-/log-level", "POST").headers["allow"] == "GET, PUT, DELETE, HEAD"
    head = admin(probe, "/-/version", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert change(probe, "x" * 5000).status == 413
    for length in ("-1", "1e3", "x", "9" * 5000, "\xb2"):
        assert admin(probe, "/-/ready", Content_Length=length).status == 413


@pytest.mark.parametrize(
    ("target", "host", "origin"),
    [
        ("http://[/", "localhost", "null"),
        ("/-/log-level", "[", "null"),
        ("/-/log-level", "localhost", "http://["),
    ],
)
def test_an_address_that_is_none_is_refused(probe: Service, target: str, host: str, origin: str) -> None:
    with probe.dial("admin") as client:
        headers = f"Host: {host}\r\nOrigin: {origin}\r\nContent-Type: application/json\r\n"
        client.sendall(f"DELETE {target} HTTP/1.1\r\n{headers}\r\n".encode())
        assert b" 400 " in rest(client).partition(b"\r\n")[0]


def test_what_fails_on_the_admin_port_is_logged_and_costs_nothing_else(start: Start) -> None:
    process = start(APP_PROBE_BROKEN_METRIC="yes").ready()
    assert admin(process, "/metrics").status == 500
    assert "no figures" in process.line("admin request failed")["exception"]
    assert admin(process, "/-/version").status == 200


def test_json_of_the_admin_port_is_json(probe: Service) -> None:
    for path in ("/-/ready", "/-/version", "/-/config", "/-/requests", "/-/stalls", "/-/log-level"):
        assert json.loads(admin(probe, path).body) is not None


# Below: parts of the admin port in this process.


def test_a_default_of_any_class_can_be_shown() -> None:
    assert json.loads(bytes(reply({"default": Path("x")}).body)) == {"default": "x"}


def test_idle_threads_of_a_pool_are_shown_once() -> None:
    with ThreadPoolExecutor(5, thread_name_prefix="idlers") as pool:
        barrier = threading.Barrier(5)
        list(pool.map(lambda _: barrier.wait(60), range(5)))
        wait_for(lambda: "5 x thread idlers\n" in describe(None), "five idle threads")
    assert "idlers" not in describe(None)


def test_slow_requests_are_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen:
        def as_dict(self) -> dict[str, object]:
            return {}

    requests, seen = RequestsInFlight(), cast("Any", Seen())
    for period_s, remembered in [(300, 1), (-1, 2), (-1, 2)]:
        monkeypatch.setattr(requests, "PERIOD_S", period_s)
        scope: dict[str, Any] = {}
        requests.add(scope, seen)
        requests.remove(scope, seen, 200, 1.0)
        assert len(requests.slowest()) == remembered


@pytest.fixture
def levels() -> Iterator[Levels]:
    LEVELS.configure({"root": "info", "a": "warning", "quiet": "info"})
    yield LEVELS
    LEVELS.configure({"root": "info"})


def test_levels_that_were_set_and_those_that_were_inherited_come_back(levels: Levels) -> None:
    for logger in ("a", "a.b", "quiet", "root", "new"):
        levels.change(Change("debug", logger, "1m"), "test")
        levels.change(Change("error", logger, "1m"), "test")
    shown: Any = levels.show()
    assert shown["loggers"]["a.b"] == "error"
    assert 50 < shown["reverts_in_s"] <= 60
    levels.revert("test")
    assert {name: logging.getLogger(name).level for name in ("root", "a", "a.b", "quiet", "new")} == {
        "root": logging.INFO,
        "a": logging.WARNING,
        "a.b": logging.NOTSET,
        # It has a level of its own, although it is the one that it would inherit.
        "quiet": logging.INFO,
        "new": logging.NOTSET,
    }
    assert levels.show()["reverts_in_s"] is None
    levels.configure({"root": "error"})
    shown = levels.show()
    assert (shown["root"], shown["loggers"]["a"]) == ("error", "error")


class Endpoints:
    """What stands in for the endpoints; /slow takes until *go* is set."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def respond(self, request: Request) -> Response:
        if request.scope["path"] == "/slow":
            self.go.wait(60)
        return reply(request.scope["path"])


Connect = Callable[[], socket.socket]


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Connect, Endpoints]]:
    """An admin port of this process, with little patience."""
    monkeypatch.setattr(admin_server._Handler, "timeout", 1.0)
    monkeypatch.setattr(admin_server, "MAX_THREADS", 24)
    endpoints, listener = Endpoints(), socket.create_server(("127.0.0.1", 0), backlog=128)
    admin_server.serve(listener, cast("Admin", endpoints))
    yield lambda: socket.create_connection(listener.getsockname(), timeout=60), endpoints
    # The listener stays open: http.server's thread would spin on a closed one for as long as there are tests.
    endpoints.go.set()


def get(connect: Connect, path: str) -> bytes:
    with connect() as client:
        client.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        return rest(client)


def admin_threads() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_idle_clients_hold_nothing_and_the_oldest_goes_first(port: tuple[Connect, Endpoints]) -> None:
    connect, _ = port
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(connect()) for _ in range(60)]
        assert crowd[0].recv(1) == b""
        # On a busy machine a probe may miss its second.
        wait_for(lambda: get(connect, "/probe").endswith(b"\r\n\r\n/probe\n"), "an answer")
        for client in crowd[:20]:
            # A reset instead of a farewell.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            client.close()
        with connect() as rude:
            rude.sendall(b"NONSENSE\r\n\r\n")
            assert b"400" in rest(rude)
        wait_for(lambda: admin_threads() == 0)


def test_responses_that_take_long_hold_a_bounded_number_of_threads(port: tuple[Connect, Endpoints]) -> None:
    connect, endpoints = port
    crowd = [connect() for _ in range(60)]
    for client in crowd:
        with contextlib.suppress(OSError):
            client.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
    wait_for(lambda: admin_threads() >= 16)
    time.sleep(0.5)
    assert admin_threads() <= 24
    endpoints.go.set()
    wait_for(lambda: admin_threads() == 0)
    assert get(connect, "/probe").endswith(b"/probe\n")
    for client in crowd:
        client.close()


def test_bad_clients_leave_no_trace(start: Start) -> None:
    process = start.run((sys.executable, "-m", "apps.pings"), {}).ready()
    for data in (
        b"",
        b"\0\0\0",
        b"GET / HTTP/9\r\n\r\n",
        b"PUT /-/log-level HTTP/1.1\r\nContent-Length: 9\r\n\r\nx",
    ):
        with process.dial("admin") as client:
            client.sendall(data)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    assert admin(process, "/-/version").status == 200
    assert process.stop() == 0
    assert {line["event"] for line in process.lines()} <= {"listening", "ready", "draining", "stopped"}
    assert process.err.read_text() == ""
