"""Traces, as a collector receives them: one through all services, none that a service waits for."""

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest
from kit.balancers import BALANCERS, FRONT, SLOTS, places
from kit.collector import Collector, Span, running_rotel
from kit.project import ROOT, Renders
from kit.service import Service, ask, free_port, wait_for
from kit.world import World

pytestmark = pytest.mark.slow

ANSWERS = {"tracing": "opentelemetry", "http_client": "httpx2", "deploy_to": "systemd"}
APP = "traced.caller"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
SERVER, CLIENT = 2, 3
ROTEL = pytest.mark.skipif(
    sys.version_info >= (3, 14) or platform.machine() != "x86_64" or not find_library("python3.11"),
    reason="Rotel's wheel needs x86_64, libpython3.11 and a Python below 3.14",
)


def ids(line: dict[str, Any]) -> tuple[str, str]:
    return line["trace_id"], line["span_id"]


def lost(service: Service, reason: str) -> float:
    return service.series()[f'spans_lost_total{{reason="{reason}"}}']


@contextmanager
def straight(collector: Collector, _: Path) -> Iterator[str]:
    yield collector.endpoint


@pytest.mark.parametrize("way", [straight, pytest.param(running_rotel, marks=ROTEL)])
def test_a_request_through_haproxy_and_two_services_is_one_trace(
    world: World,
    collector: Collector,
    tmp_path: Path,
    way: Callable[[Collector, Path], AbstractContextManager[str]],
) -> None:
    ports = places()
    at = {"http": ports[SLOTS[0]], "admin": ports[f"1{SLOTS[0]}"]}

    def of_the_trace(span: Span) -> bool:
        return span.trace_id == TRACE

    with way(collector, tmp_path / "rotel") as endpoint:
        to = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        b = world.start(APP, **collector.settings("b", **to)).ready()
        up = f"http://127.0.0.1:{b.port()}"
        a = world.start(APP, ports=at, UPSTREAM=up, **collector.settings("a", **to)).ready()
        with BALANCERS["haproxy"].running(world.project, tmp_path, ports, "/leaf/x"):
            answer = ask(ports[FRONT], "/call/up?key=canary-query", headers=SAMPLED)
        assert answer.status == 200, answer.text
        spans = collector.find(of_the_trace, 3)
    (of_a,) = (span for span in spans if (span.service, span.kind) == ("a", SERVER))
    (to_b,) = (span for span in spans if (span.service, span.kind) == ("a", CLIENT))
    (of_b,) = (span for span in spans if (span.service, span.kind) == ("b", SERVER))
    assert (of_a.parent_id, to_b.parent_id, of_b.parent_id) == (PARENT, of_a.span_id, to_b.span_id)
    assert (of_a.name, to_b.name, of_b.name) == ("GET /call/{kind}", "GET", "GET /leaf/{kind}")
    for service, span, event, path in ((a, of_a, "calling", "/call/up"), (b, of_b, "called", "/leaf/up")):
        (own,) = (line for line in service.lines(event) if line["trace_id"] == TRACE)
        assert ids(own) == ids(service.request_line(path)) == span.ids
    request_id = a.request_line("/call/up")["request_id"]
    assert request_id == b.request_line("/leaf/up")["request_id"]
    passed_on = f"traceparent=00-{TRACE}-{to_b.span_id}-01 tracestate=vendor=1 x-request-id={request_id}"
    assert answer.text == passed_on
    assert of_a.attributes == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/call/{kind}",
        "url.path": "/call/up",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "client.address": "127.0.0.1",
    }
    assert to_b.attributes == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": b.port(),
        "url.full": f"http://127.0.0.1:{b.port()}/leaf/up",
    }
    assert "canary" not in repr(spans) + a.said() + b.said()


def test_the_samplers_decision_is_the_clients_if_there_is_one(world: World, collector: Collector) -> None:
    off = world.start(APP, **collector.settings(OTEL_TRACES_SAMPLER="parentbased_always_off")).ready()
    for headers, path in ((None, "own"), (UNSAMPLED, "unsampled"), (SAMPLED, "sampled")):
        assert off.ask(f"/leaf/{path}", headers=headers).status == 200
    assert off.stop() == 0
    assert [span.attributes["url.path"] for span in collector.spans] == ["/leaf/sampled"]
    # The ids are in the lines all the same, so that lines of several services can be found together.
    assert ids(off.request_line("/leaf/unsampled"))[0] == TRACE
    assert re.fullmatch(r"[0-9a-f]{32}", ids(off.request_line("/leaf/own"))[0])
    assert all(line["span_id"] != PARENT for line in off.lines("request"))


