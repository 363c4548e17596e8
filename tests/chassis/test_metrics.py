"""Contract, section 6: metrics, by the standard's names, whatever else collects in this process."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from kit.service import Asking, Service, wait_for
from my_service.chassis import metrics as metrics_module
from my_service.chassis.metrics import METHODS, SCRAPE_TIMEOUT_S, Metrics
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Summary
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from .start import Start

PINGS = (sys.executable, "-m", "apps.pings")
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def families(text: str) -> list[Metric]:
    return list(parse_openmetrics(text))  # type: ignore[no-untyped-call]  # it has no types


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    """What takes the place of prometheus-client's default registry, so that tests don't share one."""
    registry = CollectorRegistry(auto_describe=True)
    monkeypatch.setattr(metrics_module, "REGISTRY", registry)
    return registry


@pytest.fixture
def ours() -> Metrics:
    return Metrics({"name": "x", "version": "1", "revision": ""}, lambda: 3, lambda: 2)


def exposed(metrics: Metrics, accept: str = OPENMETRICS) -> str:
    answer = metrics.expose(accept)
    assert answer is not None
    return answer[0].decode()


def test_metrics_have_the_standard_names_and_few_series(own: Service) -> None:
    own.ask("/trouble/one")
    own.ask("/trouble/two")
    for path in ("/nowhere/1", "/nowhere/2"):
        own.ask(path, method="MKCOL")
        own.ask(path, method="PROPFIND")
    wait_for(lambda: len(own.lines("request")) == 6)
    text = own.look("/metrics")
    [known, unknown] = re.findall(r"http_server_request_duration_seconds_count(.*)", text)
    assert 'http_request_method="GET",http_response_status_code="200",http_route="/trouble/{kind}"' in known
    assert known.endswith(" 2.0")
    assert 'http_request_method="_OTHER",http_response_status_code="404",http_route=""' in unknown
    for metric in (
        "http_server_active_requests 0.0",
        "event_loop_lag_seconds_count",
        "app_info{",
        "process_open_fds",
        "python_gc_objects_collected_total",
    ):
        assert f"\n{metric}" in text
    answer = own.ask("/metrics", port="admin", headers={"Accept": OPENMETRICS})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert len(families(answer.text)) > 10


def test_an_exporter_with_the_standard_names_doubles_nothing(start: Start) -> None:
    process = start.run(PINGS, {"OTHER_EXPORTER": "1"}).ready()
    for _ in range(5):
        process.ask("/order")
    wait_for(lambda: len(process.lines("request")) == 5)
    for accept, parse in ((OPENMETRICS, parse_openmetrics), ("text/plain", parse_text)):
        answer = process.ask("/metrics", port="admin", headers={"Accept": accept})
        seen = {family.name: family for family in parse(answer.text)}
        assert answer.text.count("# TYPE http_server_request_duration_seconds ") == 1
        counts = [
            sample.value
            for sample in seen["http_server_request_duration_seconds"].samples
            if sample.name.endswith("_count")
        ]
        assert counts == [5]
        assert [sample.value for sample in seen["http_server_active_requests"].samples] == [0]
        # What a team counts at module level is there as ever.
        assert "orders_total 5.0" in answer.text


@pytest.mark.parametrize(
    "metric",
    [
        lambda registry: Summary("http_server_request_duration_seconds", "", registry=registry),
        lambda registry: Counter("http_server_refusals", "", registry=registry),
        lambda registry: Info("app", "", registry=registry),
        # Other names, and yet the same series.
        lambda registry: Gauge("app_info", "", registry=registry),
        lambda registry: Gauge("uncaught_exceptions_total", "", registry=registry),
        lambda registry: Gauge("event_loop_lag_seconds_sum", "", registry=registry),
        lambda registry: Histogram("readiness_check", "", registry=registry),
    ],
)
def test_no_name_of_ours_is_exposed_twice(theirs: CollectorRegistry, ours: Metrics, metric: object) -> None:
    before = [family.name for family in families(exposed(ours))]
    metric(theirs)  # type: ignore[operator]
    Counter("teams_own", "", registry=theirs).inc()
    assert [family.name for family in families(exposed(ours))] == [*before, "teams_own"]


def test_two_collectors_without_a_description_may_clash_too(theirs: CollectorRegistry, ours: Metrics) -> None:
    class Late:
        def describe(self) -> list[Metric]:
            return []

        def collect(self) -> list[Metric]:
            return [CounterMetricFamily("log_lines_lost", "another's", 9)]

    theirs.register(Late())
    [lost] = [family for family in families(exposed(ours)) if family.name == "log_lines_lost"]
    assert [sample.value for sample in lost.samples] == [2]


def test_a_hanging_collector_holds_one_thread_and_scrapes_are_told(start: Start) -> None:
    process = start.run(PINGS, {}).ready()
    assert process.status("/metrics", "admin") == 200
    process.ask("/hang/300")
    before = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
    began = time.monotonic()
    for _ in range(40):
        with process.dial("admin") as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(0.02)
    waiting = [Asking(process, "/metrics", port="admin") for _ in range(3)]
    for asking in waiting:
        asking.join()
        assert asking.answer is not None
        assert asking.answer.status == 503
        assert "/-/stacks" in asking.answer.text
    assert time.monotonic() - began < 60
    # The collection has been hanging for long: nobody waits for it any more.
    asked = time.monotonic()
    assert process.status("/metrics", "admin") == 503
    assert time.monotonic() - asked < SCRAPE_TIMEOUT_S
    assert "apps/pings.py" in process.look("/-/stacks").partition("thread metrics\n")[2].partition("\n\n")[0]
    # One more, and the thread of faulthandler's timer, which comes and goes.
    wait_for(lambda: len(list(Path(f"/proc/{process.pid}/task").iterdir())) <= before + 2)
    assert process.status("/-/ready", "admin") == process.status("/order") == 200
    assert process.stop() == 0


def test_a_slow_collector_is_asked_once_for_scrapes_at_the_same_time(
    theirs: CollectorRegistry, ours: Metrics
) -> None:
    class Slow:
        asked = 0

        def describe(self) -> list[Metric]:
            return []

        def collect(self) -> Iterator[Metric]:
            self.asked += 1
            time.sleep(0.5)
            yield CounterMetricFamily("slow", "", self.asked)

    slow = Slow()
    theirs.register(slow)
    texts: list[str] = []
    scrapes = [
        threading.Thread(target=lambda accept=accept: texts.append(exposed(ours, accept)))
        for accept in (OPENMETRICS, "text/plain", "") * 5
    ]
    for scrape in scrapes:
        scrape.start()
    for scrape in scrapes:
        scrape.join()
    assert slow.asked == 1
    assert sorted(text.endswith("# EOF\n") for text in texts) == [False] * 10 + [True] * 5
    assert "slow_total 2.0" in exposed(ours)


def test_a_collector_that_fails_once_is_asked_again(theirs: CollectorRegistry, ours: Metrics) -> None:
    class Fails:
        def __init__(self) -> None:
            self.errors: list[Exception] = [ValueError("no figures"), TimeoutError("nor any")]

        def describe(self) -> list[Metric]:
            return []

        def collect(self) -> list[Metric]:
            if self.errors:
                raise self.errors.pop(0)
            return [CounterMetricFamily("figures", "", 1)]

    theirs.register(Fails())
    with pytest.raises(ValueError, match="no figures"):
        ours.expose("")
    with pytest.raises(TimeoutError, match="nor any"):
        ours.expose("")
    assert "figures_total 1.0" in exposed(ours)


@pytest.mark.parametrize("version", ["abc", "1..0", "", "9" * 5000, "1.0.0.0"])
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_whatever_version_a_scraper_asks_for_it_gets_metrics(ours: Metrics, kind: str, version: str) -> None:
    assert "http_server_active_requests 3" in exposed(ours, f"{kind}; version={version}, */*;q=0.1")


def test_methods_that_clients_make_up_are_one_series(theirs: CollectorRegistry, ours: Metrics) -> None:
    for method in (*METHODS, *(f"X{number}" for number in range(1000)), "get", ""):
        for status in (200, 404):
            ours.observe_request(method, "/", status, 0.01)
    [durations] = [
        family for family in families(exposed(ours)) if family.name.startswith("http_server_request")
    ]
    counts = {
        (sample.labels["http_request_method"], sample.labels["http_response_status_code"]): sample.value
        for sample in durations.samples
        if sample.name.endswith("_count")
    }
    assert counts == {
        **{(method, status): 1 for method in METHODS for status in ("200", "404")},
        ("_OTHER", "200"): 1002,
        ("_OTHER", "404"): 1002,
    }


def test_figures_that_others_keep_are_read_when_they_are_exposed(
    theirs: CollectorRegistry, ours: Metrics
) -> None:
    seen: Mapping[str, float] = {
        sample.name: sample.value for family in families(exposed(ours)) for sample in family.samples
    }
    assert (seen["http_server_active_requests"], seen["log_lines_lost_total"]) == (3, 2)
    refusals = re.findall(r'http_server_refusals_total\{reason="(\w+)"\} 0.0', exposed(ours))
    assert sorted(refusals) == ["body", "connections", "head", "malformed", "slow"]


def test_what_an_instance_goes_through_is_measured(start: Start, secrets: Path) -> None:
    process = start(APP_SECRETS_REFRESH="0.05", APP_DRAIN_DELAY="1", APP_DRAIN_TIMEOUT="6").ready()
    seen = process.series()
    assert (seen["readiness"], seen["secrets_last_reload_successful"]) == (1, 1)
    assert seen["drain_time_left_ratio"] == float("inf")
    assert seen['lifecycle_state{lifecycle_state="ready"}'] == 1
    assert seen["template_release_timestamp_seconds"] < time.time()
    process.ask("/gate/gate?mode=shut")
    (secrets / "probe_password").write_text("")
    wait_for(lambda: process.status("/-/ready", "admin") == 503)
    process.line("secrets reload failed")
    wait_for(lambda: process.series()["secrets_last_reload_successful"] == 0)
    assert process.series()["readiness"] == 0
    process.ask("/gate/gate?mode=open")
    (secrets / "probe_password").write_text("hunter3")
    wait_for(lambda: process.status("/-/ready", "admin") == 200)
    wait_for(lambda: process.series()["secrets_last_reload_successful"] == 1)
    assert process.series()["readiness"] == 1
    Asking(process, "/slow?s=600")
    process.line("slow begins")
    process.signal(signal.SIGTERM)
    process.line("draining")
    seen = process.series()
    assert 0 < seen["drain_time_left_ratio"] < 1.5
    assert (seen["readiness"], seen['lifecycle_state{lifecycle_state="draining"}']) == (0, 1)
    assert process.wait() == 1


def test_clients_that_are_connected_are_counted(own: Service) -> None:
    def connected() -> float:
        return own.series()["http_server_open_connections"]

    with own.dial(), own.dial(), own.dial():
        wait_for(lambda: connected() == 3, "three clients")
    wait_for(lambda: connected() == 0, "nobody")
