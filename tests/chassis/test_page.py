"""The page of the admin port: the last ten minutes, the slowest requests, what changed of late."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from http.client import HTTPConnection
from pathlib import Path

import pytest
from kit.service import Service, exchange, wait_for
from my_service.chassis.admin import page as admin_page
from my_service.chassis.admin.page import History
from my_service.chassis.event_loop import EventLoop
from my_service.chassis.health import Health
from my_service.chassis.lifecycle import Lifecycle, State
from my_service.chassis.metrics import Metrics

from .start import Start, elsewhere


class Watched:
    """A history, and what it looks at."""

    def __init__(self) -> None:
        self.lifecycle = Lifecycle()
        self.metrics = Metrics({"name": "x", "version": "1", "revision": ""}, int, int)
        self.health = Health(self.lifecycle, EventLoop(), 2.0)
        self.history = History(self.metrics, self.lifecycle, self.health)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_slot_has_the_rates_the_p99_and_the_worst_lag_of_its_time(watched: Watched) -> None:
    for _ in range(98):
        watched.metrics.observe_request("GET", "/fast", 200, 0.004)
    watched.metrics.observe_request("GET", "/slow", 500, 0.3)
    watched.metrics.observe_request("POST", "/slow", 503, 0.4)
    for _ in range(500):
        watched.metrics.observe_request("GET", "/-/ready", 503, 9)
    watched.history.end_slot(2.0, 0.25)
    assert watched.history.slots[-1][1:] == (50, 1, 500, 250)
    # What was is not counted again.
    watched.history.end_slot(2.0, 0.0)
    assert watched.history.slots[-1][1:] == (0, 0, 0, 0)
    watched.metrics.observe_request("GET", "/slow", 200, 60)
    watched.history.end_slot(2.0, 0.0)
    assert watched.history.slots[-1][3] == 10_000


def test_a_slot_ends_when_its_time_is_over(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    async def beat(*lags_s: float) -> None:
        for lag_s in lags_s:
            watched.history.beat(lag_s)

    asyncio.run(beat(0.1))
    assert not watched.history.slots
    monkeypatch.setattr(admin_page, "SLOT_S", 0.0)
    asyncio.run(beat(0.05))
    # Added by a thread of its own.
    [slot] = wait_for(lambda: list(watched.history.slots), "the slot")
    assert slot[4] == 100


def test_where_no_thread_can_start_a_slot_is_missing_and_nothing_else(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_page, "SLOT_S", 0.0)
    usual = threading.stack_size(2**47)
    try:
        watched.history.beat(0.05)
    finally:
        threading.stack_size(usual)
    assert not watched.history.slots
    watched.history.beat(0.05)
    wait_for(lambda: len(watched.history.slots) == 1, "the next slot")


def test_it_takes_no_more_memory_however_long_it_runs(watched: Watched) -> None:
    for number in range(admin_page.SLOTS + 20):
        watched.history.end_slot(1.0, 0.0)
        watched.history.note(f"{number}")
    assert len(watched.history.slots) == admin_page.SLOTS
    assert len(watched.history.changes) == 20


def test_changes_of_the_state_and_of_readiness_are_remembered(watched: Watched) -> None:
    watched.lifecycle.advance(State.READY)
    watched.history.beat(0.0)
    watched.lifecycle.advance(State.DRAINING)
    watched.history.beat(0.0)
    assert [what for _, what in watched.history.changes] == [
        "the instance is ready",
        "requests may be sent here",
        "the instance is draining",
        "requests may not be sent here",
    ]


def page(process: Service) -> str:
    return process.look("/")


def test_the_page_says_what_changed_and_what_was_slow(start: Start, secrets: Path) -> None:
    process = start(APP_SECRETS_REFRESH="0.05").ready()
    process.ask("/slow?s=0.05&token=hunter2", headers={"X-Request-ID": "<b>slow"})
    process.ask("/slow?s=0.05", headers={"X-Request-ID": "slow-1"})
    (secrets / "probe_password").write_text("hunter3")
    process.line("secrets reloaded")
    body = json.dumps({"level": "debug", "logger": "<i>http", "for": "1m"})
    kind = {"Content-Type": "application/json"}
    assert process.ask("/-/log-level", port="admin", method="PUT", body=body, headers=kind).status == 200
    (secrets / "probe_password").write_text("")
    process.line("secrets reload failed")
    text = wait_for(lambda: page(process) if "be reloaded" in page(process) else "", "the failed reload")
    changes = text.partition("What changed of late")[2].partition("<h2>")[0]
    shown = [
        "probe_password can&#x27;t be reloaded: the old secret is in use",
        "the log level of &lt;i&gt;http is debug, for 60 s",
        "new secret: probe_password",
        "requests may be sent here",
        "the instance is ready",
    ]
    assert re.findall(r"<tr><td>[\d:.TZ-]+<td>(.+?)(?=<tr>|</table>)", changes) == shown
    slowest = text.partition("Slowest requests of late")[2].partition("<h2>")[0]
    assert "<td>/slow<td>" in slowest
    assert "slow-1" in slowest
    for hidden in ("hunter", "<b>slow", "?s=", "<i>", "<script"):
        assert hidden not in text, hidden
    assert text.count("<polyline points=") == 4


@pytest.mark.skipif(elsewhere() is None, reason="this machine has no address but loopback")
def test_requests_are_not_shown_to_others_without_the_token(start: Start, secrets: Path) -> None:
    (secrets / "admin_token").write_text("t0ken")
    process = start(APP_ADMIN_HOST="0.0.0.0").ready()
    process.ask("/slow?s=0.05", headers={"X-Request-ID": "slow-1"})
    for headers, sees in (
        ({}, False),
        ({"Authorization": "Bearer no"}, False),
        ({"Authorization": "Bearer t0ken"}, True),
    ):
        connection = HTTPConnection(elsewhere() or "", process.port("admin"), timeout=60)
        with contextlib.closing(connection):
            answer = exchange(connection, "/", headers=headers)
        assert answer.status == 200
        assert ("slow-1" in answer.text) is sees
        assert "The last ten minutes" in answer.text
