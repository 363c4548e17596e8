"""Contract, section 5: what a readiness check is, and how it is run; in this process."""

from __future__ import annotations

import asyncio
import functools
import gc
import sqlite3
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import svcs
from my_service.chassis.event_loop import EventLoop
from my_service.chassis.health import Health, Report
from my_service.chassis.lifecycle import Lifecycle, State


class Checked:
    """A `Health` in the state ready, whose registry a test fills."""

    def __init__(self, check_timeout: float = 5.0, **options: Any) -> None:
        self.lifecycle = Lifecycle()
        self.lifecycle.advance(State.READY)
        self.health = Health(self.lifecycle, EventLoop(), check_timeout, **options)
        self.registry = svcs.Registry()
        self.health.registry = self.registry

    def report(self) -> Report:
        return asyncio.run(self.health.ready())


class Thing:
    """What the checks are of."""


# The threads that plain functions of checks ran in: those are the ones that may block.
BLOCKED: list[threading.Thread] = []


def block() -> None:
    BLOCKED.append(threading.current_thread())


def plain_ping(thing: Thing) -> None:
    block()


async def awaited_ping(thing: Thing) -> None:
    await asyncio.sleep(0)


def plain_factory() -> Thing:
    block()
    return Thing()


def generator_factory() -> Iterator[Thing]:
    yield plain_factory()
    block()


async def awaited_factory() -> Thing:
    await asyncio.sleep(0)
    return Thing()


async def async_generator_factory() -> AsyncIterator[Thing]:
    yield await awaited_factory()


@asynccontextmanager
async def context_manager_factory() -> AsyncIterator[Thing]:
    yield await awaited_factory()


def factory_with_container(svcs_container: svcs.Container) -> Thing:
    svcs_container.get(int)
    return plain_factory()


async def awaited_factory_with_container(svcs_container: svcs.Container) -> Thing:
    await svcs_container.aget(int)
    return await awaited_factory()


@pytest.mark.parametrize("ping", [plain_ping, lambda thing: awaited_ping(thing)], ids=["plain", "lambda"])
@pytest.mark.parametrize(
    "factory",
    [
        plain_factory,
        generator_factory,
        awaited_factory,
        async_generator_factory,
        context_manager_factory,
        factory_with_container,
        awaited_factory_with_container,
        functools.partial(plain_factory),
    ],
)
def test_plain_functions_of_a_check_never_hold_the_event_loop(
    factory: Callable[..., Any], ping: Callable[..., Any]
) -> None:
    BLOCKED.clear()
    # What other tests have left is no warning about this one.
    gc.collect()
    checked = Checked()
    checked.registry.register_value(int, 7)
    checked.registry.register_factory(Thing, factory, ping=ping)
    with warnings.catch_warnings():
        # A coroutine that nobody awaits would be one.
        warnings.simplefilter("error")
        report = checked.report()
        gc.collect()
    assert (report.ready, [check.error for check in report.checks]) == (True, [None])
    assert threading.main_thread() not in BLOCKED, "a plain function could have blocked the event loop"


@pytest.mark.parametrize("factory", [awaited_factory, async_generator_factory, Thing])
def test_an_awaited_ping_runs_in_the_event_loop(factory: Callable[..., Any]) -> None:
    seen = []

    async def ping(thing: Thing) -> None:
        seen.append((type(thing), threading.current_thread(), asyncio.get_running_loop().is_running()))

    checked = Checked()
    checked.registry.register_factory(Thing, factory, ping=ping)
    assert checked.report().ready
    assert seen == [(Thing, threading.main_thread(), True)]


def test_a_plain_check_is_made_used_and_closed_by_one_thread() -> None:
    def connect() -> Iterator[sqlite3.Connection]:
        # It may be used by the thread that made it only.
        connection = sqlite3.connect(":memory:")
        yield connection
        connection.close()
        closed.append(threading.current_thread())

    closed: list[threading.Thread] = []
    checked = Checked()
    checked.registry.register_factory(
        sqlite3.Connection, connect, ping=lambda connection: connection.execute("select 1") and None
    )
    assert [check.error for check in checked.report().checks] == [None]
    assert closed[0] is not threading.main_thread()


def boom(*_: object) -> None:
    raise TypeError("boom")


async def awaited_boom(*_: object) -> None:
    boom()


@pytest.mark.parametrize(
    ("factory", "ping"),
    [(Thing, boom), (boom, plain_ping), (Thing, awaited_boom), (awaited_boom, plain_ping)],
)
def test_whatever_fails_in_a_check_is_its_error(
    factory: Callable[..., Any], ping: Callable[..., Any]
) -> None:
    checked = Checked(redact=lambda text: text.replace("boom", "<secret>"))
    checked.registry.register_factory(Thing, factory, ping=ping)
    report = checked.report()
    [check] = report.checks
    assert (report.ready, check.error, check.detail) == (
        False,
        "TypeError: see the log",
        "TypeError: <secret>",
    )


def test_a_hanging_factory_is_cancelled_and_tried_again() -> None:
    tries = 0

    async def connect() -> Thing:
        nonlocal tries
        tries += 1
        if tries == 1:
            await asyncio.sleep(60)
        return Thing()

    async def twice() -> list[bool]:
        first = await checked.health.ready()
        await asyncio.sleep(1.1)
        return [first.ready, (await checked.health.ready()).ready]

    checked = Checked(check_timeout=0.1)
    checked.registry.register_factory(Thing, connect, ping=lambda _: None)
    assert asyncio.run(twice()) == [False, True]


def test_services_of_one_name_are_checks_of_their_own() -> None:
    def client(module: str) -> type:
        return type("Client", (), {"__module__": module, "__qualname__": "Client"})

    checked = Checked(non_critical=(users := client("users"),))
    checked.registry.register_value(users, object(), ping=boom)
    checked.registry.register_value(client("billing"), object(), ping=lambda _: None)
    checked.registry.register_value(Thing, Thing(), ping=lambda _: None)
    report = checked.report()
    assert {check.name: check.status for check in report.checks} == {
        "Client": "warn",
        "billing.Client": "pass",
        "Thing": "pass",
    }
    assert report.ready


def test_a_health_that_nobody_drives_is_alive_but_not_ready() -> None:
    event_loop, checked = EventLoop(), Checked()
    assert event_loop.stalled() == 0
    report = checked.health.ready_from_thread()
    assert (report.ready, report.reason) == (False, "the event loop is stuck")
