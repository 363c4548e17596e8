"""Traces and calls with FastAPI, in short; test_tracing.py and test_outgoing.py have the rest."""

import pytest
from kit.collector import Collector
from kit.service import free_port
from kit.world import World

pytestmark = pytest.mark.slow

ANSWERS = {
    "web_framework": "fastapi",
    "tracing": "opentelemetry",
    "http_client": "httpx2",
    "deploy_to": "systemd",
}
APP = "traced.caller"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
SERVER, CLIENT = 2, 3


def test_a_request_through_two_services_is_one_trace(world: World, collector: Collector) -> None:
    b = world.start(APP, **collector.settings("b")).ready()
    a = world.start(APP, UPSTREAM=f"http://127.0.0.1:{b.port()}", **collector.settings("a")).ready()
    assert a.ask("/call/up?key=canary-query", headers=SAMPLED).status == 200
    spans = {(span.service, span.kind): span for span in collector.find(lambda span: True, 3)}
    of_a, to_b, of_b = (spans[key] for key in (("a", SERVER), ("a", CLIENT), ("b", SERVER)))
    assert {span.trace_id for span in spans.values()} == {TRACE}
    assert (to_b.parent_id, of_b.parent_id) == (of_a.span_id, to_b.span_id)
    assert (of_a.name, to_b.name, of_b.name) == ("GET /call/{kind}", "GET", "GET /leaf/{kind}")
    for service, span, path in ((a, of_a, "/call/up"), (b, of_b, "/leaf/up")):
        line = service.request_line(path)
        assert (line["trace_id"], line["span_id"]) == span.ids
        assert service.stop() == 0
    assert "canary" not in repr(spans) + a.said() + b.said()


def test_failures_are_marked_and_another_services_are_502(world: World, collector: Collector) -> None:
    service = world.start(APP, UPSTREAM=f"http://127.0.0.1:{free_port()}", **collector.settings()).ready()
    assert service.ask("/leaf/error").status == 500
    answer = service.ask("/call/x", method="POST")
    assert (answer.status, answer.headers["content-type"]) == (502, "application/problem+json")
    failed = collector.find(lambda span: span.failed and span.kind == SERVER, 2)
    assert {span.attributes["error.type"] for span in failed} == {"500", "502"}
    assert {span.name for span in failed} == {"GET /leaf/{kind}", "POST /call/{kind}"}
