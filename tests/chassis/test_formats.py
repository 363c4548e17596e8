"""Contract, section 8: what configuration tools read is made from the classes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

import environ
import msgspec.yaml
import pytest
from apps.probe import Config
from my_service.chassis.config import Settings, describe
from my_service.chassis.config.formats import FORMATS, Files, SettingsDocument
from my_service.chassis.errors import ConfigurationError

from .start import Start

HOSTILE = "a 'b' \"c\" $d `e` \\f %g # h=é👩 {i} \t\n\nj\u2028\x7f"
# Those that hold values, not places for them.
HOLDING = ("dotenv", "direnv", "kubernetes", "swarm", "systemd")


def made(format: str, cls: type[Settings] = Config, env: Mapping[str, str] | None = None) -> Files:
    return FORMATS[format](SettingsDocument("probe", describe(cls, env or {}), current=env is not None))


def one(format: str, cls: type[Settings] = Config, env: Mapping[str, str] | None = None) -> str:
    (content,) = made(format, cls, env).values()
    return content


def test_the_command_line_knows_every_format(start: Start) -> None:
    done = start.command("config", "--format", "yaml")
    assert done.status == 2
    named = re.findall(r"[a-z-]+", done.err.partition("choose from")[2])
    assert named == list(FORMATS)
    assert ", ".join(FORMATS) in " ".join(start.command("config", "--help").out.split())


@pytest.mark.parametrize("format", FORMATS)
def test_every_setting_is_there_in_the_order_of_the_classes_with_its_help(format: str) -> None:
    content = "\n".join(made(format).values())
    labels = [setting.label for setting in describe(Config, {})]
    if format in {"json-schema", "confd", "consul-template", "envsubst", "envconsul"}:
        # Their secrets come after the settings, or not at all.
        labels = [label for label in labels if label.isupper()]
        if format == "confd":
            labels = ["/" + label.lower().replace("_", "/") for label in labels]
        if format in {"consul-template", "envconsul"}:
            labels = [f"probe/{label}" for label in labels]
    places = [content.index(re.search(rf"{re.escape(label)}\b", content)[0]) for label in labels]  # type: ignore[index]
    assert places == sorted(places)
    assert "what to call it" in content


@pytest.mark.parametrize("format", sorted(FORMATS.keys() - {"text", "json", "json-schema", "markdown"}))
def test_defaults_are_there_and_what_is_required_is_marked(format: str) -> None:
    lines = "\n".join(made(format).values()).splitlines()
    required = lines[lines.index("# what to call it") + 1]
    assert required == "# required"
    assert any(line.startswith("#") and "1048576" in line for line in lines)
    assert any(line.startswith("#") and "20" in line for line in lines)
    for value in ("auto", "127.0.0.1"):
        assert not [line for line in lines if value in line and not line.startswith("#")]


def test_what_is_required_only_with_its_group_says_so() -> None:
    assert "# required once anything of APP_MAIL is there\n" in "".join(made("direnv").values())


@pytest.mark.parametrize("format", FORMATS)
def test_no_format_shows_a_secret(secrets: Path, format: str) -> None:
    files = made(format, env={"APP_SECRETS_DIR": str(secrets), "APP_PROBE_PASSWORD": "hunter2"})
    assert "hunter2" not in "".join(files.values())


@pytest.mark.parametrize("format", ["text", "json", "direnv", "kubernetes", "swarm", "systemd"])
def test_any_value_gets_into_what_can_quote(format: str) -> None:
    content = one(format, env={"APP_PROBE_NAME": HOSTILE})
    assert "é👩 {i}" in content


def test_current_values_are_live_and_the_rest_stays_a_comment() -> None:
    content = one("dotenv", env={"APP_PROBE_NAME": "a=é", "PORT": "81"})
    assert "\nAPP_PROBE_NAME=a=é\n" in content
    assert "\nAPP_HTTP_PORT=81\n" in content
    assert "\n#APP_LOG_LEVEL=info\n" in content


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a\nb", "it has a newline or another character that can't be printed"),
        ("a\u0085b", "it has a newline or another character that can't be printed"),
        ("it's #1", "it has ' # a space, which readers of bare values don't agree on"),
        ("$HOME", "it has $, which readers of bare values don't agree on"),
        ("a b", "it has a space, which readers of bare values don't agree on"),
    ],
)
def test_what_no_bare_value_can_be_is_refused_by_name(start: Start, value: str, reason: str) -> None:
    done = start.command("config", "--format", "dotenv", "--current", APP_PROBE_NAME=value, APP_HTTP_HOST="#")
    assert done.status == 1
    assert done.out == ""
    first, second = done.err.splitlines()
    assert first.startswith("APP_HTTP_HOST: its value can't be written in this format: it has #")
    assert second == f"APP_PROBE_NAME: its value can't be written in this format: {reason}"


@pytest.mark.parametrize("format", HOLDING)
def test_what_is_not_utf_8_is_refused_by_name(format: str) -> None:
    with pytest.raises(ConfigurationError, match=r"APP_PROBE_NAME: .* it is not UTF-8"):
        made(format, env={"APP_PROBE_NAME": "a\udcff"})


@pytest.mark.parametrize("value", ["\ufdd0", "a\U0001fffe"])
def test_what_systemd_does_not_take_for_utf_8_is_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"APP_PROBE_NAME: .* it has a noncharacter"):
        made("systemd", env={"APP_PROBE_NAME": value})


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_is_not_utf_8_can_be_looked_at(format: str) -> None:
    assert "a\\udcff" in one(format, env={"APP_PROBE_NAME": "a\udcff"}).replace("\\\\", "\\")


@environ.config(frozen=True)
class Odd:
    lines: str = environ.var("a\nb", help="two\nlines, and " + "{" * 2 + " braces")


@environ.config(prefix="APP", frozen=True)
class OddConfig(Settings):
    odd: Odd = environ.group(Odd)


def test_an_odd_default_or_help_breaks_no_comment() -> None:
    assert "# its default can't be written in this format: it has a newline" in one("dotenv", OddConfig)
    assert "\n#export APP_ODD_LINES='a\n#b'\n" in one("direnv", OddConfig)
    for format in ("envsubst", "confd", "consul-template", "envconsul"):
        content = "".join(made(format, OddConfig).values())
        assert "\n# two lines, and { { braces\n" in content
        assert "\n# default: a b\n" in content


@environ.config(frozen=True)
class Both:
    log: str = environ.var("", name="APP_LOG", help="its key is the folder of others")


@environ.config(prefix="APP", frozen=True)
class BothConfig(Settings):
    both: Both = environ.group(Both)


def test_confd_refuses_a_key_that_holds_others() -> None:
    with pytest.raises(ConfigurationError, match="APP_LOG: its key /app/log holds other keys too"):
        made("confd", BothConfig)


@pytest.mark.parametrize(
    ("format", "empty"),
    [
        (
            "swarm",
            {
                "version": "3.9",
                "services": {"service": {"environment": {}, "secrets": []}},
                "secrets": {},
            },
        ),
        ("kubernetes", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe"}, "data": {}}),
    ],
)
def test_where_nothing_is_live_no_mapping_is_null(format: str, empty: dict[str, object]) -> None:
    assert msgspec.yaml.decode(one(format, Settings)) == empty


def test_a_required_secret_is_delivered_and_an_optional_one_is_a_comment() -> None:
    stack = one("swarm")
    assert "\n  probe_password: {name: probe_probe_password_1, external: true},\n" in stack
    assert "\n#  probe_key: {name: probe_probe_key_1, external: true},\n" in stack
    files = made("consul-template")
    assert re.search(
        r'^template \{\n.*\n  destination = "/run/probe/secrets/probe_password"', files["probe.hcl"], re.M
    )
    assert '\n#  destination = "/run/probe/secrets/probe_key"' in files["probe.hcl"]
    assert "\nLoadCredential=probe_password:probe.probe_password\n" in one("systemd")
    assert "--from-file=probe_password" in one("kubernetes")


def test_envconsul_is_given_no_secret() -> None:
    live = [line for line in one("envconsul").splitlines() if not line.startswith("#")]
    assert "secret" not in "\n".join(live)
    assert "\n# required: a secret, the file probe_password\n" in one("envconsul")


def test_confd_finds_the_template_and_a_key_for_each_setting() -> None:
    files = made("confd")
    resource = tomllib.loads(files["conf.d/probe.toml"])["template"]
    assert f"templates/{resource['src']}" in files
    keys = re.findall(r'getv "([^"]*)"', files["templates/probe.env.tmpl"])
    assert keys == [
        "/" + each.name.lower().replace("_", "/") for each in describe(Config, {}) if each.file is None
    ]
    assert all(key.startswith(tuple(resource["keys"])) for key in keys)


def test_the_schema_wants_what_is_required_and_knows_all_names() -> None:
    schema = json.loads(one("json-schema"))
    assert schema["required"] == ["APP_PROBE_NAME"]
    assert schema["properties"]["APP_PROBE_FLAG"]["default"] == "false"
    assert schema["propertyNames"]["anyOf"][0]["enum"] == list(schema["properties"])
    assert "APP_PROBE_PASSWORD" not in schema["properties"]


@pytest.mark.parametrize(("format", "name"), [("direnv", ".envrc"), ("envsubst", "probe.env.sh")])
def test_what_a_shell_reads_is_valid(tmp_path: Path, format: str, name: str) -> None:
    script = tmp_path / name
    script.write_text(made(format)[name])
    subprocess.run(["sh", "-n", script], check=True)


def test_files_are_written_and_listed_but_never_over_others(start: Start, tmp_path: Path) -> None:
    arguments = ("config", "--format", "confd", "--output", str(tmp_path / "out"))
    done = start.command(*arguments)
    assert done.status == 0
    written = [Path(line) for line in done.out.splitlines()]
    toml, template = written
    assert [toml.parent, template.parent] == [tmp_path / "out/conf.d", tmp_path / "out/templates"]
    template.write_text("mine")
    toml.unlink()
    done = start.command(*arguments)
    assert done.status == 1
    assert done.err.startswith(f"{template} exists; nothing was written")
    assert not toml.exists()
    assert start.command(*arguments, "--force").status == 0
    assert template.read_text() != "mine"


def test_several_files_are_not_mixed_on_stdout(start: Start) -> None:
    done = start.command("config", "--format", "confd")
    assert done.status == 1
    assert done.out == ""
    assert done.err.startswith("confd takes several files (conf.d/")
    assert done.err.endswith("); say where with --output DIR\n")


def test_where_it_can_not_write_it_says_so(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = start.command("config", "--format", "systemd", "--output", str(tmp_path / "file"))
    assert done.status == 1
    assert done.err == f"{tmp_path}/file can't be written: File exists\n"


def test_on_a_signal_it_says_which_settings_need_a_restart(start: Start) -> None:
    event = "settings need restart"
    process = start(APP_SECRETS_REFRESH="0.02").ready()
    # It looks for changed secrets by itself, and then has nothing to say of settings.
    assert process.ask("/slow?s=0.2").status == 200
    assert not process.lines(event)
    process.signal(signal.SIGHUP)
    line = process.line(event)
    names = ["APP_HTTP_PORT", "APP_ADMIN_PORT", "APP_SECRETS_DIR", "APP_SECRETS_REFRESH", "APP_PROBE_NAME"]
    assert line["settings"] == names
