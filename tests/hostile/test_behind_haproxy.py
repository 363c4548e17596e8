"""Contract, section 9: what HAProxy keeps from the service, with the template's configuration."""

import concurrent.futures
import contextlib
import socket
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.balancers import BALANCERS
from kit.behind import Kept, Site, answered, behind, small
from kit.hostile import SCALE, descriptors, send, sound, statuses
from kit.project import Renders
from kit.service import rest, wait_for
from kit.tools import tool
from kit.world import World

pytestmark = pytest.mark.slow

POST = b"POST /length HTTP/1.1\r\nHost: x\r\n"
SLOW_POST = b"POST /trouble/slow HTTP/1.1\r\nHost: x\r\n"
# How many slow clients there are at once.
CROWD = 40 * SCALE


@pytest.fixture(scope="module")
def world(renders: Renders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """What starts services of the project whose files have HAProxy's configuration."""
    project = renders.for_chassis(deploy_to="systemd")
    with World(project, tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture(scope="module")
def site(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """HAProxy with small limits; the service must be sound after all that this file does to it."""
    with behind(small("haproxy"), world, tmp_path_factory.mktemp("haproxy")) as site:
        yield site
        sound(site.service)


@pytest.fixture
def kept(site: Site) -> Iterator[Kept]:
    """A client that was there before the trouble, and is answered during it; newcomers are afterwards."""
    client = Kept(site)
    client.asks()
    yield client
    client.close()
    assert site.ask("/trouble/x").status == 200


# What comes at once, and what then comes byte by byte.
SLOW = {
    "header block": (b"", b"GET /trouble/slow HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1000),
    "body": (SLOW_POST + b"Content-Length: 1000\r\n\r\n", b"y" * 1000),
    "chunked body": (SLOW_POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\ny\r\n" * 200),
}


@pytest.mark.parametrize("what", SLOW)
def test_slow_requests_are_ended_and_never_reach_the_service(site: Site, kept: Kept, what: str) -> None:
    at_once, slowly = SLOW[what]
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(site.dial()) for _ in range(CROWD)]
        for client in crowd:
            client.sendall(at_once)
        for place in range(30):
            for client in crowd:
                send(client, slowly[place : place + 1])
            kept.asks()
            time.sleep(0.05)
        assert [statuses(rest(client)) for client in crowd] == [[408]] * CROWD
    assert not site.seen("/trouble/slow"), "a slow request reached the service"


def test_a_large_body_that_stops_is_ended(site: Site, kept: Kept) -> None:
    """The first part of it fills HAProxy's buffer, so the service has got the request by then."""
    assert statuses(site.send(POST + b"Content-Length: 100000\r\n\r\n" + b"y" * 40_000)) == [504]
    wait_for(lambda: site.seen("/length"), "the line of the request")
    assert site.seen("/length")[0]["status"] == 499


def test_a_client_that_takes_none_of_its_answer_is_cut_off(site: Site, kept: Kept) -> None:
    """HAProxy does not buffer answers, so for these 2 s each has one of the service's 20 places."""
    with contextlib.ExitStack() as stack:
        crowd = []
        for _ in range(15):
            crowd.append(client := stack.enter_context(site.dial()))
            client.sendall(b"GET /stream?n=20000 HTTP/1.1\r\nHost: x\r\n\r\n")
        kept.asks()
        wait_for(lambda: len(site.seen("/stream")) == len(crowd), "the end of all of them")
        assert max(line["duration_ms"] for line in site.seen("/stream")) > 1500
        assert not [client for client in crowd if rest(client).endswith(b"\r\n0\r\n\r\n")]


def test_a_client_that_reads_slowly_but_steadily_gets_all(site: Site, kept: Kept) -> None:
    with site.dial() as client:
        client.sendall(b"GET /stream?n=20000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        size = 0
        while data := client.recv(65536 if size > 5_000_000 else 16384):
            size += len(data)
            if size < 5_000_000:
                time.sleep(0.01)
    assert size > 20_000_000


def test_a_flood_of_connections_costs_newcomers_a_moment_and_the_service_nothing(
    site: Site, kept: Kept
) -> None:
    """There may be 200 at once. The others wait until the first have had their second for a request."""
    before = descriptors(site.service)
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(site.dial())
        kept.asks()
        assert descriptors(site.service) <= before + 3
        assert site.ask("/trouble/x").status == 200


@pytest.mark.parametrize(("count", "seconds", "expected"), [(30, 0.2, {200}), (80, 2, {200, 503})])
def test_a_flood_of_requests_waits_in_the_balancer(
    site: Site, count: int, seconds: float, expected: set[int]
) -> None:
    """The service may have 20 at once. The others wait for a place; after a second they get 503."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(answered, site, f"/slow?s={seconds}") for _ in range(count)]
        while not all(each.done() for each in asked):
            # The balancer's own checks may be among them.
            assert site.in_flight() <= 22
        given = Counter(each.result() for each in asked)
    assert given.keys() == expected
    assert given[200] >= 20


def test_a_flood_of_pipelined_requests_is_answered_in_order_and_one_at_a_time(site: Site, kept: Kept) -> None:
    count = 2000 * SCALE
    with site.dial() as client:

        def flood() -> None:
            for number in range(count):
                last = b"Connection: close\r\n" * (number == count - 1)
                client.sendall(b"GET /trouble/%d HTTP/1.1\r\nHost: x\r\n%b\r\n" % (number, last))

        writer = threading.Thread(target=flood)
        writer.start()
        most, received = 0.0, b""
        while data := client.recv(65536):
            received += data
            most = max(most, site.in_flight())
        writer.join()
    answers = [part.rpartition(b"\r\n\r\n")[2] for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert answers == [b"%d" % number for number in range(count)]
    assert most <= 1


@pytest.mark.parametrize(("kib", "status"), [(12, 200), (18, 400), (60, 400)])
def test_a_header_block_above_15_kib_never_reaches_the_service(
    site: Site, kept: Kept, kib: int, status: int
) -> None:
    fields = b"".join(b"X-%d: %b\r\n" % (number, b"y" * 1010) for number in range(kib))
    head = b"GET /trouble/large%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b\r\n" % (kib, fields)
    assert statuses(site.send(head)) == [status]
    if status == 200:
        wait_for(lambda: site.seen(f"/trouble/large{kib}"), "its line")
    else:
        assert not site.seen(f"/trouble/large{kib}")


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(site: Site, kept: Kept) -> None:
    with site.dial() as client:
        client.sendall(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
        assert statuses(client.recv(1000)) == [100]
        client.sendall(b"abc")
        assert rest(client).endswith(b"\r\n\r\n3")


# slowhttptest in its three modes, and what it asks for.
MODES: dict[str, tuple[str, ...]] = {
    "header blocks": ("-H",),
    "bodies": ("-B", "-s", "8192", "-t", "POST"),
    "readers": ("-X", "-w", "10", "-y", "20", "-n", "1", "-z", "8"),
}
PATHS = {"header blocks": "/trouble/x", "bodies": "/length", "readers": "/large"}
ATTACK_SECONDS = 3 * SCALE


def p99(site: Site, until: float) -> float:
    """Return the 99th percentile of the times of one client after another, in seconds, until then."""
    client = Kept(site)
    times: list[float] = []
    while time.monotonic() < until or len(times) < 200:
        began = time.perf_counter()
        client.asks()
        times.append(time.perf_counter() - began)
        time.sleep(0.002)
    client.close()
    return statistics.quantiles(times, n=100)[98]


@pytest.mark.parametrize("mode", MODES)
def test_slowhttptest_costs_a_normal_client_nothing(
    world: World, tmp_path: Path, mode: str, show: Callable[[str], None]
) -> None:
    program = tool("slowhttptest")
    limits = ("-c", "300", "-r", "300", "-i", "1", "-p", "2", "-l", str(ATTACK_SECONDS))
    with behind(BALANCERS["haproxy"], world, tmp_path) as site:
        quiet = p99(site, time.monotonic() + ATTACK_SECONDS / 2)
        url = f"http://127.0.0.1:{site.port}{PATHS[mode]}"
        attack = subprocess.Popen(
            (program, *MODES[mode], *limits, "-u", url),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
        )
        try:
            busy = p99(site, time.monotonic() + ATTACK_SECONDS)
        finally:
            attack.terminate()
            attack.wait()
        sound(site.service)
    ratio = busy / quiet
    show(f"slow {mode}: p99 of a normal client {ratio:.1f} times that without")
    # Other tests share the machine in a usual run, and their share is no fault of the service.
    assert SCALE == 1 or ratio <= 2


def test_connections_that_clients_reset_leave_nothing(site: Site, kept: Kept) -> None:
    before = descriptors(site.service)
    for number in range(CROWD):
        with site.dial() as client:
            send(client, b"GET /slow?s=5 HTTP/1.1\r\nHost: x\r\n\r\n")
            if number % 2:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait_for(lambda: site.in_flight() == 0, "no request in flight")
    wait_for(lambda: descriptors(site.service) <= before + 3, f"{before} descriptors or a few more")
