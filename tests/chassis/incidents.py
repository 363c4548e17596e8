"""Starts the program of tests/apps/incidents.py, and says how its stops went."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from kit.service import Service, wait_for

from .start import Start, write_secrets

PROGRAM = (sys.executable, "-m", "apps.incidents")
# Short, because many tests wait for it to pass.
DRAIN_TIMEOUT_S = 1.0
# The contract allows 2 s beyond delay and timeout; the rest is for a busy machine. What hangs takes 60 s.
ALLOWED_S = DRAIN_TIMEOUT_S + 2 + 8


# The program has routes of FastAPI's own where that is the project's framework.
FASTAPI = importlib.util.find_spec("fastapi") is not None
MAX_BODY = 200_000
UPGRADE = (
    "GET {} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def launch(start: Start, **env: str) -> Service:
    """Start the program; its start-up may go wrong."""
    return start.run(PROGRAM, {"APP_DRAIN_TIMEOUT": f"{DRAIN_TIMEOUT_S:g}", **env})


def in_flight(process: Service, number: int) -> None:
    """Wait until that many requests are in flight."""
    wait_for(lambda: process.series()["http_server_active_requests"] == number, f"{number} in flight")


def ended(process: Service, limit: float = ALLOWED_S) -> int:
    """Return the exit status; fail if the process is still there after *limit* seconds."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        pytest.fail(f"still there after {limit:g} s: {process.said()}")


def stopped(process: Service) -> int:
    """Stop it as an orchestrator does; fail if it takes longer than it may."""
    began = process.signal(signal.SIGTERM)
    status = ended(process)
    # What hangs may not make it end before its time either.
    assert status != 1 or time.monotonic() - began >= DRAIN_TIMEOUT_S, process.said()
    return status


def cut_off(process: Service) -> int:
    """Return how much the process says that it has cut off: requests, background work, tasks and threads."""
    counted = 0
    for line in process.lines("requests cut off"):
        counted += line["requests"] + line["background"]
    for line in process.lines("stop timed out"):
        counted += line["requests"] + sum(line["tasks"].values()) + len(line["threads"])
    return counted


def events(process: Service) -> list[str]:
    return [line["event"] for line in process.lines()]


@contextmanager
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start the program for many tests; it waits little for bodies, and long for who has half closed."""
    folder = tmp_path_factory.mktemp("incidents")
    with Start(folder, write_secrets(folder / "secrets")) as start:
        yield launch(start, APP_HTTP_MAX_BODY=str(MAX_BODY), BODY_TIMEOUT="1", HALF_CLOSE="5").ready()


@contextmanager
def has_no_errors(process: Service) -> Iterator[None]:
    """Fail if it ends, or logs an error meanwhile."""
    before = len(process.lines())
    yield
    assert not [line for line in process.lines()[before:] if line["level"] in ("error", "critical")]
    assert process.is_running


def parsed(received: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return the status, the headers and the body of the only response in *received*."""
    head, end, body = received.partition(b"\r\n\r\n")
    assert end, received[:1000]
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def is_problem(headers: dict[str, str]) -> bool:
    return headers["content-type"] == "application/problem+json"
