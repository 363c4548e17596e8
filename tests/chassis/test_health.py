"""Contract, section 5: liveness and readiness."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from kit.service import Asking, Service, wait_for

from .start import Start

PINGS = (sys.executable, "-m", "apps.pings")
TOKEN = "t0ken"


@pytest.fixture
def pings(start: Start, secrets: Path) -> Service:
    """A service with a plain ping (Database) and an awaited one that is not critical (Queue)."""
    (secrets / "admin_token").write_text(TOKEN)
    (secrets / "broker_password").write_text("s3cret/pass word")
    return start.run(PINGS, {"APP_HEALTH_CHECK_TIMEOUT": "0.5", "APP_HEALTH_STALL_LIMIT": "3"}).ready()


def ready(process: Service, port: str = "admin") -> int:
    return process.status("/-/ready", port)


def threads(process: Service) -> int:
    return len(list(Path(f"/proc/{process.pid}/task").iterdir()))


def test_readiness_through_a_life(start: Start) -> None:
    process = start(APP_PROBE_START_DELAY="3", APP_DRAIN_DELAY="3")
    answer = process.ask("/-/ready", port="admin")
    assert (answer.status, answer.json()["state"]) == (503, "starting")
    assert answer.headers["content-type"] == "application/health+json"

    process.ready()
    answer = process.ask("/-/ready", port="admin")
    assert (answer.status, answer.json()["status"], answer.json()["state"]) == (200, "pass", "ready")
    assert answer.json()["checks"].keys() == {"Gate", "Lamp"}
    assert (ready(process, "http"), process.ask("/-/ready").body) == (200, b"ready\n")

    process.signal(signal.SIGTERM)
    wait_for(lambda: ready(process) == 503)
    assert process.readiness()["state"] == "draining"
    assert process.ask("/-/ready").body == b"draining\n"
    assert process.wait() == 0


def test_a_failing_check_is_critical_or_not_as_the_team_says(own: Service) -> None:
    own.ask("/gate/lamp?mode=shut")
    assert own.readiness()["checks"]["Lamp"][0]["status"] == "warn"
    assert ready(own) == 200
    own.ask("/gate/gate?mode=shut")
    wait_for(lambda: ready(own) == 503)
    [check] = own.readiness()["checks"]["Gate"]
    assert (check["status"], check["output"]) == ("fail", "ConnectionError: see the log")
    assert own.ask("/-/ready").body == b"failing\n"
    assert own.status("/-/healthy", "admin") == 200
    own.ask("/gate/gate?mode=open")
    wait_for(lambda: ready(own) == 200)


def test_a_check_that_changes_is_one_line_and_a_metric(own: Service) -> None:
    assert ready(own) == 200
    assert own.series()['readiness_check{name="Gate"}'] == 1
    assert own.lines("readiness check recovered") == []
    own.ask("/gate/gate?mode=shut", headers={"X-Request-ID": "not-the-check's"})
    own.ask("/gate/lamp?mode=shut")
    wait_for(lambda: ready(own, "http") == 503)
    time.sleep(1.1)
    assert ready(own) == 503
    lines = {line["check"]: line for line in own.lines("readiness check failed")}
    assert len(own.lines("readiness check failed")) == len(lines) == 2
    assert (lines["Gate"]["level"], lines["Lamp"]["level"]) == ("error", "warning")
    assert lines["Gate"]["error"] == "ConnectionError: the gate is shut"
    assert (lines["Gate"]["critical"], lines["Lamp"]["critical"]) == (True, False)
    # Whoever asks first has nothing to do with the check.
    assert "request_id" not in lines["Gate"]
    assert own.series()['readiness_check{name="Gate"}'] == 0
    own.ask("/gate/gate?mode=open")
    wait_for(lambda: ready(own) == 200)
    [line] = own.lines("readiness check recovered")
    assert (line["check"], line["level"]) == ("Gate", "info")
    assert line["after_s"] > 1
    assert own.series()['readiness_check{name="Gate"}'] == 1


def test_a_hanging_check_costs_its_time_limit_and_many_probes_cost_one_run(start: Start) -> None:
    process = start(APP_HEALTH_CHECK_TIMEOUT="0.3").ready()
    process.ask("/gate/gate?mode=hang")
    before = int(process.ask("/gate/gate").body)
    began = time.monotonic()
    probes = [Asking(process, "/-/ready", port=port) for port in ("admin", "http") * 5]
    for one in probes:
        one.join()
    assert time.monotonic() - began >= 0.3
    assert int(process.ask("/gate/gate").body) - before == 1
    assert process.readiness()["checks"]["Gate"][0]["output"] == "no answer within 0.3 s"
    process.ask("/gate/gate?mode=open")
    wait_for(lambda: ready(process) == 200)


def test_a_plain_ping_that_hangs_stops_neither_the_service_nor_liveness(pings: Service) -> None:
    pings.ask("/mode/database/sleep8")
    before = int(pings.ask("/mode/database/sleep8").body)
    assert pings.ask("/nap/0").body == b"rested"
    began = time.monotonic()
    answer = pings.ask("/-/ready", port="admin")
    assert answer.json()["checks"]["Database"][0]["output"] == "no answer within 0.5 s"
    held = threads(pings)
    while time.monotonic() < began + 3.5:
        asked = time.monotonic()
        assert pings.status("/nap/0.01") == 200
        assert time.monotonic() - asked < 4
        assert pings.status("/-/healthy", "admin") == 200
        assert ready(pings) == ready(pings, "http") == 503
        time.sleep(0.2)
    # However many probes there were: one call, one thread.
    assert int(pings.ask("/mode/database/open").body) - before == 1
    assert threads(pings) <= held + 2
    wait_for(lambda: ready(pings) == 200)
    assert pings.stop() == 0
    assert pings.err.read_text() == ""


def test_a_ping_that_hangs_does_not_hold_the_exit(pings: Service) -> None:
    pings.ask("/mode/database/sleep60")
    assert ready(pings) == 503
    assert threads(pings) > 0
    began = pings.signal(signal.SIGTERM)
    assert pings.wait() == 0
    assert time.monotonic() - began < 30


def test_a_ping_that_refuses_to_be_cancelled_costs_one_task(pings: Service) -> None:
    pings.ask("/mode/queue/deaf")
    for _ in range(4):
        pings.readiness()
        time.sleep(0.3)
    assert pings.readiness()["checks"]["Queue"][0]["output"] == "no answer within 0.5 s"
    assert pings.look("/-/stacks").count("aping\n") == 1
    pings.ask("/mode/queue/open")
    wait_for(lambda: pings.readiness()["checks"]["Queue"][0]["status"] == "pass")


@pytest.mark.parametrize("name", ["database", "queue"])
def test_no_reader_sees_a_secret_that_a_driver_tells(pings: Service, name: str) -> None:
    check = name.capitalize()
    pings.ask(f"/mode/{name}/leak")
    wait_for(lambda: "output" in pings.readiness()["checks"][check][0])
    paths = ("/-/ready", f"/-/ready/{check}", "/")
    for path in paths:
        answer = pings.ask(path, port="admin")
        assert ("Error: see the log" in answer.text, "@broker" in answer.text) == (True, False)
    for path in paths:
        shown = pings.ask(path, port="admin", headers={"Authorization": f"Bearer {TOKEN}"}).text
        assert {"database": "amqp://app:", "queue": "login failed"}[name] in shown
        assert "see the log" not in shown
    for path in paths:
        shown = pings.ask(path, port="admin", headers={"Authorization": f"Bearer {TOKEN}x"}).text
        assert "see the log" in shown
    assert pings.ask("/-/ready").body in (b"failing\n", b"ready\n")
    [line] = pings.lines("readiness check failed")
    assert "<secret>" in line["error"]
    assert "s3cret" not in pings.said()


def test_an_exception_without_a_text_is_a_failing_check(pings: Service) -> None:
    pings.ask("/mode/queue/broken")
    wait_for(lambda: pings.readiness()["checks"]["Queue"][0].get("output") == "Broken: see the log")
    assert "Broken" in pings.line("readiness check failed")["error"]


def test_a_stuck_event_loop_fails_liveness_and_says_where_it_is(start: Start) -> None:
    process = start(APP_HEALTH_STALL_LIMIT="0.3", APP_HEALTH_CHECK_TIMEOUT="20").ready()
    assert process.status("/-/healthy", "admin") == 200
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
    assert process.status("/metrics", "admin") == 200
    blocked.join()
    wait_for(lambda: process.status("/-/healthy", "admin") == 200)


def test_a_process_that_hangs_after_its_loop_has_ended_is_not_healthy(start: Start) -> None:
    process = start.run(PINGS, {"APP_DRAIN_TIMEOUT": "3"}).ready()
    port = process.port("admin")
    process.ask("/linger")
    process.signal(signal.SIGTERM)
    process.line("stopped")
    answer = process.ask("/-/healthy", port="admin")
    assert (answer.status, answer.body) == (503, b"stopped\n")
    assert process.ask("/-/ready", port="admin").json()["state"] == "stopped"
    assert port == process.port("admin")
    process.wait()


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
    asked = start.service("healthcheck", APP_ADMIN_HOST="::", APP_ADMIN_PORT=str(process.port("admin")))
    assert asked.wait() == 0
