"""Contract, section 6: look into the process, on a port of its own."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.metrics import Histogram
from prometheus_client.registry import Collector, CollectorRegistry

from {{ cookiecutter.package_name }}.chassis.health import Health
from {{ cookiecutter.package_name }}.chassis.metrics import DURATION_BUCKETS, Durations
from {{ cookiecutter.package_name }}.chassis.middleware import Request, Traffic
from {{ cookiecutter.package_name }}.chassis.stacks import Stall, Watchdog

from .conftest import Start
from .process import Answer, Asking, Process, wait_for

GUARDED = ["/-/requests", "/-/stacks", "/-/stalls"]
JSON = {"Content-Type": "application/json"}


def admin(process: Process, path: str, method: str = "GET", body: Any = None, **headers: str) -> Answer:
    """Ask the admin port; *headers* with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return process.ask(path, port="admin", method=method, body=body, headers=named)


def change(process: Process, body: str, **headers: str) -> Answer:
    return admin(process, "/-/log-level", "PUT", body, **{"Content-Type": "application/json", **headers})


def test_metrics_have_the_standard_names_and_few_series(own: Process) -> None:
    own.ask("/trouble/one")
    own.ask("/trouble/two")
    for path in ("/nowhere/1", "/nowhere/2"):
        own.ask(path, method="MKCOL")
        own.ask(path, method="PROPFIND")
    wait_for(lambda: len(own.lines("request")) == 6)
    text = admin(own, "/metrics").body.decode()
    [known, unknown] = re.findall(r"http_server_request_duration_seconds_count(.*)", text)
    assert 'http_request_method="GET",http_response_status_code="200",http_route="/trouble/{kind}"' in known
    assert known.endswith(" 2.0")
    assert 'http_request_method="_OTHER",http_response_status_code="404",http_route=""' in unknown
    for metric in ("http_server_active_requests 0.0", "event_loop_lag_seconds_count", "app_info{", "process_open_fds"):
        assert f"\n{metric}" in text
    assert admin(own, "/metrics", Accept="application/openmetrics-text").body.endswith(b"# EOF\n")


def test_durations_are_told_as_a_histogram_of_prometheus_client_tells_them() -> None:
    ours, theirs = Durations(), CollectorRegistry()
    name, told, labels = "http_server_request_duration_seconds", "Time.", ("method", "route", "status")
    histogram = Histogram(name, told, labels, buckets=DURATION_BUCKETS, registry=theirs)
    for status in (200, 500):
        for duration in (0, *DURATION_BUCKETS, *(bound * 1.5 for bound in DURATION_BUCKETS)):
            ours.observe("GET", "/", status, duration)
            histogram.labels("GET", "/", str(status)).observe(duration)

    def told_by(collector: Collector) -> list[tuple[str, list[str], float]]:
        [family] = collector.collect()
        told = [(sample.name, list(sample.labels.values()), sample.value) for sample in family.samples]
        return [sample for sample in told if not sample[0].endswith("_created")]

    assert told_by(ours) == told_by(theirs)


def test_version_and_config_say_what_runs(start: Start, secrets: Path) -> None:
    (secrets / "probe_key").write_text("t0psecret")
    process = start(APP_BUILD_REVISION="abc", APP_PROBE_FLAG="on", APP_SECRETS_REFRESH="0.05").ready()
    version = admin(process, "/-/version").json()
    assert version.keys() == {"name", "version", "revision", "build_time", "python", "start_time", "uptime_seconds"}
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
    assert admin(process, "/-/config").json()["probe_key"]["last_change"] > config["probe_key"]["last_change"]
    assert b"t0psecret" not in answer.body


