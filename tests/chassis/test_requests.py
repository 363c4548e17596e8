"""Contract, section 9: every request gets an answer that tells the client enough, and not more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit.service import Service, wait_for
from my_service.chassis.http.connection import let_begin_again
from starlette.types import Message

from .start import Start, started

PROBLEM_JSON = "application/problem+json"


def test_an_unhandled_exception_tells_the_client_only_the_request_id(own: Service) -> None:
    answer = own.ask("/trouble/exception", headers={"X-Request-ID": "r1"})
    assert (answer.status, answer.headers["content-type"]) == (500, PROBLEM_JSON)
    assert answer.json() == {"status": 500, "title": "Internal Server Error", "request_id": "r1"}
    line = own.line("unhandled exception")
    assert (line["logger"], line["request_id"]) == ("http", "r1")
    assert "RuntimeError: boom" in line["exception"]
    assert own.request_line("/trouble/exception")["status"] == 500


@pytest.mark.parametrize("path", ["/silent", "/trouble/cancel", "/trouble/cancelled"])
def test_no_answer_is_an_error_like_any_other(probe: Service, path: str) -> None:
    answer = probe.ask(path)
    assert (answer.status, answer.headers["content-type"]) == (500, PROBLEM_JSON)
    assert probe.ask("/trouble/nothing").status == 200


async def send(message: Message) -> None:
    """Send nothing: it is not uvicorn's."""


def test_only_a_response_of_uvicorns_can_begin_again() -> None:
    let_begin_again(send)


@pytest.mark.parametrize("kind", ["header", "name", "length", "status"])
def test_a_response_that_can_not_be_sent_is_an_error_like_any_other(own: Service, kind: str) -> None:
    connection = own.connect()
    answer = own.ask(f"/trouble/{kind}", on=connection)
    assert (answer.status, answer.headers["content-type"]) == (500, PROBLEM_JSON)
    assert "set-cookie" not in answer.headers
    assert own.ask("/trouble/nothing", on=connection).body == b"nothing"
    assert own.request_line(f"/trouble/{kind}")["status"] == 500


def test_so_it_is_to_a_client_of_http_1_0(probe: Service) -> None:
    with probe.dial() as client:
        client.sendall(b"GET /trouble/header HTTP/1.0\r\n\r\n")
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 500 ")
    assert received.endswith(b'"}')


def test_a_status_that_nobody_has_registered_has_no_title(probe: Service) -> None:
    answer = probe.ask("/trouble/unusual")
    assert answer.json() == {"status": 599, "detail": "nobody has registered this status"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/trouble", 404), ("DELETE", "/slow", 405), ("GET", "/length", 405)],
)
def test_the_frameworks_own_errors_are_problems_too(
    probe: Service, method: str, path: str, status: int
) -> None:
    answer = probe.ask(path, method=method)
    assert (answer.status, answer.headers["content-type"]) == (status, PROBLEM_JSON)
    assert answer.json()["status"] == status
    assert status != 405 or answer.headers["allow"]


def test_a_framework_error_that_has_no_body_gets_none(probe: Service) -> None:
    answer = probe.ask("/trouble/unmodified")
    assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", '"7"')


def test_a_framework_error_with_data_is_a_problem_with_that_data(probe: Service) -> None:
    answer = probe.ask("/trouble/conflict")
    assert (answer.status, answer.headers["content-type"]) == (409, PROBLEM_JSON)
    assert answer.json() == {
        "status": 409,
        "title": "Conflict",
        "errors": {"owner": "Ada", "since": "2026-11-26"},
    }


def test_an_answer_of_500_that_the_service_means_is_its_own(probe: Service) -> None:
    assert probe.ask("/trouble/deliberate").json() == {"mine": True}
    assert probe.ask("/trouble/stream").body == b"ab"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("how", ["", "&length=1", "&stream=1"])
