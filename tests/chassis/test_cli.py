"""Contract, section 8: the command line."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kit.service import Service, wait_for

from .start import Start


def test_config_shows_every_setting_with_value_and_source(start: Start, secrets: Path) -> None:
    done = start.command("config", APP_PROBE_FLAG="on", APP_PROBE_NAME=None, APP_LOG_LEVEL="loud")
    assert done.status == 0
    rows = {line.split()[0]: line.split()[1:] for line in done.out.splitlines()}
    assert rows["APP_PROBE_FLAG"][:3] == ["on", "environment", "APP_PROBE_FLAG"]
    assert rows["APP_DRAIN_TIMEOUT"][:2] == ["20", "default"]
    assert rows["APP_LOG_LEVEL"][0] == "loud"
    assert rows["APP_PROBE_NAME"][0] == "(required)"
    assert rows["probe_password"][:3] == ["<secret>", "file", f"{secrets}/probe_password"]
    assert rows["mail_password"][0] == "(required)"
    assert "hunter2" not in done.out


def test_config_as_json_is_for_tools(start: Start) -> None:
    done = start.command("config", "--format", "json")
    assert done.status == 0
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert rows["APP_HTTP_MAX_BODY"]["default"] == 1048576
    assert rows["APP_PROBE_PASSWORD"]["file"] == "probe_password"
    assert rows["APP_PROBE_NAME"]["required"]


def test_config_as_markdown_is_a_table(start: Start) -> None:
    done = start.command("config", "--format", "markdown")
    assert done.status == 0
    assert "| `APP_PROBE_NAME` | required | what to call it |" in done.out
    assert "| secret file `probe_key` | - | an optional secret |" in done.out


def test_config_as_dotenv_marks_what_is_required(start: Start) -> None:
    done = start.command("config", "--format", "dotenv")
    assert done.status == 0
    example = done.out
    assert "\n# what to call it\n# required\n#APP_PROBE_NAME=\n" in example
    assert "\n# a required secret\n# required: a secret, the file probe_password\n" in example
    assert "hunter2" not in example


@pytest.mark.parametrize(("argument", "unbuffered"), [("check", ""), ("config", ""), ("config", "1")])
def test_output_that_nobody_takes_is_one_line(start: Start, argument: str, unbuffered: str) -> None:
    command, env = [sys.executable, "-m", "my_service", argument], {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=start.environment(env)
        )
    assert done.stderr == "standard output can't be written: No space left on device\n"
    assert done.returncode == 1


def test_the_example_environment_is_current(start: Start) -> None:
    process = start.service("config", "--format", "dotenv")
    assert process.wait() == 0
    # The project is the working directory of these tests.
    assert Path(".env.example").read_text() == process.out.read_text()


def test_healthcheck_asks_for_readiness(own: Service, start: Start) -> None:
    address = {"APP_ADMIN_HOST": "0.0.0.0", "APP_ADMIN_PORT": str(own.port("admin"))}
    assert start.service("healthcheck", **address).wait() == 0
    own.ask("/gate/gate?mode=shut")
    wait_for(lambda: own.status("/-/ready") == 503)
    failing = start.service("healthcheck", **address)
    assert failing.wait() == 1
    assert "Gate" in failing.err.read_text()
    assert own.stop() == 0
    gone = start.service("healthcheck", **address)
    assert gone.wait() == 1
    assert gone.err.read_text().startswith("no answer from 127.0.0.1:")


def test_healthcheck_takes_no_nonsense_for_an_answer(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def answer() -> None:
            client, _ = stranger.accept()
            client.sendall(b"hello\r\n")
            client.close()

        thread = threading.Thread(target=answer)
        thread.start()
        asked = start.service("healthcheck", APP_ADMIN_PORT=str(stranger.getsockname()[1]))
        thread.join()
        assert asked.wait() == 1


def test_serving_can_be_asked_for(start: Start) -> None:
    process = start("serve", APP_HTTP_PORT="wrong")
    assert process.wait() == 78
    assert process.line("configuration problem")["setting"] == "APP_HTTP_PORT"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_need_no_configuration(start: Start, arguments: list[str]) -> None:
    process = start.service(*arguments, APP_HTTP_PORT="wrong")
    assert process.wait() == 0
    assert process.out.read_text()


def test_what_it_does_not_know_is_refused(start: Start) -> None:
    assert start.command("fly").status == 2


@pytest.mark.parametrize("workers", ["", "auto", "4"])
def test_variables_that_uvicorn_would_read_are_not_read(start: Start, workers: str) -> None:
    process = start(WEB_CONCURRENCY=workers, FORWARDED_ALLOW_IPS="*").ready()
    process.ask("/trouble/nothing", headers={"X-Forwarded-For": "203.0.113.7, 198.51.100.1"})
    # Only 127.0.0.1 is trusted, so the address next to it counts.
    assert process.request_line("/trouble/nothing")["client"] == "198.51.100.1"
    assert process.stop() == 0


def test_variables_that_libraries_would_read_are_not_read(start: Start, tmp_path: Path) -> None:
    process = start.service(PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "missing")).ready()
    assert "\napp_info{" in process.ask("/metrics", port="admin").body.decode()
    assert process.stop() == 0
