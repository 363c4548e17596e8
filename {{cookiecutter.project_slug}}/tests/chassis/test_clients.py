"""Contract, section 9: whatever a client sends, or doesn't, costs it its own connection at most."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from {{ cookiecutter.package_name }}.chassis import server

from .conftest import Start, started
from .process import Process, rest, wait_for

LIMITS = {
    "server.HEADER_TIMEOUT": 0.25,
    "server.SLOW_LIMIT": 0.25,
    "server.LINGER": 0.1,
    "server.ROUND": 0.02,
}
GET = b"GET /trouble/nothing HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /length HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A probe that has little patience, for all tests of this file."""
    with started(tmp_path_factory, LIMITS, APP_HTTP_MAX_BODY="1000") as process:
        yield process


def refusals(process: Process, reason: str) -> int:
    """Return how often clients were refused for *reason*."""
    series = 'http_server_refusals_total{reason="' + reason + '"} '
    [line] = [line for line in process.ask("/metrics", port="admin").body.decode().splitlines() if series in line]
    return int(float(line.split()[-1]))


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
def test_what_is_not_http_gets_400_and_costs_nobody_else(probe: Process, bad: bytes) -> None:
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
def test_a_request_has_one_valid_host(probe: Process, hosts: bytes) -> None:
    answer = probe.send(b"GET /trouble/nothing HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"one valid Host" in answer
    assert probe.send(b"GET /trouble/nothing HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert probe.send(b"GET /trouble/nothing\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_what_is_bad_behind_a_request_does_not_cost_its_answer(probe: Process) -> None:
    for more in (b"", GET + b"\r\n"):
        received = probe.send(GET.replace(b"trouble/nothing", b"slow?s=0.1") + b"\r\n" + more + b"NONSENSE\r\n\r\n")
        assert received.count(b"HTTP/1.1 200") == received.count(b"HTTP/1.1 ") == 1 + bool(more)


@pytest.mark.parametrize(("path", "answers"), [(b"/trouble/nothing", 1), (b"/slow?s=0.1", 1)])
def test_a_bad_body_gets_no_second_answer(probe: Process, path: bytes, answers: int) -> None:
    with probe.dial() as client:
        client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\n")
        if path == b"/trouble/nothing":
            assert client.recv(65536).endswith(b"nothing")
            answers -= 1
        client.sendall(b"zz\r\n")
        assert rest(client).count(b"HTTP/1.1 ") == answers


@pytest.mark.parametrize("start", [GET, POST + CHUNKED + b"\r\n0\r\n", POST + CHUNKED + b"\r\n1;"])
def test_endless_heads_and_trailers_are_refused(probe: Process, start: bytes) -> None:
    before = refusals(probe, "head")
    line = b"X-Long: " + b"x" * 1000 + b"\r\n" if not start.endswith(b";") else b"x" * 1000
    with probe.dial() as client:
        client.sendall(start + line * 70)
        assert rest(client).startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert refusals(probe, "head") == before + 1


def test_trailers_are_not_taken_for_headers(probe: Process) -> None:
    answer = probe.send(POST + CHUNKED + b"Connection: close\r\n\r\n3\r\nabc\r\n0\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n3")
    assert b"x-seen: host transfer-encoding connection\r\n" in answer


def test_a_long_pipeline_is_answered_whole_and_in_order(probe: Process) -> None:
    ids = range(1000)
    head = "GET /trouble/{} HTTP/1.1\r\nHost: x\r\n{}\r\n"
    received = probe.send("".join(head.format(i, "Connection: close\r\n" * (i == ids[-1])) for i in ids).encode())
    answers = [part.rpartition(b"\r\n\r\n")[2] for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert answers == [str(i).encode() for i in ids]


@pytest.mark.parametrize("half", [b"\r\n", b"GET / HTTP/1.1\r\nHost:"])
def test_headers_that_do_not_come_end_the_connection(probe: Process, half: bytes) -> None:
    assert probe.send(half) == b""
    with probe.dial() as client:
        client.sendall(GET + b"\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(half)
        assert rest(client) == b""


def test_half_sent_headers_do_not_cost_an_earlier_request_its_answer(probe: Process) -> None:
    assert probe.send(GET.replace(b"trouble/nothing", b"slow?s=0.4") + b"\r\nGET / HT").endswith(b"\r\n\r\ndone")


@pytest.mark.parametrize("start", [POST + b"Content-Length: 10\r\n\r\nabc", POST + CHUNKED + b"\r\n5\r\nab"])
def test_a_body_that_does_not_come_is_answered_with_408(probe: Process, start: bytes) -> None:
    before = refusals(probe, "slow")
    assert probe.send(start).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert refusals(probe, "slow") == before + 1
    line = [line for line in probe.lines("refused") if line["reason"] == "slow"][-1]
    assert (line["status"], line["client"]) == (408, "127.0.0.1")


def test_a_client_that_waits_to_be_asked_for_its_body_is_not_slow(probe: Process) -> None:
    head = b"GET /slow?s=0.4 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    with probe.dial() as client:
        client.sendall(head)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_an_answer_that_is_not_taken_is_given_up(probe: Process) -> None:
    before = refusals(probe, "slow")
    with probe.dial() as client:
        client.sendall(b"GET /stream?n=20000 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: refusals(probe, "slow") == before + 1)
        assert not rest(client).endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("path", [b"/length", b"/trouble/nothing"])
def test_a_client_that_goes_on_sending_is_left_in_the_end(probe: Process, path: bytes) -> None:
    chunk = b"64\r\n" + b"x" * 100 + b"\r\n"
    with probe.dial() as client:
        client.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\n" + chunk * 11)
        assert client.recv(65536).startswith((b"HTTP/1.1 413", b"HTTP/1.1 405"))

        def is_reset() -> bool:
            try:
                return not client.send(chunk)
            except ConnectionError:
                return True

        wait_for(is_reset)


def test_an_upgrade_that_nobody_offers_is_answered_as_a_plain_request(probe: Process) -> None:
    for offer in (b"websocket", b"h2c"):
        head = POST + b"Connection: Upgrade, close\r\nUpgrade: " + offer + b"\r\nContent-Length: 3\r\n\r\nabc"
        assert probe.send(head).endswith(b"\r\n\r\n3")


def test_connections_between_requests_end_when_it_takes_too_long(start: Start) -> None:
    process = start.patched({"server.ROUND": 0.02, "server.KEEP_ALIVE": 0.2}).ready()
    with process.dial() as early, process.dial() as late:
        early.sendall(GET + b"\r\n")
        assert rest(early).startswith(b"HTTP/1.1 200")
        # The answer is there before the body is.
        late.sendall(b"POST /trouble/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        assert late.recv(65536).startswith(b"HTTP/1.1 ")
        late.sendall(b"abc")
        assert rest(late) == b""


def test_connections_above_the_limit_are_told_and_cost_the_others_nothing(start: Start) -> None:
    limits = {"server.ROUND": 0.02, "server.REFUSALS": 1, "server.REFUSAL_GRACE": 60}
    process = start.patched(limits, APP_HTTP_MAX_CONNECTIONS="3").ready()
    kept = [process.connect() for _ in range(3)]
    for connection in kept:
        assert process.ask("/trouble/kept", on=connection).status == 200
    with process.dial() as told, process.dial() as reset:
        answer = told.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nretry-after: 1\r\n" in answer
        assert rest(reset) == b""
    wait_for(lambda: sum(line["refused"] for line in process.lines("connections refused")) == 2)
    assert process.lines("connections refused")[0]["limit"] == 3
    assert refusals(process, "connections") == 2
    for connection in kept:
        assert process.ask("/trouble/kept", on=connection).status == 200
    kept.pop().close()
    wait_for(lambda: process.send(GET + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200"))


def test_clients_leave_descriptors_to_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"soft": resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limits["soft"], limits["soft"]))
    assert server.connections_limit(4096) == 4096
    limits["soft"] = 1024
    assert server.connections_limit(4096) == 1024 - server.RESERVED - server.REFUSALS
    assert server.connections_limit(100) == 100
    limits["soft"] = 64
    assert server.connections_limit(4096) == 1
