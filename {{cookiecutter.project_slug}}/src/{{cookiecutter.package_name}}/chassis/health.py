"""Readiness: whether requests may be sent here, found by pinging the services in the registry.

Liveness asks the event loop only. If it asked a dependency, an outage of that one would restart every instance.
"""

import asyncio
import contextvars
import time
import traceback
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from inspect import isasyncgenfunction, isawaitable, iscoroutinefunction, unwrap
from typing import Any

import attrs
import svcs

from .event_loop import BEAT_S, EventLoop
from .lifecycle import Lifecycle, State
from .lines import timestamp
from .logs import get_logger
from .stacks import run_in_thread

# Outcomes that are younger answer a probe at once, so that any number of probes costs one run of the checks a second.
FRESH_S = 1.0
# A probe does not wait for an event loop that is this late: probes often have a time limit of one second.
STUCK_S = 0.5

log = get_logger("health")


@attrs.frozen
class Check:
    """The outcome of a check; *error* is the kind of a failure, *detail* the exception's text, which few may see."""

    name: str
    critical: bool
    duration_s: float
    error: str | None = None
    detail: str | None = None
    ended: float = attrs.field(factory=time.monotonic)

    @property
    def status(self) -> str:
        """``pass``, ``fail``, or ``warn`` for a non-critical check that fails."""
        return "pass" if self.error is None else "fail" if self.critical else "warn"

    def as_dict(self, detailed: bool = False) -> dict[str, object]:
        """Return it in the shape of draft-inadarei-api-health-check-06."""
        age_s, took_ms = time.monotonic() - self.ended, round(self.duration_s * 1000, 3)
        shape = {"status": self.status, "time": timestamp(time.time() - age_s), "age_s": round(age_s, 3)}
        shape |= {"critical": self.critical, "observedValue": took_ms, "observedUnit": "ms"}
        return shape if self.error is None else {**shape, "output": self.detail if detailed else self.error}


@attrs.frozen
class Report:
    """The answer to a readiness probe; *reason* says why it fails when no check does."""

    state: State
    checks: tuple[Check, ...] = ()
    reason: str | None = None

    @property
    def ready(self) -> bool:
        """Whether requests may be sent here."""
        return self.word == "ready"

    @property
    def word(self) -> str:
        """The answer in one word: starting, ready, failing, draining or stopped."""
        failing = self.reason is not None or any(check.status == "fail" for check in self.checks)
        return "failing" if failing and self.state is State.READY else self.state.value

    def as_dict(self, detailed: bool = False) -> dict[str, object]:
        """Return it in the shape of draft-inadarei-api-health-check-06."""
        output = {} if self.reason is None else {"output": self.reason}
        checks = {check.name: [check.as_dict(detailed)] for check in self.checks}
        return {"status": "pass" if self.ready else "fail", "state": self.state.value, **output, "checks": checks}


