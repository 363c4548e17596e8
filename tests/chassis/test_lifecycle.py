"""Contract, section 7: start and stop, and no request lost in between."""

from __future__ import annotations

import errno
import signal
import socket
import sys
import time
from typing import Any

import pytest
from kit.service import Asking, Service, free_port, rest, wait_for
from my_service.chassis.http.server import listen

from .start import Start


def test_a_slow_request_is_answered_and_then_the_process_ends(own: Service) -> None:
    slow = Asking(own, "/slow?s=1")
    own.line("slow begins")
    own.signal(signal.SIGTERM)
    wait_for(lambda: own.readiness()["state"] == "draining")
    assert slow.is_alive()
    assert own.wait() == 0
    slow.join()
    assert slow.answer is not None
    assert (slow.answer.status, slow.answer.body) == (200, b"done")
    assert slow.answer.headers["connection"] == "close"
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
    assert time.monotonic() - told >= 1
    assert idle.sock is not None
    assert idle.sock.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        process.ask("/trouble/late")


def _stop_while_it_stands_still(start: Start) -> tuple[Service, Asking]:
    """Stop a probe whose event loop stands still when its listener is to be closed."""
    process = start(APP_DRAIN_DELAY="0.5").ready()
    process.signal(signal.SIGTERM)
    process.line("draining")
    stuck = Asking(process, "/block?s=1.5")
    wait_for(lambda: process.series()["http_server_active_requests"] == 1)
    return process, stuck


@pytest.mark.parametrize("newcomers", [0, 20])
def test_what_has_reached_the_machine_when_the_listener_closes_is_answered(
    start: Start, newcomers: int
) -> None:
    process, stuck = _stop_while_it_stands_still(start)
    late = [Asking(process, "/trouble/new") for _ in range(newcomers)]
    for request in (stuck, *late):
        request.join()
        assert request.answer is not None, "a request that was sent got no answer"
        assert (request.answer.status, request.answer.headers["connection"]) == (200, "close")
    assert process.wait() == 0


