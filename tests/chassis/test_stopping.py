"""Contract, section 7: the process is gone in time whatever hangs, and its status says how that went."""

from __future__ import annotations

import signal
import socket
import struct
import sys
import time

import pytest
from kit.service import Asking, rest

from .incidents import ALLOWED_S, cut_off, ended, events, in_flight, launch, stopped
from .start import ENVIRONMENT, Start


@pytest.mark.parametrize("path", ["/endless", "/nap?s=60", "/block?s=60"])
def test_requests_that_go_on_are_cut_off_in_time_and_counted(start: Start, path: str) -> None:
    process = launch(start).ready()
    requests = [Asking(process, path) for _ in range(1 if "block" in path else 3)]
    in_flight(process, len(requests))
    assert stopped(process) == 1, process.said()
    lines = process.lines("requests cut off") or process.lines("stop timed out")
    assert [line["requests"] for line in lines] == [len(requests)], process.said()
    for request in requests:
        request.join()


@pytest.mark.parametrize("point", ["STOP", "CLOSE"])
@pytest.mark.parametrize("kind", ["hang", "deaf", "block"])
def test_an_end_that_hangs_is_cut_off_in_time(start: Start, point: str, kind: str) -> None:
    process = launch(start, **{f"APP_INCIDENT_{point}": kind}).ready()
    assert stopped(process) == 1, process.said()
    said = {"shutdown timed out", "closing timed out", "stop timed out"} & set(events(process))
    assert said, process.said()


@pytest.mark.parametrize(("kind", "status"), [("hang", 0), ("deaf", 1), ("block", 1)])
def test_a_stop_in_a_start_up_that_hangs_ends_it_in_time(start: Start, kind: str, status: int) -> None:
    process = launch(start, APP_INCIDENT_START=kind, APP_DRAIN_DELAY="0")
    process.line("misbehaving")
    process.signal(signal.SIGTERM)
    assert ended(process) == status, process.said()
    assert "ready" not in events(process)
    errors = [line["event"] for line in process.lines() if line["level"] in ("error", "critical")]
    assert set(errors) <= {"websockets unavailable", "stop timed out"}


def test_a_stop_while_services_are_registered_ends_it_in_time(start: Start) -> None:
    process = launch(start, APP_INCIDENT_REGISTER="block")
    process.line("misbehaving")
    process.signal(signal.SIGTERM)
    assert ended(process) == 1
    assert cut_off(process), process.said()


@pytest.mark.parametrize("kind", ["", "hang", "deaf"])
def test_an_exception_before_the_start_up_ends_it_in_time_whatever_goes_on(start: Start, kind: str) -> None:
    """A thread goes on, and the closing of what was registered may hang."""
    process = launch(start, APP_INCIDENT_REGISTER="raise", APP_INCIDENT_CLOSE=kind)
    assert ended(process, 20) == 1, process.said()
    assert "ZeroDivisionError" in process.line("service failed")["exception"]
    said = {"": "stopped", "hang": "closing timed out", "deaf": "stop timed out"}[kind]
    assert said in events(process)
    assert process.lines("stopped") or kind == "deaf"


BROKEN = """
import os, sys
import attrs
from apps import probe
from my_service.chassis import run

def trace(*_):
    raise RuntimeError("no spans today")

sys.exit(run(attrs.evolve(probe.service(), tracing=trace), [], os.environ))
"""


def test_an_error_of_the_first_steps_is_no_exit_that_somebody_asked_for(start: Start) -> None:
    process = start.run([sys.executable, "-c", BROKEN], ENVIRONMENT)
    assert ended(process, 20) == 1
    assert events(process) == ["uncaught exception"]
    assert "no spans today" in process.line("uncaught exception")["exception"]


