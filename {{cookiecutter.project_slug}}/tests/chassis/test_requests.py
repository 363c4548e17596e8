"""Contract, section 9: every request gets an answer that tells the client enough, and not more."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from {{ cookiecutter.package_name }}.chassis.forwarded import TrustedProxies
from {{ cookiecutter.package_name }}.chassis.health import Health
from {{ cookiecutter.package_name }}.chassis.metrics import Metrics
from {{ cookiecutter.package_name }}.chassis.middleware import Middleware, Traffic

from .conftest import Start, started
from .process import Process, wait_for

if TYPE_CHECKING:
    from {{ cookiecutter.package_name }}.chassis.middleware import Receive, Scope, Send


def test_an_unhandled_exception_tells_the_client_only_the_request_id(own: Process) -> None:
    answer = own.ask("/trouble/exception", headers={"X-Request-ID": "r1"})
    assert (answer.status, answer.headers["content-type"]) == (500, "application/problem+json")
    assert answer.json() == {"status": 500, "title": "Internal Server Error", "request_id": "r1"}
    line = own.line("unhandled exception")
    assert line["request_id"] == "r1"
    assert "RuntimeError: boom" in line["exception"]
    assert own.request_line("/trouble/exception")["status"] == 500


@pytest.mark.parametrize("path", ["/silent", "/trouble/exit", "/trouble/cancel"])
def test_no_answer_and_an_exit_are_errors_like_any_other(probe: Process, path: str) -> None:
    assert probe.ask(path).headers["content-type"] == "application/problem+json"
    assert probe.ask("/trouble/nothing").status == 200


def test_an_answer_of_500_that_the_service_means_is_its_own(probe: Process) -> None:
    assert probe.ask("/trouble/deliberate").json() == {"mine": True}
    assert probe.ask("/trouble/stream").body == b"ab"


def test_an_answer_that_breaks_half_way_ends_the_connection(own: Process) -> None:
    with socket.create_connection(("127.0.0.1", own.port())) as client:
        client.sendall(b"GET /stream?n=1&raise=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 200")
    assert not received.endswith(b"0\r\n\r\n")
    assert "half way" in own.line("unhandled exception")["exception"]


def test_long_answers_arrive_whole(probe: Process) -> None:
    assert len(probe.ask("/stream?n=5000").body) == 5_000_000


def test_pipelined_requests_are_answered_in_order(probe: Process) -> None:
    with socket.create_connection(("127.0.0.1", probe.port())) as client:
        request = "GET /trouble/{} HTTP/1.1\r\nHost: x\r\nX-Request-ID: {}\r\n{}\r\n"
        ids = range(5)
        client.sendall("".join(request.format(i, i, "Connection: close\r\n" * (i == 4)) for i in ids).encode())
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert [answer[-1:] for answer in received.split(b"HTTP/1.1 200 OK")[1:]] == [b"0", b"1", b"2", b"3", b"4"]


def test_no_answer_waits_until_others_are_counted_and_logged() -> None:
    """Requests come in crowds; what each costs after its answer would be the wait of those behind it."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            # As the server does it: what is written in one iteration goes out in the next.
            asyncio.get_running_loop().call_soon(seen.append, "answered")

    async def crowd() -> None:
        scope: Scope = {"type": "http", "http_version": "1.0", "method": "GET", "path": "/", "raw_path": b"/"}
        scope.update(client=None, headers=[])
        await asyncio.gather(*(middleware(dict(scope), cast("Receive", None), send) for _ in range(3)))
        for _ in range(3):
            await asyncio.sleep(0)

    metrics = SimpleNamespace(durations=SimpleNamespace(observe=lambda *_: seen.append("counted")))
    health = Health(1, 1)
    health.state = "ready"
    middleware = Middleware(app, health, cast("Metrics", metrics), Traffic(), TrustedProxies(""), 0)
    asyncio.run(crowd())
    assert seen == ["answered"] * 3 + ["counted"] * 3


def test_a_body_over_the_limit_is_refused(start: Start) -> None:
    process = start(APP_HTTP_MAX_BODY="1000").ready()
    assert process.ask("/length", method="POST", body=b"x" * 1000).body == b"1000"
    for body in (b"x" * 1001, iter([b"x" * 1000, b"x"])):
        answer = process.ask("/length", method="POST", body=body)
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert answer.json()["detail"] == "A request body may have 1000 bytes at most."
    wait_for(lambda: len(process.lines("request")) == 3)
    assert not process.lines("unhandled exception")


@pytest.mark.parametrize("length", ["8000000", None])
def test_a_client_that_sends_far_too_much_is_told(probe: Process, length: str | None) -> None:
    headers = {"Content-Length": length} if length else {}
    chunks = (b"x" * 100_000 for _ in range(80))
    answer = probe.ask("/length", method="POST", body=chunks, headers=headers)
    assert (answer.status, answer.headers["connection"]) == (413, "close")


