"""Contract, section 9: the limits that the four balancers keep, as they are configured here."""

import concurrent.futures
import contextlib
import re
import select
import signal
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit.balancers import BALANCERS, DOCS, FRONT, SLOTS, places
from kit.behind import Site, answered, behind, small
from kit.hostile import statuses
from kit.project import ROOT, Project, Renders
from kit.service import LOOPBACK, rest, wait_for
from kit.tools import tool
from kit.world import World

pytestmark = pytest.mark.slow

POST = b"POST /length HTTP/1.1\r\nHost: x\r\n"
# No limit of these tests is longer than this, with the time that a busy machine may need.
ENDED_SECONDS = 8
# What a client gets that asks too slowly; nginx closes the connection without a word, Traefik says 499.
TOO_SLOW: tuple[list[int], ...] = ([], [400], [408], [499], [504])
# Traefik has no buffer for bodies, so the service sees such a request, and its end.
BUFFERS_BODIES = frozenset({"haproxy", "nginx", "envoy"})
# What is answered when the instance has as many requests as it may have.
TOO_MANY = {"haproxy": {503}, "nginx": {502}, "traefik": {429}, "envoy": {503, 504}}


@pytest.fixture(scope="module")
def project(renders: Renders) -> Project:
    """The service for systemd, whose files have HAProxy's configuration."""
    return renders.for_chassis(deploy_to="systemd")