@pytest.mark.parametrize("status", [204, 304])
def test_a_body_where_http_has_none_is_not_taken_for_the_next_response(
    probe: Service, method: str, how: str, status: int
) -> None:
    requests = f"{method} /bodiless?status={status}{how} HTTP/1.1\r\nHost: x\r\n\r\n"
    requests += "GET /trouble/next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    first, second, body = probe.send(requests.encode()).split(b"\r\n\r\n")
    assert first.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"content-length" not in first.lower()
    assert second.startswith(b"HTTP/1.1 200 ")
    assert body == b"next"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_stream_that_never_waits_lets_others_run_and_ends_with_its_client(
    own: Service, method: str
) -> None:
    with own.dial() as client:
        client.sendall(f"{method} /stream?n=1000000000000 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        for _ in range(20 * (method == "GET")):
            assert client.recv(65536)
            assert own.ask("/trouble/other").body == b"other"
    wait_for(lambda: "stream_response" not in own.look("/-/stacks"), "the end of the stream")
    assert own.request_line("/stream")["status"] == 200
    assert own.stop() == 0, own.said()


def test_an_answer_that_breaks_half_way_ends_the_connection(own: Service) -> None:
    with own.dial() as client:
        client.sendall(b"GET /stream?n=1&raise=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 200")
    assert not received.endswith(b"0\r\n\r\n")
    assert "half way" in own.line("unhandled exception")["exception"]


def test_long_answers_arrive_whole(probe: Service) -> None:
    assert len(probe.ask("/stream?n=5000").body) == 5_000_000


def test_pipelined_requests_are_answered_in_order(probe: Service) -> None:
    request = "GET /trouble/{} HTTP/1.1\r\nHost: x\r\nX-Request-ID: {}\r\n{}\r\n"
    requests = "".join(request.format(i, i, "Connection: close\r\n" * (i == 4)) for i in range(5))
    received = probe.send(requests.encode())
    answers = [answer[-1:] for answer in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert answers == [b"0", b"1", b"2", b"3", b"4"]


def test_a_body_over_the_limit_is_refused(start: Start) -> None:
    process = start(APP_HTTP_MAX_BODY="1000").ready()
    assert process.ask("/length", method="POST", body=b"x" * 1000).body == b"1000"
    for body in (b"x" * 1001, iter([b"x" * 1000, b"x"])):
        answer = process.ask("/length", method="POST", body=body)
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert answer.headers["content-type"] == PROBLEM_JSON
        assert answer.json()["detail"] == "A request body may have 1000 bytes at most."
    wait_for(lambda: len(process.lines("request")) == 3)
    assert not process.lines("unhandled exception")


@pytest.mark.parametrize("length", ["8000000", None])
def test_a_client_that_sends_far_too_much_is_told(probe: Service, length: str | None) -> None:
    headers = {"Content-Length": length} if length else {}
    chunks = (b"x" * 100_000 for _ in range(80))
    answer = probe.ask("/length", method="POST", body=chunks, headers=headers)
    assert (answer.status, answer.headers["connection"]) == (413, "close")


def test_a_client_that_leaves_is_no_error(own: Service) -> None:
    with own.dial() as client:
        client.sendall(b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        wait_for(lambda: own.series()["http_server_active_requests"] == 1)
    assert own.request_line("/length")["status"] == 499
    assert not own.lines("unhandled exception")


TRUSTED = "127.0.0.0/8,10.0.0.0/8,2001:db8::/32"
CHAIN = {"X-Forwarded-For": "198.51.100.1, 203.0.113.7, 10.1.1.1", "X-Forwarded-Proto": "https"}


@pytest.fixture(scope="module")
def behind_proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The probe behind proxies that it trusts, for all tests that leave it as it is."""
    with started(tmp_path_factory, APP_HTTP_TRUSTED_PROXIES=TRUSTED) as process:
        yield process


@pytest.mark.parametrize(
    ("headers", "origin"),
    [
        ({}, "http 127.0.0.1"),
        (CHAIN, "https 203.0.113.7"),
        ({"X-Forwarded-For": "203.0.113.7:4711"}, "http 203.0.113.7"),
        ({"X-Forwarded-For": "198.51.100.1, [2001:db9::7]:4711, 2001:db8::2"}, "http 2001:db9::7"),
        ({"X-Forwarded-For": "10.2.2.2, 10.1.1.1"}, "http 10.2.2.2"),
        ({"X-Forwarded-For": ", ,"}, "http 127.0.0.1"),
        ({"X-Forwarded-Proto": "gopher"}, "http 127.0.0.1"),
        # What most proxies let pass is no word of theirs.
        ({"X-Forwarded-Host": "evil.example"}, "http 127.0.0.1"),
        ({"Forwarded": "for=192.0.2.1;proto=https;host=evil.example"}, "http 127.0.0.1"),
    ],
)
def test_trusted_proxies_tell_who_asks_and_how(
    behind_proxies: Service, headers: dict[str, str], origin: str
) -> None:
    scheme, client = origin.split()
    name = f"/address/{len(behind_proxies.lines('request'))}"
    seen = behind_proxies.ask(name, headers=headers).text
    assert seen == f"{scheme} {client} 127.0.0.1:{behind_proxies.port()}"
    assert behind_proxies.request_line(name)["client"] == client


@pytest.mark.parametrize("said", ["<script>", "unknown", "a" * 5000, "203.0.113.7\t", "::ffff:203.0.113.7"])
def test_a_line_has_a_clients_address_in_its_one_spelling_or_none(behind_proxies: Service, said: str) -> None:
    name = f"/address/{len(behind_proxies.lines('request'))}"
    assert behind_proxies.ask(name, headers={"X-Forwarded-For": said}).status == 200
    assert behind_proxies.request_line(name)["client"] == ("203.0.113.7" if "203" in said else None)


def test_a_long_header_of_a_proxy_is_read_in_no_time(behind_proxies: Service) -> None:
    for header in ("10.1.1.1," * 5000, "[" * 50000, ":" * 50000):
        began = behind_proxies.cpu_seconds()
        assert behind_proxies.ask("/address/long", headers={"X-Forwarded-For": header}).status == 200
        assert behind_proxies.cpu_seconds() - began < 1


@pytest.mark.parametrize("trusted", ["192.0.2.1", "", "10.0.0.0/8,::1"])
def test_what_strangers_say_of_themselves_changes_nothing(start: Start, trusted: str) -> None:
    process = start(APP_HTTP_TRUSTED_PROXIES=trusted).ready()
    seen = process.ask("/address/x", headers=CHAIN).text
    assert seen == f"http 127.0.0.1 127.0.0.1:{process.port()}"
    assert process.request_line("/address/x")["client"] == "127.0.0.1"
