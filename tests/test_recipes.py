"""The pages of docs/recipes, each applied to a fresh service, which then keeps the page's promise."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from kit.project import Project, Renders, git
from kit.readers import running
from kit.recipes import PAGES, RECIPES, apply, read
from kit.service import Service, clean_environment, free_port, wait_for
from kit.tools import tool

pytestmark = pytest.mark.slow

KINDS: Mapping[str, Mapping[str, str]] = {
    "starlette": {},
    "fastapi": {"web_framework": "fastapi"},
    "postgresql": {"database": "postgresql", "http_client": "httpx2"},
}
# What a page is for, if it is not the default service, and the tool that its tests need.
KIND = {"openapi": "fastapi", "outbox": "postgresql"}
NEEDED = {"queue-consumer": "redis-server"}
# Their promises are about what runs a service: test_recipes_deployed.py holds them to these.
DEPLOYED = {"rate-limits", "worker-process"}


def kind(name: str) -> str:
    return KIND.get(name, "starlette")


@pytest.fixture(scope="module")
def services(renders: Renders, uv: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    """One service for all pages of a kind, so that mypy need not read everything for each page anew."""
    made = {}
    for each, answers in KINDS.items():
        project = renders.fresh(tmp_path_factory.mktemp(each), answers)
        packages = [package for name in PAGES if kind(name) == each for package in read(name).packages]
        if packages:
            project.run(uv, "add", "--quiet", *packages)
        project.sync()
        git(project.commit().path, "tag", "rendered")
        made[each] = project
    return made


def changed(service: Project, name: str) -> list[str]:
    """Make the service what the page says, from what the template generates; return the page's own tests."""
    git(service.path, "reset", "--hard", "--quiet", "rendered")
    git(service.path, "clean", "--force", "--quiet", "-d")
    return apply(service, read(name))


@pytest.mark.parametrize("name", sorted(PAGES.keys() - DEPLOYED))
def test_a_page_keeps_its_promise(services: dict[str, Project], name: str) -> None:
    if name in NEEDED:
        tool(NEEDED[name])
    service = services[kind(name)]
    own_tests = changed(service, name)
    assert own_tests, "a page without a test"
    tools = service.path / ".venv/bin"
    service.run(tools / "python", "-m", "pytest", "-q", *own_tests)
    for command in (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)):
        service.run(tools / command[0], *command[1:])


def test_the_gate_of_the_openapi_page_refuses_what_breaks_a_client(services: dict[str, Project]) -> None:
    service = services["fastapi"]
    gate: tuple[str | Path, ...] = (service.python, "-m", "pytest", "-q")
    gate += tuple(changed(service, "openapi"))
    service.run(*gate)
    git(service.path, "add", "--all")
    git(service.path, "commit", "--quiet", "--message", "Commit the document")
    git(service.path, "update-ref", "refs/remotes/origin/main", "HEAD")
    assert "skipped" not in service.run(*gate)
    app, document = service.path / "src" / service.package / "app.py", service.path / "openapi.json"
    app.write_text(app.read_text(encoding="utf-8").replace('"/greetings"', '"/hello"'), encoding="utf-8")
    document.unlink()
    with pytest.raises(pytest.fail.Exception, match="post /greetings is gone"):
        service.run(*gate)


DEAF = """while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
"""


def test_a_job_of_the_queue_page_that_can_not_be_cancelled_fails_liveness(
    services: dict[str, Project], tmp_path: Path
) -> None:
    service, port = services["starlette"], str(free_port())
    changed(service, "queue-consumer")
    module = service.path / "src" / service.package / "jobs.py"
    text, count = re.subn(r"await asyncio\.sleep\(.+\n", DEAF, module.read_text(encoding="utf-8"))
    assert count == 1
    module.write_text(
        text.replace("import asyncio\n", "import asyncio\nimport contextlib\n"), encoding="utf-8"
    )
    server, client = tool("redis-server"), (tool("redis-cli"), "-p", port)

    def ask(*words: str) -> str:
        return subprocess.run((*client, *words), check=True, capture_output=True, text=True).stdout

    with running(
        server, "--port", port, "--save", "", log=tmp_path / "log", ready=lambda: ask("ping"), env={}
    ):
        ask("xadd", "jobs", "*", "name", "Ada")
        env = {"APP_JOBS_URL": f"redis://127.0.0.1:{port}", "APP_JOBS_LIMIT": "1", "APP_LOG_FORMAT": "json"}
        env |= {"APP_ADMIN_PORT": "0", "APP_DRAIN_TIMEOUT": "0.5"}
        work = (service.python, "-m", service.package, "worker", "jobs")
        worker = Service(work, tmp_path, clean_environment(**env))
        worker.line("job taken")
        # What Swarm and rolling-restart ask.
        service.run(service.command, "healthcheck", APP_ADMIN_PORT=str(worker.port("admin")))
        wait_for(lambda: worker.status("/-/healthy", "admin") == 503, "liveness to fail")
        said = worker.ask("/-/healthy", port="admin").text
        assert "no progress of jobs" in said
        assert "jobs.py" in said
        assert worker.stop() == 1, worker.said()
        assert "jobs" in str(worker.lines("stop timed out") or worker.line("worker cut off"))
        # The next one finds it.
        assert ask("xlen", "jobs") == "1\n"


def test_the_list_of_recipes_is_complete() -> None:
    listed = re.findall(r"\]\(([\w-]+)\.md\)", (RECIPES / "README.md").read_text(encoding="utf-8"))
    assert listed == [*dict.fromkeys(listed)]
    assert set(listed) == set(PAGES)