def test_failures_are_marked_and_the_histogram_has_the_spans_ids(world: World, collector: Collector) -> None:
    service = world.start(APP, **collector.settings()).ready()
    assert service.ask("/leaf/error", headers=SAMPLED).status == 500
    assert service.ask("/nowhere", headers=UNSAMPLED).status == 404
    assert service.ask("/leaf/x", method="PROPFIND").status == 405
    assert service.status("/-/ready") == 200
    headers = SAMPLED | {"baggage": "canary-baggage=1," * 2000, "tracestate": "canary-state,="}
    assert service.ask("/leaf/odd", headers=headers).status == 200
    assert "canary" not in service.said()
    (failed,) = collector.find(lambda span: span.failed)
    assert failed.attributes["error.type"] == "500"
    (odd,) = collector.find(lambda span: span.name.startswith("HTTP"))
    method = {key: value for key, value in odd.attributes.items() if "method" in key}
    assert method == {"http.request.method": "_OTHER", "http.request.method_original": "PROPFIND"}
    assert not [span for span in collector.spans if span.attributes["url.path"] == "/-/ready"]
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    metrics = service.ask("/metrics", port="admin", headers=accept).text
    lines = [line for line in metrics.splitlines() if " # {" in line]
    assert any('status_code="500"' in line and f'trace_id="{TRACE}"' in line for line in lines), lines
    assert any(f'span_id="{failed.span_id}"' in line for line in lines), lines
    assert not any('status_code="404"' in line for line in lines), lines


def test_the_last_spans_are_sent_in_the_drain(world: World, collector: Collector) -> None:
    service = world.start(APP, **collector.settings(OTEL_BSP_SCHEDULE_DELAY="3600000")).ready()
    for number in range(20):
        assert service.status(f"/leaf/{number}") == 200
    assert not collector.spans
    assert service.stop() == 0
    assert len(collector.spans) == 20
    assert not service.lines("spans lost")


