"""Contract, section 4: one event, one line of JSON on stdout, whoever logs it."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import socket
import subprocess
import sys
import urllib.request
from datetime import datetime
from pathlib import Path

import pytest
from kit.service import Service, wait_for
from my_service.chassis import logs, request_id

from .start import PROBE, SERVICE, Start

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def test_a_whole_life_is_json_lines_on_stdout_and_nothing_on_stderr(own: Service) -> None:
    for kind in (
        "exception",
        "library",
        "warning",
        "thread",
        "task",
        "unraisable",
        "odd",
        "deliberate",
        "exit",
    ):
        own.ask(f"/trouble/{kind}")
    assert own.stop() == 0
    assert own.err.read_text() == ""
    lines = own.lines()
    for line in lines:
        assert list(line)[:4] == ["timestamp", "level", "logger", "event"]
        assert datetime.fromisoformat(line["timestamp"]).utcoffset() is not None
    ours = ("server", "service", "lifecycle")
    events = [line["event"] for line in lines if line["logger"] in ours]
    assert events == ["listening", "ready", "draining", "stopped"]
    [one] = own.lines("from a library")
    assert (one["level"], one["logger"], one["shelf"]) == ("warning", "a.library", 3)
    assert own.lines("bad %d ('format',)")[0]["format_error"]
    assert any("UserWarning: old" in line["event"] for line in lines if line["logger"] == "py.warnings")
    assert own.lines("with arguments")
    assert "IndexError" in own.lines("uncaught exception in thread")[0]["exception"]
    assert "OSError: in __del__" in own.lines("unraisable exception")[0]["exception"]
    assert any("IndexError" in line.get("exception", "") for line in lines if line["logger"] == "asyncio")
    assert own.lines("odd")[0]["surrogate"] == "\udc80"


def test_a_service_can_ask_for_the_id_of_each_request() -> None:
    async def ask(identity: str) -> str:
        logs.REQUEST.set({"request_id": identity})
        await asyncio.sleep(0)
        return request_id()

    async def ask_all() -> list[str]:
        return await asyncio.gather(*map(ask, "abc"))

    assert request_id() == ""
    assert asyncio.run(ask_all()) == ["a", "b", "c"]
    assert request_id() == ""


def test_an_exception_that_ends_the_process_is_a_line_too(start: Start) -> None:
    code = "from my_service.chassis import logs; logs.configure('info', 'json'); 1 / 0"
    process = start.run([sys.executable, "-c", code], {})
    assert process.wait() == 1
    assert "ZeroDivisionError" in process.lines("uncaught exception")[0]["exception"]
    assert process.err.read_text() == ""


REPLACED = """
import io, sys

