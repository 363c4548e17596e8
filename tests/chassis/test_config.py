"""Contract, sections 1, 2: environment variables become nested classes; all that is wrong is said at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import attrs
import environ
import pytest
from apps.picky import Config as PickyConfig
from my_service.chassis.config import (
    LoadedConfig,
    Settings,
    boolean,
    choice,
    describe,
    host,
    integer,
    load,
    networks,
    seconds,
    secret,
    text,
)
from my_service.chassis.config.settings import log_levels
from my_service.chassis.errors import ConfigurationError
from my_service.chassis.secrets import Secret

from .start import Start

PICKY = (sys.executable, "-m", "apps.picky")
WRONG = {
    "APP_HTTP_HOST": "a..ä",
    "APP_HTTP_PORT": "eighty",
    "APP_ADMIN_HOST": " ",
    "APP_ADMIN_PORT": "70000",
    "APP_HTTP_TRUSTED_PROXIES": "10.0.0.0/8,proxy",
    "APP_HTTP_MAX_BODY": "1MB",
    "APP_HTTP_KEEP_ALIVE": "0",
    "APP_LOG_LEVEL": "loud",
    "APP_LOG_LEVELS": "httpx2=loud",
    "APP_LOG_FORMAT": "xml",
    "APP_DRAIN_DELAY": "soon",
    "APP_HEALTH_STALL_LIMIT": "nan",
    "APP_BUILD_REVISION": "a\udcff",
}
# What the checks of apps/picky.py refuse, and what is said of it.
PICKED = {
    "APP_PICKY_PRICE": ("1,50", "InvalidOperation"),
    "APP_PICKY_ZONE": ("Mars/Base", "ZoneInfoNotFoundError: 'No time zone found with key Mars/Base'"),
    "APP_PICKY_COLOR": ("blue", "KeyError: 'blue'"),
    "APP_PICKY_SHARE": ("0", "ZeroDivisionError: float division by zero"),
    "APP_PICKY_SECRET_WORD": ("x", "Refusal"),
    "APP_PICKY_SIZES": ("1 b", "invalid literal for int() with base 10: 'b'"),
    "APP_PICKY_LIMIT": ("0", "'limit' must be >= 1: 0"),
    "APP_PICKY_CODE": ("ABC", "'code' must match regex '[a-z]+' ('ABC' doesn't)"),
    "APP_PICKY_UNIT": ("h", "'unit' must be in ['s', 'ms'] (got 'h')"),
    "APP_PICKY_SHORT": ("long", "Length of 'short' must be <= 3: 4"),
    "APP_PICKY_LOW": ("50", "it is above APP_PICKY_HIGH (9)"),
}


def problems(cls: type[Settings], **env: str) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as raised:
        load(cls, env)
    names = [problem.setting for problem in raised.value.problems]
    assert len(set(names)) == len(names), f"more than one problem of a setting: {raised.value}"
    return {problem.setting: problem.problem for problem in raised.value.problems}


def warnings(cls: type[Settings], **env: str) -> dict[str, str]:
    return {warning.setting: warning.problem for warning in load(cls, env).warnings}


def test_every_wrong_setting_is_named_at_once(start: Start) -> None:
    process = start.service(**WRONG)
    assert process.wait() == 78
    found = {line["setting"]: line["problem"] for line in process.lines("configuration problem")}
    assert found.keys() == WRONG.keys()
    assert found["APP_HTTP_PORT"] == "'eighty' is not accepted: use a whole number from 0 to 65535"
    assert found["APP_BUILD_REVISION"] == "'a\\udcff' is not accepted: it is not UTF-8"
    assert process.err.read_text() == ""


def test_check_prints_every_problem_and_no_secret(start: Start, secrets: Path) -> None:
    (secrets / "probe_password").unlink()
    (secrets / "probe_key").write_text("")
    done = start.command(
        "check",
        **WRONG,
        APP_PROBE_FLAG="maybe",
        APP_PROBE_KEY="t0psecret",
        APP_MAIL_HOST="mx",
        APP_HTP_PORT="1",
    )
    assert done.status == 78
    for name in [*WRONG, "APP_PROBE_FLAG", "APP_PROBE_KEY"]:
        assert done.err.count(f"\n{name}: ") + done.err.startswith(f"{name}: ") == 1, name
    assert "'maybe' is not accepted: use one of true, yes, on, 1, false, no, off, 0" in done.err
    assert f"probe_password: the file {secrets}/probe_password does not exist" in done.err
    assert f"APP_PROBE_KEY: is a secret; put it into the file {secrets}/probe_key" in done.err
    assert "probe_key: the file" in done.err
    assert "mail_password: the file" in done.err
    assert "warning: APP_HTP_PORT: is no setting of this service" in done.err
    assert "t0psecret" not in done.err
    assert "Traceback" not in done.err


def test_whatever_a_teams_converter_or_validator_raises_is_a_problem_of_its_setting(start: Start) -> None:
    env = {name: value for name, (value, _) in PICKED.items()}
    process = start.run([*PICKY, "check"], {**env, "APP_LOG_LEVEL": "loud", "APP_HTTP_MAX_BODY": "1_000"})
    assert process.wait() == 78
    printed = process.err.read_text()
    expected = {f"{name}: {value!r} is not accepted: {said}" for name, (value, said) in PICKED.items()}
    assert expected <= set(printed.splitlines())
    assert "APP_LOG_LEVEL: 'loud' is not accepted: use one of debug" in printed
    assert "APP_HTTP_MAX_BODY: '1_000' is not accepted" in printed
    assert len(printed.splitlines()) == len(PICKED) + 2
    for word in ("Traceback", "Attribute(", "<class"):
        assert word not in printed


@pytest.mark.parametrize("name", PICKED)
def test_a_problem_alone_has_the_same_words(name: str) -> None:
    value, said = PICKED[name]
    assert problems(PickyConfig, **{name: value}) == {name: f"{value!r} is not accepted: {said}"}


def test_a_validator_that_needs_another_wrong_field_adds_no_problem() -> None:
    env = {"APP_PICKY_LOW": "50", "APP_PICKY_HIGH": "many"}
    assert problems(PickyConfig, **env).keys() == {"APP_PICKY_HIGH"}


def test_what_a_group_says_of_itself_has_its_name_and_no_secret(start: Start, secrets: Path) -> None:
    (secrets / "picky_password").write_text("hunter22")
    process = start.run(
        PICKY, {"APP_LOG_FORMAT": "json", "APP_DRAIN_DELAY": "-1", "APP_ADMIN_HOST": "hunter22:80"}
    )
    assert process.wait() == 78
    found = {line["setting"]: line["problem"] for line in process.lines("configuration problem")}
    assert found.keys() == {"APP_PICKY", "APP_DRAIN_DELAY", "APP_ADMIN_HOST"}
    assert found["APP_PICKY"] == "RuntimeError: the password <secret> is too short"
    assert "hunter22" not in process.said()


def test_what_is_missing_is_named_with_its_help(start: Start) -> None:
    done = start.command("check", APP_PROBE_NAME=None)
    assert done.status == 78
    assert done.err == "APP_PROBE_NAME: is not set; what to call it\n"


def test_a_secret_file_alone_makes_the_rest_of_its_optional_group_required(
    start: Start, secrets: Path
) -> None:
    (secrets / "mail_password").write_text("hunter2")
    done = start.command("check")
    assert done.status == 78
    assert done.err == "APP_MAIL_HOST: is not set; mail server\n"


def test_settings_that_are_wrong_together_are_explained(start: Start) -> None:
    done = start.command("check", APP_HTTP_PORT="4242", APP_HTTP_MAX_BODY="4242")
    assert done.status == 78
    assert done.err == "Config: the port and the limit must differ\n"


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"APP_HTTP_PORT": "8001", "APP_ADMIN_PORT": None}, "8001 is APP_HTTP_PORT too; use another"),
        (
            {"APP_HTTP_PORT": None, "PORT": "8001", "APP_ADMIN_PORT": None},
            "8001 is PORT too; use another",
        ),
        (
            {"APP_HTTP_PORT": "9", "APP_ADMIN_PORT": "9", "APP_ADMIN_HOST": "0.0.0.0"},
            "9 is APP_HTTP_PORT too; use another",
        ),
    ],
)
def test_one_port_for_both_listeners_is_a_problem(
    start: Start, env: dict[str, str | None], said: str
) -> None:
    done = start.command("check", APP_LOG_LEVEL="loud", **env)
    assert done.status == 78
    assert f"APP_ADMIN_PORT: {said}\n" in done.err
    assert "APP_LOG_LEVEL" in done.err, "the other problems are not told"


def test_one_port_on_two_addresses_and_any_free_one_are_none(start: Start) -> None:
    ports = {"APP_HTTP_PORT": "9", "APP_ADMIN_PORT": "9"}
    assert start.command("check", **ports, APP_HTTP_HOST="192.0.2.1").out == "ok\n"
    assert start.command("check", APP_HTTP_PORT="0", APP_ADMIN_PORT="0").out == "ok\n"


@environ.config(frozen=True)
class Inner:
    word: str = environ.var(help="required if anything of this is set")
    key: Secret = secret(optional=True, help="an optional secret")


@environ.config(frozen=True)
class Outer:
    size: int = environ.var(help="required if anything of this or of what is in it is set")
    inner: Inner = environ.group(Inner)


@environ.config(frozen=True)
class Easy:
    size: int = environ.var(1, integer(0, 9), help="there is a default for all of this")
    key: Secret = secret(optional=True, help="an optional secret")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@environ.config(frozen=True)
class Hard:
    word: str = environ.var(help="required if anything of this is set")
    size: int = environ.var(1, integer(0, 9), help="a default alone is nothing that is set")


@environ.config(prefix="APP", frozen=True)
class Grouped(Settings):
    name: str = environ.var("name", help="a setting in no group")
    words: list[str] = environ.var(attrs.Factory(str), str.split, help="a default that is made")
    colour: Colour = environ.var(Colour.BLUE, Colour, help="a member of an Enum")
    bad: int = environ.var("1", integer(0, 9), help="a setting with a name of its own", name="APP_OWN_NAME")
    outer: Outer | None = environ.group(Outer, optional=True)
    easy: Easy | None = environ.group(Easy, optional=True)
    hard: Hard | None = environ.group(Hard, optional=True)


def test_a_default_may_be_made_for_each_object() -> None:
    assert load(Grouped, {"APP_WORDS": "a b"}).config.words == ["a", "b"]


def test_a_default_is_shown_as_one_writes_it_into_a_variable() -> None:
    shown = {setting.name: setting for setting in describe(Grouped, {})}
    assert (shown["APP_WORDS"].value, shown["APP_COLOUR"].value) == (None, "blue")
    assert (
        load(Grouped, {"APP_COLOUR": "blue"}).config.colour is load(Grouped, {}).config.colour is Colour.BLUE
    )


def test_an_optional_group_is_there_when_anything_of_it_or_in_it_is(tmp_path: Path) -> None:
    env = {"APP_SECRETS_DIR": str(tmp_path)}
    assert load(Grouped, env).config.outer is None
    assert problems(Grouped, **env, APP_OUTER_INNER_WORD="w").keys() == {"APP_OUTER_SIZE"}
    assert problems(Grouped, **env, APP_OUTER_SIZE="1").keys() == {"APP_OUTER_INNER_WORD"}
    (tmp_path / "outer_inner_key").write_text("k")
    assert problems(Grouped, **env).keys() == {"APP_OUTER_SIZE", "APP_OUTER_INNER_WORD"}
    outer = load(Grouped, {**env, "APP_OUTER_SIZE": "1", "APP_OUTER_INNER_WORD": "w"}).config.outer
    assert outer is not None
    assert outer.inner.key.reveal() == "k"


def test_a_default_is_nothing_that_makes_an_optional_group_be_there() -> None:
    assert load(Grouped, {}).config.hard is None
    hard = load(Grouped, {"APP_HARD_WORD": "w"}).config.hard
    assert hard is not None
    assert (hard.word, hard.size) == ("w", 1)
    assert problems(Grouped, APP_HARD_SIZE="1").keys() == {"APP_HARD_WORD"}


def test_an_optional_group_that_requires_nothing_is_always_there() -> None:
    easy = load(Grouped, {"APP_SECRETS_DIR": "/nowhere"}).config.easy
    assert easy is not None
    assert not easy.key.is_set


def test_a_setting_may_have_a_name_of_its_own() -> None:
    assert load(Grouped, {"APP_OWN_NAME": "7"}).config.bad == 7
    assert problems(Grouped, APP_OWN_NAME="x").keys() == {"APP_OWN_NAME"}


def test_a_default_that_is_refused_is_named() -> None:
    @environ.config(frozen=True)
    class Wrong:
        size: int = environ.var("big", int, help="a size")

    @environ.config(prefix="APP", frozen=True)
    class WrongConfig(Settings):
        wrong: Wrong = environ.group(Wrong)

    said = problems(WrongConfig)["APP_WRONG_SIZE"]
    assert said == "its default 'big' is not accepted: invalid literal for int() with base 10: 'big'"


@pytest.mark.parametrize(("words", "meaning"), [("1 true YES On", True), ("0 False no OFF", False)])
def test_the_usual_words_for_booleans_are_accepted(words: str, meaning: bool) -> None:
    assert {boolean(word) for word in words.split()} == {meaning}


@pytest.mark.parametrize(
    ("converter", "values"),
    [
        (integer(-9, 70000), {"8": 8, "-9": -9, "007": 7}),
        (seconds(0, 60), {"2": 2.0, "0.5": 0.5, ".5": 0.5}),
        (choice("auto", "JSON"), {"AUTO": "auto", "json": "JSON"}),
        (text, {"a b": "a b", "é": "é"}),
        (
            host,
            {
                **{name: name for name in ["0.0.0.0", "::", "fe80::1%Eth0", "münchen.example", "a_b-1."]},
                # As a browser sends it.
                "LocalHost": "localhost",
            },
        ),
        (networks, {"": "", "10.0.0.0/8, ::1": "10.0.0.0/8,::1", "10.1.2.3": "10.1.2.3"}),
        (log_levels, {"": {}, "httpx2=warning, PIL=DEBUG": {"httpx2": "warning", "PIL": "debug"}}),
    ],
    ids=["integer", "seconds", "choice", "text", "host", "networks", "log_levels"],
)
def test_a_converter_accepts(converter: Callable[[str], Any], values: dict[str, Any]) -> None:
    assert {value: converter(value) for value in values} == values


@pytest.mark.parametrize(
    ("converter", "values"),
    [
        (boolean, ["", "2", "ja", "true\n", " on"]),
        (integer(0, 65535), ["", "18190\n", " 1", "1 ", "18_191", "٣", "1.0", "1e3", "0x10", "-1", "65536"]),
        (integer(0, 65535), ["9" * 5000]),
        (seconds(0, 60), ["", "1_0", "1\n", " 1", "nan", "inf", "61", "1s", "1,5", "٣"]),
        (choice("auto"), ["", "auto\n", " auto", "aut"]),
        (text, ["", " ", "a\n", "\ta"]),
        (host, ["", " ", "a b", "a\n", "a..b", "a\x00b", "x" * 64, "a/b", "\u200d", "ä ö", "*", "\ufeffa b"]),
        (host, ["256.1.1.1", "1.2.3", "[::1]", "::1::", "a:80", "http://a", "٣.1.1.1"]),
        (networks, ["proxy", "*", " ::1", "::1\n", "10.0.0.1/8", "10.0.0.0/33", "1.2.3.4:80", "a=b"]),
        (log_levels, ["httpx2", "=info", "a=loud", "a=info\n", " a=info", "a b=info", "a=b=info", "a=ınfo"]),
    ],
)
def test_a_converter_refuses(converter: Callable[[str], Any], values: list[str]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=r"use |give it a value|digits"):
            pytest.fail(f"{value!r} is accepted as {converter(value)!r}")


@pytest.mark.parametrize(
    ("setting", "lowest", "highest", "beyond"),
    [
        ("HTTP_PORT", "0", "65535", ("-1", "65536")),
        ("HTTP_MAX_BODY", "0", str(2**40), ("-1", str(2**40 + 1))),
        ("HTTP_MAX_CONNECTIONS", "1", str(2**20), ("0", str(2**20 + 1))),
        ("HTTP_KEEP_ALIVE", "1", "86400", ("0", "86401")),
        ("ADMIN_PORT", "0", "65535", ("-1", "65536")),
        ("DRAIN_DELAY", "0", "3600", ("-0.1", "3600.1")),
        ("DRAIN_TIMEOUT", "0", "3600", ("-0.1", "3600.1")),
        ("HEALTH_CHECK_TIMEOUT", "0.01", "60", ("0", "60.1")),
        ("HEALTH_STALL_LIMIT", "0.1", "3600", ("0", "3600.1")),
        ("SECRETS_REFRESH", "0", "3600", ("-0.1", "3600.1")),
    ],
)
def test_a_number_has_limits(setting: str, lowest: str, highest: str, beyond: tuple[str, str]) -> None:
    name, (group, _, field) = f"APP_{setting}", setting.lower().partition("_")
    for value in (lowest, highest):
        config = load(Settings, {name: value}).config
        assert getattr(getattr(config, group), field) == float(value)
    for value in beyond:
        assert problems(Settings, **{name: value}).keys() == {name}


@pytest.mark.parametrize(
    "part",
    [
        "http.port",
        "admin.port",
        "log.level",
        "drain.delay",
        "health.stall_limit",
        "secrets.dir",
        "build.time",
    ],
)
def test_no_part_of_a_configuration_can_be_changed(part: str) -> None:
    config = load(Settings, {}).config
    group, _, field = part.partition(".")
    for owner, name in ((config, group), (getattr(config, group), field)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(owner, name, "other")


def test_a_good_configuration_is_ok_and_typos_are_pointed_out(start: Start) -> None:
    done = start.command("check", APP_HTP_PORT="8000", APP_QQQ="1")
    assert done.status == 0
    assert done.out == "ok\n"
    assert "APP_HTP_PORT: is no setting of this service; did you mean APP_HTTP_PORT?" in done.err
    assert "APP_QQQ: is no setting of this service; see the command config" in done.err


@pytest.mark.parametrize(
    "name", ["app_http_host", "App_Http_Host", "APP-HTTP-HOST", "APP.HTTP.HOST", "APP_HTTP_HOTS"]
)
def test_a_name_that_is_nearly_right_is_warned_about(name: str) -> None:
    assert warnings(Settings, **{name: "::"}) == {
        name: "is no setting of this service; did you mean APP_HTTP_HOST?"
    }


@pytest.mark.parametrize("name", ["app_data", "application", "PATH", "HTTP_HOST", "happ_http_host"])
def test_what_belongs_to_others_is_not_warned_about(name: str) -> None:
    assert warnings(Settings, **{name: "x"}) == {}


@pytest.mark.parametrize("name", ["APP_ADMIN_TOKEN_FILE", "app_admin_token", "APP_ADMIN_TOCKEN"])
def test_what_is_nearly_a_secrets_name_leads_to_its_file(name: str) -> None:
    said = "is no setting of this service; did you mean the secret file admin_token?"
    assert warnings(Settings, **{name: "t0psecret"}) == {name: said}


def test_a_typo_is_warned_about_at_start(start: Start) -> None:
    process = start(APP_LOG_LEVL="debug", app_http_host="::")
    process.line("ready")
    warned = [line["setting"] for line in process.lines("configuration warning")]
    assert warned == ["APP_LOG_LEVL", "app_http_host"]


def test_a_platform_may_assign_the_port_by_its_own_name(start: Start) -> None:
    done = start.command("check", APP_HTTP_PORT="1234", PORT="99999")
    assert done.status == 0
    done = start.command("check", APP_HTTP_PORT=None, PORT="99999")
    assert done.status == 78
    assert done.err.startswith("PORT: '99999' is not accepted")
    done = start.command("check", APP_HTTP_PORT=None, PORT="\udcff")
    assert done.err == "PORT: '\\udcff' is not accepted: it is not UTF-8\n"


def test_where_a_value_is_from_is_told_for_people_and_for_programs() -> None:
    loaded: LoadedConfig[Settings] = load(Settings, {"PORT": "81", "APP_LOG_LEVELS": "a=info"})
    told = {each.name: (each.value, each.source, each.variable) for each in loaded.values}
    assert told["APP_HTTP_PORT"] == ("81", "environment PORT", "PORT")
    assert told["APP_HTTP_KEEP_ALIVE"] == ("75", "default", None)
    assert told["APP_ADMIN_TOKEN"] == (None, "file /run/secrets/admin_token", None)
    assert loaded.config.log.levels == {"a": "info"}


def test_the_defaults_are_enough_to_start(start: Start) -> None:
    process = start.service().ready()
    assert process.line("listening")["http"].startswith("127.0.0.1:")
