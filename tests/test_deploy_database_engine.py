"""The image of a service with PostgreSQL migrates and serves, as a container and as a job of a real Swarm."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kit.engine import Engine, unique_name
from kit.postgres import Postgres, running_postgres
from kit.project import Project, Renders
from kit.service import wait_for

pytestmark = pytest.mark.slow

# As the manifests have it: no capability, nothing to write to, a user nobody has heard of.
TIGHT = (
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--user=12345:0",
    "--memory=256m",
)


@pytest.fixture(scope="module")
def project(engine: Engine, renders: Renders) -> Project:
    return renders.as_people_do(deploy_to="swarm", database="postgresql")


@pytest.fixture(scope="module")
def image(engine: Engine, project: Project) -> str:
    return engine.build(project.path)[0]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


def test_the_image_migrates_and_then_serves(
    engine: Engine, image: str, postgres: Postgres, tmp_path: Path
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o755)
    (secrets / "db_password").write_text("first")
    options = (
        *TIGHT,
        "--network=host",
        f"--volume={secrets}:/run/secrets:ro",
        f"--env=APP_DB_PORT={postgres.port}",
        f"--env=APP_DB_NAME={postgres.database('contained')}",
        "--env=APP_HTTP_PORT=0",
        "--env=APP_ADMIN_PORT=0",
    )
    migrated = engine.do("run", "--rm", *options, image, "migrate")
    assert '"event":"migrated"' in migrated
    assert postgres.sql("select version_num from alembic_version", "contained") == ["0001"]
    with engine.container(image, *options) as container:
        engine.wait_for(container, lambda: engine.said(container, "ready"), "the service")
        engine.do("stop", container)
        assert engine.inspect(container)["State"]["ExitCode"] == 0


@pytest.fixture
def swarm(engine: Engine) -> Iterator[Engine]:
    with engine.swarm():
        yield engine


def merged(one: Any, other: Any) -> Any:
    """Merge two documents as Docker does those of a stack."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return other
    return {
        **one,
        **{name: merged(one[name], value) if name in one else value for name, value in other.items()},
    }


def test_a_job_of_the_stack_migrates_again_with_another_image(
    swarm: Engine, project: Project, image: str, postgres: Postgres, tmp_path: Path
) -> None:
    stack, database = unique_name(), postgres.database("swarmed")
    folder = project.path / "deploy/swarm"
    files = [yaml.safe_load((folder / name).read_text()) for name in ("stack.yaml", "cluster.yaml")]
    job = merged(*(file["services"]["migrate"] for file in files))
    (tmp_path / "password").write_text("first")
    swarm.do("secret", "create", f"{stack}_password", tmp_path / "password")
    # PostgreSQL is on this machine's own network here.
    job |= {"networks": ["outside"], "image": image}
    job["environment"] |= {
        "APP_DB_HOST": "127.0.0.1",
        "APP_DB_PORT": str(postgres.port),
        "APP_DB_NAME": database,
    }

    def deploy() -> None:
        document = {
            "version": "3.9",
            "services": {"migrate": job},
            "networks": {"outside": {"external": True, "name": "host"}},
            "secrets": {
                secret["source"]: {"external": True, "name": f"{stack}_password"} for secret in job["secrets"]
            },
        }
        (tmp_path / "stack.yaml").write_text(yaml.safe_dump(document))
        swarm.do("stack", "deploy", "--resolve-image=never", f"--compose-file={tmp_path}/stack.yaml", stack)

    def complete() -> int:
        states = swarm.do("service", "ps", "--format={{.CurrentState}}", f"{stack}_migrate").splitlines()
        return len([state for state in states if state.startswith("Complete")])

    try:
        deploy()
        wait_for(lambda: complete() == 1, "the job", 120, every=0.5)
        assert postgres.sql("select version_num from alembic_version", database) == ["0001"]
        (tmp_path / "Dockerfile").write_text(f"FROM {image}\nENV APP_BUILD_REVISION=two\n")
        job["image"] = swarm.build(tmp_path)[0]
        deploy()
        wait_for(lambda: complete() == 2, "the job with the other image", 120, every=0.5)
    finally:
        swarm.call("stack", "rm", stack, check=False)
        # Those of a job that has ended stay, also when the stack is gone.
        label = f"--filter=label=com.docker.stack.namespace={stack}"
        ended = swarm.do("ps", "--all", "--quiet", label).split()
        swarm.call("rm", "--force", *ended, check=False)
        swarm.call("secret", "rm", f"{stack}_password", check=False)
