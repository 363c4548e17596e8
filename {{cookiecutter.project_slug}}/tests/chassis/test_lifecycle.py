"""Contract, section 7: start and stop, and no request lost in between."""

from __future__ import annotations

import signal
import socket
import time

import pytest

from .conftest import PROBE, Start
from .process import Asking, Process, rest, wait_for


def test_a_slow_request_is_answered_and_then_the_process_ends(own: Process) -> None:
    slow = Asking(own, "/slow?s=1")
    own.line("slow begins")
    told = own.signal(signal.SIGTERM)
    assert wait_for(lambda: own.readiness()["state"] == "draining")
    assert time.monotonic() - told < 0.2
    assert own.wait() == 0
    ended = time.monotonic()
    slow.join()
    assert slow.answer is not None
    assert (slow.answer.status, slow.answer.body) == (200, b"done")
    assert slow.answer.headers["connection"] == "close"
    assert ended - slow.at < 1
    events = [line["event"] for line in own.lines()]
    assert events[-3:] == ["service closed", "registry closed", "stopped"]


def test_during_the_delay_requests_are_taken_and_connections_end(start: Start) -> None:
    process = start(APP_DRAIN_DELAY="1").ready()
    kept = process.connect()
    assert "connection" not in process.ask("/trouble/before", on=kept).headers
    idle = process.connect()
    process.ask("/trouble/idle", on=idle)
    told = process.signal(signal.SIGTERM)
    process.line("draining")
    answer = process.ask("/trouble/kept", on=kept)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert answer.headers["x-envoy-immediate-health-check-fail"] == "true"
    assert process.ask("/trouble/new").status == 200
    assert process.wait() == 0
    assert 1 <= time.monotonic() - told < 3
    assert idle.sock is not None
    assert idle.sock.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        process.ask("/trouble/late")


