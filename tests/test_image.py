"""Contract, section 10: the image: its layers, its manners as a container, and what it gives away."""

import http.client
import json
import os
import re
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.engine import Engine, unique_name
from kit.project import ROOT, Project, Renders
from kit.service import ask
from kit.tools import tool

pytestmark = pytest.mark.slow

MIB = 2**20
# 10,000 requests from inside a container, to the host that is its argument.
CLIENTS = ROOT / "tests" / "apps" / "clients.py"
# No capability, nothing to write to, a user nobody has heard of, next to no memory.
TIGHT = (
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--user=12345:0",
    "--memory=64m",
    "--memory-swap=64m",
)


def changed(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def steps(said: str) -> dict[str, bool]:
    """Read from a build's log which of our own steps there were, and whether each came from the cache."""
    names = dict(
        re.findall(r"^(#\d+) (\[(?:dependencies|application|stage)\S* .*)$", said, flags=re.MULTILINE)
    )
    cached = set(re.findall(r"^(#\d+) CACHED$", said, flags=re.MULTILINE))
    return {name: number in cached for number, name in names.items()}


def without_others(build: Callable[[], tuple[str, set[str]]]) -> str:
    """Return the image of a *build* that had to repeat no step.

    Builds beside it can cost it what the engine had kept (moby/buildkit#2039), once; what cannot be kept is
    repeated each time.
    """
    for _ in range(3):
        tag, repeated = build()
        if not repeated:
            return tag
    pytest.fail(f"three builds have repeated steps: {repeated}")


@pytest.fixture(scope="module")
def project(engine: Engine, renders: Renders) -> Project:
    """The default service as people have it: a repository with a lock."""
    return renders.as_people_do()


@pytest.fixture(scope="module")
def image(engine: Engine, project: Project) -> str:
    """The default service's image, built as its workflow builds it."""
    return engine.build(
        project.path,
        "--build-arg=VERSION=1.2.3",
        "--build-arg=REVISION=0123abc",
        "--build-arg=BUILD_TIME=2026-01-02T03:04:05Z",
    )[0]


def base_of(project: Project) -> str:
    found = re.search(
        r"^FROM (\S+) AS python$", (project.path / "Dockerfile").read_text(), flags=re.MULTILINE
    )
    assert found
    return found[1]


def test_a_build_repeats_no_work_and_gives_the_same_again(
    engine: Engine, project: Project, tmp_path: Path, show: Callable[[str], None]
) -> None:
    work = shutil.copytree(project.path, tmp_path / "work", symlinks=True)
    # All that this engine builds meanwhile of the same files would get mixed up with it in the cache.
    changed(work / "Dockerfile", "rm -f /app/.lock", f"mv /app/.lock /app/{uuid.uuid4().hex}")
    elsewhere = shutil.copytree(work, tmp_path / "elsewhere", symlinks=True)
    began = time.monotonic()
    cold, _ = engine.build(work, "--no-cache")
    show(f"cold build: {time.monotonic() - began:.1f} s")

    def same() -> tuple[str, set[str]]:
        tag, said = engine.build(work)
        return tag, {step for step, cached in steps(said).items() if not cached}

    assert engine.inspect(without_others(same))["Id"] == engine.inspect(cold)["Id"]

    sources = work / "src" / project.package / "domain.py"
    text = sources.read_text()

    def new() -> tuple[str, set[str]]:
        sources.write_text(f"{text}# {uuid.uuid4().hex}\n")
        tag, said = engine.build(work)
        repeated = {step for step, cached in steps(said).items() if not cached}
        assert any(step.startswith("[application") for step in repeated)
        return tag, {step for step in repeated if step.startswith("[dependencies")}

    new_image = without_others(new)
    base = len(engine.layers(base_of(project)))
    before, after = engine.layers(cold)[base:], engine.layers(new_image)[base:]
    assert before[0] == after[0], "the dependencies' layer was made anew"
    assert before[1] != after[1], "the application's layer was not made anew"

    again, _ = engine.build(elsewhere, "--no-cache")
    for one, other in zip(engine.unpack(cold, tmp_path), engine.unpack(again, tmp_path), strict=True):
        assert one.facts() == other.facts()


def test_the_image_holds_what_runs_and_nothing_else(
    engine: Engine, project: Project, image: str, tmp_path: Path, show: Callable[[str], None]
) -> None:
    own = engine.unpack(image, tmp_path)[len(engine.layers(base_of(project))) :]
    dependencies, application, smoke_test = own
    assert not smoke_test.members
    package = f"/site-packages/{project.package}/"
    assert not [name for name in dependencies.members if package in f"/{name}"]
    assert [name for name in application.members if f"/{name}".endswith(f"{package}__main__.py")]
    for layer in own:
        sources = {name for name in layer.members if name.endswith(".py") and "/site-packages/" in name}
        compiled = {name for name in layer.members if name.endswith(".pyc")}
        assert len(sources) == len(compiled), "not all is byte-compiled"
        for name, member in layer.members.items():
            assert name == "app" or name.startswith("app/"), name
            assert (member.uid, member.gid) == (0, 0), name
            assert member.issym() or not member.mode & 0o022, f"{name} may be written to"
            parts = Path(name).parts
            assert not {".git", "tests", "pip", "uv"} & set(parts), name
            assert not name.endswith(("pyproject.toml", "uv.lock", "Dockerfile", ".lock")), name
    over = engine.inspect(image)["Size"] - engine.inspect(base_of(project))["Size"]
    show(f"{over / MIB:.1f} MiB over its base image")
    assert over <= 35 * MIB


@pytest.fixture
def build_image(engine: Engine, project: Project, tmp_path: Path) -> str:
    """The base image with a compiler's `strip`, as full Python images have it: this machine's."""
    folder = tmp_path / "build-image"
    strip = tool("strip")
    libraries = re.findall(
        r"=> (/\S*lib(?:bfd|opcodes|sframe)\S*)", subprocess.check_output(("ldd", strip), text=True)
    )
    for source, target in ((strip, "bin"), *((library, "lib") for library in libraries)):
        (folder / target).mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / target)
    (folder / "Dockerfile").write_text(f"FROM {base_of(project)}\nCOPY bin /usr/bin/\nCOPY lib /usr/lib/\n")
    return engine.build(folder)[0]