@attrs.define
class Health:
    """The readiness of this instance; it may be asked from any thread. *check_timeout* is in seconds.

    A failing ping of a *non_critical* service leaves the instance ready. This is for what all instances share: an
    outage of it would otherwise take all of them out of the balancer. *redact* takes secrets out of a text. The pings
    of *registry* are the checks.
    """

    lifecycle: Lifecycle
    event_loop: EventLoop
    check_timeout: float
    non_critical: Collection[type] = ()
    redact: Callable[[str], str] = str
    on_check: Callable[[Check], None] = lambda _: None
    registry: svcs.Registry = attrs.field(factory=svcs.Registry)
    _run: asyncio.Task[Report] | None = attrs.field(default=None, init=False)
    _last: Report = attrs.field(default=Report(State.STARTING), init=False)
    _ended: float = attrs.field(default=float("-inf"), init=False)
    # By names: the last pings and their last threads, which may still run; since when a check fails.
    _pings: dict[str, asyncio.Task[BaseException | None]] = attrs.field(factory=dict, init=False)
    _threads: dict[str, Future[object]] = attrs.field(factory=dict, init=False)
    _failing_since: dict[str, float] = attrs.field(factory=dict, init=False)

    async def ready(self) -> Report:
        """Answer a readiness probe in the event loop; probes at the same time share one run of the checks."""
        if (report := self._known()) is not None:
            return report
        if self._run is None or self._run.done():
            # In a context of its own: what a check logs does not belong to the request that asked.
            self._run = asyncio.create_task(self._run_checks(), context=contextvars.Context())
        return await asyncio.shield(self._run)

    def ready_from_thread(self) -> Report:
        """Answer a readiness probe from another thread, also while the event loop is stuck."""
        if (report := self._known()) is not None:
            return report
        future = None
        while (loop := self.event_loop.loop) is not None and self.event_loop.stalled() < STUCK_S:
            future = future or asyncio.run_coroutine_threadsafe(self.ready(), loop)
            if wait({future}, BEAT_S).done and not future.cancelled():
                return future.result()
        return Report(self.lifecycle.state, reason="the event loop is stuck")

    def _known(self) -> Report | None:
        """Return what needs no run of the checks: a state other than ready, or outcomes that are fresh."""
        if (state := self.lifecycle.state) is not State.READY:
            return Report(state)
        return self._last if time.monotonic() - self._ended < FRESH_S else None

    def was_ready(self) -> bool:
        """Return whether requests may be sent here, by what the last run of the checks found."""
        return self.lifecycle.state is State.READY and all(check.status != "fail" for check in self._last.checks)

    async def _run_checks(self) -> Report:
        services: dict[str, svcs.RegisteredService] = {}
        for service in self.registry:
            if service.ping is not None:
                # A check has the name of its class, and also of the module if there is such a check already.
                short = service.name.rpartition(".")[2]
                services[service.name if short in services else short] = service
        checks = await asyncio.gather(*(self._check(name, service) for name, service in services.items()))
        self._last, self._ended = Report(self.lifecycle.state, tuple(checks)), time.monotonic()
        return self._last

    async def _check(self, name: str, service: svcs.RegisteredService) -> Check:
        began, error, detail = time.monotonic(), None, None
        if (ping := self._pings.get(name)) is None or ping.done():
            ping = self._pings[name] = asyncio.create_task(self._ping(service, service.ping or bool))
        await asyncio.wait({ping}, timeout=self.check_timeout)
        if not ping.done():
            error = detail = f"no answer within {self.check_timeout:g} s"
            ping.cancel()
        elif (exception := ping.result()) is not None:
            error = f"{type(exception).__name__}: see the log"
            detail = self.redact("".join(traceback.format_exception_only(exception)).strip())
        check = Check(name, service.svc_type not in self.non_critical, time.monotonic() - began, error, detail)
        self.on_check(check)
        if error is not None and name not in self._failing_since:
            self._failing_since[name] = check.ended
            write = log.error if check.critical else log.warning
            write("readiness check failed", check=name, critical=check.critical, error=detail)
        elif error is None and name in self._failing_since:
            after_s = round(check.ended - self._failing_since.pop(name), 3)
            log.info("readiness check recovered", check=name, after_s=after_s)
        return check

    async def _ping(self, service: svcs.RegisteredService, ping: Callable[[Any], object]) -> BaseException | None:
        """Ping *service* and return what it raises. Plain functions may block, so they run in a thread."""
        kind, factory, outcome = service.svc_type, unwrap(service.factory), object()

        def acquire_and_ping() -> object:
            with svcs.Container(self.registry) as container:
                return ping(container.get(kind))

        try:
            async with svcs.Container(self.registry) as container:
                if iscoroutinefunction(ping):
                    outcome = ping(await container.aget(kind))
                elif iscoroutinefunction(factory) or isasyncgenfunction(factory):
                    instance = await container.aget(kind)
                    outcome = await self._in_thread(service.name, lambda: ping(instance))
                else:
                    outcome = await self._in_thread(service.name, acquire_and_ping)
                # A lambda that calls a coroutine function looks plain.
                if isawaitable(outcome):
                    await outcome
        except (Exception, asyncio.CancelledError) as error:
            return error
        return None

    async def _in_thread(self, name: str, function: Callable[[], object]) -> object:
        # A thread can't be stopped. Later checks wait for one that hangs, so that there is never a second one.
        if (thread := self._threads.get(name)) is None or thread.done():
            thread = self._threads[name] = run_in_thread(f"check {name}", function)
        return await asyncio.wrap_future(thread)
