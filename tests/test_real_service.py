"""A service with required settings, a required secret and a database, through all that a team runs on it.

Nothing of the template's is edited for it: what CI must know stands in files of the team's.
"""

import json
import os
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.engine import Engine, unique_name
from kit.postgres import running_postgres
from kit.project import ROOT, Project, Renders, git
from kit.tools import tool
from kit.updates import commit, replace
from kit.workflows import docker_here, run, steps

pytestmark = pytest.mark.slow

PRICES = ROOT / "tests" / "apps" / "prices"
OVERLAY = "deploy/kubernetes/overlays/example/kustomization.yaml"
# Something else that its tests need, in an image that is here anyway; it is up a moment after its start.
COMPOSE = """name: PROJECT
services:
  prices-of-others:
    image: IMAGE
    network_mode: none
    command: [sh, -c, "sleep 1; touch /tmp/up; sleep 600"]
    healthcheck: {test: [CMD, test, -e, /tmp/up], interval: 1s, retries: 60}
    stop_grace_period: 0s
"""


@pytest.fixture(scope="module")
def database() -> Iterator[int]:
    with running_postgres() as server:
        server.password("for tests alone")
        server.database("app")
        yield server.port


@pytest.fixture(scope="module")
def service(renders: Renders, tmp_path_factory: pytest.TempPathFactory, uv: Path, database: int) -> Project:
    """A service that asks PostgreSQL for prices, as its team has made it of a fresh render."""
    project = renders.own(tmp_path_factory.mktemp("service"), {}).commit()
    for name in ("test_app.py", "test_domain.py"):
        (project.path / "tests" / name).unlink()
    shutil.copytree(PRICES / "src", project.path / "src" / project.package, dirs_exist_ok=True)
    shutil.copytree(PRICES / "tests", project.path / "tests", dirs_exist_ok=True)
    replace(project.path / "tests" / "environment.py", "PORT", str(database))
    project.run(uv, "add", "--quiet", "psycopg[binary]")
    example = project.run(project.python, "-m", project.package, "config", "--format", "dotenv")
    (project.path / ".env.example").write_text(example)
    replace(
        project.path / OVERLAY,
        "      - APP_LOG_LEVEL=info\n",
        "      - APP_DB_URL=postgresql://app@db/prices\n      - APP_PRICES_CURRENCY=EUR\n",
    )
    commit(project.path, "Tell prices")
    return project


def test_the_team_edits_nothing_of_the_templates(service: Project) -> None:
    owned = tomllib.loads((service.path / "pyproject.toml").read_text())["tool"]["cruft"]["skip"]
    edited = git(service.path, "diff", "--name-only", "--diff-filter=a", "HEAD~1").splitlines()
    assert {*edited} - {*owned} == {"pyproject.toml"}
    # There, a line below `# Yours` alone.
    changes = git(service.path, "diff", "--unified=0", "HEAD~1", "pyproject.toml").splitlines()[4:]
    assert [line[:14] for line in changes if not line.startswith("@")] == ['+    "psycopg[']


def test_every_check_passes_and_the_overlay_is_complete(service: Project) -> None:
    for job in ("lint", "test"):
        for step in steps(service.path, "ci", job):
            if "pipx" not in step.run:
                run(service, step)
    rendered = service.run(tool("kubectl"), "kustomize", Path(OVERLAY).parent)
    assert "APP_PRICES_CURRENCY: EUR" in rendered
    # The settings of this cluster are all that the service requires.
    config = json.loads(service.run(service.python, "-m", service.package, "config", "--format", "json"))
    required = [each["name"] for each in config if each["required"] and not each.get("file")]
    assert len(required) == 2
    assert not [name for name in required if f"{name}: " not in rendered]


def test_its_image_is_tried_with_what_the_team_says(
    engine: Engine, service: Project, tmp_path: Path, uv: Path
) -> None:
    tool("docker compose")
    dockerfile = (service.path / "Dockerfile").read_text()
    image = next(line.split()[1] for line in dockerfile.splitlines() if line.endswith(" AS python"))
    needed = COMPOSE.replace("PROJECT", unique_name()).replace("IMAGE", image)
    (service.path / "compose.test.yaml").write_text(needed)
    compose = ("compose", "--file", service.path / "compose.test.yaml")
    docker = docker_here(engine, tmp_path)
    try:
        for step in steps(service.path, "ci", "image"):
            if "pipx" not in step.run:
                said = run(service, step, docker, GITHUB_SHA="0123abc")
        assert " passed" in said
        assert "(healthy)" in engine.do(*compose, "ps")
        # Without the settings it does not start, and says why.
        (service.path / "tests" / "environment.py").write_text(
            "ENVIRONMENT = {}\nSECRETS = {}\nPOST = None\n"
        )
        path = os.pathsep.join((str(docker), str(uv.parent), os.environ["PATH"]))
        with pytest.raises(pytest.fail.Exception, match="APP_PRICES_CURRENCY"):
            service.run("make", "test-image", "IMAGE=candidate", "COMPOSE_TEST=", PATH=path)
    finally:
        git(service.path, "checkout", "--quiet", ".")
        engine.call(*compose, "down", "--volumes", check=False)