def test_a_build_image_with_tools_gives_a_smaller_one(
    engine: Engine, renders: Renders, build_image: str, show: Callable[[str], None]
) -> None:
    project = renders.as_people_do(web_framework="fastapi")
    image, _ = engine.build(project.path, f"--build-arg=BUILD_IMAGE={build_image}")
    over = engine.inspect(image)["Size"] - engine.inspect(base_of(project))["Size"]
    show(f"FastAPI, stripped: {over / MIB:.1f} MiB over its base image")
    assert over <= 35 * MIB
    with engine.container(image) as container:
        engine.ready(container)


def test_it_needs_no_privilege_and_little_memory(
    engine: Engine, image: str, show: Callable[[str], None]
) -> None:
    network = engine.do("network", "create", "--internal", unique_name())
    try:
        with engine.container(image, *TIGHT, f"--network={network}", "--network-alias=service") as container:
            engine.ready(container)
            client = (f"--network={network}", "--rm", "--entrypoint=/app/bin/python", image)
            assert engine.do("run", *client, "-c", CLIENTS.read_text(), "service") == "[200]"
            engine.wait_for(
                container,
                lambda: engine.inspect(container)["State"]["Health"]["Status"] == "healthy",
                "healthy",
            )
            used = engine.do("stats", "--no-stream", "--format={{.MemUsage}}", container)
            show(f"memory in use after 10,000 requests: {used}")
            assert (
                len([line for line in engine.said(container, "request") if "guest-" in line["path"]])
                == 10_000
            )
            command = engine.do(
                "exec", container, "/app/bin/python", "-c", "print(open('/proc/1/cmdline').read())"
            )
            assert "/app/bin/" in command.split("\0")[1], command
            assert not engine.inspect(container)["State"]["OOMKilled"]
    finally:
        engine.do("network", "rm", network)


def test_docker_stop_lets_a_request_of_four_seconds_end(
    engine: Engine, image: str, show: Callable[[str], None]
) -> None:
    with engine.container(image, "--publish=127.0.0.1::8000") as container:
        engine.ready(container)
        body = b'{"name": "Ada"}'
        connection = http.client.HTTPConnection("127.0.0.1", engine.port(container, 8000), timeout=20)
        connection.putrequest("POST", "/greetings")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:5])
        began = time.time()
        stop = threading.Thread(target=engine.do, args=("stop", container))
        stop.start()
        engine.wait_for(container, lambda: engine.said(container, "draining"), "SIGTERM is seen")
        time.sleep(4 - (time.time() - began))
        assert stop.is_alive(), engine.do("logs", container)
        connection.send(body[5:])
        answer = connection.getresponse()
        assert (answer.status, b"Ada" in answer.read()) == (200, True)
        stop.join()
        took = time.time() - began
        show(f"docker stop took {took:.1f} s")
        assert engine.inspect(container)["State"]["ExitCode"] == 0
        window = (f"--since={int(began) - 1}", f"--until={int(time.time()) + 1}")
        said = engine.do("events", *window, f"--filter=container={container}", "--format={{json .}}")
        signals = [
            event["Actor"]["Attributes"]["signal"]
            for event in map(json.loads, said.splitlines())
            if event["Action"] == "kill"
        ]
        assert signals == ["15"], "Docker had to kill it"
        engine.logs(container)


