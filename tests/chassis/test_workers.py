"""Workers: alone and beside the requests, in trouble and in the drain."""

from __future__ import annotations

import asyncio
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import svcs
from kit.service import Service, wait_for
from my_service.chassis import Lifecycle, Worker

from .start import Start

Work = Callable[[str], Service]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The folder whose files are the work."""
    table = tmp_path / "table"
    table.mkdir()
    return table


@pytest.fixture
def work(start: Start, table: Path) -> Work:
    """What starts a worker in a process of its own."""
    return lambda name: start("worker", name, app="working", WORK=str(table)).ready()


@pytest.fixture
def beside(start: Start, table: Path) -> Service:
    """A service with a worker beside the requests."""
    return start(app="working", WORK=str(table)).ready()


def serve(table: Path, *items: str) -> None:
    for item in items:
        (table / item).touch()


def eaten(service: Service) -> list[str]:
    return [line["name"] for line in service.lines("ate")]


def test_alone_it_works_is_watched_and_listens_to_no_client(work: Work, table: Path) -> None:
    eater = work("eater")
    serve(table, "1", "2")
    wait_for(lambda: len(eaten(eater)) == 2, "two items")
    assert eater.line("listening")["http"] is None
    assert eater.line("ate")["worker"] == "eater"
    assert eater.status("/-/healthy", "admin") == 200
    assert eater.readiness()["checks"].keys() == {"Eater"}
    series = eater.series()
    assert series['worker_item_duration_seconds_count{outcome="done",worker="eater"}'] == 2
    assert 0 <= series['worker_progress_age_seconds{worker="eater"}'] < 30
    assert series['worker_stall_limit_seconds{worker="eater"}'] == 2
    assert series['worker_failures_total{worker="eater"}'] == 0
    assert eater.stop() == 0, eater.said()
    assert eater.lines("ate all it could")


@pytest.mark.parametrize("command", [("worker", "eater"), ()], ids=["alone", "beside"])
def test_in_the_drain_it_finishes_its_item(start: Start, table: Path, command: tuple[str, ...]) -> None:
    serve(table, "1-slow", "2")
    service = start(*command, app="working", WORK=str(table)).ready()
    service.line("eats slowly")
    assert service.stop() == 0, service.said()
    assert eaten(service) == ["1-slow"]
    assert [path.name for path in table.iterdir()] == ["2"]


@pytest.mark.parametrize("command", [("worker", "eater"), ()], ids=["alone", "beside"])
def test_what_does_not_end_in_time_is_cut_off_and_named(
    start: Start, table: Path, command: tuple[str, ...]
) -> None:
    serve(table, "1-bone")
    service = start(*command, app="working", WORK=str(table), APP_DRAIN_TIMEOUT="0.2").ready()
    assert service.stop() == 1, service.said()
    assert service.line("worker cut off")["worker"] == ("eater" if command else "guest")
    assert not service.lines("stop timed out")


def test_a_failure_is_seen_and_work_goes_on(beside: Service, table: Path) -> None:
    wait_for(lambda: beside.status("/-/ready") == 200, "readiness")
    serve(table, "1-poison", "2-bone")
    failed = beside.line("worker failed")
    assert (failed["worker"], failed["level"]) == ("guest", "error")
    assert "RuntimeError: this was poison" in failed["exception"]
    # The next item is one that nobody finishes, so that the check goes on to fail.
    wait_for(lambda: beside.status("/-/ready") == 503, "the failing check")
    assert beside.series()['worker_failures_total{worker="guest"}'] == 1
    assert beside.status("/-/healthy", "admin") == 200
    beside.kill()


def test_after_the_next_item_it_is_ready_again(start: Start, table: Path) -> None:
    serve(table, "1-poison")
    guest = start(app="working", WORK=str(table)).ready()
    guest.line("worker failed")
    serve(table, "2")
    wait_for(lambda: eaten(guest), "the next item")
    wait_for(lambda: guest.status("/-/ready") == 200, "readiness")
    assert guest.stop() == 0


def test_what_a_library_cancels_is_a_failure_and_not_the_end(start: Start, table: Path) -> None:
    serve(table, "1-abandoned", "2")
    guest = start(app="working", WORK=str(table)).ready()
    assert "CancelledError" in guest.line("worker failed")["exception"]
    wait_for(lambda: eaten(guest), "the next item")
    assert guest.stop() == 0


def test_a_failing_worker_that_is_not_critical_leaves_the_service_ready(start: Start, table: Path) -> None:
    serve(table, "1-poison", "2-bone")
    guest = start(app="working", WORK=str(table), FORGIVING="1").ready()
    guest.line("worker failed")
    wait_for(lambda: guest.readiness()["checks"]["Guest"][0]["status"] == "warn", "the check")
    assert guest.status("/-/ready") == 200


class Broken(Worker):
    """Fails at once."""

    async def run(self) -> None:
        raise RuntimeError("it is broken")


def test_a_check_that_fails_for_long_takes_no_more_memory() -> None:
    """An exception that is raised again holds the frames of each time, and a probe asks every second."""

    async def fail_and_ping() -> list[int]:
        registry, lifecycle, depths = svcs.Registry(), Lifecycle(), list[int]()
        broken = Broken("broken", None, registry, lifecycle)
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="it is broken") as raised:
                await broken.ping()
            depths.append(len(traceback.extract_tb(raised.tb)))
        lifecycle.stop("the test has ended")
        await registry.aclose()
        return depths

    first, *others = asyncio.run(fail_and_ping())
    assert others == [first, first]


def test_each_failure_in_a_row_is_waited_for_longer(work: Work, table: Path) -> None:
    serve(table, "1-poison", "2-poison", "3-poison")
    eater = work("eater")
    wait_for(lambda: len(eater.lines("worker failed")) == 3, "three failures")
    assert [line["restart_in_s"] for line in eater.lines("worker failed")] == [0.5, 1, 2]
    # The drain does not wait for the next start.
    assert eater.stop() == 0


def test_without_progress_it_is_not_alive_and_says_where_it_is(work: Work, table: Path) -> None:
    eater = work("eater")
    serve(table, "1-bone")
    wait_for(lambda: eater.status("/-/healthy", "admin") == 503, "the failing liveness")
    said = eater.ask("/-/healthy", port="admin").text
    assert "no progress of eater" in said
    assert "working.py" in said
    eater.kill()


def test_a_long_rest_is_no_want_of_progress(work: Work, table: Path) -> None:
    eater = work("eater")
    serve(table, "1-nap")
    statuses = set()
    while not eaten(eater):
        statuses.add(eater.status("/-/healthy", "admin"))
        # Often enough to see a failure, and no load.
        time.sleep(0.05)
    assert statuses == {200}
    assert eater.stop() == 0


def test_one_that_ends_by_itself_ends_its_process(work: Work) -> None:
    snack = work("snack")
    assert snack.wait() == 0, snack.said()
    assert snack.lines("ate a snack")


def test_one_that_has_ended_beside_the_requests_is_not_stuck(beside: Service) -> None:
    beside.line("ate a snack")
    ages = "worker_progress_age_seconds"
    wait_for(lambda: f'{ages}{{worker="snack"}}' not in beside.series(), "no age of what has ended")
    assert f'{ages}{{worker="guest"}}' in beside.series()
    assert beside.status("/-/ready") == 200


def test_a_start_that_fails_blames_no_worker(start: Start, table: Path) -> None:
    process = start(app="working", WORK=str(table), BROKEN="1")
    assert process.wait() == 1
    assert "no such template" in process.line("service failed")["exception"]
    assert not process.lines("worker cut off")


def test_one_that_is_unknown_is_refused_with_those_there_are(start: Start, table: Path) -> None:
    process = start("worker", "nobody", app="working", WORK=str(table))
    assert process.wait() == 2
    assert "eater, guest, snack" in process.said() or "'eater', 'guest', 'snack'" in process.said()


def test_a_second_signal_ends_it_at_once(work: Work, table: Path) -> None:
    serve(table, "1-bone")
    eater = work("eater")
    eater.signal(signal.SIGTERM)
    eater.line("draining")
    eater.signal(signal.SIGTERM)
    assert eater.wait() == 128 + signal.SIGTERM