@pytest.mark.parametrize(
    ("kind", "status"), [("exit0", 0), ("exit3", 3), ("exittext", 1), ("raise", 1), ("interrupt", 130)]
)
@pytest.mark.parametrize("point", ["START", "TASK", "STOP"])
def test_an_exit_in_the_lifespan_is_logged_and_keeps_its_status(
    start: Start, point: str, kind: str, status: int
) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="5", **{f"APP_INCIDENT_{point}": kind})
    if point != "START":
        process.ready()
    if point == "STOP":
        process.signal(signal.SIGTERM)
    assert ended(process, 20) == status, process.said()
    event = {"START": "startup failed", "TASK": "lifespan failed", "STOP": "shutdown failed"}[point]
    assert "misbehave" in process.line(event)["exception"]
    assert process.line("stopped")["status"] == status
    assert "registry closing" in events(process)


@pytest.mark.parametrize("kind", ["raise", "exit3"])
def test_a_lifespan_that_hides_why_it_has_ended_ends_the_service_too(start: Start, kind: str) -> None:
    process = launch(start, APP_INCIDENT_TASK=kind, APP_INCIDENT_SUPPRESS="yes").ready()
    assert ended(process, 20) == (1 if kind == "raise" else 3), process.said()
    assert process.line("lifespan failed")["level"] == "critical"
    assert {"hidden", "draining", "stopped"} <= set(events(process))


@pytest.mark.parametrize("streams", [1, 20])
def test_streams_that_end_by_the_drain_are_no_failure(start: Start, streams: int) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="20").ready()
    requests = [Asking(process, "/polite") for _ in range(streams)]
    in_flight(process, streams)
    process.signal(signal.SIGTERM)
    assert ended(process, 15) == 0, process.said()
    for request in requests:
        request.join()
        assert request.answer is not None
        assert (request.answer.status, request.answer.body.replace(b"tick\n", b"")) == (200, b"")


def leave(client: socket.socket, by: str) -> None:
    if by == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


GET = b"GET /nap?s=30 HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /nap?s=30 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"


@pytest.mark.parametrize("by", ["end", "reset"])
@pytest.mark.parametrize("sent", [GET, POST + b"abc", POST + b"a"], ids=["get", "post", "half"])
def test_a_request_whose_client_has_left_holds_nothing(start: Start, by: str, sent: bytes) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="20").ready()
    client = process.dial()
    client.sendall(sent)
    in_flight(process, 1)
    time.sleep(0.3)
    leave(client, by)
    in_flight(process, 0)
    assert process.request_line("/nap")["status"] == 499
    process.signal(signal.SIGTERM)
    assert ended(process, 12) == 0, process.said()
    assert not process.lines("requests cut off")
    assert not [line for line in process.lines() if line["level"] == "critical" or "exception" in line]


@pytest.mark.parametrize("by", ["end", "reset"])
def test_a_client_that_leaves_within_its_answer_holds_nothing(start: Start, by: str) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="20").ready()
    client = process.dial()
    client.sendall(GET.replace(b"/nap?s=30", b"/endless"))
    while b"tick" not in client.recv(65536):
        pass
    leave(client, by)
    in_flight(process, 0)
    assert process.request_line("/endless")["status"] == 200
    process.signal(signal.SIGTERM)
    assert ended(process, 12) == 0, process.said()
    assert not [line for line in process.lines() if line["level"] == "critical" or "exception" in line]


def test_without_time_for_a_drain_it_ends_at_once(start: Start) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="0").ready()
    request = Asking(process, "/nap?s=60")
    in_flight(process, 1)
    process.signal(signal.SIGTERM)
    assert ended(process, 30) == 1
    assert cut_off(process) == 1
    request.join()


def test_a_stop_takes_its_delay_and_not_longer(start: Start) -> None:
    process = launch(start, APP_DRAIN_DELAY="2").ready()
    process.ask("/task/deaf")
    began = process.signal(signal.SIGTERM)
    time.sleep(1)
    assert process.ask("/nap").headers["connection"] == "close"
    assert ended(process, ALLOWED_S + 2) == 1
    assert time.monotonic() - began >= 3


@pytest.mark.parametrize("uncertain", [b"GET /nap HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_client_that_is_answered_and_stays_does_not_hold_the_stop(start: Start, uncertain: bytes) -> None:
    process = launch(start, APP_DRAIN_TIMEOUT="20").ready()
    with process.dial() as client:
        client.sendall(uncertain)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        process.signal(signal.SIGTERM)
        assert ended(process, 12) == 0
        assert rest(client) == b""