def test_a_request_on_a_kept_connection_is_answered_when_the_listener_closes(start: Start) -> None:
    process = start(APP_DRAIN_DELAY="0").ready()
    with process.dial() as client:
        client.sendall(
            b"GET /block?s=1 HTTP/1.1\r\nHost: x\r\n\r\nGET /trouble/late HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        wait_for(lambda: process.series()["http_server_active_requests"] >= 1)
        process.signal(signal.SIGTERM)
        answers = rest(client)
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.endswith(b"late")
    assert process.wait() == 0


def test_a_connection_that_brings_no_request_does_not_hold_the_stop(start: Start) -> None:
    process, stuck = _stop_while_it_stands_still(start)
    with process.dial() as silent, process.dial() as client:
        client.sendall(b"\r\n")
        assert process.wait(30) == 0
        assert rest(silent) == b""
    stuck.join()


def test_interrupt_stops_without_the_delay(start: Start) -> None:
    process = start(APP_DRAIN_DELAY="60").ready()
    process.signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert process.line("draining")["delay_s"] == 0


def test_a_request_cut_off_at_the_deadline_is_counted_and_told(start: Start) -> None:
    process = start(APP_DRAIN_TIMEOUT="0.2").ready()
    slow = [Asking(process, "/slow?s=60") for _ in range(2)]
    wait_for(lambda: len(process.lines("slow begins")) == 2)
    assert process.stop() == 1
    cut_off = process.line("requests cut off")
    assert (cut_off["requests"], cut_off["after_s"]) == (2, 0.2)
    for request in slow:
        request.join()
        assert request.answer is not None
        assert (request.answer.status, request.answer.json()["detail"]) == (503, "The service is stopping.")
    assert [line["status"] for line in process.lines("request")] == [503, 503]


def test_a_handler_that_ignores_its_end_can_not_hold_the_process(start: Start) -> None:
    process = start(APP_DRAIN_TIMEOUT="0.1").ready()
    request = Asking(process, "/stubborn")
    wait_for(lambda: process.series()["http_server_active_requests"] == 1)
    assert process.stop() == 1
    request.join()
    assert process.lines("cancel ignored")


@pytest.mark.parametrize(
    ("first", "second"), [("SIGTERM", "SIGTERM"), ("SIGTERM", "SIGINT"), ("SIGINT", "SIGINT")]
)
def test_a_second_signal_ends_it_at_once(start: Start, first: str, second: str) -> None:
    process = start(APP_DRAIN_DELAY="60").ready()
    slow = Asking(process, "/slow?s=60")
    process.line("slow begins")
    process.signal(signal.Signals[first])
    process.line("draining")
    process.signal(signal.Signals[second])
    assert process.wait() == 128 + signal.Signals[second]
    slow.join()


def test_a_second_signal_ends_it_while_the_event_loop_is_stuck(own: Service) -> None:
    stuck = Asking(own, "/block?s=60")
    wait_for(lambda: own.series()["http_server_active_requests"] == 1)
    own.signal(signal.SIGTERM)
    # Those that come while one waits to be handled are one with it.
    while own.is_running:
        time.sleep(1)
        own.signal(signal.SIGTERM)
    assert own.wait() == 128 + signal.SIGTERM
    stuck.join()


def test_half_sent_headers_do_not_hold_the_stop(own: Service) -> None:
    with own.dial() as half:
        half.sendall(b"GET / HTTP/1.1\r\nHost:")
        own.ask("/trouble/after")
        assert own.stop(30) == 0


def test_a_request_whose_headers_end_during_the_stop_is_answered(own: Service) -> None:
    slow = Asking(own, "/slow?s=0.5")
    with own.dial() as late:
        late.sendall(b"GET /trouble/late HTTP/1.1\r\nHost:")
        own.line("slow begins")
        own.signal(signal.SIGTERM)
        own.line("draining")
        late.sendall(b" x\r\n\r\n")
        assert late.recv(1000).startswith(b"HTTP/1.1 200")
    assert own.wait() == 0
    slow.join()


def test_half_sent_headers_behind_a_request_do_not_cost_its_answer(own: Service) -> None:
    with own.dial() as client:
        client.sendall(b"GET /slow?s=0.7 HTTP/1.1\r\nHost: x\r\n\r\nGET / HT")
        own.line("slow begins")
        own.signal(signal.SIGTERM)
        assert rest(client).endswith(b"\r\n\r\ndone")
    assert own.wait() == 0


def test_a_stop_during_the_start_up_ends_it(start: Start) -> None:
    process = start(APP_PROBE_START_DELAY="60")
    process.line("listening")
    assert process.readiness()["state"] == "starting"
    assert process.stop() == 0
    events = [line["event"] for line in process.lines()]
    assert events[0] == "listening"
    assert "ready" not in events
    assert events[-2:] == ["registry closed", "stopped"]


def test_requests_that_come_during_the_start_up_wait_for_it(start: Start) -> None:
    process = start(APP_PROBE_START_DELAY="3")
    process.line("listening")
    order = Asking(process, "/length", method="POST", body=b"abc")
    assert process.ask("/trouble/nothing").status == 200
    assert process.lines("ready")
    order.join()
    assert order.answer is not None
    assert (order.answer.status, order.answer.body) == (200, b"3")


def test_a_failing_start_up_is_one_clear_line(start: Start) -> None:
    process = start(APP_PROBE_START_ERROR="no database")
    assert process.wait() == 1
    line = process.line("startup failed")
    assert "no database" in line["exception"]
    assert not process.lines("ready")
    assert [line["event"] for line in process.lines() if line["level"] in ("error", "critical")] == [
        "startup failed"
    ]


def test_an_end_that_hangs_is_given_up(start: Start) -> None:
    process = start(APP_PROBE_STOP_DELAY="60", APP_DRAIN_TIMEOUT="0.1").ready()
    assert process.stop() == 1
    assert process.line("shutdown timed out")["hint"]


@pytest.mark.parametrize("name", ["HTTP", "ADMIN"])
def test_a_port_in_use_is_one_clear_line(start: Start, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start.service(**{f"APP_{name}_PORT": str(port)})
        assert process.wait() == 1
    [line] = process.lines()
    assert (line["event"], line["setting"], line["port"]) == ("listen failed", f"APP_{name}_PORT", port)
    assert "in use" in line["error"]


def test_a_port_that_one_address_lacks_is_left_free_by_the_others() -> None:
    port = free_port()
    with socket.create_server(("0.0.0.0", port)), pytest.raises(OSError, match="in use"):
        listen("::", port)
    socket.create_server(("::", port), family=socket.AF_INET6).close()


def test_any_port_is_one_that_all_addresses_have(monkeypatch: pytest.MonkeyPatch) -> None:
    create, refused = socket.create_server, list[int]()

    def refuse_once(address: Any, **options: Any) -> socket.socket:
        if address[1] and not refused:
            refused.append(address[1])
            raise OSError(errno.EADDRINUSE, "in use")
        return create(address, **options)

    monkeypatch.setattr(socket, "create_server", refuse_once)
    first, second = listen("::", 0)
    with first, second:
        assert first.getsockname()[1] == second.getsockname()[1]
    assert refused


def test_the_process_keeps_serving_through_hangups(own: Service) -> None:
    for _ in range(20):
        own.signal(signal.SIGHUP)
    assert own.ask("/trouble/nothing").status == 200


# Runs the service's main, whose first import of its own parts raises a signal.
SIGNALLED = """
import signal, sys

class Signalled:
    def __getattr__(self, name):
        signal.raise_signal(int(sys.argv[1]))
        raise AttributeError(name)

sys.modules["my_service.app"] = Signalled()
from my_service.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_comes_during_the_imports_is_heard(start: Start, number: signal.Signals) -> None:
    """PID 1 has no default handlers: without one of its own it would go on."""
    process = start.run([sys.executable, "-c", SIGNALLED, str(int(number))], {})
    assert process.wait() == 0
    assert process.said() == ""


def test_a_hangup_that_comes_during_the_imports_ends_nothing(start: Start) -> None:
    process = start.run([sys.executable, "-c", SIGNALLED, str(int(signal.SIGHUP))], {})
    assert process.wait() == 1, "it ends by the import that fails afterwards, not by the signal"
    assert "ImportError" in process.said()
