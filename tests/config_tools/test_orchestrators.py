"""Contract, section 8: files for Kubernetes and Swarm, and the schema for any other tool."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from kit.formats import Maker, Values, thoroughly
from kit.project import Project
from kit.readers import run
from kit.tools import tool

pytestmark = pytest.mark.slow


@thoroughly(30)
def test_a_config_map_carries_every_value(make: Maker, values: Values) -> None:
    made = make("kubernetes", values)
    assert not made.refused
    assert yaml.safe_load(made.file)["data"] == values


@thoroughly(8)
def test_a_stack_file_carries_every_value(make: Maker, tmp_path: Path, values: Values) -> None:
    made = make("swarm", values)
    assert not made.refused
    (tmp_path / "stack.yaml").write_text("version: '3.9'\nservices: {service: {image: none}}\n")
    (tmp_path / "settings.yaml").write_text(made.file)
    files = ("--file", "stack.yaml", "--file", "settings.yaml")
    compose = (tool("docker compose"), "compose", *files, "config", "--format", "json")
    told = run(*compose, cwd=tmp_path, env={"HOME": "/"})
    shown = json.loads(told)["services"]["service"]["environment"]
    # What it prints can be read again, so its dollars are doubled.
    assert {name: value.replace("$$", "$") for name, value in shown.items()} == values


def test_the_schema_finds_what_is_wrong_with_an_environment(project: Project) -> None:
    command = (project.path / ".venv/bin" / project.path.name, "config", "--format", "json-schema")
    schema = json.loads(project.run(*command))
    jsonschema.Draft202012Validator.check_schema(schema)
    validate = jsonschema.Draft202012Validator(schema).is_valid
    assert validate({"APP_LOG_LEVEL": "debug", "PATH": "/bin"})
    assert not validate({"APP_LOG_LEVL": "debug"})
    assert not validate({"APP_HTTP_PORT": 8000})
    assert not validate({"APP_GREETING_TOKEN": "a secret"})
