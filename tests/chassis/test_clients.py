"""Contract, section 9: whatever a client sends, or doesn't, costs it its own connection at most."""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import uvloop
from apps.hurried import LIMITS
from kit.service import Service, rest, wait_for
from my_service.chassis.http import server
from my_service.chassis.http.connection import JoinedWrites

from .incidents import launch
from .start import Start, started

GET = b"GET /trouble/nothing HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /length HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
# What clients send that never send the rest.
LAZY = {
    "nothing at all": b"",
    "an empty line": b"\r\n",
    "half a request line": b"GET / HT",
    "half a header block": b"GET / HTTP/1.1\r\nHost:",
    "a request, then half a header block": GET + b"\r\nGET / HTTP/1.1\r\nHost:",
    "half a body": POST + b"Content-Length: 10\r\n\r\nabc",
    "half a chunk": POST + CHUNKED + b"\r\n5\r\nab",
}
# The service looks once a second, and a machine may be busy.
ALLOWED_S = 5.0


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A probe with little patience and a small limit for bodies, for all tests of this file."""
    settings = {"APP_HTTP_MAX_BODY": "1000", "APP_HTTP_KEEP_ALIVE": "10"}
    with started(tmp_path_factory, "hurried", **settings) as process:
        yield process


def refusals(process: Service, reason: str) -> float:
    """Return how often clients were refused for *reason*."""
    return process.series().get(f'http_server_refusals_total{{reason="{reason}"}}', 0)


@pytest.mark.parametrize(
    "bad",
    [
        b"NONSENSE\r\n\r\n",
        b"GET \xff HTTP/1.1\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n",
        POST + b"Content-Length: x\r\n\r\n",
        POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        POST + b"Content-Length: 3\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
        POST + CHUNKED + b"\r\nzz\r\n",
        GET + b"X: a\0b\r\n\r\n",
        GET + b"X : a\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_400_and_costs_nobody_else(probe: Service, bad: bytes) -> None:
    kept = probe.connect()
    probe.ask("/trouble/before", on=kept)
    before = refusals(probe, "malformed")
    answer = probe.send(bad)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nconnection: close\r\n" in answer
    assert b"application/problem+json" in answer
    assert refusals(probe, "malformed") == before + 1
    assert probe.ask("/trouble/after", on=kept).status == 200


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n", b"Host: a b\r\n", b"Host: a/b\r\n"])
def test_a_request_has_one_valid_host(probe: Service, hosts: bytes) -> None:
    answer = probe.send(b"GET /trouble/nothing HTTP/1.1\r\n" + hosts + b"\r\n" + GET + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"one valid Host" in answer
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert probe.send(b"GET /trouble/nothing HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert probe.send(b"GET /trouble/nothing\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_what_is_bad_behind_a_request_does_not_cost_its_answer(probe: Service) -> None:
    slow = GET.replace(b"trouble/nothing", b"slow?s=0.1") + b"\r\n"
    for more in (b"", GET + b"\r\n"):
        received = probe.send(slow + more + b"NONSENSE\r\n\r\n")
        assert received.count(b"HTTP/1.1 200") == received.count(b"HTTP/1.1 ") == 1 + bool(more)


@pytest.mark.parametrize(("path", "answers"), [(b"/trouble/nothing", 1), (b"/slow?s=0.1", 1)])
def test_a_bad_body_gets_no_second_answer(probe: Service, path: bytes, answers: int) -> None:
    with probe.dial() as client:
        client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\n")
        if path == b"/trouble/nothing":
            assert client.recv(65536).endswith(b"nothing")
            answers -= 1
        client.sendall(b"zz\r\n")
        assert rest(client).count(b"HTTP/1.1 ") == answers


@pytest.mark.parametrize("start", [GET, POST + CHUNKED + b"\r\n0\r\n", POST + CHUNKED + b"\r\n1;"])
# Many pieces at a read, and a read for nearly each.
@pytest.mark.parametrize("pause", [0, 0.001])
def test_endless_header_blocks_and_trailers_are_refused(probe: Service, start: bytes, pause: float) -> None:
    before = refusals(probe, "head")
    line = b"X-Long: " + b"x" * 10_000 + b"\r\n" if not start.endswith(b";") else b"x" * 10_000
    began, sent = time.monotonic(), 0
    with probe.dial() as client:
        with contextlib.suppress(ConnectionError):
            # What is read at once with the header block, 256 KiB at most, is not counted.
            for piece in (start, *[line] * 70):
                client.sendall(piece)
                sent += 1
                time.sleep(pause)
        took = f"{sent} pieces sent in {time.monotonic() - began:.1f} s"
        assert rest(client).startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n"), took
    assert refusals(probe, "head") == before + 1


def test_a_header_block_that_comes_in_one_piece_has_the_same_limit(start: Start) -> None:
    process = start(PROBE_LIMITS='{"head_bytes": 1000}').ready()
    head = GET + b"Connection: close\r\nX-Long: "
    assert process.send(head + b"x" * 900 + b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    for behind in (b"\r\n\r\n", b"\r\n\r\n" + GET + b"\r\n"):
        received = process.send(head + b"x" * 1000 + behind)
        assert received.startswith(b"HTTP/1.1 431 ")
        assert received.count(b"HTTP/1.1 ") == 1
    assert refusals(process, "head") == 2
    assert refusals(process, "malformed") == 0


def test_trailers_are_not_taken_for_headers(probe: Service) -> None:
    trailers = b"0\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
    answer = probe.send(POST + CHUNKED + b"Connection: close\r\n\r\n3\r\nabc\r\n" + trailers)
    assert answer.endswith(b"\r\n\r\n3")
    assert b"x-seen: host transfer-encoding connection\r\n" in answer


def test_a_long_pipeline_is_answered_whole_and_in_order(probe: Service) -> None:
    ids = range(1000)
    head = "GET /trouble/{} HTTP/1.1\r\nHost: x\r\n{}\r\n"
    requests = "".join(head.format(i, "Connection: close\r\n" * (i == ids[-1])) for i in ids)
    received = probe.send(requests.encode())
    answers = [part.rpartition(b"\r\n\r\n")[2] for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert answers == [str(i).encode() for i in ids]


@pytest.fixture(scope="module")
def lazy(probe: Service) -> dict[str, tuple[bytes, float]]:
    """What lazy clients received until the service closed, and after how long; all of them at once."""

    def wait(data: bytes) -> tuple[bytes, float]:
        began = time.monotonic()
        try:
            return probe.send(data), time.monotonic() - began
        except TimeoutError:
            return b"", math.inf

    with ThreadPoolExecutor(len(LAZY)) as pool:
        return dict(zip(LAZY, pool.map(wait, LAZY.values()), strict=True))


@pytest.mark.parametrize("name", [name for name in LAZY if "body" not in name and "chunk" not in name])
def test_header_blocks_that_do_not_come_end_the_connection(
    lazy: dict[str, tuple[bytes, float]], name: str
) -> None:
    received, after_s = lazy[name]
    assert received.count(b"HTTP/1.1 ") == LAZY[name].count(b"\r\n\r\n")
    assert LIMITS.head_timeout_s <= after_s < LIMITS.head_timeout_s + ALLOWED_S


@pytest.mark.parametrize("name", ["half a body", "half a chunk"])
def test_a_body_that_does_not_come_is_answered_with_408(
    probe: Service, lazy: dict[str, tuple[bytes, float]], name: str
) -> None:
    received, after_s = lazy[name]
    assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"application/problem+json" in received
    assert LIMITS.body_timeout_s <= after_s < LIMITS.body_timeout_s + ALLOWED_S
    assert refusals(probe, "slow") >= 2


def test_a_header_block_that_comes_byte_by_byte_is_slow_as_a_whole(probe: Service) -> None:
    with probe.dial() as client:
        client.sendall(GET + b"X-Slow: ")
        client.settimeout(LIMITS.head_timeout_s / 5)

        def is_ended() -> bool:
            try:
                client.sendall(b"x")
                return client.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        wait_for(is_ended, "the end of the connection")


def test_a_body_that_comes_byte_by_byte_is_slow_as_a_whole(probe: Service) -> None:
    with probe.dial() as client:
        client.sendall(POST + CHUNKED + b"\r\n")
        # Each byte comes in time.
        client.settimeout(LIMITS.body_timeout_s / 5)

        def answer() -> bytes:
            with contextlib.suppress(TimeoutError):
                client.sendall(b"1\r\nx\r\n")
                return client.recv(65536)
            return b""

        assert wait_for(answer, "an answer").startswith(b"HTTP/1.1 408 ")


def test_a_connection_is_kept_after_a_body_that_came_in_pieces(probe: Service) -> None:
    with probe.dial() as client:
        client.sendall(POST + b"Content-Length: 6\r\n\r\nabc")
        # The service reads the two parts one by one.
        time.sleep(0.1)
        client.sendall(b"def")
        assert client.recv(65536).endswith(b"\r\n\r\n6")
        # What is late with a header block would have been ended by now: the service looks once a second.
        time.sleep(LIMITS.head_timeout_s + 1.5)
        client.sendall(GET + b"\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_request_may_take_longer_than_an_idle_connection_is_kept(start: Start) -> None:
    process = start(APP_HTTP_KEEP_ALIVE="1").ready()
    kept = process.connect()
    for path in ("/trouble/before", "/slow?s=1.5"):
        assert process.ask(path, on=kept).status == 200


def test_half_sent_headers_do_not_cost_an_earlier_request_its_answer(probe: Service) -> None:
    request = GET.replace(b"trouble/nothing", b"slow?s=0.4") + b"Connection: close\r\n\r\n"
    assert probe.send(request + b"GET / HT").endswith(b"\r\n\r\ndone")


def test_a_client_that_waits_to_be_asked_for_its_body_is_not_slow(probe: Service) -> None:
    head = b"GET /slow?s=0.4 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    with probe.dial() as client:
        client.sendall(head)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", [b"/length", b"/trouble/nothing"])
def test_a_client_that_goes_on_sending_is_left_in_the_end(probe: Service, path: bytes) -> None:
    chunk = b"64\r\n" + b"x" * 100 + b"\r\n"
    with probe.dial() as client:
        client.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\n" + chunk * 11)
        assert client.recv(65536).startswith((b"HTTP/1.1 413", b"HTTP/1.1 405"))

        def is_reset() -> bool:
            try:
                return not client.send(chunk)
            except ConnectionError:
                return True

        wait_for(is_reset, "a reset")


@pytest.mark.parametrize("offer", [b"h2c", b"TLS/1.0"])
def test_an_upgrade_that_nobody_offers_is_answered_as_a_plain_request(probe: Service, offer: bytes) -> None:
    head = POST + b"Connection: Upgrade, close\r\nUpgrade: " + offer + b"\r\nContent-Length: 3\r\n\r\nabc"
    assert probe.send(head).endswith(b"\r\n\r\n3")


def test_a_connection_whose_answer_came_before_the_body_ends_as_well(start: Start) -> None:
    process = start(app="hurried", APP_HTTP_KEEP_ALIVE="1").ready()
    with process.dial() as client:
        client.sendall(b"POST /trouble/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 405")
        client.sendall(b"abc")
        assert rest(client) == b""


def test_connections_above_the_limit_are_told_and_cost_the_others_nothing(start: Start) -> None:
    process = start(APP_HTTP_MAX_CONNECTIONS="3").ready()
    kept = [process.connect() for _ in range(3)]
    for connection in kept:
        assert process.ask("/trouble/kept", on=connection).status == 200
    for _ in range(2):
        answer = process.ask("/trouble/told")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["content-type"] == "application/problem+json"
    wait_for(lambda: sum(line["count"] for line in process.lines("connections refused")) == 2)
    assert process.lines("connections refused")[0]["limit"] == 3
    assert refusals(process, "connections") == 2
    for connection in kept:
        assert process.ask("/trouble/kept", on=connection).status == 200
    kept.pop().close()
    wait_for(lambda: process.send(GET + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200"))


def test_clients_leave_descriptors_to_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"soft": resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limits["soft"], limits["soft"]))
    assert server.connection_limit(4096) == 4096
    limits["soft"] = 1024
    assert server.connection_limit(4096) == 1024 - server.RESERVED_DESCRIPTORS
    assert server.connection_limit(100) == 100
    limits["soft"] = 64
    assert server.connection_limit(4096) == 1


@pytest.mark.parametrize(
    ("host", "clients"),
    [
        ("::", {"127.0.0.1": "127.0.0.1", "::1": "::1", "::ffff:127.0.0.1": "127.0.0.1"}),
        ("::1", {"::1": "::1"}),
        ("0.0.0.0", {"127.0.0.1": "127.0.0.1"}),
        ("localhost", {"127.0.0.1": "127.0.0.1"}),
    ],
)
def test_an_address_has_one_spelling(start: Start, host: str, clients: dict[str, str]) -> None:
    process = launch(start, APP_HTTP_HOST=host).ready()
    for number, (connect, client) in enumerate(clients.items()):
        with socket.create_connection((connect, process.port()), timeout=60) as dialled:
            dialled.sendall(b"GET /items/%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % number)
            assert rest(dialled).startswith(b"HTTP/1.1 200")
        assert process.request_line(f"/items/{number}")["client"] == client


def test_an_idle_connection_is_kept_as_long_as_the_setting_says(start: Start) -> None:
    short, long = (
        launch(start, APP_HTTP_KEEP_ALIVE="1").ready(),
        launch(start, APP_HTTP_KEEP_ALIVE="620").ready(),
    )
    kept = {process: process.connect() for process in (short, long)}
    for process, connection in kept.items():
        assert process.ask("/nap", on=connection).status == 200
    ends = kept[short].sock
    assert ends is not None
    ends.settimeout(60)
    assert ends.recv(1) == b""
    assert long.ask("/nap", on=kept[long]).status == 200


class Late(asyncio.Protocol):
    """Writes when the connection has just been reset, as an application does that has not heard of it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        asyncio.get_running_loop().call_soon(self.write, JoinedWrites(transport, asyncio.get_running_loop()))
        cast("asyncio.Transport", transport).abort()

    def write(self, joined: JoinedWrites) -> None:
        joined.write(b"too late")


def test_what_is_written_after_a_reset_is_dropped_in_silence() -> None:
    failures: list[dict[str, Any]] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failures.append(context))
        listener = await loop.create_server(Late, "127.0.0.1", 0)
        with socket.create_connection(listener.sockets[0].getsockname(), timeout=60) as client:
            await asyncio.to_thread(rest, client)
        await asyncio.sleep(0)
        listener.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    assert not failures
