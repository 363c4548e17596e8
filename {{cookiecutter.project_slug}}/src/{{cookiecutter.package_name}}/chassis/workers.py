"""Workers: coroutines beside the requests or in a process of their own; restarted, watched, drained like requests."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import structlog
import svcs
from prometheus_client import Counter, Gauge, Histogram

from .lifecycle import Lifecycle
from .logs import get_logger
from .stacks import await_chain

BACK_OFF_S, MOST_BACK_OFF_S = 0.5, 30.0  # Before a worker that failed is started again: at first, and at most.
ITEMS = Histogram("worker_item_duration_seconds", "Time of an item of work.", ("worker", "outcome"))
AGES = Gauge("worker_progress_age_seconds", "Time since the last sign of progress.", ("worker",))
LIMITS = Gauge("worker_stall_limit_seconds", "Time without progress after which it is stuck.", ("worker",))
FAILURES = Counter("worker_failures", "Failures after which a worker is started again.", ("worker",))
log = get_logger("workers")


class Worker:
    """Work that no request waits for: a subclass has `run`; ``NAME worker NAME`` runs it in a process of its own."""

    beside_requests = False  # Whether it also runs where requests are answered.
    stall_limit_s = 60.0  # After so long without progress, a process of its own is not alive any more.

    def __init__(self, name: str, config: Any, registry: svcs.Registry, lifecycle: Lifecycle) -> None:
        self.name, self.config, self.registry, self.lifecycle = name, config, registry, lifecycle
        self._failure: BaseException | None = None
        self.beat()
        AGES.labels(name).set_function(lambda: max(0.0, time.monotonic() - self._last))
        LIMITS.labels(name).set(self.stall_limit_s)
        FAILURES.labels(name)
        registry.register_value(type(self), self, ping=Worker.ping, enter=False, on_registry_close=self.close)
        self.task = asyncio.create_task(self._supervise())

    async def run(self) -> None:
        """Work until `lifecycle.draining` is set; finish the item at hand. After an exception, it is called again."""
        raise NotImplementedError

    def beat(self) -> None:
        """Give a sign of progress, also while there is nothing to do."""
        self._last = time.monotonic()

    async def rest(self, seconds: float) -> None:
        """Wait for so long, but no longer than until the drain begins; nobody expects progress before."""
        self._last = time.monotonic() + seconds
        with suppress(TimeoutError):
            await asyncio.wait_for(self.lifecycle.draining.wait(), seconds)

    @contextmanager
    def item(self) -> Iterator[None]:
        """Measure one item of work; its beginning and its end are signs of progress."""
        self.beat()
        began, outcome = self._last, "failed"
        try:
            yield
            outcome, self._failure = "done", None
        finally:
            self.beat()
            ITEMS.labels(self.name, outcome).observe(self._last - began)

    async def ping(self) -> None:
        """Fail from a failure to the next item that is done."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    def stuck(self) -> str | None:
        """Return where it waits if it has made no progress for too long."""
        late = time.monotonic() - self._last > self.stall_limit_s
        return "\n".join([f"no progress of {self.name}, which is at", *await_chain(self.task)]) if late else None

    async def close(self) -> None:
        """Wait until it has ended in the drain; cut it off when the time for that is nearly over."""
        is_told = self.lifecycle.draining.is_set()  # Not when the service has failed to start.
        await asyncio.wait({self.task}, timeout=self.lifecycle.time_left_s - 0.5 if is_told else 0)
        if self.task.cancel() and is_told:
            log.error("worker cut off", worker=self.name, hint="it did not end before the deadline")
            self.lifecycle.exit_with(1)

    async def _supervise(self) -> None:
        """Run, again after each failure, until `run` returns (then it has no age any more) or the drain begins."""
        structlog.contextvars.bind_contextvars(worker=self.name)
        back_off = BACK_OFF_S
        while not self.lifecycle.draining.is_set():
            try:
                await self.run()
                return AGES.remove(self.name)
            except (Exception, asyncio.CancelledError) as error:
                if self.task.cancelling():
                    raise  # Otherwise nobody cancels it but what it waited for.
                back_off = min(back_off * 2, MOST_BACK_OFF_S) if self._failure else BACK_OFF_S
                self._failure = error
                FAILURES.labels(self.name).inc()
                log.error("worker failed", restart_in_s=back_off, exc_info=error)
                await self.rest(back_off)
