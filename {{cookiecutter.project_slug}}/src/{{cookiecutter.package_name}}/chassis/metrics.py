"""Metrics for Prometheus, by OpenTelemetry's names; a service adds its own with prometheus-client as usual."""

from __future__ import annotations

import platform
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.metrics import Counter, Gauge, Histogram, Info
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import REGISTRY, Collector, CollectorRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prometheus_client import Metric

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
# OpenTelemetry's advice for http.server.request.duration, in seconds.
DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Durations(Collector):
    """Counts requests and sums up their durations, by method, route and status.

    It is a histogram that one thread writes, the event loop's, and any may read: prometheus-client's, which all may
    write, costs a request a tenth of what the chassis does.
    """

    _LABELS = ("http_request_method", "http_route", "http_response_status_code")

    def __init__(self) -> None:
        # For each: requests in each bucket, those above the last, the sum in seconds.
        self._counts: dict[tuple[str, str, int], list[float]] = {}

    def observe(self, method: str, route: str, status: int, duration: float) -> None:
        """Count one answered request; *duration* in seconds. Methods that clients make up fold into one."""
        try:
            counts = self._counts[method, route, status]
        except KeyError:
            known = method if method in METHODS else "_OTHER"
            counts = self._counts.setdefault((known, route, status), [0.0] * (len(DURATION_BUCKETS) + 2))
        counts[bisect_left(DURATION_BUCKETS, duration)] += 1
        counts[-1] += duration

    def collect(self) -> list[Metric]:
        told = "Time from a request's headers to the end of its answer."
        family = HistogramMetricFamily("http_server_request_duration_seconds", told, labels=self._LABELS)
        bounds = [*map(str, DURATION_BUCKETS), "+Inf"]
        for (method, route, status), counts in self._counts.copy().items():
            *buckets, total = counts.copy()
            family.add_metric((method, route, str(status)), list(zip(bounds, accumulate(buckets), strict=True)), total)
        return [family]


class _LostLines(Collector):
    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    def collect(self) -> list[Metric]:
        return [CounterMetricFamily("log_lines_lost", "Log lines that could not be written.", self._count())]


class Metrics:
    """What the chassis measures, in *registry*.

    Args:
        in_flight: Counts the requests that are not answered yet.
        lost_lines: Counts the log lines that could not be written.
    """

    def __init__(
        self,
        build: Mapping[str, str],
        in_flight: Callable[[], int],
        lost_lines: Callable[[], int],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self.registry = registry
        self.durations = Durations()
        registry.register(self.durations)
        active = Gauge("http_server_active_requests", "Requests in flight.", registry=registry)
        active.set_function(in_flight)
        self.lag = Histogram(
            "event_loop_lag_seconds",
            "How late the event loop ran what was due.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self.refused = Counter(
            "http_server_refusals",
            "What was not taken from clients: malformed, head (too large), slow, connections (too many).",
            ("reason",),
            registry=registry,
        )
        registry.register(_LostLines(lost_lines))
        for reason in ("malformed", "head", "slow", "connections"):
            self.refused.labels(reason)
        self.uncaught = Counter(
            "uncaught_exceptions",
            "Exceptions of tasks and callbacks that nobody waits for; each is a line in the log.",
            registry=registry,
        )
        info = Info("app", "What runs here.", registry=registry)
        info.info({**build, "python": platform.python_version()})

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the format that *accept* asks for, and its content type."""
        # These bring the metrics of the process itself; the first scrape imports them, not the start.
        from prometheus_client import exposition, gc_collector, platform_collector, process_collector  # noqa: F401

        encode, content_type = exposition.choose_encoder(accept)
        return encode(self.registry), content_type

    def routes(self) -> list[dict[str, object]]:
        """Sum up the answered requests of each route, for people: how many, how many with 5xx, the mean in ms."""
        sums: dict[tuple[str, str], list[float]] = {}
        for sample in self.durations.collect()[0].samples:
            labels = sample.labels
            total = sums.setdefault((labels["http_route"], labels["http_request_method"]), [0, 0, 0])
            if sample.name.endswith("_count"):
                total[0] += sample.value
                total[1] += sample.value if labels["http_response_status_code"].startswith("5") else 0
            elif sample.name.endswith("_sum"):
                total[2] += sample.value
        return [
            {
                "route": route or "(unknown)",
                "method": method,
                "requests": int(count),
                "errors": int(errors),
                "mean_ms": round(seconds / count * 1000, 3),
            }
            for (route, method), (count, errors, seconds) in sorted(sums.items())
        ]
