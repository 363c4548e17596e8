"""What pages of docs/recipes add to the deployments: taken by each platform's tools, and run."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from kit.balancers import BALANCERS, FRONT, SLOTS, places
from kit.project import Project, Renders
from kit.recipes import apply, read
from kit.service import ask, clean_environment
from kit.systemd import read_unit
from kit.tools import tool
from kit.world import World
from packaging.version import Version

pytestmark = pytest.mark.slow

Object = dict[str, Any]
Deployed = Callable[[str, str], Project]


@pytest.fixture
def deployed(renders: Renders, tmp_path: Path) -> Deployed:
    """A service for a platform, without an environment, with the files to deploy that a page says."""

    def make(target: str, page: str) -> Project:
        project = renders.get(deploy_to=target)
        copy = replace(project, path=Path(shutil.copytree(project.path, tmp_path / target)))
        recipe = read(page)
        apply(copy, replace(recipe, files=deploy(recipe.files), changes=deploy(recipe.changes)))
        return copy

    return make


def deploy(texts: Mapping[str, str]) -> dict[str, str]:
    return {path: text for path, text in texts.items() if path.startswith("deploy/")}


def kubernetes(project: Project) -> list[Object]:
    """Return what the overlay comes to, if the three newest versions of the API take it."""
    folder = project.path / "deploy/kubernetes/overlays/example"
    objects = list(yaml.safe_load_all(project.run(tool("kubectl"), "kustomize", folder)))
    for version in sorted(kubernetes_validate.utils.all_versions(), key=Version)[-3:]:
        for each in objects:
            if each["kind"] != "HTTPRoute":
                kubernetes_validate.validate(each, version, strict=True)
    return objects


def named(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def test_a_second_deployment_runs_the_worker_and_gets_no_requests(deployed: Deployed) -> None:
    objects = kubernetes(deployed("kubernetes", "worker-process"))
    service, worker = (
        named(objects, "Deployment", name)["spec"] for name in ("my-service", "my-service-jobs")
    )
    pods = [each["template"]["spec"]["containers"][0] for each in (service, worker)]
    differ = {key for key in pods[1] if pods[0].get(key) != pods[1][key]}
    assert differ == {"args", "ports"}
    assert pods[1]["args"] == ["worker", "jobs"]
    assert [port["name"] for port in pods[1]["ports"]] == ["admin"]
    labels = worker["template"]["metadata"]["labels"]
    assert worker["selector"]["matchLabels"] == labels != service["selector"]["matchLabels"]
    (only,) = (each for each in objects if each["kind"] == "Service")
    assert not only["spec"]["selector"].items() <= labels.items()
    (scaler,) = (each for each in objects if each["kind"] == "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == "my-service"
    budget, policy = (
        named(objects, kind, "my-service-jobs")["spec"] for kind in ("PodDisruptionBudget", "NetworkPolicy")
    )
    assert budget["selector"]["matchLabels"] == policy["podSelector"]["matchLabels"] == labels
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": "admin"}]


def test_a_cron_job_runs_the_command_as_the_service_runs(deployed: Deployed) -> None:
    objects = kubernetes(deployed("kubernetes", "scheduled-job"))
    (job,) = (each["spec"] for each in objects if each["kind"] == "CronJob")
    pod = job["jobTemplate"]["spec"]["template"]
    (own,) = pod["spec"]["containers"]
    service = named(objects, "Deployment", "my-service")["spec"]["template"]["spec"]
    for same in ("image", "envFrom", "securityContext", "resources"):
        assert own[same] == service["containers"][0][same], same
    assert pod["spec"]["securityContext"] == service["securityContext"]
    assert pod["spec"]["volumes"][0] == service["volumes"][0]
    (only,) = (each for each in objects if each["kind"] == "Service")
    assert not only["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert own["args"] == ["digest"]


def test_a_second_service_of_the_stack_is_as_closed_as_the_first(deployed: Deployed) -> None:
    folder = deployed("swarm", "worker-process").path / "deploy/swarm"
    files = [f"--compose-file={folder / name}" for name in ("stack.yaml", "cluster.yaml", "jobs.yaml")]
    command: list[str | Path] = [tool("docker"), "stack", "config", *files]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    service, worker = services["service"], services["jobs"]
    assert worker["command"] == ["worker", "jobs"]
    same = ("image", "secrets", "init", "networks", "read_only", "cap_drop", "volumes", "healthcheck")
    for each in same:
        assert worker[each] == service[each], each
    # HAProxy asks DNS for the tasks of `service` alone.
    assert "tasks.service " in (folder / "haproxy.cfg").read_text().replace(":", " ")
    assert "ports" not in worker


def unit(project: Project, folder: Path, instance: str, drop_in: str) -> Path:
    """Put the unit, with a drop-in for one instance, where systemd's tools find it; return the instance."""
    units = project.path / "deploy/systemd"
    program = folder / "opt/my-service/current/bin/my-service"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for file in units.glob("*.[st][ei][rm]*"):
        text = file.read_text().replace("/opt/my-service", f"{folder}/opt/my-service")
        (folder / file.name).write_text(text)
    (dropped := folder / f"my-service@{instance}.service.d").mkdir()
    text = (units / drop_in).read_text().replace("/opt/my-service", f"{folder}/opt/my-service")
    (dropped / drop_in).write_text(text)
    (found := folder / f"my-service@{instance}.service").symlink_to("my-service@.service")
    return found