def _start_standing_still(start: Start) -> Process:
    """Start a probe whose event loop stands still for a second at the moment when the listener is to be closed."""
    code = """
import runpy, sys, time
from {{ cookiecutter.package_name }}.chassis import server
close = server.Server._stop_listening
def late(self):
    server.log.info("standing still")
    time.sleep(1)
    return close(self)
server.Server._stop_listening = late
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
    return start.run([PROBE[0], "-c", code, PROBE[1]], {"APP_PROBE_NAME": "x", "APP_DRAIN_DELAY": "0.1"}).ready()


@pytest.mark.parametrize("newcomers", [0, 20])
def test_what_has_reached_the_machine_when_the_listener_closes_is_answered(start: Start, newcomers: int) -> None:
    process = _start_standing_still(start)
    kept, idle = process.connect(), process.connect()
    for connection in (kept, idle):
        process.ask("/trouble/first", on=connection)
    process.signal(signal.SIGTERM)
    process.line("standing still")
    late = [Asking(process, "/trouble/late", on=kept), *(Asking(process, "/trouble/new") for _ in range(newcomers))]
    for request in late:
        request.join()
        assert request.answer is not None, "a request that was sent got no answer"
        assert (request.answer.status, request.answer.headers["connection"]) == (200, "close")
    assert process.wait() == 0


def test_a_connection_that_brings_no_request_does_not_hold_the_stop(start: Start) -> None:
    process = _start_standing_still(start)
    with socket.create_connection(("127.0.0.1", process.port())) as client:
        client.sendall(b"GET /trouble/first HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        told = process.signal(signal.SIGTERM)
        process.line("standing still")
        client.sendall(b"\r\n")
        assert process.wait() == 0
    assert time.monotonic() - told < 4


def test_interrupt_stops_without_the_delay(start: Start) -> None:
    process = start(APP_DRAIN_DELAY="60").ready()
    told = process.signal(signal.SIGINT)
    assert process.wait() == 0
    assert time.monotonic() - told < 3
    assert process.line("draining")["delay_s"] == 0


def test_a_request_cut_off_at_the_deadline_is_counted_and_told(start: Start) -> None:
    process = start(APP_DRAIN_TIMEOUT="0.2").ready()
    slow = [Asking(process, "/slow?s=60") for _ in range(2)]
    wait_for(lambda: len(process.lines("slow begins")) == 2)
    assert process.stop() == 1
    assert process.line("requests cut off")["requests"] == 2
    for request in slow:
        request.join()
        assert request.answer is not None
        assert (request.answer.status, request.answer.json()["detail"]) == (503, "The service is stopping.")
    assert [line["status"] for line in process.lines("request")] == [503, 503]


def test_a_handler_that_ignores_its_end_can_not_hold_the_process(start: Start) -> None:
    process = start(APP_DRAIN_TIMEOUT="0.1").ready()
    request = Asking(process, "/stubborn")
    wait_for(lambda: "http_server_active_requests 1.0" in process.ask("/metrics", port="admin").body.decode())
    assert process.stop() == 1
    request.join()
    assert process.lines("cancel ignored")


@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGTERM"), ("SIGTERM", "SIGINT"), ("SIGINT", "SIGINT")])
def test_a_second_signal_ends_it_at_once(start: Start, first: str, second: str) -> None:
    process = start(APP_DRAIN_DELAY="60").ready()
    slow = Asking(process, "/slow?s=60")
    process.line("slow begins")
    process.signal(signal.Signals[first])
    process.line("draining")
    told = process.signal(signal.Signals[second])
    assert process.wait() == 128 + signal.Signals[second]
    assert time.monotonic() - told < 1
    slow.join()


def test_half_sent_headers_do_not_hold_the_stop(own: Process) -> None:
    with socket.create_connection(("127.0.0.1", own.port())) as half:
        half.sendall(b"GET / HTTP/1.1\r\nHost:")
        own.ask("/trouble/after")
        told = own.signal(signal.SIGTERM)
        assert own.wait() == 0
    assert time.monotonic() - told < 3


def test_a_request_whose_headers_end_during_the_stop_is_answered(own: Process) -> None:
    slow = Asking(own, "/slow?s=0.5")
    with socket.create_connection(("127.0.0.1", own.port())) as late:
        late.sendall(b"GET /trouble/late HTTP/1.1\r\nHost:")
        own.line("slow begins")
        own.signal(signal.SIGTERM)
        own.line("draining")
        late.sendall(b" x\r\n\r\n")
        assert late.recv(1000).startswith(b"HTTP/1.1 200")
    assert own.wait() == 0
    slow.join()


def test_half_sent_headers_behind_a_request_do_not_cost_its_answer(own: Process) -> None:
    with own.dial() as client:
        client.sendall(b"GET /slow?s=0.7 HTTP/1.1\r\nHost: x\r\n\r\nGET / HT")
        own.line("slow begins")
        own.signal(signal.SIGTERM)
        assert rest(client).endswith(b"\r\n\r\ndone")
    assert own.wait() == 0


def test_a_stop_during_the_start_up_ends_it(start: Start) -> None:
    process = start(APP_PROBE_START_DELAY="60")
    process.line("listening")
    wait_for(lambda: process.ask("/-/ready").status == 503)
    assert process.stop() == 0
    assert [line["event"] for line in process.lines() if line["event"] != "request"] == [
        *("listening", "registry closed", "stopped")
    ]


def test_during_the_start_up_only_what_can_go_elsewhere_is_refused(start: Start) -> None:
    process = start(APP_PROBE_START_DELAY="1")
    process.line("listening")
    order = Asking(process, "/length", method="POST", body=b"abc")
    answer = process.ask("/trouble/nothing")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert not process.lines("ready")
    order.join()
    assert order.answer is not None
    assert (order.answer.status, order.answer.body) == (200, b"3")


def test_what_waits_for_a_start_up_that_is_called_off_is_told(start: Start) -> None:
    process = start(APP_PROBE_START_DELAY="60")
    process.line("listening")
    order = Asking(process, "/length", method="POST", body=b"abc")
    wait_for(lambda: b"active_requests 1.0" in process.ask("/metrics", port="admin").body)
    assert process.stop() == 0
    order.join()
    assert order.answer is not None
    assert order.answer.status == 503


def test_a_failing_start_up_is_one_clear_line(start: Start) -> None:
    process = start(APP_PROBE_START_ERROR="no database")
    assert process.wait() == 1
    assert "no database" in process.line("startup failed")["error"]
    assert not process.lines("ready")


def test_an_end_that_hangs_is_given_up(start: Start) -> None:
    process = start(APP_PROBE_STOP_DELAY="60", APP_DRAIN_TIMEOUT="0.1").ready()
    process.signal(signal.SIGTERM)
    assert process.wait(20) == 1
    assert process.line("shutdown failed")["error"].startswith("not done after")


@pytest.mark.parametrize("name", ["HTTP", "ADMIN"])
def test_a_port_in_use_is_one_clear_line(start: Start, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start.service(**{f"APP_{name}_PORT": str(port)})
        assert process.wait() == 1
    [line] = process.lines()
    assert (line["event"], line["setting"], line["port"]) == ("can't listen", f"APP_{name}_PORT", port)
    assert "in use" in line["error"]


def test_the_process_keeps_serving_through_hangups(own: Process) -> None:
    for _ in range(20):
        own.signal(signal.SIGHUP)
    assert own.ask("/trouble/nothing").status == 200


def test_signals_that_come_before_anything_has_started_do_no_harm(start: Start) -> None:
    code = """
import signal
from {{ cookiecutter.package_name }}.chassis import cli
cli.main("x", lambda: [signal.raise_signal(number) for number in (signal.SIGHUP, signal.SIGTERM)], [], {})
"""
    process = start.run([PROBE[0], "-c", code], {})
    assert process.wait() == 0
    assert (process.out.read_text(), process.err.read_text()) == ("", "")
