"""Contract, sections 5, 6: stalls of the event loop: what is one, what is none, what is told of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import io
import signal
import sys
import threading
import time
from typing import Any, cast

import pytest
from kit.service import Asking, answers, ask, free_ports, wait_for
from my_service.chassis.event_loop import EventLoop, Stall, Watchdog
from my_service.chassis.stacks import thread_stack

from .start import Start


@pytest.mark.parametrize("format", ["json", "console"])
def test_stalls_are_remembered_with_place_and_request(start: Start, format: str) -> None:
    traffic, operations = free_ports(2)
    env = {"APP_HTTP_PORT": str(traffic), "APP_ADMIN_PORT": str(operations)}
    process = start(APP_HEALTH_STALL_LIMIT="3", APP_LOG_FORMAT=format, **env)
    wait_for(lambda: answers(operations, "/-/ready"))
    ask(traffic, "/block?s=6", headers={"X-Request-ID": "culprit"})

    def blocked_by_a_route() -> list[dict[str, Any]]:
        """The machine makes stalls of its own."""
        stalls = ask(operations, "/-/stalls").json()
        return [stall for stall in stalls if stall["stack"] and stall["stack"][-1].endswith(" block")]

    [stall] = wait_for(blocked_by_a_route)
    assert stall["for_s"] > 3
    assert (stall["request"]["route"], stall["request"]["request_id"]) == ("/block", "culprit")
    ask(traffic, "/block?s=0.9")
    # The watchdog lives: it has seen the second one as well.
    wait_for(lambda: len(blocked_by_a_route()) == 2)
    assert process.stop() == 0
    assert process.err.read_text() == ""
    said = process.out.read_text()
    assert (said.count("event loop blocked"), said.count("event loop unblocked")) == (1, 1)
    if format == "json":
        [blocked] = process.lines("event loop blocked")
        assert (blocked["where"], blocked["request"]) == (stall["stack"], stall["request"])
        assert process.line("event loop unblocked")["after_s"] == stall["for_s"]


@pytest.mark.parametrize("how", ["", "thread"])
def test_what_holds_the_gil_is_noticed_and_dumped_when_it_lasts(start: Start, how: str) -> None:
    process = start(APP_HEALTH_STALL_LIMIT="0.1").ready()
    process.ask(f"/hold?how={how}")
    stalls = wait_for(lambda: process.ask("/-/stalls", port="admin").json())
    assert stalls[0]["for_s"] > 0.25
    assert "in backtrack" in process.err.read_text()


def test_what_sleeps_with_the_gil_is_dumped_though_it_looks_like_a_pause(start: Start) -> None:
    process = start(APP_HEALTH_STALL_LIMIT="0.1").ready()

    def dumped() -> bool:
        process.ask("/hold?how=asleep")
        return "in hold" in process.err.read_text()

    # More than once: the timers are set a moment after the service is ready.
    wait_for(dumped)


def test_after_a_pause_no_stack_is_read_of_a_thread_that_runs(start: Start) -> None:
    """Now and then that ends the process: issue 116008 of CPython."""
    process = start(APP_HEALTH_STALL_LIMIT="0.1").ready()

    def dumped() -> bool:
        process.signal(signal.SIGSTOP)
        # The pause itself, which has to be longer than the limit and one second.
        time.sleep(1.5)
        process.signal(signal.SIGCONT)
        assert process.status("/trouble/none") == 200
        return "most recent call first" in process.err.read_text()

    # More than once: the timers are set a moment after the service is ready.
    wait_for(dumped)
    assert "hread 0x" not in process.err.read_text()
    assert process.stop() == 0


@pytest.mark.parametrize(("seconds", "busy"), [(0.6, False), (4, False), (4, True)])
def test_a_machine_that_was_paused_is_no_stall(start: Start, seconds: float, busy: bool) -> None:
    def load() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            while busy:
                process.ask("/trouble/none")

    process = start(APP_HEALTH_STALL_LIMIT="3").ready()
    for _ in range(3):
        threading.Thread(target=load, daemon=True).start()
    time.sleep(0.5)
    for _ in range(2):
        process.signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.signal(signal.SIGCONT)
        # At once: the event loop may not have run yet.
        answer = process.ask("/-/healthy", port="admin")
        assert (answer.status, answer.body) == (200, b"healthy\n")
        time.sleep(0.5)
    # A busy machine makes stalls of its own, but short ones.
    stalls = process.ask("/-/stalls", port="admin").json()
    assert not [stall for stall in stalls if stall["for_s"] >= seconds], stalls
    assert process.series()["event_loop_lag_seconds_sum"] < 2 * seconds
    busy = False
    assert "event loop blocked" not in {line["event"] for line in process.lines()}


def test_a_stall_goes_on_after_a_pause(start: Start) -> None:
    process = start(APP_HEALTH_STALL_LIMIT="1.5").ready()
    blocked = Asking(process, "/block?s=6")
    time.sleep(1)
    process.signal(signal.SIGSTOP)
    time.sleep(1)
    process.signal(signal.SIGCONT)
    wait_for(lambda: process.status("/-/healthy", "admin") == 503)
    assert blocked.is_alive()
    blocked.join()


def test_a_stall_that_the_watchdog_could_not_see_is_remembered_too() -> None:
    watchdog = Watchdog(EventLoop(), 1, lambda: None)
    watchdog.beat(0.1)
    watchdog.beat(1.0)
    watchdog.stop()
    assert [(stall.length_s, stall.stack) for stall in watchdog.stalls] == [
        (1.0, ("not seen: C code held the GIL",))
    ]


def test_nothing_that_goes_wrong_in_a_look_ends_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        looks.append(1)
        raise RuntimeError("no request can be had")

    looks: list[int] = []
    event_loop = EventLoop()
    monkeypatch.setattr(event_loop, "stalled", lambda: 5.0)
    watchdog = Watchdog(event_loop, 1, fail)
    wait_for(lambda: len(looks) > 2)
    watchdog.stop()


def test_an_observer_that_fails_does_not_end_the_heartbeat() -> None:
    def fail(lag_s: float) -> None:
        beats.append(lag_s)
        raise RuntimeError("a log handler of the team's")

    async def beat() -> bool:
        event_loop = EventLoop()
        task = asyncio.create_task(event_loop.run(fail))
        while len(beats) < 3 and not task.done():
            await asyncio.sleep(0.01)
        # Without a loop it would never be called late, and a stuck service healthy.
        has_loop = event_loop.loop is not None
        task.cancel()
        return has_loop

    beats: list[float] = []
    assert asyncio.run(beat())


@pytest.mark.parametrize("stderr", [None, io.StringIO()])
def test_the_watchdog_needs_no_standard_error(monkeypatch: pytest.MonkeyPatch, stderr: object) -> None:
    def stalled() -> float:
        looks.append(1)
        return 0.0

    event_loop, looks = EventLoop(), list[int]()
    monkeypatch.setattr(event_loop, "stalled", stalled)
    monkeypatch.setattr(sys, "stderr", stderr)
    watchdog = Watchdog(event_loop, 1, lambda: None)
    wait_for(lambda: len(looks) > 2)
    watchdog.stop()


def test_looking_takes_no_more_memory_however_often() -> None:
    def look() -> None:
        for _ in range(500):
            thread_stack(watched.ident or 0)

    def grown() -> int:
        before = sys.getallocatedblocks()
        look()
        return sys.getallocatedblocks() - before

    done = threading.Event()
    watched = threading.Thread(target=done.wait)
    watched.start()
    gc.collect()
    gc.disable()
    try:
        look()
        assert min(grown(), grown()) < 250
    finally:
        gc.enable()
        done.set()
        watched.join()


def test_a_stall_is_put_down_to_what_was_seen_most() -> None:
    stall = Stall(at=0)
    for place in ("before", "culprit", "culprit", "culprit", "after"):
        stall.add((place,), {"route": place})
    assert (stall.stack, stall.request) == (("culprit",), {"route": "culprit"})


@pytest.mark.parametrize(
    ("load", "gap_s", "cpu_s", "is_pause"),
    [
        # The process was idle or busy, and did not run for a while.
        (0.0, 7.0, 0.001, True),
        (0.0, 0.4, 0.01, True),
        (1.0, 7.0, 0.1, True),
        (1.0, 0.3, 0.08, True),
        (2.0, 7.0, 0.25, True),
        # A platform throttles it.
        (0.02, 7.0, 0.14, True),
        # C code holds the GIL, on a quiet machine and on a busy one.
        (0.0, 1.3, 1.3, False),
        (1.0, 1.3, 1.3, False),
        (0.1, 1.3, 0.2, False),
        # The watchdog runs as ever.
        (0.0, 0.1, 0.0, False),
    ],
)
def test_a_gap_without_cpu_is_a_pause(
    monkeypatch: pytest.MonkeyPatch, load: float, gap_s: float, cpu_s: float, is_pause: bool
) -> None:
    clocks = {"monotonic": 100.0, "process_time": 5.0}
    for name in clocks:
        monkeypatch.setattr(time, name, lambda name=name: clocks[name])

    def stalled_after(seconds: float, cpu_seconds: float) -> float:
        clocks["monotonic"] += seconds
        clocks["process_time"] += cpu_seconds
        return event_loop.stalled()

    event_loop = EventLoop()
    event_loop.loop = cast("Any", object())
    assert stalled_after(0.1, load * 0.1) == 0
    late_s = stalled_after(gap_s, cpu_s)
    assert late_s == (pytest.approx(0) if is_pause else pytest.approx(gap_s))
    # A stall after that is seen as ever, since the watchdog asks often.
    for _ in range(30):
        after_s = stalled_after(0.1, 0)
    assert after_s == pytest.approx(late_s + 3.0, abs=0.11)