def verify(*units: Path) -> str:
    """Return what systemd has to say about our units; empty if it takes them."""
    done = subprocess.run(
        (tool("systemd-analyze"), "verify", "--no-pager", "--man=no", *units),
        env=clean_environment(SYSTEMD_UNIT_PATH=f"{units[0].parent}:", SYSTEMD_COLORS="0"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "my-service" in line]
    return "\n".join(ours) or ("" if done.returncode == 0 else done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("page", "instance", "name"), [("worker-process", "8100", "jobs"), ("scheduled-job", "digest", "digest")]
)
def test_a_drop_in_makes_an_instance_of_the_unit_something_else(
    deployed: Deployed, tmp_path: Path, page: str, instance: str, name: str
) -> None:
    found = unit(deployed("systemd", page), tmp_path, instance, f"{name}.conf")
    timers = [*tmp_path.glob("*.timer")]
    assert len(timers) == (page == "scheduled-job")
    assert verify(found, *timers) == ""
    drop_in = tmp_path / f"{found.name}.d" / f"{name}.conf"
    text = drop_in.read_text()
    # The line that takes back the unit's own command is needed: a service has only one.
    drop_in.write_text(text.replace("ExecStart=\n", "").replace("Type=oneshot\n", ""))
    assert "more than one ExecStart=" in verify(found)
    drop_in.write_text(text.replace("Description", "Descripton"))
    assert "Descripton" in verify(found)
    for timer in timers:
        (at,) = read_unit(timer.read_text())["OnCalendar"]
        said = subprocess.run(
            (tool("systemd-analyze"), "calendar", at), check=True, capture_output=True, text=True
        )
        assert "Next elapse" in said.stdout


@pytest.fixture
def limited(deployed: Deployed) -> Project:
    return deployed("systemd", "rate-limits")


def test_a_client_that_asks_too_often_gets_429_until_it_has_waited(
    limited: Project, world: World, tmp_path: Path
) -> None:
    ports = places()
    at = {"http": ports[SLOTS[0]], "admin": ports[f"1{SLOTS[0]}"]}
    service, front = world.start(None, ports=at).ready(), ports[FRONT]
    (tmp_path / "haproxy").mkdir()
    with BALANCERS["haproxy"].running(limited, tmp_path / "haproxy", ports, "/greetings/Ada"):
        answers = [ask(front, "/greetings/Ada") for _ in range(150)]
        assert {answer.status for answer in answers} == {200, 429}
        statuses = [answer.status for answer in answers]
        assert statuses == sorted(statuses)
        # Those that asked whether it is up count, too.
        assert 90 <= statuses.count(200) <= 100
        refused = answers[-1]
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json() == {"status": 429, "title": "Too Many Requests"}
        assert refused.headers["x-request-id"]
        # Others have nothing of it.
        assert ask(front, "/greetings/Ada", source="127.0.0.2").status == 200
        time.sleep(int(refused.headers["retry-after"]))
        assert ask(front, "/greetings", method="POST", body=json.dumps({"name": "Ada"})).status == 200
    assert not [line for line in service.lines("request") if line["status"] == 429]


def test_haproxy_takes_the_limit_in_the_stack_too(deployed: Deployed) -> None:
    file = deployed("swarm", "rate-limits").path / "deploy/swarm/haproxy.cfg"
    command = (tool("haproxy"), "-c", "-f", file)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "status 429" in file.read_text()
