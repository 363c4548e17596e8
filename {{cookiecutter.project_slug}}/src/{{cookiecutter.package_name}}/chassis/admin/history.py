"""The last ten minutes of this instance, in fixed memory, for whoever opens the page and has no Prometheus at hand."""

import time
from collections import deque

from ..health import Health
from ..lifecycle import Lifecycle
from ..metrics import DURATION_BUCKETS, Metrics
from ..stacks import run_in_thread

SLOT_S, SLOTS = 10.0, 60
# When it ended, by the clock that nobody sets; requests and errors a second; p99 and lag in milliseconds.
Slot = tuple[float, float, float, float, float]


class History:
    """Slots of ten seconds, and the last twenty changes, each with its time in seconds since 1970."""

    def __init__(self, metrics: Metrics, lifecycle: Lifecycle, health: Health) -> None:
        self.slots: deque[Slot] = deque(maxlen=SLOTS)
        self.changes: deque[tuple[float, str]] = deque(maxlen=20)
        self._metrics, self._health, self._was_ready = metrics, health, False
        self._began, self._lag_s, self._counts = time.monotonic(), 0.0, metrics.totals()
        lifecycle.observe(lambda state: self.note(f"the instance is {state}"))

    def note(self, what: str) -> None:
        """Remember that something has changed."""
        self.changes.append((time.time(), what))

    def beat(self, lag_s: float) -> None:
        """Take in how late the event loop was, at each of its beats, and end the slot when it is over."""
        if (ready := self._health.was_ready()) != self._was_ready:
            self._was_ready = ready
            self.note(f"requests may {'' if ready else 'not '}be sent here")
        self._lag_s, now = max(self._lag_s, lag_s), time.monotonic()
        if (took := now - self._began) >= SLOT_S:
            lag_s, self._lag_s, self._began = self._lag_s, 0.0, now
            # Many routes have many figures: the event loop does not wait until they are added up.
            run_in_thread("history", lambda: self._end(now, took, lag_s))

    def _end(self, now: float, took: float, lag_s: float) -> None:
        before, self._counts = self._counts, self._metrics.totals()
        counts = self._counts - before
        total, most = counts["+Inf"], DURATION_BUCKETS[-1]
        p99_s = next((s for s in DURATION_BUCKETS if counts[str(s)] >= 0.99 * total), most) if total else 0.0
        self.slots.append((now, total / took, counts["errors"] / took, p99_s * 1000, lag_s * 1000))