sys.stdout = io.StringIO()
from my_service.chassis import logs
logs.configure("info", "json")
logs.get_logger("replaced").info("heard")
"""


def test_lines_do_not_depend_on_what_python_calls_stdout(start: Start) -> None:
    process = start.run([sys.executable, "-c", REPLACED], {})
    assert process.wait() == 0, process.said()
    assert [line["event"] for line in process.lines()] == ["heard"]


def test_the_level_is_a_setting(start: Start) -> None:
    process = start(APP_LOG_LEVEL="error", APP_PROBE_START_ERROR="no luck")
    assert process.wait() == 1
    assert [line["event"] for line in process.lines()] == ["startup failed"]


def test_a_request_is_one_line_with_its_route_and_without_its_query(probe: Service) -> None:
    probe.ask("/trouble/nothing?password=hunter2", headers={"Authorization": "hunter2"})
    line = probe.request_line("/trouble/nothing")
    assert line.keys() == {
        *("timestamp", "level", "logger", "event", "method", "path", "route"),
        *("status", "duration_ms", "client", "request_id"),
    }
    assert (line["method"], line["route"], line["status"]) == ("GET", "/trouble/{kind}", 200)
    assert line["client"] == "127.0.0.1"
    assert 0 < line["duration_ms"] < 10_000
    assert "hunter2" not in probe.out.read_text()


def test_requests_on_the_admin_port_are_not_logged(own: Service) -> None:
    own.ask("/-/version", port="admin")
    own.ask("/trouble/last")
    own.request_line("/trouble/last")
    assert len(own.lines("request")) == 1


def test_a_sane_request_id_and_trace_context_are_taken_over(own: Service) -> None:
    headers = {"X-Request-ID": "abc-123", "traceparent": f"00-{TRACE}-{SPAN}-01"}
    answer = own.ask("/slow?s=0", headers=headers)
    assert (answer.headers["x-request-id"], answer.headers["traceparent"]) == (
        "abc-123",
        headers["traceparent"],
    )
    own.request_line("/slow")
    for event in ("slow begins", "request"):
        [line] = own.lines(event)
        assert (line["request_id"], line["trace_id"], line["span_id"]) == ("abc-123", TRACE, SPAN)


@pytest.mark.parametrize("value", ["", "a b", "x" * 129, 'a"}', "\xe9"])
def test_any_other_request_id_is_replaced(probe: Service, value: str) -> None:
    headers = {"X-Request-ID": value, "traceparent": f"00-{'0' * 32}-{SPAN}-01"}
    answer = probe.ask(f"/trouble/id-{len(value)}", headers=headers)
    assert len(answer.headers["x-request-id"]) == 32
    assert "traceparent" not in answer.headers
    assert "trace_id" not in probe.request_line(f"/trouble/id-{len(value)}")


TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("sent", "is_taken"),
    [
        ([TRACEPARENT], True),
        # A later version may add what this one does not know.
        (["01" + TRACEPARENT[2:] + "-more"], True),
        ([TRACEPARENT + "-more"], False),
        ([TRACEPARENT, TRACEPARENT.replace(SPAN, SPAN[::-1])], False),
        ([TRACEPARENT.upper()], False),
        (["ff" + TRACEPARENT[2:]], False),
    ],
)
def test_only_one_valid_trace_context_is_taken_over(probe: Service, sent: list[str], is_taken: bool) -> None:
    fields = "".join(f"traceparent: {each}\r\n" for each in sent)
    request = f"GET /trouble/trace HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n"
    assert (b"\r\ntraceparent: " in probe.send(request.encode())) is is_taken


def test_a_url_in_an_exception_is_logged_without_password_and_query(own: Service) -> None:
    own.ask("/trouble/url")
    said = own.line("unhandled exception")["exception"]
    assert said.endswith("no answer from 'http://hub:1/x' postgresql://hub:2 'https://hub:3/end'.")
    assert "canary" not in own.said()


def test_requests_on_one_connection_do_not_share_their_ids(probe: Service) -> None:
    # Sent at once: the second is begun where the first ended, in the same context.
    first = f"GET /trouble/1 HTTP/1.1\r\nHost: x\r\ntraceparent: 00-{TRACE}-{SPAN}-01\r\n\r\n"
    second = "GET /trouble/2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", probe.port())) as client:
        client.sendall((first + second).encode())
        while client.recv(65536):
            pass
    assert probe.request_line("/trouble/1")["trace_id"] == TRACE
    assert "trace_id" not in probe.request_line("/trouble/2")


def test_a_client_can_not_forge_a_line(own: Service) -> None:
    forged = "%0a%7b%22event%22:%22request%22%7d"
    own.ask(f"/trouble/{forged}")
    assert own.request_line(f"/trouble/{forged}")["status"] == 200
    assert len(own.lines("request")) == 1


def test_on_a_terminal_lines_are_for_people(tmp_path: Path) -> None:
    screen, terminal = pty.openpty()
    env = {**os.environ, "APP_HTTP_PORT": "x\n\x1b[2J"}
    with subprocess.Popen(SERVICE, env=env, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = os.read(screen, 65536).decode()
    os.close(screen)
    assert process.returncode == 78
    assert "configuration problem" in shown
    assert "\x1b[2J" not in shown
    assert not shown.startswith("{")


def test_the_format_is_a_setting(start: Start) -> None:
    process = start(APP_LOG_FORMAT="console", APP_PROBE_START_ERROR="\x1b[2J")
    assert process.wait() == 1
    assert "startup failed" in process.out.read_text()
    assert "\x1b" not in process.out.read_text()
    assert not any(line.startswith("{") for line in process.out.read_text().splitlines())


def test_request_lines_have_format_and_level_too(start: Start, own: Service) -> None:
    body = '{"logger": "http", "level": "warning"}'
    own.ask(
        "/-/log-level", port="admin", method="PUT", headers={"Content-Type": "application/json"}, body=body
    )
    own.ask("/trouble/unheard")
    own.stop()
    assert not own.lines("request")
    process = start(APP_LOG_FORMAT="console")
    wait_for(lambda: " ready " in process.out.read_text())
    [port] = re.findall(r"http=127\.0\.0\.1:(\d+)", process.out.read_text())
    # Whatever proxy the environment names, it does not know this machine's loopback.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    direct.open(f"http://127.0.0.1:{port}/trouble/heard").close()
    process.stop()
    assert re.search(r"GET /trouble/\{kind\} 200 \d+ ms", process.out.read_text())


def test_a_reader_that_has_gone_costs_no_request(start: Start) -> None:
    process = start.run(
        ["bash", "-c", 'exec "$@" > >(head -n 2)', "-", *PROBE], {"APP_PROBE_NAME": "x"}
    ).ready()
    for _ in range(3):
        assert process.ask("/trouble/nothing").status == 200
    assert process.stop() == 0
    assert process.err.read_text() == ""


def test_exceptions_that_nobody_waits_for_are_counted(own: Service) -> None:
    assert b"uncaught_exceptions_total 0.0" in own.ask("/metrics", port="admin").body
    own.ask("/trouble/task")
    assert b"uncaught_exceptions_total 1.0" in own.ask("/metrics", port="admin").body
