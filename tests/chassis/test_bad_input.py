"""Contract, section 9: bad input of any kind gets a 4xx and a problem, and nobody else notices."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import pytest
from kit.service import Service

from .incidents import FASTAPI, MAX_BODY, has_no_errors, is_problem, parsed, serving
from .start import Start, write_secrets

needs_fastapi = pytest.mark.skipif(not FASTAPI, reason="the routes are FastAPI's own")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The program with the incidents, for all tests that leave it as it is."""
    with serving(tmp_path_factory) as service:
        yield service


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service as it is rendered."""
    folder = tmp_path_factory.mktemp("example")
    with Start(folder, write_secrets(folder / "secrets")) as start:
        yield start.service().ready()


@pytest.fixture(autouse=True)
def no_errors(service: Service) -> Iterator[None]:
    """Whatever a client sends is no error of the service's."""
    with has_no_errors(service):
        yield


BODIES = [
    *(b"", b"\xff\xfe", b"\x00", b"nul", b"[]", b"1", b'"x"', b"{", b"{}", b'{"name"}', b'{"name":}'),
    *(b'{"name": NaN}', b'{"name": Infinity}', b'{"name": -Infinity}', b'{"name": 1e999}', b'{"name": null}'),
    *(b'{"name": "\\ud800"}', b'{"name": "\\udfff\\ud800"}', b'{"\\ud800": "x"}', b'{"name": ["\\ud800"]}'),
    *(
        b'{"name": {"a": NaN}}',
        b'{"name": [[[NaN]]]}',
        b'{"name": 1}',
        b'{"name": true}',
        b"NaN",
        b'"\\ud800"',
    ),
    *(b"[" * 100_000, b'{"name": ' + b"[" * 100_000, b'{"a":' * 20_000, b'{"name": ' + b"9" * 10_000 + b"}"),
    *(
        b"-" + b"9" * 10_000,
        b'{"name": "x"',
        b'{"name": "x"} x',
        b"\xef\xbb\xbf{}",
        b'{"name": "\xff"}',
        b"'x'",
    ),
]
TYPES = [
    "application/json",
    "application/problem+json",
    "text/plain",
    "application/json; charset=utf-16",
    "x",
    "",
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:24]))
def test_the_example_answers_any_body_with_a_4xx(example: Service, body: bytes) -> None:
    for content_type in TYPES[:1] if len(body) > 100 else TYPES:
        answer = example.ask("/greetings", method="POST", body=body, headers={"Content-Type": content_type})
        assert 400 <= answer.status < 500, answer.text
        assert is_problem(answer.headers)
        assert answer.json()["status"] == answer.status
    assert not example.lines("unhandled exception")


@needs_fastapi
@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:24]))
def test_any_body_to_fastapis_routes_is_no_5xx(service: Service, body: bytes) -> None:
    paths = {"/shop/orders": "POST", "/things": "POST", "/part": "PUT", "/sub/a/shop/orders": "POST"}
    for path, method in paths.items():
        answer = service.ask(path, method=method, body=body, headers={"Content-Type": "application/json"})
        assert answer.status < 500, (path, answer.text)
        assert answer.status < 300 or is_problem(answer.headers), path


