"""Contract, section 6: the admin port when it is needed: stuck loops, storms of probes."""

import json
import random
import re
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from kit.service import ENDPOINTS, Asking, Service, wait_for
from kit.world import World

pytestmark = pytest.mark.slow


@pytest.fixture
def probe(world: World) -> Service:
    return world.start("probe").ready()


@pytest.mark.parametrize(("route", "function"), [("/block", "block"), ("/spin", "spin")])
def test_every_endpoint_answers_at_once_while_the_loop_is_stuck(
    world: World, route: str, function: str, tmp_path: Path, show: Callable[[str], None]
) -> None:
    service = world.start("probe", APP_HEALTH_STALL_LIMIT="1").ready()
    began = time.monotonic()
    over = tmp_path / "over"
    stuck = Asking(service, f"{route}?s=120&until={over}", limit=150.0)
    wait_for(lambda: service.status("/-/healthy", "admin") == 503, "liveness fails")
    failed_after = time.monotonic() - began
    times: list[float] = []
    for number in range(60):
        path = ENDPOINTS[number % len(ENDPOINTS)]
        asked = time.monotonic()
        answer = service.ask(path, port="admin")
        times.append((time.monotonic() - asked) * 1000)
        wanted = 503 if path in {"/-/healthy", "/-/ready"} else 200
        assert answer.status == wanted, f"{path}: {answer.status} {answer.text}"
        if path == "/-/healthy":
            assert re.search(rf"\w+\.py:\d+ {function}$", answer.text.strip()), answer.text
    assert stuck.is_alive(), "the loop was free before all was asked"
    median = statistics.median(times)
    show(f"{route}: median {median:.1f} ms, worst {max(times):.1f} ms; 503 after {failed_after:.2f} s")
    # None of them waited for the loop, and liveness did not fail before its limit.
    assert max(times) <= 5000, sorted(times)
    assert failed_after >= 1
    over.touch()
    stuck.join()
    wait_for(lambda: service.status("/-/healthy", "admin") == 200, "liveness is back")
    wait_for(lambda: service.status("/-/ready", "admin") == 200, "readiness is back")


def test_readiness_does_not_wait_for_a_loop_that_just_got_stuck(
    probe: Service, show: Callable[[str], None]
) -> None:
    stuck = Asking(probe, "/block?s=6")
    worst = 0.0
    while stuck.is_alive() and worst < 4:
        asked = time.monotonic()
        probe.ask("/-/ready", port="admin")
        worst = max(worst, time.monotonic() - asked)
        # Often enough to meet whatever the probe does about it, and no load.
        time.sleep(0.02)
    show(f"worst answer of /-/ready from the first moment on: {worst * 1000:.0f} ms")
    assert worst < 4, "a stuck loop made a readiness probe hang"


def test_what_holds_the_gil_is_dumped_and_among_the_stalls(world: World) -> None:
    service = world.start("probe", APP_HEALTH_STALL_LIMIT="0.1").ready()
    assert service.ask("/hold", limit=120).text == "let go"
    assert service.status("/-/healthy", "admin") == 200
    stalls = wait_for(lambda: json.loads(service.look("/-/stalls")), "the stall is remembered")
    assert max(stall["for_s"] for stall in stalls) > 0.5, stalls
    dump = service.err.read_text()
    assert "most recent call first" in dump
    assert re.search(r'probe\.py", line \d+ in hold', dump), dump


def test_a_storm_of_probes_costs_one_run_of_a_check_a_second(
    probe: Service, show: Callable[[str], None]
) -> None:
    def asked() -> int:
        return int(probe.ask("/gate/gate").text)

    statuses: list[int] = []

    def through_admin() -> None:
        statuses.extend(probe.status("/-/ready", "admin") for _ in range(100))

    def through_traffic() -> None:
        connection = probe.connect()
        statuses.extend(probe.ask("/-/ready", on=connection).status for _ in range(100))

    before, began = asked(), time.monotonic()
    threads = [threading.Thread(target=work) for work in (through_admin, through_traffic) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, runs = time.monotonic() - began, asked() - before
    show(f"1,000 probes in {took:.2f} s: {runs} runs")
    assert statuses == [200] * 1000
    assert 1 <= runs <= took + 1, f"{runs} runs in {took:.2f} s"


def test_clients_can_not_make_up_time_series(probe: Service) -> None:
    standard = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")
    odd = ("PROPFIND", "MKCOL", "LOCK", "REPORT", "M-SEARCH", "PURGE", "SUBSCRIBE")
    chance = random.Random(3)

    def answered() -> float:
        return sum(value for name, value in probe.series().items() if "_seconds_count{" in name)

    def send(count: int) -> None:
        connection = probe.connect()
        for number in range(count):
            made_up = quote(chance.randbytes(chance.randint(1, 60)), safe="/")
            path = chance.choice((f"/{made_up}", f"/{made_up}?{made_up}", f"/trouble/{number:x}"))
            method, headers = chance.choice((*standard, *odd)), {"X-Request-ID": f"{number}"}
            probe.ask(path, method=method, headers=headers, on=connection)

    def nonsense(method: str) -> None:
        assert probe.ask("/", method=method).status == 400

    # Each standard method, one for all others; each by a known and by the unknown route.
    for method in (*standard, odd[0]):
        for path in ("/trouble/none", "/nowhere"):
            probe.ask(path, method=method)
    nonsense("ABRACADABRA")
    before, first = probe.series().keys(), answered()
    send(3_000)
    for number in range(50):
        nonsense(f"MADEUP{number}")
    assert probe.series().keys() - before == set()
    assert answered() - first >= 3_000


def test_probes_that_reset_leave_no_line(world: World) -> None:
    service = world.start(None).ready()
    reset = struct.pack("ii", 1, 0)
    before = len(service.lines())
    for port in ("admin", "http"):
        for number in range(300):
            with service.dial(port) as check:
                # HAProxy's check reads the status; its check of layer 4 sends nothing; some do not wait.
                if number % 6:
                    check.sendall(b"GET /-/ready HTTP/1.0\r\n\r\n")
                if number % 3:
                    assert re.match(rb"HTTP/1.[01] 200", check.recv(16))
                check.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    service.ask("/greetings/last")
    wait_for(lambda: service.lines("request")[-1]["path"] == "/greetings/last", "the last request's line")
    lines = [(line["event"], line.get("path")) for line in service.lines()[before:]]
    # A probe on the traffic port is a request like any other; on the admin port there are no lines at all.
    probed = lines.count(("request", "/-/ready"))
    assert lines == [("request", "/-/ready")] * probed + [("request", "/greetings/last")]
    assert 200 <= probed <= 250
    assert service.err.read_text() == ""
