"""The stack on a real Swarm, under load: it is updated, taken back, scaled, and given a broken image."""

import json
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kit.engine import Engine
from kit.load import ROWS, Load
from kit.project import ROOT, Project, Renders
from kit.recipes import read
from kit.service import answers, clean_environment, free_ports, wait_for

pytestmark = pytest.mark.slow

# The service, with a route that the load asks for; and, if it is told so, never ready.
APPS = ROOT / "tests" / "apps"
IMAGES = {
    "one": "ENV APP_BUILD_REVISION=one",
    "two": "ENV APP_BUILD_REVISION=two",
    "ends at once": "ENV APP_DRAIN_TIMEOUT=never",
    "never ready": "ENV NEVER_READY=1",
}
# Made shorter by the rules that stand beside them; but answers may take longer, on a busy machine.
QUICKER = {
    "haproxy.cfg": {"inter 1s": "inter 250ms", "timeout check 1s": "timeout check 5s"},
    "stack.yaml": {
        'APP_DRAIN_DELAY: "5"': 'APP_DRAIN_DELAY: "2"',
        "interval: 5s\n      retries: 12": "interval: 1s\n      retries: 5\n      start_period: 5s",
        "monitor: 30s": "monitor: 1s",
    },
}


class Stack:
    """A stack, deployed from the files of a generated project with what its page says."""

    def __init__(self, engine: Engine, project: Project, folder: Path) -> None:
        self.engine = engine
        self.name = project.answers["project_slug"]
        self.service = f"{self.name}_service"
        self.folder = Path(shutil.copytree(project.path / "deploy" / "swarm", folder / "swarm"))
        self.images = self._build(project, folder)
        self.port = free_ports(1)[0]
        self.deployed = self.images["one"]
        self.token = 1
        for name, changes in QUICKER.items():
            for usual, quick in changes.items():
                self.replace(name, usual, quick)
        self.replace("cluster.yaml", "published: 8080", f"published: {self.port}")
        self.replace("cluster.yaml", f"image: {self.repository(project)}", f"image: {self.deployed}")

    @staticmethod
    def repository(project: Project) -> str:
        return f"ghcr.io/{project.answers['github_owner']}/{project.answers['project_slug']}:0.1.0"

    def _build(self, project: Project, folder: Path) -> dict[str, str]:
        image, _ = self.engine.build(project.path)
        work = folder / "work"
        work.mkdir()
        shutil.copy(APPS / "work.py", work)
        built = {}
        for name, line in IMAGES.items():
            (work / "Dockerfile").write_text(
                f'FROM {image}\nCOPY work.py /\n{line}\nENTRYPOINT ["/app/bin/python", "/work.py"]\n'
            )
            built[name], _ = self.engine.build(work)
        return built

    def replace(self, name: str, old: str, new: str) -> None:
        file = self.folder / name
        text = file.read_text(encoding="utf-8")
        assert old in text, f"{name} has no {old!r}"
        file.write_text(text.replace(old, new), encoding="utf-8")

    def make_secret(self) -> str:
        """Make the next token; return it."""
        token = uuid.uuid4().hex
        file = self.folder / "token"
        file.write_text(token)
        self.engine.do("secret", "create", f"{self.name}_admin_token_{self.token}", file)
        return token

    def add_worker(self) -> None:
        """Add what the recipe of a worker in a process of its own says."""
        text = read("worker-process").files["deploy/swarm/jobs.yaml"]
        (self.folder / "jobs.yaml").write_text(text.replace("my-service", self.name))
        image = f"image: ghcr.io/your-organisation/{self.name}:0.1.0"
        self.replace("jobs.yaml", image, f"image: {self.deployed}")
        self.replace("jobs.yaml", "interval: 5s", "interval: 1s")

    def deploy(self) -> None:
        names = ("stack.yaml", "cluster.yaml", "jobs.yaml")
        files = (f"--compose-file={self.folder / name}" for name in names if (self.folder / name).exists())
        self.engine.do("stack", "deploy", "--resolve-image=never", *files, self.name)

    def deploy_image(self, name: str) -> None:
        self.replace("cluster.yaml", f"image: {self.deployed}", f"image: {self.images[name]}")
        self.deployed = self.images[name]
        self.deploy()

    def containers(self, service: str = "service") -> list[Any]:
        """All containers of a service, those too that have ended."""
        filters = f"--filter=label=com.docker.swarm.service.name={self.name}_{service}"
        identities = self.engine.do("ps", "--all", "--quiet", "--no-trunc", filters).split()
        # One may be gone by then.
        done = self.engine.call("inspect", *identities, check=False)
        return list(json.loads(done.stdout or "[]"))

    def running(self, service: str = "service") -> list[Any]:
        return [one for one in self.containers(service) if one["State"]["Running"]]

    def wait(self, condition: Callable[[], object], what: str, limit: float = 90) -> None:
        """Wait for a condition that is dear to look at."""
        try:
            wait_for(condition, what, limit, every=0.5)
        except AssertionError as error:
            said = self.engine.do("service", "ps", "--no-trunc", self.service)
            pytest.fail(f"{error}\n{said}", pytrace=False)

    def settled(self, count: int, image: str, service: str = "service") -> None:
        """Wait until so many instances of this image are healthy, and no others are left."""

        def there() -> bool:
            found = [
                (one["State"]["Health"]["Status"], plain(one["Config"]["Image"]))
                for one in self.running(service)
            ]
            return found == [("healthy", self.images[image])] * count

        self.wait(there, f"{count} instances of the image {image}")

    def update_state(self) -> str:
        status = self.engine.inspect(self.service).get("UpdateStatus") or {}
        return str(status.get("State"))

    def updated(self, state: str = "completed") -> None:
        self.wait(lambda: self.update_state() == state, f"the update's state {state}")

    @contextmanager
    def no_request_lost(self, event: str) -> Iterator[None]:
        """Put it under load, and count; a failed request fails the test."""
        began = time.monotonic()
        with Load(self.port, re.sub(r"\W+", "-", event)).running() as load:
            yield
        took = time.monotonic() - began
        ROWS.append(f"| {event} | {len(load.outcomes)} | {len(load.failures)} | {took:.1f} s |")
        assert len(load.outcomes) > 100
        assert not load.failures, f"{len(load.failures)} failed, first {load.failures[0]}"


