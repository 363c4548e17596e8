"""Metrics for Prometheus, by OpenTelemetry's names; a service adds its own with prometheus-client as usual."""

import asyncio
import platform
import threading
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from datetime import UTC, datetime
from typing import Any, NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily

from .health import Health
from .lifecycle import Lifecycle, State
from .secrets import Secrets
from .stacks import run_in_thread

# The template's release that this chassis is of, and its day: each release of the template sets both.
TEMPLATE_VERSION, TEMPLATE_RELEASED = "unreleased", datetime(2026, 11, 26, tzinfo=UTC)
# Other methods are made up by clients; each would be a time series of its own.
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
LABELS = ("http_request_method", "http_route", "http_response_status_code")
# OpenTelemetry's advice for http.server.request.duration, in seconds.
DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# The admin port closes a connection after five seconds; a scraper is to have its answer before.
SCRAPE_TIMEOUT_S = 4.0


class _Collector(NamedTuple):
    collect: Callable[[], Iterable[Metric]]


class Metrics:
    """What the chassis measures, in a registry of its own, because other libraries use the same standard names.

    *build* is what ``app_info`` says; *in_flight* counts requests, *lost_lines* log lines that could not be written.
    """

    def __init__(self, build: Mapping[str, str], in_flight: Callable[[], int], lost_lines: Callable[[], int]) -> None:
        own = self._own = CollectorRegistry()
        name, text = "http_server_request_duration_seconds", "Time from a request's headers to its response's end."
        self._durations = Histogram(name, text, LABELS, buckets=DURATION_BUCKETS, registry=own)
        self._children: dict[tuple[str, str, int], Histogram] = {}
        Gauge("http_server_active_requests", "In-flight requests.", registry=own).set_function(in_flight)
        self.connections = Gauge("http_server_open_connections", "Clients that are connected.", registry=own)
        self.lag = Histogram("event_loop_lag_seconds", "How late the event loop is.", buckets=LAG_BUCKETS, registry=own)
        self.refused = Counter("http_server_refusals", "What the server refused.", ("reason",), registry=own)
        for reason in ("malformed", "head", "slow", "connections", "body"):
            self.refused.labels(reason)
        self.uncaught = Counter("uncaught_exceptions", "Exceptions of tasks and callbacks; see the log.", registry=own)
        self.readiness_check = Gauge("readiness_check", "1: it passed when it ran last.", ("name",), registry=own)
        own.register(_Collector(lambda: [CounterMetricFamily("log_lines_lost", "Not written lines.", lost_lines())]))
        about = {**build, "python": platform.python_version(), "template": TEMPLATE_VERSION}
        Info("app", "What runs here.", registry=own).info(about)
        self._lock = threading.Lock()
        self._collection: tuple[float, Future[list[Metric]]] | None = None

    def follow(self, lifecycle: Lifecycle, health: Health, secrets: Secrets) -> None:
        """Measure what becomes of these."""
        states, timeout_s = [state.value for state in State], max(lifecycle.timeout_s, 1)
        lifecycle.observe(Enum("lifecycle_state", "Where it is in its life.", states=states, registry=self._own).state)
        for name, text, figure in (
            ("readiness", "1: requests may be sent here, by the last run of the checks.", health.was_ready),
            ("secrets_last_reload_successful", "0: it failed; the log says why.", lambda: not secrets.problems),
            ("drain_time_left_ratio", "Time left / APP_DRAIN_TIMEOUT.", lambda: lifecycle.time_left_s / timeout_s),
            ("template_release_timestamp_seconds", "When that release was made.", TEMPLATE_RELEASED.timestamp),
        ):
            Gauge(name, text, registry=self._own).set_function(figure)

    def count_uncaught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Count an exception that nobody in the event loop catches, and have it logged."""
        self.uncaught.inc()
        loop.default_exception_handler(context)

    def count_refusal(self, reason: str) -> None:
        """Count what was refused, for one of the reasons above."""
        self.refused.labels(reason).inc()

    def observe_request(
        self, method: str, route: str, status: int, seconds: float, exemplar: Mapping[str, str] | None = None
    ) -> None:
        """Count one request that took *seconds*; *exemplar* holds the ids of its span, if that is sent."""
        key = method if method in METHODS else "_OTHER", route, status
        if (child := self._children.get(key)) is None:
            child = self._children[key] = self._durations.labels(*key)
        child.observe(seconds, dict(exemplar) if exemplar else None)

    def totals(self) -> Counts[str]:
        """Count all requests so far but probes: the errors, and by each bound of the buckets those that kept it."""
        counts = Counts[str]()
        for one in (one for family in self._durations.collect() for one in family.samples):
            is_request = one.labels["http_route"] != "/-/ready"
            if is_request and one.name.endswith("_bucket"):
                counts[one.labels["le"]] += int(one.value)
            elif is_request and one.name.endswith("_count") and one.labels["http_response_status_code"] >= "500":
                counts["errors"] += int(one.value)
        return counts

    def expose(self, accept: str) -> tuple[bytes, str] | None:
        """Return all metrics in the format that *accept* asks for, and its content type; None if a collector hangs.

        Scrapes at the same time share one collection, so that a collector that hangs holds only one thread.
        """
        with self._lock:
            if self._collection is None or self._collection[1].done():
                self._collection = time.monotonic(), run_in_thread("metrics", self._collect)
            began, collection = self._collection
        if not wait({collection}, max(0.0, began + SCRAPE_TIMEOUT_S - time.monotonic())).done:
            return None
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # A version that is no number.
            encode, content_type = choose_encoder("")
        return encode(_Collector(collection.result)), content_type

    def _collect(self) -> list[Metric]:
        """Collect our families, and those of prometheus-client's default registry whose names are not ours."""
        families = list(self._own.collect())
        ours = set().union(*map(_names, families))
        return [*families, *(family for family in REGISTRY.collect() if ours.isdisjoint(_names(family)))]


def _names(family: Metric) -> set[str]:
    return {family.name, *(sample.name for sample in family.samples)}
