"""Contract, section 9: HTTP that is right is answered as the RFCs have it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest
from kit.service import LOOPBACK, PATIENCE_SECONDS, Asking, Service, rest, wait_for

from .incidents import FASTAPI, UPGRADE, ended, has_no_errors, in_flight, is_problem, launch, parsed, serving
from .start import Start


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The program with the incidents, for all tests that leave it as it is."""
    with serving(tmp_path_factory) as service:
        yield service


@pytest.fixture(autouse=True)
def no_errors(service: Service) -> Iterator[None]:
    """Whatever a client sends is no error of the service's."""
    with has_no_errors(service):
        yield


@pytest.mark.parametrize("more", ["", "Host: x\r\n", "Connection: keep-alive\r\n"])
@pytest.mark.parametrize(
    ("path", "size"),
    [("/parts?n=0", 0), ("/parts?n=3", 3000), ("/parts?n=12000", 12_000_000), ("/nap", 8), ("/-/ready", 6)],
)
def test_http_1_0_gets_a_length_or_an_end_and_no_chunks(
    service: Service, path: str, size: int, more: str
) -> None:
    status, headers, body = parsed(service.send(f"GET {path} HTTP/1.0\r\n{more}\r\n".encode()))
    assert (status, len(body)) == (200, size)
    assert "transfer-encoding" not in headers
    assert headers.get("content-length", str(size)) == str(size)
    assert headers["connection"] == "close"


def test_a_client_that_pauses_gets_all_when_it_reads_on(service: Service) -> None:
    with socket.socket() as client:
        # A small window, so that the system takes little of the answer before the client reads.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((LOOPBACK, service.port()))
        client.settimeout(PATIENCE_SECONDS)
        client.sendall(b"GET /parts?n=12000 HTTP/1.0\r\n\r\n")
        wait_for(lambda: "drain" in service.look("/-/stacks"), "a response that waits for its client")
        status, _, body = parsed(rest(client))
    assert (status, len(body)) == (200, 12_000_000)


@pytest.mark.parametrize(("path", "status"), [("/parts?n=3", 200), ("/nap", 200), ("/nothing", 404)])
def test_http_1_0_has_head(service: Service, path: str, status: int) -> None:
    answer, headers, body = parsed(service.send(f"HEAD {path} HTTP/1.0\r\n\r\n".encode()))
    assert (answer, body) == (status, b"")
    assert "transfer-encoding" not in headers


@pytest.mark.parametrize("path", ["/length", "/echo"])
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_http_1_0_sends_bodies_and_gets_no_interim_response(service: Service, path: str, expect: str) -> None:
    received = service.send(f"POST {path} HTTP/1.0\r\n{expect}Content-Length: 3\r\n\r\nabc".encode())
    status, headers, body = parsed(received)
    assert (status, body) == (200, b"3" if path == "/length" else b"abc")
    assert "transfer-encoding" not in headers


def test_http_1_0_gets_a_stream_while_it_runs(service: Service) -> None:
    with service.dial() as client:
        client.sendall(b"GET /endless HTTP/1.0\r\n\r\n")
        received = b""
        while received.count(b"tick") < 3:
            received += client.recv(65536)
    assert set(parsed(received)[2].split()) <= {b"tick", b"tic", b"ti", b"t"}
    in_flight(service, 0)