def test_requests_in_flight_and_slow_ones_are_shown(own: Process) -> None:
    headers = {"X-Request-ID": "mine", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    slow = Asking(own, "/slow?s=0.5", headers=headers)
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


def test_stacks_of_threads_and_tasks_are_shown_once_each(own: Process) -> None:
    own.signal(signal.SIGHUP)
    own.line("secrets are unchanged")
    slow = [Asking(own, "/slow?s=1") for _ in range(3)]
    wait_for(lambda: len(own.lines("slow begins")) == 3)
    text = admin(own, "/-/stacks").body.decode()
    assert re.search(r"3 x task\n(  .*\n)*  .*probe\.py:\d+ slow\n  .* sleep\n", text)
    assert "1 of them idle in a pool" in text
    assert "thread MainThread\n" in text
    assert "thread watchdog\n" in text
    for one in slow:
        one.join()


def test_stalls_are_remembered_with_place_and_request(start: Start) -> None:
    process = start(APP_HEALTH_STALL_LIMIT="1.5").ready()
    process.ask("/block?s=2.5", headers={"X-Request-ID": "culprit"})
    [stall] = wait_for(lambda: admin(process, "/-/stalls").json())
    assert 2 < stall["for_s"] < 10
    assert stall["stack"][-1].endswith(" block")
    assert (stall["request"]["route"], stall["request"]["request_id"]) == ("/block", "culprit")
    [stuck] = process.lines("the event loop is stuck")
    assert stuck["stack"] == stall["stack"]
    assert process.line("the event loop moves again")["after_s"] == stall["for_s"]
    process.ask("/block?s=0.9")
    wait_for(lambda: len(admin(process, "/-/stalls").json()) == 2)
    assert len(process.lines("the event loop is stuck")) == 1
    assert process.stop() == 0
    assert process.err.read_text() == ""


def test_what_holds_the_gil_is_noticed_and_dumped_when_it_lasts(start: Start) -> None:
    process = start(APP_HEALTH_STALL_LIMIT="0.1").ready()
    process.ask("/hold")
    stalls = wait_for(lambda: admin(process, "/-/stalls").json())
    assert stalls[0]["for_s"] > 0.25
    assert "in hold" in process.err.read_text()


def test_a_stall_that_the_watchdog_could_not_see_is_remembered_too() -> None:
    watchdog = Watchdog(Health(check_timeout=1, stall_limit=1), lambda: None)
    watchdog.beat(0.1)
    watchdog.beat(1.0)
    watchdog.stop()
    assert [(stall.length, stall.stack) for stall in watchdog.stalls] == [(1.0, ("not seen: C code held the GIL",))]


def test_a_stall_is_put_down_to_what_was_seen_most() -> None:
    stall = Stall(at=0)
    for place in ("before", "culprit", "culprit", "culprit", "after"):
        stall.look((place,), {"route": place})
    assert (stall.stack, stall.request) == (("culprit",), {"route": "culprit"})


def test_slow_requests_are_forgotten_after_a_while() -> None:
    class Seen:
        def as_dict(self) -> dict[str, object]:
            return {}

    traffic = Traffic()
    for period, remembered in [(300, 1), (-1, 2), (-1, 2)]:
        traffic.PERIOD = period
        traffic.note(1.0, cast("Request", Seen()), 200)
        assert len(traffic.slowest()) == remembered


def test_a_log_level_changes_for_a_time_and_goes_back(own: Process) -> None:
    assert admin(own, "/-/log-level", "DELETE", **JSON).json()["root"] == "info"
    assert change(own, '{"level": "debug", "for": "1h"}').json()["root"] == "debug"
    answer = change(own, '{"level": "error", "logger": "a.library", "for": "30m"}').json()
    assert answer["loggers"]["a.library"] == "error"
    assert 1700 < answer["reverts_in_s"] <= 1800
    assert change(own, '{"level": "warning"}').json()["root"] == "warning"
    answer = admin(own, "/-/log-level", "DELETE", **JSON).json()
    assert (answer["root"], answer["loggers"]["a.library"], answer["reverts_in_s"]) == ("info", "info", None)
    assert own.lines("log level changed")[0]["by"] == "127.0.0.1"
    change(own, '{"level": "error", "for": "1s"}')
    wait_for(lambda: admin(own, "/-/log-level").json()["root"] == "info")
    assert own.lines("log levels are back")[-1]["by"] == "the timer"


@pytest.mark.parametrize(
    "body",
    ["", "{}", "[]", '{"level": "loud"}', '{"level": "info", "for": "2h"}', '{"level": "info", "for": "x"}', "\xff"],
)
def test_a_change_that_makes_no_sense_is_explained(probe: Process, body: str) -> None:
    answer = change(probe, body)
    assert (answer.status, b"An example: " in answer.body) == (400, True)


def test_a_page_from_elsewhere_can_change_nothing(probe: Process) -> None:
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
def test_loopback_is_loopback_on_a_socket_for_both_families(start: Start) -> None:
    process = start(APP_ADMIN_HOST="::").ready()
    assert admin(process, "/-/stacks").status == 200
    assert admin(process, "/-/config", Host="evil.test").status == 403


def elsewhere() -> str | None:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            # Connecting a datagram socket sends nothing; it only looks up the route.
            asking.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = asking.getsockname()[0]
        return address


@pytest.mark.skipif(elsewhere() is None, reason="this machine has no address but loopback")
def test_from_elsewhere_the_guarded_needs_the_token(start: Start, secrets: Path) -> None:
    def status(process: Process, path: str, method: str = "GET", **headers: str) -> int:
        connection = HTTPConnection(elsewhere() or "", process.port("admin"), timeout=10)
        with_body = '{"level": "info"}' if method == "PUT" else None
        answer = process.ask(path, on=connection, method=method, headers={**JSON, **headers}, body=with_body)
        connection.close()
        return answer.status

    process = start(APP_ADMIN_HOST="0.0.0.0", APP_SECRETS_REFRESH="0.05").ready()
    for path in ("/", "/metrics", "/-/healthy", "/-/ready", "/-/version", "/-/config", "/-/log-level"):
        assert status(process, path) == 200
    for path in GUARDED:
        assert status(process, path) == 403
        assert status(process, path, Authorization="Bearer ") == 403
    assert status(process, "/-/log-level", "PUT") == 403
    (secrets / "admin_token").write_text("t0ken")
    process.line("secrets reloaded")
    for path in GUARDED:
        assert status(process, path) == 403
        assert status(process, path, Authorization="Bearer wrong") == 403
        assert status(process, path, Authorization="Bearer t0ken") == 200
    assert status(process, "/-/log-level", "PUT", Authorization="Bearer t0ken") == 200
    assert "t0ken" not in process.out.read_text()


def test_the_page_shows_the_state_at_a_glance(own: Process) -> None:
    own.ask("/gate/lamp?mode=shut")
    own.ask("/trouble/exception")
    own.request_line("/trouble/exception")
    answer = admin(own, "/")
    page = answer.body.decode()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for text in ("ready</span>", "the gate is shut", "/trouble/{kind}", "APP_DRAIN_DELAY", "&lt;secret&gt;", "not set"):
        assert text in page
    assert "<script" not in page
    assert "hunter2" not in page
    for link in re.findall(r"href='([^']+)'", page):
        assert admin(own, link).status == 200


def test_one_check_can_be_asked_for(own: Process) -> None:
    answer = admin(own, "/-/ready/Gate")
    assert (answer.status, answer.json()["gates"], answer.json()["status"]) == (200, True, "pass")
    assert 0 <= answer.json()["age_s"] < 2
    missing = admin(own, "/-/ready/Moat")
    assert (missing.status, b"Gate, Lamp" in missing.body) == (404, True)
    own.ask("/gate/gate?mode=shut")
    wait_for(lambda: admin(own, "/-/ready/Gate").status == 503)


def test_the_port_says_what_it_has_and_what_one_can_do(probe: Process) -> None:
    assert admin(probe, "/nothing").status == 404
    refused = admin(probe, "/-/ready", "POST")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
    assert admin(probe, "/-/log-level", "POST").headers["allow"] == "GET, PUT, DELETE, HEAD"
    head = admin(probe, "/-/version", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert change(probe, "x" * 5000).status == 413


def test_what_fails_on_the_admin_port_is_logged_and_costs_nothing_else(start: Start) -> None:
    process = start(APP_PROBE_BROKEN_METRIC="yes").ready()
    assert admin(process, "/metrics").status == 500
    assert "no figures" in process.line("admin request failed")["exception"]
    assert admin(process, "/-/version").status == 200


def answers(process: Process) -> bool:
    try:
        return admin(process, "/-/ready").status == 200
    except OSError:
        return False


def test_bad_clients_leave_no_trace_and_hold_nothing(start: Start) -> None:
    process = start.patched({"admin.CLIENT_TIMEOUT": 1.0, "admin._Handler.timeout": 1.0}).ready()
    address = ("127.0.0.1", process.port("admin"))
    crowd = [socket.create_connection(address, timeout=10) for _ in range(40)]
    # The oldest goes, and a probe gets its answer.
    assert crowd[0].recv(1) == b""
    assert answers(process)
    for client in crowd[:20]:
        # A reset instead of a farewell.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()
    with socket.create_connection(address) as rude:
        rude.sendall(b"NONSENSE\r\n\r\n")
        assert rude.recv(1000)
    with socket.create_connection(address) as slow:
        began = time.monotonic()
        slow.settimeout(0.1)
        while time.monotonic() < began + 10:
            try:
                slow.sendall(b"x")
                if slow.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert 0.9 < time.monotonic() - began < 8
    for client in crowd[20:]:
        client.close()
    assert process.stop() == 0
    assert [line["event"] for line in process.lines()] == ["listening", "ready", "draining", "service closed", *END]
    assert process.err.read_text() == ""


END = ["registry closed", "stopped"]


def test_json_of_the_admin_port_is_json(probe: Process) -> None:
    for path in ("/-/ready", "/-/version", "/-/config", "/-/requests", "/-/stalls", "/-/log-level"):
        assert json.loads(admin(probe, path).body) is not None
