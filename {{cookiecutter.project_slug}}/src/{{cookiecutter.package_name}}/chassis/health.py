"""Liveness asks whether the event loop moves; readiness asks what the service needs. Never the other way round.

A dependency that liveness asked would make the orchestrator restart every instance when it is down.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import wait
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import msgspec
import svcs

from .stacks import thread_stack

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

BEAT = 0.1
FRESH = 1.0
# From when on a probe is told that the loop is stuck instead of waiting; probes often wait a second themselves.
STUCK = 0.5


def timestamp(seconds: float) -> str:
    """Return *seconds* since 1970 as RFC 3339 says, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


State = Literal["starting", "ready", "draining"]


class Check(msgspec.Struct, frozen=True):
    """The outcome of one readiness check: *duration* in seconds, *at* in seconds since 1970."""

    name: str
    gates: bool
    error: str | None
    duration: float
    at: float
    # Of the clock that nobody sets back.
    _ended: float = msgspec.field(default_factory=time.monotonic)

    @property
    def age(self) -> float:
        """Seconds since it ended."""
        return time.monotonic() - self._ended

    @property
    def status(self) -> str:
        """``pass``, ``fail``, or ``warn`` for one that only informs."""
        if self.error is None:
            return "pass"
        return "fail" if self.gates else "warn"

    def as_dict(self) -> dict[str, object]:
        """Return it in the shape of draft-inadarei-api-health-check-06."""
        output = {"output": self.error} if self.error is not None else {}
        return {
            "status": self.status,
            "time": timestamp(self.at),
            "observedValue": round(self.duration * 1000, 3),
            "observedUnit": "ms",
            **output,
        }


class Report(msgspec.Struct, frozen=True):
    """What a readiness probe is told; *reason* says why it fails when no check does."""

    state: State
    checks: tuple[Check, ...] = ()
    reason: str | None = None

    @property
    def ready(self) -> bool:
        return self.state == "ready" and self.reason is None and all(check.status != "fail" for check in self.checks)

    @property
    def word(self) -> str:
        """The answer in one word: ready, starting, draining or failing."""
        return "failing" if self.state == "ready" and not self.ready else self.state

    def as_dict(self) -> dict[str, object]:
        """Return it in the shape of draft-inadarei-api-health-check-06."""
        body: dict[str, object] = {"status": "pass" if self.ready else "fail", "state": self.state}
        if self.reason is not None:
            body["output"] = self.reason
        body["checks"] = {check.name: [check.as_dict()] for check in self.checks}
        return body


class Health:
    """The state of this instance, its heartbeat and its checks; safe to ask from any thread.

    Args:
        check_timeout: Seconds that one check may take.
        stall_limit: Seconds without a heartbeat before liveness fails.
        informs: Services whose failing ping is shown but leaves the instance ready: for what all
            instances share, or one outage would take every one of them out.
    """

    def __init__(self, check_timeout: float, stall_limit: float, informs: Collection[type] = ()) -> None:
        self._state: State = "starting"
        self.on_state: Callable[[State], None] = lambda _: None
        self.started = time.time()
        self._began = time.monotonic()
        self._check_timeout = check_timeout
        self.stall_limit = stall_limit
        self.thread = 0
        self._informs = {f"{cls.__module__}.{cls.__qualname__}" for cls in informs}
        self._registry: svcs.Registry | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._beat = 0.0
        self._run: asyncio.Task[tuple[Check, ...]] | None = None
        self._checks: tuple[float, tuple[Check, ...]] = (float("-inf"), ())

    @property
    def state(self) -> State:
        """Where this instance is in its life; `on_state` is called with each new one."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        changed = state != self._state
        self._state = state
        if changed:
            self.on_state(state)

    @property
    def uptime(self) -> float:
        """Seconds since this process began to work, whatever is done to the wall clock."""
        return time.monotonic() - self._began

    async def heartbeat(self, *observers: Callable[[float], None]) -> None:
        """Beat for as long as the loop runs; tell the *observers* how late each beat was, in seconds."""
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self._beat = due = time.monotonic()
        try:
            while True:
                due += BEAT
                await asyncio.sleep(due - time.monotonic())
                self._beat = time.monotonic()
                for observe in observers:
                    observe(max(0.0, self._beat - due))
                due = self._beat
        finally:
            self.loop = None

    def watch(self, registry: svcs.Registry) -> None:
        """Take the pings of *registry* as readiness checks."""
        self._registry = registry

    def stalled(self) -> float:
        """Return the seconds that the event loop is overdue."""
        return max(0.0, time.monotonic() - self._beat - BEAT) if self.loop is not None else 0.0

    def stuck_at(self) -> str | None:
        """Return where the event loop is stuck, innermost place last, or None while it is alive."""
        return "\n".join(thread_stack(self.thread)) if self.stalled() >= self.stall_limit else None

    async def ready(self) -> Report:
        """Answer a readiness probe, in the event loop; probes at the same time share one run of the checks."""
        if self.state != "ready":
            return Report(self.state)
        if time.monotonic() - self._checks[0] > FRESH:
            if self._run is None:
                self._run = asyncio.create_task(self._check_all())
            await asyncio.shield(self._run)
        return Report(self.state, self._checks[1])

    def ready_from_thread(self) -> Report:
        """Answer a readiness probe from another thread, also while the event loop is stuck."""
        at, checks = self._checks
        if self.state != "ready" or time.monotonic() - at <= FRESH:
            return Report(self.state, checks if self.state == "ready" else ())
        loop = self.loop
        if loop is None or self.stalled() > STUCK:
            return Report(self.state, reason="the event loop is stuck")
        future = asyncio.run_coroutine_threadsafe(self.ready(), loop)
        while not wait({future}, BEAT).done:
            if self.loop is None or self.stalled() > STUCK:
                return Report(self.state, reason="the event loop is stuck")
        return future.result()

    async def _check_all(self) -> tuple[Check, ...]:
        try:
            async with svcs.Container(self._registry or svcs.Registry()) as container:
                pings = container.get_pings()
                checks = tuple(await asyncio.gather(*map(self._check, pings)))
            self._checks = (time.monotonic(), checks)
            return checks
        finally:
            self._run = None

    async def _check(self, ping: svcs.ServicePing) -> Check:
        began = time.perf_counter()
        error = None
        try:
            async with asyncio.timeout(self._check_timeout):
                await ping.aping()
        except TimeoutError:
            error = f"no answer within {self._check_timeout:g} s"
        except Exception as exception:
            error = f"{type(exception).__name__}: {exception}"
        return Check(
            ping.name.rpartition(".")[2],
            ping.name not in self._informs,
            error,
            time.perf_counter() - began,
            time.time(),
        )
