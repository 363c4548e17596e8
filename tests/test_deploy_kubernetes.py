"""The manifests: rendered, against the API's schemas, the config classes, a running service and its image.

There is no cluster here. `.github/workflows/kind.yml` has one.
"""

import json
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from kit.engine import Engine
from kit.project import ROOT, Project, Renders
from kit.service import Service, ask, clean_environment, wait_for
from kit.tools import tool
from packaging.version import Version

pytestmark = pytest.mark.slow

Object = dict[str, Any]

# What is no part of Kubernetes itself has its schema elsewhere.
CUSTOM = {"HTTPRoute", "PodMonitor"}
MARGIN = 2
KEEP_SECONDS = 60


@pytest.fixture(scope="module")
def project(rendered: Project) -> Project:
    return rendered


@pytest.fixture(scope="module")
def kustomize(project: Project) -> Callable[[Path], str]:
    kubectl = tool("kubectl")
    return lambda folder: project.run(kubectl, "kustomize", folder)


@pytest.fixture(scope="module")
def base(project: Project, kustomize: Callable[[Path], str]) -> list[Object]:
    return list(yaml.safe_load_all(kustomize(project.path / "deploy/kubernetes/base")))


@pytest.fixture(scope="module")
def overlay(project: Project, kustomize: Callable[[Path], str]) -> list[Object]:
    return list(yaml.safe_load_all(kustomize(project.path / "deploy/kubernetes/overlays/example")))


@pytest.fixture(scope="module")
def monitored(
    project: Project, kustomize: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory
) -> list[Object]:
    """The overlay with all that stands in it as a comment."""
    copy = tmp_path_factory.mktemp("monitored") / "kubernetes"
    shutil.copytree(project.path / "deploy/kubernetes", copy)
    file = copy / "overlays/example/kustomization.yaml"
    text, count = re.subn(r"^( +)# - ", r"\1- ", file.read_text(), flags=re.M)
    assert count > 2
    file.write_text(text)
    return list(yaml.safe_load_all(kustomize(file.parent)))


@pytest.fixture(scope="module")
def in_kind(
    project: Project, kustomize: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory
) -> list[Object]:
    """The overlay for the cluster that `.github/workflows/kind.yml` makes."""
    copy = tmp_path_factory.mktemp("kind") / "kubernetes"
    shutil.copytree(project.path / "deploy/kubernetes", copy)
    shutil.copytree(ROOT / ".github/kind", copy / "overlays/kind")
    return list(yaml.safe_load_all(kustomize(copy / "overlays/kind")))