@pytest.fixture(scope="module")
def world(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(project, tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture(scope="module", params=BALANCERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def site(name: str, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service behind a balancer with small limits."""
    with behind(small(name), world, tmp_path_factory.mktemp(name)) as site:
        yield site


@pytest.mark.parametrize(
    ("start", "slowly"),
    [
        pytest.param(b"", b"GET /length HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1000, id="header block"),
        pytest.param(POST + b"Content-Length: 1000\r\n\r\n", b"", id="body"),
    ],
)
def test_a_slow_request_is_ended(name: str, site: Site, start: bytes, slowly: bytes) -> None:
    with site.dial() as client:
        client.sendall(start)
        began = time.monotonic()
        # Nothing can be read before the balancer has lost its patience.
        while slowly and not select.select([client], [], [], 0.05)[0]:
            client.sendall(slowly[:1])
            slowly = slowly[1:]
        client.settimeout(ENDED_SECONDS)
        assert statuses(rest(client)) in TOO_SLOW
    assert time.monotonic() - began < ENDED_SECONDS
    if not start or name in BUFFERS_BODIES:
        assert not site.seen("/length"), "a slow request reached the service"
    else:
        wait_for(lambda: site.seen("/length"), "its line")
        assert site.seen("/length")[0]["status"] == 499


def test_a_client_without_a_request_is_ended(site: Site) -> None:
    with site.dial() as client:
        client.settimeout(ENDED_SECONDS)
        assert statuses(rest(client)) in ([], [408])


def test_a_client_that_takes_none_of_its_answer_is_cut_off(site: Site) -> None:
    with site.dial() as client:
        client.sendall(b"GET /stream?n=40000 HTTP/1.1\r\nHost: x\r\n\r\n")
        # It is over in the service when it has been cut off there, or when the balancer has all of it.
        wait_for(lambda: site.seen("/stream"), "the end of the request in the service")
        # Twice the limit of 2 s, after which the balancer has cut the client off.
        time.sleep(4)
        assert not rest(client).endswith(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize(("kib", "passes"), [(12, True), (24, False)])
def test_a_header_block_above_16_kib_never_reaches_the_service(site: Site, kib: int, passes: bool) -> None:
    fields = b"".join(b"X-%d: %b\r\n" % (number, b"y" * 1010) for number in range(kib))
    head = b"GET /trouble/large%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b\r\n" % (kib, fields)
    [status] = statuses(site.send(head))
    assert status in ({200} if passes else {400, 431})
    if passes:
        wait_for(lambda: site.seen(f"/trouble/large{kib}"), "its line")
    else:
        assert not site.seen(f"/trouble/large{kib}")


def test_an_instance_gets_as_many_requests_as_it_may_have(name: str, site: Site) -> None:
    with concurrent.futures.ThreadPoolExecutor(60) as pool:
        asked = [pool.submit(answered, site, "/slow?s=1.5") for _ in range(60)]
        in_flight = [0.0]
        while not all(each.done() for each in asked):
            in_flight.append(site.in_flight())
        given = Counter(each.result() for each in asked)
    # A few more: the balancer's own checks, and Envoy's threads, which agree on a limit a moment later.
    assert 15 <= max(in_flight) <= 30
    # Those that were in flight at least; on a busy machine some come when the first are done.
    assert 15 <= given[200] < 60
    assert set(given) <= {200, *TOO_MANY[name]}, given


def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    requests = [b"GET /trouble/%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(200)]
    requests[-1] = requests[-1].replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    received = site.send(b"".join(requests))
    answers = [part.rpartition(b"\r\n\r\n")[2] for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert answers == [b"%d" % number for number in range(200)]


@pytest.mark.parametrize("name", ["haproxy", "envoy"])
def test_a_flood_of_connections_is_over_when_its_clients_have_been_ended(
    name: str, world: World, tmp_path: Path
) -> None:
    with behind(small(name), world, tmp_path) as site, contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(site.dial())
        wait_for(lambda: answered(site, "/trouble/x") == 200, "an answer for a newcomer", ENDED_SECONDS)


def test_a_large_body_goes_to_another_instance_when_one_refuses(
    name: str, world: World, tmp_path: Path
) -> None:
    """Whatever waits in the balancer must be complete when it is sent once more."""
    body = b"x" * 500_000
    with behind(BALANCERS[name], world, tmp_path, services=2) as site:
        for _ in range(4):
            assert site.ask("/length", method="POST", body=body).text == str(len(body))
        site.services[0].signal(signal.SIGKILL)
        site.services[0].wait()
        for _ in range(20):
            assert site.ask("/length", method="POST", body=body).text == str(len(body))


class Echo(socketserver.BaseRequestHandler):
    """An instance that is ready, and sends back what comes on a WebSocket's connection."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while head := self.request.recv(65536):
                if b"upgrade: websocket" not in head.lower():
                    self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    continue
                accepted = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
                self.request.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + accepted)
                while data := self.request.recv(65536):
                    self.request.sendall(data)


class Echoes(socketserver.ThreadingTCPServer):
    daemon_threads = True


def test_a_websocket_passes_and_outlives_the_limits_of_requests(
    name: str, project: Project, tmp_path: Path
) -> None:
    ports = places()
    with contextlib.ExitStack() as stack:
        for slot in (SLOTS[0], f"1{SLOTS[0]}"):
            echoes = stack.enter_context(Echoes((LOOPBACK, ports[slot]), Echo))
            threading.Thread(target=echoes.serve_forever, daemon=True).start()
            stack.callback(echoes.shutdown)
        stack.enter_context(small(name).running(project, tmp_path, ports, "/"))
        client = stack.enter_context(Site(ports[FRONT], []).dial())
        client.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert statuses(client.recv(65536)) == [101]
        began = time.monotonic()
        while time.monotonic() - began < 3:
            client.sendall(b"hello")
            assert client.recv(65536) == b"hello"
            time.sleep(0.3)


def columns() -> dict[str, list[str]]:
    """Return the table of limits in docs/load-balancers.md: for each of its columns, what stands as code."""
    page = (ROOT / "docs/load-balancers.md").read_text(encoding="utf-8")
    section = page.split("## What the balancer keeps\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    names = [cell.strip().lower() for cell in rows[0]]
    return {
        name: [code for row in rows[2:] for code in re.findall(r"`([^`]+)`", row[column])]
        for column, name in enumerate(names)
    }


def test_the_page_says_what_the_files_say(name: str, project: Project) -> None:
    limits = columns()[name]
    files = "".join((project.path / file).read_text(encoding="utf-8") for file in BALANCERS[name].files)
    assert len(limits) >= 6
    assert not [limit for limit in limits if limit not in files]


def test_the_two_files_of_haproxy_keep_the_same_limits(renders: Renders, project: Project) -> None:
    """But for the number of connections, which memory decides."""
    swarm = (renders.get(deploy_to="swarm").path / "deploy/swarm/haproxy.cfg").read_text(encoding="utf-8")
    assert not [limit for limit in columns()["haproxy"] if limit not in swarm.replace("3000", "6000")]


def test_the_lines_for_one_address_do_what_the_page_says(
    project: Project, world: World, tmp_path: Path
) -> None:
    page = (ROOT / "docs/load-balancers.md").read_text(encoding="utf-8")
    [lines] = re.findall(r"^  ```\n((?:  (?:stick-table|tcp-request) .*\n)+)  ```$", page, flags=re.M)
    before = "    http-request del-header X-Forwarded-For unless from_proxy\n"
    usual = BALANCERS["haproxy"]
    limited = replace(usual, quicker={**usual.quicker, before: before + lines.replace("gt 200", "gt 20")})
    with behind(limited, world, tmp_path) as site, contextlib.ExitStack() as stack:

        def is_one_too_many(source: str) -> bool:
            # HAProxy soon ends those without a request, and may take them in another order than they came in.
            for _ in range(20):
                # What is refused may be reset while connect() still runs.
                with contextlib.suppress(ConnectionResetError):
                    stack.enter_context(socket.create_connection((LOOPBACK, site.port), 5, (source, 0)))
            return answered(site, "/trouble/x", source=source) == 0

        wait_for(lambda: is_one_too_many("127.0.0.9"), "a refusal", every=1)
        assert not is_one_too_many(LOOPBACK), "a proxy is limited, too"
        assert answered(site, "/trouble/x", source="127.0.0.10") == 200


def test_haproxy_accepts_both_of_its_files(renders: Renders, project: Project) -> None:
    swarm = renders.get(deploy_to="swarm")
    for path in (project.path / "deploy/systemd/haproxy.cfg", swarm.path / "deploy/swarm/haproxy.cfg"):
        project.run(tool("haproxy"), "-c", "-f", path)


def test_envoy_accepts_its_file(project: Project) -> None:
    project.run(tool("envoy"), "--mode", "validate", "-c", DOCS / "envoy.yaml")
