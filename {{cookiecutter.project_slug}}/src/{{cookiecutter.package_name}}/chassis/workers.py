"""Workers: coroutines beside the requests or in a process of their own; restarted, watched, drained like requests."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import structlog
import svcs
from prometheus_client import Counter, Gauge, Histogram

from .lifecycle import Lifecycle, State
from .logs import get_logger
from .stacks import await_chain

# Seconds before a worker that failed is started again: at first, and at most.
BACK_OFF_S, MOST_BACK_OFF_S = 0.5, 30.0
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
        self.name, self.config, self.registry, self._lifecycle = name, config, registry, lifecycle
        self._failure: Exception | None = None
        self.beat()

    async def run(self) -> None:
        """Work until `stopping`; after an exception, it is called again."""
        raise NotImplementedError

    @property
    def stopping(self) -> bool:
        """Whether the drain has begun: finish the item at hand, and take no other."""
        return self._lifecycle.draining.is_set()

    def age(self) -> float:
        """Return the seconds since the last sign of progress."""
        return max(0.0, time.monotonic() - self._last)

    def beat(self) -> None:
        """Give a sign of progress, also while there is nothing to do."""
        self._last = time.monotonic()

    async def rest(self, seconds: float) -> None:
        """Wait for so long, but no longer than until the drain begins; nobody expects progress before."""
        self._last = time.monotonic() + seconds
        with suppress(TimeoutError):
            await asyncio.wait_for(self._lifecycle.draining.wait(), seconds)
        self.beat()

    @contextmanager
    def item(self) -> Iterator[None]:
        """Measure one item of work; its beginning and its end are signs of progress."""
        self.beat()
        began, outcome = time.monotonic(), "failed"
        try:
            yield
            outcome, self._failure = "done", None
        finally:
            ITEMS.labels(self.name, outcome).observe(time.monotonic() - began)
            self.beat()

    async def ping(self) -> None:
        """Fail from a failure to the next item that is done."""
        if self._failure is not None:
            raise self._failure

    async def supervise(self) -> None:
        """Run, again after each failure, until `run` returns (then it has no age any more) or the drain begins."""
        structlog.contextvars.bind_contextvars(worker=self.name)
        back_off = BACK_OFF_S
        while not self.stopping:
            try:
                await self.run()
                return AGES.remove(self.name)
            except Exception as error:
                back_off = min(back_off * 2, MOST_BACK_OFF_S) if self._failure else BACK_OFF_S
                self._failure = error
                FAILURES.labels(self.name).inc()
                log.error("worker failed", restart_in_s=back_off, exc_info=error)
                await self.rest(back_off)


class Workers:
    """The workers of this process: the one that it is for (*alone*), otherwise those beside the requests."""

    def __init__(
        self, kinds: Mapping[str, type[Worker]], alone: str, lifecycle: Lifecycle, registry: svcs.Registry, config: Any
    ) -> None:
        self._alone, self._lifecycle, self._tasks = alone, lifecycle, dict[asyncio.Task[None], Worker]()
        chosen = {name: kind for name, kind in kinds.items() if (name == alone if alone else kind.beside_requests)}
        workers = [kind(name, config, registry, lifecycle) for name, kind in chosen.items()]
        for worker in workers:
            AGES.labels(worker.name).set_function(worker.age)
            LIMITS.labels(worker.name).set(worker.stall_limit_s)
            FAILURES.labels(worker.name)
            registry.register_value(type(worker), worker, ping=Worker.ping, enter=False)
        lifecycle.observe(lambda state: self._start(workers) if state is State.READY else None)
        lifecycle.stuck = self._stuck

    def _start(self, workers: list[Worker]) -> None:
        for worker in workers:
            self._tasks[task := asyncio.create_task(worker.supervise())] = worker
            if self._alone:
                task.add_done_callback(lambda _: self._lifecycle.stop("the worker has ended"))

    def _stuck(self) -> str | None:
        for task, worker in self._tasks.items() if self._alone else ():
            if worker.age() > worker.stall_limit_s:
                return "\n".join([f"no progress of {worker.name} for {worker.age():.1f} s, at", *await_chain(task)])
        return None

    async def stop(self) -> int:
        """Wait until all have finished their item or the time is nearly over; return 1 if any was cut off."""
        limit_s = max(0.0, self._lifecycle.time_left_s - 0.5)
        late = (await asyncio.wait(self._tasks, timeout=limit_s))[1] if self._tasks else set()
        for task in late:
            log.error("worker cut off", worker=self._tasks[task].name, hint="it did not end before the deadline")
            task.cancel()
        return 1 if late else 0