def of_kind(objects: list[Object], kind: str) -> Object:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def container(objects: list[Object]) -> Object:
    (found,) = of_kind(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def settings(objects: list[Object]) -> dict[str, str]:
    """What the container's environment is, of the ConfigMap and its own."""
    config = of_kind(objects, "ConfigMap")
    service = container(objects)
    assert service["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
    return {**config["data"], **{each["name"]: each["value"] for each in service["env"]}}


@pytest.fixture(scope="module")
def declared(project: Project) -> dict[str, Object]:
    """What the config classes say, by the name of the setting."""
    program = project.path / ".venv/bin" / project.path.name
    return {each["name"]: each for each in json.loads(project.run(program, "config", "--format", "json"))}


def test_all_parts_fit_each_other(
    project: Project, base: list[Object], overlay: list[Object], monitored: list[Object]
) -> None:
    name = project.path.name
    kinds = {each["kind"] for each in base}
    parts = {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"}
    assert kinds == parts
    assert {each["kind"] for each in overlay} == parts | {"ConfigMap", "HTTPRoute"}
    assert {each["kind"] for each in monitored} == parts | {"ConfigMap", *CUSTOM}
    deployment = of_kind(monitored, "Deployment")["spec"]
    # The HorizontalPodAutoscaler's, and every update would set it back.
    assert "replicas" not in deployment
    assert of_kind(monitored, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": name,
    }
    labels = deployment["template"]["metadata"]["labels"]
    pod = deployment["template"]["spec"]
    budget, policy, monitor = (
        of_kind(monitored, kind)["spec"] for kind in ("PodDisruptionBudget", "NetworkPolicy", "PodMonitor")
    )
    # The pod's own init reaps what nobody waits for; the image has none.
    assert pod["shareProcessNamespace"]
    for selector in (
        deployment["selector"]["matchLabels"],
        of_kind(monitored, "Service")["spec"]["selector"],
        budget["selector"]["matchLabels"],
        policy["podSelector"]["matchLabels"],
        monitor["selector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in pod["topologySpreadConstraints"]),
    ):
        assert selector == labels
    (image,) = {each["image"] for each in pod["containers"]}
    assert image == f"ghcr.io/{project.answers['github_owner']}/{name}:0.1.0"
    ((to,),) = (rule["backendRefs"] for rule in of_kind(monitored, "HTTPRoute")["spec"]["rules"])
    (port,) = of_kind(monitored, "Service")["spec"]["ports"]
    assert to == {"name": of_kind(monitored, "Service")["metadata"]["name"], "port": port["port"]}
    named = {port["name"] for port in container(monitored)["ports"]}
    assert {each["port"] for rule in policy["ingress"] for each in rule["ports"]} == named
    # Only what monitors gets at the admin port.
    (admin,) = (rule for rule in policy["ingress"] if {"port": "admin"} in rule["ports"])
    assert (len(admin["ports"]), "namespaceSelector" in admin["from"][0]) == (1, True)


def test_the_workflows_cluster_has_the_port_that_is_asked(in_kind: list[Object]) -> None:
    (port,) = of_kind(in_kind, "Service")["spec"]["ports"]
    cluster = yaml.safe_load((ROOT / ".github/kind/cluster.yaml").read_text())
    ((mapping,),) = (node["extraPortMappings"] for node in cluster["nodes"] if "extraPortMappings" in node)
    assert port["nodePort"] == mapping["containerPort"]
    workflow = (ROOT / ".github/workflows/kind.yml").read_text()
    assert f"under_load.py {mapping['hostPort']} " in workflow
    name = of_kind(in_kind, "Deployment")["metadata"]["name"]
    script = (ROOT / ".github/kind/rolling-update").read_text()
    assert f"deployment/{name} " in script
    assert f"service={container(in_kind)['image'].rpartition(':')[0]}:" in script


def test_the_three_newest_versions_of_the_api_take_them(
    base: list[Object], monitored: list[Object], in_kind: list[Object]
) -> None:
    for version in sorted(kubernetes_validate.utils.all_versions(), key=Version)[-3:]:
        unknown = set()
        for each in base + monitored + in_kind:
            try:
                kubernetes_validate.validate(each, version, strict=True)
            except kubernetes_validate.SchemaNotFoundError:
                unknown.add(each["kind"])
        assert unknown == CUSTOM
        wrong = yaml.safe_load(yaml.safe_dump(of_kind(base, "Deployment")))
        wrong["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFileSystem"] = True
        with pytest.raises(kubernetes_validate.ValidationError, match="readOnlyRootFileSystem"):
            kubernetes_validate.validate(wrong, version, strict=True)


def test_every_name_is_one_of_the_config_classes(
    project: Project, monitored: list[Object], declared: dict[str, Object]
) -> None:
    assert settings(monitored).keys() <= declared.keys()
    folder = project.path / "deploy/kubernetes"
    texts = "".join(path.read_text() for path in folder.rglob("*.yaml"))
    # Of a Service, as an example.
    assert set(re.findall(r"\bAPP_[A-Z_]+", texts)) - {"APP_PORT"} <= declared.keys()
    files = {each["file"] for each in declared.values() if each["file"]}
    assert (mentioned := set(re.findall(r"--from-file=(\w+)", texts)))
    assert mentioned <= files
    service = container(monitored)
    ports = {port["name"]: port["containerPort"] for port in service["ports"]}
    assert ports == {
        "http": declared["APP_HTTP_PORT"]["default"],
        "admin": declared["APP_ADMIN_PORT"]["default"],
    }
    mounts = {mount["name"]: mount for mount in service["volumeMounts"]}
    assert mounts["secrets"]["mountPath"] == str(Path(next(iter(secret_paths(declared)))).parent)
    assert not [mount for mount in mounts.values() if "subPath" in mount], "it would never be rotated"


def secret_paths(declared: dict[str, Object]) -> set[str]:
    """Where each secret is looked for when nothing says so."""
    return {each["source"].removeprefix("file ") for each in declared.values() if each["file"]}


def test_nobody_is_killed_who_drains(monitored: list[Object], declared: dict[str, Object]) -> None:
    def number(name: str) -> float:
        return float(settings(monitored).get(name) or declared[name]["default"])

    pod = of_kind(monitored, "Deployment")["spec"]["template"]["spec"]
    needed = number("APP_DRAIN_DELAY") + number("APP_DRAIN_TIMEOUT") + MARGIN
    assert pod["terminationGracePeriodSeconds"] >= needed
    service = container(monitored)
    assert "lifecycle" not in service, "the delay is the service's own; a preStop hook would add to it"
    # A slow check is reported, not taken for an instance that is gone.
    assert service["readinessProbe"]["timeoutSeconds"] > number("APP_HEALTH_CHECK_TIMEOUT")
    rolling = of_kind(monitored, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 1, "maxUnavailable": 0}


@pytest.fixture
def running(project: Project, overlay: list[Object], tmp_path: Path) -> Iterator[Service]:
    """The service with the environment that the manifests give it, on free ports."""
    env = settings(overlay) | {"APP_HTTP_PORT": "0", "APP_ADMIN_PORT": "0"}
    env |= {"APP_LOG_FORMAT": "json", "APP_DRAIN_DELAY": str(KEEP_SECONDS)}
    service = Service((project.command,), tmp_path, clean_environment(**env), project.path)
    try:
        yield service.ready()
    finally:
        service.kill()


def test_every_probe_is_answered(monitored: list[Object], running: Service) -> None:
    probes = {
        name: (probe["httpGet"]["path"], probe["httpGet"]["port"])
        for name, probe in container(monitored).items()
        if name.endswith("Probe")
    }
    assert set(probes) == {"startupProbe", "livenessProbe", "readinessProbe"}
    assert {name: running.status(*at) for name, at in probes.items()} == dict.fromkeys(probes, 200)
    (endpoint,) = of_kind(monitored, "PodMonitor")["spec"]["podMetricsEndpoints"]
    metrics = running.ask(endpoint["path"], port=endpoint["port"])
    assert (metrics.status, "http_server_request_duration_seconds" in metrics.text) == (200, True)
    (port,) = of_kind(monitored, "Service")["spec"]["ports"]
    assert running.status("/greetings/Ada", port["targetPort"]) == 200

    # A pod that ends is alive, and not ready.
    running.signal(signal.SIGTERM)
    wait_for(lambda: running.status(*probes["readinessProbe"]) == 503, "the readiness probe to fail")
    assert running.status(*probes["livenessProbe"]) == 200
    assert running.status("/greetings/Ada", port["targetPort"]) == 200


def flags(pod: Object, image_user: str) -> list[str]:
    """Say in Docker's words what the pod's and its container's security contexts say; all of it, or fail."""
    (service,) = pod["containers"]
    context = dict(service["securityContext"])
    assert context.pop("allowPrivilegeEscalation") is False
    assert context.pop("readOnlyRootFilesystem") is True
    assert context.pop("capabilities") == {"drop": ["ALL"]}
    assert not context
    whole = dict(pod["securityContext"])
    # Docker's own default is the runtime's.
    assert whole.pop("seccompProfile") == {"type": "RuntimeDefault"}
    assert whole.pop("runAsNonRoot") is True
    assert not whole
    # The kubelet refuses what it can't tell to be somebody else than root.
    assert re.fullmatch(r"[1-9]\d*(:\d+)?", image_user)
    memory = service["resources"]["limits"]["memory"].removesuffix("Mi")
    made = [
        "--read-only",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        f"--memory={memory}m",
        f"--memory-swap={memory}m",
    ]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in service["volumeMounts"]:
        if "emptyDir" in volumes[mount["name"]]:
            size = volumes[mount["name"]]["emptyDir"]["sizeLimit"].removesuffix("Mi")
            made.append(f"--tmpfs={mount['mountPath']}:size={size}m")
    return made


def put(folder: Path, token: str, mode: int) -> None:
    """Put a secret there as the kubelet does: in a folder of its own, behind a link that is swapped."""
    new = folder / f"..{uuid.uuid4().hex}"
    new.mkdir(mode=0o755)
    (new / "admin_token").write_text(token)
    (new / "admin_token").chmod(mode)
    link = folder / "..data_tmp"
    link.symlink_to(new.name)
    link.replace(folder / "..data")
    if not (file := folder / "admin_token").is_symlink():
        file.symlink_to("..data/admin_token")


# OpenShift's kind of user is one that nobody has heard of, in the group of root.
@pytest.mark.parametrize("user", [None, "1000700000:0"], ids=["the image's user", "any user"])
def test_the_image_runs_in_the_pods_security_context(
    engine: Engine, renders: Renders, overlay: list[Object], tmp_path: Path, user: str | None
) -> None:
    image, _ = engine.build(renders.as_people_do().path)
    pod = of_kind(overlay, "Deployment")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    (secret,) = (mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "secrets")
    mode = volumes["secrets"]["secret"]["defaultMode"]
    folder = tmp_path / "secrets"
    folder.mkdir()
    put(folder, "the first", mode)
    # Shorter than in the cluster, and a look each second.
    env = settings(overlay) | {"APP_DRAIN_DELAY": "0.5", "APP_SECRETS_REFRESH": "1"}
    options = [
        *flags(pod, engine.inspect(image)["Config"]["User"]),
        *(f"--env={name}={value}" for name, value in env.items()),
        *([f"--user={user}"] if user else []),
        f"--volume={folder}:{secret['mountPath']}:ro",
    ]
    published = [f"--publish=127.0.0.1::{port['containerPort']}" for port in pod["containers"][0]["ports"]]
    with engine.container(image, *options, *published) as identity:
        engine.ready(identity)
        http, admin = (engine.port(identity, port["containerPort"]) for port in pod["containers"][0]["ports"])
        assert ask(http, "/greetings/Ada").status == 200
        assert ask(admin, "/-/ready").status == 200

        def guarded(token: str) -> int:
            return ask(admin, "/-/requests", headers={"Authorization": f"Bearer {token}"}).status

        assert (guarded("the first"), guarded("the second")) == (200, 403)
        put(folder, "the second", mode)
        engine.wait_for(identity, lambda: guarded("the second") == 200, "the new secret, without a restart")
        assert guarded("the first") == 403
        engine.do("stop", f"--time={pod['terminationGracePeriodSeconds']}", identity)
        state = engine.inspect(identity)["State"]
        assert (state["ExitCode"], state["OOMKilled"]) == (0, False)


def test_checkov_finds_nothing_that_has_no_reason(
    project: Project, uv: Path, kustomize: Callable[[Path], str], tmp_path: Path
) -> None:
    folder = project.path / "deploy/kubernetes"
    config = (folder / "checkov.yaml").read_text()
    accepted = re.findall(r"^( *# .+\n)? +- (CKV\w+)$", config, flags=re.M)
    assert len(accepted) == len(yaml.safe_load(config)["skip-check"])
    assert not [check for reason, check in accepted if not reason.strip(" #\n")]
    rendered = kustomize(folder / "overlays/example")
    (tmp_path / "rendered.yaml").write_text(rendered)
    (tmp_path / "weak.yaml").write_text(rendered.replace("readOnlyRootFilesystem: true", ""))
    command = re.search(r'uvx ("checkov[^"]+")', config)
    assert command
    arguments = ("--config-file", folder / "checkov.yaml", "--output=json")
    files = (tmp_path / "rendered.yaml", tmp_path / "weak.yaml")
    done = subprocess.run(
        (uv, "tool", "run", command[1].strip('"'), *arguments, "--file", *files),
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    try:
        said = json.loads(done.stdout)
    except ValueError:
        pytest.fail(f"checkov: exit {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
    assert said["summary"]["passed"] > 80
    failed = {(Path(each["file_path"]).name, each["check_id"]) for each in said["results"]["failed_checks"]}
    # That of the copy shows that it would say so.
    assert failed == {("weak.yaml", "CKV_K8S_22")}