@pytest.mark.parametrize("trouble", ["hang", "refuse", "absent"])
def test_a_collector_in_trouble_costs_nothing_but_spans(
    world: World, collector: Collector, trouble: str
) -> None:
    collector.mode = trouble
    small: dict[str, Any] = {"OTEL_BSP_MAX_QUEUE_SIZE": "20", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10"}
    small["OTEL_EXPORTER_OTLP_TIMEOUT"] = "3600" if trouble == "hang" else "0.5"
    if trouble == "absent":
        small["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{free_port()}"
    service = world.start(APP, **collector.settings() | small).ready()
    connection = service.connect()
    for _ in range(100):
        assert service.ask("/leaf/x", on=connection).status == 200
    if trouble == "hang":
        # Ten at most are being sent and twenty wait; all others made room for newer ones.
        wait_for(lambda: lost(service, "queue") >= 70, "spans lost")
        in_queue = lost(service, "queue")
        assert in_queue < 80
    else:
        wait_for(lambda: lost(service, "queue") + lost(service, "collector") >= 80, "spans lost")
    assert service.status("/-/ready") == 200
    assert service.stop() == 0, service.said()
    if trouble == "hang":
        assert service.line("spans lost")["spans"] + in_queue == 100


def test_without_an_endpoint_nothing_is_loaded_and_the_clients_trace_is_passed_on(
    world: World, collector: Collector
) -> None:
    b = world.start(APP, OTEL_TRACES_EXPORTER="none", **collector.settings()).ready()
    a = world.start(APP, UPSTREAM=f"http://127.0.0.1:{b.port()}").ready()
    answer = a.ask("/call/up", headers=SAMPLED)
    assert answer.text.startswith(f"traceparent={SAMPLED['traceparent']} tracestate=vendor=1"), answer.text
    assert a.ask("/call/up").text.startswith("x-request-id="), "a trace was made up"
    for service, path in ((a, "/call/up"), (b, "/leaf/up")):
        assert ids(service.request_line(path)) == (TRACE, PARENT)
        assert "spans_lost" not in service.look("/metrics")
        assert "opentelemetry/sdk" not in Path(f"/proc/{service.pid}/maps").read_text()
        assert "OtelBatch" not in service.look("/-/stacks")
    assert not collector.asked


@pytest.mark.parametrize(
    "wrong",
    [
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_BSP_MAX_QUEUE_SIZE": "many"},
        {"OTEL_TRACES_EXPORTER": "console"},
    ],
)
def test_a_wrong_variable_is_a_line_and_no_reason_to_stop(
    world: World, collector: Collector, wrong: dict[str, str]
) -> None:
    service = world.start(APP, **collector.settings() | wrong).ready()
    line = service.line("tracing failed to start")
    assert line["level"] == "error"
    assert next(iter(wrong.values())) in line["error"]
    assert service.status("/leaf/x") == 200
    assert service.stop() == 0


def test_a_header_that_is_none_is_told_without_its_token(world: World, collector: Collector) -> None:
    wrong = {"OTEL_EXPORTER_OTLP_HEADERS": "Authorization: Bearer canary-header"}
    service = world.start(APP, **collector.settings() | wrong).ready()
    assert "OTEL_EXPORTER_OTLP_HEADERS" in service.line("tracing failed to start")["error"]
    assert "canary" not in service.said()


def test_whatever_opentelemetry_fails_to_load_or_to_take_the_service_runs(
    world: World, collector: Collector
) -> None:
    """Each of these names something that is not installed, or is no size that Python can have."""
    odd = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "9" * 30,
        "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER": "nothing",
        "OTEL_PROPAGATORS": "tracecontext,b3",
    }
    service = world.start(APP, UPSTREAM="", **collector.settings() | odd).ready()
    assert service.line("tracing failed to start")["level"] == "error"
    ignored = service.line("variable ignored")
    assert (ignored["level"], ignored["variable"]) == ("error", "OTEL_PROPAGATORS")
    assert "b3" in ignored["error"]
    answer = service.ask(f"/call/up?url=http://127.0.0.1:{service.port()}", headers=SAMPLED)
    assert answer.text.startswith(f"traceparent={SAMPLED['traceparent']} tracestate=vendor=1"), answer.text
    assert service.stop() == 0


def test_an_empty_variable_is_none_and_one_for_traces_alone_comes_first(
    world: World, collector: Collector
) -> None:
    right: dict[str, Any] = {"OTEL_TRACES_EXPORTER": "", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    right |= {
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=b c, d=e",
    }
    service = world.start(APP, **collector.settings() | right).ready()
    assert service.status("/leaf/x") == 200
    assert collector.find(lambda span: True)
    assert not service.lines("tracing failed to start")


@pytest.fixture(scope="module")
def agent(world: World, uv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `opentelemetry-instrument` needs, beside the services' own environments."""
    folder = tmp_path_factory.mktemp("agent")
    wanted = ["opentelemetry-distro", "opentelemetry-instrumentation-starlette"]
    wanted.append("opentelemetry-exporter-otlp-proto-http")
    service = world.project
    service.run(uv, "pip", "install", "--quiet", "--python", service.python, "--target", folder, *wanted)
    return folder


@pytest.mark.parametrize("tracing", ["none", "opentelemetry"])
def test_opentelemetry_instrument_goes_on_working(
    renders: Renders, agent: Path, collector: Collector, tmp_path: Path, tracing: str
) -> None:
    more = ANSWERS if tracing != "none" else {"deploy_to": "systemd"}
    project = renders.with_environment(**more)
    prefix = (agent / "bin/opentelemetry-instrument",)
    env = collector.settings(OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", OTEL_METRICS_EXPORTER="none")
    with World(project, tmp_path) as world:
        path = os.pathsep.join((str(agent), str(ROOT / "tests")))
        service = world.start(None, prefix=prefix, PYTHONPATH=path, OTEL_LOGS_EXPORTER="none", **env).ready()
        assert service.ask("/greetings/you", headers=SAMPLED).status == 200
        (span,) = collector.find(lambda span: span.kind == SERVER)
        assert span.ids[0] == TRACE
        assert span.parent_id == PARENT
        if tracing != "none":
            assert ids(service.request_line("/greetings/you")) == span.ids
        families = re.findall(r"^# TYPE (\S+)", service.look("/metrics"), flags=re.M)
        assert len(families) == len(set(families))
        assert service.stop() == 0, service.said()
        assert len([span for span in collector.spans if span.kind == SERVER]) == 1


def test_the_programs_are_typed(world: World) -> None:
    """mypy finds `my_service` in the service's environment only."""
    options = ("--strict", "--explicit-package-bases", "--config-file=")
    files = sorted((ROOT / "tests/apps/traced").glob("*.py"))
    service = world.project
    path = f"{ROOT / 'tests'}:{service.path / 'src'}"
    service.run(service.python, "-m", "mypy", *options, *files, MYPYPATH=path)