def test_a_client_that_leaves_is_no_error(own: Process) -> None:
    with socket.create_connection(("127.0.0.1", own.port())) as client:
        client.sendall(b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        wait_for(lambda: b"active_requests 1.0" in own.ask("/metrics", port="admin").body)
    assert own.request_line("/length")["status"] == 499
    assert not own.lines("unhandled exception")


TRUSTED = "127.0.0.0/8,10.0.0.0/8,2001:db8::/32"
CHAIN = {
    "X-Forwarded-For": "198.51.100.1, 203.0.113.7, 10.1.1.1",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "shop.example:8443",
}


@pytest.fixture(scope="module")
def behind_proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The probe behind proxies that it trusts, for all tests that leave it as it is."""
    with started(tmp_path_factory, APP_HTTP_TRUSTED_PROXIES=TRUSTED) as process:
        yield process


@pytest.mark.parametrize(
    ("headers", "origin"),
    [
        ({}, "http 127.0.0.1"),
        (CHAIN, "https 203.0.113.7 shop.example:8443"),
        ({"X-Forwarded-For": "203.0.113.7:4711"}, "http 203.0.113.7"),
        ({"X-Forwarded-For": "198.51.100.1, [2001:db9::7]:4711, 2001:db8::2"}, "http 2001:db9::7"),
        ({"X-Forwarded-For": "2001:DB9:0::7"}, "http 2001:db9::7"),
        ({"X-Forwarded-For": "::ffff:203.0.113.7, ::ffff:10.1.1.1"}, "http 203.0.113.7"),
        ({"X-Forwarded-For": "10.2.2.2, 10.1.1.1"}, "http 10.2.2.2"),
        ({"X-Forwarded-For": "203.0.113.7, <script>, 10.1.1.1"}, "http 10.1.1.1"),
        ({"X-Forwarded-For": ", ,"}, "http 127.0.0.1"),
        ({"X-Forwarded-Proto": "http, HTTPS"}, "https 127.0.0.1"),
        ({"X-Forwarded-Proto": "gopher"}, "http 127.0.0.1"),
        ({"X-Forwarded-Host": "evil.example, shop.example"}, "http 127.0.0.1 shop.example"),
        ({"X-Forwarded-Host": "[2001:db8::1]:80"}, "http 127.0.0.1 [2001:db8::1]:80"),
        ({"X-Forwarded-Host": "shop.example/path"}, "http 127.0.0.1"),
        ({"Forwarded": "for=203.0.113.7;proto=https;host=shop.example"}, "https 203.0.113.7 shop.example"),
        (
            {"Forwarded": 'for=198.51.100.1;host=x, For="[2001:db9::7]:4711"; Proto=https, for=10.1.1.1;proto=http'},
            "https 2001:db9::7",
        ),
        ({"Forwarded": 'for=unknown;proto=https;host="a,b;c"'}, "https 127.0.0.1"),
        ({"Forwarded": "for=203.0.113.7, for=_hidden, for=10.1.1.1"}, "http 10.1.1.1"),
        ({"Forwarded": 'nonsense;;for="203.0.113.7'}, "http 203.0.113.7"),
        # A client's own Forwarded, which most proxies let pass, does not replace what the proxy says.
        ({"Forwarded": "for=192.0.2.1;host=evil.example", "X-Forwarded-For": "203.0.113.7"}, "http 203.0.113.7"),
    ],
)
def test_trusted_proxies_tell_who_asks_and_how(behind_proxies: Process, headers: dict[str, str], origin: str) -> None:
    scheme, client, *host = origin.split()
    ours = f"127.0.0.1:{behind_proxies.port()}"
    name = f"/address/{len(behind_proxies.lines('request'))}"
    assert behind_proxies.ask(name, headers=headers).body.decode() == f"{scheme} {client} {host[0] if host else ours}"
    assert behind_proxies.request_line(name)["client"] == client


def test_a_long_forwarded_header_is_read_in_no_time(behind_proxies: Process) -> None:
    for header in ("for=10.1.1.1," * 4000, 'for="' * 10000, '"' * 50000):
        began = time.monotonic()
        assert behind_proxies.ask("/address/long", headers={"Forwarded": header}).status == 200
        assert time.monotonic() - began < 1


@pytest.mark.parametrize("trusted", ["192.0.2.1", "", "10.0.0.0/8,::1"])
def test_what_strangers_say_of_themselves_changes_nothing(start: Start, trusted: str) -> None:
    process = start(APP_HTTP_TRUSTED_PROXIES=trusted).ready()
    forged = CHAIN | {"Forwarded": "for=192.0.2.9;proto=https;host=evil.example"}
    assert process.ask("/address/x", headers=forged).body.decode() == f"http 127.0.0.1 127.0.0.1:{process.port()}"
    assert process.request_line("/address/x")["client"] == "127.0.0.1"


def test_a_proxy_is_known_on_a_listener_for_both_families(start: Start) -> None:
    process = start(APP_HTTP_HOST="::", APP_HTTP_TRUSTED_PROXIES="127.0.0.1").ready()
    process.ask("/address/x", headers={"X-Forwarded-For": "203.0.113.7"})
    assert process.request_line("/address/x")["client"] == "203.0.113.7"
