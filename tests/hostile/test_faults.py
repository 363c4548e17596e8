"""Contract, section 7: faults around the service and in it; it ends only as it should."""

import contextlib
import json
import random
import re
import signal
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
from kit.hostile import SCALE, Behaved, statuses
from kit.service import Service, free_ports, rest, wait_for
from kit.tools import tool
from kit.world import World

pytestmark = pytest.mark.slow

SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


def state(service: Service) -> tuple[int, int, int]:
    """Return the status codes of readiness on both ports, and of liveness."""
    ready, healthy = "/-/ready", "/-/healthy"
    return service.status(ready), service.status(ready, "admin"), service.status(healthy, "admin")


def is_in(service: Service, wanted: tuple[int, int, int]) -> bool:
    return state(service) == wanted


def test_a_dependency_that_hangs_refuses_or_flaps_moves_readiness_only(world: World) -> None:
    service = world.start(APP_HEALTH_CHECK_TIMEOUT="0.3").ready()
    behaved = Behaved(service)
    stop = threading.Event()
    seen: set[int] = set()

    def probes() -> None:
        while not stop.wait(0.005):
            seen.add(service.status("/-/ready"))
            assert service.status("/-/healthy", "admin") == 200

    crowd = [threading.Thread(target=probes) for _ in range(4)]
    asked = int(service.ask("/gate/gate").text)
    began = time.monotonic()
    for prober in crowd:
        prober.start()
    try:
        for mode, status in (("hang", 503), ("open", 200), ("shut", 503), ("open", 200)):
            assert service.status(f"/gate/gate?mode={mode}") == 200
            wait_for(partial(is_in, service, (status, status, 200)), f"{status} by {mode}")
            behaved.asks()
        for number in range(40):
            service.ask(f"/gate/gate?mode={('open', 'shut')[number % 2]}")
            behaved.asks()
    finally:
        stop.set()
        for prober in crowd:
            prober.join()
    # A run a second at most, however many ask.
    runs = int(service.ask("/gate/gate").text) - asked
    assert runs <= time.monotonic() - began + 2
    assert seen == {200, 503}


@pytest.mark.parametrize("seed", range(6 * SCALE))
def test_signals_in_any_order_at_any_stage_end_it_as_they_should(world: World, seed: int) -> None:
    chance = random.Random(seed)
    stage = ("born", "starting", "ready", "draining")[seed % 4]
    starting = stage == "starting"
    delay = "0" if starting else "1"
    if stage == "born":
        # Who hears signals from the first moment on is the service's own main.
        service = world.start(None, APP_DRAIN_DELAY=delay)
    else:
        service = world.start(APP_DRAIN_DELAY=delay, APP_PROBE_START_DELAY="3" if starting else "0")
    if stage == "ready":
        service.ready()
    elif stage == "starting":
        wait_for(lambda: service.lines("listening"), "the listeners")
    elif stage == "draining":
        service.ready()
        service.signal(signal.SIGTERM)
        wait_for(lambda: service.lines("draining"), "the drain")
    else:
        # From then on it is our code that hears signals, while it still imports the rest.
        wait_for(lambda: _hears(service, signal.SIGTERM), "the first handler")
        time.sleep(chance.uniform(0, 0.4))
    sent = chance.choices(SIGNALS, k=chance.randint(1, 5))
    for number in sent:
        service.signal(number)
        time.sleep(chance.choice((0.0, 0.01, 0.05)))
    ends = [number for number in sent if number != signal.SIGHUP]
    if stage == "draining":
        ends.insert(0, signal.SIGTERM)
    if not ends:
        service.ready()
        Behaved(service).asks("/-/ready", b"ready\n")
        service.signal(signal.SIGTERM)
    status = service.wait()
    # The kernel keeps one of each kind, and of those that wait together the lowest number comes first.
    # A second one that comes when all is done finds the kernel's default.
    allowed = {0, *(status for number in ends if len(ends) > 1 for status in (128 + number, -number))}
    assert status in allowed, (stage, sent, status, service.said())
    assert service.err.read_text() == ""
    service.lines()


def _hears(service: Service, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal: proc(5), SigCgt."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{service.pid}/status").read_text()
        caught = int(re.findall(r"SigCgt:\s+([0-9a-f]+)", status)[0], 16)
        return bool(caught >> (number - 1) & 1)
    return False


