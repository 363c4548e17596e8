"""How a service with PostgreSQL is deployed: its migration is a step of its own, on each platform."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from kit.project import Project, Renders
from kit.service import clean_environment
from kit.tools import tool

Object = dict[str, Any]


def get(renders: Renders, target: str) -> Project:
    return renders.get(deploy_to=target, database="postgresql")


@pytest.fixture(scope="module")
def overlay(renders: Renders) -> list[Object]:
    project = get(renders, "kubernetes")
    folder = project.path / "deploy/kubernetes/overlays/example"
    return list(yaml.safe_load_all(project.run(tool("kubectl"), "kustomize", folder)))


def pod(overlay: list[Object], kind: str) -> tuple[Object, Object]:
    """Return what a workload's pods are made of, and their container."""
    (found,) = [each for each in overlay if each["kind"] == kind]
    spec = found["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def test_the_job_is_what_kubernetes_takes(overlay: list[Object]) -> None:
    (job,) = [each for each in overlay if each["kind"] == "Job"]
    kubernetes_validate.validate(job, "1.34", strict=True)
    labels = job["spec"]["template"].get("metadata", {}).get("labels", {})
    (service,) = [each for each in overlay if each["kind"] == "Service"]
    # Otherwise the pod of the job would be sent requests.
    assert not service["spec"]["selector"].items() <= labels.items()


def test_the_job_runs_what_the_service_is(overlay: list[Object]) -> None:
    (job, migrate), (deployment, service) = pod(overlay, "Job"), pod(overlay, "Deployment")
    assert migrate["args"] == ["migrate"]
    for same in ("image", "envFrom", "securityContext", "resources"):
        assert migrate[same] == service[same], same
    assert job["securityContext"] == deployment["securityContext"]
    secret = {volume["name"]: volume for volume in deployment["volumes"]}["secrets"]["secret"]
    assert job["volumes"][0]["secret"]["secretName"] == secret["secretName"]
    assert migrate["envFrom"][0]["configMapRef"]["name"].startswith("my-service-")


def test_the_stack_has_a_job_with_the_same_image_and_secrets(renders: Renders) -> None:
    folder = get(renders, "swarm").path / "deploy/swarm"
    stack, cluster = (yaml.safe_load((folder / name).read_text()) for name in ("stack.yaml", "cluster.yaml"))
    migrate, service = cluster["services"]["migrate"], cluster["services"]["service"]
    assert stack["services"]["migrate"]["deploy"]["mode"] == "replicated-job"
    assert stack["services"]["migrate"]["command"] == ["migrate"]
    assert migrate["image"] == service["image"]
    for same in ("environment", "secrets"):
        assert migrate[same] == service[same], same
    assert "APP_DB_HOST" in migrate["environment"]
    assert {secret["source"] for secret in service["secrets"]} == set(cluster["secrets"])


def test_docker_takes_the_stack(renders: Renders) -> None:
    folder = get(renders, "swarm").path / "deploy/swarm"
    command = (tool("docker"), "stack", "config", "-c", folder / "stack.yaml", "-c", folder / "cluster.yaml")
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    merged = yaml.safe_load(done.stdout)["services"]["migrate"]
    assert merged["deploy"]["mode"] == "replicated-job"
    assert merged["environment"]["APP_DB_STATEMENT_TIMEOUT"] == "1200"


def test_systemd_takes_the_migration_which_is_as_closed_as_the_service(
    renders: Renders, tmp_path: Path
) -> None:
    units = get(renders, "systemd").path / "deploy/systemd"
    program = tmp_path / "opt" / "my-service"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    folder = tmp_path / "units"
    drop_in = folder / "my-service@migrate.service.d" / "migrate.conf"
    drop_in.parent.mkdir(parents=True)
    for file, name in ((folder / "my-service@.service", "my-service@.service"), (drop_in, drop_in.name)):
        file.write_text(
            (units / name).read_text().replace("/opt/my-service/current/bin/my-service", str(program))
        )
    instance = folder / "my-service@migrate.service"
    instance.symlink_to("my-service@.service")

    def analyze(verb: str, *options: str) -> tuple[int, bool, str]:
        command = (str(tool("systemd-analyze")), verb, "--no-pager", *options, str(instance))
        env = clean_environment(SYSTEMD_UNIT_PATH=f"{folder}:", SYSTEMD_COLORS="0")
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        return done.returncode, instance.name in done.stderr, done.stdout + done.stderr

    for asked in (("verify", "--man=no"), ("security", "--offline=true", "--threshold=15")):
        assert (found := analyze(*asked))[:2] == (0, False), found[2]
    text = drop_in.read_text()
    # It takes no line of the sandbox back, and the ports of an instance would be no numbers.
    assert {line.partition("=")[0] for line in text.splitlines() if line[0] not in "#["} == {
        *("Type", "Restart", "WatchdogSec", "TimeoutStartSec", "ExecStart", "Environment")
    }
    assert "APP_HTTP_PORT=0 APP_ADMIN_PORT=0" in text
    # The test of this test: only a oneshot may have two commands, and without a reset these are two.
    drop_in.write_text(text.replace("Type=oneshot", "Type=simple").replace("ExecStart=\n", ""))
    assert analyze("verify", "--man=no")[:2] == (1, True)


def test_compose_migrates_before_the_service_starts(renders: Renders, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(get(renders, "kubernetes").path, folder)
    tool("docker compose")
    command = ("docker", "compose", "--project-directory", folder, "config", "--format", "json")
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert services["my-service"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    migrate, service = services["migrate"], services["my-service"]
    own = {"command", "depends_on", "ports"}
    assert {name for name in service if migrate.get(name) != service[name]} <= own
    assert not migrate.get("ports")
    assert services["postgres"]["healthcheck"]["test"]