def test_http_1_1_gets_chunks_an_interim_response_and_keeps_its_connection(service: Service) -> None:
    with service.dial() as client:
        client.sendall(
            b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")
        assert client.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
        client.sendall(b"GET /parts?n=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = rest(client)
    assert b"\r\ntransfer-encoding: chunked\r\n" in received
    assert received.endswith(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /nap HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /nap?s=2 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /nap?s=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /nap?s=1 HTTP/1.0\r\n\r\n",
        b"POST /nap?s=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde",
        b"POST /nap?s=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HEAD /nap?s=1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /parts?n=5000 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_a_client_that_ends_its_direction_gets_its_whole_answer(service: Service, sent: bytes) -> None:
    with service.dial() as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        received = rest(client)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n"), received[:200]
    if b"parts" in sent:
        assert received.endswith(b"\r\n0\r\n\r\n")
    elif b"HEAD" not in sent:
        assert b"\r\n\r\nrested " in received
    in_flight(service, 0)


def test_a_client_that_ends_its_direction_gets_all_answers_of_a_pipeline(service: Service) -> None:
    with service.dial() as client:
        client.sendall(b"".join(b"GET /nap?s=0.%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in (3, 1, 2)))
        client.shutdown(socket.SHUT_WR)
        assert rest(client).count(b"HTTP/1.1 200 OK\r\n") == 3


@pytest.mark.parametrize(
    "sent",
    [
        *(b"", b"\r\n", b"GET /nap HTT", b"GET /nap HTTP/1.1\r\nHost: x\r\n"),
        b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab",
        b"POST /length HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
)
def test_a_client_that_ends_within_its_request_gets_no_answer_or_a_4xx(service: Service, sent: bytes) -> None:
    with service.dial() as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert rest(client)[:10] in (b"", b"HTTP/1.1 4")
    in_flight(service, 0)


GETS = {
    "/nap": 200,
    "/parts?n=3": 200,
    "/items/3": 200,
    "/v1/items/3": 200,
    "/app/inner/items/3": 200,
    "/static/__init__.py": 200,
    "/-/ready": 200,
    "/nothing": 404,
    "/v1/nothing": 404,
    "/static/nothing": 404,
    "/length": 405,
    "/unread": 405,
}
GETS_OF_FASTAPI = {
    "/shop/items/3": 200,
    "/shop/items/3?q=1.5": 200,
    "/office/back/shop/items/3": 200,
    "/sub/acme/shop/items/3": 200,
    "/docs": 200,
    "/openapi.json": 200,
    "/shop/items/three": 422,
    "/shop/orders": 405,
    "/sub/acme/shop/orders": 405,
}


@pytest.mark.parametrize(("path", "status"), (GETS | (GETS_OF_FASTAPI if FASTAPI else {})).items())
def test_head_is_get_without_a_body(service: Service, path: str, status: int) -> None:
    get, head = service.ask(path), service.ask(path, method="HEAD")
    assert (get.status, head.status, head.body) == (status, status, b"")
    assert head.headers.get("content-length", "") == get.headers.get("content-length", "")
    assert head.headers.get("content-type") == get.headers.get("content-type")
    assert head.headers.get("allow") == get.headers.get("allow")
    wait_for(
        lambda: [
            line for line in service.lines("request") if line["request_id"] == head.headers["x-request-id"]
        ]
    )
    lines = {line["request_id"]: line for line in service.lines("request")}
    of_head, of_get = (lines[answer.headers["x-request-id"]] for answer in (head, get))
    assert (of_head["method"], of_head["status"], of_head["route"]) == ("HEAD", status, of_get["route"])
    if status >= 400:
        assert is_problem(head.headers)
        assert get.json()["status"] == status


def test_head_of_an_endless_stream_ends(service: Service) -> None:
    kept = service.connect()
    for _ in range(2):
        head = service.ask("/endless", method="HEAD", on=kept)
        assert (head.status, head.body) == (200, b"")
    assert service.ask("/nap", on=kept).status == 200
    in_flight(service, 0)


ROUTES = {
    "/items/3": "/items/{item}",
    "/v1/items/3": "/v1/items/{item}",
    "/shops/s1/items/3": "/shops/{shop}/items/{item}",
    "/shops/s1/floors/2/items/3": "/shops/{shop}/floors/{floor}/items/{item}",
    "/app/items/3": "/app/items/{item}",
    "/app/inner/items/3": "/app/inner/items/{item}",
    "/static/probe.py": "/static",
    "/static/nothing.py": "/static",
    "/nothing": None,
}
ROUTES_OF_FASTAPI = {
    "/shop/items/3": "/shop/items/{item}",
    "/office/back/shop/items/3": "/office/back/shop/items/{item}",
    "/sub/acme/shop/items/3": "/sub/{tenant}/shop/items/{item}",
    "/shop/items/three": "/shop/items/{item}",
}


@pytest.mark.parametrize(("path", "route"), (ROUTES | (ROUTES_OF_FASTAPI if FASTAPI else {})).items())
def test_a_route_has_the_prefixes_above_it(service: Service, path: str, route: str | None) -> None:
    request_id = service.ask(path).headers["x-request-id"]
    line = wait_for(lambda: [x for x in service.lines("request") if x["request_id"] == request_id])[0]
    assert line["route"] == route
    assert line["path"] == path
    label = f'http_route="{route or ""}"'
    assert [name for name in service.series() if "duration_seconds_count" in name and label in name]


SOCKETS = ["/live", "/v1/live", "/shops/{shop}/live", "/shops/{shop}/floors/{floor}/live", "/app/inner/live"]
SOCKETS_OF_FASTAPI = ["/shop/chat", "/office/back/shop/chat", "/sub/{tenant}/shop/chat"]


# Runs the program as where the package is not installed.
WITHOUT_WEBSOCKETS = """
import os, sys

sys.modules["websockets"] = None
from apps.incidents import run, service
sys.exit(run(service(), [], os.environ))
"""


def test_websockets_that_can_not_be_served_are_told_at_the_start(start: Start) -> None:
    service = start.run([sys.executable, "-c", WITHOUT_WEBSOCKETS], {}).ready()
    line = service.line("websockets unavailable")
    assert line["level"] == "error"
    assert set(line["routes"]) >= {*SOCKETS, *(SOCKETS_OF_FASTAPI if FASTAPI else [])}
    assert "websockets" in line["hint"]
    with service.dial() as client:
        client.sendall(UPGRADE.format("/live").encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    "path", ["/live", "/shops/s/floors/1/live", *(["/sub/a/shop/chat"] if FASTAPI else [])]
)
def test_a_websocket_is_carried_and_closed_by_the_drain(start: Start, path: str) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="20").ready()
    assert "websockets unavailable" not in [line["event"] for line in process.lines()]
    with process.dial() as client:
        client.sendall(UPGRADE.format(path).encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 101 ")
        # A masked text frame of one letter, with a mask of zeros.
        client.sendall(b"\x81\x81\0\0\0\0a")
        assert client.recv(65536) == b"\x81\x01A"
        process.popen.terminate()
        # A close frame: 1012, "service restart".
        assert client.recv(65536)[:4] == b"\x88\x02\x03\xf4"
        client.sendall(b"\x88\x82\0\0\0\0\x03\xf4")
        assert rest(client) == b""
    assert ended(process, 12) == 0, process.said()
    assert process.request_line(path)["status"] == 101


def test_a_websocket_whose_handler_raises_is_closed_with_1011(start: Start) -> None:
    process = launch(start).ready()
    with process.dial() as client:
        client.sendall(UPGRADE.format("/live").encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 101 ")
        # A masked text frame without a letter.
        client.sendall(b"\x81\x80\0\0\0\0")
        # A close frame: 1011, "internal error".
        assert client.recv(65536)[:4] == b"\x88\x02\x03\xf3"
        client.sendall(b"\x88\x82\0\0\0\0\x03\xf3")
    assert "nothing was said" in process.line("unhandled exception")["exception"]
    assert process.request_line("/live")["status"] == 101


def test_a_websocket_whose_handler_raises_before_it_accepts_is_a_500(start: Start) -> None:
    process = launch(start).ready()
    with process.dial() as client:
        client.sendall(UPGRADE.format("/live?how=raise").encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 500 ")
    assert "nothing was accepted" in process.line("unhandled exception")["exception"]
    assert process.request_line("/live")["status"] == 500


@pytest.mark.parametrize(("how", "status"), [("close", 403), ("deny", 401)])
def test_a_websocket_that_is_not_accepted_is_logged_with_what_its_client_gets(
    service: Service, how: str, status: int
) -> None:
    before = len(service.lines("request"))
    with service.dial() as client:
        client.sendall(UPGRADE.format(f"/live?how={how}").encode())
        assert client.recv(65536).startswith(f"HTTP/1.1 {status} ".encode())
    wait_for(lambda: len(service.lines("request")) > before, "the request line")
    assert [line["status"] for line in service.lines("request")[before:]] == [status]


def test_a_client_that_leaves_its_websocket_is_no_error(service: Service) -> None:
    with service.dial() as client:
        client.sendall(UPGRADE.format("/live?wait=1").encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 101 ")
    in_flight(service, 0)


def test_a_plain_request_to_a_websocket_route_is_a_404(service: Service) -> None:
    answer = service.ask("/live")
    assert answer.status == 404
    assert is_problem(answer.headers)


def test_many_requests_of_every_kind_at_once_are_answered(service: Service) -> None:
    requests = [Asking(service, path) for path in (*GETS, *ROUTES) for _ in range(3)]
    for request in requests:
        request.join()
        assert request.answer is not None
        assert request.answer.status < 500
