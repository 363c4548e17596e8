"""Contract, sections 5 and 6: what an operator and an orchestrator can ask, on a port of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from {{ cookiecutter.package_name }}.chassis.health import Health

from .conftest import Start
from .process import Asking, Process, wait_for


def ready(process: Process, port: str = "admin") -> int:
    return process.ask("/-/ready", port=port).status


def test_readiness_through_a_life(start: Start) -> None:
    process = start(APP_PROBE_START_DELAY="0.5", APP_DRAIN_DELAY="0.5")
    answer = process.ask("/-/ready", port="admin")
    assert (answer.status, answer.json()["state"]) == (503, "starting")
    assert answer.headers["content-type"] == "application/health+json"
    assert process.ask("/-/ready").body == b"starting\n"
    early = process.ask("/trouble/early")
    assert (early.status, early.headers["retry-after"]) == (503, "1")

    process.ready()
    answer = process.ask("/-/ready", port="admin")
    assert (answer.status, answer.json()["status"], answer.json()["state"]) == (200, "pass", "ready")
    assert answer.json()["checks"].keys() == {"Gate", "Lamp"}
    assert (ready(process, "http"), process.ask("/-/ready").body) == (200, b"ready\n")

    process.signal(signal.SIGTERM)
    wait_for(lambda: ready(process) == 503, limit=0.4)
    assert process.readiness()["state"] == "draining"
    assert process.ask("/-/ready").body == b"draining\n"
    assert process.wait() == 0


def test_a_failing_check_gates_or_informs_as_the_team_says(own: Process) -> None:
    own.ask("/gate/lamp?mode=shut")
    assert own.readiness()["checks"]["Lamp"][0]["status"] == "warn"
    assert ready(own) == 200
    own.ask("/gate/gate?mode=shut")
    wait_for(lambda: ready(own) == 503)
    [check] = own.readiness()["checks"]["Gate"]
    assert (check["status"], check["output"]) == ("fail", "ConnectionError: the gate is shut")
    assert own.ask("/-/ready").body == b"failing\n"
    assert own.ask("/-/healthy", port="admin").status == 200
    own.ask("/gate/gate?mode=open")
    wait_for(lambda: ready(own) == 200)


def test_a_hanging_check_costs_its_time_limit_and_many_probes_cost_one_run(start: Start) -> None:
    process = start(APP_HEALTH_CHECK_TIMEOUT="0.3").ready()
    process.ask("/gate/gate?mode=hang")
    before = int(process.ask("/gate/gate").body)
    began = time.monotonic()
    probes = [Asking(process, "/-/ready", port=port) for port in ("admin", "http") * 5]
    for one in probes:
        one.join()
    assert 0.3 <= time.monotonic() - began < 1.0
    assert int(process.ask("/gate/gate").body) - before == 1
    assert process.readiness()["checks"]["Gate"][0]["output"] == "no answer within 0.3 s"


def test_a_stuck_event_loop_fails_liveness_and_says_where_it_is(start: Start) -> None:
    process = start(APP_HEALTH_STALL_LIMIT="0.3", APP_HEALTH_CHECK_TIMEOUT="20").ready()
    assert process.ask("/-/healthy", port="admin").status == 200
    process.ask("/gate/gate?mode=hang")
    waiting = Asking(process, "/-/ready", port="admin")
    wait_for(lambda: process.ask("/gate/gate").body == b"1")
    blocked = Asking(process, "/block?s=2.5")
    stuck = wait_for(lambda: [a for a in [process.ask("/-/healthy", port="admin")] if a.status == 503])[0]
    assert b"probe.py:" in stuck.body
    assert b" block\n" in stuck.body
    waiting.join()
    for answer in (waiting.answer, process.ask("/-/ready", port="admin")):
        assert answer is not None
        assert answer.json()["output"] == "the event loop is stuck"
    assert process.ask("/metrics", port="admin").status == 200
    blocked.join()
    wait_for(lambda: process.ask("/-/healthy", port="admin").status == 200)


def test_a_health_that_nobody_drives_is_alive_but_not_ready() -> None:
    health = Health(check_timeout=1, stall_limit=1)
    assert health.stuck_at() is None
    health.state = "ready"
    assert not health.ready_from_thread().ready


def test_metrics_have_the_standard_names_and_few_series(probe: Process) -> None:
    probe.ask("/trouble/one")
    probe.ask("/trouble/two")
    for path in ("/nowhere/1", "/nowhere/2"):
        probe.ask(path, method="MKCOL")
        probe.ask(path, method="PROPFIND")
    probe.request_line("/nowhere/2")
    answer = probe.ask("/metrics", port="admin")
    text = answer.body.decode()
    [known, unknown] = re.findall(r"http_server_request_duration_seconds_count(.*)", text)
    assert 'http_request_method="GET",http_response_status_code="200",http_route="/trouble/{kind}"' in known
    assert known.endswith(" 2.0")
    assert 'http_request_method="_OTHER",http_response_status_code="404",http_route=""' in unknown
    for metric in ("http_server_active_requests 0.0", "event_loop_lag_seconds_count", "app_info{", "process_open_fds"):
        assert f"\n{metric}" in text
    accept = {"Accept": "application/openmetrics-text"}
    assert probe.ask("/metrics", port="admin", headers=accept).body.endswith(b"# EOF\n")


def test_version_and_config_say_what_runs(start: Start, secrets: Path) -> None:
    (secrets / "probe_key").write_text("t0psecret")
    process = start(APP_BUILD_REVISION="abc", APP_PROBE_FLAG="on").ready()
    version = process.ask("/-/version", port="admin").json()
    assert version.keys() == {"name", "version", "revision", "build_time", "python", "start_time", "uptime_seconds"}
    assert version["revision"] == "abc"
    assert 0 < version["uptime_seconds"] < 60
    answer = process.ask("/-/config", port="admin")
    config = answer.json()
    assert config["APP_PROBE_FLAG"] == {"value": "on", "source": "environment APP_PROBE_FLAG", "help": "a switch"}
    assert config["APP_LOG_LEVEL"]["source"] == "default"
    assert config["probe_key"]["value"] == "<secret>"
    assert config["probe_key"]["source"] == f"file {secrets}/probe_key"
    assert config["admin_token"]["value"] is None
    assert b"t0psecret" not in answer.body


def test_the_admin_port_says_what_it_has_and_takes_no_changes(probe: Process) -> None:
    missing = probe.ask("/nothing", port="admin")
    assert (missing.status, b"/-/ready" in missing.body) == (404, True)
    refused = probe.ask("/-/ready", port="admin", method="POST")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
    head = probe.ask("/-/version", port="admin", method="HEAD")
    assert (head.status, head.body) == (200, b"")


def test_what_fails_on_the_admin_port_is_logged_and_costs_nothing_else(start: Start) -> None:
    process = start(APP_PROBE_BROKEN_METRIC="yes").ready()
    assert process.ask("/metrics", port="admin").status == 500
    assert "no figures" in process.line("admin request failed")["exception"]
    assert process.ask("/-/version", port="admin").status == 200


def test_bad_clients_of_the_admin_port_leave_no_trace(own: Process) -> None:
    address = ("127.0.0.1", own.port("admin"))
    crowd = [socket.create_connection(address) for _ in range(40)]
    with socket.create_connection(address) as nobody:
        assert nobody.recv(1) == b""
    for client in crowd:
        # A reset instead of a farewell.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()
    wait_for(lambda: ready_or_refused(own))
    with socket.create_connection(address) as rude:
        rude.sendall(b"NONSENSE\r\n\r\n")
        assert rude.recv(1000)
    assert [line["event"] for line in own.lines()] == ["listening", "ready"]
    assert own.stop() == 0
    assert own.err.read_text() == ""


def ready_or_refused(process: Process) -> bool:
    try:
        return ready(process) == 200
    except OSError:
        return False


def test_the_service_itself_is_ready_healthy_and_stops(start: Start) -> None:
    process = start.service().ready()
    assert ready(process) == 200
    assert ready(process, "http") == 200
    assert process.ask("/-/healthy", port="admin").body == b"healthy\n"
    assert process.stop() == 0
    assert process.err.read_text() == ""


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="this machine has no IPv6")  # noqa: PTH110
def test_ipv6_addresses_work(start: Start) -> None:
    process = start(APP_HTTP_HOST="::1", APP_ADMIN_HOST="::1").ready()
    assert process.line("listening")["http"].startswith("[::1]:")
    assert start("healthcheck", APP_ADMIN_HOST="::", APP_ADMIN_PORT=str(process.port("admin"))).wait() == 0
