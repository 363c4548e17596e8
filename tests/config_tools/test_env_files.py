"""Contract, section 8: env files with bare values, which all tools read alike."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from kit.engine import Engine, unique_name
from kit.followers import BARE, FIRST, SECOND, STAYS, Instance, hangup, shows
from kit.formats import Maker, Values, formatted, only_free, thoroughly
from kit.project import Project
from kit.readers import as_docker_reads, direnv, environment_d, run
from kit.tools import tool

pytestmark = pytest.mark.slow


@thoroughly(20)
def test_bare_values_mean_the_same_to_direnv_and_systemd(make: Maker, tmp_path: Path, values: Values) -> None:
    made = make("dotenv", values)
    folder = tmp_path / "dotenv"
    folder.mkdir(exist_ok=True)
    (folder / ".envrc").write_text("dotenv\n")
    (folder / ".env").write_text(made.file)
    env, said = direnv(folder)
    assert only_free(env) == made.carried, said
    assert environment_d(made.file, tmp_path) == {
        name: value for name, value in made.carried.items() if value
    }


@thoroughly(10)
def test_bare_values_mean_the_same_to_compose(make: Maker, tmp_path: Path, values: Values) -> None:
    made = make("dotenv", values)
    (tmp_path / "compose.yaml").write_text("services: {free: {image: none, env_file: free.env}}\n")
    (tmp_path / "free.env").write_text(made.file)
    compose = (tool("docker compose"), "compose", "config", "--format", "json")
    told = run(*compose, cwd=tmp_path, env={"HOME": str(tmp_path)})
    assert (json.loads(told)["services"]["free"].get("environment") or {}) == made.carried


@pytest.fixture
def empty_image(engine: Engine, tmp_path: Path) -> str:
    """An image with nothing in it."""
    name, archive = unique_name(), tmp_path / "empty.tar"
    archive.write_bytes(bytes(10240))
    engine.images.append(name)
    engine.do("import", archive, name)
    return name


@thoroughly(8)
def test_bare_values_mean_the_same_to_docker(
    make: Maker, engine: Engine, empty_image: str, tmp_path: Path, values: Values
) -> None:
    made = make("dotenv", values)
    file = tmp_path / "free.env"
    file.write_text(made.file)
    name = engine.do("create", f"--env-file={file}", empty_image, "none")
    try:
        told = json.loads(engine.do("inspect", "--format={{json .Config.Env}}", name))
    finally:
        engine.do("rm", name)
    assert only_free(dict(pair.split("=", 1) for pair in told or [])) == made.carried


@thoroughly(100)
def test_a_bare_value_is_refused_for_a_reason_that_it_has(make: Maker, values: Values) -> None:
    made = make("dotenv", values)
    for name, reason in made.refused.items():
        value = values[name]
        assert not value.isprintable() or set(value) & set("\"'\\$`# "), (value, reason)


def test_the_service_follows_an_env_file(project: Project, instance: Instance, tmp_path: Path) -> None:
    folder = formatted(project, "dotenv", tmp_path / "dotenv", "--current", **(FIRST | BARE))
    shows(instance.start(as_docker_reads(folder / ".env")), FIRST | BARE)
    (folder / ".envrc").write_text("dotenv\n")
    shows(instance.start({k: v for k, v in direnv(folder)[0].items() if k in FIRST}), FIRST | BARE)


@thoroughly(20)
def test_envsubst_fills_in_what_bare_values_can_be(make: Maker, tmp_path: Path, values: Values) -> None:
    tool("envsubst")
    made = make("envsubst", {})
    for name, content in made.files.items():
        (tmp_path / name).write_text(content)
    bare = make("dotenv", values)
    script: tuple[str | Path, ...] = ("sh", tmp_path / "free.env.sh")
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    done = subprocess.run(script, env=env | bare.carried, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert dict(line.split("=", 1) for line in done.stdout.splitlines()) == bare.carried
    special = {name for name, value in values.items() if re.search("[\"'\\\\$`#\0- \x7f]", value)}
    done = subprocess.run(script, env={**env, **values}, capture_output=True, text=True, timeout=60)
    assert (done.returncode != 0) == bool(special), done.stderr
    refused = {line.partition(":")[0] for line in done.stderr.splitlines()}
    assert special <= refused <= bare.refused.keys()
    assert not (special and done.stdout)


def test_the_service_follows_envsubst(project: Project, instance: Instance, tmp_path: Path) -> None:
    tool("envsubst")
    folder = formatted(project, "envsubst", tmp_path / "envsubst")

    def change(values: Values) -> None:
        instance.file.write_text(run("sh", folder / f"{project.path.name}.env.sh", env={**values, **BARE}))

    change(FIRST)
    service = instance.start(as_docker_reads(instance.file))
    shows(service, FIRST | BARE)
    change(SECOND)
    hangup(service, STAYS)
    shows(service, FIRST | BARE)
    shows(instance.start(as_docker_reads(instance.file)), SECOND | BARE)
