"""Contract, section 5: liveness and readiness."""

from __future__ import annotations

import signal
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


def test_the_service_itself_is_ready_healthy_and_stops(start: Start) -> None:
    process = start.service().ready()
    assert ready(process) == 200
    assert ready(process, "http") == 200
    assert process.ask("/-/healthy", port="admin").body == b"healthy\n"
    assert process.stop() == 0
    assert process.err.read_text() == ""


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_ipv6_addresses_work(start: Start) -> None:
    process = start(APP_HTTP_HOST="::1", APP_ADMIN_HOST="::1").ready()
    assert process.line("listening")["http"].startswith("[::1]:")
    assert start.command("healthcheck", APP_ADMIN_HOST="::", APP_ADMIN_PORT=str(process.port("admin"))).status == 0