@pytest.fixture(scope="module")
def swarm(engine: Engine) -> Iterator[Engine]:
    with engine.swarm():
        yield engine


@pytest.fixture(scope="module")
def stack(swarm: Engine, renders: Renders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    slug = f"stack-{uuid.uuid4().hex[:8]}"
    project = renders.as_people_do(project_slug=slug, package_name="my_service", deploy_to="swarm")
    stack = Stack(swarm, project, tmp_path_factory.mktemp("stack"))
    try:
        yield stack
    finally:
        swarm.call("stack", "rm", stack.name, check=False)
        stack.wait(lambda: not stack.containers(), "the end of all containers")
        for number in range(1, stack.token + 1):
            swarm.call("secret", "rm", f"{stack.name}_admin_token_{number}", check=False)


def test_an_empty_swarm_comes_to_answer(stack: Stack) -> None:
    token = stack.make_secret()
    began = time.monotonic()
    stack.deploy()
    stack.settled(3, "one")
    stack.wait(lambda: answers(stack.port, "/work?s=0"), "an answer through HAProxy")
    ROWS.append(f"| first deployment | | | {time.monotonic() - began:.1f} s |")
    for one in stack.running():
        assert guarded(stack, one["Id"], token) == "200"
        host = one["HostConfig"]
        assert (host["ReadonlyRootfs"], host["CapDrop"], host["PortBindings"] or {}) == (True, ["ALL"], {})
        assert stack.engine.orphan(one["Id"]) == "gone"


def plain(image: str) -> str:
    """Take off what the engine adds to a tag."""
    return image.partition("@")[0].removesuffix(":latest")


def guarded(stack: Stack, container: str, token: str) -> str:
    """Say how the container answers a guarded request with this token, sent from inside."""
    program = (APPS / "guarded.py").read_text()
    return stack.engine.do("exec", container, "/app/bin/python", "-c", program, token)


def test_a_new_image_and_back_again(stack: Stack) -> None:
    with stack.no_request_lost("update to a new image"):
        stack.deploy_image("two")
        stack.updated()
        stack.settled(3, "two")
    with stack.no_request_lost("roll back"):
        stack.engine.do("service", "rollback", "--detach", stack.service)
        stack.updated("rollback_completed")
        stack.settled(3, "one")
    ended_well(stack)
    # What the files say is what runs again.
    stack.replace("cluster.yaml", stack.deployed, stack.images["one"])
    stack.deployed = stack.images["one"]


def ended_well(stack: Stack) -> None:
    """Every instance that was taken away has had the time to drain."""
    ended = [one["State"] for one in stack.containers() if not one["State"]["Running"]]
    assert ended
    assert {one["ExitCode"] for one in ended} == {0}, ended


def test_it_is_scaled_up_and_down(stack: Stack) -> None:
    def asked(one: Any) -> bool:
        return '"event":"request"' in stack.engine.do("logs", one["Id"])

    with stack.no_request_lost("scale 3 to 6 to 2"):
        stack.engine.do("service", "scale", "--detach", f"{stack.service}=6")
        stack.settled(6, "one")
        stack.wait(lambda: all(map(asked, stack.running())), "a request for each")
        stack.engine.do("service", "scale", "--detach", f"{stack.service}=2")
        stack.settled(2, "one")
    ended_well(stack)
    # Else the next deployment would scale it again.
    stack.replace("cluster.yaml", "replicas: 3", "replicas: 2")


def test_a_secret_is_rotated(stack: Stack) -> None:
    old = f"{stack.name}_admin_token_{stack.token}"
    stack.token += 1
    token = stack.make_secret()
    before = {one["Id"] for one in stack.running()}
    with stack.no_request_lost("rotate a secret"):
        stack.replace("cluster.yaml", f"name: {old}", f"name: {stack.name}_admin_token_{stack.token}")
        stack.deploy()
        stack.updated()
        stack.wait(lambda: not before & {one["Id"] for one in stack.running()}, "other instances")
        stack.settled(2, "one")
    for one in stack.running():
        assert guarded(stack, one["Id"], token) == "200"
        assert guarded(stack, one["Id"], "the old one") == "403"
    ended_well(stack)
    stack.engine.do("secret", "rm", old)


@pytest.mark.parametrize("image", ["ends at once", "never ready"])
def test_a_broken_image_is_taken_back_by_itself(stack: Stack, image: str) -> None:
    good, before = stack.deployed, {one["Id"] for one in stack.running()}
    with stack.no_request_lost(
        f"a broken image: it {image}" if "ends" in image else "a broken image: never ready"
    ):
        stack.deploy_image(image)
        stack.updated("rollback_completed")
    stack.replace("cluster.yaml", stack.deployed, good)
    stack.deployed = good
    serving = [one for one in stack.running() if plain(one["Config"]["Image"]) == good]
    assert before & {one["Id"] for one in serving}, "the good ones were replaced, too"
    spec = stack.engine.inspect(stack.service)["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
    assert plain(spec) == good


def test_a_worker_beside_the_service_runs_and_ends_its_job_when_it_is_replaced(stack: Stack) -> None:
    stack.add_worker()
    stack.deploy()
    stack.settled(2, "one", "jobs")
    first = [one["Id"] for one in stack.running("jobs")]
    for container in first:
        stack.wait(partial(events, stack, container, "begun"), "a job")
    stack.engine.do("service", "update", "--detach", "--force", f"{stack.name}_jobs")
    stack.wait(lambda: not {one["Id"] for one in stack.running("jobs")} & {*first}, "other workers")
    stack.settled(2, "one", "jobs")
    for container in first:
        assert stack.engine.inspect(container)["State"]["ExitCode"] == 0
        ended_its_job(stack.engine.do("logs", container))
    # With its service, a container goes too: its log is followed until then.
    second = [one["Id"] for one in stack.running("jobs")]
    followers = [following(stack, container) for container in second]
    for container in second:
        stack.wait(partial(events, stack, container, "begun"), "a job")
    stack.engine.do("service", "rm", f"{stack.name}_jobs")
    for follower in followers:
        ended_its_job(follower.communicate(timeout=60)[0])


def events(stack: Stack, container: str, event: str) -> bool:
    return f'"event":"{event}"' in stack.engine.do("logs", container)


def following(stack: Stack, container: str) -> "subprocess.Popen[str]":
    """Follow the log of a container; it ends with the container."""
    command = (stack.engine.docker, "logs", "--follow", container)
    return subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, text=True)


def ended_its_job(log: str) -> None:
    """A worker that was told to stop has done what it had begun, and has said that all is well."""
    lines = [json.loads(line) for line in log.splitlines()]
    jobs = {event: [line["job"] for line in lines if line["event"] == event] for event in ("begun", "done")}
    assert jobs["begun"] == jobs["done"] != []
    assert [line["event"] for line in lines if line["logger"] == "lifecycle"] == ["ready", "draining"]
    assert (lines[-1]["event"], lines[-1]["status"]) == ("stopped", 0)