def test_problems_of_configuration_are_all_in_its_log(engine: Engine, image: str) -> None:
    wrong = ("--env=APP_HTTP_PORT=http", "--env=APP_GREETING_EVENING=99", "--env=APP_GRETING=1")
    with engine.container(image, *wrong) as container:
        assert engine.call("wait", container, limit=60).stdout.strip() == "78"
        said = engine.do("logs", container)
        for name in ("APP_HTTP_PORT", "APP_GREETING_EVENING", "APP_GRETING"):
            assert name in said
        engine.logs(container)
    assert engine.call("run", "--rm", *wrong, image, "check", check=False).returncode == 78
    engine.do("run", "--rm", image, "check")
    assert "APP_GREETING_EVENING" in engine.do("run", "--rm", image, "config")


def test_it_says_what_it_was_built_from(engine: Engine, image: str) -> None:
    config = engine.inspect(image)["Config"]
    labels = {
        name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()
    }
    assert labels["version"] == "1.2.3"
    assert labels["revision"] == "0123abc"
    assert labels["created"] == "2026-01-02T03:04:05Z"
    assert config["StopSignal"] == "SIGTERM"
    assert set(config["ExposedPorts"]) == {"8000/tcp", "8001/tcp"}
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"])
    with engine.container(image, "--publish=127.0.0.1::8001") as container:
        engine.ready(container)
        version = ask(engine.port(container, 8001), "/-/version").json()
        assert version["revision"] == "0123abc"
        assert version["build_time"] == "2026-01-02T03:04:05Z"


def test_secrets_arrive_and_are_nowhere_else(engine: Engine, project: Project, tmp_path: Path) -> None:
    canaries = {name: f"canary-{name}-{uuid.uuid4().hex}" for name in ("token", "index")}
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "greeting_token").write_text(canaries["token"])
    url = f"http://team:{canaries['index']}@127.0.0.1:1/simple"
    (tmp_path / "uv.toml").write_text(f'[[index]]\nname = "spare"\nurl = "{url}"\nexplicit = true\n')
    work = shutil.copytree(project.path, tmp_path / "work", symlinks=True)
    shutil.copytree(tmp_path / "secrets", work / "secrets", dirs_exist_ok=True)
    image, said = engine.build(work, "--no-cache", "--secret", f"id=index,src={tmp_path / 'uv.toml'}")
    mounted = f"--volume={tmp_path / 'secrets'}:/run/secrets:ro"
    with engine.container(image, mounted, "--publish=127.0.0.1::8000") as container:
        engine.ready(container)
        port = engine.port(container, 8000)
        assert ask(port, "/greetings/Ada").status == 401
        token = {"Authorization": f"Bearer {canaries['token']}"}
        assert ask(port, "/greetings/Ada", headers=token).status == 200
        said += engine.do("inspect", container, image) + engine.do("logs", container)
        said += engine.do("history", "--no-trunc", image)
    for layer in engine.unpack(image, tmp_path, *(canary.encode() for canary in canaries.values())):
        assert not layer.leaks
    for canary in canaries.values():
        assert canary not in said


def test_compose_brings_it_up_and_down(engine: Engine, project: Project, tmp_path: Path) -> None:
    tool("docker compose")
    name = unique_name()
    work = shutil.copytree(project.path, tmp_path / "work", symlinks=True)
    (work / "secrets").mkdir(exist_ok=True)
    (work / "secrets" / "greeting_token").write_text("open sesame")
    slug = project.answers["project_slug"]
    bundle = os.environ.get("SSL_CERT_FILE")
    ca = f"\n      secrets: [ca]\nsecrets:\n  ca: {{file: {bundle}}}" if bundle else ""
    (work / "compose.override.yaml").write_text(
        f'services:\n  {slug}:\n    image: {name}\n    ports: !override ["127.0.0.1::8000"]\n'
        f"    build:\n      network: host{ca}\n"
    )
    engine.images.append(name)
    compose = ("compose", "--project-name", name, "--project-directory", work)
    try:
        engine.do(*compose, "up", "--build", "--detach", "--wait")
        container = engine.do(*compose, "ps", "--quiet")
        port = engine.port(container, 8000)
        assert ask(port, "/greetings/Ada").status == 401
        assert ask(port, "/greetings/Ada", headers={"Authorization": "Bearer open sesame"}).status == 200
        host = engine.inspect(container)["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert engine.orphan(container) == "gone"
        engine.do(*compose, "stop")
        assert engine.inspect(container)["State"]["ExitCode"] == 0
    finally:
        engine.do(*compose, "down", "--volumes")


def test_hadolint_has_nothing_to_say(project: Project) -> None:
    project.run(tool("hadolint"), "Dockerfile")