def test_killed_and_started_again_it_serves_at_once_on_the_same_port(world: World) -> None:
    ports = dict(zip(("http", "admin"), free_ports(2), strict=True))
    for _ in range(3):
        service = world.start(ports=ports).ready()
        clients = [Behaved(service) for _ in range(10)]
        for client in clients:
            client.asks()
        service.popen.kill()
        assert service.wait(30) == -signal.SIGKILL
        for client in clients:
            client.close()


def test_a_start_up_that_fails_ends_with_one_clear_line(world: World) -> None:
    service = world.start(APP_PROBE_START_ERROR="no database")
    assert service.wait() == 1
    [line] = [line for line in service.lines() if line["level"] in {"error", "critical"}]
    assert line["event"] == "startup failed"
    assert "no database" in line["exception"]
    assert service.err.read_text() == ""


def test_a_start_up_that_hangs_is_alive_unready_and_ends_when_told(world: World) -> None:
    service = world.start(APP_PROBE_START_DELAY="60")
    # Requests wait for the end of it: only the admin port answers.
    assert service.readiness()["state"] == "starting"
    assert service.status("/-/healthy", "admin") == 200
    service.signal(signal.SIGTERM)
    assert service.wait(30) == 0


def test_a_task_that_dies_silently_is_logged_and_counted(world: World) -> None:
    service = world.start().ready()
    before = service.series()["uncaught_exceptions_total"]
    assert service.status("/die") == 200
    wait_for(lambda: service.series()["uncaught_exceptions_total"] == before + 1, "the count")
    [line] = [line for line in service.lines() if "the task died" in line.get("exception", "")]
    assert line["level"] == "error"
    Behaved(service).asks()


def test_an_exception_group_is_one_500_and_one_line(world: World) -> None:
    service = world.start().ready()
    assert service.status("/group") == 500
    # It is written when the response has been sent.
    line = service.line("unhandled exception")
    assert service.lines("unhandled exception") == [line]
    assert all(f"part {number}" in line["exception"] for number in range(3))


def test_a_request_that_asks_for_too_much_memory_fails_alone(world: World) -> None:
    service = world.start(prefix=("prlimit", f"--as={1 << 31}", "--")).ready()
    behaved = Behaved(service)
    assert service.status("/allocate") == 500
    assert "MemoryError" in service.line("unhandled exception")["exception"]
    behaved.asks()


def test_a_handler_that_ignores_its_end_ends_with_the_process(world: World) -> None:
    service = world.start(APP_DRAIN_TIMEOUT="0.3").ready()
    with service.dial() as client:
        client.sendall(b"GET /stubborn HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: service.series()["http_server_active_requests"] == 1, "the request")
        service.signal(signal.SIGTERM)
        assert service.wait() == 1
        assert statuses(rest(client)) in ([], [503])
    assert service.lines("requests cut off")[0]["requests"] == 1


def test_a_clock_that_is_set_back_changes_no_limit(world: World, tmp_path: Path) -> None:
    """All waiting is by the monotonic clock, which nobody sets; what people read is by the other."""
    library = tool("libfaketime")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    faketime = (
        f"LD_PRELOAD={library}",
        f"FAKETIME_TIMESTAMP_FILE={clock}",
        "FAKETIME_NO_CACHE=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
    )
    service = world.start(prefix=("env", *faketime), APP_HEALTH_CHECK_TIMEOUT="1").ready()
    behaved = Behaved(service)
    behaved.asks()
    began = time.monotonic()
    with service.dial() as slow:
        slow.sendall(b"GET /trouble/never HTTP/1.1\r\n")
        clock.write_text("-7200")
        behaved.asks()
        # Seen by the service, or there is nothing to show.
        wait_for(lambda: _hour(service.lines()[-1]) != _hour(service.lines()[0]), "the clock being back")
        assert statuses(rest(slow)) in ([], [408])
    assert service.status("/gate/gate?mode=hang") == 200
    wait_for(lambda: state(service) == (503, 503, 200), "the hanging check noticed")
    assert service.status("/gate/gate?mode=open") == 200
    wait_for(lambda: state(service) == (200, 200, 200), "readiness again")
    behaved.asks()
    assert all(line["duration_ms"] >= 0 for line in service.lines("request"))
    assert 0 <= json.loads(service.look("/-/version"))["uptime_seconds"] <= time.monotonic() - began + 20
    assert 0 <= json.loads(service.look("/-/ready/Gate"))["age_s"] < 20
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert service.lines("stopped")


def _hour(line: Mapping[str, str]) -> str:
    return line["timestamp"][:13]
