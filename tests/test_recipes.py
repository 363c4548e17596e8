"""The pages of docs/recipes, each applied to a fresh service, which then keeps the page's promise."""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kit.project import FRAMEWORKS, Project, Renders, git
from kit.readers import running
from kit.recipes import PAGES, RECIPES, apply, read
from kit.service import Service, clean_environment, free_port, wait_for
from kit.tools import tool

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("what_mypy_read")]

DATABASE = {"database": "postgresql", "http_client": "httpx2"}
# What a page is for, if it is not for a service of any framework, and the tool that its tests need.
ANSWERS = {"outbox": DATABASE}
ONLY = {"openapi": "fastapi"}
NEEDED = {"queue-consumer": "redis-server"}
# Their promises are about what runs a service: test_recipes_deployed.py holds them to these.
DEPLOYED = {"rate-limits", "worker-process"}
BOTH = [
    (name, framework)
    for name in sorted(PAGES.keys() - DEPLOYED)
    for framework in FRAMEWORKS
    if ONLY.get(name, framework) == framework
]

# What is long, and is about processes and no framework, runs with the first framework alone.
SHORT = ("-k", "not while_instances_are_replaced")

Apply = Callable[[str, str], tuple[Project, list[str]]]


@pytest.fixture(scope="module")
def changed(renders: Renders, uv: Path, tmp_path_factory: pytest.TempPathFactory) -> Apply:
    """What makes a service what a page says, and returns it with the page's own tests.

    All pages have one folder and one environment, with what any of them needs: to build one takes longer
    than the tests of a page, and mypy reads only what has changed.
    """
    everything = {**DATABASE, "web_framework": "fastapi"}
    service = renders.copy(tmp_path_factory.mktemp("recipes"), everything).commit()
    packages = {package for name in PAGES for package in read(name).packages}
    service.run(uv, "add", "--quiet", "--no-sync", *packages)
    renders.sync(service)

    def apply_page(name: str, framework: str) -> tuple[Project, list[str]]:
        plain = renders.get(**ANSWERS.get(name, {}), web_framework=framework)
        git(service.path, "clean", "--force", "--quiet", "-d")
        git(service.path, "rm", "-r", "--force", "--quiet", ".")
        shutil.copytree(plain.path, service.path, dirs_exist_ok=True)
        git(service.path, "add", "--all")
        git(service.path, "commit", "--quiet", "--allow-empty", "--message", "Render")
        there = replace(service, answers=plain.answers)
        return there, apply(there, read(name, framework))

    return apply_page


@pytest.mark.parametrize(("name", "framework"), BOTH)
def test_a_page_keeps_its_promise(changed: Apply, name: str, framework: str) -> None:
    if name in NEEDED:
        tool(NEEDED[name])
    service, own_tests = changed(name, framework)
    assert own_tests, "a page without a test"
    tools = service.path / ".venv/bin"
    some = () if framework == ONLY.get(name, FRAMEWORKS[0]) else SHORT
    service.run(tools / "python", "-m", "pytest", "-q", *some, *own_tests)
    for command in (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)):
        service.run(tools / command[0], *command[1:])


def test_the_gate_of_the_openapi_page_refuses_what_breaks_a_client(changed: Apply) -> None:
    service, own_tests = changed("openapi", "fastapi")
    gate: tuple[str | Path, ...] = (service.python, "-m", "pytest", "-q", *own_tests)
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
    changed: Apply, tmp_path: Path
) -> None:
    service, port = changed("queue-consumer", "starlette")[0], str(free_port())
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
