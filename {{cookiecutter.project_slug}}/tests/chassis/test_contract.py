"""This service keeps the contract of its template, seen from outside. The template tests the chassis itself."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from .. import environment
from .process import Process, Start, wait_for

# An environment.py that is older than this test has no POST.
POST: tuple[str, str] | None = getattr(environment, "POST", None)


def test_it_starts_and_says_whether_it_may_get_requests(service: Process) -> None:
    readiness = service.request("/-/ready", port="admin")
    report = readiness.json()
    # A dependency that tests do not have makes the service unready, and its check says so.
    is_ready = all(check["status"] != "fail" for checks in report["checks"].values() for check in checks)
    assert (readiness.status == 200) == is_ready, report
    assert report["state"] == "ready"
    assert service.request("/-/ready").status == readiness.status
    assert service.request("/-/healthy", port="admin").status == 200


def test_the_health_check_of_the_image_asks_for_readiness(service: Process, start: Start) -> None:
    process = start("healthcheck", APP_ADMIN_PORT=str(service.port("admin")))
    assert (process.wait() == 0) == (service.request("/-/ready").status == 200), process.stderr


def test_a_wrong_configuration_ends_it_with_78_and_names_every_problem(start: Start) -> None:
    wrong = {"APP_HTTP_PORT": "eighty", "APP_LOG_LEVEL": "loud", "APP_ADMIN_TOKEN": "hunter2"}
    check, serve = start("check", **wrong), start("serve", **wrong)
    assert (check.wait(), serve.wait()) == (78, 78)
    assert {line.partition(":")[0] for line in check.stderr.splitlines()} == wrong.keys(), check.stderr
    assert "hunter2" not in check.stderr + serve.stdout + serve.stderr


def test_what_is_required_and_missing_is_named(start: Start, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    check = start("check", **dict.fromkeys(environment.ENVIRONMENT), APP_SECRETS_DIR=str(tmp_path / "none"))
    config = start("config", "--format", "json")
    assert config.wait() == 0, config.stderr
    required = [setting.get("file") or setting["name"] for setting in json.loads(config.stdout) if setting["required"]]
    assert check.wait() == 78 or not required, check.stderr
    assert not [name for name in required if f"{name}: " not in check.stderr], check.stderr
    assert "Traceback" not in check.stderr


def test_a_request_is_one_json_line_with_its_id(service: Process) -> None:
    response = service.request("/no/such/route?token=hunter2", x_request_id="the-contract")
    assert response.headers["x-request-id"] == "the-contract"

    def found() -> list[dict[str, Any]]:
        return [line for line in service.lines("request") if line["request_id"] == "the-contract"]

    [line] = wait_for(found, "the request line")
    assert (line["method"], line["path"], line["status"]) == ("GET", "/no/such/route", response.status)
    assert "hunter2" not in service.stdout


def test_requests_are_counted(service: Process) -> None:
    service.request("/no/such/route")

    def counted() -> bool:
        metrics = service.request("/metrics", port="admin").body.decode()
        assert 'name="{{ cookiecutter.project_slug }}"' in metrics
        return "http_server_request_duration_seconds_count{" in metrics

    wait_for(counted, "a request in /metrics")


def test_a_secret_is_rotated_without_a_restart(start: Start) -> None:
    token = start.secrets / "admin_token"
    token.write_text("one")
    process = start(APP_SECRETS_REFRESH="0").ready()
    token.write_text("")
    process.signal(signal.SIGHUP)
    assert "admin_token" in process.line("secrets reload failed")["problems"]
    token.write_text("two")
    process.signal(signal.SIGHUP)
    assert process.line("secrets reloaded")["secrets"] == ["admin_token"]
    assert process.stop() == 0, process.stdout


@pytest.mark.skipif(POST is None, reason="tests/environment.py names no route that reads a body")
def test_a_slow_request_is_answered_during_the_drain(start: Start) -> None:
    assert POST is not None
    path, body = POST
    process = start().ready()
    with process.connect() as idle, process.connect() as slow:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        slow.sendall(f"{head}\r\n\r\n{body[:1]}".encode())
        wait_for(
            lambda: b"http_server_active_requests 1" in process.request("/metrics", port="admin").body,
            "the request in flight",
        )
        process.signal(signal.SIGTERM)
        process.line("draining")
        assert process.request("/-/ready", port="admin").json()["state"] == "draining"
        for position in range(1, len(body)):
            slow.sendall(body[position : position + 1].encode())
        response = slow.makefile("rb").read()
        assert response.startswith(b"HTTP/1.1 2"), response
        assert b"connection: close" in response.lower()
        assert idle.recv(1) == b""
    assert process.wait() == 0, process.stdout
    process.line("stopped")
