"""Contract, sections 4, 7, 9: what an application without a framework gets and owes; and its spans."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit.service import Service, rest, wait_for

from .incidents import UPGRADE, ended
from .start import Start, started

JSON = {"Content-Type": "application/json"}
CHECKED_BYTES = 1024 * 1024


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with started(tmp_path_factory, "bare", APP_HTTP_MAX_BODY=str(2 * CHECKED_BYTES)) as process:
        yield process


def test_what_the_application_binds_is_on_the_line_of_its_request(bare: Service) -> None:
    assert bare.ask("/bound").status == 200
    line = bare.request_line("/bound")
    assert (line["shop"], line["status"], line["status_"]) == ("Ada's", 200, "open")


def test_a_body_over_the_limit_is_refused_for_it_as_often_as_it_asks(bare: Service) -> None:
    refused = 'http_server_refusals_total{reason="body"}'
    before = bare.series()[refused]
    for number, path in enumerate(("/read", "/again"), 1):
        answer = bare.ask(path, method="POST", body=b"x" * (2 * CHECKED_BYTES + 1))
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert answer.json()["detail"] == f"A request body may have {2 * CHECKED_BYTES} bytes at most."
        assert bare.series()[refused] == before + number
    assert not bare.lines("unhandled exception")


def test_json_is_checked_up_to_a_size_that_costs_no_memory(bare: Service) -> None:
    for size, status in ((CHECKED_BYTES, 422), (CHECKED_BYTES + 1, 200)):
        body = b"NaN" + b" " * (size - 3)
        assert bare.ask("/read", method="POST", body=body, headers=JSON).status == status


def test_what_is_not_said_to_be_json_is_not_checked(bare: Service) -> None:
    for kind in ("text/plain", "application/jsonl", "application/x-json"):
        answer = bare.ask("/read", method="POST", body=b"NaN", headers={"Content-Type": kind})
        assert answer.status == 200


def test_an_application_that_gives_up_with_its_client_is_no_error(bare: Service) -> None:
    with bare.dial() as client:
        client.sendall(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        wait_for(lambda: bare.series()["http_server_active_requests"] == 1)
    wait_for(lambda: [line for line in bare.lines("request") if line["status"] == 499])
    assert not bare.lines("unhandled exception")


def test_a_websocket_that_fails_before_it_is_accepted_is_refused_and_logged(bare: Service) -> None:
    def counted() -> dict[str, float]:
        return {name: value for name, value in bare.series().items() if "duration_seconds_count" in name}

    before = counted()
    with bare.dial() as client:
        client.sendall(UPGRADE.format("/socket").encode())
        assert rest(client).startswith(b"HTTP/1.1 500 ")
    line = bare.request_line("/socket")
    assert (line["status"], line["route"]) == (500, None)
    failures = [line["exception"] for line in bare.lines("unhandled exception")]
    assert ["no sockets here" in failure for failure in failures] == [True]
    assert counted() == before


def test_a_websocket_that_is_refused_is_a_403(bare: Service) -> None:
    with bare.dial() as client:
        client.sendall(UPGRADE.format("/refused").encode())
        assert rest(client).startswith(b"HTTP/1.1 403 ")
    assert bare.request_line("/refused")["status"] == 403


def test_a_span_begins_and_ends_with_each_request_and_is_sent_before_the_end(start: Start) -> None:
    process = start(app="bare").ready()
    asked = process.ask("/traced", headers={"X-Request-ID": "r1"})
    assert asked.status == 200
    assert process.request_line("/traced")["trace_id"] == "0" * 31 + "1"
    [ended] = process.lines("span ended")
    assert (ended["path"], ended["status"], ended["route"]) == ("/traced", 200, None)
    assert ended["request_id"] == "r1"
    accepted = {"Accept": "application/openmetrics-text"}
    exposed = process.ask("/metrics", port="admin", headers=accepted).text
    assert exposed.count('{trace_id="' + "0" * 31 + '1"}') == 1
    assert process.stop() == 0
    assert process.line("spans closed")["has_time"]


def test_an_answer_that_nobody_reads_is_counted_when_it_is_cut_off(start: Start) -> None:
    process = start(app="bare", APP_DRAIN_TIMEOUT="0.5").ready()
    with process.dial() as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        # It is complete for the application, but not sent.
        process.request_line("/large")
        assert process.stop() == 1
    line = process.line("requests cut off")
    assert (line["requests"], line["background"], line["connections"]) == (0, 0, 1)


@pytest.mark.parametrize(
    ("kind", "event", "said"),
    [
        ("fails", "startup failed", "no database"),
        ("ends", "lifespan failed", "the lifespan has ended, but nobody asked for it"),
    ],
)
def test_a_lifespan_that_goes_wrong_without_an_exception_is_one_clear_line(
    start: Start, kind: str, event: str, said: str
) -> None:
    process = start(app="bare", APP_BARE_LIFESPAN=kind)
    assert ended(process, 20) == 1, process.said()
    line = process.line(event)
    assert line["level"] == "critical"
    assert f"RuntimeError: {said}" in line["exception"]
    assert process.line("stopped")["status"] == 1
