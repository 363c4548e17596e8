"""Contract, section 8: the service's own commands."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from kit.service import Service

from .start import Start


def ended(process: Service) -> dict[str, Any]:
    """Wait for the end; return what the last line says."""
    process.wait()
    last = process.lines()[-1]
    assert last["event"] == "command ended", process.said()
    return last


@pytest.mark.parametrize(("since", "status"), [("7", 0), ("-1", 3)])
def test_it_has_settings_secrets_services_and_logs(start: Start, since: str, status: int) -> None:
    process = start("reindex", "--since", since, app="commands")
    assert process.wait() == status
    said = process.line("reindexed")
    assert (said["since"], said["gate"], said["name"], said["password"]) == (int(since), "open", "probe", 7)
    assert process.lines()[0]["event"] == "command started"
    assert (ended(process)["name"], ended(process)["status"]) == ("reindex", status)


def test_it_needs_no_port(start: Start, own: Service) -> None:
    ports = {"APP_HTTP_PORT": str(own.port()), "APP_ADMIN_PORT": str(own.port("admin"))}
    assert start("reindex", app="commands", **ports).wait() == 0


def test_a_wrong_configuration_ends_it_before_it_begins(start: Start) -> None:
    process = start("reindex", app="commands", APP_LOG_LEVEL="loud")
    assert process.wait() == 78
    assert process.line("configuration problem")["setting"] == "APP_LOG_LEVEL"
    assert not process.lines("command started")


def test_help_and_a_wrong_argument_need_no_configuration(start: Start) -> None:
    wrong = {"APP_LOG_LEVEL": "loud"}
    described = start("reindex", "--help", app="commands", **wrong)
    assert described.wait() == 0
    assert "index 100% of it" in described.said()
    assert "--since" in described.said()
    refused = start("reindex", "--until", "9", app="commands", **wrong)
    assert refused.wait() == 2
    listed = start("--help", app="commands", **wrong)
    assert listed.wait() == 0
    assert "index 100% of it" in listed.said()


@pytest.mark.parametrize(("name", "said"), [("fail", "no such index"), ("abandon", "CancelledError")])
def test_an_exception_is_logged_and_fails_it(start: Start, name: str, said: str) -> None:
    process = start(name, app="commands")
    assert process.wait() == 1
    assert said in process.line("command failed")["exception"]
    assert process.err.read_text() == ""
    assert ended(process)["status"] == 1


def test_it_may_leave_with_a_status_of_its_own(start: Start) -> None:
    process = start("leave", app="commands")
    assert process.wait() == 5
    assert process.line("exit requested")["status"] == 5
    assert ended(process)["status"] == 5


def test_a_callback_of_it_may_end_it_as_done(start: Start) -> None:
    process = start("leave-early", app="commands")
    assert process.wait() == 0
    assert ended(process)["status"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_cancels_it_and_it_may_clean_up(start: Start, number: signal.Signals) -> None:
    process = start("linger", "--since", "1", app="commands")
    assert process.line("working")["state"] == "starting"
    process.signal(number)
    # Though a thread of it has not ended.
    assert process.wait() == 128 + number
    assert process.line("cleaned up")
    assert ended(process)["status"] == 128 + number


def test_one_that_returns_though_a_signal_cancels_it_is_not_taken_for_done(start: Start) -> None:
    process = start("give-up", app="commands")
    process.line("working")
    process.signal(signal.SIGTERM)
    assert process.wait() == 143
    assert ended(process)["status"] == 143


def test_the_time_to_clean_up_is_limited(start: Start) -> None:
    process = start("linger", "--since", "600", app="commands", APP_DRAIN_TIMEOUT="0.5")
    process.line("working")
    process.signal(signal.SIGTERM)
    assert process.wait() == 1
    assert process.line("stop timed out")["tasks"]
    assert not process.lines("cleaned up")


def test_a_refused_secret_is_read_again_at_once(start: Start, secrets: Path) -> None:
    process = start("rotate", app="commands", APP_SECRETS_REFRESH="0")
    process.line("refused")
    (secrets / "probe_password").write_text("hunter3")
    assert process.wait() == 0
    assert process.line("secrets reloaded")["secrets"] == ["probe_password"]
    assert process.line("another")["password"] is True
