"""Calls to a service in trouble: bounded, repeated only where they may be, and never a storm."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from kit.service import Answer, Asking, Service, free_port, wait_for
from kit.upstream import Upstream, running_upstream
from kit.world import World

pytestmark = pytest.mark.slow

ANSWERS = {"tracing": "opentelemetry", "http_client": "httpx2", "deploy_to": "systemd"}
APP = "traced.caller"
# The host of the upstream has saved ten retries at the start, and gets one more for ten calls.
SAVED, EARNED = 10, 0.1


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with running_upstream() as upstream:
        yield upstream


@pytest.fixture
def caller(world: World, upstream: Upstream) -> Service:
    quick: dict[str, Any] = {"APP_OUTGOING_READ": "0.5", "APP_OUTGOING_TIMEOUT": "2"}
    return world.start(APP, UPSTREAM=upstream.url, **quick).ready()


def retries(service: Service, made: bool = True) -> float:
    label = f'http_client_retries_total{{made="{str(made).lower()}",server_address="127.0.0.1"}}'
    return service.series().get(label, 0)


def failure(answer: Answer) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer
    return answer.status, answer.json()["detail"]


def test_a_third_that_fails_is_repeated_counted_and_hardly_seen(caller: Service, upstream: Upstream) -> None:
    upstream.mode = "third"
    statuses = Counter(caller.status(f"/call/{number}") for number in range(18))
    assert statuses == {200: 18}
    assert upstream.asked["GET"] == 18 + retries(caller) == 26
    counted = {
        labels["error_type"]: value
        for name, value in caller.series().items()
        if name.startswith("http_client_request_duration_seconds_count")
        for labels in [dict(re.findall(r'(\w+)="([^"]*)"', name))]
        if labels["http_request_method"] == "GET" and labels["server_address"] == "127.0.0.1"
        if labels["server_port"] == str(upstream.server.server_port)
        if labels["http_response_status_code"] == (labels["error_type"] or "200")
    }
    assert counted == {"": 18, "500": 8}
    assert "canary" not in caller.said()


def test_a_post_is_never_repeated_and_a_put_is(caller: Service, upstream: Upstream) -> None:
    upstream.mode = "fail"
    assert failure(caller.ask("/call/x", method="POST")) == (502, "Another service answered 500.")
    assert failure(caller.ask("/call/x", method="PUT")) == (502, "Another service answered 500.")
    upstream.mode = "reset"
    assert failure(caller.ask("/call/x", method="POST")) == (502, "Another service did not answer.")
    assert upstream.asked == {"POST": 2, "PUT": 3}


def test_an_outage_becomes_no_storm(caller: Service, upstream: Upstream) -> None:
    upstream.mode = "fail"
    connection = caller.connect()
    calls = 100
    statuses = Counter(caller.ask(f"/call/{number}", on=connection).status for number in range(calls))
    assert statuses == {502: calls}
    assert SAVED <= retries(caller) <= SAVED + calls * EARNED
    assert upstream.asked["GET"] == calls + retries(caller)
    assert retries(caller, made=False) > 0
    upstream.mode = "answer"
    assert caller.status("/call/again") == 200


def test_a_refused_and_a_reset_connection_are_502(world: World, caller: Service, upstream: Upstream) -> None:
    upstream.mode = "reset"
    assert failure(caller.ask("/call/x")) == (502, "Another service did not answer.")
    assert upstream.asked["GET"] == 3
    assert caller.line("upstream failed")["server"] == "127.0.0.1"
    refused = world.start(APP, UPSTREAM=f"http://127.0.0.1:{free_port()}").ready()
    assert failure(refused.ask("/call/x")) == (502, "Another service did not answer.")
    assert refused.line("upstream failed")["error"] == "ConnectError"
    assert retries(refused) == 2


def test_an_answer_that_nobody_can_use_is_502_and_not_asked_for_again(
    world: World, upstream: Upstream
) -> None:
    follows = world.start(APP, UPSTREAM=upstream.url, CLIENT='{"follow_redirects": true}').ready()
    upstream.mode = "compressed"
    assert failure(follows.ask("/call/x")) == (502, "Another service did not answer.")
    assert "decompressing" in follows.line("upstream failed")["detail"]
    upstream.mode = "later"
    assert failure(follows.ask("/call/x")) == (502, "Another service answered 503.")
    assert upstream.asked["GET"] == 2
    upstream.mode = "loop"
    assert failure(follows.ask("/call/x")) == (502, "Another service did not answer.")
    assert {line["error"] for line in follows.lines("upstream failed")} > {"TooManyRedirects"}
    assert retries(follows) == 0
    assert not follows.lines("unhandled exception")
    assert "canary" not in follows.said()


def test_an_option_replaces_what_the_client_has_otherwise(world: World, upstream: Upstream) -> None:
    proxied: dict[str, Any] = {"HTTP_PROXY": upstream.url, "UPSTREAM": "http://nowhere.invalid"}
    service = world.start(APP, CLIENT='{"trust_env": true, "timeout": 5}', **proxied).ready()
    assert service.ask("/call/x").body == b"ok"


def test_the_other_services_failure_informs(world: World, upstream: Upstream) -> None:
    upstream.mode = "fail"
    service = world.start(APP, PING="1", UPSTREAM=upstream.url).ready()
    wait_for(lambda: service.readiness()["checks"]["Upstream"][0]["status"] == "warn", "the failing check")
    assert service.status("/-/ready") == 200
    upstream.mode = "answer"
    wait_for(lambda: service.readiness()["checks"]["Upstream"][0]["status"] == "pass", "the check")


def test_slow_answers_are_504_and_none_hangs_in_the_drain(caller: Service, upstream: Upstream) -> None:
    upstream.mode = "hang"
    asked = [Asking(caller, f"/call/{number}") for number in range(30)]
    wait_for(lambda: upstream.asked.total() >= 30, "the calls")
    assert caller.stop() == 0, caller.said()
    for one in asked:
        one.join(30)
        assert one.answer is not None, "a request without an answer"
        assert failure(one.answer) == (504, "Another service did not answer.")
    assert max(line["duration_ms"] for line in caller.lines("request")) < 10_000
    assert upstream.asked.total() <= 30 + SAVED + 30 * EARNED
    assert not caller.lines("requests cut off")


def test_what_a_client_did_wrong_is_the_callers_to_judge_and_cookies_are_not_kept(
    world: World, caller: Service, upstream: Upstream
) -> None:
    upstream.mode = "missing"
    assert caller.ask("/call/x").body == b"ok"
    assert caller.status("/call/x") == 404
    assert retries(caller) == 0
    other = world.start(APP, UPSTREAM=f"http://127.0.0.1:{caller.port()}").ready()
    for _ in range(2):
        assert "cookie=" not in other.ask("/call/x").text


def test_hosts_that_clients_name_do_not_become_series_without_end(
    caller: Service, upstream: Upstream
) -> None:
    connection = caller.connect()

    def call(number: int) -> int:
        # Other spellings of 127.0.0.1, which inet_aton(3) reads.
        host = "0x" + "0" * (number % 50) + "7f" + (".1", ".0.1", ".0.0.1")[number // 50]
        return caller.ask(f"/call/x?url=http://{host}:{upstream.server.server_port}", on=connection).status

    assert {call(number) for number in range(130)} == {200}
    hosts = Counter(
        found[1]
        for name in caller.series()
        if (found := re.search(r'client_.*_count.*server_address="([^"]*)"', name))
    )
    assert len(hosts) == 101
    assert hosts["_OTHER"] == 1


def test_ports_and_methods_that_clients_name_do_not_either(caller: Service, upstream: Upstream) -> None:
    connection = caller.connect()
    for port in range(1, 131):
        assert caller.ask(f"/call/x?url=http://127.0.0.1:{port}", method="POST", on=connection).status == 502
    assert caller.ask("/call/x", method="MKCOL").body == b"ok"
    counted = [name for name in caller.series() if name.startswith("http_client_request_duration_seconds_c")]
    ports = {found for name in counted for found in re.findall(r'server_port="(\d*)"', name)}
    assert len(ports) == 101
    assert "" in ports
    methods = {found for name in counted for found in re.findall(r'request_method="(\w+)"', name)}
    assert methods == {"POST", "_OTHER"}