@needs_fastapi
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"', "9" * 5000])
def test_values_that_json_can_not_hold_are_not_echoed(service: Service, value: str) -> None:
    for path, body in {
        "/things": value,
        "/shop/orders": f'{{"name": "x", "price": {value}}}',
        "/sub/a/shop/orders": f'{{"name": "x", "price": 1, "more": {{"deep": [{value}]}}}}',
    }.items():
        answer = service.ask(path, method="POST", body=body, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status < 500, (path, answer.text)
        assert is_problem(answer.headers)


ODD_PATHS = [
    *(
        "/items/%",
        "/items/%zz",
        "/%ff",
        "/%c3%28",
        "/%00",
        "/%0a",
        "/items/%ed%a0%80",
        "/%2e%2e/%2e%2e/etc/passwd",
    ),
    *(
        "//",
        "//items//3",
        "/items/" + "9" * 5000,
        "/items/-1",
        "/items/1e3",
        "/items/%EF%BC%93",
        "/static/%00",
    ),
    *(
        "/static/..%2f..%2fpyproject.toml",
        "/static/" + "x" * 3000,
        "/app/%2f",
        "/nap?%",
        "/nap?%zz=%ff",
        "/nap?&&=;",
    ),
    *("/*", "/items/3;a=b", "/v1/items/%d9%a3", "/shops/%ff/floors/%ff/items/1", "/?" + "a=b&" * 5000),
]
ODD_PATHS_OF_FASTAPI = [
    *(
        f"/shop/items/{value}"
        for value in ("%ff", "NaN", "1e3", "%00", "9" * 5000, "-" + "9" * 300, "%EF%BC%93")
    ),
    *(
        f"/shop/items/1?q={value}"
        for value in ("NaN", "inf", "1e999", "%ff", "%00", "9" * 5000, "%ed%a0%80", "")
    ),
    *("/sub/%ff/shop/items/x", "/shop/items/1?q=1&q=x"),
]


@pytest.mark.parametrize(
    "path", ODD_PATHS + (ODD_PATHS_OF_FASTAPI if FASTAPI else []), ids=lambda path: path[:40]
)
def test_odd_paths_and_queries_are_no_5xx(service: Service, path: str) -> None:
    for method in ("GET", "HEAD", "POST"):
        request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        status, headers, _ = parsed(service.send(request.encode()))
        assert status < 500, (method, status)
        assert status < 400 or is_problem(headers)


@pytest.mark.parametrize(
    "path", [b"/\xff", b"/items/\xc3\xbc", b"/a b", b"items", b"http://x/nap", b"*", b"/\x7f"]
)
def test_request_lines_that_are_not_right_are_no_5xx(service: Service, path: bytes) -> None:
    received = service.send(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert received[:10] in (b"HTTP/1.1 2", b"HTTP/1.1 4"), received[:200]


def test_a_question_mark_in_a_problem_is_nobodys_data(service: Service) -> None:
    answer = service.ask("/nothing?secret=hunter2&%22%3c")
    assert answer.status == 404
    assert "hunter2" not in answer.text
    json.loads(answer.body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "NaN Infinity \\ud83d\\ude00 1e999"}',
        '{"name": "\U0001f600 \ud7ff"}'.encode(),
        b'"\\\\ud800"',
    ],
)
def test_json_that_only_looks_odd_is_taken(service: Service, body: bytes) -> None:
    for length in ({}, {"Transfer-Encoding": "chunked"}):
        parts = iter([body[:7], body[7:]]) if length else body
        headers = {"Content-Type": "application/json"}
        assert service.ask("/length", method="POST", body=parts, headers=headers).text == str(len(body))


def test_what_is_encoded_is_not_taken_for_json(service: Service) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    body = gzip.compress(b'{"name": "x"}')
    assert service.ask("/length", method="POST", body=body, headers=headers).text == str(len(body))


@pytest.mark.parametrize("charset", ["utf-16", "utf-32", "utf-8-sig"])
def test_json_in_another_encoding_brings_no_nan_either(service: Service, charset: str) -> None:
    body = '{"name": "x", "price": NaN}'.encode(charset)
    for path in ("/length", *(["/shop/orders", "/things"] if FASTAPI else [])):
        answer = service.ask(path, method="POST", body=body, headers={"Content-Type": "application/json"})
        assert (answer.status, is_problem(answer.headers)) == (422, True)


LIMITS = {"/length": MAX_BODY, "/length/small": 100, "/length/large": 300_000}
LIMITS_OF_FASTAPI = {
    "/shop/uploads/small": 100,
    "/shop/uploads/large": 300_000,
    "/sub/a/shop/uploads/small": 100,
    "/office/back/shop/uploads/large": 300_000,
    "/things": MAX_BODY,
}


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(("path", "limit"), (LIMITS | (LIMITS_OF_FASTAPI if FASTAPI else {})).items())
def test_a_body_has_the_limit_of_its_route(service: Service, path: str, limit: int, chunked: bool) -> None:
    headers = {"Content-Type": "application/json" if path == "/things" else "application/octet-stream"}
    for size, status in ((limit, 200), (limit + 1, 413), (limit * 3, 413)):
        body = b'"' + b"x" * (size - 2) + b'"'
        parts = iter([body[: size // 2], body[size // 2 :]]) if chunked else body
        answer = service.ask(path, method="POST", body=parts, headers=headers)
        assert answer.status == status, (size, answer.text[:200])
        if status == 413:
            assert is_problem(answer.headers)
            assert answer.headers["connection"] == "close"
            assert answer.json()["status"] == 413


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(service: Service) -> None:
    head = (
        f"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY + 1}\r\nExpect: 100-continue\r\n\r\n"
    )
    status, headers, _ = parsed(service.send(head.encode()))
    assert status == 413
    assert is_problem(headers)


STALLED = [
    b"Content-Length: 10\r\n\r\nab",
    b"Content-Length: 10\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
]


@pytest.mark.parametrize("framing", STALLED)
@pytest.mark.parametrize("path", ["/length", "/length/large", *(["/shop/orders"] if FASTAPI else [])])
def test_a_body_that_stalls_is_answered_with_408(service: Service, path: str, framing: bytes) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
    status, headers, body = parsed(service.send(head + framing))
    assert (status, json.loads(body)["status"]) == (408, 408)
    assert is_problem(headers)
    assert headers["connection"] == "close"


def test_a_body_that_no_route_reads_costs_nothing(service: Service) -> None:
    body = b"x" * MAX_BODY * 2
    assert service.ask("/unread", method="POST", body=body).status in (200, 413)
    assert service.ask("/nothing", method="POST", body=body).status == 404
    assert service.ask("/nap").status == 200
