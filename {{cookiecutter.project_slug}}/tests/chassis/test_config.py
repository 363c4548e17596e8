"""Contract, section 2: environment variables become nested classes; wrong ones stop the start, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from {{ cookiecutter.package_name }}.chassis.config import boolean

from .conftest import Start

WRONG = {
    "APP_HTTP_PORT": "eighty",
    "APP_ADMIN_HOST": " ",
    "APP_ADMIN_PORT": "70000",
    "APP_HTTP_TRUSTED_PROXIES": "10.0.0.0/8,proxy",
    "APP_HTTP_MAX_BODY": "1MB",
    "APP_LOG_LEVEL": "loud",
    "APP_LOG_FORMAT": "xml",
    "APP_DRAIN_DELAY": "soon",
    "APP_HEALTH_STALL_LIMIT": "nan",
}


def test_every_wrong_setting_is_named_at_once(start: Start) -> None:
    process = start.service(**WRONG)
    assert process.wait() == 78
    problems = {line["setting"]: line["problem"] for line in process.lines("configuration problem")}
    assert problems.keys() == WRONG.keys()
    assert problems["APP_HTTP_PORT"] == "'eighty' is not accepted: use a whole number from 0 to 65535"
    assert process.err.read_text() == ""


def test_check_prints_every_problem_and_no_secret(start: Start, secrets: Path) -> None:
    (secrets / "probe_password").unlink()
    (secrets / "probe_key").write_text("")
    done = start.command(
        "check", **WRONG, APP_PROBE_FLAG="maybe", APP_PROBE_KEY="t0psecret", APP_MAIL_HOST="mx", APP_HTP_PORT="1"
    )
    assert done.status == 78
    problems = done.err
    for name in [*WRONG, "APP_PROBE_FLAG", "APP_PROBE_KEY"]:
        assert f"\n{name}: " in f"\n{problems}"
    assert "'maybe' is not accepted: use one of true, yes, on, 1, false, no, off, 0" in problems
    assert f"probe_password: the file {secrets}/probe_password does not exist" in problems
    assert f"APP_PROBE_KEY: is a secret; put it into the file {secrets}/probe_key" in problems
    assert "probe_key: the file" in problems
    assert "mail_password: the file" in problems
    assert "warning: APP_HTP_PORT: is no setting of this service" in problems
    assert "t0psecret" not in problems
    assert "Traceback" not in problems


def test_what_is_missing_is_named_with_its_help(start: Start) -> None:
    done = start.command("check", APP_PROBE_NAME=None)
    assert done.status == 78
    assert done.err == "APP_PROBE_NAME: is not set; what to call it\n"


def test_a_secret_file_alone_makes_the_rest_of_its_optional_group_required(start: Start, secrets: Path) -> None:
    (secrets / "mail_password").write_text("hunter2")
    done = start.command("check")
    assert done.status == 78
    assert done.err == "APP_MAIL_HOST: is not set; mail server\n"


def test_settings_that_are_wrong_together_are_explained(start: Start) -> None:
    done = start.command("check", APP_HTTP_PORT="4242", APP_ADMIN_PORT="4242")
    assert done.status == 78
    assert done.err == "Config: the two ports must differ\n"


@pytest.mark.parametrize(("words", "meaning"), [("1 true YES On", True), ("0 False no OFF", False)])
def test_the_usual_words_for_booleans_are_accepted(words: str, meaning: bool) -> None:
    assert {boolean(word) for word in words.split()} == {meaning}


def test_a_good_configuration_is_ok_and_typos_are_pointed_out(start: Start) -> None:
    done = start.command("check", APP_HTP_PORT="8000", APP_QQQ="1")
    assert done.status == 0
    assert done.out == "ok\n"
    warnings = done.err
    assert "APP_HTP_PORT: is no setting of this service; did you mean APP_HTTP_PORT?" in warnings
    assert "APP_QQQ: is no setting of this service; see the command config" in warnings


def test_a_typo_is_warned_about_at_start(start: Start) -> None:
    assert start(APP_LOG_LEVL="debug").line("unknown variable")["setting"] == "APP_LOG_LEVL"


def test_a_platform_may_assign_the_port_by_its_own_name(start: Start) -> None:
    done = start.command("check", APP_HTTP_PORT="1234", PORT="99999")
    assert done.status == 0
    done = start.command("check", APP_HTTP_PORT=None, PORT="99999")
    assert done.status == 78
    assert done.err.startswith("PORT: '99999' is not accepted")


def test_the_defaults_are_enough_to_start(start: Start) -> None:
    process = start.service().ready()
    assert process.line("listening")["http"].startswith("127.0.0.1:")
